"""Scale-invariant groups of any model: whether they are what they are said to be, and where they stand.

Shapes: R = rows of a group, each a vector of its own (1 for a group that is one vector), J = batches.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from sibert.dynamics import Equilibrium, adamw_equilibrium, lion_equilibrium, sgd_equilibrium
from sibert.dynamics.equilibrium import damped_lr, unbalanced
from sibert.dynamics.observation import observed
from sibert.optim import ClippedSGD, InvariantGroup, ScaleInvariantModel
from sibert.optim.clipping import clip_factors, relative_bounds

__all__ = [
    "Group",
    "Moments",
    "Rates",
    "Standing",
    "Stepped",
    "candidates",
    "children",
    "claimed_groups",
    "invariance",
    "moments",
    "stepped",
    "tried_angles",
]

DEVIATION = 1e-4
"""Relative change of the loss at twice and half the scale that counts as none; an epsilon of 1e-5 stays below it."""
COSINE, COARSE_COSINE = 1e-3, 3e-2
RADIAL_SHARE = 1e-6
"""Of the loss: a derivative along the scale below it is rounding, whatever the cosine of a tiny gradient."""
SEEN = 100.0
"""A group that nobody names has to change the loss so many times as much by a step in another direction."""
TRIALS = 4

Loss = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Rates:
    """How groups are stepped, for those who have no optimizer at hand.

    Attributes:
        rule: "sgd" (weight decay in the gradient, momentum as torch has it), "adamw" or "lion" (both decoupled).
        lr: eta; of "sgd" in squared parameters per loss.
        weight_decay: lambda.
        momentum: m, of "sgd".
        betas: b1 and b2, of the others.
        clip: sqrt(C) of `ClippedSGD`; None = no clipping.
        two_sided: Of `ClippedSGD`.
    """

    rule: Literal["sgd", "adamw", "lion"]
    lr: float
    weight_decay: float
    momentum: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = None
    two_sided: bool = False

    @property
    def intrinsic_lr(self) -> float:
        """Eta lambda."""
        return self.lr * self.weight_decay

    def equilibrium(self, gradient_norm: float | None, entries: int) -> Equilibrium:
        """The balance of a group.

        Args:
            gradient_norm: |x| |gradient|, root mean square.
            entries: Of the group.

        Raises:
            ValueError: Without weight decay.
        """
        if self.rule == "sgd":
            return sgd_equilibrium(self.lr, self.weight_decay, self.momentum, gradient_norm)
        make = adamw_equilibrium if self.rule == "adamw" else lion_equilibrium
        return make(self.lr, self.weight_decay, self.betas, entries)


@dataclass(frozen=True)
class Standing:
    """Where a scale-invariant group stands; of rows the root mean square of those that move.

    Attributes:
        norm: |x|.
        equilibrium_norm: Where decay and gradients of the present size balance; None without weight decay.
        angular_update: Of a step now, radians.
        equilibrium_angle: Of a step at equilibrium, radians; None without weight decay.
        intrinsic_lr: eta lambda.
        effective_lr: eta / |x|^2 (with momentum over 1 - m), per unit of loss; None where steps do not scale with
            gradients.
        relaxation_steps: In which the distance to equilibrium falls to 1/e; None without weight decay.
        steps_to_equilibrium: Until the norm is within 5 % of it; None without weight decay.
        clipped_share: Of the steps, between 0 and 1; None without clipping.
    """

    norm: float
    equilibrium_norm: float | None
    angular_update: float
    equilibrium_angle: float | None
    intrinsic_lr: float
    effective_lr: float | None
    relaxation_steps: float | None
    steps_to_equilibrium: float | None
    clipped_share: float | None


@dataclass(frozen=True, eq=False)
class Group:
    """Trainable parameters that are or may be scaled together.

    Attributes:
        name: Of the group.
        members: Each parameter once.
        rows: Whether each row is a vector of its own.
        claimed: Whether the model or the caller says that it is scale invariant.
    """

    name: str
    members: tuple[nn.Parameter, ...]
    rows: bool = False
    claimed: bool = True

    def matrices(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Tensors like the members as [R, entries of a row] in float64."""
        return [t.detach().double().reshape(len(t) if self.rows else 1, -1) for t in tensors]


