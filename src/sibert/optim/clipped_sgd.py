"""SGD with weight decay and Relative Global Clipping: Algorithm 1 of arXiv 2202.00980.

Symbols: x = all parameters of a group as one vector, g its gradient, eta = learning rate, lambda = weight decay,
gamma = eta lambda, s = clip factor, sqrt(C) = `clip`.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sibert.optim import synchronisation
from sibert.optim.clipping import clip_factor, relative_bounds
from sibert.optim.device_step import step_vectors
from sibert.optim.hyper_parameters import check_hyper_parameters, check_norm, host_gamma
from sibert.optim.joint_step import Measurement
from sibert.optim.norm_bounds import NormBounds
from sibert.optim.norms import home_of, squared_norm, squared_norms, squared_norms_on_host
from sibert.optim.rounding import Noise
from sibert.optim.rows import (
    check_rows,
    rows_are_finite,
    squared_row_norms,
    squared_row_norms_each,
    step_rows,
    step_rows_each,
)
from sibert.optim.shards import any_sharded, local_shard, placed_gradient
from sibert.optim.statistics import (
    GroupStatistics,
    clear_window,
    count_skipped,
    empty_record,
    group_statistics,
    norm_to_record,
    read_record,
    record_step,
    renew_record,
    time_to_measure,
)
from sibert.optim.updates import Implementation, descend

__all__ = ["ClippedSGD"]


class ClippedSGD(Optimizer):
    """SGD with weight decay whose gradient is clipped relative to the norm of the parameters.

    Each parameter group is one vector x and steps by

        s = min(1, clip * sqrt(2 lambda / eta) * |x| / |g|),      x <- (1 - eta lambda) x - eta s g.

    There is no state for parameters, only a few scalars for each group. A parameter without a gradient (`grad is None`)
    counts as one with gradient zero and decays with its group, since the group is one vector; a group in which no
    parameter has a gradient is left alone. A group with `lr` 0 is left alone, too. A frozen parameter (`requires_grad`
    False) beside others that are not is refused, since it would decay. If any gradient of any group is infinite or NaN,
    the whole step is skipped and counted.

    **Threshold.** With |grad L| = sigma on the unit sphere, |g| = sigma / |x| and g is orthogonal to x, so
    |x'|^2 = (1 - eta lambda)^2 |x|^2 + eta^2 sigma^2 / |x|^2, whose fixed point is
    |x|^2 = sigma sqrt(eta / (lambda (2 - eta lambda))). There |g| = sqrt(lambda (2 - eta lambda) / eta) |x|, which is
    close to sqrt(2 lambda / eta) |x|: gradients longer than `clip` times those of equilibrium are clipped.

    **From both sides.** The clip factor shortens a step that is too long for its x, but nothing lengthens one that is
    too short. |x| grows at once when gradients grow, and when they shrink it follows by a share of gamma a step: for
    hundreds of steps it is too large, and the group hardly turns. With `two_sided`

        s = min(max(1, r / clip), clip r),        r = sqrt(2 lambda / eta) |x| / |g|,

    and a step turns the group by sqrt(2 gamma) / clip at least and clip sqrt(2 gamma) at most, whatever |x| and |g|
    are, as long as s < 2^60 (a shorter g is nothing but rounding, and s = 1): |x| may start anywhere, and directions
    lose no time. As clip > 1 the decay still wins over lengthened gradients, and the norm goes to the same equilibrium.
    Gradients that vanish have to meet a schedule that ends at 0.

    **Intrinsic mode.** For a scale-invariant loss the directions x/|x| depend on eta and lambda through
    gamma = eta lambda alone, if the run starts at the equilibrium norm (Lemma 2.4: (eta, lambda, x) and
    (c^2 eta, lambda/c^2, c x) visit the same directions). So `intrinsic_lr` = gamma may be given instead of lr and
    weight decay. At the first gradient that is neither zero nor infinite, eta is chosen so that the given x is the
    fixed point: solving |x|^2 = |g| |x| sqrt(eta / (lambda (2 - gamma))) with lambda = gamma / eta for eta yields

        eta = |x| sqrt(gamma (2 - gamma)) / |g|,      lambda = gamma / eta.

    It is kept in `group["eta"]`. The group's `lr` is then a multiplier without unit, 1 at the start, that any scheduler
    may drive: the step uses lr * eta and the same lambda, hence the intrinsic learning rate lr * gamma. Until eta is
    known nothing moves. If x is multiplied by 2^k before the run, every direction stays the same, bit for bit on the
    CPU.

    **Rows.** A group with "rows" True is not one vector but R of them: row r consists of the r-th slices of all its
    parameters along their first dimension, for a loss that is invariant to the scale of each row. Every row has a norm,
    a clip factor and, in intrinsic mode, an eta of its own: R numbers, in the state of the group's first parameter. A
    row whose gradient is 0 is left alone and does not decay.

    **bfloat16.** Parameters in bfloat16 are stepped in float32 and rounded stochastically (`sibert.optim.rounding`), so
    that steps shorter than the distance of two neighbours count in the mean and no float32 copy is needed. The noise
    depends on group, step and parameter alone, not on torch's generators: a resumed run goes on bit for bit.

    **Changes from outside.** Parameters may be changed between steps. By default, on the CPU, |x| is measured only
    where bounds on it leave open whether a gradient is clipped, once in 32 steps, and after a change from outside: any
    in-place operation on a parameter or a view of it under `torch.no_grad()` is noticed. Operations through `.data` and
    torch's fused optimizers leave no mark; they are noticed if they change one of 64 entries that are watched in each
    of the group's 8 largest parameters, as scaling all of it, or most of it, does. Any other, a row zeroed through
    `.data` say, is unknown for up to 32 steps, which are clipped by the |x| from before. Leave out `.data`, or take the
    implementation "foreach", which measures at every step. Groups of rows are always measured.

    **Group keys.** "lr", "weight_decay", "clip", "two_sided", "intrinsic_lr", "rows", "implementation" and
    "stochastic_rounding" may be set for each group, also "name" (default "group0", ...) and "scale_invariant" (default
    True; False says that the gradient is not orthogonal to x, and the norm is then measured at every step for the
    statistics). A group with
    "intrinsic_lr" is in intrinsic mode and its "lr" is the multiplier; a group with "weight_decay" is in explicit mode.

    Args:
        params: Parameters, (name, parameter) pairs, or groups of them.
        lr: eta >= 0. Unit: squared parameter per loss.
        weight_decay: lambda >= 0, greater than 0 with clipping; lr * weight_decay < 1.
        clip: sqrt(C) > 1, the longest gradient allowed relative to equilibrium; None for SGD with weight decay alone.
        two_sided: Whether gradients shorter than 1 / clip of those of equilibrium are lengthened to it. False is
            Algorithm 1.
        intrinsic_lr: gamma in (0, 1), instead of lr and weight_decay. `default_intrinsic_lr` gives one for a budget.
        implementation: "reference" (the formula in a loop), "foreach" (torch's list functions) or "fused" (torch's
            fused kernel, one pass over the memory; what it does not support goes through "foreach"); None is "fused".
        stochastic_rounding: How parameters in bfloat16 are rounded; False rounds them to nearest, which loses every
            step shorter than 2^-9 of an entry. No matter for other parameters (float16 is rounded to nearest).

    Raises:
        ValueError: If hyper-parameters are out of range or contradict each other, or a group is empty, has norm 0 or is
            frozen in part.
        TypeError: If a parameter is not a floating-point tensor or a hyper-parameter not a number.

    Example:
        >>> x = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = ClippedSGD([x], intrinsic_lr=0.1)
        >>> x.grad = torch.tensor([-4.0, 3.0])
        >>> optimizer.step()
        >>> round(x.norm().item(), 4)  # it started at equilibrium, so the norm stays
        5.0

    References:
        Algorithm 1, Lemma 2.4 and Theorem 4.8 of arXiv 2202.00980.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | None = None,
        weight_decay: float | None = None,
        *,
        clip: float | None = 2.0,
        two_sided: bool = False,
        intrinsic_lr: float | None = None,
        implementation: Implementation | None = None,
        stochastic_rounding: bool = True,
    ) -> None:
        if intrinsic_lr is not None and (lr is not None or weight_decay is not None):
            raise ValueError(
                f"give either intrinsic_lr or lr and weight_decay, got {intrinsic_lr=}, {lr=}, {weight_decay=}: "
                "intrinsic_lr is their product, and eta is calibrated from the first gradient"
            )
        self._bounds: dict[int, NormBounds] = {}
        self._released: set[int] = set()
        defaults = {
            "lr": 1.0 if intrinsic_lr is not None else lr,
            "weight_decay": weight_decay,
            "clip": clip,
            "two_sided": two_sided,
            "intrinsic_lr": intrinsic_lr,
            "implementation": implementation,
            "scale_invariant": True,
            "rows": False,
            "stochastic_rounding": stochastic_rounding,
        }
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from a pickle, a copy, or `load_state_dict`."""
        for number, group in enumerate(state["param_groups"]):
            if "statistics" not in group:
                raise ValueError(
                    f"the state is not one of ClippedSGD: its group {number} has {', '.join(map(repr, group))}, but no "
                    "'statistics'; load it into an optimizer of the kind that saved it"
                )
        own = [group["name"] for group in getattr(self, "param_groups", ())]
        saved = [group.get("name") for group in state["param_groups"]]
        if saved != own and sorted(map(str, saved)) == sorted(own):
            raise ValueError(
                f"the state has the groups {', '.join(map(str, saved))}, this optimizer {', '.join(own)}: states are "
                "loaded by position, and each eta belongs to one group; make the optimizer with its groups in that "
                "order"
            )
        super().__setstate__(state)
        self._bounds, self._released = {}, set()
        for group in self.param_groups:
            for added in ("stochastic_rounding", "two_sided"):
                group.setdefault(added, False)  # a run that was saved before there was any
            group["statistics"] = renew_record(group["statistics"])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters that are scaled together.

        Args:
            param_group: "params" and any of the group keys of the class. The dict itself is not changed.

        Raises:
            TypeError: If a parameter or hyper-parameter has the wrong type.
            ValueError: If the group is empty, has norm 0 or a part that is frozen, a name that is taken, or bad
                hyper-parameters.
        """
        group = dict(param_group)
        if group.get("intrinsic_lr") is not None:
            if group.get("weight_decay") is not None:
                raise ValueError(
                    f"a group has either intrinsic_lr or weight_decay, got intrinsic_lr={group['intrinsic_lr']}, "
                    f"weight_decay={group['weight_decay']}: in intrinsic mode it follows from the calibrated eta"
                )
            group.setdefault("lr", 1.0)
            group["weight_decay"] = None
        elif group.get("weight_decay") is not None:
            group["intrinsic_lr"] = None
        group.setdefault("name", f"group{len(self.param_groups)}")
        super().add_param_group(group)
        try:
            self._check_group(group, [other["name"] for other in self.param_groups[:-1]])
        except Exception:
            self.param_groups.pop()
            raise
        home = home_of(group["params"])
        if group["intrinsic_lr"] is not None and not group["rows"]:
            group.setdefault("eta", torch.zeros((), dtype=torch.float64, device=home))
        group.setdefault("statistics", empty_record(home))

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

    def statistics(self, reset: bool = False) -> list[GroupStatistics]:
        """Read what the last step did. This waits for the device; `step` does not.

        Args:
            reset: Begin a new window for the means and fractions.

        Returns:
            One record for each group, in order.
        """
        records = []
        for group in self.param_groups:
            records.append(group_statistics(group, read_record(group["statistics"])))
            if reset:
                clear_window(group["statistics"])
        return records

    @property
    def skipped_steps(self) -> int:
        """Steps refused because a gradient was not finite. Reading it waits for the device."""
        return int(max(read_record(group["statistics"])["skipped_steps"] for group in self.param_groups))

    @torch.no_grad()
    def _measure(self) -> Measurement:
        """Take the norm of each group's gradient: squares of finite numbers sum to a finite float64."""
        measured = self._measure_groups(range(len(self.param_groups)))
        finite = [each.finite for each in measured if each.finite is not None]
        if not finite:
            return Measurement(None)
        return Measurement(torch.stack([each.to(finite[0].device) for each in finite]).all(), measured)

    def _measure_groups(self, indices: Sequence[int]) -> list[Measurement]:
        """Take the norms of the gradients of some groups, or of their rows.

        Details are (gradients, norm), where the norm is a number if the host may read it. `finite` may be that of
        several groups at once: a step waits for all of them anyhow.
        """
        measured: list[Measurement] = []
        on_host: list[tuple[int, list[Tensor]]] = []
        together: dict[torch.device, list[tuple[int, list[Tensor]]]] = defaultdict(list)
        rows: dict[torch.device, list[tuple[int, list[Tensor]]]] = defaultdict(list)
        for place, index in enumerate(indices):
            group = self.param_groups[index]
            home = home_of(group["params"])
            host_reads = synchronisation.host_may_read(home)
            gradients = [_dense_gradient(p) for p in group["params"]]
            present = [gradient for gradient in gradients if gradient is not None]
            measured.append(Measurement(None, (gradients, None) if present else None))
            if not present:
                continue
            if len(present) < len(gradients):
                _check_frozen(group)
            if group["rows"] and host_reads:
                local = [local_shard(gradient) for gradient in present]
                norm_R = squared_row_norms(local, wide=group["implementation"] == "reference").sqrt()
                measured[place] = Measurement(rows_are_finite([group], [norm_R]), (gradients, norm_R))
            elif group["rows"]:
                rows[home].append((place, [local_shard(gradient) for gradient in present]))
            elif not _on_one_device(group):
                norm = _norm(present, group)
                measured[place] = Measurement(norm.isfinite(), (gradients, norm.item() if host_reads else norm))
            elif host_reads:
                on_host.append((place, present))
            else:
                together[home].append((place, present))
        if on_host:
            norms = [math.sqrt(square) for square in squared_norms_on_host([present for _, present in on_host])]
            all_finite = torch.tensor(all(map(math.isfinite, norms)))
            for (place, _), number in zip(on_host, norms, strict=True):
                measured[place] = Measurement(all_finite, (measured[place].details[0], number))
        for waiting in rows.values():
            counts = [len(present[0]) for _, present in waiting]
            of_rows = torch.split(squared_row_norms_each([present for _, present in waiting]).sqrt(), counts)
            all_finite = rows_are_finite([self.param_groups[indices[place]] for place, _ in waiting], of_rows)
            for (place, _), norm_R in zip(waiting, of_rows, strict=True):
                measured[place] = Measurement(all_finite, (measured[place].details[0], norm_R))
        for home, waiting in together.items():
            norm_G = squared_norms([present for _, present in waiting], home).sqrt()
            for (place, _), norm, finite in zip(waiting, norm_G.unbind(), norm_G.isfinite().unbind(), strict=True):
                measured[place] = Measurement(finite, (measured[place].details[0], norm))
        return measured

    @torch.no_grad()
    def _apply(self, measurement: Measurement, skip: Tensor) -> None:
        measured = measurement.details or [Measurement(None)] * len(self.param_groups)
        indices = [index for index in range(len(self.param_groups)) if index not in self._released]
        self._apply_groups(indices, [measured[index] for index in indices], skip)

    def _apply_groups(self, indices: Sequence[int], measured: Sequence[Measurement], skip: Tensor) -> None:
        rows: dict[tuple[torch.device, torch.dtype], list[tuple[int, Measurement]]] = defaultdict(list)
        vectors: dict[tuple[torch.device, bool], list[tuple[int, Measurement]]] = defaultdict(list)
        by_home: dict[torch.device, list[int]] = defaultdict(list)
        for index in indices:
            by_home[home_of(self.param_groups[index]["params"])].append(index)
        skips = {home: skip.to(home, non_blocking=True) for home in by_home}
        held = {home: synchronisation.host_may_read(home) and bool(skips[home].item()) for home in by_home}
        for home, members in by_home.items():
            for index in members:
                _rehome(self.param_groups[index], home)
            if held[home] or not synchronisation.host_may_read(home):
                count_skipped([self.param_groups[index]["statistics"] for index in members], skips[home])
        for index, of_group in zip(indices, measured, strict=True):
            group = self.param_groups[index]
            home = home_of(group["params"])
            if of_group.details is None or group["lr"] == 0 or held[home]:
                continue
            gradients, grad_norm = of_group.details
            if group["rows"] and synchronisation.host_may_read(home):
                step_rows(group, self.state[group["params"][0]], gradients, grad_norm, self._noise(index))
            elif group["rows"]:
                rows[home, group["params"][0].dtype].append((index, of_group))
            elif synchronisation.host_may_read(home):
                self._step_group_on_host(index, gradients, grad_norm)
            else:
                vectors[home, _on_one_device(group)].append((index, of_group))
        for (home, _), waiting in rows.items():
            groups = [self.param_groups[index] for index, _ in waiting]
            states = [self.state[group["params"][0]] for group in groups]
            gradients, norms = zip(*(of_group.details for _, of_group in waiting), strict=True)
            step_rows_each(groups, states, gradients, norms, skips[home], [self._noise(i) for i, _ in waiting])
        for (home, _), waiting in vectors.items():
            groups = [self.param_groups[index] for index, _ in waiting]
            gradients, norms = zip(*(of_group.details for _, of_group in waiting), strict=True)
            noises = [self._noise(index) for index, _ in waiting]
            step_vectors(groups, gradients, torch.stack(norms), _norms(groups, home), skips[home], noises)

    @torch.no_grad()
    def _release(self, index: int) -> None:
        """Step one group by itself, or skip it if its own gradient is not finite, and free its gradient.

        Until `_released` is emptied, `step` leaves the group alone.
        """
        (measurement,) = self._measure_groups([index])
        assert measurement.finite is not None
        self._apply_groups([index], [measurement], ~measurement.finite)
        self._released.add(index)
        for p in self.param_groups[index]["params"]:
            p.grad = None

    def _step_group_on_host(self, index: int, gradients: list[Tensor | None], grad: float) -> None:
        """Do the same in plain numbers, and without a look at the parameters where nothing depends on it.

        A model has many groups, and each operation on a tensor of one number costs a microsecond.
        """
        group = self.param_groups[index]
        lr, gamma = float(group["lr"]), host_gamma(group)
        record, bounds, norm = read_record(group["statistics"]), self._norm_bounds(index, group), None
        longest, shortest = relative_bounds(group["clip"], group["two_sided"], gamma)
        if bounds is None or not _certainly_unclipped(group, record, bounds, grad, longest, shortest):
            param_norm = _norm(group["params"], group)
            norm = param_norm.item()
            if bounds is not None:
                bounds.measured(norm)
            if group["intrinsic_lr"] is not None:
                _calibrate(group, norm, grad)
        eta = lr * (1.0 if group["intrinsic_lr"] is None else group["eta"].item())
        factor = 1.0 if norm is None else clip_factor(eta * grad, longest * norm, shortest * norm)
        if eta == 0:
            return
        self._descend(index, gradients, eta * factor)
        length = eta * factor * grad
        if bounds is not None:
            bounds.follow_step(1.0 - gamma, length)
            norm = norm_to_record(record, norm, factor)
        assert norm is not None
        # Lengthened gradients hold no norm: it falls until gradients need not be lengthened.
        sigma, decayed = min(factor, 1.0) * grad * norm, (1.0 - gamma) * norm
        values = {
            "gamma": gamma,
            "step_eta": eta,
            "effective_lr": eta / (norm * norm) if norm * norm else math.inf,
            "param_norm": norm,
            # Pythagoras: the gradient of a scale-invariant loss is orthogonal to x.
            "next_param_norm": math.hypot(decayed, length),
            "grad_norm": grad,
            "clip_factor": factor,
            "window_clipped": float(factor < 1),
            "window_squared_sigma": sigma * sigma,
            "angular_update": math.atan2(length, decayed),
        }
        record_step(group["statistics"], record, values)

    def _descend(self, index: int, gradients: list[Tensor | None], step_size: float) -> None:
        group = self.param_groups[index]
        descend(
            [local_shard(p) for p in group["params"]],
            [None if gradient is None else local_shard(gradient) for gradient in gradients],
            gamma=host_gamma(group),
            step_size=step_size,
            implementation=group["implementation"],
            noise=self._noise(index),
        )

    def _noise(self, index: int) -> Noise | None:
        """Name the noise of the group's next rounding; its count is saved with the group."""
        group = self.param_groups[index]
        if not (group["stochastic_rounding"] and any(p.dtype == torch.bfloat16 for p in group["params"])):
            return None
        group["roundings"] = group.get("roundings", 0) + 1
        return Noise(index, group["roundings"])

    def _norm_bounds(self, index: int, group: dict[str, Any]) -> NormBounds | None:
        """Give the group's bounds, where they save something and may be kept: whole tensors on the CPU."""
        lazy = (
            group["implementation"] in (None, "fused")
            and group["scale_invariant"]
            and all(synchronisation.host_may_read(device) for device in {p.device for p in group["params"]})
            and not any_sharded(group["params"])
        )
        if not lazy:
            return None
        if index not in self._bounds or self._bounds[index].tensors is not group["params"]:
            self._bounds[index] = NormBounds(group["params"])
        return self._bounds[index]

    def _check_group(self, group: dict[str, Any], taken: list[str]) -> None:
        name = group["name"]
        if name in taken:
            raise ValueError(f"group names must differ, got {name!r} twice; set another 'name'")
        if not group["params"]:
            raise ValueError(f"{name}: a group needs at least one parameter, got none")
        for p in group["params"]:
            if not p.is_floating_point():
                raise TypeError(f"{name}: parameters must be real floating-point tensors, got {p.dtype}")
        _check_frozen(group)
        check_hyper_parameters(group)
        if group["rows"]:
            check_rows(group)
        elif not any(p.is_meta for p in group["params"]):
            check_norm(group)


