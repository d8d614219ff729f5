"""A step needs room for a piece of a parameter, not for a copy of it."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sibert.optim import ClippedSGD
from sibert.optim.rows import PIECE as PIECE_OF_ROWS
from sibert.optim.updates import PIECE


class LargestNewTensor(TorchDispatchMode):
    """Watches the entries of the largest tensor that is made (views and in-place results are none)."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in known:
            self.entries = max(self.entries, result.numel())
        return result


def largest(dtype, rows, implementation=None):
    x = nn.Parameter(torch.randn(1024, 2048, generator=torch.Generator().manual_seed(0)).to(dtype))
    optimizer = ClippedSGD([{"params": [x], "rows": rows}], intrinsic_lr=1e-3, implementation=implementation)
    x.grad = torch.ones_like(x)
    with LargestNewTensor() as watched:
        optimizer.step()
    return watched.entries / x.numel()


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_temporaries_are_a_piece_of_a_parameter(dtype, rows):
    assert max(PIECE, PIECE_OF_ROWS) <= 2**21 / 8
    assert largest(dtype, rows) <= 1 / 8


def test_the_reference_makes_a_copy():
    """The negative twin."""
    assert largest(torch.float32, False, "reference") >= 1
