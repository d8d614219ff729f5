"""The recipe of a fine-tuning run: every choice, as one flat, typed, JSON-able record."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from sibert.evaluation import task_named
from sibert.optim import SCHEDULES
from sibert.training.recipe import SEEDS, read_recipe

__all__ = ["FinetuneRecipe"]

OptimizerName = Literal["clipped_sgd", "lamb", "adamw"]
Granularity = Literal["row", "matrix"]
Precision = Literal["fp32", "bf16", "fp16"]
Backend = Literal["auto", "reference"]

EQUILIBRIUM_TIMES = 0.1
"""D in intrinsic_lr = D / total_steps. At a constant rate rotation by uncorrelated gradients would leave cos(final,
initial) = exp(-D) of the pre-trained directions, by the linear schedule about exp(-D / 3); so the D of pre-training
would leave little (LOGBOOK has the measurement of this one)."""
DEFAULT_LR = {"adamw": 1e-4, "lamb": 2e-3}
DEFAULT_HEAD_LR = 1e-3


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe:
    """All choices of a fine-tuning run.

    Task: `task`; `data` (folder or training file; None = the task's own), `validation` (file; None = of `data`, or a
    tenth of the training rows), `columns` and `target` (names in the files; empty and None = the task's), `length`
    (tokens; None = 128, or 384 for questions, or what the model can read), `stride` (tokens that windows share).

    Model: `model` (run, folder or hub name), `convert` (write its weights as gain times direction for each "row" or
    "matrix" while it is trained), `dropout` (None = the model's own).

    Optimizer: `optimizer` (None = "clipped_sgd" if the model is scale invariant or converted, else "adamw");
    `intrinsic_lr` of ClippedSGD (None = 0.1 / steps) and `clip`; `lr` of AdamW and LAMB; `head_lr`, AdamW's on what is
    not scale invariant when ClippedSGD trains the rest; `weight_decay` of AdamW and LAMB; `epochs`; `schedule`;
    `warmup_share` of the steps, for all but ClippedSGD; `batch_size` of a process.

    Run: `seed`, `eval_every` (steps; None = an epoch), `patience` (evaluations without a better score after which it
    stops; None = never), `precision`, `backend` ("auto": the fast paths, SIBERT's rows without padding among them;
    "reference": padded batches, and normalised-ReLU attention as it is defined), `device` ("auto" or "cpu"),
    `baselines` (whether to score the majority and a bag of words, too).

    Raises:
        ValueError: On a choice that is out of range or makes no sense beside another one.
    """

    model: str
    task: str
    data: str | None = None
    validation: str | None = None
    columns: list[str] = field(default_factory=list)
    target: str | None = None
    length: int | None = None
    stride: int | None = None

    convert: Granularity | None = None
    dropout: float | None = None

    optimizer: OptimizerName | None = None
    intrinsic_lr: float | None = None
    clip: float | None = 2.0
    lr: float | None = None
    head_lr: float | None = None
    weight_decay: float = 0.01
    epochs: float = 3.0
    schedule: str = "linear"
    warmup_share: float = 0.1
    batch_size: int = 32

    seed: int = 0
    eval_every: int | None = None
    patience: int | None = None
    precision: Precision = "fp32"
    backend: Backend = "auto"
    device: Literal["auto", "cpu"] = "auto"
    baselines: bool = False

    def __post_init__(self) -> None:
        task = task_named(self.task)
        if self.columns or self.target:
            task.renamed(tuple(self.columns) or task.columns, self.target or task.target)
        choices: dict[str, tuple[Any, ...]] = {
            "convert": (None, *get_args(Granularity)),
            "optimizer": (None, *get_args(OptimizerName)),
            "schedule": tuple(SCHEDULES),
            "precision": get_args(Precision),
            "backend": get_args(Backend),
            "device": ("auto", "cpu"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                known = ", ".join(str(choice) for choice in allowed if choice is not None)
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        for name, minimum in {"batch_size": 1, "seed": 0, "eval_every": 1, "patience": 1}.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {value}")
        for name in ("intrinsic_lr", "lr", "head_lr", "epochs"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be positive and finite, got {value}")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"weight_decay must be finite and not negative, got {self.weight_decay}")
        if self.seed >= SEEDS:
            raise ValueError(f"seed must be less than 2**32, got {self.seed}")
        for name in ("dropout", "warmup_share"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), got {value}")
        self._check_optimizer()

    def _check_optimizer(self) -> None:
        if self.convert and self.optimizer not in (None, "clipped_sgd"):
            raise ValueError(f"convert makes a model ready for clipped_sgd; with {self.optimizer} leave it out")
        if self.optimizer == "clipped_sgd" and self.lr is not None:
            raise ValueError("lr belongs to adamw and lamb; clipped_sgd takes intrinsic_lr, and head_lr for the head")
        if self.optimizer in ("adamw", "lamb"):
            for name in ("intrinsic_lr", "head_lr"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} belongs to clipped_sgd; {self.optimizer} takes lr")

    def to_json(self) -> str:
        """Write the recipe as JSON text; `from_json` reads it back."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, path: Path) -> "FinetuneRecipe":
        """Read the recipe of a run.

        Args:
            path: A `finetune.json`.

        Raises:
            ValueError: If the file is missing, is not JSON, or names options this version does not know.
        """
        return read_recipe(cls, path, "a fine-tuning run")
