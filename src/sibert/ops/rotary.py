"""Positions as rotations of queries and keys: a linear map that changes no norm, so every degree stays what it is.

Shape suffixes: B = batch (or 1), H = heads, T = positions, K = head width, C = K / 2 pairs of features.
"""

import torch
from torch import Tensor

__all__ = ["Rotation", "rotary_positions", "rotate"]

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines [B, 1, T, C]."""


def rotary_positions(position_ids_BT: Tensor, width: int, theta: float, dtype: torch.dtype) -> Rotation:
    """Compute by which angles the pairs of features turn: position * theta^(-2 i / K) for pair i.

    Args:
        position_ids_BT: Positions.
        width: Head width K, even.
        theta: The slowest pair turns once in about 2 pi theta positions.
        dtype: Of the result; angles are computed in float32 or, for float64, in float64.

    Returns:
        Cosines and sines [B, 1, T, C], for `rotate`.

    References:
        RoFormer, arXiv 2104.09864, equation 15.
    """
    wide = torch.promote_types(dtype, torch.float32)
    exponents_C = torch.arange(0, width, 2, device=position_ids_BT.device, dtype=wide) / width
    angles_B1TC = (position_ids_BT[:, None, :, None]).to(wide) * theta**-exponents_C
    return angles_B1TC.cos().to(dtype), angles_B1TC.sin().to(dtype)


def rotate(input_BHTK: Tensor, rotation: Rotation) -> Tensor:
    """Turn the pairs (x_i, x_{i + K/2}) of each vector by the angles of its position.

    The inner product of two rotated vectors depends on the difference of their positions alone. Degree 1.

    Args:
        input_BHTK: Queries or keys.
        rotation: What `rotary_positions` returned.

    Returns:
        A tensor of the same shape and dtype.

    References:
        RoFormer, arXiv 2104.09864, section 3.2.
    """
    cos_B1TC, sin_B1TC = rotation
    first_BHTC, second_BHTC = input_BHTK.chunk(2, dim=-1)
    return torch.cat(
        (first_BHTC * cos_B1TC - second_BHTC * sin_B1TC, second_BHTC * cos_B1TC + first_BHTC * sin_B1TC), dim=-1
    )
