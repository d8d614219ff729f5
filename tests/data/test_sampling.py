import pickle

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from sibert.data import EpochSampler, LengthSampler, collate

# Newer Pythons warn about forking a process that has threads, which is how torch starts its workers on Linux.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

BATCH = 4


def loader(masked, workers=0, **options):
    return DataLoader(
        masked,
        batch_size=BATCH,
        sampler=EpochSampler(masked),
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        **options,
    )


def batches(data, workers=0, epochs=2):
    loading = loader(data.masked_train(seed=5), workers)
    result = []
    for epoch in range(epochs):
        loading.sampler.set_epoch(epoch)
        result.append(list(loading))
    return result


def assert_same(one, other):
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)


def test_each_index_comes_once_an_epoch_in_an_order_that_seed_and_epoch_fix(prepared):
    sampler = EpochSampler(prepared.masked_train(seed=5))
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        pairs = list(sampler)
        assert {pair[0] for pair in pairs} == {epoch}
        orders.append([pair[1] for pair in pairs])
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(len(prepared.train)))
    assert list(EpochSampler(sampler.dataset, shuffle=False))[:2] == [(0, 0), (0, 1)]
    assert [index for _, index in EpochSampler(prepared.masked_train(seed=6))] != orders[0]


def test_what_does_not_fill_a_step_is_left_out_of_the_epoch(prepared):
    masked = prepared.masked_train(seed=5)
    whole, steps = list(EpochSampler(masked)), EpochSampler(masked, step=7)
    assert len(masked) % 7
    assert list(steps) == whole[: len(steps)]
    assert len(steps) == len(masked) // 7 * 7


@pytest.mark.parametrize("name", ["prepared", "prepared_pairs"])
def test_persistent_workers_give_the_same_batches_as_none_and_epochs_differ(request, name):
    data = request.getfixturevalue(name)
    here, elsewhere = batches(data), batches(data, workers=2)
    for epoch in range(2):
        assert_same(here[epoch], elsewhere[epoch])
    first, second = (torch.cat([batch["labels"] for batch in epoch]) for epoch in here)
    assert not torch.equal(first.sort(0).values, second.sort(0).values)


def test_masks_of_an_example_change_from_epoch_to_epoch_also_in_workers(prepared):
    masked = prepared.masked_train(seed=5)
    loading = DataLoader(
        masked,
        batch_size=len(masked),
        sampler=EpochSampler(masked, shuffle=False),
        collate_fn=collate,
        num_workers=1,
        persistent_workers=True,
    )
    masks = []
    for epoch in range(2):
        masked.set_epoch(epoch)
        masks.append(next(iter(loading))["masked_positions"])
    assert not torch.equal(masks[0], masks[1])


def accelerated(data, processes, rank):
    return prepare_data_loader(
        loader(data.masked_train(seed=5)), num_processes=processes, process_index=rank, put_on_device=False
    )


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("explicit", [True, False])
def test_accelerate_moves_the_epoch_whether_told_or_by_counting(prepared, processes, explicit):
    expected = batches(prepared, epochs=3)
    loading = [accelerated(prepared, processes, rank) for rank in range(processes)]
    for epoch in range(3):
        for rank, loader_of_rank in enumerate(loading):
            if explicit:
                loader_of_rank.set_epoch(epoch)
            got = list(loader_of_rank)
            whole = len(prepared.train) // BATCH // processes
            assert_same(got[:whole], expected[epoch][rank::processes][:whole])


@pytest.mark.parametrize("processes", [1, 2])
def test_a_resume_in_the_middle_of_a_later_epoch_sees_the_batches_it_would_have_seen(prepared, processes):
    epoch, skipped = 2, 3
    for rank in range(processes):
        through = accelerated(prepared, processes, rank)
        through.set_epoch(epoch)
        expected = list(through)[skipped:]
        resumed = skip_first_batches(accelerated(prepared, processes, rank), skipped)
        resumed.set_epoch(epoch)
        assert_same(list(resumed), expected)


def test_the_data_set_travels_to_a_spawned_worker(prepared):
    masked = prepared.masked_train(seed=5)
    before = masked[1, 2]
    copy = pickle.loads(pickle.dumps(masked))
    assert all(np.array_equal(copy[1, 2][name], before[name]) for name in before)


def test_a_batch_is_stacked_int64_tensors(prepared_pairs):
    masked = prepared_pairs.masked_train()
    batch = collate([masked[0], masked[1], masked[2]])
    shapes = {name: tuple(tensor.shape) for name, tensor in batch.items()}
    assert shapes == {
        "input_ids": (3, 32),
        "attention_mask": (3, 32),
        "token_type_ids": (3, 32),
        "masked_positions": (3, 5),
        "labels": (3, 5),
        "next_sentence_label": (3,),
    }
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


@given(st.lists(st.integers(1, 128), min_size=1, max_size=300), st.integers(1, 40), st.integers(0, 9))
@settings(deadline=None)
def test_by_length_an_epoch_has_every_example_once_and_is_a_function_of_seed_and_epoch(lengths, batch, epoch):
    sampler = LengthSampler(lengths, batch, seed=3)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(lengths)))
    assert len(sampler) == len(lengths)
    again = LengthSampler(lengths, batch, seed=3)
    again.set_epoch(epoch)
    assert list(again) == order


def test_by_length_little_is_padded_and_batches_differ_from_epoch_to_epoch():
    random = np.random.default_rng(0)
    lengths, batch = random.integers(5, 128, 4000), 32

    def padded(order):
        return sum(batch * lengths[order[k : k + batch]].max() for k in range(0, len(order), batch)) / lengths.sum()

    def batches(order):
        return {frozenset(order[k : k + batch]) for k in range(0, len(order), batch)}

    sampler = LengthSampler(lengths, batch, seed=0)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert padded(first) < 1.06 < 1.8 < padded(random.permutation(4000))
    assert not batches(first) & batches(second)
    longest = [lengths[first[k : k + batch]].max() for k in range(0, len(first), batch)]
    assert abs(np.corrcoef(longest, range(len(longest)))[0, 1]) < 0.2  # long batches come early and late
