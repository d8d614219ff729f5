"""Normalised-ReLU attention: one definition, fast paths that agree with it, one entry point."""

import torch
from torch import Tensor

from sibert.ops.relu_attention.choice import Backend, Choice, choose_backend
from sibert.ops.relu_attention.deferred import deferred_relu_attention
from sibert.ops.relu_attention.dropout import draw_seed
from sibert.ops.relu_attention.inputs import check_inputs, check_spans, check_types
from sibert.ops.relu_attention.operators import blocked_relu_attention, triton_relu_attention
from sibert.ops.relu_attention.reference import reference_relu_attention
from sibert.ops.relu_attention.spans import Spans, key_spans

__all__ = [
    "Choice",
    "Spans",
    "choose_backend",
    "deferred_relu_attention",
    "key_spans",
    "reference_relu_attention",
    "relu_attention",
]


def relu_attention(
    query_BHSK: Tensor,
    key_BGTK: Tensor,
    value_BGTK: Tensor,
    mask: Tensor | None = None,
    *,
    seqlens: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    causal: bool = False,
    window: int | None = None,
    spans: Spans | None = None,
    dropout_p: float = 0.0,
    need_weights: bool = False,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Scale-invariant attention: sum over keys of N(ReLU(q k^T)) v, with N = divide each row by its sum.

    The weights have degree 0 in queries and keys each, so no 1/sqrt(K) is needed. A row with no positive score gives
    output 0 and gradient 0. Every backend is deterministic: none adds in an order that may change.

    Args:
        query_BHSK: Queries: batch, heads, query positions S, head width K.
        key_BGTK: Keys at T positions. There may be fewer heads G than H, if G divides H: query head h then reads key
            head h // (H / G).
        value_BGTK: Values at T positions.
        mask: Boolean, True = attend; [B, T] for padding, or anything that broadcasts to [B, H, S, T]. None = all.
            What a query may not attend to changes nothing while it is finite; infinity and NaN may get through,
            as 0 times either is NaN. That holds for lengths and bounds as well.
        seqlens: Number of valid keys of each sequence, [B]: the keys from there on are padding. Needs no mask.
        cu_seqlens: Bounds of sequences that lie one after the other in a batch of 1: [sequences + 1], from 0 to
            S = T. No sequence sees another; a sequence may be empty.
        causal: Query i attends to no key after its position, i + T - S: the last query stands at the last key.
        window: A query attends to keys j with |position - j| < window; if causal, the last `window` ones.
        spans: What `key_spans` made of lengths, bounds, causality and window, in their place: for layers that share
            them. Numbers on a device are not read; bounds given as `cu_seqlens` are, to check them.
        dropout_p: Probability with which each normalised weight is dropped (and the rest scaled by 1/(1-p)). Which
            ones follows from torch's generator, and is the same for every backend.
        need_weights: Return the normalised weights [B, H, S, T], before dropout, as well; needs the reference.
        backend: "reference" is the definition; "deferred" divides after the product with the values and keeps one
            [B, H, S, T] tensor for the backward pass instead of three; "blocked" keeps none, in plain torch; "triton"
            keeps none either, in fused kernels for CUDA; "auto" is what `choose_backend` says, with its reason.

    Returns:
        Output [B, H, S, K] and the weights, or None where they are not asked for.

    Raises:
        ValueError: On shapes, devices, lengths or options that do not fit, or a backend that cannot do what is asked.
        TypeError: On lists and arrays in place of tensors, and on wrong dtypes, as a mask that is not boolean.

    References:
        SI-Attention, arXiv 2202.00980, section 3 and Table 2. Derivation: README.md beside this file.
    """
    check_types(
        {"query": query_BHSK, "key": key_BGTK, "value": value_BGTK},
        {"mask": mask, "seqlens": seqlens, "cu_seqlens": cu_seqlens},
        window,
        dropout_p,
    )
    query_BHSK, key_BGTK, value_BGTK = _autocast(query_BHSK, key_BGTK, value_BGTK)
    mask_BHST = check_inputs(query_BHSK, key_BGTK, value_BGTK, mask, seqlens, cu_seqlens, window, dropout_p)
    if spans is not None:
        if seqlens is not None or cu_seqlens is not None or causal or window is not None:
            raise ValueError("spans hold lengths, bounds, causality and window already: give those to key_spans")
        check_spans(spans, query_BHSK)
    choice = choose_backend(query_BHSK, key_BGTK, need_weights=need_weights, backend=backend)
    S, T, device = query_BHSK.shape[2], key_BGTK.shape[2], query_BHSK.device
    if spans is None:
        spans = key_spans(S, T, device, seqlens_B=seqlens, cu_seqlens=cu_seqlens, causal=causal, window=window)
    seed = draw_seed(device) if dropout_p > 0 else None
    inputs = (query_BHSK, key_BGTK, value_BGTK)
    if choice.name == "reference":
        output_BHSK, weights_BHST = reference_relu_attention(*inputs, mask, spans=spans, dropout_p=dropout_p, seed=seed)
        return output_BHSK, weights_BHST if need_weights else None
    if choice.name == "deferred":
        return deferred_relu_attention(*inputs, mask, spans=spans, dropout_p=dropout_p, seed=seed), None
    operator = triton_relu_attention if choice.name == "triton" else blocked_relu_attention
    output_BHSK, _ = operator(*inputs, mask_BHST, *(spans or (None, None)), seed, float(dropout_p))
    return output_BHSK, None


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast as torch casts the inputs of a matrix product, so that all backends see the same."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(tensor if tensor.dtype == torch.float64 else tensor.to(dtype) for tensor in tensors)
