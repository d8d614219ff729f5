"""A run that was stopped, by whatever, and resumed is the run that was not stopped."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from sibert.training import resumable_trainer, run_pretraining
from sibert.training.callbacks import SignalCallback
from sibert.training.checkpoints import latest_checkpoint
from sibert.training.pretrain import PretrainTrainer
from sibert.training.run_directory import RunDirectory
from tests.training.runs import assert_same_run, losses, records


class StopError(Exception):
    """Stands for a crash."""


def stop(*args, **kwargs):
    """Crash."""
    raise StopError


def stop_after(monkeypatch, step):
    """Make training crash after a step, with whatever it had saved by then."""
    original = PretrainTrainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step == step:
            raise StopError
        return original(self, *args, **kwargs)

    monkeypatch.setattr(PretrainTrainer, "training_step", training_step)


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({"dropout": 0.1}, 7),
        ({"dropout": 0.1, "steps": 40, "save_every": 7, "log_every": 3, "eval_every": 10}, 33),
        ({"steps": 16, "save_every": 3, "accumulation": 3, "dropout": 0.1}, 11),
        ({"model": "bert", "dropout": 0.1}, 8),
        ({"next_sentence": True, "save_every": 1}, 9),
        ({"workers": 2, "steps": 30, "save_every": 11}, 25),
        ({"streaming": True}, 8),
        # Epochs of nine steps and of five.
        ({"streaming": True, "batch_size": 32, "steps": 30, "save_every": 11}, 25),
        ({"streaming": True, "batch_size": 16, "accumulation": 4, "workers": 2, "steps": 14, "save_every": 6}, 13),
        ({"precision": "bf16", "dropout": 0.1}, 6),
    ],
    ids=str,
)
def test_crash_and_resume_change_no_bit(changes, step, recipe, tmp_path, monkeypatch):
    chosen = recipe(**changes)
    run_pretraining(chosen, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        with pytest.raises(StopError):
            run_pretraining(chosen, tmp_path / "stopped")
    torch.manual_seed(999)  # whatever the new process does before must not matter
    run_pretraining(chosen, tmp_path / "stopped", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("changes", [{}, {"streaming": True}, {"steps": 10, "save_every": 10}], ids=str)
def test_a_run_that_is_resumed_from_its_last_step_takes_no_further_one(changes, recipe, tmp_path, monkeypatch):
    chosen = recipe(**{"steps": 12, "save_every": 4, "schedule": "constant"} | changes)
    run_pretraining(chosen, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "save_model", stop)
        with pytest.raises(StopError):
            run_pretraining(chosen, tmp_path / "stopped")
    run_pretraining(chosen, tmp_path / "stopped", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_a_crash_between_two_checkpoints_leaves_one_of_them(recipe, tmp_path, monkeypatch):
    chosen = recipe(keep_checkpoints=1)
    run_pretraining(chosen, tmp_path / "whole")
    with monkeypatch.context() as patch:
        mark = resumable_trainer.mark_complete
        patch.setattr(
            resumable_trainer, "mark_complete", lambda path: stop() if path.name == "checkpoint-10" else mark(path)
        )
        with pytest.raises(StopError):
            run_pretraining(chosen, tmp_path / "stopped")
    assert latest_checkpoint(tmp_path / "stopped" / "checkpoints")[0].name == "checkpoint-5"
    run_pretraining(chosen, tmp_path / "stopped", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    assert [path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()] == ["checkpoint-12"]


def test_a_run_does_not_go_on_with_other_data(recipe, tmp_path, text_folder, monkeypatch):
    folder = tmp_path / "texts"
    shutil.copytree(text_folder, folder)
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(StopError):
            run_pretraining(recipe(data=[str(folder)]), tmp_path / "stopped")
    (folder / "3.txt").write_text("the quick brown fox\n")
    with pytest.raises(ValueError, match=r"have changed since it began: (characters|train) .* instead of .*corpus"):
        run_pretraining(recipe(data=[str(folder)]), tmp_path / "stopped", resume=True)
    assert (tmp_path / "stopped" / "checkpoints" / "checkpoint-5").exists()


def test_crash_before_the_first_checkpoint_starts_again(recipe, tmp_path, monkeypatch):
    run_pretraining(recipe(), tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(StopError):
            run_pretraining(recipe(), tmp_path / "stopped")
    run_pretraining(recipe(), tmp_path / "stopped", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_a_signal_saves_and_tells_how_to_resume(recipe, tmp_path, monkeypatch, capsys):
    chosen = recipe(steps=20, save_every=20, log_every=4)
    run_pretraining(chosen, tmp_path / "whole")
    original = SignalCallback.on_step_end

    def signalled(self, args, state, control, **kwargs):
        if state.global_step == 7 and self.received is None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
        return original(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SignalCallback, "on_step_end", signalled)
        assert run_pretraining(chosen, tmp_path / "stopped") == 128 + signal.SIGTERM
    assert "--resume" in capsys.readouterr().out
    assert (tmp_path / "stopped" / "checkpoints" / "checkpoint-7" / "complete.json").exists()
    assert run_pretraining(chosen, tmp_path / "stopped", resume=True) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.slow
def test_a_process_killed_at_a_random_moment(recipe, tmp_path):
    chosen = recipe(steps=60, save_every=4, dropout=0.1)
    run_pretraining(chosen, tmp_path / "whole")
    (tmp_path / "stopped").mkdir()
    script = (
        "import sys; from pathlib import Path; from sibert.training import PretrainRecipe, run_pretraining; "
        "run_pretraining(PretrainRecipe.from_json(Path(sys.argv[1])), Path(sys.argv[2]))"
    )
    recipe_file = tmp_path / "recipe.json"
    recipe_file.write_text(chosen.to_json())
    process = subprocess.Popen([sys.executable, "-c", script, str(recipe_file), str(tmp_path / "stopped")])
    moment = random.SystemRandom().randrange(5, 50)
    print(f"killed after step {moment}")  # shown when the test fails
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    while process.poll() is None:
        if metrics.exists() and metrics.read_text().count('"train"') >= moment:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    process.wait()
    assert not (tmp_path / "stopped" / "model.safetensors").exists()
    run_pretraining(chosen, tmp_path / "stopped", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_the_records_after_the_checkpoint_are_written_again_once(recipe, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        with pytest.raises(StopError):
            run_pretraining(recipe(), tmp_path / "stopped")
    assert list(losses(tmp_path / "stopped")) == list(range(1, 10))
    run_pretraining(recipe(), tmp_path / "stopped", resume=True)
    assert [record["step"] for record in records(tmp_path / "stopped")] == list(range(1, 13))
