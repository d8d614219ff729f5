"""Run many pre-trainings side by side through the command line, and collect what they recorded.

Every run is one `sibert pretrain` process with one thread; as many run at once as there are cores, so that runs of one
table share the machine in the same way. A run that is finished is not run again; an interrupted one is resumed. One
that has the same name and other options is an error.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sibert.reporting import load_run
from sibert.training import environment

RESULTS = Path(__file__).parent / "results"


def command(options: Mapping[str, Any], out: Path) -> list[str]:
    """The command line of a run."""
    words = [sys.executable, "-m", "sibert", "pretrain", "--out", str(out)]
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        words += [flag] if value is True else [flag, str(value)]
    return words


def run_one(options: Mapping[str, Any], out: Path) -> None:
    """Bring one run to its end."""
    recipe = json.loads((out / "recipe.json").read_text()) if (out / "recipe.json").exists() else {}
    if changed := [name for name in options if name in recipe and not same(recipe[name], options[name])]:
        raise SystemExit(f"{out} is of a run with another {', '.join(changed)}; remove it or choose another --folder")
    if (out / "model.safetensors").exists():
        return
    words = command(options, out)
    if recipe:
        words = [sys.executable, "-m", "sibert", "pretrain", "--resume", str(out)]
    out.parent.mkdir(parents=True, exist_ok=True)
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with (out.parent / f"{out.name}.log").open("w") as log:
        done = subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **threads}, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with status {done.returncode}; see {log.name}")
    print(f"finished {out.name}", flush=True)


def same(recorded: Any, option: Any) -> bool:
    """Whether an option has the recorded value: what is off is None there and "none" on the command line."""
    return recorded == (None if option == "none" else option)


def run_all(runs: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Bring all runs to their ends, as many at once as there are cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for future in [pool.submit(run_one, options, folder / name) for name, options in runs.items()]:
            future.result()


def summary(folder: Path) -> dict[str, Any]:
    """What a run measured: validation losses by step, the last training losses, norms of its groups."""
    run = load_run(folder)
    last = run.evaluations[-1]
    record: dict[str, Any] = {
        "recipe": run.recipe,
        "validation": [[e["step"], e["mlm_loss"]] for e in run.evaluations],
        "final_validation_loss": last["mlm_loss"],
        "unigram_entropy": last.get("unigram_entropy"),
        "train": [[t["step"], t["loss"]] for t in run.train],
        "median_tokens_per_second": sorted(t["tokens_per_second"] for t in run.train)[len(run.train) // 2],
        "optimizer_state_bytes": run.train[-1]["optimizer_state_bytes"],
    }
    for group in run.invariant_groups:
        record[f"{group}_norm"] = [[t["step"], t["groups"][group]["param_norm"]] for t in run.train]
        record[f"{group}_clipped_fraction"] = [[t["step"], t["groups"][group]["clipped_fraction"]] for t in run.train]
    return record


def without_nan(value: Any) -> Any:
    """Write what diverged as null: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_results(name: str, question: str, results: Any) -> Path:
    """Store results as data, with command, device and versions."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    record = {
        "question": question,
        "command": " ".join(["python", *sys.argv]),
        "environment": environment(),
        "results": results,
    }
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(without_nan(record), indent=1) + "\n")
    temporary.replace(path)
    print(f"wrote {path}")
    return path


def mean_and_range(values: Sequence[float]) -> dict[str, float]:
    """Mean, lowest and highest of a few runs."""
    return {"mean": sum(values) / len(values), "lowest": min(values), "highest": max(values)}
