"""Groups of a converted module for optimizers: directions for ClippedSGD, the small rest for an adaptive one."""

import math
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer

from sibert.conversion.weights import converted_weights
from sibert.optim import ClippedSGD, Hybrid, InvariantGroup
from sibert.optim.updates import Implementation

__all__ = ["build_optimizer", "param_groups", "scale_invariant_groups"]


def scale_invariant_groups(module: nn.Module) -> dict[str, InvariantGroup]:
    """The directions of a converted module: each row, or each weight, is invariant on its own.

    Args:
        module: After `make_scale_invariant`.

    Returns:
        By the name of the weight.
    """
    aliases: dict[nn.Parameter, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        aliases.setdefault(parameter, []).append(name)
    return {
        weight.names[0]: InvariantGroup(
            [(name, weight.direction) for name in aliases[weight.direction]],
            weight.parametrisation.granularity == "row",
        )
        for weight in converted_weights(module)
    }


def param_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Groups of all trainable parameters: a group for each converted weight, and the rest.

    Args:
        module: After `make_scale_invariant`.

    Returns:
        {"name", "params": [(name, parameter), ...], "scale_invariant", ...}: the directions first, with "rows"; then,
        with "entries", for each number n the gains that are norms of n entries, "gains of n"; then, named "rest",
        biases, norms and what was not converted.

    Raises:
        ValueError: If nothing in the module was converted, or nothing is trainable.
    """
    groups = scale_invariant_groups(module)
    if not groups:
        raise ValueError("nothing in the module was converted: call make_scale_invariant first")
    directions = {parameter for group in groups.values() for _, parameter in group.members}
    found: list[dict[str, Any]] = [
        {"name": name, "params": group.members[:1], "scale_invariant": True, "rows": group.rows}
        for name, group in groups.items()
        if group.members[0][1].requires_grad
    ]
    entries = {weight.gain: weight.direction.numel() // weight.gain.numel() for weight in converted_weights(module)}
    others: dict[int, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in module.named_parameters():
        if parameter not in directions and parameter.requires_grad:
            others.setdefault(entries.get(parameter, 0), []).append((name, parameter))
    for number, params in sorted(others.items(), reverse=True):
        name = f"gains of {number}" if number else "rest"
        found.append({"name": name, "params": params, "scale_invariant": False, "entries": max(1, number)})
    if not found:
        raise ValueError("the module has no trainable parameter: call requires_grad_(True) on what to train")
    return found


def build_optimizer(
    module: nn.Module,
    *,
    intrinsic_lr: float,
    clip: float | None = 2.0,
    rest_lr: float = 1e-3,
    weight_decay: float = 0.0,
    implementation: Implementation | None = None,
) -> Optimizer:
    """ClippedSGD for the directions, without optimizer state for weights, and AdamW for the small rest.

    Args:
        module: After `make_scale_invariant`.
        intrinsic_lr: eta * lambda of the directions.
        clip: sqrt(C), see `sibert.optim.ClippedSGD`.
        rest_lr: AdamW's learning rate of biases, norms and what was not converted, and the one that plain weights would
            have: a gain is the norm of n entries, so it has sqrt(n) times as much, by which its root mean square moves
            as fast as plain entries would.
        weight_decay: AdamW's, of the rest.
        implementation: See `sibert.optim.ClippedSGD`.
    """
    groups = param_groups(module)
    directions = [group for group in groups if group["scale_invariant"]]
    rest = [
        {"params": group["params"], "lr": rest_lr * math.sqrt(group["entries"])}
        for group in groups
        if not group["scale_invariant"]
    ]
    optimizers: list[Optimizer] = []
    if directions:
        optimizers.append(ClippedSGD(directions, clip=clip, intrinsic_lr=intrinsic_lr, implementation=implementation))
    if rest:
        optimizers.append(AdamW(rest, weight_decay=weight_decay))
    return optimizers[0] if len(optimizers) == 1 else Hybrid(optimizers)
