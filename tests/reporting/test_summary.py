import math

import pytest

from sibert.reporting import load_run, summarise
from tests.reporting.run_writer import default_records, eval_record, train_record, write_run


def test_the_summary_by_hand(tmp_path):
    run = load_run(write_run(tmp_path / "run"))
    summary = summarise(run)
    assert (summary.model, summary.optimizer, summary.size) == ("sibert", "clipped_sgd", "tiny")
    assert summary.parameters == 123456
    assert summary.steps == summary.planned_steps == summary.validation_step == 200
    assert summary.tokens_seen == 200 * 4 * 16
    assert summary.train_loss == run.train[-1]["loss"]  # 5 % of 20 entries is one
    assert summary.validation_loss == run.evaluations[-1]["mlm_loss"]
    assert summary.below_unigram == pytest.approx(6.25 - run.evaluations[-1]["mlm_loss"])
    assert summary.wall_seconds == 20.5
    assert summary.tokens_per_second == 8105.0
    assert summary.peak_memory_bytes == 300 << 20
    assert summary.optimizer_state_bytes == 9 << 20
    assert summary.skipped_steps == 0


def test_the_train_loss_is_a_mean_of_the_last_twentieth(tmp_path):
    records = [train_record(step, loss=float(step)) for step in range(1, 101)]
    assert summarise(load_run(write_run(tmp_path / "run", records))).train_loss == 98.0


def test_tokens_count_micro_batches_and_processes(tmp_path):
    run = write_run(tmp_path / "run", recipe={"accumulation": 3}, environment={"processes": 2})
    assert summarise(load_run(run)).tokens_seen == 200 * 4 * 16 * 3 * 2


def test_an_optimizer_left_open_is_the_default_of_the_model(tmp_path):
    run = write_run(tmp_path / "run", recipe={"model": "bert", "optimizer": None})
    assert summarise(load_run(run)).optimizer == "adamw"


def test_what_a_run_does_not_say_is_none(tmp_path):
    path = write_run(tmp_path / "run", [{"kind": "train", "step": 1}], environment={})
    (path / "recipe.json").write_text("{}")
    summary = summarise(load_run(path))
    assert summary.steps == 1
    known = {name for name, value in vars(summary).items() if value is not None}
    assert known == {"steps", "skipped_steps"}
    assert summary.below_unigram is None


def test_a_recipe_of_impossible_counts_does_not_say_them(tmp_path):
    run = load_run(write_run(tmp_path / "run", recipe={"steps": 10**400, "batch_size": math.inf}))
    assert (summarise(run).planned_steps, summarise(run).tokens_seen) == (None, None)


def test_a_diverged_run_keeps_its_nan(tmp_path):
    records = [*default_records(), train_record(210, loss=float("nan")), eval_record(210, mlm_loss=None)]
    summary = summarise(load_run(write_run(tmp_path / "run", records)))
    assert math.isnan(summary.train_loss)
    assert math.isnan(summary.validation_loss)


def test_skipped_steps_are_counted_once_for_all_groups(tmp_path):
    groups = {"encoder": {"param_norm": 1.0, "skipped_steps": 3}, "other": {"param_norm": 1.0, "skipped_steps": 3}}
    assert summarise(load_run(write_run(tmp_path / "run", [train_record(10, groups=groups)]))).skipped_steps == 3
