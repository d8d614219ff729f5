"""SVAG: the same drift and diffusion in steps that are smaller by l, hence closer to the SDE (arXiv 2102.12470).

A step draws two batches and combines their gradients,

    g = c1 g_1 + c2 g_2,   c1, c2 = (1 +- sqrt(2 l - 1)) / 2,

so that the mean stays (c1 + c2 = 1) and the covariance is multiplied by l (c1^2 + c2^2 = l). With eta / l instead of
eta, l steps have the drift and the covariance of one step of SGD, while the third cumulant falls like 1 / l: as l
grows, the law of the iterates converges to that of dX = -grad L dt + (eta Sigma)^(1/2) dW. If runs with l = 1 and
larger l agree, the equation models the run.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer, RMSprop

__all__ = ["SVAG", "gaussian_example_weights", "svag_coefficients"]


def svag_coefficients(multiplicity: float) -> tuple[float, float]:
    """c1 and c2.

    Args:
        multiplicity: l, at least 1.

    Raises:
        ValueError: For l < 1.
    """
    if not multiplicity >= 1.0:
        raise ValueError(f"l must be at least 1, got {multiplicity}")
    root = math.sqrt(2.0 * multiplicity - 1.0)
    return (1.0 + root) / 2.0, (1.0 - root) / 2.0


class SVAG:
    """An optimizer, in steps that are smaller by l. l steps correspond to one of the optimizer's own.

    SGD's learning rate is divided by l, its weight decay stays. Of Adam and RMSprop (arXiv 2205.10287), 1 - b is
    divided by l, the learning rate by sqrt(l), and epsilon multiplied by sqrt(l); AdamW's decoupled decay is divided by
    sqrt(l), too. A learning-rate schedule is made after this, and its boundaries are multiplied by l.

    Args:
        optimizer: SGD without momentum, Adam, AdamW, or RMSprop without momentum and centring; changed in place, before
            its first step.
        multiplicity: l, at least 1; 1 changes nothing.

    Raises:
        TypeError: For another optimizer, for which no SDE is known.
        ValueError: For l < 1, momentum, or an optimizer that has made a step.
    """

    def __init__(self, optimizer: Optimizer, multiplicity: float) -> None:
        self.optimizer = optimizer
        self.multiplicity = multiplicity
        self.coefficients = svag_coefficients(multiplicity)
        if not isinstance(optimizer, SGD | Adam | RMSprop):
            raise TypeError(f"SVAG has a form for SGD, Adam, AdamW and RMSprop, not for {type(optimizer).__name__}")
        if optimizer.state:
            raise ValueError("the optimizer has made steps: its state belongs to steps of another size; give a new one")
        for group in optimizer.param_groups:
            if group.get("momentum") or group.get("centered") or group.get("amsgrad"):
                raise ValueError("SVAG has no form for momentum of SGD and RMSprop, centred RMSprop and AMSGrad")
        for group in optimizer.param_groups:
            self._shrink(group)

    def step(self, closure: Callable[[], Tensor | float]) -> float:
        """One small step.

        Args:
            closure: Draws a new, independent batch at each call, clears the gradients, calls `backward` on the loss and
                returns it. It is called twice, for l = 1 once.

        Returns:
            Mean loss of the batches.
        """
        c1, c2 = self.coefficients
        if c2 == 0.0:
            loss = _number(closure())
            self.optimizer.step()
            return loss
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        first_loss = _number(closure())
        first = [None if p.grad is None else p.grad.detach().clone() for p in parameters]
        second_loss = _number(closure())
        with torch.no_grad():
            for parameter, one in zip(parameters, first, strict=True):
                if parameter.grad is None and one is not None:
                    parameter.grad = c1 * one
                elif parameter.grad is not None:
                    parameter.grad.mul_(c2)
                    if one is not None:
                        parameter.grad.add_(one, alpha=c1)
        self.optimizer.step()
        return (first_loss + second_loss) / 2.0

    def _shrink(self, group: dict[str, Any]) -> None:
        many, root = self.multiplicity, math.sqrt(self.multiplicity)
        plain = isinstance(self.optimizer, SGD)
        for name in ("lr", "initial_lr"):
            if name in group:
                group[name] = group[name] / (many if plain else root)
        if plain:
            return
        group["eps"] = group["eps"] * root
        if "betas" in group:
            group["betas"] = tuple(1.0 - (1.0 - b) / many if b else 0.0 for b in group["betas"])
        else:
            group["alpha"] = 1.0 - (1.0 - group["alpha"]) / many
        if group.get("decoupled_weight_decay"):
            group["weight_decay"] = group["weight_decay"] / root


def _number(loss: Tensor | float) -> float:
    return loss.detach().item() if isinstance(loss, Tensor) else float(loss)


def gaussian_example_weights(
    examples: int, batch_size: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Weights of the examples' losses that give a full-batch gradient the noise of a batch, but Gaussian.

    1 + sqrt(n / B) (xi_i - mean xi), xi independent and normal: the gradient of the mean of weight times loss then has
    the full gradient as mean and 1 / B of the covariance of the examples' gradients. Draw new ones in each step (noisy
    gradient descent).

    Args:
        examples: n.
        batch_size: B, of the batches whose noise it shall be.
        generator: Where the numbers come from; None = torch's own.
        dtype: Of the result.

    Returns:
        [n]; their mean is 1.
    """
    if not 1 <= batch_size <= examples:
        raise ValueError(f"batch_size must be between 1 and the {examples} examples, got {batch_size}")
    normal = torch.randn(examples, generator=generator, dtype=dtype)
    return 1.0 + math.sqrt(examples / batch_size) * (normal - normal.mean())
