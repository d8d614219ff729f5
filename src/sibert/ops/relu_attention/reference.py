"""The definition of normalised-ReLU attention, one line a mathematical step; any dtype, any device, no tricks.

Shape suffixes: B = batch, H = heads, S = query positions, T = key positions, K = head width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from sibert.ops.attention_mask import broadcast_mask

__all__ = ["inverse_or_zero", "reference_relu_attention", "row_sums"]


def row_sums(scores_BHST: Tensor) -> Tensor:
    """Sum each row of scores, in float32 where the scores are in half precision.

    Args:
        scores_BHST: Non-negative scores.

    Returns:
        Sums [B, H, S, 1], whose inverse is representable wherever the scores are.
    """
    half = scores_BHST.dtype in (torch.float16, torch.bfloat16)
    return scores_BHST.sum(dim=-1, keepdim=True, dtype=torch.float32 if half else None)


def inverse_or_zero(total: Tensor) -> Tensor:
    """Invert sums of non-negative numbers: 1/t where t > 0, and 0 with gradient 0 where t = 0.

    Such a sum is 0 only if every term is, so the test is homogeneous and needs no epsilon.

    Args:
        total: Sums of non-negative numbers, any shape.

    Returns:
        A tensor of the same shape.
    """
    positive = total > 0
    return torch.where(positive, torch.where(positive, total, 1.0).reciprocal(), 0.0)


def reference_relu_attention(
    query_BHSK: Tensor,
    key_BHTK: Tensor,
    value_BHTK: Tensor,
    mask: Tensor | None = None,
    *,
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Compute normalised-ReLU attention as it is defined (see `relu_attention`).

    Args:
        query_BHSK: Queries.
        key_BHTK: Keys.
        value_BHTK: Values.
        mask: Boolean, True = attend, [B, T] or broadcastable to [B, H, S, T].
        dropout_p: Dropout probability of the normalised weights.

    Returns:
        Output [B, H, S, K] and normalised weights [B, H, S, T] (before dropout).
    """
    scores_BHST = (query_BHSK @ key_BHTK.transpose(-2, -1)).relu()
    if mask is not None:
        scores_BHST = scores_BHST.masked_fill(~broadcast_mask(mask), 0.0)
    total_BHS1 = row_sums(scores_BHST)
    weights_BHST = (scores_BHST * inverse_or_zero(total_BHS1)).to(scores_BHST.dtype)
    return F.dropout(weights_BHST, dropout_p, training=dropout_p > 0) @ value_BHTK, weights_BHST
