"""Several fine-tuning runs of one recipe: seeds, and a grid of settings; what has results is not run again."""

import contextlib
import dataclasses
import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from sibert.evaluation.predictor import DivergedError
from sibert.training.checkpoints import write_atomically
from sibert.training.finetune import RESULTS, FinetuneDirectory, read_results, run_finetuning
from sibert.training.finetune_recipe import FinetuneRecipe

__all__ = ["parse_grid", "run_sweep"]

SWEPT = (
    "intrinsic_lr", "lr", "head_lr", "weight_decay", "clip", "epochs", "batch_size", "warmup_share", "schedule",
    "dropout", "length", "optimizer", "convert", "model",
)  # fmt: skip


def parse_grid(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Read settings as they are written on a command line.

    Args:
        texts: Each "name=value,value,...", the names of `FinetuneRecipe`.

    Returns:
        Values by name.

    Raises:
        ValueError: If a name is unknown, given twice, or has no value, or one of another type.
    """
    grid: dict[str, list[Any]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        name = name.strip().removeprefix("--").replace("-", "_")
        if name not in SWEPT:
            raise ValueError(f"--grid takes NAME=VALUE,VALUE with a name of {', '.join(SWEPT)}; got {text!r}")
        if name in grid:
            raise ValueError(f"--grid {name} is given twice: write all of its values after one name")
        grid[name] = [_value(name, part.strip()) for part in values.split(",") if part.strip()]
        if not grid[name]:
            raise ValueError(f"--grid {name} has no values: write {name}=1e-3,1e-4")
    return grid


def _value(name: str, text: str) -> Any:
    """A value of the type that the recipe has for it."""
    (hint,) = (field.type for field in dataclasses.fields(FinetuneRecipe) if field.name == name)
    kinds = get_args(hint) or (hint,)
    if type(None) in kinds and text.lower() == "none":
        return None
    if int not in kinds and float not in kinds:
        return text
    for kind in (int, float) if float in kinds else (int,):
        with contextlib.suppress(ValueError):
            return kind(text)
    what = "a number" if float in kinds else "a whole number"
    raise ValueError(f"--grid {name} takes {what}{' or none' if type(None) in kinds else ''}, got {text!r}")


def run_sweep(
    recipe: FinetuneRecipe,
    out: str | Path,
    *,
    seeds: int = 1,
    grid: Mapping[str, Sequence[Any]] | None = None,
    console: Console | None = None,
) -> int:
    """Fine-tune with each setting of a grid and each of several seeds.

    Args:
        recipe: What they have in common; its seed is the first.
        out: Folder of the runs: NAME=VALUE.../seed-N, and sweep.json with means and standard deviations.
        seeds: How many.
        grid: Values by the name of a field.
        console: Where progress is shown.

    Returns:
        0, or the status of a run that a signal stopped; calling again goes on there.

    Raises:
        ValueError: As `run_finetuning`, or if the folder holds the sweep of another recipe. A setting that diverges
            with a seed is left out, unless all do.
    """
    console = console or Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    grid, out = grid or {}, Path(out)
    runs = [
        (dict(zip(grid, values, strict=True)), recipe.seed + i)
        for values in itertools.product(*grid.values())
        for i in range(seeds)
    ]
    recipes = [dataclasses.replace(recipe, **setting, seed=seed) for setting, seed in runs]  # all are checked first
    diverged: dict[str, DivergedError] = {}
    for (setting, seed), own in zip(runs, recipes, strict=True):
        run = FinetuneDirectory(out / _name(setting) / f"seed-{seed}")
        if run.recipe.is_file() and FinetuneRecipe.from_json(run.recipe) != own:
            raise ValueError(f"{run.path} holds a run of another recipe; choose another --out")
        if run.finished:
            continue
        console.print(f"== {run.path.relative_to(out)}")
        try:
            status = run_finetuning(own, run.path, resume=run.recipe.is_file(), console=console)
        except DivergedError as error:
            console.print(f"{_name(setting)}: diverged with seed {seed}, and is left out")
            diverged[_name(setting)] = error
            continue
        if status:
            return status
    settings = [setting for setting, _ in runs[::seeds] if _name(setting) not in diverged]
    if not settings:
        raise next(iter(diverged.values()))
    table = _summary(out, settings, [recipe.seed + i for i in range(seeds)])
    write_atomically(out / "sweep.json", json.dumps(table, indent=2) + "\n")
    for row in table["settings"]:
        console.print(f"{row['name']}: {_shown(row)}")
    if len(table["settings"]) > 1:
        console.print(f"best: {table['best']} (chosen on the split that it is scored on)")
    return 0


def _name(setting: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in setting.items()).replace("/", "_") or "recipe"


def _summary(out: Path, settings: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for setting in settings:
        name = _name(setting)
        found = [read_results(out / name / f"seed-{seed}")["scores"] for seed in seeds]
        scores = {
            split: {
                metric: {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else None}
                for metric in first
                if (values := [one[split][metric] for one in found])
            }
            for split, first in found[0].items()
        }
        rows.append({"name": name, "setting": dict(setting), "seeds": list(seeds), "scores": scores})
    first = next(iter(rows[0]["scores"]))
    best = max(rows, key=lambda row: row["scores"][first]["score"]["mean"])
    return {"settings": rows, "best": best["name"], "results": RESULTS}


def _shown(row: Mapping[str, Any]) -> str:
    parts = []
    for split, metrics in row["scores"].items():
        values = []
        for name, value in metrics.items():
            if name != "score":
                spread = "" if value["std"] is None else f" +- {100 * value['std']:.1f}"
                values.append(f"{name} {100 * value['mean']:.1f}{spread}")
        parts.append(f"{split} {', '.join(values)}")
    return "; ".join(parts)
