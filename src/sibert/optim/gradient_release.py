"""Steps inside backward: each group is stepped as soon as its gradient is complete, and the gradient is freed.

Where every group has a norm, a clip factor and an eta of its own, its step needs no gradient but its own. So nothing
forces all gradients to exist at once: at most those of one group do, and of the layer that backward is in.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sibert.optim.clipped_sgd import ClippedSGD
from sibert.optim.hybrid import Hybrid
from sibert.optim.shards import any_sharded

__all__ = ["GradientRelease"]

MEMBERS_OF_A_LAYER = 2
"""A matrix and its bias, whose gradients come together; a group of more tensors keeps the first of them waiting."""


class GradientRelease:
    """Let `loss.backward()` step the groups of a `ClippedSGD`, each when its gradient is complete.

    The step of a group is the one that `optimizer.step()` would take, bit for bit. A training loop stays as it is:
    `optimizer.step()` then steps what is left (the optimizers of a `Hybrid` beside ClippedSGD, and groups of which a
    member got no gradient) and ends the step; it has to be called after every backward. `zero_grad()` finds nothing.

    What differs from stepping after backward:

    - A gradient that is not finite skips and counts the step of its own group alone.
    - The learning rate is read in backward, so a scheduler steps after `optimizer.step()`, as usual. What looks at or
      changes gradients between backward and step (clipping, noise, a logged norm) finds none.
    - A group whose gradient is None is left alone; `zero_grad(set_to_none=False)` cannot make it decay.

    The order of steps within a backward does not matter, nor does non-reentrant checkpointing. Reentrant checkpointing
    works unless a parameter occurs in two of its segments, which is refused when its second gradient arrives.
    `torch.compile` works; one compiled graph hands out all its gradients at its end, though, so compile layer by layer
    for them to be freed early. A parameter that is needed again after its gradient was complete, through `detach()`
    say, makes backward fail with torch's message about in-place changes.

    Args:
        optimizer: A `ClippedSGD`, or a `Hybrid` with at least one among its children.

    Raises:
        TypeError: If there is no ClippedSGD.
        ValueError: If one group is most of the model, parameters are sharded, or several processes train together; in
            `optimizer.step()`, if a GradScaler calls it.
        RuntimeError: In backward, if a parameter gets a second gradient before `optimizer.step()`.

    Example:
        >>> x = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = ClippedSGD([x], intrinsic_lr=0.1)
        >>> release = GradientRelease(optimizer)
        >>> (x / x.norm())[0].backward()
        >>> x.grad is None, round(x.norm().item(), 4)  # stepped, and still at equilibrium
        (True, 5.0)

    References:
        The idea, for plain SGD: Lv et al., "Full Parameter Fine-tuning for Large Language Models with Limited
        Resources" (LOMO), arXiv 2306.09782.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        children = optimizer.optimizers if isinstance(optimizer, Hybrid) else [optimizer]
        self._children = [child for child in children if isinstance(child, ClippedSGD)]
        if not self._children:
            raise TypeError(
                f"GradientRelease takes a ClippedSGD or a Hybrid with one, got {type(optimizer).__name__}: it relies "
                "on every group being stepped by its own gradient alone"
            )
        self._optimizer = optimizer
        self._arrived: dict[tuple[int, int], set[Tensor]] = defaultdict(set)
        parameters = [p for child in self._children for group in child.param_groups for p in group["params"]]
        if any_sharded(parameters):
            raise ValueError(
                "gradient release needs whole parameters, got sharded ones: FSDP reduces gradients after this process "
                "has its own; train in one process, or without gradient release"
            )
        _refuse_several_processes()
        for child in self._children:
            _refuse_one_for_all(child.param_groups, sum(p.numel() for p in parameters))
        self._handles: list[Any] = [
            p.register_post_accumulate_grad_hook(partial(self._arrive, which, index))
            for which, child in enumerate(self._children)
            for index, group in enumerate(child.param_groups)
            for p in group["params"]
            if p.requires_grad
        ]
        self._handles += [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        # By this torch's GradScaler tells an optimizer about itself; `_before_step` then finds its traces.
        optimizer._step_supports_amp_scaling = True  # type: ignore[attr-defined]

    def remove(self) -> None:
        """Go back to steps after backward."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._optimizer.__dict__.pop("_step_supports_amp_scaling", None)

    def _arrive(self, which: int, index: int, parameter: Tensor) -> None:
        """Take note of a complete gradient; step its group if it was the last of the group."""
        if not self._arrived:
            _refuse_several_processes()
        arrived = self._arrived[which, index]
        group = self._children[which].param_groups[index]
        if parameter in arrived:
            raise RuntimeError(
                f"{group['name']}: a parameter of shape {tuple(parameter.shape)} got a second gradient before "
                "optimizer.step(), after its group may have been stepped by the first: with gradient release every "
                "backward is a step, so there is no gradient accumulation, and reentrant checkpointing may not use a "
                "parameter in two segments; call optimizer.step() after each backward, use larger batches, or train "
                "without gradient release"
            )
        arrived.add(parameter)
        if all(p in arrived for p in group["params"] if p.requires_grad):
            self._children[which]._release(index)

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if getattr(optimizer, "found_inf", None) is not None:
            raise ValueError(
                "gradient release cannot be used with a GradScaler: gradients would have to be unscaled after "
                "backward, and by then they have been used; train in bfloat16 or float32, which need no scaler"
            )

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._arrived.clear()
        for child in self._children:
            child._released.clear()


def _refuse_several_processes() -> None:
    """Refuse DDP and FSDP: their hooks average gradients over processes when ours have used them."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        raise ValueError(
            "gradient release works in one process, and a process group is initialised: DDP and FSDP average gradients "
            "over processes after they have been used here; train without gradient release, or without a process group"
        )


def _refuse_one_for_all(groups: Sequence[dict[str, Any]], total: int) -> None:
    for group in groups:
        size = sum(p.numel() for p in group["params"])
        if not group["rows"] and len(group["params"]) > MEMBERS_OF_A_LAYER and 2 * size > total:
            raise ValueError(
                f"gradient release would free nothing: {group['name']!r} is one group of {len(group['params'])} "
                f"tensors with {size} of {total} parameters, and its clip factor needs the norm of its whole gradient, "
                "which is known when backward is over; use a model with a group for every matrix (invariance 'matrix' "
                "or 'row')"
            )
