import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sibert.ops import affine_layer_norm, layer_norm
from tests.assertions import assert_homogeneous, assert_not_homogeneous


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 7), (1, 64), (4, 2)])
def test_agrees_with_torch_where_its_epsilon_does_not_matter(shape, dtype):
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    cotangent = torch.randn(shape, dtype=dtype)
    (ours,) = torch.autograd.grad(layer_norm(x), x, cotangent)
    (theirs,) = torch.autograd.grad(F.layer_norm(x, shape[-1:], eps=0.0), x, cotangent)
    torch.testing.assert_close(layer_norm(x), F.layer_norm(x, shape[-1:], eps=0.0))
    torch.testing.assert_close(ours, theirs, atol=1e-4 if dtype == torch.float32 else 1e-10, rtol=1e-3)


@given(exponent=st.integers(-60, 60), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_powers_of_two_change_no_bit(exponent, seed):
    x = torch.randn(4, 33, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(layer_norm(x * 2.0**exponent), layer_norm(x))


def test_degree_zero_and_the_epsilon_twin():
    x = torch.randn(4, 9, dtype=torch.float64)
    assert_homogeneous(lambda: layer_norm(x), [x], degree=0, scales=(1e-30, 1e-6, 7.0, 1e30))
    assert_not_homogeneous(lambda: F.layer_norm(x, (9,), eps=1e-5), [x], degree=0, c=1e-3)


def test_affine_has_degree_one_in_gain_and_bias_whatever_the_degree_of_the_input():
    x, weight, bias = torch.randn(4, 9).double(), torch.randn(9).double(), torch.randn(9).double()
    assert_homogeneous(lambda: affine_layer_norm(x, weight, bias), [x, weight, bias], degree=1)
    assert_homogeneous(lambda: affine_layer_norm(x, weight, bias), [weight, bias], degree=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("value", [0.0, 0.1, -3.3, 1e-30, 1e30])
def test_constant_rows_give_zero_output_and_zero_gradient(value, dtype):
    x = torch.full((2, 768), value, dtype=dtype)
    x[1] = torch.randn(768).to(dtype)
    x.requires_grad_()
    y = layer_norm(x)
    (gradient,) = torch.autograd.grad(y, x, torch.randn_like(y))
    assert (y[0] == 0).all()
    assert (gradient[0] == 0).all()
    assert y.isfinite().all()
    assert gradient.isfinite().all()
    assert (y[1] != 0).any()


def test_a_positive_variance_test_alone_would_blow_up_rounding_errors():
    row = torch.full((1, 768), 0.1)
    row[0, ::3] += 1e-8  # below half a unit in the last place of 0.1
    varied = row.clone()
    varied[0, 0] = torch.nextafter(torch.tensor(0.1), torch.tensor(1.0))
    assert varied.var() > 0
    assert (layer_norm(varied) == 0).all()


def test_small_but_true_variance_is_kept():
    row = torch.full((1, 64), 1.0)
    row[0, ::2] += 1e-4
    assert layer_norm(row).std(correction=0).item() == pytest.approx(1.0, rel=1e-2)


@pytest.mark.parametrize("scale", [1e-35, 1e-18, 1e15, 1e35])
def test_gradients_survive_extreme_scales(scale):
    x = (torch.randn(3, 40) * scale).requires_grad_()
    (gradient,) = torch.autograd.grad(layer_norm(x), x, torch.randn(3, 40) * min(scale, 1.0))
    assert gradient.isfinite().all()
    assert (gradient != 0).any()


def test_gradient_is_right_to_second_order():
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer_norm, x)
    assert torch.autograd.gradgradcheck(layer_norm, x)


def test_integers_are_refused():
    with pytest.raises(TypeError, match="floating-point"):
        layer_norm(torch.ones(2, 3, dtype=torch.long))
