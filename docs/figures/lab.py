"""What the pages on the lab show of its results: tables, figures, machine, references.

    python docs/figures/lab.py runs/lab     takes over new results of `sibert lab run` first
    python docs/figures/lab.py              reads benchmarks/results/lab/ alone

Writes benchmarks/results/lab.md, whose parts the pages of docs/lab/ include, and docs/figures/lab/. Data beyond 200 kB
stay behind: `sibert lab run` makes them again. The exit status is 1 if an experiment has no result; results of an older
form are refused.

The picture of the report:

    sibert lab report benchmarks/results/lab --out lab.html
    chromium --headless --no-sandbox --hide-scrollbars --force-color-profile=srgb --window-size=1000,1500 \
        --screenshot=docs/figures/lab-report.png lab.html
"""

import dataclasses
import json
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from sibert.lab import EXPERIMENTS, REFERENCES, Experiment, Outcome, Verdict, load_outcome

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "lab"
PARTS = RESULTS.with_suffix(".md")
FIGURES = ROOT / "docs" / "figures" / "lab"
LARGEST_DATA = 200_000
MARKED = {"agrees": "agrees", "undecided": "*undecided*", "DISAGREES": "**DISAGREES**"}


def take(source: Path) -> list[str]:
    """Copy what `sibert lab run` has left in a folder; the names of the experiments that were found."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    found = [name for name, one in EXPERIMENTS.items() if load_outcome(one, source) is not None]
    for name in found:
        data = f"{name}-data.json"
        (RESULTS / data).unlink(missing_ok=True)
        files = [f"{name}.json", f"{name}.svg"]
        if (source / data).is_file() and (source / data).stat().st_size <= LARGEST_DATA:
            files.append(data)
        for file in files:
            shutil.copyfile(source / file, RESULTS / file)
    return found


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in [head, *rows]]
    lines = [escaped[0], ["---"] * len(head), *escaped[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def marked(name: str, part: str) -> str:
    """Put marks around a part, by which pages of the documentation include it."""
    return f"<!-- --8<-- [start:{name}] -->\n{part}\n<!-- --8<-- [end:{name}] -->"


def number(value: float, digits: int = 4) -> str:
    """A number as it is read."""
    return f"{value:.{digits}g}"


def digits_of(verdict: Verdict) -> int:
    """As many as tell the ends of the allowed range apart, at least four."""
    ends = [end for end in (verdict.low, verdict.high) if math.isfinite(end)]
    return next(d for d in range(4, 18) if d == 17 or len({number(end, d) for end in ends}) == len(set(ends)))


def row(verdict: Verdict) -> list[str]:
    """Statement, number and interval, theory, allowed range, verdict."""
    digits = digits_of(verdict)
    measured, low, high = (number(value, digits) for value in (verdict.measured, verdict.low, verdict.high))
    if math.isinf(verdict.low):
        allowed = f"≤ {high}"
    elif math.isinf(verdict.high):
        allowed = f"≥ {low}"
    else:
        allowed = f"{low} to {high}"
    return [
        plain(verdict.text),
        measured if verdict.error is None else f"{measured} ± {number(verdict.error, 2)}",
        "" if verdict.predicted is None else number(verdict.predicted, digits),
        allowed,
        MARKED[verdict.word],
    ]


def verdicts(outcome: Outcome) -> str:
    """What was measured beside what theory allows."""
    return table(["measured", "number", "theory", "allowed", "verdict"], [row(one) for one in outcome.verdicts])


def plain(text: str) -> str:
    """Text whose stars and underscores are no Markdown, and whose brackets are no HTML."""
    return text.replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")


def duration(outcome: Outcome) -> str:
    """How long the stored run took."""
    return f"{outcome.seconds:.0f} s" if outcome.seconds < 100 else f"{outcome.seconds / 60:.0f} min"


def command(outcome: Outcome) -> str:
    """What makes the result again, and where this one was made."""
    option = {"full": " --full", "smoke": " --smoke"}.get(outcome.scale, "")
    machine = outcome.environment
    threads = machine["threads"]
    return (
        f"`sibert lab run {outcome.name}{option}`. These numbers took {duration(outcome)}: "
        f"{machine['processor']}, {threads} thread{'s' * (threads != 1)}, torch {machine['torch']}, "
        f"sibert {machine['sibert']}."
    )


def result(one: Experiment, outcome: Outcome | None) -> str:
    """Figure, verdicts and command of an experiment, or that it is missing."""
    if outcome is None:
        return f"!!! warning\n    No result is stored: `sibert lab run {one.name}` makes one."
    intervals = any(verdict.error is not None for verdict in outcome.verdicts)
    note = "\n\n± is half the width of the 95 % confidence interval." if intervals else ""
    figure = f"../figures/lab/{one.name}.svg"
    return f"[![{one.title}]({figure})]({figure})\n\n{verdicts(outcome)}{note}\n\n{command(outcome)}"


def reference(key: str) -> str:
    """Authors, title, place and year of a work."""
    fields = dict(line.strip().rstrip(",").split(" = ", 1) for line in REFERENCES[key].splitlines()[1:-1])
    bare = {name: value.replace("{", "").replace("}", "") for name, value in fields.items()}
    names = [author.partition(",")[0].strip() for author in bare["author"].split(" and ")]
    place = bare.get("booktitle") or bare.get("journal", "")
    arxiv = f", [arXiv {bare['eprint']}](https://arxiv.org/abs/{bare['eprint']})" if "eprint" in bare else ""
    return f"- {', '.join(names)}: {bare['title'].replace('--', '–')}. {place}, {bare['year']}{arxiv}"


def overview(outcomes: dict[str, Outcome | None]) -> str:
    """All claims, with how many of their verdicts agree."""
    rows = []
    for name, outcome in outcomes.items():
        claim = f"[{plain(EXPERIMENTS[name].title)}](../lab/{name}.md)"
        if outcome is None:
            rows.append([claim, "not run", "", ""])
            continue
        agreeing = sum(verdict.word == "agrees" for verdict in outcome.verdicts)
        rows.append([claim, MARKED[outcome.word], f"{agreeing} of {len(outcome.verdicts)}", duration(outcome)])
    return table(["claim", "verdict", "numbers that agree", "took"], rows)


def outcomes() -> dict[str, Outcome | None]:
    """What is stored, by experiment.

    Raises:
        ValueError: If a result has another form than a run of today leaves.
    """
    for path in (RESULTS / f"{name}.json" for name in EXPERIMENTS):
        verdicts = json.loads(path.read_text("utf-8"))["verdicts"] if path.is_file() else []
        if any(set(verdict) != {field.name for field in dataclasses.fields(Verdict)} for verdict in verdicts):
            raise ValueError(f"{path} is of an older form: run it again with: sibert lab run {path.stem}")
    return {name: load_outcome(one, RESULTS) for name, one in EXPERIMENTS.items()}


def parts(found: dict[str, Outcome | None]) -> str:
    """The file that pages include."""
    made = {"overview": overview(found)}
    for name, outcome in found.items():
        one = EXPERIMENTS[name]
        made[f"{name}-claim"] = f"**{plain(one.title)}.**"
        made[name] = result(one, outcome)
        made[f"{name}-references"] = "\n".join(reference(key) for key in one.references)
    return "\n\n".join(marked(name, part) for name, part in made.items()) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Take over results if a folder is given, and write all that is generated."""
    if arguments:
        print("taken over:", ", ".join(take(Path(arguments[0]))) or "nothing")
    found = outcomes()
    PARTS.write_text(parts(found), encoding="utf-8")
    FIGURES.mkdir(parents=True, exist_ok=True)
    for name, outcome in found.items():
        if outcome is not None:
            (FIGURES / f"{name}.svg").write_text(outcome.figure, encoding="utf-8")
    missing = [name for name, outcome in found.items() if outcome is None]
    print(f"wrote {PARTS.relative_to(ROOT)} and {FIGURES.relative_to(ROOT)}/; not run: {', '.join(missing) or 'none'}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
