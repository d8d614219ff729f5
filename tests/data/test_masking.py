import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sibert.data import MaskedDataset, unigram_entropy
from sibert.data.masking import IGNORED, Masking, target_count
from sibert.data.randomness import Purpose, random_stream

LENGTH = 128


def stream(index=0):
    return random_stream(0, Purpose.TRAIN_MASKS, 0, index)


def random_ids(tokenizer, index=0, length=LENGTH, padding=20):
    """[CLS] text [SEP] text [SEP] and padding."""
    ids = np.random.default_rng(index).integers(5, len(tokenizer), size=length)
    ids[[0, length // 2, length - padding - 1]] = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.sep_token_id
    ids[length - padding :] = tokenizer.pad_token_id
    ids[3] = tokenizer.unk_token_id
    return ids.astype(np.uint16)


def words_of(ids, masking):
    """Positions of each whole word, found by a plain loop."""
    words = []
    for position, token in enumerate(ids):
        if masking.special[token]:
            continue
        if words and masking.continuation[token] and words[-1][-1] == position - 1:
            words[-1].append(position)
        else:
            words.append([position])
    return words


@pytest.mark.parametrize("rate", [0.05, 0.15, 0.4])
@pytest.mark.parametrize("padding", [0, 20, 110, 124])
def test_the_number_of_targets_is_exact(tokenizer, rate, padding):
    masking = Masking.of(tokenizer, LENGTH, rate)
    ids = random_ids(tokenizer, padding=padding)
    maskable = int((~masking.special[ids]).sum())
    _, positions, labels = masking.apply(ids, stream())
    assert len(positions) == len(labels) == masking.slots
    count = int((labels != IGNORED).sum())
    assert count == min(maskable, max(1, math.floor(rate * maskable + 0.5)))
    assert (positions[count:] == 0).all()


@given(st.floats(0.001, 0.999), st.integers(8, 600))
@settings(deadline=None)
def test_the_slots_suffice_for_every_sequence(rate, length):
    assert max(target_count(rate, maskable) for maskable in range(length - 1)) == target_count(rate, length - 2)


@pytest.mark.parametrize("whole_word", [False, True])
def test_labels_are_the_original_tokens_and_nothing_else_changes(tokenizer, whole_word):
    masking = Masking.of(tokenizer, LENGTH, whole_word=whole_word)
    for index in range(50):
        ids = random_ids(tokenizer, index)
        corrupted, positions, labels = masking.apply(ids, stream(index))
        chosen = positions[labels != IGNORED]
        assert (np.diff(chosen) > 0).all()
        assert np.array_equal(labels[: len(chosen)], ids[chosen])
        assert not masking.special[ids[chosen]].any()
        untouched = np.setdiff1d(np.arange(LENGTH), chosen)
        assert np.array_equal(corrupted[untouched], ids[untouched])


def within(count, trials, probability):
    """Five standard deviations of a binomial: wrong once in two million."""
    return abs(count - trials * probability) <= 5 * math.sqrt(trials * probability * (1 - probability))


def test_80_percent_become_mask_10_percent_random_and_10_percent_stay(tokenizer):
    masking = Masking.of(tokenizer, LENGTH)
    masked = kept = targets = 0
    replaced_by = np.zeros(len(tokenizer), dtype=int)
    for index in range(1500):
        ids = random_ids(tokenizer, index)
        corrupted, positions, labels = masking.apply(ids, stream(index))
        chosen = positions[labels != IGNORED]
        new, old = corrupted[chosen], ids[chosen]
        targets += len(chosen)
        masked += int((new == masking.mask_id).sum())
        kept += int((new == old).sum())
        np.add.at(replaced_by, new[(new != masking.mask_id) & (new != old)], 1)
    ordinary = len(tokenizer) - 5
    assert within(masked, targets, 0.8)
    assert within(kept, targets, 0.1 + 0.1 / ordinary)  # a random token may be the old one
    assert not replaced_by[:5].any()
    expected = replaced_by.sum() / ordinary
    chi_squared = ((replaced_by[5:] - expected) ** 2 / expected).sum()
    assert abs(chi_squared - (ordinary - 1)) < 5 * math.sqrt(2 * (ordinary - 1))  # uniform: mean k-1, variance 2(k-1)


def test_every_maskable_position_is_equally_likely(tokenizer):
    masking = Masking.of(tokenizer, LENGTH)
    ids = random_ids(tokenizer)
    maskable = np.flatnonzero(~masking.special[ids])
    hits = np.zeros(LENGTH, dtype=int)
    rounds = 4000
    for index in range(rounds):
        _, positions, labels = masking.apply(ids, stream(index))
        hits[positions[labels != IGNORED]] += 1
    share = target_count(0.15, len(maskable)) / len(maskable)
    assert all(within(hits[position], rounds, share) for position in maskable)


def test_whole_words_are_taken_whole(tokenizer):
    masking = Masking.of(tokenizer, LENGTH, whole_word=True)
    broken = 0
    for index in range(100):
        ids = random_ids(tokenizer, index)
        _, positions, labels = masking.apply(ids, stream(index))
        chosen = set(positions[labels != IGNORED].tolist())
        words = words_of(ids, masking)
        assert all(chosen.issuperset(word) or chosen.isdisjoint(word) for word in words)
        maskable = int((~masking.special[ids]).sum())
        room = target_count(0.15, maskable) - len(chosen)
        assert room >= 0
        assert all(len(word) > room for word in words if chosen.isdisjoint(word))  # nothing more would have fitted
        _, positions, labels = Masking.of(tokenizer, LENGTH).apply(ids, stream(index))
        chosen = set(positions[labels != IGNORED].tolist())
        broken += any(not chosen.issuperset(word) and not chosen.isdisjoint(word) for word in words)
    assert broken > 90  # the negative twin: token by token breaks words


def test_where_no_word_fits_a_part_of_one_is_taken(tokenizer):
    masking = Masking.of(tokenizer, 32, whole_word=True)
    vocabulary = tokenizer.get_vocab()
    continuation = next(index for token, index in vocabulary.items() if token.startswith("##"))
    ids = np.array([tokenizer.cls_token_id, vocabulary["the"], *[continuation] * 29, tokenizer.sep_token_id])
    _, positions, labels = masking.apply(ids, stream())
    assert (labels != IGNORED).sum() == masking.slots == 5
    assert positions.tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("whole_word", [False, True])
def test_a_sequence_of_special_tokens_has_no_targets(tokenizer, whole_word):
    masking = Masking.of(tokenizer, 16, whole_word=whole_word)
    ids = np.full(16, tokenizer.unk_token_id)
    corrupted, positions, labels = masking.apply(ids, stream())
    assert (labels == IGNORED).all()
    assert not positions.any()
    assert np.array_equal(corrupted, ids)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_a_rate_outside_0_and_1_is_refused(tokenizer, rate):
    with pytest.raises(ValueError, match="expected 0 < rate < 1"):
        Masking.of(tokenizer, 16, rate)


def same(one, other):
    assert one.keys() == other.keys()
    return all(np.array_equal(one[name], other[name]) for name in one)


@pytest.fixture(params=["blocks", "pairs"])
def data(request):
    return request.getfixturevalue("prepared" if request.param == "blocks" else "prepared_pairs")


def test_an_example_is_a_pure_function_of_seed_epoch_and_index(data):
    one, other = data.masked_train(seed=3), data.masked_train(seed=3)
    for index in reversed(range(len(other))):
        other[5, index]
    assert all(same(one[2, index], other[2, index]) for index in range(len(one)))


def test_another_seed_epoch_or_index_masks_differently(data):
    masked = data.masked_train(seed=3)
    assert same(masked[0, 4], masked[4])  # a plain index is epoch 0
    assert not same(masked[0, 4], masked[1, 4])
    assert not same(masked[0, 4], data.masked_train(seed=4)[0, 4])
    positions = [masked[0, index]["masked_positions"].tobytes() for index in range(len(masked))]
    assert len(set(positions)) > 0.9 * len(positions)


def test_validation_masks_never_move_and_are_not_those_of_training(data):
    fixed = data.masked_validation(seed=3)
    fixed.set_epoch(7)
    for index in range(len(fixed)):
        assert same(fixed[index], fixed[9, index])
    moving = MaskedDataset(data.validation, data.tokenizer, seed=3)
    assert not all(same(fixed[index], moving[0, index]) for index in range(len(fixed)))


def test_pairs_of_validation_never_move_and_are_drawn_by_a_stream_of_their_own(prepared_pairs, monkeypatch):
    def partners(masked, epoch):
        examples = [masked[epoch, index] for index in range(len(masked))]
        return [(unmasked(example).tobytes(), example["next_sentence_label"]) for example in examples]

    drawn = set()

    def recorded(seed, purpose, epoch, index):
        drawn.add(purpose)
        return random_stream(seed, purpose, epoch, index)

    monkeypatch.setattr("sibert.data.masking.random_stream", recorded)
    fixed = prepared_pairs.masked_validation(seed=3)
    still = partners(fixed, 0)
    assert partners(fixed, 9) == still
    assert drawn == {Purpose.VALIDATION_PAIRS, Purpose.VALIDATION_MASKS}
    drawn.clear()
    moving = MaskedDataset(prepared_pairs.validation, prepared_pairs.tokenizer, seed=3)
    first, second = partners(moving, 0), partners(moving, 1)
    assert drawn == {Purpose.TRAIN_PAIRS, Purpose.TRAIN_MASKS}
    for one, other in ((still, first), (first, second)):
        assert [pair for pair, _ in one] != [pair for pair, _ in other]
        assert [label for _, label in one] != [label for _, label in other]


def test_examples_have_the_fields_of_the_interface(data):
    example = data.masked_train()[0]
    for name in ("input_ids", "attention_mask"):
        assert (example[name].shape, example[name].dtype) == ((32,), np.int64)
    for name in ("masked_positions", "labels"):
        assert (example[name].shape, example[name].dtype) == ((5,), np.int64)  # round(0.15 * 30) = 4.5 up
    assert ("token_type_ids" in example) == ("next_sentence_label" in example) == data.masked_train().has_pairs


def test_padding_is_not_attended_to(prepared):
    masked, pad = prepared.masked_train(), prepared.tokenizer.pad_token_id
    for index in range(len(masked)):
        example = masked[index]
        assert np.array_equal(example["attention_mask"] == 0, example["input_ids"] == pad)


def test_a_selection_of_rows_is_respected(prepared):
    chosen = MaskedDataset(prepared.train.select([7, 3]), prepared.tokenizer)
    original = np.asarray(prepared.train[7]["input_ids"])
    example = chosen[0]
    restored = example["input_ids"].copy()
    used = example["labels"] != IGNORED
    restored[example["masked_positions"][used]] = example["labels"][used]
    assert (len(chosen), restored.tolist()) == (2, original.tolist())


def test_an_index_out_of_range_is_an_index_error(prepared):
    masked = prepared.masked_train()
    assert same(masked[-1], masked[len(masked) - 1])
    with pytest.raises(IndexError):
        masked[0, len(masked)]


def test_what_is_not_packed_is_refused(prepared, texts):
    import datasets

    with pytest.raises(ValueError, match="Expected packed sequences"):
        MaskedDataset(datasets.Dataset.from_dict({"text": texts}), prepared.tokenizer)


def unmasked(example):
    ids = example["input_ids"].copy()
    used = example["labels"] != IGNORED
    ids[example["masked_positions"][used]] = example["labels"][used]
    return ids


def test_pairs_follow_each_other_or_come_from_another_document_as_the_label_says(prepared_pairs):
    masked, rows = prepared_pairs.masked_train(), prepared_pairs.train
    sep = prepared_pairs.tokenizer.sep_token_id
    segments = {}
    for row in rows:
        first, second = np.split(np.asarray(row["input_ids"]), [2 + row["first_length"]])
        for segment in (first[1:-1], second[: row["second_length"]]):
            segments.setdefault(segment.tobytes(), set()).add(row["document_begin"])
    labels = []
    for epoch in range(4):
        for index, row in enumerate(rows):
            example = masked[epoch, index]
            ids, types = unmasked(example), example["token_type_ids"]
            label = example["next_sentence_label"]
            labels.append(label)
            if label == 0:
                assert ids.tolist() == row["input_ids"]
            first, second = ids[1 : np.flatnonzero(ids == sep)[0]], ids[types == 1][:-1]
            assert row["document_begin"] in segments[first.tobytes()]
            sources = segments[second.tobytes()]
            assert row["document_begin"] in sources if label == 0 else sources - {row["document_begin"]}
            assert types.sum() == len(second) + 1
            assert (types <= example["attention_mask"]).all()
            assert example["attention_mask"].sum() == len(first) + len(second) + 3
    assert within(sum(labels), len(labels), 0.5)


def test_a_random_segment_is_drawn_from_all_other_documents(prepared_pairs):
    masked = prepared_pairs.masked_train()
    drawn = {masked._pair(epoch, 0)[0].tobytes() for epoch in range(12_000)}
    segments = 2 * (len(masked) - prepared_pairs.train[0]["document_end"])
    # Half of the draws are random; each of 954 segments is missed by 6000 draws with probability 0.002.
    assert 0.99 * segments < len(drawn) <= segments + 1


def test_pairs_of_a_single_document_are_refused(prepared_pairs):
    end = prepared_pairs.train[0]["document_end"]
    with pytest.raises(ValueError, match="at least two documents"):
        MaskedDataset(prepared_pairs.train.select(range(end)), prepared_pairs.tokenizer)


def test_the_unigram_entropy_is_that_of_the_validation_targets(prepared):
    masked = prepared.masked_validation(seed=1)
    labels = np.concatenate([masked[index]["labels"] for index in range(len(masked))])
    _, counts = np.unique(labels[labels != IGNORED], return_counts=True)
    shares = counts / counts.sum()
    assert unigram_entropy(masked) == pytest.approx(-np.sum(shares * np.log(shares)), abs=1e-12)
    assert 0 < unigram_entropy(masked) < math.log(len(prepared.tokenizer))
