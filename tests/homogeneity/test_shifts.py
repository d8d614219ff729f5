"""Shifts that nobody notices, and unknown factors that a norm removes: what is such, and what only looks like it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sibert.homogeneity import SymmetryReport, Verdict, analyze, operation
from tests.homogeneity.zoo import Function, x

SIGNS = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
A, C = x(3, 4, 5), x(3, 5, 6)


def analyzed(function: Callable[..., Any], shapes: dict[str, tuple[int, ...]]) -> SymmetryReport:
    torch.manual_seed(0)
    report = analyze(Function(function, **shapes), (x(4, 5),))
    assert report.confirmation is not None
    assert report.confirmation.contradicted == ()
    return report


def norm(h: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[-1:], eps=0.0)


def unit(h: Tensor) -> Tensor:
    return h / h.norm(dim=1, keepdim=True)


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda m, t: (t @ m.w + m.b).softmax(-1), (4, 1)),
        (lambda m, t: (t @ m.w - m.b).softmax(0), (6,)),
        (lambda m, t: norm(torch.addcmul(m.b, t @ m.w, SIGNS)), (4, 1)),
        (lambda m, t: (t @ m.w + m.b).std(unbiased=False), (1,)),
        (lambda m, t: (t @ m.w + m.b).var(0), (6,)),
        (lambda m, t: ((A + m.b) @ C[:1]).softmax(0) + (t @ m.w).sum(), (5,)),
        (lambda m, t: ((A + m.b) @ C).softmax(1) + (t @ m.w).sum(), (3, 1, 5)),
        (lambda m, t: torch.native_layer_norm(t @ m.w + m.b, (6,), None, None, 0.0)[0], (4, 1)),
    ],
)
def test_a_shift_that_nobody_notices_may_scale(function: Callable[..., Any], shape: tuple[int, ...]) -> None:
    assert analyzed(function, {"w": (5, 6), "b": shape}).verdict("b") is Verdict.EXACT


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda m, t: torch.maximum(t @ m.w, m.b).softmax(-1), (4, 1)),
        (lambda m, t: torch.hypot(t @ m.w, m.b).softmax(-1), (4, 1)),
        (lambda m, t: torch.lerp(m.b, t @ m.w, (SIGNS > 0).float()).softmax(-1), (4, 1)),
        (lambda m, t: norm((t @ m.w).clamp(min=m.b)), (1,)),
        (lambda m, t: (t @ m.w > m.b).to(t.dtype).softmax(-1), (1,)),
        (lambda m, t: torch.max(t @ m.w, m.b).softmax(-1), (4, 1)),
        (lambda m, t: (t @ m.w + m.b).std(unbiased=False), (6,)),
        (lambda m, t: (t @ m.w + m.b).var(dim=[]), (6,)),
        (lambda m, t: ((A + m.b) @ C).softmax(0) + (t @ m.w).sum(), (5,)),
        (lambda m, t: F.batch_norm(A @ (C + m.b), None, None, training=True, eps=1e-300) + m.w.sum(), (5, 1)),
        (lambda m, t: torch.native_layer_norm(t @ m.w + m.b, (6,), None, None, 0.0)[1], (4, 1)),
        (lambda m, t: (t @ m.w.sign() + m.b).to(torch.int64).to(t.dtype).softmax(-1), (4, 1)),
        (lambda m, t: (t @ m.w).sum().softmax(0) * m.b, (1,)),
    ],
)
def test_what_is_no_such_shift_may_not(function: Callable[..., Any], shape: tuple[int, ...]) -> None:
    assert analyzed(function, {"w": (5, 6), "b": shape}).verdict("b") is Verdict.NOT_PROVED


def test_keys_may_be_shifted_along_the_axis_of_the_softmax_alone() -> None:
    class Scores(nn.Module):
        def __init__(self, axis: int) -> None:
            super().__init__()
            self.q, self.k, self.axis = nn.Linear(5, 6), nn.Linear(5, 6), axis

        def forward(self, t: Tensor) -> Tensor:
            return (self.q(t) @ self.k(t).mT).softmax(self.axis)

    torch.manual_seed(0)
    along_keys, along_queries, along_batch = (analyze(Scores(axis), (x(2, 4, 5),)) for axis in (2, 1, 0))
    assert [r.verdict("k.bias") is Verdict.EXACT for r in (along_keys, along_queries, along_batch)] == [
        True,
        False,
        False,
    ]
    assert [r.verdict("q.bias") is Verdict.EXACT for r in (along_keys, along_queries, along_batch)] == [
        False,
        True,
        False,
    ]


def chosen(m: Any, t: Tensor) -> Tensor:
    """In each row and column, one of two products, by a condition that no parameter decides."""
    return torch.where(t[:, :1] * SIGNS > 0, t @ m.w, t @ m.v)


def rows(m: Any, t: Tensor) -> Tensor:
    """In each row one of two products."""
    return torch.where(t[:, :1] > 0, t @ m.w, t @ m.v)


def where_chosen(m: Any, t: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Of what is made of `chosen`, the entries at which the first product was chosen."""
    condition = t[:, :1] * SIGNS > 0
    return torch.where(condition, function(torch.where(condition, t @ m.w, t @ m.v)), 0.0)


