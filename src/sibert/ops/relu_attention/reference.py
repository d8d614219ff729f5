"""The definition of normalised-ReLU attention, one line a mathematical step; any dtype, any device, no tricks.

Shape suffixes: B = batch, H = query heads, G = key and value heads (H is a multiple), S = query positions, T = key
positions, K = head width.
"""

import math

import torch
from torch import Tensor

from sibert.ops.attention_mask import broadcast_mask
from sibert.ops.relu_attention.dropout import draw_seed, kept, row_keys
from sibert.ops.relu_attention.spans import Spans

__all__ = ["drop", "inverse_or_zero", "one_key_head_per_query_head", "reference_relu_attention", "row_sums"]


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


def one_key_head_per_query_head(heads_BGTK: Tensor, num_heads: int) -> Tensor:
    """Repeat key or value heads that several query heads share.

    Args:
        heads_BGTK: Keys or values.
        num_heads: Number of query heads H; query head h reads head h // (H / G).

    Returns:
        [B, H, T, K]; the argument itself where every query head has its own.
    """
    groups = heads_BGTK.shape[1]
    return heads_BGTK if groups == num_heads else heads_BGTK.repeat_interleave(num_heads // groups, dim=1)


def drop(scores_BHST: Tensor, dropout_p: float, seed: Tensor | None) -> Tensor:
    """Drop entries with probability p and divide the rest by 1 - p.

    Args:
        scores_BHST: Normalised weights, or what will be divided by a row's sum later.
        dropout_p: Probability.
        seed: Which mask; None draws a seed from torch's generator.

    Returns:
        A tensor of the same shape.
    """
    if dropout_p == 0:
        return scores_BHST
    *lead, rows, columns = scores_BHST.shape
    device = scores_BHST.device
    rows_BHS = torch.arange(math.prod(lead) * rows, device=device).view(*lead, rows)
    keys_BHS = row_keys(draw_seed(device) if seed is None else seed, rows_BHS)
    kept_BHST = kept(keys_BHS, torch.arange(columns, device=device), dropout_p)
    return scores_BHST.masked_fill(~kept_BHST, 0.0) * (1.0 / (1.0 - dropout_p))


def reference_relu_attention(
    query_BHSK: Tensor,
    key_BGTK: Tensor,
    value_BGTK: Tensor,
    mask: Tensor | None = None,
    *,
    spans: Spans | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute normalised-ReLU attention as it is defined (see `relu_attention`).

    Args:
        query_BHSK: Queries.
        key_BGTK: Keys.
        value_BGTK: Values.
        mask: Boolean, True = attend, [B, T] or broadcastable to [B, H, S, T].
        spans: The interval of keys that each query may attend to; None = all.
        dropout_p: Dropout probability of the normalised weights.
        seed: Seed of the dropout mask; None draws one.

    Returns:
        Output [B, H, S, K] and normalised weights [B, H, S, T] (before dropout).
    """
    key_BHTK = one_key_head_per_query_head(key_BGTK, query_BHSK.shape[1])
    value_BHTK = one_key_head_per_query_head(value_BGTK, query_BHSK.shape[1])
    scores_BHST = (query_BHSK @ key_BHTK.transpose(-2, -1)).relu()
    if mask is not None:
        scores_BHST = scores_BHST.masked_fill(~broadcast_mask(mask), 0.0)
    if spans is not None:
        scores_BHST = scores_BHST.masked_fill(~spans.allowed(scores_BHST.shape[-1]), 0.0)
    total_BHS1 = row_sums(scores_BHST)
    weights_BHST = (scores_BHST * inverse_or_zero(total_BHS1)).to(scores_BHST.dtype)
    return drop(weights_BHST, dropout_p, seed) @ value_BHTK, weights_BHST
