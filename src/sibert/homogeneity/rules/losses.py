"""Losses that are one operation."""

from typing import Any

import torch

from ..degree import Degree
from ..edge import Edge
from ..operation import Operation
from .reductions import EQUAL
from .registry import rule


def _one_form(op: Operation, x: Edge) -> Degree:
    return Degree.uniform(op.same_along(x.degree, range(x.rank), EQUAL).form, op.rank)


@rule("cross_entropy_loss", reason="log_softmax(c x) is not log_softmax(x)")
def cross_entropy(
    op: Operation, x: Edge, target: Edge, weight: Edge | None = None, reduction: int = 1, *_: Any
) -> Edge:
    """Logits may not scale; it is linear in probabilities and in weights of classes, whose sum a mean is divided by."""
    op.zero(x.degree, "cross entropy goes through a softmax, which is not homogeneous: logits may not scale")
    degree = _one_form(op, target)
    if weight is None:
        return op.edge(degree)
    own = _one_form(op, weight)
    is_mean_over_classes = reduction == 1 and not target.dtype.is_floating_point
    return op.edge(degree if is_mean_over_classes else degree + own)


@rule("nll_loss_nd", reason="an entry of x, with minus")
def negative_log_likelihood(op: Operation, x: Edge, target: Edge, weight: Edge | None = None, *_: Any) -> Any:
    """Linear."""
    if weight is not None:
        op.zero(weight.degree, "weights of classes may not scale")
    form = op.same_along(x.degree, range(x.rank), EQUAL).form
    if isinstance(op.result, torch.Tensor):
        return op.edge(Degree.uniform(form, op.rank))
    return op.part(op.result[0], Degree.uniform(form, op.result[0].ndim)), op.part(op.result[1])


@rule("mse_loss", "l1_loss", reason="(c x - c y)^2 = c^2 (x - y)^2")
def difference_loss(op: Operation, x: Edge, target: Edge, *_: Any) -> Edge:
    """Equal degrees, doubled by a square."""
    op.equal(x.degree, target.degree, "prediction and target need equal degrees")
    power = 2 if op.place.operation == "mse_loss" else 1
    return op.edge(_one_form(op, x) * power, is_nonnegative=True)


@rule(
    *("smooth_l1_loss", "huber_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits", "kl_div"),
    *("soft_margin_loss",),
    reason="no power of its arguments",
)
def inhomogeneous_loss(op: Operation, *arguments: Any, **__: Any) -> Any:
    """No argument may scale."""
    for argument in arguments:
        if isinstance(argument, Edge):
            op.zero(argument.degree, f"{op.place.operation} is not homogeneous")
    return op.edge() if isinstance(op.result, torch.Tensor) else op.parts()
