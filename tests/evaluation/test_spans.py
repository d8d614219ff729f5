"""Windows and spans: offsets are of the original text, an oracle recovers answers, the best pair wins."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sibert.data import train_tokenizer
from sibert.evaluation.spans import answers_from_scores, span_labels, windows

LENGTH, STRIDE = 24, 6


@pytest.fixture(scope="module")
def tokenizer():
    text = "the tower was built in 1889 by gustave eiffel , and stands in paris ; its height is 330 metres . who when"
    return train_tokenizer(lambda: iter([text] * 20), 160)


WORD = st.sampled_from(
    [
        "the",
        "Tower",
        "was",
        "built",
        "in",
        "1889",
        "by",
        "Eiffel,",
        "Straße",
        "é",
        "e\u0301",
        "日本",
        "🗼",
        "—",
        "x\u200by",
        "('Paris')",
    ]
)
SPACE = st.sampled_from([" ", "  ", "\n", "\t", "\u00a0", " \n "])
CONTEXT = st.lists(st.tuples(WORD, SPACE), min_size=1, max_size=60).map(lambda parts: "".join(a + b for a, b in parts))


def scores(window, start, end):
    """An oracle's: high where the answer is, low elsewhere, lowest at the first token if it is there."""
    first, last = span_labels(window, start, end)
    start_T, end_T = (np.full(len(window.input_ids), -5.0) for _ in range(2))
    start_T[first] = end_T[last] = 5.0
    return start_T, end_T


@settings(deadline=None, max_examples=150)
@given(context=CONTEXT, data=st.data())
def test_an_oracle_recovers_the_answer(tokenizer, context, data):
    found = windows(tokenizer, ["Who built it?"], [context], length=LENGTH, stride=STRIDE)
    places = sorted({offset for window in found for offset in window.offsets if offset is not None})
    if not places:
        return
    first = data.draw(st.integers(0, len(places) - 1))
    last = min(len(places) - 1, first + data.draw(st.integers(0, STRIDE - 1)))
    start, end = places[first][0], max(place[1] for place in places[first : last + 1])
    start_scores, end_scores = zip(*(scores(window, start, end) for window in found), strict=True)
    answers, evidence = answers_from_scores(found, [context], start_scores, end_scores)
    best = answers[0][0]
    assert best.text == context[best.start : best.end]
    assert best.text == context[start:end]
    assert best.score == 10.0
    # One window lacks the answer and says so as surely as another has it, or none does.
    assert evidence[0] in (0.0, -20.0)


@settings(deadline=None, max_examples=150)
@given(contexts=st.lists(CONTEXT, min_size=1, max_size=3), seed=st.integers(0, 2**16))
def test_every_answer_is_a_part_of_its_context(tokenizer, contexts, seed):
    found = windows(tokenizer, ["Who?"] * len(contexts), contexts, length=LENGTH, stride=STRIDE)
    assert [window.question for window in found] == sorted(window.question for window in found)
    assert {window.question for window in found} == set(range(len(contexts)))
    generator = np.random.default_rng(seed)
    start_scores, end_scores = ([generator.normal(size=len(w.input_ids)) for w in found] for _ in range(2))
    answers, evidence = answers_from_scores(found, contexts, start_scores, end_scores, best=5, longest=4)
    assert len(answers) == len(evidence) == len(contexts)
    for context, several in zip(contexts, answers, strict=True):
        assert len(several) <= 5
        assert [answer.score for answer in several] == sorted((answer.score for answer in several), reverse=True)
        assert len({(answer.start, answer.end) for answer in several}) == len(several)
        for answer in several:
            assert answer.text == context[answer.start : answer.end]
            assert answer.text.strip()
            assert len(tokenizer(answer.text, add_special_tokens=False)["input_ids"]) <= 5


def test_by_hand(tokenizer):
    context = "built in 1889 by eiffel"
    (window,) = windows(tokenizer, ["when ?"], [context], length=LENGTH, stride=STRIDE)
    words = {context[o[0] : o[1]]: place for place, o in enumerate(window.offsets) if o is not None}
    start_T, end_T = np.zeros(len(window.input_ids)), np.zeros(len(window.input_ids))
    start_T[words["1889"]], end_T[words["1889"]] = 3.0, 2.0
    start_T[words["eiffel"]] = 4.0
    end_T[words["built"]] = 9.0  # before every start but its own
    start_T[0], end_T[0] = 1.0, 1.5
    answers, evidence = answers_from_scores([window], [context], [start_T], [end_T])
    assert [(a.text, a.score) for a in answers[0]][:2] == [("built", 9.0), ("1889", 5.0)]
    assert evidence == [2.5 - 9.0]
    words_alone, _ = answers_from_scores([window], [context], [start_T], [end_T], longest=1)
    assert [a.text for a in words_alone[0]] == ["built", "1889", "eiffel", "in", "by"]
    two_of_two, _ = answers_from_scores([window], [context], [start_T], [end_T], best=2)
    assert [a.text for a in two_of_two[0]] == ["1889"]  # "built" is neither of the two best starts


def test_labels_of_what_a_window_lacks(tokenizer):
    context = "the tower was built in 1889 by gustave eiffel , " * 6
    found = windows(tokenizer, ["who ?"], [context], length=LENGTH, stride=STRIDE)
    start = context.rindex("1889")
    labels = [span_labels(window, start, start + 4) for window in found]
    assert labels[0] == (0, 0)
    assert labels[-1] != (0, 0)
    assert span_labels(found[0], 5, 5) == (0, 0)
    # A part of a token stands for the token.
    first = span_labels(found[0], 4, 6)
    assert first == span_labels(found[0], 4, 9)


def test_a_question_without_room_for_its_context(tokenizer):
    with pytest.raises(ValueError, match="question 2 has 30 tokens and leaves no room"):
        windows(tokenizer, ["who ?", "who " * 30], ["a", "b"], length=LENGTH, stride=STRIDE)


def test_a_context_without_tokens_has_no_answer(tokenizer):
    found = windows(tokenizer, ["who ?"], ["\u200b"], length=LENGTH, stride=STRIDE)
    zeros = [np.zeros(len(window.input_ids)) for window in found]
    answers, evidence = answers_from_scores(found, ["\u200b"], zeros, zeros)
    assert answers == [[]]
    assert evidence == [float("inf")]
