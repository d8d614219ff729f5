"""Every model of the zoo: what is proved is true and complete, and what is denied is false."""

from collections.abc import Mapping
from fractions import Fraction

import pytest
import torch

from sibert.homogeneity import Slices, SymmetryReport, Verdict, analyze
from sibert.homogeneity.analysis import _selection
from sibert.homogeneity.confirmation import Numbers
from tests.homogeneity.zoo import ZOO, Claim, Entry


def slices(entry: Entry) -> dict[str, Slices]:
    return {
        name: Slices(axis, blocks=number) if kind == "blocks" else Slices(axis)
        for name, (kind, axis, number) in entry.slices.items()
    }


def exponents(report: SymmetryReport, claim: Claim) -> dict[str, Fraction]:
    if isinstance(claim, Mapping):
        return {name: Fraction(q) for key, q in claim.items() for name in report.select(key)}
    return dict.fromkeys(report.select(claim), Fraction(1))


@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
def test_symmetries_are_those_derived_by_hand(entry: Entry) -> None:
    torch.manual_seed(0)
    module, *args = entry.build()
    report = analyze(module, tuple(args), slices=slices(entry), **entry.options)

    assert report.unsupported == ()
    assert len(report.space()) == entry.exact
    assert len(report.space(up_to_epsilon=True)) == (entry.exact if entry.epsilon is None else entry.epsilon)
    for claim in entry.holds:
        assert report.verdict(exponents(report, claim)) in (Verdict.EXACT, Verdict.UP_TO_EPSILON), claim
    assert report.confirmation is not None
    assert report.confirmation.contradicted == ()
    assert list(report.confirmation.observed) == list(entry.observed)
    for check in report.confirmation.checks:
        # Gradient flow conserves sum_p a_p |w_p|^2. Epsilons that are no attribute of a module are still there.
        assert check.orthogonality < (1e-8 if check.symmetry.verdict is Verdict.EXACT else 1e-4)

    numbers = Numbers(module, args, {}, _selection(None), report.system, 0)
    for claim in entry.breaks:
        scaled = exponents(report, claim)
        assert report.verdict(scaled) is Verdict.NOT_PROVED, claim
        assert report.blockers(scaled)
        index = {report.names.index(name): q for name, q in scaled.items()}
        assert numbers.deviation(index, 1.37) > 1e-6, f"{claim} is denied, and yet changes nothing"


def test_zoo_is_large_and_proved() -> None:
    assert len(ZOO) >= 40
    assert all(entry.proof for entry in ZOO)
    assert len({entry.name for entry in ZOO}) == len(ZOO)
