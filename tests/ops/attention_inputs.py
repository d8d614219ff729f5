"""Queries, keys, values and masks of odd sizes, for the tests of every attention."""

import torch

SHAPES = [(1, 1, 1, 1, 1), (2, 3, 7, 5, 4), (1, 2, 63, 111, 20), (3, 1, 8, 8, 16)]
"""B, H, S, T, K."""


def draw(shape, dtype=torch.float64):
    B, H, S, T, K = shape
    return tuple(torch.randn(B, H, length, K, dtype=dtype, requires_grad=True) for length in (S, T, T))


def masks(shape):
    B, H, S, T, _ = shape
    padding = torch.rand(B, T) < 0.7
    padding[0] = False  # a fully padded sequence
    return {"none": None, "padding": padding, "full": torch.rand(B, H, S, T) < 0.5, "keys": padding[:, None, None, :]}
