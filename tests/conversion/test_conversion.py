"""Conversion changes no function, makes every row (or weight) invariant, and can be undone."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
)

from sibert.conversion import build_optimizer, converted_weights, fold, make_scale_invariant, param_groups
from sibert.conversion.saving import folded_state_dict
from sibert.homogeneity import Verdict, analyze, invariant_rows

TEXT = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
IDS = torch.randint(0, 50, (2, 6), generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4, padding_idx=0)
        self.decoder = nn.Linear(4, 7)
        self.decoder.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.decoder(torch.tanh(self.embedding(ids)))


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def gpt2() -> nn.Module:
    config = GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0, use_cache=False)
    return GPT2LMHeadModel(config)


def vit() -> nn.Module:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return ViTModel(ViTConfig(**sizes, image_size=16, patch_size=8), add_pooling_layer=False)


MODULES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3, bias=False)), normal(2, 4)),
    "bilinear": (lambda: nn.Bilinear(4, 4, 3), normal(2, 4)),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, 3, 2, stride=2)
        ),
        normal(2, 2, 6, 6),
    ),
    "attention": (Attention, normal(2, 3, 8)),
    "tied": (Tied, torch.tensor([[0, 1, 5], [3, 0, 6]])),
    "BERT": (lambda: BertForMaskedLM(BertConfig(**TEXT)), IDS),
    "GPT-2": (gpt2, IDS),
    "ViT": (vit, normal(2, 3, 16, 16)),
    "ResNet": (
        lambda: ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")),
        normal(2, 3, 32, 32),
    ),
}


def built(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    build, inputs = MODULES[name]
    return build().double().eval(), (inputs, inputs) if name == "bilinear" else (inputs,)


def output(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    result = module(*inputs)
    return result if isinstance(result, Tensor) else result[0]


@pytest.mark.parametrize("granularity", ["row", "matrix"])
@pytest.mark.parametrize("name", MODULES)
class TestEveryModule:
    def test_function_stays_and_comes_back(self, name, granularity):
        module, inputs = built(name)
        plain = {key: value.clone() for key, value in module.state_dict().items()}
        before = output(module, inputs)

        assert make_scale_invariant(module, granularity=granularity) is module
        torch.testing.assert_close(output(module, inputs), before, rtol=1e-12, atol=1e-13)

        fold(module)
        assert module.state_dict().keys() == plain.keys()
        for key, value in module.state_dict().items():
            torch.testing.assert_close(value, plain[key], rtol=1e-14, atol=1e-16)
        torch.testing.assert_close(output(module, inputs), before, rtol=1e-12, atol=1e-13)

    def test_every_direction_has_a_scale_of_its_own(self, name, granularity):
        module, inputs = built(name)
        make_scale_invariant(module, granularity=granularity)
        before = output(module, inputs)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for weight in converted_weights(module):
                shape = (len(weight.direction),) if granularity == "row" else (1,)
                factors = 10.0 ** torch.empty(shape, dtype=torch.float64).uniform_(-6, 6, generator=generator)
                weight.direction.mul_(factors.reshape(-1, *[1] * (weight.direction.ndim - 1)))
        torch.testing.assert_close(output(module, inputs), before, rtol=1e-11, atol=1e-12)

    def test_gradients_are_those_of_the_weights(self, name, granularity):
        """dL/dg = <dL/dw, v>/|v|, and dL/dv is the part of dL/dw that turns v, times g/|v|."""
        module, inputs = built(name)
        output(module, inputs).square().sum().backward()
        plain = {key: parameter.grad for key, parameter in module.named_parameters(remove_duplicate=False)}
        weights = {
            key: parameter.detach().clone() for key, parameter in module.named_parameters(remove_duplicate=False)
        }
        module.zero_grad()
        make_scale_invariant(module, granularity=granularity)
        output(module, inputs).square().sum().backward()
        for weight in converted_weights(module):
            axis = weight.parametrisation.axis
            grad = plain[weight.names[0]]
            if grad is None:
                continue
            rows, w = (t.movedim(axis, 0).flatten(1) for t in (grad, weights[weight.names[0]]))
            if granularity == "matrix":
                rows, w = rows.reshape(1, -1), w.reshape(1, -1)
            norm = w.norm(dim=1, keepdim=True)
            unit = torch.where(norm > 0, w / norm, w.shape[1] ** -0.5)
            radial = (rows * unit).sum(1, keepdim=True)
            torch.testing.assert_close(weight.gain.grad.reshape(-1, 1), radial, rtol=1e-9, atol=1e-12)
            size = torch.where(norm > 0, norm, 1.0)
            expected = torch.where(norm > 0, (rows - radial * unit) * norm / size, 0.0)
            torch.testing.assert_close(weight.direction.grad.reshape(rows.shape), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("granularity", ["row", "matrix"])
def test_the_checker_proves_it(granularity):
    module, inputs = built("convolutions")
    make_scale_invariant(module, granularity=granularity)
    report = analyze(module, inputs)
    directions = {f"{name}.parametrizations.weight.original1" for name in ("0", "3")}
    assert {group[0] for group in report.invariant_groups()} == directions
    assert report.confirmation is not None
    assert report.confirmation.contradicted == ()
    rows = invariant_rows(module, inputs)
    expected = Verdict.EXACT if granularity == "row" else Verdict.NOT_PROVED
    assert {rows[name] for name in directions} == {expected}


def test_bert_is_invariant_in_every_row_exactly():
    module, inputs = built("BERT")
    make_scale_invariant(module)
    report = analyze(module, inputs, output="logits", numeric=False)
    groups = {group[0] for group in report.invariant_groups()}
    directions = {name for name, p in module.named_parameters() if name.endswith("original1")}
    assert directions <= groups
    assert all(
        verdict is Verdict.EXACT for name, verdict in invariant_rows(module, inputs).items() if name in directions
    )


def test_float32_changes_by_rounding():
    module, inputs = built("BERT")
    module = module.float()
    before = output(module, inputs)
    make_scale_invariant(module)
    torch.testing.assert_close(output(module, inputs), before, rtol=1e-4, atol=1e-5)


def test_what_stays_is_less_than_a_percent_of_bert_base():
    with torch.device("meta"):
        model = BertForMaskedLM(BertConfig())
    rows = sum(p.shape[0] for p in model.parameters() if p.ndim > 1)
    vectors = sum(p.numel() for p in model.parameters() if p.ndim == 1)
    assert (rows + vectors) / sum(p.numel() for p in model.parameters()) < 0.01


def test_padding_row_has_gain_0_and_stays():
    module, _ = built("tied")
    assert not module.embedding.weight[0].any()
    make_scale_invariant(module)
    (weight,) = converted_weights(module)
    assert weight.names == ("embedding.weight", "decoder.weight")
    assert weight.gain[0] == 0
    assert weight.direction[0].norm().item() == pytest.approx(1.0)
    assert not module.embedding.weight[0].any()
    assert module.embedding.parametrizations.weight is module.decoder.parametrizations.weight
    fold(module)
    assert module.embedding.weight is module.decoder.weight


def test_groups_hold_every_parameter_once():
    module, _ = built("BERT")
    make_scale_invariant(module)
    groups = param_groups(module)
    held = [parameter for group in groups for _, parameter in group["params"]]
    assert len(held) == len(set(held)) == len(list(module.parameters()))
    assert [group["name"] for group in groups][-3:] == ["gains of 32", "gains of 16", "rest"]
    assert all(group["scale_invariant"] and group["rows"] for group in groups[:-3])
    assert not any(group["scale_invariant"] for group in groups[-3:])
    directions = sum(p.numel() for group in groups[:-3] for _, p in group["params"])
    assert directions > 0.8 * sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("granularity", ["row", "matrix"])
def test_gains_move_as_fast_as_plain_entries_would(granularity):
    """One step of AdamW on a weight along its sign changes its norms as one step on its gains does."""
    signs = torch.tensor([[1.0, -1.0, 1.0, 1.0], [-1.0, 1.0, 1.0, -1.0]])
    plain, converted = nn.Linear(4, 2, bias=False), nn.Linear(4, 2, bias=False)
    for module in (plain, converted):
        module.weight = nn.Parameter(0.1 * signs)
    make_scale_invariant(converted, granularity=granularity)
    optimizers = (
        torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.0),
        build_optimizer(converted, intrinsic_lr=1e-9, rest_lr=1e-3),
    )
    for module, optimizer in zip((plain, converted), optimizers, strict=True):
        (-(module.weight * signs).sum()).backward()
        optimizer.step()
    torch.testing.assert_close(plain.weight, 0.101 * signs)
    torch.testing.assert_close(converted.weight, plain.weight)


def test_training_keeps_no_state_for_directions():
    torch.manual_seed(0)
    module = make_scale_invariant(nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 3)))
    optimizer = build_optimizer(module, intrinsic_lr=1e-2)
    x = torch.randn(64, 4)
    y = x[:, :3].argmax(1)
    losses = []
    for _ in range(100):
        loss = F.cross_entropy(module(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    for weight in converted_weights(module):
        state = optimizer.state[weight.direction]
        assert sum(v.numel() for v in state.values() if isinstance(v, Tensor)) <= len(weight.direction)


@settings(max_examples=20, deadline=None)
@given(exponents=st.lists(st.integers(-12, 12), min_size=19, max_size=19))
def test_training_is_the_same_bit_for_bit_from_any_scale(exponents):
    """Powers of two, one for each row, which rounding does not see."""

    def trained(factors: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        torch.manual_seed(0)
        module = make_scale_invariant(nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 3)))
        weights = converted_weights(module)
        parts = factors.split([16, 3])
        with torch.no_grad():
            for weight, part in zip(weights, parts, strict=True):
                weight.direction.mul_(part[:, None])
        optimizer = build_optimizer(module, intrinsic_lr=1e-2)
        x = torch.randn(32, 4)
        for _ in range(4):
            F.cross_entropy(module(x), x[:, :3].argmax(1)).backward()
            optimizer.step()
            optimizer.zero_grad()
        directions = [weight.direction / part[:, None] for weight, part in zip(weights, parts, strict=True)]
        return module(x), [weight.gain for weight in weights], directions

    expected = trained(torch.ones(19))
    found = trained(torch.tensor([2.0**exponent for exponent in exponents]))
    assert torch.equal(found[0], expected[0])
    for mine, plain in zip(found[1] + found[2], expected[1] + expected[2], strict=True):
        assert torch.equal(mine, plain)


def test_state_dict_and_copies():
    module, inputs = built("BERT")
    make_scale_invariant(module)
    other, _ = built("BERT")
    make_scale_invariant(other)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.1)
    other.load_state_dict(module.state_dict())
    assert torch.equal(output(other, inputs), output(module, inputs))
    assert torch.equal(output(copy.deepcopy(module), inputs), output(module, inputs))


def test_export_and_compile():
    module, inputs = built("linear")
    make_scale_invariant(module)
    before = output(module, inputs)
    exported = torch.export.export(module, inputs).module()
    torch.testing.assert_close(exported(*inputs), before)
    torch.testing.assert_close(torch.compile(module, backend="aot_eager", fullgraph=True)(*inputs), before)


def test_parts_may_be_chosen():
    module, _ = built("BERT")
    make_scale_invariant(
        module, include=["bert.encoder", "cls.predictions.transform.dense.weight"], exclude="*.key.weight"
    )
    names = [weight.names[0] for weight in converted_weights(module)]
    assert "bert.encoder.layer.0.attention.self.query.weight" in names
    assert "bert.encoder.layer.0.attention.self.key.weight" not in names
    assert "bert.embeddings.word_embeddings.weight" not in names


class Shared(nn.Module):
    """A module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)
        self.again = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.again(torch.tanh(self.first(x))))


