"""How several optimizers take one step together, or none of them takes it.

A step with a gradient that is not finite is refused as a whole. So a step has two halves: every optimizer measures its
gradients, then all apply the step under one decision. The decision is a tensor and stays on the device.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

__all__ = ["JointStep", "Measurement"]


@dataclass(frozen=True)
class Measurement:
    """What an optimizer found in its gradients before a step.

    Attributes:
        finite: 0-dim bool tensor: every gradient is finite. None where there is no gradient at all.
        details: Whatever the optimizer wants to be handed back when it applies the step.
    """

    finite: Tensor | None
    details: Any = None


@runtime_checkable
class JointStep(Protocol):
    """An optimizer whose step can be refused from outside."""

    def _measure(self) -> Measurement:
        """Look at the gradients and change nothing."""

    def _apply(self, measurement: Measurement, skip: Tensor) -> None:
        """Take the step that was measured, unless `skip` (0-dim bool tensor) is True; count it if it is."""
