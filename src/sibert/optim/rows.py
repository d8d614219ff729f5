"""Groups in which every row is a scale-invariant vector of its own: Algorithm 1 for all rows at once.

Row r of a group is the vector of the r-th slices (along the first dimension) of all its parameters: of one matrix, or
of a matrix and its bias. A row without gradient in a step, the embedding of a token that does not occur, is left alone,
as any group without gradient is: it does not decay either. A row that decayed in every step but received a gradient in
a share p of them would have no equilibrium where C p <= 1: decay would win over the clipped gradients.

Shapes: R = rows (of this process, where the parameters are sharded along the first dimension).
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sibert.optim import synchronisation
from sibert.optim.norms import TRUSTED_RANGE
from sibert.optim.rounding import Noise, draw, rounded, rounds
from sibert.optim.shards import has_whole_rows, local_shard, reduce_shards, wrap_shard
from sibert.optim.statistics import record_step
from sibert.optim.updates import HALF_PRECISION, at_least_float32

__all__ = ["check_rows", "rows_are_finite", "squared_row_norms", "step_rows"]

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


def _squared_norms(tensor: Tensor, wide: bool) -> Tensor:
    matrix_RC = tensor.reshape(len(tensor), -1) if tensor.numel() else tensor.new_zeros(len(tensor), 1)
    blocks = [matrix_RC]
    if matrix_RC.dtype != (torch.float64 if wide else torch.float32):
        blocks = [matrix_RC[rows] for rows in _blocks([matrix_RC], tensor.device)]  # no copy of the whole
    norms = [torch.linalg.vector_norm(block.double() if wide else at_least_float32(block), dim=1) for block in blocks]
    return torch.cat(norms).double().square()


def rows_are_finite(group: dict[str, Any], grad_norms_R: Tensor) -> Tensor:
    """Say whether all gradients of a group are finite, in all processes.

    Args:
        group: A group of `ClippedSGD` with "rows".
        grad_norms_R: Norms of the rows of this process.

    Returns:
        0-dim bool tensor.
    """
    not_finite = (~grad_norms_R.isfinite()).sum().double()
    return reduce_shards(not_finite, group["params"][0]) == 0


@torch.no_grad()
def step_rows(
    group: dict[str, Any],
    state: dict[str, Any],
    gradients: Sequence[Tensor | None],
    grad_norms_R: Tensor,
    gamma: float,
    skip: Tensor,
    noise: Noise | None = None,
) -> None:
    """Take one step of every row that has a gradient.

    Args:
        group: A group of `ClippedSGD` with "rows".
        state: The optimizer's state of the group's first parameter; keeps "eta" [R] in intrinsic mode, in the
            parameter's dtype, to which `load_state_dict` would cast it anyhow. Only eta lambda matters, so what eta
            loses by rounding is nothing but a gauge.
        gradients: One for each parameter, placed like it; None is a zero gradient.
        grad_norms_R: Norms of the gradient's rows.
        gamma: eta lambda of this step.
        skip: 0-dim bool tensor; where True, nothing changes by a single bit.
        noise: For parameters in bfloat16, which are then rounded stochastically; None rounds to nearest.
    """
    parameters = [local_shard(p) for p in group["params"]]
    descents = [None if gradient is None else local_shard(gradient) for gradient in gradients]
    kept_R = None if group["intrinsic_lr"] is None else _kept_eta(group, state, grad_norms_R)
    generators = None if noise is None else noise.generators(parameters)
    found = []
    for rows in _blocks(parameters, skip.device):
        block = [parameter[rows] for parameter in parameters]
        norms_R = squared_row_norms(block, wide=group["implementation"] == "reference").sqrt()
        eta_R, clip_R = _step_sizes(
            group, None if kept_R is None else kept_R[rows], norms_R, grad_norms_R[rows], gamma, skip
        )
        moves_R = (eta_R * grad_norms_R[rows] > 0) & ~skip
        _descend(
            block,
            [None if descent is None else descent[rows] for descent in descents],
            gamma * moves_R.double(),
            torch.where(moves_R, eta_R * clip_R, 0.0),
            skip,
            generators,
        )
        found.append((moves_R, eta_R, norms_R, clip_R))
    moves_R, eta_R, norms_R, clip_R = (torch.cat(parts) for parts in zip(*found, strict=True))
    _record(group, gamma, moves_R, eta_R, norms_R, grad_norms_R, clip_R, skip)


def _blocks(parameters: Sequence[Tensor], home: torch.device) -> list[slice]:
    """Cut the rows, where the host may look, into blocks that stay in the cache from their norm to their last write.

    Then a step reads parameters and gradients once each, beside the pass that has measured the gradients. At least two
    rows a block: torch sums a single row in another order.
    """
    rows = len(parameters[0])
    entries = sum(parameter.numel() for parameter in parameters)
    block = PIECE if any(parameter.dtype in HALF_PRECISION for parameter in parameters) else BLOCK
    count = max(1, min(entries // block, rows // 2)) if synchronisation.host_may_read(home) else 1
    edges = [rows * number // count for number in range(count + 1)]
    return [slice(first, last) for first, last in itertools.pairwise(edges)]


def _kept_eta(group: dict[str, Any], state: dict[str, Any], like_R: Tensor) -> Tensor:
    """Give the etas of the rows, 0 for a row that has had no gradient yet; in-place changes of them are kept."""
    parameter = group["params"][0]
    if "eta" not in state:
        state["eta"] = wrap_shard(torch.zeros_like(like_R, dtype=parameter.dtype), parameter)
    return local_shard(state["eta"])


def _step_sizes(
    group: dict[str, Any], kept_R: Tensor | None, norms_R: Tensor, grad_norms_R: Tensor, gamma: float, skip: Tensor
) -> tuple[Tensor, Tensor]:
    """Give eta and clip factor of each row.

    In intrinsic mode eta is set at a row's first gradient such that the row is at norm equilibrium; `ClippedSGD` has
    the formula.
    """
    lr = float(group["lr"])
    if kept_R is None:
        eta_R = torch.full_like(grad_norms_R, lr)
    else:
        intrinsic_lr = float(group["intrinsic_lr"])
        at_equilibrium_R = math.sqrt(intrinsic_lr * (2.0 - intrinsic_lr)) * norms_R / grad_norms_R
        now_R = (kept_R == 0) & (grad_norms_R > 0) & ~skip
        kept_R.copy_(torch.where(now_R, at_equilibrium_R.to(kept_R.dtype), kept_R))
        eta_R = lr * kept_R.double()
    length_R = eta_R * grad_norms_R
    clip_R = torch.ones_like(length_R)
    if group["clip"] is not None:
        bound_R = group["clip"] * math.sqrt(2.0 * gamma) * norms_R
        clip_R = torch.where(length_R > bound_R, bound_R / length_R, clip_R)
    return eta_R, clip_R


def _descend(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    gamma_R: Tensor,
    step_R: Tensor,
    skip: Tensor,
    generators: Sequence[torch.Generator] | None,
) -> None:
    """Take x_r <- x_r - (gamma_r x_r + step_r g_r); rows at rest have both 0, and where `skip`, nothing is written."""
    on_host = synchronisation.host_may_read(skip.device)
    for member, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        x = at_least_float32(parameter)
        column = (-1, *[1] * (x.dim() - 1))
        # Subtract gamma x, never multiply by 1 - gamma: see `updates`. Where nothing can be undone, in place.
        in_place = on_host and x is parameter
        stepped = torch.addcmul(x, x, gamma_R.to(x.dtype).view(column), value=-1.0, out=x if in_place else None)
        if gradient is not None:
            stepped.addcmul_(gradient.to(x.dtype), step_R.to(x.dtype).view(column), value=-1.0)
        if in_place:
            continue
        if generators is not None and rounds(parameter, generators):
            stepped = rounded(stepped, draw(stepped, generators[member]))
        stepped = stepped.to(parameter.dtype)
        parameter.copy_(stepped if on_host else torch.where(skip, parameter, stepped))


def _record(
    group: dict[str, Any],
    gamma: float,
    moves_R: Tensor,
    eta_R: Tensor,
    norms_R: Tensor,
    grad_norms_R: Tensor,
    clip_R: Tensor,
    skip: Tensor,
) -> None:
    """Write the means over the rows that moved; eta is weighted so that eta^2 sigma^2 is the mean of theirs."""
    drive_R = eta_R * clip_R * grad_norms_R
    angle_R = torch.atan2(drive_R, (1.0 - gamma) * norms_R)
    quantities_QR = torch.stack(
        [
            torch.ones_like(norms_R),
            norms_R.square(),
            grad_norms_R.square(),
            clip_R,
            (clip_R < 1).double(),
            (drive_R * norms_R).square(),
            (clip_R * grad_norms_R * norms_R).square(),
            angle_R.square(),
            eta_R / norms_R.square(),
        ]
    )
    sums_Q = reduce_shards(torch.where(moves_R, quantities_QR, 0.0).sum(dim=1), group["params"][0])
    count = sums_Q[0]
    norm2, grad2, clip, clipped, eta2_sigma2, sigma2, angle2, effective_lr = (sums_Q[1:] / count).unbind()
    record_step(
        group["statistics"],
        gamma=gamma,
        step_eta=(eta2_sigma2 / sigma2).sqrt(),
        effective_lr=effective_lr,
        param_norm=norm2.sqrt(),
        next_param_norm=norm2.sqrt(),
        grad_norm=grad2.sqrt(),
        clip_factor=clip,
        clipped=clipped,
        squared_sigma=sigma2,
        angular_update=angle2.sqrt(),
        hold=skip | (count == 0),
    )
