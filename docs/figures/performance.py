"""The table of performance in the README, and the figures of growth, from stored results alone.

    python docs/figures/performance.py

Reads benchmarks/results/, writes docs/figures/attention.svg, docs/figures/growth.svg and what is between the markers of
the README. What has not been measured says so, with the command that measures it. A target is met if the number that
is shown, rounded as it is shown, reaches it.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

plt.rcParams["svg.hashsalt"] = "performance"  # the same results make the same files

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- performance: begin -->", "<!-- performance: end -->"
FORWARD, BOTH = "forward", "forward and backward"
LINEAR = 0.98
"""Least share of the variance that a line explains."""
CHECKED_FROM = 512
"""Length from which attention has a target."""

Row = tuple[str, str, str, str]
"""What, target, measured, verdict."""


def load(name: str) -> dict[str, Any] | None:
    """The results of a benchmark, if there are any."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def missing(what: str, target: str, command: str) -> Row:
    """A row of what nobody has measured."""
    return what, target, f"not measured: `python benchmarks/{command}`", ""


def verdict(*reached: bool) -> str:
    """In a word, or one for each where they differ."""
    words = ["met" if one else "missed" for one in reached]
    return words[0] if len(set(words)) == 1 else ", ".join(words)


def at_least(value: float, target: float, digits: int = 2) -> bool:
    """Whether a target is reached by what the table shows, rounded."""
    return float(f"{value:.{digits}f}") >= target


def at_most(value: float, target: float, digits: int = 2) -> bool:
    """The same from above."""
    return float(f"{value:.{digits}f}") <= target


def listed(values: Iterable[float]) -> str:
    """With two digits."""
    return ", ".join(f"{value:.2f}" for value in values)


def attention() -> list[Row]:
    """Against SDPA and the reference, on the CPU."""
    found = load("attention")
    if found is None:
        return [missing("attention, CPU", "0.9 of SDPA's speed", "attention.py")]
    rows = []
    for dtype in ("float32", "bfloat16"):
        cases = [c for c in found["cases"] if c["dtype"] == dtype and c["layout"] == "full"]
        long = [c for c in cases if c["length"] >= CHECKED_FROM]
        forward, both = ([c[what]["speed_relative_to"]["SDPA"] for c in long] for what in (FORWARD, BOTH))
        what = f"attention of {', '.join(str(c['length']) for c in long)} tokens, {dtype}, speed relative to SDPA"
        shown = f"{listed(both)} (forward alone {listed(forward)})"
        rows.append((f"{what}, with backward", "0.9", shown, verdict(at_least(min(both), 0.9))))
        others = [c for c in cases if c["auto_takes"]["name"] != "reference"]
        worst = [min(c[what]["speed_relative_to"]["reference"] for c in others) for what in (FORWARD, BOTH)]
        shortest = f"{min(c['length'] for c in others)} to 4096"
        what = f"the same at {shortest} tokens, relative to the reference, {dtype}: least, forward and with backward"
        if len(others) < len(cases):
            what += ' (below, "auto" takes the reference itself)'
        rows.append((what, "1", listed(worst), verdict(*(at_least(speed, 1.0) for speed in worst))))
    slope = found["growth"]["head width 64, float32"]
    time, memory = slope["time"], slope["memory"]
    what = "exponents of time and memory of attention in its length, 512 to 4096 tokens, with backward"
    if "auto" not in memory:
        return [*rows, missing(what, "2 and 1", "attention.py (on Linux)")]
    reference = f" (reference {listed([time['reference'], memory['reference']])})" if "reference" in memory else ""
    reached = verdict(at_most(abs(time["auto"] - 2.0), 0.1), at_most(memory["auto"], 1.0))
    return [*rows, (what, "2 ± 0.1, at most 1", listed([time["auto"], memory["auto"]]) + reference, reached)]


