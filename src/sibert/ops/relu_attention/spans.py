"""Which keys a query may attend to, as one interval of key positions per query.

Causality, windows, lengths and packed sequences all come down to lower_i <= j < upper_i, with both bounds
non-decreasing in i. So every backend knows one rule only, keeps O(S) numbers for it, and reads the keys that a block
of neighbouring queries needs off the bounds of its first and last query.

Shape suffixes: B = batch, S = query positions, T = key positions, N = tokens of a packed batch.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Spans", "key_spans"]


class Spans(NamedTuple):
    """The interval of keys of each query.

    Attributes:
        lower_BS: First key of each query, int32, [B, S], or [1, S] where all sequences share it. Non-decreasing.
        upper_BS: One past the last key; an interval whose upper bound is not above the lower one is empty.
    """

    lower_BS: Tensor
    upper_BS: Tensor

    def allowed(self, key_length: int) -> Tensor:
        """Write the intervals out.

        Args:
            key_length: Number of key positions T.

        Returns:
            Boolean mask [B or 1, 1, S, T], True = attend.
        """
        key_T = torch.arange(key_length, device=self.lower_BS.device, dtype=self.lower_BS.dtype)
        allowed_BST = (key_T >= self.lower_BS[..., None]) & (key_T < self.upper_BS[..., None])
        return allowed_BST[:, None]

    def queries_of_keys(self, key_length: int) -> "Spans":
        """Turn the relation around: the queries that attend to a key are an interval too, since both bounds rise.

        Args:
            key_length: Number of key positions T.

        Returns:
            First query and one past the last query of each key, [B or 1, T].
        """
        key_BT = torch.arange(key_length, device=self.lower_BS.device, dtype=self.lower_BS.dtype)
        key_BT = key_BT.expand(self.lower_BS.shape[0], -1).contiguous()
        first_BT = torch.searchsorted(self.upper_BS, key_BT, right=True, out_int32=True)
        last_BT = torch.searchsorted(self.lower_BS, key_BT, right=True, out_int32=True)
        return Spans(first_BT, last_BT)


def key_spans(
    query_length: int,
    key_length: int,
    device: torch.device,
    *,
    seqlens_B: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    causal: bool = False,
    window: int | None = None,
) -> Spans | None:
    """Find the keys of each query.

    The last query stands at the last key: query i has position p = i + T - S, which is i in self-attention.

    Args:
        query_length: S.
        key_length: T.
        device: Where the bounds are to be.
        seqlens_B: Number of valid keys of each sequence, [B].
        cu_seqlens: Where packed sequences start, and the end of the last: [sequences + 1]; S = T = N.
        causal: A query attends to no key after its position.
        window: A query attends to keys less than this far from its position.

    Returns:
        The intervals, or None if every query attends to every key.
    """
    if seqlens_B is None and cu_seqlens is None and not causal and window is None:
        return None
    position_S = torch.arange(query_length, device=device, dtype=torch.int32) + (key_length - query_length)
    lower_BS, upper_BS = torch.zeros_like(position_S)[None], torch.full_like(position_S, key_length)[None]
    if seqlens_B is not None:
        upper_BS = seqlens_B.to(torch.int32)[:, None].expand(-1, query_length)
    if cu_seqlens is not None:
        starts = cu_seqlens.to(torch.int32)
        # right=True steps over empty sequences, whose start is the start of the next.
        sequence_S = torch.searchsorted(starts[1:].contiguous(), position_S, right=True)
        lower_BS, upper_BS = starts[sequence_S][None], starts[sequence_S + 1][None]
    if causal:
        upper_BS = torch.minimum(upper_BS, (position_S + 1).clamp_min(0))
    if window is not None:
        lower_BS = torch.maximum(lower_BS, position_S - (window - 1))
        upper_BS = torch.minimum(upper_BS, (position_S + window).clamp_min(0))
    batch = max(lower_BS.shape[0], upper_BS.shape[0])
    return Spans(lower_BS.expand(batch, -1).contiguous(), upper_BS.expand(batch, -1).contiguous())
