import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sibert.optim import ClippedSGD, clipped_sgd
from sibert.optim.norm_bounds import NormBounds
from tests.optim.toys import invariant_loss, quadratic_loss, start


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    decay=st.floats(0.5, 1.0),
    length=st.floats(0.0, 0.3),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_the_norm_is_always_between_them(seed, decay, length, dtype):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(100, generator=generator).to(dtype)
    bounds = NormBounds([x])
    bounds.measured(x.double().norm().item())
    for _ in range(20):
        # Straight inwards or outwards as often as not: the worst cases of the triangle inequality.
        step = torch.randn(100, generator=generator).double() if seed % 2 else (-1) ** (seed // 2) * x.double()
        step *= length / step.norm() if step.norm() > 0 else 0.0
        x.copy_((decay * x.double() - step).to(dtype))
        bounds.follow_step(decay, step.norm().item())
        lower, upper = bounds.values()
        assert 0 <= lower <= x.double().norm().item() <= upper


def fused_step(x):
    x.grad = torch.ones_like(x)
    torch.optim.AdamW([x], fused=True).step()


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.mul_(0.1),
        lambda x: x[0].mul_(0.1),
        lambda x: x.data.mul_(0.1),
        lambda x: setattr(x, "data", torch.ones(3)),
        fused_step,
    ],
    ids=["in place", "a part", "through data", "other data", "fused optimizer"],
)
def test_a_change_from_outside_voids_it(change):
    x = torch.nn.Parameter(torch.ones(3)).requires_grad_(False)
    bounds = NormBounds([x])
    bounds.measured(1.7)
    assert bounds.values()[0] > 1.6
    change(x)
    assert bounds.values() == (0.0, math.inf)


@pytest.mark.parametrize("shape", [(4, 3), (30, 500), (500, 30), (8, 16, 64)], ids=str)
def test_a_row_or_column_changed_through_data_voids_it(shape):
    for axis in range(len(shape)):
        for place in range(min(shape[axis], 30)):
            x = torch.nn.Parameter(torch.ones(shape))
            bounds = NormBounds([x])
            bounds.measured(x.norm().item())
            assert bounds.values()[0] > 0
            if shape[axis] <= 30:
                x.data.select(axis, place).mul_(0.5)
            else:
                x.data.narrow(axis, place, 30).mul_(0.5)
            assert bounds.values() == (0.0, math.inf), (axis, place)


@pytest.mark.parametrize("place", range(8))
def test_each_of_the_eight_largest_is_watched(place):
    tensors = [torch.nn.Parameter(torch.ones(10 - size)) for size in range(9)]
    bounds = NormBounds(tensors)
    bounds.measured(7.0)
    assert bounds.values()[0] > 0
    tensors[place].data.mul_(0.5)
    assert bounds.values() == (0.0, math.inf)


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("loss", [invariant_loss, quadratic_loss])
def test_it_saves_most_measurements_and_changes_no_bit(loss, two_sided, monkeypatch):
    measured = []
    original = clipped_sgd.squared_norm

    def counted(tensors, *args, **kwargs):
        measured.append(any(isinstance(tensor, torch.nn.Parameter) for tensor in tensors))
        return original(tensors, *args, **kwargs)

    monkeypatch.setattr(clipped_sgd, "squared_norm", counted)
    results, counts = [], []
    for scale_invariant in (True, False):
        x = torch.nn.Parameter(start(dtype=torch.float32))
        group = {"params": [x], "scale_invariant": scale_invariant}
        optimizer = ClippedSGD([group], intrinsic_lr=1e-4, two_sided=two_sided)
        measured.clear()
        for step in range(200):
            optimizer.zero_grad()
            ((100.0 if step % 50 == 20 else 1.0) * loss(x, step)).backward()
            optimizer.step()
        results.append(x.detach())
        counts.append(sum(measured))
    assert torch.equal(*results)
    assert counts[0] < (60 if loss is invariant_loss else 200)
    assert counts[1] == 200
