"""What an attention has to be given, checked before anything is computed.

Shape suffixes: B = batch, H = query heads, G = key and value heads, S = query positions, T = key positions, K = head
width, N = tokens of a packed batch.
"""

from numbers import Real
from typing import Any

import torch
from torch import Tensor

from sibert.ops.attention_mask import fitting_mask
from sibert.ops.relu_attention.spans import Spans

__all__ = ["check_inputs", "check_spans", "check_types"]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_types(tensors: dict[str, Any], options: dict[str, Any], window: Any, dropout_p: Any) -> None:
    """Refuse lists, arrays and other things that are not of the type they should be.

    Args:
        tensors: What has to be a tensor, by name.
        options: What may be None as well.
        window: Width of the window.
        dropout_p: Dropout probability.

    Raises:
        TypeError: Naming the first of another type.
    """
    given = {name: option for name, option in options.items() if option is not None}
    for name, tensor in (tensors | given).items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}; torch.as_tensor makes it one")
    if isinstance(window, bool) or not (window is None or isinstance(window, int) or hasattr(window, "__index__")):
        raise TypeError(f"window counts keys and must be an integer or None, got {window!r}")
    if not isinstance(dropout_p, int | float | Real):
        raise TypeError(f"dropout_p is a probability and must be a number, got {dropout_p!r}")


def check_inputs(
    query_BHSK: Tensor,
    key_BGTK: Tensor,
    value_BGTK: Tensor,
    mask: Tensor | None,
    seqlens_B: Tensor | None,
    cu_seqlens: Tensor | None,
    window: int | None,
    dropout_p: float,
) -> Tensor | None:
    """Refuse what has no meaning.

    Args:
        query_BHSK: Queries.
        key_BGTK: Keys.
        value_BGTK: Values.
        mask: Boolean, [B, T] or broadcastable to [B, H, S, T].
        seqlens_B: Numbers of valid keys.
        cu_seqlens: Bounds of packed sequences.
        window: Width of the window.
        dropout_p: Dropout probability.

    Returns:
        The mask, if any, in four dimensions.

    Raises:
        ValueError: On shapes, devices or numbers that do not fit together.
        TypeError: On wrong dtypes.
    """
    _check_tensors(query_BHSK, key_BGTK, value_BGTK)
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p is a probability in [0, 1), got {dropout_p}")
    if window is not None and window < 1:
        raise ValueError(f"window counts the keys from a query's own position on and is at least 1, got {window}")
    if seqlens_B is not None and cu_seqlens is not None:
        raise ValueError("give seqlens for padded sequences or cu_seqlens for packed ones, not both")
    if seqlens_B is not None:
        _check_lengths(seqlens_B, query_BHSK, key_BGTK)
    if cu_seqlens is not None:
        _check_packing(cu_seqlens, query_BHSK, key_BGTK)
    return None if mask is None else _checked_mask(mask, query_BHSK, key_BGTK)


def check_spans(spans: Spans, query_BHSK: Tensor) -> None:
    """Refuse spans that are not those of these queries; their values are not read.

    Args:
        spans: Of `key_spans`.
        query_BHSK: Queries.

    Raises:
        ValueError: On another shape or device.
    """
    B, _, S, _ = query_BHSK.shape
    for bound_BS in spans:
        _check_device("spans", bound_BS, query_BHSK)
        if bound_BS.shape != (1, S) and bound_BS.shape != (B, S):
            raise ValueError(
                f"spans need bounds for each of the {S} queries, [1 or {B}, {S}]; got {list(bound_BS.shape)}"
            )


