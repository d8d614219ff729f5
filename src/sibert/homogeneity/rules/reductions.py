"""Operations that bring the entries along some axes together."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch

from ..degree import Degree
from ..edge import Edge
from ..operation import Operation
from .constants import epsilon_kind
from .registry import rule

Axes = int | Sequence[int] | None
EQUAL = "entries that are brought together need equal degrees"


def axes_of(x: Edge, axes: Axes) -> list[int]:
    """Axes counted from the front; all where none are named."""
    if axes is None or (isinstance(axes, Sequence) and not axes):
        return list(range(x.rank))
    return sorted({x.axis(axis) for axis in ([axes] if isinstance(axes, int) else axes)})


def reduce(op: Operation, x: Edge, axes: Axes, tensor: torch.Tensor | None = None) -> Degree:
    """The degree along other axes; the reduced axes are there still where the result has them (keepdim)."""
    reduced = axes_of(x, axes)
    degree = op.same_along(x.degree, reduced, EQUAL)
    if (op.result if tensor is None else tensor).ndim < x.rank:
        for axis in reversed(reduced):
            degree = degree.drop(axis)
    return degree


@rule("sum", "nansum", reason="linear")
def total(op: Operation, x: Edge, dim: Axes = None, *_: Any, **__: Any) -> Edge:
    """Keeps the degree."""
    zero = {"values": frozenset({0.0})} if x.is_zero else {}
    return op.edge(reduce(op, x, dim), is_nonnegative=x.is_nonnegative, **zero)


@rule("mean", "amax", "amin", reason="f(c x) = c f(x)")
def homogeneous_reduction(op: Operation, x: Edge, dim: Axes = None, *_: Any, **__: Any) -> Edge:
    """Keeps the degree."""
    return op.edge(reduce(op, x, dim), is_nonnegative=x.is_nonnegative)


@rule("aminmax", reason="two entries of x")
def both_extrema(op: Operation, x: Edge, *, dim: int | None = None, **__: Any) -> tuple[Edge, Edge]:
    """Both keep the degree."""
    degree = reduce(op, x, dim, op.result[0])
    return op.part(op.result[0], degree), op.part(op.result[1], degree)


@rule("max", "min", "median", "nanmedian", "mode", "kthvalue", reason="an entry of x, and where it is")
def selected_entry(op: Operation, x: Edge, *arguments: Any, **__: Any) -> Any:
    """The entry keeps its degree; its index has none."""
    if arguments and isinstance(arguments[0], Edge):
        return op.edge(op.added([x, arguments[0]], "a maximum or minimum needs equal degrees"))
    position = 1 if op.place.operation == "kthvalue" else 0
    axis = arguments[position] if len(arguments) > position else None
    if isinstance(op.result, torch.Tensor):
        return op.edge(reduce(op, x, None), is_nonnegative=x.is_nonnegative)
    return op.part(op.result[0], reduce(op, x, axis, op.result[0]), is_nonnegative=x.is_nonnegative), op.part(
        op.result[1]
    )


@rule("argmax", "argmin", "argsort", reason="order does not change")
def index_of_entry(op: Operation, x: Edge, dim: int | None = None, *_: Any, **__: Any) -> Edge:
    """An index has degree 0."""
    op.same_along(x.degree, axes_of(x, dim), EQUAL)
    return op.edge()


@rule("sort", "topk", reason="entries of x, and where they are")
def sort(op: Operation, x: Edge, *arguments: Any, **options: Any) -> Any:
    """Entries keep their degree; indices have none."""
    position = 1 if op.place.operation == "topk" else 0
    axis = options.get("dim", arguments[position] if len(arguments) > position else -1)
    degree = op.same_along(x.degree, [x.axis(axis)], EQUAL)
    return op.part(op.result[0], degree, is_nonnegative=x.is_nonnegative), op.part(op.result[1])


@rule("any", "all", reason="c x = 0 where x = 0")
def truth(op: Operation, x: Edge, *_: Any, **__: Any) -> Edge:
    """Truth values do not scale."""
    return op.edge()


@rule("prod", reason="a product of n entries of degree k has degree n k")
def product(op: Operation, x: Edge, dim: Axes = None, *_: Any, **__: Any) -> Edge:
    """Degrees of the entries add up."""
    axes = axes_of(x, dim)
    count = prod(x.shape[axis] for axis in axes)
    degree = op.same_along(x.degree, axes, "different degrees in a product are not added one by one here") * count
    if op.rank < x.rank:
        for axis in reversed(axes):
            degree = degree.drop(axis)
    return op.edge(degree, is_nonnegative=x.is_nonnegative)


@rule("var", "std", "var_mean", "std_mean", reason="var(c x) = c^2 var(x)")
def variance(op: Operation, x: Edge, dim: Axes = None, *_: Any, **__: Any) -> Any:
    """Twice the degree; the standard deviation keeps it."""
    power = 2 if "var" in op.place.operation else 1
    dim = None if isinstance(dim, bool) else dim
    if isinstance(op.result, torch.Tensor):
        return op.edge(reduce(op, x, dim) * power, is_nonnegative=True)
    degree = reduce(op, x, dim, op.result[0])
    return op.part(op.result[0], degree * power, is_nonnegative=True), op.part(op.result[1], degree)


@rule("linalg_vector_norm", reason="norm(c x) = c norm(x)")
def norm(op: Operation, x: Edge, order: Any = 2, dim: Axes = None, *_: Any, **__: Any) -> Edge:
    """Keeps the degree; the number of entries that are not 0 has none."""
    order = _number(order)
    degree = reduce(op, x, dim)
    return op.edge(degree * 0 if order == 0 else degree, is_nonnegative=True)


def _number(order: Any) -> Any:
    if isinstance(order, Edge):
        return None if order.values is None else next(iter(order.values))
    return order


@rule("cumsum", "cummax", "cummin", "diff", "logcumsumexp", "cumprod", reason="along an axis, entry by entry")
def cumulative(op: Operation, x: Edge, *arguments: Any, **__: Any) -> Any:
    """Sums and extrema keep the degree. In a product, it grows from entry to entry, so it has to be 0."""
    name = op.place.operation
    axis = x.axis(arguments[1 if name == "diff" else 0])
    if name in ("cumprod", "logcumsumexp"):
        why = "entry i has i times the degree" if name == "cumprod" else "log(sum(exp)) is not homogeneous"
        op.zero(x.degree, why)
        return op.edge(is_nonnegative=x.is_nonnegative and name == "cumprod")
    degree = op.same_along(x.degree, [axis], EQUAL)
    for joined in arguments[2:] if name == "diff" else ():  # what is put before and behind
        if joined is not None and not joined.has_any_degree:
            op.equal(degree, op.same_along(joined.degree, [axis], EQUAL), EQUAL)
    if isinstance(op.result, torch.Tensor):
        return op.edge(degree, is_nonnegative=x.is_nonnegative and name != "diff")
    return op.part(op.result[0], degree, is_nonnegative=x.is_nonnegative), op.part(op.result[1])


@rule("softmax", "log_softmax", reason="softmax(c x) is not softmax(x)")
def softmax(op: Operation, x: Edge, dim: int, *_: Any, **__: Any) -> Edge:
    """Degree 0, up to what is the same along the axis."""
    op.zero(x.degree, f"{op.place.operation.removeprefix('_')} is not homogeneous: its arguments may not scale")
    return op.edge(is_nonnegative="log" not in op.place.operation)


@rule("logsumexp", reason="log(sum(exp(c x))) is not homogeneous")
def logsumexp(op: Operation, x: Edge, *_: Any, **__: Any) -> Edge:
    """Degree 0."""
    op.zero(x.degree, "logsumexp is not homogeneous: its arguments may not scale")
    return op.edge()


# Pooling ---------------------------------------------------------------------------------------------------------

POOLS = [
    *(f"{kind}_pool{dim}d" for kind in ("max", "avg", "adaptive_avg") for dim in (1, 2, 3)),
    *(
        f"{name}_pool{dim}d{suffix}"
        for name, suffix in (("max", "_with_indices"), ("adaptive_max", ""))
        for dim in (2, 3)
    ),
]


@rule(*POOLS, reason="means and maxima: f(c x) = c f(x)")
def pool(op: Operation, x: Edge, *_: Any, **__: Any) -> Any:
    """Keeps the degree, which has to be the same over the pooled axes."""
    spatial = int(op.place.operation.split("pool")[1][0])
    degree = op.same_along(x.degree, range(x.rank - spatial, x.rank), EQUAL)
    if isinstance(op.result, torch.Tensor):
        return op.edge(degree, is_nonnegative=x.is_nonnegative)
    return op.part(op.result[0], degree, is_nonnegative=x.is_nonnegative), op.part(op.result[1])


@rule(
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact2d"),
    *("upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa"),
    reason="linear",
)
def upsample(op: Operation, x: Edge, *_: Any, **__: Any) -> Edge:
    """Keeps the degree, which has to be the same over the resized axes."""
    return op.edge(op.same_along(x.degree, range(2, x.rank), EQUAL))


@rule("grid_sampler_2d", "grid_sampler_3d", reason="linear in the image")
def sample(op: Operation, x: Edge, grid: Edge, *_: Any) -> Edge:
    """Keeps the degree; the places may not scale."""
    op.zero(grid.degree, "places in an image may not scale")
    return op.edge(op.same_along(x.degree, range(2, x.rank), EQUAL))


@rule("_fft_r2c", "_fft_c2c", "_fft_c2r", reason="linear")
def fourier_transform(op: Operation, x: Edge, dim: Sequence[int], *_: Any) -> Edge:
    """Keeps the degree, which has to be the same along the transformed axes."""
    return op.edge(op.same_along(x.degree, axes_of(x, dim), EQUAL))


@rule("cosine_similarity", reason="a cosine does not depend on lengths")
def cosine_similarity(op: Operation, x: Edge, y: Edge, dim: int = 1, eps: float = 1e-8) -> Edge:
    """Degree 0, up to its epsilon."""
    for one in (x, y):
        degree = op.same_along(one.degree, [one.axis(dim)], EQUAL)
        if eps > 0:
            op.zero(degree, f"norms below {eps:g} are replaced by it", epsilon_kind(eps), eps)
    return op.edge()


@rule("pairwise_distance", "cdist", "dist", reason="norm(c x - c y) = c norm(x - y)")
def distance(op: Operation, x: Edge, y: Edge, order: float = 2, eps: float | None = None, *_: Any) -> Edge:
    """Equal degrees, which are kept but for order 0, which counts; `pairwise_distance` adds an epsilon to x - y."""
    a = op.same_along(x.degree, range(x.rank), EQUAL)
    b = op.same_along(y.degree, range(y.rank), EQUAL)
    op.equal(Degree.uniform(a.form, 0), Degree.uniform(b.form, 0), "a distance needs equal degrees")
    if op.place.operation == "pairwise_distance" and eps:
        op.zero(a, f"{eps:g} is added to the difference", epsilon_kind(abs(eps)), eps)
    degree = Degree.uniform(a.form, op.rank)
    return op.edge(degree * 0 if order == 0 else degree, is_nonnegative=True)
