"""The space of rescaling symmetries of a model, and questions about it."""

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from fractions import Fraction
from functools import cached_property
from math import gcd, lcm
from typing import TYPE_CHECKING, Any

from .graph import Place
from .linear_form import LinearForm, Vector, null_space, reduced, row_echelon
from .operation import Equation, Kind
from .propagation import System
from .remedies import remedy

if TYPE_CHECKING:
    from .confirmation import Confirmation

Names = str | Iterable[str]
APPROXIMATE = frozenset({Kind.EPSILON, Kind.SATURATION})


class Verdict(StrEnum):
    """What the graph says about a rescaling.

    EXACT: it changes no output. UP_TO_EPSILON: it would change none if epsilons were 0 (and masks that stand for -inf
    were). UNKNOWN: it meets operations without a rule. NOT_PROVED: the rules do not imply that it is a symmetry.
    """

    EXACT = "exact"
    UP_TO_EPSILON = "up to epsilon"
    UNKNOWN = "unknown"
    NOT_PROVED = "not proved"


@dataclass(frozen=True)
class Symmetry:
    """A rescaling w_p -> c^(a_p) w_p that changes no output, for every c > 0.

    Under gradient flow, sum_p a_p |w_p|^2 is conserved, for <grad L, (a_p w_p)_p> = 0.

    Attributes:
        exponents: a_p by name; parameters that are not named are left alone.
        verdict: EXACT or UP_TO_EPSILON.
    """

    exponents: Mapping[str, Fraction]
    verdict: Verdict

    @property
    def conserved(self) -> str:
        """The conserved quantity as a formula."""
        terms = [f"{'' if q == 1 else f'{q} '}|{name}|²" for name, q in self.exponents.items()]
        return " + ".join(terms).replace("+ -1 ", "- ").replace("+ -", "- ")

    def __str__(self) -> str:
        return ", ".join(f"{name}: {q}" for name, q in self.exponents.items())


@dataclass(frozen=True)
class Blocker:
    """An operation that forbids a rescaling.

    Attributes:
        place: Module, operation and line of source.
        kind: Whether mathematics, an epsilon, a mask or the lack of a rule forbids it.
        reason: Why.
        remedy: What to do about it.
    """

    place: Place
    kind: Kind
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


