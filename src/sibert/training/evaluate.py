"""Scores of a fine-tuned run, on its own data or on other."""

from collections.abc import Callable
from pathlib import Path

import torch

from sibert.evaluation import examples_of
from sibert.evaluation.predictor import Predictor
from sibert.evaluation.sources import task_rows
from sibert.training.finetune import evaluated_splits, load_examples
from sibert.training.finetune_recipe import FinetuneRecipe

__all__ = ["evaluate_run"]


def evaluate_run(
    run: str | Path,
    *,
    task: str | None = None,
    data: str | Path | None = None,
    split: str | None = None,
    batch_size: int = 64,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, dict[str, float]]:
    """Score a fine-tuned model.

    Args:
        run: Of `sibert finetune`.
        task: The run's own, or an error.
        data: Folder or file with labels; None = what the run was fine-tuned with.
        split: Which; None = all that have labels but "train". A file is a split by itself, "validation".
        batch_size: Rows at once.
        note: Called with what a user should know.

    Returns:
        Scores by split and metric.

    Raises:
        ValueError: If the run or the data are of another task, or nothing has labels.
    """
    run = Path(run)
    data = None if data is None else Path(data)
    predictor = Predictor.load(run, batch_size=batch_size, device="cuda" if torch.cuda.is_available() else "cpu")
    if task is not None and task != predictor.task.name:
        raise ValueError(f"{run} is fine-tuned for {predictor.task.name}, not for {task}")
    if data is None:
        examples = load_examples(FinetuneRecipe.from_json(run / "finetune.json"))
    elif data.is_dir():
        found = task_rows(predictor.task, data)
        wanted = {name: rows for name, rows in found.items() if (name != "train" if split is None else name == split)}
        if not wanted:
            raise ValueError(f"{data} has no split {split or 'but train'}; it has {', '.join(found)}")
        examples = examples_of(predictor.task, wanted, predictor.labels)
    else:
        one = task_rows(predictor.task, None, {split or "validation": data})
        examples = examples_of(predictor.task, one, predictor.labels)
    for sentence in examples.notes:
        note(f"note: {sentence}")
    known = [*examples.splits]
    if split is not None and split not in known:
        raise ValueError(f"there is no split {split!r}; there are {', '.join(known)}")
    chosen = [split] if split is not None else evaluated_splits(examples)
    if not chosen:
        raise ValueError(f"no split but train has the column {predictor.task.target!r}: there is nothing to score")
    scores = {name: predictor.evaluate(examples, name) for name in chosen}
    number = sum(len(examples.splits[name]) for name in chosen)
    for sentence in predictor.tokenization.notes(", ".join(chosen), number, predictor.cut):
        note(f"note: {sentence}")
    return scores
