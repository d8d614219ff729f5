"""What a step tells about a scale-invariant group, and the few scalars in which a group remembers it.

All scalars are 0-dim float64 tensors on the group's device, so that a step can write them without waiting, and they
live in the parameter group, so that `state_dict` saves them and a resumed run logs what an uninterrupted one would.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sibert.optim import synchronisation

__all__ = ["GroupStatistics"]

_LAST_STEP = (
    "gamma",
    "step_eta",
    "effective_lr",
    "param_norm",
    "grad_norm",
    "clip_factor",
    "angular_update",
)
_CARRIED = ("next_param_norm",)
_WINDOW = ("window_steps", "window_clipped", "window_squared_sigma")
_COUNTERS = ("steps", "skipped_steps")
RECORDED = _COUNTERS + _LAST_STEP + _CARRIED + _WINDOW


@dataclass(frozen=True)
class GroupStatistics:
    """Measurements of one scale-invariant group at its last step, as plain numbers.

    In a group of rows, each quantity is a mean over the rows that moved in that step: the root mean square of norms and
    angles, the mean of `clip_factor`, `clipped_fraction` and `effective_lr`; eta is weighted such that
    eta^2 mean_squared_sigma is the mean of its rows'.

    The symbols are those of Algorithm 1 of arXiv 2202.00980: parameters x, gradient g, learning rate eta, weight decay
    lambda, clip factor s. Quantities of a step that has not happened yet are NaN. The formulas of `angular_update` and
    `equilibrium_norm` presuppose that the group is scale invariant, so that g is orthogonal to x.

    Attributes:
        name: The group's name.
        steps: Steps that the group has taken; skipped ones and ones with lr 0 are not counted.
        skipped_steps: Steps refused because a gradient, of this or another group, was not finite.
        lr: The group's `lr`: eta itself, or in intrinsic mode the multiplier of the calibrated eta. No unit.
        eta: Effective eta of the last step: learning rate times multiplier. Unit: squared parameter per loss.
        weight_decay: lambda. Unit: 1 / eta.
        intrinsic_lr: eta * lambda at the last step: fraction of x that decays in one step.
        effective_lr: eta / |x|^2: learning rate on the unit sphere, per unit of loss.
        param_norm: |x| before the last step.
        grad_norm: |g| before clipping.
        clip_factor: s, in (0, 1]; 1 where nothing was clipped.
        clipped_fraction: Fraction of the window's steps with s < 1; the window starts at the last reset.
        mean_squared_sigma: Mean over the window of (s |g| |x|)^2, the squared norm of the clipped gradient at x/|x|.
            Unit: squared loss.
        angular_update: Angle between x before and after the step, atan(eta s |g| / ((1 - eta lambda) |x|)), in radians.
        equilibrium_norm: The norm at which decay and gradient balance, (eta sigma^2 / (lambda (2 - eta lambda)))^(1/4)
            with sigma^2 = mean_squared_sigma; infinite without weight decay.
    """

    name: str
    steps: int
    skipped_steps: int
    lr: float
    eta: float
    weight_decay: float
    intrinsic_lr: float
    effective_lr: float
    param_norm: float
    grad_norm: float
    clip_factor: float
    clipped_fraction: float
    mean_squared_sigma: float
    angular_update: float
    equilibrium_norm: float


def empty_record(home: torch.device) -> dict[str, Tensor]:
    """Create the scalars of a group that has not stepped: counters and sums 0, last-step values NaN.

    Args:
        home: The group's device.

    Returns:
        One 0-dim float64 tensor for each name in `RECORDED`.
    """
    return {
        key: torch.full((), math.nan if key in _LAST_STEP + _CARRIED else 0.0, dtype=torch.float64, device=home)
        for key in RECORDED
    }


def record_step(
    record: dict[str, Tensor],
    *,
    gamma: float,
    step_eta: Tensor | float,
    effective_lr: Tensor | float,
    param_norm: Tensor | float,
    next_param_norm: Tensor | float,
    grad_norm: Tensor | float,
    clip_factor: Tensor | float,
    clipped: Tensor | float,
    squared_sigma: Tensor | float,
    angular_update: Tensor | float,
    hold: Tensor | bool,
) -> None:
    """Write one step into a group's scalars, unless it is held; plain numbers only where the host may read.

    Args:
        record: The scalars, changed in place.
        gamma: eta lambda of the step.
        step_eta: Effective eta of the step.
        effective_lr: eta / |x|^2.
        param_norm: |x| before the step.
        next_param_norm: |x| after it.
        grad_norm: |g| before clipping.
        clip_factor: s.
        clipped: Share of the group's vectors with s < 1: 0 or 1 where the group is one vector.
        squared_sigma: (s |g| |x|)^2.
        angular_update: Angle between x before and after the step.
        hold: Where True nothing is written.
    """
    last = {
        "gamma": gamma,
        "step_eta": step_eta,
        "effective_lr": effective_lr,
        "param_norm": param_norm,
        "grad_norm": grad_norm,
        "clip_factor": clip_factor,
        "angular_update": angular_update,
        "next_param_norm": next_param_norm,
    }
    added = {"steps": 1.0, "window_steps": 1.0, "window_clipped": clipped, "window_squared_sigma": squared_sigma}
    if synchronisation.host_may_read(record["steps"].device):
        if not hold:
            for key, value in last.items():
                record[key].fill_(value)
            for key, term in added.items():
                record[key] += term
        return
    assert isinstance(hold, Tensor)
    for key, value in last.items():
        record[key].copy_(torch.where(hold, record[key], value))
    for key, term in added.items():
        record[key] += torch.where(hold, 0.0, term)


def clear_window(record: dict[str, Tensor]) -> None:
    """Begin a new window.

    Args:
        record: A group's scalars, changed in place.
    """
    for key in _WINDOW:
        record[key].zero_()


def group_statistics(group: dict[str, Any], values: dict[str, float]) -> GroupStatistics:
    """Derive the statistics of a group from its recorded scalars.

    Args:
        group: The parameter group, for its name, lr and weight decay.
        values: The record, read to the host.

    Returns:
        The statistics.
    """
    gamma, eta, effective_lr, norm, gradient, clip_factor, angle = (values[key] for key in _LAST_STEP)
    by_intrinsic_lr = gamma / eta if eta else math.nan
    weight_decay = by_intrinsic_lr if group["intrinsic_lr"] is not None else float(group["weight_decay"])
    steps_in_window = values["window_steps"] or math.nan
    squared_sigma = values["window_squared_sigma"] / steps_in_window
    return GroupStatistics(
        name=group["name"],
        steps=int(values["steps"]),
        skipped_steps=int(values["skipped_steps"]),
        lr=float(group["lr"]),
        eta=eta,
        weight_decay=weight_decay,
        intrinsic_lr=gamma,
        effective_lr=effective_lr,
        param_norm=norm,
        grad_norm=gradient,
        clip_factor=clip_factor,
        clipped_fraction=values["window_clipped"] / steps_in_window,
        mean_squared_sigma=squared_sigma,
        angular_update=angle,
        equilibrium_norm=(eta**2 * squared_sigma / (gamma * (2.0 - gamma))) ** 0.25 if gamma else math.inf,
    )
