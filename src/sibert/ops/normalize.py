"""Layer normalisation without an epsilon.

An epsilon inside a normalisation adds a constant of degree 0 to a variance of positive degree, so the result is no
longer invariant to the scale of the parameters, and once the parameters are small it is not even approximately so: the
residual stream of SIBERT has degree 2, its variance degree 4, and parameters at 1e-3 of their usual scale make that
variance 1e-12 of its usual value, far below the customary epsilon of 1e-12 or 1e-5.

What an epsilon is for, a row that is constant, is handled by a test that is itself homogeneous: a row has zero variance
if and only if

    var(x) <= (8 * machine_eps * max|x|)^2.

A test for `var > 0` would not do: a constant row of 0.1 in float32 has a variance of rounding errors and would be
normalised to entries of +-1. Rows of zero variance give output 0 and gradient 0.

Squares, and the third power of 1/std in the gradient, could overflow or underflow. So every row is first divided by
the power of two next to its largest entry, which cancels, exactly. Where the host may look at the rows, it sees that
this is not needed, nearly always, and leaves it to torch's fused kernel: that is the same bit for bit, since powers of
two do not round. For the same reason a scaling of x by a power of two never changes a bit of the result. A compiler
gets the same in operations that it can fuse and vectorise.

Shape suffixes: D = features, `_XD` = any leading dimensions and features, `_X1` = one number a row.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["affine_layer_norm", "layer_norm", "unit_rows"]

ZERO_VARIANCE_ULPS = 8.0
"""A row is constant when its standard deviation is at most this many machine epsilons of its largest entry."""


TRUSTED_RANGE = (2.0**-20, 2.0**20)
"""Norms and standard deviations in between need no scaling, in any dtype: their third powers are far from overflow."""


def layer_norm(input_XD: Tensor) -> Tensor:
    """Normalise the last dimension to mean 0 and variance 1, with no epsilon and no parameters.

    N(x) = (x - mean(x)) / std(x), and N(x) = 0 with gradient 0 where the row is constant to rounding. N has degree 0:
    N(c x) = N(x) for every c > 0, bit for bit when c is a power of two, and `<grad L(N(x)), x> = 0`.

    Args:
        input_XD: Floating-point tensor; rows run over the last dimension, D >= 1. Half-precision rows are normalised in
            float32 and the result is cast back.

    Returns:
        A tensor of the same shape and dtype.

    Raises:
        TypeError: If the input is not a floating-point tensor.

    References:
        Degree (x; 0) in Table 2 of arXiv 2202.00980.
    """
    x_XD = _wide(input_XD, "layer_norm")
    if _host_may_look(x_XD):
        output_XD, mean_X1, inverse_std_X1 = torch.native_layer_norm(x_XD, x_XD.shape[-1:], None, None, 0.0)
        if _is_ordinary(mean_X1.detach(), inverse_std_X1.detach(), torch.finfo(x_XD.dtype).eps):
            return output_XD.to(input_XD.dtype)
    return _any_layer_norm(x_XD).to(input_XD.dtype)


def _any_layer_norm(x_XD: Tensor) -> Tensor:
    """Normalise rows of any scale, constant ones among them."""
    if _fuses():
        return _fusible_layer_norm(x_XD)
    x_XD, _ = _at_unit_scale(x_XD)
    variance_X1, _ = torch.var_mean(x_XD.detach(), dim=-1, correction=0, keepdim=True)
    # The largest entry lies in [1, 2).
    largest_X1 = x_XD.detach().abs().amax(dim=-1, keepdim=True)
    constant_X1 = variance_X1 <= (ZERO_VARIANCE_ULPS * torch.finfo(x_XD.dtype).eps * largest_X1) ** 2
    # The inner `where` keeps 0/0 out of the gradient; the outer one makes output and gradient of such a row 0.
    ramp_D = torch.arange(x_XD.shape[-1], dtype=x_XD.dtype, device=x_XD.device)
    normalised_XD = F.layer_norm(torch.where(constant_X1, ramp_D, x_XD), x_XD.shape[-1:], eps=0.0)
    return torch.where(constant_X1, 0.0, normalised_XD)


def _fusible_layer_norm(x_XD: Tensor) -> Tensor:
    """Do the same in sums over a row, which a compiler fuses."""
    x_XD, _ = _at_unit_scale(x_XD)
    # Not var_mean: what the compiler makes of it takes three times as long backward.
    centred_XD = x_XD - x_XD.mean(dim=-1, keepdim=True)
    variance_X1 = centred_XD.square().mean(dim=-1, keepdim=True)
    largest_X1 = x_XD.detach().abs().amax(dim=-1, keepdim=True)
    constant_X1 = variance_X1 <= (ZERO_VARIANCE_ULPS * torch.finfo(x_XD.dtype).eps * largest_X1) ** 2
    # The inner `where` keeps 1/0 out of the gradient, the outer one makes the gradient of such a row 0.
    return centred_XD * torch.where(constant_X1, 0.0, torch.where(constant_X1, 1.0, variance_X1).rsqrt())


def _wide(input_XD: Tensor, caller: str) -> Tensor:
    if not input_XD.is_floating_point():
        raise TypeError(f"{caller} expects a floating-point tensor, got {input_XD.dtype}; convert it with .float()")
    return input_XD.float() if input_XD.dtype in (torch.float16, torch.bfloat16) else input_XD


def _host_may_look(tensor: Tensor) -> bool:
    """Say whether Python may branch on values: eager mode on the CPU, and no function transform at work."""
    return (
        tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and type(tensor) in (Tensor, torch.nn.Parameter)
    )


def _is_ordinary(mean_X1: Tensor, inverse_std_X1: Tensor, eps: float) -> bool:
    """Say whether every row has a trusted scale and is far from constant; NaN is not ordinary."""
    if not inverse_std_X1.numel():
        return True
    smallest, largest = TRUSTED_RANGE
    low, high = inverse_std_X1.aminmax()
    # The largest entry is at most |mean| + std sqrt(D); a hundredfold margin covers the second term.
    far_from_constant = (mean_X1 * inverse_std_X1).abs().amax() * (100 * ZERO_VARIANCE_ULPS * eps) < 1
    return bool((low > smallest) & (high < largest) & far_from_constant)


def _at_unit_scale(x_XD: Tensor) -> tuple[Tensor, Tensor]:
    """Divide each row by the power of two that brings its largest entry to [1, 2); a row of zeros stays.

    What follows has degree 0, so no gradient passes through the divisor: detaching it is exact. The second result is
    the largest entry as it was.
    """
    largest_X1 = x_XD.detach().abs().amax(dim=-1, keepdim=True)
    if _fuses():
        return x_XD * _inverse_power_of_two(largest_X1), largest_X1
    _, exponent_X1 = torch.frexp(torch.where(largest_X1 > 0, largest_X1, 1.0))
    # In two halves, because 2^149 is not a float32. And not ldexp(x, ...): torch 2.13 gets its gradient wrong.
    half_X1 = torch.div(exponent_X1 - 1, 2, rounding_mode="floor")
    one_X1 = torch.ones_like(largest_X1)
    x_XD = x_XD * torch.ldexp(one_X1, -half_X1) * torch.ldexp(one_X1, half_X1 - (exponent_X1 - 1))
    return x_XD, largest_X1


def _fuses() -> bool:
    """Say whether a compiler reads this, one that generates code: an exported graph is for reading."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def _inverse_power_of_two(size_X1: Tensor) -> Tensor:
    """Give the power of two that brings a number to [1, 2), from the bits of its exponent.

    A compiler computes it again for every entry of a row, and frexp and ldexp would be a call each. Numbers within a
    factor of four of the largest come to [2, 8), those below the smallest normal number stay below 1.
    """
    layouts = {torch.float32: (torch.int32, 23, 254), torch.float64: (torch.int64, 52, 2046)}
    integers, mantissa, top = layouts[size_X1.dtype]
    exponent_X1 = size_X1.view(integers) >> mantissa
    return ((top - exponent_X1).clamp(min=1) << mantissa).view(size_X1.dtype)


