"""Layers that divide by the size of what they get: degree 0, up to their epsilons."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from ..degree import Degree
from ..edge import Edge
from ..linear_form import ZERO
from ..operation import Operation
from .constants import epsilon_kind
from .contractions import BIAS
from .registry import rule

EQUAL = "entries that are normalised together need equal degrees"


def normalised(op: Operation, x: Edge, axes: Sequence[int], eps: float | None) -> Degree:
    """Degree 0 after division by a root of a mean square over some axes."""
    degree = op.same_along(x.degree, axes, EQUAL)
    value = torch.finfo(x.dtype).eps if eps is None else eps
    if value > 0 and not x.has_any_degree:
        op.zero(degree, f"the normalisation adds {value:g} to a variance that scales", epsilon_kind(value), value)
    return Degree.uniform(ZERO, x.rank)


def affine(op: Operation, degree: Degree, weight: Edge | None, bias: Edge | None, like: Edge) -> Degree:
    """Gain and bias, whose shapes broadcast to that of the result."""
    if weight is not None:
        degree = degree + weight.degree
    if bias is None:
        return degree
    product = Edge(like.shape, like.dtype, degree.lift(like.rank))
    return op.added([product, bias], BIAS, is_sum=True)


def along_channels(edge: Edge | None, rank: int) -> Edge | None:
    """A vector of channels, shaped to broadcast to (batch, channels, ...)."""
    if edge is None:
        return None
    degree = edge.degree
    for _ in range(rank - 2):
        degree = degree.insert(degree.rank)
    return Edge((*edge.shape, *(1,) * (rank - 2)), edge.dtype, degree, edge.values)


@rule("layer_norm", "native_layer_norm", reason="N(c x) = N(x) without epsilon, and N(x + s) = N(x)")
def layer_norm(
    op: Operation,
    x: Edge,
    shape: Sequence[int],
    weight: Edge | None = None,
    bias: Edge | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Any:
    """Degree 0, then that of gain and bias."""
    output = op.result if isinstance(op.result, torch.Tensor) else op.result[0]
    degree = normalised(op, x, range(x.rank - len(shape), x.rank), eps)
    edge = op.part(output, _affine(op, output, degree, weight, bias, x))
    if isinstance(op.result, torch.Tensor):
        return edge
    mean = op.same_along(x.degree, range(x.rank - len(shape), x.rank), EQUAL)
    return edge, op.part(op.result[1], mean), op.part(op.result[2], mean * -1)


def _affine(
    op: Operation, output: torch.Tensor, degree: Degree, weight: Edge | None, bias: Edge | None, x: Edge
) -> Degree:
    if isinstance(op.result, torch.Tensor) or bias is None:
        return affine(op, degree, weight, bias, x)
    scaled = affine(op, degree, weight, None, x)
    op.equal(scaled, bias.degree.lift(x.rank), BIAS)
    return scaled


@rule("rms_norm", reason="x / rms(x) does not scale without epsilon")
def rms_norm(op: Operation, x: Edge, shape: Sequence[int], weight: Edge | None = None, eps: float | None = None) -> Any:
    """Degree 0, then that of the gain."""
    degree = normalised(op, x, range(x.rank - len(shape), x.rank), eps)
    degree = affine(op, degree, weight, None, x)
    if isinstance(op.result, torch.Tensor):
        return op.edge(degree)
    size = op.same_along(x.degree, range(x.rank - len(shape), x.rank), EQUAL)
    return op.part(op.result[0], degree), op.part(op.result[1], size * -1)


@rule("group_norm", reason="N(c x) = N(x) for the channels of each group, without epsilon")
def group_norm(
    op: Operation,
    x: Edge,
    groups: int,
    weight: Edge | None = None,
    bias: Edge | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Edge:
    """Degree 0, then that of gain and bias."""
    split = (x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    grouped = Edge(split, x.dtype, x.degree.reshape(x.shape, split), x.values)
    normalised(op, grouped, range(2, len(split)), eps)
    degree = Degree.uniform(ZERO, x.rank)
    return op.edge(affine(op, degree, along_channels(weight, x.rank), along_channels(bias, x.rank), x))


def channel_norm(
    op: Operation, x: Edge, weight: Edge | None, bias: Edge | None, axes: Sequence[int], eps: float
) -> Degree:
    """Each channel by itself, with its own mean and variance of the data at hand."""
    degree = normalised(op, x, axes, eps)
    return affine_of_first(op, degree, along_channels(weight, x.rank), along_channels(bias, x.rank), x)


def affine_of_first(op: Operation, degree: Degree, weight: Edge | None, bias: Edge | None, x: Edge) -> Degree:
    """As `affine`, for operations whose first result is the tensor."""
    if isinstance(op.result, torch.Tensor):
        return affine(op, degree, weight, bias, x)
    scaled = affine(op, degree, weight, None, x)
    if bias is not None and not bias.has_any_degree:
        op.equal(scaled, bias.degree.lift(x.rank), BIAS)
    return scaled


def running(
    op: Operation, x: Edge, weight: Edge | None, bias: Edge | None, mean: Edge | None, variance: Edge | None
) -> Degree:
    """An affine map with the statistics of earlier data, which do not scale."""
    assert mean is not None
    assert variance is not None
    centred = Edge(x.shape, x.dtype, x.degree, x.values)
    op.zero(centred.degree, "the running mean and variance do not scale with what is normalised")
    return affine_of_first(
        op, Degree.uniform(ZERO, x.rank), along_channels(weight, x.rank), along_channels(bias, x.rank), x
    )


def batch_axes(x: Edge) -> list[int]:
    """All axes but that of the channels."""
    return [axis for axis in range(x.rank) if axis != 1]


@rule(
    *("_native_batch_norm_legit_functional", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"),
    reason="N(c x) = N(x) for each channel over the batch, without epsilon",
)
def native_batch_norm(op: Operation, x: Edge, weight: Edge | None, bias: Edge | None, *rest: Any) -> Any:
    """In training degree 0, then that of gain and bias; in evaluation an affine map."""
    if op.place.operation.endswith("no_training"):
        degree = running(op, x, weight, bias, rest[0], rest[1])
    else:
        *statistics, training, _, eps = rest
        if training or not statistics:
            degree = channel_norm(op, x, weight, bias, batch_axes(x), eps)
        else:
            degree = running(op, x, weight, bias, statistics[0], statistics[1])
    return _first(op, degree, x)


@rule("instance_norm", reason="N(c x) = N(x) for each channel of each example, without epsilon")
def instance_norm(
    op: Operation,
    x: Edge,
    weight: Edge | None,
    bias: Edge | None,
    mean: Edge | None,
    variance: Edge | None,
    uses_input: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> Edge:
    """With the statistics of the input degree 0, then that of gain and bias."""
    if uses_input:
        return op.edge(channel_norm(op, x, weight, bias, range(2, x.rank), eps))
    return op.edge(running(op, x, weight, bias, mean, variance))


def uses_statistic(user: fx.Node) -> bool:
    """A mean or variance beside the normalised tensor, which somebody uses."""
    return user.target is operator.getitem and bool(user.args[1] != 0) and bool(user.users)


def _first(op: Operation, degree: Degree, x: Edge) -> tuple[Edge, ...]:
    """Statistics beside the result do not lead to an output; where one does, it may not scale."""
    others = []
    for tensor in op.result[1:]:
        if any(uses_statistic(user) for user in op.node.users):
            op.zero(x.degree, "statistics of a batch are used beside the normalised result")
        others.append(op.part(tensor))
    return (op.part(op.result[0], degree), *others)
