"""Every mistake gets one sentence and a non-zero exit status; nothing is half-written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sibert.training.checkpoints import mark_complete


@pytest.fixture
def text_folder(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "the",
        "lazy",
        "dog",
        "while",
        "seven",
        "wizards",
        "pack",
        "their",
        "boxes",
    ]
    for number in range(40):
        turned = words[number % 7 :] + words[: number % 7]
        (folder / f"{number}.txt").write_text(" ".join(turned * 12) + f" number {number}.\n")
    return folder


SMALL = [
    "--size",
    "nano",
    "--steps",
    "2",
    "--vocab-size",
    "300",
    "--seq-length",
    "32",
    "--batch-size",
    "4",
    "--device",
    "cpu",
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SIBERT_CACHE", str(tmp_path / "cache"))


def assert_one_sentence(result, *parts):
    status, _, err = result
    assert status not in (0, None)
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in err
    for part in parts:
        assert part.lower() in err.lower(), err


WRONG_OPTIONS = {
    "unknown size": (["--size", "huge"], ["size", "huge", "base"]),
    "unknown model": (["--model", "gpt"], ["model", "gpt", "sibert"]),
    "unknown optimizer": (["--optimizer", "magic"], ["optimizer", "magic", "adamw"]),
    "unknown schedule": (["--schedule", "zigzag"], ["schedule", "cosine"]),
    "unknown option": (["--stepz", "3"], ["stepz"]),
    "word for a number": (["--steps", "many"], ["--steps", "integer"]),
    "no steps": (["--steps", "0"], ["steps", "at least 1"]),
    "negative learning rate": (["--lr", "-1", "--weight-decay", "0.1"], ["lr", "positive"]),
    "learning rate alone": (["--lr", "0.1"], ["lr", "weight_decay"]),
    "both kinds of rate": (
        ["--lr", "0.1", "--weight-decay", "0.1", "--intrinsic-lr", "0.01"],
        ["intrinsic_lr", "not both"],
    ),
    "clipping without decay": (["--lr", "0.1", "--weight-decay", "0"], ["weight_decay", "clip"]),
    "clip below one": (["--clip", "0.5"], ["clip"]),
    "clip no number": (["--clip", "often"], ["often", "none"]),
    "absolute clipping": (["--max-grad-norm", "1.0"], ["max_grad_norm", "scale invariance"]),
    "clipped_sgd of bert": (["--model", "bert", "--optimizer", "clipped_sgd"], ["clipped_sgd", "scale-invariant"]),
    "mask rate": (["--mask-rate", "1.5"], ["mask_rate", "1.5"]),
    "dropout": (["--dropout", "1"], ["dropout"]),
    "warm-up longer than the run": (["--warmup-steps", "9"], ["warmup_steps"]),
    "intrinsic rate too large": (["--intrinsic-lr", "1.5"], ["intrinsic_lr"]),
    "precision": (["--precision", "fp8"], ["precision", "bf16"]),
    "weight decay of nan": (["--model", "bert", "--weight-decay", "nan"], ["weight_decay", "finite"]),
    "negative clipping": (["--model", "bert", "--max-grad-norm", "-1"], ["max_grad_norm", "not negative"]),
    "seed": (["--seed", "4294967296"], ["seed", "2**32"]),
    "rate of a head that bert has not": (["--model", "bert", "--head-lr", "0.5"], ["head_lr", "clipped_sgd"]),
}


@pytest.mark.parametrize("name", WRONG_OPTIONS)
def test_wrong_options(name, run, text_folder, tmp_path):
    options, parts = WRONG_OPTIONS[name]
    out = tmp_path / "out"
    assert_one_sentence(run("pretrain", "--data", text_folder, *SMALL, *options, "--out", out), *parts)
    assert not (out / "model.safetensors").exists()


def broken_data(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    (tmp_path / "rows.jsonl").write_text('{"body": "no text column"}\n')
    (tmp_path / "one.txt").write_text("a single document " * 50)
    (tmp_path / "folder").mkdir()
    return {
        "missing path": ("nowhere/at/all", ["nowhere/at/all"]),
        "empty file": ("empty.txt", ["empty.txt"]),
        "binary file": ("binary.txt", ["binary.txt"]),
        "unsupported kind": ("image.png", ["image.png"]),
        "missing column": ("rows.jsonl", ["text", "body"]),
        "one document": ("one.txt", ["document"]),
        "empty folder": ("folder", ["folder"]),
        "hub without a network": ("somebody/some-corpus", ["somebody/some-corpus"]),
    }


@pytest.mark.parametrize(
    "name",
    [
        "missing path", "empty file", "binary file", "unsupported kind", "missing column", "one document",
        "empty folder", "hub without a network",
    ],
)  # fmt: skip
def test_data_that_cannot_be_used(name, run, tmp_path):
    value, parts = broken_data(tmp_path)[name]
    data = tmp_path / value if (tmp_path / value).exists() else value
    result = run("pretrain", "--data", data, *SMALL, "--out", tmp_path / "out")
    assert_one_sentence(result, *parts)
    assert not (tmp_path / "out").exists(), "the corrected command would be refused"


def test_too_little_text_for_a_batch(run, text_folder, tmp_path):
    result = run("pretrain", "--data", text_folder, *SMALL, "--batch-size", "5000", "--out", tmp_path / "out")
    assert_one_sentence(result, "fewer than the 5000 of a step")
    assert not (tmp_path / "out").exists()
    more = ["--batch-size", "50", "--accumulation", "100"]
    result = run("pretrain", "--data", text_folder, *SMALL, *more, "--out", tmp_path / "out")
    assert_one_sentence(result, "fewer than the 5000 of a step")


@pytest.mark.parametrize("value", ["no/such/tokenizer/here", "texts"])
def test_wrong_tokenizer(value, run, text_folder, tmp_path):
    value = str(text_folder) if value == "texts" else value
    result = run("pretrain", "--data", text_folder, *SMALL, "--tokenizer", value, "--out", tmp_path / "out")
    assert_one_sentence(result, "tokenizer", value)


def test_run_directory_that_exists_is_left_alone(run, text_folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    assert_one_sentence(run("pretrain", "--data", text_folder, *SMALL, "--out", out), "not empty", "--resume")
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_output_below_a_file(run, text_folder, tmp_path):
    (tmp_path / "file").write_text("")
    result = run("pretrain", "--data", text_folder, *SMALL, "--out", tmp_path / "file" / "run")
    assert_one_sentence(result, "cannot write", "--out")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk(run, text_folder, tmp_path, monkeypatch):
    from sibert.training import metrics

    def append_to_full_disk(self, record):
        with open("/dev/full", "w") as file:
            file.write(json.dumps(record) * 10_000)

    monkeypatch.setattr(metrics.MetricsFile, "append", append_to_full_disk)
    result = run("pretrain", "--data", text_folder, *SMALL, "--log-every", "1", "--out", tmp_path / "out")
    assert_one_sentence(result, "no space left")


def test_resume_of_what_is_no_run(run, tmp_path):
    assert_one_sentence(run("pretrain", "--resume", tmp_path), "not a run directory")


def test_resume_takes_no_other_option(run, tmp_path):
    assert_one_sentence(run("pretrain", "--resume", tmp_path, "--steps", "5"), "--resume", "--steps")


def test_resume_with_a_damaged_recipe(run, tmp_path):
    (tmp_path / "recipe.json").write_text("{")
    assert_one_sentence(run("pretrain", "--resume", tmp_path), "recipe.json", "JSON")
    (tmp_path / "recipe.json").write_text('{"stepz": 3}')
    assert_one_sentence(run("pretrain", "--resume", tmp_path), "unknown options", "stepz")


def test_fill_mask_mistakes(run, tmp_path):
    assert_one_sentence(run("fill-mask", tmp_path, "a [MASK]"), "no model")
    (tmp_path / "recipe.json").write_text("{}")
    assert_one_sentence(run("fill-mask", tmp_path, "a [MASK]"), "not finished", "--resume")


def test_report_mistakes(run, tmp_path):
    assert_one_sentence(run("report", tmp_path / "nowhere"), "nowhere")
    assert_one_sentence(run("report", tmp_path), "run")


def test_version_environment_and_help(run):
    status, out, _ = run("--version")
    assert (status, out.split()[0]) == (0, "sibert")
    status, out, _ = run("env")
    assert status == 0
    assert {"sibert", "torch", "device", "threads"} <= set(json.loads(out))
    status, out, _ = run("pretrain", "--help")
    assert status == 0
    assert "--intrinsic-lr" in out


def test_a_corrupt_checkpoint_is_passed_over_and_named(run, text_folder, tmp_path):
    out = tmp_path / "out"
    assert run("pretrain", "--data", text_folder, *SMALL, "--steps", "6", "--save-every", "2", "--out", out)[0] == 0
    for name in ("config.json", "model.safetensors"):
        (out / name).unlink()
    weights = out / "checkpoints" / "checkpoint-6" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    status, printed, _ = run("pretrain", "--resume", out)
    assert status == 0
    assert "checkpoint-6 is not used" in printed
    assert (out / "model.safetensors").exists()


def test_a_finished_run_is_not_resumed(run, text_folder, tmp_path):
    out = tmp_path / "out"
    assert run("pretrain", "--data", text_folder, *SMALL, "--out", out)[0] == 0
    assert_one_sentence(run("pretrain", "--resume", out), "finished")


def test_a_checkpoint_without_its_mark_is_not_whole(tmp_path):
    from sibert.training import latest_checkpoint

    for step in (10, 20):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")
    mark_complete(tmp_path / "checkpoint-10")
    latest, passed_over = latest_checkpoint(tmp_path)
    assert latest == tmp_path / "checkpoint-10"
    assert "not written to the end" in passed_over[0]
    (tmp_path / "checkpoint-10" / "model.safetensors").write_bytes(b"w3ights")
    assert latest_checkpoint(tmp_path)[0] is None


def test_module_entry_point_shows_no_traceback(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "sibert",
            "pretrain",
            "--data",
            str(tmp_path / "nowhere"),
            *SMALL,
            "--out",
            str(tmp_path / "o"),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "SIBERT_CACHE": str(tmp_path / "cache")},
        check=False,
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().startswith("error: ")
