"""Trainer callbacks: graceful stop on a signal, a progress bar, rotation of scale-invariant groups."""

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sibert.dynamics import Rotation, RotationRecorder
from sibert.optim import InvariantGroup, ScaleInvariantModel

__all__ = ["ProgressCallback", "RotationCallback", "SignalCallback"]

AGREEMENT_INTERVAL = 10
"""Steps between two questions to the other processes whether one of them was signalled."""


class SignalCallback(TrainerCallback):  # type: ignore[misc]
    """Saves a checkpoint and stops after the current step when SIGINT (Ctrl-C) or SIGTERM arrives.

    A second signal of the same kind has its usual effect. With several processes all stop after the same step.

    Attributes:
        received: The number of the signal, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside a `with` block, and restore the earlier handlers after it."""

        def remember(number: int, frame: FrameType | None) -> None:
            self.received = number
            signal.signal(number, earlier[signal.Signals(number)])

        earlier = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for number in earlier:
                signal.signal(number, remember)
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a checkpoint and the end of training if a signal has arrived."""
        stop = self.received is not None
        if args.world_size > 1:
            if state.global_step % AGREEMENT_INTERVAL:
                return
            votes = torch.tensor(float(self.received or 0), device=args.device)
            torch.distributed.all_reduce(votes, op=torch.distributed.ReduceOp.MAX)
            stop = bool(votes > 0)
            self.received = int(votes) if stop else None
        if stop:
            control.should_save = True
            control.should_training_stop = True


class ProgressCallback(TrainerCallback):  # type: ignore[misc]
    """Shows a progress bar on a terminal, and plain lines elsewhere.

    Args:
        console: Where to.
    """

    def __init__(self, console: Console):
        self.console = console
        self.progress: Progress | None = None
        self.shown: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar."""
        if not state.is_world_process_zero or not self.console.is_terminal:
            return
        self.progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[losses]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.progress.start()
        self.task = self.progress.add_task("train", total=state.max_steps, completed=state.global_step, losses="")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance the bar."""
        if self.progress is not None:
            self.progress.update(self.task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the latest losses."""
        if not state.is_world_process_zero or not logs:
            return
        if "loss" in logs:
            self.shown["train"] = f"loss {logs['loss']:.3f}"
        if "eval_score" in logs:
            self.shown["validation"] = f"score {100 * logs['eval_score']:.1f}"
            if self.progress is None:
                losses = "  ".join(self.shown.values())
                self.console.print(f"step {state.global_step}/{state.max_steps}: {losses}")
        if "eval_mlm_loss" in logs:
            self.shown["validation"] = f"validation {logs['eval_mlm_loss']:.3f}"
            unigram = logs.get("eval_unigram_entropy")
            if self.progress is None:
                below = "" if unigram is None else f" (unigram entropy {unigram:.3f})"
                self.console.print(
                    f"step {state.global_step}/{state.max_steps}: {self.shown.get('train', '')} "
                    f"{self.shown['validation']}{below}"
                )
        if self.progress is not None:
            self.progress.update(self.task, losses="  ".join(self.shown.values()))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        self.close()

    def close(self) -> None:
        """Close the bar, also when training ends in an error."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


class RotationCallback(TrainerCallback):  # type: ignore[misc]
    """Records how far steps turn scale-invariant groups in any `transformers.Trainer`, and logs the latest angles.

    Args:
        groups: As of `RotationRecorder`; None = those of the model's `scale_invariant_groups()`, or else those that the
            optimizer marks.
        every: Steps from one measurement to the next.

    Attributes:
        records: All measurements so far.
    """

    def __init__(
        self,
        groups: Mapping[str, InvariantGroup | Sequence[nn.Parameter]] | None = None,
        every: int = 50,
    ) -> None:
        self.groups, self.every = groups, every
        self.recorder: RotationRecorder | None = None
        self.records: list[Rotation] = []

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        """Begin, when model and optimizer are what is trained."""
        assert model is not None
        assert optimizer is not None
        inner, groups = getattr(optimizer, "optimizer", optimizer), self.groups  # accelerate's wrapper has no hooks
        while groups is None and isinstance(getattr(model, "module", None), nn.Module):
            model = model.module  # type: ignore[assignment]  # of DistributedDataParallel
        if groups is None and isinstance(model, ScaleInvariantModel):
            groups = model.scale_invariant_groups()
        self.recorder = RotationRecorder(inner, groups, self.every)
        self.recorder.records = self.records

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the latest angle, and effective learning rate, of each group: NAME/angular_update, NAME/effective_lr."""
        latest = {}
        for one in {record.name: record for record in self.records}.values():
            latest[f"{one.name}/angular_update"] = one.angular_update
            if one.effective_lr is not None:
                latest[f"{one.name}/effective_lr"] = one.effective_lr
        for record in (logs, state.log_history[-1] if state.log_history else None):
            if record is not None:
                record.update(latest)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop; the records stay."""
        if self.recorder is not None:
            self.recorder.close()


def exit_status(number: int) -> int:
    """Tell the exit status of a process that a signal stopped, by the convention of shells.

    Args:
        number: Signal number.

    Returns:
        128 + number.
    """
    return 128 + number if os.name == "posix" else 1