@pytest.mark.parametrize(
    ("function", "is_invariant"),
    [
        (lambda m, t: unit(rows(m, t)), True),
        (lambda m, t: unit(rows(m, t)[1:]), True),
        (lambda m, t: unit(rows(m, t)[:, 1:]), True),
        (lambda m, t: where_chosen(m, t, lambda h: h / (t @ m.w)), True),
        (lambda m, t: where_chosen(m, t, lambda h: h / h.roll(1, 1)), False),
        (lambda m, t: where_chosen(m, t, lambda h: h / h[:, 1:2]), False),
        (lambda m, t: unit(chosen(m, t)), False),
        (lambda m, t: unit(chosen(m, t)[:, 1:]), False),
        (lambda m, t: chosen(m, t)[:, 1] / chosen(m, t)[:, 2], False),
        (lambda m, t: (lambda h: h[:, 1] / h[:, 2])(chosen(m, t)), False),
        (lambda m, t: (lambda h: h[1] / h[2])(rows(m, t)), False),
        (lambda m, t: (lambda h: h[:, [0, 2, 1, 4, 3, 5]] / h)(chosen(m, t)), False),
        (lambda m, t: unit(chosen(m, t).reshape(8, 3)[1:]), False),
        (lambda m, t: (lambda h: (h[:, :4] / h[:, :4].mT)[1:, 1:])(chosen(m, t)), False),
    ],
)
def test_unknown_factors_of_different_entries_are_different(function: Callable[..., Any], is_invariant: bool) -> None:
    report = analyzed(function, {"w": (5, 6), "v": (5, 6)})
    expected = Verdict.EXACT if is_invariant else Verdict.NOT_PROVED
    assert {report.verdict(name) for name in ("w", "v")} == {expected}
    assert report.verdict(["w", "v"]) is Verdict.EXACT


def test_more_unknown_factors_than_are_followed_have_to_be_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operation, "MOST_FACTORS", 3)
    report = analyzed(lambda m, t: unit(rows(m, t)), {"w": (5, 6), "v": (5, 6)})
    assert [report.verdict(names) for names in ("w", ["w", "v"])] == [Verdict.NOT_PROVED, Verdict.EXACT]
    assert report.blockers("w")[0].place.operation == "where"


@pytest.mark.parametrize("drawn", [torch.rand_like, torch.randn_like])
def test_random_entries_differ_also_where_they_are_shaped_like_what_is_constant(drawn: Callable[..., Tensor]) -> None:
    module = Function(lambda m, t: (t @ m.w + m.b * drawn(m.b.expand(4, 6))).softmax(-1), w=(5, 6), b=(4, 1))
    assert analyze(module, (x(4, 5),), numeric=False).verdict("b") is not Verdict.EXACT
