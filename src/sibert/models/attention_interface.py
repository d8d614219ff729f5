"""Normalised-ReLU attention as an `attn_implementation` of transformers: any of its models without softmax.

    AutoModelForCausalLM.from_config(config, attn_implementation="relu_normalized")

The attention function and the mask function are registered together: with the first alone, transformers hands over no
mask, and padding is attended to without a word.

Shape suffixes: B = batch, H = query heads, G = key and value heads, S = query positions, T = key positions, K = head
width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from sibert.ops import relu_attention

__all__ = ["NAME", "relu_normalized_attention"]

NAME = "relu_normalized"

WITHOUT_MEANING = {
    "position_bias": "it adds a bias to the scores (T5 and its kin)",
    "softcap": "it bounds the scores by tanh",
    "s_aux": "it adds a sink to the sum of each row",
    "sinks": "it adds a sink to the sum of each row",
}
"""What some models add to scores, none of which is homogeneous in queries and keys."""


def relu_normalized_attention(
    module: nn.Module,
    query_BHSK: Tensor,
    key_BGTK: Tensor,
    value_BGTK: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend as `sibert.ops.relu_attention` does, behind the interface of transformers.

    Args:
        module: The layer that calls; `module.is_causal` counts where neither `is_causal` nor a mask is given.
        query_BHSK: Queries.
        key_BGTK: Keys, of as many heads or fewer.
        value_BGTK: Values.
        attention_mask: Boolean (True = attend) or additive (0 = attend, anything negative = not), [B or 1, H or 1, S,
            T]; it holds causality and windows too. None = causal or everything.
        dropout: Dropout probability of the normalised weights.
        scaling: Factor of the scores, which cancels.
        is_causal: Whether to attend to no later key, where there is no mask; None = what the module says.
        sliding_window: A query attends to keys less than this far away, where there is no mask.
        cu_seq_lens_q: Bounds of sequences packed into a batch of 1; they count beside a mask, too: that of transformers
            holds causality and windows, and knows of packed sequences only what position_ids say.
        cu_seq_lens_k: The same for keys; must be equal.
        **kwargs: `output_attentions` returns the weights; other arguments of transformers are not needed.

    Returns:
        Output [B, S, H, K] and the weights [B, H, S, T], or None.

    Raises:
        ValueError: If the model adds something to its scores, or scales them by a number that is not positive.
    """
    for name, what in WITHOUT_MEANING.items():
        if kwargs.get(name) is not None:
            raise ValueError(
                f"{type(module).__name__} passes {name}: {what}, and normalised-ReLU attention would no longer be "
                "invariant to the scale of queries and keys; use attn_implementation='eager' for this model"
            )
    if isinstance(scaling, int | float) and not scaling > 0:
        raise ValueError(f"a factor of the scores cancels only if it is positive, got scaling={scaling}")
    options: dict[str, Any] = {}
    if attention_mask is not None:
        if attention_mask.dtype != torch.bool:
            attention_mask = attention_mask >= 0
        attention_mask = attention_mask[..., : key_BGTK.shape[2]]
    else:
        options, key_BGTK, value_BGTK = _without_mask(module, query_BHSK, key_BGTK, value_BGTK, is_causal)
        options["window"] = sliding_window
    if cu_seq_lens_q is not None:
        if cu_seq_lens_k is not None and cu_seq_lens_k.shape != cu_seq_lens_q.shape:
            raise ValueError("queries and keys must be packed alike: cu_seq_lens_q and cu_seq_lens_k differ")
        options["cu_seqlens"] = cu_seq_lens_q
    output_BHSK, weights_BHST = relu_attention(
        query_BHSK,
        key_BGTK,
        value_BGTK,
        attention_mask,
        dropout_p=dropout,
        need_weights=bool(kwargs.get("output_attentions", False)),
        **options,
    )
    return output_BHSK.transpose(1, 2).contiguous(), weights_BHST


def _without_mask(
    module: nn.Module, query_BHSK: Tensor, key_BGTK: Tensor, value_BGTK: Tensor, is_causal: bool | None
) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Find out whether "no mask" means "causal", as transformers does for F.scaled_dot_product_attention."""
    S = query_BHSK.shape[2]
    causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
    if not causal or S == 1:  # a single query is the newest token: it sees everything
        return {}, key_BGTK, value_BGTK
    # More keys than queries are the empty places of a static cache: they follow the keys of these queries.
    return {"causal": True}, key_BGTK[:, :, :S], value_BGTK[:, :, :S]


AttentionInterface.register(NAME, relu_normalized_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
