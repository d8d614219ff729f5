import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sibert.data.packing import (
    Layout,
    TokenCount,
    block_batches,
    block_schema,
    pack_blocks,
    pack_pairs,
    pair_batches,
    token_documents,
)

CLS, SEP, PAD = 2, 3, 0
LAYOUT = Layout(length=16, cls=CLS, sep=SEP, pad=PAD, dtype="uint16")
LENGTHS = st.lists(st.integers(0, 90), max_size=40)


def number_documents(lengths):
    """Documents of running numbers from 10, so that a lost or repeated token shows."""
    starts = np.cumsum([10, *lengths])
    return [np.arange(start, start + length) for start, length in zip(starts, lengths, strict=False)]


def unwrap(row):
    """The text of a sequence, with the separators between documents."""
    assert row[0] == CLS
    end = np.flatnonzero(row != PAD)[-1]
    assert row[end] == SEP
    return row[1:end]


@given(LENGTHS)
@settings(deadline=None)
def test_blocks_hold_every_token_once_in_order_and_each_document_is_followed_by_a_separator(lengths):
    documents = number_documents(lengths)
    blocks = [row for rows in pack_blocks(documents, LAYOUT) for row in rows]
    packed = np.concatenate([unwrap(row) for row in blocks]) if blocks else np.empty(0, int)
    expected = [token for document in documents if len(document) for token in (*document, SEP)]
    if len(packed) < len(expected):  # a last separator that had no room is not worth a sequence
        expected.pop()
    assert packed.tolist() == expected


@given(LENGTHS)
@settings(deadline=None)
def test_only_the_last_block_is_padded(lengths):
    blocks = [row for rows in pack_blocks(number_documents(lengths), LAYOUT) for row in rows]
    assert all(len(row) == 16 and row.dtype == np.uint16 for row in blocks)
    assert all((row != PAD).all() for row in blocks[:-1])


def test_a_large_document_is_cut_in_chunks_without_a_seam():
    document = np.arange(10, 10 + 16 * 64 * 5)
    blocks = np.concatenate(list(pack_blocks([document[:5000], document[5000:]], LAYOUT)))
    packed = np.concatenate([unwrap(row) for row in blocks])
    assert packed[packed != SEP].tolist() == document.tolist()


@given(st.integers(2, 500))
@settings(deadline=None)
def test_pairs_hold_every_token_of_a_document_once_in_order(length):
    document = np.arange(10, 10 + length)
    pairs = pack_pairs(document, LAYOUT)
    tokens = []
    for row, first, second in zip(*pairs, strict=True):
        assert row[0] == CLS
        assert row[1 + first] == row[2 + first + second] == SEP
        assert (row[3 + first + second :] == PAD).all()
        assert 1 <= first <= 6  # (16 - 3) // 2
        assert 1 <= second <= 6
        tokens += [*row[1 : 1 + first], *row[2 + first : 2 + first + second]]
    assert tokens == document.tolist()
    lengths = [*pairs.first_lengths, *pairs.second_lengths]
    assert max(lengths) - min(lengths) <= 1


def test_a_short_document_is_cut_in_halves_and_one_token_has_no_pair():
    pairs = pack_pairs(np.array([10, 11, 12]), LAYOUT)
    assert (pairs.first_lengths.tolist(), pairs.second_lengths.tolist()) == ([2], [1])
    assert pack_pairs(np.array([10]), LAYOUT) is None


def test_pair_rows_know_the_range_of_their_document():
    count = TokenCount()
    batches = list(pair_batches(number_documents([100, 1, 5, 1000]), LAYOUT, count))
    begin = np.concatenate([batch.column("document_begin").to_numpy() for batch in batches])
    end = np.concatenate([batch.column("document_end").to_numpy() for batch in batches])
    sizes = [9, 1, 84]  # ceil(length / 12)
    edges = np.cumsum([0, *sizes])
    assert begin.tolist() == np.repeat(edges[:-1], sizes).tolist()
    assert end.tolist() == np.repeat(edges[1:], sizes).tolist()
    assert (count.sequences, count.short_documents) == (sum(sizes), 1)


def test_batches_are_fixed_size_lists_and_are_counted(tokenizer, texts):
    layout, count = Layout.of(tokenizer, 16), TokenCount(unknown_id=tokenizer.unk_token_id)
    batches = list(block_batches(token_documents(tokenizer, [*texts, "☃ the"], count), layout, count))
    assert all(batch.schema == block_schema(layout) for batch in batches)
    assert count.sequences == sum(batch.num_rows for batch in batches)
    rows = [row for batch in batches for row in batch.column(0).flatten().to_numpy().reshape(-1, 16)]
    assert count.tokens == sum(np.isin(row, [layout.cls, layout.sep, layout.pad], invert=True).sum() for row in rows)
    assert count.unknown == 1


def test_the_type_holds_every_id(tokenizer):
    class Large:
        cls_token_id, sep_token_id, pad_token_id = 1, 2, 0

        def get_vocab(self):
            return {"a": 1 << 16}

    assert Layout.of(tokenizer, 16).dtype == "uint16"
    assert Layout.of(Large(), 16).dtype == "int32"


def test_a_length_without_room_is_refused(tokenizer):
    with pytest.raises(ValueError, match="seq_length=7 is too short"):
        Layout.of(tokenizer, 7)
