"""What a step tells about a scale-invariant group, and the few numbers in which a group remembers it.

A record is one float64 tensor on the group's device, so that a step can write it without waiting, and it lives in the
parameter group, so that `state_dict` saves it and a resumed run logs what an uninterrupted one would.

Shape suffixes: G = groups, K = numbers of a record.
"""

import math
from collections.abc import Mapping, Sequence
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
MEASURE_EVERY = 32
"""Steps between measurements of |x| that nothing but the statistics needs."""

CARRIED_TOLERANCE = 1e-3
"""Relative error at which the carried |x| is corrected at once; it stays near 1e-6 where the group is invariant."""

_PLACES = {name: place for place, name in enumerate(RECORDED)}
_ADDED = {"steps", "window_steps", "window_clipped", "window_squared_sigma"}
"""What a step adds to; the rest it replaces."""


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
        clip_factor: s; 1 where nothing was clipped, above 1 where two-sided clipping lengthened the gradient.
        clipped_fraction: Fraction of the window's steps with s < 1; the window starts at the last reset.
        mean_squared_sigma: Mean over the window of (min(s, 1) |g| |x|)^2, the squared norm of the gradient at x/|x|,
            clipped from above. Unit: squared loss.
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


def empty_record(home: torch.device) -> Tensor:
    """Create the record of a group that has not stepped: counters and sums 0, last-step values NaN.

    Args:
        home: The group's device.

    Returns:
        One number for each name in `RECORDED` [K].
    """
    values = [math.nan if key in _LAST_STEP + _CARRIED else 0.0 for key in RECORDED]
    return torch.tensor(values, dtype=torch.float64).to(home, non_blocking=True)


def renew_record(record: Tensor | Mapping[str, Tensor]) -> Tensor:
    """Bring the record of a run that was saved by an earlier version, a dict of tensors, to its present form.

    Args:
        record: As it was saved.

    Returns:
        The record [K].
    """
    return record if isinstance(record, Tensor) else torch.stack([record[key] for key in RECORDED])


def read_record(record: Tensor) -> dict[str, float]:
    """Read a record to the host, which waits for its device.

    Args:
        record: A group's record [K].

    Returns:
        Its numbers by their names.
    """
    return dict(zip(RECORDED, record.tolist(), strict=True))


def time_to_measure(record: Mapping[str, float]) -> bool:
    """Say whether the statistics ask for a measurement of |x| in this step, whether or not anything else needs it.

    Args:
        record: Of `read_record`.

    Returns:
        True once in `MEASURE_EVERY` steps.
    """
    return record["steps"] % MEASURE_EVERY == 0


def norm_to_record(record: Mapping[str, float], measured: float | None, clip_factor: float) -> float:
    """Choose between the measured |x| and the one carried from step to step by Pythagoras.

    A resumed run measures once more than an uninterrupted one, at its first step. For its log to be the same,
    measurements count only where both make them, or where the carried norm is wrong because the parameters were changed
    from outside.

    Args:
        record: Of `read_record`.
        measured: |x|, where it was measured.
        clip_factor: s.

    Returns:
        What to record.
    """
    carried = record["next_param_norm"]
    if measured is None:
        return carried
    wrong = not abs(carried - measured) <= CARRIED_TOLERANCE * measured
    return measured if time_to_measure(record) or wrong or clip_factor != 1 else carried


def record_step(record: Tensor, old: Mapping[str, float], values: Mapping[str, float]) -> None:
    """Write one step into the record of a group where the host may read.

    Args:
        record: Of the group [K], changed in place.
        old: What it says, of `read_record`.
        values: Every quantity of `record_steps`.
    """
    assert synchronisation.host_may_read(record.device)
    values = {"steps": 1.0, "window_steps": 1.0, **values}
    new = [old[key] + values[key] if key in _ADDED else values.get(key, old[key]) for key in RECORDED]
    record.copy_(torch.tensor(new, dtype=torch.float64))


def record_steps(records: Sequence[Tensor], values: Mapping[str, Tensor], hold_G: Tensor) -> None:
    """Write one step of many groups into their records, without waiting for the device.

    Args:
        records: Of the groups, each [K], changed in place.
        values: Quantities [G] by their names: gamma = eta lambda; step_eta, the effective eta; effective_lr =
            eta/|x|^2; param_norm, next_param_norm, |x| before and after; grad_norm, |g| before clipping; clip_factor,
            s; window_clipped, the share of the group's vectors with s < 1; window_squared_sigma, (min(s, 1) |g| |x|)^2;
            angular_update, the angle between x before and after.
        hold_G: Where True nothing is written.
    """
    old_GK = torch.stack(list(records))
    one_G = torch.ones_like(old_GK[:, 0])
    values = {"steps": one_G, "window_steps": one_G, **values}
    columns = old_GK.unbind(dim=1)
    new = [
        old_G + values[key] if key in _ADDED else values.get(key, old_G)
        for key, old_G in zip(RECORDED, columns, strict=True)
    ]
    new_GK = torch.where(hold_G[:, None], old_GK, torch.stack(new, dim=1))
    torch._foreach_copy_(list(records), list(new_GK.unbind()))


def count_skipped(records: Sequence[Tensor], skip: Tensor) -> None:
    """Count a step that was refused.

    Args:
        records: Of groups on one device, each [K], changed in place.
        skip: 0-dim bool tensor there; where False, nothing is counted.
    """
    place = _PLACES["skipped_steps"]
    torch._foreach_add_([record[place] for record in records], [skip.double()] * len(records))


def clear_window(record: Tensor) -> None:
    """Begin a new window.

    Args:
        record: A group's record [K], changed in place.
    """
    record[[_PLACES[key] for key in _WINDOW]] = 0.0


def group_statistics(group: dict[str, Any], values: Mapping[str, float]) -> GroupStatistics:
    """Derive the statistics of a group from its record.

    Args:
        group: The parameter group, for its name, lr and weight decay.
        values: Of `read_record`.

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
