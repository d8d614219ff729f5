"""The masks that every attention of this package takes.

Shape suffixes: B = batch, H = heads, S = query positions, T = key positions.
"""

import torch
from torch import Tensor

__all__ = ["broadcast_mask", "fitting_mask"]


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


def fitting_mask(mask: Tensor, query_BHSK: Tensor, key_BGTK: Tensor) -> Tensor:
    """Bring a mask to four dimensions and see that it fits these queries and keys.

    Args:
        mask: As for `broadcast_mask`.
        query_BHSK: Queries.
        key_BGTK: Keys.

    Returns:
        What `broadcast_mask` gives.

    Raises:
        TypeError: See `broadcast_mask`.
        ValueError: If a size is neither 1 nor that of the scores.
    """
    mask_BHST = broadcast_mask(mask)
    full = (*query_BHSK.shape[:3], key_BGTK.shape[2])
    # Compared one by one: of a symbolic size torch.compile does not know whether it is in a tuple.
    if any(size != 1 and size != whole for size, whole in zip(mask_BHST.shape, full, strict=True)):
        raise ValueError(
            f"the mask must be [B, T] or broadcast to [B, H, S, T] = {list(full)}, got {tuple(mask.shape)}"
        )
    return mask_BHST
