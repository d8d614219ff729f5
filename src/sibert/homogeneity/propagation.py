"""From a graph to the equations that its operations impose on the scaling exponents."""

import itertools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx

from .degree import Degree
from .edge import Edge
from .graph import Graph, Place, operation_name, place
from .linear_form import LinearForm
from .operation import Equation, Factor, Kind, Operation
from .rules import RULES, Rule
from .shifts import ignored_shifts
from .slices import Division

LARGEST_CONSTANT = 1 << 22
"""Entries of a constant that is computed."""
MOST_COMBINATIONS = 64
RANDOM = {f"aten.{name}" for name in ("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial")}
LOOKUPS = {f"aten.{name}" for name in ("embedding", "index", "index_select")}
"""Two that take the same entries of the same tensor are one: what is not known of their indices is the same."""
INDIFFERENT = {"dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking", "generator"}
"""Arguments that are given by name and that no degree depends on."""
OF_WHOLE_NUMBERS = {f"aten.{name}" for name in ("neg", "add", "sub", "rsub", "mul", "div", "floor_divide", "ldexp")}
"""They map whole numbers that change with a rescaling to such."""
MUTE = {"_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_constrain_range", "sym_size", "sym_numel"}


@dataclass(frozen=True)
class Variable:
    """An unknown: the exponent of a parameter or of a part of one.

    Attributes:
        name: As it is reported; `layer.weight`, or `layer.weight[3]` for a part.
        parameter: To which it belongs.
    """

    name: str
    parameter: str


@dataclass(frozen=True)
class System:
    """Equations that are enough for a rescaling to leave the outputs unchanged.

    Attributes:
        variables: The unknowns.
        equations: From inside the graph.
        outputs: Degrees of the outputs, by path.
        conditions: That the outputs do not scale.
        factors: Unknown positive factors, by their variables.
        unsupported: Operations without a rule.
        unused: Variables of parameters from which no output depends.
        labels: For each divided parameter the axis and the part of each index.
    """

    variables: tuple[Variable, ...]
    equations: tuple[Equation, ...]
    outputs: Mapping[str, Degree]
    conditions: tuple[Equation, ...]
    factors: Mapping[int, Factor]
    unsupported: tuple[Place, ...]
    unused: frozenset[int]
    labels: Mapping[str, tuple[int, np.ndarray[Any, np.dtype[np.int64]]]]


def propagate(graph: Graph, division: Division) -> System:
    """Degrees of all tensors of a graph, and what the operations impose on them.

    Args:
        graph: Of a module.
        division: Parameters of which parts have exponents of their own.
    """
    parameters, variables, labels = _unknowns(graph, division)
    equations: list[Equation] = []
    unsupported: dict[Place, None] = {}
    ignored = ignored_shifts(graph.nodes, graph.outputs)
    edges: dict[fx.Node, Any] = {}
    factors: dict[int, Factor] = {}
    used: set[str] = set()
    first = _first_of_equals(graph.nodes)
    for node in graph.nodes:
        if node.op == "placeholder":
            edges[node] = _placeholder(node, graph, parameters, used)
        elif first[node] is not node and operation_name(node.target) in LOOKUPS:
            edges[node] = edges[first[node]]
        elif node.op == "call_function":
            operation = Operation(node, place(node), equations, factors, ignored[node])
            edges[node] = _called(operation, edges, unsupported)
    unused = frozenset(i for i, variable in enumerate(variables) if variable.parameter not in used)
    outputs = {path: edges[node].degree for path, node in graph.outputs.items()}
    conditions = [
        Equation(form, Kind.RULE, Place("", "output", "", 0), f"the output {path} scales")
        for path, degree in outputs.items()
        for form in dict.fromkeys(degree.forms.flat)
        if form
    ]
    resolved, required = (tuple(without_factors(some, factors)) for some in (equations, conditions))
    return System(tuple(variables), resolved, outputs, required, factors, tuple(unsupported), unused, labels)


