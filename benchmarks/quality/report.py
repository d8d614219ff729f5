"""Tables and figures of a study, from its stored trials; the README's headline table among them.

    python benchmarks/quality/report.py [--scale cpu]

Writes results/quality/SCALE.md and docs/figures/quality_*.svg, and puts the final table between the markers of the
README. What has not been measured yet is left out.
"""

import argparse
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib
from contestants import CONTESTANTS
from study import (
    ABLATIONS,
    ADAMW,
    DEPTHS,
    MISJUDGED_RATE,
    OF_SPECTRAL,
    OURS,
    PLAIN,
    RECIPES,
    ROBUSTNESS,
    ROOT,
    SCALES,
    Study,
    finite,
    read,
    results,
)
from trial import Trial

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter

FIGURES = ROOT / "docs" / "figures"
LAWFUL = ("sibert-joint", "sibert-matrix-one-sided")
"""Clipped from above alone, a wrong learning rate costs a logarithmic number of steps."""
IN_A_LAYER = re.compile(r"(^|\.)layers?\.\d+\.")
"""Names of parameters of numbered layers. (That of a whole model may have "layer" in it.)"""
BEGIN, END = "<!-- quality: begin -->", "<!-- quality: end -->"

COLORS = {
    "polar": "tab:olive",
    "Muon": "tab:green",
    "SinkGD": "tab:brown",
    "AdamW": "tab:blue",
    "ClippedSGD": "tab:orange",
    "LAMB": "tab:purple",
    "SGD": "tab:red",
}
"""Of optimizers, by the first word that a label has; "Muon + AdamW" is Muon."""
LINES = {"SIBERT": "-", "ModernBERT": "--"}
"""Of architectures; the others are dotted."""

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Final:
    """The long runs of a contestant at its best rate, one for each seed."""

    name: str
    rate: float
    options: Mapping[str, Any]
    runs: Sequence[Record]

    @property
    def label(self) -> str:
        """The contestant, and what its recipe has that others have not."""
        label = CONTESTANTS[self.name].label
        return f"{label}, {named(self.options)}" if self.options else label

    @property
    def losses(self) -> list[float]:
        """One for each seed."""
        return [finite(run) for run in self.runs]

    @property
    def mean(self) -> float:
        """Of the losses."""
        return mean(self.losses)

    @property
    def curve(self) -> list[tuple[int, float]]:
        """Tokens and mean loss on a quarter of the validation set; infinite where a run diverged."""
        points = zip(*(run["curve"] for run in self.runs), strict=False)
        return [
            (point[0][0], sum(math.inf if loss is None else loss for _, loss in point) / len(point)) for point in points
        ]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; nothing if it has no rows."""
    rows = list(rows)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]) if rows else ""


def marked(title: str, part: str) -> str:
    """Put marks around a part, by which pages of the documentation include it."""
    name = title.lower().replace(" ", "-")
    return f"<!-- --8<-- [start:{name}] -->\n{part.strip()}\n<!-- --8<-- [end:{name}] -->"


def shown(loss: float) -> str:
    """Three digits; the validation set does not carry more."""
    return "diverged" if math.isinf(loss) else f"{loss:.3f}"


def range_of_seeds(losses: Sequence[float]) -> str:
    """The lowest loss and the highest."""
    return f"{shown(min(losses))} to {shown(max(losses))}" if len(losses) > 1 else "one seed"


def named(options: Mapping[str, Any]) -> str:
    """A variation in words."""
    return ", ".join(f"{key} {value}" if value is not True else key for key, value in options.items()) or "as it is"


def tokens_until(curve: Sequence[tuple[int, float]], target: float) -> float | None:
    """Tokens after which a curve is at a loss, interpolated; None if never."""
    if curve[0][1] <= target:
        return float(curve[0][0])
    for (left, high), (right, low) in itertools.pairwise(curve):
        if low <= target:
            part = (high - target) / (high - low) if math.isfinite(high) else 1.0
            return left + part * (right - left)
    return None


def search_table(study: Study) -> str:
    """Loss by rate at the short budget."""
    rows = []
    for name, contestant in CONTESTANTS.items():
        if losses := study.search(name):
            rows.append([contestant.label, by_rate(losses)])
    return table(["contestant", "rate: loss"], rows)


def long_table(study: Study) -> str:
    """Loss by rate of all long runs of one seed, losing recipes and ablations too; nothing if they are the search's."""
    if study.scale.long == study.scale.short:
        return ""
    rows = []
    for name, contestant in CONTESTANTS.items():
        ablations = ABLATIONS if name == "sibert-matrix" else []
        for options in [PLAIN, *RECIPES.get(name, []), *ablations]:
            if losses := study.search(name, tokens=study.scale.long, options=options):
                rows.append([contestant.label, named(options), by_rate(losses)])
    return table(["contestant", "variation", "rate: loss"], rows)


