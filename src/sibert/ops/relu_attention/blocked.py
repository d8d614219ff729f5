"""Normalised-ReLU attention in blocks of scores that fit a core's cache: memory O(S + T), forward and backward.

A block, some queries and some keys of a few heads, computes its scores, uses them and forgets them; the backward pass
computes them again. What is kept is the output and one number per row, the sum of its scores (README.md has the
algebra). All blocks are computed in the same memory: fresh memory costs more than the arithmetic.

Shape suffixes: B = batch, H = query heads, G = key and value heads, M = H / G, S = query positions, T = key positions,
K = head width; within a block: U = heads, R = queries, C = keys.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sibert.ops.relu_attention.dropout import kept, row_keys
from sibert.ops.relu_attention.reference import inverse_or_zero

__all__ = ["blocked_backward", "blocked_forward"]

BLOCK = {torch.float64: 1 << 17, torch.float32: 1 << 18, torch.bfloat16: 1 << 19}
"""Scores of a block per thread, 1 MiB: twice as many are as fast on a quiet machine, for the cost of starting a product
counts, and up to a third slower where others use the same last-level cache (`benchmarks/attention_blocks.py`)."""

ROWS = 1024
"""Queries of a block. Few keys to many queries: they are packed once for the product and stay in the cache."""

SHORTEST = 64
"""Fewest queries of a block of short spans: below it the products no longer run at the speed of BLAS."""


def compute_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Precision of the products: that of the input where the processor multiplies it, float32 otherwise.

    Args:
        dtype: Of the inputs.
        device: Of the inputs.

    Returns:
        The dtype in which a block is computed. float16 never: its range is too small for undivided scores.
    """
    if dtype == torch.bfloat16 and device.type == "cpu" and not torch.cpu._is_avx512_bf16_supported():
        return torch.float32
    return torch.float32 if dtype == torch.float16 else dtype


