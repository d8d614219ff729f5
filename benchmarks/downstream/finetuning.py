"""Pre-trains several encoders on the same tokens and fine-tunes each on the same tasks, with the same tuning.

    python benchmarks/downstream/finetuning.py [PHASE ...] --text FILE ... --glue FOLDER --qa FOLDER [--workers 2]

Phases: `pretrain` (two rates each, of which the one with the lower validation loss goes on), `tune` (four settings on
each task, seed 0), `baselines` (majority and a bag of words), `seeds` (the best setting, four more seeds),
`sensitivity` (the model converted and not, learning rates over four orders of magnitude). The models are kept in
runs/downstream, results are lines of benchmarks/results/downstream.jsonl; what is there is not run again, but for
models that are missing and needed.

GLUE's folder has CoLA, SST-2, MRPC, STS-B, QNLI, RTE as the official archive has them (packed is fine). Where the
official data are not to be had, proxies take their place: for MNLI and QNLI's missing training set the labelled
`QNLI dev`, split in two by question; for SQuAD a third of `SQuADShifts new_wiki` and a fifth of `SQuAD 1.1 dev`. SST-2
is trained on 10,000 of its rows. None of these scores can be compared with published ones.
"""

import argparse
import json
import lzma
import math
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sibert.evaluation import TASKS, bag_of_words, examples_of, held_out, majority, task_named, task_rows
from sibert.evaluation.glue import glue_rows

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "downstream.jsonl"
WORK = ROOT / "runs" / "downstream"
SEEDS = (0, 1, 2, 3, 4)
PRETRAINING = {
    "size": "tiny", "vocab_size": 4096, "seq_length": 128, "batch_size": 32, "steps": 4000, "documents": "blank-line",
    "log_every": 100,
}  # fmt: skip
RATES = [1e-4, 3e-4, 1e-3, 3e-3]


@dataclass(frozen=True)
class Contestant:
    """A pre-trained model and how it is fine-tuned.

    Attributes:
        pretraining: A key of `MODELS`.
        options: Of every fine-tuning recipe.
        settings: The four of the search; "D" is intrinsic_lr times steps.
    """

    pretraining: str
    options: dict[str, Any]
    settings: list[dict[str, float]] = field(default_factory=list)


MODELS: dict[str, list[dict[str, Any]]] = {
    "sibert-matrix": [{"invariance": "matrix", "intrinsic_lr": rate} for rate in (1.6e-3, 3.2e-3)],
    "sibert-joint": [{"invariance": "joint", "intrinsic_lr": rate} for rate in (1.6e-3, 3.2e-3)],
    "modernbert": [{"model": "modernbert", "lr": rate, "weight_decay": 0.1} for rate in (2e-3, 4e-3)],
}
"""Two rates each: of the matrix form and ModernBERT around the best of the quality study's long runs; of the joint form
those of the matrix form, at which it loses 0.005 and 0.03 nats to its best one (two million tokens)."""
OF_SGD: list[dict[str, float]] = [{"D": D, "head_lr": lr} for D in (0.1, 1.0) for lr in (1e-3, 4e-3)]
CONTESTANTS: dict[str, Contestant] = {
    "SIBERT matrix, ClippedSGD": Contestant("sibert-matrix", {}, OF_SGD),
    "SIBERT joint, LAMB": Contestant("sibert-joint", {"optimizer": "lamb"}, [{"lr": 10 * lr} for lr in RATES]),
    "ModernBERT, AdamW": Contestant("modernbert", {}, [{"lr": lr} for lr in RATES]),
    "ModernBERT converted, ClippedSGD": Contestant("modernbert", {"convert": "row"}, OF_SGD),
}
SST2_ROWS = 10_000
WIDE = [10.0**k for k in (-2, -1, 0, 1, 2)]
EPOCHS = {"rte": 3.0, "mrpc": 3.0, "stsb": 4.0, "cola": 3.0, "qnli": 3.0, "sst2": 2.0, "squad": 1.0}


