"""Two processes see the global batches of one, and end within rounding of it."""

import os
import subprocess
import sys

import pytest
import torch

from sibert.training import FinetuneRecipe, run_finetuning, run_pretraining
from sibert.training.finetune import read_results
from tests import downstream
from tests.training.runs import losses, records, weights


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [False, True], ids=["blocks", "pairs"])
def test_two_processes_agree_with_one(pairs, recipe, tmp_path):
    chosen = recipe(steps=6, batch_size=8, save_every=3, whole_word=True, next_sentence=pairs, initial_scale=1.0)
    run_pretraining(chosen, tmp_path / "one")
    words = [
        "pretrain", "--data", *chosen.data, "--vocab-size", "300", "--seq-length", "32", "--validation-fraction", "0.2",
        "--size", "nano", "--steps", "6", "--batch-size", "4", "--log-every", "1", "--eval-every", "6",
        "--save-every", "3", "--device", "cpu", "--whole-word",
        "--tokenizer", str(tmp_path / "one" / "tokenizer"), "--out", str(tmp_path / "two"),
    ]  # fmt: skip
    words += ["--next-sentence"] if pairs else []
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc_per_node",
            "2",
            "--standalone",
            "-m",
            "sibert",
            *words,
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert list(two.values()) == pytest.approx(list(one.values()), rel=1e-4)
    a, b = (records(tmp_path / run, "eval")[-1]["mlm_loss"] for run in ("one", "two"))
    assert b == pytest.approx(a, rel=1e-3)
    # The norm that clipping sees is that of the global gradient. Later steps are left out: a row of ReLU attention with
    # barely positive scores has a gradient like 1/score, where rounding shows as a percent.
    first = {run: [record["groups"] for record in records(tmp_path / run)[:3]] for run in ("one", "two")}
    for one_step, two_step in zip(first["one"], first["two"], strict=True):
        norms = {group: values["grad_norm"] for group, values in one_step.items() if "grad_norm" in values}
        assert {group: two_step[group]["grad_norm"] for group in norms} == pytest.approx(norms, rel=1e-4)
    # Six steps turn the encoder by a tenth of a radian; what rounding turned is a hundred times less.
    a, b = (torch.cat([w.flatten() for w in weights(tmp_path / run).values()]) for run in ("one", "two"))
    assert (a - b).norm() < 1e-3 * a.norm()


@pytest.mark.slow
def test_two_processes_fine_tune_as_one(tmp_path, quiet):
    """Half of all rows on each of two processes are what all of them are on one, in whatever order they come."""
    model = downstream.pretrained(tmp_path / "model")
    data = downstream.glue(tmp_path / "SST-2", "sst2")
    same = {"model": str(model), "task": "sst2", "data": str(data), "dropout": 0.0, "device": "cpu"}
    chosen = FinetuneRecipe(**same, epochs=4.0, batch_size=24)
    run_finetuning(chosen, tmp_path / "one", console=quiet)
    words = ["finetune", str(model), "--task", "sst2", "--data", str(data), "--epochs", "4", "--batch-size", "12"]
    words += ["--dropout", "0"]
    words += ["--device", "cpu", "--out", str(tmp_path / "two")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m", "sibert"]
    done = subprocess.run(
        [*launcher, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("saved the model") == 1
    one, two = (read_results(tmp_path / name) for name in ("one", "two"))
    assert two["steps"] == one["steps"] == 4
    a, b = (torch.cat([w.flatten() for w in weights(tmp_path / name).values()]) for name in ("one", "two"))
    before = weights(model)
    after = weights(tmp_path / "one")
    moved = torch.cat([(after[name] - before[name]).flatten() for name in before.keys() & after.keys()]).norm()
    assert (a - b).norm() < 1e-3 * moved
