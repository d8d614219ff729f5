"""Normalised-ReLU attention as fused kernels: scores live in registers, memory is O(S + T). Derivation: README.md.

A row needs its sum and nothing else from softmax's machinery: no running maximum, no exponentials, no rescaling of what
has been added up. The backward pass computes the scores again, once for the queries' gradient and once for that of keys
and values, so that no two programs add to one number and results repeat bit for bit.

Products are accumulated in float32 (float64 for float64 in the interpreter). float32 inputs are multiplied as float32
("ieee"), not as TF32. Undivided scores and their gradients leave the range of float16; they are multiplied as TF32,
which has float16's digits and float32's range.

Shape suffixes: B = batch, H = query heads, G = key and value heads, S = query positions, T = key positions, K = head
width; in the kernels tiles are [rows, width], and WIDTH is K, PADDED the next power of two.
"""

from __future__ import annotations  # triton's interpreter looks for the annotation "constexpr"

from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sibert.ops.relu_attention.dropout import COLUMN_STEP, MIXER, drop_threshold
from sibert.ops.relu_attention.reference import inverse_or_zero
from sibert.ops.relu_attention.spans import Spans
from sibert.ops.relu_attention.tiles import H100_MEMORY, Tiles, tile_sizes
from sibert.ops.triton_language import constexpr, jit, tl, triton

__all__ = ["shared_memory", "triton_backward", "triton_forward"]

_MIXER = constexpr(MIXER)
_COLUMN_STEP = constexpr(COLUMN_STEP)


@cache
def shared_memory(device: torch.device) -> int:
    """Look up how much shared memory a program may have.

    Args:
        device: Where it runs.

    Returns:
        Bytes; those of an H100 for the interpreter, which has no limit.
    """
    if device.type != "cuda":
        return H100_MEMORY
    return int(triton.runtime.driver.active.utils.get_device_properties(device.index)["max_shared_mem"])


@jit  # type: ignore[untyped-decorator]
def _mix(x):  # type: ignore[no-untyped-def,untyped-decorator]
    x = ((x >> 16) ^ x) * _MIXER
    x = ((x >> 16) ^ x) * _MIXER
    return (x >> 16) ^ x


@jit  # type: ignore[untyped-decorator]
def _row_keys(SEED, rows):  # type: ignore[no-untyped-def,untyped-decorator]
    return _mix(_mix(tl.load(SEED).to(tl.uint32)) + rows.to(tl.uint32) * _COLUMN_STEP)


@jit  # type: ignore[untyped-decorator]
def _load(base, start, stride, length, BLOCK: constexpr, PADDED: constexpr, WIDTH: constexpr):  # type: ignore[no-untyped-def,untyped-decorator]
    row = tl.arange(0, BLOCK)
    column = tl.arange(0, PADDED)
    inside = (start + row < length)[:, None] & (column < WIDTH)[None, :]
    far = tl.full((), 1, tl.int64) * start * stride
    return tl.load(base + far + row[:, None] * stride + column[None, :], mask=inside, other=0.0)


@jit  # type: ignore[untyped-decorator]
def _store(base, tile, start, length, BLOCK: constexpr, PADDED: constexpr, WIDTH: constexpr):  # type: ignore[no-untyped-def,untyped-decorator]
    row = tl.arange(0, BLOCK)
    column = tl.arange(0, PADDED)
    inside = (start + row < length)[:, None] & (column < WIDTH)[None, :]
    far = tl.full((), 1, tl.int64) * start * WIDTH
    tl.store(base + far + row[:, None] * WIDTH + column[None, :], tile.to(base.dtype.element_ty), mask=inside)


