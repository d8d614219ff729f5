"""Rows of any source as checked examples of a task, in columns that are the same for all sources."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from sibert.evaluation.tables import Row
from sibert.evaluation.tasks import Task

__all__ = ["Examples", "examples_of"]

Label = str | int


@dataclass(frozen=True)
class Examples:
    """The data of a task.

    Attributes:
        task: Which.
        labels: In the order of the head's outputs; None where there are none.
        splits: By name. Columns: "text", "text_pair", "label" (an index or a number); for tags "words", "label"
            (indices); "id", "question", "context", "answers" ("text" and "answer_start", as SQuAD has them); "anchor",
            "positive". A split without its target has no labels, to be predicted.
        notes: What a user should know of the data, in sentences.
    """

    task: Task
    labels: tuple[str, ...] | None
    splits: Mapping[str, Dataset]
    notes: tuple[str, ...] = field(default=())


def examples_of(task: Task, splits: Mapping[str, Iterable[Row]], labels: Sequence[str] | None = None) -> Examples:
    """Check rows and bring them into the columns of the task.

    Args:
        task: What they are for.
        splits: Rows by the name of their split; "train" decides about the labels.
        labels: Of the model that is evaluated; None = the task's own, or else those of "train".

    Raises:
        ValueError: At the first row that is wrong, with file, row and column; or if a split is empty, or "train" has
            one label alone.
    """
    known = tuple(labels) if labels is not None else task.labels
    ordered = sorted(splits, key=lambda name: name != "train")
    found: dict[str, Dataset] = {}
    notes: list[str] = []
    seen: set[Any] = set()
    for name in ordered:
        rows = list(splits[name])
        if not rows:
            raise ValueError(f"the {name} split has no rows")
        with_target = task.target is not None and any(task.target in row.values for row in rows)
        if name == "train" and task.target is not None and not with_target:
            raise rows[0].wrong(task.target, f"the column is missing; columns found: {', '.join(rows[0].values)}")
        if known is None and with_target and task.kind in ("classification", "token-classification"):
            known = _labels_of(task, rows)
        columns = _columns(task, rows, known, with_target)
        keys = list(zip(*(columns[column] for column in _inputs(task)), strict=True))
        keys = [tuple(key) if not isinstance(key[0], list) else tuple(key[0]) for key in keys]
        notes += _duplicates(name, keys, seen)
        seen |= set(keys) if name == "train" else set()
        found[name] = Dataset.from_dict(columns)
    return Examples(task, known, found, tuple(notes))


def _inputs(task: Task) -> tuple[str, ...]:
    names = {
        "token-classification": ("words",),
        "qa": ("question", "context"),
        "embedding": ("anchor", "positive"),
    }
    return names.get(task.kind, ("text", "text_pair")[: len(task.columns)])


def _duplicates(name: str, keys: list[Any], seen: set[Any]) -> Iterator[str]:
    if name == "train":
        double = len(keys) - len(set(keys))
        if double:
            yield f"{double} of {len(keys)} rows of train repeat an earlier one"
    elif shared := sum(key in seen for key in keys):
        yield f"{shared} of {len(keys)} rows of {name} are in train, too"


def _columns(task: Task, rows: Sequence[Row], labels: Sequence[str] | None, target: bool) -> dict[str, list[Any]]:
    names = _inputs(task)
    if task.kind == "token-classification":
        return _words(task, rows, labels, target)
    columns: dict[str, list[Any]] = {}
    for name, column in zip(names, task.columns, strict=True):
        columns[name] = [_require(row, column).text(column) for row in rows]
    if task.kind == "qa":
        columns["id"] = _ids(rows)
        if target:
            columns["answers"] = [_answers(row, str(task.target), task.columns[1]) for row in rows]
    elif target and task.kind == "regression":
        columns["label"] = [_require(row, str(task.target)).number(str(task.target)) for row in rows]
    elif target and task.kind == "classification":
        assert labels is not None
        index = _index(task, labels)
        columns["label"] = [_label(row, str(task.target), index, labels) for row in rows]
    return columns


def _require(row: Row, column: str) -> Row:
    if column not in row.values:
        raise row.wrong(column, f"the column is missing; columns found: {', '.join(row.values)}")
    return row


def _plain(row: Row, column: str) -> Label:
    """A label as it is written: text or an integer."""
    value = _require(row, column).values[column]
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return value
    if isinstance(value, float) and math.isnan(value):
        raise row.wrong(column, "the label is NaN")
    if not isinstance(value, str) or not value.strip():
        shown = "nothing" if value is None or value == "" else repr(value)
        raise row.wrong(column, f"expected a label (text or an integer), got {shown}")
    return value.strip()


def _labels_of(task: Task, rows: Sequence[Row]) -> tuple[str, ...]:
    column = str(task.target)
    found: set[Label] = set()
    for row in rows:
        if task.kind == "classification":
            found.add(_plain(row, column))
        else:
            found |= set(_split(row, column))
    texts = {str(label) for label in found}
    if len(texts) < 2:
        raise ValueError(
            f"{rows[0].file} has one label alone ({texts.pop()!r} in column {column!r}): there is nothing to tell apart"
        )
    numeric = all(text.removeprefix("-").isdecimal() for text in texts)
    return tuple(sorted(texts, key=(lambda text: (int(text), text)) if numeric else None))


def _index(task: Task, labels: Sequence[str]) -> dict[str, int]:
    """By name; in the files of a known task, which write some labels so, also by number."""
    numbers = {} if task.labels is None else {str(i): i for i in range(len(labels))}
    return numbers | {label: i for i, label in enumerate(labels)}


def _label(row: Row, column: str, index: Mapping[str, int], labels: Sequence[str]) -> int:
    label = str(_plain(row, column))
    if label not in index:
        raise row.wrong(column, f"{label!r} is none of the labels that the model knows: {', '.join(labels)}")
    return index[label]


def _split(row: Row, column: str) -> list[str]:
    """Words or tags: a list, or text with white space between them."""
    value = _require(row, column).values[column]
    parts = value.split() if isinstance(value, str) else value
    if not isinstance(parts, list) or not parts:
        raise row.wrong(column, f"expected a list, or words with spaces between them, got {value!r}")
    if not all(isinstance(part, str | int) and str(part).strip() for part in parts):
        raise row.wrong(column, "expected texts that are not empty in the list")
    return [str(part) for part in parts]


def _words(task: Task, rows: Sequence[Row], labels: Sequence[str] | None, target: bool) -> dict[str, list[Any]]:
    column, tags = task.columns[0], str(task.target)
    words = [_split(row, column) for row in rows]
    if not target:
        return {"words": words}
    assert labels is not None
    index = _index(task, labels)
    found = []
    for row, several in zip(rows, words, strict=True):
        own = _split(row, tags)
        if len(own) != len(several):
            raise row.wrong(tags, f"expected one tag for each of the {len(several)} words, got {len(own)}")
        unknown = [tag for tag in own if tag not in index]
        if unknown:
            raise row.wrong(tags, f"{unknown[0]!r} is none of the tags that the model knows: {', '.join(labels)}")
        found.append([index[tag] for tag in own])
    return {"words": words, "label": found}


def _ids(rows: Sequence[Row]) -> list[str]:
    ids = [str(row.values.get("id", number)) for number, row in enumerate(rows)]
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        for row, key in zip(rows, ids, strict=True):
            if key in seen:
                raise row.wrong("id", f"{key!r} is the id of an earlier question, too")
            seen.add(key)
    return ids


def _answers(row: Row, column: str, context_column: str) -> dict[str, list[Any]]:
    """Answers as SQuAD has them; a single text is found in the context."""
    value, context = _require(row, column).values[column], row.values[context_column]
    if value is None or value == "":
        return {"text": [], "answer_start": []}
    if isinstance(value, str):
        value = {"text": [value], "answer_start": [context.find(value)]}
    texts, starts = (value.get("text"), value.get("answer_start")) if isinstance(value, dict) else (None, None)
    if not isinstance(texts, list | tuple) or not isinstance(starts, list | tuple):
        raise row.wrong(
            column, "expected a text of the context, or {'text': [...], 'answer_start': [...]} as SQuAD has it"
        )
    if len(texts) != len(starts):
        raise row.wrong(column, f"{len(texts)} texts, but {len(starts)} starts")
    for text, start in zip(texts, starts, strict=True):
        if (
            not isinstance(text, str)
            or not isinstance(start, int)
            or context[max(start, 0) :][: len(text)] != text
            or start < 0
        ):
            raise row.wrong(column, f"{text!r} is not in column {context_column!r} at character {start}")
    return {"text": list(texts), "answer_start": list(starts)}
