"""`sibert finetune`, `evaluate`, `predict`: every mistake gets one sentence, and nothing is left behind."""

import json

import pytest

from tests import downstream


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return downstream.pretrained(tmp_path_factory.mktemp("models") / "sibert")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return downstream.own_files(tmp_path_factory.mktemp("data") / "files", "classification")


@pytest.fixture
def rows(tmp_path):
    def write(*lines, name="train.csv"):
        file = tmp_path / name
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return file

    return write


GOOD = [f"{text},{('bad', 'good')[label]}" for text, label in downstream.sentiment(20)]
QUICK = ("--epochs", "1", "--device", "cpu")


def test_the_whole_way(model, data, tmp_path, run):
    out = tmp_path / "run"
    status, shown, _ = run(
        "finetune", model, "--task", "classification", "--data", data, "--baselines", "--out", out, *QUICK
    )
    assert status == 0
    for words in (
        "24 train, 10 validation",
        "clipped_sgd",
        "majority: accuracy 50.0",
        "bag of words: accuracy",
        "try: sibert predict",
    ):
        assert words in shown
    status, shown, _ = run("evaluate", out, "--output", tmp_path / "scores.json", "--task", "classification")
    assert status == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["validation"] == pytest.approx(json.loads((out / "results.json").read_text())["scores"]["validation"])
    assert f"{scores['validation']['accuracy']:.4f}" in shown
    status, shown, _ = run("cite", out)
    assert status == 0
    assert "2202.00980" in shown
    status, shown, _ = run("predict", out, "--input", data / "validation.csv", "--output", tmp_path / "labels.tsv")
    assert (status, shown) == (0, f"10 rows predicted; wrote {tmp_path / 'labels.tsv'}\n")


def test_what_a_user_should_know_is_said(model, rows, tmp_path, run):
    long = "film " * 60
    file = rows("text,label", *GOOD, *GOOD[:6], f"{long},good")
    status, shown, _ = run(
        "finetune", model, "--task", "classification", "--data", file, "--out", tmp_path / "run", *QUICK
    )
    assert status == 0
    for words in (
        "rows of train are held out",
        "repeat an earlier one",
        "are longer than 48 tokens and were cut (--length)",
    ):
        assert words in shown


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["text,label", "good,1", ",0"], "train.csv, row 3, column 'text': the text is empty"),
        (["text,label", "good,1", "bad,"], "train.csv, row 3, column 'label': expected a label"),
        (["text,label", "good,1", "fine,1"], "has one label alone ('1' in column 'label')"),
        (["text,kind", "good,1", "bad,0"], "column 'label': the column is missing; columns found: text, kind"),
        (["words,label", "good,1", "bad,0"], "no column 'text'; columns found: words, label"),
        (["text,label", "good,1,2"], "row 2: 3 values, expected 2"),
        (["text,label"], "has no rows"),
        ([], "is empty"),
    ],
)
def test_wrong_rows(lines, message, model, rows, data, tmp_path, run):
    file = rows(*lines)
    out = tmp_path / "run"
    words = ("--task", "classification", "--data", file, "--validation", data / "validation.csv", "--out", out)
    status, _, err = run("finetune", model, *words)
    assert status == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not out.exists()


def test_a_label_that_training_never_saw(model, rows, tmp_path, run):
    train = rows("text,label", *GOOD)
    held = rows("text,label", "film,good", "story,unclear", name="held.csv")
    words = ("--task", "classification", "--data", train, "--validation", held, "--out", tmp_path / "run")
    status, _, err = run("finetune", model, *words)
    assert status == 1
    assert "held.csv, row 3, column 'label': 'unclear' is none of the labels that the model knows: bad, good" in err


