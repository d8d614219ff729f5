"""Which backend computes an attention, and why."""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sibert.ops.triton_presence import capability, installed, interpreting

__all__ = ["BACKENDS", "Backend", "Choice", "choose_backend"]

Backend = Literal["auto", "reference", "deferred", "blocked", "triton"]
BACKENDS: tuple[str, ...] = get_args(Backend)

SHORT = 1 << 16
"""Largest S * T up to which the scores of a head are kept for the backward pass: 256^2, which a core's cache holds.
Beyond it, blocks are faster in float32 and in bfloat16 (LOGBOOK, 2026-11-24)."""

WIDEST = 256
"""Head width up to which a block of queries, keys and values fits the shared memory of a multiprocessor."""


class Choice(NamedTuple):
    """A backend and the reason for it.

    Attributes:
        name: "reference", "deferred", "blocked" or "triton".
        reason: One sentence.
    """

    name: str
    reason: str


def choose_backend(
    query_BHSK: Tensor, key_BGTK: Tensor, *, need_weights: bool = False, backend: str = "auto"
) -> Choice:
    """Decide how `relu_attention` computes: what "auto" takes, or whether a named backend can do it.

    Args:
        query_BHSK: Queries; device, dtype, length and head width count, values do not.
        key_BGTK: Keys.
        need_weights: Whether the normalised weights are asked for.
        backend: "auto", or the name that was asked for.

    Returns:
        The backend and the reason.

    Raises:
        ValueError: If there is no such backend, or it cannot do what is asked.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    if backend != "auto":
        if (obstacle := _obstacle(backend, query_BHSK, need_weights)) is not None:
            raise ValueError(f"the {backend} backend {obstacle}; backend='auto' takes one that can")
        return Choice(backend, "it was asked for")
    if need_weights:
        return Choice("reference", "only it forms the normalised weights")
    if _must_be_plain():
        if query_BHSK.dtype == torch.float16:
            return Choice("reference", "plain operations are needed, and float16 cannot hold undivided products")
        return Choice("deferred", "export, vmap and forward-mode derivatives need plain operations")
    otherwise = ""
    if query_BHSK.device.type == "cuda":
        if (obstacle := _obstacle("triton", query_BHSK, need_weights)) is None:
            return Choice("triton", "a CUDA device, triton and a dtype and head width that the kernels take")
        otherwise = f"; the triton backend {obstacle}"
    if query_BHSK.dtype == torch.bfloat16 and key_BGTK.shape[2] <= key_BGTK.shape[3]:
        reason = "rows of scores are no longer than rows of the output, so that dividing those later saves nothing"
        return Choice("reference", reason + otherwise)
    scores = query_BHSK.shape[2] * key_BGTK.shape[2]
    if scores <= SHORT and query_BHSK.dtype != torch.float16:
        reason = "the sequences are so short that computing scores twice costs more than keeping them"
        return Choice("deferred", reason + otherwise)
    return Choice("blocked", "memory does not grow with the product of the lengths" + otherwise)


def _must_be_plain() -> bool:
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _obstacle(backend: str, query_BHSK: Tensor, need_weights: bool) -> str | None:
    """Say why a backend cannot do it; None if it can."""
    if need_weights and backend != "reference":
        return "never forms the weights"
    if backend != "triton":
        return None
    if query_BHSK.shape[-1] > WIDEST:
        return f"takes heads up to {WIDEST} wide, got {query_BHSK.shape[-1]}"
    if not installed():
        return "needs triton, which is not installed: pip install 'sibert[triton]'"
    if interpreting():
        bfloat16 = query_BHSK.dtype == torch.bfloat16
        return "cannot multiply bfloat16 in triton's interpreter; use float32" if bfloat16 else None
    if query_BHSK.device.type != "cuda":
        return f"needs a CUDA device, got {query_BHSK.device} (or TRITON_INTERPRET=1, set before triton is imported)"
    if query_BHSK.dtype == torch.float64:
        return "computes in float32 at most on a GPU, got float64"
    if (found := capability(query_BHSK.device)) < (8, 0):
        return f"needs a GPU of compute capability 8.0 or more, got {found[0]}.{found[1]}"
    return None
