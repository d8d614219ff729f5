"""Optimizers for scale-invariant networks: SGD with weight decay and relative clipping, LAMB for what is left."""

from sibert.optim.clipped_sgd import ClippedSGD
from sibert.optim.gradient_release import GradientRelease
from sibert.optim.groups import InvariantGroup, ScaleInvariantModel, build_optimizer, param_groups
from sibert.optim.hybrid import Hybrid
from sibert.optim.lamb import Lamb
from sibert.optim.schedules import SCHEDULES, Schedule, default_intrinsic_lr, schedule, schedule_groups
from sibert.optim.statistics import GroupStatistics

__all__ = [  # noqa: RUF022  (grouped by what they do)
    # optimizers
    "ClippedSGD",
    "GradientRelease",
    "Hybrid",
    "Lamb",
    # groups
    "InvariantGroup",
    "ScaleInvariantModel",
    "build_optimizer",
    "param_groups",
    # measurements
    "GroupStatistics",
    # schedules
    "SCHEDULES",
    "Schedule",
    "default_intrinsic_lr",
    "schedule",
    "schedule_groups",
]
