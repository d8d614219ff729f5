"""Bounds on the norm of a group: the reason why most steps need not measure it.

The step size needs |x| only to decide whether the gradient is clipped, and it rarely is. From x to
x' = (1 - eta lambda) x - eta s g the triangle inequality gives

    (1 - eta lambda) |x| - eta s |g|  <=  |x'|  <=  (1 - eta lambda) |x| + eta s |g|,

so one measurement bounds the norm from both sides for many steps. If a gradient would not be clipped even at the worse
bound, it is not clipped, and the pass over x is saved: one memory read in four. When the bounds cannot decide, the norm
is measured. They are a proof, no estimate: they never change what a step does.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["NormBounds"]

MEASURING_ERROR = 1e-5
"""Relative error that a measured norm may have; the float32 rows of `norms` are good to about 1e-7."""


PROBES = 8
"""Tensors of which entries are watched: the largest."""

ENTRIES = 64
"""Entries of each that are watched; reading them takes no longer than reading one."""


class NormBounds:
    """Two numbers between which the norm of some tensors lies, for as long as only `follow_step` changes them.

    Args:
        tensors: The tensors whose joint norm is bounded.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tensors
        self._lower, self._upper = 0.0, math.inf
        self._identity: list[tuple[int, int] | list[float]] | None = None
        self._probed = sorted(tensors, key=torch.numel, reverse=True)[:PROBES]
        # Rounding to the stored dtype moves each entry by at most eps/2 of itself, twice where the step rounds twice.
        self._rounding = max(torch.finfo(tensor.dtype).eps for tensor in tensors)

    def values(self) -> tuple[float, float]:
        """Give the bounds.

        Returns:
            Lower and upper; 0 and infinity, which are always true, where a change of a tensor from outside was noticed
            since the last call.
        """
        return (self._lower, self._upper) if self._identity == self._observe() else (0.0, math.inf)

    def decide(self, length: float, longest: float, shortest: float) -> bool:
        """Say whether a step is certainly not clipped.

        Args:
            length: eta |g|.
            longest: Longest step that is not clipped, relative to the norm; infinite without clipping.
            shortest: Shortest; 0 without a lower bound.

        Returns:
            Whether the step is between the bounds at any norm that the tensors may have.
        """
        if math.isinf(longest):
            return True
        lower, upper = self.values()
        return length <= longest * lower and (shortest == 0.0 or length >= shortest * upper)

    def measured(self, norm: float) -> None:
        """Start again from a measurement.

        Args:
            norm: The norm of the tensors as they are now.
        """
        self._lower, self._upper = norm * (1.0 - MEASURING_ERROR), norm * (1.0 + MEASURING_ERROR)
        self._identity = self._observe()

    def follow_step(self, decay: float, step_length: float) -> None:
        """Follow x to x' = decay * x - step with |step| = step_length; call it when the tensors have been changed.

        Args:
            decay: 1 - eta lambda.
            step_length: eta s |g|.
        """
        longest = step_length * (1.0 + MEASURING_ERROR)
        self._lower = max(0.0, (decay * self._lower - longest) * (1.0 - 2.0 * self._rounding))
        self._upper = (decay * self._upper + longest) * (1.0 + 2.0 * self._rounding)
        self._identity = self._observe()

    def _observe(self) -> list[tuple[int, int] | list[float]]:
        """Note the memory and the version counter of each tensor, and some entries of the largest.

        In-place operations raise the counter, except fused optimizers and those through `.data`. Nothing but reading
        all of it would prove that these have not touched a tensor. What is watched gives away those that touch every
        entry, or whole rows or columns of which there are few, or so many entries that the norm shrinks by much.
        """
        identities: list[tuple[int, int] | list[float]] = [(t.data_ptr(), t._version) for t in self.tensors]
        return identities + [torch.take(t.detach(), _places(t.numel())).tolist() for t in self._probed]


@lru_cache(maxsize=256)
def _places(length: int) -> Tensor:
    """Spread over rows and columns alike: multiples of the golden ratio, which meet no period of a shape."""
    if length <= ENTRIES:
        return torch.arange(length, device="cpu")
    steps = torch.arange(ENTRIES, dtype=torch.float64, device="cpu") * ((math.sqrt(5.0) - 1.0) / 2.0)
    return (steps.frac() * length).long()
