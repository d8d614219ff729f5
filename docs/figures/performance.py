"""The table of performance in the README, and the figures of growth, from stored results alone.

    python docs/figures/performance.py

Reads benchmarks/results/, writes docs/figures/attention.svg, docs/figures/growth.svg and what is between the markers of
the README. What has not been measured says so, with the command that measures it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- performance: begin -->", "<!-- performance: end -->"
BOTH = "forward and backward"
CHECKED_FROM = 512
"""Length from which attention has a target."""

Row = tuple[str, str, str, str]


def load(name: str) -> dict[str, Any] | None:
    """The results of a benchmark, if there are any."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def missing(what: str, target: str, command: str) -> Row:
    """A row of what nobody has measured."""
    return what, target, f"not measured: `{command}`", ""


def verdict(reached: bool) -> str:
    """In a word."""
    return "met" if reached else "missed"


def attention() -> list[Row]:
    """Against SDPA on the CPU."""
    found = load("attention")
    if found is None:
        return [missing("attention, CPU", "0.9 of SDPA's speed", "python benchmarks/attention.py")]
    rows = []
    for dtype in ("float32", "bfloat16"):
        cases = [c for c in found["cases"] if c["dtype"] == dtype and c["layout"] == "full"]
        long = {c["length"]: c[BOTH]["speed_relative_to"]["SDPA"] for c in cases if c["length"] >= CHECKED_FROM}
        shown = ", ".join(f"{speed:.2f}" for speed in long.values())
        what = f"attention of {', '.join(map(str, long))} tokens, {dtype}, speed relative to SDPA"
        rows.append((what, "0.9", shown, verdict(min(long.values()) >= 0.9)))
        worst = min(c[BOTH]["speed_relative_to"]["reference"] for c in cases)
        rows.append(
            (
                f"the same at 64 to 4096 tokens, relative to the reference, {dtype}",
                "1",
                f"{worst:.2f} or more",
                verdict(worst >= 0.95),
            )
        )
    slope = found["growth"]["head width 64, float32"]
    shown = f"time {slope['time']['auto']:.2f}, memory {slope['memory'].get('auto', float('nan')):.2f}"
    reference = f"reference {slope['time']['reference']:.2f} and {slope['memory'].get('reference', float('nan')):.2f}"
    rows.append(
        (
            f"exponent of attention's growth from 512 to 4096 tokens ({reference})",
            "2 and 1",
            shown,
            verdict(slope["memory"].get("auto", 2.0) <= 1.1),
        )
    )
    return rows


def attention_on_gpu() -> list[Row]:
    """Against FlashAttention."""
    target = "forward 1.3, with backward 1.15"
    found = load("attention_cuda")
    if found is None:
        return [
            missing(
                "attention, H100, bfloat16, relative to FlashAttention",
                target,
                "python benchmarks/attention.py --device cuda",
            )
        ]
    rows = []
    for case in found["cases"]:
        speeds = {what: case[what]["speed_relative_to"].get("SDPA flash") for what in ("forward", BOTH)}
        if None not in speeds.values():
            what = f"attention, {found['device']}, T = {case['length']}, width {case['width']}, {case['layout']}"
            rows.append(
                (
                    what,
                    target,
                    ", ".join(f"{speed:.2f}" for speed in speeds.values()),
                    verdict(speeds["forward"] >= 1.3 and speeds[BOTH] >= 1.15),
                )
            )
    return rows


def optimizer() -> list[Row]:
    """Against fused AdamW."""
    found = load("optimizer_step")
    if found is None:
        return [missing("optimizer step, CPU", "0.5 to 0.75", "python benchmarks/optimizer_step.py")]
    names = {"ClippedSGD row": "by row", "ClippedSGD matrix": "by matrix", "ClippedSGD joint": "jointly"}
    rows = []
    for name, words in names.items():
        ratio, target = found["ratio_of_medians"][name], found["targets"][name]
        rows.append(
            (
                f"optimizer step, 110 M parameters, groups {words}, time relative to {found['fastest_adamw']}",
                str(target),
                f"{ratio:.2f} (SGD fused: {found['ratio_of_medians']['SGD fused']:.2f})",
                verdict(ratio <= target),
            )
        )
    return rows


