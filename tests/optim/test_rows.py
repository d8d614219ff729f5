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

OPTIONS = [
    {"intrinsic_lr": 0.02},
    {"intrinsic_lr": 0.02, "two_sided": True},
    {"lr": 0.3, "weight_decay": 0.1},
    {"lr": 0.3, "weight_decay": 0.1, "two_sided": True},
    {"lr": 0.3, "weight_decay": 0.0, "clip": None},
]


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
    """The definition: a group for each row, without gradient where the row has none; and who moved in each step."""
    rows = [torch.nn.Parameter(torch.cat([w, b[None]]).detach()) for w, b in zip(weight, bias, strict=True)]
    optimizer = ClippedSGD([{"params": [row]} for row in rows], implementation="reference", **options)
    moved = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = options.get("lr", 1.0) * (1 - step / STEPS)
        optimizer.zero_grad()
        x = torch.stack(list(rows))
        loss_of(x[:, :WIDTH], x[:, WIDTH], step).backward()
        if step % 5:
            rows[ABSENT].grad = None
        optimizer.step()
        moved.append([record for record in optimizer.statistics(reset=True) if not math.isnan(record.clipped_fraction)])
    return torch.stack([row.detach() for row in rows]), moved


def mean(numbers):
    numbers = list(numbers)
    return sum(numbers) / len(numbers)


@pytest.mark.usefixtures("decides")
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("implementation", ["reference", None])
def test_a_group_of_rows_steps_as_a_group_for_each_row(options, implementation):
    weight, bias = start()
    train(weight, bias, implementation=implementation, **options)
    expected, _ = train_row_by_row(*start(), **options)
    torch.testing.assert_close(torch.cat([weight, bias[:, None]], dim=1).detach(), expected, rtol=1e-12, atol=0)


@pytest.mark.usefixtures("decides")
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("implementation", ["reference", None])
def test_its_statistics_are_means_over_the_rows_that_moved(options, implementation):
    weight, bias = start()
    optimizer = train(weight, bias, implementation=implementation, **options)
    _, moved = train_row_by_row(*start(), **options)
    [ours], last = optimizer.statistics(), moved[-1]
    assert [len(records) for records in moved] == [ROWS - (step % 5 > 0) for step in range(STEPS)]
    assert ours.param_norm**2 == pytest.approx(mean(row.param_norm**2 for row in last))
    assert ours.grad_norm**2 == pytest.approx(mean(row.grad_norm**2 for row in last))
    assert ours.angular_update**2 == pytest.approx(mean(row.angular_update**2 for row in last))
    assert ours.effective_lr == pytest.approx(mean(row.effective_lr for row in last))
    assert ours.clip_factor == pytest.approx(mean(row.clip_factor for row in last))
    assert ours.eta**2 * mean(row.mean_squared_sigma for row in last) == pytest.approx(
        mean(row.eta**2 * row.mean_squared_sigma for row in last)
    )
    # Over the window: of each step's mean over its rows.
    assert ours.mean_squared_sigma == pytest.approx(mean(mean(r.mean_squared_sigma for r in rows) for rows in moved))
    assert ours.clipped_fraction == pytest.approx(mean(mean(r.clipped_fraction for r in rows) for rows in moved))
    if options.get("clip", 2.0) is not None:
        assert 0 < ours.clipped_fraction < 1


@pytest.mark.usefixtures("decides")
@pytest.mark.parametrize("options", OPTIONS)
def test_the_equilibrium_norm_of_one_step_is_a_mean_of_its_rows(options):
    """Of fourth powers, each eta^2 sigma^2 / (lambda eta (2 - lambda eta))."""
    weight, bias = start()
    optimizer = train(weight, bias, range(STEPS - 1), **options)
    optimizer.statistics(reset=True)
    [ours] = train(weight, bias, [STEPS - 1], optimizer, **options).statistics()
    _, moved = train_row_by_row(*start(), **options)
    assert ours.equilibrium_norm**4 == pytest.approx(mean(row.equilibrium_norm**4 for row in moved[-1]))


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
