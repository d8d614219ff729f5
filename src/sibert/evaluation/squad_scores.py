"""Exact match and F1 of extracted answers, by the definitions of SQuAD 1.1 and 2.0.

Rajpurkar et al., arXiv 1606.05250 section 6.1 and 1806.03822. Their published scorers differ where an answer is nothing
once normalised, as "the" is; both are followed.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["SquadScores", "exact_match", "f1", "normalized", "squad_scores"]

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(answer: str) -> str:
    """An answer without capitals, punctuation, articles and surplus white space.

    Args:
        answer: As extracted or as annotated.
    """
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(predicted: str, expected: str) -> float:
    """1 if both answers are the same once normalised, else 0.

    Args:
        predicted: An answer; "" = none.
        expected: An annotated one; "" = none.
    """
    return float(normalized(predicted) == normalized(expected))


def f1(predicted: str, expected: str) -> float:
    """Harmonic mean of precision and recall of the words of an answer, as bags, once normalised.

    Args:
        predicted: An answer; "" = none.
        expected: An annotated one; "" = none, which only no answer meets.
    """
    found, wanted = normalized(predicted).split(), normalized(expected).split()
    if not found or not wanted:
        return float(found == wanted)
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted))


@dataclass(frozen=True)
class SquadScores:
    """Scores of a set of questions, in percent.

    Attributes:
        exact: Mean exact match, the best over the annotated answers of each question.
        f1: Mean F1, likewise.
        of_answerable: (exact, f1) of the questions that have answers; None where there are none.
        of_unanswerable: Share of those without answers that got none; None where there are none.
        best_exact: With the best threshold on the evidence for no answer; None without such evidence.
        best_exact_threshold: That threshold: above it, no answer is given.
        best_f1: Likewise.
        best_f1_threshold: Likewise.
        questions: How many.
    """

    exact: float
    f1: float
    of_answerable: tuple[float, float] | None
    of_unanswerable: float | None
    best_exact: float | None
    best_exact_threshold: float | None
    best_f1: float | None
    best_f1_threshold: float | None
    questions: int


def squad_scores(
    predictions: Mapping[str, str],
    answers: Mapping[str, Sequence[str]],
    *,
    no_answer: Mapping[str, float] | None = None,
    threshold: float | None = None,
    version: Literal["1.1", "2.0"] = "2.0",
) -> SquadScores:
    """Score extracted answers.

    Args:
        predictions: Answers by the id of the question; "" = none. A question without any counts as wrong.
        answers: The annotated ones by id, () for a question without an answer.
        no_answer: Evidence by id that there is no answer, in any unit; the thresholds are in the same.
        threshold: Above it the answer is taken as none; None = the predictions are final.
        version: Whose definition is meant.

    Raises:
        ValueError: If there are no questions, or predictions or evidence are missing for all of them.
    """
    if not answers:
        raise ValueError("there is nothing to score: the file has no questions")
    if not predictions.keys() & answers.keys():
        raise ValueError("none of the predictions' ids is an id of a question: do they belong to another file?")
    if version == "1.1" and (without := [key for key, texts in answers.items() if not texts]):
        raise ValueError(f"SQuAD 1.1 has an answer to every question, but {without[0]} has none; score it as 2.0")
    wanted = {
        key: list(texts) if version == "1.1" else [text for text in texts if normalized(text)] or [""]
        for key, texts in answers.items()
    }
    overlap_of = f1 if version == "2.0" else _f1_of_words
    raw = {
        "exact": {key: _best(exact_match, predictions.get(key), wanted[key]) for key in answers},
        "f1": {key: _best(overlap_of, predictions.get(key), wanted[key]) for key in answers},
    }
    answerable = {key: bool(texts) for key, texts in answers.items()}
    final = raw
    if no_answer is not None and threshold is not None:
        final = {
            name: {
                key: (float(not answerable[key]) if no_answer.get(key, 0.0) > threshold else value)
                for key, value in values.items()
            }
            for name, values in raw.items()
        }
    exact, overlap = final["exact"], final["f1"]
    having = [key for key in answers if answerable[key]]
    lacking = [key for key in answers if not answerable[key]]
    best = {
        name: _best_threshold(values, predictions, answerable, no_answer) if no_answer is not None else (None, None)
        for name, values in raw.items()
    }
    return SquadScores(
        exact=_percent(exact, answers),
        f1=_percent(overlap, answers),
        of_answerable=(_percent(exact, having), _percent(overlap, having)) if having else None,
        of_unanswerable=_percent(exact, lacking) if lacking else None,
        best_exact=best["exact"][0],
        best_exact_threshold=best["exact"][1],
        best_f1=best["f1"][0],
        best_f1_threshold=best["f1"][1],
        questions=len(answers),
    )


def _f1_of_words(predicted: str, expected: str) -> float:
    """The same for SQuAD 1.1, where nothing has no word in common with nothing."""
    return f1(predicted, expected) if normalized(predicted) else 0.0


def _best(metric: Callable[[str, str], float], predicted: str | None, expected: Sequence[str]) -> float:
    return 0.0 if predicted is None else max(metric(predicted, text) for text in expected)


def _percent(values: Mapping[str, float], keys: Collection[str]) -> float:
    return 100.0 * sum(values[key] for key in keys) / len(keys)


def _best_threshold(
    values: Mapping[str, float],
    predictions: Mapping[str, str],
    answerable: Mapping[str, bool],
    no_answer: Mapping[str, float],
) -> tuple[float, float]:
    """The best mean in percent over all thresholds, and the lowest threshold that reaches it.

    Begins with no answer for everybody and lets questions have theirs one by one, the most certain first.
    """
    current = best = float(sum(not has for has in answerable.values()))
    threshold = 0.0
    for key in sorted(values, key=lambda key: no_answer.get(key, 0.0)):
        if answerable[key]:
            current += values[key]
        elif predictions.get(key):
            current -= 1.0
        if current > best:
            best, threshold = current, no_answer.get(key, 0.0)
    return 100.0 * best / len(values), threshold
