"""The null space is exact: compared with sympy's."""

from fractions import Fraction

import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from sibert.homogeneity.linear_form import LinearForm, null_space, reduced, row_echelon

systems = st.lists(
    st.dictionaries(st.integers(0, 5), st.fractions(-2, 2, max_denominator=3), max_size=4), min_size=0, max_size=6
)


@given(systems)
@settings(max_examples=200, deadline=None)
def test_null_space_is_that_of_sympy(rows) -> None:
    forms = [LinearForm(row) for row in rows]
    basis = null_space(forms, range(6))
    matrix = sympy.Matrix(
        [[sympy.Rational(*row.get(v, Fraction(0)).as_integer_ratio()) for v in range(6)] for row in rows]
    )
    rank = matrix.rank() if rows else 0
    assert len(basis) == 6 - rank
    assert all(form(vector) == 0 for form in forms for vector in basis)
    assert len(row_echelon(LinearForm(vector) for vector in basis)) == len(basis)


@given(systems, st.permutations(range(6)))
@settings(max_examples=100, deadline=None)
def test_reduced_bases_have_smallest_supports(rows, order) -> None:
    basis = reduced(null_space([LinearForm(row) for row in rows], range(6)), order)
    for vector in basis:
        outside = [{v: q for v, q in other.items() if v not in vector} for other in basis]
        # A combination that lives within the support of one vector is a multiple of it.
        assert len(row_echelon(LinearForm(rest) for rest in outside)) == len(basis) - 1


def test_arithmetic_drops_zeros() -> None:
    a, b = LinearForm({0: 1, 1: 2}), LinearForm({0: -1, 1: Fraction(1, 2)})
    assert (a + b).coefficients == {1: Fraction(5, 2)}
    assert not a - a
    assert (a * 0) == LinearForm()
    assert a({0: 3, 1: Fraction(1, 2)}) == 4
