"""GLUE, SQuAD and a user's own tasks, with their official metrics."""

from sibert.evaluation.baselines import bag_of_words, majority
from sibert.evaluation.entities import entities, entity_scores
from sibert.evaluation.examples import Examples, examples_of
from sibert.evaluation.metrics import METRICS, score
from sibert.evaluation.prediction_files import predict_file
from sibert.evaluation.predictor import Predictor
from sibert.evaluation.sources import held_out, task_rows
from sibert.evaluation.spans import Answer, Window, answers_from_scores, span_labels, windows
from sibert.evaluation.squad_scores import SquadScores, squad_scores
from sibert.evaluation.tasks import GENERIC, TASKS, Task, task_named
from sibert.evaluation.tokenization import Tokenization

__all__ = [  # noqa: RUF022  (grouped by what they do)
    # tasks and their data
    "GENERIC",
    "TASKS",
    "Examples",
    "Task",
    "examples_of",
    "held_out",
    "task_named",
    "task_rows",
    # what models read and say
    "Answer",
    "Predictor",
    "Tokenization",
    "Window",
    "answers_from_scores",
    "predict_file",
    "span_labels",
    "windows",
    # scores
    "METRICS",
    "SquadScores",
    "bag_of_words",
    "entities",
    "entity_scores",
    "majority",
    "score",
    "squad_scores",
]