def by_rate(losses: Mapping[float, float]) -> str:
    """All losses of a search, the best one in bold."""
    best = min(losses.values())
    marks = {rate: "**" * (loss == best) for rate, loss in losses.items()}
    return ", ".join(f"{rate:g}: {marks[rate]}{shown(loss)}{marks[rate]}" for rate, loss in losses.items())


def variations_table(study: Study, contestants: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """What a variation changes at the best rate among those tried with it."""
    rows = []
    for name, variations in contestants.items():
        if not (searched := study.search(name)):
            continue
        plain = min(searched.values())
        for options in variations:
            losses = study.search(name, options=options)
            if losses:
                rate = min(losses, key=losses.__getitem__)
                difference = losses[rate] - plain
                rows.append(
                    [CONTESTANTS[name].label, named(options), f"{rate:g}", shown(losses[rate]), f"{difference:+.3f}"]
                )
    return table(["contestant", "variation", "rate", "loss", "difference"], rows)


def attribution_table(study: Study) -> str:
    """From SGD to Muon on the matrix form, one thing at a time; the best of the rates tried."""
    full_size, one_angle = OF_SPECTRAL
    steps: list[tuple[str, Mapping[str, Any]]] = [
        ("sibert-matrix", PLAIN),
        ("sibert-matrix", {"clip": one_angle["clip"]}),
        ("sibert-matrix-momentum", PLAIN),
        ("sibert-matrix-spectral", PLAIN),
        ("sibert-matrix-spectral", one_angle),
        ("sibert-matrix-spectral-momentum", PLAIN),
        ("sibert-matrix-spectral-momentum", full_size),
        ("sibert-matrix-muon", PLAIN),
    ]
    rows = []
    for name, options in steps:
        if not (losses := study.search(name, options=options)):
            return ""
        rate = min(losses, key=losses.__getitem__)
        record = study.records[study.trial(name, rate, options=options).key]
        state = f"{record['optimizer_state_bytes'] / record['parameters']:.2f}"
        rows.append([CONTESTANTS[name].label, named(options), f"{rate:g}", shown(losses[rate]), state])
    return table(["contestant", "variation", "rate", "loss", "state, bytes a parameter"], rows)


def finals(study: Study) -> dict[str, Final]:
    """Each contestant's long runs with the lowest mean, among those of most seeds; best first.

    One seed picks the variation that the others are run with. Where they do not confirm it, another with as many seeds
    is the contestant's, so that luck with one seed costs nobody anything.
    """
    found = []
    for name in filter(study.search, CONTESTANTS):
        several = [
            Final(name, rate, options, runs)
            for options in [PLAIN, *RECIPES.get(name, [])]
            for rate in CONTESTANTS[name].rates
            if (runs := long_runs(study, name, rate, options))
        ]
        if several:
            found.append(min(several, key=lambda final: (-len(final.runs), final.mean)))
    return {final.name: final for final in sorted(found, key=lambda final: final.mean)}


def long_runs(study: Study, name: str, rate: float, options: Mapping[str, Any]) -> list[Record]:
    """Those of one setting, one for each seed that has been run."""
    trials = [study.long(name, rate, seed=seed, options=options) for seed in study.scale.seeds]
    return [record for trial in trials if (record := study.find(trial))]


def reference(found: Mapping[str, Final]) -> Final | None:
    """The best BERT with AdamW."""
    return min((found[name] for name in ADAMW if name in found), key=lambda final: final.mean, default=None)


def final_table(found: Mapping[str, Final]) -> str:
    """The headline."""
    bert = reference(found)
    rows = []
    for final in found.values():
        reached, difference = "", ""
        if bert:
            tokens = tokens_until(final.curve, bert.curve[-1][1])
            reached = "not reached" if tokens is None else f"{tokens / final.curve[-1][0]:.2f}x"
            difference = f"{final.mean - bert.mean:+.3f}"
        seeds = range_of_seeds(final.losses)
        state = f"{final.runs[0]['optimizer_state_bytes'] / final.runs[0]['parameters']:.2f}"
        size = f"{final.runs[0]['parameters'] / 1e6:.2f}"
        row = [final.label, f"{final.rate:g}", shown(final.mean), seeds, difference, reached, size, state]
        rows.append([f"**{cell}**" for cell in row] if final.name == "sibert-matrix" else row)
    head = [
        "contestant",
        "rate",
        "loss",
        "seeds",
        "less the best AdamW",
        "tokens to the loss of that",
        "million parameters",
        "state, bytes a parameter",
    ]
    return table(head, rows)


def shortened(study: Study, found: Mapping[str, Final]) -> str:
    """The matrix form with fewer tokens."""
    bert = reference(found)
    if not bert or "sibert-matrix" not in found:
        return ""
    losses = study.losses_of_seeds(study.shortened(0))
    if not losses:
        return ""
    seeds = range_of_seeds(losses)
    behind = f"{mean(losses) - bert.mean:+.3f} against {bert.label}"
    return f"SIBERT matrix with 0.8 of the tokens, schedule and all: {shown(mean(losses))} ({seeds}), {behind}."


def gap(study: Study, found: Mapping[str, Final]) -> str:
    """The paper's own gap: joint form against Adam on BERT with learned positions, after equal and twice the steps."""
    joint = found.get("sibert-joint")
    bert = reference({name: final for name, final in found.items() if name != "bert-modern-adamw"})
    if not joint or not bert:
        return ""
    twice = study.find(study.long("sibert-joint", joint.rate, tokens=2 * study.scale.long))
    later = f", after twice the steps {finite(twice) - bert.mean:+.3f}" if twice else ""
    return (
        f"Joint form (the paper's) against {bert.label}: {joint.mean - bert.mean:+.3f} nats after equal steps{later}. "
        "The paper reports +0.101 and +0.016 for BERT base."
    )


def batch_table(study: Study) -> str:
    """Loss at each batch size, a contestant's with one recipe: that of which most sizes have been measured."""
    batches = study.measured_batches()
    if len(batches) < 2:
        return ""
    rows = []
    for name in study.finalists():
        recipes = [
            (options, [batch_cell(study, name, size, tokens, options) for size, tokens in batches])
            for options in (study.best_options(name), PLAIN)
        ]
        options, cells = max(recipes, key=lambda recipe: sum(map(bool, recipe[1])))
        rows.append([CONTESTANTS[name].label, named(options), *cells])
    return table(["contestant", "variation", *(batch_name(study, *batch) for batch in batches)], rows)


def batch_name(study: Study, size: int, tokens: int) -> str:
    """The size, and how long the run is if it is longer than those of the search."""
    longer = "" if tokens == study.scale.short else f", {tokens / study.scale.short:g} times the tokens"
    return f"{size} tokens a step{longer}"


def batch_cell(study: Study, name: str, size: int, tokens: int, options: Mapping[str, Any]) -> str:
    """The lowest mean among the rates of most seeds, that rate, and the range of the seeds."""
    fields = {"tokens_per_step": size, "tokens": tokens, "options": options}
    by_seed = {rate: study.losses_of_seeds(study.trial(name, rate, **fields)) for rate in study.search(name, **fields)}
    if not by_seed:
        return ""
    rate, losses = min(by_seed.items(), key=lambda found: (-len(found[1]), mean(found[1])))
    seeds = f"; {range_of_seeds(losses)}" if len(losses) > 1 else ""
    return f"{shown(mean(losses))} ({rate:g}{seeds})"


def share_of_tokens(study: Study) -> str:
    """After which share of the tokens the matrix form is at the loss of the best AdamW, by batch size."""
    parts = []
    for size, tokens in study.measured_batches():
        fields = {"tokens_per_step": size, "tokens": tokens}
        ours, theirs = (
            [
                record
                for name in names
                for options in (study.best_options(name), PLAIN)
                for rate in study.search(name, options=options, **fields)
                if (record := study.find(study.trial(name, rate, options=options, **fields)))
            ]
            for names in (("sibert-matrix",), study.adamw)
        )
        if ours and theirs:
            curve = [(seen, math.inf if loss is None else loss) for seen, loss in min(ours, key=finite)["curve"]]
            seen = tokens_until(curve, curve_end(min(theirs, key=finite)))
            share = "never" if seen is None else f"{seen / curve[-1][0]:.2f}"
            parts.append(f"{share} ({batch_name(study, size, tokens)})")
    return f"SIBERT matrix is at the loss of the best AdamW after this share of the tokens, seed 0: {', '.join(parts)}."


def robustness_table(study: Study) -> str:
    """One setting for all: what a variation changes."""
    runs = study.robust()
    plain = [finite(study.records[base.key]) for base in runs.values()]
    rows = []
    changes: dict[str, list[list[float]]] = {}
    for options in ROBUSTNESS:
        records = [study.find(replace(base, options=options)) for base in runs.values()]
        row = [finite(record) - loss if record else math.nan for record, loss in zip(records, plain, strict=True)]
        changes.setdefault(next(iter(options)), []).append(row)
        if any(records):
            cells = [
                "" if math.isnan(change) else "diverged" if math.isinf(change) else f"{change:+.4f}" for change in row
            ]
            rows.append([named(options), *cells])
    for kind in ("init_scale", "loss_scale"):
        cells = [spread(values) for values in zip(*changes[kind], strict=True)]
        if any(cells):
            rows.append([f"**spread over {kind}**", *(cell and f"**{cell}**" for cell in cells)])
    for depth in sorted({*DEPTHS} - {study.scale.sizes.num_hidden_layers}):
        records = [
            study.find(replace(base, sizes=replace(base.sizes, num_hidden_layers=depth))) for base in runs.values()
        ]
        if any(records):
            rows.append([f"{depth} layers (loss)", *(shown(finite(record)) if record else "" for record in records)])
    if not rows:
        return ""
    head = ["change of the loss", *(CONTESTANTS[name].label for name in runs)]
    return table(head, [[f"as it is ({study.scale.sizes.num_hidden_layers} layers)", *map(shown, plain)], *rows])


def spread(changes: Sequence[float]) -> str:
    """Highest less lowest loss, that of no change included; nothing unless all have been measured."""
    if any(map(math.isnan, changes)):
        return ""
    width = max(0.0, *changes) - min(0.0, *changes)
    return "diverged" if math.isinf(width) else f"{width:.4f}"


def misjudged_table(study: Study) -> str:
    """What a learning rate that is wrong by a factor costs at fixed eta lambda."""
    rows = []
    for trials in study.misjudged_trials():
        base, *others = [(trial, study.find(trial)) for trial in trials]
        if base[1] is None:
            continue
        for trial, record in others:
            if record is None:
                continue
            options = {key: value for key, value in trial.options.items() if key != "schedule"}
            lawful = trial.contestant in LAWFUL
            late = finite(record)
            curve = [(tokens, math.inf if loss is None else loss) for tokens, loss in base[1]["curve"]]
            # The curve is of a quarter of the validation set, so both ends have to be.
            reached = tokens_until(curve, curve_end(record)) if math.isfinite(late) else None
            steps = None if reached is None else (trial.tokens - reached) / trial.tokens_per_step
            predicted = f"{abs(math.log(next(iter(options.values())))) / 2 / MISJUDGED_RATE:.0f}" if lawful else ""
            extra = f"{steps:.0f}" if steps is not None else "none: ends lower" if math.isfinite(late) else "never"
            label = CONTESTANTS[trial.contestant].label
            rows.append([label, named(options), f"{shown(late)} ({late - finite(base[1]):+.3f})", extra, predicted])
    return table(["contestant", "wrong by", "loss", "extra steps", "ln(factor) / (2 eta lambda)"], rows)


def curve_end(record: Record) -> float:
    """The last loss on a quarter of the validation set."""
    loss = record["curve"][-1][1]
    return math.inf if loss is None else float(loss)


def trunk_angles(record: Record, part: float = 0.5) -> dict[str, list[float]]:
    """How far the matrices of the layers turned in one step in the middle of a run."""
    steps = record["trial"]["tokens"] // record["trial"]["tokens_per_step"]
    measured = record["rotation"].get(str(round(part * steps)), {})
    return {name: angles for name, angles in measured.items() if IN_A_LAYER.search(name) and angles[0]}


def instrumented(study: Study, found: Mapping[str, Final]) -> dict[str, Record]:
    """Label -> run, for the tables and figures of rotation."""
    runs = {CONTESTANTS[name].label: found[name].runs[0] for name in (*OURS, *ADAMW) if name in found}
    one_group = ABLATIONS[0]
    losses = study.search("sibert-matrix", options=one_group)
    if losses:
        rate = min(losses, key=losses.__getitem__)
        runs["SIBERT matrix, all in one group"] = study.records[
            study.trial("sibert-matrix", rate, options=one_group).key
        ]
    return {label: run for label, run in runs.items() if trunk_angles(run)}


def rotation_table(runs: Mapping[str, Record]) -> str:
    """Is rotation balanced?"""
    rows = []
    for label, run in runs.items():
        angles = trunk_angles(run)
        matrices = sorted(one[0] for one in angles.values())
        rows_ratio = sorted(one[3] / one[1] for one in angles.values() if one[1])
        rows.append(
            [
                label,
                f"{matrices[0]:.4f}, {matrices[len(matrices) // 2]:.4f}, {matrices[-1]:.4f}",
                f"{matrices[-1] / matrices[0]:.1f}",
                f"{rows_ratio[len(rows_ratio) // 2]:.1f}" if rows_ratio else "",
            ]
        )
    head = [
        "run",
        "radians per step: slowest, median, fastest matrix",
        "fastest / slowest",
        "rows: 90th / 10th percentile",
    ]
    return table(head, rows)


def style(label: str) -> dict[str, Any]:
    """The colour says the optimizer, the kind of line the architecture."""
    color = next((color for part, color in COLORS.items() if part in label), "tab:gray")
    line = next((line for part, line in LINES.items() if label.startswith(part)), ":")
    return {"color": color, "linestyle": line, "linewidth": 2.0 if line == "-" else 1.2}


def moved_apart(heights: Sequence[float], gap: float) -> list[float]:
    """The same ascending heights, moved as far as it takes for neighbours to be a gap apart."""
    blocks: list[list[float]] = []  # what has been pushed together keeps its mean
    for height in heights:
        block = [height]
        while blocks and mean(block) - gap * len(block) / 2 < mean(blocks[-1]) + gap * len(blocks[-1]) / 2:
            block = blocks.pop() + block
        blocks.append(block)
    return [mean(block) + gap * (i - (len(block) - 1) / 2) for block in blocks for i in range(len(block))]


def curves_figure(found: Mapping[str, Final], path: Path) -> None:
    """Validation loss along the long runs, the mean of the seeds, each line named at its end."""
    figure, axes = plt.subplots(figsize=(9, 5.4))
    ended = sorted((final for final in found.values() if math.isfinite(final.mean)), key=lambda final: final.mean)
    for final in ended:
        axes.plot(*zip(*((tokens / 1e6, loss) for tokens, loss in final.curve), strict=True), **style(final.label))
    low, high = axes.get_ylim()
    places = moved_apart([final.curve[-1][1] for final in ended], (high - low) / 28)
    for final, place in zip(ended, places, strict=True):
        tokens, loss = final.curve[-1]
        color = style(final.label)["color"]
        axes.annotate(
            f"{final.label}: {final.mean:.2f}",
            (tokens / 1e6, loss),
            (axes.dataLim.x1 * 1.06, place),
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.5, "relpos": (0, 0.5), "shrinkA": 0},
            annotation_clip=False,
            color=color,
            fontsize=7,
            va="center",
        )
    axes.set(xlabel="million tokens", ylabel="validation masked-LM loss, nats")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    save(figure, path)


