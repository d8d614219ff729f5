"""Cross-entropy of a linear decoder that never holds all logits.

The logits of P positions over V tokens, their softmax and its gradient are three tensors [P, V], for large batches the
largest of a step. The loss is a sum over positions, and so are the gradients of the decoder: both are computed for a
few positions at a time, in the forward pass, so that each chunk of logits is made once.

Shape suffixes: P = positions, D = width, V = vocabulary.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from sibert.models.masked_lm_loss import IGNORED

__all__ = ["chunked_cross_entropy", "chunks_pay"]

LOGITS = 1 << 22
"""Logits that are held at a time: 16 MiB of float32."""

LOGITS_ON_DEVICE = 1 << 26
"""The same where large products are needed to be fast."""

FEWEST_CHUNKS = 8
"""Chunks from which on the loss is faster by chunks (`benchmarks/chunked_loss.py`)."""


def chunks_pay(positions: int, vocabulary: int, device: torch.device) -> bool:
    """Say whether the loss of so many positions is better computed by chunks: for large batches and vocabularies.

    Args:
        positions: Number of positions that are predicted.
        vocabulary: Number of tokens.
        device: Of the decoder.

    Returns:
        False while compiling, too: the compiler would unroll the chunks.
    """
    return not torch.compiler.is_compiling() and positions * vocabulary >= FEWEST_CHUNKS * _logits(device)


def _logits(device: torch.device) -> int:
    return LOGITS if device.type == "cpu" else LOGITS_ON_DEVICE


def chunked_cross_entropy(
    hidden_PD: Tensor, weight_VD: Tensor, bias_V: Tensor, labels_P: Tensor, chunk: int | None = None
) -> Tensor:
    """Sum over positions of the cross-entropy of hidden @ weight^T + bias.

    The gradient of logit v at a position is softmax_v - 1[v is the label], times the gradient of the sum. First
    derivatives only. In half precision the gradient of the matrix is summed over chunks in that precision: 8 chunks of
    bfloat16 round it by 0.4 %, 128 by 1.3 %.

    Args:
        hidden_PD: What the decoder reads; in half precision the logits are, too, and the softmax is taken in float32.
        weight_VD: Matrix of the decoder.
        bias_V: Its bias.
        labels_P: Tokens, `IGNORED` where there is no target.
        chunk: Positions at a time; default: as many as make 16 MiB of float32 on the CPU, 256 MiB elsewhere.

    Returns:
        A scalar, nats.
    """
    if torch.is_autocast_enabled(hidden_PD.device.type):
        dtype = torch.get_autocast_dtype(hidden_PD.device.type)
        hidden_PD, weight_VD, bias_V = hidden_PD.to(dtype), weight_VD.to(dtype), bias_V.to(dtype)
    chunk = chunk or max(1, _logits(hidden_PD.device) // len(weight_VD))
    # Inside of the function autograd is off always, and would not tell whether somebody will ask for gradients.
    wanted = torch.is_grad_enabled() and any(factor.requires_grad for factor in (hidden_PD, weight_VD, bias_V))
    total = _ChunkedLoss.apply(hidden_PD, weight_VD, bias_V, labels_P, chunk, wanted)  # type: ignore[no-untyped-call]
    return cast(Tensor, total)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_PD: Tensor, weight_VD: Tensor, bias_V: Tensor, labels_P: Tensor, chunk: int, wanted: bool
    ) -> Tensor:
        wide = torch.promote_types(hidden_PD.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=hidden_PD.device)
        grad_hidden_PD = torch.zeros_like(hidden_PD) if wanted else None
        grad_weight_VD = torch.zeros_like(weight_VD) if wanted else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=wide) if wanted else None
        with torch.autocast(hidden_PD.device.type, enabled=False):
            for first in range(0, len(hidden_PD), chunk):
                part = slice(first, first + chunk)
                hidden_CD, labels_C = hidden_PD[part], labels_P[part]
                log_softmax_CV = F.log_softmax(F.linear(hidden_CD, weight_VD, bias_V).to(wide), dim=-1)
                total += F.nll_loss(log_softmax_CV, labels_C, ignore_index=IGNORED, reduction="sum")
                if grad_hidden_PD is None or grad_weight_VD is None or grad_bias_V is None:
                    continue
                target_C = labels_C != IGNORED
                grad_CV = log_softmax_CV.exp_()
                # Selected by multiplication: softmax is finite, or the loss is not and everything is lost anyhow.
                grad_CV.scatter_add_(1, labels_C.where(target_C, 0)[:, None], -torch.ones_like(grad_CV[:, :1]))
                grad_CV *= target_C[:, None]
                grad_bias_V += grad_CV.sum(dim=0)
                narrow_CV = grad_CV.to(hidden_CD.dtype)
                grad_hidden_PD[part] = narrow_CV @ weight_VD
                grad_weight_VD.addmm_(narrow_CV.t(), hidden_CD)
        if grad_hidden_PD is not None and grad_weight_VD is not None and grad_bias_V is not None:
            ctx.save_for_backward(grad_hidden_PD, grad_weight_VD, grad_bias_V.to(bias_V.dtype))
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        of_hidden_PD, of_weight_VD, of_bias_V = ctx.saved_tensors
        return (
            of_hidden_PD * grad.to(of_hidden_PD.dtype),
            of_weight_VD * grad.to(of_weight_VD.dtype),
            of_bias_V * grad.to(of_bias_V.dtype),
            None,
            None,
            None,
        )