def prepare(glue: Path, qa: Path) -> dict[str, Path]:
    """Folders of the tasks, the proxies among them written anew."""
    folders = {
        "cola": glue / "CoLA", "mrpc": glue / "MRPC", "stsb": glue / "STS-B", "rte": glue / "RTE",
    }  # fmt: skip
    for name, folder in (("sst2", "SST-2"), ("qnli", "QNLI")):
        task, target = TASKS[name], WORK / "data" / name
        target.mkdir(parents=True, exist_ok=True)
        splits = {split: list(rows) for split, rows in glue_rows(task, glue / folder).items()}
        if name == "sst2":
            train = splits["train"]
            if len(train) > SST2_ROWS:
                train = held_out(task, train, SST2_ROWS / len(train))[1]
            parts = {"train": train, "validation": splits["validation"]}
        else:
            parts = dict(zip(("train", "validation"), held_out(task, splits["validation"], 0.3), strict=True))
        for split, rows in parts.items():
            with (target / f"{split}.jsonl").open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row.values) + "\n" for row in rows)
        folders[name] = target
    squad = WORK / "data" / "squad"
    squad.mkdir(parents=True, exist_ok=True)
    for source, name, every in (("squadshifts_new_wiki", "train-v1.1", 3), ("squad1.1-dev", "dev-v1.1", 5)):
        with lzma.open(qa / f"{source}.json.xz", "rt", encoding="utf-8") as file:
            data = json.load(file)
        for article in data["data"]:
            article["paragraphs"] = article["paragraphs"][::every]
        (squad / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")
    return {**folders, "squad": squad}


def pretrain(name: str, index: int, text: Sequence[str]) -> None:
    """One run of `MODELS`, if it is not there."""
    from rich.console import Console

    from sibert.training import PretrainRecipe, run_pretraining

    out = run_folder(name, index)
    if not (out / "model.safetensors").exists():
        options = {**PRETRAINING, **MODELS[name][index]}
        recipe = PretrainRecipe(**options, data=list(text), tokenizer=_tokenizer(WORK / "tokenizer", text))
        run_pretraining(recipe, out, resume=(out / "recipe.json").exists(), console=Console(quiet=True))


def run_folder(name: str, index: int) -> Path:
    """Where a run of `MODELS` lies."""
    return WORK / f"{name}-{index}"


def pretraining_record(name: str, index: int) -> dict[str, Any]:
    """What is kept of a pre-training run."""
    lines = list(map(json.loads, (run_folder(name, index) / "metrics.jsonl").read_text().splitlines()))
    evaluation = next(line for line in reversed(lines) if line["kind"] == "eval")
    training = next(line for line in reversed(lines) if line["kind"] == "train")
    environment = json.loads((run_folder(name, index) / "environment.json").read_text())
    return {
        "pretraining": name,
        "options": {**PRETRAINING, **MODELS[name][index]},
        **{key: evaluation[key] for key in ("step", "loss", "wall_seconds")},
        **{key: training[key] for key in ("optimizer_state_bytes", "peak_memory_bytes")},
        "environment": environment,
    }


def pretrained(name: str, records: Sequence[dict[str, Any]]) -> Path:
    """The run with the lowest validation loss.

    Args:
        name: A key of `MODELS`.
        records: Of all pre-training runs.
    """
    found = [(index, known_run(name, index, records)) for index in range(len(MODELS[name]))]
    losses = {index: record["loss"] for index, record in found if record is not None}
    return run_folder(name, min(losses, key=losses.__getitem__))


def known_run(name: str, index: int, records: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The record of a run of `MODELS`, if it has been kept."""
    options = {**PRETRAINING, **MODELS[name][index]}
    same = (record for record in records if (record["pretraining"], record["options"]) == (name, options))
    return next(same, None)


def _tokenizer(folder: Path, text: Sequence[str]) -> str:
    """One tokenizer for all: training it twice gives other ids."""
    if not folder.exists():
        from sibert.data import prepare_corpus

        length, size = PRETRAINING["seq_length"], PRETRAINING["vocab_size"]
        corpus = prepare_corpus(list(text), vocab_size=size, seq_length=length, documents="blank-line")
        corpus.tokenizer.save_pretrained(folder)
    return str(folder)


def finetune(
    contestant: str, encoder: Path, task: str, data: Path, setting: dict[str, float], seed: int
) -> dict[str, Any]:
    """One run, and what is kept of it."""
    from rich.console import Console

    from sibert.training import FinetuneRecipe, run_finetuning
    from sibert.training.finetune import load_examples, read_results
    from sibert.training.task_model import load_tokenizer

    one = CONTESTANTS[contestant]
    options: dict[str, Any] = {"epochs": EPOCHS[task], "device": "cpu", **one.options, **setting}
    D = options.pop("D", None)
    recipe = FinetuneRecipe(model=str(encoder), task=task, data=str(data), seed=seed, length=128, **options)
    if D is not None:
        from transformers import AutoModel

        from sibert.evaluation import Tokenization

        model = AutoModel.from_pretrained(recipe.model)
        reading = Tokenization.of(model, load_tokenizer(recipe.model), recipe.length, recipe.stride)
        rows, _ = reading.training(load_examples(recipe))
        steps = max(1, round(recipe.epochs * math.ceil(len(rows) / recipe.batch_size)))
        recipe = FinetuneRecipe(**{**recipe.__dict__, "intrinsic_lr": D / steps})
    out = WORK / "finetuning" / f"{os.getpid()}"
    shutil.rmtree(out, ignore_errors=True)
    run_finetuning(recipe, out, console=Console(quiet=True))
    results = read_results(out)
    shutil.rmtree(out)
    kept = {
        name: results[name] for name in ("scores", "steps", "seconds", "optimizer_state_bytes", "peak_memory_bytes")
    }
    return {"contestant": contestant, "task": task, "setting": setting, "seed": seed, **kept}


def _keep(records: Sequence[dict[str, Any]]) -> None:
    with RESULTS.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def key(record: dict[str, Any]) -> str:
    """What makes a run the same."""
    return json.dumps([record[name] for name in ("contestant", "task", "setting", "seed")], sort_keys=True)


class Study:
    """The runs that there are, and how more are made.

    Args:
        folders: Of the tasks.
        workers: Runs at once.
    """

    def __init__(self, folders: dict[str, Path], workers: int) -> None:
        self.folders, self.workers = folders, workers
        lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
        records = list(map(json.loads, lines))
        self.pretraining = [record for record in records if "pretraining" in record]
        self.simple = [record for record in records if "baseline" in record]
        self.records = {key(record): record for record in records if "contestant" in record}

    def run(self, trials: Sequence[tuple[str, str, dict[str, float], int]]) -> None:
        """Run what is missing; each result is stored as soon as it is there."""
        names = ("contestant", "task", "setting", "seed")
        missing = [trial for trial in trials if key(dict(zip(names, trial, strict=True))) not in self.records]
        print(f"{len(trials)} runs, {len(missing)} to do", flush=True)
        with pool_of(self.workers) as pool:
            running = [
                pool.submit(finetune, c, self.encoder(c), t, self.folders[t], setting, seed)
                for c, t, setting, seed in missing
            ]
            failures = []
            for done in as_completed(running):
                if failure := done.exception():
                    failures.append(failure)
                    continue
                record = done.result()
                self.records[key(record)] = record
                _keep([record])
                print(
                    record["contestant"], record["task"], record["setting"], record["seed"], score(record), flush=True
                )
        if failures:
            raise RuntimeError(f"{len(failures)} of {len(missing)} runs failed; the first of them: {failures[0]!r}")

    def encoder(self, contestant: str) -> Path:
        """The pre-trained model of a contestant; all are there before the first is fine-tuned."""
        return pretrained(CONTESTANTS[contestant].pretraining, self.pretraining)

    def find(self, contestant: str, task: str, setting: dict[str, float], seed: int) -> dict[str, Any] | None:
        """A run, if it is there."""
        return self.records.get(key({"contestant": contestant, "task": task, "setting": setting, "seed": seed}))

    def best(self, contestant: str, task: str) -> dict[str, float] | None:
        """The setting with the highest score of the search."""
        found = [
            (score(record), -index, setting)
            for index, setting in enumerate(CONTESTANTS[contestant].settings)
            if (record := self.find(contestant, task, setting, SEEDS[0])) is not None
        ]
        return max(found, key=lambda one: one[:2])[2] if found else None

    def tune(self) -> None:
        """Four settings of each contestant on each task."""
        self.run([(c, t, s, SEEDS[0]) for t in self.folders for c, one in CONTESTANTS.items() for s in one.settings])

    def baselines(self) -> None:
        """What needs no encoder."""
        known = {(record["baseline"], record["task"]) for record in self.simple}
        for task, data in self.folders.items():
            if task_named(task).kind == "qa":
                continue
            examples = examples_of(task_named(task), task_rows(task_named(task), data))
            for name, baseline in (("majority", majority), ("bag of words", bag_of_words)):
                if (name, task) not in known:
                    split = task_named(task).splits[0]
                    record = {"baseline": name, "task": task, "scores": {split: baseline(examples, split)}}
                    self.simple.append(record)
                    _keep([record])
                    print(name, task, score(record), flush=True)

    def seeds(self) -> None:
        """More seeds at the best setting."""
        self.run(
            [
                (c, t, setting, seed)
                for seed in SEEDS[1:]
                for t in self.folders
                for c in CONTESTANTS
                if (setting := self.best(c, t)) is not None
            ]
        )

    def sensitivity(self) -> None:
        """Learning rates that are wrong by up to a factor of 100, for the model converted and not."""
        self.run(wide_trials(self))


def wide_trials(study: Study) -> list[tuple[str, str, dict[str, float], int]]:
    """The runs of the phase `sensitivity`: all rates of a setting multiplied."""
    return [
        (c, t, {name: value * factor for name, value in setting.items()}, SEEDS[0])
        for t in ("cola", "mrpc")
        for c in ("ModernBERT converted, ClippedSGD", "ModernBERT, AdamW")
        if (setting := study.best(c, t)) is not None
        for factor in WIDE
    ]


def score(record: dict[str, Any]) -> float:
    """Of the task's first split, in percent."""
    first = task_named(record["task"]).splits[0]
    return 100 * float(record["scores"][first]["score"])


def pool_of(workers: int) -> ProcessPoolExecutor:
    """Processes that share the cores; how many threads a run has decides how its sums are rounded."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    return ProcessPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads,))


def pretrain_all(text: Sequence[str], workers: int) -> None:
    """Every model at both rates, and anew those that are needed: runs that have a record are repeated only if they won.

    A repeated run has to end at the loss of its record, bit for bit, or the results of its fine-tuning are of another
    model.
    """
    _tokenizer(WORK / "tokenizer", text)
    records = Study({}, 1).pretraining
    runs = [
        (name, index)
        for name, several in MODELS.items()
        for index in range(len(several))
        if not all(known_run(name, i, records) for i in range(len(several)))
        or run_folder(name, index) == pretrained(name, records)
    ]
    with pool_of(workers) as pool:
        for done in [pool.submit(pretrain, name, index, text) for name, index in runs]:
            done.result()
    for run in runs:
        record, known = pretraining_record(*run), known_run(*run, records)
        if known is None:
            _keep([record])
        elif record["loss"] != known["loss"]:
            raise RuntimeError(f"{run_folder(*run)} ended at {record['loss']}, its record says {known['loss']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phases", nargs="*", metavar="PHASE")
    parser.add_argument("--text", nargs="+", required=True)
    parser.add_argument("--glue", type=Path, required=True)
    parser.add_argument("--qa", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    phases = options.phases or ["pretrain", "tune", "baselines", "seeds", "sensitivity"]
    if "pretrain" in phases:
        pretrain_all(options.text, options.workers)
    study = Study(prepare(options.glue, options.qa), options.workers)
    for task, folder in study.folders.items():
        assert task_rows(task_named(task), folder)
    for phase in phases:
        if phase != "pretrain":
            print(f"== {phase}", flush=True)
            getattr(study, phase)()


if __name__ == "__main__":
    main()
