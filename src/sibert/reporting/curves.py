"""Curves made drawable: smoothed, freed of outliers, and thinned without losing spikes."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# About two vertices per pixel of the widest card; more would only make the page heavy.
VERTICES = 800
# A running median costs its window at each point; between so many points a straight line will do.
MEDIANS = 400


def smooth(values: Array, window: int) -> Array:
    """Centred moving average that shrinks at both ends and passes over non-finite entries.

    Args:
        values: the curve [N].
        window: width in entries, at least 1.

    Returns:
        The averages [N]; not finite exactly where ``values`` is not, so that a diverged curve ends where it diverged.
    """
    if not len(values):
        return values
    finite = np.isfinite(values)
    half = max(window, 1) // 2
    ones = np.ones(2 * half + 1)
    # Not differences of one running sum: a single huge entry would leave its rounding error in all that follow.
    with np.errstate(over="ignore"):
        sums = np.convolve(np.where(finite, values, 0.0), ones)[half : half + len(values)]
    members = np.convolve(finite.astype(np.float64), ones)[half : half + len(values)]
    return np.where(finite, sums / np.maximum(members, 1.0), np.nan)


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
        extremes = (finite[y[finite].argmin()], finite[y[finite].argmax()]) if len(finite) else (bin_[0],)
        keep |= {int(index) for index in extremes}
    index = np.array(sorted(keep))
    return x[index], y[index]


def running_median(x: Array, y: Array, window: int) -> tuple[Array, Array]:
    """Centred running median that shrinks at both ends and passes over non-finite entries.

    Args:
        x: abscissa [N].
        y: ordinate [N].
        window: width in entries, at least 1.

    Returns:
        Abscissa and median at up to ``MEDIANS`` evenly spread entries whose windows have a finite one.
    """
    half = max(window, 1) // 2
    pairs = []
    for centre in np.linspace(0, max(len(y) - 1, 0), min(len(y), MEDIANS)).round().astype(int):
        near = y[max(centre - half, 0) : centre + half + 1]
        near = near[np.isfinite(near)]
        if len(near):
            pairs.append((x[centre], np.median(near)))
    table = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]
