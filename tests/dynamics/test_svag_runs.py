"""Runs of SGD and SVAG on one grid of time: against exact moments, and verdicts in both directions."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from sibert.dynamics import SVAGComparison, compare_svag, gaussian_example_weights, svag_coefficients

COPIES = 400


class Bowl(nn.Module):
    """Independent copies of x' = x - eta (x + noise), noise exponential less its mean."""

    def __init__(self):
        super().__init__()
        self.x = nn.Parameter(torch.full((COPIES,), 2.0, dtype=torch.float64))


def make(lr):
    def new():
        model = Bowl()
        return model, torch.optim.SGD([model.x], lr=lr)

    return new


def loss(model, generator):
    xi = -torch.rand(COPIES, generator=generator, dtype=torch.float64).log() - 1.0
    return (0.5 * model.x.square() - xi * model.x).sum()


TESTS = {"mean": lambda m: m.x.mean(), "square": lambda m: m.x.square().mean(), "cube": lambda m: m.x.pow(3).mean()}


def exact(lr, level, steps):
    """Mean, second and third moment."""
    c1, c2 = svag_coefficients(level)
    shrink, rate = 1.0 - lr / level, lr / level
    mean, variance, third = 2.0, 0.0, 0.0
    for _ in range(steps * level):
        mean, variance = shrink * mean, shrink**2 * variance + rate**2 * (c1**2 + c2**2)
        third = shrink**3 * third + rate**3 * 2.0 * (c1**3 + c2**3)
    return mean, variance + mean**2, third + 3.0 * mean * variance + mean**3


def test_moments_at_matching_times_and_a_large_rate_that_separates():
    found = compare_svag(make(0.6), loss, TESTS, steps=6, every=3, levels=(1, 4), runs=12)
    assert found.times == (0, 3, 6)
    for i, name in enumerate(TESTS):
        for level in (1, 4):
            for t, time in enumerate(found.times):
                low, high = found.band(name, level)[t]
                middle, width = (low + high) / 2.0, (high - low) / 2.0
                assert exact(0.6, level, time)[i] == pytest.approx(middle, abs=2.2 * width + 1e-12)
    assert not found.agree("square", 4)
    assert found.separation("square", 4) > 5.0


def test_a_small_rate_agrees():
    found = compare_svag(make(0.004), loss, TESTS, steps=6, every=2, levels=(1, 2), runs=8)
    assert all(found.agree(name, 2) for name in TESTS)
    assert all(width > 0.0 for width in found.errors["mean"][1][1:])


def test_the_band_is_students():
    means, errors = {"f": {1: (0.0, 1.0), 2: (0.0, 4.0)}}, {"f": {1: (0.0, 0.6), 2: (0.0, 0.8)}}
    found = SVAGComparison((0, 1), (1, 2), means, errors, runs=5)
    assert found.band("f", 1)[1] == pytest.approx((1.0 - 2.776445 * 0.6, 1.0 + 2.776445 * 0.6))
    assert found.separation("f", 2) == pytest.approx(3.0)
    assert not found.agree("f", 2)  # 3 > 2.78, Student's quantile of 1 - 0.05 / 2 / 2 with 7.42 degrees of freedom
    assert replace(found, runs=3).agree("f", 2)  # 3 < 4.01 with 3.71


@pytest.mark.parametrize("runs", [2, 4, 16])
def test_what_is_the_same_is_called_so_in_95_of_100_cases(runs):
    generator = np.random.default_rng(0)
    agreed, covered, times = 0, 0, tuple(range(5))
    for _ in range(400):
        drawn = generator.standard_normal((2, runs, len(times)))
        means = {"f": {level: tuple(drawn[level].mean(0)) for level in (0, 1)}}
        errors = {"f": {level: tuple(drawn[level].std(0, ddof=1) / math.sqrt(runs)) for level in (0, 1)}}
        found = SVAGComparison(times, (0, 1), means, errors, runs)
        agreed += found.agree("f", 0)
        covered += found.band("f", 0)[0][0] <= 0.0 <= found.band("f", 0)[0][1]
    assert agreed > 0.93 * 400
    assert 0.92 * 400 < covered < 0.98 * 400


def test_a_run_that_diverges_agrees_with_none():
    values = iter([1.0, 2.0, math.nan, 3.0, 1.0, 2.0, math.inf, 3.0])
    tests = {"f": lambda model: next(values)}
    found = compare_svag(make(0.1), loss, tests, steps=1, every=1, levels=(1, 2), runs=2)
    assert math.isnan(found.means["f"][1][0])
    assert found.separation("f", 2) == math.inf
    assert not found.agree("f", 2)


def test_calls_with_other_seeds_have_other_runs():
    def first_batches(seed):
        seen = []

        def draw(model, generator):
            seen.append(torch.rand(1, generator=generator).item())
            return model.x.sum()

        compare_svag(make(0.1), draw, TESTS, steps=1, every=1, levels=(1,), runs=8, seed=seed)
        return set(seen)

    assert not first_batches(0) & first_batches(1)


def test_schedules_are_in_time_and_every_run_has_batches_of_its_own():
    seen = []

    def draw(model, generator):
        seen.append(torch.rand(1, generator=generator).item())
        return model.x.sum()  # a gradient of 1: x falls by the sum of rates

    found = compare_svag(
        make(0.1), draw, {"mean": TESTS["mean"]}, steps=4, every=2, levels=(1, 4), runs=2,
        schedule=lambda step: 1.0 if step < 2 else 0.1,
    )  # fmt: skip
    for level in (1, 4):
        assert found.means["mean"][level] == pytest.approx((2.0, 2.0 - 0.2, 2.0 - 0.22))
    assert len(seen) == len(set(seen)) == 2 * 4 + 2 * 4 * 4 * 2


def test_gaussian_noise_of_the_same_covariance_is_level_0():
    examples = torch.randn(30, generator=torch.Generator().manual_seed(1), dtype=torch.float64).exp()

    def batch(model, generator):
        return model.x.mean() * examples[torch.randint(30, (5,), generator=generator)].mean()

    def noisy(model, generator):
        return model.x.mean() * (gaussian_example_weights(30, 5, generator, torch.float64) * examples).mean()

    tests = {"mean": TESTS["mean"]}
    found = compare_svag(make(40.0), batch, tests, steps=8, every=8, levels=(0, 1, 2), runs=150, noisy=noisy)
    spread = {level: found.errors["mean"][level][1] for level in found.levels}
    deviation = examples.std(correction=0).item() / math.sqrt(5) * 40.0 / COPIES * math.sqrt(8) / math.sqrt(150)
    assert spread == pytest.approx(dict.fromkeys((0, 1, 2), deviation), rel=0.2)
    assert found.agree("mean", 0)


class TestRefusals:
    def test_of_a_comparison(self):
        with pytest.raises(ValueError, match="at least 2 runs"):
            compare_svag(make(0.1), loss, TESTS, steps=2, every=1, runs=1)
        with pytest.raises(ValueError, match="multiple of every"):
            compare_svag(make(0.1), loss, TESTS, steps=3, every=2)
        with pytest.raises(ValueError, match="level 0 is noisy gradient descent"):
            compare_svag(make(0.1), loss, TESTS, steps=2, every=1, levels=(0, 1))

    def test_of_an_optimizer_without_a_form(self):
        def new():
            model = Bowl()
            return model, torch.optim.Adagrad([model.x])

        with pytest.raises(TypeError, match="not for Adagrad"):
            compare_svag(new, loss, TESTS, steps=2, every=1)
