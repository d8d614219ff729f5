"""How far a step turns a scale-invariant group, and how large the step is for the loss: measured in any training loop.

For a loss that is invariant to the scale of x only the direction x / |x| counts. A step turns it by the angular update;
its learning rate on the unit sphere is the effective learning rate, eta / |x|^2, or eta / ((1 - m) |x|^2) with momentum
m, where eta is multiplied by 1 - dampening.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from sibert.dynamics.equilibrium import damped_lr
from sibert.dynamics.radial import RadialCheck, cosine
from sibert.optim import ClippedSGD, InvariantGroup
from sibert.optim.norms import home_of, squared_norm
from sibert.optim.rows import squared_row_norms
from sibert.optim.shards import is_sharded

__all__ = ["Rotation", "RotationRecorder"]

QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Rotation:
    """What one step did to one scale-invariant group.

    Attributes:
        name: Of the group.
        step: Number of the step, counted from 1 since the recorder was made.
        norm: |x| before the step; of rows the root mean square.
        gradient_norm: |x| |gradient|, the norm of the gradient at x / |x|, in units of the loss; before any clipping by
            the optimizer. Of rows the root mean square.
        effective_lr: Learning rate on the unit sphere, per unit of loss; None for optimizers whose step is not a
            multiple of gradients, and for rows.
        angular_update: Angle between x before and after the step, radians; of rows the root mean square.
        radial: Cosine of x and gradient, 0 but for rounding; of rows the one that is largest in magnitude.
        quantiles: Of the angles of the rows, the tenth, fiftieth and ninetieth percentile; None for a group that is one
            vector.
    """

    name: str
    step: int
    norm: float
    gradient_norm: float
    effective_lr: float | None
    angular_update: float
    radial: float
    quantiles: tuple[float, float, float] | None = None


class RotationRecorder:
    """Measures some steps of an optimizer, and leaves model, loop, random numbers and results as they are.

    `RotationRecorder(optimizer)` before the loop is all; `records` has the measurements. On a measured step it keeps a
    copy of the groups' parameters. It reads `.grad` after the step, and records nothing of groups that have none then,
    as with `GradientRelease`. Parameters may be sharded (FSDP2): then every process has to have a recorder.

    Args:
        optimizer: Any torch optimizer that calls its step hooks (children of a `Hybrid` do not: give it the Hybrid).
        groups: The scale-invariant groups by name, as `scale_invariant_groups()` of a model gives them, or lists of
            parameters; None = the optimizer's own with "scale_invariant".
        every: Steps from one measurement to the next; the first step is measured.

    Raises:
        ValueError: If no group is known. In a step: if a group has no direction, or its gradients of the first eight
            measured steps are not orthogonal to it, so that the loss depends on its scale. That finds what depends on
            it as a plain network does, not what does so weakly, or only elsewhere: `sibert check` decides that. (Later
            gradients may be so small that rounding makes them radial.)

    Example:
        >>> x = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = torch.optim.SGD([x], lr=1.0)
        >>> recorder = RotationRecorder(optimizer, {"x": [x]})
        >>> x.grad = torch.tensor([-4.0, 3.0])
        >>> optimizer.step()
        >>> round(recorder.records[0].angular_update, 4), recorder.records[0].effective_lr
        (0.7854, 0.04)
    """

    def __init__(
        self,
        optimizer: Optimizer,
        groups: Mapping[str, InvariantGroup | Sequence[nn.Parameter]] | None = None,
        every: int = 50,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.groups = marked_groups(optimizer) if groups is None else dict(map(_as_invariant_group, groups.items()))
        if not self.groups:
            raise ValueError(
                "no parameter group is marked scale_invariant: give groups={name: [parameters]}; `sibert check` finds "
                "those of a model"
            )
        self.optimizer = optimizer
        self.every = every
        self.records: list[Rotation] = []
        self._steps = 0
        self._before: dict[str, list[Tensor]] = {}
        what = "effective learning rate and rotation mean nothing here"
        self._checks = {name: RadialCheck(name, what) for name in self.groups}
        self._hooks = [
            optimizer.register_step_pre_hook(self._remember),
            optimizer.register_step_post_hook(self._measure),
        ]

    def close(self) -> None:
        """Stop measuring; the records stay."""
        for hook in self._hooks:
            hook.remove()
        self._before = {}

    @torch.no_grad()
    def _remember(self, *_: Any) -> None:
        if self._steps % self.every == 0:
            self._before = {name: [p.detach().clone() for p in _members(group)] for name, group in self.groups.items()}

    @torch.no_grad()
    def _measure(self, *_: Any) -> None:
        self._steps += 1
        before, self._before = self._before, {}
        for name, old in before.items():
            group = self.groups[name]
            parameters = _members(group)
            if all(p.grad is None for p in parameters):
                continue  # it did not take part in the step
            measure = self._of_rows if group.rows else self._of_vector
            self.records.append(measure(name, old, parameters))

    def _of_vector(self, name: str, old: list[Tensor], parameters: list[nn.Parameter]) -> Rotation:
        gradients = [_gradient(p) for p in parameters]
        home = home_of(parameters)
        differences = [p.detach() - x for p, x in zip(parameters, old, strict=True)]
        lengths = [squared_norm(tensors, home).sqrt().item() for tensors in (old, parameters, gradients, differences)]
        norm, after, gradient_norm, difference = lengths
        _check_direction(name, norm, after)
        radial = 0.0
        if gradient_norm > 0.0:
            radial = cosine(old, gradients, norm, gradient_norm)
            whole = (norm * gradient_norm) ** 2
            self._checks[name].see(radial**2 * whole, whole, parameters)
        along = (after**2 - norm**2 - difference**2) / 2.0  # <x, x' - x>
        across = math.sqrt(max(0.0, (norm * difference) ** 2 - along**2))
        lr = self._lr(parameters)
        return Rotation(
            name,
            self._steps,
            norm,
            norm * gradient_norm,
            None if lr is None else lr / norm**2,
            math.atan2(across, norm**2 + along),
            radial,
        )

    def _of_rows(self, name: str, old: list[Tensor], parameters: list[nn.Parameter]) -> Rotation:
        x, g = ([_whole(tensor) for tensor in tensors] for tensors in (old, [_gradient(p) for p in parameters]))
        new = [_whole(p.detach()) for p in parameters]
        changes = [b - a for a, b in zip(x, new, strict=True)]
        norm_R, after_R, gradient_R, change_R = (squared_row_norms(tensors).sqrt() for tensors in (x, new, g, changes))
        _check_direction(name, norm_R.min().item(), after_R.min().item())
        scale_R = norm_R / gradient_R.clamp(min=torch.finfo(gradient_R.dtype).tiny)
        sums = [a + _by_row(scale_R, b) for a, b in zip(x, g, strict=True)]
        radial_R = (squared_row_norms(sums) / norm_R.square() - 2.0) / 2.0
        whole_R = (norm_R * gradient_R).square()[gradient_R > 0.0]
        radial_R = radial_R[gradient_R > 0.0]
        radial = radial_R[radial_R.abs().argmax()].item() if radial_R.numel() else 0.0
        self._checks[name].see((radial_R.square() * whole_R).sum().item(), whole_R.sum().item(), parameters, radial)
        along_R = (after_R.square() - norm_R.square() - change_R.square()) / 2.0
        across_R = ((norm_R * change_R).square() - along_R.square()).clamp(min=0.0).sqrt()
        angle_R = torch.atan2(across_R, norm_R.square() + along_R)
        levels = torch.tensor(QUANTILES, dtype=angle_R.dtype, device=angle_R.device)
        low, middle, high = angle_R.quantile(levels).tolist()
        return Rotation(
            name,
            self._steps,
            norm_R.square().mean().sqrt().item(),
            (norm_R * gradient_R).square().mean().sqrt().item(),
            None,
            angle_R.square().mean().sqrt().item(),
            radial,
            (low, middle, high),
        )

    def _lr(self, parameters: Sequence[nn.Parameter]) -> float | None:
        """Eta of a step that is a multiple of gradients, if all parameters have the same."""
        found = set()
        for group in self.optimizer.param_groups:
            if any(p is q for p in parameters for q in group["params"]):
                if "clip" in group and "intrinsic_lr" in group:  # of ClippedSGD, alone or in a Hybrid
                    eta = 1.0 if group["intrinsic_lr"] is None else float(group.get("eta", math.nan))
                    found.add(float(group["lr"]) * eta)
                elif isinstance(self.optimizer, SGD):
                    # All that a gradient moves in the end: the same with Nesterov's momentum, 1 + m + m^2 + ...
                    found.add(damped_lr(group) / (1.0 - group["momentum"]))
                else:
                    return None
        return found.pop() if len(found) == 1 else None


def marked_groups(optimizer: Optimizer) -> dict[str, InvariantGroup]:
    """Find the groups that an optimizer marks as scale invariant, by name.

    Args:
        optimizer: Any.

    Returns:
        Often none.
    """
    return {
        group.get("name", f"group {i}"): InvariantGroup(
            [(str(k), p) for k, p in enumerate(group["params"])], bool(group.get("rows"))
        )
        for i, group in enumerate(optimizer.param_groups)
        if group.get("scale_invariant") or isinstance(optimizer, ClippedSGD)
    }


def _as_invariant_group(item: tuple[str, InvariantGroup | Sequence[nn.Parameter]]) -> tuple[str, InvariantGroup]:
    name, group = item
    if isinstance(group, InvariantGroup):
        return name, group
    return name, InvariantGroup([(str(k), p) for k, p in enumerate(group)])


def _members(group: InvariantGroup) -> list[nn.Parameter]:
    """Each parameter once: a tied one has several names."""
    return list(dict.fromkeys(parameter for _, parameter in group.members))


def _gradient(parameter: nn.Parameter) -> Tensor:
    gradient = parameter.grad
    if gradient is None:  # a member without, of a group that has taken part in the step
        return torch.zeros_like(parameter)
    return gradient.to_dense() if gradient.is_sparse else gradient


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined, no-any-return]


def _by_row(factor_R: Tensor, tensor: Tensor) -> Tensor:
    return factor_R.view(-1, *[1] * (tensor.dim() - 1)) * tensor


def _check_direction(name: str, *norms: float) -> None:
    if not all(0.0 < norm < math.inf for norm in norms):
        raise ValueError(
            f"{name}: a norm is {min(norms)}: without length there is no direction, and nothing turns; parameters that "
            "have died or exploded have to be found before"
        )
