"""The two baselines: the majority by hand; a bag of words that finds a word, chosen by the task's own score."""

import pytest

from sibert.evaluation import bag_of_words, examples_of, majority, task_named
from sibert.evaluation.tables import Row


def examples(task, train, validation):
    splits = {"train": train, "validation": validation}
    columns = task_named(task).columns
    rows = {
        name: [
            Row("file", f"row {i}", dict(zip((*columns, "label"), values, strict=True))) for i, values in enumerate(own)
        ]
        for name, own in splits.items()
    }
    return examples_of(task_named(task), rows)


def test_the_majority_is_that_of_the_training_split():
    data = examples(
        "classification", [("a", "x"), ("b", "x"), ("c", "y")], [("a", "y"), ("b", "y"), ("c", "x"), ("d", "y")]
    )
    assert majority(data, "validation")["accuracy"] == 0.25


def test_a_constant_has_no_correlation():
    data = examples("regression", [("a", 1.0), ("b", 3.0)], [("a", 1.0), ("b", 2.0)])
    assert majority(data, "validation")["score"] == 0.0


def test_a_bag_of_words_finds_the_word():
    train = [(f"{'good' if i % 2 else 'bad'} film {i}", "yes" if i % 2 else "no") for i in range(30)]
    data = examples("classification", train, [("good story", "yes"), ("bad story", "no")])
    assert bag_of_words(data, "validation")["accuracy"] == 1.0


def test_and_a_number():
    train = [(f"{'many ' * (i % 5)}film {i}", float(i % 5)) for i in range(60)]
    data = examples("regression", train, [("film", 0.0), ("many film", 1.0), ("many many many many film", 4.0)])
    assert bag_of_words(data, "validation")["pearson"] > 0.8


def test_the_texts_of_a_pair_are_told_apart():
    train = [("good", "bad", "first") if i % 2 else ("bad", "good", "second") for i in range(30)]
    data = examples("pair-classification", train, [("good", "bad", "first"), ("bad", "good", "second")])
    assert bag_of_words(data, "validation")["accuracy"] == 1.0


def test_the_strength_is_chosen_by_the_task_s_own_score():
    """One label in twelve is rare: by accuracy, giving the other always would do; by Matthews' correlation it is 0."""
    train = [(f"{'odd' if i % 12 == 0 else 'plain'} text {i % 7} {i}", int(i % 12 != 0)) for i in range(120)]
    held = [(f"odd text {i}", 0) for i in range(3)] + [(f"plain text {i}", 1) for i in range(30)]
    rows = {
        name: [Row("file", f"row {i}", {"sentence": text, "label": label}) for i, (text, label) in enumerate(own)]
        for name, own in (("train", train), ("validation", held))
    }
    data = examples_of(task_named("cola"), rows)
    assert bag_of_words(data, "validation")["matthews"] == pytest.approx(1.0)
