"""Which parameters of a model are scaled together, and the optimizer that follows from it."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import nn
from torch.optim import Optimizer

from sibert.optim.clipped_sgd import ClippedSGD
from sibert.optim.hybrid import Hybrid
from sibert.optim.lamb import Lamb
from sibert.optim.updates import Implementation

__all__ = ["InvariantGroup", "ScaleInvariantModel", "build_optimizer", "param_groups"]

HEAD = "head"
HEAD_LAMB_LR, HEAD_ADAMW_LR = 1e-2, 3e-3
HEAD_EPS = 1e-20
"""Of LAMB and AdamW, against division by 0 alone: 1e-6 or 1e-8 may be larger than gradients of a loss that is scaled
down, and steps would depend on its scale. Not smaller than the squares of float32 allow: they are 0 below 1e-21, where
m / eps may be no longer than a step elsewhere."""


@dataclass(frozen=True)
class InvariantGroup:
    """Parameters that may be scaled without changing the output of a model.

    Attributes:
        members: (name, parameter) pairs, with every name that the model has for a tied parameter.
        rows: False: all members together, by any c > 0. True: every row on its own, row r being the r-th slices of all
            members along their first dimension.
    """

    members: list[tuple[str, nn.Parameter]]
    rows: bool = False


@runtime_checkable
class ScaleInvariantModel(Protocol):
    """A model that knows its symmetries."""

    def scale_invariant_groups(self) -> dict[str, InvariantGroup]:
        """Name the groups of parameters whose scaling leaves the output unchanged.

        Returns:
            Group name -> group.
        """


def param_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Sort every trainable parameter of a model into its scale-invariant group or the head.

    Frozen parameters are left out. A group may be frozen as a whole, but not in part: c x_1 with x_2 held fixed is
    another function, so the rest of the group is not scale invariant. For the same reason a parameter of a group may
    not be tied to one outside of it.

    Args:
        model: A model with a method `scale_invariant_groups`, also within DistributedDataParallel or torch.compile.

    Returns:
        Groups for torch optimizers: {"name", "params": [(name, parameter), ...], "scale_invariant", "rows"};
        the scale-invariant ones first, then, if there are other trainable parameters, one named "head".

    Raises:
        TypeError: If the model does not name its groups.
        ValueError: If a parameter is in two groups, in none of the model's own, tied across groups, or frozen alone; or
            if nothing is trainable.
    """
    model = _unwrap(model)
    if not isinstance(model, ScaleInvariantModel):
        raise TypeError(
            f"{type(model).__name__} has no method scale_invariant_groups(), so nothing is known about its symmetries; "
            "give ClippedSGD explicit groups, or train it with another optimizer"
        )
    aliases: dict[nn.Parameter, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases[parameter].append(name)
    owner: dict[nn.Parameter, str] = {}
    found: list[dict[str, Any]] = []
    for group_name, group in model.scale_invariant_groups().items():
        if group_name == HEAD:
            raise ValueError(f"{HEAD!r} is the name of what is not scale invariant; give the group another name")
        parameters = _distinct(group.members)
        _check_members(group_name, group.members, aliases, owner)
        trainable = [name for name, parameter in parameters if parameter.requires_grad]
        if trainable and len(trainable) < len(parameters):
            frozen = next(name for name, parameter in parameters if not parameter.requires_grad)
            raise ValueError(
                f"{frozen} is frozen, but {len(trainable)} other parameters of the scale-invariant group "
                f"{group_name!r} are not: the loss is invariant to scaling the whole group, not a part of it; freeze "
                "all of it or nothing"
            )
        if trainable:
            found.append(
                {
                    "name": group_name,
                    "params": parameters,
                    "scale_invariant": True,
                    "rows": group.rows,
                }
            )
    head = [(names[0], p) for p, names in aliases.items() if p not in owner and p.requires_grad]
    if head:
        found.append({"name": HEAD, "params": head, "scale_invariant": False})
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no trainable parameter; call requires_grad_(True) on what to train"
        )
    return found


