"""The text that all contestants read: the same sequences, in the same order, with the same masks.

A batch is a pure function of (seed, step, batch size); two batch sizes with the same product of steps and size see the
same sequences in the same order.
"""

from collections.abc import Sequence

import numpy as np
import torch

from sibert.data import MaskedDataset, PreparedCorpus, collate, prepare_corpus, unigram_entropy
from sibert.data.randomness import Purpose, random_stream

VOCABULARY = 4096
SEQUENCE = 64
VALIDATION_SEQUENCES = 2048
"""About 20 thousand targets: their mean loss has a standard error of 0.02, which all contestants share."""


class Corpus:
    """Training batches and a validation set.

    Args:
        sources: Files, folders or globs; empty = the text that the library brings along.
        vocabulary: Tokens of the tokenizer that is trained on the text.
        length: Tokens in a sequence.
    """

    def __init__(self, sources: Sequence[str] = (), vocabulary: int = VOCABULARY, length: int = SEQUENCE) -> None:
        prepared: PreparedCorpus = prepare_corpus(
            list(sources) or None,
            vocab_size=vocabulary,
            seq_length=length,
            documents="blank-line" if sources else "auto",
        )
        self.length = length
        self.vocabulary = len(prepared.tokenizer)
        self.report = prepared.report
        self.frequencies = prepared.frequencies()
        self._prepared = prepared
        self._train: dict[int, MaskedDataset] = {}
        self._order: tuple[tuple[int, int] | None, np.ndarray] = (None, np.empty(0, dtype=np.int64))
        validation = prepared.masked_validation()
        chosen = np.linspace(0, len(validation) - 1, min(len(validation), VALIDATION_SEQUENCES)).astype(int)
        batches = max(4, len(chosen) // 128)
        # Interleaved: any few batches are a fair sample of the documents.
        self.validation = [collate([validation[int(i)] for i in chosen[k::batches]]) for k in range(batches)]
        self.unigram_entropy = unigram_entropy(validation)

    def batch(self, seed: int, step: int, sequences: int) -> dict[str, torch.Tensor]:
        """One batch of a run.

        Args:
            seed: Of the run: order of the sequences and masks.
            step: From 0.
            sequences: In a batch.

        Returns:
            What `sibert.data.collate` makes.
        """
        masked = self._train.setdefault(seed, self._prepared.masked_train(seed=seed))
        places = range(step * sequences, (step + 1) * sequences)
        return collate([masked[self._example(seed, place, len(masked))] for place in places])

    def _example(self, seed: int, place: int, size: int) -> tuple[int, int]:
        epoch, index = divmod(place, size)
        if self._order[0] != (seed, epoch):
            self._order = (seed, epoch), random_stream(seed, Purpose.ORDER, epoch, 0).permutation(size)
        return epoch, int(self._order[1][index])
