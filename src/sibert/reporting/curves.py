"""Curves made drawable: smoothed, and thinned without losing spikes."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# About two vertices per pixel of the widest card; more would only make the page heavy.
VERTICES = 800


def smooth(values: Array, window: int) -> Array:
    """Centred moving average that shrinks at both ends and passes over non-finite entries.

    Args:
        values: the curve [N].
        window: width in entries, at least 1.

    Returns:
        The averages [N]; not finite exactly where ``values`` is not, so that a diverged curve ends where it diverged.
    """
    finite = np.isfinite(values)
    half = max(window, 1) // 2
    totals = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    sums, members = totals[high] - totals[low], counts[high] - counts[low]
    return np.where(finite, sums / np.maximum(members, 1), np.nan)


def thin(x: Array, y: Array, vertices: int = VERTICES) -> tuple[Array, Array]:
    """At most about ``vertices`` points of a curve, the smallest and the largest of each bin: spikes survive.

    Args:
        x: abscissa [N].
        y: ordinate [N].
        vertices: how many points may stay.

    Returns:
        Abscissa and ordinate of the points that stay, in order.
    """
    if len(y) <= vertices:
        return x, y
    keep: set[int] = {0, len(y) - 1}
    for bin_ in np.array_split(np.arange(len(y)), vertices // 2):
        finite = bin_[np.isfinite(y[bin_])]
        # A bin without any finite value keeps one vertex, so that the curve shows a gap and no bridge.
        keep |= {int(bin_[0])} if not len(finite) else {int(finite[y[finite].argmin()]), int(finite[y[finite].argmax()])}
    index = np.array(sorted(keep))
    return x[index], y[index]
