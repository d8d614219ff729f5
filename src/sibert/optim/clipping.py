"""Relative Global Clipping, from above (Algorithm 1 of arXiv 2202.00980) or from both sides: `ClippedSGD` says why.

A step has length eta |g|. Its bounds are multiples of |x|: clip sqrt(2 gamma) |x|, and, from both sides,
sqrt(2 gamma) |x| / clip, where gamma = eta lambda. The clip factor s brings it between them, unless s
would have to be 2^60 or more.

Shape suffixes: I = vectors.
"""

import math

import torch
from torch import Tensor

__all__ = ["clip_factor", "clip_factors", "relative_bounds"]

LARGEST_FACTOR = 2.0**60
"""A gradient that would have to be lengthened more than this is nothing but rounding, and is left as it is."""


def relative_bounds(clip: float | None, two_sided: bool, gamma: float) -> tuple[float, float]:
    """Give the longest and the shortest step that is not clipped, relative to |x|.

    Args:
        clip: sqrt(C); None for no clipping.
        two_sided: Whether there is a lower bound.
        gamma: eta lambda of the step.

    Returns:
        clip sqrt(2 gamma), or infinity without clipping; sqrt(2 gamma) / clip, or 0 without a lower bound.
    """
    if clip is None or not gamma:
        return math.inf, 0.0
    angle = math.sqrt(2.0 * gamma)
    return clip * angle, angle / clip if two_sided else 0.0


def clip_factor(length: float, longest: float, shortest: float) -> float:
    """Give the factor that brings a step between its bounds.

    Args:
        length: eta |g|.
        longest: Upper bound.
        shortest: Lower bound; a step of length 0 cannot be brought to it.

    Returns:
        s; 1 for a step between the bounds.
    """
    if length > longest:
        return longest / length
    return shortest / length if shortest > length > shortest / LARGEST_FACTOR else 1.0


def clip_factors(length_I: Tensor, longest_I: Tensor, shortest_I: Tensor) -> Tensor:
    """Give the factor of `clip_factor` for many steps at once.

    Args:
        length_I: eta |g|.
        longest_I: Upper bounds.
        shortest_I: Lower bounds.

    Returns:
        s.
    """
    bounded_I = torch.clamp(length_I, shortest_I, longest_I) / length_I
    return torch.where(length_I > shortest_I / LARGEST_FACTOR, bounded_I, 1.0)
