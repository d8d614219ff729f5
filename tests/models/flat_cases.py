"""Batches of ragged sequences, once padded and once flat, for every head."""

from typing import Any

import torch
from torch import Tensor, nn

from sibert.models import (
    SibertConfig,
    SibertForMaskedLM,
    SibertForMultipleChoice,
    SibertForPreTraining,
    SibertForQuestionAnswering,
    SibertForSequenceClassification,
    SibertForTokenClassification,
)
from tests.models.builders import roughened

Batch = dict[str, Any]
VOCABULARY = 97

HEADS = (
    SibertForMaskedLM,
    SibertForPreTraining,
    SibertForSequenceClassification,
    SibertForTokenClassification,
    SibertForQuestionAnswering,
    SibertForMultipleChoice,
)


def model_of(kind: type[nn.Module], invariance: str, **fields: Any) -> nn.Module:
    """A rough model in float64, without dropout."""
    torch.manual_seed(0)
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": 24, "invariance": invariance}
    return roughened(kind(SibertConfig.of_size("nano", **{**sizes, **quiet, **fields})).double()).train()


def sequences(lengths: list[int], seed: int = 0) -> list[Tensor]:
    """Random tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, VOCABULARY, (length,), generator=generator) for length in lengths]


def bounds(ids: list[Tensor]) -> Batch:
    """What `DataCollatorWithFlattening(return_flash_attn_kwargs=True)` adds."""
    lengths = [len(one) for one in ids]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    return {
        "cu_seq_lens_q": cu_seqlens,
        "cu_seq_lens_k": cu_seqlens,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


def flat(ids: list[Tensor]) -> Batch:
    """Without labels."""
    types = torch.cat([(torch.arange(len(one)) >= len(one) // 2).long() for one in ids])
    return {"input_ids": torch.cat(ids)[None], "token_type_ids": types[None], **bounds(ids)}


def padded(ids: list[Tensor]) -> Batch:
    """The same, with padding on the right."""
    types = [(torch.arange(len(one)) >= len(one) // 2).long() for one in ids]
    return {
        "input_ids": nn.utils.rnn.pad_sequence(ids, batch_first=True),
        "token_type_ids": nn.utils.rnn.pad_sequence(types, batch_first=True),
        "attention_mask": nn.utils.rnn.pad_sequence([torch.ones_like(one) for one in ids], batch_first=True),
    }


def with_labels(kind: type[nn.Module], ids: list[Tensor], seed: int = 0) -> tuple[Batch, Batch]:
    """Padded and flat batch with the labels of a head."""
    generator = torch.Generator().manual_seed(seed)
    one, other = padded(ids), flat(ids)
    count = len(ids)
    if kind in (SibertForMaskedLM, SibertForPreTraining, SibertForTokenClassification):
        high = 2 if kind is SibertForTokenClassification else VOCABULARY
        labels = [torch.randint(high, (len(row),), generator=generator) for row in ids]
        for row in labels:
            row[1::3] = -100
        one["labels"] = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
        other["labels"] = torch.cat(labels)[None]
    if kind is SibertForPreTraining:
        one["next_sentence_label"] = other["next_sentence_label"] = torch.arange(count) % 2
    if kind is SibertForSequenceClassification:
        one["labels"] = other["labels"] = torch.arange(count) % 2
    if kind is SibertForQuestionAnswering:
        for name in ("start_positions", "end_positions"):
            one[name] = other[name] = torch.tensor(
                [int(torch.randint(len(r) + 2, (), generator=generator)) for r in ids]
            )
            one[name][0] = 0  # at least one that counts
    if kind is SibertForMultipleChoice:
        for name in ("input_ids", "token_type_ids", "attention_mask"):
            one[name] = one[name].unflatten(0, (-1, 2))
        one["labels"] = other["labels"] = torch.arange(count // 2) % 2
    return one, other


def predictions(output: Any) -> Tensor:
    """What a head has to say, of whatever name."""
    for name in ("logits", "prediction_logits", "start_logits", "last_hidden_state"):
        if output.get(name) is not None:
            return output[name]
    raise AssertionError(output.keys())
