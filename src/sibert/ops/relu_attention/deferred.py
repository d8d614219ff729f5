"""Normalised-ReLU attention with the division deferred until after the product with the values.

Shape suffixes: B = batch, H = query heads, G = key and value heads, S = query positions, T = key positions, K = head
width.
"""

from torch import Tensor

from sibert.ops.attention_mask import broadcast_mask
from sibert.ops.relu_attention.reference import drop, inverse_or_zero, one_key_head_per_query_head, row_sums
from sibert.ops.relu_attention.spans import Spans

__all__ = ["deferred_relu_attention"]


def deferred_relu_attention(
    query_BHSK: Tensor,
    key_BGTK: Tensor,
    value_BGTK: Tensor,
    mask: Tensor | None = None,
    *,
    spans: Spans | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """Compute normalised-ReLU attention with one [B, H, S, T] tensor kept instead of three.

    (ReLU(q k^T) v) / rowsum(ReLU(q k^T)) equals N(ReLU(q k^T)) v, because the divisor is constant along a row. A key
    that padding masks out is replaced by 0: its score is then 0, and so is its weight, with no pass over the scores.

    Args:
        query_BHSK: Queries.
        key_BGTK: Keys.
        value_BGTK: Values.
        mask: Boolean, True = attend, [B, T] or broadcastable to [B, H, S, T].
        spans: The interval of keys that each query may attend to; None = all.
        dropout_p: Dropout probability of the normalised weights.
        seed: Seed of the dropout mask; None draws one.

    Returns:
        Output [B, H, S, K].
    """
    if mask is not None and mask.dim() == 2:
        key_BGTK = key_BGTK * broadcast_mask(mask).transpose(-2, -1)
    key_BHTK = one_key_head_per_query_head(key_BGTK, query_BHSK.shape[1])
    value_BHTK = one_key_head_per_query_head(value_BGTK, query_BHSK.shape[1])
    scores_BHST = (query_BHSK @ key_BHTK.transpose(-2, -1)).relu_()
    if mask is not None and mask.dim() != 2:
        scores_BHST = scores_BHST.masked_fill(~broadcast_mask(mask), 0.0)
    if spans is not None:
        scores_BHST = scores_BHST.masked_fill(~spans.allowed(scores_BHST.shape[-1]), 0.0)
    total_BHS1 = row_sums(scores_BHST)
    mixed_BHSK = drop(scores_BHST, dropout_p, seed) @ value_BHTK
    return (mixed_BHSK * inverse_or_zero(total_BHS1)).to(mixed_BHSK.dtype)
