import numpy as np
import torch

from sibert.data import log_frequencies


class Tokenizer:
    all_special_ids = (0, 1)

    def __len__(self):
        return 6


def test_the_softmax_of_the_bias_is_the_distribution_of_targets():
    blocks = [np.array([[0, 2, 2, 3], [1, 2, 4, 0]]), np.array([3, 5, 2])]
    bias_V = log_frequencies(blocks, Tokenizer())
    counts_V = torch.tensor([0.0, 0.0, 4.0, 2.0, 1.0, 1.0]) + 1
    torch.testing.assert_close(bias_V.softmax(0), counts_V / counts_V.sum())
    assert bias_V.mean().abs() < 1e-6
