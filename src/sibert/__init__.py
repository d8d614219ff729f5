"""Pre-train BERT-class encoders with plain SGD: scale-invariant models, their optimizer and their instruments.

Importing this package registers SIBERT with the Auto classes of transformers, and does nothing else.
"""

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
