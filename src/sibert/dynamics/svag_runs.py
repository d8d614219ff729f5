"""Does a stochastic differential equation model this run? Runs of SGD and of SVAG, compared on the same grid of time.

l steps of SVAG (`svag`) are one of the optimizer's own, so that runs of different l are compared after the same number
of the latter. Where l = 1 and larger l agree within their confidence bands, the equation models the run as far as the
test functions see; where they separate, it does not. Level 0 is noisy gradient descent: the optimizer itself under
Gaussian noise of the same covariance (`gaussian_example_weights`), which tells whether the shape of the noise matters.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sibert.dynamics.svag import SVAG

__all__ = ["SVAGComparison", "compare_svag"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class SVAGComparison:
    """Means of test functions over runs.

    Attributes:
        times: Of the grid, steps of the optimizer's own.
        levels: l of each kind of run; 0 = noisy gradient descent.
        means: By test function and level, the mean at each time.
        errors: Likewise, its standard error.
        runs: Of each level.
    """

    times: tuple[int, ...]
    levels: tuple[int, ...]
    means: Mapping[str, Mapping[int, tuple[float, ...]]]
    errors: Mapping[str, Mapping[int, tuple[float, ...]]]
    runs: int

    def band(self, name: str, level: int) -> tuple[tuple[float, float], ...]:
        """The 95 % confidence interval at each time, by Student's t; not a number where a run has diverged.

        Args:
            name: Of the test function.
            level: l.
        """
        width = _quantile(1.0 - CONFIDENCE, self.runs - 1)
        pairs = zip(self.means[name][level], self.errors[name][level], strict=True)
        return tuple((mean - width * error, mean + width * error) for mean, error in pairs)

    def separation(self, name: str, level: int, against: int = 1) -> float:
        """The largest difference of two levels over the grid, in standard errors; infinite where a run has diverged.

        Args:
            name: Of the test function.
            level: l.
            against: Another one.
        """
        worst = 0.0
        for t in range(len(self.times)):
            difference = abs(self.means[name][level][t] - self.means[name][against][t])
            error = math.hypot(self.errors[name][level][t], self.errors[name][against][t])
            if not math.isfinite(difference):
                return math.inf
            if difference > 0.0:
                worst = max(worst, difference / error if error > 0.0 else math.inf)
        return worst

    def agree(self, name: str, level: int, against: int = 1) -> bool:
        """Whether no difference over the grid is significant at 95 %, all times together: Welch's t, and Bonferroni.

        Args:
            name: Of the test function.
            level: l.
            against: Another one.
        """
        share = (1.0 - CONFIDENCE) / len(self.times)
        for t in range(len(self.times)):
            one, other = (self.errors[name][which][t] ** 2 for which in (level, against))
            difference = abs(self.means[name][level][t] - self.means[name][against][t])
            freedom = (self.runs - 1) * (one + other) ** 2 / (one**2 + other**2) if one + other > 0.0 else math.inf
            if not difference <= _quantile(share, freedom) * math.sqrt(one + other):
                return False
        return True


def _quantile(share: float, freedom: float) -> float:
    """Student's t beyond which, on both sides together, a share lies; the normal one for infinite freedom."""
    from scipy.stats import norm, t

    return float(norm.ppf(1.0 - share / 2.0) if freedom == math.inf else t.ppf(1.0 - share / 2.0, freedom))


def compare_svag(
    make: Callable[[], tuple[nn.Module, Optimizer]],
    loss: Callable[[nn.Module, torch.Generator], Tensor],
    tests: Mapping[str, Callable[[nn.Module], float]],
    *,
    steps: int,
    every: int,
    levels: Sequence[int] = (1, 2, 4),
    runs: int = 16,
    schedule: Callable[[int], float] | None = None,
    noisy: Callable[[nn.Module, torch.Generator], Tensor] | None = None,
    seed: int = 0,
) -> SVAGComparison:
    """Train many times at each level from the same start, and compare test functions.

    Args:
        make: Gives a new model, the same each time, and its optimizer: one that `SVAG` has a form for.
        loss: Draws an independent batch by the generator and gives its mean loss.
        tests: Numbers of the model, by name: norms, losses on fixed data.
        steps: Of the optimizer's own, a multiple of `every`.
        every: Steps between two times of the grid.
        levels: l >= 1, and 0 for noisy gradient descent.
        runs: Of each level, at least 2; all independent.
        schedule: Factor of the learning rate by step of the optimizer's own.
        noisy: For level 0: the mean loss of all examples, weighted by `gaussian_example_weights`.
        seed: Of all batches, at least 0.

    Returns:
        Means and standard errors; a level of which a run diverges agrees with none.

    Raises:
        ValueError: For a grid that does not fit, too few runs, or level 0 without `noisy`.
    """
    if runs < 2:
        raise ValueError(f"a confidence band needs at least 2 runs of each level, got {runs}")
    if every < 1 or steps < every or steps % every:
        raise ValueError(f"steps must be a multiple of every, so that times match, got {steps} and {every}")
    if 0 in levels and noisy is None:
        raise ValueError("level 0 is noisy gradient descent: give the loss of all examples under Gaussian weights")
    times = tuple(range(0, steps + 1, every))
    seen: dict[str, dict[int, list[list[float]]]] = {name: {level: [] for level in levels} for name in tests}
    for i, level in enumerate(levels):
        for run in range(runs):
            # Two calls with different seeds share no run; torch's generator reads 32 bits of a seed.
            own = np.random.SeedSequence([seed, i, run]).generate_state(1)
            generator = torch.Generator().manual_seed(int(own[0]))
            draw = noisy if level == 0 and noisy is not None else loss
            for name, values in _run(make, draw, tests, steps, every, max(level, 1), schedule, generator).items():
                seen[name][level].append(values)
    both = {
        name: {level: tuple(_mean_and_error(at) for at in zip(*values, strict=True)) for level, values in of.items()}
        for name, of in seen.items()
    }
    means, errors = (
        {name: {level: tuple(pair[k] for pair in pairs) for level, pairs in of.items()} for name, of in both.items()}
        for k in (0, 1)
    )
    return SVAGComparison(times, tuple(levels), means, errors, runs)


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """And its standard error; neither is a number where a run has diverged."""
    if not all(map(math.isfinite, values)):
        return math.nan, math.nan
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


def _run(
    make: Callable[[], tuple[nn.Module, Optimizer]],
    loss: Callable[[nn.Module, torch.Generator], Tensor],
    tests: Mapping[str, Callable[[nn.Module], float]],
    steps: int,
    every: int,
    level: int,
    schedule: Callable[[int], float] | None,
    generator: torch.Generator,
) -> dict[str, list[float]]:
    """One run: test functions at the times of the grid."""
    model, optimizer = make()
    svag = SVAG(optimizer, level)
    scheduler = None if schedule is None else LambdaLR(optimizer, lambda small: schedule(small // level))

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(model, generator)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    found: dict[str, list[float]] = {name: [] for name in tests}
    for step in range(steps + 1):
        if step % every == 0:
            with torch.no_grad():
                for name, test in tests.items():
                    found[name].append(float(test(model)))
        if step < steps:
            for _ in range(level):
                svag.step(closure)
                if scheduler is not None:
                    scheduler.step()
    return found
