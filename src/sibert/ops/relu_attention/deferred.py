"""Normalised-ReLU attention with the division deferred until after the product with the values.

Shape suffixes: B = batch, H = heads, S = query positions, T = key positions, K = head width.
"""

from torch import Tensor
from torch.nn import functional as F

from sibert.ops.attention_mask import broadcast_mask
from sibert.ops.relu_attention.reference import inverse_or_zero, row_sums

__all__ = ["deferred_relu_attention"]


def deferred_relu_attention(
    query_BHSK: Tensor,
    key_BHTK: Tensor,
    value_BHTK: Tensor,
    mask: Tensor | None = None,
    *,
    dropout_p: float = 0.0,
) -> Tensor:
    """Compute normalised-ReLU attention with one [B, H, S, T] tensor kept instead of three.

    (ReLU(q k^T) v) / rowsum(ReLU(q k^T)) equals N(ReLU(q k^T)) v, because the divisor is constant along a row. A key
    that padding masks out is replaced by 0: its score is then 0, and so is its weight, with no pass over the scores.

    Args:
        query_BHSK: Queries.
        key_BHTK: Keys.
        value_BHTK: Values.
        mask: Boolean, True = attend, [B, T] or broadcastable to [B, H, S, T].
        dropout_p: Dropout probability of the normalised weights.

    Returns:
        Output [B, H, S, K].
    """
    if mask is not None and mask.dim() == 2:
        key_BHTK = key_BHTK * broadcast_mask(mask).transpose(-2, -1)
    scores_BHST = (query_BHSK @ key_BHTK.transpose(-2, -1)).relu_()
    if mask is not None and mask.dim() != 2:
        scores_BHST = scores_BHST.masked_fill(~broadcast_mask(mask), 0.0)
    total_BHS1 = row_sums(scores_BHST)
    mixed_BHSK = F.dropout(scores_BHST, dropout_p, training=dropout_p > 0) @ value_BHTK
    return (mixed_BHSK * inverse_or_zero(total_BHS1)).to(mixed_BHSK.dtype)
