"""Saving converted models: plain weights by default, gains and directions on request.

A folder with gains and directions must never be taken for one with plain weights, for a library that finds no plain
weights starts from random ones. So its weights are in a file of another name, and its configuration is of another type:
whoever does not know about it stops.
"""

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sibert.conversion.weights import converted_weights, places

__all__ = [
    "CONVERTED_TYPE",
    "WEIGHTS",
    "SavesPlainWeights",
    "folded_state_dict",
    "load_directions",
    "save_as_before",
    "save_directions",
    "save_plain_weights",
    "take_plain_weights",
]

CONVERTED_TYPE = "sibert_converted"
WEIGHTS = "converted.safetensors"


def folded_state_dict(module: nn.Module, state_dict: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The state of a converted module under the names and with the weights that it would have after `fold`.

    Args:
        module: After `make_scale_invariant`; it is not changed.
        state_dict: Of the module; None = the present one.
    """
    state = dict(module.state_dict() if state_dict is None else state_dict)
    folded: dict[int, Tensor] = {}
    for path, _, name, several in places(module):
        prefix = ".".join(part for part in (path, "parametrizations", name) if part)
        gain, direction = (state.pop(f"{prefix}.original{i}", None) for i in (0, 1))
        if gain is not None and direction is not None and id(several) not in folded:
            folded[id(several)] = several[0](gain, direction)
        if id(several) in folded:
            state[".".join(part for part in (path, name) if part)] = folded[id(several)]
    return state


def take_plain_weights(module: nn.Module, state: dict[str, Tensor], prefix: str, *others: Any) -> None:
    """Turn plain weights that are being loaded into gains and directions: a hook before `load_state_dict`.

    Whoever loads with `strict=False`, as `transformers.Trainer` does, would keep the present weights otherwise.

    Args:
        module: After `make_scale_invariant`.
        state: Changed in place.
        prefix: Of the module's names in it.
        others: Of no concern.
    """
    taken: dict[int, tuple[Tensor, Tensor]] = {}
    found = [(f"{prefix}{path}." if path else prefix, name, several) for path, _, name, several in places(module)]
    for before, name, several in found:
        plain = state.pop(f"{before}{name}", None)
        if plain is not None:
            taken[id(several)] = several[0].right_inverse(plain)
    for before, name, several in found:
        for i, tensor in enumerate(taken.get(id(several), ())):
            state.setdefault(f"{before}parametrizations.{name}.original{i}", tensor)
    if taken:
        warnings.warn(
            "plain weights were loaded into a converted model: it computes what they do, but the norms of its "
            "directions begin anew (sibert.training.DirectionsCallback restores them when a Trainer goes on)",
            stacklevel=2,
        )


def save_directions(module: nn.Module, file: Path) -> None:
    """Write gains and directions alone.

    Args:
        module: After `make_scale_invariant`.
        file: Replaced if it exists.
    """
    partial = file.with_name(f"{file.name}.partial")
    save_file({name: tensor.contiguous() for name, tensor in _directions(module).items()}, partial, {"format": "pt"})
    os.replace(partial, file)


def load_directions(module: nn.Module, file: Path) -> None:
    """Read gains and directions of the same model.

    Args:
        module: After `make_scale_invariant`; changed in place.
        file: As written by `save_directions`.

    Raises:
        ValueError: If they are not those of the same weights; nothing has changed then.
    """
    state, own = load_file(file), _directions(module)
    shapes, expected = ({name: tuple(t.shape) for name, t in tensors.items()} for tensors in (state, own))
    if shapes != expected:
        wrong = sorted(name for name in {*shapes, *expected} if shapes.get(name) != expected.get(name))
        raise ValueError(f"{file} belongs to a model that was converted otherwise: {', '.join(wrong[:3])} do not fit")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])


def _directions(module: nn.Module) -> dict[str, Tensor]:
    """Gains and directions by name, tied ones once."""
    found: dict[int, tuple[str, Any]] = {}
    for path, _, name, several in places(module):
        found.setdefault(id(several), (".".join(part for part in (path, "parametrizations", name) if part), several))
    return {
        f"{prefix}.{name}": tensor
        for prefix, several in found.values()
        for name, tensor in (("original0", several.original0), ("original1", several.original1))
    }


class SavesPlainWeights:
    """What the class of a converted model of transformers has in front of its own: it saves plain weights."""

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *args: Any,
        state_dict: Mapping[str, Tensor] | None = None,
        fold: bool = True,
        **options: Any,
    ) -> Any:
        """As the model's own `save_pretrained`.

        Args:
            save_directory: The folder.
            args: Of the model's own.
            state_dict: What is saved instead of the present state.
            fold: Plain weights, for everybody. False: gains and directions, for `sibert.training.load_converted`.
            options: Of the model's own.
        """
        assert isinstance(self, nn.Module)
        if not fold:
            return _save_converted(self, Path(save_directory), state_dict)
        state = folded_state_dict(self, state_dict)
        return super().save_pretrained(save_directory, *args, state_dict=state, **options)  # type: ignore[misc]


def save_plain_weights(module: nn.Module) -> None:
    """Give a converted model of transformers, which has a `save_pretrained`, one that knows of the conversion."""
    own = type(module)
    if hasattr(own, "save_pretrained") and not issubclass(own, SavesPlainWeights):
        module.__class__ = type(own.__name__, (SavesPlainWeights, own), {"__module__": own.__module__})


def save_as_before(module: nn.Module) -> None:
    """Take back `save_plain_weights`."""
    if isinstance(module, SavesPlainWeights):
        module.__class__ = type(module).__bases__[1]


def _save_converted(module: nn.Module, folder: Path, state_dict: Mapping[str, Tensor] | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    state = dict(module.state_dict() if state_dict is None else state_dict)
    tensors: dict[int, str] = {}
    kept = {name: t.contiguous() for name, t in state.items() if tensors.setdefault(t.data_ptr(), name) == name}
    weights = converted_weights(module)
    config = module.config.to_dict()  # type: ignore[operator, union-attr]
    config["converted"] = {
        "model_type": config.get("model_type"),
        "granularity": weights[0].parametrisation.granularity,
        "weights": [weight.names[0] for weight in weights],
    }
    config["model_type"] = CONVERTED_TYPE
    config["architectures"] = [type(module).__name__]
    partial = folder / f"{WEIGHTS}.partial"
    save_file(kept, partial, metadata={"format": "pt"})
    os.replace(partial, folder / WEIGHTS)
    partial = folder / "config.json.partial"
    partial.write_text(json.dumps(config, indent=2, default=str) + "\n", encoding="utf-8")
    os.replace(partial, folder / "config.json")
