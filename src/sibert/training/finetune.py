"""Fine-tuning: a recipe, a directory, and `transformers.Trainer` in between."""

import json
import math
import os
import shutil
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter
from transformers import EarlyStoppingCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_callback import ProgressCallback as TransformersProgressCallback

from sibert.conversion.saving import WEIGHTS, load_directions, save_directions
from sibert.data import LengthSampler, flatten
from sibert.evaluation import Examples, examples_of, task_named
from sibert.evaluation.baselines import bag_of_words, majority
from sibert.evaluation.embeddings import contrastive_loss, embeddings_of, write_modules
from sibert.evaluation.predictor import DESCRIPTION, DivergedError, Predictor
from sibert.evaluation.sources import held_out, task_rows
from sibert.evaluation.tokenization import Tokenization
from sibert.training.callbacks import ProgressCallback, SignalCallback, exit_status
from sibert.training.checkpoints import discard_after, latest_checkpoint
from sibert.training.environment import environment
from sibert.training.finetune_recipe import FinetuneRecipe
from sibert.training.metrics import MetricsFile, optimizer_state_bytes, peak_memory_bytes
from sibert.training.resumable_trainer import ResumableTrainer
from sibert.training.run_directory import RunDirectory
from sibert.training.task_model import (
    build_task_model,
    build_task_optimizer,
    load_tokenizer,
    optimizer_of,
    takes_flat_batches,
)

__all__ = ["FinetuneDirectory", "TaskTrainer", "load_examples", "run_finetuning"]

DATA = "data.json"
RESULTS = "results.json"
LENGTH, QUESTION_LENGTH = 128, 384
"""Most tokens of a row, where nothing else is said and the model reads as many."""


@dataclass(frozen=True)
class FinetuneDirectory(RunDirectory):
    """As a run directory; the recipe is finetune.json, task.json says what the model is for, results.json how good.

    Attributes:
        path: The directory.
    """

    @property
    def recipe(self) -> Path:
        """The recipe."""
        return self.path / "finetune.json"

    @property
    def finished(self) -> bool:
        """Whether scores and model are there."""
        return (self.path / RESULTS).exists()


