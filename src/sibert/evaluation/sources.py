"""Where the rows of a task are: official files, a user's tables, the hub, or this Python's library."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub

from sibert.evaluation.docstrings import docstring_rows
from sibert.evaluation.glue import LAYOUTS, glue_file_rows, glue_rows, is_whole
from sibert.evaluation.squad import squad_rows
from sibert.evaluation.tables import FORMATS, PACKED, Row, read_rows
from sibert.evaluation.tasks import DOCSTRINGS, Task

__all__ = ["held_out", "task_rows"]

GLUE_FOLDERS = {
    "cola": "CoLA",
    "sst2": "SST-2",
    "mrpc": "MRPC",
    "stsb": "STS-B",
    "qqp": "QQP",
    "mnli": "MNLI",
    "qnli": "QNLI",
    "rte": "RTE",
    "wnli": "WNLI",
}
SQUAD_FILES = {"squad": ("train-v1.1", "dev-v1.1"), "squad2": ("train-v2.0", "dev-v2.0")}


def task_rows(task: Task, data: Path | None = None, more: Mapping[str, Path] | None = None) -> dict[str, Iterable[Row]]:
    """The splits of a task.

    Args:
        task: Which.
        data: A folder with the official files, or with files that are called like the splits (train.csv,
            validation.jsonl, ...), or the training file; None = the task's own data, from the hub.
        more: Files of further splits, by name.

    Returns:
        By name: "train", "validation", ..., as far as there are any.

    Raises:
        ValueError: If a path holds nothing for this task, or the hub cannot be reached.
    """
    splits: dict[str, Iterable[Row]] = {}
    if data is not None and not data.exists():
        raise ValueError(f"{data} does not exist")
    if data is None and not more:
        return _own_rows(task)
    if data is not None:
        splits |= _folder_rows(task, data) if data.is_dir() else {"train": _file_rows(task, data)}
    return splits | {name: _file_rows(task, file) for name, file in (more or {}).items()}


def held_out(task: Task, rows: Sequence[Row], share: float = 0.1) -> tuple[list[Row], list[Row]]:
    """Split rows by what they say, so that a row is on the same side whatever the order of the file.

    Args:
        task: Whose they are; questions about the same context stay together.
        rows: All of them.
        share: For validation, about.

    Returns:
        To train on, and to validate on.

    Raises:
        ValueError: If one side would be empty.
    """
    columns = task.columns[1:] if task.kind == "qa" else task.columns
    chosen = [_position([row.values.get(column) for column in columns]) < share for row in rows]
    train = [row for row, held in zip(rows, chosen, strict=True) if not held]
    validation = [row for row, held in zip(rows, chosen, strict=True) if held]
    if not train or not validation:
        raise ValueError(f"{len(rows)} rows are too few to hold some out: give a validation file")
    return train, validation


def _position(values: list[Any]) -> float:
    return int.from_bytes(hashlib.sha256(repr(values).encode()).digest()[:8]) / 2**64


def _own_rows(task: Task) -> dict[str, Iterable[Row]]:
    if task.name == DOCSTRINGS:
        return {**docstring_rows()}
    if task.hub is None:
        raise ValueError(f"{task.name} is for your own files: name them by --data")
    return {**_hub_rows(task)}


def _file_rows(task: Task, file: Path) -> Iterator[Row]:
    """Rows of a single file: SQuAD's format for questions if it is JSON, GLUE's for its tasks, else a table."""
    if task.kind == "qa" and ".json" in file.suffixes:
        return squad_rows(file)
    official = glue_file_rows(task, file)
    if official is not None:
        return (row for row in official if is_whole(task, row))
    return read_rows(file, required=task.columns)


def _folder_rows(task: Task, folder: Path) -> dict[str, Iterable[Row]]:
    named: dict[str, Iterable[Row]] = {
        name: _file_rows(task, file)
        for name in ("train", *task.splits, "test")
        if (file := _called(task, folder, name)) is not None
    }
    if task.name in SQUAD_FILES:
        for split, stem in zip(("train", "validation"), SQUAD_FILES[task.name], strict=True):
            file = next((file for end in PACKED if (file := folder / f"{stem}.json{end}").is_file()), None)
            if file is not None:
                named.setdefault(split, squad_rows(file))
    if task.name in LAYOUTS and set(named) <= {"train", "test"}:
        # GLUE's own files are called train.tsv and test.tsv, too, and are not quite tables.
        inner = folder / GLUE_FOLDERS[task.name]
        return {**glue_rows(task, inner if inner.is_dir() else folder)}
    if not named:
        stems = SQUAD_FILES.get(task.name)
        official = f"{stems[0]}.json and {stems[1]}.json, or " if stems else ""
        raise ValueError(
            f"{folder} has no files for {task.name}: expected {official}train and validation as "
            f"{', '.join(f'.{name}' for name in FORMATS)}"
        )
    return named


def _called(task: Task, folder: Path, split: str) -> Path | None:
    """The table that is called like a split: a backup beside it has a longer name."""
    kinds = (*FORMATS, "json") if task.kind == "qa" else FORMATS
    ends = [f".{kind}{packed}" for kind in kinds for packed in PACKED if kind != "parquet" or not packed]
    found = sorted(file for file in folder.glob(f"{split}.*") if file.name[len(split) :].lower() in ends)
    if len(found) > 1:
        raise ValueError(
            f"{folder} has both {found[0].name} and {found[1].name}: keep one of them, or name the file by --data"
        )
    return found[0] if found else None


def _hub_rows(task: Task) -> dict[str, Iterator[Row]]:
    from datasets import load_dataset

    assert task.hub is not None
    name, configuration = task.hub
    try:
        splits = load_dataset(name, configuration)
    except Exception as error:  # the hub, the network and offline mode each raise their own kinds
        offline = huggingface_hub.constants.HF_HUB_OFFLINE or isinstance(error, ConnectionError | TimeoutError)
        reason = "there is no network" if offline else str(error).strip().split("\n")[0].rstrip(".")
        raise ValueError(
            f"the data of {task.name}, {name} on the Hugging Face hub, cannot be read: {reason}; give its official "
            "files by --data"
        ) from error
    return {split: _dataset_rows(task, Path(name), split, rows) for split, rows in splits.items()}


def _dataset_rows(task: Task, name: Path, split: str, rows: Any) -> Iterator[Row]:
    # On the hub, tests have -1 for a label.
    hidden = split.startswith("test") and task.kind != "qa"
    for number, values in enumerate(rows):
        shown = {column: value for column, value in values.items() if not (hidden and column == task.target)}
        yield Row(name, f"{split} {number}", shown)
