"""Tables and figures of a study, from its stored trials; the README's headline table among them.

    python benchmarks/quality/report.py [--scale cpu]

Writes results/quality/SCALE.md and docs/figures/quality_*.svg, and puts the table between the markers of the README if
it has them. What a phase has not measured yet is left out, and the table says how many trials stand behind it.
"""

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from contestants import CONTESTANTS
from study import ROOT, SCALES, Scale, finite, read, results

matplotlib.use("Agg")
from matplotlib import pyplot as plt

FIGURES = ROOT / "docs" / "figures"
BEGIN, END = "<!-- quality: begin -->", "<!-- quality: end -->"


def select(records: Iterable[Mapping[str, Any]], **wanted: Any) -> list[Mapping[str, Any]]:
    """Records whose trials have these values."""
    return [record for record in records if all(record["trial"][key] == value for key, value in wanted.items())]


def plain(records: Iterable[Mapping[str, Any]], scale: Scale) -> list[Mapping[str, Any]]:
    """Records of the study's own sizes and without variations."""
    return [r for r in records if not r["trial"]["options"] and r["trial"]["sizes"] == vars(scale.sizes)]


def search_table(records: Sequence[Mapping[str, Any]], scale: Scale) -> str:
    """Loss by rate at the short budget."""
    rows = ["| contestant | rate: loss |", "|---|---|"]
    for name, contestant in CONTESTANTS.items():
        found = select(records, contestant=name, tokens=scale.short, tokens_per_step=scale.tokens_per_step, seed=0)
        if not found:
            continue
        best = min(found, key=finite)
        cells = []
        for record in sorted(found, key=lambda r: r["trial"]["rate"]):
            text = "diverged" if record["loss"] is None else f"{record['loss']:.3f}"
            cells.append(f"{record['trial']['rate']:g}: {f'**{text}**' if record is best else text}")
        rows.append(f"| {contestant.label} | {', '.join(cells)} |")
    return "\n".join(rows)


def final_rows(records: Sequence[Mapping[str, Any]], scale: Scale) -> list[dict[str, Any]]:
    """For each contestant the long runs at its best rate."""
    rows = []
    for name, contestant in CONTESTANTS.items():
        found = select(records, contestant=name, tokens=scale.long, tokens_per_step=scale.tokens_per_step)
        first_seed = select(found, seed=0)
        if not first_seed:
            continue
        rate = min(first_seed, key=finite)["trial"]["rate"]
        runs = select(found, rate=rate)
        losses = [finite(run) for run in runs]
        rows.append(
            {
                "name": name,
                "label": contestant.label,
                "rate": rate,
                "losses": losses,
                "mean": sum(losses) / len(losses),
                "runs": runs,
                "seconds": sorted(run["median_seconds_per_step"] for run in runs)[len(runs) // 2],
                "state": runs[0]["optimizer_state_bytes"],
            }
        )
    return sorted(rows, key=lambda row: row["mean"])


def final_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The headline."""
    target = min((row["mean"] for row in rows if row["name"].startswith("bert-p")), default=math.nan)
    lines = [
        "| contestant | rate | loss, mean (lowest to highest) | tokens to the loss of BERT + AdamW | optimizer state |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        spread = f"{min(row['losses']):.3f} to {max(row['losses']):.3f}, {len(row['losses'])} seeds"
        loss = f"{row['mean']:.3f} ({spread if len(row['losses']) > 1 else '1 seed'})"
        share = tokens_to(row["runs"], target)
        reached = "not reached" if share is None else f"{share:.2f}x"
        lines.append(f"| {row['label']} | {row['rate']:g} | {loss} | {reached} | {row['state'] / 1e6:.2f} MB |")
    return "\n".join(lines)


def tokens_to(runs: Sequence[Mapping[str, Any]], target: float) -> float | None:
    """Share of the budget after which the mean of the curves is at the target, interpolated; None if never."""
    if any(None in (loss for _, loss in run["curve"]) for run in runs):
        return None
    points = [
        (at_one_time[0][0], sum(loss for _, loss in at_one_time) / len(at_one_time))
        for at_one_time in zip(*(run["curve"] for run in runs), strict=True)
    ]
    previous = None
    for tokens, loss in points:
        if loss <= target:
            if previous is None:
                return float(tokens / points[-1][0])
            part = (previous[1] - target) / (previous[1] - loss)
            return float((previous[0] + part * (tokens - previous[0])) / points[-1][0])
        previous = tokens, loss
    return None


def curves_figure(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Validation loss along the long runs."""
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for number, row in enumerate(rows):
        style = {"linewidth": 2.0} if row["name"].startswith("sibert") else {"linewidth": 1.0, "linestyle": "--"}
        for index, run in enumerate(row["runs"]):
            points = [(tokens / 1e6, loss) for tokens, loss in run["curve"] if loss is not None]
            label = row["label"] if index == 0 else None
            axes.plot(*zip(*points, strict=True), label=label, color=plt.get_cmap("tab20")(number), **style)
    axes.set_xlabel("million tokens")
    axes.set_ylabel("validation masked-LM loss, nats")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
    save(figure, path)


def search_figure(records: Sequence[Mapping[str, Any]], scale: Scale, path: Path) -> None:
    """Loss against rate relative to the best one: how much tuning a contestant needs."""
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for name, contestant in CONTESTANTS.items():
        found = select(records, contestant=name, tokens=scale.short, tokens_per_step=scale.tokens_per_step, seed=0)
        points = sorted((r["trial"]["rate"], r["loss"]) for r in found if r["loss"] is not None)
        if len(points) < 2:
            continue
        best = min(points, key=lambda point: point[1])[0]
        style = {"linewidth": 2.0} if name.startswith("sibert") else {"linewidth": 1.0, "linestyle": "--"}
        axes.plot([rate / best for rate, _ in points], [loss for _, loss in points], label=contestant.label, **style)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate (intrinsic for ClippedSGD) / best of the search")
    axes.set_ylabel("validation masked-LM loss, nats")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """As SVG with the same bytes for the same data."""
    matplotlib.rcParams["svg.hashsalt"] = "quality"
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)
    print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=tuple(SCALES), default="cpu")
    options = parser.parse_args()
    scale = SCALES[options.scale]
    stored = results(options.scale)
    everything = read(stored)
    if not everything:
        parser.error(f"there are no trials in {stored}; run study.py --scale {options.scale} first")
    records = plain(everything, scale)
    parts = [f"# Quality, scale {options.scale}: {len(everything)} trials", "## Search", search_table(records, scale)]
    rows = final_rows(records, scale)
    if rows:
        parts += ["## Final", final_table(rows)]
    text = "\n\n".join(parts) + "\n"
    stored.with_suffix(".md").write_text(text)
    print(text)
    if options.scale != "smoke":
        search_figure(records, scale, FIGURES / f"quality_search_{options.scale}.svg")
        if rows:
            curves_figure(rows, FIGURES / f"quality_curves_{options.scale}.svg")
    readme = ROOT / "README.md"
    page = readme.read_text()
    if options.scale == "cpu" and rows and BEGIN in page:
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        readme.write_text(f"{before}{BEGIN}\n{final_table(rows)}\n{END}{after}")


if __name__ == "__main__":
    main()
