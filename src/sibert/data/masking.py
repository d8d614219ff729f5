"""Masked-language-model targets, chosen anew in every epoch as a pure function of (seed, epoch, index).

Shapes: T tokens in a sequence, P target slots, V token ids.
"""

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sibert.data.packing import Layout, write_pair
from sibert.data.randomness import Purpose, check_seed, random_stream
from sibert.data.tokenizer import continuation_table, special_table

IGNORED = -100

# Of the targets, 80 % are replaced by [MASK], 10 % by a random token, 10 % are left (arXiv:1810.04805, section 3.1).
MASKED = 0.8
_MASKED_OR_RANDOM = 0.9


def target_count(rate: float, maskable: int) -> int:
    """How many of the maskable tokens become targets: the rate, rounded half up, at least one.

    Args:
        rate: share of maskable tokens.
        maskable: number of tokens that may be targets.

    Returns:
        The count; 0 only if nothing is maskable.
    """
    return min(maskable, max(1, math.floor(rate * maskable + 0.5)))


@dataclass(frozen=True)
class Masking:
    """Chooses targets and corrupts them as BERT does (arXiv:1810.04805, section 3.1).

    Attributes:
        rate: share of maskable tokens that become targets.
        slots: P, target slots of a sequence.
        mask_id: id of [MASK].
        special: [V], which ids are special and hence neither targets nor replacements.
        ordinary: all other ids, the random replacements.
        continuation: [V], which ids continue a word; None for masking token by token.
    """

    rate: float
    slots: int
    mask_id: int
    special: np.ndarray
    ordinary: np.ndarray
    continuation: np.ndarray | None

    @classmethod
    def of(cls, tokenizer: Any, length: int, rate: float = 0.15, whole_word: bool = False) -> "Masking":
        """The masking for a tokenizer and a sequence length.

        Args:
            tokenizer: a `transformers` tokenizer with a [MASK] token.
            length: T.
            rate: share of maskable tokens that become targets, 0 < rate < 1.
            whole_word: take all tokens of a word or none (WordPiece only).

        Returns:
            The masking; P = max(1, round(rate (T - 2))), the most that a sequence with [CLS] and [SEP] can need.

        Raises:
            ValueError: if the rate is out of range, or whole words cannot be told from the tokens.
        """
        if not 0.0 < rate < 1.0:
            raise ValueError(f"mask_rate={rate} is out of range; expected 0 < rate < 1 (BERT: 0.15).")
        special_V = special_table(tokenizer)
        used = np.array(sorted(tokenizer.get_vocab().values()), dtype=np.int64)
        return cls(
            rate=rate,
            slots=target_count(rate, length - 2),
            mask_id=tokenizer.mask_token_id,
            special=special_V,
            ordinary=used[~special_V[used]],
            continuation=continuation_table(tokenizer) if whole_word else None,
        )

    def apply(self, ids_T: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Corrupt one sequence.

        Args:
            ids_T: token ids; special tokens and padding are recognised by their ids.
            generator: where the random numbers come from; a fixed number of them is drawn.

        Returns:
            The corrupted ids [T], the target positions [P] in increasing order (0 in unused slots), and the original
            ids at these positions [P] (-100 in unused slots), all int64.
        """
        random = generator.random(len(ids_T) + 2 * self.slots)
        order_T, fate_P, replacement_P = random[: len(ids_T)], random[len(ids_T) : -self.slots], random[-self.slots :]
        maskable = np.flatnonzero(~self.special[ids_T])
        count = target_count(self.rate, len(maskable))
        if self.continuation is None:
            chosen = maskable[np.argpartition(order_T[: len(maskable)], count - 1)[:count]] if count else maskable
        else:
            chosen = self._whole_words(ids_T, maskable, order_T, count)
        chosen.sort()
        count = len(chosen)

        positions_P = np.zeros(self.slots, dtype=np.int64)
        labels_P = np.full(self.slots, IGNORED, dtype=np.int64)
        corrupted_T = ids_T.astype(np.int64)
        originals = corrupted_T[chosen]
        positions_P[:count] = chosen
        labels_P[:count] = originals
        random_ids = self.ordinary[(replacement_P[:count] * len(self.ordinary)).astype(np.int64)]
        new_ids = np.where(fate_P[:count] < _MASKED_OR_RANDOM, random_ids, originals)
        new_ids[fate_P[:count] < MASKED] = self.mask_id
        corrupted_T[chosen] = new_ids
        return corrupted_T, positions_P, labels_P

    def _whole_words(self, ids_T: np.ndarray, maskable: np.ndarray, order_T: np.ndarray, count: int) -> np.ndarray:
        """Words in random order, each taken if it still fits into `count` tokens.

        Where no word fits at all (every word is longer than `count`), the beginning of the first one is taken: a
        sequence without targets would be a waste, and more than P of them do not fit the batch.
        """
        assert self.continuation is not None
        if not len(maskable):
            return maskable
        # A continuation right after a special token has lost its head (a cut, or [UNK]) and counts as a word.
        is_start = ~self.continuation[ids_T[maskable]]
        is_start[0] = True
        is_start[1:] |= np.diff(maskable) > 1
        starts = np.flatnonzero(is_start)
        ends = np.append(starts[1:], len(maskable))
        order = np.argsort(order_T[: len(starts)]).tolist()
        lengths = (ends - starts).tolist()
        taken: list[np.ndarray] = []
        room = count
        for word in order:
            if lengths[word] <= room:
                taken.append(maskable[starts[word] : ends[word]])
                room -= lengths[word]
                if not room:
                    break
        if not taken:
            first = starts[order[0]]
            return maskable[first : first + count].copy()
        return np.concatenate(taken)


class MaskedDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Packed sequences with masks drawn at access: example (epoch, index) is a pure function of the seed.

    An `EpochSampler` supplies the pairs, so that worker processes need no notion of the current epoch. A plain index
    means epoch 0.

    Args:
        packed: blocks or sentence pairs, as `prepare_corpus` returns them.
        tokenizer: the tokenizer they were packed with.
        mask_rate: share of tokens that become targets.
        whole_word: mask all tokens of a word or none.
        seed: of all masks and random pairs.
        fixed: for validation: the epoch is ignored, so that evaluations are comparable, and the masks come from a
            stream that training never sees.

    Raises:
        ValueError: if an option is out of range, `packed` holds no packed sequences, or pairs come from one document.
    """

    def __init__(
        self,
        packed: Any,
        tokenizer: Any,
        mask_rate: float = 0.15,
        whole_word: bool = False,
        seed: int = 0,
        fixed: bool = False,
    ) -> None:
        if "input_ids" not in packed.column_names or not len(packed):
            raise ValueError(f"Expected packed sequences; got {len(packed)} rows with columns {packed.column_names}.")
        # Rows are read from the Arrow table directly, which knows nothing of a selection laid over it.
        self.packed = packed.flatten_indices(keep_in_memory=True) if packed._indices is not None else packed
        self.has_pairs = "first_length" in packed.column_names
        self.length = packed.features["input_ids"].length
        self.masking = Masking.of(tokenizer, self.length, mask_rate, whole_word)
        self.layout = Layout.of(tokenizer, self.length)
        self.seed = check_seed(seed)
        self.fixed = fixed
        self.epoch = 0
        self._columns: dict[str, Any] | None = None
        if self.has_pairs and self._number("document_end", 0) - self._number("document_begin", 0) == len(packed):
            raise ValueError(
                "Sentence pairs need at least two documents: one to follow, another to draw from at random."
            )

    def set_epoch(self, epoch: int) -> None:
        """Tell the samplers of this data set which epoch comes next; accelerate and Trainer call it.

        Args:
            epoch: the number of the epoch, from 0.
        """
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, operator.index(key))
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        index, epoch = index % len(self), 0 if self.fixed else epoch
        example: dict[str, Any] = {}
        if self.has_pairs:
            ids_T, first, label = self._pair(epoch, index)
            example["token_type_ids"] = _second_segment(ids_T, first, self.layout.pad)
            example["next_sentence_label"] = label
        else:
            ids_T = self._ids(index)
        purpose = Purpose.VALIDATION_MASKS if self.fixed else Purpose.TRAIN_MASKS
        return masked_example(self.masking, ids_T, self.layout.pad, self.seed, purpose, epoch, index) | example

    def __getstate__(self) -> Mapping[str, Any]:
        return self.__dict__ | {"_columns": None}

    def _column(self, name: str) -> Any:
        if self._columns is None:
            self._columns = {column: self.packed.data.column(column) for column in self.packed.column_names}
        return self._columns[name]

    def _ids(self, index: int) -> np.ndarray:
        ids_T: np.ndarray = self._column("input_ids")[index].values.to_numpy()
        return ids_T

    def _number(self, name: str, index: int) -> int:
        value: int = self._column(name)[index].as_py()
        return value

    def _pair(self, epoch: int, index: int) -> tuple[np.ndarray, int, int]:
        """Ids, length of A, and label (0: B follows A; 1: B is from another document)."""
        ids_T, first = self._ids(index), self._number("first_length", index)
        begin, end = self._number("document_begin", index), self._number("document_end", index)
        purpose = Purpose.VALIDATION_PAIRS if self.fixed else Purpose.TRAIN_PAIRS
        is_random, which, side = random_stream(self.seed, purpose, epoch, index).random(3)
        if is_random >= 0.5:
            return ids_T, first, 0
        # Rows of one document are neighbours: draw among all others by stepping over that range.
        other = int(which * (len(self) - (end - begin)))
        other += (end - begin) if other >= begin else 0
        other_ids_T, other_first = self._ids(other), self._number("first_length", other)
        start = 1 if side < 0.5 else 2 + other_first
        length = other_first if side < 0.5 else self._number("second_length", other)
        mixed_T = np.empty_like(ids_T)
        write_pair(mixed_T, ids_T[1 : 1 + first], other_ids_T[start : start + length], self.layout)
        return mixed_T, first, 1


