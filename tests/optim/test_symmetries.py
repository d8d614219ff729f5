"""Lemma 2.4 of arXiv 2202.00980: which changes of loss scale, initial scale, lr and weight decay change nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sibert.optim import ClippedSGD
from tests.optim.toys import directions, invariant_loss, quadratic_loss, start, trajectory

ETA, LAMBDA = 0.05, 0.2
TOLERANCE = 1e-10
"""float64 rounding over 30 steps of a toy that does not amplify it."""

scales = st.floats(-6, 6).map(lambda exponent: 10**exponent)
few = settings(max_examples=20, deadline=None)


def explicit(eta, weight_decay, clip=2.0):
    return lambda x: ClippedSGD([x], eta, weight_decay, clip=clip)


def intrinsic(gamma=0.02, implementation=None):
    return lambda x: ClippedSGD([x], intrinsic_lr=gamma, implementation=implementation)


@few
@given(c=scales, loss=st.sampled_from([invariant_loss, quadratic_loss]), clip=st.sampled_from([1.1, 2.0, None]))
def test_scaling_the_loss_with_lr_and_decay_leaves_every_iterate_of_any_loss(c, loss, clip):
    plain = trajectory(explicit(ETA, LAMBDA, clip), start(), loss)
    scaled = trajectory(explicit(ETA / c, LAMBDA * c, clip), start(), loss, loss_scale=c)
    torch.testing.assert_close(scaled, plain, rtol=TOLERANCE, atol=TOLERANCE)


@few
@given(c=scales, clip=st.sampled_from([1.1, 2.0, None]))
def test_scaling_the_start_with_lr_and_decay_leaves_every_direction_of_an_invariant_loss(c, clip):
    plain = trajectory(explicit(ETA, LAMBDA, clip), start(), invariant_loss)
    scaled = trajectory(explicit(c**2 * ETA, LAMBDA / c**2, clip), c * start(), invariant_loss)
    torch.testing.assert_close(directions(scaled), directions(plain), rtol=TOLERANCE, atol=TOLERANCE)


def test_scaling_the_start_changes_the_directions_of_a_loss_that_is_not_invariant():
    plain = trajectory(explicit(ETA, LAMBDA), start(), quadratic_loss)
    scaled = trajectory(explicit(4 * ETA, LAMBDA / 4), 2 * start(), quadratic_loss)
    assert (directions(scaled) - directions(plain)).norm() > 0.1


@few
@given(initial=scales, loss_scale=scales)
def test_intrinsic_mode_needs_no_adjustment_to_either_scale(initial, loss_scale):
    plain = trajectory(intrinsic(), start(), invariant_loss)
    scaled = trajectory(intrinsic(), initial * start(), invariant_loss, loss_scale=loss_scale)
    torch.testing.assert_close(directions(scaled), directions(plain), rtol=TOLERANCE, atol=TOLERANCE)


def test_explicit_mode_without_adjustment_depends_on_the_initial_scale():
    plain = trajectory(explicit(ETA, LAMBDA), start(), invariant_loss)
    scaled = trajectory(explicit(ETA, LAMBDA), 10 * start(), invariant_loss)
    assert (directions(scaled) - directions(plain)).norm() > 0.1


@pytest.mark.parametrize("implementation", ["reference", "foreach", "fused"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=10, deadline=None)
@given(k=st.integers(-20, 20), log_loss_scale=st.integers(-20, 20), size=st.sampled_from([3, 7, 64, 5000]))
def test_powers_of_two_commute_with_every_rounding_of_a_step(implementation, dtype, k, log_loss_scale, size):
    """Given bit-identical directions and gradients that scale exactly, the next directions are bit-identical, too."""
    plain, scaled = (torch.nn.Parameter(c * start(size, dtype)) for c in (1.0, 2.0**k))
    optimizers = [intrinsic(implementation=implementation)(x) for x in (plain, scaled)]
    generator = torch.Generator().manual_seed(0)
    for step in range(12):
        # Entries over many orders of magnitude, and some gradients that are clipped.
        g = torch.randn(size, generator=generator, dtype=dtype) ** 5 * (30.0 if step % 4 == 3 else 1.0)
        plain.grad, scaled.grad = g, g * 2.0 ** (log_loss_scale - k)
        for optimizer in optimizers:
            optimizer.step()
        assert torch.equal(scaled.detach(), plain.detach() * 2.0**k)
    assert optimizers[0].statistics()[0].clipped_fraction > 0
    assert optimizers[0].statistics()[0].clip_factor == optimizers[1].statistics()[0].clip_factor


def test_powers_of_three_do_not_commute_with_rounding():
    plain = trajectory(intrinsic(), start(dtype=torch.float32), invariant_loss)
    scaled = trajectory(intrinsic(), 3 * start(dtype=torch.float32), invariant_loss)
    assert not torch.equal(scaled, 3 * plain)


@pytest.mark.parametrize("k", [-20, -7, 1, 20])
def test_a_whole_run_in_float32_is_bit_identical_from_a_start_scaled_by_a_power_of_two(k):
    plain = trajectory(intrinsic(), start(dtype=torch.float32), invariant_loss, steps=100)
    scaled = trajectory(intrinsic(), 2.0**k * start(dtype=torch.float32), invariant_loss, steps=100)
    assert torch.equal(scaled, 2.0**k * plain)
