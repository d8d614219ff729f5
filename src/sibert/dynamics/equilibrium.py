"""Where weight decay and updates balance, for a scale-invariant group: rotation, norm, and the time to get there.

The loss is invariant to the scale of x, C entries; g is the norm of its gradient at x / |x|, root mean square over
steps. Updates are orthogonal to x and make it longer, weight decay makes it shorter. Where the two balance, each step
turns x by an angle that depends on no scale at all. If gradients of different steps do not know of each other, to
leading order in eta lambda:

    SGD, momentum m    angle^2 = 2 eta lambda / (1 + m)               |x|^4 = eta g^2 / (2 lambda (1 - m))
    AdamW              angle^2 = 2 eta lambda (1 - b1) / (1 + b1)     |x|^2 = eta C / (2 lambda)
    Lion               angle^2 = 2 eta lambda / (1 + 2 s)             |x|^2 = eta C (1 + 2 s) / (2 lambda)

arXiv 2305.17212 has the angles of SGD and AdamW. For Lion it treats signs as if they were numbers; here s is the sum of
(2/pi) arcsin(rho_k) over k = 1, 2, ..., the correlation of the signs of two Gaussian numbers, where rho_k is that of
what Lion takes the sign of, k steps apart. The functions below have the terms of higher order in eta lambda, too: they
matter where the memory of the momentum is not short compared with 1 / (eta lambda).

Real gradients of successive steps are correlated; what is measured then differs, and the difference says how much.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.optim import SGD, Adam, Optimizer

from sibert.optim import ClippedSGD

__all__ = ["Equilibrium", "adamw_equilibrium", "equilibrium", "lion_equilibrium", "sgd_equilibrium"]


@dataclass(frozen=True)
class Equilibrium:
    """The balance of one scale-invariant group.

    Attributes:
        angular_update: Angle of a step, radians, root mean square.
        norm: |x|, root mean square (SGD: fourth root of the mean fourth power); None where the gradient's size is not
            given and the norm depends on it.
        power: 4 for SGD, 2 for AdamW and Lion: |x|^power approaches its equilibrium exponentially.
        relaxation_steps: In how many steps that distance falls to 1/e, if what the optimizer remembers of gradients is
            younger (for AdamW 1 / (1 - b2) steps).
    """

    angular_update: float
    norm: float | None
    power: int
    relaxation_steps: float

    def norm_after(self, steps: float, norm: float) -> float:
        """|x| some steps after it was `norm`, at constant eta, lambda and g, if steps are short beside |x|.

        For SGD they are not below (2 eta lambda)^(1/4) times equilibrium: from there the first step overshoots, and
        decay has to bring |x| down again.

        Args:
            steps: Number of steps, not negative.
            norm: |x| before them, positive.

        Raises:
            ValueError: If the norm of equilibrium is not known, or `norm` is no length.
        """
        _check_norm(norm)
        if not steps >= 0.0:
            raise ValueError(f"steps must not be negative, got {steps}: where a norm came from is not known")
        target = self._known_norm() ** self.power
        now = target + (norm**self.power - target) * math.exp(-steps / self.relaxation_steps)
        return math.pow(now, 1.0 / self.power)

    def steps_until(self, norm: float, tolerance: float = 0.05) -> float:
        """Steps until |x|, now `norm`, is within a tolerance of that of equilibrium; as `norm_after` has it.

        From far below, c times equilibrium, the first step of SGD leads to sqrt(2 eta lambda) / c times equilibrium:
        ask from there. Clipping shortens that step.

        Args:
            norm: |x|, positive.
            tolerance: Relative, between 0 and 1.

        Returns:
            0 if it is there.

        Raises:
            ValueError: If the norm of equilibrium is not known or 0, or `norm` is no length.
        """
        _check_norm(norm)
        if not 0.0 < tolerance < 1.0:
            raise ValueError(f"tolerance must be between 0 and 1, got {tolerance}: equilibrium itself is never reached")
        target = self._known_norm()
        if target == 0.0:
            raise ValueError(
                "without a gradient weight decay has nothing to balance it, and the norm falls towards 0 for ever: "
                "norm_after says how far"
            )
        ratio = norm / target
        if abs(ratio - 1.0) <= tolerance:
            return 0.0
        end = 1.0 + math.copysign(tolerance, ratio - 1.0)
        return self.relaxation_steps * math.log((ratio**self.power - 1.0) / (end**self.power - 1.0))

    def _known_norm(self) -> float:
        if self.norm is None:
            raise ValueError("the norm of equilibrium needs the size of the gradient: give gradient_norm")
        return self.norm


def sgd_equilibrium(
    lr: float, weight_decay: float, momentum: float = 0.0, gradient_norm: float | None = None
) -> Equilibrium:
    """SGD with weight decay in the gradient, momentum as torch has it.

    Args:
        lr: eta; with dampening d eta (1 - d), for it multiplies all that enters the momentum, decay included.
        weight_decay: lambda.
        momentum: m.
        gradient_norm: g = |x| |gradient|, root mean square; None = not known.

    Raises:
        ValueError: Where there is no balance.
    """
    product = _check(lr, weight_decay)
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"momentum must be in [0, 1), got {momentum}")
    if gradient_norm is not None and not 0.0 <= gradient_norm < math.inf:
        raise ValueError(f"gradient_norm must be a finite length, got {gradient_norm}: give the root mean square")
    norm = None
    if gradient_norm is not None:
        scale = weight_decay * (1.0 - momentum) * (2.0 - product / (1.0 + momentum))
        norm = (lr * gradient_norm**2 / scale) ** 0.25
    # Its cosine is the correlation of x from one step to the next, 1 - eta lambda / (1 + m).
    angle = 2.0 * math.asin(math.sqrt(product / (2.0 * (1.0 + momentum))))
    return Equilibrium(angle, norm, 4, (1.0 - momentum) / (4.0 * product))


def adamw_equilibrium(
    lr: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.999), entries: int | None = None
) -> Equilibrium:
    """AdamW, whose steps have a size of their own, whatever the gradient's.

    Args:
        lr: eta.
        weight_decay: lambda, decoupled: a step multiplies x by 1 - eta lambda.
        betas: b1 and b2; b2 close to 1, so that the second moment is constant.
        entries: C; None = not known, then the norm is that of one entry.

    Raises:
        ValueError: Where there is no balance.
    """
    _check_betas(betas)
    _check_entries(entries)
    b1 = betas[0]
    decay = 1.0 - _check(lr, weight_decay)
    squared_update = (1.0 - b1) / (1.0 + b1)
    later = b1 / (1.0 - decay * b1)  # sum over k >= 1 of decay^(k-1) b1^k
    return _balance(lr, decay, squared_update, later, entries)


def lion_equilibrium(
    lr: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.99), entries: int | None = None
) -> Equilibrium:
    """Lion, whose steps are signs.

    Args:
        lr: eta.
        weight_decay: lambda, decoupled.
        betas: b1 of what the sign is taken of, b2 of the momentum.
        entries: C; None = not known, then the norm is that of one entry.

    Raises:
        ValueError: Where there is no balance.
    """
    _check_betas(betas)
    _check_entries(entries)
    b1, b2 = betas
    decay = 1.0 - _check(lr, weight_decay)
    variance = (1.0 - b1) ** 2 + b1**2 * (1.0 - b2) / (1.0 + b2)
    # The correlation of what the sign is taken of, k = 1 steps apart; then it falls by b2 a step.
    correlation = ((1.0 - b1) * b1 * (1.0 - b2) + b1**2 * b2 * (1.0 - b2) / (1.0 + b2)) / variance
    later, weight = 0.0, 1.0
    while weight * correlation > 1e-12:
        later += weight * 2.0 / math.pi * math.asin(correlation)
        correlation *= b2
        weight *= decay
    return _balance(lr, decay, 1.0, later, entries)


def equilibrium(
    optimizer: Optimizer, group: Mapping[str, Any] | int, gradient_norm: float | None = None
) -> Equilibrium:
    """Of a scale-invariant parameter group, at its present learning rate and weight decay.

    Args:
        optimizer: `torch.optim.SGD`, `torch.optim.AdamW`, `ClippedSGD`, or one whose class is called Lion.
        group: One of its `param_groups`, or the index of one; taken as one vector.
        gradient_norm: g = |x| |gradient|, for SGD's norm; None = not known.

    Raises:
        TypeError: For an optimizer of which no balance is known.
        ValueError: Where there is none, Adam with the decay in the gradient among them, and for Nesterov's momentum
            and AMSGrad.
    """
    chosen: Mapping[str, Any] = optimizer.param_groups[group] if isinstance(group, int) else group
    if isinstance(optimizer, ClippedSGD):
        return _of_clipped_sgd(chosen, gradient_norm)
    lr, weight_decay = float(chosen["lr"]), float(chosen["weight_decay"])
    reason = unbalanced(chosen)
    if reason:
        raise ValueError(reason)
    if isinstance(optimizer, SGD):
        return sgd_equilibrium(damped_lr(chosen), weight_decay, chosen["momentum"], gradient_norm)
    if isinstance(optimizer, Adam):
        if not chosen.get("decoupled_weight_decay"):
            raise ValueError(
                "Adam adds weight decay to the gradient and then divides both by the gradient's size: its balance "
                "depends on the scale of the loss, and differs from group to group; AdamW has one"
            )
        return adamw_equilibrium(lr, weight_decay, chosen["betas"], _entries(chosen))
    if type(optimizer).__name__ == "Lion":  # torch has none; the packages that do agree on its groups' keys
        return lion_equilibrium(lr, weight_decay, chosen["betas"], _entries(chosen))
    raise TypeError(f"the balance of SGD, ClippedSGD, AdamW and Lion is known, not that of {type(optimizer).__name__}")


def damped_lr(group: Mapping[str, Any]) -> float:
    """Eta (1 - dampening): what torch's momentum makes of a learning rate; its first step alone is not dampened.

    Args:
        group: Of `torch.optim.SGD`.
    """
    dampening = group["dampening"] if group["momentum"] else 0.0  # without momentum torch does not look at it
    return float(group["lr"]) * (1.0 - dampening)


def unbalanced(group: Mapping[str, Any]) -> str | None:
    """Why no balance is known for the settings of a parameter group; None where one may be.

    Args:
        group: Of an optimizer.
    """
    if group.get("nesterov"):
        return (
            "the balance of plain momentum is known, not that of Nesterov's: it counts the last gradient once more "
            "and turns further at the same rate; take nesterov=False, or measure the rotation by RotationRecorder"
        )
    if group.get("amsgrad"):
        return (
            "AMSGrad divides by the largest second moment so far, which never forgets: its steps have no fixed size "
            "and no balance with weight decay; take amsgrad=False, or measure the rotation by RotationRecorder"
        )
    return None


def _entries(group: Mapping[str, Any]) -> int:
    return sum(parameter.numel() for parameter in group["params"])


def _of_clipped_sgd(group: Mapping[str, Any], gradient_norm: float | None) -> Equilibrium:
    lr, gamma = float(group["lr"]), group["intrinsic_lr"]
    if gamma is None:
        return sgd_equilibrium(lr, float(group["weight_decay"]), gradient_norm=gradient_norm)
    if gradient_norm is None:
        return sgd_equilibrium(lr, gamma)
    if group["rows"]:
        raise ValueError("each row of this group has an eta of its own: ask for the rotation, without gradient_norm")
    eta = float(group["eta"])
    if eta == 0.0:
        raise ValueError("eta is calibrated from the first gradient: ask after the first step")
    return sgd_equilibrium(lr * eta, gamma / eta, gradient_norm=gradient_norm)


def _check(lr: float, weight_decay: float) -> float:
    """Their product."""
    product = lr * weight_decay
    if not (lr > 0.0 and weight_decay > 0.0):
        raise ValueError(
            f"there is no balance without a learning rate and weight decay, got {lr} and {weight_decay}: the norm of a "
            "scale-invariant group only grows, and its steps become smaller and smaller"
        )
    if product >= 1.0:
        raise ValueError(f"lr * weight_decay must be below 1, got {product:.3g}: a step would turn parameters around")
    return product


def _check_norm(norm: float) -> None:
    if not 0.0 < norm < math.inf:
        raise ValueError(
            f"norm must be a positive length, got {norm}: a group without length has no direction and no way to "
            "equilibrium; find out first why it has died or exploded"
        )


def _check_betas(betas: tuple[float, float]) -> None:
    if not all(0.0 <= b < 1.0 for b in betas):
        raise ValueError(f"betas must be in [0, 1), as weights of a running mean, got {betas}")


def _check_entries(entries: int | None) -> None:
    if entries is not None and not entries >= 1:
        raise ValueError(
            f"entries must be at least 1, got {entries}: give the number of elements of the group, or None"
        )


def _balance(lr: float, decay: float, squared_update: float, later: float, entries: int | None) -> Equilibrium:
    """The balance of steps x' = decay x - eta u, where |u|^2 = C squared_update whatever x is.

    `later` is the sum over k = 1, 2, ... of decay^(k-1) times the correlation of u with that k steps later. Then
    E|x|^2 = eta^2 E|u|^2 (1 + 2 decay later) / (1 - decay^2), and <x, u> = -eta E|u|^2 later, a part of u that
    turns nothing.
    """
    squared_norm = lr**2 * squared_update * (1.0 + 2.0 * decay * later) / (1.0 - decay**2)  # of an entry
    squared_sine = lr**2 * squared_update / squared_norm
    tangential = squared_sine * (1.0 - squared_sine * later**2)
    angle = math.atan(math.sqrt(tangential) / (decay + squared_sine * later))
    return Equilibrium(angle, math.sqrt(squared_norm * (entries or 1)), 2, 1.0 / (2.0 * (1.0 - decay)))