class TaskTrainer(ResumableTrainer):
    """A `Trainer` that evaluates by the task's own metrics.

    Args:
        predictor: The model and its task.
        examples: Of which the first of the task's splits is evaluated.
        metrics_file: Where the records go.
        converted: The model is a converted one, whose checkpoints need gains and directions beside the plain weights.
        **kwargs: As for `transformers.Trainer`.
    """

    def __init__(
        self,
        *,
        predictor: Predictor,
        examples: Examples,
        metrics_file: MetricsFile,
        converted: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.predictor = predictor
        self.examples = examples
        self.metrics_file = metrics_file
        self.converted = converted
        self.diverged = False

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Score the split that decides which checkpoint is best.

        A model that has diverged ends training if there is an earlier checkpoint that is better.

        Args:
            eval_dataset: Unused, there for `Trainer`.
            ignore_keys: Unused, there for `Trainer`.
            metric_key_prefix: Prefix of the returned names.

        Raises:
            DivergedError: If the model has diverged and there is no earlier checkpoint.
        """
        try:
            scores = self.predictor.evaluate(self.examples, evaluated_splits(self.examples)[0])
        except DivergedError:
            if self.state.best_model_checkpoint is None:
                raise
            self.diverged = self.control.should_training_stop = True
            return {f"{metric_key_prefix}_score": -math.inf}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows = self.train_dataset if train_dataset is None else train_dataset
        if self.examples.task.kind == "embedding":  # where pairs of one length would be easier to tell apart
            return super()._get_train_sampler(rows)
        lengths = [len(row["input_ids"]) for row in rows]
        # Processes take batches in turn, so that those of a step may differ in length.
        return LengthSampler(lengths, self.args.train_batch_size, self.args.seed)

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """The model's own loss; for embeddings the contrastive one."""
        if self.examples.task.kind != "embedding":
            return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
        anchors_BD, positives_BD = (
            embeddings_of(model(**inputs[name]).last_hidden_state, inputs[name]) for name in ("anchor", "positive")
        )
        loss = contrastive_loss(anchors_BD, positives_BD)
        return (loss, {}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Keep what `Trainer` logs in the run's metrics, too."""
        super().log(logs, start_time)
        if self.is_world_process_zero():
            kind = "eval" if any(name.startswith("eval_") for name in logs) else "train"
            self.metrics_file.append({"kind": kind, "step": self.state.global_step, **logs})

    def complete(self, checkpoint: Path) -> None:
        """Write gains and directions, whose norms the plain weights do not tell."""
        if self.converted:
            save_directions(self.model, checkpoint / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.converted:
            load_directions(self.model, Path(resume_from_checkpoint) / WEIGHTS)


def evaluated_splits(examples: Examples) -> list[str]:
    """The splits that have labels and are not trained on, the task's own first.

    Args:
        examples: Of a task.
    """
    target = {"qa": "answers", "embedding": "positive"}.get(examples.task.kind, "label")
    labelled = [name for name, data in examples.splits.items() if name != "train" and target in data.column_names]
    return sorted(labelled, key=lambda name: (name not in examples.task.splits, labelled.index(name)))


def load_examples(recipe: FinetuneRecipe) -> Examples:
    """Read and check the data of a recipe.

    Args:
        recipe: The recipe.

    Returns:
        With "train", and at least one split to validate on.

    Raises:
        ValueError: If there is nothing to train on, or a row is wrong.
    """
    task = task_named(recipe.task)
    task = task.renamed(tuple(recipe.columns) or task.columns, recipe.target or task.target)
    more = {} if recipe.validation is None else {task.splits[0]: Path(recipe.validation)}
    splits = task_rows(task, None if recipe.data is None else Path(recipe.data), more)
    if "train" not in splits:
        raise ValueError(f"{recipe.data or recipe.validation} has no training split: --data names it")
    notes: list[str] = []
    if not set(task.splits) & set(splits):
        train, validation = held_out(task, list(splits["train"]))
        splits = {**splits, "train": train, task.splits[0]: validation}
        notes.append(f"{len(validation)} rows of train are held out as {task.splits[0]}; --validation names a file")
    examples = examples_of(task, splits)
    if not evaluated_splits(examples):
        raise ValueError(f"no split but train has the column {task.target!r}: give --validation a file that has")
    return Examples(examples.task, examples.labels, examples.splits, (*notes, *examples.notes))


def run_finetuning(
    recipe: FinetuneRecipe, out: str | Path, *, resume: bool = False, console: Console | None = None
) -> int:
    """Fine-tune a model for a task, or go on with a run that was stopped.

    Args:
        recipe: The recipe; with `resume` the one the run began with.
        out: Directory of the run: at the end a folder of `transformers` with the best model, task.json, results.json.
        resume: Go on from the latest whole checkpoint.
        console: Where progress is shown; default: standard output.

    Returns:
        0, or 128 + signal number when a signal stopped the run after a checkpoint was saved.

    Raises:
        ValueError: On models, data or directories that cannot be used; nothing is left behind then.
    """
    run = FinetuneDirectory(Path(out))
    if resume and run.finished:
        raise ValueError(f"{run.path} is finished; evaluate it, or start another run with --out")
    main = int(os.environ.get("RANK", "0")) == 0  # of several processes that torchrun started, one writes
    plain = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    console = (console or plain) if main else Console(quiet=True)
    if not resume and main:
        run.create(recipe)
    try:
        trainer, signals = _prepare(recipe, run, console)
        counts = _counts(trainer)
        if resume:
            run.check_unchanged(DATA, counts)
        elif main:
            run.write_json(DATA, counts)
        if main:
            parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
            record = {**environment(), "parameters": parameters, "processes": trainer.args.world_size}
            run.write_json("environment.json", record)
            trainer.add_callback(TensorBoardCallback(SummaryWriter(str(run.tensorboard))))
    except BaseException:
        if not resume and main:
            run.withdraw()
        raise
    checkpoint, passed_over = latest_checkpoint(run.checkpoints) if resume else (None, [])
    for sentence in passed_over:
        console.print(sentence)
    if main:
        step = 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
        trainer.metrics_file.truncate_after(step)
        discard_after(run.checkpoints, step)
    others = _baselines(recipe, trainer.examples, console) if main else {}
    started = time.perf_counter()
    with signals.listening(), warnings.catch_warnings():
        # The best checkpoint is plain and replaces the model at the end; it is not trained any further.
        warnings.filterwarnings("ignore", message="plain weights were loaded into a converted model")
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if signals.received is not None and trainer.state.global_step < trainer.state.max_steps:
        console.print(
            f"stopped after step {trainer.state.global_step}; go on with: sibert finetune --resume {run.path}"
        )
        return exit_status(signals.received)
    if trainer.diverged:
        console.print(f"note: training has diverged by step {trainer.state.global_step}; the best checkpoint is kept")
    trainer.accelerator.wait_for_everyone()
    if main:
        _finish(run, trainer, others, console, time.perf_counter() - started)
    return 0


def _prepare(recipe: FinetuneRecipe, run: FinetuneDirectory, console: Console) -> tuple[TaskTrainer, SignalCallback]:
    examples = load_examples(recipe)
    tokenizer = load_tokenizer(recipe.model)
    model, notes = build_task_model(recipe, examples)
    usual = QUESTION_LENGTH if examples.task.kind == "qa" else LENGTH
    reading = Tokenization.of(model, tokenizer, recipe.length, recipe.stride, usual=usual)
    rows, more = reading.training(examples)
    pairs = examples.task.kind == "embedding"
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    batch = recipe.batch_size * processes
    if pairs and len(rows) < batch:
        raise ValueError(f"{len(rows)} pairs are fewer than a batch of {batch}: give a smaller --batch-size")
    per_epoch = (math.floor if pairs else math.ceil)(len(rows) / batch)
    steps = max(1, round(recipe.epochs * per_epoch))
    optimizer, lr_schedule = build_task_optimizer(recipe, model, steps)
    name = optimizer_of(recipe, model)
    arguments = _arguments(recipe, run, steps, per_epoch, clipped=name == "clipped_sgd", drop_last=pairs)
    flat = takes_flat_batches(recipe, model, arguments)
    predictor = Predictor(model, reading, examples.task, examples.labels, batch_size=2 * recipe.batch_size, flat=flat)
    trainer = TaskTrainer(
        model=model,
        args=arguments,
        data_collator=_collator(examples, tokenizer, flat=flat),
        train_dataset=rows,
        eval_dataset=examples.splits[evaluated_splits(examples)[0]],
        processing_class=tokenizer,
        optimizers=(optimizer, lr_schedule),
        predictor=predictor,
        examples=examples,
        metrics_file=MetricsFile(run.metrics),
        converted=recipe.convert is not None,
    )
    for callback in (PrinterCallback, TransformersProgressCallback):
        trainer.remove_callback(callback)
    signals = SignalCallback()
    callbacks = [signals, ProgressCallback(console)]
    callbacks += [EarlyStoppingCallback(recipe.patience)] if recipe.patience else []
    for callback in callbacks:
        trainer.add_callback(callback)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    splits = ", ".join(f"{len(data)} {split}" for split, data in examples.splits.items())
    console.print(f"{recipe.task}: {splits}")
    for note in (*examples.notes, *notes, *more):
        console.print(f"note: {note}")
    console.print(
        f"{type(model).__name__}, {parameters / 1e6:.1f} M parameters, {name}, {steps} steps of {batch} "
        f"rows of at most {reading.length} tokens, on {trainer.args.device}; run directory {run.path}"
    )
    return trainer, signals


def _counts(trainer: TaskTrainer) -> dict[str, int]:
    """Rows of each split, and the tokens that are trained on."""
    tokens = sum(
        len(row[name]) for row in trainer.train_dataset for name in ("input_ids", "anchor", "positive") if name in row
    )
    return {**{f"rows_of_{split}": len(data) for split, data in trainer.examples.splits.items()}, "tokens": tokens}


def _collator(examples: Examples, tokenizer: Any, *, flat: bool) -> Any:
    from transformers import DataCollatorForTokenClassification, DataCollatorWithPadding

    if examples.task.kind == "embedding":
        return _PairCollator(tokenizer, flat)
    if flat:
        return flatten
    tags = examples.task.kind == "token-classification"
    return DataCollatorForTokenClassification(tokenizer) if tags else DataCollatorWithPadding(tokenizer)


@dataclass(frozen=True)
class _PairCollator:
    """Pads or flattens anchors and positives, each for themselves."""

    tokenizer: Any
    flat: bool

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        several = {name: [{"input_ids": row[name]} for row in rows] for name in ("anchor", "positive")}
        if self.flat:
            return {name: flatten(parts) for name, parts in several.items()}
        return {name: dict(self.tokenizer.pad(parts, return_tensors="pt")) for name, parts in several.items()}


def _arguments(
    recipe: FinetuneRecipe, run: FinetuneDirectory, steps: int, per_epoch: int, *, clipped: bool, drop_last: bool
) -> TrainingArguments:
    interval = min(recipe.eval_every or per_epoch, steps)
    return TrainingArguments(
        output_dir=str(run.checkpoints),
        max_steps=steps,
        per_device_train_batch_size=recipe.batch_size,
        # An absolute threshold breaks scale invariance; ClippedSGD has one of its own.
        max_grad_norm=0.0 if clipped else 1.0,
        logging_steps=max(1, min(50, interval)),
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=interval,
        save_strategy="steps",
        save_steps=interval,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
        seed=recipe.seed,
        bf16=recipe.precision == "bf16",
        fp16=recipe.precision == "fp16",
        use_cpu=recipe.device == "cpu" or not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available() and recipe.device != "cpu",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        # An incomplete batch has fewer negatives and would weigh as much.
        dataloader_drop_last=drop_last,
    )


Baselines = dict[str, dict[str, dict[str, float]]]
"""Scores by the name of the baseline and the split."""


def _baselines(recipe: FinetuneRecipe, examples: Examples, console: Console) -> Baselines:
    """Fit the baselines before the model: what their data do not allow is known then, and costs nothing."""
    found: Baselines = {}
    if recipe.baselines and examples.task.kind in ("classification", "regression"):
        for name, baseline in (("majority", majority), ("bag of words", bag_of_words)):
            try:
                found[name] = {split: baseline(examples, split) for split in evaluated_splits(examples)}
            except ValueError as error:  # scikit-learn's: no words, or too few rows of a class
                console.print(f"note: no baseline {name}, for these data do not allow it ({error})")
    return found


def _finish(run: FinetuneDirectory, trainer: TaskTrainer, others: Baselines, console: Console, seconds: float) -> None:
    """Score every split with the best model, and write model, description and scores."""
    predictor, examples, state = trainer.predictor, trainer.examples, trainer.state
    splits = evaluated_splits(examples)
    scores = {split: predictor.evaluate(examples, split) for split in splits}
    if "best_f1_threshold" in scores[splits[0]]:
        predictor.no_answer_threshold = scores[splits[0]]["best_f1_threshold"]
        scores = {split: predictor.evaluate(examples, split) for split in splits}
    best = state.best_model_checkpoint
    record = {
        "scores": scores,
        "baselines": others,
        "best_step": int(best.rpartition("-")[2]) if best else state.global_step,
        "steps": state.global_step,
        "seconds": seconds,
        "optimizer_state_bytes": optimizer_state_bytes(trainer.optimizer.optimizer),
        "peak_memory_bytes": peak_memory_bytes(),
        "rows": {split: len(data) for split, data in examples.splits.items()},
    }
    run.write_json(DESCRIPTION, predictor.describe())
    model = trainer.accelerator.unwrap_model(trainer.model)
    if examples.task.kind == "embedding":
        write_modules(run.path, model.config.hidden_size, predictor.tokenization.length)
    run.save_model(model, trainer.processing_class)
    run.write_json(RESULTS, record)
    shutil.rmtree(run.checkpoints, ignore_errors=True)
    for split, values in scores.items():
        shown = ", ".join(f"{name} {100 * value:.1f}" for name, value in values.items() if name != "score")
        console.print(f"{split}: {shown}")
        for name, several in others.items():
            shown = ", ".join(f"{key} {100 * v:.1f}" for key, v in several[split].items() if key != "score")
            console.print(f"  {name}: {shown}")
    console.print(f"saved the model to {run.path}; try: sibert predict {run.path} --input FILE --output FILE")


def read_results(folder: Path) -> dict[str, Any]:
    """The results of a finished run.

    Args:
        folder: Of the run.

    Raises:
        ValueError: If it is not finished.
    """
    file = folder / RESULTS
    if not file.is_file():
        raise ValueError(f"{folder} is no finished fine-tuning run: it has no {RESULTS}")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found