def _check_frozen(group: dict[str, Any]) -> None:
    """Refuse a group of which a part is frozen; tensors that all do without autograd are not."""
    frozen = [p for p in group["params"] if not p.requires_grad]
    if 0 < len(frozen) < len(group["params"]):
        raise ValueError(
            f"{group['name']}: a parameter of shape {tuple(frozen[0].shape)} is frozen (requires_grad=False) and "
            f"{len(group['params']) - len(frozen)} others are not, but a group is one vector and would decay as a "
            "whole; leave frozen parameters out of the group, or freeze all of it"
        )


def _calibrate(group: dict[str, Any], param_norm: float, grad_norm: float) -> None:
    """Set eta, once, such that the group is at norm equilibrium; derivation in `ClippedSGD`."""
    gamma = float(group["intrinsic_lr"])
    if group["eta"].item() == 0 and grad_norm > 0:
        group["eta"].fill_(math.sqrt(gamma * (2.0 - gamma)) * param_norm / grad_norm)


def _certainly_unclipped(
    group: dict[str, Any],
    record: Mapping[str, float],
    bounds: NormBounds,
    grad_norm: float,
    longest: float,
    shortest: float,
) -> bool:
    """Say whether s = 1 without a look at the parameters; False when it is time for the statistics to look."""
    if time_to_measure(record):
        return False
    eta = float(group["lr"])
    if group["intrinsic_lr"] is not None:
        if group["eta"].item() == 0:
            return False
        eta *= group["eta"].item()
    return bounds.decide(eta * grad_norm, longest, shortest)


