"""Rows become examples, or one sentence with file, row and column."""

import json
import re
from pathlib import Path

import pytest

from sibert.evaluation.examples import examples_of
from sibert.evaluation.tables import Row
from sibert.evaluation.tasks import TASKS, task_named

FILE = Path("data.csv")


def rows(*values):
    return [Row(FILE, f"row {number}", value) for number, value in enumerate(values, start=2)]


def labelled(*pairs):
    return rows(*({"text": text, "label": label} for text, label in pairs))


class TestLabels:
    task = task_named("classification")

    def test_texts_are_sorted(self):
        examples = examples_of(self.task, {"train": labelled(("x", "pos"), ("y", "neg"))})
        assert examples.labels == ("neg", "pos")
        assert examples.splits["train"]["label"][:] == [1, 0]

    def test_numbers_are_sorted_as_numbers(self):
        examples = examples_of(self.task, {"train": labelled(("x", "10"), ("y", "9"), ("z", "-1"))})
        assert examples.labels == ("-1", "9", "10")

    def test_integers_and_booleans(self):
        assert examples_of(self.task, {"train": labelled(("x", 1), ("y", 0))}).labels == ("0", "1")
        assert examples_of(self.task, {"train": labelled(("x", True), ("y", False))}).labels == ("false", "true")

    def test_those_of_a_model_come_first(self):
        examples = examples_of(self.task, {"validation": labelled(("x", "b"))}, labels=["c", "b"])
        assert examples.splits["validation"]["label"][:] == [1]

    def test_names_or_numbers_of_a_known_task(self):
        data = rows({"sentence": "x", "label": "positive"}, {"sentence": "y", "label": "0"})
        assert examples_of(TASKS["sst2"], {"train": data}).splits["train"]["label"][:] == [1, 0]

    def test_but_not_of_a_user_s_own(self):
        data = {"train": labelled(("x", "no"), ("y", "yes")), "validation": labelled(("z", "1"))}
        with pytest.raises(ValueError, match="'1' is none of the labels that the model knows: no, yes"):
            examples_of(self.task, data)
        data = {"train": labelled(("x", 1), ("y", 2)), "validation": labelled(("z", 0))}
        with pytest.raises(ValueError, match="'0' is none of the labels that the model knows: 1, 2"):
            examples_of(self.task, data)

    def test_raised_digits_are_no_numbers(self):
        assert examples_of(self.task, {"train": labelled(("x", "³"), ("y", "²"))}).labels == ("²", "³")

    def test_a_split_without_labels_is_there_to_be_predicted(self):
        examples = examples_of(self.task, {"test": rows({"text": "x"}), "train": labelled(("x", "a"), ("y", "b"))})
        assert examples.splits["test"].column_names == ["text"]

    def test_duplicates_are_counted(self):
        data = {"train": labelled(("x", "a"), ("x", "b"), ("y", "b")), "validation": labelled(("y", "a"), ("z", "a"))}
        assert examples_of(self.task, data).notes == (
            "1 of 3 rows of train repeat an earlier one",
            "1 of 2 rows of validation are in train, too",
        )

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ({"train": []}, "the train split has no rows"),
            ({"train": rows({"text": "x"})}, "row 2, column 'label': the column is missing; columns found: text"),
            (
                {
                    "train": labelled(("x", "a"), ("y", "b")),
                    "validation": [*rows({"text": "z"}), *labelled(("x", "a"))],
                },
                "row 2, column 'label': the column is missing; columns found: text",
            ),
            ({"train": labelled(("x", "a"), ("y", "a"))}, "has one label alone ('a' in column 'label')"),
            ({"train": labelled(("x", "a"), ("y", ""))}, "row 3, column 'label': expected a label"),
            ({"train": labelled(("x", "a"), ("y", None))}, "expected a label (text or an integer), got nothing"),
            ({"train": labelled(("x", "a"), ("y", 0.5))}, "expected a label (text or an integer), got 0.5"),
            ({"train": labelled(("x", 1), ("y", float("nan")))}, "the label is NaN"),
            ({"train": labelled(("x", "a"), ("  ", "b"))}, "row 3, column 'text': the text is empty"),
            ({"train": labelled(("x", "a"), (7, "b"))}, "column 'text': expected text, got int"),
            ({"train": labelled(("x", "a"), (None, "b"))}, "column 'text': expected text, got nothing"),
            (
                {"train": labelled(("x", "a"), ("y", "b")), "validation": labelled(("z", "c"))},
                "row 2, column 'label': 'c' is none of the labels that the model knows: a, b",
            ),
        ],
    )
    def test_mistakes(self, data, message):
        with pytest.raises(ValueError, match=f"^(data.csv, )?.*{re.escape(message)}"):
            examples_of(self.task, data)


class TestNumbers:
    task = task_named("regression")

    def test_are_read_from_text(self):
        assert examples_of(self.task, {"train": labelled(("x", "1.5"), ("y", 2))}).splits["train"]["label"][:] == [
            1.5,
            2,
        ]

    @pytest.mark.parametrize("value", ["nan", "inf", float("nan"), "much", None, "", True])
    def test_mistakes(self, value):
        with pytest.raises(ValueError, match=r"data.csv, row 3, column 'label': expected a (finite )?number"):
            examples_of(self.task, {"train": labelled(("x", "1.5"), ("y", value))})


