"""Operations that move entries about, or choose among them by position."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..degree import Degree, concatenate, matching_axes
from ..edge import Edge
from ..operation import Operation
from .reductions import EQUAL
from .registry import rule


def moved(op: Operation, x: Edge, degree: Degree, along: frozenset[int] = frozenset()) -> Edge:
    """The same entries elsewhere."""
    ones = {axis for axis, size in enumerate(op.shape) if size == 1}
    return op.edge(degree, values=x.values, is_nonnegative=x.is_nonnegative, constant_along=along | ones)


@rule("view", "_unsafe_view", reason="the same entries")
def reshape(op: Operation, x: Edge, *_: Any) -> Edge:
    """Degrees go with their entries."""
    along: set[int] = set()
    for old, new in matching_axes(x.shape, op.shape):
        if all(axis in x.constant_along or x.shape[axis] == 1 for axis in old):
            along.update(new)
    return moved(op, x, x.degree.reshape(x.shape, op.shape), frozenset(along))


def permuted(op: Operation, x: Edge, order: Sequence[int]) -> Edge:
    """Axes in another order."""
    along = frozenset(new for new, old in enumerate(order) if old in x.constant_along)
    return moved(op, x, x.degree.permute(order), along)


@rule("permute", reason="the same entries")
def permute(op: Operation, x: Edge, order: Sequence[int]) -> Edge:
    """Degrees go with their axes."""
    return permuted(op, x, [x.axis(axis) for axis in order])


@rule("transpose", reason="the same entries")
def transpose(op: Operation, x: Edge, first: int, second: int) -> Edge:
    """Degrees go with their axes."""
    order = list(range(x.rank))
    if x.rank:
        a, b = x.axis(first), x.axis(second)
        order[a], order[b] = order[b], order[a]
    return permuted(op, x, order)


@rule("t", reason="the same entries")
def matrix_transpose(op: Operation, x: Edge) -> Edge:
    """Degrees go with their axes."""
    order = list(range(x.rank))
    if x.rank > 1:
        order[-2:] = order[:-3:-1]
    return permuted(op, x, order)


@rule("unsqueeze", reason="the same entries")
def unsqueeze(op: Operation, x: Edge, dim: int) -> Edge:
    """A new axis of length 1."""
    axis = dim % (x.rank + 1)
    along = frozenset(old + (old >= axis) for old in x.constant_along)
    return moved(op, x, x.degree.insert(axis), along)


@rule("squeeze", reason="the same entries")
def squeeze(op: Operation, x: Edge, *_: Any) -> Edge:
    """Axes of length 1 go away."""
    along: set[int] = set()
    for old, new in matching_axes(x.shape, op.shape):
        if all(axis in x.constant_along or x.shape[axis] == 1 for axis in old):
            along.update(new)
    return moved(op, x, x.degree.reshape(x.shape, op.shape), frozenset(along))


@rule("expand", reason="copies of entries")
def expand(op: Operation, x: Edge, *_: Any, **__: Any) -> Edge:
    """Degrees of the entries that are copied."""
    return moved(op, x, x.degree.lift(op.rank), x.constant_axes_in(op.shape))


@rule("repeat", reason="copies of entries")
def repeat(op: Operation, x: Edge, repeats: Sequence[int]) -> Edge:
    """Degrees of the entries that are copied."""
    degree = x.degree.lift(op.rank)
    front = op.rank - x.rank
    for axis, size in enumerate(x.shape, start=front):
        degree = degree.take(axis, np.arange(op.shape[axis]) % size)
    along = frozenset(range(front)) | frozenset(axis + front for axis in x.constant_along)
    return moved(op, x, degree, along)


@rule("repeat_interleave", reason="copies of entries")
def repeat_interleave(op: Operation, x: Edge, repeats: Any, dim: int | None = None, *_: Any, **__: Any) -> Edge:
    """Degrees of the entries that are copied."""
    if isinstance(repeats, int) and dim is not None:
        axis = x.axis(dim)
        return moved(op, x, x.degree.take(axis, np.arange(op.shape[axis]) // repeats), x.constant_along)
    op.same_along(x.degree, range(x.rank), EQUAL)
    return moved(op, x, op.same_along(x.degree, range(x.rank), EQUAL).map(lambda form: form))


# Parts -----------------------------------------------------------------------------------------------------------


def positions(x: Edge, axis: int, start: Any, end: Any, step: int = 1) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The indices of a slice."""
    return np.arange(x.shape[axis])[slice(start, end, step)]


