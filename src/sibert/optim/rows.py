"""Groups in which every row is a scale-invariant vector of its own: Algorithm 1 for all rows at once.

Row r of a group is the vector of the r-th slices (along the first dimension) of all its parameters: of one matrix, or
of a matrix and its bias. A row without gradient in a step, the embedding of a token that does not occur, is left alone,
as any group without gradient is: it does not decay either. A row that decayed in every step but received a gradient in
a share p of them would have no equilibrium where C p <= 1: decay would win over the clipped gradients.

On the CPU a group steps by itself, block by block, so that what a block has read is still in the cache when it is
written. Elsewhere the rows of all groups are one list of vectors (`device_step` says why).

Shapes: R = rows (of this process, where the parameters are sharded along the first dimension), G = groups.
"""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from sibert.ops.descent import descend_together, fits_kernel, kernel_runs_on
from sibert.optim import synchronisation
from sibert.optim.device_step import constants, on_device, step_sizes
from sibert.optim.hyper_parameters import host_gamma
from sibert.optim.norms import TRUSTED_RANGE, home_of
from sibert.optim.rounding import Noise, draw, rounded, rounds
from sibert.optim.shards import has_whole_rows, local_shard, reduce_each, reduce_shards, wrap_shard
from sibert.optim.statistics import read_record, record_step, record_steps
from sibert.optim.updates import HALF_PRECISION, at_least_float32

__all__ = [
    "check_rows",
    "rows_are_finite",
    "squared_row_norms",
    "squared_row_norms_each",
    "step_rows",
    "step_rows_each",
]

BLOCK = 1 << 21
"""Entries of a block of rows: 8 MiB of parameters and as much of gradients, for a last-level cache. In blocks that fit
a core's own cache the hundred small operations of each would take longer than the memory."""

PIECE = 1 << 17
"""Entries of a block of half precision, of which a step makes a float32 copy."""


def check_rows(group: dict[str, Any]) -> None:
    """Refuse a group that has no rows, or a row that has no direction.

    Args:
        group: A group of `ClippedSGD` with "rows".

    Raises:
        TypeError: If a parameter is of dtype float16, in which the eta of a row may be out of range.
        ValueError: If the parameters differ in their number of rows, or a row is 0, not finite or spread over
            processes.
    """
    name, parameters = group["name"], group["params"]
    shapes = [tuple(p.shape) for p in parameters]
    if not all(shape and shape[0] == shapes[0][0] for shape in shapes):
        raise ValueError(
            f"{name}: with rows=True all parameters need the same first dimension, got the shapes {shapes}; give each "
            "matrix (with its bias) a group of its own"
        )
    if any(p.dtype == torch.float16 for p in parameters):
        raise TypeError(f"{name}: rows=True takes float32, float64 or bfloat16 parameters, got float16")
    if not all(has_whole_rows(p) for p in parameters):
        raise ValueError(
            f"{name}: rows=True needs whole rows in each process, but a parameter is sharded along another dimension "
            "than the first; shard it along the first (FSDP2 does)"
        )
    if any(p.is_meta for p in parameters):
        return
    with torch.no_grad():
        norms_R = squared_row_norms([local_shard(p) for p in parameters]).sqrt()
    bad = (~((norms_R > 0) & norms_R.isfinite())).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"{name}: row {bad[0]} has norm {norms_R[bad[0]].item()}; a loss that is invariant to the scale of every "
            "row is a function of the rows' directions, so none may be 0 or infinite; initialise the model before the "
            "optimizer"
        )


def squared_row_norms(tensors: Sequence[Tensor], *, wide: bool = False) -> Tensor:
    """Sum the squares of each row over all tensors.

    Args:
        tensors: Plain floating-point tensors [R, ...] on one device, at least one.
        wide: Sum in float64 from the first square on.

    Returns:
        [R], float64; without host synchronisation unless the tensors are on the CPU.
    """
    on_host = synchronisation.host_may_read(tensors[0].device)
    total_R = torch.stack([_squared_norms(tensor, wide or not on_host) for tensor in tensors]).sum(dim=0)
    if wide or not on_host or tensors[0].dtype == torch.float64:
        return total_R
    smallest, largest = TRUSTED_RANGE
    # Squares that underflow sum to 0, as those of a row that is 0 do: there the entries tell which it is.
    doubtful_R = ~((total_R >= smallest) & (total_R <= largest))
    if bool(doubtful_R.any()):
        doubtful_R &= torch.stack([(tensor != 0).reshape(len(tensor), -1).any(dim=1) for tensor in tensors]).any(dim=0)
    return squared_row_norms(tensors, wide=True) if bool(doubtful_R.any()) else total_R