def attention_on_gpu() -> list[Row]:
    """Against FlashAttention, cuDNN and FlexAttention."""
    where, command = "attention, H100, bfloat16", "attention.py --device cuda"
    flash, flex, cudnn, rate = (
        "speed relative to FlashAttention, forward and with backward",
        "speed relative to FlexAttention: least, forward and with backward",
        "speed relative to SDPA by cuDNN: least, forward and with backward",
        "10^12 operations per second forward, T = 8192, head width 128",
    )
    found = load("attention_cuda")
    if found is None:
        targets = {flash: "1.3 and 1.15", flex: "1", cudnn: "", rate: "500"}
        return [missing(f"{where}, {what}", target, command) for what, target in targets.items()]
    where = f"attention, {found['device']}, bfloat16"
    rows = []
    for width, layout in dict.fromkeys((c["width"], c["layout"]) for c in found["cases"]):
        cases = [c for c in found["cases"] if (c["width"], c["layout"]) == (width, layout)]
        speeds = {c["length"]: against(c, "SDPA flash") for c in cases}
        speeds = {length: pair for length, pair in speeds.items() if pair}
        if speeds:
            what = f"{where}, width {width}, {layout}, T = {', '.join(map(str, speeds))}: {flash}"
            shown = "; ".join(listed(pair) for pair in speeds.values())
            reached = all(at_least(pair[0], 1.3) and at_least(pair[1], 1.15) for pair in speeds.values())
            rows.append((what, "1.3 and 1.15", shown, verdict(reached)))
    for what, name, target in ((flex, "FlexAttention", 1.0), (cudnn, "SDPA cuDNN", None)):
        pairs = [pair for c in found["cases"] if (pair := against(c, name))]
        worst = [min(speeds) for speeds in zip(*pairs, strict=True)]
        reached = verdict(*(at_least(speed, target) for speed in worst)) if worst and target else ""
        shown = f"{listed(worst)} ({len(pairs)} of {len(found['cases'])} cases)" if worst else "not available"
        rows.append((f"{where}, {what}", f"{target:.0f}" if target else "", shown, reached))
    for case in found["cases"]:
        if (case["length"], case["width"], case["layout"]) == (8192, 128, "full"):
            speed = case[FORWARD]["tera_operations_per_second"]["auto"]
            rows.append((f"{where}, {rate}", "500", f"{speed:.0f}", verdict(at_least(speed, 500, 0))))
    return rows


def against(case: dict[str, Any], peer: str) -> tuple[float, float] | None:
    """Speed relative to a peer, forward and with backward; None where it has not both."""
    speeds = [case[what]["speed_relative_to"].get(peer) for what in (FORWARD, BOTH)]
    return None if None in speeds else (speeds[0], speeds[1])


def optimizer() -> list[Row]:
    """Against fused AdamW and against a copy."""
    rows = []
    kinds = ("ClippedSGD row", "ClippedSGD matrix", "ClippedSGD joint")
    groups = "groups by row, by matrix, jointly"
    for file, where, options in (
        ("optimizer_step", "110 M parameters, CPU", ""),
        ("optimizer_step_cuda", "110 M parameters, H100", " --device cuda"),
        ("optimizer_step_cuda_x10", "1.1 B parameters, H100", " --device cuda --scale 10"),
    ):
        found = load(file)
        if found is None:
            what = f"optimizer step, {where}, {groups}: time relative to AdamW; share of a copy's bandwidth"
            rows.append(missing(what, "0.5, 0.75, 0.75; 0.85", f"optimizer_step.py{options}"))
            continue
        ratios = found["ratio_of_medians"]
        targets = {kind: found["targets"][kind] for kind in kinds}
        what = f"optimizer step, {where.replace('H100', found['device'])}, {groups}"
        shown = f"{listed(ratios[kind] for kind in kinds)} (SGD fused: {ratios['SGD fused']:.2f})"
        reached = verdict(*(at_most(ratios[kind], target) for kind, target in targets.items()))
        rows.append(
            (
                f"{what}: time relative to {found['fastest_adamw']}",
                ", ".join(map(str, targets.values())),
                shown,
                reached,
            )
        )
        shares = [found["share_of_copy_bandwidth"][kind] for kind in kinds]
        what = f"the same, {where.split(', ')[1].replace('H100', found['device'])}: share of a copy's bandwidth"
        what += ", whose write-allocate is not counted"
        rows.append((what, "0.85", listed(shares), verdict(*(at_least(share, 0.85) for share in shares))))
    return rows