def search_figure(study: Study, path: Path) -> None:
    """Loss against rate relative to the best one, a panel for each architecture: how much tuning a contestant needs."""
    panels: dict[str, dict[str, dict[float, float]]] = {}
    for name in study.scale.contestants:
        losses = {rate: loss for rate, loss in study.search(name).items() if math.isfinite(loss)}
        if len(losses) > 1:
            label = CONTESTANTS[name].label
            title = next((title for title in LINES if label.startswith(title)), "BERT and the rest")
            panels.setdefault(title, {})[label] = losses
    if not panels:
        return
    figure, all_axes = plt.subplots(1, len(panels), figsize=(3.6 * len(panels), 4.2), sharey=True, squeeze=False)
    for axes, (title, searches) in zip(all_axes[0], sorted(panels.items()), strict=True):
        for label, losses in sorted(searches.items(), key=lambda search: min(search[1].values())):
            best = min(losses, key=losses.__getitem__)
            short = label.removeprefix(title).lstrip(" ,")
            relative = [rate / best for rate in losses]
            axes.plot(relative, list(losses.values()), "o-", markersize=3, linewidth=1.2, label=short)
        axes.set(title=title, xscale="log", xlabel="rate / best rate")
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(0, -0.14), frameon=False)
        axes.grid(alpha=0.3)
    # What is worse than token frequencies has learnt nothing; how much worse does not matter.
    entropy = max(record["unigram_entropy"] for record in study.records.values())
    lowest = min(min(losses.values()) for searches in panels.values() for losses in searches.values())
    margin = (entropy - lowest) / 20
    all_axes[0][0].set(ylabel="validation masked-LM loss, nats", ylim=(lowest - margin, entropy + margin))
    save(figure, path)