def squared_row_norms_each(groups: Sequence[Sequence[Tensor]]) -> Tensor:
    """Sum the squares of each row of each group, on a device whose numbers the host does not read.

    Args:
        groups: Lists of plain tensors; those of group g are [R_g, ...].

    Returns:
        [R_1 + ... + R_G], float64.
    """
    counts = tuple(len(group[0]) for group in groups)
    home = groups[0][0].device
    total_R = torch.cat([_norms(group[0]) for group in groups]).square()
    for member in range(1, max(map(len, groups))):
        owners = tuple(number for number, group in enumerate(groups) if len(group) > member)
        more = torch.cat([_norms(groups[number][member]) for number in owners]).square()
        total_R.index_add_(0, _places(counts, owners, home), more)  # a row at most once: no order to depend on
    return total_R


@lru_cache(maxsize=64)
def _places(counts: tuple[int, ...], owners: tuple[int, ...], home: torch.device) -> Tensor:
    """Where the rows of some groups are among those of all."""
    edges = list(itertools.accumulate(counts, initial=0))
    ranges = [torch.arange(edges[number], edges[number + 1]) for number in owners]
    return torch.cat(ranges).to(home, non_blocking=True)


def _norms(tensor: Tensor) -> Tensor:
    """Take the norm of each row, in float64 from the first square on, without a copy of the tensor."""
    matrix_RC = tensor.reshape(len(tensor), -1) if tensor.numel() else tensor.new_zeros(len(tensor), 1)
    norms_R: Tensor = torch.linalg.vector_norm(matrix_RC, dim=1, dtype=torch.float64)
    return norms_R


def _squared_norms(tensor: Tensor, wide: bool) -> Tensor:
    if wide:
        return _norms(tensor).square()
    matrix_RC = tensor.reshape(len(tensor), -1) if tensor.numel() else tensor.new_zeros(len(tensor), 1)
    half = matrix_RC.dtype in HALF_PRECISION
    blocks = [matrix_RC[rows] for rows in _blocks([matrix_RC])] if half else [matrix_RC]  # no copy of the whole
    norms = [torch.linalg.vector_norm(at_least_float32(block), dim=1) for block in blocks]
    return torch.cat(norms).double().square()


def rows_are_finite(groups: Sequence[dict[str, Any]], grad_norms: Sequence[Tensor]) -> Tensor:
    """Say whether all gradients of some groups are finite, in all processes.

    Args:
        groups: Groups of `ClippedSGD` with "rows", on one device.
        grad_norms: Norms of the rows of this process, for each group.

    Returns:
        0-dim bool tensor.
    """

    def not_finite(places: Sequence[int]) -> Tensor:
        return (~torch.cat([grad_norms[place] for place in places]).isfinite()).sum().double()

    return reduce_each([group["params"][0] for group in groups], not_finite) == 0


@torch.no_grad()
def step_rows(
    group: dict[str, Any],
    state: dict[str, Any],
    gradients: Sequence[Tensor | None],
    grad_norms_R: Tensor,
    noise: Noise | None = None,
) -> None:
    """Take one step of every row of a group that has a gradient, where the host may read.

    Args:
        group: A group of `ClippedSGD` with "rows".
        state: The optimizer's state of the group's first parameter; keeps "eta" [R] in intrinsic mode, in the
            parameter's dtype, to which `load_state_dict` would cast it anyhow. Only eta lambda matters, so what eta
            loses by rounding is nothing but a gauge.
        gradients: One for each parameter, placed like it, finite; None is a zero gradient.
        grad_norms_R: Norms of the gradient's rows.
        noise: For parameters in bfloat16, which are then rounded stochastically; None rounds to nearest.
    """
    parameters = [local_shard(p) for p in group["params"]]
    descents = [None if gradient is None else local_shard(gradient) for gradient in gradients]
    gamma, never = host_gamma(group), torch.zeros((), dtype=torch.bool)
    calibration, longest, shortest = constants(group, gamma)
    kept_R = _kept_eta(group, state, grad_norms_R)
    generators = None if noise is None else noise.generators(parameters)
    found = []
    for rows in _blocks(parameters):
        block = [parameter[rows] for parameter in parameters]
        norms_R = squared_row_norms(block, wide=group["implementation"] == "reference").sqrt()
        calibrated_R, eta_R, clip_R = step_sizes(
            kept_R[rows], norms_R, grad_norms_R[rows], never,
            lr=float(group["lr"]), calibration=calibration, longest=longest, shortest=shortest,
        )  # fmt: skip
        kept_R[rows] = calibrated_R
        moves_R = eta_R * grad_norms_R[rows] > 0
        _descend(
            block,
            [None if descent is None else descent[rows] for descent in descents],
            gamma * moves_R.double(),
            torch.where(moves_R, eta_R * clip_R, 0.0),
            None,
            generators,
        )
        found.append((moves_R, eta_R, norms_R, clip_R))
    moves_R, eta_R, norms_R, clip_R = (torch.cat(parts) for parts in zip(*found, strict=True))
    sums_Q = _quantities(gamma, moves_R, eta_R, norms_R, grad_norms_R, clip_R).sum(dim=1)
    count, values = _means(reduce_shards(sums_Q, group["params"][0])[None])
    if count.item():
        record, numbers = group["statistics"], {key: value.item() for key, value in values.items()}
        record_step(record, read_record(record), {"gamma": gamma, **numbers})