def throughput() -> list[Row]:
    """Of pre-training."""
    rows = []
    for suffix, target, where in (("", 1.15, "CPU"), ("_cuda", 1.3, "H100")):
        found = load(f"pretraining_throughput{suffix}")
        command = f"pretraining_throughput.py{' --device cuda' if suffix else ''}"
        what = "pre-training of the base size, compiled, tokens per second relative to BertForMaskedLM with fused AdamW"
        used = "model FLOP utilisation of pre-training, base size, SIBERT matrix"
        if found is None:
            rows.append(missing(f"{what}, {where}", str(target), command))
            rows += [missing(f"{used}, {where}", "40 %", command)] if suffix else []
            continue
        speeds = found["speed_relative_to_peer"]
        # on equal terms: a BERT that sends the predicted positions alone through the vocabulary's projection
        strict = speeds["the same, predicted positions only"]
        shown = ", ".join(
            f"{name.removeprefix('SIBERT ')} {speed:.2f} ({speed / strict:.2f})"
            for name, speed in speeds.items()
            if "SIBERT" in name
        )
        shown += " (in brackets, if BERT, too, projects the predicted positions only)"
        reached = verdict(at_least(speeds["SIBERT matrix"], target))
        rows.append((f"{what}, {found['device']}", str(target), shown, reached))
        if shares := found.get("model_flop_utilisation"):
            percent = 100 * shares["SIBERT matrix"]
            rows.append((f"{used}, {found['device']}", "40 %", f"{percent:.0f} %", verdict(at_least(percent, 40, 0))))
        elif suffix:
            rows.append((f"{used}, {found['device']}", "40 %", "peak of this device not known", ""))
    return rows


def finetuning() -> list[Row]:
    """A step on real rows, and on full ones."""
    found = load("finetuning_step")
    if found is None or "ragged" not in found:
        return [missing("fine-tuning step, ragged rows", "1.3", "finetuning_step.py")]
    speed = found["ragged"]["times_as_fast"]
    ours = speed["SIBERT, flat, by length"]
    strict = ours / speed["BERT, AdamW, padded, by length"]
    full = found["ratio_of_medians"]
    names = ("SIBERT matrix, ClippedSGD", "BERT converted by matrix, ClippedSGD", "BERT converted by row, ClippedSGD")
    peaks = found["peak_bytes_beyond_imports"]
    return [
        (
            f"fine-tuning on docstrings of {found['ragged']['lengths']['mean']:.0f} tokens on average, as "
            "`sibert finetune` does it, speed relative to padded BERT with fused AdamW",
            "1.3",
            f"{ours:.2f} ({strict:.2f} if BERT's batches are of like lengths, too)",
            verdict(at_least(ours, 1.3)),
        ),
        (
            "fine-tuning on full rows of 128 tokens, time relative to BERT with fused AdamW: SIBERT, BERT converted by "
            "matrix, by row",
            "",
            listed(full[name] for name in names)
            + f"; peak {', '.join(f'{peaks[name] / 1e6:.0f}' for name in names)} MB against "
            + f"{peaks['BERT, AdamW'] / 1e6:.0f}",
            "",
        ),
    ]


def data_path() -> list[Row]:
    """On one core."""
    found = load("data_path")
    what = "data path, tokens per second relative to what the model takes in, one core: least"
    if found is None:
        return [missing(what, "5", "data_path.py")]
    least = min(min(found[size]["ratio"].values()) for size in ("tiny", "base"))
    return [(what, "5", f"{least:.0f}", verdict(at_least(least, 5, 0)))]


def memory() -> list[Row]:
    """Bytes a parameter."""
    found = load("memory")
    rows = []
    for size in ("base", "large"):
        entry = (found or {"sizes": {}})["sizes"].get(size)
        what = f"weights, gradients and state, {size}"
        if entry is None:
            rows.append(missing(what, "0.51, 0.28, 0.14", f"memory.py --size {size}"))
            continue
        aimed = {name: one for name, one in entry["contestants"].items() if one["target"] is not None}
        what = f"{what}, bytes relative to BERT + AdamW: {', '.join(aimed)}"
        ratios = [one["ratio_per_parameter"] for one in aimed.values()]
        reached = verdict(*(at_most(one["ratio_per_parameter"], one["target"], 3) for one in aimed.values()))
        targets = ", ".join(str(one["target"]) for one in aimed.values())
        rows.append((what, targets, ", ".join(f"{ratio:.3f}" for ratio in ratios), reached))
    return rows