def rotation_figure(runs: Mapping[str, Record], path: Path) -> None:
    """The rotation of each matrix of the layers, one line of points a run."""
    figure, axes = plt.subplots(figsize=(7, 0.6 + 0.45 * len(runs)))
    for place, run in enumerate(runs.values()):
        angles = [one[0] for one in trunk_angles(run).values()]
        axes.plot(angles, [place] * len(angles), "o", alpha=0.5, markersize=5)
    axes.set_yticks(range(len(runs)), list(runs), fontsize=7)
    axes.set(xscale="log", xlabel="rotation of a matrix in one step in the middle of the run, radians")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.invert_yaxis()
    axes.grid(alpha=0.3, axis="x")
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
    name = parser.parse_args().scale
    stored = results(name)
    records = read(stored)
    if not records:
        parser.error(f"there are no trials in {stored}; run study.py --scale {name} first")
    study = Study(name, Trial.of(records[0]["trial"]).sources, workers=1, device="")
    parts = {"Search": search_table(study)}
    found: dict[str, Final] = {}
    runs: dict[str, Record] = {}
    if all(study.search(contestant) for contestant in (*OURS, *study.adamw)):
        found = finals(study)
        runs = instrumented(study, found)
        parts |= {
            "Recipe": variations_table(study, RECIPES),
            "Final": "\n\n".join(filter(None, [final_table(found), shortened(study, found), gap(study, found)])),
            "Long runs": long_table(study),
            "Batch size": f"{batch_table(study)}\n\n{share_of_tokens(study)}",
            "Ablation": variations_table(study, {"sibert-matrix": ABLATIONS}),
            "Attribution": attribution_table(study),
            "Rotation": rotation_table(runs),
            "Robustness": robustness_table(study),
            "Misjudged learning rate": misjudged_table(study),
        }
    text = f"# Quality, scale {name}: {len(records)} trials\n\n"
    text += "\n\n".join(f"## {title}\n\n{marked(title, part)}" for title, part in parts.items() if part.strip()) + "\n"
    stored.with_suffix(".md").write_text(text)
    print(text)
    figures = stored.parent if name == "smoke" else FIGURES
    search_figure(study, figures / f"quality_search_{name}.svg")
    if found:
        curves_figure(found, figures / f"quality_curves_{name}.svg")
    if runs:
        rotation_figure(runs, figures / f"quality_rotation_{name}.svg")
    readme = ROOT / "README.md"
    page = readme.read_text()
    if name == "cpu" and found and BEGIN in page:
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        readme.write_text(f"{before}{BEGIN}\n{final_table(found)}\n{END}{after}")


if __name__ == "__main__":
    main()
