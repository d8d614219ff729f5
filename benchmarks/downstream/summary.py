"""Tables and a figure of the downstream study, from its stored runs.

    python benchmarks/downstream/summary.py

Writes results/downstream.md, whose parts the documentation includes, docs/figures/downstream_sensitivity.svg, and the
table of scores between the markers of the README. What has not been measured is left out.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import matplotlib
from finetuning import CONTESTANTS, RESULTS, ROOT, SEEDS, WIDE, Study, score, wide_trials
from scipy import stats

matplotlib.use("Agg")
from matplotlib import pyplot as plt

OURS, THEIRS = "SIBERT matrix, ClippedSGD", "ModernBERT, AdamW"
CONVERTED = "ModernBERT converted, ClippedSGD"
DEFAULT = {"D": 0.1, "head_lr": 1e-3}
BEGIN, END = "<!-- downstream: begin -->", "<!-- downstream: end -->"
TASKS = ("cola", "sst2", "mrpc", "stsb", "qnli", "rte", "squad")


def scores(study: Study, contestant: str, task: str) -> list[float]:
    """Of the best setting, one for each seed that was run."""
    return list(scores_by_seed(study, contestant, task).values())


def scores_by_seed(study: Study, contestant: str, task: str) -> dict[int, float]:
    """The same, with the seeds."""
    setting = study.best(contestant, task)
    if setting is None:
        return {}
    found = {seed: study.find(contestant, task, setting, seed) for seed in SEEDS}
    return {seed: score(record) for seed, record in found.items() if record is not None}


def holm(values: dict[str, float]) -> dict[str, float]:
    """Holm's correction: each p-value times the number of those not smaller, never falling.

    Where all differences are 0, the test has no p-value (NaN); it counts as 1.
    """
    values = {name: 1.0 if math.isnan(p) else p for name, p in values.items()}
    corrected, largest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, p * (len(values) - rank)))
        corrected[name] = largest
    return corrected


def paired(study: Study, one: str, other: str) -> list[list[str]]:
    """Difference of the means of two contestants on each task, and whether the seeds could explain it."""
    differences = {}
    for task in TASKS:
        a, b = (scores_by_seed(study, contestant, task) for contestant in (one, other))
        if len(both := a.keys() & b.keys()) > 1:
            differences[task] = [a[seed] for seed in both], [b[seed] for seed in both]
    p = holm({task: float(stats.ttest_rel(a, b).pvalue) for task, (a, b) in differences.items()})
    rows = [
        [task, f"{statistics.fmean(a) - statistics.fmean(b):+.1f}", f"{p[task]:.3f}"]
        for task, (a, b) in differences.items()
    ]
    if rows:
        mean = statistics.fmean(statistics.fmean(a) - statistics.fmean(b) for a, b in differences.values())
        rows.append(["mean", f"{mean:+.1f}", ""])
    return rows


def defaults(study: Study) -> list[list[str]]:
    """What the search gains over the library's defaults, for ours; one seed."""
    rows = []
    for task in TASKS:
        default, best = study.find(OURS, task, DEFAULT, SEEDS[0]), study.best(OURS, task)
        if default is not None and best is not None:
            record = study.find(OURS, task, best, SEEDS[0])
            assert record is not None
            rows.append([task, f"{score(default):.1f}", f"{score(record):.1f}", str(best)])
    return rows


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def marked(name: str, part: str) -> str:
    """Put marks around a part, by which pages of the documentation include it."""
    return f"<!-- --8<-- [start:{name}] -->\n{part}\n<!-- --8<-- [end:{name}] -->"


def shown(values: list[float]) -> str:
    """Mean and standard deviation."""
    if not values:
        return ""
    return f"{statistics.fmean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def state(study: Study, contestant: str) -> str:
    """Of the optimizer, on MRPC's best run, kB. How long steps take is the question of `finetuning_step.py`."""
    setting = study.best(contestant, "mrpc")
    record: dict[str, Any] | None = None if setting is None else study.find(contestant, "mrpc", setting, SEEDS[0])
    return "" if record is None else f"{record['optimizer_state_bytes'] / 1e3:.0f}"


def pretraining(study: Study) -> list[list[str]]:
    """Every run of pre-training."""
    return [
        [
            record["pretraining"],
            ", ".join(
                f"{name} {record['options'][name]:g}" for name in ("intrinsic_lr", "lr") if name in record["options"]
            ),
            f"{record['environment']['parameters'] / 1e6:.2f}",
            f"{record['step']}",
            f"{record['loss']:.3f}",
            f"{record['wall_seconds'] / 60:.0f}",
            f"{record['optimizer_state_bytes'] / 1e6:.2f}",
        ]
        for record in study.pretraining
    ]


def draw(study: Study) -> None:
    """Scores where all rates are wrong by a factor."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for index, (contestant, task, setting, seed) in enumerate(wide_trials(study)):
        record = study.find(contestant, task, setting, seed)
        if record is not None:
            found.setdefault((task, contestant), []).append((WIDE[index % len(WIDE)], score(record)))
    if not found:
        return
    tasks = sorted({task for task, _ in found})
    figure, axes = plt.subplots(1, len(tasks), figsize=(4.2 * len(tasks), 3.2), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        for (own, contestant), points in found.items():
            if own == task:
                axis.plot(*zip(*sorted(points), strict=True), marker="o", label=contestant)
        axis.set(xscale="log", xlabel="learning rates times", ylabel=f"{task}: score, percent")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    matplotlib.rcParams["svg.hashsalt"] = "downstream"  # the same bytes for the same data
    figure.savefig(ROOT / "docs" / "figures" / "downstream_sensitivity.svg", metadata={"Date": None})


def scores_table(study: Study) -> str:
    """All contestants on all tasks, and the state of their optimizers."""
    rows = []
    for name in CONTESTANTS:
        found = [scores(study, name, task) for task in TASKS]
        if any(found):
            mean = f"{statistics.fmean(map(statistics.fmean, found)):.1f}" if all(found) else ""
            rows.append([name, *map(shown, found), mean, state(study, name)])
    for name in dict.fromkeys(record["baseline"] for record in study.simple):
        found = [
            [score(one) for one in study.simple if (one["baseline"], one["task"]) == (name, task)] for task in TASKS
        ]
        rows.append([name, *map(shown, found), "", ""])
    return table(["", *TASKS, "mean", "state, kB"], rows)


def main() -> None:
    study = Study({}, 1)
    head = ["pre-trained", "rate", "M parameters", "steps", "validation loss", "minutes", "state, MB"]
    parts = {"pretraining": table(head, pretraining(study)), "scores": scores_table(study)}
    for name, one in (("ours-less-adamw", OURS), ("converted-less-adamw", CONVERTED)):
        parts[name] = table(["task", "difference", "p (Holm)"], paired(study, one, THEIRS))
    parts["defaults"] = table(["task", "defaults", "best of four", "which"], defaults(study))
    text = "\n\n".join(marked(name, part) for name, part in parts.items()) + "\n"
    RESULTS.with_suffix(".md").write_text(text, encoding="utf-8")
    readme = ROOT / "README.md"
    page = readme.read_text(encoding="utf-8")
    if BEGIN in page:
        readme.write_text(f"{page.split(BEGIN)[0]}{BEGIN}\n{parts['scores']}\n{END}{page.split(END)[1]}")
    draw(study)
    print(len(study.records), "runs")
    print(text)


if __name__ == "__main__":
    main()
