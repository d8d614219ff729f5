import dataclasses
import itertools

import datasets
import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from torch.utils.data import DataLoader

from sibert.data import StreamingMaskedDataset, collate, find_sources, load_corpus, prepare_corpus
from sibert.data.masking import IGNORED

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, texts):
    """Four files, so that two workers have two shards each; one document is in two files."""
    folder = tmp_path_factory.mktemp("stream")
    for index in range(4):
        (folder / f"{index}.txt").write_text("\n\n".join([*texts[index::4], texts[0]]), encoding="utf-8")
    return folder


OPTIONS = {"vocab_size": 150, "seq_length": 32, "validation_fraction": 0.2}


@pytest.fixture(scope="module")
def streamed(folder, cache_dir):
    return prepare_corpus([str(folder)], streaming=True, cache_dir=cache_dir, **OPTIONS)


def epochs(data, workers=0, count=2, skip=0):
    masked = data.masked_train(seed=5)
    loading = DataLoader(masked, batch_size=4, collate_fn=collate, num_workers=workers, persistent_workers=workers > 0)
    result = []
    for epoch in range(count):
        masked.set_epoch(epoch)
        result.append(list(loading))
    return result


def unmasked_rows(batches):
    rows = []
    for batch in batches:
        for ids, positions, labels in zip(batch["input_ids"], batch["masked_positions"], batch["labels"], strict=True):
            ids = ids.clone()
            ids[positions[labels != IGNORED]] = labels[labels != IGNORED]
            rows.append(tuple(ids.tolist()))
    return rows


def test_a_stream_has_the_documents_of_the_train_split_without_copies(streamed, folder, cache_dir):
    corpus = load_corpus(find_sources([str(folder)]), validation_fraction=0.2, cache_dir=cache_dir)
    assert list(streamed.train.texts()) == list(corpus.train["text"])


def test_validation_is_the_held_out_part_packed_beforehand(streamed, folder, cache_dir):
    stored = prepare_corpus([str(folder)], cache_dir=cache_dir, **OPTIONS)
    assert streamed.tokenizer.get_vocab() == stored.tokenizer.get_vocab()
    assert streamed.validation[:]["input_ids"] == stored.validation[:]["input_ids"]
    assert streamed.report.validation_examples == len(streamed.validation)


def test_every_token_of_the_stream_is_packed(streamed):
    masked = StreamingMaskedDataset(streamed.train, streamed.tokenizer, shuffle_buffer=0)
    rows = unmasked_rows([collate([example]) for example in masked])
    special = set(streamed.tokenizer.all_special_ids)
    packed = [token for row in rows for token in row if token not in special]
    texts = list(streamed.train.texts())
    assert packed == [i for ids in streamed.tokenizer(texts, add_special_tokens=False)["input_ids"] for i in ids]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_repeats_exactly_and_the_next_one_differs(streamed, workers):
    one, other = epochs(streamed, workers), epochs(streamed, workers)
    for left, right in zip(one[0] + one[1], other[0] + other[1], strict=True):
        assert all(torch.equal(left[name], right[name]) for name in left)
    assert unmasked_rows(one[0]) != unmasked_rows(one[1])  # another order


def test_iterating_does_not_write_the_epoch_that_workers_share(streamed):
    """`datasets` does not set it, but adds to it: workers that wrote it at the same moment would add twice."""
    masked = streamed.masked_train(seed=5)
    masked.set_epoch(1)
    assert list(masked)
    assert streamed.train.rows.epoch == 0


@pytest.mark.parametrize("first", [0, 3])
def test_a_repeated_stream_is_its_epochs_one_after_another(streamed, first):
    masked = streamed.masked_train(seed=5)
    expected = []
    for epoch in range(first, first + 2):
        masked.set_epoch(epoch)
        expected += list(masked)
    masked.repeat = True
    masked.set_epoch(first)
    for one, other in zip(expected, itertools.islice(masked, len(expected)), strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_repeated_stream_of_nothing_ends(streamed):
    nothing = dataclasses.replace(streamed.train, validation_fraction=1.0)  # as a worker without a file sees it
    masked = StreamingMaskedDataset(nothing, streamed.tokenizer)
    masked.repeat = True
    assert list(masked) == []


def test_workers_divide_the_documents(streamed):
    def tokens(batches):
        special = set(streamed.tokenizer.all_special_ids)
        return sorted(token for row in unmasked_rows(batches) for token in row if token not in special)

    alone, together = epochs(streamed, 0, count=1)[0], epochs(streamed, 2, count=1)[0]
    copy = streamed.tokenizer(next(streamed.train.texts()), add_special_tokens=False)["input_ids"]
    # A copy is seen by the worker that has it alone: at most one copy more than with one reader.
    assert len(tokens(alone)) <= len(tokens(together)) <= len(tokens(alone)) + len(copy)


def test_the_mask_of_a_sequence_depends_on_nothing_but_seed_epoch_and_the_sequence(streamed):
    kept_order = StreamingMaskedDataset(streamed.train, streamed.tokenizer, seed=5, shuffle_buffer=0)
    first = list(kept_order)
    kept_order.set_epoch(1)
    second = list(kept_order)
    kept_order.set_epoch(0)
    for one, next_epoch, again in zip(first, second, kept_order, strict=True):
        assert all(np.array_equal(one[name], again[name]) for name in one)
        assert not np.array_equal(one["input_ids"], next_epoch["input_ids"])
    assert len({example["masked_positions"].tobytes() for example in first}) > 0.9 * len(first)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_resume_in_mid_epoch_skips_to_the_same_batches(streamed, processes):
    def prepare(rank):
        loading = DataLoader(streamed.masked_train(seed=5), batch_size=4, collate_fn=collate)
        return prepare_data_loader(loading, num_processes=processes, process_index=rank, put_on_device=False)

    for rank in range(processes):
        through, resumed = prepare(rank), skip_first_batches(prepare(rank), 3)
        through.set_epoch(1)
        resumed.set_epoch(1)
        expected = list(through)[3:]
        got = list(resumed)
        assert len(expected) == len(got) > 0
        for left, right in zip(expected, got, strict=True):
            assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_hub_data_set_streams_too(monkeypatch, texts, cache_dir):
    rows = datasets.Dataset.from_dict({"id": range(len(texts)), "body": texts}).to_iterable_dataset(num_shards=2)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: rows)
    options = OPTIONS | {"text_column": "body", "cache_dir": cache_dir}
    data = prepare_corpus(["owner/name"], streaming=True, **options)
    assert len(list(data.masked_train())) > 100
    with pytest.raises(ValueError, match="local files or one hub data set"):
        prepare_corpus(["owner/name", "owner/other"], streaming=True, **options)


def test_pairs_cannot_be_streamed(folder, cache_dir):
    with pytest.raises(ValueError, match="Next-sentence pairs cannot be streamed"):
        prepare_corpus([str(folder)], streaming=True, next_sentence=True, cache_dir=cache_dir, **OPTIONS)


def test_an_empty_split_of_a_stream_is_refused(tmp_path, cache_dir):
    (tmp_path / "a.txt").write_text("one document\n\nanother document")
    options = {"streaming": True, "cache_dir": cache_dir, "vocab_size": 100, "seq_length": 32}
    with pytest.raises(ValueError, match="falls to validation"):
        prepare_corpus([str(tmp_path)], validation_fraction=1e-9, **options)
    with pytest.raises(ValueError, match="no training documents"):
        prepare_corpus([str(tmp_path)], validation_fraction=1 - 1e-9, **options)
