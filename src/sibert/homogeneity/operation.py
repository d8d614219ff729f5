"""An operation while its rule is applied, and the equations that rules impose."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx

from .degree import Degree
from .edge import Edge
from .graph import Place
from .linear_form import ZERO, LinearForm

MOST_FACTORS = 1 << 16
"""Unknown factors of one operation."""


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
        entry: Indices of the entry that it belongs to; None along axes along which it is the same.
    """

    forms: frozenset[LinearForm]
    place: Place
    reason: str
    condition: str = ""
    otherwise: LinearForm = ZERO
    entry: tuple[int | None, ...] = ()


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

        Each has a variable of its own, for later operations may compare any entries. Where these would be too many,
        the forms have to vanish.
        """
        several = list(forms)
        forms = frozenset(part for form in several for part in self._enough(form) if part)
        if not forms:
            return Degree.uniform(ZERO, like.rank)
        varying = [size > 1 and axis not in like.constant_along for axis, size in enumerate(like.shape)]
        values = np.empty([n if one else 1 for n, one in zip(like.shape, varying, strict=True)], dtype=object)
        if values.size > MOST_FACTORS:
            self.equations += [Equation(form, Kind.RULE, self.place, reason) for form in forms]
            return Degree.uniform(ZERO, like.rank)
        if len(several) > 1:
            condition = ""
        for index in np.ndindex(values.shape):
            number = -1 - len(self.factors)
            entry = tuple(i if one else None for i, one in zip(index, varying, strict=True))
            self.factors[number] = Factor(forms, self.place, reason, condition, several[0], entry)
            values[index] = LinearForm.variable(number)
        labels = [np.arange(n) if one else None for n, one in zip(like.shape, varying, strict=True)]
        return Degree(values, tuple(labels))

    def _enough(self, form: LinearForm) -> Iterable[LinearForm]:
        """Forms in the exponents of parameters: where these vanish, the form does."""
        yield LinearForm({v: q for v, q in form.coefficients.items() if v >= 0})
        for v in form.coefficients:
            if v < 0:
                yield from self.factors[v].forms

    def decided(self, edge: Edge, condition: str, is_true: bool) -> Edge:
        """What is known of the entries at which a condition has a value: factors that it decides about.

        These are the entries' own factors. Others' have come there by moving entries about.
        """
        if condition not in edge.decided_by:
            return edge
        forms = edge.degree.forms.copy()
        places = [_single_indices(label, n) for label, n in zip(edge.degree.labels, edge.shape, strict=True)]
        for index, form in np.ndenumerate(edge.degree.forms):
            entry = [own[i] for own, i in zip(places, index, strict=True)]
            for v, q in form.coefficients.items():
                if v < 0 and (factor := self.factors[v]).condition == condition and _is_at(factor.entry, entry):
                    forms[index] += (ZERO if is_true else factor.otherwise) * q - LinearForm({v: q})
        return replace(edge, degree=Degree.simplest(forms, edge.degree.labels))

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

    def added(self, edges: Sequence[Edge], reason: str, is_sum: bool = False) -> Degree:
        """The degree of a sum, maximum or choice: that of all parts that matter, which has to be one.

        Args:
            edges: The parts.
            reason: Why their degrees have to be equal.
            is_sum: The parts are added, so shifts that nobody notices do not matter.
        """
        carrying = [edge for edge in edges if not edge.has_any_degree and not (is_sum and self.ignores(edge))]
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


def _single_indices(label: NDArray[np.int64] | None, size: int) -> list[int | None]:
    """For each class of the indices of an axis, the index that it consists of; None for those of several."""
    if label is None:
        return [0 if size == 1 else None]
    _, first, counts = np.unique(label, return_index=True, return_counts=True)
    return [int(i) if n == 1 else None for i, n in zip(first, counts, strict=True)]


def _is_at(own: Sequence[int | None], entry: Sequence[int | None]) -> bool:
    """A factor belongs to all entries of some classes of indices."""
    return all(a is None or a == b for a, b in zip(own, entry, strict=True))


def uniform(rank: int) -> Degree:
    """Degree 0."""
    return Degree.uniform(ZERO, rank)
