import pytest
import torch
from torch import nn

from sibert.optim import ClippedSGD, Hybrid, InvariantGroup, Lamb, build_optimizer, param_groups


class Toy(nn.Module):
    """An encoder of two layers and a head."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.encoder(x))

    def scale_invariant_groups(self):
        members = [(f"encoder.{name}", p) for name, p in self.encoder.named_parameters(remove_duplicate=False)]
        return {"encoder": InvariantGroup(members)}


class Wrapped(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module


def names(groups):
    return {group["name"]: [name for name, _ in group["params"]] for group in groups}


def test_every_parameter_lands_in_exactly_one_group():
    model = Toy()
    groups = param_groups(model)
    assert names(groups) == {
        "encoder": ["encoder.0.weight", "encoder.0.bias", "encoder.1.weight", "encoder.1.bias"],
        "head": ["head.weight", "head.bias"],
    }
    assert [group["scale_invariant"] for group in groups] == [True, False]
    assert {p for group in groups for _, p in group["params"]} == set(model.parameters())


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_wrappers_are_looked_through():
    model = Toy()
    for wrapped in (Wrapped(model), torch.compile(model), torch.compile(Wrapped(model)), Wrapped(torch.compile(model))):
        assert names(param_groups(wrapped)) == names(param_groups(model))


def test_a_frozen_head_and_a_frozen_encoder_are_left_out():
    model = Toy()
    model.head.requires_grad_(False)
    assert list(names(param_groups(model))) == ["encoder"]
    model = Toy()
    model.encoder.requires_grad_(False)
    assert list(names(param_groups(model))) == ["head"]
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable"):
        param_groups(model)


def test_half_a_group_cannot_be_frozen():
    model = Toy()
    model.encoder[0].bias.requires_grad_(False)
    with pytest.raises(ValueError, match=r"encoder\.0\.bias is frozen.*not a part of it"):
        param_groups(model)


def test_a_parameter_tied_to_the_head_is_refused():
    model = Toy()
    model.head = nn.Linear(4, 4)
    model.head.weight = model.encoder[1].weight
    with pytest.raises(ValueError, match=r"encoder\.1\.weight is tied.*untie"):
        param_groups(model)


def test_a_parameter_tied_within_its_group_is_there_once():
    model = Toy()
    model.encoder.append(nn.Linear(4, 4))
    model.encoder[2].weight = model.encoder[1].weight
    assert names(param_groups(model))["encoder"].count("encoder.1.weight") == 1
    assert "encoder.2.weight" not in names(param_groups(model))["encoder"]


def test_wrong_declarations_are_refused():
    model = Toy()
    everything = model.scale_invariant_groups()["encoder"]
    model.scale_invariant_groups = lambda: {"a": everything, "b": InvariantGroup(everything.members[:1])}
    with pytest.raises(ValueError, match=r"encoder\.0\.weight is in the groups 'a' and 'b'"):
        param_groups(model)
    model.scale_invariant_groups = lambda: {"a": InvariantGroup([("stranger", nn.Parameter(torch.ones(1)))])}
    with pytest.raises(ValueError, match="stranger of the group 'a' is not a parameter"):
        param_groups(model)
    model.scale_invariant_groups = lambda: {"head": everything}
    with pytest.raises(ValueError, match="another name"):
        param_groups(model)
    with pytest.raises(TypeError, match="scale_invariant_groups"):
        param_groups(nn.Linear(2, 2))


def test_a_group_says_whether_its_rows_are_invariant_one_by_one():
    model = Toy()
    members = [(name, p) for name, p in model.named_parameters() if name.startswith("encoder.0")]
    rest = [(name, p) for name, p in model.named_parameters() if name.startswith("encoder.1")]
    model.scale_invariant_groups = lambda: {"rows": InvariantGroup(members, rows=True), "rest": InvariantGroup(rest)}
    optimizer = build_optimizer(model, intrinsic_lr=0.01).optimizers[0]
    assert [(group["name"], group["rows"]) for group in optimizer.param_groups] == [("rows", True), ("rest", False)]


def test_a_head_with_a_matrix_gets_lamb_and_one_of_vectors_adamw_without_decay():
    model = Toy()
    hybrid = build_optimizer(model, intrinsic_lr=0.01)
    assert type(hybrid.optimizers[1]) is Lamb
    chosen = {"lr": 1e-2, "betas": (0.9, 0.999), "weight_decay": 0.01, "eps": 1e-20}
    assert {key: hybrid.param_groups[1][key] for key in chosen} == chosen
    model.head = nn.LayerNorm(4)
    hybrid = build_optimizer(model, intrinsic_lr=0.01)
    assert type(hybrid.optimizers[1]) is torch.optim.AdamW
    chosen = {"lr": 3e-3, "betas": (0.9, 0.98), "weight_decay": 0.0, "eps": 1e-20}
    assert {key: hybrid.param_groups[1][key] for key in chosen} == chosen
    assert build_optimizer(model, intrinsic_lr=0.01, head_lr=0.1).param_groups[1]["lr"] == 0.1


def test_a_head_in_float16_which_cannot_hold_so_small_an_epsilon_has_that_of_its_optimizer():
    model = Toy()
    model.head.half()
    assert build_optimizer(model, intrinsic_lr=0.01).param_groups[1]["eps"] == 1e-6


@pytest.mark.parametrize("size", [1e-18, 1e-21, 1e-23, 1e-30, 0.0])
@pytest.mark.parametrize("head", [lambda: nn.Linear(4, 4), lambda: nn.LayerNorm(4)], ids=["Lamb", "AdamW"])
def test_gradients_whose_squares_underflow_make_no_longer_step_than_others(head, size):
    """The smallest epsilon that still divides what squares lose: m / eps may not outgrow m / sqrt(v)."""
    model = Toy()
    model.head = head()
    *_, optimizer = build_optimizer(model, intrinsic_lr=0.01, head_lr=0.01).optimizers
    before = [p.detach().clone() for p in model.head.parameters()]
    for _ in range(5):
        for p in model.head.parameters():
            p.grad = torch.full_like(p, size)
        optimizer.step()
    for old, p in zip(before, model.head.parameters(), strict=True):
        assert (p - old).abs().max() <= 5 * 0.01 * max(1.0, old.norm().item()) * 1.1


def test_build_optimizer_gives_each_part_its_own():
    model = Toy()
    hybrid = build_optimizer(model, intrinsic_lr=0.01, head_lr=0.1, clip=3.0)
    assert isinstance(hybrid, Hybrid)
    encoder, head = hybrid.optimizers
    assert isinstance(encoder, ClippedSGD)
    assert isinstance(head, Lamb)
    assert (encoder.param_groups[0]["clip"], head.param_groups[0]["lr"]) == (3.0, 0.1)
    model.head.requires_grad_(False)
    assert isinstance(build_optimizer(model, lr=0.1, weight_decay=0.1), ClippedSGD)
    model.head.requires_grad_(True)
    model.encoder.requires_grad_(False)
    assert isinstance(build_optimizer(model, intrinsic_lr=0.1), Lamb)
