"""A group of rows is what one group for each row would be."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sibert.optim import ClippedSGD, synchronisation
from sibert.optim.norms import squared_norm
from sibert.optim.rows import squared_row_norms

ROWS, WIDTH, STEPS = 5, 4, 40
ABSENT = 3
"""A row that gets a gradient in every fifth step only."""


@pytest.fixture(params=["host", "device"])
def decides(request, monkeypatch):
    """Take the code path of the CPU and that of an accelerator."""
    monkeypatch.setattr(synchronisation, "host_may_read", lambda device: request.param == "host")


def loss_of(weight, bias, step):
    """Of the directions of (w_r, b_r), r = 1 ... R, and of nothing else."""
    generator = torch.Generator().manual_seed(step)
    matrix = torch.randn(ROWS, WIDTH + 1, generator=generator, dtype=torch.float64).to(weight.dtype)
    x = torch.cat([weight, bias[:, None]], dim=1)
    cosines = (matrix * x).sum(1) / x.norm(dim=1)
    if step % 5:
        cosines = torch.cat([cosines[:ABSENT], cosines[ABSENT + 1 :]])
    # One steep step in ten, so that clipping is seen.
    return (30.0 if step % 10 == 7 else 1.0) * (cosines.square().sum() + cosines.sum().tanh())


def start(dtype=torch.float64, scales=None):
    generator = torch.Generator().manual_seed(42)
    x = torch.randn(ROWS, WIDTH + 1, generator=generator, dtype=torch.float64).to(dtype)
    if scales is not None:
        x = x * torch.tensor(scales, dtype=dtype)[:, None]
    return torch.nn.Parameter(x[:, :WIDTH].clone()), torch.nn.Parameter(x[:, WIDTH].clone())


def train(weight, bias, steps=range(STEPS), optimizer=None, scale=1.0, **options):
    options = options or {"intrinsic_lr": 0.02}
    optimizer = optimizer or ClippedSGD([{"params": [weight, bias], "rows": True}], **options)
    for step in steps:
        optimizer.param_groups[0]["lr"] = options.get("lr", 1.0) * (1 - step / STEPS)
        optimizer.zero_grad()
        (scale * loss_of(weight, bias, step)).backward()
        optimizer.step()
    return optimizer


def train_row_by_row(weight, bias, **options):
    """The definition: a group for each row, without gradient where the row has none."""
    rows = [torch.nn.Parameter(torch.cat([w, b[None]]).detach()) for w, b in zip(weight, bias, strict=True)]
    optimizer = ClippedSGD([{"params": [row]} for row in rows], implementation="reference", **options)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = options.get("lr", 1.0) * (1 - step / STEPS)
        optimizer.zero_grad()
        x = torch.stack(list(rows))
        loss_of(x[:, :WIDTH], x[:, WIDTH], step).backward()
        if step % 5:
            rows[ABSENT].grad = None
        optimizer.step()
    return torch.stack([row.detach() for row in rows]), optimizer


@pytest.mark.usefixtures("decides")
@pytest.mark.parametrize(
    "options",
    [
        {"intrinsic_lr": 0.02},
        {"intrinsic_lr": 0.02, "two_sided": True},
        {"lr": 0.3, "weight_decay": 0.1},
        {"lr": 0.3, "weight_decay": 0.1, "two_sided": True},
        {"lr": 0.3, "weight_decay": 0.0, "clip": None},
    ],
)
@pytest.mark.parametrize("implementation", ["reference", None])
def test_a_group_of_rows_steps_as_a_group_for_each_row(options, implementation):
    weight, bias = start()
    optimizer = train(weight, bias, implementation=implementation, **options)
    expected, separate = train_row_by_row(*start(), **options)
    torch.testing.assert_close(torch.cat([weight, bias[:, None]], dim=1).detach(), expected, rtol=1e-12, atol=0)
    [ours], theirs = optimizer.statistics(), separate.statistics()
    if options.get("clip", 2.0) is not None:
        assert 0 < ours.clipped_fraction < 1
    moved = [record for index, record in enumerate(theirs) if index != ABSENT]  # absent from the last step
    assert ours.param_norm**2 == pytest.approx(sum(record.param_norm**2 for record in moved) / len(moved))
    assert ours.grad_norm**2 == pytest.approx(sum(record.grad_norm**2 for record in moved) / len(moved))
    assert ours.angular_update**2 == pytest.approx(sum(record.angular_update**2 for record in moved) / len(moved))
    assert ours.effective_lr == pytest.approx(sum(record.effective_lr for record in moved) / len(moved))


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(-20, 20), min_size=ROWS, max_size=ROWS), st.integers(-20, 20))
def test_powers_of_two_for_each_row_and_for_the_loss_change_no_bit(exponents, loss_exponent):
    scales = [2.0**k for k in exponents]
    weight, bias = start(torch.float32)
    scaled_weight, scaled_bias = start(torch.float32, scales)
    train(weight, bias)
    train(scaled_weight, scaled_bias, scale=2.0**loss_exponent)
    factor = torch.tensor(scales)
    assert torch.equal(weight * factor[:, None], scaled_weight)
    assert torch.equal(bias * factor, scaled_bias)


def test_one_group_for_all_rows_is_not_invariant_to_the_scale_of_one():
    """The negative twin: one eta for all rows, so that the row that was scaled turns at another speed."""

    def end(scales):
        weight, bias = start(scales=scales)
        train(weight, bias, optimizer=ClippedSGD([weight, bias], intrinsic_lr=0.02))
        x = torch.cat([weight, bias[:, None]], dim=1).detach()
        return x / x.norm(dim=1, keepdim=True)

    assert (end([1.0] * ROWS) - end([4.0] + [1.0] * (ROWS - 1))).abs().max() > 0.1


@pytest.mark.usefixtures("decides")
def test_a_row_starts_at_equilibrium_when_its_first_gradient_comes():
    weight, bias = start()
    optimizer = ClippedSGD([{"params": [weight, bias], "rows": True}], intrinsic_lr=0.02)
    for step, first in ((1, [row for row in range(ROWS) if row != ABSENT]), (2, []), (0, [ABSENT])):
        before = torch.cat([weight, bias[:, None]], dim=1).detach().norm(dim=1)
        optimizer.zero_grad()
        loss_of(weight, bias, step).backward()
        optimizer.step()
        after = torch.cat([weight, bias[:, None]], dim=1).detach().norm(dim=1)
        torch.testing.assert_close(after[first], before[first], rtol=1e-12, atol=0)
        assert (optimizer.state[weight]["eta"][ABSENT] > 0) == (step == 0)
        assert step == 0 or after[ABSENT] == before[ABSENT]


@pytest.mark.usefixtures("decides")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_saved_and_loaded_optimizer_continues_bit_for_bit(dtype):
    weight, bias = start(dtype)
    train(weight, bias)
    half_weight, half_bias = start(dtype)
    optimizer = train(half_weight, half_bias, range(STEPS // 2))
    resumed_weight, resumed_bias = (torch.nn.Parameter(p.detach().clone()) for p in (half_weight, half_bias))
    resumed = ClippedSGD([{"params": [resumed_weight, resumed_bias], "rows": True}], intrinsic_lr=0.02)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(resumed_weight, resumed_bias, range(STEPS // 2, STEPS), resumed)
    assert torch.equal(weight, resumed_weight)
    assert torch.equal(bias, resumed_bias)


@pytest.mark.usefixtures("decides")
def test_a_gradient_that_is_not_finite_changes_nothing():
    weight, bias = start()
    optimizer = train(weight, bias, range(3))
    before = copy.deepcopy((weight.detach(), bias.detach(), optimizer.state_dict()["state"]))
    weight.grad[0, 0] = math.inf
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert torch.equal(weight, before[0])
    assert torch.equal(bias, before[1])
    assert torch.equal(optimizer.state[weight]["eta"], before[2][0]["eta"])


@pytest.mark.usefixtures("decides")
@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_row_norms_neither_underflow_nor_overflow(scale):
    tensors = [torch.randn(6, 3, 2) * scale, torch.randn(6) * scale]
    tensors[0][2] = tensors[1][2] = 0
    norms = squared_row_norms(tensors)
    assert norms[2] == 0
    torch.testing.assert_close(norms, squared_row_norms(tensors, wide=True), rtol=1e-6, atol=0)
    assert norms.sum().item() == pytest.approx(squared_norm(tensors, torch.device("cpu"), wide=True).item(), rel=1e-6)


def test_what_has_no_rows_is_refused():
    with pytest.raises(ValueError, match=r"same first dimension, got the shapes \[\(3, 2\), \(2,\)\]"):
        ClippedSGD([{"params": [torch.ones(3, 2), torch.ones(2)], "rows": True}], intrinsic_lr=0.1)
    with pytest.raises(ValueError, match="same first dimension"):
        ClippedSGD([{"params": [torch.ones(())], "rows": True}], intrinsic_lr=0.1)
    with pytest.raises(ValueError, match=r"row 1 has norm 0\.0"):
        ClippedSGD([{"params": [torch.tensor([[1.0], [0.0]])], "rows": True}], intrinsic_lr=0.1)
    with pytest.raises(TypeError, match="got float16"):
        ClippedSGD([{"params": [torch.ones(3, 2).half()], "rows": True}], intrinsic_lr=0.1)
