"""What a task is worth without any transformer: the most frequent answer, and a bag of words."""

from typing import Any

import numpy as np

from sibert.evaluation.examples import Examples
from sibert.evaluation.metrics import score

__all__ = ["bag_of_words", "majority"]


def majority(examples: Examples, split: str) -> dict[str, float]:
    """The scores of always giving the training split's most frequent label, or its mean.

    Args:
        examples: Of classification or regression.
        split: To score.
    """
    targets = np.asarray(examples.splits["train"]["label"])
    constant = targets.mean() if examples.task.kind == "regression" else np.bincount(targets).argmax()
    expected = np.asarray(examples.splits[split]["label"])
    return _scores(examples, np.full(len(expected), constant), expected)


def bag_of_words(examples: Examples, split: str) -> dict[str, float]:
    """The scores of a logistic (for numbers a ridge) regression on words and pairs of words, weighted by tf-idf.

    Its one setting, the strength of regularisation, is chosen among six by cross-validation on the training split, by
    the task's own score. The two texts of a pair have columns of their own.

    Args:
        examples: Of classification or regression.
        split: To score.
    """
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.model_selection import GridSearchCV

    train, held = examples.splits["train"], examples.splits[split]
    parts = []
    for name in ("text", "text_pair")[: len(examples.task.columns)]:
        weights = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        parts.append((weights.fit_transform(list(train[name])), weights.transform(list(held[name]))))
    x_train, x_held = (hstack([pair[side] for pair in parts]).tocsr() for side in (0, 1))
    strengths = np.logspace(-2, 3, 6)
    plain: Any
    if examples.task.kind == "regression":
        plain, grid = Ridge(solver="lsqr"), {"alpha": 1 / strengths}
    else:
        plain, grid = LogisticRegression(max_iter=1000), {"C": strengths}

    def own_score(fitted: Any, x: Any, y: np.ndarray) -> float:
        return _scores(examples, fitted.predict(x), y)["score"]

    model = GridSearchCV(plain, grid, scoring=own_score, cv=3)
    model.fit(x_train, np.asarray(train["label"]))
    return _scores(examples, model.predict(x_held), np.asarray(held["label"]))


def _scores(examples: Examples, predicted: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    scores = score(examples.task.metrics, predicted, expected)
    return scores | {"score": float(np.mean(list(scores.values())))}
