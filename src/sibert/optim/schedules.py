"""Learning-rate schedules: functions from the step to a multiplier of the base learning rate.

A schedule is a small frozen object that depends on nothing but the step: it can be pickled, compared, stored in a
checkpoint, and resumed anywhere. None of them warms up unless asked to: a calibrated scale-invariant group starts at
equilibrium and needs no warm-up.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["SCHEDULES", "Schedule", "default_intrinsic_lr", "schedule", "schedule_groups"]


def constant(progress: float, final: float) -> float:
    """Keep the multiplier at 1.

    Args:
        progress: Elapsed fraction of the schedule, in [0, 1].
        final: Not used.

    Returns:
        1.
    """
    return 1.0


def linear(progress: float, final: float) -> float:
    """Fall from 1 to `final` at constant speed.

    Args:
        progress: Elapsed fraction of the schedule, in [0, 1].
        final: Multiplier at the end.

    Returns:
        The multiplier.
    """
    return final + (1.0 - final) * (1.0 - progress)


def cosine(progress: float, final: float) -> float:
    """Fall from 1 to `final` along half a cosine.

    Args:
        progress: Elapsed fraction of the schedule, in [0, 1].
        final: Multiplier at the end.

    Returns:
        The multiplier.
    """
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def piecewise(progress: float, final: float) -> float:
    """Divide by 10 at 60 % and again at 90 %, as the paper does at 600k and 900k of its 1M steps.

    Args:
        progress: Elapsed fraction of the schedule, in [0, 1].
        final: Not used.

    Returns:
        1, 0.1 or 0.01.
    """
    if progress < 0.6:
        return 1.0
    return 0.1 if progress < 0.9 else 0.01


SCHEDULES: Final[Mapping[str, Callable[[float, float], float]]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "piecewise": piecewise,
}
"""By name, the share of the peak learning rate at a progress from 0 to 1, given the share at the end."""


@dataclass(frozen=True)
class Schedule:
    """The multiplier of the learning rate as a function of the step; make one with `schedule`.

    Attributes:
        name: A key of `SCHEDULES`.
        total_steps: Steps of the run; afterwards the last multiplier stays.
        warmup_steps: Steps over which the multiplier first rises, from 1 / (warmup_steps + 1), to 1.
        final: Multiplier that "linear" and "cosine" reach at total_steps.
    """

    name: str
    total_steps: int
    warmup_steps: int = 0
    final: float = 0.0

    def __call__(self, step: int) -> float:
        """Give the multiplier for a step.

        Args:
            step: Number of steps already taken: 0 for the first.

        Returns:
            A number in [0, 1].
        """
        if step < self.warmup_steps:
            # Not step / warmup_steps: the first step would have learning rate 0 and be lost.
            return (step + 1) / (self.warmup_steps + 1)
        elapsed = min(step, self.total_steps)
        if self.name == "piecewise":
            # The paper's milestones are fractions of the run, warm-up included.
            return piecewise(elapsed / self.total_steps, self.final)
        progress = (elapsed - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return SCHEDULES[self.name](progress, self.final)


def schedule(name: str, total_steps: int, warmup_steps: int = 0, final: float = 0.0) -> Schedule:
    """Make a schedule.

    Args:
        name: "constant", "linear", "cosine" or "piecewise".
        total_steps: Steps of the run, >= 1.
        warmup_steps: Steps of linear warm-up, in [0, total_steps).
        final: Multiplier that "linear" and "cosine" reach at total_steps, in [0, 1].

    Returns:
        A function from the number of steps already taken to the multiplier.

    Raises:
        ValueError: If the name is unknown or a number out of range.

    Example:
        >>> halfway = schedule("linear", total_steps=10)
        >>> halfway(5)
        0.5
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule must be one of {sorted(SCHEDULES)}, got {name!r}")
    if total_steps < 1:
        raise ValueError(f"total_steps must be at least 1, got {total_steps}")
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"warmup_steps must lie in [0, total_steps) = [0, {total_steps}), got {warmup_steps}")
    if not 0 <= final <= 1:
        raise ValueError(f"final must lie in [0, 1], got {final}")
    return Schedule(name, total_steps, warmup_steps, final)


def schedule_groups(
    optimizer: Optimizer,
    default: Callable[[int], float],
    by_group: Mapping[str, Callable[[int], float]] | None = None,
    last_epoch: int = -1,
) -> LambdaLR:
    """Drive the learning rate of every group of an optimizer by a schedule, some by one of their own.

    Args:
        optimizer: Its groups may carry a "name".
        default: Schedule of the groups that `by_group` does not name.
        by_group: Schedules by group name, for example {"head": schedule("linear", 1000, warmup_steps=10)}.
        last_epoch: Steps already taken less one, as for torch's schedulers.

    Returns:
        A torch scheduler; its state_dict holds the parameters of the schedules.

    Raises:
        ValueError: If `by_group` names a group that the optimizer does not have.
    """
    by_group = by_group or {}
    names = [group.get("name") for group in optimizer.param_groups]
    unknown = sorted(set(by_group) - set(names))
    if unknown:
        raise ValueError(f"no group is named {', '.join(unknown)}; the optimizer has {names}")
    return LambdaLR(optimizer, [by_group.get(name or "", default) for name in names], last_epoch)


def default_intrinsic_lr(total_steps: int, D: float = 3.5) -> float:
    """Give the intrinsic learning rate eta * lambda that suits a budget of steps.

    A group forgets its initial norm in about 1 / (2 eta lambda) steps, so with eta lambda = D / T a run of T steps at a
    constant rate is 2 D such times long; with a schedule that falls to 0, about D.

    Args:
        total_steps: T, the steps of the run.
        D: Length of the run in units of 1 / (eta lambda). 3.5 is near the best of groups that are invariant on their
            own, from 512 to 3500 steps (LOGBOOK, 2026-11-28); the paper's joint group does not mind 10.

    Returns:
        D / T.

    Raises:
        ValueError: If D / T is not in (0, 1/2], where Theorem 4.1 holds.

    References:
        Theorem 4.1 of arXiv 2202.00980.
    """
    if not (D > 0 and total_steps >= 2 * D):
        raise ValueError(
            f"the intrinsic learning rate D / total_steps must lie in (0, 1/2], got D={D}, total_steps={total_steps}: "
            f"give at least {math.ceil(2 * D) if D > 0 else 1} steps, or set the intrinsic learning rate yourself"
        )
    return D / total_steps
