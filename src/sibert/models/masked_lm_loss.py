"""Losses of pre-training, divided by the targets of the global batch.

Shape suffixes: B = batch, T = tokens, P = predicted positions, D = hidden size, V = vocabulary, X = B * T or B * P.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["IGNORED", "gather_positions", "masked_lm_loss", "next_sentence_loss", "per_target", "wide"]

IGNORED = -100
"""Label of a position that is not predicted."""


def gather_positions(hidden_BTD: Tensor, positions_BP: Tensor | None) -> Tensor:
    """Pick the hidden states at the positions to predict.

    Args:
        hidden_BTD: Hidden states.
        positions_BP: Positions in [0, T), or None for all.

    Returns:
        Hidden states [B, P, D], or [B, T, D] for None.
    """
    if positions_BP is None:
        return hidden_BTD
    return hidden_BTD.gather(1, positions_BP[:, :, None].expand(-1, -1, hidden_BTD.shape[-1]))


def wide(logits: Tensor) -> Tensor:
    """Give logits the precision in which a loss is computed.

    Args:
        logits: Of any shape.

    Returns:
        Those of half precision in float32; others as they are.
    """
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def masked_lm_loss(logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Cross-entropy of the predicted positions, summed and divided by the number of targets of the global batch.

    With micro-batches m of one global batch, sum_m loss_m is the mean over all targets, however unevenly they are
    spread over accumulation steps and processes.

    Args:
        logits: [B, T, V] or [B, P, V].
        labels: True tokens, `IGNORED` where there is no target: [B, T] or [B, P].
        num_items_in_batch: Number of targets of the global batch; None = those of these labels.

    Returns:
        A scalar, nats per target; 0 where there is no target at all.
    """
    total = F.cross_entropy(wide(logits).flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return per_target(total, labels, num_items_in_batch)


def per_target(total: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Divide a summed loss by the number of targets.

    Args:
        total: Sum over the targets of this batch, nats.
        labels: Its labels, `IGNORED` where there is no target.
        num_items_in_batch: Number of targets of the global batch; None = those of these labels.

    Returns:
        A scalar, nats per target; 0 where there is no target at all.
    """
    targets = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
    return total / at_least_one(targets)


def at_least_one(count: Tensor | int) -> Tensor | int:
    """What a sum over so many targets is divided by: without any the sum is 0, and the loss has to be, too.

    Args:
        count: Number of targets or sequences.

    Returns:
        The same, but 1 in place of 0.
    """
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)


def next_sentence_loss(
    logits_B2: Tensor,
    labels_B: Tensor,
    num_sequences_in_batch: Tensor | int | None = None,
    mlm_labels: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
) -> Tensor:
    """Cross-entropy of the next-sentence prediction, summed and divided by the sequences of the global batch.

    Args:
        logits_B2: Scores of "follows" (0) and "random" (1).
        labels_B: True classes.
        num_sequences_in_batch: Number of sequences of the global batch. None = those of this batch; if the number of
            masked-LM targets of the global batch is known, this batch counts with its share of them.
        mlm_labels: Masked-LM labels of this batch, to know its share.
        num_items_in_batch: Number of masked-LM targets of the global batch.

    Returns:
        A scalar, nats per sequence.
    """
    if num_sequences_in_batch is not None:
        return F.cross_entropy(wide(logits_B2), labels_B, reduction="sum") / at_least_one(num_sequences_in_batch)
    mean: Tensor = F.cross_entropy(wide(logits_B2), labels_B)
    if num_items_in_batch is None or mlm_labels is None:
        return mean
    return mean * ((mlm_labels != IGNORED).sum() / at_least_one(torch.as_tensor(num_items_in_batch)))
