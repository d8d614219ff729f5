"""Pre-train BERT-class encoders with plain SGD: scale-invariant models, their optimizer and their instruments.

Importing this package registers SIBERT with the Auto classes of transformers and, where transformers has none, the
pipeline "question-answering"; it does nothing else.
"""

from transformers import AutoModelForQuestionAnswering, pipelines

from sibert.models import (
    SibertConfig,
    SibertForMaskedLM,
    SibertForMultipleChoice,
    SibertForPreTraining,
    SibertForQuestionAnswering,
    SibertForSequenceClassification,
    SibertForTokenClassification,
    SibertModel,
)
from sibert.optim import ClippedSGD, Hybrid, Lamb, build_optimizer, param_groups

__version__ = "0.1.0"

if "question-answering" not in pipelines.PIPELINE_REGISTRY.supported_tasks:
    # transformers 5 refuses the names of its former pipelines before it looks at the registry.
    getattr(pipelines, "REMOVED_TASKS", {}).pop("question-answering", None)
    pipelines.PIPELINE_REGISTRY.supported_tasks["question-answering"] = {
        "impl": "sibert.evaluation.question_answering.QuestionAnsweringPipeline",  # imported when it is asked for
        "pt": (AutoModelForQuestionAnswering,),
        "default": {},
        "type": "text",
    }

__all__ = [  # noqa: RUF022  (grouped by what they do)
    # models
    "SibertConfig",
    "SibertForMaskedLM",
    "SibertForMultipleChoice",
    "SibertForPreTraining",
    "SibertForQuestionAnswering",
    "SibertForSequenceClassification",
    "SibertForTokenClassification",
    "SibertModel",
    # optimizers
    "ClippedSGD",
    "Hybrid",
    "Lamb",
    "build_optimizer",
    "param_groups",
]
