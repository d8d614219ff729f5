"""The descent kernel, run on the CPU by triton's interpreter: test_descent.py starts this file in a process."""

import math
import os

import pytest
import torch

from sibert.ops.descent import BLOCK, descend_together, fits_kernel, kernel_runs_on
from sibert.optim import ClippedSGD, synchronisation, updates

assert os.environ["TRITON_INTERPRET"] == "1"
SHAPES = [(33, 5), (BLOCK + 1,), (7,), (3, BLOCK // 2, 2), (1,), (2 * BLOCK,)]
OWNERS = [0, 1, 0, 2, 3, 1]


def case(dtype, rows):
    generator = torch.Generator().manual_seed(0)
    parameters, gradients = ([torch.randn(s, generator=generator).to(dtype) for s in SHAPES] for _ in range(2))
    firsts = [sum(shape[0] for shape in SHAPES[:k]) for k in range(len(SHAPES))] if rows else OWNERS
    vectors = sum(shape[0] for shape in SHAPES) if rows else max(OWNERS) + 1
    numbers = [torch.rand(vectors, generator=generator, dtype=torch.float64) for _ in range(2)]
    moves_I = torch.rand(vectors, generator=generator) > 0.3
    return parameters, gradients, firsts, *numbers, moves_I


def by_the_formula(parameters, gradients, firsts, gamma_I, step_I, moves_I, rows):
    results = []
    for x, g, first in zip(parameters, gradients, firsts, strict=True):
        at = slice(first, first + len(x)) if rows else slice(first, first + 1)
        gamma, step, moves = (number_I[at].view(-1, *[1] * (x.dim() - 1)) for number_I in (gamma_I, step_I, moves_I))
        results.append(torch.where(moves, x.double() - (gamma * x.double() + step * g.double()), x.double()))
    return results


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kernel_is_the_formula(dtype, rows):
    parameters, gradients, *rest = case(dtype, rows)
    expected = by_the_formula(parameters, gradients, *rest, rows)
    versions = [p._version for p in parameters]
    assert all(fits_kernel(p, g) for p, g in zip(parameters, gradients, strict=True))
    descend_together(parameters, gradients, *rest, rows=rows)
    for parameter, value in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.double(), value, rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=1e-6)
    assert [p._version for p in parameters] == [version + 1 for version in versions]


@pytest.mark.parametrize("rows", [False, True])
def test_where_nothing_moves_no_bit_changes_whatever_the_gradient(rows):
    parameters, gradients, firsts, gamma_I, step_I, moves_I = case(torch.float32, rows)
    parameters[0].view(-1)[::2] = -0.0
    before = [p.clone() for p in parameters]
    for gradient in gradients:
        gradient.fill_(math.nan)
    descend_together(parameters, gradients, firsts, gamma_I, step_I, torch.zeros_like(moves_I), rows=rows)
    bits = torch.int32
    assert all(torch.equal(p.view(bits), old.view(bits)) for p, old in zip(parameters, before, strict=True))


def test_what_the_kernel_does_not_take():
    x = torch.randn(8, 4)
    assert fits_kernel(x, x.clone())
    assert not fits_kernel(x, x.double())
    assert not fits_kernel(x.t(), x.t())
    assert not fits_kernel(x.bfloat16(), x.bfloat16())
    assert not fits_kernel(x[1:, :1].reshape(-1)[:0], x.reshape(-1)[:0])
    flat = torch.randn(9)
    assert not fits_kernel(flat[1:], flat[1:].clone())  # its address is no multiple of 16 bytes
    assert kernel_runs_on(torch.device("cpu"))
    assert not kernel_runs_on(torch.device("meta"))


def train(implementation, rows, dtype=torch.float32, steps=6):
    """The third step is clipped, the fifth has a gradient that is not finite, one tensor has no gradient in some."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(6, 5), (6,), (9, 3), (4,), (4, 700)]
    parameters = [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]
    groups = [parameters[:2], parameters[2:3], parameters[3:]]
    optimizer = ClippedSGD(
        [{"params": ps, "rows": rows} for ps in groups], intrinsic_lr=0.05, implementation=implementation
    )
    for number in range(steps):
        for p in parameters:
            p.grad = (50.0 if number == 2 else 1.0) * torch.randn(p.shape, generator=generator).to(dtype)
        if number == 3:
            parameters[0].grad = None
        if number == 4:
            parameters[-1].grad[0, 0] = math.inf
        optimizer.step()
    return parameters, optimizer


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whole_optimizers_agree(rows, dtype, monkeypatch):
    expected, reference = train("reference", rows, dtype)
    monkeypatch.setattr(synchronisation, "host_may_read", lambda device: False)
    launched = []
    module = __import__("sibert.optim.rows" if rows else "sibert.optim.updates", fromlist=["descend_together"])
    monkeypatch.setattr(
        module, "descend_together", lambda *args, **kw: (launched.append(1), descend_together(*args, **kw))
    )
    results, optimizer = train(None, rows, dtype)
    assert len(launched) == 6  # one launch a step for all groups
    for p, q in zip(results, expected, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(optimizer.statistics(), reference.statistics(), strict=True):
        assert (ours.steps, ours.skipped_steps) == (5, 1)
        assert ours.clipped_fraction == theirs.clipped_fraction
        assert ours.param_norm == pytest.approx(theirs.param_norm, rel=1e-5)
        assert ours.angular_update == pytest.approx(theirs.angular_update, rel=1e-5)


def test_a_foreach_step_does_not_use_it(monkeypatch):
    """The negative twin."""
    monkeypatch.setattr(synchronisation, "host_may_read", lambda device: False)
    monkeypatch.setattr(updates, "descend_together", None)
    train("foreach", rows=False)
    with pytest.raises(TypeError):
        train(None, rows=False)
