"""Same budget, data, masks, schedule: SIBERT + ClippedSGD beside BERT + AdamW and BERT + plain SGD.

    python benchmarks/comparison.py [--steps 1500]

SIBERT is the paper's (joint), with the defaults of `sibert pretrain`; what another intrinsic learning rate would have
given is measured beside it, and not used. Each baseline gets the best of its learning rates by the validation loss of
seed 0, then two more seeds at that rate. Whether the optimum lies inside the grid is among the results.
"""

import argparse
from pathlib import Path
from typing import Any

from pretraining_runs import mean_and_range, run_all, summary, write_results

GRIDS = {
    "adamw": [5e-4, 1e-3, 2e-3, 4e-3],
    "sgd": [0.03, 0.1, 0.3, 1.0, 3.0],
}
INTRINSIC = [5e-4, 1e-3, 5e-3, 1e-2]
SEEDS = [0, 1, 2]


def shared(steps: int) -> dict[str, Any]:
    """Options that all runs share."""
    return {
        "size": "tiny",
        "invariance": "joint",
        "steps": steps,
        "seq_length": 64,
        "batch_size": 16,
        "vocab_size": 4096,
        "log_every": 20,
        "eval_every": max(1, steps // 4),
        "save_every": steps,
        "keep_checkpoints": 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--folder", type=Path, default=Path("runs/comparison"))
    options = parser.parse_args()
    base = shared(options.steps)

    ours = {f"sibert-seed{seed}": {**base, "seed": seed} for seed in SEEDS}
    searches = {
        f"bert-{name}-lr{lr:g}-seed0": {**base, "model": "bert", "optimizer": name, "lr": lr, "seed": 0}
        for name, grid in GRIDS.items()
        for lr in grid
    }
    sensitivity = {f"sibert-intrinsic{rate:g}-seed0": {**base, "intrinsic_lr": rate, "seed": 0} for rate in INTRINSIC}
    run_all({**ours, **searches, **sensitivity}, options.folder)

    table: dict[str, Any] = {}
    finals: dict[str, Any] = {}
    repeats = {}
    other_rates = {
        f"{rate:g}": summary(options.folder / name)["final_validation_loss"]
        for rate, name in zip(INTRINSIC, sensitivity, strict=True)
    }
    for name, grid in GRIDS.items():
        losses = {lr: summary(options.folder / f"bert-{name}-lr{lr:g}-seed0")["final_validation_loss"] for lr in grid}
        best = min(losses, key=lambda lr: losses[lr] if losses[lr] == losses[lr] else float("inf"))
        table[name] = {"search": {f"{lr:g}": loss for lr, loss in losses.items()}, "lr": best}
        table[name]["optimum_inside_grid"] = best not in (grid[0], grid[-1])
        for seed in SEEDS[1:]:
            repeats[f"bert-{name}-lr{best:g}-seed{seed}"] = {
                **base, "model": "bert", "optimizer": name, "lr": best, "seed": seed,
            }  # fmt: skip
    run_all(repeats, options.folder)

    rows = {"SIBERT + ClippedSGD": [f"sibert-seed{seed}" for seed in SEEDS]}
    for name, label in (("adamw", "BERT + AdamW"), ("sgd", "BERT + SGD")):
        rows[label] = [f"bert-{name}-lr{table[name]['lr']:g}-seed{seed}" for seed in SEEDS]
    for label, names in rows.items():
        runs = [summary(options.folder / name) for name in names]
        finals[label] = {
            "validation_loss": mean_and_range([run["final_validation_loss"] for run in runs]),
            "by_seed": [run["final_validation_loss"] for run in runs],
            "unigram_entropy": runs[0]["unigram_entropy"],
            "optimizer_state_bytes": runs[0]["optimizer_state_bytes"],
            "validation_curves": [run["validation"] for run in runs],
        }
        print(f"{label:22} {finals[label]['validation_loss']['mean']:.3f} nats  {finals[label]['by_seed']}")
    results = {
        "options": base,
        "seeds": SEEDS,
        "searches": table,
        "sibert_at_other_intrinsic_lr": other_rates,
        "table": finals,
    }
    write_results("comparison", "Does SIBERT + SGD keep up with tuned BERT + AdamW at equal budget?", results)


if __name__ == "__main__":
    main()
