"""LAMB: Adam's direction, scaled to the norm of each tensor. Algorithm 2 of arXiv 1904.00962.

Symbols: x = one parameter tensor, g its gradient, m and v = running means of g and g^2, t = steps taken.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sibert.optim import synchronisation
from sibert.optim.joint_step import Measurement
from sibert.optim.norms import home_of, squared_norm
from sibert.optim.shards import local_shard, placed_gradient

__all__ = ["Lamb"]


class Lamb(Optimizer):
    """LAMB as its paper states it: phi = identity, both bias corrections, a trust ratio for every tensor.

        m <- beta1 m + (1 - beta1) g,                      v <- beta2 v + (1 - beta2) g^2,
        u = (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay x,
        x <- x - lr |x| / |u| u,                           with ratio 1 in place of |x| / |u| where either norm is 0.

    A step with an infinite or NaN gradient is skipped as a whole: t, m, v and x stay as they are, and it is counted.
    All is computed in the dtype of the parameter: keep in float32 what is trained by Lamb, as `sibert pretrain` does,
    for bfloat16 loses steps shorter than 2^-9 of an entry, and float16 squares of small gradients.

    Args:
        params: Parameters, (name, parameter) pairs, or groups of them.
        lr: Relative step length >= 0: |change of x| / |x| in one step.
        betas: Decay of the running means, each in [0, 1).
        eps: Term > 0 added to the root of v. Unit: gradient.
        weight_decay: lambda >= 0, added to the normalised direction; 0 keeps the trust ratio.

    Raises:
        ValueError: If a hyper-parameter is out of range.
        TypeError: If a parameter is not a real floating-point tensor.

    References:
        Algorithm 2 of arXiv 1904.00962.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters with hyper-parameters of its own.

        Args:
            param_group: "params" and any of lr, betas, eps, weight_decay, name (default "lamb0", ...). The dict itself
                is not changed.

        Raises:
            ValueError: If a hyper-parameter is out of range.
            TypeError: If a parameter is not a real floating-point tensor.
        """
        group = dict(param_group)
        # Not "group0": that is ClippedSGD's, beside which this one stands in a Hybrid.
        group.setdefault("name", f"lamb{len(self.param_groups)}")
        super().add_param_group(group)
        try:
            _check_group(group)
        except Exception:
            self.param_groups.pop()
            raise
        group.setdefault("skipped_steps", torch.zeros((), dtype=torch.float64, device=home_of(group["params"])))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from a pickle, a copy, or `load_state_dict`."""
        if any("skipped_steps" not in group for group in state["param_groups"]):
            raise ValueError("the state is not one of Lamb; load it into an optimizer of the kind that saved it")
        super().__setstate__(state)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step, or skip it if a gradient is not finite.

        Args:
            closure: Evaluates the loss and its gradients again; optional.

        Returns:
            What the closure returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        measurement = self._measure()
        if measurement.finite is not None:
            self._apply(measurement, ~measurement.finite)
        return loss

    @property
    def skipped_steps(self) -> int:
        """Steps refused because a gradient was not finite. Reading it waits for the device."""
        return int(max(group["skipped_steps"].item() for group in self.param_groups))

    @torch.no_grad()
    def _measure(self) -> Measurement:
        gradients = [_dense(p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not gradients:
            return Measurement(None)
        return Measurement(squared_norm(gradients, home_of(gradients)).isfinite())

    @torch.no_grad()
    def _apply(self, measurement: Measurement, skip: Tensor) -> None:
        for group in self.param_groups:
            home = home_of(group["params"])
            group["skipped_steps"] = group["skipped_steps"].to(home) + skip.to(home, non_blocking=True)
            for p in group["params"]:
                if p.grad is None:
                    continue
                skip_here = skip.to(p.device, non_blocking=True)
                if not (synchronisation.host_may_read(p.device) and bool(skip_here.item())):
                    self._step_tensor(p, group, skip_here)

    def _step_tensor(self, p: Tensor, group: dict[str, Any], skip: Tensor) -> None:
        state, (beta1, beta2) = self.state[p], group["betas"]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float64, device=p.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        # A state dict may have been loaded from another device.
        state["step"] = t = state["step"].to(p.device) + ~skip
        x, m, v = local_shard(p), local_shard(state["exp_avg"]), local_shard(state["exp_avg_sq"])
        g = local_shard(placed_gradient(p, _dense(p))).to(x.dtype)
        m_new = beta1 * m + (1.0 - beta1) * g
        v_new = beta2 * v + (1.0 - beta2) * g.square()
        u = m_new / (1.0 - beta1**t) / ((v_new / (1.0 - beta2**t)).sqrt() + group["eps"]) + group["weight_decay"] * x
        x_norm, u_norm = (squared_norm([whole], p.device).sqrt() for whole in (p, _as(p, u)))
        trust = torch.where((x_norm > 0) & (u_norm > 0), x_norm / u_norm, 1.0)
        for old, new in ((m, m_new), (v, v_new), (x, x - group["lr"] * trust * u)):
            # Selected, not multiplied: 0 * inf would be NaN. Where the host may read, a skipped step ended before.
            old.copy_(new if synchronisation.host_may_read(p.device) else torch.where(skip, old, new))


def _as(parameter: Tensor, local: Tensor) -> Tensor:
    """Make a local tensor a shard of a tensor placed like a parameter."""
    if local_shard(parameter) is parameter:
        return local
    from torch.distributed.tensor import DTensor

    dparameter: Any = parameter
    return DTensor.from_local(
        local,
        dparameter.device_mesh,
        dparameter.placements,
        run_check=False,
        shape=dparameter.shape,
        stride=dparameter.stride(),
    )


def _dense(parameter: Tensor) -> Tensor:
    gradient = parameter.grad
    assert gradient is not None
    if gradient.layout != torch.strided:
        raise TypeError(
            f"Lamb takes dense gradients only, got layout {gradient.layout} for a parameter of shape "
            f"{tuple(parameter.shape)}; use sparse=False"
        )
    return gradient


def _check_group(group: dict[str, Any]) -> None:
    name = group["name"]
    for p in group["params"]:
        if not p.is_floating_point():
            raise TypeError(f"{name}: parameters must be real floating-point tensors, got {p.dtype}")
    for key in ("lr", "weight_decay"):
        if not (math.isfinite(group[key]) and group[key] >= 0):
            raise ValueError(f"{name}: {key} must be a finite number >= 0, got {group[key]}")
    if not (math.isfinite(group["eps"]) and group["eps"] > 0):
        raise ValueError(f"{name}: eps must be a finite number > 0, got {group['eps']}")
    if len(group["betas"]) != 2 or not all(0 <= beta < 1 for beta in group["betas"]):
        raise ValueError(f"{name}: betas must be two numbers in [0, 1), got {group['betas']}")
