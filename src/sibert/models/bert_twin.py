"""BERT, and ModernBERT, behind the interface of SIBERT's pre-training, so that a comparison differs in nothing else.

The twins are models of `transformers`, weights and initialisation untouched. Only `forward` is told to evaluate the
decoder at the masked positions and to divide the loss by the targets of the global batch, as SIBERT does.
"""

from typing import Any

from torch import Tensor
from transformers import BertForMaskedLM, BertForPreTraining, ModernBertConfig, ModernBertForMaskedLM
from transformers.modeling_outputs import MaskedLMOutput
from transformers.utils.generic import can_return_tuple

from sibert.models.masked_lm_loss import gather_positions, masked_lm_loss, next_sentence_loss
from sibert.models.modeling_sibert import SibertForPreTrainingOutput

__all__ = ["BertTwinForMaskedLM", "BertTwinForPreTraining", "ModernBertTwinForMaskedLM", "modern_bert_config"]


class BertTwinForMaskedLM(BertForMaskedLM):  # type: ignore[misc]
    """`BertForMaskedLM` with the losses of `SibertForMaskedLM`; saved and loaded as the former."""

    accepts_loss_kwargs = True

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        masked_positions: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        """Predict tokens; arguments and result as in `SibertForMaskedLM.forward`, but the logits are always there."""
        outputs = self.bert(
            input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, return_dict=True, **kwargs
        )
        logits = self.cls(gather_positions(outputs.last_hidden_state, masked_positions))
        loss = None if labels is None else masked_lm_loss(logits, labels, num_items_in_batch)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class BertTwinForPreTraining(BertForPreTraining):  # type: ignore[misc]
    """`BertForPreTraining` with the losses of `SibertForPreTraining`; saved and loaded as the former."""

    accepts_loss_kwargs = True

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        masked_positions: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        num_sequences_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> SibertForPreTrainingOutput:
        """Predict tokens and the relation of the segments; as in `SibertForPreTraining.forward`, logits always."""
        outputs = self.bert(
            input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, return_dict=True, **kwargs
        )
        gathered = gather_positions(outputs.last_hidden_state, masked_positions)
        logits, relationship_B2 = self.cls(gathered, outputs.pooler_output)
        mlm_loss = None if labels is None else masked_lm_loss(logits, labels, num_items_in_batch)
        nsp_loss = None
        if next_sentence_label is not None:
            nsp_loss = next_sentence_loss(
                relationship_B2, next_sentence_label, num_sequences_in_batch, labels, num_items_in_batch
            )
        return SibertForPreTrainingOutput(
            loss=mlm_loss + nsp_loss if mlm_loss is not None and nsp_loss is not None else None,
            mlm_loss=mlm_loss,
            nsp_loss=nsp_loss,
            prediction_logits=logits,
            seq_relationship_logits=relationship_B2,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class ModernBertTwinForMaskedLM(ModernBertForMaskedLM):  # type: ignore[misc]
    """`ModernBertForMaskedLM` with the loss of `SibertForMaskedLM`; saved and loaded as the former."""

    accepts_loss_kwargs = True

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        masked_positions: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        """Predict tokens; as `BertTwinForMaskedLM.forward`. It knows no types of tokens."""
        outputs = self.model(input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)
        logits = self.decoder(self.head(gather_positions(outputs.last_hidden_state, masked_positions)))
        loss = None if labels is None else masked_lm_loss(logits, labels, num_items_in_batch)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


def modern_bert_config(*, intermediate_size: int, num_hidden_layers: int, **fields: Any) -> ModernBertConfig:
    """ModernBERT of the size of a BERT.

    Its gated feed-forward layer has three matrices instead of two, so it gets two thirds of the width; every layer
    attends to the whole sequence, for those of BERT are short.

    Args:
        intermediate_size: Of the BERT.
        num_hidden_layers: Of both.
        fields: Other fields of `ModernBertConfig`.

    Returns:
        The configuration.
    """
    special: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"))
    return ModernBertConfig(
        intermediate_size=round(intermediate_size / 12) * 8,
        num_hidden_layers=num_hidden_layers,
        layer_types=["full_attention"] * num_hidden_layers,
        rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 10_000.0}},
        **{**special, **fields},
    )
