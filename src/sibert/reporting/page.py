"""The HTML page: tables and figures of runs in one file that needs nothing else.

Everything that comes from a user's file passes through :func:`text_of`; captions and headings are ours.
"""

import html
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from sibert.reporting.canvas import COLOURS, colour_of, plain_number
from sibert.reporting.figures import Figure, cost_figures, group_figures, loss_figure, overview_figures
from sibert.reporting.run_directory import Run, first_number, load_run
from sibert.reporting.stylesheet import CSS
from sibert.reporting.summary import FINAL_SHARE, Summary, summarise

ABSENT = "–"
# A longer evaluation table is folded: the figures tell its story.
_OPEN_EVALUATIONS = 24
# With more groups than these the overview tells the story, and each group is folded.
_OPEN_GROUPS = 2


def write_report(runs: Sequence[Path | str], out: Path | str) -> Path:
    """Write one self-contained HTML page about one or several runs.

    The page appears under its name only when it is whole: it is written beside it and then moved there.

    Args:
        runs: run directories, at least one, in the order in which they are to be shown.
        out: the HTML file; missing folders are made, an existing file is replaced.

    Returns:
        ``out``.

    Raises:
        ValueError: no run, a run named twice, ``out`` is a folder, or a run directory is damaged (see ``load_run``).
        TypeError: one path instead of a sequence of them.
        OSError: a run directory does not exist, or ``out`` cannot be written.
    """
    out = Path(out)
    if isinstance(runs, (str, Path)):
        raise TypeError(f"expected a sequence of run directories, got one path; pass [{str(runs)!r}]")
    if not runs:
        raise ValueError("no run to report on: give at least one run directory")
    if out.is_dir():
        raise ValueError(f"{out} is a folder; give the name of the HTML file to write, such as {out / 'report.html'}")
    seen: set[str] = set()
    for path in runs:
        if (real := os.path.realpath(path)) in seen:
            raise ValueError(f"the run {path} is named twice; give each run once")
        seen.add(real)
    page = render_page([load_run(path) for path in runs])
    temporary = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # A name may hold half of a surrogate pair, of a folder's bytes or of JSON, which UTF-8 has no place for.
        temporary.write_text(page, encoding="utf-8", errors="replace")
        os.replace(temporary, out)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"cannot write the report to {out}: {reason}; give a writable place with enough room") from error
    finally:
        # Its folder may be no folder: then there is nothing to remove, and the error that matters is on its way.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return out


@np.errstate(over="ignore", invalid="ignore")  # what overflows or has no root is not finite, and leaves a gap
def render_page(runs: Sequence[Run]) -> str:
    """The page as text; the same runs give the same text.

    Args:
        runs: the runs, at least one.

    Returns:
        An HTML document with inline CSS and SVG, without scripts or references to anything outside.
    """
    names = run_names(runs)
    summaries = [summarise(run) for run in runs]
    title = f"Pre-training report: {', '.join(names) if len(names) <= 3 else f'{len(names)} runs'}"
    parts = [
        f"<h1>{text_of(title)}</h1>",
        *_lead(names, summaries),
        _notes(runs, names, summaries),
        "<h2>Runs</h2>",
        _summary_table(names, summaries),
        *_figure_sections(runs, names),
        "<h2>Configuration</h2>",
        *_configuration(runs, names),
        "<h2>Environment</h2>",
        _fold("Versions and machine", _key_table([run.environment for run in runs], names)),
        "<h2>Evaluation</h2>",
        _evaluation_table(runs, names),
    ]
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            # The browser, too, shall know that nothing is to be loaded or run.
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{text_of(title)}</title>\n<style>\n{CSS}</style>\n</head>\n<body>\n<main>",
            *(part for part in parts if part),
            "</main>\n</body>\n</html>\n",
        ]
    )


def run_names(runs: Sequence[Run]) -> list[str]:
    """Names that tell the runs apart: the directory's, with as many parents before it as it takes.

    Args:
        runs: runs in different directories.

    Returns:
        One name for each.
    """
    parts = [Path(os.path.abspath(run.path)).parts for run in runs]
    names = []
    for index, own in enumerate(parts):
        depth = 1
        while depth < len(own) and any(other[-depth:] == own[-depth:] for i, other in enumerate(parts) if i != index):
            depth += 1
        names.append(runs[index].name if depth == 1 else "/".join(own[-depth:]))
    return names


def text_of(value: object) -> str:
    """Anything as HTML text, every special character escaped; lists and objects as JSON."""
    if value is None:
        return ABSENT
    if isinstance(value, str):
        return html.escape(value)
    return html.escape(json.dumps(value, ensure_ascii=False))


# Numbers for people. A value that a run does not have is a dash, never a zero.


