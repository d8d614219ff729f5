"""SQuAD's files: a tree of articles, paragraphs and questions."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sibert.evaluation.tables import Row, clear_errors, opened, parsed_json

__all__ = ["squad_rows"]


def squad_rows(file: Path) -> Iterator[Row]:
    """The questions of a file.

    Args:
        file: In the format of SQuAD 1.1 or 2.0, packed or not.

    Yields:
        "id", "title", "question", "context", and "answers" where the file has them; an unanswerable question has none.

    Raises:
        ValueError: If the file is in another format.
    """
    with clear_errors(file, "json"), opened(file) as stream:
        tree = parsed_json(stream.read().decode("utf-8-sig"), str(file))
    if not isinstance(tree, dict) or not isinstance(tree.get("data"), list):
        raise ValueError(f"{file} is not in SQuAD's format: expected an object with the list 'data'")
    for number, article in enumerate(tree["data"]):
        for paragraph_number, paragraph in enumerate(_list(file, article, "paragraphs", f"data[{number}]")):
            place = f"data[{number}].paragraphs[{paragraph_number}]"
            context = _of(file, paragraph, "context", place)
            for question in _list(file, paragraph, "qas", place):
                yield _row(file, place, article.get("title", ""), context, question)


def _row(file: Path, place: str, title: str, context: str, question: Any) -> Row:
    key = _of(file, question, "id", place)
    values = {"id": key, "title": title, "question": _of(file, question, "question", place), "context": context}
    if "answers" in question:
        answers = [] if question.get("is_impossible") else _list(file, question, "answers", f"question {key}")
        texts = [_of(file, answer, "text", f"question {key}") for answer in answers]
        values["answers"] = {
            "text": texts,
            "answer_start": [_of(file, answer, "answer_start", f"question {key}") for answer in answers],
        }
    return Row(file, f"question {key}", values)


def _of(file: Path, part: Any, name: str, place: str) -> Any:
    if not isinstance(part, dict) or name not in part:
        raise ValueError(f"{file}, {place}: expected {name!r}, as SQuAD has it")
    return part[name]


def _list(file: Path, part: Any, name: str, place: str) -> list[Any]:
    found = _of(file, part, name, place)
    if not isinstance(found, list):
        raise ValueError(f"{file}, {place}: expected a list of {name!r}, as SQuAD has it, got {type(found).__name__}")
    return found
