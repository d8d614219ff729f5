"""Rows from folders, files, the hub and this Python's library; what cannot be found is said in one sentence."""

import ast

import pytest

from sibert.evaluation import task_named
from sibert.evaluation.docstrings import _gives, _own, docstring_rows
from sibert.evaluation.sources import held_out, task_rows
from sibert.evaluation.tables import Row
from tests import downstream


class TestFolders:
    def test_official_files_also_one_level_up(self, tmp_path):
        downstream.glue(tmp_path / "RTE", "rte")
        for folder in (tmp_path, tmp_path / "RTE"):
            splits = task_rows(task_named("rte"), folder)
            assert sorted(splits) == ["train", "validation"]
            assert len(list(splits["train"])) == 16

    @pytest.mark.parametrize("version", ["1.1", "2.0"])
    def test_squad(self, version, tmp_path):
        folder = downstream.squad(tmp_path / "data", version)
        task = task_named("squad" if version == "1.1" else "squad2")
        assert sorted(task_rows(task, folder)) == ["train", "validation"]
        alone = task_rows(task, folder / f"train-v{version}.json", {"validation": folder / f"dev-v{version}.json"})
        assert len(list(alone["validation"])) == (12 if version == "1.1" else 18)

    def test_files_that_are_called_like_the_splits(self, tmp_path):
        folder = downstream.own_files(tmp_path / "data", "classification")
        assert sorted(task_rows(task_named("classification"), folder)) == ["train", "validation"]

    def test_glue_s_task_from_a_user_s_own_tables(self, tmp_path):
        (tmp_path / "train.csv").write_text("sentence,label\ngood,positive\nbad,negative\n")
        (tmp_path / "validation.csv").write_text("sentence,label\ngood,positive\n")
        rows = list(task_rows(task_named("sst2"), tmp_path)["train"])
        assert [row.values["label"] for row in rows] == ["positive", "negative"]

    def test_a_backup_is_no_split(self, tmp_path):
        folder = downstream.own_files(tmp_path / "data", "classification")
        (folder / "train.backup.csv").write_text("text,label\nold,good\n")
        rows = list(task_rows(task_named("classification"), folder)["train"])
        assert {row.file.name for row in rows} == {"train.csv"}

    def test_two_files_for_one_split(self, tmp_path):
        folder = downstream.own_files(tmp_path / "data", "classification")
        (folder / "train.jsonl").write_text('{"text": "film", "label": "good"}\n')
        with pytest.raises(ValueError, match=r"has both train\.csv and train\.jsonl: keep one of them"):
            task_rows(task_named("classification"), folder)

    def test_a_single_file_of_glue_is_read_as_in_its_folder(self, tmp_path):
        downstream.write_lines(
            tmp_path / "dev.tsv", ("Quality", "#1 String", "#2 String"), (1, '"A', "B"), (0, "C", 'D"')
        )
        rows = list(task_rows(task_named("mrpc"), tmp_path / "dev.tsv")["train"])
        assert [row.values for row in rows] == [
            {"sentence1": '"A', "sentence2": "B", "label": "1"},
            {"sentence1": "C", "sentence2": 'D"', "label": "0"},
        ]
        downstream.write_lines(tmp_path / "train.tsv", ("x", 1, "", 'They "drank'), ("x", 0, "*", 'it dry".'))
        rows = list(task_rows(task_named("cola"), tmp_path / "train.tsv")["train"])
        assert [row.values["sentence"] for row in rows] == ['They "drank', 'it dry".']

    def test_a_user_s_own_tsv_for_a_task_of_glue_is_a_table(self, tmp_path):
        (tmp_path / "own.tsv").write_text('"sentence"\t"label"\n"two\nlines"\t1\n')
        rows = list(task_rows(task_named("sst2"), tmp_path / "own.tsv")["train"])
        assert [row.values["sentence"] for row in rows] == ["two\nlines"]

    def test_nothing_there(self, tmp_path):
        with pytest.raises(ValueError, match=r"expected train and validation as \.csv"):
            task_rows(task_named("classification"), tmp_path)
        with pytest.raises(ValueError, match=r"expected train-v1.1.json and dev-v1.1.json"):
            task_rows(task_named("squad"), tmp_path)
        with pytest.raises(ValueError, match="nowhere does not exist"):
            task_rows(task_named("squad"), tmp_path / "nowhere")

    def test_own_tasks_need_own_files(self):
        with pytest.raises(ValueError, match="classification is for your own files: name them by --data"):
            task_rows(task_named("classification"))


class TestHub:
    def test_offline_is_said_with_what_to_do(self):
        with pytest.raises(
            ValueError, match=r"nyu-mll/glue on the Hugging Face hub, cannot be read: there is no network.*--data"
        ):
            task_rows(task_named("mnli"))

    def test_columns_and_hidden_labels(self, monkeypatch):
        import datasets

        rows = [{"sentence": "good", "label": 1, "idx": 0}]
        found = {"train": rows, "validation": rows, "test": [{"sentence": "bad", "label": -1, "idx": 0}]}
        monkeypatch.setattr(datasets, "load_dataset", lambda name, configuration: found)
        splits = task_rows(task_named("sst2"))
        assert next(iter(splits["train"])).values["label"] == 1
        assert "label" not in next(iter(splits["test"])).values


class TestHeldOut:
    def rows(self, number):
        return [
            Row("file", f"row {i}", {"question": f"q{i}", "context": f"c{i // 4}", "text": f"t{i}"})
            for i in range(number)
        ]

    def test_a_share_that_does_not_depend_on_the_order(self, tmp_path):
        rows = self.rows(400)
        train, validation = held_out(task_named("classification"), rows)
        again = held_out(task_named("classification"), rows[::-1])
        assert {row.place for row in validation} == {row.place for row in again[1]}
        assert len(train) + len(validation) == 400
        assert 20 < len(validation) < 60

    def test_questions_about_a_context_stay_together(self):
        train, validation = held_out(task_named("qa"), self.rows(400))
        contexts = [{row.values["context"] for row in part} for part in (train, validation)]
        assert not contexts[0] & contexts[1]

    def test_too_few(self):
        with pytest.raises(ValueError, match="1 rows are too few to hold some out"):
            held_out(task_named("classification"), self.rows(1))


class TestDocstrings:
    def test_splits_share_no_module_and_labels_are_both_there(self):
        splits = {name: list(rows) for name, rows in docstring_rows().items()}
        assert not {row.file for row in splits["train"]} & {row.file for row in splits["validation"]}
        for rows in splits.values():
            assert {row.values["label"] for row in rows} == {"value", "nothing"}
            assert len(rows) > 200
        texts = [row.values["text"] for rows in splits.values() for row in rows]
        assert len(set(texts)) == len(texts)

    @pytest.mark.parametrize(
        ("body", "gives"),
        [
            ("return 1", True),
            ("return", False),
            ("return None", False),
            ("yield 1", True),
            ("pass", False),
            ("if x:\n        return 1", True),
            ("def g():\n        return 1", False),
            ("g = lambda: (yield)", False),
        ],
    )
    def test_a_label_is_read_off_the_function_itself(self, body, gives):
        function = ast.parse(f"def f(x):\n    {body}").body[0]
        assert any(_gives(node) for node in _own(function)) == gives
