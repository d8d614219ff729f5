"""A pre-trained model with the head of a task, and the optimizer that trains both."""

import contextlib
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedConfig, PreTrainedModel, TrainingArguments, set_seed

from sibert import conversion
from sibert.evaluation import Examples
from sibert.evaluation.predictor import HEADS, whole_weights
from sibert.models import SibertPreTrainedModel
from sibert.models.example_inputs import config_of_folder
from sibert.optim import ClippedSGD, Hybrid, Lamb, ScaleInvariantModel, param_groups, schedule, schedule_groups
from sibert.training.converted import is_converted
from sibert.training.finetune_recipe import (
    DEFAULT_HEAD_LR,
    DEFAULT_LR,
    EQUILIBRIUM_TIMES,
    FinetuneRecipe,
    OptimizerName,
)

__all__ = ["build_task_model", "build_task_optimizer", "load_tokenizer", "optimizer_of", "takes_flat_batches"]


def load_tokenizer(source: str) -> Any:
    """The tokenizer of a run, a folder or a hub name.

    Args:
        source: Which.

    Raises:
        ValueError: If there is none.
    """
    _require_model(source)
    with _clear_errors(source, "tokenizer"):
        return transformers.AutoTokenizer.from_pretrained(source)


def build_task_model(recipe: FinetuneRecipe, examples: Examples) -> tuple[PreTrainedModel, list[str]]:
    """Open a pre-trained model with a head for a task; new parameters follow from the recipe's seed.

    Args:
        recipe: The recipe.
        examples: Of its task.

    Returns:
        The model, converted if the recipe says so, and what a user should know, in sentences.

    Raises:
        ValueError: If there is no such model, or none with such a head.
    """
    _require_model(recipe.model)
    set_seed(recipe.seed)
    notes: list[str] = []
    options: dict[str, Any] = {}
    if examples.task.kind not in ("qa", "embedding"):
        labels = examples.labels or ("value",)
        options["id2label"] = dict(enumerate(labels))
        options["label2id"] = {label: i for i, label in enumerate(labels)}
        options["num_labels"] = len(labels)
    if examples.task.kind in ("classification", "regression"):
        options["problem_type"] = "regression" if examples.task.kind == "regression" else "single_label_classification"
    with _clear_errors(recipe.model, "model"):
        config = transformers.AutoConfig.from_pretrained(recipe.model)
    own = getattr(config, "id2label", None) or {}
    if recipe.dropout is not None:
        _set_dropout(config, recipe.dropout)
    with whole_weights(recipe.model), _clear_errors(recipe.model, "model"):
        for name, value in options.items():
            setattr(config, name, value)
        kind = getattr(transformers, HEADS[examples.task.kind])
        model, loaded = kind.from_pretrained(
            recipe.model, config=config, ignore_mismatched_sizes=True, output_loading_info=True
        )
    known = ", ".join(map(str, own.values()))
    if replaced := sorted({key[0] for key in loaded.get("mismatched_keys", ())}):
        notes.append(f"the model's head had the labels {known} and is replaced: {', '.join(replaced)}")
    elif examples.labels and list(own.values()) != list(examples.labels) and not loaded["missing_keys"]:
        notes.append(f"the model's head had the labels {known} and goes on as it is, for {', '.join(examples.labels)}")
    bare = examples.task.kind == "embedding"
    body = [key for key in loaded["missing_keys"] if bare or key.startswith(f"{model.base_model_prefix}.")]
    body = [key for key in body if "pooler" not in key]
    if body:
        raise ValueError(f"{recipe.model} lacks weights of its encoder ({', '.join(sorted(body)[:3])}): it is damaged")
    if examples.task.kind == "embedding" and getattr(model, "pooler", None) is not None:
        model.pooler = None  # means of tokens do not pass through it, so nothing would train it
    if recipe.backend == "reference" and isinstance(model, SibertPreTrainedModel):
        model.set_attention_backend("reference")
    if recipe.convert:
        conversion.make_scale_invariant(model, granularity=recipe.convert)
    return model, notes


def _set_dropout(config: PreTrainedConfig, share: float) -> None:
    """Set all rates of dropout, which each family calls otherwise; those that are None follow another one."""
    rates = [
        name
        for name, value in config.to_dict().items()
        if ("dropout" in name or "pdrop" in name) and isinstance(value, int | float) and not isinstance(value, bool)
    ]
    if not rates:
        raise ValueError(f"{config.model_type} has no dropout that its configuration sets: leave dropout out")
    for name in rates:
        setattr(config, name, share)


def takes_flat_batches(recipe: FinetuneRecipe, model: PreTrainedModel, arguments: TrainingArguments) -> bool:
    """Whether batches come without padding: for SIBERT as it is.

    `torch.nn.DataParallel`, which Trainer takes for several GPUs of one process, would cut a flat batch anywhere.

    Args:
        recipe: The recipe.
        model: Of `build_task_model`.
        arguments: Of the trainer.
    """
    own = isinstance(model, SibertPreTrainedModel) and not recipe.convert
    return recipe.backend == "auto" and own and arguments.n_gpu <= 1


