"""Two processes see the global batches of one, and end within rounding of it."""

import os
import subprocess
import sys

import pytest
import torch

from sibert.training import run_pretraining
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
    for kind, key in (("train", "groups"), ("eval", "mlm_loss")):
        a, b = records(tmp_path / "one", kind)[-1][key], records(tmp_path / "two", kind)[-1][key]
        a, b = (a["encoder"]["grad_norm"], b["encoder"]["grad_norm"]) if kind == "train" else (a, b)
        assert b == pytest.approx(a, rel=1e-3)
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(a[name], b[name], rtol=1e-2, atol=1e-4) for name in a)
