"""Every rule against numbers: the degree that it claims is measured, and so is that there is none where it denies."""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sibert.homogeneity import Slices, SymmetryReport
from sibert.homogeneity.graph import Graph, operation_name, trace
from sibert.homogeneity.propagation import propagate
from sibert.homogeneity.rules import RULES
from tests.homogeneity.calls import CALLS

FACTOR = 1.37
T = torch.randn(3, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
INPUTS = (T, -T, T.flip(0, 1) + 0.1)


class Calls(nn.Module):
    """Functions of t W and t U."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.names = names
        self.w = nn.Parameter(torch.randn(4, 6, generator=generator, dtype=torch.float64))
        self.u = nn.Parameter(torch.randn(4, 6, generator=generator, dtype=torch.float64))

    def forward(self, t: Tensor) -> list[list[Tensor]]:
        results = [CALLS[name](t @ self.w, t @ self.u) for name in self.names]
        several = [result if isinstance(result, list | tuple) else [result] for result in results]
        return [[x for x in result if x.is_floating_point()] for result in several]


@cache
def graph_of_all() -> Graph:
    """One export for all calls, for an export takes longer than the rest."""
    return trace(Calls(*CALLS), (T,), {}, lambda output: output, RULES.__contains__)


@cache
def report(name: str, column: int | None = None) -> SymmetryReport:
    """Of one call."""
    whole = graph_of_all()
    number = list(CALLS).index(name)
    outputs = {path: node for path, node in whole.outputs.items() if path.split(".")[0] == str(number)}
    needed = set(outputs.values())
    for node in reversed(whole.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    nodes = tuple(node for node in whole.nodes if node in needed)
    slices = {} if column is None else {"w": Slices(1, index=column)}
    return SymmetryReport(propagate(replace(whole, nodes=nodes, outputs=outputs), slices), {})


def run(module: nn.Module, t: Tensor) -> list[Tensor]:
    with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(3)
        return list(module(t)[0])


def scaled(module: nn.Module, names: Sequence[str], column: int | None = None) -> nn.Module:
    """A copy with parameters, or one column of them, multiplied by the factor."""
    other = copy.deepcopy(module)
    with torch.no_grad():
        for name in names:
            own = other.get_parameter(name)
            (own if column is None else own[:, column]).mul_(FACTOR)
    return other


def measured(before: Sequence[Tensor], after: Sequence[Tensor]) -> list[Tensor]:
    """log(f(c w) / f(w)) / log(c) of each entry; NaN where both are 0, infinite where signs or zeros change."""
    found = []
    for a, b in zip(before, after, strict=True):
        ratio = b / a
        degree = torch.where(ratio > 0, ratio, 1.0).log() / np.log(FACTOR)
        degree = torch.where(ratio > 0, degree, torch.inf)
        found.append(torch.where((a == b) & ((a == 0) | a.isinf()), torch.nan, degree))
    return found


def claimed(report: SymmetryReport, exponents: dict[str, Any]) -> list[Tensor] | None:
    """The degree of each entry of each output; None where the rules deny that there is one."""
    numbers = {report.names.index(name): q for name, q in exponents.items()}
    if any(equation.form(numbers) for equation in report.system.equations if equation.kind in ("rule", "unknown")):
        return None
    found = []
    for path, degree in report.system.outputs.items():
        forms = degree.forms
        for axis, label in enumerate(degree.labels):
            if label is not None:
                forms = np.take(forms, label, axis)
        factors = {v for form in forms.flat for v in form.coefficients if v < 0}
        if any(form(numbers) for v in factors for form in report.system.factors[v].forms):
            return None
        values = np.array([float(form(numbers)) for form in forms.flat]).reshape(forms.shape)
        assert path
        found.append(torch.from_numpy(values))
    return found


def assert_right(report: SymmetryReport, exponents: dict[str, Any], module: nn.Module, other: nn.Module) -> None:
    """What is claimed is measured, and what is denied is measured to differ between entries or inputs."""
    claims = claimed(report, exponents)
    degrees = [measured(run(module, t), run(other, t)) for t in INPUTS]
    if claims is not None:
        measurable = False
        for several in degrees:
            for claim, degree in zip(claims, several, strict=True):
                known = ~degree.isnan()
                measurable |= bool(known.any())
                torch.testing.assert_close(degree[known], claim.expand(degree.shape)[known], atol=1e-9, rtol=0)
        assert measurable or set(module.names) <= ALWAYS_ZERO
        return
    spread = 0.0
    for several in zip(*degrees, strict=True):
        flat = torch.cat([degree[~degree.isnan()].reshape(-1) for degree in several])
        spread = max(spread, float(flat.max() - flat.min()) if len(flat) else 0.0)
    assert not spread < 1e-6, f"{exponents} is denied, though all entries of the output have one degree"


CONSERVATIVE = {
    "eq": "two numbers that depend on parameters are never equal, which no rule knows",
    "ne": "two numbers that depend on parameters are never equal, which no rule knows",
    "products by scatter_reduce": "linear in what the products are put into, which nobody scales on its own",
}
"""Calls whose rule denies what is true, and why."""

ALWAYS_ZERO = {"zeros_like", "isnan", "isinf", "logical_not", "logical_xor", "all", "eq"}
"""Calls that give 0 whatever the parameters are, which is of every degree."""

CLAIMED_COLUMNS = 107
"""Calls of which the rules know what becomes of one column; fewer would be a loss."""


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("names", [("w",), ("u",), ("w", "u")], ids="+".join)
def test_degree_is_that_which_is_measured(name: str, names: tuple[str, ...]) -> None:
    module = Calls(name)
    assert report(name).unsupported == ()
    if name in CONSERVATIVE and claimed(report(name), dict.fromkeys(names, 1)) is None:
        return
    assert_right(report(name), dict.fromkeys(names, 1), module, scaled(module, names))


@pytest.mark.parametrize("name", CALLS)
def test_degree_of_a_column_goes_where_the_column_goes(name: str) -> None:
    """One column of W has an exponent of its own: a claim about it has to be right; to deny it is always safe."""
    module = Calls(name)
    exponents = {"w[:, 2]": 1}
    if claimed(report(name, 2), exponents) is not None:
        assert_right(report(name, 2), exponents, module, scaled(module, ["w"], column=2))


def test_columns_are_followed_through_as_many_calls_as_ever() -> None:
    assert sum(claimed(report(name, 2), {"w[:, 2]": 1}) is not None for name in CALLS) >= CLAIMED_COLUMNS


def test_core_operations_without_a_rule_are_listed() -> None:
    """Those of which the graph has another form count as covered: `softmax` is in it, not `_softmax`."""
    core = {
        f"aten.{name}"
        for name in dir(torch.ops.aten)
        for overload in getattr(getattr(torch.ops.aten, name), "overloads", list)()
        if torch.Tag.core in getattr(getattr(torch.ops.aten, name), overload).tags
    }
    decomposed = {operation_name(target) for target in torch.export.default_decompositions()}
    forms = {"_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "_cdist_forward", "_embedding_bag", "_softmax"}
    forms |= {"_log_softmax", "constant_pad_nd", "native_group_norm"}
    constants = {"empty", "empty_strided", "full", "scalar_tensor", "arange"}
    covered = set(RULES) | decomposed | {f"aten.{name}" for name in forms | constants}
    missing = {name.removeprefix("aten.") for name in core - covered}
    # Backward passes, sizes, and what changes a tensor in place are not in the graph of a forward pass.
    missing = {name for name in missing if not name.startswith("sym_") and not name.endswith(("_backward", "resize_"))}
    page = (Path(__file__).parents[2] / "docs" / "concepts" / "rules.md").read_text(encoding="utf-8")
    section = page.partition("## What has no rule")[2].partition("## All rules")[0]
    assert sorted(missing) == ["_local_scalar_dense", "_pdist_forward", "as_strided", "nonzero"]
    assert all(f"`{name}`" in section for name in missing)


def test_every_rule_is_called() -> None:
    used = {operation_name(node.target) for node in graph_of_all().nodes}
    assert sorted(set(RULES) - used) == []
