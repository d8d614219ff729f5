"""Entities by hand, in every scheme of tags."""

import pytest

from sibert.evaluation.entities import entities, entity_scores


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-PER I-PER O B-LOC", {(0, 2, "PER"), (3, 4, "LOC")}),
        ("B-PER B-PER", {(0, 1, "PER"), (1, 2, "PER")}),
        ("I-PER I-PER I-LOC", {(0, 2, "PER"), (2, 3, "LOC")}),
        ("O I-PER O", {(1, 2, "PER")}),
        ("B-PER I-LOC I-LOC", {(0, 1, "PER"), (1, 3, "LOC")}),
        ("B-PER I-PER E-PER S-LOC", {(0, 3, "PER"), (3, 4, "LOC")}),
        ("B-PER L-PER U-LOC U-LOC", {(0, 2, "PER"), (2, 3, "LOC"), (3, 4, "LOC")}),
        ("S-PER I-PER", {(0, 1, "PER"), (1, 2, "PER")}),
        ("E-PER I-PER", {(0, 1, "PER"), (1, 2, "PER")}),
        ("B-a-b I-a-b", {(0, 2, "a-b")}),
        ("NOUN VERB O", {(0, 1, "NOUN"), (1, 2, "VERB")}),
        ("O O", set()),
        ("", set()),
    ],
)
def test_by_hand(tags, expected):
    assert entities(tags.split()) == expected


def test_scores():
    predicted = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG"]]
    expected = [["B-PER", "I-PER", "O", "B-ORG"], ["B-LOC", "B-ORG"]]
    scores = entity_scores(predicted, expected)  # 2 right, 3 found, 4 wanted
    assert scores["entity_precision"] == pytest.approx(2 / 3)
    assert scores["entity_recall"] == pytest.approx(2 / 4)
    assert scores["entity_f1"] == pytest.approx(4 / 7)
    assert scores["word_accuracy"] == pytest.approx(4 / 6)


def test_without_entities():
    assert entity_scores([["O"]], [["O"]])["entity_f1"] == 1.0
    assert entity_scores([["O"]], [["B-X"]])["entity_f1"] == 0.0
    assert entity_scores([["NOUN", "VERB"]], [["NOUN", "ADJ"]])["entity_f1"] == 0.5


@pytest.mark.parametrize(("predicted", "message"), [([["O"]], "for every word"), ([], "nothing to score")])
def test_mistakes(predicted, message):
    with pytest.raises(ValueError, match=message):
        entity_scores(predicted, [["O", "O"]] if predicted else [])
