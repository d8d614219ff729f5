"""Parameters that are spread over processes: DTensors and their local shards."""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "any_sharded",
    "has_whole_rows",
    "is_sharded",
    "local_shard",
    "placed_gradient",
    "reduce_each",
    "reduce_shards",
    "sum_over_shards",
    "wrap_shard",
]


def is_sharded(tensor: Tensor) -> bool:
    """Say whether a tensor is a DTensor.

    Args:
        tensor: Any tensor.

    Returns:
        True for a `torch.distributed.tensor.DTensor`.
    """
    return _sharding_exists() and isinstance(tensor, sys.modules["torch.distributed.tensor"].DTensor)


def any_sharded(tensors: Iterable[Tensor]) -> bool:
    """Say whether one of many tensors is a DTensor, at once if there cannot be one.

    Args:
        tensors: Any tensors.

    Returns:
        True if `is_sharded` is for any of them.
    """
    return _sharding_exists() and any(is_sharded(tensor) for tensor in tensors)


def local_shard(tensor: Tensor) -> Tensor:
    """Give the part of a tensor that this process holds.

    Args:
        tensor: A tensor or DTensor.

    Returns:
        The tensor itself, or a view of the DTensor's local part; in-place changes of it change the DTensor.
    """
    if not is_sharded(tensor):
        return tensor
    dtensor: Any = tensor
    local: Tensor = dtensor.to_local()
    return local


def placed_gradient(parameter: Tensor, gradient: Tensor) -> Tensor:
    """Bring a gradient to the placements of its parameter.

    Args:
        parameter: A tensor or DTensor.
        gradient: Its gradient, placed as the parameter or in another way.

    Returns:
        The gradient, whose local shard belongs to the local shard of the parameter.
    """
    if not is_sharded(parameter):
        return gradient
    dparameter: Any = parameter
    dgradient: Any = gradient
    if dgradient.placements != dparameter.placements:
        dgradient = dgradient.redistribute(dparameter.device_mesh, dparameter.placements)
    placed: Tensor = dgradient
    return placed


def sum_over_shards(
    tensors: Iterable[Tensor], local_sum: Callable[[list[Tensor]], Tensor], home: torch.device
) -> Tensor:
    """Sum an additive quantity over whole tensors when each process sees only its shards.

    Args:
        tensors: Tensors and DTensors; every process passes the same list in the same order.
        local_sum: Maps a list of plain tensors to a 0-dim tensor that is additive in the list's elements.
        home: Device of the result.

    Returns:
        A 0-dim plain tensor, the same in every process: one collective for each kind of placement.
    """
    tensors = list(tensors)
    if not _sharding_exists():
        return local_sum(tensors).to(home, non_blocking=True)
    plain: list[Tensor] = []
    sharded: dict[Any, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        if is_sharded(tensor):
            dtensor: Any = tensor
            sharded[(dtensor.device_mesh, dtensor.placements)].append(local_shard(tensor))
        else:
            plain.append(tensor)
    sums = [local_sum(plain).to(home, non_blocking=True)] if plain else []
    for (mesh, placements), locals_ in sharded.items():
        sums.append(_reduce(local_sum(locals_), mesh, placements).to(home, non_blocking=True))
    return sums[0] if len(sums) == 1 else torch.stack(sums).sum()


def reduce_shards(local: Tensor, like: Tensor) -> Tensor:
    """Add what the processes found in their shards of a tensor.

    Args:
        local: Sums over the shard of this process, of any shape.
        like: The tensor or DTensor; a plain tensor has one shard.

    Returns:
        The sums over the whole tensor, the same in every process that shares it.
    """
    if not is_sharded(like):
        return local
    dtensor: Any = like
    return _reduce(local, dtensor.device_mesh, dtensor.placements)


def reduce_each(tensors: Sequence[Tensor], local_sum: Callable[[list[int]], Tensor]) -> Tensor:
    """Sum quantities of whole tensors by one collective for each kind of placement, however many quantities there are.

    Args:
        tensors: Tensors and DTensors; every process passes the same list in the same order.
        local_sum: Maps places in the list to sums over the shards that this process has of those tensors; additive.

    Returns:
        The sums over the whole tensors, the same in every process.
    """
    kinds: dict[Any, list[int]] = defaultdict(list)
    for place, tensor in enumerate(tensors):
        dtensor: Any = tensor
        kinds[(dtensor.device_mesh, dtensor.placements) if is_sharded(tensor) else None].append(place)
    sums = [reduce_shards(local_sum(places), tensors[places[0]]) for places in kinds.values()]
    return sums[0] if len(sums) == 1 else torch.stack(sums).sum(dim=0)


def has_whole_rows(tensor: Tensor) -> bool:
    """Say whether every row, a slice along the first dimension, lies in one process.

    Args:
        tensor: A tensor or DTensor.

    Returns:
        False for a DTensor that is sharded along another dimension than the first.
    """
    if not is_sharded(tensor):
        return True
    dtensor: Any = tensor
    return not any(placement.is_shard() and placement.dim != 0 for placement in dtensor.placements)


def wrap_shard(local: Tensor, like: Tensor) -> Tensor:
    """Make a tensor of one number for each row, spread over processes as the rows of another tensor are.

    Args:
        local: The numbers of the rows of this process [R].
        like: The tensor or DTensor whose rows they belong to.

    Returns:
        `local` itself, or a DTensor of it.
    """
    if not is_sharded(like):
        return local
    dtensor: Any = like
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local, dtensor.device_mesh, dtensor.placements, run_check=False, shape=like.shape[:1], stride=(1,)
    )


def _sharding_exists() -> bool:
    """Nobody can hold a DTensor before its module is imported; importing it here would cost a second for nothing."""
    return "torch.distributed.tensor" in sys.modules


def _reduce(local: Tensor, mesh: Any, placements: tuple[Any, ...]) -> Tensor:
    """Add the shards' sums; along a mesh dimension that only replicates, every process has the whole sum already."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    pieces = [Replicate() if placement.is_replicate() else Partial("sum") for placement in placements]
    total: Tensor = DTensor.from_local(local, mesh, pieces, run_check=False).full_tensor()
    return total