@dataclass(frozen=True)
class Problem:
    """One call: its tensors with heads brought into [outer, U, M, ...], and who may attend to whom.

    Where spans or a mask differ between sequences, outer is B and U is G; otherwise all B G heads are alike and outer
    is 1.
    """

    query: Tensor  # [outer, U, M, S, K]
    key: Tensor  # [outer, U, T, K]; keys that no query may attend to are 0
    value: Tensor  # [outer, U, T, K]
    mask: Tensor | None  # boolean [outer, U, M, S, T], a view
    lower: Tensor | None  # [outer or 1, S]
    upper: Tensor | None
    row_keys: Tensor | None  # [outer, U, M, S], for dropout
    dropout_p: float

    @classmethod
    def of(
        cls,
        query_BHSK: Tensor,
        key_BGTK: Tensor,
        value_BGTK: Tensor,
        mask: Tensor | None,
        lower_BS: Tensor | None,
        upper_BS: Tensor | None,
        seed: Tensor | None,
        dropout_p: float,
    ) -> "Problem":
        B, H, S, K = query_BHSK.shape
        G, T = key_BGTK.shape[1:3]
        if mask is not None and mask.shape[1] == mask.shape[2] == 1:  # by key alone: the score of a key 0 is 0
            key_BGTK, mask = key_BGTK.masked_fill(~mask.transpose(-2, -1), 0.0), None
        per_sequence = mask is not None or (lower_BS is not None and lower_BS.shape[0] > 1)
        lead = (B, G) if per_sequence else (1, B * G)
        keys = None
        if seed is not None:
            rows = torch.arange(B * H * S, device=query_BHSK.device)
            keys = row_keys(seed, rows).view(*lead, H // G, S)
        return cls(
            query_BHSK.reshape(*lead, H // G, S, K),
            key_BGTK.reshape(*lead, T, K),
            value_BGTK.reshape(*lead, T, value_BGTK.shape[-1]),
            mask if mask is None else _grouped(mask.expand(B, H, S, T), G),
            lower_BS,
            upper_BS,
            keys,
            dropout_p,
        )

    def like(self, rows_BHSX: Tensor) -> Tensor:
        """Bring a tensor of the queries' shape into the order of `query`."""
        return rows_BHSX.reshape(*self.query.shape[:-1], rows_BHSX.shape[-1])

    def size(self, dtype: torch.dtype) -> tuple[int, int, int]:
        """Heads, queries and keys of a block of this dtype."""
        _, U, _, S, _ = self.query.shape
        threads = torch.get_num_threads() if self.query.device.type == "cpu" else 256
        T = self.key.shape[2]
        rows = min(S, max(ROWS, BLOCK[dtype] // max(T, 1)))
        columns = min(T, BLOCK[dtype] // max(rows, 1))
        if self.lower is not None and self.upper is not None and self.lower.numel():
            widest = max(1, int((self.upper - self.lower).max()))
            rows = min(rows, max(widest, SHORTEST))
            columns = min(columns, widest + rows)
        rows, columns = max(rows, 1), max(columns, 1)
        return max(1, min(U, BLOCK[dtype] * threads // (rows * columns))), rows, columns

    def chunks(self, size: int) -> Iterator[tuple[int, slice]]:
        """Pairs of an outer index and a slice of heads."""
        outer, U = self.query.shape[:2]
        for o in range(outer):
            for start in range(0, U, size):
                yield o, slice(start, min(start + size, U))

    def blocks(self, o: int, size: int) -> Iterator[tuple[int, slice]]:
        """Pairs of a query head within its group and a slice of queries."""
        edges = self._edges(o, size)
        for m in range(self.query.shape[2]):
            for start, stop in itertools.pairwise(edges):
                yield m, slice(start, stop)

    def _edges(self, o: int, size: int) -> list[int]:
        """Where blocks of queries begin and end: every `size` queries, and, not too often, where another span begins.

        Queries of different spans in one block compute the scores between them in vain.
        """
        S = self.query.shape[3]
        changes = []
        if self.lower is not None and self.upper is not None and S:
            lower, _ = self._bounds(o)
            changes = ((lower[1:] != lower[:-1]).nonzero().flatten() + 1).tolist()
        edges = [0]
        for change in [*changes, S]:
            while change - edges[-1] > size:
                edges.append(edges[-1] + size)
            if change - edges[-1] >= SHORTEST or change == S > edges[-1]:
                edges.append(change)
        return edges

    def keys_of(self, o: int, rows: slice, size: int) -> Iterator[slice]:
        """The keys that any query of a block may attend to, so many at a time: the bounds rise from query to query."""
        first, last = 0, self.key.shape[2]
        if self.lower is not None and self.upper is not None:
            lower, upper = self._bounds(o)
            first, last = max(0, int(lower[rows.start])), int(upper[rows.stop - 1])
        for start in range(first, last, size):
            yield slice(start, min(start + size, last))

    def _bounds(self, o: int) -> tuple[Tensor, Tensor]:
        assert self.lower is not None
        assert self.upper is not None
        at = min(o, self.lower.shape[0] - 1)
        return self.lower[at], self.upper[at]

    def restrict_(self, scores_URC: Tensor, o: int, units: slice, m: int, rows: slice, keys: slice) -> Tensor:
        """Set the scores of keys to 0 that a query may not attend to, in place."""
        if self.mask is not None:
            scores_URC.masked_fill_(~self.mask[o, units, m, rows, keys], 0.0)
        if self.lower is None:
            return scores_URC
        lower, upper = (bound[rows] for bound in self._bounds(o))
        # Between the last lower and the first upper bound every query of the block attends: only edges need a test.
        edge = min(int(lower[-1]), keys.stop)
        if edge > keys.start:
            column = torch.arange(keys.start, edge, device=lower.device)
            scores_URC[..., : edge - keys.start].masked_fill_(column < lower[:, None], 0.0)
        edge = max(int(upper[0]), keys.start)
        if edge < keys.stop:
            column = torch.arange(edge, keys.stop, device=upper.device)
            scores_URC[..., edge - keys.start :].masked_fill_(column >= upper[:, None], 0.0)
        return scores_URC

    def dropped(self, o: int, units: slice, m: int, rows: slice, keys: slice) -> Tensor | None:
        """True where dropout drops, [U, R, C]."""
        if self.row_keys is None:
            return None
        columns = torch.arange(keys.start, keys.stop, device=self.key.device)
        return ~kept(self.row_keys[o, units, m, rows], columns, self.dropout_p)


class Scratch:
    """Memory in which one block after the other is computed.

    Args:
        size: Scores of the largest block.
        dtype: Of the products.
        device: Of the inputs.
    """

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self._flat = torch.empty(size, dtype=dtype, device=device)

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        """The product of two batches of matrices; the next call overwrites it."""
        shape = (*left.shape[:2], right.shape[2])
        return torch.bmm(left, right, out=self._flat[: math.prod(shape)].view(shape))


def blocked_forward(
    query_BHSK: Tensor,
    key_BGTK: Tensor,
    value_BGTK: Tensor,
    mask: Tensor | None,
    lower_BS: Tensor | None,
    upper_BS: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
) -> tuple[Tensor, Tensor]:
    """Compute normalised-ReLU attention block by block.

    Args:
        query_BHSK: Queries.
        key_BGTK: Keys.
        value_BGTK: Values.
        mask: Boolean, four dimensions that broadcast to [B, H, S, T]; True = attend.
        lower_BS: First key of each query (`Spans`).
        upper_BS: One past its last key.
        seed: Seed of dropout; None = no dropout.
        dropout_p: Dropout probability.

    Returns:
        Output [B, H, S, K], contiguous, and row sums [B, H, S], float32 or float64.
    """
    problem = Problem.of(query_BHSK, key_BGTK, value_BGTK, mask, lower_BS, upper_BS, seed, dropout_p)
    B, H, S, _ = query_BHSK.shape
    dtype = compute_dtype(query_BHSK.dtype, query_BHSK.device)
    out_BHSK = query_BHSK.new_empty(B, H, S, value_BGTK.shape[-1])
    total_BHS = torch.empty((B, H, S), dtype=_sum_dtype(dtype), device=query_BHSK.device)
    out, total = problem.like(out_BHSK), problem.like(total_BHS[..., None])
    num_units, num_rows, num_keys = problem.size(dtype)
    scratch = Scratch(num_units * num_rows * num_keys, dtype, query_BHSK.device)
    for o, units in problem.chunks(num_units):
        key_UTK, value_UTK = problem.key[o, units].to(dtype), problem.value[o, units].to(dtype)
        for m, rows in problem.blocks(o, num_rows):
            query_URK = problem.query[o, units, m, rows].to(dtype)
            total_UR1 = total.new_zeros(*query_URK.shape[:2], 1)
            mixed_URK = total.new_zeros(*query_URK.shape[:2], value_UTK.shape[-1])
            for keys in problem.keys_of(o, rows, num_keys):
                scores_URC = scratch.product(query_URK, key_UTK[:, keys].mT)
                scores_URC = problem.restrict_(scores_URC.relu_(), o, units, m, rows, keys)
                total_UR1 += scores_URC.sum(dim=-1, keepdim=True, dtype=total.dtype)
                if (dropped_URC := problem.dropped(o, units, m, rows, keys)) is not None:
                    scores_URC.masked_fill_(dropped_URC, 0.0)
                _add_product_(mixed_URK, scores_URC, value_UTK[:, keys])
            total[o, units, m, rows] = total_UR1
            out[o, units, m, rows] = mixed_URK * (inverse_or_zero(total_UR1) / (1.0 - dropout_p))
    return out_BHSK, total_BHS


def blocked_backward(
    grad_BHSK: Tensor,
    query_BHSK: Tensor,
    key_BGTK: Tensor,
    value_BGTK: Tensor,
    out_BHSK: Tensor,
    total_BHS: Tensor,
    mask: Tensor | None,
    lower_BS: Tensor | None,
    upper_BS: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients block by block, from scores that are computed again.

    Args:
        grad_BHSK: Gradient of the output.
        query_BHSK: Queries.
        key_BGTK: Keys.
        value_BGTK: Values.
        out_BHSK: Output of `blocked_forward`.
        total_BHS: Row sums of `blocked_forward`.
        mask: As in `blocked_forward`, like all that follow.
        lower_BS: First key of each query.
        upper_BS: One past its last key.
        seed: Seed of dropout.
        dropout_p: Dropout probability.

    Returns:
        Gradients of queries, keys and values, contiguous, in their shapes and dtypes.
    """
    problem = Problem.of(query_BHSK, key_BGTK, value_BGTK, mask, lower_BS, upper_BS, seed, dropout_p)
    dtype = compute_dtype(query_BHSK.dtype, query_BHSK.device)
    grad_query_BHSK = torch.empty_like(query_BHSK, memory_format=torch.contiguous_format)
    grad_query = problem.like(grad_query_BHSK)
    grad_key, grad_value = (
        torch.empty_like(heads, memory_format=torch.contiguous_format) for heads in (problem.key, problem.value)
    )
    # g_i / t_i, and its product with out_i: all of the division happens on rows.
    inverse_BHS1 = inverse_or_zero(total_BHS)[..., None]
    scaled_BHSK = grad_BHSK.to(total_BHS.dtype) * inverse_BHS1
    shift = problem.like((scaled_BHSK * out_BHSK).sum(dim=-1, keepdim=True)).to(dtype)
    scaled = problem.like(scaled_BHSK).to(dtype)
    num_units, num_rows, num_keys = problem.size(dtype)
    scratch = [Scratch(num_units * num_rows * num_keys, dtype, query_BHSK.device) for _ in range(2)]
    for o, units in problem.chunks(num_units):
        key_UTK, value_UTK = problem.key[o, units].to(dtype), problem.value[o, units].to(dtype)
        # Sums over blocks in at least float32, whatever the precision of the products.
        sum_key = torch.zeros(key_UTK.shape, dtype=total_BHS.dtype, device=key_UTK.device)
        sum_value = torch.zeros(value_UTK.shape, dtype=total_BHS.dtype, device=key_UTK.device)
        for m, rows in problem.blocks(o, num_rows):
            query_URK, scaled_URK = problem.query[o, units, m, rows].to(dtype), scaled[o, units, m, rows]
            sum_query = sum_key.new_zeros(query_URK.shape)
            for keys in problem.keys_of(o, rows, num_keys):
                scores_URC = scratch[0].product(query_URK, key_UTK[:, keys].mT)
                scores_URC = problem.restrict_(scores_URC.relu_(), o, units, m, rows, keys)
                grad_URC = scratch[1].product(scaled_URK, value_UTK[:, keys].mT)
                mixed_URC = scores_URC
                if (dropped_URC := problem.dropped(o, units, m, rows, keys)) is not None:
                    grad_URC.masked_fill_(dropped_URC, 0.0).div_(1.0 - dropout_p)
                    mixed_URC = scores_URC.masked_fill(dropped_URC, 0.0).div_(1.0 - dropout_p)
                _add_product_(sum_value[:, keys], mixed_URC.mT, scaled_URK)
                grad_URC.sub_(shift[o, units, m, rows])
                # Where the score is positive.
                torch.ops.aten.threshold_backward.grad_input(grad_URC, scores_URC, 0.0, grad_input=grad_URC)
                _add_product_(sum_query, grad_URC, key_UTK[:, keys])
                _add_product_(sum_key[:, keys], grad_URC.mT, query_URK)
            grad_query[o, units, m, rows] = sum_query
        grad_key[o, units] = sum_key
        grad_value[o, units] = sum_value
    return grad_query_BHSK, grad_key.view(key_BGTK.shape), grad_value.view(value_BGTK.shape)


def _grouped(mask_BHST: Tensor, groups: int) -> Tensor:
    mask_BGMST: Tensor = mask_BHST.unflatten(1, (groups, -1))  # type: ignore[no-untyped-call]
    return mask_BGMST


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.baddbmm_(left, right)
    else:
        total += left @ right
