"""Several optimizers behind the interface of one."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sibert.optim.joint_step import JointStep, Measurement
from sibert.optim.norms import home_of, squared_norm
from sibert.optim.statistics import GroupStatistics

__all__ = ["Hybrid"]


class Hybrid(Optimizer):
    """One `torch.optim.Optimizer` made of several, each with groups of its own.

    Trainers, learning-rate schedulers, gradient scalers and checkpoints see one optimizer: `param_groups` is the
    concatenation of the children's lists (the same dicts), `state` the union of their states, and `state_dict` has the
    usual form. All children step, or none: the decision whether every gradient is finite is taken once, for all.

    `ClippedSGD` and `Lamb` take that decision on the device. Any other torch optimizer may be a child, too; the host
    then has to read the decision, which waits for the device once a step. Hooks registered on a `ClippedSGD` or `Lamb`
    child are not called; register them on the Hybrid.

    Args:
        optimizers: The children; no parameter may belong to two of them.

    Raises:
        TypeError: If a child is not a torch optimizer, or one that needs a closure.
        ValueError: If there is no child, or a parameter or group name occurs twice.

    Example:
        >>> x, head = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
        >>> hybrid = Hybrid([torch.optim.SGD([x], lr=0.1), torch.optim.AdamW([head])])
        >>> len(hybrid.param_groups)
        2
    """

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        self.optimizers = list(optimizers)
        _check_children(self.optimizers)
        # Not Optimizer.__init__, which would make groups of its own; this prepares the hooks and nothing else.
        super().__setstate__({"defaults": {}})

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The children's groups in order: a new list of the very dicts that the children use."""
        return list(chain.from_iterable(child.param_groups for child in self.optimizers))

    @property
    def state(self) -> defaultdict[Tensor, Any]:  # type: ignore[override]
        """The union of the children's states: a new dict of their entries."""
        union: defaultdict[Tensor, Any] = defaultdict(dict)
        for child in self.optimizers:
            union.update(child.state)
        return union

    def __getstate__(self) -> dict[str, Any]:
        """Give what a pickle or a copy needs: the children."""
        return {"defaults": self.defaults, "optimizers": self.optimizers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from a pickle or copy, or hand a loaded state dict on to the children."""
        state = dict(state)
        groups, values = state.pop("param_groups", None), state.pop("state", {})
        super().__setstate__(state)
        if groups is None:
            return
        for child in self.optimizers:
            mine, groups = groups[: len(child.param_groups)], groups[len(child.param_groups) :]
            parameters = [p for group in mine for p in group["params"]]
            child_state = defaultdict(dict, {p: values[p] for p in parameters if p in values})
            child.__setstate__({"state": child_state, "param_groups": mine})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse: only a child can own a group.

        Args:
            param_group: Not used.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            "a Hybrid cannot tell which of its optimizers should own a new group; add it to one of them, for example "
            "hybrid.optimizers[0].add_param_group(...): it is seen here at once"
        )

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Let all children step, or none if a gradient of any of them is not finite.

        Args:
            closure: Evaluates the loss and its gradients again; optional.

        Returns:
            What the closure returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        children = [child if isinstance(child, JointStep) else _Foreign(child) for child in self.optimizers]
        measurements = [child._measure() for child in children]
        finite = [measurement.finite for measurement in measurements if measurement.finite is not None]
        if finite:
            skip = ~torch.stack([each.to(finite[0].device, non_blocking=True) for each in finite]).all()
            for child, measurement in zip(children, measurements, strict=True):
                child._apply(measurement, skip)
        return loss

    def statistics(self, reset: bool = False) -> list[GroupStatistics]:
        """Read what the last step did to the scale-invariant groups. This waits for the device.

        Args:
            reset: Begin a new window for the means and fractions.

        Returns:
            The statistics of every child that has some, in order.
        """
        return [
            record
            for child in self.optimizers
            if callable(getattr(child, "statistics", None))
            for record in child.statistics(reset)  # type: ignore[attr-defined]
        ]

    @property
    def skipped_steps(self) -> int:
        """Steps refused because a gradient was not finite. Reading it waits for the device."""
        return max((int(getattr(child, "skipped_steps", 0)) for child in self.optimizers), default=0)


class _Foreign:
    """Gives an optimizer that knows nothing of joint steps the two halves of one."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    @torch.no_grad()
    def _measure(self) -> Measurement:
        gradients = [p.grad for group in self._optimizer.param_groups for p in group["params"] if p.grad is not None]
        return Measurement(squared_norm(gradients, home_of(gradients)).isfinite() if gradients else None)

    def _apply(self, measurement: Measurement, skip: Tensor) -> None:
        if not skip.item():
            self._optimizer.step()


def _check_children(optimizers: Sequence[Optimizer]) -> None:
    if not optimizers:
        raise ValueError("Hybrid needs at least one optimizer, got none")
    names: set[str] = set()
    owners: dict[int, int] = {}
    for position, child in enumerate(optimizers):
        if not isinstance(child, Optimizer):
            raise TypeError(f"Hybrid takes torch optimizers, got {type(child).__name__} at position {position}")
        if isinstance(child, torch.optim.LBFGS):
            raise TypeError("LBFGS evaluates its closure many times a step; a joint step has only one evaluation")
        for group in child.param_groups:
            for p in group["params"]:
                if owners.setdefault(id(p), position) != position:
                    raise ValueError(
                        f"a parameter of shape {tuple(p.shape)} belongs to the optimizers {owners[id(p)]} and "
                        f"{position}; each parameter is stepped by exactly one"
                    )
        own_names = {group["name"] for group in child.param_groups if "name" in group}
        if names & own_names:
            raise ValueError(
                f"group names must differ, got {sorted(names & own_names)} twice; set other 'name' entries"
            )
        names |= own_names