def without_factors(equations: Iterable[Equation], factors: Mapping[int, Factor]) -> list[Equation]:
    """Equations in the exponents of parameters alone: unknown factors that occur in one have to be 1."""
    found: dict[Equation, None] = {}
    waiting = list(equations)[::-1]
    while waiting:
        equation = waiting.pop()
        own = LinearForm({v: q for v, q in equation.form.coefficients.items() if v >= 0})
        if own:
            found[replace(equation, form=own)] = None
        for v in equation.form.coefficients:
            if v < 0:
                factor = factors[v]
                waiting += [Equation(form, equation.kind, factor.place, factor.reason) for form in factor.forms]
    return list(found)


def _first_of_equals(nodes: Iterable[fx.Node]) -> dict[fx.Node, fx.Node]:
    """For each node the first that computes the same: by the same operation from the same, and not at random."""
    first: dict[fx.Node, fx.Node] = {}
    seen: dict[Any, fx.Node] = {}
    for node in nodes:
        first[node] = node
        name = operation_name(node.target) if node.op == "call_function" else ""
        is_random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) or "empty" in name
        if node.target is operator.getitem or (name.startswith("aten.") and not is_random):
            arguments = fx.node.map_arg((node.args, dict(node.kwargs)), first.__getitem__)
            first[node] = seen.setdefault((node.target, repr(arguments)), node)
    return first


def _unknowns(graph: Graph, division: Division) -> tuple[dict[str, Degree], list[Variable], dict[str, Any]]:
    variables: list[Variable] = []
    degrees: dict[str, Degree] = {}
    labels: dict[str, Any] = {}
    for name, shape in graph.shapes.items():
        first = len(variables)
        if name not in division:
            variables.append(Variable(name, name))
            degrees[name] = Degree.uniform(LinearForm.variable(first), len(shape))
            continue
        parts, names = division[name].labels(name, shape)
        variables += [Variable(part, name) for part in names]
        axis = division[name].axis % len(shape)
        forms = np.empty([len(names) if i == axis else 1 for i in range(len(shape))], dtype=object)
        forms.reshape(-1)[:] = [LinearForm.variable(first + i) for i in range(len(names))]
        several = len(names) > 1
        degrees[name] = Degree(forms, tuple(parts if i == axis and several else None for i in range(len(shape))))
        labels[name] = axis, parts
    return degrees, variables, labels


def _placeholder(node: fx.Node, graph: Graph, parameters: Mapping[str, Degree], used: set[str]) -> Any:
    value = node.meta["val"]
    if not isinstance(value, Tensor):
        return value
    if node.name in graph.parameters:
        name = graph.parameters[node.name]
        used.add(name)
        return Edge.of(value, parameters[name])
    constant = graph.constants.get(node.name)
    if constant is not None and constant.numel() <= LARGEST_CONSTANT and constant.device.type != "meta":
        return Edge.known(constant.detach().cpu())
    return Edge.of(value)


def _called(operation: Operation, edges: Mapping[fx.Node, Any], unsupported: dict[Place, None]) -> Any:
    node = operation.node
    name = operation_name(node.target)
    args = fx.node.map_arg(list(node.args), lambda n: edges[n])
    kwargs = fx.node.map_arg(dict(node.kwargs), lambda n: edges[n])
    if node.target is operator.getitem:
        return cast(Any, args[0])[args[1]]
    if name.removeprefix("aten.") in MUTE:
        return None
    folded = _folded(node, name, args, kwargs)
    if folded is not None:
        return folded
    changes = frozenset[LinearForm]().union(*(edge.changes for edge in tensors([args, kwargs])))
    if changes and name not in OF_WHOLE_NUMBERS:
        for form in changes:
            operation.zero(Degree.uniform(form, 0), "it gets whole numbers that change with the scale")
        changes = frozenset()
    edge = _applied(operation, name, args, kwargs, unsupported)
    return replace(edge, changes=changes) if changes and name != "aten.ldexp" else edge


def _applied(operation: Operation, name: str, args: Any, kwargs: Any, unsupported: dict[Place, None]) -> Any:
    node = operation.node
    arguments, options = _bound(node, args, kwargs)
    rule = RULES.get(name)
    if rule is None and not tensors([args, kwargs]) and isinstance(operation.result, Tensor):
        return operation.edge()  # made of nothing: a constant, too large to be computed here, or not initialised
    if rule is None:
        return _unknown(operation, [*arguments, *options.values()], unsupported)
    edge = rule.apply(operation, *arguments, **options)
    if rule.is_pointwise and isinstance(edge, Edge):
        inherited = [one.decided_by for one in tensors([args, kwargs]) if one.shape == edge.shape]
        edge = replace(edge, decided_by=edge.decided_by.union(*inherited))
    return _with_values(node, rule, _not_rounded(operation, edge), args, kwargs)


