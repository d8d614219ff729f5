"""Tensor functions that are exactly homogeneous: no additive epsilon anywhere. Knows torch alone."""

from sibert.ops.cosine_attention import cosine_attention
from sibert.ops.normalize import affine_layer_norm, layer_norm, unit_rows
from sibert.ops.relu_attention import Choice, choose_backend, relu_attention
from sibert.ops.rotary import rotary_positions, rotate

__all__ = [
    "Choice",
    "affine_layer_norm",
    "choose_backend",
    "cosine_attention",
    "layer_norm",
    "relu_attention",
    "rotary_positions",
    "rotate",
    "unit_rows",
]
