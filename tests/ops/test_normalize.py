import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sibert.ops import affine_layer_norm, layer_norm, normalize, unit_rows
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


@pytest.mark.parametrize("function", [layer_norm, unit_rows])
@given(exponents=st.lists(st.integers(-60, 60), min_size=4, max_size=4), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_powers_of_two_for_each_row_change_no_bit_of_output_and_gradient(function, exponents, seed):
    """Also where the host sees that one row needs care, and all of them take the careful way."""
    generator = torch.Generator().manual_seed(seed)
    x, cotangent = torch.randn(4, 33, generator=generator), torch.randn(4, 33, generator=generator)
    factors = 2.0 ** torch.tensor(exponents)[:, None]
    x.requires_grad_()
    scaled = (x.detach() * factors).requires_grad_()
    y, scaled_y = function(x), function(scaled)
    assert torch.equal(scaled_y, y)
    (gradient,), (scaled_gradient,) = (
        torch.autograd.grad(out, leaf, cotangent) for out, leaf in ((y, x), (scaled_y, scaled))
    )
    assert torch.equal(scaled_gradient * factors, gradient)


@pytest.mark.parametrize("function", [layer_norm, unit_rows])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_way_without_a_look_gives_the_same_bits(function, dtype, monkeypatch):
    """What the host decides on the CPU, tensors decide elsewhere."""
    x = torch.randn(5, 7, 33, dtype=dtype, requires_grad=True)
    cotangent = torch.randn(5, 7, 33, dtype=dtype)
    fast = function(x)
    monkeypatch.setattr(normalize, "_host_may_look", lambda _: False)
    careful = function(x)
    assert torch.equal(fast, careful)
    for one, other in zip(*(torch.autograd.grad(y, x, cotangent) for y in (fast, careful)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e-20, 1.0, 1e20, 3e38])
def test_unit_rows_have_norm_one_at_any_scale_and_zero_stays_zero(scale):
    x = torch.nn.functional.normalize(torch.randn(3, 40), dim=1) * scale
    x[1] = 0.0
    x.requires_grad_()
    y = unit_rows(x)
    (gradient,) = torch.autograd.grad(y, x, torch.randn_like(y) * min(scale, 1.0))
    norms = y.detach().norm(dim=1)
    assert norms[1] == 0
    if scale:
        torch.testing.assert_close(norms[[0, 2]], torch.ones(2))
    assert (gradient[1] == 0).all()
    assert gradient.isfinite().all()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's forward mode calls it
def test_unit_rows_have_degree_zero_and_a_gradient_that_is_right_to_second_order():
    x = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        assert_homogeneous(lambda: unit_rows(x), [x], degree=0, scales=(1e-30, 1e-6, 7.0, 1e30))
    assert torch.autograd.gradcheck(unit_rows, x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(unit_rows, x)


def test_per_sample_gradients_work():
    def loss(x):
        return layer_norm(x).square().sum() + unit_rows(x)[0]

    x = torch.randn(3, 8)
    each = torch.stack([torch.func.grad(loss)(row) for row in x])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(x), each)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's forward mode calls it
def test_forward_mode_agrees_with_reverse_mode():
    x, tangent = torch.randn(3, 8, dtype=torch.float64), torch.randn(3, 8, dtype=torch.float64)
    _, forward = torch.func.jvp(unit_rows, (x,), (tangent,))
    reverse = torch.einsum("abcd,cd->ab", torch.func.jacrev(unit_rows)(x), tangent)
    torch.testing.assert_close(forward, reverse)


@pytest.mark.parametrize("function", [layer_norm, unit_rows])
def test_integers_are_refused(function):
    with pytest.raises(TypeError, match=f"{function.__name__} expects a floating-point tensor"):
        function(torch.ones(2, 3, dtype=torch.long))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("function", [layer_norm, unit_rows])
def test_a_compiler_gets_the_same_at_any_scale(function, dtype):
    """Rows of zeros, rows that are constant, and powers of two, which change no bit, among them."""
    torch.compiler.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 33, generator=generator, dtype=torch.float64).to(dtype)
    x[3], x[4] = 0.0, 0.1
    weights = torch.randn(9, 33, generator=generator, dtype=torch.float64).to(dtype)
    found = {}
    for power in (0, 60, -60, 100, -100):
        ours, theirs = ((2.0**power * x).requires_grad_() for _ in range(2))
        for f, leaf in ((compiled, ours), (function, theirs)):
            output = f(leaf)
            (output * weights).sum().backward()
            found[f, power] = (output.detach(), leaf.grad * 2.0**power)
        for one, other in zip(found[compiled, power], found[function, power], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=100 * torch.finfo(dtype).eps)
        assert torch.equal(found[compiled, power][0], found[compiled, 0][0])
