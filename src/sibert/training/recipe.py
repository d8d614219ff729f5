"""The recipe of a pre-training run: every choice, as one flat, typed, JSON-able record."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from sibert.models import INVARIANCES, SIZES

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["PretrainRecipe"]

Model = Literal["sibert", "bert", "modernbert"]
OptimizerName = Literal["clipped_sgd", "adamw", "lamb", "sgd"]
ScheduleName = Literal["cosine", "linear", "piecewise", "constant"]
Precision = Literal["fp32", "bf16", "bf16-weights", "fp16"]
Backend = Literal["auto", "reference"]

LARGEST_DEFAULT_INTRINSIC_LR = {"joint": 0.002, "matrix": 0.006, "row": 0.006}
"""At equilibrium a step turns the parameters by sqrt(2 eta lambda): by 0.06 radian at 0.002, by 0.11 at 0.006. Larger
angles were worse when measured, in runs of any length (LOGBOOK, 2026-11-23 and 28). Short runs meet this bound."""

SEEDS = 2**32
"""numpy's generators, which transformers seeds as well, take no larger seed."""

EQUILIBRIUM_TIMES = {"joint": 10.0, "matrix": 3.5, "row": 3.5}
"""D in intrinsic_lr = D / total_steps: how many times 1/(eta lambda) steps a run lasts (Theorem 4.1 and its remark).
3.5 is near the best of the finer forms from 512 to 3500 steps; 2 to 4 times as much or as little cost 0.01 to 0.13
nats, in runs of 512 steps up to 1.7 (LOGBOOK, 2026-11-28)."""


Recipe = TypeVar("Recipe", bound="DataclassInstance")


