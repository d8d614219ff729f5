"""Softmax attention whose scores are cosines: of degree 0 in queries and keys, each on its own.

The exponential of a score is homogeneous in nothing, so softmax attention can be scale invariant only if the scores
themselves have degree 0. Cosines do, and they are bounded, so that no row can become sharper by growth of the weights:
what sqrt(K), the largest score, allows is the sharpest.

Shape suffixes: B = batch, H = heads, S = query positions, T = key positions, K = head width.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from sibert.ops.attention_mask import fitting_mask
from sibert.ops.normalize import unit_rows

__all__ = ["cosine_attention", "reference_cosine_attention"]


def reference_cosine_attention(
    query_BHSK: Tensor, key_BHTK: Tensor, value_BHTK: Tensor, mask: Tensor | None = None, *, dropout_p: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Compute cosine attention as it is defined (see `cosine_attention`).

    Args:
        query_BHSK: Queries.
        key_BHTK: Keys.
        value_BHTK: Values.
        mask: Boolean, True = attend, [B, T] or broadcastable to [B, H, S, T].
        dropout_p: Dropout probability of the weights.

    Returns:
        Output [B, H, S, K] and weights [B, H, S, T] (before dropout).
    """
    scores_BHST = math.sqrt(query_BHSK.shape[-1]) * (unit_rows(query_BHSK) @ unit_rows(key_BHTK).transpose(-2, -1))
    if mask is None:
        weights_BHST = scores_BHST.softmax(dim=-1)
    else:
        attend = fitting_mask(mask, query_BHSK, key_BHTK)
        # A finite filler keeps 0/0 out of rows without a key; the second `where` makes their weights and gradients 0.
        filler = torch.finfo(scores_BHST.dtype).min
        weights_BHST = torch.where(attend, torch.where(attend, scores_BHST, filler).softmax(dim=-1), 0.0)
    return F.dropout(weights_BHST, dropout_p, training=dropout_p > 0) @ value_BHTK, weights_BHST


def cosine_attention(
    query_BHSK: Tensor,
    key_BHTK: Tensor,
    value_BHTK: Tensor,
    mask: Tensor | None = None,
    *,
    dropout_p: float = 0.0,
    need_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attend with softmax(sqrt(K) cos(q, k)): degree 0 in every query and every key, 1 in the values.

    The scores of independent directions have variance 1, as those of BERT's queries and keys of variance 1 divided by
    sqrt(K). A query whose keys are all masked gives output 0 and gradient 0; a query or key of norm 0 has cosine 0.

    Args:
        query_BHSK: Queries: batch, heads, query positions S, head width K.
        key_BHTK: Keys at T positions.
        value_BHTK: Values at T positions.
        mask: Boolean, True = attend; [B, T] for padding, or anything that broadcasts to [B, H, S, T]. None = all.
        dropout_p: Probability with which each weight is dropped (and the rest scaled by 1/(1-p)).
        need_weights: Return the weights [B, H, S, T] as well; they come from the definition, everything else from
            `torch.nn.functional.scaled_dot_product_attention`, which does not keep them.

    Returns:
        Output [B, H, S, K] and the weights, or None where they are not asked for.

    Raises:
        TypeError: On a mask that is not boolean.
        ValueError: On a mask of another shape.

    References:
        Cosines as scores: arXiv 2010.04245, there with a learned scale.
    """
    if need_weights:
        return reference_cosine_attention(query_BHSK, key_BHTK, value_BHTK, mask, dropout_p=dropout_p)
    attend = None if mask is None else fitting_mask(mask, query_BHSK, key_BHTK)
    output_BHSK = F.scaled_dot_product_attention(
        unit_rows(query_BHSK),
        unit_rows(key_BHTK),
        value_BHTK,
        attend,
        dropout_p=dropout_p,
        scale=math.sqrt(query_BHSK.shape[-1]),
    )
    return output_BHSK, None
