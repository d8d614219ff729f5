"""Scores by hand."""

import numpy as np
import pytest

from sibert.evaluation.metrics import METRICS, score


@pytest.mark.parametrize(
    ("name", "predicted", "expected", "value"),
    [
        ("accuracy", [0, 1, 1, 2], [0, 1, 2, 2], 0.75),
        # 2 found rightly of 3, of 4 that there are: 2 * (2/3)(2/4) / (2/3 + 2/4)
        ("f1", [1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 1, 0], 4 / 7),
        ("f1", [0, 0], [0, 0], 0.0),
        # label 0: 2/3, label 1: 2/3, label 2: 0
        ("macro_f1", [0, 0, 1, 1, 1], [0, 2, 1, 1, 0], (0.5 + 0.8 + 0.0) / 3),
        # (TP TN - FP FN) / sqrt(...) = (2*1 - 1*2) / ... = 0; and a perfect inverse
        ("matthews", [1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 1, 0], 0.0),
        ("matthews", [1, 0, 1, 0], [0, 1, 0, 1], -1.0),
        ("matthews", [1, 1, 1], [0, 1, 0], 0.0),
        ("pearson", [1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0], 0.8),
        ("pearson", [2.0, 2.0], [1.0, 3.0], 0.0),
        ("spearman", [1.0, 10.0, 100.0, 1000.0], [1.0, 3.0, 2.0, 4.0], 0.8),
        ("mean_squared_error", [1.0, 2.0], [3.0, 2.0], 2.0),
    ],
)
def test_by_hand(name, predicted, expected, value):
    assert METRICS[name](np.array(predicted), np.array(expected)) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("predicted", "expected", "message"),
    [
        ([1, 2], [1], "as many predictions as targets"),
        ([], [], "nothing to score"),
        ([1.0, float("nan")], [1.0, 2.0], "predictions have 1 values that are not finite"),
        ([1.0, 2.0], [float("inf"), float("nan")], "targets have 2 values"),
    ],
)
def test_what_cannot_be_scored(predicted, expected, message):
    with pytest.raises(ValueError, match=message):
        score(["accuracy"], predicted, expected)
