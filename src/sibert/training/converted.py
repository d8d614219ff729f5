"""Folders with converted models: from plain weights to gains and directions, and opening them."""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from sibert.conversion import converted_weights, make_scale_invariant
from sibert.conversion.direction import Granularity
from sibert.conversion.saving import CONVERTED_TYPE, WEIGHTS, load_directions, save_directions
from sibert.evaluation.predictor import whole_weights
from sibert.homogeneity import Verdict, invariant_rows
from sibert.models.example_inputs import class_of, config_of_folder, example_inputs

__all__ = ["Conversion", "DirectionsCallback", "convert_folder", "is_converted", "load_converted"]

TOKENIZER_FILES = ("*token*", "vocab*", "merges*")


@dataclass(frozen=True)
class Conversion:
    """What was converted and how it was checked.

    Attributes:
        model: The converted model.
        names: Of the converted weights.
        share: Of all parameters, those that are directions.
        proved: What the checker says of rescaling each row (or weight) on its own, by the name of the weight.
        difference: Largest change of an output, relative to the largest entry, in float64.
    """

    model: nn.Module
    names: tuple[str, ...]
    share: float
    proved: dict[str, Verdict]
    difference: float


def convert_folder(
    source: Path,
    target: Path,
    *,
    granularity: Granularity = "row",
    exclude: tuple[str, ...] = (),
    check: bool = True,
) -> Conversion:
    """Convert the model of a folder and save it with its gains and directions, and its tokenizer.

    Args:
        source: Folder with a model of transformers and its weights.
        target: New folder.
        granularity: "row" or "matrix".
        exclude: Names or patterns of parameters that stay.
        check: Prove that the directions are invariant; computing that the function is the same is always done.

    Returns:
        What was done and how it was checked; saved.

    Raises:
        ValueError: If there is no model in the source, the target exists, or the function changed; nothing is written.
    """
    if target.exists() and any(target.iterdir()):
        raise ValueError(f"{target} exists and is not empty: give a new folder")
    if is_converted(source):
        raise ValueError(f"{source} is converted already: open it with sibert.training.load_converted")
    config = config_of_folder(source)
    with whole_weights(source):
        model = class_of(config.architectures).from_pretrained(source).eval()
    inputs = example_inputs(model)
    before = _outputs(model, inputs)
    make_scale_invariant(model, granularity=granularity, exclude=exclude)
    difference = _difference(before, _outputs(model, inputs))
    if not difference < 1e-4:
        raise ValueError(f"the converted model gives other outputs (by {difference:.1e}); nothing was written")
    weights = converted_weights(model)
    proved = _proved(model, inputs, granularity) if check else {}
    share = sum(w.direction.numel() for w in weights) / sum(p.numel() for p in model.parameters())
    _save(model, source, target)
    return Conversion(model, tuple(w.names[0] for w in weights), share, proved, difference)


def _save(model: Any, source: Path, target: Path) -> None:
    """Write model and tokenizer so that files appear one by one, each whole, `config.json` last; or nothing at all."""
    is_new = not target.exists()
    target.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".converted-", dir=target))
    try:
        model.save_pretrained(staging, fold=False)
        for file in (file for pattern in TOKENIZER_FILES for file in source.glob(pattern) if file.is_file()):
            shutil.copy2(file, staging / file.name)
        for file in sorted(staging.iterdir(), key=lambda file: file.name == "config.json"):
            os.replace(file, target / file.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if is_new and not any(target.iterdir()):
            target.rmdir()


def is_converted(folder: Path) -> bool:
    """Whether a folder was saved with gains and directions.

    Args:
        folder: Any.
    """
    file = folder / "config.json"
    if not file.is_file():
        return False
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no valid JSON ({error}): save the model again") from error
    return isinstance(description, dict) and description.get("model_type") == CONVERTED_TYPE


def load_converted(folder: str | Path) -> nn.Module:
    """Open a folder that was saved with gains and directions (`fold=False`).

    Args:
        folder: As written by `sibert convert` or `save_pretrained(..., fold=False)`.

    Returns:
        The converted model, in evaluation mode.

    Raises:
        ValueError: If the folder holds something else, or its weights do not fit.
    """
    folder = Path(folder)
    if not is_converted(folder):
        raise ValueError(f"{folder} holds no converted model: sibert convert makes one; open others by Auto classes")
    description = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    converted = description.pop("converted")
    description["model_type"] = converted["model_type"]
    kind = class_of(description["architectures"])
    model: nn.Module = kind(kind.config_class.from_dict(description)).eval()
    make_scale_invariant(model, granularity=converted["granularity"], include=converted["weights"])
    with whole_weights(folder):
        state = load_file(folder / WEIGHTS)
    missing, unexpected = model.load_state_dict(state, strict=False)
    known = {parameter for name, parameter in _tensors(model) if name in state}
    lacking = [name for name, parameter in _tensors(model) if name in missing and parameter not in known]
    if lacking or unexpected:
        raise ValueError(
            f"the weights of {folder} do not fit: missing {lacking[:3]}, unexpected {list(unexpected)[:3]}"
        )
    return model


class DirectionsCallback(TrainerCallback):  # type: ignore[misc]
    """Lets `transformers.Trainer` go on with a converted model bit for bit.

    A checkpoint of the Trainer has plain weights, which everybody can open, but which do not tell the norms of the
    directions. This puts gains and directions beside them, and takes them back when training is resumed.
    """

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Write gains and directions into the checkpoint."""
        if args.should_save:
            save_directions(model, self._file(args, state))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Read them if training goes on."""
        if state.global_step == 0:
            return
        file = self._file(args, state)
        if not file.is_file():
            raise ValueError(
                f"there are no gains and directions in {file.parent}: the run that is to go on had no "
                "DirectionsCallback, or its checkpoints are not in output_dir"
            )
        load_directions(model, file)

    @staticmethod
    def _file(args: TrainingArguments, state: TrainerState) -> Path:
        return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / WEIGHTS


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def _outputs(model: nn.Module, inputs: dict[str, Any]) -> list[Tensor]:
    with torch.no_grad():
        result = model(**inputs)
    return [
        t.double() for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, Tensor) and t.is_floating_point()
    ]


def _difference(before: list[Tensor], after: list[Tensor]) -> float:
    pairs = zip(before, after, strict=True)
    return max(float((b - a).abs().max() / a.abs().max().clamp_min(1e-30)) for a, b in pairs)


def _proved(model: nn.Module, inputs: dict[str, Any], granularity: Granularity) -> dict[str, Verdict]:
    from sibert.homogeneity import analyze

    names = {parameter: name for name, parameter in model.named_parameters()}
    directions = {weight.names[0]: names[weight.direction] for weight in converted_weights(model)}
    if granularity == "row":
        rows = invariant_rows(model, (), inputs)
        return {name: rows[direction] for name, direction in directions.items() if direction in rows}
    report = analyze(model, (), inputs, numeric=False)
    return {name: report.verdict(direction) for name, direction in directions.items()}
