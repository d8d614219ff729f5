import numpy as np
import pytest
import torch

from sibert.data import TokenFrequencies


class Tokenizer:
    all_special_ids = (0, 1)
    mask_token_id = 1

    def __len__(self):
        return 6


@pytest.fixture
def frequencies():
    blocks = [np.array([[0, 2, 2, 3], [0, 2, 4, 0]]), np.array([3, 5, 2])]
    return TokenFrequencies.of(blocks, Tokenizer())


def test_the_softmax_of_the_bias_is_the_distribution_of_targets(frequencies):
    bias_V = frequencies.log_targets()
    counts_V = torch.tensor([0.0, 0.0, 4.0, 2.0, 1.0, 1.0]) + 1
    torch.testing.assert_close(bias_V.softmax(0), counts_V / counts_V.sum())
    assert bias_V.mean().abs() < 1e-6


def test_special_tokens_are_frequent_inputs(frequencies):
    counts_V = torch.tensor([3.0, 0.0, 4.0, 2.0, 1.0, 1.0]) + 1
    counts_V[1] += 0.8 * 0.15 * counts_V.sum()
    torch.testing.assert_close(frequencies.inputs(mask_rate=0.15), counts_V / counts_V.sum())
