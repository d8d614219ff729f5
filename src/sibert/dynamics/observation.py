"""Evaluating a loss and its gradients without leaving a trace in the model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["observed", "observed_parameters", "seed_observed"]


@contextmanager
def observed(model: nn.Module) -> Iterator[None]:
    """Whatever is evaluated within, the model and the random numbers are as they were afterwards.

    Running statistics (buffers) are put back, and the states of torch's generators; `.grad` is not touched by
    `torch.autograd.grad`, which is what the instruments use. The mode (train or eval) is not changed at all.

    Args:
        model: Any module.

    Yields:
        None
    """
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        with torch.random.fork_rng(_devices(model)):
            yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer  # a forward pass may have put another tensor there
                # Only what has changed: autograd refuses to read a buffer again that has been written to.
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def observed_parameters(model: nn.Module, parameters: Sequence[nn.Parameter] | None) -> list[nn.Parameter]:
    """List the parameters in which something is differentiated, each once, however often it is named.

    Args:
        model: Any module.
        parameters: Those that were chosen; None = all trainable ones.

    Returns:
        Maybe none.
    """
    chosen = [p for p in model.parameters() if p.requires_grad] if parameters is None else parameters
    return list(dict.fromkeys(chosen))


def seed_observed(model: nn.Module, seed: int) -> None:
    """Seed the generators that `observed` puts back; torch.manual_seed would reach all others, too.

    Args:
        model: The observed one.
        seed: Of the generators of the CPU and of the model's devices.
    """
    torch.default_generator.manual_seed(seed)
    for device in _devices(model):
        torch.cuda.default_generators[device].manual_seed(seed)


def _devices(model: nn.Module) -> list[int]:
    """Indices of the model's CUDA devices."""
    return sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
