"""Which hyper-parameters of `ClippedSGD` make sense."""

import math
from typing import Any

import torch

from sibert.optim.norms import home_of, squared_norm
from sibert.optim.updates import IMPLEMENTATIONS

__all__ = ["check_hyper_parameters", "check_norm", "host_gamma"]

_FROZEN_BY_CLIPPING = (
    "clipping needs weight_decay > 0, got {group}: weight_decay=0: the threshold sqrt(2 C lambda / eta) |x| would be "
    "0, every gradient would be clipped to nothing and the model would never move; give a weight decay, or clip=None"
)


def host_gamma(group: dict[str, Any]) -> float:
    """Give gamma = eta lambda at the group's present lr; the calibrated eta cancels, so it is a host number.

    Args:
        group: A group of `ClippedSGD`.

    Returns:
        lr * weight_decay, or lr * intrinsic_lr in intrinsic mode, in [0, 1).

    Raises:
        ValueError: If lr is negative or the product not below 1.
    """
    lr = float(group["lr"])
    gamma = lr * float(group["weight_decay"] if group["intrinsic_lr"] is None else group["intrinsic_lr"])
    if not (lr >= 0 and gamma < 1):
        raise ValueError(
            f"{group['name']}: lr must be >= 0 and lr * weight_decay (or lr * intrinsic_lr) < 1, got lr={lr} and a "
            f"product of {gamma}: parameters would be scaled by {1 - gamma}; lower lr or check the scheduler"
        )
    return gamma


def check_hyper_parameters(group: dict[str, Any]) -> None:
    """Refuse numbers that are out of range, contradict each other, or freeze the model.

    Args:
        group: A group of `ClippedSGD`.

    Raises:
        TypeError: If a hyper-parameter is not a Python number.
        ValueError: If one is out of range.
    """
    name = group["name"]
    lr, weight_decay, intrinsic_lr, clip = (group[key] for key in ("lr", "weight_decay", "intrinsic_lr", "clip"))
    if intrinsic_lr is None and (lr is None or weight_decay is None):
        raise ValueError(f"{name}: give lr and weight_decay, or intrinsic_lr alone; got {lr=}, {weight_decay=}")
    numbers = {"lr": lr, "weight_decay": weight_decay, "intrinsic_lr": intrinsic_lr, "clip": clip}
    for key, value in numbers.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(
                f"{name}: {key} must be a Python number, got {type(value).__name__}; convert it with float()"
            )
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}: {key} must be a finite number >= 0, got {value}")
    if clip is not None and clip <= 1:
        raise ValueError(
            f"{name}: clip must be greater than 1, got {clip}: it is the longest gradient allowed, relative to the "
            "gradients of equilibrium, and at 1 or less these would be clipped, too; use 2, or None for no clipping"
        )
    if not isinstance(group["two_sided"], bool):
        raise TypeError(f"{name}: two_sided must be True or False, got {group['two_sided']!r}")
    if group["two_sided"] and clip is None:
        raise ValueError(
            f"{name}: two_sided needs a clip factor, got clip=None: gradients are brought between 1 / clip and clip "
            "times those of equilibrium; give clip=2.0, or two_sided=False"
        )
    if group["implementation"] not in (None, *IMPLEMENTATIONS):
        raise ValueError(
            f"{name}: implementation must be None or one of {IMPLEMENTATIONS}, got {group['implementation']!r}"
        )
    if intrinsic_lr is not None and not 0 < intrinsic_lr < 1:
        raise ValueError(f"{name}: intrinsic_lr = eta * lambda must lie in (0, 1), got {intrinsic_lr}")
    if intrinsic_lr is None and clip is not None and weight_decay == 0:
        raise ValueError(_FROZEN_BY_CLIPPING.format(group=name))
    host_gamma(group)


def check_norm(group: dict[str, Any]) -> None:
    """Refuse a group that is 0 or not finite.

    Args:
        group: A group of `ClippedSGD`.

    Raises:
        ValueError: If its norm is not a positive finite number.
    """
    with torch.no_grad():
        norm = squared_norm(group["params"], home_of(group["params"])).sqrt().item()
    if not (norm > 0 and math.isfinite(norm)):
        raise ValueError(
            f"{group['name']}: the parameters have norm {norm}; a scale-invariant loss is a function of the direction "
            "x/|x|, so x must be finite and not 0; initialise the model before the optimizer"
        )