@dataclass(frozen=True)
class Moments:
    """What the batches say of a group.

    Attributes:
        norm_R: |x|.
        gradient_JR: |g|.
        inner_JR: <x, g>.
        loss_J: The losses.
    """

    norm_R: Tensor
    gradient_JR: Tensor
    inner_JR: Tensor
    loss_J: Tensor

    @property
    def cosine(self) -> float:
        """Of parameters and gradient, the largest over the batches; 0 where there is no gradient."""
        scale_J = (self.norm_R * self.gradient_JR).square().sum(1).sqrt()
        radial_J = self.inner_JR.square().sum(1).sqrt()
        return float(torch.where(scale_J > 0, radial_J / scale_J.clamp(min=1e-300), 0.0).max())

    @property
    def may_be_orthogonal(self) -> bool:
        """Whether there is a gradient that is worth a closer look."""
        return self.cosine <= 10.0 * COSINE and bool((self.gradient_JR > 0.0).any())

    @property
    def radial_share(self) -> float:
        """Derivative of the loss by the logarithm of the scale, over the loss."""
        return float((self.inner_JR.square().sum(1).sqrt() / self.loss_J.abs().clamp(min=1e-300)).max())


@dataclass(frozen=True)
class Stepped:
    """A group and how it is stepped.

    Attributes:
        group: The group.
        rates: Of its steps; of rows the median of their learning rates.
        lr_R: eta of each row.
    """

    group: Group
    rates: Rates
    lr_R: Tensor

    def standing(self, seen: Moments, turned: float | None = None) -> Standing:
        """Where it stands, from norms and gradients, for steps that do not know of each other.

        Args:
            seen: Norms and gradients.
            turned: Angle of a step, measured otherwise, radians; None = that of the formula.
        """
        gamma, rates = self.rates.intrinsic_lr, self.rates
        entries = sum(p.numel() for p in self.group.members) // len(seen.norm_R)
        moves_JR = seen.gradient_JR > 0.0
        bounds = (bound * seen.norm_R for bound in relative_bounds(rates.clip, rates.two_sided, gamma))
        clip_JR = clip_factors(self.lr_R * seen.gradient_JR, *bounds)
        count_R = moves_JR.sum(0).clamp(min=1)
        length_R = ((clip_JR * seen.gradient_JR).square().sum(0) / count_R).sqrt()
        # Lengthened gradients hold no norm: it falls until gradients need not be lengthened.
        sigma_R = ((clip_JR.clamp(max=1.0) * seen.gradient_JR * seen.norm_R).square().sum(0) / count_R).sqrt()
        if rates.rule == "sgd":
            step_R = self.lr_R * length_R / math.sqrt(1.0 - rates.momentum**2)
            effective = float((self.lr_R / seen.norm_R.square()).median()) / (1.0 - rates.momentum)
        else:
            b1 = rates.betas[0]
            scale = math.sqrt((1.0 - b1) / (1.0 + b1)) if rates.rule == "adamw" else 1.0
            step_R, effective = self.lr_R * scale * math.sqrt(entries) * torch.ones_like(seen.norm_R), None
        moved_R = moves_JR.any(0)
        if not moved_R.any():
            moved_R = torch.ones_like(moved_R)
        angle = _root_mean_square(torch.atan2(step_R, (1.0 - gamma) * seen.norm_R)[moved_R])
        norm = _root_mean_square(seen.norm_R[moved_R])
        any_clip = rates.clip is not None and bool(moves_JR.any())
        clipped = float((clip_JR < 1.0)[moves_JR].double().mean()) if any_clip else None
        here = Standing(norm, None, turned or angle, None, gamma, effective, None, None, clipped)
        if not 0.0 < gamma < 1.0:
            return here
        etas, sigmas = self.lr_R[moved_R].tolist(), sigma_R[moved_R].tolist()
        balances = [
            replace(rates, lr=eta, weight_decay=gamma / eta).equilibrium(sigma, entries)
            for eta, sigma in zip(etas, sigmas, strict=True)
        ]
        target = _root_mean_square(torch.tensor([one.norm or 0.0 for one in balances], dtype=torch.float64))
        balance = replace(balances[0], norm=target)
        return replace(
            here,
            equilibrium_norm=target,
            equilibrium_angle=balance.angular_update,
            relaxation_steps=balance.relaxation_steps,
            steps_to_equilibrium=balance.steps_until(norm) if target > 0.0 else None,
        )


