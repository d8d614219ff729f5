"""Products that are summed over shared axes: linear layers, attention, convolutions."""

from collections.abc import Sequence
from string import ascii_letters
from typing import Any

from ..degree import Degree, combine
from ..edge import Edge
from ..linear_form import LinearForm
from ..operation import Kind, Operation, uniform
from .registry import rule

SUMMED = "entries that are summed need equal degrees"
BIAS = "a bias needs the degree of what it is added to"


def contract(op: Operation, x: Degree, axes_x: str, y: Degree, axes_y: str, axes: str) -> Degree:
    """The degree of an einsum of two tensors, each axis named by a letter."""
    letters = axes + "".join(sorted((set(axes_x) | set(axes_y)) - set(axes)))
    product = combine(_laid_out(x, axes_x, letters), _laid_out(y, axes_y, letters), LinearForm.__add__)
    return summed(op, product, len(axes))


def _laid_out(degree: Degree, own: str, letters: str) -> Degree:
    assert degree.rank == len(own)
    degree = degree.permute([own.index(letter) for letter in letters if letter in own])
    for position, letter in enumerate(letters):
        if letter not in own:
            degree = degree.insert(position)
    return degree


def summed(op: Operation, degree: Degree, rank: int) -> Degree:
    """Axes from `rank` on are summed over."""
    degree = op.same_along(degree, range(rank, degree.rank), SUMMED)
    for axis in reversed(range(rank, degree.rank)):
        degree = degree.drop(axis)
    return degree


def with_bias(op: Operation, degree: Degree, bias: Edge | None, like: Edge, **facts: Any) -> Edge:
    """A product to which a bias is added."""
    if bias is None:
        return op.edge(degree, **facts)
    product = Edge(op.shape, like.dtype, degree, facts.get("values"))
    return op.edge(op.added([product, bias], BIAS, is_sum=True))


def zero_if(*edges: Edge) -> dict[str, Any]:
    """A product with zeros is zero."""
    return {"values": frozenset({0.0})} if any(edge.is_zero for edge in edges) else {}


@rule("linear", reason="W (c x) = c W x, and (c W) x = c W x")
def linear(op: Operation, x: Edge, weight: Edge, bias: Edge | None = None) -> Edge:
    """Degrees of input and matrix add up; a bias has to have their sum."""
    batch = ascii_letters[: x.rank - 1]
    degree = contract(op, x.degree, batch + "y", weight.degree, "zy"[-weight.rank :], batch + "z" * (weight.rank - 1))
    along = frozenset(axis for axis in x.constant_along if axis < x.rank - 1)
    edge = with_bias(op, degree, bias, x, **zero_if(x, weight))
    return op.part(op.result, edge.degree, values=edge.values, constant_along=along)


@rule("mm", "bmm", "matmul", "mv", "dot", "inner", reason="(c^k A) (c^l B) = c^(k+l) A B")
def matmul(op: Operation, x: Edge, y: Edge, *_: Any) -> Edge:
    """Degrees add up."""
    batch = ascii_letters[: max(x.rank, y.rank, 2) - 2]
    axes_x = batch[len(batch) - max(x.rank - 2, 0) :] + ("xy" if x.rank > 1 else "y")
    axes_y = batch[len(batch) - max(y.rank - 2, 0) :] + ("yz" if y.rank > 1 else "y")
    axes = batch + ("x" if x.rank > 1 else "") + ("z" if y.rank > 1 else "")
    return op.edge(contract(op, x.degree, axes_x, y.degree, axes_y, axes), **zero_if(x, y))


@rule("outer", reason="(c^k x) (c^l y)^T = c^(k+l) x y^T")
def outer(op: Operation, x: Edge, y: Edge) -> Edge:
    """Degrees add up."""
    return op.edge(contract(op, x.degree, "x", y.degree, "y", "xy"), **zero_if(x, y))


@rule("addmm", "baddbmm", "addbmm", "addmv", reason="a sum of a tensor and a product")
def addmm(op: Operation, x: Edge, a: Edge, b: Edge, beta: float = 1, alpha: float = 1) -> Edge:
    """The product has the degree of what it is added to."""
    batch = "a" if a.rank == 3 else ""
    axes = ("" if op.place.operation == "addbmm" else batch) + ("xz" if b.rank > 1 else "x")
    degree = contract(op, a.degree, batch + "xy", b.degree, batch + ("yz" if b.rank > 1 else "y"), axes)
    product = Edge(op.shape, a.dtype, degree, zero_if(a, b).get("values"))
    return op.edge(op.added([product] if beta == 0 else [product, x], BIAS, is_sum=True))


@rule("einsum", reason="a sum of products")
def einsum(op: Operation, equation: str, tensors: Sequence[Edge], path: Any = None) -> Edge:
    """Degrees add up; they have to be the same along what is summed."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    unused = "".join(letter for letter in ascii_letters if letter not in equation)
    dots = unused[: max(edge.rank - len(term.replace("...", "")) for edge, term in zip(tensors, terms, strict=True))]
    terms = [
        term.replace("...", dots[len(dots) - (edge.rank - len(term.replace("...", ""))) :])
        for edge, term in zip(tensors, terms, strict=True)
    ]
    if not arrow:
        joined = "".join(terms)
        right = dots + "".join(sorted(c for c in set(joined) if joined.count(c) == 1 and c not in dots))
    out = right.replace("...", dots)
    letters = out + "".join(sorted(set("".join(terms)) - set(out)))
    degree = uniform(len(letters))
    for edge, term in zip(tensors, terms, strict=True):
        own, axes = edge.degree, term
        for letter in sorted({c for c in term if term.count(c) > 1}):
            own, axes = _diagonal(op, own, axes, letter)
        degree = combine(degree, _laid_out(own, axes, letters), LinearForm.__add__)
    return op.edge(summed(op, degree, len(out)), **zero_if(*tensors))


def _diagonal(op: Operation, degree: Degree, axes: str, letter: str) -> tuple[Degree, str]:
    """A repeated axis: its degree has to be the same along all but the first."""
    first = axes.index(letter)
    repeated = [i for i, c in enumerate(axes) if c == letter and i != first]
    degree = op.same_along(degree, repeated, "a diagonal of a tensor whose degree differs along both axes")
    for axis in reversed(repeated):
        degree = degree.drop(axis)
    return degree, "".join(c for i, c in enumerate(axes) if i not in repeated)


@rule("bilinear", reason="x^T W y, linear in each")
def bilinear(op: Operation, x: Edge, y: Edge, weight: Edge, bias: Edge | None = None) -> Edge:
    """Degrees add up."""
    batch = ascii_letters[: x.rank - 1]
    half = contract(op, x.degree, batch + "x", weight.degree, "zxy", batch + "zy")
    return with_bias(op, contract(op, half, batch + "zy", y.degree, batch + "y", batch + "z"), bias, x)


# Attention -------------------------------------------------------------------------------------------------------


@rule("scaled_dot_product_attention", reason="softmax(q k^T + mask) v: scores of degree 0, values of any")
def attention(
    op: Operation, q: Edge, k: Edge, v: Edge, mask: Edge | None = None, dropout: float = 0.0, *_: Any, **__: Any
) -> Edge:
    """Queries and keys have opposite degrees; the result has that of the values."""
    why = "attention goes through a softmax, which is not homogeneous: its scores may not scale"
    head = -3 if q.rank > 3 else None
    degrees = [edge.degree for edge in (q, k, v)]
    if head is not None and len({edge.shape[head] for edge in (q, k, v)}) > 1:
        degrees = [op.same_along(degree, [degree.rank + head], "grouped heads") for degree in degrees]
    batch = ascii_letters[: q.rank - 2]
    scores = contract(op, degrees[0], batch + "qd", degrees[1], batch + "kd", batch + "qk")
    op.zero(scores, why)
    if mask is not None and mask.dtype.is_floating_point and not mask.has_any_degree:
        kind = Kind.SATURATION if mask.saturates else Kind.RULE
        op.equal(scores, mask.degree, "a mask that is added to scores needs their degree", kind)
    weights = Degree.uniform(uniform(0).form, q.rank)
    return op.edge(contract(op, weights, batch + "qk", degrees[2], batch + "kd", batch + "qd"))


# Convolutions ----------------------------------------------------------------------------------------------------


def convolve(op: Operation, x: Edge, weight: Edge, bias: Edge | None, groups: int, transposed: bool) -> Edge:
    """Channels of a group are summed over, and so are the entries of the kernel; positions are not told apart."""
    is_batched = x.rank == weight.rank
    degree = x.degree if is_batched else x.degree.insert(0)
    degree = op.same_along(degree, range(2, degree.rank), SUMMED)
    kernel = op.same_along(weight.degree, range(2, weight.rank), SUMMED)
    for axis in reversed(range(2, weight.rank)):
        degree, kernel = degree.drop(axis), kernel.drop(axis)
    batch, channels = (x.shape[0] if is_batched else 1), x.shape[1 if is_batched else 0]
    degree = degree.reshape((batch, channels), (batch, groups, channels // groups))
    rows, columns = weight.shape[:2]
    kernel = kernel.reshape((rows, columns), (groups, rows // groups, columns))
    result = contract(op, degree, "ngi", kernel, "gio" if transposed else "goi", "ngo")
    out = columns * groups if transposed else rows
    result = result.reshape((batch, groups, out // groups), (batch, out))
    for _ in range(weight.rank - 2):
        result = result.insert(result.rank)
    if not is_batched:
        result = op.same_along(result, [0], SUMMED).drop(0)
    if bias is None:
        return op.edge(result, **zero_if(x, weight))
    spread = bias.degree
    for _ in range(weight.rank - 2):
        spread = spread.insert(spread.rank)
    product = Edge(op.shape, x.dtype, result, zero_if(x, weight).get("values"))
    shape = (*bias.shape, *(1,) * (weight.rank - 2))
    return op.edge(op.added([product, Edge(shape, bias.dtype, spread, bias.values)], BIAS, is_sum=True))


@rule("conv1d", "conv2d", "conv3d", reason="linear in the input and in the kernel")
def convolution(
    op: Operation,
    x: Edge,
    weight: Edge,
    bias: Edge | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Edge:
    """Degrees of input and kernel add up; a bias has to have their sum."""
    return convolve(op, x, weight, bias, groups, False)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", reason="linear in the input and in the kernel")
def transposed_convolution(
    op: Operation,
    x: Edge,
    weight: Edge,
    bias: Edge | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Edge:
    """Degrees of input and kernel add up; a bias has to have their sum."""
    return convolve(op, x, weight, bias, groups, True)


@rule("convolution", reason="linear in the input and in the kernel")
def any_convolution(
    op: Operation,
    x: Edge,
    weight: Edge,
    bias: Edge | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    *_: Any,
) -> Edge:
    """Degrees of input and kernel add up; a bias has to have their sum."""
    return convolve(op, x, weight, bias, groups, transposed)
