"""A model of a folder's configuration, without its weights, and inputs on which it runs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

__all__ = ["class_of", "config_of_folder", "example_inputs", "model_of_folder"]

BATCH, LENGTH = 2, 8


def model_of_folder(folder: Path, *, head: bool = False) -> tuple[nn.Module, dict[str, Any]]:
    """Build the model that a folder describes, with random weights, and inputs for it.

    Args:
        folder: A run, or any folder with the `config.json` of a model that transformers knows.
        head: With the head of the saved model; without it, the encoder alone.

    Returns:
        The model in evaluation mode, and its inputs by name.

    Raises:
        ValueError: If the folder has no configuration, or none of which transformers can build a model.
    """
    config = config_of_folder(folder)
    kind = class_of(config.architectures) if head else AutoModel
    try:
        model: PreTrainedModel = kind.from_config(config) if kind is AutoModel else kind(config)
    except Exception as error:  # whatever a layer raises that cannot be of these sizes
        raise ValueError(
            f"no model can be built of {folder / 'config.json'}: {type(error).__name__}: {error}; mend what it says "
            "there, or save the model again"
        ) from error
    if not head and getattr(model, "pooler", None) is not None:
        model.pooler = None  # what it gives is no part of the encoder
    return model.eval(), example_inputs(model)


def config_of_folder(folder: Path) -> PreTrainedConfig:
    """Read the configuration of a model's folder.

    Args:
        folder: A run, or any folder with the `config.json` of a model that transformers knows.

    Raises:
        ValueError: If the folder has no configuration, or none that transformers knows and accepts.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} has no config.json: give a finished run, or a folder with a model of transformers")
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no valid JSON ({error}): save the model again") from error
    kind = description.get("model_type") if isinstance(description, dict) else None
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise ValueError(
            f"{file} has model_type {kind!r}, which transformers {transformers.__version__} does not know: update it, "
            "or give package.module:function"
        )
    try:
        return AutoConfig.from_pretrained(folder)
    except Exception as error:  # what checks the fields raises errors of its own
        raise ValueError(
            f"{file} is no configuration of {kind}: {type(error).__name__}: {error}; mend what it says there, or save "
            "the model again"
        ) from error


def class_of(architectures: Sequence[str] | None) -> Any:
    """The class that saved a model.

    Args:
        architectures: Names of classes, as in a configuration.

    Raises:
        ValueError: If neither transformers nor we have it.
    """
    import sibert.models

    for name in architectures or []:
        kind = getattr(sibert.models, name, None) or getattr(transformers, name, None)
        if kind is not None:
            return kind
    raise ValueError(f"the configuration names no class that transformers has (architectures: {architectures})")


def example_inputs(model: PreTrainedModel) -> dict[str, Any]:
    """Inputs of the kind that a model takes: tokens, images or sound.

    Args:
        model: Of transformers.

    Returns:
        By name; a cache is turned off where there is one.

    Raises:
        ValueError: If the model takes something else.
    """
    config, name = model.config, model.main_input_name
    generator = torch.Generator().manual_seed(0)
    inputs: dict[str, Any] = {}
    text = config.get_text_config()
    if name == "input_ids":
        high, positions = text.vocab_size, getattr(text, "max_position_embeddings", None) or LENGTH
        length = min(LENGTH, positions) if positions > 0 else LENGTH  # some say -1 where there is no limit
        inputs["input_ids"] = torch.randint(min(5, high - 1), high, (BATCH, length), generator=generator)
        if config.is_encoder_decoder:
            inputs["decoder_input_ids"] = inputs["input_ids"].flip(0)
    if name == "pixel_values" or hasattr(config, "vision_config"):
        vision = getattr(config, "vision_config", config)
        size = getattr(vision, "image_size", None) or 64
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        inputs["pixel_values"] = torch.randn(BATCH, vision.num_channels, height, width, generator=generator)
    if name == "input_values":
        inputs["input_values"] = torch.randn(BATCH, 4000, generator=generator)
    if not inputs:
        raise ValueError(
            f"{type(model).__name__} takes {name}, for which there are no example inputs: give "
            "package.module:function instead, a function that returns the model and its inputs"
        )
    if getattr(text, "use_cache", False):
        inputs["use_cache"] = False
    return inputs
