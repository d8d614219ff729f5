"""A diagnosis as text, and as one HTML page that needs nothing else."""

import html
import math
from pathlib import Path
from typing import TYPE_CHECKING

from sibert.reporting.stylesheet import CSS
from sibert.training.checkpoints import write_atomically

if TYPE_CHECKING:
    from sibert.lab.diagnosis import Diagnosis, GroupDiagnosis
    from sibert.lab.diagnosis_advice import Finding

__all__ = ["as_text", "write_diagnosis"]

STYLE = """\
ol li { margin-bottom: 1rem; max-width: 52rem; }
.about { font-weight: 600; } .inequality { color: var(--muted); }
.fail { color: var(--run-4); font-weight: 600; } .pass { color: var(--run-2); font-weight: 600; }
"""
HEAD = (
    "group",
    "scale invariant",
    "norm",
    "at equilibrium",
    "rad a step",
    "at equilibrium",
    "eta lambda",
    "steps to get there",
    "clipped",
    "of the stable curvature",
)
ABSENT = "–"


def as_text(diagnosis: "Diagnosis") -> str:
    """The report for a terminal.

    Args:
        diagnosis: Of `diagnose`.

    Returns:
        Lines.
    """
    lines = [_headline(diagnosis)]
    mended = [finding for finding in diagnosis.findings if finding.mend]
    for number, finding in enumerate(mended, 1):
        lines += [f"{number}. {finding.statement}", f"   theory: {finding.inequality}", f"   do: {finding.remedy}"]
    if not mended:
        lines.append("nothing to mend")
    for finding in diagnosis.findings[len(mended) :]:
        lines.append(f"note: {finding.statement}")
        lines += [f"   {word}: {text}" for word, text in _details(finding) if text]
    if diagnosis.groups:
        rows = _table(diagnosis)
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines.append("")
        for row in rows:
            first, *rest = [f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)]
            lines.append("  ".join([f"{first.strip():<{widths[0]}}", *rest]).rstrip())
        lines.append("")
    lines += [f"{name}: {value}" for name, value in _numbers(diagnosis)]
    return "\n".join(lines)


def write_diagnosis(diagnosis: "Diagnosis", out: Path, title: str = "Diagnosis") -> Path:
    """Write one HTML page, whole or not at all.

    Args:
        diagnosis: Of `diagnose`.
        out: The file; missing folders are made.
        title: Of the page.

    Returns:
        `out`.

    Raises:
        ValueError: If `out` is a folder.
    """
    if out.is_dir():
        raise ValueError(
            f"{out} is a folder; give the name of the HTML file to write, such as {out / 'diagnosis.html'}"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, _page(diagnosis, title))
    return out


def _page(diagnosis: "Diagnosis", title: str) -> str:
    mended = [finding for finding in diagnosis.findings if finding.mend]
    notes = diagnosis.findings[len(mended) :]
    parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="lead">{html.escape(_headline(diagnosis))}</p>']
    if mended:
        parts.append(f"<h2>What to mend</h2>\n<ol>{''.join(map(_item, mended))}</ol>")
    else:
        parts.append('<p class="pass">nothing to mend</p>')
    if notes:
        parts.append(f"<h2>Notes</h2>\n<ol>{''.join(map(_item, notes))}</ol>")
    if diagnosis.groups:
        first, *others = _table(diagnosis)
        head = "".join(f"<th>{cell}</th>" for cell in first)
        rows = "".join(map(_row, others))
        parts.append(
            '<h2>Groups</h2>\n<div class="scroll"><table>'
            f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        )
    rows = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td class="text">{html.escape(value)}</td></tr>'
        for name, value in _numbers(diagnosis)
    )
    parts.append(f'<h2>The run</h2>\n<div class="scroll"><table><tbody>{rows}</tbody></table></div>')
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{CSS}{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def _headline(diagnosis: "Diagnosis") -> str:
    claimed = [group for group in diagnosis.groups if group.claimed]
    invariant = sum(group.invariant for group in diagnosis.groups)
    mended = sum(finding.mend for finding in diagnosis.findings)
    said = (
        f"{invariant} of {len(claimed)} groups are scale invariant as they are said to be"
        if claimed
        else (f"{invariant} scale-invariant groups were found by computing")
    )
    return f"{said}; {mended} thing{'' if mended == 1 else 's'} to mend"


def _item(finding: "Finding") -> str:
    details = "".join(
        f'<br><span class="inequality">{word}: {html.escape(text)}</span>' for word, text in _details(finding) if text
    )
    return f'<li><span class="about">{finding.about}</span>: {html.escape(finding.statement)}{details}</li>'


def _details(finding: "Finding") -> list[tuple[str, str]]:
    return [("theory", finding.inequality), ("do" if finding.mend else "how", finding.remedy)]


def _table(diagnosis: "Diagnosis") -> list[tuple[str, ...]]:
    """Head and cells; columns in which there is nothing are left out."""
    rows = [_cells(group) for group in diagnosis.groups]
    kept = [i for i in range(len(HEAD)) if any(row[i] != ABSENT for row in rows)]
    return [tuple(row[i] for i in kept) for row in (HEAD, *rows)]


def _row(cells: tuple[str, ...]) -> str:
    first, verdict, *rest = cells
    kind = "pass" if verdict == "yes" else "fail"
    shown = "".join(f"<td>{cell}</td>" for cell in rest)
    return f'<tr><th scope="row">{html.escape(first)}</th><td class="{kind}">{verdict}</td>{shown}</tr>'


def _cells(group: "GroupDiagnosis") -> tuple[str, ...]:
    verdict = "yes" if group.invariant else "NO"
    s = group.standing
    stability = ABSENT if group.stability is None else f"{group.stability:.2g}"
    if s is None:
        return (group.name, verdict, *[ABSENT] * 7, stability)
    clipped = ABSENT if s.clipped_share is None else f"{100.0 * s.clipped_share:.2g} %"
    steps = ABSENT if s.steps_to_equilibrium is None else f"{s.steps_to_equilibrium:.0f}"
    values = (s.norm, s.equilibrium_norm, s.angular_update, s.equilibrium_angle, s.intrinsic_lr)
    return (group.name, verdict, *map(_number, values), steps, clipped, stability)


def _numbers(diagnosis: "Diagnosis") -> list[tuple[str, str]]:
    noise, stability = diagnosis.noise, diagnosis.stability
    rows = [
        ("signal G of the gradients", f"{noise.squared_mean:.3g} ± {noise.squared_mean_error:.1g}"),
        (f"noise N at a batch of {noise.batch_size}", f"{noise.trace:.3g} ± {noise.trace_error:.1g}"),
        ("noise scale", str(noise)),
    ]
    if stability is not None:
        rows.append(
            (
                "largest curvature times learning rates",
                f"{stability.sharpness:.3g}; gradient descent is stable up to {stability.line:.3g}",
            )
        )
    if diagnosis.steps is not None:
        rows.append(("steps at these rates", f"{diagnosis.steps:.0f}"))
    return rows


def _number(value: float | None) -> str:
    return ABSENT if value is None or not math.isfinite(value) else f"{value:.3g}"
