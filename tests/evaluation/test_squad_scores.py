"""Exact match and F1 of SQuAD: by hand, and beside torchmetrics' implementation."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sibert.evaluation.squad_scores import exact_match, f1, normalized, squad_scores


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The  Eiffel-Tower!", "eiffeltower"),
        ("an apple a day", "apple day"),
        ("theatre", "theatre"),
        ("the", ""),
        ("1,000", "1000"),
        ("  Ünïcode — dash ", "ünïcode — dash"),
    ],
)
def test_normalized(answer, expected):
    assert normalized(answer) == expected


@pytest.mark.parametrize(
    ("predicted", "expected", "exact", "overlap"),
    [
        ("the Eiffel Tower", "Eiffel tower.", 1.0, 1.0),
        ("in the Eiffel Tower", "Eiffel Tower", 0.0, 0.8),
        ("Paris Paris", "Paris", 0.0, 2 / 3),
        ("London", "Paris", 0.0, 0.0),
        ("", "", 1.0, 1.0),
        ("", "Paris", 0.0, 0.0),
        ("Paris", "", 0.0, 0.0),
    ],
)
def test_one_answer(predicted, expected, exact, overlap):
    assert exact_match(predicted, expected) == exact
    assert f1(predicted, expected) == pytest.approx(overlap)


def test_best_of_several_answers_and_missing_predictions():
    answers = {"a": ["blue", "dark blue"], "b": ["one"], "c": ["two"]}
    scores = squad_scores({"a": "dark blue sky", "b": "one"}, answers)
    assert scores.exact == pytest.approx(100 / 3)
    assert scores.f1 == pytest.approx(100 * (0.8 + 1.0 + 0.0) / 3)
    assert scores.of_unanswerable is None
    assert scores.best_f1 is None


def test_unanswerable_questions_and_the_best_threshold():
    answers = {"a": ["x"], "b": [], "c": ["y"], "d": []}
    predictions = {"a": "x", "b": "z", "c": "wrong", "d": ""}
    no_answer = {"a": 0.1, "b": 0.5, "c": 0.9, "d": 0.7}
    scores = squad_scores(predictions, answers, no_answer=no_answer)
    assert (scores.exact, scores.f1) == (50.0, 50.0)
    assert scores.of_answerable == (50.0, 50.0)
    assert scores.of_unanswerable == 50.0
    # Nobody answers: 2 right. With a: 3. With b, which is wrong to answer: 2.
    assert (scores.best_exact, scores.best_exact_threshold) == (75.0, 0.1)
    scores = squad_scores(predictions, answers, no_answer=no_answer, threshold=0.1)
    assert scores.exact == 75.0
    assert scores.of_unanswerable == 100.0


def test_the_definitions_differ_where_an_answer_is_nothing():
    assert squad_scores({"a": "a"}, {"a": ["the"]}, version="2.0").f1 == 100.0
    assert squad_scores({"a": "a"}, {"a": ["the"]}, version="1.1").f1 == 0.0
    assert squad_scores({"a": "a"}, {"a": ["the"]}, version="1.1").exact == 100.0


WORDS = st.sampled_from(["the", "a", "Paris", "paris,", "in", "Tower", "1889", "an", "é", "dog's", "-", ""])
# Something is left of every answer: of those that are nothing the definitions themselves disagree (above).
ANSWER = st.tuples(st.lists(WORDS, max_size=4), st.sampled_from(["Tower", "1889"]), st.lists(WORDS, max_size=2)).map(
    lambda parts: " ".join([*parts[0], parts[1], *parts[2]])
)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(ANSWER, st.lists(ANSWER, min_size=1, max_size=3)), min_size=1, max_size=6))
def test_beside_an_independent_implementation(questions):
    from torchmetrics.functional.text import squad

    predictions = {str(i): predicted for i, (predicted, _) in enumerate(questions)}
    answers = {str(i): several for i, (_, several) in enumerate(questions)}
    theirs = squad(
        [{"id": key, "prediction_text": text} for key, text in predictions.items()],
        [{"id": key, "answers": {"text": texts, "answer_start": [0] * len(texts)}} for key, texts in answers.items()],
    )
    for version in ("1.1", "2.0"):
        ours = squad_scores(predictions, answers, version=version)
        assert ours.exact == pytest.approx(float(theirs["exact_match"]), abs=1e-3)
        assert ours.f1 == pytest.approx(float(theirs["f1"]), abs=1e-3)


@pytest.mark.parametrize(
    ("predictions", "answers", "version", "message"),
    [
        ({}, {}, "2.0", "has no questions"),
        ({"x": "y"}, {"a": ["b"]}, "2.0", "belong to another file"),
        ({"a": "y"}, {"a": []}, "1.1", "score it as 2.0"),
    ],
)
def test_mistakes(predictions, answers, version, message):
    with pytest.raises(ValueError, match=message):
        squad_scores(predictions, answers, version=version)
