"""Files of predictions: in order, in the leaderboards' formats, resumed where they stopped, never half-written."""

import csv
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from sibert.evaluation import examples_of, prediction_files, task_named
from sibert.evaluation.prediction_files import predict_file
from sibert.evaluation.predictor import Predictor
from sibert.evaluation.sources import task_rows
from sibert.evaluation.tokenization import Tokenization
from sibert.models import SibertForMaskedLM, SibertForQuestionAnswering, SibertForSequenceClassification
from tests import downstream


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return downstream.pretrained(tmp_path_factory.mktemp("models") / "sibert")


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def predictor(folder, tokenizer):
    torch.manual_seed(1)
    model = SibertForSequenceClassification.from_pretrained(folder, num_labels=2).eval()
    return Predictor(model, Tokenization.of(model, tokenizer), task_named("classification"), ("bad", "good"), 4)


@pytest.fixture
def questions(folder, tokenizer):
    torch.manual_seed(1)
    model = SibertForQuestionAnswering.from_pretrained(folder).eval()
    return Predictor(model, Tokenization.of(model, tokenizer, 24, 8), task_named("squad"), None, 4)


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "texts.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        writer.writerows(
            (f"{text} {'film ' * (i % 7)}", "whatever") for i, (text, _) in enumerate(downstream.sentiment(23))
        )
    return file


def lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_order_and_contents(predictor, source, tmp_path):
    assert predict_file(predictor, source, tmp_path / "out.jsonl") == (23, 0)
    found = lines(tmp_path / "out.jsonl")
    assert [row["index"] for row in found] == list(range(23))
    with source.open(encoding="utf-8", newline="") as stream:
        texts = [row["text"] for row in csv.DictReader(stream)]
    for text, row in zip(texts, found, strict=True):  # padding beside others changes nothing
        alone = predictor.predict({"text": [text]})[0]
        assert row["label"] == alone["label"]
        assert row["score"] == pytest.approx(alone["score"], abs=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "texts.csv"]


@pytest.mark.parametrize(("end", "separator"), [("csv", ","), ("tsv", "\t")])
def test_tables_are_as_glue_s_leaderboard_wants_them(end, separator, predictor, source, tmp_path):
    predict_file(predictor, source, tmp_path / f"out.{end}")
    rows = [line.split(separator) for line in (tmp_path / f"out.{end}").read_text().splitlines()]
    assert rows[0] == ["index", "prediction"]
    assert [row[0] for row in rows[1:]] == [str(i) for i in range(23)]
    assert {row[1] for row in rows[1:]} <= {"bad", "good"}


def test_glue_s_test_file_has_a_prediction_for_every_line(folder, tokenizer, tmp_path):
    model = SibertForSequenceClassification.from_pretrained(folder, num_labels=2).eval()
    task = task_named("rte")
    predictor = Predictor(model, Tokenization.of(model, tokenizer), task, task.labels, 4)
    rows = [("index", "sentence1", "sentence2"), (0, '"A fine film', "great"), (1, 'the best" story', "lovely")]
    downstream.write_lines(tmp_path / "test.tsv", *rows, (2, "dull", "cold"))
    assert predict_file(predictor, tmp_path / "test.tsv", tmp_path / "out.tsv") == (3, 0)
    # Where a row is broken, the index of later ones would be wrong.
    downstream.write_lines(tmp_path / "test.tsv", *rows[:2], (1, "no second one"), *rows[2:])
    with pytest.raises(ValueError, match=r"test.tsv, row 3, column 'sentence2': the column is missing"):
        predict_file(predictor, tmp_path / "test.tsv", tmp_path / "out.tsv")


def test_an_empty_line_shifts_no_index(predictor, tmp_path):
    (tmp_path / "texts.csv").write_text("text\na fine film\n\na dull film\n")
    with pytest.raises(ValueError, match=r"texts.csv, row 3, column 'text': the text is empty"):
        predict_file(predictor, tmp_path / "texts.csv", tmp_path / "out.csv")