def build_optimizer(
    model: nn.Module,
    *,
    intrinsic_lr: float | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    clip: float | None = 2.0,
    two_sided: bool | None = None,
    head_lr: float | None = None,
    implementation: Implementation | None = None,
) -> Optimizer:
    """Build the optimizer of the paper: ClippedSGD for the scale-invariant groups, LAMB for the head.

    A head without matrices, nothing but biases and scales, gets AdamW without weight decay instead: LAMB's steps are
    relative to the norm of a whole tensor, which is too far for biases that start at the log frequencies of the tokens
    (LOGBOOK, 2026-11-23). The head's epsilon is 1e-20, so that its steps, too, do not depend on the scale of the loss:
    in intrinsic mode a loss times 2^k trains the same model, bit for bit on the CPU, until gradients leave the range of
    their dtype. (A head in float16, which cannot hold 1e-20, has the optimizer's own epsilon.)

    Args:
        model: A model as for `param_groups`.
        intrinsic_lr: eta * lambda of the scale-invariant groups, instead of lr and weight_decay.
        lr: eta of the scale-invariant groups.
        weight_decay: lambda of the scale-invariant groups.
        clip: sqrt(C), see `ClippedSGD`.
        two_sided: See `ClippedSGD`; None = if the model has several groups, each of which has to keep up with the
            others. A model that is one group gets Algorithm 1 of the paper.
        head_lr: Learning rate of the head; None = 1e-2 with LAMB (a relative step length), 3e-3 with AdamW.
        implementation: See `ClippedSGD`.

    Returns:
        A Hybrid of both; or the only one that is needed, where the model has no head or its encoder is frozen.

    Raises:
        TypeError: See `param_groups`.
        ValueError: See `param_groups` and `ClippedSGD`.
    """
    groups = param_groups(model)
    invariant = [group for group in groups if group["scale_invariant"]]
    head = [group for group in groups if not group["scale_invariant"]]
    optimizers: list[Optimizer] = []
    if invariant:
        optimizers.append(
            ClippedSGD(
                invariant,
                lr,
                weight_decay,
                clip=clip,
                two_sided=len(invariant) > 1 and clip is not None if two_sided is None else two_sided,
                intrinsic_lr=intrinsic_lr,
                implementation=implementation,
            )
        )
    if head:
        optimizers.append(_head_optimizer(head[0], head_lr))
    return optimizers[0] if len(optimizers) == 1 else Hybrid(optimizers)


def _head_optimizer(head: dict[str, Any], lr: float | None) -> Optimizer:
    parameters = [parameter for _, parameter in head["params"]]
    if all(parameter.dtype != torch.float16 for parameter in parameters):
        head = {**head, "eps": HEAD_EPS}
    if any(parameter.dim() >= 2 for parameter in parameters):
        return Lamb([head], lr=HEAD_LAMB_LR if lr is None else lr, weight_decay=0.01)
    lr = HEAD_ADAMW_LR if lr is None else lr
    return torch.optim.AdamW([head], lr=lr, betas=(0.9, 0.98), weight_decay=0.0)


def _unwrap(model: nn.Module) -> nn.Module:
    """Take a model out of DistributedDataParallel (`module`) and torch.compile (`_orig_mod`), however nested."""
    while not isinstance(model, ScaleInvariantModel):
        inner = getattr(model, "_orig_mod", getattr(model, "module", None))
        if not isinstance(inner, nn.Module):
            return model
        model = inner
    return cast(nn.Module, getattr(model, "_orig_mod", model))


def _distinct(members: Iterable[tuple[str, nn.Parameter]]) -> list[tuple[str, nn.Parameter]]:
    first_names: dict[nn.Parameter, str] = {}
    for name, parameter in members:
        first_names.setdefault(parameter, name)
    return [(name, parameter) for parameter, name in first_names.items()]


def _check_members(
    group_name: str,
    members: Iterable[tuple[str, nn.Parameter]],
    aliases: dict[nn.Parameter, list[str]],
    owner: dict[nn.Parameter, str],
) -> None:
    """Refuse members that are unknown to the model, in another group, or tied to something outside of this group."""
    listed: dict[nn.Parameter, set[str]] = defaultdict(set)
    for name, parameter in members:
        listed[parameter].add(name)
        if parameter not in aliases:
            raise ValueError(f"{name} of the group {group_name!r} is not a parameter of the model")
        if owner.setdefault(parameter, group_name) != group_name:
            raise ValueError(f"{name} is in the groups {owner[parameter]!r} and {group_name!r}; it may be in one only")
    for parameter, names in listed.items():
        # Counted, not compared: a model may name its parameters relative to the encoder.
        every_name = aliases[parameter]
        if len(names) < len(every_name):
            raise ValueError(
                f"{every_name[0]} is tied ({', '.join(every_name)}), and not under all of these names in the group "
                f"{group_name!r}: scaling it there changes the rest of the model, so the loss is not scale invariant; "
                "untie it (tie_word_embeddings=False), or list every name if all its uses are within the group"
            )
