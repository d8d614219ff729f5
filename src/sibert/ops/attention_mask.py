"""The masks that every attention of this package takes.

Shape suffixes: B = batch, H = heads, S = query positions, T = key positions.
"""

import torch
from torch import Tensor

__all__ = ["broadcast_mask"]


def broadcast_mask(mask: Tensor) -> Tensor:
    """Bring a boolean mask to four dimensions: [B, T] marks keys and becomes [B, 1, 1, T].

    Args:
        mask: Boolean tensor, True = attend.

    Returns:
        A view that broadcasts to [B, H, S, T].

    Raises:
        TypeError: If the mask is not boolean: an additive mask has no meaning for ReLU scores.
        ValueError: If it has neither two nor four dimensions.
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"the attention mask must be boolean (True = attend), got {mask.dtype}; pass mask.bool()")
    if mask.dim() == 2:
        return mask[:, None, None, :]
    if mask.dim() != 4:
        raise ValueError(
            f"the attention mask must be [B, T] or broadcast to [B, H, S, T], got shape {tuple(mask.shape)}"
        )
    return mask
