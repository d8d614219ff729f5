"""Flat batches hold what padded ones hold, and nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DataCollatorWithFlattening

from sibert.data import collate, collate_flat, flatten
from sibert.data.flattening import IGNORED


@pytest.mark.parametrize("name", ["prepared", "prepared_pairs"])
def test_of_a_padded_batch_everything_is_kept_but_the_padding(request, name):
    masked = request.getfixturevalue(name).masked_train(seed=5)
    examples = [masked[1, index] for index in (0, 7, len(masked) - 1, 3)]
    padded, flat = collate(examples), collate_flat(examples)
    tokens = padded["attention_mask"] == 1
    for key in ("input_ids", "token_type_ids"):
        if key in padded:
            assert torch.equal(flat[key][0], padded[key][tokens])
    bounds = flat["cu_seq_lens_q"]
    assert bounds.dtype == torch.int32
    assert torch.equal(bounds.diff(), tokens.sum(dim=1).int())
    assert flat["max_length_q"] == flat["max_length_k"] == int(tokens.sum(dim=1).max())
    assert torch.equal(flat["position_ids"][0], torch.cat([torch.arange(n) for n in bounds.diff()]))
    targets = padded["labels"] != IGNORED
    assert torch.equal(flat["labels"][0], padded["labels"][targets])
    there = padded["input_ids"].gather(1, padded["masked_positions"])[targets]
    assert torch.equal(flat["input_ids"][0, flat["masked_positions"][0]], there)
    if name == "prepared_pairs":
        assert (~tokens).any()  # there was padding to lose
        assert torch.equal(flat["next_sentence_label"], padded["next_sentence_label"])


@given(st.lists(st.lists(st.integers(0, 99), max_size=9), min_size=1, max_size=7).filter(any))
@settings(deadline=None)
def test_rows_lie_as_the_collator_of_transformers_lays_them(ids):
    rows = [{"input_ids": row, "labels": [n + 1 for n in row]} for row in ids]
    ours = flatten(rows)
    names = {"input_ids", "position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
    assert set(ours) == names | {"labels"}
    assert torch.equal(ours["labels"], ours["input_ids"] + 1)
    if all(ids):  # theirs writes the separator of an empty row, too
        theirs = DataCollatorWithFlattening(return_flash_attn_kwargs=True)(rows)
        for name in names:
            assert (
                (ours[name] == theirs[name]) if isinstance(ours[name], int) else torch.equal(ours[name], theirs[name])
            )
            assert type(ours[name]) is type(theirs[name])
        assert ours["cu_seq_lens_q"].dtype == theirs["cu_seq_lens_q"].dtype


def test_labels_of_rows_are_stacked():
    rows = [
        {"input_ids": [1, 2], "labels": 1.5, "start_positions": 0},
        {"input_ids": [3], "labels": 2, "start_positions": 2},
    ]
    batch = flatten([row | {"attention_mask": [1] * len(row["input_ids"])} for row in rows])
    assert batch["labels"].tolist() == [1.5, 2.0]
    assert batch["start_positions"].tolist() == [0, 2]
    assert "attention_mask" not in batch


def test_what_cannot_be_a_batch_is_refused():
    with pytest.raises(ValueError, match="labels needs a value for each of the 3 tokens"):
        flatten([{"input_ids": [1, 2], "labels": [0]}, {"input_ids": [3], "labels": [1]}])
    with pytest.raises(ValueError, match="no tokens"):
        flatten([{"input_ids": []}])
    empty = {"input_ids": np.zeros(4), "attention_mask": np.zeros(4), "labels": np.full(1, -100)}
    with pytest.raises(ValueError, match="no tokens"):
        collate_flat([empty | {"masked_positions": np.zeros(1, dtype=np.int64)}])
