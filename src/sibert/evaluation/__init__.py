"""GLUE, SQuAD and a user's own tasks, with their official metrics."""

from sibert.evaluation.entities import entities, entity_scores
from sibert.evaluation.examples import Examples, examples_of
from sibert.evaluation.metrics import METRICS, score
from sibert.evaluation.spans import Answer, Window, answers_from_scores, span_labels, windows
from sibert.evaluation.squad_scores import SquadScores, squad_scores
from sibert.evaluation.tasks import GENERIC, TASKS, Task, task_named

__all__ = [
    "GENERIC",
    "METRICS",
    "TASKS",
    "Answer",
    "Examples",
    "SquadScores",
    "Task",
    "Window",
    "answers_from_scores",
    "entities",
    "entity_scores",
    "examples_of",
    "score",
    "span_labels",
    "squad_scores",
    "task_named",
    "windows",
]