@dataclass(frozen=True)
class SymmetryReport:
    """All rescaling symmetries that the rules imply for a model.

    Attributes:
        system: Unknown exponents and the equations between them.
        modules: Parameters of each module, by the module's path; "" = the whole.
        confirmation: What computing with the model in float64 says of it; None = it was not asked.
    """

    system: System
    modules: Mapping[str, tuple[str, ...]]
    confirmation: "Confirmation | None" = field(default=None)

    # The space -------------------------------------------------------------------------------------------------

    @cached_property
    def equations(self) -> tuple[Equation, ...]:
        """Of the graph, and that outputs do not change."""
        return (*self.system.equations, *self.system.conditions)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the unknowns: parameters, and the parts of divided ones."""
        return tuple(variable.name for variable in self.system.variables)

    @property
    def unused(self) -> tuple[str, ...]:
        """Parameters on which no output depends."""
        return tuple(self.names[i] for i in sorted(self.system.unused))

    @property
    def unsupported(self) -> tuple[Place, ...]:
        """Operations without a rule. What goes through them counts as changed by every rescaling."""
        return self.system.unsupported

    def space(self, up_to_epsilon: bool = False) -> list[Vector]:
        """A basis of all symmetries of used parameters, in reduced row echelon form.

        Args:
            up_to_epsilon: With those that epsilons break.
        """
        forms = dict.fromkeys(e.form for e in self.equations if not (up_to_epsilon and e.kind in APPROXIMATE))
        used = [i for i in range(len(self.names)) if i not in self.system.unused]
        return null_space(forms, used)

    @cached_property
    def symmetries(self) -> tuple[Symmetry, ...]:
        """A basis: single parameters first, then modules, then what else there is, with smallest supports.

        Those that hold exactly come first; those up to epsilon complete them.
        """
        found: list[tuple[Vector, Verdict]] = []
        for up_to_epsilon, verdict in ((False, Verdict.EXACT), (True, Verdict.UP_TO_EPSILON)):
            space = self.space(up_to_epsilon)
            spanned = Span(vector for vector, _ in found)
            candidates = [*self._single(space), *self._of_modules(space), *smallest(space)]
            found += [(vector, verdict) for vector in candidates if spanned.extend(vector)]
        return tuple(Symmetry(self._named(vector), verdict) for vector, verdict in found)

    def _single(self, space: Sequence[Vector]) -> Iterator[Vector]:
        inside = Span(space)
        for i in range(len(self.names)):
            if i not in self.system.unused and {i: Fraction(1)} in inside:
                yield {i: Fraction(1)}

    def _of_modules(self, space: Sequence[Vector]) -> Iterator[Vector]:
        inside = Span(space)
        for path in sorted(self.modules, key=lambda path: (len(self.modules[path]), path)):
            vector = self._indicator(self.modules[path])
            if len(vector) > 1 and vector in inside:
                yield vector

    def _named(self, vector: Vector) -> dict[str, Fraction]:
        return {self.names[i]: q for i, q in sorted(vector.items())}

    def _indicator(self, parameters: Iterable[str]) -> Vector:
        chosen = set(parameters)
        return {
            i: Fraction(1)
            for i, variable in enumerate(self.system.variables)
            if i not in self.system.unused and (variable.name in chosen or variable.parameter in chosen)
        }

    # Questions -------------------------------------------------------------------------------------------------

    def select(self, names: Names) -> list[str]:
        """Parameters by name, by the path of a module that holds them, or by pattern.

        Raises:
            ValueError: A name matches nothing.
        """
        selected: dict[str, None] = {}
        for name in [names] if isinstance(names, str) else names:
            inside = self.modules.get(name.removesuffix(".*"), ())
            parts = [v.name for v in self.system.variables if v.name == name or v.parameter == name]
            parts = parts or [v.name for v in self.system.variables if v.parameter in inside]
            found = parts or [n for n in self.names if fnmatchcase(n, name)]
            if not found:
                raise ValueError(
                    f"{name!r} is no parameter, module or pattern that matches one; parameters are, for example, "
                    + ", ".join(self.names[:4])
                )
            selected |= dict.fromkeys(found)
        return list(selected)

    def verdict(self, names: Names | Mapping[str, Any]) -> Verdict:
        """What the graph says about scaling parameters together, or with given exponents.

        Args:
            names: As for `select`; or exponents by name.
        """
        kinds = {equation.kind for equation in self._violated(names)}
        if not kinds:
            return Verdict.EXACT
        if kinds <= APPROXIMATE:
            return Verdict.UP_TO_EPSILON
        return Verdict.UNKNOWN if Kind.RULE not in kinds else Verdict.NOT_PROVED

    def is_scale_invariant(self, names: Names, *, up_to_epsilon: bool = False) -> bool:
        """Whether multiplying all these parameters by the same c > 0 is proved to change no output.

        Args:
            names: As for `select`.
            up_to_epsilon: Count epsilons as 0.
        """
        accepted = {Verdict.EXACT, Verdict.UP_TO_EPSILON} if up_to_epsilon else {Verdict.EXACT}
        return self.verdict(names) in accepted

    def blockers(self, names: Names | Mapping[str, Any], *, up_to_epsilon: bool = False) -> list[Blocker]:
        """The operations that forbid a rescaling: each of them alone does, and without all of them it would be proved.

        Args:
            names: As for `verdict`.
            up_to_epsilon: Count epsilons as 0.
        """
        found = {
            (e.place, e.kind, e.reason): Blocker(e.place, e.kind, e.reason, remedy(e))
            for e in self._violated(names)
            if not (up_to_epsilon and e.kind in APPROXIMATE)
        }
        return list(found.values())

    def epsilons(self, names: Names | Mapping[str, Any]) -> dict[str, float]:
        """Epsilons that a rescaling meets, by the module that adds them."""
        found: dict[str, float] = {}
        for equation in self._violated(names):
            if equation.kind is Kind.EPSILON and equation.constant is not None:
                found[equation.place.module] = max(equation.constant, found.get(equation.place.module, 0.0))
        return found

    def invariant_groups(self, *, up_to_epsilon: bool = False) -> list[tuple[str, ...]]:
        """Parameters that may be rescaled each on its own, then modules that may, as far as they add something.

        Groups may overlap.

        Args:
            up_to_epsilon: Count epsilons as 0.
        """
        space = self.space(up_to_epsilon)
        singles = list(self._single(space))
        spanned = Span(singles)
        modules = [vector for vector in self._of_modules(space) if spanned.extend(vector)]
        return [tuple(self._named(vector)) for vector in [*singles, *modules]]

    def degree(self, names: Names | Mapping[str, Any], output: str | None = None) -> Fraction | None:
        """The k in f(c w) = c^k f(w) for scaling parameters together; epsilons count as 0.

        Args:
            names: As for `verdict`.
            output: Path of an output; needed where there are several.

        Returns:
            The degree; None where the output is not homogeneous, or not proved to be.
        """
        outputs = self.system.outputs
        if output is None and len(outputs) > 1:
            raise ValueError(f"the model has several outputs: name one of {', '.join(outputs)}")
        if output is not None and output not in outputs:
            raise ValueError(f"there is no output {output!r}: there are {', '.join(outputs)}")
        exponents = self._exponents(names)
        if any(e.form(exponents) for e in self.system.equations if e.kind not in APPROXIMATE):
            return None
        degrees = {form(exponents) for form in outputs[output or next(iter(outputs))].forms.flat}
        unknown = {v for form in outputs[output or next(iter(outputs))].forms.flat for v in form.coefficients if v < 0}
        if any(form(exponents) for v in unknown for form in self.system.factors[v].forms):
            return None
        return degrees.pop() if len(degrees) == 1 else None

    def _exponents(self, names: Names | Mapping[str, Any]) -> Vector:
        if not isinstance(names, Mapping):
            return self._indicator(self.select(names))
        unknown = [name for name in names if name not in self.names]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no parameter of the model, nor a part that was asked for")
        return {self.names.index(name): Fraction(q) for name, q in names.items()}

    def _violated(self, names: Names | Mapping[str, Any]) -> list[Equation]:
        exponents = self._exponents(names)
        return [equation for equation in self.equations if equation.form(exponents)]

    # Presentation ----------------------------------------------------------------------------------------------

    def to_json(self, indent: int | None = 2) -> str:
        """The report as JSON: symmetries, groups, operations without a rule, unused parameters, the confirmation."""
        return json.dumps(self.to_dict(), indent=indent)

    def to_dict(self) -> dict[str, Any]:
        """What `to_json` writes."""
        return {
            "symmetries": [
                {"exponents": {n: str(q) for n, q in s.exponents.items()}, "verdict": s.verdict}
                for s in self.symmetries
            ],
            "invariant_groups": self.invariant_groups(),
            "invariant_groups_up_to_epsilon": self.invariant_groups(up_to_epsilon=True),
            "outputs": list(self.system.outputs),
            "unsupported": [str(place) for place in self.unsupported],
            "unused": list(self.unused),
            "confirmation": None if self.confirmation is None else self.confirmation.to_dict(),
        }

    def __str__(self) -> str:
        from .presentation import as_text

        return as_text(self)


def smallest(space: Sequence[Vector], orders: int = 24, seed: int = 0) -> list[Vector]:
    """Vectors of a space with supports that hold no smaller one, those of the fewest parameters first.

    Each order of the variables gives a reduced basis of such vectors; there may be more than a few orders show.

    Args:
        space: A basis.
        orders: How many orders are tried beside the given one and its reverse.
        seed: Of the orders.
    """
    variables = sorted({v for vector in space for v in vector})
    generator = random.Random(seed)
    found: dict[tuple[tuple[int, Fraction], ...], None] = {}
    for order in (variables, variables[::-1], *(generator.sample(variables, len(variables)) for _ in range(orders))):
        for vector in reduced(space, order):
            found[tuple(sorted(_whole(vector).items()))] = None
    ordered = sorted(found, key=lambda vector: (len(vector), sum(abs(q) for _, q in vector), vector))
    return [dict(vector) for vector in ordered]


def _whole(vector: Vector) -> Vector:
    """The multiple with coprime whole numbers of which the first is positive."""
    multiple = Fraction(lcm(*(q.denominator for q in vector.values())), 1)
    multiple /= gcd(*(int(q * multiple) for q in vector.values()))
    first = vector[min(vector)]
    return {v: q * (multiple if first > 0 else -multiple) for v, q in vector.items()}


class Span:
    """A subspace that grows.

    Args:
        vectors: That span it.
    """

    def __init__(self, vectors: Iterable[Vector]) -> None:
        self.rows = row_echelon(LinearForm(vector) for vector in vectors)

    def rest(self, vector: Vector) -> LinearForm:
        """What is left of a vector after the subspace is taken away; zero = it lies in it."""
        form = LinearForm(vector)
        for pivot in [v for v in form.coefficients if v in self.rows]:
            form -= self.rows[pivot] * form.coefficients[pivot]
        return form

    def __contains__(self, vector: Vector) -> bool:
        return not self.rest(vector)

    def extend(self, vector: Vector) -> bool:
        """Add a vector; whether it was new."""
        rest = self.rest(vector)
        if rest:
            self.rows = row_echelon([*self.rows.values(), rest])
        return bool(rest)
