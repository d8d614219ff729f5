"""The report for people: symmetries as lists, modules as a tree coloured by verdict."""

from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.text import Text
from rich.tree import Tree

from .symmetry import Blocker, Symmetry, Verdict

if TYPE_CHECKING:
    from .symmetry import SymmetryReport

COLOURS = {
    Verdict.EXACT: "green",
    Verdict.UP_TO_EPSILON: "cyan",
    Verdict.UNKNOWN: "yellow",
    Verdict.NOT_PROVED: "red",
}
MARKS = {Verdict.EXACT: "=", Verdict.UP_TO_EPSILON: "~", Verdict.UNKNOWN: "?", Verdict.NOT_PROVED: "x"}


def as_text(report: "SymmetryReport", width: int = 120) -> str:
    """The report as plain text."""
    console = Console(file=StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(as_renderable(report))
    file = console.file
    assert isinstance(file, StringIO)
    return file.getvalue().rstrip()


def as_renderable(report: "SymmetryReport") -> Group:
    """The report for a rich console."""
    parts: list[Text | Tree] = [tree(report), Text()]
    parts.append(Text(f"{len(report.symmetries)} independent rescaling symmetries", style="bold"))
    parts += [_line(report, symmetry) for symmetry in report.symmetries]
    if report.unused:
        parts.append(Text(f"no output depends on {', '.join(report.unused)}", style="dim"))
    if report.unsupported:
        parts.append(Text("no rule for", style="bold yellow"))
        parts += [Text(f"  {place}", style="yellow") for place in report.unsupported]
    if report.confirmation is not None:
        parts += _confirmation(report)
    return Group(*parts)


def blockers(several: Sequence[Blocker]) -> Text:
    """What forbids a rescaling, the same reason in several places told once."""
    text = Text()
    groups: dict[tuple[str, str, str], list[Blocker]] = {}
    for blocker in several:
        groups.setdefault((blocker.place.operation, blocker.reason, blocker.remedy), []).append(blocker)
    for (operation, reason, remedy), members in groups.items():
        first = members[0].place
        source = f" ({Path(first.file).name}:{first.line})" if first.file else ""
        text.append(f"  {operation}{source}: {reason}\n")
        modules = list(dict.fromkeys(member.place.module for member in members if member.place.module))
        if modules:
            text.append(
                f"    in {', '.join(modules[:3])}{f' and {len(modules) - 3} more' if len(modules) > 3 else ''}\n"
            )
        text.append(f"    remedy: {remedy}\n", "dim")
    return text


def tree(report: "SymmetryReport") -> Tree:
    """Modules and parameters, each with the verdict on scaling it by itself."""
    legend = [piece for verdict in Verdict for piece in ("   ", (f"{MARKS[verdict]} {verdict}", COLOURS[verdict]))]
    root = Tree(Text.assemble("each part scaled by itself:", *legend))
    _grow(root, report, "", "")
    return root


def _grow(branch: Tree, report: "SymmetryReport", path: str, shown: str) -> None:
    """Add what a module holds; a module that holds nothing but one other is shown together with that."""
    own = [name for name in report.names if _parent(name, report) == path]
    inside = [child for child in report.modules if child and child != path and _parent(child, report) == path]
    if path and len(inside) == 1 and not own:
        _grow(branch, report, inside[0], shown)
        return
    if path:
        label = _node(report, path, path[len(shown) :].lstrip("."))
        if not inside:
            for name in own:
                label.append("  ").append(_node(report, name, name[len(path) :].lstrip(".")))
            branch.add(label)
            return
        branch = branch.add(label)
    for name in own:
        branch.add(_node(report, name, name[len(path) :].lstrip(".")))
    for child in inside:
        _grow(branch, report, child, path)


def _parent(name: str, report: "SymmetryReport") -> str:
    """The path of the innermost module around a module or parameter."""
    parent = name.partition("[")[0].rpartition(".")[0]
    while parent and parent not in report.modules:
        parent = parent.rpartition(".")[0]
    return parent


def _node(report: "SymmetryReport", name: str, label: str) -> Text:
    verdict = report.verdict(name)
    return Text(f"{MARKS[verdict]} {label}", style=COLOURS[verdict])


def _line(report: "SymmetryReport", symmetry: Symmetry) -> Text:
    terms = " · ".join(f"{name}{'' if q == 1 else f'^({q})'}" for name, q in symmetry.exponents.items())
    line = Text(f"  {MARKS[symmetry.verdict]} {terms}", style=COLOURS[symmetry.verdict])
    if symmetry.verdict is Verdict.UP_TO_EPSILON:
        epsilons = report.epsilons(symmetry.exponents)
        where = ", ".join(f"{value:g} in {module or 'the model'}" for module, value in list(epsilons.items())[:3])
        line.append(f"  (up to {where or 'masks that stand for -inf'}{' ...' if len(epsilons) > 3 else ''})")
    return line


def _confirmation(report: "SymmetryReport") -> list[Text]:
    confirmation = report.confirmation
    assert confirmation is not None
    good = len(confirmation.checks) - len(confirmation.contradicted)
    lines = [Text(f"computed in float64: {good} of {len(confirmation.checks)} symmetries hold", style="bold")]
    lines += [
        Text(
            f"  an error of the checker, please report it: {check.symmetry} changes outputs by {check.deviation:.1e}",
            "red",
        )
        for check in confirmation.contradicted
    ]
    measured = [d for check in confirmation.checks for d in check.at_scales.items()]
    for scale in sorted({scale for scale, _ in measured}):
        worst = max(deviation for c, deviation in measured if c == scale)
        lines.append(
            Text(f"  with epsilons as they are, factor {scale:g}: outputs change by up to {worst:.1e}", "cyan")
        )
    if confirmation.observed:
        lines.append(Text(f"  observed, not proved: {', '.join(confirmation.observed)}", "yellow"))
    return lines