def optimizer_of(recipe: FinetuneRecipe, model: PreTrainedModel) -> OptimizerName:
    """The optimizer, with the default of the model filled in.

    Args:
        recipe: The recipe.
        model: The model.

    Raises:
        ValueError: If ClippedSGD is asked for and the model is not scale invariant.
    """
    invariant = bool(recipe.convert) or isinstance(model, ScaleInvariantModel)
    if recipe.optimizer == "clipped_sgd" and not invariant:
        raise ValueError(
            f"clipped_sgd needs a scale-invariant model, and {type(model).__name__} is none: add --convert row, or "
            "take --optimizer adamw"
        )
    optimizer = recipe.optimizer or ("clipped_sgd" if invariant else "adamw")
    if optimizer == "clipped_sgd" and recipe.lr is not None:
        raise ValueError("lr belongs to adamw and lamb; clipped_sgd takes intrinsic_lr, and head_lr for the head")
    if optimizer != "clipped_sgd" and (recipe.intrinsic_lr or recipe.head_lr):
        raise ValueError(f"intrinsic_lr and head_lr belong to clipped_sgd; {optimizer} takes lr")
    return optimizer


def build_task_optimizer(recipe: FinetuneRecipe, model: PreTrainedModel, steps: int) -> tuple[Optimizer, LRScheduler]:
    """Make optimizer and schedule.

    Args:
        recipe: The recipe.
        model: Of `build_task_model`.
        steps: Of the run.

    Returns:
        Both; scale-invariant groups never warm up under ClippedSGD.
    """
    name = optimizer_of(recipe, model)
    head_lr = DEFAULT_HEAD_LR if recipe.head_lr is None else recipe.head_lr
    intrinsic_lr = min(EQUILIBRIUM_TIMES / steps, 0.5) if recipe.intrinsic_lr is None else recipe.intrinsic_lr
    optimizer: Optimizer
    if recipe.convert:
        optimizer = conversion.build_optimizer(model, intrinsic_lr=intrinsic_lr, clip=recipe.clip, rest_lr=head_lr)
    elif name == "clipped_sgd":
        groups = _with_tokens_of_their_own(param_groups(model), model)
        optimizers: list[Optimizer] = [
            ClippedSGD([g for g in groups if g["scale_invariant"]], clip=recipe.clip, intrinsic_lr=intrinsic_lr)
        ]
        if head := [g for g in groups if not g["scale_invariant"]]:
            optimizers.append(torch.optim.AdamW(head, lr=head_lr, weight_decay=0.0))
        optimizer = optimizers[0] if len(optimizers) == 1 else Hybrid(optimizers)
    else:
        optimizer = _adaptive(recipe, model, name)
    warmup = round(recipe.warmup_share * steps) if steps > 1 else 0
    warmed, never_warm = schedule(recipe.schedule, steps, warmup_steps=warmup), schedule(recipe.schedule, steps)
    never = [g["name"] for g in optimizer.param_groups if g.get("scale_invariant") and name == "clipped_sgd"]
    return optimizer, schedule_groups(optimizer, warmed, dict.fromkeys(never, never_warm))


def _with_tokens_of_their_own(groups: list[dict[str, Any]], model: PreTrainedModel) -> list[dict[str, Any]]:
    """Let each token's row turn at the scale of its own gradients.

    A task says most about tokens that are rare in its data, and they are a small part of the table's gradient. (In
    pre-training the table is one vector: its rare rows would follow noise, see docs/concepts/granularity.md.) In the
    paper's form the rows are not invariant on their own.
    """
    if getattr(model.config, "invariance", "joint") != "joint":
        tokens = model.get_input_embeddings().weight
        for group in groups:
            if group["scale_invariant"] and any(parameter is tokens for _, parameter in group["params"]):
                group["rows"] = True
    return groups


def _adaptive(recipe: FinetuneRecipe, model: PreTrainedModel, name: str) -> Optimizer:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay, "name": "matrices"},
        {"params": vectors, "weight_decay": 0.0, "name": "vectors"},
    ]
    lr = DEFAULT_LR[name] if recipe.lr is None else recipe.lr
    return Lamb(groups, lr=lr) if name == "lamb" else torch.optim.AdamW(groups, lr=lr)


def _require_model(source: str) -> None:
    """Refuse folders that hold no model of transformers; what is no folder may be a name of the hub."""
    folder = Path(source)
    if not folder.exists():
        return
    if (folder / "recipe.json").is_file() and not (folder / "config.json").is_file():
        raise ValueError(f"{source} has no model yet: go on with: sibert pretrain --resume {source}")
    if is_converted(folder):
        raise ValueError(f"{source} is converted already: give the plain folder it was made of, and --convert")
    config_of_folder(folder)


@contextlib.contextmanager
def _clear_errors(source: str, what: str) -> Any:
    """Say in one sentence why transformers cannot open a model."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        if not Path(source).exists():
            reason = f"it is no folder here, and from the Hugging Face hub it cannot be read ({reason})"
        raise ValueError(f"there is no {what} of this kind in {source}: {reason}") from error
