"""The order of examples within an epoch, and batches of them."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from sibert.data.masking import MaskedDataset
from sibert.data.randomness import Purpose, random_stream


class EpochSampler(torch.utils.data.Sampler[tuple[int, int]]):
    """Yields (epoch, index) pairs, each index once an epoch, in an order that is a pure function of (seed, epoch).

    The epoch travels with every index, because persistent workers hold copies of the data set that no call from outside
    reaches. It is kept in the data set of the main process, not here: accelerate tells the sampler or the data set,
    depending on how it has wrapped the loader (after a resume in mid-epoch with several processes, only the data set).

    Args:
        dataset: what is sampled.
        shuffle: permute anew in each epoch; otherwise in order.
        step: examples of an optimizer step; those that would be left over at the end of an epoch are not yielded, so
            that all steps are alike, however a step is divided among micro-batches and processes.
    """

    def __init__(self, dataset: MaskedDataset, shuffle: bool = True, step: int = 1) -> None:
        self.dataset = dataset
        self.shuffle = shuffle
        self.step = step

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields.

        Args:
            epoch: its number, from 0.
        """
        self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.dataset) // self.step * self.step

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, size = self.dataset.epoch, len(self.dataset)
        order: Iterable[int] = range(size)
        if self.shuffle:
            order = random_stream(self.dataset.seed, Purpose.ORDER, epoch, 0).permutation(size)
        for index in itertools.islice(order, len(self)):
            yield epoch, int(index)


class LengthSampler(torch.utils.data.Sampler[int]):
    """Yields indices, each once an epoch, so that a batch holds examples of about the same length: little is padding.

    An epoch is a permutation, a pure function of (seed, epoch). It is cut into chunks of many batches, each chunk is
    sorted by length and cut into batches, and these come in random order.

    Args:
        lengths: Of the examples, in tokens.
        batch: Examples of a batch.
        seed: Of the order.
    """

    CHUNK = 50
    """Batches of a chunk, or fewer where there would not be four chunks: batches shall differ from epoch to epoch."""

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self.lengths = np.asarray(lengths)
        self.batch = batch
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields.

        Args:
            epoch: its number, from 0.
        """
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        size = len(self.lengths)
        random = random_stream(self.seed, Purpose.ORDER, self.epoch, 0)
        order = random.permutation(size)
        whole = size // self.batch  # batches; what remains is the last one, as it is
        shuffled = random.permutation(whole)
        chunk = self.batch * min(self.CHUNK, max(1, whole // 4))
        rest = order[whole * self.batch :]
        order = order[: whole * self.batch]
        for start in range(0, len(order), chunk):
            part = order[start : start + chunk]
            order[start : start + chunk] = part[np.argsort(self.lengths[part], kind="stable")]
        batches = order.reshape(whole, self.batch)[shuffled]
        yield from (int(index) for index in (*batches.flat, *rest))


def collate(examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack examples of equal shape; there is no randomness here, so that batches can be prepared ahead of time.

    Args:
        examples: B dicts of arrays or integers with the same keys.

    Returns:
        The same keys: input_ids, attention_mask (and token_type_ids) [B, T], masked_positions, labels [B, P]
        (and next_sentence_label [B]), int64.
    """
    return {
        name: torch.from_numpy(np.stack([np.asarray(example[name], dtype=np.int64) for example in examples]))
        for name in examples[0]
    }
