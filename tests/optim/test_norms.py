import math

import pytest
import torch

from sibert.optim.norms import ROW, home_of, squared_norm, squared_norms_on_host

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


@pytest.mark.parametrize("size", [1e-30, 1e-25, 1e-21, 1e25, 1e38])
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


def groups_of_all_lengths(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [
        [(1,)],
        [(7, 3), (2 * ROW,), (0,)],
        [(3 * ROW + 5,), (40, 60), (2, ROW)],
        [(2 * ROW - 1,)],
        [(ROW, 2)],
        [(0,)],
    ]
    return [[torch.randn(shape, generator=generator).to(dtype) for shape in group] for group in shapes]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_norms_of_many_groups_are_those_of_each(dtype):
    groups = groups_of_all_lengths(dtype)
    groups[2][1] = groups[2][1].t()
    expected = [squared_norm(group, CPU, wide=True).item() for group in groups]
    assert squared_norms_on_host(groups) == pytest.approx(expected, rel=1e-5)
    alone = [squared_norms_on_host([group])[0] for group in groups]
    assert squared_norms_on_host(groups) == alone  # to the last bit


@pytest.mark.parametrize("size", [1e-30, 1e-21, 1e25])
def test_a_group_beyond_the_range_of_float32_is_counted_among_others(size):
    groups = groups_of_all_lengths()
    groups[2] = [torch.full((3 * ROW + 5,), size), torch.full((9,), size)]
    found = squared_norms_on_host(groups)
    assert found[2] == pytest.approx((3 * ROW + 14) * groups[2][0][0].double().item() ** 2)
    groups[3][0][-1] = math.nan
    assert [math.isfinite(square) for square in squared_norms_on_host(groups)] == [True, True, True, False, True, True]


def test_groups_of_several_dtypes_go_one_by_one():
    groups = [[torch.ones(3), torch.ones(4, dtype=torch.float64)], [torch.ones(2 * ROW).bfloat16()]]
    assert squared_norms_on_host(groups) == pytest.approx([7.0, 2.0 * ROW])
