import math

import pytest
import torch

from sibert.optim.norms import ROW, home_of, squared_norm

CPU = torch.device("cpu")
HALF_RANGE = {torch.float16: 1e-3}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shapes", [[(1,)], [(7, 3), (5,)], [(ROW,)], [(ROW + 1,), (2, ROW), (3,)], [(0,), (4,)]])
def test_the_norm_is_that_of_one_long_vector(shapes, dtype):
    tensors = [torch.randn(shape).to(dtype) for shape in shapes]
    expected = torch.cat([tensor.double().flatten() for tensor in tensors]).square().sum()
    for wide in (False, True):
        result = squared_norm(tensors, CPU, wide=wide)
        assert result.dtype == torch.float64
        torch.testing.assert_close(result, expected, rtol=1e-14 if wide else 1e-5, atol=0)


def test_layout_in_memory_does_not_matter():
    x = torch.randn(40, 60)
    for view in (x.t(), x[::2], x.t().contiguous()):
        assert squared_norm([view], CPU).item() == pytest.approx(view.double().square().sum().item(), rel=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1e-25, 1e25, 1e38])
def test_squares_beyond_the_range_of_float32_are_counted(size):
    x = torch.full((5000,), size)
    assert squared_norm([x], CPU).item() == pytest.approx(5000 * x[0].double().item() ** 2)


def test_a_float32_norm_would_lose_them():
    assert torch.full((5000,), 1e-30).norm() == 0
    assert torch.full((5000,), 1e38).norm() == math.inf


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("position", [0, ROW, 2 * ROW + 1])
def test_it_is_finite_if_and_only_if_every_entry_is(bad, dtype, position):
    x = torch.ones(2 * ROW + 2, dtype=dtype)
    assert squared_norm([x], CPU).isfinite()
    x[position] = bad
    assert not squared_norm([x], CPU).isfinite()


def test_millions_of_entries_do_not_pile_up_rounding_errors():
    x = torch.full((1 << 22,), 0.1)
    assert squared_norm([x], CPU).item() == pytest.approx((1 << 22) * x[0].double().item() ** 2, rel=1e-5)


def test_nothing_has_norm_zero():
    assert squared_norm([], CPU).item() == 0
    assert squared_norm([torch.zeros(10)], CPU).item() == 0
    assert home_of([torch.zeros(1)]) == CPU