@torch.no_grad()
def step_rows_each(
    groups: Sequence[dict[str, Any]],
    states: Sequence[dict[str, Any]],
    gradients: Sequence[Sequence[Tensor | None]],
    grad_norms: Sequence[Tensor],
    skip: Tensor,
    noises: Sequence[Noise | None],
) -> None:
    """Take one step of every row of many groups, on a device whose numbers the host does not read.

    Args:
        groups: Groups of `ClippedSGD` with "rows", whose first parameters are of one dtype on one device.
        states: As in `step_rows`, of each group.
        gradients: Of each group one for each parameter, placed like it; None is a zero gradient.
        grad_norms: Norms of the rows of each group's gradient, float64.
        skip: 0-dim bool tensor; where True, nothing changes by a single bit.
        noises: As in `step_rows`, for each group.
    """
    home = home_of(groups[0]["params"])
    parameters = [[local_shard(p) for p in group["params"]] for group in groups]
    descents = [[None if g is None else local_shard(g) for g in of_group] for of_group in gradients]
    counts = tuple(map(len, grad_norms))
    gammas = [host_gamma(group) for group in groups]
    lists = [gammas, [float(group["lr"]) for group in groups], *zip(*map(constants, groups, gammas), strict=True)]
    gamma_G, *numbers = on_device(lists, home)
    gamma_R, lr_R, calibration_R, longest_R, shortest_R = (
        number_G[_owners(counts, home)] for number_G in (gamma_G, *numbers)
    )
    grad_norm_R, norm_R = torch.cat(list(grad_norms)), squared_row_norms_each(parameters).sqrt()
    kept = [_kept_eta(*each) for each in zip(groups, states, grad_norms, strict=True)]
    kept_R, eta_R, clip_R = step_sizes(
        torch.cat(kept), norm_R, grad_norm_R, skip,
        lr=lr_R, calibration=calibration_R, longest=longest_R, shortest=shortest_R,
    )  # fmt: skip
    torch._foreach_copy_(kept, list(torch.split(kept_R, list(counts))))
    moves_R = (eta_R * grad_norm_R > 0) & ~skip
    _descend_each(parameters, descents, counts, gamma_R, eta_R * clip_R, moves_R, skip, groups, noises)
    parts = torch.split(_quantities(gamma_R, moves_R, eta_R, norm_R, grad_norm_R, clip_R), list(counts), dim=1)

    def local_sums(places: Sequence[int]) -> Tensor:
        nothing = torch.zeros_like(parts[0][:, 0])
        return torch.stack([part.sum(dim=1) if place in places else nothing for place, part in enumerate(parts)])

    count_G, values = _means(reduce_each([group["params"][0] for group in groups], local_sums))
    record_steps([group["statistics"] for group in groups], {"gamma": gamma_G, **values}, skip | (count_G == 0))


def _descend_each(
    parameters: Sequence[Sequence[Tensor]],
    gradients: Sequence[Sequence[Tensor | None]],
    counts: Sequence[int],
    gamma_R: Tensor,
    step_R: Tensor,
    moves_R: Tensor,
    skip: Tensor,
    groups: Sequence[dict[str, Any]],
    noises: Sequence[Noise | None],
) -> None:
    """Step all rows: by one kernel where triton's takes them, else group by group."""
    together: dict[torch.dtype, list[tuple[Tensor, Tensor, int]]] = defaultdict(list)
    kernel = kernel_runs_on(step_R.device)
    at_rest_R = (torch.where(moves_R, gamma_R, 0.0), torch.where(moves_R, step_R, 0.0))
    for number, (members, descents) in enumerate(zip(parameters, gradients, strict=True)):
        first = sum(counts[:number])
        noise = noises[number]
        fused = kernel and groups[number]["implementation"] in (None, "fused") and noise is None
        pairs = [
            (p, g) for p, g in zip(members, descents, strict=True) if fused and g is not None and fits_kernel(p, g)
        ]
        if len(pairs) == len(members):
            together[members[0].dtype] += [(p, g, first) for p, g in pairs]
            continue
        generators = None if noise is None else noise.generators(members)
        gamma_here_R, step_here_R = (number_R[first : first + counts[number]] for number_R in at_rest_R)
        _descend(members, descents, gamma_here_R, step_here_R, skip, generators)
    for waiting in together.values():
        chosen, descents, firsts = zip(*waiting, strict=True)
        descend_together(chosen, descents, firsts, gamma_R, step_R, moves_R, rows=True)


