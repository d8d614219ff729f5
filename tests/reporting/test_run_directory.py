import json
import math
import re

import numpy as np
import pytest

from sibert.reporting import load_run
from tests.reporting.run_writer import default_records, eval_record, train_record, twin_record, write_run


def test_a_run_is_read_whole(tmp_path):
    run = load_run(write_run(tmp_path / "run"))
    assert run.name == "run"
    assert run.recipe["size"] == "tiny"
    assert run.environment["parameters"] == 123456
    assert len(run.train) == 20
    assert [record["step"] for record in run.evaluations] == [50, 100, 150, 200]
    assert run.invariant_groups == ("encoder",)
    assert run.notes == ()


def test_a_path_may_be_text_and_a_dot_gets_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(write_run(tmp_path / "run"))
    assert load_run(".").name == "run"


def test_curves_are_abscissa_and_ordinate(tmp_path):
    run = load_run(write_run(tmp_path / "run"))
    steps, norms = run.group_curve("encoder", "param_norm")
    np.testing.assert_array_equal(steps, np.arange(10, 210, 10))
    assert norms[0] == run.train[0]["groups"]["encoder"]["param_norm"]
    seconds, losses = run.evaluation_curve("mlm_loss", "loss", over="wall_seconds")
    assert seconds[0] == 5.5
    assert losses[0] == run.evaluations[0]["mlm_loss"]


def test_curves_of_absent_measurements_are_empty(tmp_path):
    run = load_run(write_run(tmp_path / "run", default_records(twin_record)))
    assert run.invariant_groups == ()
    assert len(run.group_curve("encoder", "param_norm")[0]) == 0
    assert len(run.train_curve("no such key")[0]) == 0


def test_the_masked_lm_loss_is_preferred_to_the_sum_of_both_losses(tmp_path):
    run = load_run(write_run(tmp_path / "run", [train_record(10, loss=5.7, mlm_loss=5.0, nsp_loss=0.7)]))
    assert run.train_curve("mlm_loss", "loss")[1].tolist() == [5.0]


@pytest.mark.parametrize("tail", ['{"kind": "train", "st', '{"kind": "train", "st\n', "\x00\x00\n"])
def test_a_half_written_last_line_is_left_out_with_a_note(tmp_path, tail):
    run = load_run(write_run(tmp_path / "run", tail=tail))
    assert len(run.train) == 20
    assert any("line 25" in note and "half-written" in note for note in run.notes)


def test_a_character_cut_in_half_is_a_half_written_line(tmp_path):
    path = write_run(tmp_path / "run")
    with (path / "metrics.jsonl").open("ab") as file:
        file.write('{"kind": "é'.encode()[:-1])
    assert "half-written" in load_run(path).notes[0]


def test_a_last_line_that_is_whole_needs_no_line_end(tmp_path):
    run = load_run(write_run(tmp_path / "run", tail=json.dumps(train_record(210))))
    assert run.train[-1]["step"] == 210
    assert run.notes == ()


def test_a_corrupt_line_elsewhere_is_an_error_that_names_file_and_line(tmp_path):
    path = write_run(tmp_path / "run")
    lines = (path / "metrics.jsonl").read_text().splitlines()
    lines[2] = lines[2][:20]
    (path / "metrics.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=re.escape(f"{path / 'metrics.jsonl'}:3: not valid JSON")):
        load_run(path)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([1, 2], "expected a JSON object, got list"),
        ({"step": 3}, 'no "kind"'),
        ({"kind": "train"}, 'no whole-numbered "step", got None'),
        ({"kind": "train", "step": "3"}, "got '3'"),
        ({"kind": "eval", "step": 3, "loss": "low"}, "\"loss\" must be a number or null, got 'low'"),
        ({"kind": "eval", "step": 3, "loss": 10**400}, '"loss" must be a number of float64, got a whole number'),
        ({"kind": "train", "step": 10**400}, '"step" must be a number of float64, got a whole number'),
        ({"kind": "train", "step": 2**63}, '"step" must be a count below 2^63 or null, got 9.22337e+18'),
        ({"kind": "train", "step": 3, "tokens_seen": math.inf}, '"tokens_seen" must be a count below 2^63 or null'),
        ({"kind": "train", "step": 3, "groups": {"a": {"skipped_steps": math.nan}}}, '"a.skipped_steps" must be'),
        ({"kind": "train", "step": 3, "groups": [1]}, '"groups" must map'),
        ({"kind": "train", "step": 3, "groups": {"encoder": {"eta": "x"}}}, "\"encoder.eta\" must be a number"),
    ],
)  # fmt: skip
def test_a_record_of_the_wrong_shape_is_an_error_that_names_file_and_line(tmp_path, record, message):
    path = write_run(tmp_path / "run", [train_record(1), record, train_record(4)])
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_run(path)
    assert str(caught.value).startswith(f"{path / 'metrics.jsonl'}:2: ")


