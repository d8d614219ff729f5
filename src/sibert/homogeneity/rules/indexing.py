"""Entries chosen by other tensors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..degree import Degree
from ..edge import Edge
from ..operation import Operation
from .reductions import EQUAL
from .registry import rule

LABELLED = "which entry is chosen depends on the data, so all need one degree"


def chosen(op: Operation, x: Edge, axis: int, index: Edge) -> Degree:
    """Entries of an axis at the indices of a tensor, whose axes take its place.

    Where the indices are no constants, each place has the degree of the first entry times a factor of its own, of which
    nothing is known: what treats each place alone may remove it, and nothing else does.
    """
    shape = (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
    if x.degree.varies(axis) and index.constant is not None:
        flat = (*x.shape[:axis], int(np.prod(index.shape)), *x.shape[axis + 1 :])
        places = index.constant.reshape(-1).numpy() % x.shape[axis]
        return x.degree.take(axis, places).reshape(flat, shape)
    first, differences = x.degree.spread(axis)
    degree = first.drop(axis)
    for _ in range(index.rank):
        degree = degree.insert(axis)
    if not differences:
        return degree
    along = {i + (i > axis) * (index.rank - 1) for i in range(x.rank) if i != axis and not x.degree.varies(i)}
    along |= {axis + i for i in index.constant_along}
    like = Edge(shape, x.dtype, degree, constant_along=frozenset(along))
    return degree + op.unknown_factor(like, differences, LABELLED)


@rule("embedding", reason="rows of a table")
def embedding(op: Operation, table: Edge, index: Edge, *_: Any, **__: Any) -> Edge:
    """The degrees of the rows."""
    return op.edge(chosen(op, table, 0, index), is_nonnegative=table.is_nonnegative)


@rule("embedding_bag", reason="sums, means or maxima of rows")
def embedding_bag(op: Operation, table: Edge, index: Edge, *_: Any, **__: Any) -> tuple[Edge, ...]:
    """One degree for all rows; weights of the rows may scale, too, with a sum."""
    weights = [edge for edge in _ if isinstance(edge, Edge) and edge.dtype.is_floating_point]
    degree = op.same_along(table.degree, [0], EQUAL)
    for edge in weights:
        degree = degree + Degree.uniform(op.same_along(edge.degree, range(edge.rank), EQUAL).form, 2)
    first = op.part(op.result[0], degree)
    return (first, *(op.part(tensor) for tensor in op.result[1:]))


@rule("index_select", reason="entries of an axis")
def index_select(op: Operation, x: Edge, dim: int, index: Edge) -> Edge:
    """Degrees go with their entries."""
    flat = Edge((op.shape[x.axis(dim)],), index.dtype, index.degree, index.values, constant=index.constant)
    return op.edge(chosen(op, x, x.axis(dim), flat), values=x.values, is_nonnegative=x.is_nonnegative)


@rule("gather", "take_along_dim", reason="entries of an axis, chosen for each place")
def gather(op: Operation, x: Edge, *arguments: Any, **__: Any) -> Edge:
    """One degree along the axis."""
    axes = [i for i in range(x.rank) if x.degree.varies(i)]
    degree = op.same_along(x.degree, axes, LABELLED)
    return op.edge(degree, values=x.values, is_nonnegative=x.is_nonnegative)


@rule("index", reason="entries at given places")
def index(op: Operation, x: Edge, places: Sequence[Edge | None]) -> Edge:
    """Degrees go with their entries; by several tensors at once, one degree for all."""
    used = [axis for axis, place in enumerate(places) if place is not None]
    if len(used) == 1 and _is_index(places[used[0]]) and not _is_truth(places[used[0]]):
        place = places[used[0]]
        assert place is not None
        degree = chosen(op, x, used[0], place)
    else:
        axes = [i for i in range(x.rank) if x.degree.varies(i)]
        degree = Degree.uniform(op.same_along(x.degree, axes, LABELLED).form, op.rank)
    return op.edge(degree, values=x.values, is_nonnegative=x.is_nonnegative)


def _is_index(place: Edge | None) -> bool:
    return place is not None


def _is_truth(place: Edge | None) -> bool:
    return place is not None and place.dtype == torch.bool


@rule("take", reason="entries at given places")
def take(op: Operation, x: Edge, place: Edge) -> Edge:
    """One degree for all."""
    degree = op.same_along(x.degree, range(x.rank), LABELLED)
    return op.edge(Degree.uniform(degree.form, op.rank), is_nonnegative=x.is_nonnegative)


@rule(
    *("index_put", "scatter", "scatter_add", "index_add", "index_copy", "index_fill"),
    *("scatter_reduce", "masked_scatter", "put"),
    reason="a tensor of which entries are replaced, or to which others are added",
)
def scatter(op: Operation, x: Edge, *arguments: Any, alpha: float = 1, reduce: str = "", **__: Any) -> Edge:
    """Equal degrees of old and new; what some entries are multiplied by may not scale."""
    name = op.place.operation
    position = {"index_put": 1, "_unsafe_index_put": 1, "masked_scatter": 1, "put": 1}.get(name, 2)
    new = arguments[position]
    if not isinstance(new, Edge):
        new = Edge.known(torch.tensor(new))
    if name == "scatter_reduce" and arguments[3] == "prod":
        op.zero(new.degree, "products of different numbers of entries")
    a, b = (op.same_along(edge.degree, range(edge.rank), EQUAL) for edge in (x, new))
    is_nonnegative = x.is_nonnegative and new.is_nonnegative and alpha >= 0
    if reduce == "multiply":
        op.zero(b, "some entries are multiplied by it, others not")
        return op.edge(a, is_nonnegative=is_nonnegative)
    edges = [
        Edge(op.shape, x.dtype, Degree.uniform(one.form, op.rank), edge.values) for one, edge in ((a, x), (b, new))
    ]
    degree = op.added(edges, "a tensor and what is put into it need equal degrees")
    return op.edge(degree, is_nonnegative=is_nonnegative)


@rule("searchsorted", "bucketize", reason="counts and places")
def counted(op: Operation, *arguments: Any, **__: Any) -> Any:
    """They do not scale, so neither may what they are found in."""
    for argument in arguments:
        if isinstance(argument, Edge):
            op.zero(argument.degree, "its result depends on values")
    return op.parts() if isinstance(op.result, tuple | list) else op.edge()


@rule("one_hot", reason="of whole numbers, which do not scale")
def one_hot(op: Operation, x: Edge, *_: Any) -> Edge:
    """Degree 0."""
    return op.edge(values=frozenset({0.0, 1.0}), is_nonnegative=True)
