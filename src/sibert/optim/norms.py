"""The norm of a group of tensors taken as one vector, in any dtype, on any device, over any number of processes.

The clipping threshold compares the norms of vectors of 10^8 entries. Two things can go wrong when their squares are
summed in float32: rounding errors pile up (the sum stops growing when it is 2^24 times the next term), and the squares
of small entries underflow: a gradient of norm 1e-22, which a loss scale of 1e-22 produces, has a float32 norm of 0. So
sums are taken in float64, where the square of every float32 is exact and none over- or underflows.

On the CPU, float64 sums of float32 tensors cost eight times a float32 sum (torch converts in a slow loop): there, rows
of `ROW` entries are summed in float32 and the rows in float64, which is as accurate as the clip factor can use; a total
whose rows might have left float32's range is taken again in float64.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from sibert.optim import synchronisation
from sibert.optim.shards import any_sharded, local_shard, reduce_each, sum_over_shards

__all__ = ["home_of", "squared_norm", "squared_norms", "squared_norms_on_host"]

ROW = 4096
"""Entries that are summed in float32 before float64 takes over: few enough rows for torch to add them in one thread."""

SHORT = 2 * ROW
"""Tensors with fewer entries, biases say, are one row: a call for each of BERT's hundred would take milliseconds."""

TRUSTED_RANGE = (2.0**-90, 2.0**120)
"""Squared norms in between are sums of float32 squares that can have lost nothing that counts.

The squares of smaller vectors are not always multiples of the smallest float32, those of longer ones may overflow.
"""

CHUNK = 1 << 18
"""Entries that are converted at a time: 1 MiB of float32, 2 MiB of float64. A multiple of `ROW`."""


def home_of(tensors: Iterable[Tensor]) -> torch.device:
    """Name the device on which the scalars of a group live: that of its first tensor.

    Args:
        tensors: The tensors of the group; at least one.

    Returns:
        A device.
    """
    return next(iter(tensors)).device


def squared_norm(tensors: Sequence[Tensor], home: torch.device, *, wide: bool = False) -> Tensor:
    """Sum the squares of all entries of all tensors: |x|^2 of the vector x that they form.

    Args:
        tensors: Floating-point tensors or DTensors of any shapes, dtypes and devices. For DTensors this is a collective
            operation: every process passes the same list, and the norm is that of the whole tensors.
        home: Device of the result.
        wide: Sum in float64 from the first square on, whatever it costs: the definition.

    Returns:
        A 0-dim float64 tensor: finite if and only if every entry is (float64 entries beyond 1e154 count as infinite),
        and without host synchronisation unless the tensors are on the CPU.
    """
    if not tensors:
        return torch.zeros((), dtype=torch.float64, device=home)
    local_sum = _wide_sum_of_squares if wide else _sum_of_squares
    return sum_over_shards(tensors, local_sum, home)


