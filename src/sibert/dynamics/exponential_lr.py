"""Weight decay as an exponentially growing learning rate (Li and Arora, ICLR 2020, arXiv 1910.07454).

Let the loss be invariant to the scale of theta. SGD with momentum m, learning rates eta_t and weight decays lambda_t
then visits the same functions as SGD with the same momentum, no weight decay, and the learning rates

    eta'_t = eta_t / (P_t P_{t+1}),   P_0 = 1,   P_{t+1} = alpha_t P_t,   theta_t = P_t theta'_t.

`texp_plus_plus` has the alpha_t that make this exact for any schedule; `texp` has one alpha for each phase of constant
eta and lambda, as the paper's first form, which is exact if the momentum is corrected where a phase begins.
`EquivalentExponentialLR` does the former in a training loop.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import LRScheduler

from sibert.dynamics.radial import RadialCheck, cosine
from sibert.optim.norms import home_of, squared_norm

__all__ = [
    "EquivalentExponentialLR",
    "ExponentialSchedule",
    "characteristic_root",
    "texp",
    "texp_plus_plus",
]

RENORMALISATION = 2.0**20
"""Weights that have grown by this factor are divided by it. A power of two: nothing is rounded."""


@dataclass(frozen=True)
class ExponentialSchedule:
    """A schedule without weight decay.

    Attributes:
        lr: eta'_t of each step.
        shrinkage: P_t, before each step and after the last: weights of the original run over weights of this one.
        momentum_correction: For some steps t, how many times theta'_t is added to the momentum buffer before step t.
    """

    lr: tuple[float, ...]
    shrinkage: tuple[float, ...]
    momentum_correction: Mapping[int, float] = field(default_factory=dict)


def characteristic_root(lr: float, weight_decay: float, momentum: float = 0.0) -> float:
    """The factor alpha by which a step of constant eta and lambda shrinks the weights in the long run.

    The larger root of x^2 - (1 + m - lambda eta) x + m = 0; without momentum 1 - lambda eta.

    Args:
        lr: eta.
        weight_decay: lambda.
        momentum: m.

    Returns:
        alpha, between sqrt(m) and 1.

    Raises:
        ValueError: If lambda eta > (1 - sqrt(m))^2, where the weights would oscillate and there is no real root.
    """
    _check_momentum(momentum)
    product, limit = lr * weight_decay, (1.0 - math.sqrt(momentum)) ** 2
    if not 0.0 <= product <= limit or product == 1.0:
        raise ValueError(
            f"lr * weight_decay must be between 0 and (1 - sqrt(momentum))^2 = {limit:.3g}, got {product:.3g}: beyond "
            "it decay overshoots zero, and no exponential schedule visits the same functions"
        )
    middle = (1.0 + momentum - product) / 2.0
    return middle + math.sqrt(max(0.0, middle * middle - momentum))


def texp_plus_plus(
    lr: Sequence[float], weight_decay: float | Sequence[float], momentum: float = 0.0
) -> ExponentialSchedule:
    """The equivalent schedule of any schedule (TEXP++), exact when both momentum buffers begin at zero.

    alpha_t = 1 - eta_t lambda_t + m (eta_t / eta_{t-1}) (1 - 1 / alpha_{t-1}), alpha_{-1} = 1.

    Args:
        lr: eta_t, positive; without momentum it may be zero.
        weight_decay: lambda, or lambda_t.
        momentum: m, constant.

    Returns:
        As many learning rates as there are in `lr`.

    Raises:
        ValueError: If a step would turn the weights around (alpha_t <= 0), or the learning rates overflow.
    """
    recursion = _Recursion(momentum)
    alphas = [recursion.advance(eta, decay) for eta, decay in zip(lr, _each(weight_decay, len(lr)), strict=True)]
    return _schedule(lr, alphas)


def texp(lr: Sequence[float], weight_decay: float | Sequence[float], momentum: float = 0.0) -> ExponentialSchedule:
    """The equivalent schedule of a step schedule, one growth factor for each phase (TEXP).

    Args:
        lr: eta_t, positive.
        weight_decay: lambda, or lambda_t.
        momentum: m, constant.

    Returns:
        As many learning rates as there are in `lr`. With momentum they are exact only with `momentum_correction`;
        without it the beginning of each phase, the first included, leaves an error of direction.

    Raises:
        ValueError: As `characteristic_root`, and if the learning rates overflow.
    """
    decays = _each(weight_decay, len(lr))
    roots: list[float] = []
    begins: dict[int, float] = {}  # steps at which a phase begins, and the alpha of TEXP++ there
    for t, (eta, decay) in enumerate(zip(lr, decays, strict=True)):
        if t > 0 and (eta, decay) == (lr[t - 1], decays[t - 1]):
            roots.append(roots[-1])
            continue
        if eta <= 0.0:
            raise ValueError(f"the learning rate of step {t} must be positive, got {eta}")
        inherited = momentum * (eta / lr[t - 1]) * (1.0 - 1.0 / roots[-1]) if t > 0 else 0.0
        begins[t] = 1.0 - eta * decay + inherited
        roots.append(characteristic_root(eta, decay, momentum))
    schedule = _schedule(lr, roots)
    correction = {
        t: (roots[t] - exact) * schedule.shrinkage[t] ** 2 / (momentum * lr[t])
        for t, exact in begins.items()
        if momentum
    }
    return ExponentialSchedule(schedule.lr, schedule.shrinkage, correction)


class EquivalentExponentialLR(LRScheduler):
    """A schedule with weight decay, run without: the scale-invariant groups of `torch.optim.SGD` get growing rates.

    Takes the place of `LambdaLR`. The weight decay of the chosen groups is taken over (and set to 0); the others follow
    the schedule as it is, with their own weight decay: they see the same functions, hence the same gradients. Weights
    that grow beyond 2^20 times those of the original run are divided by that, and their momentum buffers multiplied,
    which changes no function. The loss has to be exactly invariant: an epsilon in a normalisation breaks it, and is too
    small a breach to be seen here; what depends on the scale as plain layers do is refused in the first steps.

    Args:
        optimizer: SGD with momentum or without, not Nesterov's, before its first step.
        lr_lambda: Factor of the learning rate by step; None = constant.
        groups: Indices of the scale-invariant parameter groups; None = those with `group["scale_invariant"]`.
        weight_decay_lambda: Factor of the weight decay by step; None = constant.
        last_epoch: -1 = from the beginning. Another one is for an optimizer whose state has been loaded from a run of
            this schedule, and `load_state_dict` has to follow.

    Raises:
        TypeError: For another optimizer, whose steps have no such form.
        ValueError: For Nesterov's momentum or dampening; if there is no scale-invariant group, or one without length;
            for a `last_epoch` without the state of such a run; as `characteristic_root`, if the schedule is constant
            (lr_lambda and weight_decay_lambda left out). Any other schedule may leave that condition for a while: it is
            refused where it comes to that, at the first step of a factor that is not positive (as `texp_plus_plus`). In
            one of the first eight steps: if the gradient is not orthogonal to a group.
    """

    def __init__(
        self,
        optimizer: SGD,
        lr_lambda: Callable[[int], float] | None = None,
        groups: Sequence[int] | None = None,
        weight_decay_lambda: Callable[[int], float] | None = None,
        last_epoch: int = -1,
    ) -> None:
        if not isinstance(optimizer, SGD):
            raise TypeError(
                "weight decay has an exponential counterpart under torch.optim.SGD, got "
                f"{type(optimizer).__name__}: its step is not linear in the gradient, or has a scale of its own"
            )
        chosen = (
            [i for i, group in enumerate(optimizer.param_groups) if group.get("scale_invariant")]
            if groups is None
            else [_index(i, len(optimizer.param_groups)) for i in groups]
        )
        if not chosen:
            raise ValueError(
                "no parameter group is marked scale_invariant: name them by groups=[0, ...]; for parameters that are "
                "not scale invariant, weight decay is no schedule"
            )
        for i in chosen:
            group = optimizer.param_groups[i]
            if group["nesterov"] or group["dampening"]:
                raise ValueError(f"group {i} has nesterov or dampening: only the plain form of momentum is covered")
            _check_length(i, group["params"])
            if last_epoch != -1 and "initial_weight_decay" not in group:
                raise ValueError(
                    f"last_epoch={last_epoch} goes on with a run whose state group {i} does not have: load the "
                    "optimizer's first, or begin with last_epoch=-1"
                )
        self.lr_lambda = _constant if lr_lambda is None else lr_lambda
        self.weight_decay_lambda = weight_decay_lambda
        for i in chosen if last_epoch == -1 else []:
            group = optimizer.param_groups[i]
            # 0 if the optimizer's state is that of such a run: then the one that it has taken over counts.
            decay = group["weight_decay"] or group.get("initial_weight_decay", 0.0)
            if lr_lambda is None and weight_decay_lambda is None:
                characteristic_root(float(group.get("initial_lr", group["lr"])), decay, group["momentum"])
            group["initial_weight_decay"], group["weight_decay"] = decay, 0.0
        what = "weight decay is no schedule for it"
        self.checks = {i: RadialCheck(f"group {i}", what) for i in chosen}
        self.hook = optimizer.register_step_pre_hook(self._check)
        self.recursions = {i: _Recursion(optimizer.param_groups[i]["momentum"]) for i in chosen}
        self.rates: dict[int, float] = {}
        super().__init__(optimizer, last_epoch)

    def step(self, epoch: int | None = None) -> None:
        """Go on to the next step's learning rates; after `optimizer.step()`.

        Args:
            epoch: Not used: the rates depend on all that came before.
        """
        if epoch is not None:
            raise ValueError("the equivalent rate depends on all steps before: call step() without an argument")
        t = self.last_epoch + 1
        factor = 1.0 if self.weight_decay_lambda is None else self.weight_decay_lambda(t)
        for i, recursion in self.recursions.items():
            group = self.optimizer.param_groups[i]
            eta = group.get("initial_lr", group["lr"]) * self.lr_lambda(t)
            recursion.advance(eta, group["initial_weight_decay"] * factor)
            if recursion.before < 1.0 / RENORMALISATION:
                self._divide(group, RENORMALISATION)
                recursion.before *= RENORMALISATION
            self.rates[i] = eta / (recursion.before * recursion.after)
        super().step()

    def get_lr(self) -> list[float | torch.Tensor]:
        """The learning rates of the groups."""
        factor = self.lr_lambda(self.last_epoch)
        return [self.rates.get(i, base * factor) for i, base in enumerate(self.base_lrs)]

    def shrinkage(self, group: int) -> float:
        """P_t: by which the weights of a group are to be multiplied, to get those of the run with weight decay.

        Args:
            group: Its index.
        """
        return self.recursions[group].before

    def state_dict(self) -> dict[str, Any]:
        """All but the optimizer and the functions; plain data."""
        recursions = {
            i: (one.momentum, one.lr, one.alpha, one.before, one.started) for i, one in self.recursions.items()
        }
        left_out = ("optimizer", "lr_lambda", "weight_decay_lambda", "recursions", "checks", "hook")
        state = {name: value for name, value in self.__dict__.items() if name not in left_out}
        return {**state, "recursions": recursions}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where another one stopped.

        Args:
            state_dict: Of an `EquivalentExponentialLR` with the same functions.
        """
        recursions = {int(i): _Recursion(*values) for i, values in state_dict["recursions"].items()}
        self.__dict__.update({**state_dict, "recursions": recursions})

    @torch.no_grad()
    def _check(self, *_: Any) -> None:
        """Before a step of the optimizer: is the gradient orthogonal to each group?"""
        for i, check in self.checks.items():
            x = [p for p in self.optimizer.param_groups[i]["params"] if p.grad is not None]
            if x:
                gradients = [p.grad.to_dense() for p in x if p.grad is not None]
                home = home_of(x)
                norm, gradient_norm = (squared_norm(tensors, home).sqrt().item() for tensors in (x, gradients))
                whole = (norm * gradient_norm) ** 2
                if whole > 0.0:
                    check.see(cosine(x, gradients, norm, gradient_norm) ** 2 * whole, whole, x)
        if all(check.done for check in self.checks.values()):
            self.hook.remove()

    @torch.no_grad()
    def _divide(self, group: dict[str, Any], factor: float) -> None:
        """Divide weights: gradients and so the momentum buffer grow by the factor, the rate falls by its square."""
        for parameter in group["params"]:
            parameter.div_(factor)
            buffer = self.optimizer.state[parameter].get("momentum_buffer")
            if buffer is not None:
                buffer.mul_(factor)


