"""How frequent each token is: what a masked language model can know before it has learnt anything from context."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

__all__ = ["log_frequencies"]


def log_frequencies(blocks: Iterable[np.ndarray], tokenizer: Any) -> torch.Tensor:
    """Logarithm of the relative frequency of each token that can be a target, less the mean over all tokens.

    As the initial bias of a decoder it makes the first prediction of a model the frequency of the tokens: neither the
    first steps nor the gradient from which ClippedSGD calibrates eta go into learning which tokens are frequent.

    Args:
        blocks: Arrays of token ids, any shapes.
        tokenizer: Their tokenizer; its special tokens count as never seen.

    Returns:
        b_v = ln(count_v + 1) - mean_u ln(count_u + 1), shape [V], float32; softmax(b) are the frequencies, one added to
        every count. LAMB steps in proportion to a parameter's norm, and among the biases with the same softmax this one
        has the smallest.
    """
    size = len(tokenizer)
    counts_V = np.zeros(size, dtype=np.int64)
    for block in blocks:
        counts_V += np.bincount(np.asarray(block).reshape(-1), minlength=size)
    counts_V[list(tokenizer.all_special_ids)] = 0
    logs_V = np.log(counts_V + 1)
    return torch.from_numpy(logs_V - logs_V.mean()).float()
