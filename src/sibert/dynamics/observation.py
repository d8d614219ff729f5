"""Evaluating a loss and its gradients without leaving a trace in the model."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["observed"]


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
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(sorted(device.index or 0 for device in devices)):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