@rule("slice", reason="some of the entries")
def slice_(op: Operation, x: Edge, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Edge:
    """Degrees go with their entries."""
    axis = x.axis(dim)
    return moved(op, x, x.degree.take(axis, positions(x, axis, start, end, step)), x.constant_along)


@rule("select", reason="some of the entries")
def select(op: Operation, x: Edge, dim: int, index: int) -> Edge:
    """Degrees go with their entries."""
    axis = x.axis(dim)
    along = frozenset(old - (old > axis) for old in x.constant_along if old != axis)
    return moved(op, x, x.degree.select(axis, index % x.shape[axis]), along)


@rule(
    *(
        "split",
        "split_with_sizes",
    ),
    reason="parts of a tensor",
)
def split(op: Operation, x: Edge, sizes: Any, dim: int = 0) -> tuple[Edge, ...]:
    """Degrees go with their entries."""
    axis, start, parts = x.axis(dim), 0, []
    for tensor in op.result:
        size = tensor.shape[axis]
        degree = x.degree.take(axis, np.arange(start, start + size))
        parts.append(op.part(tensor, degree, values=x.values, is_nonnegative=x.is_nonnegative))
        start += size
    return tuple(parts)


@rule("unbind", reason="parts of a tensor")
def unbind(op: Operation, x: Edge, dim: int = 0) -> tuple[Edge, ...]:
    """Degrees go with their entries."""
    axis = x.axis(dim)
    return tuple(
        op.part(tensor, x.degree.select(axis, i), values=x.values, is_nonnegative=x.is_nonnegative)
        for i, tensor in enumerate(op.result)
    )


@rule("diagonal", "tril", "triu", reason="some of the entries, others 0")
def triangle(op: Operation, x: Edge, *arguments: int) -> Edge:
    """A triangle keeps the degrees of its entries; a diagonal needs one degree for all."""
    if op.place.operation == "diagonal":
        axes = [x.axis(a) for a in (arguments[1:3] or (0, 1))]
        degree = op.same_along(x.degree, axes, "a diagonal of a tensor whose degrees differ")
        for axis in sorted(axes, reverse=True):
            degree = degree.drop(axis)
        return op.edge(degree.insert(degree.rank), is_nonnegative=x.is_nonnegative)
    return op.edge(x.degree, is_nonnegative=x.is_nonnegative)


@rule("view_as_real", "view_as_complex", reason="the same numbers")
def of_complex_numbers(op: Operation, x: Edge) -> Edge:
    """The degree of the number."""
    degree = x.degree
    if op.place.operation == "view_as_real":
        degree = degree.insert(degree.rank)
    elif op.place.operation == "view_as_complex":
        degree = op.same_along(degree, [degree.rank - 1], EQUAL).drop(degree.rank - 1)
    return op.edge(degree)


@rule("unfold", "im2col", "col2im", "pixel_shuffle", "pixel_unshuffle", reason="the same entries, or sums of them")
def rearranged(op: Operation, x: Edge, *_: Any, **__: Any) -> Edge:
    """One degree for all entries."""
    degree = op.same_along(x.degree, range(x.rank), EQUAL)
    return op.edge(Degree.uniform(degree.form, op.rank), is_nonnegative=x.is_nonnegative)


# Composition -----------------------------------------------------------------------------------------------------


def joined(op: Operation, edges: Sequence[Edge], axis: int) -> Edge:
    """Tensors one after another; zeros take the degree of their neighbours."""
    carrying = [edge for edge in edges if not edge.has_any_degree and edge.shape[axis]]
    degrees = []
    for edge in edges:
        donor = edge
        if edge.has_any_degree and carrying and carrying[0].degree.rank == edge.rank:
            donor = carrying[0]
        degree = donor.degree
        if donor is not edge and not all(label is None for label in degree.labels):
            degree = edge.degree
        degrees.append(degree)
    values: frozenset[float] | None = frozenset()
    for edge in edges:
        values = None if values is None or edge.values is None else values | edge.values
    along = frozenset.intersection(*(edge.constant_along for edge in edges)) - {axis}
    return op.edge(
        concatenate(degrees, [edge.shape[axis] for edge in edges], axis),
        values=values,
        is_nonnegative=all(edge.is_nonnegative for edge in edges),
        constant_along=along,
    )


@rule("cat", reason="tensors one after another, each of its own degree")
def cat(op: Operation, tensors: Sequence[Edge], dim: int = 0) -> Edge:
    """Degrees go with their entries."""
    tensors = [edge for edge in tensors if edge.rank == op.rank]
    return joined(op, tensors, tensors[0].axis(dim))


@rule("stack", reason="tensors beside each other, each of its own degree")
def stack(op: Operation, tensors: Sequence[Edge], dim: int = 0) -> Edge:
    """Degrees go with their entries."""
    axis = dim % op.rank
    raised = [
        Edge(
            (*edge.shape[:axis], 1, *edge.shape[axis:]),
            edge.dtype,
            edge.degree.insert(axis),
            edge.values,
            edge.is_nonnegative,
        )
        for edge in tensors
    ]
    return joined(op, raised, axis)


@rule("flip", reason="the same entries")
def flip(op: Operation, x: Edge, dims: Sequence[int]) -> Edge:
    """Degrees go with their entries."""
    degree = x.degree
    for axis in map(x.axis, dims):
        degree = degree.take(axis, np.arange(x.shape[axis])[::-1])
    return moved(op, x, degree, x.constant_along)


@rule("roll", reason="the same entries")
def roll(op: Operation, x: Edge, shifts: int | Sequence[int], dims: int | Sequence[int] = ()) -> Edge:
    """Degrees go with their entries."""
    axes = [dims] if isinstance(dims, int) else dims
    if not axes:
        degree = op.same_along(x.degree, range(x.rank), EQUAL)
        return moved(op, x, degree, x.constant_along)
    degree = x.degree
    for shift, axis in zip([shifts] if isinstance(shifts, int) else shifts, map(x.axis, axes), strict=True):
        degree = degree.take(axis, np.roll(np.arange(x.shape[axis]), shift))
    return moved(op, x, degree, x.constant_along)


@rule(
    *("pad",),
    reason="0, or copies of entries, around a tensor",
)
def pad(op: Operation, x: Edge, amounts: Sequence[int], *arguments: Any) -> Edge:
    """Padding by 0 keeps the degree; by another number it may not scale."""
    value = next((a for a in arguments if isinstance(a, int | float)), 0.0)
    mode = next((a for a in arguments if isinstance(a, str)), "constant")
    axes = [x.rank - 1 - i for i in range(len(amounts) // 2)]
    padded = [axis for axis, pair in zip(axes, zip(amounts[::2], amounts[1::2], strict=True), strict=True) if any(pair)]
    degree = op.same_along(x.degree, padded, "padding along an axis of different degrees")
    if value and mode == "constant" and padded:
        op.zero(degree, f"padding by {value:g} does not scale")
    return op.edge(degree, is_nonnegative=x.is_nonnegative and value >= 0)


@rule("select_scatter", "slice_scatter", reason="a tensor of which a part is replaced")
def replaced(op: Operation, x: Edge, part: Edge, *_: Any) -> Edge:
    """Equal degrees of old and new."""
    if op.place.operation == "select_scatter":
        axis = _[0] % x.rank
        part = Edge((*part.shape[:axis], 1, *part.shape[axis:]), part.dtype, part.degree.insert(axis), part.values)
    labelled = [axis for axis in range(x.rank) if part.degree.varies(axis) or x.degree.varies(axis)]
    a, b = (op.same_along(edge.degree, labelled, EQUAL) for edge in (x, part))
    edges = [Edge(x.shape, x.dtype, a, x.values), Edge(x.shape, x.dtype, b, part.values)]
    return op.edge(op.added(edges, "a tensor and what replaces a part of it need equal degrees"))


@rule("fill", "copy", reason="another tensor in the place of one")
def overwritten(op: Operation, x: Edge, value: Any, *_: Any) -> Edge:
    """Nothing is left of the old."""
    edge = value if isinstance(value, Edge) else Edge.known(torch.tensor(value))
    return op.edge(edge.degree, values=edge.values, is_nonnegative=edge.is_nonnegative)


@rule("meshgrid", "broadcast_tensors", reason="copies of entries")
def broadcast(op: Operation, tensors: Sequence[Edge], *_: Any, **__: Any) -> tuple[Edge, ...]:
    """Degrees of the entries that are copied; one for each tensor."""
    degrees = [op.same_along(edge.degree, range(edge.rank), EQUAL).form for edge in tensors]
    return tuple(op.part(t, Degree.uniform(f, t.ndim)) for t, f in zip(op.result, degrees, strict=True))
