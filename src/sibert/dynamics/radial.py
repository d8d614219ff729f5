"""Is the gradient of a group orthogonal to it, as the gradient of a scale-invariant loss is? What a few steps can tell.

<x, g> is the derivative of the loss by the logarithm of the scale of x. Over the first steps its size is compared with
|x| |g|: the square root of sum <x, g>^2 / sum |x|^2 |g|^2 is 0 but for rounding. Tiny gradients, which rounding makes
radial, weigh little in it; a derivative that happens to vanish in one step does not in the next ones.

Of small SIBERTs, in all three forms, it is 2e-7 in float32, 1.4e-4 with bfloat16 autocast and 2e-3 in bfloat16; of the
matrices of plain MLPs and transformers, which are not invariant, 3e-3 to 0.1, of single steps down to 2e-4. The
tolerances lie between. A loss that depends on the scale as weakly as that passes: orthogonality at a few points is
necessary, not sufficient. `sibert check` decides.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sibert.optim.norms import home_of, squared_norm

__all__ = ["RadialCheck", "cosine", "radial_tolerance"]

STEPS = 8
"""Steps that are looked at: later a run may be where gradients are nothing but rounding."""
FINE = {torch.float64: 1e-6, torch.float32: 1e-3}
COARSE, COARSE_AT_ONCE = 1e-2, 3e-2
"""Of several steps, and of one, where parameters have less than 24 bits."""


def radial_tolerance(parameters: Sequence[Tensor], steps: int = STEPS) -> float:
    """The largest cosine that rounding explains.

    Args:
        parameters: Of a group.
        steps: Over which it is taken.
    """
    return max(FINE.get(p.dtype, COARSE if steps > 1 else COARSE_AT_ONCE) for p in parameters)


def cosine(x: Sequence[Tensor], gradients: Sequence[Tensor], norm: float, gradient_norm: float) -> float:
    """Of x and its gradient, for sharded tensors, too.

    Args:
        x: Parameters of a group, as one vector.
        gradients: Theirs.
        norm: |x|, positive.
        gradient_norm: |g|, positive.
    """
    scale = norm / gradient_norm
    total = squared_norm([a + scale * b for a, b in zip(x, gradients, strict=True)], home_of(x)).item()
    return (total / norm**2 - 2.0) / 2.0


class RadialCheck:
    """Refuses a group whose gradients of the first steps are not orthogonal to it.

    Args:
        name: Of the group, for the sentence.
        what: What would mean nothing.
    """

    def __init__(self, name: str, what: str) -> None:
        self.name, self.what = name, what
        self.steps, self.radial, self.whole = 0, 0.0, 0.0

    @property
    def done(self) -> bool:
        """Whether enough has been seen."""
        return self.steps >= STEPS

    def see(self, radial: float, whole: float, parameters: Sequence[Tensor], largest: float = 0.0) -> None:
        """One more step.

        Args:
            radial: <x, g>^2; of rows the sum.
            whole: |x|^2 |g|^2, likewise.
            parameters: Of the group.
            largest: Cosine of a row, the largest in magnitude; looked at in the first step.

        Raises:
            ValueError: If the loss depends on the scale of the group.
        """
        if self.done or not whole > 0.0:
            return
        self.steps += 1
        self.radial += radial
        self.whole += whole
        found = math.sqrt(self.radial / self.whole)
        if self.steps == 1:
            found = max(found, abs(largest))
        if not found <= radial_tolerance(parameters, self.steps):
            raise ValueError(
                f"{self.name}: the cosine of parameters and gradient is {found:.2g} in the first {self.steps} steps, "
                "and the gradient of a loss that is invariant to their scale is orthogonal to them: "
                f"{self.what}; `sibert check` finds what may be rescaled"
            )
