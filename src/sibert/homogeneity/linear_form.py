"""Linear forms in the scaling exponents, and the exact rational solution of homogeneous systems of them."""

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Self


class LinearForm:
    """sum_v q_v a_v with rational coefficients q_v of variables a_v (given by number); immutable.

    Args:
        coefficients: q_v by v; zeros are dropped.
    """

    __slots__ = ("_hash", "coefficients")

    def __init__(self, coefficients: Mapping[int, Fraction | int] | None = None) -> None:
        self.coefficients = {v: Fraction(q) for v, q in (coefficients or {}).items() if q}
        self._hash = hash(frozenset(self.coefficients.items()))

    @classmethod
    def variable(cls, number: int) -> Self:
        """The form a_v."""
        return cls({number: 1})

    def __add__(self, other: "LinearForm") -> "LinearForm":
        if not other:
            return self
        if not self:
            return other
        total = dict(self.coefficients)
        for v, q in other.coefficients.items():
            total[v] = total.get(v, Fraction(0)) + q
        return LinearForm(total)

    def __sub__(self, other: "LinearForm") -> "LinearForm":
        return self + other * -1

    def __mul__(self, factor: Fraction | int) -> "LinearForm":
        return self if factor == 1 else LinearForm({v: q * factor for v, q in self.coefficients.items()})

    def __call__(self, exponents: Mapping[int, Fraction | int]) -> Fraction:
        """The value at a_v = exponents[v]; variables that are not given are 0."""
        return sum((q * exponents[v] for v, q in self.coefficients.items() if v in exponents), Fraction(0))

    def __bool__(self) -> bool:
        return bool(self.coefficients)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LinearForm) and self.coefficients == other.coefficients

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return " + ".join(f"{q} a{v}" for v, q in sorted(self.coefficients.items())) or "0"


ZERO = LinearForm()

Vector = dict[int, Fraction]
"""Exponents by variable; what is missing is 0."""


def row_echelon(forms: Iterable[LinearForm], order: Iterable[int] = ()) -> dict[int, LinearForm]:
    """The reduced row echelon form of a system, as rows by pivot (whose coefficient is 1).

    Args:
        forms: The rows; exact arithmetic, so the result is unique for an order of the variables.
        order: Variables that are preferred as pivots, best first; others follow by number.
    """
    preference = {v: i for i, v in enumerate(order)}
    rows: dict[int, LinearForm] = {}
    users: dict[int, set[int]] = {}  # variable -> pivots of the rows in which it occurs
    for form in forms:
        for v in [v for v in form.coefficients if v in rows]:
            form -= rows[v] * form.coefficients[v]
        if not form:
            continue
        pivot = min(form.coefficients, key=lambda v: (preference.get(v, len(preference)), v))
        form *= 1 / form.coefficients[pivot]
        for other in list(users.get(pivot, ())):
            before = rows[other]
            rows[other] = before - form * before.coefficients[pivot]
            for v in before.coefficients.keys() | rows[other].coefficients.keys():
                (users.setdefault(v, set()).add if v in rows[other].coefficients else users[v].discard)(other)
        rows[pivot] = form
        for v in form.coefficients:
            users.setdefault(v, set()).add(pivot)
    return rows


def null_space(forms: Iterable[LinearForm], variables: Iterable[int], order: Iterable[int] = ()) -> list[Vector]:
    """A basis of all exponents at which every form vanishes, in reduced row echelon form.

    Each vector of such a basis has a support that holds no smaller one: another vector of the space within the same
    support is zero at all other pivots, and therefore a multiple of it.

    Args:
        forms: The equations, each form = 0.
        variables: All unknowns, those without an equation included.
        order: Variables that are preferred as pivots of the basis.
    """
    solved = row_echelon(forms)
    free = [v for v in variables if v not in solved]
    vectors = {v: {v: Fraction(1)} for v in free}
    for pivot, row in solved.items():
        for v, q in row.coefficients.items():
            if v != pivot:
                vectors[v][pivot] = -q
    return reduced([vectors[v] for v in free], order)


def reduced(vectors: Iterable[Vector], order: Iterable[int] = ()) -> list[Vector]:
    """The reduced row echelon basis of the span of vectors."""
    rows = row_echelon((LinearForm(vector) for vector in vectors), order)
    return [dict(sorted(row.coefficients.items())) for _, row in sorted(rows.items())]
