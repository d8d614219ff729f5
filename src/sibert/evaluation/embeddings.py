"""Sentence embeddings: mean pooling, the contrastive loss that trains them, the files that sentence-transformers reads.

Shapes: B texts, T tokens, D features.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sibert.models.flat_batch import FlatBatch

__all__ = ["contrastive_loss", "embeddings_of", "mean_pooled", "retrieval_accuracy", "write_modules"]

TEMPERATURE = 0.05
"""Of the cosines, as in SimCSE (arXiv 2104.08821, section 3)."""


def mean_pooled(hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """The mean of the tokens' features, brought to length 1.

    Args:
        hidden_BTD: Last hidden state.
        mask_BT: 1 for tokens, 0 for padding.

    Returns:
        [B, D].
    """
    weights_BT1 = mask_BT[..., None].to(hidden_BTD.dtype)
    return F.normalize((hidden_BTD * weights_BT1).sum(dim=1) / weights_BT1.sum(dim=1).clamp_min(1), dim=-1)


def embeddings_of(hidden_BTD: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """The embeddings of a batch, padded or flat.

    Args:
        hidden_BTD: Last hidden state, [1, N, D] of a flat batch of N tokens.
        inputs: Of the model: `attention_mask` [B, T], or the bounds of the texts.

    Returns:
        [B, D].
    """
    if "cu_seq_lens_q" not in inputs:
        return mean_pooled(hidden_BTD, inputs["attention_mask"])
    flat = FlatBatch.of(inputs["cu_seq_lens_q"], inputs["max_length_q"], hidden_BTD.shape[1])
    return mean_pooled(flat.pad(hidden_BTD[0]), flat.mask_ST)


def contrastive_loss(anchors_BD: Tensor, positives_BD: Tensor) -> Tensor:
    """How far each anchor is from knowing its positive among those of its batch, and the other way round.

    The mean of the cross-entropies of softmax(cosine / 0.05) along rows and along columns, nats (InfoNCE, arXiv
    1807.03748, equation 4, with in-batch negatives).

    Args:
        anchors_BD: Of length 1.
        positives_BD: Of length 1.
    """
    scores_BB = anchors_BD @ positives_BD.T / TEMPERATURE
    own_B = torch.arange(len(scores_BB), device=scores_BB.device)
    return (F.cross_entropy(scores_BB, own_B) + F.cross_entropy(scores_BB.T, own_B)) / 2


def retrieval_accuracy(anchors_ND: np.ndarray, positives_ND: np.ndarray, texts: Sequence[str]) -> float:
    """Share of the anchors that are nearest to their own positive, among those of all.

    Of n positives that are equally near, the own one counts 1 / n: guessing finds it so often. An encoder that tells
    nothing apart has 1 / N.

    Args:
        anchors_ND: Of length 1.
        positives_ND: Of length 1.
        texts: The N positives; the same text twice counts as either.
    """
    _, text_N = np.unique(np.array(texts, dtype=object), return_inverse=True)
    hits = 0.0
    for begin in range(0, len(anchors_ND), 1024):
        scores = anchors_ND[begin : begin + 1024] @ positives_ND.T
        # Equal texts have equal embeddings but for rounding.
        nearest = scores >= scores.max(axis=1, keepdims=True) - 1e-6
        own = text_N[begin : begin + 1024, None] == text_N
        hits += float(((nearest & own).sum(axis=1) / nearest.sum(axis=1)).sum())
    return hits / len(anchors_ND)


def write_modules(folder: Path, width: int, length: int) -> None:
    """Make a folder of transformers one of sentence-transformers: its tokens are averaged and brought to length 1.

    Args:
        folder: With model and tokenizer.
        width: D.
        length: Most tokens of a text.
    """
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    files: dict[str, Any] = {
        "1_Pooling/config.json": pooling,
        "2_Normalize/config.json": {},
        "sentence_bert_config.json": {"max_seq_length": length, "do_lower_case": False},
        "config_sentence_transformers.json": {"similarity_fn_name": "cosine"},
        "modules.json": modules,
    }
    for name, contents in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
