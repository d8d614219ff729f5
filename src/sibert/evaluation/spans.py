"""From the scores of tokens to answers in the original text, and back: windows, spans, the best of them.

A context that is longer than the model's window is read in overlapping windows, as in the published code of BERT
(arXiv 1810.04805, section 4.2): the start and end of an answer are scored in each, and the best pair of all wins.
Answers of up to as many tokens as two windows share are wholly in one of them.
Offsets are characters of the context as it was given, never of a normalised one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Answer", "Window", "answers_from_scores", "shortened", "span_labels", "windows"]


@dataclass(frozen=True)
class Window:
    """A part of a context with its question, as a model sees it.

    Attributes:
        question: Index of the question.
        input_ids: [T] of question and context, with the special tokens.
        token_type_ids: [T] 1 for the context, where the tokenizer tells.
        offsets: [T] (begin, end) of a token in the context's characters; None outside the context.
    """

    question: int
    input_ids: list[int]
    token_type_ids: list[int] | None
    offsets: list[tuple[int, int] | None]


@dataclass(frozen=True)
class Answer:
    """A part of a context.

    Attributes:
        text: context[start:end]; "" = no answer.
        start: First character.
        end: Behind the last one.
        score: Start plus end, in the model's units.
    """

    text: str
    start: int
    end: int
    score: float


def windows(
    tokenizer: Any, questions: Sequence[str], contexts: Sequence[str], *, length: int, stride: int
) -> list[Window]:
    """Read contexts in windows that overlap.

    Args:
        tokenizer: A fast one of transformers.
        questions: As asked; leading white space does not count.
        contexts: As long as they are.
        length: Tokens of a window, question and special tokens included.
        stride: Tokens that a window shares with the one before.

    Returns:
        In the order of the questions, at least one for each.

    Raises:
        ValueError: If a question leaves no room for its context.
    """
    asked = [question.strip() for question in questions]
    _check_room(tokenizer, asked, length, stride)
    encoded = tokenizer(
        asked,
        list(contexts),
        truncation="only_second",
        max_length=length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    found: list[Window] = []
    types = encoded.get("token_type_ids")
    for row, question in enumerate(encoded["overflow_to_sample_mapping"]):
        parts = encoded.sequence_ids(row)
        offsets = [
            (int(begin), int(end)) if part == 1 and end > begin else None
            for part, (begin, end) in zip(parts, encoded["offset_mapping"][row], strict=True)
        ]
        ids = encoded["input_ids"][row]
        found.append(Window(question, ids, None if types is None else types[row], offsets))
    return found


def shortened(tokenizer: Any, questions: Sequence[str], most: int) -> tuple[list[str], int]:
    """Questions of which little enough is left that a context has room beside them.

    Args:
        tokenizer: A fast one of transformers.
        questions: As asked.
        most: Tokens of a question.

    Returns:
        The questions, and how many were cut.
    """
    encoded = tokenizer(list(questions), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    short, cut = list(questions), 0
    for i, offsets in enumerate(encoded["offset_mapping"]):
        if len(offsets) > most:
            short[i] = questions[i][: offsets[most - 1][1]]
            cut += 1
    return short, cut


def _check_room(tokenizer: Any, questions: Sequence[str], length: int, stride: int) -> None:
    special = tokenizer.num_special_tokens_to_add(pair=True)
    lengths = [len(ids) for ids in tokenizer(list(questions), add_special_tokens=False)["input_ids"]]
    longest = int(np.argmax(lengths)) if lengths else 0
    if lengths and length - lengths[longest] - special <= stride:
        raise ValueError(
            f"question {longest + 1} has {lengths[longest]} tokens and leaves no room for its context in windows of "
            f"{length} tokens that share {stride}: take longer windows, a smaller stride, or a shorter question"
        )


def span_labels(window: Window, start: int, end: int) -> tuple[int, int]:
    """The tokens at which an answer begins and ends, to train on.

    Args:
        window: One of a context's.
        start: First character of the answer.
        end: Behind its last; not beyond `start` for no answer.

    Returns:
        Positions in the window; (0, 0), the first token, if the answer is not wholly in it.
    """
    touched = [
        place
        for place, offset in enumerate(window.offsets)
        if offset is not None and offset[0] < end and start < offset[1]
    ]
    if end <= start or not touched:
        return 0, 0
    first, last = window.offsets[touched[0]], window.offsets[touched[-1]]
    assert first is not None
    assert last is not None
    inside = first[0] <= start and end <= last[1]
    return (touched[0], touched[-1]) if inside else (0, 0)


def answers_from_scores(
    found: Sequence[Window],
    contexts: Sequence[str],
    start_scores: Sequence[np.ndarray],
    end_scores: Sequence[np.ndarray],
    *,
    best: int = 20,
    longest: int = 30,
) -> tuple[list[list[Answer]], list[float]]:
    """The best answers to each question.

    Args:
        found: The windows of all questions.
        contexts: By question.
        start_scores: For each window [T], how much speaks for a start there.
        end_scores: Likewise for the end.
        best: How many starts and ends of a window are paired, and how many answers are given.
        longest: Tokens of an answer.

    Returns:
        For each question its answers, the best first (none if there is no token to begin with), and the evidence that
        it has none: the lowest score of the first token among its windows, less the score of the best answer.
    """
    candidates: list[dict[tuple[int, int], float]] = [{} for _ in contexts]
    none = [float("inf")] * len(contexts)
    for window, start_T, end_T in zip(found, start_scores, end_scores, strict=True):
        none[window.question] = min(none[window.question], float(start_T[0]) + float(end_T[0]))
        inside = np.array([offset is not None for offset in window.offsets])
        starts = _largest(np.where(inside, start_T, -np.inf), best)
        ends = _largest(np.where(inside, end_T, -np.inf), best)
        for start in starts:
            for end in ends:
                if not start <= end < start + longest:
                    continue
                begin, behind = window.offsets[start], window.offsets[end]
                assert begin is not None
                assert behind is not None
                span, score = (begin[0], behind[1]), float(start_T[start]) + float(end_T[end])
                known = candidates[window.question]
                known[span] = max(known.get(span, -np.inf), score)
    answers = [
        [
            Answer(context[start:end], start, end, score)
            # Equal scores: the earlier, then the shorter, so that the order does not depend on the platform.
            for (start, end), score in sorted(spans.items(), key=lambda item: (-item[1], item[0]))[:best]
        ]
        for context, spans in zip(contexts, candidates, strict=True)
    ]
    evidence = [
        score - several[0].score if several else float("inf") for score, several in zip(none, answers, strict=True)
    ]
    return answers, evidence


def _largest(scores_T: np.ndarray, number: int) -> list[int]:
    order = np.argsort(-scores_T, kind="stable")[:number]
    return [int(place) for place in order if np.isfinite(scores_T[place])]
