"""SIBERT as Hugging Face models, and the twins it is compared with.

Importing registers the Auto classes, and `attn_implementation="relu_normalized"` for every model of transformers.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from sibert.models.attention_interface import relu_normalized_attention
from sibert.models.bert_twin import (
    BertTwinForMaskedLM,
    BertTwinForPreTraining,
    ModernBertTwinForMaskedLM,
    modern_bert_config,
)
from sibert.models.configuration_sibert import INVARIANCES, SIZES, SibertConfig, size_of
from sibert.models.initialization import initialize_from_frequencies
from sibert.models.modeling_sibert import (
    SibertForMaskedLM,
    SibertForMultipleChoice,
    SibertForPreTraining,
    SibertForPreTrainingOutput,
    SibertForQuestionAnswering,
    SibertForSequenceClassification,
    SibertForTokenClassification,
    SibertModel,
    SibertPreTrainedModel,
)

__all__ = [  # noqa: RUF022  (grouped by what they do)
    # configuration
    "INVARIANCES",
    "SIZES",
    "SibertConfig",
    "initialize_from_frequencies",
    "size_of",
    # models
    "SibertForMaskedLM",
    "SibertForMultipleChoice",
    "SibertForPreTraining",
    "SibertForPreTrainingOutput",
    "SibertForQuestionAnswering",
    "SibertForSequenceClassification",
    "SibertForTokenClassification",
    "SibertModel",
    "SibertPreTrainedModel",
    # normalised-ReLU attention for the models of transformers
    "relu_normalized_attention",
    # baselines
    "BertTwinForMaskedLM",
    "BertTwinForPreTraining",
    "ModernBertTwinForMaskedLM",
    "modern_bert_config",
]

AutoConfig.register("sibert", SibertConfig)
AutoModel.register(SibertConfig, SibertModel)
AutoModelForPreTraining.register(SibertConfig, SibertForPreTraining)
AutoModelForMaskedLM.register(SibertConfig, SibertForMaskedLM)
AutoModelForSequenceClassification.register(SibertConfig, SibertForSequenceClassification)
AutoModelForTokenClassification.register(SibertConfig, SibertForTokenClassification)
AutoModelForQuestionAnswering.register(SibertConfig, SibertForQuestionAnswering)
AutoModelForMultipleChoice.register(SibertConfig, SibertForMultipleChoice)