def _check_tensors(query_BHSK: Tensor, key_BGTK: Tensor, value_BGTK: Tensor) -> None:
    tensors = {"query": query_BHSK, "key": key_BGTK, "value": value_BGTK}
    for name, tensor in tensors.items():
        if tensor.dim() != 4:
            raise ValueError(
                f"the {name} must have four dimensions (batch, heads, positions, head width), got {tuple(tensor.shape)}"
            )
        if tensor.dtype not in DTYPES:
            raise TypeError(f"the {name} must be float32, float64, bfloat16 or float16, got {tensor.dtype}")
        if tensor.dtype != query_BHSK.dtype:
            raise TypeError(
                f"query, key and value must share a dtype, got {query_BHSK.dtype} and a {tensor.dtype} {name}"
            )
        _check_device(name, tensor, query_BHSK)
    (B, H, _, K), (_, G, _, _) = query_BHSK.shape, key_BGTK.shape
    if key_BGTK.shape != value_BGTK.shape:
        raise ValueError(
            f"keys and values must have one shape, got {tuple(key_BGTK.shape)} and {tuple(value_BGTK.shape)}"
        )
    if key_BGTK.shape[0] != B or key_BGTK.shape[3] != K:
        raise ValueError(
            "queries and keys must have the same batch size and head width, got "
            f"{tuple(query_BHSK.shape)} and {tuple(key_BGTK.shape)}"
        )
    if G == 0 or H % G:
        raise ValueError(f"the number of query heads must be a multiple of that of key heads, got {H} and {G}")
    if K == 0:
        raise ValueError("a head must be at least 1 wide")


def _check_device(name: str, tensor: Tensor, query_BHSK: Tensor) -> None:
    if tensor.device != query_BHSK.device:
        raise ValueError(f"the {name} is on {tensor.device} and the query on {query_BHSK.device}; move one of them")


def _check_integers(name: str, numbers: Tensor, query_BHSK: Tensor) -> None:
    if numbers.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name} must be an int32 or int64 tensor, got {numbers.dtype}")
    _check_device(name, numbers, query_BHSK)


def _check_lengths(seqlens_B: Tensor, query_BHSK: Tensor, key_BGTK: Tensor) -> None:
    _check_integers("seqlens", seqlens_B, query_BHSK)
    B, T = key_BGTK.shape[0], key_BGTK.shape[2]
    if seqlens_B.shape != (B,):
        raise ValueError(f"seqlens needs one length per sequence, shape ({B},), got {tuple(seqlens_B.shape)}")
    # Values cannot be read while a graph is traced; there, bounds outside the keys are cut off.
    if not torch.compiler.is_compiling() and ((seqlens_B < 0) | (seqlens_B > T)).any():
        raise ValueError(f"seqlens must lie between 0 and the {T} key positions, got {seqlens_B.tolist()}")


def _check_packing(cu_seqlens: Tensor, query_BHSK: Tensor, key_BGTK: Tensor) -> None:
    _check_integers("cu_seqlens", cu_seqlens, query_BHSK)
    (B, _, S, _), T = query_BHSK.shape, key_BGTK.shape[2]
    if B != 1 or S != T:
        raise ValueError(
            "with cu_seqlens all sequences lie one after the other in a batch of 1, queries like keys; got batch "
            f"{B}, {S} queries and {T} keys"
        )
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
        raise ValueError(f"cu_seqlens must be [sequences + 1], 0 first, got shape {tuple(cu_seqlens.shape)}")
    if torch.compiler.is_compiling():
        return
    if int(cu_seqlens[0]) != 0 or int(cu_seqlens[-1]) != T or (cu_seqlens.diff() < 0).any():
        raise ValueError(
            f"cu_seqlens must cover the batch: rise from 0 to the number of tokens, {T}; got "
            f"{cu_seqlens.tolist() if len(cu_seqlens) < 20 else (int(cu_seqlens[0]), '...', int(cu_seqlens[-1]))}"
        )


def _checked_mask(mask: Tensor, query_BHSK: Tensor, key_BGTK: Tensor) -> Tensor:
    mask_BHST = fitting_mask(mask, query_BHSK, key_BGTK)
    _check_device("mask", mask, query_BHSK)
    return mask_BHST
