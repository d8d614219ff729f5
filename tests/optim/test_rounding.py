"""Stochastic rounding is right in the mean, repeatable, and moves what rounding to nearest leaves in its place."""

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sibert.optim import ClippedSGD, GradientRelease, synchronisation
from sibert.optim.rounding import Noise, draw, rounded
from tests.optim.toys import invariant_loss, start

EVERY_NOISE = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16)
LARGEST = torch.finfo(torch.bfloat16).max


@settings(deadline=None, max_examples=60)
@given(st.floats(-LARGEST, LARGEST, width=32))
def test_the_mean_over_all_noise_is_the_number_itself(value):
    """Of every float32, subnormal ones included: a sum of multiples of one power of two, exact in float64."""
    values = torch.full(EVERY_NOISE.shape, value, dtype=torch.float32)
    results = rounded(values, EVERY_NOISE).double()
    assert math.fsum(results.tolist()) / len(EVERY_NOISE) == value
    assert len(results.unique()) <= 2


@settings(deadline=None, max_examples=60)
@given(st.floats(-LARGEST, LARGEST, width=32))
def test_what_bfloat16_has_stays(value):
    values = torch.full(EVERY_NOISE.shape, value).bfloat16()
    assert torch.equal(rounded(values.float(), EVERY_NOISE), values)


def test_the_mean_of_rounding_to_nearest_is_another():
    """The negative twin."""
    assert torch.full((1000,), 1.0 + 2.0**-10).bfloat16().double().mean() == 1.0


def test_the_noise_is_uniform_and_that_of_groups_steps_and_members_is_unrelated():
    like = torch.empty(200_003)
    samples = {
        (group, step, member): draw(like, Noise(group, step).generators([like, like])[member]).double() / 2**15
        for group in (0, 1)
        for step in (1, 2)
        for member in (0, 1)
    }
    for sample in samples.values():
        counts = torch.histc(sample, 64, -1, 1)
        # chi squared with 63 degrees of freedom: mean 63, standard deviation 11.2
        assert ((counts - len(like) / 64).square() / (len(like) / 64)).sum() < 63 + 6 * 11.2
    correlations = torch.corrcoef(torch.stack(list(samples.values()))) - torch.eye(len(samples))
    assert correlations.abs().max() < 6 / math.sqrt(len(like))
    again = draw(like, Noise(1, 2).generators([like, like])[1]).double() / 2**15
    assert torch.equal(again, samples[1, 2, 1])


def drift(implementation=None, rows=False, steps=200, **options):
    """How far each of 4000 entries at 1 moves by steps of 1e-4 each, 2% of a unit in the last place."""
    x = nn.Parameter(torch.ones(40, 100, dtype=torch.bfloat16))
    groups = [{"params": [x], "rows": rows}]
    optimizer = ClippedSGD(groups, 1e-4, 0.0, clip=None, implementation=implementation, **options)
    for _ in range(steps):
        x.grad = torch.full_like(x, -1.0)
        optimizer.step()
    return x.detach().double() - 1


@pytest.mark.parametrize("decides", ["host", "device"])
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("implementation", ["reference", "foreach", "fused"])
def test_small_steps_count_in_the_mean(implementation, rows, decides, monkeypatch):
    monkeypatch.setattr(synchronisation, "host_may_read", lambda device: decides == "host")
    moved = drift(implementation, rows)
    # The sum of 200 roundings has a standard deviation of at most 200^0.5 * 2^-8, that of the mean 1/63 of it.
    assert moved.mean().item() == pytest.approx(200 * 1e-4, abs=4 * math.sqrt(200) * 2.0**-8 / math.sqrt(4000))
    # A step moves an entry by 2^-7 with probability p = 1e-4 * 2^7: (1 - p)^200 = 8% stay, and the standard deviation
    # is 2^-7 (200 p (1 - p))^0.5 = 0.012. With the same noise at every step the same few entries would do all of it.
    assert (moved == 0).double().mean() < 0.2
    assert moved.std() < 0.03


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("implementation", ["reference", "foreach", "fused"])
def test_rounded_to_nearest_small_steps_are_lost(implementation, rows):
    """The negative twin: it stalls."""
    assert (drift(implementation, rows, stochastic_rounding=False) == 0).all()


