"""The backends that autograd and the compiler see as one operation each: sibert::relu_attention_blocked and _triton.

Each is an operator of torch with a shape function and a gradient, so that torch.compile keeps one graph around it. The
gradient is an operator too. Where the gradient itself is differentiated, it is computed as that of the reference,
whose memory grows with S T.

Shape suffixes: B = batch, H = query heads, G = key and value heads, S = query positions, T = key positions, K = head
width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sibert.ops.relu_attention.blocked import blocked_backward, blocked_forward
from sibert.ops.relu_attention.reference import reference_relu_attention
from sibert.ops.relu_attention.spans import Spans

__all__ = ["blocked_relu_attention", "triton_relu_attention"]

Forward = Callable[..., tuple[Tensor, Tensor]]
Backward = Callable[..., tuple[Tensor, Tensor, Tensor]]


def _triton_forward(*inputs: Any) -> tuple[Tensor, Tensor]:
    # Kernels are defined when their module is loaded, and triton reads TRITON_INTERPRET then: not before it is needed.
    from sibert.ops.relu_attention.triton import triton_forward

    return triton_forward(*inputs)


def _triton_backward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    from sibert.ops.relu_attention.triton import triton_backward

    return triton_backward(*inputs)


def _operator(name: str, forward: Forward, backward: Backward) -> Forward:
    """Register forward and backward pass of a backend with torch."""

    @torch.library.custom_op(f"sibert::relu_attention_{name}", mutates_args=())
    def operator(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        lower: Tensor | None,
        upper: Tensor | None,
        seed: Tensor | None,
        dropout_p: float,
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(query.device.type, enabled=False):
            return forward(query, key, value, mask, lower, upper, seed, dropout_p)

    @torch.library.custom_op(f"sibert::relu_attention_{name}_backward", mutates_args=())
    def gradient(
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        total: Tensor,
        mask: Tensor | None,
        lower: Tensor | None,
        upper: Tensor | None,
        seed: Tensor | None,
        dropout_p: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(query.device.type, enabled=False):
            return backward(grad, query, key, value, out, total, mask, lower, upper, seed, dropout_p)

    operator.register_fake(_shapes)
    gradient.register_fake(_gradient_shapes)

    def differentiate(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 8
        query, key, value, out, total, mask, lower, upper, seed = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            of_inputs = _gradient_of_reference(grad, query, key, value, mask, lower, upper, seed, ctx.dropout_p)
        else:
            of_inputs = gradient(grad, query, key, value, out, total, mask, lower, upper, seed, ctx.dropout_p)
        return (*of_inputs, None, None, None, None, None)

    operator.register_autograd(differentiate, setup_context=_keep)
    return operator


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, mask, lower, upper, seed, ctx.dropout_p = inputs
    out, total = output
    ctx.mark_non_differentiable(total)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(query, key, value, out, total, mask, lower, upper, seed)


def _shapes(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    total_dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    out = query.new_empty(*query.shape[:3], value.shape[-1])
    return out, torch.empty(query.shape[:3], dtype=total_dtype, device=query.device)


def _gradient_shapes(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _gradient_of_reference(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    lower: Tensor | None,
    upper: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
) -> tuple[Tensor, ...]:
    inputs = [tensor.view_as(tensor) for tensor in (query, key, value)]  # three nodes, were they one tensor
    for tensor in inputs:
        if not tensor.requires_grad:
            tensor.requires_grad_()
    spans = None if lower is None or upper is None else Spans(lower, upper)
    query, key, value = inputs
    out, _ = reference_relu_attention(query, key, value, mask, spans=spans, dropout_p=dropout_p, seed=seed)
    return torch.autograd.grad(out, inputs, grad, create_graph=True)


blocked_relu_attention = _operator("blocked", blocked_forward, blocked_backward)
triton_relu_attention = _operator("triton", _triton_forward, _triton_backward)
