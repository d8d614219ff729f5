"""One step of many groups on a device whose numbers the host does not read.

A model has a hundred groups, each step of Algorithm 1 some forty operations on single numbers, and each operation on a
device costs microseconds however small it is. So the numbers of all groups are tensors [G], and every operation is one
for all of them. What must not happen is left undone by selection, never by a multiplication with 0, which would turn an
infinite gradient into NaN.

Shape suffixes: G = groups.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sibert.optim.clipping import clip_factors, relative_bounds
from sibert.optim.hyper_parameters import host_gamma
from sibert.optim.norms import home_of
from sibert.optim.rounding import Noise
from sibert.optim.shards import local_shard
from sibert.optim.statistics import record_steps
from sibert.optim.updates import descend_each

__all__ = ["step_sizes", "step_vectors"]


@torch.no_grad()
def step_vectors(
    groups: Sequence[dict[str, Any]],
    gradients: Sequence[Sequence[Tensor | None]],
    grad_norm_G: Tensor,
    param_norm_G: Tensor,
    skip: Tensor,
    noises: Sequence[Noise | None],
) -> None:
    """Take one step of every group as one vector.

    Args:
        groups: Groups of `ClippedSGD` without "rows", with lr > 0, whose first parameters are on one device.
        gradients: Of each group one for each parameter, placed like it; None is a zero gradient.
        grad_norm_G: |g| of each group, float64.
        param_norm_G: |x| of each group, float64.
        skip: 0-dim bool tensor; where True, nothing changes by a single bit.
        noises: For parameters in bfloat16, see `ClippedSGD`.
    """
    home = home_of(groups[0]["params"])
    gammas = [host_gamma(group) for group in groups]
    gamma_G, lr_G, calibration_G, longest_G, shortest_G = on_device(
        [gammas, [float(group["lr"]) for group in groups], *zip(*map(constants, groups, gammas), strict=True)], home
    )
    intrinsic = [group["eta"] for group in groups if group["intrinsic_lr"] is not None]
    one = torch.ones((), dtype=torch.float64, device=home)
    kept_G = torch.stack([one if group["intrinsic_lr"] is None else group["eta"] for group in groups])
    kept_G, eta_G, clip_G = step_sizes(
        kept_G, param_norm_G, grad_norm_G, skip,
        lr=lr_G, calibration=calibration_G, longest=longest_G, shortest=shortest_G,
    )  # fmt: skip
    if intrinsic:
        kept = [kept for kept, group in zip(kept_G.unbind(), groups, strict=True) if group["intrinsic_lr"] is not None]
        torch._foreach_copy_(intrinsic, kept)
    hold_G = skip | (eta_G == 0)
    descend_each(
        [[local_shard(p) for p in group["params"]] for group in groups],
        [[None if g is None else local_shard(g) for g in of_group] for of_group in gradients],
        gammas=gammas,
        gamma_G=gamma_G,
        step_G=eta_G * clip_G,
        hold_G=hold_G,
        implementations=[group["implementation"] for group in groups],
        noises=noises,
    )
    length_G, decayed_G = eta_G * clip_G * grad_norm_G, (1.0 - gamma_G) * param_norm_G
    values = {
        "gamma": gamma_G,
        "step_eta": eta_G,
        "effective_lr": eta_G / param_norm_G.square(),
        "param_norm": param_norm_G,
        # Pythagoras: the gradient of a scale-invariant loss is orthogonal to x.
        "next_param_norm": torch.hypot(decayed_G, length_G),
        "grad_norm": grad_norm_G,
        "clip_factor": clip_G,
        "window_clipped": (clip_G < 1).double(),
        # Lengthened gradients hold no norm: it falls until gradients need not be lengthened.
        "window_squared_sigma": (clip_G.clamp(max=1.0) * grad_norm_G * param_norm_G).square(),
        "angular_update": torch.atan2(length_G, decayed_G),
    }
    record_steps([group["statistics"] for group in groups], values, hold_G)


def on_device(values: Sequence[Sequence[float]], home: torch.device) -> tuple[Tensor, ...]:
    """Bring lists of host numbers, all of one length, to a device in one copy.

    Args:
        values: The lists.
        home: The device.

    Returns:
        A float64 tensor for each list.
    """
    return torch.tensor([list(row) for row in values], dtype=torch.float64).to(home, non_blocking=True).unbind()


def constants(group: dict[str, Any], gamma: float) -> tuple[float, float, float]:
    """Give what multiplies norms in `step_sizes`.

    Args:
        group: A group of `ClippedSGD`.
        gamma: eta lambda of this step.

    Returns:
        Calibration sqrt(gamma0 (2 - gamma0)), gamma0 = eta lambda without a schedule, and the longest and the shortest
        step that is not clipped, relative to |x|.
    """
    intrinsic_lr = float(group["intrinsic_lr"] or 0.0)
    return math.sqrt(intrinsic_lr * (2.0 - intrinsic_lr)), *relative_bounds(group["clip"], group["two_sided"], gamma)


def step_sizes(
    kept_I: Tensor,
    param_norm_I: Tensor,
    grad_norm_I: Tensor,
    skip: Tensor,
    *,
    lr: Tensor | float,
    calibration: Tensor | float,
    longest: Tensor | float,
    shortest: Tensor | float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Give eta and clip factor of every vector; `ClippedSGD` has the formulas.

    Args:
        kept_I: The calibrated eta; 0 where there was no gradient yet, 1 where it is not calibrated.
        param_norm_I: |x|, float64.
        grad_norm_I: |g|, float64.
        skip: 0-dim bool tensor; where True, nothing is calibrated.
        lr: Multiplier of the kept eta.
        calibration: Of `constants`.
        longest: Of `constants`.
        shortest: Of `constants`.

    Returns:
        Kept eta in its own dtype, eta of this step and clip factor, float64.
    """
    now_I = (kept_I == 0) & (grad_norm_I > 0) & ~skip
    kept_I = torch.where(now_I, (calibration * param_norm_I / grad_norm_I).to(kept_I.dtype), kept_I)
    eta_I = lr * kept_I.double()
    # |eta g| against its bounds rather than |g|: no division by eta, and 0/0 is never selected.
    clip_I = clip_factors(eta_I * grad_norm_I, longest * param_norm_I, shortest * param_norm_I)
    return kept_I, eta_I, clip_I
