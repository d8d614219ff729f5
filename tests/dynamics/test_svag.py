"""SVAG: the coefficients, the law of its iterates on a bowl with skewed noise, and who is refused."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sibert.dynamics import SVAG, gaussian_example_weights, square_root_scaling, svag_coefficients

ETA, STEPS = 0.5, 6


@given(st.floats(1.0, 1e4))
@settings(deadline=None)
def test_the_mean_stays_and_the_variance_is_l_times_as_large(many):
    c1, c2 = svag_coefficients(many)
    assert c1 + c2 == pytest.approx(1.0)
    assert c1**2 + c2**2 == pytest.approx(many)


def cumulants(many):
    """Mean, variance and third cumulant of x after the steps from 2, for gradients x - xi, xi exponential less 1."""
    c1, c2 = svag_coefficients(many)
    shrink, rate = 1.0 - ETA / many, ETA / many
    mean, variance, third = 2.0, 0.0, 0.0
    for _ in range(STEPS * many):
        mean = shrink * mean
        variance = shrink**2 * variance + rate**2 * (c1**2 + c2**2)
        third = shrink**3 * third + rate**3 * 2.0 * (c1**3 + c2**3)
    return mean, variance, third


def test_the_third_cumulant_which_the_equation_does_not_have_halves_with_each_doubling():
    thirds = [cumulants(many)[2] for many in (4, 8, 16, 32, 64)]
    ratios = [a / b for a, b in itertools.pairwise(thirds)]
    assert ratios == pytest.approx([2.0] * 4, rel=0.1)
    assert all(abs(later - 2.0) <= abs(earlier - 2.0) for earlier, later in itertools.pairwise(ratios))


@pytest.mark.parametrize("many", [1, 2, 8])
def test_iterates_have_the_predicted_moments(many):
    """Each entry is a run of its own."""
    generator = torch.Generator().manual_seed(0)
    x = nn.Parameter(torch.full((200_000,), 2.0, dtype=torch.float64))
    svag = SVAG(optimizer := torch.optim.SGD([x], lr=ETA), many)
    noise = torch.distributions.Exponential(1.0)

    def closure():
        optimizer.zero_grad()
        uniform = torch.rand(x.shape, generator=generator, dtype=torch.float64)
        xi = noise.icdf(uniform) - 1.0
        loss = (0.5 * x.square() - xi * x).sum()
        loss.backward()
        return loss

    for _ in range(STEPS * many):
        svag.step(closure)
    values = x.detach()
    mean, variance, third = cumulants(many)
    centred = values - values.mean()
    assert values.mean().item() == pytest.approx(mean, abs=0.01)
    assert centred.square().mean().item() == pytest.approx(variance, rel=0.02)
    assert centred.pow(3).mean().item() == pytest.approx(third, abs=0.02)


ADAPTIVE = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.02, betas=(0.95, 0.98), eps=0.5),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.02, alpha=0.98, eps=0.5),
}


def law(name, many, change=None, runs=20_000, steps=300):
    """Mean and standard deviation of x after the same time from 1, on x^2 / 4 with noise of deviation 1.

    Each entry is a run of its own. `change` is done to optimizer and SVAG.
    """
    generator = torch.Generator().manual_seed(many)
    x = nn.Parameter(torch.ones(runs, dtype=torch.float64))
    optimizer = ADAPTIVE[name]([x])
    svag = SVAG(optimizer, many)
    if change is not None:
        change(svag, optimizer.param_groups[0])

    def closure():
        x.grad = 0.5 * x.detach() + torch.randn(x.shape, generator=generator, dtype=torch.float64)
        return 0.0

    for _ in range(steps * many):
        svag.step(closure)
    return x.detach().mean().item(), x.detach().std().item()


@pytest.mark.parametrize("name", ADAPTIVE)
def test_the_law_of_adam_and_rmsprop_does_not_feel_l(name):
    """Standard errors are s / sqrt(runs) of the mean and s / sqrt(2 runs) of the deviation s; 2 % are of order eta."""
    (mean, spread), (other_mean, other_spread) = law(name, 1), law(name, 4)
    assert other_mean == pytest.approx(mean, abs=5 * spread * (2 / 20_000) ** 0.5 + 0.02 * spread)
    assert other_spread == pytest.approx(spread, rel=5 * (1 / 20_000) ** 0.5 + 0.02)


def less_noise(svag, _):
    svag.coefficients = (1.0 - 1e-9, 1e-9)


def rate_of_sgd(svag, group):
    group["lr"] /= svag.multiplicity**0.5


def epsilon_as_it_was(svag, group):
    group["eps"] /= svag.multiplicity**0.5


@pytest.mark.parametrize("change", [less_noise, rate_of_sgd, epsilon_as_it_was])
def test_another_scaling_of_noise_rate_or_epsilon_changes_the_law(change):
    (mean, spread), (other_mean, other_spread) = law("adam", 1), law("adam", 4, change)
    assert max(abs(other_mean - mean) / spread, abs(other_spread / spread - 1.0)) > 0.1


def test_l_of_1_is_the_optimizer_itself_and_draws_one_batch():
    def run(make):
        x = nn.Parameter(torch.ones(3))
        optimizer = torch.optim.Adam([x], lr=0.1)
        calls = []

        def closure():
            optimizer.zero_grad()
            calls.append(1)
            loss = (x * torch.arange(3.0)).square().sum()
            loss.backward()
            return loss

        step = make(optimizer)
        losses = [torch.as_tensor(step(closure)).item() for _ in range(5)]
        return losses, x.detach().clone(), len(calls)

    one, other = run(lambda o: SVAG(o, 1).step), run(lambda o: o.step)
    assert one[0] == other[0]
    assert torch.equal(one[1], other[1])
    assert one[2] == other[2] == 5


def test_a_parameter_with_a_gradient_in_one_batch_only():
    x, y = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    svag = SVAG(optimizer := torch.optim.SGD([x, y], lr=0.2), 2)
    losses = [x.sum(), (3 * y).sum()]

    def closure():
        optimizer.zero_grad()
        loss = losses.pop()
        loss.backward()
        return loss

    c1, c2 = svag_coefficients(2)
    assert svag.step(closure) == (1.0 + 3.0) / 2
    assert y.item() == pytest.approx(1 - 0.1 * 3 * c1)
    assert x.item() == pytest.approx(1 - 0.1 * c2)


class TestHyperParameters:
    def test_of_adam_are_those_of_the_square_root_rule(self):
        optimizer = torch.optim.Adam([nn.Parameter(torch.ones(1))], lr=0.01, betas=(0.9, 0.99), eps=1e-6)
        SVAG(optimizer, 4)
        expected = square_root_scaling(0.25, 0.01, (0.9, 0.99), 1e-6)
        group = optimizer.param_groups[0]
        assert (group["lr"], group["eps"]) == pytest.approx((expected["lr"], expected["eps"]))
        assert group["betas"] == pytest.approx(expected["betas"])

    def test_of_adamw_the_decay_of_a_unit_of_time_stays(self):
        optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(1))], lr=0.01, weight_decay=0.1)
        SVAG(optimizer, 9)
        group = optimizer.param_groups[0]
        assert 9 * group["lr"] * group["weight_decay"] == pytest.approx(0.001)

    def test_of_adam_the_decay_in_the_gradient_stays(self):
        optimizer = torch.optim.Adam([nn.Parameter(torch.ones(1))], lr=0.01, weight_decay=0.1)
        SVAG(optimizer, 9)
        assert optimizer.param_groups[0]["weight_decay"] == 0.1

    def test_of_rmsprop_and_sgd(self):
        rmsprop = torch.optim.RMSprop([nn.Parameter(torch.ones(1))], lr=0.01, alpha=0.96)
        SVAG(rmsprop, 4)
        assert rmsprop.param_groups[0]["alpha"] == pytest.approx(0.99)
        sgd = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.8, weight_decay=5e-4)
        SVAG(sgd, 4)
        assert (sgd.param_groups[0]["lr"], sgd.param_groups[0]["weight_decay"]) == (0.2, 5e-4)

    def test_a_schedule_made_afterwards_starts_from_the_smaller_rate(self):
        sgd = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.8)
        SVAG(sgd, 4)
        torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: 0.5)
        assert sgd.param_groups[0]["lr"] == pytest.approx(0.1)

    def test_so_does_one_that_goes_on_with_the_initial_rate_of_another(self):
        sgd = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.8)
        torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: 0.5)
        SVAG(sgd, 4)
        assert sgd.param_groups[0]["lr"] == pytest.approx(0.1)
        torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: 0.25, last_epoch=0)
        assert sgd.param_groups[0]["lr"] == pytest.approx(0.05)


class TestRefusals:
    def parameter(self):
        return [nn.Parameter(torch.ones(1))]

    def test_l(self):
        with pytest.raises(ValueError, match="l must be at least 1"):
            svag_coefficients(0.5)

    def test_momentum(self):
        with pytest.raises(ValueError, match="no form for momentum"):
            SVAG(torch.optim.SGD(self.parameter(), lr=0.1, momentum=0.9), 2)
        with pytest.raises(ValueError, match="no form for"):
            SVAG(torch.optim.RMSprop(self.parameter(), centered=True), 2)
        with pytest.raises(ValueError, match="no form for"):
            SVAG(torch.optim.Adam(self.parameter(), amsgrad=True), 2)

    def test_another_optimizer(self):
        optimizer = torch.optim.Adagrad(self.parameter())
        with pytest.raises(TypeError, match="not for Adagrad"):
            SVAG(optimizer, 2)

    def test_steps_have_been_made(self):
        parameters = self.parameter()
        optimizer = torch.optim.Adam(parameters)
        parameters[0].grad = torch.ones(1)
        optimizer.step()
        with pytest.raises(ValueError, match="has made steps"):
            SVAG(optimizer, 2)


def test_gaussian_noise_with_the_covariance_of_a_batch():
    generator = torch.Generator().manual_seed(0)
    examples = torch.randn(40, 2, generator=generator, dtype=torch.float64) @ torch.tensor(
        [[1.0, 0.5], [0.0, 2.0]], dtype=torch.float64
    )
    gradients = torch.stack(
        [(gaussian_example_weights(40, 5, generator, torch.float64)[:, None] * examples).mean(0) for _ in range(20_000)]
    )
    torch.testing.assert_close(gradients.mean(0), examples.mean(0), atol=0.02, rtol=0)
    expected = torch.cov(examples.T, correction=0) / 5
    torch.testing.assert_close(torch.cov(gradients.T), expected, atol=0.02, rtol=0.03)
    assert gaussian_example_weights(40, 5).mean().item() == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(ValueError, match="between 1 and the 40 examples"):
        gaussian_example_weights(40, 41)