@lru_cache(maxsize=64)
def _owners(counts: tuple[int, ...], home: torch.device) -> Tensor:
    """The group of each row."""
    return torch.repeat_interleave(torch.tensor(counts)).to(home, non_blocking=True)


def _blocks(parameters: Sequence[Tensor]) -> list[slice]:
    """Cut the rows into blocks that stay in the cache from their norm to their last write.

    Then a step reads parameters and gradients once each, beside the pass that has measured the gradients. At least two
    rows a block: torch sums a single row in another order.
    """
    rows = len(parameters[0])
    entries = sum(parameter.numel() for parameter in parameters)
    block = PIECE if any(parameter.dtype in HALF_PRECISION for parameter in parameters) else BLOCK
    count = max(1, min(entries // block, rows // 2))
    edges = [rows * number // count for number in range(count + 1)]
    return [slice(first, last) for first, last in itertools.pairwise(edges)]


def _kept_eta(group: dict[str, Any], state: dict[str, Any], like_R: Tensor) -> Tensor:
    """Give the etas of the rows; in-place changes of them are kept.

    They are 0 for a row that has had no gradient yet, and 1, a factor of the learning rate, in explicit mode.
    """
    parameter = group["params"][0]
    if group["intrinsic_lr"] is None:
        return torch.ones_like(like_R, dtype=parameter.dtype)
    if "eta" not in state:
        state["eta"] = wrap_shard(torch.zeros_like(like_R, dtype=parameter.dtype), parameter)
    return local_shard(state["eta"])


def _descend(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    gamma_R: Tensor,
    step_R: Tensor,
    skip: Tensor | None,
    generators: Sequence[torch.Generator] | None,
) -> None:
    """Take x_r <- x_r - (gamma_r x_r + step_r g_r); rows at rest have both 0, and where `skip`, nothing is written."""
    for member, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        x = at_least_float32(parameter)
        column = (-1, *[1] * (x.dim() - 1))
        # Subtract gamma x, never multiply by 1 - gamma: see `updates`. Where nothing can be undone, in place.
        in_place = skip is None and x is parameter
        stepped = torch.addcmul(x, x, gamma_R.to(x.dtype).view(column), value=-1.0, out=x if in_place else None)
        if gradient is not None:
            stepped.addcmul_(gradient.to(x.dtype), step_R.to(x.dtype).view(column), value=-1.0)
        if in_place:
            continue
        if generators is not None and rounds(parameter, generators):
            stepped = rounded(stepped, draw(stepped, generators[member]))
        stepped = stepped.to(parameter.dtype)
        parameter.copy_(stepped if skip is None else torch.where(skip, parameter, stepped))


def _quantities(
    gamma: Tensor | float, moves_R: Tensor, eta_R: Tensor, norms_R: Tensor, grad_norms_R: Tensor, clip_R: Tensor
) -> Tensor:
    """Give what is averaged over the rows that moved [Q, R]; rows at rest are 0."""
    angle_R = torch.atan2(eta_R * clip_R * grad_norms_R, (1.0 - gamma) * norms_R)
    # Lengthened gradients hold no norm: it falls until gradients need not be lengthened.
    sigma_R = clip_R.clamp(max=1.0) * grad_norms_R * norms_R
    quantities_QR = torch.stack(
        [
            torch.ones_like(norms_R),
            norms_R.square(),
            grad_norms_R.square(),
            clip_R,
            (clip_R < 1).double(),
            (eta_R * sigma_R).square(),
            sigma_R.square(),
            angle_R.square(),
            eta_R / norms_R.square(),
        ]
    )
    return torch.where(moves_R, quantities_QR, 0.0)


def _means(sums_GQ: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Give the number of rows and the record of each group; eta is such that eta^2 sigma^2 is the mean of its rows'."""
    count_G = sums_GQ[:, 0]
    norm2, grad2, clip, clipped, eta2_sigma2, sigma2, angle2, effective_lr = (sums_GQ[:, 1:].T / count_G).unbind()
    return count_G, {
        "step_eta": (eta2_sigma2 / sigma2).sqrt(),
        "effective_lr": effective_lr,
        "param_norm": norm2.sqrt(),
        "next_param_norm": norm2.sqrt(),
        "grad_norm": grad2.sqrt(),
        "clip_factor": clip,
        "window_clipped": clipped,
        "window_squared_sigma": sigma2,
        "angular_update": angle2.sqrt(),
    }