class TestFold:
    @pytest.mark.parametrize("name", MODULES)
    def test_parameters_are_in_their_order(self, name):
        module, _ = built(name)
        names = [key for key, _ in module.named_parameters()]
        fold(make_scale_invariant(module))
        assert [key for key, _ in module.named_parameters()] == names

    def test_frozen_weights_stay_parameters_and_frozen(self):
        module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        module[0].weight.requires_grad_(False)
        fold(make_scale_invariant(module))
        trained = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
        assert trained == {"0.weight": False, "0.bias": True, "1.weight": True, "1.bias": True}

    def test_without_gradients_weights_become_parameters_that_have_some(self):
        module = make_scale_invariant(nn.Linear(3, 4))
        with torch.no_grad():
            fold(module)
        assert [(name, parameter.requires_grad) for name, parameter in module.named_parameters()] == [
            ("weight", True),
            ("bias", True),
        ]

    @pytest.mark.parametrize("name", ["attention", "tied", "convolutions"])
    def test_a_copy_and_its_original_are_folded_apart(self, name):
        module, inputs = built(name)
        before = output(make_scale_invariant(module), inputs)
        copied = copy.deepcopy(module)
        for folded in (module, copied):
            fold(folded)
            for each in (module, copied):
                torch.testing.assert_close(output(each, inputs), before, rtol=1e-12, atol=1e-13)

    def test_of_a_module_two_weights_are_folded_one_by_one(self):
        module = nn.MultiheadAttention(4, 2, kdim=3, vdim=3)
        plain = {key: value.clone() for key, value in module.state_dict().items()}
        copied = copy.deepcopy(make_scale_invariant(module))
        fold(module)
        assert len(converted_weights(copied)) == 4
        assert list(fold(copied).state_dict()) == list(plain)
        for key, value in copied.state_dict().items():
            torch.testing.assert_close(value, plain[key])