def test_unknown_kinds_of_record_are_passed_over(tmp_path):
    run = load_run(write_run(tmp_path / "run", [{"kind": "note", "text": "hello"}, train_record(10)]))
    assert len(run.train) == 1


def test_null_is_a_number_that_was_not_finite(tmp_path):
    run = load_run(write_run(tmp_path / "run", [train_record(10, loss=None), train_record(20, loss=float("nan"))]))
    assert np.isnan(run.train_curve("loss")[1]).all()


def test_records_written_again_after_a_resume_count_once(tmp_path):
    records = [train_record(10), train_record(20), eval_record(20), train_record(30, loss=99.0), eval_record(30)]
    again = [train_record(20), eval_record(20), train_record(30, loss=1.0)]
    run = load_run(write_run(tmp_path / "run", records + again))
    assert [record["step"] for record in run.train] == [10, 20, 30]
    assert [record["step"] for record in run.evaluations] == [20]
    assert run.train[-1]["loss"] == 1.0
    assert "4 log entries" in run.notes[0]


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no run directory at .*absent"):
        load_run(tmp_path / "absent")


def test_a_file_is_no_run_directory(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError, match="is a file; expected a run directory"):
        load_run(tmp_path / "file")


def test_a_folder_without_recipe_is_no_run_directory(tmp_path):
    with pytest.raises(ValueError, match=r"is not a run directory: it has no recipe\.json"):
        load_run(tmp_path)


@pytest.mark.parametrize("content", [None, "", "\n\n", '{"kind": "tra', '{"kind": "other"}\n'])
def test_no_metrics_yet(tmp_path, content):
    path = write_run(tmp_path / "run")
    (path / "metrics.jsonl").unlink()
    if content is not None:
        (path / "metrics.jsonl").write_text(content)
    with pytest.raises(ValueError, match="has no metrics yet"):
        load_run(path)


def test_a_damaged_recipe_is_named_with_its_line(tmp_path):
    path = write_run(tmp_path / "run")
    (path / "recipe.json").write_text('{\n"model": \n')
    with pytest.raises(ValueError, match=r"recipe\.json:3: not valid JSON"):
        load_run(path)
    (path / "recipe.json").write_text("[]")
    with pytest.raises(ValueError, match=r"recipe\.json: expected a JSON object, got list"):
        load_run(path)
    (path / "recipe.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match=r"recipe\.json: not UTF-8 text \(byte 7\)"):
        load_run(path)


@pytest.mark.parametrize("value", ["[" * 5000 + "]" * 5000, "1" * 5000])
def test_what_json_cannot_hold_is_named_with_its_file(tmp_path, value):
    path = write_run(tmp_path / "run")
    (path / "recipe.json").write_text(f'{{"a": {value}}}')
    with pytest.raises(ValueError, match=r"recipe\.json: cannot be read \("):
        load_run(path)
    path = write_run(tmp_path / "other", tail=f'{{"kind": {value}}}\n' + json.dumps(train_record(210)))
    with pytest.raises(ValueError, match=r"metrics\.jsonl:25: not valid JSON"):
        load_run(path)


def test_a_missing_environment_leaves_a_note(tmp_path):
    path = write_run(tmp_path / "run")
    (path / "environment.json").unlink()
    run = load_run(path)
    assert run.environment == {}
    assert "environment.json" in run.notes[0]