def _not_rounded(operation: Operation, edge: Any) -> Any:
    """Whole numbers and truth values cannot scale: a degree that one gets was rounded away (`sum(dtype=int64)`)."""
    if isinstance(edge, list | tuple):
        return tuple(_not_rounded(operation, one) for one in edge)
    if not isinstance(edge, Edge) or edge.dtype.is_floating_point or edge.dtype.is_complex:
        return edge
    operation.zero(edge.degree, "rounding to whole numbers is not homogeneous")
    return replace(edge, degree=edge.degree * 0)


def _bound(node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Arguments by position as far as the schema has them so; what may be given by name only stays named."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return list(args), dict(kwargs)
    positional, named = list(args), {name: value for name, value in kwargs.items() if name not in INDIFFERENT}
    for argument in [a for a in schema.arguments if not a.kwarg_only][len(args) :]:
        if argument.name in named:
            positional.append(named.pop(argument.name))
        elif argument.has_default_value():
            positional.append(argument.default_value)
    return positional, named


def tensors(value: Any) -> list[Edge]:
    """All edges among arguments."""
    if isinstance(value, Edge):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [edge for item in value for edge in tensors(item)] if isinstance(value, list | tuple) else []


def _unknown(operation: Operation, arguments: Any, unsupported: dict[Place, None]) -> Any:
    """A function of which nothing is known: what does not scale goes in, what does not scale comes out."""
    unsupported[operation.place] = None
    for edge in tensors(arguments):
        operation.zero(edge.degree, f"there is no rule for {operation.place.operation}", Kind.UNKNOWN)
    if isinstance(operation.result, Tensor):
        return operation.edge()
    return operation.parts() if isinstance(operation.result, list | tuple) else operation.result


# Constants -------------------------------------------------------------------------------------------------------


def _folded(node: fx.Node, name: str, args: Any, kwargs: Any) -> Edge | None:
    """The result of an operation on constants, computed."""
    given = tensors([args, kwargs])
    value = node.meta.get("val")
    if name in RANDOM or "like" in name or "empty" in name or not isinstance(value, Tensor):
        return None
    if value.numel() > LARGEST_CONSTANT or any(edge.constant is None for edge in given):
        return None
    return Edge.known(_computed(node.target, args, kwargs, lambda edge: edge.constant))


def _computed(target: Any, args: Any, kwargs: Any, value: Callable[[Edge], Any]) -> Tensor:
    def real(argument: Any) -> Any:
        if isinstance(argument, Edge):
            return value(argument)
        if isinstance(argument, torch.device):
            return torch.device("cpu")
        if isinstance(argument, list | tuple):
            return type(argument)(real(item) for item in argument)
        return argument

    with torch.no_grad():
        result = target(*real(list(args)), **{key: real(item) for key, item in kwargs.items()})
    assert isinstance(result, Tensor)
    return result


def _with_values(node: fx.Node, rule: Rule, edge: Any, args: Any, kwargs: Any) -> Any:
    """A few possible values of the arguments of an operation entry by entry give a few of its result."""
    given = tensors([args, kwargs])
    if not rule.is_pointwise or not isinstance(edge, Edge) or edge.values is not None or not given:
        return edge
    if "like" in rule.operation:
        given = given[:0]
    if any(one.values is None for one in given):
        return edge
    choices = [sorted(one.values or ()) for one in given]
    if np.prod([len(choice) for choice in choices]) > MOST_COMBINATIONS:
        return edge
    found: set[float] = set()
    for combination in itertools.product(*choices):
        values = {id(one): torch.tensor(v).to(one.dtype) for one, v in zip(given, combination, strict=True)}
        result = _computed(node.target, args, kwargs, lambda one: values.get(id(one), torch.zeros(())))  # noqa: B023
        found.update(float(number) for number in result.reshape(-1))
    if len(found) > 8:
        return edge
    return replace(edge, values=frozenset(found), is_nonnegative=edge.is_nonnegative or min(found) >= 0)
