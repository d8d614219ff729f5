"""The lab's report: all claims, figures and verdicts on one HTML page that needs nothing else."""

import base64
import html
import math
from collections.abc import Sequence
from pathlib import Path

from sibert.lab.experiment import Experiment, Verdict, Word
from sibert.lab.references import REFERENCES
from sibert.lab.results import Outcome, load_outcome
from sibert.reporting.stylesheet import CSS
from sibert.training.checkpoints import write_atomically

__all__ = ["write_page"]

STYLE = """\
pre { overflow-x: auto; font-size: .85rem; margin: .4rem 0 .4rem 1rem; }
section { margin-bottom: 3rem; }
img { width: 100%; height: auto; background: #fff; border-radius: 4px; }
.agrees { color: var(--run-2); font-weight: 600; } .DISAGREES { color: var(--run-4); font-weight: 600; }
.undecided { font-style: italic; }
p.text { max-width: 50rem; }
"""


def write_page(experiments: Sequence[Experiment], results: Path, out: Path) -> Path:
    """Write the report of what has been run.

    Args:
        experiments: In the order of the page.
        results: Folder of `run_experiment`.
        out: The HTML file.

    Returns:
        `out`.

    Raises:
        ValueError: If nothing has been run, or a result is damaged.
    """
    found = [(one, outcome) for one in experiments if (outcome := load_outcome(one, results)) is not None]
    if not found:
        raise ValueError(
            f"{results} has no result of the lab: run one with: sibert lab run NAME, or all with: make lab"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, _page(found, len(experiments)))
    return out


def _page(found: Sequence[tuple[Experiment, Outcome]], of: int) -> str:
    words = [outcome.word for _, outcome in found]
    undecided = words.count("undecided")
    title = "The theory of training dynamics, by number"
    lead = (
        f"{words.count('agrees')} of {len(found)} experiments agree with theory"
        + (f", {undecided} cannot tell" if undecided else "")
        + (f" ({of - len(found)} have not been run)" if of > len(found) else "")
        + ". A verdict compares a measured number with the range that theory and a tolerance allow: it agrees if the "
        "number is there with the whole of its 95 % confidence interval, and is undecided if only the number is."
    )
    rows = "".join(
        f'<tr><th><a href="#{one.name}">{html.escape(one.title)}</a></th>{_mark(outcome.word)}'
        f"<td>{len(outcome.verdicts)}</td><td>{outcome.scale}</td><td>{outcome.seconds:.0f} s</td></tr>"
        for one, outcome in found
    )
    head = "<tr><th>claim</th><th></th><th>verdicts</th><th>scale</th><th>time</th></tr>"
    machine = found[0][1].environment
    parts = [
        f"<h1>{title}</h1>",
        f'<p class="lead">{lead}</p>',
        f'<div class="scroll"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>',
        *(_section(one, outcome) for one, outcome in found),
        f'<p class="lead">sibert {machine["sibert"]}, torch {machine["torch"]}, {html.escape(machine["processor"])}, '
        f"{machine['threads']} threads.</p>",
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{CSS}{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def _section(one: Experiment, outcome: Outcome) -> str:
    image = base64.b64encode(outcome.figure.encode()).decode()
    option = {"full": " --full", "smoke": " --smoke"}.get(outcome.scale, "")
    option += f" --images {html.escape(outcome.images)}" if outcome.images else ""
    rows = "".join(_row(verdict) for verdict in outcome.verdicts)
    head = '<tr><th class="text">measured</th><th>number</th><th>theory</th><th>allowed</th><th></th></tr>'
    sources = "; ".join(html.escape(_short(key)) for key in one.references)
    return (
        f'<section id="{one.name}"><h2>{html.escape(one.title)}</h2>\n{_paragraphs(one.text)}\n'
        f'<figure style="max-width:none"><img alt="{html.escape(one.title)}" src="data:image/svg+xml;base64,{image}">'
        f'</figure>\n<div class="scroll"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>\n'
        f'<p class="lead">{sources}.<br><code>sibert lab run {one.name}{option}</code></p></section>'
    )


def _row(verdict: Verdict) -> str:
    number = _number(verdict.measured) + ("" if verdict.error is None else f" ± {_number(verdict.error)}")
    if math.isinf(verdict.low):
        allowed = f"≤ {_number(verdict.high)}"
    elif math.isinf(verdict.high):
        allowed = f"≥ {_number(verdict.low)}"
    else:
        allowed = f"{_number(verdict.low)} to {_number(verdict.high)}"
    predicted = "" if verdict.predicted is None else _number(verdict.predicted)
    return (
        f'<tr><td class="text">{html.escape(verdict.text)}</td><td>{number}</td><td>{predicted}</td>'
        f"<td>{allowed}</td>{_mark(verdict.word)}</tr>"
    )


def _mark(word: Word) -> str:
    return f'<td class="{word}">{word}</td>'


def _number(value: float) -> str:
    return f"{value:.4g}"


def _short(key: str) -> str:
    fields = dict(line.strip().rstrip(",").split(" = ", 1) for line in REFERENCES[key].splitlines()[1:-1])
    author = fields["author"].strip("{}").split(" and ")
    names = author[0].split(",")[0] + (" et al." if len(author) > 1 else "")
    where = f", arXiv {fields['eprint'].strip('{}')}" if "eprint" in fields else ""
    return f"{names} {fields['year'].strip('{}')}{where}"


def _paragraphs(text: str) -> str:
    """Paragraphs of a docstring; indented ones are formulas."""
    parts = []
    for paragraph in text.split("\n\n"):
        if paragraph.startswith("    "):
            lines = "\n".join(line.removeprefix("    ") for line in paragraph.splitlines())
            parts.append(f"<pre>{html.escape(lines)}</pre>")
        else:
            parts.append(f'<p class="text">{html.escape(" ".join(paragraph.split()))}</p>')
    return "\n".join(parts)
