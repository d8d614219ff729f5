import math

import pytest
import torch

from sibert.ops import rotary_positions, rotate
from tests.assertions import assert_homogeneous

POSITIONS = torch.tensor([[0, 1, 2, 700], [5, 3, 0, 1]])


def rotation(width=6, dtype=torch.float64, positions=POSITIONS):
    return rotary_positions(positions, width, 100.0, dtype)


def test_each_pair_is_multiplied_by_a_complex_number_of_its_own():
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    rotated = rotate(x, rotation())
    for b in range(2):
        for t in range(4):
            for pair in range(3):
                angle = float(POSITIONS[b, t]) * 100.0 ** (-2 * pair / 6)
                expected = torch.complex(x[b, :, t, pair], x[b, :, t, pair + 3]) * complex(
                    math.cos(angle), math.sin(angle)
                )
                torch.testing.assert_close(rotated[b, :, t, pair], expected.real)
                torch.testing.assert_close(rotated[b, :, t, pair + 3], expected.imag)


def test_inner_products_depend_on_differences_of_positions_alone():
    q, k = torch.randn(2, 1, 1, 1, 6, dtype=torch.float64)

    def score(s, t):
        at_s, at_t = (rotation(positions=torch.tensor([[p]])) for p in (s, t))
        return (rotate(q, at_s) * rotate(k, at_t)).sum()

    torch.testing.assert_close(score(3, 8), score(103, 108))
    assert not torch.isclose(score(3, 8), score(3, 9))
    assert not torch.isclose(score(3, 8), score(8, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norms_stay_and_powers_of_two_pass_through_exactly(dtype):
    x = torch.randn(2, 3, 4, 6, dtype=dtype)
    turned = rotate(x, rotation(dtype=dtype))
    assert turned.dtype == dtype
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(rotate(x * 2.0**-30, rotation(dtype=dtype)), turned * 2.0**-30)


def test_degree_and_gradient():
    x = torch.randn(2, 1, 4, 6, dtype=torch.float64, requires_grad=True)
    assert_homogeneous(lambda: rotate(x, rotation()), [x], degree=1)
    assert torch.autograd.gradcheck(lambda y: rotate(y, rotation()), x)


def test_half_precision_gets_angles_in_single_precision():
    positions = torch.tensor([[1001]])
    cos, _ = rotary_positions(positions, 2, 10_000.0, torch.bfloat16)
    assert cos.dtype == torch.bfloat16
    assert cos.item() == pytest.approx(math.cos(1001), abs=5e-3)