def masked_example(
    masking: Masking, ids_T: np.ndarray, pad_id: int, seed: int, purpose: Purpose, epoch: int, index: int
) -> dict[str, Any]:
    """One training example.

    Args:
        masking: how targets are chosen.
        ids_T: token ids, padded.
        pad_id: id of [PAD].
        seed: of the run.
        purpose: training or validation masks.
        epoch: number of the epoch.
        index: number, or hash, of the example.

    Returns:
        input_ids [T], attention_mask [T], masked_positions [P], labels [P], as int64 arrays.
    """
    generator = random_stream(seed, purpose, epoch, index)
    corrupted_T, positions_P, labels_P = masking.apply(ids_T, generator)
    return {
        "input_ids": corrupted_T,
        "attention_mask": (ids_T != pad_id).astype(np.int64),
        "masked_positions": positions_P,
        "labels": labels_P,
    }


def unigram_entropy(masked: MaskedDataset) -> float:
    """Entropy of the empirical distribution of the targets: the loss of the best predictor that sees no context.

    H = -sum_v p_v ln p_v, where p_v is the share of the id v among all labels of epoch 0.

    Args:
        masked: the validation data (with `fixed=True`: exactly the targets that every evaluation asks for).

    Returns:
        H in nats.

    Raises:
        ValueError: if there are no targets.
    """
    counts_V = np.zeros(len(masked.masking.special), dtype=np.int64)
    for index in range(len(masked)):
        labels_P = masked[index]["labels"]
        np.add.at(counts_V, labels_P[labels_P != IGNORED], 1)
    counts = counts_V[counts_V > 0]
    if not len(counts):
        raise ValueError("There are no targets: every token of this data is a special token.")
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def _second_segment(ids_T: np.ndarray, first: int, pad_id: int) -> np.ndarray:
    types_T: np.ndarray = (ids_T != pad_id).astype(np.int64)
    types_T[: first + 2] = 0
    return types_T
