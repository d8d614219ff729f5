"""An operation while its rule is applied, and the equations that rules impose."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from torch import Tensor, fx

from .degree import Degree
from .edge import Edge
from .graph import Place
from .linear_form import ZERO, LinearForm


class Kind(StrEnum):
    """Why an equation holds.

    RULE: mathematics; EPSILON: it would not be needed if a small constant were 0; SATURATION: it would not be needed if
    a very negative constant were -inf; UNKNOWN: there is no rule for the operation, so nothing better is known.
    """

    RULE = "rule"
    EPSILON = "epsilon"
    SATURATION = "saturation"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Equation:
    """form = 0, imposed by an operation.

    Attributes:
        form: In the exponents of the parameters.
        kind: Why.
        place: Of the operation.
        reason: One clause.
        constant: The epsilon, where there is one.
    """

    form: LinearForm
    kind: Kind
    place: Place
    reason: str
    constant: float | None = None


@dataclass(frozen=True)
class Factor:
    """A positive factor of which nothing is known but when it is 1.

    A tensor that is multiplied by it in place of a power of c may still be normalised: N(t x) = N(x) for every t > 0.

    Attributes:
        forms: Where all of them vanish, the factor is 1.
        place: Of the operation that brings it in.
        reason: Why it does.
        condition: Node that decides about it: where that is true, the factor is 1.
        otherwise: The power of c that it is where the condition is false.
    """

    forms: frozenset[LinearForm]
    place: Place
    reason: str
    condition: str = ""
    otherwise: LinearForm = ZERO


@dataclass
class Operation:
    """What a rule sees of the operation that it is applied to.

    Attributes:
        node: Of the graph.
        place: Where it comes from.
        equations: All of the analysis; rules append to it.
        ignored: Sets of axes; what is constant along all axes of such a set may be added to the result and changes no
            output of the model.
        factors: Unknown positive factors of all of the analysis, by the (negative) numbers of their variables.
    """

    node: fx.Node
    place: Place
    equations: list[Equation]
    factors: dict[int, Factor]
    ignored: frozenset[frozenset[int]] = frozenset()

    # Equations -------------------------------------------------------------------------------------------------

    def zero(self, degree: Degree, reason: str, kind: Kind = Kind.RULE, constant: float | None = None) -> None:
        """All forms of a degree vanish."""
        forms = dict.fromkeys(form for form in degree.forms.flat if form)
        self.equations += [Equation(form, kind, self.place, reason, constant) for form in forms]

    def equal(self, a: Degree, b: Degree, reason: str, kind: Kind = Kind.RULE) -> None:
        """Two degrees are equal, entry by entry."""
        self.zero(a - b, reason, kind)

    def same_along(self, degree: Degree, axes: Sequence[int], reason: str) -> Degree:
        """A degree does not change along some axes."""
        for axis in axes:
            degree, differences = degree.spread(axis)
            self.equations += [Equation(form, Kind.RULE, self.place, reason) for form in dict.fromkeys(differences)]
        return degree

    def unknown_factor(self, like: Edge, forms: Iterable[LinearForm], reason: str, condition: str = "") -> Degree:
        """The degree of positive factors, one for each entry of a tensor, that are 1 where some forms vanish.

        Along each axis that the tensor varies along, one index stands for any, against the others.
        """
        several = list(forms)
        forms = frozenset(form for form in several if form)
        if not forms:
            return Degree.uniform(ZERO, like.rank)
        if len(several) > 1:
            condition = ""
        varying = [size > 1 and axis not in like.constant_along for axis, size in enumerate(like.shape)]
        values = np.empty([1 + one for one in varying], dtype=object)
        for position in range(values.size):
            number = -1 - len(self.factors)
            self.factors[number] = Factor(forms, self.place, reason, condition, several[0])
            values.reshape(-1)[position] = LinearForm.variable(number)
        labels = [np.minimum(np.arange(n), 1) if one else None for n, one in zip(like.shape, varying, strict=True)]
        return Degree(values, tuple(labels))

    def decided(self, edge: Edge, condition: str, is_true: bool) -> Edge:
        """What is known of the entries at which a condition has a value: factors that it decides about."""
        if condition not in edge.decided_by:
            return edge
        own = [v for v, factor in self.factors.items() if factor.condition == condition]

        def known(form: LinearForm) -> LinearForm:
            for v in own:
                if q := form.coefficients.get(v):
                    form += (ZERO if is_true else self.factors[v].otherwise) * q - LinearForm({v: q})
            return form

        return replace(edge, degree=edge.degree.map(known))

    # Results ---------------------------------------------------------------------------------------------------

    @property
    def result(self) -> Any:
        """Shape and type of what the operation gives: a fake tensor or several."""
        return self.node.meta["val"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result."""
        return tuple(self.result.shape)

    @property
    def rank(self) -> int:
        """Of the result."""
        return len(self.shape)

    def edge(self, degree: Degree | None = None, **facts: Any) -> Edge:
        """The result; of degree 0 where nothing else is said."""
        return self.part(self.result, degree, **facts)

    def part(self, tensor: Tensor, degree: Degree | None = None, **facts: Any) -> Edge:
        """One of several results."""
        edge = Edge.of(tensor, None if degree is None else degree.lift(tensor.ndim))
        return replace(edge, **facts) if facts else edge

    def parts(self, degree: Degree | None = None) -> tuple[Edge | None, ...]:
        """Several results of the same degree; integers among them have degree 0."""
        return tuple(
            self.part(tensor, degree if tensor.is_floating_point() else None) if isinstance(tensor, Tensor) else None
            for tensor in self.result
        )

    # Sums ------------------------------------------------------------------------------------------------------

    def ignores(self, edge: Edge) -> bool:
        """What the operation adds there changes no output."""
        along = edge.constant_axes_in(self.shape)
        return any(axes <= along for axes in self.ignored)

    def added(self, edges: Sequence[Edge], reason: str) -> Degree:
        """The degree of a sum, maximum or choice: that of all parts that matter, which has to be one."""
        carrying = [edge for edge in edges if not edge.has_any_degree and not self.ignores(edge)]
        exact = [edge for edge in carrying if not edge.saturates]
        if not exact:
            others = carrying or list(edges)
            return others[0].degree.lift(self.rank)
        degree = exact[0].degree.lift(self.rank)
        for edge in exact[1:]:
            self.equal(degree, edge.degree, reason)
        for edge in carrying:
            if edge.saturates:
                self.equal(degree, edge.degree, "a mask that stands for -inf is finite", Kind.SATURATION)
        return degree


def uniform(rank: int) -> Degree:
    """Degree 0."""
    return Degree.uniform(ZERO, rank)