def claimed_groups(
    model: nn.Module, groups: Mapping[str, InvariantGroup | Sequence[nn.Parameter]] | None
) -> list[Group] | None:
    """The groups that are said to be scale invariant, without frozen parameters.

    Args:
        model: Whose own groups are taken, also within DistributedDataParallel or torch.compile.
        groups: Named by the caller; None = the model's own.

    Returns:
        The groups; None if neither says anything.
    """
    inner = model
    while groups is None and not isinstance(inner, ScaleInvariantModel):
        wrapped = getattr(inner, "_orig_mod", getattr(inner, "module", None))
        if not isinstance(wrapped, nn.Module):
            return None
        inner = wrapped
    named = inner.scale_invariant_groups() if groups is None else groups  # type: ignore[operator]
    found = []
    for name, group in named.items():
        members = [p for _, p in group.members] if isinstance(group, InvariantGroup) else list(group)
        trainable = tuple(dict.fromkeys(p for p in members if p.requires_grad))
        if trainable:
            found.append(Group(name, trainable, isinstance(group, InvariantGroup) and group.rows))
    return found


def candidates(model: nn.Module) -> list[Group]:
    """Of a model that says nothing: the parameters of each module, each by itself, and all of them."""
    found: dict[tuple[nn.Parameter, ...], Group] = {}
    for path, module in model.named_modules():
        own = {name: p for name, p in module.named_parameters(path, recurse=False) if p.requires_grad}
        for name, members in {path: tuple(own.values()), **{name: (p,) for name, p in own.items()}}.items():
            if members and sum(p.numel() for p in members) > 1:
                found.setdefault(members, Group(name, members, claimed=False))
    everything = tuple(p for p in model.parameters() if p.requires_grad)
    found.setdefault(everything, Group("all parameters", everything, claimed=False))
    return list(found.values())