def read_recipe(kind: type[Recipe], path: Path, what: str) -> Recipe:
    """Read a recipe of either kind from its JSON file.

    Args:
        kind: The recipe's class.
        path: The file.
        what: What its folder would be if it were there.

    Returns:
        The recipe.

    Raises:
        ValueError: If the file is missing, is no JSON object, has options this version does not know, or bad values.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.parent} is not {what}: it has no {path.name}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON (line {error.lineno}: {error.msg})") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path} is no recipe: expected a JSON object, got {type(fields).__name__}")
    unknown = sorted(set(fields) - {one.name for one in dataclasses.fields(kind)})
    if unknown:
        raise ValueError(f"{path} has unknown options: {', '.join(unknown)}; was it written by another version?")
    try:
        return kind(**fields)
    except TypeError as error:  # a comparison of numbers and text
        raise ValueError(f"{path} has an option of the wrong type ({error}): numbers stand without quotes") from None


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe:
    """All choices of a pre-training run. The defaults train SIBERT on the text of the Python standard library.

    Data: `data` (files, folders, globs, or one hub data set; empty = the standard library), `text_column`, `documents`,
    `streaming`, `validation_fraction`, `tokenizer` (a folder or hub name; None = trained from the data), `vocab_size`,
    `lowercase`, `seq_length` (tokens), `mask_rate`, `whole_word`, `next_sentence`.

    Model: `model`, `size` (a key of `SIZES`), `invariance` (of SIBERT; "joint" is the paper's model), `dropout`,
    `initial_scale` (all scale-invariant parameters, of the twin all encoder parameters, are multiplied by it before the
    first step; a scale-invariant run does not care).

    Optimizer: `optimizer` (None = "clipped_sgd" for SIBERT, "adamw" for its twins); `steps`; `intrinsic_lr` = eta *
    lambda (None = 3.5 / steps, at most 0.006; joint: 10 / steps, at most 0.002) or, instead, `lr` and `weight_decay`;
    `clip` = sqrt(C), None = no clipping; `two_sided`, whether short gradients are clipped, too (None = yes, but not in
    the paper's joint form); `head_lr` of the head, which is not invariant (None = as `build_optimizer`); `schedule`;
    `warmup_steps` of the head and of the twins (the scale-invariant groups never warm up); `max_grad_norm`, the
    absolute clipping of the twins.

    Batches: `batch_size` (sequences a process and micro-batch), `accumulation` (micro-batches a step).

    Memory: `precision` ("bf16" computes in bfloat16; "bf16-weights" keeps the scale-invariant parameters in it, too,
    and rounds their steps stochastically; the final model is saved in float32), `gradient_checkpointing`,
    `gradient_release` (`GradientRelease`: the same run, bit for bit, with the gradients of one layer at a time).

    Speed: `backend` ("auto": the fast paths, SIBERT's sentence pairs without padding among them, and the loss of many
    predictions a few positions at a time; "reference": padded batches, and attention, loss and optimizer step as they
    are defined; the same run but for rounding and the draws of dropout), `compile` (`torch.compile` of the training
    step's forward and backward; evaluation stays as it is).

    Run: `seed`, `workers` (data-loading processes), `log_every`, `eval_every`,
    `save_every` (steps), `keep_checkpoints`, `device` ("auto" or "cpu").

    Raises:
        ValueError: On a choice that is out of range or makes no sense beside another one.
    """

    data: list[str] = field(default_factory=list)
    text_column: str = "text"
    documents: Literal["auto", "file", "blank-line"] = "auto"
    streaming: bool = False
    validation_fraction: float = 0.05
    tokenizer: str | None = None
    vocab_size: int = 8192
    lowercase: bool = True
    seq_length: int = 128
    mask_rate: float = 0.15
    whole_word: bool = False
    next_sentence: bool = False

    model: Model = "sibert"
    size: str = "mini"
    invariance: str = "matrix"
    dropout: float = 0.0
    initial_scale: float = 1.0

    optimizer: OptimizerName | None = None
    steps: int = 10_000
    intrinsic_lr: float | None = None
    lr: float | None = None
    weight_decay: float | None = None
    clip: float | None = 2.0
    two_sided: bool | None = None
    head_lr: float | None = None
    schedule: ScheduleName = "cosine"
    warmup_steps: int | None = None
    max_grad_norm: float | None = None

    batch_size: int = 32
    accumulation: int = 1

    seed: int = 0
    precision: Precision = "fp32"
    gradient_checkpointing: bool = False
    gradient_release: bool = False
    backend: Backend = "auto"
    compile: bool = False
    workers: int = 0
    log_every: int = 10
    eval_every: int | None = None
    save_every: int | None = None
    keep_checkpoints: int = 2
    device: Literal["auto", "cpu"] = "auto"

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_numbers()
        self._check_optimizer()
        self._check_memory()

    def _check_choices(self) -> None:
        choices: dict[str, tuple[Any, ...]] = {
            "documents": ("auto", "file", "blank-line"),
            "model": get_args(Model),
            "size": tuple(SIZES),
            "invariance": INVARIANCES,
            "optimizer": (None, *get_args(OptimizerName)),
            "schedule": get_args(ScheduleName),
            "precision": get_args(Precision),
            "backend": get_args(Backend),
            "device": ("auto", "cpu"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                known = ", ".join(str(choice) for choice in allowed if choice is not None)
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")

    def _check_numbers(self) -> None:
        least = {
            "steps": 1,
            "batch_size": 1,
            "accumulation": 1,
            "log_every": 1,
            "eval_every": 1,
            "save_every": 1,
            "keep_checkpoints": 1,
            "workers": 0,
            "warmup_steps": 0,
            "seq_length": 8,
            "vocab_size": 16,
            "seed": 0,
        }
        for name, minimum in least.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {value}")
        for name in ("mask_rate", "validation_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        for name in ("initial_scale", "head_lr", "lr", "intrinsic_lr"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be positive and finite, got {value}")
        for name in ("weight_decay", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be finite and not negative, got {value}")
        if self.seed >= SEEDS:
            raise ValueError(f"seed must be less than 2**32, got {self.seed}")
        if self.warmup_steps is not None and self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps must be less than steps, got {self.warmup_steps} of {self.steps}")

    def _check_optimizer(self) -> None:
        if self.model != "sibert" and self.optimizer == "clipped_sgd":
            raise ValueError(
                f"optimizer clipped_sgd needs a scale-invariant model, and {self.model} is none: its clipping "
                "threshold is a multiple of the parameter norm; use --model sibert, or --optimizer adamw, lamb or sgd"
            )
        if self.model == "modernbert" and self.next_sentence:
            raise ValueError("next_sentence is for sibert and bert: ModernBERT has no types of tokens to mark a pair")
        if self.model == "sibert" and self.optimizer == "sgd":
            raise ValueError("plain SGD of SIBERT is optimizer clipped_sgd with clip none; use --clip none")
        if self.optimizer_name == "clipped_sgd":
            if self.max_grad_norm:
                raise ValueError(
                    f"max_grad_norm must be 0 with clipped_sgd, got {self.max_grad_norm}: a clipping threshold that "
                    "does not move with the parameter norm breaks scale invariance; ClippedSGD clips relative to it "
                    "(--clip)"
                )
            if (self.lr is None) != (self.weight_decay is None):
                raise ValueError("give lr and weight_decay together, or neither (intrinsic_lr then sets both)")
            if self.lr is not None and self.intrinsic_lr is not None:
                raise ValueError(
                    "give either intrinsic_lr or lr and weight_decay, not both: intrinsic_lr = lr * weight_decay"
                )
            if self.two_sided and self.clip is None:
                raise ValueError("two_sided brings gradients between 1 / clip and clip, so clip cannot be none; use 2")
        elif self.intrinsic_lr is not None:
            raise ValueError(f"intrinsic_lr belongs to clipped_sgd; optimizer {self.optimizer_name} takes lr")
        elif self.head_lr is not None:
            raise ValueError(f"head_lr belongs to clipped_sgd; optimizer {self.optimizer_name} takes lr")
        elif self.two_sided is not None:
            raise ValueError(f"two_sided belongs to clipped_sgd; optimizer {self.optimizer_name} clips absolutely")
        elif self.initial_scale != 1.0 and self.optimizer_name != "sgd" and self.model == "sibert":
            raise ValueError("initial_scale is for clipped_sgd and sgd")

    def _check_memory(self) -> None:
        if self.precision == "bf16-weights" and self.optimizer_name != "clipped_sgd":
            raise ValueError(
                "precision bf16-weights is for clipped_sgd, which rounds its steps stochastically; "
                f"{self.optimizer_name} would round them to nearest and lose the small ones; use --precision bf16"
            )
        if not self.gradient_release:
            return
        if self.optimizer_name != "clipped_sgd":
            raise ValueError(
                f"gradient_release is for clipped_sgd, not {self.optimizer_name}: it needs steps that depend on "
                "the gradient of their own group alone"
            )
        if self.invariance == "joint":
            raise ValueError(
                "gradient_release would free nothing with invariance joint: the encoder is one group, whose clip "
                "factor needs its whole gradient; use --invariance matrix or row"
            )
        if self.accumulation > 1:
            raise ValueError(
                f"gradient_release takes a step in every backward, so accumulation must be 1, got {self.accumulation}; "
                "use a larger --batch-size"
            )
        if self.precision == "fp16":
            raise ValueError(
                "gradient_release cannot be used with precision fp16, whose loss scaling changes gradients after "
                "backward; use bf16"
            )

    @property
    def optimizer_name(self) -> OptimizerName:
        """The optimizer, with the default of the model filled in."""
        if self.optimizer is not None:
            return self.optimizer
        return "clipped_sgd" if self.model == "sibert" else "adamw"

    @property
    def evaluation_interval(self) -> int:
        """Steps between evaluations: `eval_every`, or a tenth of the run."""
        return self.eval_every or max(1, self.steps // 10)

    @property
    def checkpoint_interval(self) -> int:
        """Steps between checkpoints: `save_every`, or a tenth of the run."""
        return self.save_every or max(1, self.steps // 10)

    @property
    def chosen_intrinsic_lr(self) -> float | None:
        """The intrinsic learning rate, with the default filled in; None where lr and weight_decay are given."""
        if self.lr is not None:
            return None
        times, largest = (table[self.invariance] for table in (EQUILIBRIUM_TIMES, LARGEST_DEFAULT_INTRINSIC_LR))
        return self.intrinsic_lr or min(times / self.steps, largest)

    def to_json(self) -> str:
        """Write the recipe as JSON text; `from_json` reads it back."""
        return json.dumps({**dataclasses.asdict(self), "optimizer": self.optimizer_name}, indent=2) + "\n"

    @classmethod
    def from_json(cls, path: Path) -> "PretrainRecipe":
        """Read the recipe of a run.

        Args:
            path: A `recipe.json`.

        Returns:
            The recipe.

        Raises:
            ValueError: If the file is missing, is not JSON, or names options this version does not know.
        """
        return read_recipe(cls, path, "a run directory")