def _number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return ABSENT
    if not math.isfinite(value):
        return "not finite"
    return plain_number(value) if abs(value) >= 1e4 else f"{value:.{digits}f}".replace("-", "−")


def _steps(summary: Summary) -> str:
    unfinished = summary.planned_steps is not None and summary.planned_steps > summary.steps
    return _whole(summary.steps) + (f" of {_whole(summary.planned_steps)}" if unfinished else "")


def _whole(value: float | None) -> str:
    return ABSENT if value is None else f"{value:,.0f}".replace(",", "\u202f")


def _bytes(value: int | None) -> str:
    if value is None:
        return ABSENT
    size, unit = next(
        ((size, unit) for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")) if value >= size), (1, "bytes")
    )
    return f"{value} {unit}" if size == 1 else f"{value / size:.{0 if value >= 100 * size else 1}f} {unit}"


def _duration(seconds: float | None) -> str:
    if seconds is None or not math.isfinite(seconds):
        return ABSENT
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _swatch(index: int) -> str:
    return f'<span class="swatch" style="background: var({colour_of(index)})"></span>'


def _head(names: Sequence[str], corner: str = "") -> str:
    cells = "".join(f'<th scope="col">{_swatch(index)}{text_of(name)}</th>' for index, name in enumerate(names))
    return f'<thead><tr><th scope="col">{corner}</th>{cells}</tr></thead>'


def _fold(summary: str, content: str, is_open: bool = False) -> str:
    return f"<details{' open' if is_open else ''}><summary>{summary}</summary>\n{content}\n</details>"


# Sections.


def _lead(names: Sequence[str], summaries: Sequence[Summary]) -> list[str]:
    sentences = []
    for name, summary in zip(names, summaries, strict=True):
        below = summary.below_unigram
        if below is None or not math.isfinite(below):
            continue
        side = "below" if below >= 0 else "above"
        sentences.append(
            f'<p class="lead"><b>{text_of(name)}</b>: after {_whole(summary.validation_step)} steps the validation '
            f"masked-LM loss is {_number(summary.validation_loss)} nats, {_number(abs(below))} {side} the unigram "
            f"entropy ({_number(summary.unigram_entropy)}) of the same targets.</p>"
        )
    # More sentences than this read worse than the table.
    return sentences if len(sentences) <= 3 else []


def _notes(runs: Sequence[Run], names: Sequence[str], summaries: Sequence[Summary]) -> str:
    notes = [(name, note) for name, run in zip(names, runs, strict=True) for note in run.notes]
    for name, summary in zip(names, summaries, strict=True):
        if summary.skipped_steps:
            notes.append((name, f"{summary.skipped_steps} steps were skipped because a gradient was not finite"))
    items = [f"<li><b>{text_of(name)}</b>: {text_of(note)}.</li>" for name, note in notes]
    if len(runs) > COLOURS:
        items.append(f"<li>From the {COLOURS + 1}th run on colours repeat; point at a curve to see its name.</li>")
    return f'<ul class="notes">{"".join(items)}</ul>' if items else ""


def _summary_table(names: Sequence[str], summaries: Sequence[Summary]) -> str:
    share = f"{FINAL_SHARE * 100:.0f} %"
    rows: list[tuple[str, Callable[[Summary], str]]] = [
        ("model", lambda s: text_of(s.model)),
        ("optimizer", lambda s: text_of(s.optimizer)),
        ("size", lambda s: text_of(s.size)),
        ("parameters", lambda s: _whole(s.parameters)),
        ("steps", _steps),
        ("tokens seen", lambda s: _whole(s.tokens_seen)),
        (f"training loss, nats (mean of the last {share})", lambda s: _number(s.train_loss)),
        ("validation masked-LM loss, nats", lambda s: _number(s.validation_loss)),
        ("unigram entropy of the same targets, nats", lambda s: _number(s.unigram_entropy)),
        ("validation loss below the unigram entropy by", lambda s: _number(s.below_unigram)),
        ("wall time", lambda s: _duration(s.wall_seconds)),
        ("tokens per second (median)", lambda s: _whole(s.tokens_per_second)),
        ("peak memory", lambda s: _bytes(s.peak_memory_bytes)),
        ("optimizer state", lambda s: _bytes(s.optimizer_state_bytes)),
    ]
    body = []
    for label, show in rows:
        marked = ' class="marked"' if label.startswith("validation masked-LM") else ""
        cells = "".join(f"<td>{show(summary)}</td>" for summary in summaries)
        body.append(f'<tr{marked}><th scope="row">{label}</th>{cells}</tr>')
    return f'<div class="scroll"><table>{_head(names)}<tbody>\n' + "\n".join(body) + "\n</tbody></table></div>"


def _figure_sections(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    losses = [loss_figure(runs, names, over) for over in ("step", "wall_seconds")]
    parts = _section("Losses", [figure for figure in losses if figure is not None], names)
    parts += _section("All scale-invariant groups", overview_figures(runs, names), names)
    groups = dict.fromkeys(group for run in runs for group in run.invariant_groups)
    for group in groups:
        heading = f"Scale-invariant group <code>{text_of(group)}</code>"
        is_open = len(groups) <= _OPEN_GROUPS
        figures = group_figures(runs, names, group, brief=not is_open)
        if is_open:
            parts += _section(heading, figures, names)
        elif figures:
            parts.append(_fold(heading, _grid(figures, names)))
    return parts + _section("Cost", cost_figures(runs, names), names)


def _section(heading: str, figures: Sequence[Figure], names: Sequence[str]) -> list[str]:
    return [f"<h2>{heading}</h2>", _grid(figures, names)] if figures else []


def _grid(figures: Sequence[Figure], names: Sequence[str]) -> str:
    return '<div class="grid">\n' + "\n".join(_card(figure, names) for figure in figures) + "\n</div>"


def _card(figure: Figure, names: Sequence[str]) -> str:
    legend = []
    if len(names) > 1:
        legend += [f"<li>{_swatch(run)}{text_of(names[run])}</li>" for run in figure.runs]
    legend += [f'<li><span class="key {style}"></span>{text_of(label)}</li>' for style, label in figure.styles]
    keys = f'<ul class="legend">{"".join(legend)}</ul>\n' if legend else ""
    return (
        f'<figure id="{figure.key}">\n<h3>{text_of(figure.title)}</h3>\n{figure.svg}\n{keys}'
        f"<figcaption>{figure.caption}</figcaption>\n</figure>"
    )


def _configuration(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    recipes = [run.recipe for run in runs]
    parts = []
    if len(runs) > 1:
        missing = object()
        keys = dict.fromkeys(key for recipe in recipes for key in recipe)
        different = [key for key in keys if any(r.get(key, missing) != recipes[0].get(key, missing) for r in recipes)]
        if different:
            parts += ["<p>What differs:</p>", _key_table(recipes, names, different)]
        else:
            parts.append("<p>The recipes are the same.</p>")
    parts.append(_fold("Every option", _key_table(recipes, names)))
    return parts


def _key_table(objects: Sequence[Mapping[str, Any]], names: Sequence[str], keys: Sequence[str] | None = None) -> str:
    if keys is None:
        keys = list(dict.fromkeys(key for mapping in objects for key in mapping))
    if not keys:
        return "<p>Nothing was recorded.</p>"
    rows = [
        f'<tr><th scope="row"><code>{text_of(key)}</code></th>'
        + "".join(f'<td class="text">{text_of(mapping.get(key))}</td>' for mapping in objects)
        + "</tr>"
        for key in keys
    ]
    head = _head(names).replace('<th scope="col"><span', '<th scope="col" class="text"><span')
    return f'<div class="scroll"><table>{head}<tbody>\n' + "\n".join(rows) + "\n</tbody></table></div>"


def _evaluation_table(runs: Sequence[Run], names: Sequence[str]) -> str:
    records = [(index, record) for index, run in enumerate(runs) for record in run.evaluations]
    if not records:
        return "<p>No run has been evaluated yet.</p>"
    with_sentences = any("nsp_loss" in record for _, record in records)
    columns: list[tuple[tuple[str, ...], str, Callable[[float], str]]] = [
        (("step",), "step", _whole),
        (("epoch",), "epoch", lambda value: _number(value, 2)),
        (("wall_seconds",), "wall time", _duration),
        *([(("loss",), "sum of both losses", _number)] if with_sentences else []),
        (("mlm_loss", "loss"), "masked-LM loss", _number),
        (("unigram_entropy",), "unigram entropy", _number),
        (("accuracy",), "accuracy", lambda value: f"{value:.1%}"),
        (("nsp_loss",), "next-sentence loss", _number),
        (("nsp_accuracy",), "next-sentence accuracy", lambda value: f"{value:.1%}"),
        (("targets",), "targets", _whole),
    ]
    columns = [column for column in columns if any(key in record for key in column[0] for _, record in records)]
    head = "".join(f'<th scope="col">{label}</th>' for _, label, _ in columns)
    rows = []
    for index, record in records:
        cells = (
            show(first_number(record, keys)) if any(key in record for key in keys) else ABSENT
            for keys, _, show in columns
        )
        rows.append(
            f'<tr><th scope="row">{_swatch(index)}{text_of(names[index])}</th>'
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + "</tr>"
        )
    table = (
        f'<div class="scroll"><table><thead><tr><th scope="col">run</th>{head}</tr></thead><tbody>\n'
        + "\n".join(rows)
        + "\n</tbody></table></div>"
    )
    return _fold(f"{len(records)} evaluations", table, is_open=len(records) <= _OPEN_EVALUATIONS)
