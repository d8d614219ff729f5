"""One step of gradient descent with weight decay for many vectors in many tensors, in one kernel.

    x_i <- x_i - (gamma_i x_i + step_i g_i),  for the vectors i that move.

One launch reads parameters and gradients once each and writes the parameters once, whatever the number of tensors: a
table of addresses tells each program which tensor its block of entries belongs to. A vector is a whole tensor, part of
what several tensors hold together, or a row of a matrix; what gamma, step and the decision are is on the device.

Shape suffixes: P = tensors, I = vectors, N = blocks.
"""

from __future__ import annotations  # triton's interpreter looks for the annotation "constexpr"

from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from sibert.ops.triton_language import constexpr, jit, tl
from sibert.ops.triton_presence import installed, interpreting

__all__ = ["descend_together", "fits_kernel", "kernel_runs_on"]

BLOCK = 1 << 12
"""Entries of a program: four of each thread's vector loads."""

WARPS = 8
ALIGNMENT = 16
"""Bytes, by which whole vectors of entries can be loaded at once; torch's allocators give more."""

LARGEST = (1 << 31) - BLOCK
"""Entries of a tensor that 32 bits can number."""


@jit  # type: ignore[untyped-decorator]
def _stepped(x, g, gamma, step, moves, DTYPE: constexpr):  # type: ignore[no-untyped-def,untyped-decorator]
    # Subtract gamma x, never multiply by 1 - gamma: see `sibert.optim.updates`.
    return tl.where(moves, x - (gamma.to(DTYPE) * x + step.to(DTYPE) * g), x)


@jit  # type: ignore[untyped-decorator]
def _descent_kernel(  # type: ignore[no-untyped-def,untyped-decorator]
    ADDRESSES, SHAPES, TENSOR, START, GAMMA, STEP, MOVES, P,
    DTYPE: constexpr, ROWS: constexpr, BLOCK: constexpr,
):  # fmt: skip
    """BLOCK entries of one tensor; ADDRESSES [2, P] of parameters and gradients, the other tables as of `_blocks`."""
    block = tl.program_id(0)
    p = tl.load(TENSOR + block)
    size = tl.load(SHAPES + p)
    start = tl.multiple_of(tl.load(START + block), BLOCK)
    entry = start + tl.arange(0, BLOCK)
    vector = tl.load(SHAPES + 2 * P + p)
    if ROWS:
        vector = tl.minimum(vector + entry // tl.load(SHAPES + P + p), tl.load(SHAPES + 3 * P + p))
    gamma = tl.load(GAMMA + vector)
    step = tl.load(STEP + vector)
    moves = tl.load(MOVES + vector) != 0
    parameter = tl.multiple_of(tl.load(ADDRESSES + p).to(tl.pointer_type(DTYPE)), 16) + entry
    gradient = tl.multiple_of(tl.load(ADDRESSES + P + p).to(tl.pointer_type(DTYPE)), 16) + entry
    # Not a bit is written where nothing moves, and whole blocks go without a mask, so that loads are of 16 bytes.
    if tl.max(moves.to(tl.int32), axis=0) != 0 if ROWS else moves:
        if start + BLOCK <= size:
            x, g = tl.load(parameter), tl.load(gradient)
            tl.store(parameter, _stepped(x, g, gamma, step, moves, DTYPE))
        else:
            x, g = tl.load(parameter, mask=entry < size), tl.load(gradient, mask=entry < size)
            tl.store(parameter, _stepped(x, g, gamma, step, moves, DTYPE), mask=entry < size)


def kernel_runs_on(device: torch.device) -> bool:
    """Say whether there is a kernel for a device.

    Args:
        device: Any.

    Returns:
        True for CUDA if triton is installed, for the CPU if triton interprets.
    """
    return device.type in ("cuda", "cpu") and installed() and interpreting() == (device.type == "cpu")


def fits_kernel(parameter: Tensor, gradient: Tensor) -> bool:
    """Say whether the kernel takes a tensor of a device that it runs on.

    Args:
        parameter: A plain tensor.
        gradient: Its gradient.

    Returns:
        True for memory without gaps, in float32 or float64.
    """
    return (
        parameter.dtype in (torch.float32, torch.float64)
        and parameter.dtype == gradient.dtype
        and parameter.device == gradient.device
        and parameter.is_contiguous()
        and gradient.is_contiguous()
        and 0 < parameter.numel() < LARGEST
        and parameter.data_ptr() % ALIGNMENT == gradient.data_ptr() % ALIGNMENT == 0
    )


def descend_together(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    vectors: Sequence[int],
    gamma_I: Tensor,
    step_I: Tensor,
    moves_I: Tensor,
    *,
    rows: bool = False,
) -> None:
    """Take a step of every vector that moves, in place; no other bit changes, whatever the gradients contain.

    Args:
        parameters: P tensors of one dtype on one device, all of which `fits_kernel`.
        gradients: Theirs.
        vectors: For each tensor the index of its vector, or of that of its first row.
        gamma_I: eta lambda of each vector, float64.
        step_I: eta s of each vector, float64.
        moves_I: bool.
        rows: Whether each slice along a tensor's first dimension is a vector of its own.
    """
    device, dtype = parameters[0].device, parameters[0].dtype
    shapes = tuple(
        (p.numel(), p.numel() // len(p), vector, vector + len(p) - 1)
        if rows
        else (p.numel(), p.numel(), vector, vector)
        for p, vector in zip(parameters, vectors, strict=True)
    )
    shapes_4P, tensor_N, start_N = _blocks(shapes, device)
    addresses = [[p.data_ptr() for p in parameters], [g.data_ptr() for g in gradients]]
    addresses_2P = torch.tensor(addresses, pin_memory=device.type == "cuda").to(device, non_blocking=True)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        _descent_kernel[(len(tensor_N),)](
            addresses_2P, shapes_4P, tensor_N, start_N, gamma_I, step_I, moves_I.view(torch.uint8), len(parameters),
            DTYPE=getattr(tl, str(dtype).removeprefix("torch.")), ROWS=rows, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
    # The kernel does not say that it changes them; autograd should know, where it has kept one for a later backward.
    torch.autograd.graph.increment_version(parameters)


@lru_cache(maxsize=64)
def _blocks(shapes: tuple[tuple[int, int, int, int], ...], device: torch.device) -> tuple[Any, Any, Any]:
    """Cut tensors into blocks.

    Returns:
        Entries, entries of a vector, first and last vector of each tensor [4, P]; tensor and first entry of each block
        [N].
    """
    counts = torch.tensor([-(-size // BLOCK) for size, *_ in shapes])
    tensor_N = torch.repeat_interleave(torch.arange(len(shapes)), counts)
    start_N = (torch.arange(len(tensor_N)) - (counts.cumsum(0) - counts)[tensor_N]) * BLOCK
    tables = (torch.tensor(shapes).T.contiguous(), tensor_N, start_N)
    return tuple(table.to(torch.int32).to(device, non_blocking=True) for table in tables)  # type: ignore[return-value]
