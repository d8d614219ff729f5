"""Predictions for a file of any size: streamed, in order, and resumed where they stopped."""

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import nn

from sibert.evaluation.examples import examples_of
from sibert.evaluation.glue import glue_file_rows
from sibert.evaluation.predictor import Prediction, Predictor
from sibert.evaluation.squad import squad_rows
from sibert.evaluation.tables import Row, read_rows

__all__ = ["predict_file"]

CHUNK = 1000
ENDS = (".jsonl", ".csv", ".tsv", ".json")


def predict_file(
    predictor: Predictor, source: str | Path, target: str | Path, progress: Callable[[int], None] = lambda rows: None
) -> tuple[int, int]:
    """Predict for every row of a file.

    What is done lies in TARGET.partial, from which a call with the same arguments goes on; at the end it becomes the
    target.

    Args:
        predictor: A fine-tuned run.
        source: csv, tsv, jsonl or parquet, with the task's columns; for questions also SQuAD's format.
        target: .jsonl for everything that is known of each row; .csv or .tsv for "index" and "prediction", as GLUE's
            leaderboard wants it; .json for answers by the question's id, as SQuAD's scorer wants it.
        progress: Called with the number of rows done.

    Returns:
        How many rows were predicted, and how many of them earlier.

    Raises:
        ValueError: At the first wrong row, with file, row and column; or if a file cannot be read or written, or the
            target's name ends in something else. What was done before is kept.
    """
    source, target = Path(source), Path(target)
    end = target.suffix.lower()
    if end not in ENDS or (end == ".json" and predictor.task.kind != "qa"):
        known = ", ".join(ENDS if predictor.task.kind == "qa" else ENDS[:3])
        raise ValueError(f"the output's name must end in one of {known}, got {target.name}")
    if not target.parent.is_dir():
        raise ValueError(f"there is no folder {target.parent} to write into")
    if target.is_dir():
        raise ValueError(f"{target} is a folder: give the name of a file to write")
    if not source.is_file():
        raise ValueError(f"{source} is a folder: give a file" if source.is_dir() else f"{source} does not exist")
    if source.resolve() == target.resolve():
        raise ValueError(f"input and output are the same file, {source}")
    partial = target.with_name(f"{target.name}.partial")
    head = _head(predictor, source)
    earlier = _earlier(partial, head)
    done = max(earlier, 0)
    try:
        with partial.open("a", encoding="utf-8", newline="\n") as file:
            if earlier < 0:
                file.truncate(0)
                file.write(json.dumps(head) + "\n")
            rows = islice(_rows(predictor, source), done, None)
            while chunk := list(islice(rows, CHUNK)):
                for prediction in _predict(predictor, chunk, done):
                    file.write(json.dumps(_finite(prediction), ensure_ascii=False) + "\n")
                file.flush()
                done += len(chunk)
                progress(done)
    finally:
        if not done:
            partial.unlink(missing_ok=True)  # it may not have been made, which is the error to be told
    if not done:
        raise ValueError(f"{source} has no rows")
    _finish(partial, target, predictor)
    return done, max(earlier, 0)


def _head(predictor: Predictor, source: Path) -> dict[str, Any]:
    """What a partial file has to be of, to be gone on with."""
    about = source.stat()
    return {
        "source": str(source.resolve()),
        "bytes": about.st_size,
        "changed": about.st_mtime_ns,
        "model": _fingerprint(predictor.model),
        "task": predictor.describe(),
    }


def _fingerprint(model: nn.Module) -> str:
    """Of the weights: by the next call, the folder may hold another model."""
    digest = xxhash.xxh3_128()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _earlier(partial: Path, head: dict[str, Any]) -> int:
    """How many whole predictions a partial file has; what is behind them is cut off. -1 = begin anew."""
    if not partial.is_file():
        return -1
    whole = 0
    count = -1
    with partial.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            if count < 0:
                try:
                    if json.loads(line) != head:
                        return -1
                except ValueError:
                    return -1
            whole += len(line)
            count += 1
    os.truncate(partial, whole)
    return count


def _rows(predictor: Predictor, source: Path) -> Iterator[Row]:
    if predictor.task.kind == "qa" and ".json" in source.suffixes:
        return squad_rows(source)
    # Nothing is left out: the index of a prediction is that of its row.
    official = glue_file_rows(predictor.task, source)
    return official if official is not None else read_rows(source, required=_inputs(predictor))


def _inputs(predictor: Predictor) -> tuple[str, ...]:
    """Columns that are needed: of a pair for embeddings, the first text."""
    columns = predictor.task.columns
    return columns[:1] if predictor.task.kind == "embedding" else columns


def _predict(predictor: Predictor, rows: list[Row], first: int) -> Iterator[Prediction]:
    task = predictor.task
    # Labels that a file may have are of no concern here, right or wrong.
    bare = [Row(row.file, row.place, {k: v for k, v in row.values.items() if k != task.target}) for row in rows]
    if task.kind == "embedding":
        columns = {"anchor": [row.text(task.columns[0]) for row in bare]}
    else:
        columns = examples_of(task, {"rows": bare}, predictor.labels).splits["rows"][:]
    for number, (row, prediction) in enumerate(zip(bare, predictor.predict(columns), strict=True), start=first):
        key = {"id": str(row.values["id"])} if task.kind == "qa" and "id" in row.values else {"index": number}
        yield {**key, **prediction}


def _finite(prediction: Prediction) -> Prediction:
    """JSON has no word for infinity."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in prediction.items()}


def _finish(partial: Path, target: Path, predictor: Predictor) -> None:
    """Bring the predictions into the format of the target and put it in its place."""
    written = target.with_name(f"{target.name}.writing")
    try:
        with partial.open(encoding="utf-8") as lines:
            next(lines)
            with written.open("w", encoding="utf-8", newline="") as file:
                _write(file, (json.loads(line) for line in lines), target.suffix.lower())
        os.replace(written, target)
    finally:
        written.unlink(missing_ok=True)
    partial.unlink()


def _write(file: io.TextIOBase, predictions: Iterable[Prediction], end: str) -> None:
    if end == ".jsonl":
        file.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in predictions)
    elif end == ".json":
        json.dump({str(one.get("id", one.get("index"))): one["answer"] for one in predictions}, file, indent=1)
    else:
        writer = csv.writer(file, delimiter="\t" if end == ".tsv" else ",", lineterminator="\n")
        writer.writerow(["index", "prediction"])
        writer.writerows([one.get("id", one.get("index")), _plain(one)] for one in predictions)


def _plain(prediction: Prediction) -> Any:
    for name in ("label", "value", "answer", "embedding"):
        if name in prediction:
            return prediction[name]
    return " ".join(prediction["tags"])