class TestSharedModules:
    def test_there_and_back(self):
        module, x = Shared(), torch.randn(2, 3)
        names, before = list(module.state_dict()), module(x)
        make_scale_invariant(module)
        assert [weight.names for weight in converted_weights(module)] == [
            ("first.weight", "again.weight"),
            ("last.weight",),
        ]
        torch.testing.assert_close(module(x), before)
        assert len(list(fold(module).parameters())) == 4
        assert list(module.state_dict()) == names
        torch.testing.assert_close(module(x), before)

    def test_plain_weights_are_saved_and_loaded_under_both_names(self):
        module, x = Shared(), torch.randn(2, 3)
        plain, before = {key: value.clone() for key, value in module.state_dict().items()}, module(x)
        make_scale_invariant(module)
        assert folded_state_dict(module).keys() == plain.keys()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(1.1)
        with pytest.warns(UserWarning, match="plain weights"):
            module.load_state_dict(plain)
        torch.testing.assert_close(module(x), before)

    def test_either_name_includes_it(self):
        (weight,) = converted_weights(make_scale_invariant(Shared(), include="again"))
        assert weight.names == ("first.weight", "again.weight")


class TestMistakes:
    """One sentence each, and nothing has changed."""

    @pytest.mark.parametrize(
        ("build", "options", "message"),
        [
            (lambda: nn.ReLU(), {}, r"nothing to convert"),
            (lambda: nn.Linear(2, 2), {"include": "nothing"}, r"'nothing' matches no parameter"),
            (lambda: nn.Linear(2, 2), {"granularity": "column"}, r"'row' or 'matrix', got 'column'"),
            (lambda: nn.Linear(2, 2), {"include": "bias"}, r"bias belongs to a Linear, of which nothing is known"),
            (lambda: nn.LSTM(2, 2), {"include": "weight_ih_l0"}, r"recurrent layer"),
            (lambda: nn.Embedding(3, 2, sparse=True), {}, r"sparse gradients"),
            (lambda: nn.Embedding(3, 2, max_norm=1.0), {}, r"max_norm"),
            (lambda: make_scale_invariant(nn.Linear(2, 2)), {}, r"converted already has to be folded"),
            (Tied, {"exclude": "decoder.weight"}, r"embedding\.weight is one weight with decoder\.weight"),
        ],
    )
    def test_refused(self, build, options, message):
        module = build()
        before = set(module.state_dict())
        with pytest.raises(ValueError, match=message):
            make_scale_invariant(module, **options)
        assert set(module.state_dict()) == before

    def test_rows_that_disagree(self):
        module = nn.Module()
        module.table, module.turned = nn.Embedding(4, 4), nn.ConvTranspose1d(4, 4, 1)
        module.turned.weight = nn.Parameter(torch.randn(4, 4))
        module.turned.weight = module.table.weight
        with pytest.raises(ValueError, match=r"outputs in one place and inputs in the other"):
            make_scale_invariant(module)

    def test_weights_that_are_not_finite(self):
        module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        with torch.no_grad():
            module[1].weight[0, 0] = float("nan")
        with pytest.raises(ValueError, match=r"1\.weight is empty or has entries that are not finite"):
            make_scale_invariant(module)
        assert "0.weight" in module.state_dict()

    def test_no_module(self):
        with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got str"):
            make_scale_invariant("model")

    def test_fold_and_groups_of_a_plain_module(self):
        with pytest.raises(ValueError, match=r"nothing to fold"):
            fold(nn.Linear(2, 2))
        with pytest.raises(ValueError, match=r"call make_scale_invariant first"):
            param_groups(nn.Linear(2, 2))

    def test_groups_of_a_frozen_module(self):
        module = make_scale_invariant(nn.Linear(2, 2)).requires_grad_(False)
        with pytest.raises(ValueError, match=r"no trainable parameter: call requires_grad_\(True\)"):
            build_optimizer(module, intrinsic_lr=0.1)