def _index(i: int, count: int) -> int:
    """An index of a list as one from the beginning."""
    if not -count <= i < count:
        raise ValueError(f"the optimizer has {count} parameter groups, and none with the index {i}")
    return i % count


@dataclass
class _Recursion:
    """alpha_t and P_t of TEXP++, step by step.

    Attributes:
        momentum: m.
        lr: eta_{t-1}; 0 before the first step.
        alpha: alpha_t.
        before: P_t.
        started: Whether there has been a step.
    """

    momentum: float
    lr: float = 0.0
    alpha: float = 1.0
    before: float = 1.0
    started: bool = False

    def __post_init__(self) -> None:
        _check_momentum(self.momentum)

    @property
    def after(self) -> float:
        """P_{t+1}."""
        return self.before * self.alpha

    def advance(self, lr: float, weight_decay: float) -> float:
        """Go on to the next step, and give its alpha."""
        if not (lr >= 0.0 and weight_decay >= 0.0):
            raise ValueError(f"learning rate and weight decay must not be negative, got {lr} and {weight_decay}")
        inherited = 0.0
        if self.started:
            if self.momentum and lr > 0.0:
                if self.lr == 0.0:
                    raise ValueError(
                        "a learning rate of 0 before others has no exponential counterpart with momentum, whose buffer "
                        "keeps the weight decay of that step: use a small positive rate"
                    )
                inherited = self.momentum * (lr / self.lr) * (1.0 - 1.0 / self.alpha)
            self.before = self.after
        alpha = 1.0 - lr * weight_decay + inherited
        if not alpha > 0.0:
            raise ValueError(
                f"with learning rate {lr:.3g} and weight decay {weight_decay:.3g} the factor of a step is {alpha:.3g}: "
                "it must be positive; lr * weight_decay has to stay below (1 - sqrt(momentum))^2"
            )
        self.lr, self.alpha, self.started = lr, alpha, True
        return alpha


