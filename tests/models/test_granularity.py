"""Invariance of every single group, and of every row: `invariance` "matrix" and "row"."""

import pytest
import torch

from sibert.models import SibertForMaskedLM, SibertForPreTraining, SibertModel, initialize_from_frequencies
from sibert.optim import build_optimizer
from tests.assertions import INVARIANCE_TOLERANCE, euler_residual, relative_change, scaled
from tests.models.builders import deep_config, roughened

SCALES = [1e-6, 1e-3, 10.0, 1e6]
DEPTH = 3


def config_of(invariance, **fields):
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return deep_config(num_hidden_layers=DEPTH, invariance=invariance, **no_dropout, **fields)


def parameters_of(group):
    """A matrix, and its bias if it has one, under whatever names."""
    return list({id(p): p for _, p in group.members}.values())


@pytest.fixture(params=["matrix", "row"])
def invariance(request):
    return request.param


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_group_may_be_rescaled_on_its_own(invariance, dtype, batch):
    model = roughened(SibertForPreTraining(config_of(invariance)).to(dtype).eval())

    def outputs():
        result = model(**batch)
        return torch.cat([result.prediction_logits.flatten(), result.seq_relationship_logits.flatten()])

    groups = model.scale_invariant_groups()
    # A layer has queries, keys, output and two of the feed-forward; and two tables, head, pooler, relation.
    assert len(groups) == 5 * DEPTH + 5
    with torch.no_grad():
        old = outputs()
        for name, group in groups.items():
            for c in SCALES:
                with scaled(parameters_of(group), c):
                    assert relative_change(outputs(), old) <= INVARIANCE_TOLERANCE[dtype], (name, c)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_row_may_be_rescaled_on_its_own(dtype, batch):
    """All rows of all matrices and tables at once, each by a factor of its own."""
    model = roughened(SibertForPreTraining(config_of("row")).to(dtype).eval())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        old = model(**batch)
        for group in model.scale_invariant_groups().values():
            matrix, *bias = parameters_of(group)
            factors = (10.0 ** (torch.rand(len(matrix), generator=generator, dtype=torch.float64) * 12 - 6)).to(dtype)
            matrix.mul_(factors[:, None])
            for vector in bias:
                vector.mul_(factors)
        new = model(**batch)
    tolerance = INVARIANCE_TOLERANCE[dtype]
    assert relative_change(new.prediction_logits, old.prediction_logits) <= tolerance
    assert relative_change(new.seq_relationship_logits, old.seq_relationship_logits) <= tolerance


def test_rows_of_tokens_may_be_rescaled_in_the_matrix_form_but_neurons_may_not(batch):
    model = roughened(SibertForMaskedLM(config_of("matrix")).double().eval())
    factors = torch.logspace(-6, 6, 97, dtype=torch.float64)[:, None]
    with torch.no_grad():
        old = model(**batch).logits
        model.get_input_embeddings().weight.mul_(factors)
        assert relative_change(model(**batch).logits, old) <= 1e-10
        model.sibert.layers[1].feed_forward.input.weight[0].mul_(10.0)
        assert relative_change(model(**batch).logits, old) > 1e-3


def test_a_matrix_without_its_bias_may_not_be_rescaled(invariance, batch):
    model = roughened(SibertForMaskedLM(config_of(invariance)).double().eval())
    with torch.no_grad():
        old = model(**batch).logits
        with scaled([model.sibert.layers[0].attention.key.weight], 10.0):
            assert relative_change(model(**batch).logits, old) > 1e-3


def test_the_joint_form_is_not_invariant_to_the_scale_of_one_matrix(batch):
    model = roughened(SibertForMaskedLM(config_of("joint")).double().eval())
    with torch.no_grad():
        old = model(**batch).logits
        for name in ("lift", "output"):
            weights = [p for own, p in model.sibert.named_parameters() if f"{name}.weight" in own][:1]
            with scaled(weights, 10.0):
                assert relative_change(model(**batch).logits, old) > 1e-3


def test_nothing_but_bias_and_scale_of_the_logits_is_outside_of_a_group(invariance):
    model = SibertForMaskedLM(config_of(invariance))
    grouped = {id(p) for group in model.scale_invariant_groups().values() for _, p in group.members}
    rest = {name for name, p in model.named_parameters() if id(p) not in grouped}
    assert rest == {"decoder.bias", "decoder.log_scale"}


