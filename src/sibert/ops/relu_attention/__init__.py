"""Normalised-ReLU attention: one definition, one fast path that agrees with it, one entry point."""

from typing import Literal

import torch
from torch import Tensor

from sibert.ops.relu_attention.deferred import deferred_relu_attention
from sibert.ops.relu_attention.reference import reference_relu_attention

__all__ = ["deferred_relu_attention", "reference_relu_attention", "relu_attention"]

Backend = Literal["auto", "reference", "deferred"]


def relu_attention(
    query_BHSK: Tensor,
    key_BHTK: Tensor,
    value_BHTK: Tensor,
    mask: Tensor | None = None,
    *,
    dropout_p: float = 0.0,
    need_weights: bool = False,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Scale-invariant attention: sum over keys of N(ReLU(q k^T)) v, with N = divide each row by its sum.

    The weights have degree 0 in queries and keys each, so no 1/sqrt(K) is needed. A row with no positive score gives
    output 0 and gradient 0.

    Args:
        query_BHSK: Queries: batch, heads, query positions S, head width K.
        key_BHTK: Keys at T positions.
        value_BHTK: Values at T positions.
        mask: Boolean, True = attend; [B, T] for padding, or anything that broadcasts to [B, H, S, T]. None = all.
        dropout_p: Probability with which each normalised weight is dropped (and the rest scaled by 1/(1-p)).
        need_weights: Return the normalised weights [B, H, S, T] as well; needs the reference.
        backend: "reference" is the definition; "deferred" divides after the product with the values and keeps one
            [B, H, S, T] tensor for the backward pass instead of three; "auto" is "reference" if the weights are
            wanted, or in float16, whose range the undivided products would leave, and "deferred" otherwise.

    Returns:
        Output [B, H, S, K] and the weights, or None where they are not asked for.

    Raises:
        ValueError: On an unknown backend, or weights asked of the deferred one.
        TypeError: On a mask that is not boolean.

    References:
        SI-Attention, arXiv 2202.00980, section 3 and Table 2. Derivation: README.md beside this file.
    """
    if backend not in ("auto", "reference", "deferred"):
        raise ValueError(f"backend must be 'auto', 'reference' or 'deferred', got {backend!r}")
    if backend == "deferred" and need_weights:
        raise ValueError("the deferred backend never forms the weights; use backend='auto' or 'reference' to get them")
    half_range = backend == "auto" and query_BHSK.dtype == torch.float16
    if need_weights or half_range or backend == "reference":
        output_BHSK, weights_BHST = reference_relu_attention(
            query_BHSK, key_BHTK, value_BHTK, mask, dropout_p=dropout_p
        )
        return output_BHSK, weights_BHST if need_weights else None
    return deferred_relu_attention(query_BHSK, key_BHTK, value_BHTK, mask, dropout_p=dropout_p), None