def unit_rows(input_XD: Tensor) -> Tensor:
    """Divide each row by its Euclidean norm: x/|x|, and 0 with gradient 0 where x = 0.

    Degree 0 in every row: multiplying row r by any c_r > 0 changes nothing, bit for bit where the c_r are powers of
    two, and the gradient of every row is orthogonal to it.

    Args:
        input_XD: Floating-point tensor; rows run over the last dimension. Half-precision rows are normalised in float32
            and the result is cast back.

    Returns:
        A tensor of the same shape and dtype.

    Raises:
        TypeError: If the input is not a floating-point tensor.
    """
    x_XD = _wide(input_XD, "unit_rows")
    if _host_may_look(x_XD):
        unit_XD, norm_X1 = _unit_and_norm(x_XD)
        smallest, largest = TRUSTED_RANGE
        if not norm_X1.numel() or bool(((norm_X1 > smallest) & (norm_X1 < largest)).all()):
            return unit_XD.to(input_XD.dtype)
    return _any_unit_rows(x_XD).to(input_XD.dtype)


class _UnitRows(torch.autograd.Function):
    """(x/|x|, |x|), with the gradient in four passes over memory instead of ten: decoders have large tables.

    With y = x/|x|: dy = (dx - <dx, y> y) / |x| and d|x| = <dx, y>; the first map is its own transpose. Both y and |x|
    are outputs, so that this may be differentiated again.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x_XD: Tensor) -> tuple[Tensor, Tensor]:
        norm_X1 = torch.linalg.vector_norm(x_XD, dim=-1, keepdim=True)
        return x_XD / norm_X1, norm_X1

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*output)
        ctx.save_for_forward(*output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_XD: Tensor | None, grad_norm_X1: Tensor | None) -> Tensor | None:
        y_XD, norm_X1 = ctx.saved_tensors
        gradient_XD = None if grad_XD is None else _project(grad_XD, y_XD)[0] / norm_X1
        if grad_norm_X1 is not None:
            through_norm_XD = grad_norm_X1 * y_XD
            gradient_XD = through_norm_XD if gradient_XD is None else gradient_XD + through_norm_XD
        return gradient_XD

    @staticmethod
    def jvp(ctx: Any, tangent_XD: Tensor) -> tuple[Tensor, Tensor]:
        y_XD, norm_X1 = ctx.saved_tensors
        projected_XD, radial_X1 = _project(tangent_XD, y_XD)
        return projected_XD / norm_X1, radial_X1


def _unit_and_norm(x_XD: Tensor) -> tuple[Tensor, Tensor]:
    if torch.compiler.is_compiling():  # the compiler fuses the passes itself, and cannot trace a function with a jvp
        norm_X1 = torch.linalg.vector_norm(x_XD, dim=-1, keepdim=True)
        return x_XD / norm_X1, norm_X1
    return cast(tuple[Tensor, Tensor], _UnitRows.apply(x_XD))  # type: ignore[no-untyped-call]  # torch does not type apply


def _project(g_XD: Tensor, y_XD: Tensor) -> tuple[Tensor, Tensor]:
    """Take its part along the unit vector y out of g; give both."""
    radial_X1 = torch.linalg.vecdot(g_XD, y_XD).unsqueeze(-1)
    return torch.addcmul(g_XD, y_XD, radial_X1, value=-1.0), radial_X1


def _any_unit_rows(x_XD: Tensor) -> Tensor:
    """Normalise rows of any scale, zero ones among them."""
    x_XD, largest_X1 = _at_unit_scale(x_XD)
    # A row of zeros gets another norm than 0 from entries that lie behind a `where`: no 0/0, also in the gradient.
    safe_XD = torch.where(largest_X1 > 0, x_XD, 1.0)
    return torch.where(largest_X1 > 0, _unit_and_norm(safe_XD)[0], 0.0)


def affine_layer_norm(input_XD: Tensor, weight_D: Tensor, bias_D: Tensor) -> Tensor:
    """Normalise the last dimension as `layer_norm` does, then scale and shift each feature.

    weight * N(x) + bias. With gain and bias counted among the parameters, both terms have degree 1, whatever the
    degree of x: (x; 1) in Table 2 of arXiv 2202.00980.

    Args:
        input_XD: Floating-point tensor; rows run over the last dimension.
        weight_D: Gain of each feature.
        bias_D: Shift of each feature.

    Returns:
        A tensor of the shape of the input.
    """
    return layer_norm(input_XD) * weight_D + bias_D
