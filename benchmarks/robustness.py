"""How much do initial scale, weight decay and clipping matter at fixed (eta, lambda)? The paper's figures, in small.

    python benchmarks/robustness.py [--steps 3000]

The encoder's initial parameters are multiplied by 0.01 ... 100, with learning rate and weight decay held fixed: with
weight decay and clipping, with weight decay alone, with neither; and BERT trained by plain SGD, its whole trunk
multiplied in the same way. The schedule is constant, so that eta * lambda stays what it is. eta is the one that
intrinsic mode calibrates at scale 1. Forgetting a factor c costs |ln c| / (eta lambda) steps: with D = 10 a factor of
10 costs 0.23 of the run.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import matplotlib
from pretraining_runs import run_all, summary, write_results

matplotlib.use("Agg")
from matplotlib import pyplot as plt

BUDGET = 10.0  # D: eta lambda = D / T
FIGURES = Path(__file__).parents[1] / "docs" / "figures"
SCALES = {
    "decay_and_clipping": [0.01, 0.1, 1.0, 10.0, 100.0],
    "decay_only": [0.01, 1.0, 100.0],
    "neither": [0.01, 1.0, 100.0],
    "bert_sgd": [0.01, 1.0, 100.0],
}
VARIANTS = {
    "decay_and_clipping": "SIBERT, weight decay and clipping",
    "decay_only": "SIBERT, weight decay, no clipping",
    "neither": "SIBERT, no weight decay, no clipping",
    "bert_sgd": "BERT, plain SGD",
}


def shared(steps: int) -> dict[str, Any]:
    """Options that all runs share."""
    return {
        "size": "tiny",
        "invariance": "joint",
        "steps": steps,
        "seq_length": 64,
        "batch_size": 16,
        "vocab_size": 1024,
        "schedule": "constant",
        "log_every": 10,
        "eval_every": max(1, steps // 8),
        "save_every": steps,
        "keep_checkpoints": 1,
    }


def calibrated_eta(folder: Path, base: dict[str, Any]) -> float:
    """Eta that starts a run of scale 1 at norm equilibrium: one step in intrinsic mode."""
    options = {**base, "steps": 1, "log_every": 1, "eval_every": 1, "save_every": 1}
    options["intrinsic_lr"] = BUDGET / base["steps"]
    run_all({"calibration": options}, folder)
    return float(
        json.loads((folder / "calibration" / "metrics.jsonl").read_text().splitlines()[0])["groups"]["encoder"]["eta"]
    )


def variants(base: dict[str, Any], eta: float, sgd_lr: float) -> dict[str, dict[str, Any]]:
    """One run for each variant and scale."""
    decay = BUDGET / base["steps"] / eta
    fixed = {
        "decay_and_clipping": {"lr": eta, "weight_decay": decay},
        "decay_only": {"lr": eta, "weight_decay": decay, "clip": "none"},
        "neither": {"lr": eta, "weight_decay": 0.0, "clip": "none"},
        "bert_sgd": {"model": "bert", "optimizer": "sgd", "lr": sgd_lr, "warmup_steps": 0},
    }
    return {
        f"{name}-x{scale:g}": {**base, **options, "initial_scale": scale}
        for name, options in fixed.items()
        for scale in SCALES[name]
    }


def validation_at(curve: list[list[float]], step: float) -> float:
    """Validation loss at a step, interpolated between evaluations."""
    for (left, low), (right, high) in itertools.pairwise(curve):
        if left <= step <= right:
            return low + (high - low) * (step - left) / (right - left)
    raise ValueError(f"no evaluation around step {step}")


def spikes(norms: list[list[float]]) -> float:
    """Largest relative growth of the norm within one record."""
    return max((b / a - 1 for (_, a), (_, b) in itertools.pairwise(norms)), default=0.0)


def draw(results: dict[str, Any], name: str, title: str) -> None:
    """One figure for each variant: losses and norms by step, one curve a scale."""
    runs = {scale: results[f"{name}-x{scale:g}"] for scale in SCALES[name]}
    has_norm = "encoder_norm" in runs[1.0]
    size = (2 + 4.5 * (1 + has_norm), 3.6)
    figure, axes = plt.subplots(1, 1 + has_norm, figsize=size, squeeze=False, layout="constrained")
    for scale, run in runs.items():
        axes[0][0].plot(*zip(*run["validation"], strict=True), label=f"x {scale:g}", marker=".")
        if has_norm:
            axes[0][1].plot(*zip(*run["encoder_norm"], strict=True), label=f"x {scale:g}")
    axes[0][0].axhline(runs[1.0]["unigram_entropy"], color="grey", linestyle=":", label="unigram entropy")
    axes[0][0].set(xlabel="step", ylabel="validation masked-LM loss (nats)", title=title)
    if has_norm:
        axes[0][1].set(xlabel="step", ylabel="norm of the encoder's parameters", yscale="log", title="parameter norm")
    figure.legend(*axes[0][0].get_legend_handles_labels(), title="initial scale", loc="outside right upper")
    FIGURES.mkdir(parents=True, exist_ok=True)
    matplotlib.rcParams["svg.hashsalt"] = "robustness"  # the same bytes for the same data
    figure.savefig(FIGURES / f"robustness_{name}.svg", metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--sgd-lr", type=float, default=0.1, help="of BERT: the best of benchmarks/comparison.py")
    parser.add_argument("--folder", type=Path, default=Path("runs/robustness"))
    options = parser.parse_args()
    base = shared(options.steps)
    eta = calibrated_eta(options.folder, base)
    runs = variants(base, eta, options.sgd_lr)
    run_all(runs, options.folder)
    results = {name: summary(options.folder / name) for name in runs}
    for name, title in VARIANTS.items():
        draw(results, name, title)
    late = results["decay_and_clipping-x10"]["final_validation_loss"]
    early = validation_at(results["decay_and_clipping-x1"]["validation"], 0.75 * options.steps)
    table = {
        name: {
            "final_validation_loss": run["final_validation_loss"],
            "largest_norm_jump": spikes(run["encoder_norm"]) if "encoder_norm" in run else None,
        }
        for name, run in results.items()
    }
    for name, row in table.items():
        print(f"{name:28} {row['final_validation_loss']:.3f}")
    print(f"x 10 at step T: {late:.4f}; x 1 at step 0.75 T: {early:.4f}; relative difference {late / early - 1:+.2%}")
    write_results(
        "robustness",
        "How much do initial scale, weight decay and clipping matter at fixed (eta, lambda)?",
        {
            "eta": eta,
            "weight_decay": BUDGET / options.steps / eta,
            "unigram_entropy": results["neither-x1"]["unigram_entropy"],
            "table": table,
            "x10_at_T": late,
            "x1_at_three_quarters_T": early,
            "relative_difference": late / early - 1,
            "curves": {
                name: {key: run[key] for key in ("validation", "encoder_norm") if key in run}
                for name, run in results.items()
            },
        },
    )


if __name__ == "__main__":
    main()
