"""`transformers.Trainer` for pre-training: exact losses, weighted evaluation, whole checkpoints, group metrics."""

import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sibert.data import EpochSampler, MaskedDataset
from sibert.models.masked_lm_loss import IGNORED
from sibert.optim import ClippedSGD, GradientRelease, Hybrid
from sibert.training.metrics import LossWindow, MetricsFile, optimizer_state_bytes, peak_memory_bytes
from sibert.training.resumable_trainer import ResumableTrainer

__all__ = ["PretrainTrainer"]

WINDOW = "loss_window.json"


class PretrainTrainer(ResumableTrainer):
    """A `Trainer` whose losses are divided by the targets of the global batch and whose clipping is ClippedSGD's own.

    Differences from `transformers.Trainer`:

    - The masked-LM loss is summed and divided by the number of targets of the global batch (all accumulation steps, all
      processes), the next-sentence loss by its sequences.
    - `max_grad_norm` must be 0 with ClippedSGD: an absolute clipping threshold breaks scale invariance.
    - Training order and masks are pure functions of (seed, epoch, index), so a resumed run sees the same batches.
    - `evaluate` averages over targets, not over batches.
    - Its checkpoints are whole, and a run may be resumed at any moment (`ResumableTrainer`).

    Args:
        metrics_file: Where the records go; None = nowhere.
        unigram_entropy: Entropy of the validation targets, nats, recorded beside the validation loss.
        gradient_release: Step inside backward (`GradientRelease`).
        return_logits: False trains SIBERT without logits; evaluation needs them for its hits.
        **kwargs: As for `transformers.Trainer`.

    Raises:
        ValueError: If `max_grad_norm` is not 0 with ClippedSGD, or gradients cannot be released.
    """

    def __init__(
        self,
        *,
        metrics_file: MetricsFile | None = None,
        unigram_entropy: float | None = None,
        gradient_release: bool = False,
        return_logits: bool = True,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.return_logits = return_logits
        self.metrics_file = metrics_file
        self.window = LossWindow()
        self.unigram_entropy = unigram_entropy
        self.evaluated_step: int | None = None
        self._sequences_in_batch: Tensor | None = None
        self.add_callback(_StepCounter(self.window))
        optimizer = self.optimizer
        invariant = isinstance(optimizer, ClippedSGD) or (
            isinstance(optimizer, Hybrid) and any(isinstance(child, ClippedSGD) for child in optimizer.optimizers)
        )
        if invariant and self.args.max_grad_norm:
            raise ValueError(
                f"max_grad_norm must be 0 with ClippedSGD, got {self.args.max_grad_norm}: a clipping threshold that "
                "does not move with the parameter norm breaks scale invariance; ClippedSGD clips relative to it "
                "(clip=2.0)"
            )
        self.gradient_release = GradientRelease(optimizer) if gradient_release else None

    # Order of the examples

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not isinstance(dataset, MaskedDataset):
            return super()._get_train_sampler(dataset)
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return EpochSampler(dataset, step=step)

    # Losses

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """Collect the micro-batches of a step, and count the targets and the sequences of the global batch."""
        batches, targets = super().get_batch_samples(epoch_iterator, num_batches, device)
        sequences = torch.tensor(sum(_sequences(batch) for batch in batches), device=device)
        if self.args.world_size > 1:
            sequences = self.accelerator.gather(sequences).sum()
        self._sequences_in_batch = sequences
        return batches, targets

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute this micro-batch's share of the loss of the global batch, and add it to the open window."""
        counts: dict[str, Any] = {"num_items_in_batch": num_items_in_batch}
        if "next_sentence_label" in inputs:
            counts["num_sequences_in_batch"] = self._sequences_in_batch
        if not self.return_logits:
            counts["return_logits"] = False
        outputs = model(**inputs, **counts)
        # DDP averages gradients over processes; the losses are already divided by the global counts.
        processes = self.accelerator.num_processes
        losses = {"loss": outputs["loss"], "mlm_loss": outputs.get("mlm_loss"), "nsp_loss": outputs.get("nsp_loss")}
        self.window.add(
            {name: None if loss is None else loss.detach() * processes for name, loss in losses.items()},
            tokens=inputs["input_ids"].numel(),
        )
        loss = outputs["loss"] * processes
        return (loss, outputs) if return_outputs else loss

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        # ClippedSGD records the norm of each group; a further pass over all gradients would be for nothing.
        return grad_norm

    # Records

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add losses, speed, memory and the state of each group to what `Trainer` logs."""
        if "loss" in logs:
            logs.pop("learning_rate", None)  # the first group's; every group has its own below
            record = self._training_record()
            logs.update(_flatten(record))
            self._append("train", record)
        super().log(logs, start_time)

    def _training_record(self) -> dict[str, Any]:
        record: dict[str, Any] = self.window.read(
            self.accelerator.num_processes, lambda total: self.accelerator.reduce(total, reduction="mean")
        )
        optimizer = cast(torch.optim.Optimizer, getattr(self.optimizer, "optimizer", self.optimizer))
        record["peak_memory_bytes"] = peak_memory_bytes()
        record["optimizer_state_bytes"] = optimizer_state_bytes(optimizer)
        record["groups"] = {group.get("name", "all"): {"lr": float(group["lr"])} for group in optimizer.param_groups}
        if isinstance(optimizer, ClippedSGD | Hybrid):
            for statistics in optimizer.statistics(reset=True):
                record["groups"][statistics.name] = _finite(dataclasses.asdict(statistics))
        return record

    def _append(self, kind: str, record: dict[str, Any]) -> None:
        if self.metrics_file is not None and self.is_world_process_zero():
            head = {"kind": kind, "step": self.state.global_step, "epoch": self.state.epoch}
            self.metrics_file.append({**head, "wall_seconds": self.window.wall_seconds, **record})

    # Evaluation

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Load every validation example, also where training drops the incomplete last batch of an epoch."""
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drop_last

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Average losses and accuracies over the targets (and sequences) of the validation split.

        Args:
            eval_dataset: Another split; default: the trainer's.
            ignore_keys: Unused, there for `Trainer`.
            metric_key_prefix: Prefix of the returned names.

        Returns:
            `{prefix}_loss`, `_mlm_loss`, `_accuracy`, `_targets`, and with sentence pairs `_nsp_loss`, `_nsp_accuracy`.
        """
        started = time.perf_counter()
        sums = self._evaluation_sums(self.get_eval_dataloader(eval_dataset))
        targets, sequences = max(sums["targets"], 1), max(sums["sequences"], 1)
        record = {
            "loss": sums["mlm_loss"] / targets,
            "mlm_loss": sums["mlm_loss"] / targets,
            "accuracy": sums["correct"] / targets,
            "targets": int(sums["targets"]),
        }
        if sums["sequences"]:
            record["nsp_loss"] = sums["nsp_loss"] / sequences
            record["nsp_accuracy"] = sums["nsp_correct"] / sequences
            record["loss"] += record["nsp_loss"]
        if self.unigram_entropy is not None:
            record["unigram_entropy"] = self.unigram_entropy
        self._append("eval", record)
        self.evaluated_step = self.state.global_step
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in record.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.window.pause(time.perf_counter() - started)
        return metrics

    @torch.no_grad()
    def _evaluation_sums(self, dataloader: Any) -> dict[str, float]:
        """Sum losses and hits; one row a sequence, so that rows repeated to even out processes can be dropped."""
        names = ("mlm_loss", "targets", "correct", "nsp_loss", "sequences", "nsp_correct")
        wrapped = self.model_wrapped if self.is_in_train else self.model
        # Batches of other shapes and another mode would be compiled anew.
        model = cast(torch.nn.Module, getattr(wrapped, "_orig_mod", wrapped))
        was_training = model.training
        model.eval()
        total = torch.zeros(len(names), dtype=torch.float64)
        for batch in dataloader:
            inputs = self._prepare_inputs(batch)
            labels_BP, follows_B = inputs.pop("labels"), inputs.pop("next_sentence_label", None)
            with self.accelerator.autocast():
                outputs = model(**inputs)
            rows_BN = _score_rows(outputs, labels_BP, follows_B, inputs)
            total += self.accelerator.gather_for_metrics(rows_BN).double().sum(dim=0).cpu()
        model.train(was_training)
        return dict(zip(names, total.tolist(), strict=True))

    # Checkpoints

    def complete(self, checkpoint: Path) -> None:
        """Write the window of losses that is open."""
        self.window.save(checkpoint / WINDOW)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        started = time.perf_counter()
        super()._save_checkpoint(model, trial)
        self.window.pause(time.perf_counter() - started)

    def load_window(self, checkpoint: Path) -> None:
        """Take up the window of losses that was open when a checkpoint was written.

        Args:
            checkpoint: The folder.
        """
        self.window.load(checkpoint / WINDOW, self.args.device)


class _StepCounter(TrainerCallback):  # type: ignore[misc]
    """Tells the window that a step is over."""

    def __init__(self, window: LossWindow):
        self.window = window

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.window.steps += 1


def _sequences(batch: dict[str, Any]) -> int:
    bounds = batch.get("cu_seq_lens_q")
    return len(batch["input_ids"]) if bounds is None else len(bounds) - 1


def _score_rows(outputs: Any, labels_BP: Tensor, follows_B: Tensor | None, inputs: dict[str, Any]) -> Tensor:
    """Score each sequence: summed masked-LM loss, targets, hits; next-sentence loss, 1, hit (0, 0, 0 without pairs)."""
    logits_BPV = outputs["logits"] if "logits" in outputs else outputs["prediction_logits"]
    loss_BP = F.cross_entropy(logits_BPV.float().transpose(1, 2), labels_BP, ignore_index=IGNORED, reduction="none")
    correct_BP = (logits_BPV.argmax(dim=-1) == labels_BP) & (labels_BP != IGNORED)
    columns = [_by_sequence(scores_BP, inputs) for scores_BP in (loss_BP, labels_BP != IGNORED, correct_BP)]
    if follows_B is None:
        columns += [torch.zeros_like(columns[0])] * 3
    else:
        relationship_B2 = outputs["seq_relationship_logits"].float()
        columns += [
            F.cross_entropy(relationship_B2, follows_B, reduction="none"),
            torch.ones_like(columns[0]),
            (relationship_B2.argmax(dim=-1) == follows_B).float(),
        ]
    return torch.stack(columns, dim=1)


def _by_sequence(scores_BP: Tensor, inputs: dict[str, Any]) -> Tensor:
    """Sum the scores of the targets of each sequence."""
    bounds = inputs.get("cu_seq_lens_q")
    if bounds is None:
        return scores_BP.sum(dim=1).float()
    sequence_P = torch.searchsorted(bounds[1:].contiguous(), inputs["masked_positions"][0].to(bounds.dtype), right=True)
    return scores_BP.new_zeros(len(bounds) - 1, dtype=torch.float32).index_add(0, sequence_P, scores_BP[0].float())


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """Leave out the name, and what is not known yet or infinite: JSON has no word for it."""
    return {
        name: value
        for name, value in values.items()
        if name != "name" and isinstance(value, int | float) and math.isfinite(value)
    }


def _flatten(record: dict[str, Any]) -> dict[str, float]:
    """Turn {"groups": {"encoder": {"lr": 1}}} into {"encoder/lr": 1}, the form in which loggers take scalars."""
    flat = {name: value for name, value in record.items() if name != "groups"}
    for group, values in record["groups"].items():
        flat.update({f"{group}/{name}": value for name, value in values.items() if isinstance(value, int | float)})
    return flat