def growth() -> list[Row]:
    """Of a step."""
    found = load("growth")
    if found is None:
        return [missing("growth of a step with tokens and layers", f"a line: R² {LINEAR} or more", "growth.py")]
    rows = []
    for form, sweeps in found["forms"].items():
        shown = ", ".join(
            f"{name}: R² {sweep['explained_variance']:.3f}, exponent {sweep['exponent']:.2f}"
            for name, sweep in sweeps.items()
        )
        linear = all(at_least(sweep["explained_variance"], LINEAR, 3) for sweep in sweeps.values())
        rows.append((f"growth of a step of SIBERT {form}", f"a line: R² {LINEAR} or more", shown, verdict(linear)))
    return rows


def draw_attention() -> None:
    """Time and memory of one sequence against its length, and the speed relative to SDPA."""
    found = load("attention")
    if found is None:
        return
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    names = {"auto": "ours", "reference": "reference", "SDPA": "SDPA (softmax)"}
    for dtype, style in (("float32", "-"), ("bfloat16", "--")):
        cases = [c for c in found["cases"] if c["dtype"] == dtype and c["layout"] == "full"]
        lengths = [c["length"] for c in cases]
        for index, (name, label) in enumerate(names.items()):
            look = {"color": f"C{index}", "linestyle": style, "label": f"{label}, {dtype}"}
            timed = [c for c in cases if name in c[BOTH]["alternating"]]
            times = [c[BOTH]["alternating"][name]["median_ms"] / c["batch"] for c in timed]
            axes[0].loglog([c["length"] for c in timed], times, **look)
            memory = [(c["length"], peak) for c in cases if (peak := c["peak_bytes_of_one_sequence"][name])]
            axes[1].loglog([length for length, _ in memory], [peak / 1e6 for _, peak in memory], **look)
        speeds = [c[BOTH]["speed_relative_to"]["SDPA"] for c in cases]
        axes[2].semilogx(lengths, speeds, color="C0", linestyle=style, label=f"ours, {dtype}")
    axes[2].axhline(0.9, color="grey", linewidth=0.8)
    titles = ("forward and backward of one sequence, ms", "memory beyond the inputs, MB", "speed relative to SDPA")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(xlabel="tokens", title=title)
        axis.title.set_fontsize(9)
    axes[0].legend(fontsize=7)
    axes[2].legend(fontsize=7)
    figure.savefig(ROOT / "docs" / "figures" / "attention.svg", metadata={"Date": None})
    plt.close(figure)


def draw_growth() -> None:
    """A step against tokens and layers, with the fitted lines."""
    found = load("growth")
    if found is None:
        return
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for index, (form, sweeps) in enumerate(found["forms"].items()):
        for axis, (name, sweep) in zip(axes, sweeps.items(), strict=True):
            sizes = [int(size) for size in sweep["alternating"]]
            times = [values["median_ms"] for values in sweep["alternating"].values()]
            axis.plot(sizes, times, "o", color=f"C{index}", label=f"SIBERT {form}")
            line = [sweep["fixed_ms"] + sweep["ms_each"] * size for size in sizes]
            axis.plot(sizes, line, color=f"C{index}", linewidth=0.8)
            axis.set(
                xlabel=f"{name}{' a step' if name == 'tokens' else ''}", ylabel="ms", xlim=(0, None), ylim=(0, None)
            )
    axes[0].legend(fontsize=8)
    figure.savefig(ROOT / "docs" / "figures" / "growth.svg", metadata={"Date": None})
    plt.close(figure)


PARTS: list[Callable[[], list[Row]]] = [
    attention,
    optimizer,
    throughput,
    finetuning,
    memory,
    growth,
    data_path,
    attention_on_gpu,
]


def make_table() -> str:
    """All rows, in Markdown."""
    rows = [row for part in PARTS for row in part()]
    head = [("what", "target", "measured", ""), ("---",) * 4]
    return "\n".join("| " + " | ".join(row) + " |" for row in [*head, *rows])


def main() -> None:
    """All of it."""
    table = make_table()
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text:
        raise SystemExit(f"README.md has no {BEGIN}")
    before, rest = text.split(BEGIN)
    readme.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}", encoding="utf-8")
    draw_attention()
    draw_growth()
    print(table)


if __name__ == "__main__":
    main()
