"""Scores of classification and regression, by the definitions that GLUE's leaderboard uses."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["METRICS", "score"]


def accuracy(predicted: np.ndarray, expected: np.ndarray) -> float:
    """Share of equal labels."""
    return float((predicted == expected).mean())


def f1(predicted: np.ndarray, expected: np.ndarray) -> float:
    """Harmonic mean of precision and recall of label 1, as for MRPC and QQP; 0 without any 1 on either side."""
    from sklearn.metrics import f1_score

    return float(f1_score(expected, predicted, zero_division=0.0))


def macro_f1(predicted: np.ndarray, expected: np.ndarray) -> float:
    """Mean over labels of each one's F1; for a user's own labels, of which none is the positive one."""
    from sklearn.metrics import f1_score

    return float(f1_score(expected, predicted, average="macro", zero_division=0.0))


def matthews(predicted: np.ndarray, expected: np.ndarray) -> float:
    """Matthews correlation, as for CoLA; 0 where either side has one label alone."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(expected, predicted))


def pearson(predicted: np.ndarray, expected: np.ndarray) -> float:
    """Linear correlation, as for STS-B; 0 where either side is constant."""
    return _correlation("pearsonr", predicted, expected)


def spearman(predicted: np.ndarray, expected: np.ndarray) -> float:
    """Correlation of ranks, as for STS-B; 0 where either side is constant."""
    return _correlation("spearmanr", predicted, expected)


def mean_squared_error(predicted: np.ndarray, expected: np.ndarray) -> float:
    """Mean of squared differences, in the square of the target's unit."""
    return float(np.square(predicted - expected).mean())


def _correlation(name: str, predicted: np.ndarray, expected: np.ndarray) -> float:
    from scipy import stats

    # A constant has no correlation with anything; scipy warns and gives NaN, which no average survives.
    if np.ptp(predicted) == 0 or np.ptp(expected) == 0:
        return 0.0
    value = float(getattr(stats, name)(predicted, expected).statistic)
    return value if math.isfinite(value) else 0.0


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro_f1": macro_f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
    "mean_squared_error": mean_squared_error,
}
"""Predictions [N] and targets [N] to a number."""


def score(names: Sequence[str], predicted: ArrayLike, expected: ArrayLike) -> dict[str, float]:
    """Several metrics at once.

    Args:
        names: Keys of `METRICS`.
        predicted: [N] labels or numbers.
        expected: [N] of the same kind.

    Returns:
        By name.

    Raises:
        ValueError: If there is nothing to score, the lengths differ, or a number is not finite.
    """
    predicted_N, expected_N = np.asarray(predicted), np.asarray(expected)
    if predicted_N.shape != expected_N.shape or predicted_N.ndim != 1:
        raise ValueError(
            f"expected as many predictions as targets, got shapes {predicted_N.shape} and {expected_N.shape}"
        )
    if not len(expected_N):
        raise ValueError("there is nothing to score: the split has no rows")
    for what, values in (("predictions", predicted_N), ("targets", expected_N)):
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError(f"the {what} have {int((~np.isfinite(values)).sum())} values that are not finite")
    return {name: METRICS[name](predicted_N, expected_N) for name in names}