@jit  # type: ignore[untyped-decorator]
def _forward_kernel(  # type: ignore[no-untyped-def,untyped-decorator]
    QUERY, KEY, VALUE, OUT, TOTAL, MASK, LOWER, UPPER, SEED,
    q_b, q_h, q_s, k_b, k_h, k_s, v_b, v_h, v_s, m_b, m_h, m_s, m_t, span_b, H, GROUP, S, T,
    KEEP: constexpr, DROP_BELOW: constexpr, MASKED: constexpr, SPANS: constexpr, DROPOUT: constexpr,
    HALF: constexpr, PRECISION: constexpr,
    BLOCK_S: constexpr, BLOCK_T: constexpr, PADDED: constexpr, WIDTH: constexpr,
):  # fmt: skip
    """Output and row sums of BLOCK_S queries of one head."""
    tiles = tl.cdiv(S, BLOCK_S)
    start_s = tl.program_id(0) % tiles * BLOCK_S
    head = (tl.program_id(0) // tiles).to(tl.int64)
    b, h = head // H, head % H
    row = start_s + tl.arange(0, BLOCK_S)
    query = _load(QUERY + b * q_b + h * q_h, start_s, q_s, S, BLOCK_S, PADDED, WIDTH)
    first, last = 0, T
    if SPANS:
        lower = tl.load(LOWER + b * span_b + row, mask=row < S, other=0)
        upper = tl.load(UPPER + b * span_b + row, mask=row < S, other=0)
        # The bounds rise from query to query.
        first = tl.maximum(tl.load(LOWER + b * span_b + start_s), 0) // BLOCK_T * BLOCK_T
        last = tl.load(UPPER + b * span_b + tl.minimum(start_s + BLOCK_S, S) - 1)
    if DROPOUT:
        row_key = _row_keys(SEED, head * S + row)
    wide = tl.float64 if query.dtype == tl.float64 else tl.float32
    total = tl.zeros([BLOCK_S], wide)
    mixed = tl.zeros([BLOCK_S, PADDED], wide)
    for start_t in range(first, last, BLOCK_T):
        column = start_t + tl.arange(0, BLOCK_T)
        key = _load(KEY + b * k_b + h // GROUP * k_h, start_t, k_s, T, BLOCK_T, PADDED, WIDTH)
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION)
        scores = tl.maximum(scores, 0.0, propagate_nan=tl.PropagateNan.ALL)
        if SPANS:
            scores = tl.where((column[None, :] >= lower[:, None]) & (column[None, :] < upper[:, None]), scores, 0.0)
        if MASKED:
            at = MASK + b * m_b + h * m_h + row[:, None].to(tl.int64) * m_s + column[None, :] * m_t
            attend = tl.load(at, mask=(row < S)[:, None] & (column < T)[None, :], other=0)
            scores = tl.where(attend != 0, scores, 0.0)
        total += tl.sum(scores, 1)
        if DROPOUT:
            mixer = _mix(row_key[:, None] + column.to(tl.uint32)[None, :] * _COLUMN_STEP)
            scores = tl.where(mixer >= DROP_BELOW, scores * KEEP, 0.0)
        value = _load(VALUE + b * v_b + h // GROUP * v_h, start_t, v_s, T, BLOCK_T, PADDED, WIDTH)
        if HALF:
            value = value.to(tl.float32)
        mixed = tl.dot(scores.to(value.dtype), value, mixed, input_precision=PRECISION, out_dtype=wide)
    inverse = tl.where(total > 0, 1.0 / tl.where(total > 0, total, 1.0), 0.0)
    _store(OUT + head * S * WIDTH, mixed * inverse[:, None], start_s, S, BLOCK_S, PADDED, WIDTH)
    tl.store(TOTAL + head * S + row, total, mask=row < S)


@jit  # type: ignore[untyped-decorator]
def _queries_kernel(  # type: ignore[no-untyped-def,untyped-decorator]
    GRAD, QUERY, KEY, VALUE, INVERSE, SHIFT, GRAD_QUERY, MASK, LOWER, UPPER, SEED,
    g_b, g_h, g_s, q_b, q_h, q_s, k_b, k_h, k_s, v_b, v_h, v_s, m_b, m_h, m_s, m_t, span_b, H, GROUP, S, T,
    KEEP: constexpr, DROP_BELOW: constexpr, MASKED: constexpr, SPANS: constexpr, DROPOUT: constexpr,
    HALF: constexpr, PRECISION: constexpr,
    BLOCK_S: constexpr, BLOCK_T: constexpr, PADDED: constexpr, WIDTH: constexpr,
):  # fmt: skip
    """Gradient of BLOCK_S queries of one head."""
    tiles = tl.cdiv(S, BLOCK_S)
    start_s = tl.program_id(0) % tiles * BLOCK_S
    head = (tl.program_id(0) // tiles).to(tl.int64)
    b, h = head // H, head % H
    row = start_s + tl.arange(0, BLOCK_S)
    query = _load(QUERY + b * q_b + h * q_h, start_s, q_s, S, BLOCK_S, PADDED, WIDTH)
    grad = _load(GRAD + b * g_b + h * g_h, start_s, g_s, S, BLOCK_S, PADDED, WIDTH)
    inverse = tl.load(INVERSE + head * S + row, mask=row < S, other=0.0)
    shift = tl.load(SHIFT + head * S + row, mask=row < S, other=0.0)
    first, last = 0, T
    if SPANS:
        lower = tl.load(LOWER + b * span_b + row, mask=row < S, other=0)
        upper = tl.load(UPPER + b * span_b + row, mask=row < S, other=0)
        first = tl.maximum(tl.load(LOWER + b * span_b + start_s), 0) // BLOCK_T * BLOCK_T
        last = tl.load(UPPER + b * span_b + tl.minimum(start_s + BLOCK_S, S) - 1)
    if DROPOUT:
        row_key = _row_keys(SEED, head * S + row)
    wide = tl.float64 if query.dtype == tl.float64 else tl.float32
    total = tl.zeros([BLOCK_S, PADDED], wide)
    for start_t in range(first, last, BLOCK_T):
        column = start_t + tl.arange(0, BLOCK_T)
        key = _load(KEY + b * k_b + h // GROUP * k_h, start_t, k_s, T, BLOCK_T, PADDED, WIDTH)
        value = _load(VALUE + b * v_b + h // GROUP * v_h, start_t, v_s, T, BLOCK_T, PADDED, WIDTH)
        positive = tl.dot(query, tl.trans(key), input_precision=PRECISION) > 0
        if SPANS:
            positive = positive & (column[None, :] >= lower[:, None]) & (column[None, :] < upper[:, None])
        if MASKED:
            at = MASK + b * m_b + h * m_h + row[:, None].to(tl.int64) * m_s + column[None, :] * m_t
            positive = positive & (tl.load(at, mask=(row < S)[:, None] & (column < T)[None, :], other=0) != 0)
        grads = tl.dot(grad, tl.trans(value), input_precision=PRECISION)
        if DROPOUT:
            mixer = _mix(row_key[:, None] + column.to(tl.uint32)[None, :] * _COLUMN_STEP)
            grads = tl.where(mixer >= DROP_BELOW, grads * KEEP, 0.0)
        grads = tl.where(positive, (grads - shift[:, None]) * inverse[:, None], 0.0)
        if HALF:
            key = key.to(tl.float32)
        total = tl.dot(grads.to(key.dtype), key, total, input_precision=PRECISION, out_dtype=wide)
    _store(GRAD_QUERY + head * S * WIDTH, total, start_s, S, BLOCK_S, PADDED, WIDTH)


@jit  # type: ignore[untyped-decorator]
def _keys_kernel(  # type: ignore[no-untyped-def,untyped-decorator]
    GRAD, QUERY, KEY, VALUE, INVERSE, SHIFT, GRAD_KEY, GRAD_VALUE, MASK, FIRST, LAST, SEED,
    g_b, g_h, g_s, q_b, q_h, q_s, k_b, k_h, k_s, v_b, v_h, v_s, m_b, m_h, m_s, m_t, span_b, H, GROUP, S, T,
    KEEP: constexpr, DROP_BELOW: constexpr, MASKED: constexpr, SPANS: constexpr, DROPOUT: constexpr,
    HALF: constexpr, PRECISION: constexpr,
    BLOCK_S: constexpr, BLOCK_T: constexpr, PADDED: constexpr, WIDTH: constexpr,
):  # fmt: skip
    """Gradients of BLOCK_T keys and values of one head, from all query heads that read it. Tiles are [key, query]."""
    tiles = tl.cdiv(T, BLOCK_T)
    start_t = tl.program_id(0) % tiles * BLOCK_T
    key_head = (tl.program_id(0) // tiles).to(tl.int64)
    b, g = key_head // (H // GROUP), key_head % (H // GROUP)
    column = start_t + tl.arange(0, BLOCK_T)
    key = _load(KEY + b * k_b + g * k_h, start_t, k_s, T, BLOCK_T, PADDED, WIDTH)
    value = _load(VALUE + b * v_b + g * v_h, start_t, v_s, T, BLOCK_T, PADDED, WIDTH)
    first, last = 0, S
    if SPANS:
        lower = tl.load(FIRST + b * span_b + column, mask=column < T, other=0)
        upper = tl.load(LAST + b * span_b + column, mask=column < T, other=0)
        first = tl.load(FIRST + b * span_b + start_t) // BLOCK_S * BLOCK_S
        last = tl.load(LAST + b * span_b + tl.minimum(start_t + BLOCK_T, T) - 1)
    wide = tl.float64 if key.dtype == tl.float64 else tl.float32
    total_key = tl.zeros([BLOCK_T, PADDED], wide)
    total_value = tl.zeros([BLOCK_T, PADDED], wide)
    for m in range(0, GROUP):
        h = g * GROUP + m
        head = b * H + h
        for start_s in range(first, last, BLOCK_S):
            row = start_s + tl.arange(0, BLOCK_S)
            query = _load(QUERY + b * q_b + h * q_h, start_s, q_s, S, BLOCK_S, PADDED, WIDTH)
            grad = _load(GRAD + b * g_b + h * g_h, start_s, g_s, S, BLOCK_S, PADDED, WIDTH)
            inverse = tl.load(INVERSE + head * S + row, mask=row < S, other=0.0)
            shift = tl.load(SHIFT + head * S + row, mask=row < S, other=0.0)
            scores = tl.dot(key, tl.trans(query), input_precision=PRECISION)
            scores = tl.maximum(scores, 0.0, propagate_nan=tl.PropagateNan.ALL)
            if SPANS:
                scores = tl.where((row[None, :] >= lower[:, None]) & (row[None, :] < upper[:, None]), scores, 0.0)
            if MASKED:
                at = MASK + b * m_b + h * m_h + row[None, :].to(tl.int64) * m_s + column[:, None] * m_t
                attend = tl.load(at, mask=(row < S)[None, :] & (column < T)[:, None], other=0)
                scores = tl.where(attend != 0, scores, 0.0)
            weights = scores * inverse[None, :]
            grads = tl.dot(value, tl.trans(grad), input_precision=PRECISION)
            if DROPOUT:
                row_key = _row_keys(SEED, head * S + row)
                mixer = _mix(row_key[None, :] + column.to(tl.uint32)[:, None] * _COLUMN_STEP)
                weights = tl.where(mixer >= DROP_BELOW, weights * KEEP, 0.0)
                grads = tl.where(mixer >= DROP_BELOW, grads * KEEP, 0.0)
            total_value = tl.dot(weights.to(grad.dtype), grad, total_value, input_precision=PRECISION, out_dtype=wide)
            grads = tl.where(scores > 0, (grads - shift[None, :]) * inverse[None, :], 0.0)
            if HALF:
                query = query.to(tl.float32)
            total_key = tl.dot(grads.to(query.dtype), query, total_key, input_precision=PRECISION, out_dtype=wide)
    _store(GRAD_KEY + key_head * T * WIDTH, total_key, start_t, T, BLOCK_T, PADDED, WIDTH)
    _store(GRAD_VALUE + key_head * T * WIDTH, total_value, start_t, T, BLOCK_T, PADDED, WIDTH)


def triton_forward(
    query_BHSK: Tensor,
    key_BGTK: Tensor,
    value_BGTK: Tensor,
    mask: Tensor | None,
    lower_BS: Tensor | None,
    upper_BS: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
) -> tuple[Tensor, Tensor]:
    """Compute normalised-ReLU attention in one kernel.

    Args:
        query_BHSK: Queries.
        key_BGTK: Keys.
        value_BGTK: Values.
        mask: Boolean, four dimensions that broadcast to [B, H, S, T]; True = attend.
        lower_BS: First key of each query (`Spans`).
        upper_BS: One past its last key.
        seed: Seed of dropout; None = no dropout.
        dropout_p: Dropout probability.

    Returns:
        Output [B, H, S, K], contiguous, and row sums [B, H, S], float32 or float64.
    """
    query_BHSK, key_BGTK, value_BGTK = _rows(query_BHSK), _rows(key_BGTK), _rows(value_BGTK)
    B, H, S, K = query_BHSK.shape
    wide = torch.float64 if query_BHSK.dtype == torch.float64 else torch.float32
    out_BHSK = torch.empty((B, H, S, K), dtype=query_BHSK.dtype, device=query_BHSK.device)
    total_BHS = torch.empty((B, H, S), dtype=wide, device=query_BHSK.device)
    if out_BHSK.numel():
        tiles = tile_sizes(K, query_BHSK.dtype, shared_memory(query_BHSK.device))["forward"]
        _launch(
            _forward_kernel, triton.cdiv(S, tiles.queries) * B * H,
            query_BHSK, key_BGTK, value_BGTK, out_BHSK, total_BHS,
            *_restrictions(mask, lower_BS, upper_BS, seed, query_BHSK),
            *query_BHSK.stride()[:3], *key_BGTK.stride()[:3], *value_BGTK.stride()[:3],
            *_mask_strides(mask, query_BHSK, key_BGTK), *_sizes(query_BHSK, key_BGTK, lower_BS),
            **_options(query_BHSK, mask, lower_BS, seed, dropout_p, tiles),
        )  # fmt: skip
    return out_BHSK, total_BHS


def triton_backward(
    grad_BHSK: Tensor,
    query_BHSK: Tensor,
    key_BGTK: Tensor,
    value_BGTK: Tensor,
    out_BHSK: Tensor,
    total_BHS: Tensor,
    mask: Tensor | None,
    lower_BS: Tensor | None,
    upper_BS: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients in two kernels, from scores that are computed again.

    Args:
        grad_BHSK: Gradient of the output.
        query_BHSK: Queries.
        key_BGTK: Keys.
        value_BGTK: Values.
        out_BHSK: Output of `triton_forward`.
        total_BHS: Row sums of `triton_forward`.
        mask: As in `triton_forward`, like all that follow.
        lower_BS: First key of each query.
        upper_BS: One past its last key.
        seed: Seed of dropout.
        dropout_p: Dropout probability.

    Returns:
        Gradients of queries, keys and values, contiguous, in their shapes and dtypes.
    """
    grad_BHSK, query_BHSK, key_BGTK, value_BGTK = map(_rows, (grad_BHSK, query_BHSK, key_BGTK, value_BGTK))
    (B, H, S, K), (_, G, T, _) = query_BHSK.shape, key_BGTK.shape
    inverse_BHS = inverse_or_zero(total_BHS)
    shift_BHS = (grad_BHSK.to(total_BHS.dtype) * out_BHSK).sum(dim=-1)
    grad_query = torch.empty((B, H, S, K), dtype=query_BHSK.dtype, device=query_BHSK.device)
    grad_key = torch.empty((B, G, T, K), dtype=query_BHSK.dtype, device=query_BHSK.device)
    grad_value = torch.empty_like(grad_key)
    tensors = (grad_BHSK, query_BHSK, key_BGTK, value_BGTK, inverse_BHS, shift_BHS)
    numbers = (
        *(step for tensor in tensors[:4] for step in tensor.stride()[:3]),
        *_mask_strides(mask, query_BHSK, key_BGTK),
    )
    sizes = tile_sizes(K, query_BHSK.dtype, shared_memory(query_BHSK.device))
    if grad_query.numel():
        tiles = sizes["queries"]
        _launch(
            _queries_kernel, triton.cdiv(S, tiles.queries) * B * H,
            *tensors, grad_query, *_restrictions(mask, lower_BS, upper_BS, seed, query_BHSK),
            *numbers, *_sizes(query_BHSK, key_BGTK, lower_BS),
            **_options(query_BHSK, mask, lower_BS, seed, dropout_p, tiles),
        )  # fmt: skip
    if grad_key.numel():
        tiles = sizes["keys"]
        first_BT, last_BT = None, None
        if lower_BS is not None and upper_BS is not None:
            first_BT, last_BT = Spans(lower_BS, upper_BS).queries_of_keys(T)
        _launch(
            _keys_kernel, triton.cdiv(T, tiles.keys) * B * G,
            *tensors, grad_key, grad_value, *_restrictions(mask, first_BT, last_BT, seed, query_BHSK),
            *numbers, *_sizes(query_BHSK, key_BGTK, first_BT),
            **_options(query_BHSK, mask, first_BT, seed, dropout_p, tiles),
        )  # fmt: skip
    return grad_query, grad_key, grad_value


def _launch(kernel: Any, programs: int, *arguments: Any, **options: Any) -> None:
    """Run so many programs on the device of the tensors; triton alone would take the current one.

    They are numbered along one axis, on which 2^31 - 1 fit (65,535 on others): tile by tile, then head by head, so that
    neighbours read the same head.
    """
    device = arguments[0].device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[(programs,)](*arguments, **options)


def _rows(tensor: Tensor) -> Tensor:
    """Make the features of a row neighbours in memory."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _restrictions(
    mask: Tensor | None, lower: Tensor | None, upper: Tensor | None, seed: Tensor | None, unused: Tensor
) -> tuple[Tensor, ...]:
    """Pointers; one that a kernel does not read is any tensor."""
    bytes_of_mask = None if mask is None else mask.view(torch.uint8)
    return tuple(unused if tensor is None else tensor for tensor in (bytes_of_mask, lower, upper, seed))


def _mask_strides(mask: Tensor | None, query_BHSK: Tensor, key_BGTK: Tensor) -> tuple[int, ...]:
    return (0, 0, 0, 0) if mask is None else mask.expand(*query_BHSK.shape[:3], key_BGTK.shape[2]).stride()


def _sizes(query_BHSK: Tensor, key_BGTK: Tensor, lower: Tensor | None) -> tuple[int, int, int, int, int]:
    """Stride of the bounds from one sequence to the next, query heads, those to a key head, S, T."""
    H, S = query_BHSK.shape[1:3]
    per_sequence = lower is not None and lower.shape[0] > 1
    return (
        (lower.stride(0) if lower is not None and per_sequence else 0),
        H,
        H // key_BGTK.shape[1],
        S,
        key_BGTK.shape[2],
    )


def _options(
    query_BHSK: Tensor, mask: Tensor | None, lower: Tensor | None, seed: Tensor | None, dropout_p: float, tiles: Tiles
) -> dict[str, Any]:
    """What a kernel is compiled for."""
    K, dtype = query_BHSK.shape[-1], query_BHSK.dtype
    return {
        "KEEP": 1.0 / (1.0 - dropout_p),
        "DROP_BELOW": drop_threshold(dropout_p),
        "MASKED": mask is not None,
        "SPANS": lower is not None,
        "DROPOUT": seed is not None,
        "HALF": dtype == torch.float16,
        "PRECISION": "tf32" if dtype == torch.float16 else "ieee",
        "BLOCK_S": tiles.queries,
        "BLOCK_T": tiles.keys,
        "PADDED": max(16, triton.next_power_of_2(K)),
        "WIDTH": K,
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }
