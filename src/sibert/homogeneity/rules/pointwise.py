"""Operations that act on each entry by itself."""

from collections.abc import Sequence
from fractions import Fraction
from math import inf, isfinite
from typing import Any

import numpy as np
import torch
from torch import fx

from ..edge import Edge
from ..operation import Kind, Operation, uniform
from .constants import LARGEST_EPSILON, no_mask
from .registry import put, rule

Operand = Edge | float | int | bool

POSITIVELY_HOMOGENEOUS = {
    "relu": "max(0, c x) = c max(0, x)",
    "leaky_relu": "linear on each side of 0",
    "rrelu_with_noise_functional": "linear on each side of 0, for each noise",
    "abs": "|c x| = c |x|",
    "neg": "linear",
    "clone": "a copy",
    "alias": "the same tensor",
    "detach": "the same tensor",
}
NONNEGATIVE = {"relu", "abs", "square", "sigmoid", "exp", "exp2", "softplus", "relu6", "hardsigmoid"}
INHOMOGENEOUS = {
    "gelu": "x Phi(x) is no power of x",
    "silu": "x sigmoid(x) is no power of x",
    "mish": "x tanh(softplus(x)) is no power of x",
    "sigmoid": "1 / (1 + exp(-x)) is no power of x",
    "hardsigmoid": "its corners are not at 0",
    "hardswish": "its corners are not at 0",
    "hardtanh": "its corners are not at 0",
    "relu6": "its corners are not at 0",
    "tanh": "no power of x",
    "softplus": "log(1 + exp(x)) is no power of x",
    "log_sigmoid": "log(1 + exp(-x)) is no power of x",
    "elu": "exp(x) - 1 for x < 0",
    "celu": "exp(x) - 1 for x < 0",
    "selu": "exp(x) - 1 for x < 0",
    "exp": "exp(c x) = exp(x)^c",
    "exp2": "2^(c x) = (2^x)^c",
    "expm1": "no power of x",
    "log": "log(c x) = log c + log x",
    "log2": "log(c x) = log c + log x",
    "log10": "log(c x) = log c + log x",
    "log1p": "no power of x",
    "logit": "no power of x",
    "sin": "no power of x",
    "cos": "no power of x",
    "tan": "no power of x",
    "sinh": "no power of x",
    "cosh": "no power of x",
    "asin": "no power of x",
    "acos": "no power of x",
    "atan": "no power of x",
    "asinh": "no power of x",
    "acosh": "no power of x",
    "atanh": "no power of x",
    "erf": "no power of x",
    "erfc": "no power of x",
    "erfinv": "no power of x",
    "lgamma": "no power of x",
    "digamma": "no power of x",
    "sinc": "no power of x",
    "floor": "its jumps are not at 0",
    "ceil": "its jumps are not at 0",
    "round": "its jumps are not at 0",
    "trunc": "its jumps are not at 0",
    "frac": "its jumps are not at 0",
}
ERASING = {
    "sign": "sign(c x) = sign(x)",
    "sgn": "sign(c x) = sign(x)",
    "isnan": "c x is not a number where x is not",
    "isinf": "c x is infinite where x is",
    "isfinite": "c x is finite where x is",
    "signbit": "sign(c x) = sign(x)",
    "logical_not": "c x = 0 where x = 0",
    "zeros_like": "a constant",
    "ones_like": "a constant",
    "full_like": "a constant",
    "empty_like": "a constant",
    "rand_like": "does not depend on x",
    "randn_like": "does not depend on x",
    "new_zeros": "a constant",
    "new_ones": "a constant",
    "new_full": "a constant",
    "new_empty": "a constant",
}


FILLED = {"zeros": 0.0, "ones": 1.0, "full": None}


def _keep(op: Operation, x: Edge, *_: Any, **__: Any) -> Any:
    if not isinstance(op.result, torch.Tensor):
        return op.part(op.result[0], x.degree), op.part(op.result[1])
    positive = op.place.operation in NONNEGATIVE or (x.is_nonnegative and op.place.operation != "neg")
    return op.edge(x.degree, is_nonnegative=positive, constant_along=x.constant_along)


def _needs_degree_0(op: Operation, x: Edge, *_: Any, **__: Any) -> Any:
    if not x.has_any_degree:
        op.zero(x.degree, f"{op.place.operation} is not homogeneous: {INHOMOGENEOUS[op.place.operation]}")
    if not isinstance(op.result, torch.Tensor):
        return op.parts()
    return op.edge(is_nonnegative=op.place.operation in NONNEGATIVE, constant_along=x.constant_along)


def _erase(op: Operation, x: Edge, *arguments: Any, **__: Any) -> Edge:
    kind = op.place.operation.removeprefix("new_").removesuffix("_like")
    if kind in ("rand", "randn", "empty"):  # entries of their own, also along an axis that x is expanded along
        return op.edge()
    if kind not in FILLED:
        return op.edge(constant_along=x.constant_along)
    value = FILLED[kind] if kind != "full" else arguments[-1]
    values = frozenset({float(value)}) if isinstance(value, int | float) else None
    return op.edge(values=values, is_nonnegative=values is not None and min(values) >= 0)


for name, why in POSITIVELY_HOMOGENEOUS.items():
    put([name], "pointwise", why, _keep, True)
for name, why in INHOMOGENEOUS.items():
    put([name], "pointwise", why, _needs_degree_0, True)
for name, why in ERASING.items():
    put([name], "pointwise", why, _erase, name in ("sign", "sgn", "logical_not"))


def operands(op: Operation, values: Sequence[Operand]) -> list[Edge]:
    """Numbers as edges."""
    return [value if isinstance(value, Edge) else Edge.known(torch.tensor(value)) for value in values]


def shared_axes(op: Operation, edges: Sequence[Edge]) -> frozenset[int]:
    """Axes along which the result of an operation entry by entry does not change."""
    return frozenset.intersection(*(edge.constant_axes_in(op.shape) for edge in edges))


@rule("nan_to_num", reason="the identity on finite numbers", is_pointwise=True)
def nan_to_num(
    op: Operation, x: Edge, nan: float | None = None, posinf: float | None = None, neginf: float | None = None
) -> Edge:
    """Zeros and the largest numbers are left alone by a rescaling, and other numbers are not."""
    largest = torch.finfo(op.result.dtype).max if op.result.is_floating_point() else inf
    given = [value for value in (nan, posinf, neginf) if value is not None]
    if strange := [value for value in given if value != 0 and abs(value) < largest]:
        if not x.has_any_degree:
            op.zero(x.degree, f"{strange[0]:g} takes the place of what is not finite and does not scale")
        return op.edge(constant_along=x.constant_along)
    positive = x.is_nonnegative and all(value >= 0 for value in (nan or 0.0, posinf or 0.0))
    degree = uniform(op.rank) if x.has_any_degree else x.degree
    return op.edge(degree, is_nonnegative=positive, constant_along=x.constant_along)


@rule("_to_copy", reason="conversion keeps the value of a number", is_pointwise=True)
def convert(op: Operation, x: Edge, *_: Any, **__: Any) -> Any:
    """A number stays what it is; whole numbers and truth values do not scale."""
    if not x.dtype.is_floating_point or op.result.is_floating_point() or op.result.is_complex():
        return _keep(op, x)
    if op.result.dtype != torch.bool:
        op.zero(x.degree, "rounding to whole numbers is not homogeneous")
    return op.edge(constant_along=x.constant_along)


@rule("add", "sub", "rsub", reason="c^k x + c^k y = c^k (x + y)", is_pointwise=True)
def add(op: Operation, x: Operand, y: Operand, alpha: float = 1) -> Edge:
    """Equal degrees; a small positive constant added to what is never negative is an epsilon.

    Negative numbers that are added to some entries alone, 0 to the others, are a mask.
    """
    name = op.place.operation
    edges = operands(op, (x, y))
    is_mask = [name != "rsub" and alpha == 1, name == "add" and alpha == 1]
    edges = [e if one and e.values and 0.0 in e.values else no_mask(e) for e, one in zip(edges, is_mask, strict=True)]
    is_sum = name == "add" and alpha > 0 and all(edge.is_nonnegative for edge in edges)
    along = shared_axes(op, edges)
    if is_sum and (few := [edge for edge in edges if _is_epsilon(edge)]) and len(few) == 1:
        other = next(edge for edge in edges if edge is not few[0])
        return op.edge(_epsilon(op, other, few[0]), is_nonnegative=True, constant_along=along)
    reason = "a sum needs equal degrees" if name == "add" else "a difference needs equal degrees"
    return op.edge(op.added(edges, reason, is_sum=True), is_nonnegative=is_sum, constant_along=along)


def _is_epsilon(edge: Edge) -> bool:
    return edge.values is not None and len(edge.values) == 1 and 0 < min(edge.values) <= LARGEST_EPSILON


def _epsilon(op: Operation, x: Edge, number: Edge) -> Any:
    assert number.values is not None
    if not x.has_any_degree:
        value = min(number.values)
        op.zero(x.degree, f"{value:g} is added to a quantity that scales", Kind.EPSILON, value)
    return x.degree


@rule("mul", reason="(c^k x) (c^l y) = c^(k+l) x y", is_pointwise=True)
def multiply(op: Operation, x: Operand, y: Operand) -> Edge:
    """Degrees add up."""
    a, b = operands(op, (x, y))
    degree = (a.degree + b.degree) if not (a.is_zero or b.is_zero) else uniform(op.rank)
    is_square = isinstance(x, Edge) and x is y
    values = frozenset({0.0}) if a.is_zero or b.is_zero else None
    return op.edge(
        degree,
        values=values,
        is_nonnegative=is_square or (a.is_nonnegative and b.is_nonnegative),
        constant_along=shared_axes(op, [a, b]),
    )


@rule("div", reason="(c^k x) / (c^l y) = c^(k-l) x / y", is_pointwise=True)
def divide(op: Operation, x: Operand, y: Operand, rounding_mode: str | None = None) -> Edge:
    """Degrees are subtracted; a rounded quotient needs equal ones."""
    a, b = operands(op, (x, y))
    along, positive = shared_axes(op, [a, b]), a.is_nonnegative and b.is_nonnegative
    if rounding_mode is not None:
        op.equal(a.degree, b.degree, "a quotient that is rounded needs equal degrees")
        return op.edge(constant_along=along, is_nonnegative=positive)
    return op.edge(a.degree - b.degree, is_nonnegative=positive, constant_along=along)


@rule("floor_divide", "atan2", reason="depends on x / y alone", is_pointwise=True)
def quotient(op: Operation, x: Operand, y: Operand, *_: Any) -> Edge:
    """Equal degrees, of which nothing is left."""
    a, b = operands(op, (x, y))
    op.equal(a.degree, b.degree, "it depends on the quotient, so the degrees have to be equal")
    return op.edge(constant_along=shared_axes(op, [a, b]))


@rule("remainder", "fmod", "hypot", reason="f(c x, c y) = c f(x, y)", is_pointwise=True)
def jointly_homogeneous(op: Operation, x: Operand, y: Operand) -> Edge:
    """Equal degrees, which are kept."""
    edges = operands(op, (x, y))
    return op.edge(op.added(edges, "its arguments need equal degrees"), constant_along=shared_axes(op, edges))


@rule("copysign", reason="the sign does not scale", is_pointwise=True)
def copysign(op: Operation, x: Operand, y: Operand) -> Edge:
    """The degree of the size."""
    a, b = operands(op, (x, y))
    return op.edge(a.degree, constant_along=shared_axes(op, [a, b]))


@rule("lerp", reason="x + w (y - x)", is_pointwise=True)
def lerp(op: Operation, x: Operand, y: Operand, weight: Operand) -> Edge:
    """Equal degrees of the ends, 0 of the weight."""
    a, b, w = operands(op, (x, y, weight))
    op.zero(w.degree, "w and 1 - w cannot both scale")
    return op.edge(op.added([a, b], "an interpolation needs equal degrees"))


@rule("addcmul", reason="x + value y z", is_pointwise=True)
def addcmul(op: Operation, x: Edge, y: Edge, z: Edge, value: float = 1) -> Edge:
    """The product has the degree of what it is added to."""
    product = Edge(op.shape, x.dtype, y.degree + z.degree)
    return op.edge(op.added([x, product], "a sum needs equal degrees", is_sum=True))


@rule("addcdiv", reason="x + value y / z", is_pointwise=True)
def addcdiv(op: Operation, x: Edge, y: Edge, z: Edge, value: float = 1) -> Edge:
    """The quotient has the degree of what it is added to."""
    product = Edge(op.shape, x.dtype, y.degree - z.degree)
    return op.edge(op.added([x, product], "a sum needs equal degrees", is_sum=True))


# Powers ----------------------------------------------------------------------------------------------------------

POWERS = {"sqrt": Fraction(1, 2), "rsqrt": Fraction(-1, 2), "reciprocal": Fraction(-1), "square": Fraction(2)}


def _power(op: Operation, x: Edge) -> Edge:
    exponent = POWERS[op.place.operation]
    positive = x.is_nonnegative or exponent == 2 or exponent.denominator == 2
    return op.edge(x.degree * exponent, is_nonnegative=positive, constant_along=x.constant_along)


for name, exponent in POWERS.items():
    put([name], "pointwise", f"(c x)^({exponent}) = c^({exponent}) x^({exponent})", _power, True)


@rule("pow", reason="(c x)^p = c^p x^p", is_pointwise=True)
def power(op: Operation, x: Operand, exponent: Operand) -> Edge:
    """A constant exponent multiplies the degree; otherwise neither may scale."""
    base, p = operands(op, (x, exponent))
    along = shared_axes(op, [base, p])
    if p.values is not None and len(p.values) == 1 and isfinite(min(p.values)):
        value = Fraction(next(iter(p.values))).limit_denominator(10**6)
        positive = base.is_nonnegative or (value.denominator == 1 and value.numerator % 2 == 0)
        return op.edge(base.degree * value, is_nonnegative=positive, constant_along=along)
    op.zero(base.degree, "powers with different exponents scale differently")
    op.zero(p.degree, "an exponent cannot scale")
    return op.edge(is_nonnegative=base.is_nonnegative, constant_along=along)


# Choices and comparisons -----------------------------------------------------------------------------------------


@rule("maximum", "minimum", "fmax", "fmin", reason="max(c x, c y) = c max(x, y)", is_pointwise=True)
def extremum(op: Operation, x: Operand, y: Operand) -> Edge:
    """Equal degrees; 0 has any."""
    a, b = edges = operands(op, (x, y))
    along = shared_axes(op, edges)
    is_maximum = "max" in op.place.operation
    for one, other in ((a, b), (b, a)):
        if is_maximum and _is_epsilon(one) and other.is_nonnegative:
            return op.edge(_epsilon(op, other, one), is_nonnegative=True, constant_along=along)
    some, every = any(e.is_nonnegative for e in edges), all(e.is_nonnegative for e in edges)
    degree = op.added(edges, "a maximum or minimum needs equal degrees")
    return op.edge(degree, is_nonnegative=some if is_maximum else every, constant_along=along)


@rule("clamp", "clamp_min", "clamp_max", reason="bounds at 0 scale with x", is_pointwise=True)
def clamp(op: Operation, x: Edge, low: Operand | None = None, high: Operand | None = None) -> Edge:
    """Bounds have the degree of what they bound; a positive lower bound of what is never negative is an epsilon."""
    if op.place.operation == "clamp_max":
        low, high = None, low
    bounds = operands(op, [bound for bound in (low, high) if bound is not None])
    is_nonnegative = x.is_nonnegative
    degree = x.degree
    for bound, is_low in zip(bounds, [low is not None, False], strict=False):
        if is_low and _is_epsilon(bound) and x.is_nonnegative:
            degree = _epsilon(op, x, bound)
        else:
            degree = op.added([x, bound], "a bound other than 0 does not scale")
        is_nonnegative = is_nonnegative or bound.is_nonnegative if is_low else is_nonnegative and bound.is_nonnegative
    return op.edge(degree, is_nonnegative=is_nonnegative, constant_along=shared_axes(op, [x, *bounds]))


@rule("threshold", reason="x where x > t, else v", is_pointwise=True)
def threshold(op: Operation, x: Edge, limit: float, value: float) -> Edge:
    """A threshold of 0 that gives 0 is ReLU."""
    op.added([x, *operands(op, (limit, value))], "a threshold other than 0 does not scale")
    return op.edge(x.degree, is_nonnegative=limit >= 0 and value >= 0)


@rule("prelu", reason="linear on each side of 0, with slopes 1 and w")
def prelu(op: Operation, x: Edge, weight: Edge) -> Edge:
    """The slope is compared with 1, so it may not scale."""
    op.zero(weight.degree, "the slope for x < 0 would change against that for x > 0, which is 1")
    return op.edge(x.degree)


@rule("glu", reason="x sigmoid(y), x and y the halves of an axis")
def glu(op: Operation, x: Edge, dim: int = -1) -> Edge:
    """The gate may not scale; the other half keeps its degree."""
    axis, half = x.axis(dim), x.shape[x.axis(dim)] // 2
    op.zero(x.degree.take(axis, np.arange(half, 2 * half)), "the gate goes through a sigmoid, which is not homogeneous")
    return op.edge(x.degree.take(axis, np.arange(half)))


@rule("where", reason="a choice between tensors of equal degree", is_pointwise=True)
def where(op: Operation, condition: Edge, x: Operand, y: Operand) -> Edge:
    """Equal degrees; 0 and infinity have any.

    Otherwise each entry is multiplied by one or the other power of c: a factor that is the same along the axes along
    which the condition does not change, and that a normalisation along those removes.
    """
    first = op.node.args[0]
    decides = first.name if isinstance(first, fx.Node) and op.place.operation == "where" else ""
    edges = [op.decided(e, decides, is_true) for e, is_true in zip(operands(op, (x, y)), (True, False), strict=True)]
    along = shared_axes(op, [condition, *edges])
    positive = all(edge.is_nonnegative for edge in edges)
    reason = "a choice between two tensors needs equal degrees"
    carrying = [edge for edge in edges if not edge.has_any_degree]
    if len(carrying) < 2 or any(edge.saturates for edge in carrying):
        return op.edge(op.added(edges, reason), is_nonnegative=positive, constant_along=along)
    difference = edges[1].degree - edges[0].degree
    spread = op.edge(constant_along=condition.constant_axes_in(op.shape))
    factor = op.unknown_factor(spread, difference.forms.flat, reason, decides)
    decided_by = frozenset({decides}) if decides and condition.shape == op.shape else frozenset[str]()
    degree = edges[0].degree + factor
    return op.edge(degree, is_nonnegative=positive, constant_along=along, decided_by=decided_by)


@rule("masked_fill", reason="a choice between a tensor and a number", is_pointwise=True)
def masked_fill(op: Operation, x: Edge, mask: Edge, value: Operand) -> Edge:
    """Equal degrees; 0 and infinity have any."""
    return cast_where(op, mask, value, x)


def cast_where(op: Operation, condition: Edge, x: Operand, y: Operand) -> Edge:
    """`where`, for other rules."""
    edge = where(op, condition, x, y)
    assert isinstance(edge, Edge)
    return edge


@rule("gt", "lt", "ge", "le", "eq", "ne", reason="c^k x > c^k y where x > y", is_pointwise=True)
def compare(op: Operation, x: Operand, y: Operand) -> Edge:
    """Equal degrees, of which nothing is left; everything may be compared with 0."""
    edges = operands(op, (x, y))
    op.added(edges, "a comparison needs equal degrees")
    return op.edge(constant_along=shared_axes(op, edges))


@rule(
    *("logical_and", "logical_or", "logical_xor"),
    reason="c x = 0 where x = 0",
    is_pointwise=True,
)
def logical(op: Operation, x: Operand, y: Operand) -> Edge:
    """Truth values do not scale."""
    return op.edge(constant_along=shared_axes(op, operands(op, (x, y))))


@rule(
    *(
        "bitwise_and",
        "bitwise_or",
        "bitwise_xor",
        "bitwise_not",
    ),
    reason="of whole numbers, which do not scale",
    is_pointwise=True,
)
def bitwise(op: Operation, *values: Operand) -> Edge:
    """Whole numbers do not scale."""
    return op.edge(constant_along=shared_axes(op, operands(op, values)))


# Powers of two ---------------------------------------------------------------------------------------------------


@rule("frexp", reason="x = m 2^e, |m| in [1/2, 1)")
def mantissa_and_exponent(op: Operation, x: Edge) -> tuple[Edge, Edge]:
    """The exponent changes with the scale of x, by whole numbers."""
    factor = op.unknown_factor(x, x.degree.forms.flat, "its exponent changes in steps")
    return (
        op.part(op.result[0], x.degree - factor),
        op.part(op.result[1], changes=frozenset(form for form in x.degree.forms.flat if form)),
    )


@rule("ldexp", reason="x 2^e")
def times_power_of_two(op: Operation, x: Edge, exponent: Edge) -> Edge:
    """A positive factor, which does not change where its exponent does not."""
    factor = op.unknown_factor(exponent, exponent.changes, "a power of two changes in steps")
    return op.edge(x.degree + factor, is_nonnegative=x.is_nonnegative)


# Randomness ------------------------------------------------------------------------------------------------------


@rule("native_dropout", reason="x times a random mask of its own")
def dropout(op: Operation, x: Edge, *_: Any) -> tuple[Edge, Edge]:
    """The mask does not depend on x."""
    return op.part(op.result[0], x.degree), op.part(op.result[1])


@rule("bernoulli", reason="draws from probabilities")
def draw(op: Operation, probabilities: Edge, *_: Any, **__: Any) -> Edge:
    """Probabilities may not scale."""
    op.zero(probabilities.degree, "probabilities cannot scale")
    return op.edge()


@rule("rand", "randn", "randint", "randperm", "normal", reason="does not depend on parameters")
def random(op: Operation, *arguments: Any, **__: Any) -> Edge:
    """Of degree 0."""
    for argument in arguments:
        if isinstance(argument, Edge):
            op.zero(argument.degree, "parameters of a distribution are not scaled through")
    return op.edge()
