"""Stochastic rounding to bfloat16: up or down at random, such that the mean is the number that was rounded.

bfloat16 has eight significant bits. Rounded to nearest, a step shorter than 2^-9 of an entry is lost, and lost again
the next time: training stalls where learning rates are small, unless a float32 copy of the parameters is kept. Rounded
stochastically, the entry moves by a whole unit in the last place with the probability that makes the mean right.

A number between two neighbours of bfloat16 is told from the lower one (nearer to 0) by the last 16 bits of its float32
form, read as an integer m: it lies m / 2^16 of the way. So adding an integer that is uniform in [0, 2^16) to the bits,
and clearing the last 16, gives the upper neighbour with probability m / 2^16, which is what has to be. That also holds
where the neighbours belong to two binades, and for subnormal numbers.

The noise is a function of (group, step, parameter) and of nothing else: a resumed run goes on as it would have, groups
may be stepped in any order, processes that hold the same parameters round alike, and dropout draws what it always did.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Noise", "draw", "rounded", "rounds"]

LOW_BITS = 16
BITS = 64
NOISE_IN_A_WORD = BITS // LOW_BITS
MASK = (1 << BITS) - 1


@dataclass(frozen=True)
class Noise:
    """Names the noise of one step of one group.

    Attributes:
        group: Position of the group in its optimizer.
        step: Which step of the group it is.
    """

    group: int
    step: int

    def generators(self, parameters: Sequence[Tensor]) -> list[torch.Generator]:
        """Make a source of noise for each parameter of the group.

        Args:
            parameters: The parameters, in the group's order.

        Returns:
            Generators on the parameters' devices.
        """
        return [
            torch.Generator(p.device).manual_seed(_mixed(self.group, self.step, member))
            for member, p in enumerate(parameters)
        ]


def _mixed(*numbers: int) -> int:
    """Hash integers to 63 bits of which every part is well mixed: torch's CPU generator reads 32 (SplitMix64)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    return state >> 1


def rounds(parameter: Tensor, noise: object | None) -> bool:
    """Say whether a parameter is rounded stochastically.

    Args:
        parameter: A parameter.
        noise: Noise, or None for rounding to nearest.

    Returns:
        True for bfloat16 with noise.
    """
    return noise is not None and parameter.dtype == torch.bfloat16


def draw(values: Tensor, generator: torch.Generator) -> Tensor:
    """Draw the noise for some values.

    Args:
        values: Any tensor.
        generator: On its device.

    Returns:
        int16 integers, uniform in [-2^15, 2^15), of the shape of the values.
    """
    words = torch.empty(-(-values.numel() // NOISE_IN_A_WORD), dtype=torch.int64, device=values.device)
    # All 64 bits: without bounds the sign bit would be 0.
    words.random_(-(1 << (BITS - 1)), None, generator=generator)
    return words.view(torch.int16)[: values.numel()].view(values.shape)


def rounded(values: Tensor, noise: Tensor) -> Tensor:
    """Round float32 numbers to bfloat16, each to one of its two neighbours.

    Args:
        values: Finite float32 numbers.
        noise: int16, as from `draw`.

    Returns:
        bfloat16 numbers. Averaged over the noise they are the values, exactly; what bfloat16 has is not changed.
    """
    half = 1 << (LOW_BITS - 1)
    bits = (values.contiguous().view(torch.int32) + half).add_(noise).bitwise_and_(-(1 << LOW_BITS))
    return bits.view(torch.float32).to(torch.bfloat16)
