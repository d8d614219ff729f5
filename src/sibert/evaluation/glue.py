"""GLUE from the files of its official archives (gluebenchmark.com), packed or not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sibert.evaluation.tables import PACKED, Row, clear_errors, opened, read_rows, table_format
from sibert.evaluation.tasks import Task

__all__ = ["glue_file_rows", "glue_rows", "is_whole"]


@dataclass(frozen=True)
class Layout:
    """How the files of a task look.

    Attributes:
        names: Our columns -> those of the file.
        header: Of train and validation, where the files have none.
        files: Split -> names of its file, the first that is there; none = `USUAL`.
    """

    names: dict[str, str]
    header: Sequence[str] | None = None
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)


USUAL = {"train": ("train.tsv",), "validation": ("dev.tsv",), "test": ("test.tsv",)}
PAIR = {"sentence1": "sentence1", "sentence2": "sentence2", "label": "label"}
LAYOUTS: dict[str, Layout] = {
    "cola": Layout({"sentence": "sentence", "label": "label"}, ("source", "label", "mark", "sentence")),
    "sst2": Layout({"sentence": "sentence", "label": "label"}),
    "mrpc": Layout(
        {"sentence1": "#1 String", "sentence2": "#2 String", "label": "Quality"},
        files={
            "train": ("train.tsv", "msr_paraphrase_train.txt"),
            "validation": ("dev.tsv", "msr_paraphrase_test.txt"),
            "test": ("test.tsv", "msr_paraphrase_test.txt"),
        },
    ),
    "stsb": Layout({**PAIR, "label": "score"}),
    "qqp": Layout({"question1": "question1", "question2": "question2", "label": "is_duplicate"}),
    "mnli": Layout(
        {"premise": "sentence1", "hypothesis": "sentence2", "label": "gold_label"},
        files={
            "train": ("train.tsv",),
            "validation_matched": ("dev_matched.tsv",),
            "validation_mismatched": ("dev_mismatched.tsv",),
            "test_matched": ("test_matched.tsv",),
            "test_mismatched": ("test_mismatched.tsv",),
        },
    ),
    "qnli": Layout({"question": "question", "sentence": "sentence", "label": "label"}),
    "rte": Layout(PAIR),
    "wnli": Layout(PAIR),
}


def glue_rows(task: Task, folder: Path) -> dict[str, Iterator[Row]]:
    """The splits of a task that a folder has.

    Args:
        task: Of GLUE.
        folder: With the files of the official archive; MRPC also as Microsoft's original, whose test file, which has
            labels, is then the validation split.

    Returns:
        By name, with the task's columns; the label is missing where the file has none. Rows that lack columns, as a few
        of QQP's do, are left out.

    Raises:
        ValueError: If the folder has none of the files.
    """
    layout = LAYOUTS[task.name]
    found: dict[str, Iterator[Row]] = {}
    expected = []
    for split, names in (layout.files or USUAL).items():
        expected.append(names[0])
        file = next((file for name in names for end in PACKED if (file := folder / f"{name}{end}").is_file()), None)
        if file is not None:
            header = None if split.startswith("test") else layout.header
            found[split] = (row for row in _rows(task, layout, file, header) if is_whole(task, row))
    if not found:
        here = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) or "nothing"
        raise ValueError(f"{folder} has none of the files of {task.name}: expected {', '.join(expected)}; found {here}")
    return found


def glue_file_rows(task: Task, file: Path) -> Iterator[Row] | None:
    """The rows of a single file of an official archive, where a line is a row and quotation marks are text.

    Args:
        task: Any.
        file: Any.

    Returns:
        With the task's columns, as far as a row has them; None if the file does not look like one of GLUE's for this
        task: a tsv file with its columns.

    Raises:
        ValueError: If the file cannot be read.
    """
    layout = LAYOUTS.get(task.name)
    if layout is None or table_format(file) != "tsv":
        return None
    with clear_errors(file, "tsv"), opened(file) as stream:
        first = stream.readline().decode("utf-8-sig").rstrip("\r\n").split("\t")
    if set(_columns_of(task, layout)) <= set(first):
        return _rows(task, layout, file, None)
    header = layout.header
    if header is not None and len(first) == len(header) and first[header.index("label")].isdecimal():
        return _rows(task, layout, file, header)
    return None


def is_whole(task: Task, row: Row) -> bool:
    """Whether a row has all columns that the task reads.

    Args:
        task: Of GLUE.
        row: Of one of its files.
    """
    return all(column in row.values for column in task.columns)


def _columns_of(task: Task, layout: Layout) -> list[str]:
    """What the task's columns are called in the file; those that a user has named are called so."""
    return [layout.names.get(column, column) for column in task.columns]


def _rows(task: Task, layout: Layout, file: Path, header: Sequence[str] | None) -> Iterator[Row]:
    required = _columns_of(task, layout)
    ours = (*task.columns, str(task.target))
    for row in read_rows(file, header=header, plain=True, required=required if header is None else ()):
        names = [(name, layout.names.get(name, name)) for name in ours]
        yield Row(row.file, row.place, {name: row.values[theirs] for name, theirs in names if theirs in row.values})
