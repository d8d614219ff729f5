"""Mean pooling, the contrastive loss against a plain transcription, and retrieval by hand."""

import math

import numpy as np
import pytest
import torch

from sibert.evaluation.embeddings import TEMPERATURE, contrastive_loss, mean_pooled, retrieval_accuracy


def unit(*rows):
    vectors = torch.tensor(rows, dtype=torch.float64)
    return vectors / vectors.norm(dim=1, keepdim=True)


def test_padding_does_not_count():
    hidden = torch.randn(2, 5, 4, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    pooled = mean_pooled(hidden, mask)
    expected = hidden[0, :3].mean(dim=0)
    torch.testing.assert_close(pooled[0], expected / expected.norm())
    assert not torch.allclose(pooled[0], mean_pooled(hidden, torch.ones_like(mask))[0])


def test_the_loss_is_the_mean_of_both_directions():
    one, other = torch.nn.functional.normalize(torch.randn(2, 4, 3, dtype=torch.float64), dim=-1)
    total = 0.0
    for a, b in ((one, other), (other, one)):
        for i in range(4):
            scores = [math.exp(float(a[i] @ b[j]) / TEMPERATURE) for j in range(4)]
            total -= math.log(scores[i] / sum(scores)) / 8
    assert float(contrastive_loss(one, other)) == pytest.approx(total)


def test_the_loss_of_equal_texts_is_the_logarithm_of_their_number():
    same = unit([1, 1], [1, 1], [1, 1])
    assert float(contrastive_loss(same, same)) == pytest.approx(math.log(3))


def test_retrieval_by_hand():
    anchors = unit([1, 0], [0, 1], [1, 1]).numpy()
    assert retrieval_accuracy(anchors, anchors, ["a", "b", "c"]) == 1.0
    assert retrieval_accuracy(anchors, anchors[[1, 0, 2]], ["a", "b", "c"]) == pytest.approx(1 / 3)
    same = np.stack([anchors[0], anchors[0]])
    assert retrieval_accuracy(anchors[:2], same, ["a", "a"]) == 1.0
    assert retrieval_accuracy(anchors[:2], same, ["a", "b"]) == 0.5


def test_an_encoder_that_tells_nothing_apart_finds_as_many_as_guessing():
    same = np.full((50, 4), 0.5, dtype=np.float32)
    assert retrieval_accuracy(same, same, list(map(str, range(50)))) == pytest.approx(1 / 50)