def train(steps, x0, rows=False, optimizer=None, release=False, dtype=torch.bfloat16, **options):
    """Returns the parameters and the optimizer; x0 is a tensor or, with an optimizer, its parameters."""
    if optimizer is None:
        x = [nn.Parameter(x0.to(dtype, copy=True)), nn.Parameter(x0[:, 0].to(dtype, copy=True))]
        optimizer = ClippedSGD([{"params": [p], "rows": rows} for p in x], **{"intrinsic_lr": 1e-3, **options})
    else:
        x = [p for group in optimizer.param_groups for p in group["params"]]
    if release:
        GradientRelease(optimizer)
    for step in steps:
        optimizer.zero_grad()
        if rows:
            sum(invariant_loss(row, step) for p in x for row in p[:, None]).backward()
        else:
            (invariant_loss(x[1], step) + invariant_loss(x[0], step)).backward()
        optimizer.step()
    return [p.detach().clone() for p in x], optimizer


@pytest.mark.parametrize("rows", [False, True])
def test_a_resumed_run_rounds_as_one_that_was_not_stopped_whatever_torchs_generator_does(rows):
    x0 = start(30).view(6, 5)
    expected, _ = train(range(20), x0, rows)
    _, optimizer = train(range(9), x0, rows)
    resumed = [{"params": [nn.Parameter(p.detach().clone()) for p in g["params"]]} for g in optimizer.param_groups]
    second = ClippedSGD(resumed, intrinsic_lr=1e-3)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    torch.manual_seed(999)
    found, _ = train(range(9, 20), None, rows, second)
    assert all(torch.equal(p, q) for p, q in zip(found, expected, strict=True))


@pytest.mark.parametrize("rows", [False, True])
def test_steps_inside_backward_round_alike(rows):
    """Groups are stepped in another order there."""
    x0 = start(30).view(6, 5)
    ordinary, _ = train(range(20), x0, rows)
    released, _ = train(range(20), x0, rows, release=True)
    assert all(torch.equal(p, q) for p, q in zip(released, ordinary, strict=True))


@pytest.mark.parametrize("rows", [False, True])
def test_groups_that_are_alike_in_all_but_their_place_are_rounded_apart(rows):
    x, y = (nn.Parameter(torch.ones(40, 100, dtype=torch.bfloat16)) for _ in range(2))
    optimizer = ClippedSGD([{"params": [p], "rows": rows} for p in (x, y)], 1e-3, 0.0, clip=None)
    x.grad, y.grad = torch.full_like(x, -1.0), torch.full_like(y, -1.0)
    optimizer.step()
    assert not torch.equal(x, y)


def test_other_dtypes_are_stepped_as_ever():
    x0 = start(30).view(6, 5)
    for dtype in (torch.float64, torch.float32, torch.float16):
        ours, _ = train(range(5), x0, dtype=dtype)
        without, optimizer = train(range(5), x0, dtype=dtype, stochastic_rounding=False)
        assert all(torch.equal(p, q) for p, q in zip(ours, without, strict=True))
        assert "roundings" not in optimizer.param_groups[0]


def test_a_parameter_larger_than_a_piece_or_with_gaps_is_stepped_whole():
    generator = torch.Generator().manual_seed(0)
    values, gradients = (torch.randn(700, 800, generator=generator).bfloat16() for _ in range(2))
    layouts = (lambda t: t.clone(), lambda t: t.t().contiguous().t())
    for layout, gradient_layout in itertools.product(layouts, layouts):
        x = nn.Parameter(layout(values))
        optimizer = ClippedSGD([x], 0.5, 0.01, clip=None)
        x.grad = gradient_layout(gradients)
        optimizer.step()
        exact = 0.995 * values.double() - 0.5 * gradients.double()
        error = (x.detach().double() - exact) / exact.abs().clamp(min=2.0**-20)
        assert error.abs().max() <= 2.0**-7
        assert error.abs().mean() > 2.0**-10  # rounded at all
        assert error.mean().abs() < 1e-4


def test_a_run_saved_before_there_was_stochastic_rounding_goes_on_to_nearest():
    _, optimizer = train(range(3), start(30).view(6, 5))
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        del group["stochastic_rounding"]
    optimizer.load_state_dict(saved)
    assert not any(group["stochastic_rounding"] for group in optimizer.param_groups)


def test_a_step_that_is_not_finite_changes_no_bit():
    x0 = start(30).view(6, 5)
    (x, _), optimizer = train(range(3), x0)
    parameter = optimizer.param_groups[0]["params"][0]
    parameter.grad = torch.full_like(parameter, math.inf)
    optimizer.step()
    assert torch.equal(parameter, x)