def test_a_number_that_is_none(model, rows, tmp_path, run):
    file = rows("text,label", "film,1.5", "story,nan", "music,2")
    status, _, err = run("finetune", model, "--task", "regression", "--data", file, "--out", tmp_path / "run")
    assert status == 1
    assert "row 3, column 'label': expected a finite number, got 'nan'" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give a model and a task"),
        (("{model}",), "give a model and a task"),
        (("{model}", "--task", "nonsense"), "there is no task 'nonsense'; tasks are cola"),
        (("{model}", "--task", "classification"), "is for your own files: name them by --data"),
        (("{model}", "--task", "mnli"), "there is no network; give its official files by --data"),
        (("{model}", "--task", "mnli", "--data", "{empty}"), "has none of the files of mnli: expected train.tsv"),
        (("{empty}", "--task", "classification", "--data", "{data}"), "has no config.json"),
        (("{model}", "--task", "classification", "--data", "{data}", "--lr", "1e-3"), "clipped_sgd takes intrinsic_lr"),
        (("{model}", "--task", "classification", "--data", "{data}", "--length", "99"), "reads rows of 8 to 48 tokens"),
        (
            ("{model}", "--task", "classification", "--data", "{data}", "--columns", "a,b"),
            "reads 1 columns (text), got a, b",
        ),
        (
            ("{model}", "--task", "classification", "--data", "{data}", "--optimizer", "magic"),
            "optimizer must be one of",
        ),
        (("{model}", "--task", "classification", "--data", "{data}", "--grid", "x=1"), "--grid takes NAME=VALUE"),
        (("{model}", "--task", "classification", "--data", "{data}", "--epochs", "0"), "epochs must be positive"),
        (("{model}", "--task", "classification", "--resume", "{empty}"), "--resume takes no other option, got"),
        (("--resume", "{empty}"), "is not a fine-tuning run: it has no finetune.json"),
    ],
)
def test_mistakes(words, message, model, data, tmp_path, run):
    empty = tmp_path / "empty"
    empty.mkdir()
    out = () if "--resume" in words else ("--out", tmp_path / "run")
    status, _, err = run("finetune", *(word.format(model=model, data=data, empty=empty) for word in words), *out)
    assert status == 1
    assert err.startswith("error: ")
    assert message in err
    assert not (tmp_path / "run").exists()


def test_an_existing_folder_is_not_written_into(model, data, tmp_path, run):
    (tmp_path / "kept").write_text("")
    status, _, err = run("finetune", model, "--task", "classification", "--data", data, "--out", tmp_path)
    assert status == 1
    assert "exists and is not empty" in err
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("evaluate", "{model}"), "is no fine-tuned run (it has no task.json)"),
        (("evaluate", "{run}", "--task", "mnli"), "is fine-tuned for classification, not for mnli"),
        (("evaluate", "{run}", "--split", "nothing"), "there is no split 'nothing'; there are train, validation"),
        (("evaluate", "{run}", "--data", "{data}", "--split", "test"), "has no split test; it has train, validation"),
        (("predict", "{run}", "--input", "{model}/nothing.csv", "--output", "{out}.csv"), "nothing.csv does not exist"),
        (("predict", "{run}", "--input", "{model}", "--output", "{out}.csv"), "is a folder: give a file"),
        (("predict", "{run}", "--input", "{data}/train.csv", "--output", "{out}.txt"), "must end in one of"),
        (
            ("predict", "{run}", "--input", "{data}/train.csv", "--output", "{out}.csv", "--columns", "x"),
            "no column 'x'",
        ),
    ],
)
def test_mistakes_of_evaluation(words, message, model, data, finetuned, tmp_path, run):
    names = {"model": model, "data": data, "run": finetuned, "out": tmp_path / "out"}
    status, _, err = run(*(word.format(**names) for word in words))
    assert status == 1
    assert err.startswith("error: ")
    assert message in err
    assert not list(tmp_path.glob("out*"))


@pytest.fixture(scope="module")
def finetuned(model, data, tmp_path_factory):
    from rich.console import Console

    from sibert.training import FinetuneRecipe, run_finetuning

    folder = tmp_path_factory.mktemp("runs") / "run"
    recipe = FinetuneRecipe(model=str(model), task="classification", data=str(data), epochs=1.0, device="cpu")
    run_finetuning(recipe, folder, console=Console(quiet=True))
    return folder
