"""Sequences of different lengths one after the other in a batch of one row: no position is padding.

What works token by token sees N tokens. Attention stays within a sequence, and so do the heads that speak of
sequences. The arguments are those that transformers passes to FlashAttention and that its
`DataCollatorWithFlattening(return_flash_attn_kwargs=True)` makes: `cu_seq_lens_q`, `cu_seq_lens_k`, `max_length_q`,
`max_length_k`.

Normalised-ReLU attention reads the spans. Cosine attention sees queries, keys and values padded to the longest
sequence, they alone, and its output is flattened again: memory S * T * D instead of N * D for the length of one
operator. (torch's `varlen_attn` knows neither dropout nor float32, and runs on CUDA alone.)

Shape suffixes: N = tokens of the batch, S = sequences, T = tokens of the longest one, D = width, H = heads, K = head
width, X = anything.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sibert.ops import relu_attention
from sibert.ops.relu_attention import Spans, key_spans

__all__ = ["FlatBatch", "attend_within", "flat_batch"]

KEYWORDS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


class FlatBatch(NamedTuple):
    """Where the sequences of a flat batch are.

    Attributes:
        bounds: Where sequences begin, and the end of the last, [S + 1]. Sequences may be empty.
        position_ids_1N: Positions in their sequences.
        place_N: Where tokens are in a padded batch [S * T].
        mask_ST: Which places of a padded batch hold tokens.
        spans: The keys of each query.
    """

    bounds: Tensor
    position_ids_1N: Tensor
    place_N: Tensor
    mask_ST: Tensor
    spans: Spans

    @classmethod
    def of(cls, bounds: Tensor, max_length: int, tokens: int) -> "FlatBatch":
        """Work out what follows from the bounds, without reading a number off the device.

        Args:
            bounds: From 0 to `tokens`, [S + 1].
            max_length: At least the length of the longest sequence.
            tokens: N.
        """
        spans = key_spans(tokens, tokens, bounds.device, cu_seqlens=bounds)
        assert spans is not None
        token_N = torch.arange(tokens, device=bounds.device)
        position_N = token_N - spans.lower_BS[0]
        sequence_N = torch.searchsorted(bounds[1:].contiguous(), token_N.to(bounds.dtype), right=True)
        mask_ST = torch.arange(max_length, device=bounds.device) < bounds.diff()[:, None]
        return cls(bounds, position_N[None], sequence_N * max_length + position_N, mask_ST, spans)

    def pad(self, rows_NX: Tensor) -> Tensor:
        """Lay rows of tokens out as [S, T, X], 0 where there is no token."""
        places = rows_NX.new_zeros((self.mask_ST.numel(), *rows_NX.shape[1:]))
        # Copied to their places and not gathered: the backward pass of that reads, and adds nothing up.
        return places.index_copy(0, self.place_N, rows_NX).view(*self.mask_ST.shape, *rows_NX.shape[1:])

    def flatten(self, places_STX: Tensor) -> Tensor:
        """Take the tokens out of a padded batch, [N, X]."""
        return places_STX.flatten(0, 1).index_select(0, self.place_N)

    def first(self, rows_NX: Tensor) -> Tensor:
        """Take the first token of each sequence, [S, X]; 0 where a sequence is empty."""
        first_SX = rows_NX.index_select(0, self.bounds[:-1].clamp(max=len(rows_NX) - 1))
        return torch.where((self.bounds.diff() > 0).view(-1, *[1] * (rows_NX.dim() - 1)), first_SX, 0.0)


def flat_batch(
    inputs: Tensor, position_ids: Tensor | None, attention_mask: Tensor | None, keywords: dict[str, Any]
) -> FlatBatch | None:
    """Find out whether a batch is flat.

    Bounds that are wrong are refused on a CPU; elsewhere reading them would stop the host in every step. Without
    bounds, `position_ids` of a single row that begin anew tell them, at the price of reading them; not while a graph is
    traced.

    Args:
        inputs: Token ids [B, T], or embeddings [B, T, D].
        position_ids: Positions.
        attention_mask: Padding mask.
        keywords: Arguments of a forward pass, from which those of flat batches are taken out.

    Returns:
        The flat batch; None = sequences are rows, as usual.

    Raises:
        ValueError: If the bounds do not fit the tokens, or there is a mask beside them.
    """
    if "flat_batch" in keywords:
        found: FlatBatch | None = keywords.pop("flat_batch")
        return found
    bounds, other, length, other_length = (keywords.pop(name, None) for name in KEYWORDS)
    bounds = other if bounds is None else bounds
    if bounds is None:
        if position_ids is None or attention_mask is not None or torch.compiler.is_compiling():
            return None
        bounds = _bounds_of_positions(inputs, position_ids)
        if bounds is None:
            return None
    tokens = inputs.shape[1]
    if attention_mask is not None:
        raise ValueError("a flat batch (cu_seq_lens_q) has no padding: leave out attention_mask")
    if inputs.shape[0] != 1 or tokens == 0 or bounds.dim() != 1 or len(bounds) < 2:
        raise ValueError(
            "in a flat batch all sequences lie one after the other in one row, with the bounds of the sequences as "
            f"cu_seq_lens_q [sequences + 1]; got tokens {list(inputs.shape[:2])} and bounds {list(bounds.shape)}"
        )
    if other is not None and other is not bounds and other.shape != bounds.shape:
        raise ValueError("queries and keys are the same tokens here: cu_seq_lens_q and cu_seq_lens_k must be equal")
    longest = max(int(length or 0), int(other_length or 0))
    readable = bounds.device.type == "cpu" and not torch.compiler.is_compiling()
    if readable:
        _check_bounds(bounds, other, longest, tokens)
    return FlatBatch.of(bounds, longest or int(bounds.diff().max()), tokens)


def _check_bounds(bounds: Tensor, other: Tensor | None, longest: int, tokens: int) -> None:
    numbers = bounds.tolist()
    shown = numbers if len(numbers) < 20 else [*numbers[:3], "...", numbers[-1]]
    lengths = [end - start for start, end in pairwise(numbers)]
    if numbers[0] != 0 or numbers[-1] != tokens or min(lengths) < 0:
        raise ValueError(f"cu_seq_lens_q must rise from 0 to the number of tokens, {tokens}; got {shown}")
    if other is not None and other is not bounds and not torch.equal(other, bounds):
        raise ValueError("queries and keys are the same tokens here: cu_seq_lens_q and cu_seq_lens_k must be equal")
    if longest and max(lengths) > longest:
        raise ValueError(f"max_length_q is {longest}, but the longest sequence has {max(lengths)} tokens")


def _bounds_of_positions(inputs: Tensor, position_ids: Tensor) -> Tensor | None:
    """Read bounds off positions 0 1 2 0 1 0 1 2 3: [0, 3, 5, 9]; None if there is one sequence, or another order."""
    tokens = inputs.shape[1]
    if inputs.shape[0] != 1 or position_ids.shape != (1, tokens):
        return None
    starts = (position_ids[0] == 0).nonzero()[:, 0]
    if len(starts) < 2 or int(starts[0]) != 0:
        return None
    bounds = torch.cat([starts, starts.new_tensor([tokens])])
    counted = torch.arange(tokens, device=starts.device) - starts.repeat_interleave(bounds.diff())
    return bounds if torch.equal(counted, position_ids[0]) else None


def attend_within(
    attend: Callable[..., tuple[Tensor, Tensor | None]],
    flat: FlatBatch,
    query_1HNK: Tensor,
    key_1HNK: Tensor,
    value_1HNK: Tensor,
    *,
    need_weights: bool,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Let every token attend to those of its own sequence.

    Args:
        attend: `relu_attention` or `cosine_attention`.
        flat: Where the sequences are.
        query_1HNK: Queries.
        key_1HNK: Keys.
        value_1HNK: Values.
        need_weights: Return the weights, too, which are those of a padded batch.
        **options: For `attend`.

    Returns:
        Output [1, H, N, K] and the weights [S, H, T, T] or None.
    """
    if attend is relu_attention and not need_weights:
        return attend(query_1HNK, key_1HNK, value_1HNK, spans=flat.spans, **options)
    query_SHTK, key_SHTK, value_SHTK = (
        flat.pad(heads_1HNK[0].transpose(0, 1)).transpose(1, 2) for heads_1HNK in (query_1HNK, key_1HNK, value_1HNK)
    )
    mixed_SHTK, weights_SHTT = attend(
        query_SHTK, key_SHTK, value_SHTK, flat.mask_ST, need_weights=need_weights, **options
    )
    return flat.flatten(mixed_SHTK.transpose(1, 2)).transpose(0, 1)[None], weights_SHTT