def _constant(_: int) -> float:
    return 1.0


def _check_length(group: int, parameters: Sequence[torch.Tensor]) -> None:
    norm = squared_norm([p.detach() for p in parameters], home_of(parameters)).sqrt().item()
    if not 0.0 < norm < math.inf:
        raise ValueError(
            f"the norm of group {group} is {norm}: without length there is no direction, and the functions to be "
            "visited are not there; initialise its parameters"
        )


def _check_momentum(momentum: float) -> None:
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"momentum must be in [0, 1), got {momentum}")


def _each(weight_decay: float | Sequence[float], steps: int) -> Sequence[float]:
    return [weight_decay] * steps if isinstance(weight_decay, int | float) else weight_decay


def _schedule(lr: Sequence[float], alphas: Sequence[float]) -> ExponentialSchedule:
    shrinkage = [1.0]
    for alpha in alphas:
        shrinkage.append(shrinkage[-1] * alpha)
    rates = []
    for t, eta in enumerate(lr):
        scale = shrinkage[t] * shrinkage[t + 1]
        if scale < 1e-300:
            raise ValueError(
                f"the learning rate overflows at step {t}: EquivalentExponentialLR renormalises the weights on the way"
            )
        rates.append(eta / scale)
    return ExponentialSchedule(tuple(rates), tuple(shrinkage))