def test_gradients_are_orthogonal_to_every_group_and_row(invariance, batch):
    model = roughened(SibertForMaskedLM(config_of(invariance)).double().eval())
    for group in model.scale_invariant_groups().values():
        parameters = parameters_of(group)
        loss = model(**batch, labels=batch["input_ids"]).loss
        assert euler_residual(loss, parameters) < 1e-6  # the loss is taken in float32
        if group.rows:
            logits = model(**batch).logits
            gradients = torch.autograd.grad(logits.logsumexp(-1).sum(), parameters)
            rows, gradient = (
                torch.cat([x.flatten(1) if x.dim() > 1 else x[:, None] for x in part], dim=1)
                for part in (parameters, gradients)
            )
            cosines = (gradient * rows).sum(-1) / (gradient.norm(dim=-1) * rows.norm(dim=-1) + 1e-300)
            assert cosines.abs().max() < 1e-8


def test_powers_of_two_of_every_group_change_no_bit_of_a_training_run(invariance, batch):
    """Each group by a power of its own, one eta for each group: the same losses, the same directions, bit for bit."""

    def run(exponents):
        torch.manual_seed(0)
        model = SibertForMaskedLM(config_of(invariance)).train()
        groups = list(model.scale_invariant_groups().values())
        factors = [2.0**k for k in exponents[: len(groups)]]
        with torch.no_grad():
            for group, factor in zip(groups, factors, strict=True):
                for parameter in parameters_of(group):
                    parameter.mul_(factor)
        optimizer = build_optimizer(model, intrinsic_lr=0.01)
        losses = []
        for step in range(6):
            optimizer.zero_grad()
            shifted = {**batch, "input_ids": (batch["input_ids"] + step) % 92 + 5}
            loss = model(**shifted, labels=batch["input_ids"]).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses, [p.detach() / f for g, f in zip(groups, factors, strict=True) for p in parameters_of(g)]

    plain_losses, plain = run([0] * 99)
    generator = torch.Generator().manual_seed(8)
    losses, weights = run(torch.randint(-20, 21, (99,), generator=generator).tolist())
    assert plain_losses == losses
    assert plain_losses[0] != plain_losses[-1]
    assert all(torch.equal(a, b) for a, b in zip(plain, weights, strict=True))


def test_norms_of_token_rows_follow_the_frequencies_and_change_nothing_else(invariance, batch):
    inputs_V = torch.arange(1, 98, dtype=torch.float64) / torch.arange(1, 98).sum()
    model = roughened(SibertModel(config_of(invariance)).double().eval())
    full = SibertForMaskedLM(config_of(invariance)).double().eval()
    full.sibert.load_state_dict(model.state_dict())
    before = full.get_input_embeddings().weight.norm(dim=1)
    initialize_from_frequencies(full, inputs_V.log(), inputs_V)
    ratio = full.get_input_embeddings().weight.norm(dim=1) / before
    torch.testing.assert_close(ratio / ratio[0], (inputs_V / inputs_V[0]) ** 0.25)
    assert relative_change(full.sibert(**batch).last_hidden_state, model(**batch).last_hidden_state) < 1e-12
    torch.testing.assert_close(full.decoder.bias.detach(), inputs_V.log())


def test_frequencies_leave_the_rows_of_the_joint_form_alone():
    model = SibertForMaskedLM(config_of("joint"))
    before = model.get_input_embeddings().weight.clone()
    initialize_from_frequencies(model, torch.zeros(97), torch.full((97,), 1 / 97))
    assert torch.equal(model.get_input_embeddings().weight, before)


def test_positions_count_by_their_differences_alone(batch):
    model = roughened(SibertModel(config_of("matrix")).double().eval())
    places = torch.arange(19)[None]
    with torch.no_grad():
        plain = model(**batch).last_hidden_state
        moved = model(**batch, position_ids=places + 12).last_hidden_state
        reversed_ = model(**batch, position_ids=places.flip(1)).last_hidden_state
    torch.testing.assert_close(moved, plain, rtol=1e-10, atol=1e-10)
    assert (reversed_ - plain).abs().max() > 0.1