def _norm(tensors: list[Tensor], group: dict[str, Any]) -> Tensor:
    return squared_norm(tensors, home_of(group["params"]), wide=group["implementation"] == "reference").sqrt()


def _norms(groups: Sequence[dict[str, Any]], home: torch.device) -> Tensor:
    """Take the norms of groups that are alike in `_on_one_device` [G]."""
    if _on_one_device(groups[0]):
        return squared_norms([group["params"] for group in groups], home).sqrt()
    return torch.stack([_norm(group["params"], group) for group in groups])


def _on_one_device(group: dict[str, Any]) -> bool:
    """Say whether the group's norm may be taken together with those of others there; "reference" goes alone."""
    home = home_of(group["params"])
    return group["implementation"] != "reference" and all(p.device == home for p in group["params"])


def _dense_gradient(parameter: Tensor) -> Tensor | None:
    gradient = parameter.grad
    if gradient is None:
        return None
    if gradient.layout != torch.strided:
        raise TypeError(
            f"ClippedSGD takes dense gradients only, got layout {gradient.layout} for a parameter of shape "
            f"{tuple(parameter.shape)}: the whole group decays and is clipped as one vector; use sparse=False"
        )
    return placed_gradient(parameter, gradient)


def _rehome(group: dict[str, Any], home: torch.device) -> None:
    """Bring the scalars to the parameters: a state dict may have been loaded, or the model moved, to another device."""
    group["statistics"] = group["statistics"].to(home)
    if "eta" in group and group["eta"].device != home:
        group["eta"] = group["eta"].to(home)
