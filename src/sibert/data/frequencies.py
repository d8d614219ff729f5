"""How frequent each token is: what a masked language model can know before it has learnt anything from context."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sibert.data.masking import MASKED

__all__ = ["TokenFrequencies"]


@dataclass(frozen=True)
class TokenFrequencies:
    """Counts of all tokens, seen as targets and as inputs of a masked language model.

    Attributes:
        counts: How often each id occurs in the packed text [V], int64.
        special_ids: Ids that are never targets.
        mask_id: Id of [MASK], which the text itself does not have.
    """

    counts: np.ndarray
    special_ids: tuple[int, ...]
    mask_id: int

    @classmethod
    def of(cls, blocks: Iterable[np.ndarray], tokenizer: Any) -> "TokenFrequencies":
        """Count.

        Args:
            blocks: Arrays of token ids, any shapes.
            tokenizer: Their tokenizer.

        Returns:
            The counts.
        """
        size = len(tokenizer)
        counts_V = np.zeros(size, dtype=np.int64)
        for block in blocks:
            counts_V += np.bincount(np.asarray(block).reshape(-1), minlength=size)
        return cls(counts_V, tuple(tokenizer.all_special_ids), tokenizer.mask_token_id)

    def log_targets(self) -> torch.Tensor:
        """Logarithm of the relative frequency of each token among the targets, less the mean over all tokens.

        As the initial bias of a decoder it makes the first prediction of a model the frequency of the tokens: neither
        the first steps nor the gradient from which ClippedSGD calibrates eta go into learning which are frequent.

        Returns:
            b_v = ln(count_v + 1) - mean_u ln(count_u + 1), shape [V], float32, where special tokens count 0; softmax(b)
            are the frequencies, one added to every count. LAMB steps in proportion to a parameter's norm, and among the
            biases with the same softmax this one has the smallest.
        """
        counts_V = self.counts.copy()
        counts_V[list(self.special_ids)] = 0
        logs_V = np.log(counts_V + 1)
        return torch.from_numpy(logs_V - logs_V.mean()).float()

    def inputs(self, mask_rate: float) -> torch.Tensor:
        """Relative frequency of each token among the inputs, one added to every count.

        Args:
            mask_rate: Share of the tokens that become targets; most of them are replaced by [MASK].

        Returns:
            Shape [V], float32, with sum 1.
        """
        counts_V = self.counts.astype(np.float64) + 1.0
        counts_V[self.mask_id] += MASKED * mask_rate * counts_V.sum()
        return torch.from_numpy(counts_V / counts_V.sum()).float()
