"""Batches without padding: examples of different lengths, one after the other in a single row.

The keys of the bounds are those of transformers' `DataCollatorWithFlattening` and FlashAttention. There is no
randomness here, so that batches can be prepared ahead of time.

Shapes: B examples, T tokens of a padded one, N tokens of all, P target slots of an example, M targets of all.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch

IGNORED = -100
BY_TOKEN = ("input_ids", "token_type_ids")


def flatten(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Lay rows of fine-tuning end to end.

    Args:
        rows: B of them with the same keys: `input_ids`, perhaps `token_type_ids`, and labels of any name: a list is one
            for each token, a number one for the row. `attention_mask` is not needed.

    Returns:
        input_ids, position_ids (and token_type_ids, labels of tokens) [1, N]; labels of rows [B]; cu_seq_lens_q and
        cu_seq_lens_k [B + 1], int32; max_length_q and max_length_k, integers.

    Raises:
        ValueError: If there is no token, or a row has another number of labels than of tokens.
    """
    lengths_B = np.array([len(row["input_ids"]) for row in rows])
    batch: dict[str, Any] = {}
    for name in rows[0]:
        if name == "attention_mask":
            continue
        if name not in BY_TOKEN and np.isscalar(rows[0][name]):
            batch[name] = torch.tensor([row[name] for row in rows])
            continue
        values = list(chain.from_iterable(row[name] for row in rows))
        if len(values) != lengths_B.sum():
            raise ValueError(
                f"{name} needs a value for each of the {lengths_B.sum()} tokens of the batch, got {len(values)}"
            )
        batch[name] = torch.tensor(values)[None]
    return batch | _bounds(lengths_B)


def collate_flat(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Lay masked examples end to end, without their padding and without target slots that are not used.

    Args:
        examples: B items of a `MaskedDataset`.

    Returns:
        As `flatten`, with next_sentence_label [B], and masked_positions, counted from the beginning of the batch, and
        labels [1, M], int64.
    """
    stacked = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
    token_BT = stacked["attention_mask"] != 0
    place_BT = np.cumsum(token_BT).reshape(token_BT.shape) - 1
    target_BP = stacked["labels"] != IGNORED
    row_M, _ = np.nonzero(target_BP)
    kept = {
        "masked_positions": place_BT[row_M, stacked["masked_positions"][target_BP]],
        "labels": stacked["labels"][target_BP],
    }
    kept |= {name: stacked[name][token_BT] for name in BY_TOKEN if name in stacked}
    batch: dict[str, Any] = {name: torch.from_numpy(values.astype(np.int64))[None] for name, values in kept.items()}
    if "next_sentence_label" in stacked:
        batch["next_sentence_label"] = torch.from_numpy(stacked["next_sentence_label"].astype(np.int64))
    return batch | _bounds(token_BT.sum(axis=1))


def _bounds(lengths_B: np.ndarray) -> dict[str, Any]:
    bounds = np.concatenate([[0], np.cumsum(lengths_B)])
    if not bounds[-1]:
        raise ValueError("the rows of the batch have no tokens; leave out empty texts")
    starts_N = np.repeat(bounds[:-1], lengths_B)
    cu_seqlens, longest = torch.from_numpy(bounds.astype(np.int32)), int(lengths_B.max())
    return {
        "position_ids": torch.from_numpy(np.arange(bounds[-1]) - starts_N)[None],
        "cu_seq_lens_q": cu_seqlens,
        "cu_seq_lens_k": cu_seqlens,
        "max_length_q": longest,
        "max_length_k": longest,
    }