def test_answers_by_id(questions, tmp_path):
    data = downstream.squad(tmp_path / "data") / "dev-v1.1.json"
    predict_file(questions, data, tmp_path / "answers.json")
    predict_file(questions, data, tmp_path / "answers.jsonl")
    answers = json.loads((tmp_path / "answers.json").read_text())
    rows = lines(tmp_path / "answers.jsonl")
    assert answers == {row["id"]: row["answer"] for row in rows}
    contexts = {
        question["id"]: paragraph["context"]
        for article in json.loads(data.read_text())["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    }
    assert answers.keys() == contexts.keys()
    for row in rows:
        assert contexts[row["id"]][row["start"] : row["end"]] == row["answer"]


class TestGoingOn:
    @pytest.fixture(autouse=True)
    def small_chunks(self, monkeypatch):
        monkeypatch.setattr(prediction_files, "CHUNK", 5)

    def stop_after(self, predictor, source, target, rows):
        def stop(done):
            if done >= rows:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            predict_file(predictor, source, target, stop)

    def test_a_stopped_call_goes_on(self, predictor, source, tmp_path):
        predict_file(predictor, source, tmp_path / "whole.jsonl")
        target = tmp_path / "out.jsonl"
        self.stop_after(predictor, source, target, 10)
        assert not target.exists()
        with (tmp_path / "out.jsonl.partial").open("a") as file:
            file.write('{"index": 10, "lab')  # killed in mid-line
        assert predict_file(predictor, source, target) == (23, 10)
        assert target.read_text() == (tmp_path / "whole.jsonl").read_text()
        assert not (tmp_path / "out.jsonl.partial").exists()

    def test_but_not_with_another_file_or_model(self, predictor, source, tmp_path):
        target = tmp_path / "out.jsonl"
        self.stop_after(predictor, source, target, 10)
        source.write_text(source.read_text().replace("film", "story"))
        assert predict_file(predictor, source, target) == (23, 0)
        self.stop_after(predictor, source, target, 10)
        predictor.labels = ("good", "bad")
        assert predict_file(predictor, source, target) == (23, 0)
        self.stop_after(predictor, source, target, 10)
        with torch.no_grad():
            predictor.model.classifier.weight.neg_()  # as if trained again into the same folder
        assert predict_file(predictor, source, target) == (23, 0)

    def test_a_wrong_row_keeps_what_was_done_before(self, predictor, source, tmp_path):
        text = source.read_text()
        source.write_text(text + '"",x\n')
        with pytest.raises(ValueError, match=r"texts.csv, row 25, column 'text': the text is empty"):
            predict_file(predictor, source, tmp_path / "out.jsonl")
        assert len(lines(tmp_path / "out.jsonl.partial")) == 1 + 20


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.txt", "must end in one of .jsonl, .csv, .tsv, got out.txt"),
        ("out.json", "must end in one of .jsonl, .csv, .tsv, got out.json"),
        ("nowhere/out.csv", "there is no folder"),
        ("texts.csv", "are the same file"),
        ("folder.csv", "folder.csv is a folder: give the name of a file to write"),
    ],
)
def test_bad_outputs(name, message, predictor, source, tmp_path):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ValueError, match=message):
        predict_file(predictor, source, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.csv", "texts.csv"]


@pytest.mark.skipif(not Path("/sys").is_dir(), reason="needs a folder that takes no files, whoever asks")
def test_a_place_that_cannot_be_written_to(predictor, source):
    with pytest.raises(OSError, match=r"labels\.csv\.partial") as error:
        predict_file(predictor, source, "/sys/labels.csv")
    assert not isinstance(error.value, FileNotFoundError)


@pytest.mark.parametrize(
    ("text", "message"), [("text\n", "has no rows"), ("words\nfilm\n", "no column 'text'; columns found: words")]
)
def test_bad_inputs(text, message, predictor, tmp_path):
    file = tmp_path / "texts.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        predict_file(predictor, file, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


class TestPredictor:
    def test_a_threshold_on_the_evidence_for_no_answer(self, questions, tmp_path):
        data = downstream.squad(tmp_path / "data", "2.0")
        examples = examples_of(task_named("squad2"), task_rows(task_named("squad2"), data))
        columns = examples.splits["validation"][:]
        open_minded = questions.predict(columns)
        evidence = sorted(one["no_answer"] for one in open_minded)
        questions.no_answer_threshold = evidence[len(evidence) // 2]
        strict = questions.predict(columns)
        for one, other in zip(open_minded, strict, strict=True):
            none = one["no_answer"] > questions.no_answer_threshold
            assert other["answer"] == ("" if none else one["answer"])
            assert (other["start"] == -1) == none
            assert one["best"] == other["best"] == one["answer"]

    def test_the_best_threshold_is_the_best(self, questions, tmp_path):
        data = downstream.squad(tmp_path / "data", "2.0")
        examples = examples_of(task_named("squad2"), task_rows(task_named("squad2"), data))
        scores, predictions = questions.evaluate_and_predict(examples, "validation")
        found = []
        for threshold in sorted({-1e9, *(one["no_answer"] for one in predictions)}):
            questions.no_answer_threshold = threshold
            found.append(questions.evaluate(examples, "validation")["f1"])
        assert scores["best_f1"] == pytest.approx(max(found))
        questions.no_answer_threshold = scores["best_f1_threshold"]
        assert questions.evaluate(examples, "validation")["f1"] == pytest.approx(max(found))

    def test_scores_are_of_what_is_answered(self, questions, tmp_path):
        data = downstream.squad(tmp_path / "data")
        examples = examples_of(questions.task, task_rows(questions.task, data))
        columns = examples.splits["validation"][:]
        said = questions.predict(columns)
        right = [{"text": [one["answer"]], "answer_start": [one["start"]]} for one in said]
        assert questions.question_scores({"id": columns["id"], "answers": right}, said).exact == 100.0
        questions.no_answer_threshold = -1e9
        said = questions.predict(columns)
        assert {one["answer"] for one in said} == {""}
        assert questions.question_scores({"id": columns["id"], "answers": right}, said).exact == 0.0

    def test_what_is_not_finite_is_no_prediction(self, predictor):
        with torch.no_grad():
            predictor.model.classifier.bias.fill_(float("nan"))
        with pytest.raises(ValueError, match="the outputs of the model are not finite: its weights are damaged"):
            predictor.predict({"text": ["a fine film"]})

    def test_a_split_without_labels(self, predictor, tmp_path):
        (tmp_path / "test.csv").write_text("text\nfilm\n")
        rows = task_rows(predictor.task, None, {"test": tmp_path / "test.csv"})
        examples = examples_of(predictor.task, rows, predictor.labels)
        with pytest.raises(ValueError, match="the test split of classification has no labels"):
            predictor.evaluate(examples, "test")

    def test_a_folder_that_was_not_fine_tuned(self, folder):
        with pytest.raises(ValueError, match=r"is no fine-tuned run \(it has no task.json\)"):
            Predictor.load(folder)

    def test_a_head_that_belongs_to_another_run(self, predictor, tokenizer, tmp_path):
        predictor.model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        (tmp_path / "task.json").write_text(json.dumps(predictor.describe()))
        with pytest.raises(ValueError, match=r"has the labels LABEL_0, LABEL_1, but task.json says bad, good"):
            Predictor.load(tmp_path)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                '{"task": "classification"}',
                r"task.json lacks columns, target, labels, .*: it is not as sibert finetune",
            ),
            ("[]", "task.json lacks task"),
            ("{", "task.json is no valid JSON"),
        ],
    )
    def test_a_description_that_is_damaged(self, text, message, tmp_path):
        (tmp_path / "task.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            Predictor.load(tmp_path)

    def test_weights_that_are_cut_off(self, predictor, tokenizer, tmp_path):
        predictor.model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        (tmp_path / "task.json").write_text(json.dumps(predictor.describe()))
        weights = tmp_path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(ValueError, match=r"model.safetensors is damaged \(.*\): copy or save the model again"):
            Predictor.load(tmp_path)

    def test_mode_and_random_numbers_stay(self, predictor):
        predictor.model.train()
        state = torch.get_rng_state()
        predictor.predict({"text": ["a fine film"]})
        assert predictor.model.training
        assert torch.equal(torch.get_rng_state(), state)


def test_pretrained_folders_are_what_the_tests_think(folder):
    assert SibertForMaskedLM.from_pretrained(folder).config.max_position_embeddings == 48
