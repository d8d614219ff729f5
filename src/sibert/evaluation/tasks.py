"""The tasks of GLUE and SQuAD and a user's own: what goes in, what comes out, how it is scored."""

from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["DOCSTRINGS", "GENERIC", "TASKS", "Kind", "Task", "task_named"]

Kind = Literal["classification", "regression", "token-classification", "qa", "embedding"]


@dataclass(frozen=True)
class Task:
    """What a model is fine-tuned for.

    Attributes:
        name: Of the task.
        kind: What the model's head gives: a label or a number for a text or a pair, a label for each word, a part of a
            context, or a vector.
        columns: Of a row: one or two texts; words; question and context; anchor and positive.
        target: Column of the label, number, tags or answers; None for embeddings.
        labels: In the order of the head's outputs; None = those of the training file, sorted.
        metrics: Whose mean is the score of the task, as on GLUE's leaderboard; for SQuAD F1.
        splits: Names of the splits to evaluate; the first decides which checkpoint is best.
        hub: Data set and configuration on the hub.
    """

    name: str
    kind: Kind
    columns: tuple[str, ...]
    target: str | None
    labels: tuple[str, ...] | None = None
    metrics: tuple[str, ...] = ()
    splits: tuple[str, ...] = ("validation",)
    hub: tuple[str, str | None] | None = None

    @property
    def pair(self) -> bool:
        """Whether two texts are read together."""
        return self.kind in ("classification", "regression") and len(self.columns) == 2

    def renamed(self, columns: tuple[str, ...], target: str | None) -> "Task":
        """The same task on a file with other names of columns.

        Args:
            columns: As many as the task has.
            target: Column of the label.

        Raises:
            ValueError: If their number is another one.
        """
        if len(columns) != len(self.columns):
            raise ValueError(
                f"{self.name} reads {len(self.columns)} columns ({', '.join(self.columns)}), got {', '.join(columns)}"
            )
        return replace(self, columns=columns, target=target)


GLUE = "nyu-mll/glue"
DOCSTRINGS = "docstrings"
ENTAILMENT = ("entailment", "not_entailment")
SENTENCES = ("sentence1", "sentence2")


def _glue(
    name: str,
    columns: tuple[str, ...],
    labels: tuple[str, ...] | None,
    metrics: tuple[str, ...],
    splits: tuple[str, ...] = ("validation",),
) -> Task:
    kind: Kind = "regression" if labels is None else "classification"
    return Task(name, kind, columns, "label", labels, metrics, splits, (GLUE, name))


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _glue("cola", ("sentence",), ("unacceptable", "acceptable"), ("matthews",)),
        _glue("sst2", ("sentence",), ("negative", "positive"), ("accuracy",)),
        _glue("mrpc", SENTENCES, ("not_equivalent", "equivalent"), ("accuracy", "f1")),
        _glue("stsb", SENTENCES, None, ("pearson", "spearman")),
        _glue("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
        _glue(
            "mnli",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            ("accuracy",),
            ("validation_matched", "validation_mismatched"),
        ),
        _glue("qnli", ("question", "sentence"), ENTAILMENT, ("accuracy",)),
        _glue("rte", SENTENCES, ENTAILMENT, ("accuracy",)),
        _glue("wnli", SENTENCES, ("not_entailment", "entailment"), ("accuracy",)),
        Task("squad", "qa", ("question", "context"), "answers", None, ("f1",), hub=("rajpurkar/squad", None)),
        Task("squad2", "qa", ("question", "context"), "answers", None, ("f1",), hub=("rajpurkar/squad_v2", None)),
        Task(DOCSTRINGS, "classification", ("text",), "label", ("nothing", "value"), ("accuracy", "macro_f1")),
    )
}
"""GLUE (arXiv 1804.07461) and SQuAD 1.1 and 2.0, with the labels in the order of the hub's, and `docstrings`."""

GENERIC: dict[str, Task] = {
    task.name: task
    for task in (
        Task("classification", "classification", ("text",), "label", None, ("accuracy", "macro_f1")),
        Task("pair-classification", "classification", ("text", "text_pair"), "label", None, ("accuracy", "macro_f1")),
        Task("regression", "regression", ("text",), "label", None, ("pearson", "spearman")),
        Task("token-classification", "token-classification", ("words",), "tags", None, ("entity_f1",)),
        Task("qa", "qa", ("question", "context"), "answers", None, ("f1",)),
        Task("embedding", "embedding", ("anchor", "positive"), None, None, ("retrieval_accuracy",)),
    )
}
"""For a user's own files."""


def task_named(name: str) -> Task:
    """Look a task up.

    Args:
        name: A key of `TASKS` or `GENERIC`.

    Raises:
        ValueError: If there is none.
    """
    known = {**TASKS, **GENERIC}
    if name not in known:
        raise ValueError(f"there is no task {name!r}; tasks are {', '.join(known)}")
    return known[name]