class TestWords:
    task = task_named("token-classification")

    def test_lists_or_spaces(self):
        data = rows({"words": "Ada lives", "tags": ["B-PER", "O"]}, {"words": ["here"], "tags": "O"})
        examples = examples_of(self.task, {"train": data})
        assert examples.labels == ("B-PER", "O")
        assert examples.splits["train"]["words"][:] == [["Ada", "lives"], ["here"]]
        assert examples.splits["train"]["label"][:] == [[0, 1], [1]]

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"words": "a b", "tags": "O 1"}, "column 'tags': '1' is none of the tags that the model knows: B-X, O"),
            ({"words": "a b", "tags": "O"}, "column 'tags': expected one tag for each of the 2 words, got 1"),
            ({"words": [], "tags": "O"}, "column 'words': expected a list"),
            ({"words": ["a", " "], "tags": "O O"}, "column 'words': expected texts that are not empty"),
            ({"words": 3, "tags": "O"}, "column 'words': expected a list, or words with spaces between them, got 3"),
        ],
    )
    def test_mistakes(self, values, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            examples_of(
                self.task, {"train": rows({"words": "a b", "tags": "O B-X"}), "validation": rows({}, values)[1:]}
            )


class TestAnswers:
    task = task_named("qa")

    def question(self, answers, **more):
        return rows({"question": "Who?", "context": "Ada met Bob. Bob left.", "answers": answers, **more})

    def test_a_text_is_found(self):
        examples = examples_of(self.task, {"train": self.question("Bob")})
        assert examples.splits["train"]["answers"][0] == {"text": ["Bob"], "answer_start": [8]}

    @pytest.mark.parametrize("nothing", [None, "", {"text": [], "answer_start": []}])
    def test_no_answer(self, nothing):
        examples = examples_of(self.task, {"train": self.question("Bob") + self.question(nothing)})
        assert examples.splits["train"]["answers"][1] == {"text": [], "answer_start": []}

    @pytest.mark.parametrize(
        ("answers", "message"),
        [
            ("Eve", "column 'answers': 'Eve' is not in column 'context' at character -1"),
            ({"text": ["Bob"], "answer_start": [9]}, "'Bob' is not in column 'context' at character 9"),
            ({"text": ["Bob"], "answer_start": []}, "1 texts, but 0 starts"),
            ({"text": ["Bob"]}, "expected a text of the context, or {'text'"),
            ({"text": "Bob", "answer_start": 8}, "expected a text of the context, or {'text'"),
            (7, "expected a text of the context"),
        ],
    )
    def test_mistakes(self, answers, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            examples_of(self.task, {"train": self.question(answers)})

    def test_ids_are_unique(self):
        with pytest.raises(ValueError, match="column 'id': 'x' is the id of an earlier question, too"):
            examples_of(self.task, {"train": self.question("Bob", id="x") + self.question("Ada", id="x")})


def test_columns_may_have_other_names():
    task = task_named("pair-classification").renamed(("left", "right"), "same")
    data = rows({"left": "a", "right": "b", "same": "1"}, {"left": "c", "right": "d", "same": "0"})
    assert examples_of(task, {"train": data}).splits["train"]["text_pair"][:] == ["b", "d"]
    with pytest.raises(ValueError, match="reads 2 columns"):
        task.renamed(("left",), None)


def test_tasks_are_known_by_name():
    with pytest.raises(ValueError, match="there is no task 'cola2'; tasks are cola, sst2"):
        task_named("cola2")


class TestSquadFiles:
    def tree(self, **question):
        asked = {"id": "q1", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}], **question}
        return {"version": "2.0", "data": [{"title": "T", "paragraphs": [{"context": "Ada left.", "qas": [asked]}]}]}

    def read(self, tmp_path, tree):
        from sibert.evaluation.squad import squad_rows

        (tmp_path / "squad.json").write_text(json.dumps(tree))
        return examples_of(TASKS["squad2"], {"train": squad_rows(tmp_path / "squad.json")}).splits["train"]

    def test_questions(self, tmp_path):
        assert self.read(tmp_path, self.tree())[0] == {
            "id": "q1",
            "question": "Who?",
            "context": "Ada left.",
            "answers": {"text": ["Ada"], "answer_start": [0]},
        }

    def test_unanswerable_ones_have_no_answers(self, tmp_path):
        assert self.read(tmp_path, self.tree(is_impossible=True))["answers"][0]["text"] == []

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda tree: [], "is not in SQuAD's format"),
            (lambda tree: {"data": [{}]}, r"data\[0\]: expected 'paragraphs'"),
            (lambda tree: {"data": [{"paragraphs": [{"context": "x"}]}]}, "expected 'qas'"),
            (lambda tree: {"data": [{"paragraphs": 5}]}, r"data\[0\]: expected a list of 'paragraphs'.*, got int"),
            (lambda tree: {"data": [{"paragraphs": [{"context": "x", "qas": 5}]}]}, "expected a list of 'qas'"),
        ],
    )
    def test_mistakes(self, tmp_path, change, message):
        with pytest.raises(ValueError, match=message):
            self.read(tmp_path, change(self.tree()))

    def test_a_start_that_is_wrong(self, tmp_path):
        tree = self.tree(answers=[{"text": "Ada", "answer_start": 3}])
        with pytest.raises(ValueError, match="question q1, column 'answers': 'Ada' is not in column 'context'"):
            self.read(tmp_path, tree)
