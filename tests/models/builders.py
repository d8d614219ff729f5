"""Models for tests: random biases and gains, so that nothing holds only because a parameter is 0 or 1."""

import torch
from torch import nn

from sibert.models import SibertConfig


def roughened(model: nn.Module, seed: int = 5) -> nn.Module:
    """Add noise to every parameter of a model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
            )
    return model


def deep_config(**fields) -> SibertConfig:
    """Twelve narrow layers."""
    return SibertConfig.of_size(
        "nano",
        **{"num_hidden_layers": 12, "vocab_size": 97, "max_position_embeddings": 40, "invariance": "joint", **fields},
    )