def moments(model: nn.Module, loss: Loss, batches: Sequence[Any], groups: Sequence[Group]) -> list[Moments]:
    """Norms, gradients and their inner products, from one pass over the batches.

    Args:
        model: Left as it is.
        loss: Of a batch.
        batches: J of them.
        groups: In question.

    Returns:
        One for each group.

    Raises:
        ValueError: If a loss or a gradient is not finite.
    """
    parameters = list(dict.fromkeys(p for group in groups for p in group.members))
    x = [group.matrices(group.members) for group in groups]
    seen: dict[int, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    losses = []
    with observed(model):
        for batch in batches:
            with torch.enable_grad():  # whatever the caller has
                value = loss(batch)
            found = torch.autograd.grad(value, parameters, allow_unused=True) if parameters else ()
            found = tuple(g.to_dense() if g is not None and g.is_sparse else g for g in found)
            losses.append(float(value.detach()))
            by_parameter = dict(zip(parameters, found, strict=True))
            for i, group in enumerate(groups):
                tensors = [by_parameter[p] for p in group.members]
                g = group.matrices(
                    [torch.zeros_like(p) if t is None else t for p, t in zip(group.members, tensors, strict=True)]
                )
                squares_R = torch.stack([m.square().sum(1) for m in g]).sum(0)
                inner_R = torch.stack([(a * m).sum(1) for a, m in zip(x[i], g, strict=True)]).sum(0)
                if not (squares_R.isfinite().all() and math.isfinite(losses[-1])):
                    raise ValueError(
                        f"the loss is {losses[-1]:.4g} and its gradient in {group.name} is not finite: such a run has "
                        "no dynamics to be judged; go back to a checkpoint before that"
                    )
                seen[i].append((squares_R.sqrt(), inner_R))
    loss_J = torch.tensor(losses, dtype=torch.float64)
    result = []
    for i, matrices in enumerate(x):
        norm_R = torch.stack([m.square().sum(1) for m in matrices]).sum(0).sqrt().cpu()
        gradient_JR, inner_JR = (torch.stack(one).cpu() for one in zip(*seen[i], strict=True))
        result.append(Moments(norm_R, gradient_JR, inner_JR, loss_J))
    return result


def invariance(model: nn.Module, loss: Loss, batches: Sequence[Any], group: Group, seen: Moments) -> tuple[bool, float]:
    """Whether a group is scale invariant: its gradient is orthogonal to it, and rescaling does not change the loss.

    Factors are powers of two, which round nothing.

    Args:
        model: Left as it is, to the bit.
        loss: Of a batch, the same at each call.
        batches: On which it is tried.
        group: In question.
        seen: Of `moments`.

    Returns:
        The verdict, and the largest relative change of a loss.
    """
    if not ((seen.norm_R > 0.0) & seen.norm_R.isfinite()).all():
        return False, math.inf  # without length there is no direction
    coarse = any(p.dtype in (torch.float16, torch.bfloat16) for p in group.members)
    orthogonal = seen.cosine <= (COARSE_COSINE if coarse else COSINE) or seen.radial_share <= RADIAL_SHARE
    kept = [p.detach().clone() for p in group.members]
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    with observed(model), torch.no_grad():
        before = [float(loss(batch)) for batch in batches]
        try:
            for sign in (1.0, -1.0):
                factor_R = torch.full(seen.norm_R.shape, 2.0**sign)
                if group.rows:  # some rows up, some down
                    factor_R = torch.exp2(torch.randint(-1, 2, factor_R.shape, generator=generator).double())
                for p, old in zip(group.members, kept, strict=True):
                    p.copy_(old * factor_R.to(old).reshape(_shape(old, group)))
                worst = max(worst, _change(loss, batches, before))
            if not group.claimed:  # what hardly matters at all is not invariant for that
                for p, old in zip(group.members, kept, strict=True):
                    noise = torch.randn(old.shape, generator=generator).to(old)
                    p.copy_(old + old.norm() / noise.norm().clamp(min=1e-30) * noise)
                needed = SEEN * worst
                if not _change(loss, batches, before) > max(needed, RADIAL_SHARE):
                    return False, worst
        finally:
            for p, old in zip(group.members, kept, strict=True):
                p.copy_(old)
    return orthogonal and worst <= DEVIATION * (100.0 if coarse else 1.0), worst


def _change(loss: Loss, batches: Sequence[Any], before: Sequence[float]) -> float:
    """Largest relative change of the losses."""
    changes = [abs(float(loss(batch)) - v) / max(abs(v), 1e-300) for batch, v in zip(batches, before, strict=True)]
    return max(change if math.isfinite(change) else math.inf for change in changes)


def stepped(optimizer: Optimizer | Rates | Mapping[str, Rates], group: Group, seen: Moments) -> Stepped | str:
    """How an optimizer steps a group.

    Args:
        optimizer: In its present state, or rates, or rates by group.
        group: The group.
        seen: Its norms and gradients, by which `ClippedSGD` will calibrate itself if it has not yet.

    Returns:
        The answer, or why there is none, as a sentence.
    """
    like_R = torch.ones_like(seen.norm_R)
    if isinstance(optimizer, Rates | Mapping):
        rates = optimizer if isinstance(optimizer, Rates) else optimizer.get(group.name)
        return "no rates are known" if rates is None else Stepped(group, rates, rates.lr * like_R)
    for child in children(optimizer):
        for settings in child.param_groups:
            inside = [any(p is q for q in settings["params"]) for p in group.members]
            if all(inside):
                return _of_settings(child, settings, group, seen)
            if any(inside):
                return "its parameters are in several parameter groups of the optimizer, with rates of their own"
    return "it is not in the optimizer: it is not trained"


def children(optimizer: Optimizer) -> list[Optimizer]:
    """The optimizers that step, out of what they are wrapped in."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return list(getattr(optimizer, "optimizers", [optimizer]))


def _of_settings(optimizer: Optimizer, settings: Mapping[str, Any], group: Group, seen: Moments) -> Stepped | str:
    lr = float(settings["lr"])
    if lr == 0.0:
        return "its learning rate is 0: it is not moved"
    like_R = torch.ones_like(seen.norm_R)
    if isinstance(optimizer, ClippedSGD):
        clipping = {"clip": settings["clip"], "two_sided": settings["two_sided"]}
        if settings["intrinsic_lr"] is None:
            return Stepped(group, Rates("sgd", lr, float(settings["weight_decay"]), **clipping), lr * like_R)
        gamma = float(settings["intrinsic_lr"])
        kept = optimizer.state[settings["params"][0]].get("eta") if settings["rows"] else settings["eta"]
        eta_R = torch.zeros_like(like_R) if kept is None else kept.detach().double().cpu() * like_R
        gradient_R = seen.gradient_JR.square().mean(0).sqrt()
        start_R = math.sqrt(gamma * (2.0 - gamma)) * seen.norm_R / gradient_R.clamp(min=1e-300)
        eta_R = torch.where((eta_R == 0.0) & (gradient_R > 0.0), start_R, eta_R)
        known_R = eta_R[eta_R > 0.0]
        if known_R.numel() == 0:
            return "no gradient has reached it, and its learning rate is calibrated from the first one"
        eta = float(known_R.median())
        eta_R = torch.where(eta_R > 0.0, eta_R, eta)
        return Stepped(group, Rates("sgd", lr * eta, gamma / eta, **clipping), lr * eta_R)
    decay = float(settings.get("weight_decay", 0.0))
    if decay and isinstance(optimizer, SGD | Adam) and (reason := unbalanced(settings)):
        return reason
    if isinstance(optimizer, SGD):
        lr = damped_lr(settings)
        if lr == 0.0:
            return "its dampening is 1: after the first step it is not moved"
        return Stepped(group, Rates("sgd", lr, decay, float(settings["momentum"])), lr * like_R)
    if isinstance(optimizer, Adam):
        if decay and not settings.get("decoupled_weight_decay"):
            return "Adam with the decay in the gradient has no balance that is free of the loss's scale: take AdamW"
        return Stepped(group, Rates("adamw", lr, decay, betas=settings["betas"]), lr * like_R)
    if type(optimizer).__name__ == "Lion":  # no such class in torch
        return Stepped(group, Rates("lion", lr, decay, betas=tuple(settings["betas"])), lr * like_R)
    return f"the balance of SGD, ClippedSGD, AdamW and Lion is known, not that of {type(optimizer).__name__}"


def tried_angles(
    optimizer: Optimizer, groups: Sequence[Stepped], model: nn.Module, loss: Loss, batches: Sequence[Any]
) -> dict[str, float]:
    """Angles of the next step where the optimizer remembers gradients: a copy of it makes the step.

    Args:
        optimizer: With its state.
        groups: In question.
        model: Left as it is.
        loss: Of a batch.
        batches: A step is tried for each of the first few.

    Returns:
        Root mean square over batches, and over rows that move, radians, by name; only of groups with a state.
    """
    angles: dict[str, list[float]] = defaultdict(list)
    for child in children(optimizer):
        mine = {p for settings in child.param_groups for p in settings["params"]}
        those = [one.group for one in groups if one.group.members[0] in mine and child.state.get(one.group.members[0])]
        if isinstance(child, ClippedSGD) or not those:
            continue
        for batch in batches[:TRIALS]:
            twin = copy.deepcopy(child)
            pairs = [
                pair
                for old, new in zip(child.param_groups, twin.param_groups, strict=True)
                for pair in zip(old["params"], new["params"], strict=True)
                if pair[0].requires_grad
            ]
            with observed(model):
                found = torch.autograd.grad(loss(batch), [old for old, _ in pairs], allow_unused=True)
            for (_, new), gradient in zip(pairs, found, strict=True):
                new.grad = gradient
            twin.step()
            after = dict(pairs)
            for group in those:
                angles[group.name].append(_angle(group, [after[p] for p in group.members]))
    return {name: math.sqrt(sum(a * a for a in values) / len(values)) for name, values in angles.items()}


def _angle(group: Group, new: Sequence[Tensor]) -> float:
    x, y = group.matrices(group.members), group.matrices(new)
    norm_R, after_R = (torch.stack([m.square().sum(1) for m in one]).sum(0).sqrt() for one in (x, y))
    chords = [a / norm_R[:, None] - b / after_R[:, None] for a, b in zip(x, y, strict=True)]
    chord_R = torch.stack([chord.square().sum(1) for chord in chords]).sum(0).sqrt()
    angle_R = 2.0 * torch.asin((chord_R / 2.0).clamp(max=1.0))
    return _root_mean_square(angle_R[angle_R > 0.0]) if bool((angle_R > 0.0).any()) else 0.0


def _shape(tensor: Tensor, group: Group) -> tuple[int, ...]:
    return (len(tensor), *[1] * (tensor.dim() - 1)) if group.rows else (1,) * tensor.dim()


def _root_mean_square(values: Tensor) -> float:
    return float(values.square().mean().sqrt())