def throughput() -> list[Row]:
    """Of pre-training."""
    rows = []
    for suffix, target, where in (("", 1.15, "CPU"), ("_cuda", 1.3, "H100")):
        found = load(f"pretraining_throughput{suffix}")
        command = f"python benchmarks/pretraining_throughput.py{' --device cuda' if suffix else ''}"
        what = "pre-training of the base size, compiled, tokens per second relative to BertForMaskedLM with fused AdamW"
        if found is None:
            rows.append(missing(f"{what}, {where}", str(target), command))
            continue
        speeds = found["speed_relative_to_peer"]
        shown = ", ".join(f"{name.removeprefix('SIBERT ')} {speeds[name]:.2f}" for name in speeds if "SIBERT" in name)
        rows.append((f"{what}, {found['device']}", str(target), shown, verdict(speeds["SIBERT matrix"] >= target)))
    return rows


def finetuning() -> list[Row]:
    """A step on real rows, and on full ones."""
    found = load("finetuning_step")
    if found is None or "ragged" not in found:
        return [missing("fine-tuning step, ragged rows", "1.3", "python benchmarks/finetuning_step.py")]
    speed = found["ragged"]["times_as_fast"]
    ours = speed["SIBERT, flat, by length"]
    strict = ours / speed["BERT, AdamW, padded, by length"]
    full = found["ratio_of_medians"]
    names = ("SIBERT matrix, ClippedSGD", "BERT converted by matrix, ClippedSGD", "BERT converted by row, ClippedSGD")
    peaks = found["peak_bytes_beyond_imports"]
    return [
        (
            "fine-tuning on docstrings of 39 tokens on average, as `sibert finetune` does it, speed relative to padded "
            "BERT with fused AdamW",
            "1.3",
            f"{ours:.2f} ({strict:.2f} if BERT's batches are of like lengths, too)",
            verdict(ours >= 1.3),
        ),
        (
            "fine-tuning on full rows of 128 tokens, time relative to BERT with fused AdamW: SIBERT, BERT converted by "
            "matrix, by row",
            "",
            ", ".join(f"{full[name]:.2f}" for name in names)
            + f"; peak {', '.join(f'{peaks[name] / 1e6:.0f}' for name in names)} MB against "
            + f"{peaks['BERT, AdamW'] / 1e6:.0f}",
            "",
        ),
    ]


def data_path() -> list[Row]:
    """On one core."""
    found = load("data_path")
    if found is None:
        return [missing("data path, tokens per second relative to the model's", "5", "python benchmarks/data_path.py")]
    least = min(min(found[size]["ratio"].values()) for size in ("tiny", "base"))
    return [
        (
            "data path, tokens per second relative to what the model takes in, one core",
            "5",
            f"{least:.0f} or more",
            verdict(least >= 5),
        )
    ]


def memory() -> list[Row]:
    """Bytes a parameter."""
    found = load("memory")
    rows = []
    for size in ("base", "large"):
        entry = (found or {"sizes": {}})["sizes"].get(size)
        if entry is None:
            rows.append(
                missing(
                    f"weights, gradients and state, {size}",
                    "0.51, 0.28, 0.14",
                    f"python benchmarks/memory.py --size {size}",
                )
            )
            continue
        for name, values in entry["contestants"].items():
            if values["target"] is not None:
                rows.append(
                    (
                        f"weights, gradients and state, {size}, {name}, bytes relative to BERT + AdamW",
                        str(values["target"]),
                        f"{values['ratio_per_parameter']:.3f}",
                        verdict(values["ratio_per_parameter"] <= values["target"] + 0.005),
                    )
                )
    return rows


def growth() -> list[Row]:
    """Of a step."""
    found = load("growth")
    if found is None:
        return [missing("growth of a step with tokens and layers", "linear", "python benchmarks/growth.py")]
    rows = []
    for form, sweeps in found["forms"].items():
        shown = ", ".join(
            f"{name}: R² {sweep['explained_variance']:.3f}, exponent {sweep['exponent']:.2f}"
            for name, sweep in sweeps.items()
        )
        linear = all(sweep["explained_variance"] > 0.98 for sweep in sweeps.values())
        rows.append((f"growth of a step of SIBERT {form}", "a line", shown, verdict(linear)))
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
            axes[0].loglog(lengths, [c[BOTH]["alternating"][name]["median_ms"] / c["batch"] for c in cases], **look)
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


def main() -> None:
    """All of it."""
    rows = [row for part in PARTS for row in part()]
    head = [("what", "target", "measured", ""), ("---",) * 4]
    table = "\n".join("| " + " | ".join(row) + " |" for row in [*head, *rows])
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