def squared_norms(groups: Sequence[Sequence[Tensor]], home: torch.device) -> Tensor:
    """Take the squared norm of each of many groups by a few operations for all of them.

    Args:
        groups: Lists of tensors or DTensors, none empty, all on one device that the host does not read.
        home: That device.

    Returns:
        [G], float64. What a group's is does not depend on the others by a single bit: each is summed as a tree whose
        leaves beyond the group's tensors are 0.
    """
    tensors = [tensor for group in groups for tensor in group]
    owners = [number for number, group in enumerate(groups) for _ in group]
    by_dtype: dict[torch.dtype, list[int]] = defaultdict(list)
    for place, tensor in enumerate(tensors):
        by_dtype[tensor.dtype].append(place)
    norms: list[Tensor] = [tensors[0]] * len(tensors)
    for places in by_dtype.values():
        found = torch._foreach_norm([local_shard(tensors[place]) for place in places], 2, torch.float64)
        for place, norm in zip(places, found, strict=True):
            norms[place] = norm
    squares = torch.stack(norms).square()

    def local_sums(places: Sequence[int]) -> Tensor:
        terms_GM = torch.cat([squares, squares.new_zeros(1)])[_leaves(tuple(owners), tuple(places), len(groups), home)]
        while (half := terms_GM.shape[1] // 2) >= 1:
            terms_GM = terms_GM[:, :half] + terms_GM[:, half:]
        return terms_GM[:, 0]

    return reduce_each(tensors, local_sums)


def squared_norms_on_host(groups: Sequence[Sequence[Tensor]]) -> list[float]:
    """Take the squared norm of each of many groups on the CPU; what a group's is does not depend on the others.

    Args:
        groups: Lists of tensors or DTensors, none empty.

    Returns:
        One number for each group, as of `squared_norm`: what is not finite is in the group alone.
    """
    dtypes = {tensor.dtype for group in groups for tensor in group}
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float64} or any(map(any_sharded, groups)):
        return [squared_norm(group, home_of(group)).item() for group in groups]
    pieces: list[Tensor] = []
    short: list[tuple[int, Tensor]] = []
    lengths = []
    for group in groups:
        entries = 0
        for tensor in group:
            flat, whole = tensor.reshape(-1), tensor.numel() // ROW * ROW
            if tensor.numel() < SHORT:
                whole = 0
            if whole:
                pieces.append(torch.linalg.vector_norm(flat[:whole].view(-1, ROW), dim=1))
                entries += whole // ROW
            if whole < tensor.numel():
                short.append((len(pieces), flat[whole:]))
                pieces.append(flat)
                entries += 1
        lengths.append(entries)
    if short:
        places, tensors = zip(*short, strict=True)
        for place, norm in zip(places, torch._foreach_norm(tensors), strict=True):
            pieces[place] = norm.view(1)
    squares = torch.cat(pieces).double().square() if pieces else torch.zeros(0, dtype=torch.float64)
    totals: list[float] = torch.segment_reduce(squares, "sum", lengths=torch.tensor(lengths), unsafe=True).tolist()
    smallest, largest = TRUSTED_RANGE
    return [
        total if smallest <= total <= largest or torch.float64 in dtypes else _wide_sum_of_squares(list(group)).item()
        for total, group in zip(totals, groups, strict=True)
    ]


@lru_cache(maxsize=64)
def _leaves(owners: tuple[int, ...], chosen: tuple[int, ...], groups: int, home: torch.device) -> Tensor:
    """Places of each group's chosen tensors, padded with one past the last to the same power of two."""
    places: list[list[int]] = [[] for _ in range(groups)]
    for place in chosen:
        places[owners[place]].append(place)
    width = 1 << (max(map(len, places)) - 1).bit_length()
    return torch.tensor([[*own, *[len(owners)] * (width - len(own))] for own in places]).to(home, non_blocking=True)


def _sum_of_squares(tensors: list[Tensor]) -> Tensor:
    buckets: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        buckets[tensor.device, tensor.dtype].append(tensor)
    sums = []
    for (device, _), bucket in buckets.items():
        if synchronisation.host_may_read(device):
            sums.append(_row_sum_of_squares(bucket))
        else:
            norms = torch._foreach_norm(bucket, 2, torch.float64)
            sums.append(torch.stack(norms).square().sum())
    return sums[0] if len(sums) == 1 else torch.stack([s.to(sums[0].device) for s in sums]).sum()


def _row_sum_of_squares(tensors: list[Tensor]) -> Tensor:
    """Sum in the tensors' precision within rows, in float64 over rows; again in float64 where that lost something."""
    norms, short = [], []
    for tensor in tensors:
        half = tensor.dtype in (torch.float16, torch.bfloat16)
        size = tensor.numel()
        if size < SHORT:
            short.append(tensor.float() if half else tensor)
            continue
        flat, whole = tensor.reshape(-1), size // ROW * ROW
        # Half precision a chunk at a time: a float32 copy of the whole would be twice as large as the tensor.
        for chunk in torch.split(flat[:whole], CHUNK if half else whole):
            rows = chunk.view(-1, ROW)
            norms.append(torch.linalg.vector_norm(rows.float() if half else rows, dim=1))
        if whole < size:
            short.append(flat[whole:].float() if half else flat[whole:])
    if short:
        norms.append(torch.stack(torch._foreach_norm(short)))
    total = torch.cat(norms).double().square().sum()
    smallest, largest = TRUSTED_RANGE
    trusted = smallest <= total.item() <= largest or tensors[0].dtype == torch.float64
    return total if trusted else _wide_sum_of_squares(tensors)


def _wide_sum_of_squares(tensors: list[Tensor]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64, device=tensors[0].device)
    for tensor in tensors:
        for chunk in tensor.reshape(-1).tensor_split(tensor.numel() // CHUNK + 1):
            total += chunk.double().square().sum().to(total.device)
    return total
