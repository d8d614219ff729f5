"""The downstream study: corrections by hand, equal tuning, and runs that are found again."""

import json
import lzma

import finetuning
import pytest
from finetuning import CONTESTANTS, MODELS, PRETRAINING, Study, known_run, prepare, pretrained, run_folder
from scipy import stats
from summary import CONVERTED, DEFAULT, OURS, THEIRS, holm, paired, scores

from sibert.evaluation import task_named, task_rows
from sibert.training.finetune_recipe import DEFAULT_HEAD_LR, EQUILIBRIUM_TIMES
from tests import downstream


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.5, "b": 0.9}) == {"a": 1.0, "b": 1.0}


def test_all_have_as_many_settings_and_a_model():
    assert {len(one.settings) for one in CONTESTANTS.values()} == {4}
    assert {one.pretraining for one in CONTESTANTS.values()} == set(MODELS)
    assert {OURS, THEIRS, CONVERTED} <= set(CONTESTANTS)


def test_the_library_s_defaults_are_among_the_settings():
    assert DEFAULT in CONTESTANTS[OURS].settings
    assert {"D": EQUILIBRIUM_TIMES, "head_lr": DEFAULT_HEAD_LR} == DEFAULT


def test_the_better_of_a_model_s_runs_goes_on():
    def record(index, loss):
        return {"pretraining": "modernbert", "options": {**PRETRAINING, **MODELS["modernbert"][index]}, "loss": loss}

    assert pretrained("modernbert", [record(1, 3.5), record(0, 3.6)]) == run_folder("modernbert", 1)
    assert pretrained("modernbert", [record(1, 3.5), record(0, 3.4)]) == run_folder("modernbert", 0)
    assert known_run("modernbert", 0, [record(1, 3.5)]) is None


def test_the_best_setting_is_found_and_its_seeds_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(finetuning, "RESULTS", tmp_path / "results.jsonl")

    def record(name, setting, seed, value):
        return {
            "contestant": name,
            "task": "rte",
            "setting": setting,
            "seed": seed,
            "scores": {"validation": {"score": value}},
        }

    settings = CONTESTANTS[OURS].settings
    lines = [record(OURS, settings[0], 0, 0.5), record(OURS, settings[1], 0, 0.6), record(OURS, settings[1], 1, 0.8)]
    settings = CONTESTANTS[THEIRS].settings
    lines += [record(THEIRS, settings[2], 0, 0.55), record(THEIRS, settings[2], 1, 0.65)]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    study = Study({}, 1)
    assert scores(study, OURS, "rte") == pytest.approx([60, 80])
    rows = paired(study, OURS, THEIRS)
    p = stats.ttest_rel([60, 80], [55, 65]).pvalue
    assert rows == [["rte", "+10.0", f"{p:.3f}"], ["mean", "+10.0", ""]]


def test_the_proxies(tmp_path, monkeypatch):
    monkeypatch.setattr(finetuning, "WORK", tmp_path / "work")
    glue, qa = tmp_path / "glue", tmp_path / "qa"
    glue.mkdir()
    qa.mkdir()
    for name, task in (("SST-2", "sst2"), ("QNLI", "qnli"), ("CoLA", "cola")):
        downstream.glue(glue / name, task)
    for name in ("squadshifts_new_wiki", "squad1.1-dev"):
        paragraphs = [{"context": f"Number {k}.", "qas": []} for k in range(10)]
        with lzma.open(qa / f"{name}.json.xz", "wt") as file:
            json.dump({"data": [{"title": "", "paragraphs": paragraphs}]}, file)
    folders = prepare(glue, qa)
    splits = {name: list(rows) for name, rows in task_rows(task_named("qnli"), folders["qnli"]).items()}
    texts = [
        {(row.values["question"], row.values["sentence"]) for row in splits[name]} for name in ("train", "validation")
    ]
    assert not texts[0] & texts[1]
    assert len(texts[0] | texts[1]) == 16
    assert sorted(task_rows(task_named("sst2"), folders["sst2"])) == ["train", "validation"]
    for name, count in (("train-v1.1", 4), ("dev-v1.1", 2)):
        data = json.loads((folders["squad"] / f"{name}.json").read_text())["data"]
        assert len(data[0]["paragraphs"]) == count
