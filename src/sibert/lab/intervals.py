"""Confidence intervals of 95 %: of means over independent copies, of averages over time, and what follows from them."""

import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np

__all__ = ["block_interval", "bootstrap", "mean_interval"]

RESAMPLED = 1000


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean of independent observations, and half the width of its interval by Student's t.

    Args:
        values: At least two.

    Returns:
        The mean; half the width. Neither is a number if one of the values is not finite.
    """
    from scipy.stats import t

    if not all(map(math.isfinite, values)):
        return math.nan, math.nan
    spread = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), float(t.ppf(0.975, len(values) - 1)) * spread


def block_interval(values: Sequence[float], blocks: int = 10) -> tuple[float, float]:
    """The same of observations that follow each other: means of blocks of them count as independent.

    Args:
        values: In the order of time; what does not fill a block is left out at the start.
        blocks: How many; each has to be longer than values remember each other.

    Returns:
        The mean; half the width. Infinite if there are fewer values than blocks.
    """
    size = len(values) // blocks
    if size == 0:
        return statistics.fmean(values), math.inf
    late = values[len(values) - size * blocks :]
    return mean_interval([statistics.fmean(late[k * size : (k + 1) * size]) for k in range(blocks)])


def bootstrap(draw: Callable[[np.random.Generator], float], seed: int = 0) -> float:
    """Half the distance between the 2.5 % and the 97.5 % point of a number computed from resampled observations.

    Args:
        draw: Resamples, and computes the number.
        seed: Of the resampling, the same each time.
    """
    generator = np.random.default_rng(seed)
    low, high = np.quantile([draw(generator) for _ in range(RESAMPLED)], (0.025, 0.975))
    return float(high - low) / 2.0
