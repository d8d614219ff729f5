"""A dropout mask that is a function of (seed, row, column): the backward pass computes it again instead of keeping it.

Every backend draws the same mask from the same seed, whatever its blocks. The hash is two rounds of a 32-bit mixer
(Mueller's constant) on row_key + column * odd; its products stay below 2^63, so that int64 tensors and uint32
registers of a kernel hold the same bits.

Shape suffixes: R = rows (any shape), T = key positions.
"""

import torch
from torch import Tensor

__all__ = ["COLUMN_STEP", "MIXER", "draw_seed", "drop_threshold", "kept", "row_keys"]

MIXER = 0x45D9F3B
"""Odd, and below 2^31."""

COLUMN_STEP = 0x9E3779B1
"""Odd, near 2^32 / golden ratio: neighbouring columns start far apart."""

_LOW_32 = 0xFFFFFFFF


def draw_seed(device: torch.device) -> Tensor:
    """Draw a seed from torch's generator of the device, so that torch.manual_seed fixes the mask.

    Args:
        device: Where the seed is to be.

    Returns:
        A number below 2^31, int64, shape [1].
    """
    return torch.randint(0, 2**31 - 1, (1,), dtype=torch.int64, device=device)


def drop_threshold(dropout_p: float) -> int:
    """The 32-bit number below which a hash means "drop".

    Args:
        dropout_p: Probability in [0, 1).

    Returns:
        round(p 2^32).
    """
    return round(dropout_p * 2**32)


def _mix(x: Tensor) -> Tensor:
    x = ((x >> 16) ^ x).mul_(MIXER).bitwise_and_(_LOW_32)
    x = ((x >> 16) ^ x).mul_(MIXER).bitwise_and_(_LOW_32)
    return (x >> 16) ^ x


def row_keys(seed: Tensor, rows_R: Tensor) -> Tensor:
    """Hash the numbers of rows.

    Args:
        seed: As `draw_seed` makes it.
        rows_R: Row numbers (b H + h) S + i below 2^31, int64.

    Returns:
        Numbers below 2^32, int64, of the shape of `rows_R`.
    """
    return _mix((_mix(seed) + rows_R * COLUMN_STEP) & _LOW_32)


def kept(row_keys_R: Tensor, columns_T: Tensor, dropout_p: float) -> Tensor:
    """Decide for each entry of some rows whether dropout keeps it.

    Args:
        row_keys_R: Hashed row numbers.
        columns_T: Key positions, int64.
        dropout_p: Probability of dropping.

    Returns:
        Boolean tensor [*R, T], True = kept.
    """
    return _mix((row_keys_R[..., None] + columns_T * COLUMN_STEP) & _LOW_32) >= drop_threshold(dropout_p)
