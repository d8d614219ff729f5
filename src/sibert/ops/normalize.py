"""Layer normalisation without an epsilon.

An epsilon inside a normalisation adds a constant of degree 0 to a variance of positive degree, so the result is no
longer invariant to the scale of the parameters, and once the parameters are small it is not even approximately so: the
residual stream of SIBERT has degree 2, its variance degree 4, and parameters at 1e-3 of their usual scale make that
variance 1e-12 of its usual value, far below the customary epsilon of 1e-12 or 1e-5.

What an epsilon is for, a row that is constant, is handled by a test that is itself homogeneous: every row is first
divided by its largest absolute entry, and then has zero variance if and only if

    var <= (8 * machine_eps)^2        which is        var(x) <= (8 * machine_eps * max|x|)^2        for the row itself.

A test for `var > 0` would not do: a constant row of 0.1 in float32 has a variance of rounding errors and would be
normalised to entries of +-1. Rows of zero variance give output 0 and gradient 0.

The division has two more uses. The squares, and the third power of 1/std in the gradient, can neither overflow nor
underflow, whatever the scale of x. And a scaling of x by a power of two cancels exactly in it, so the result is the
same bit for bit.

Shape suffixes: D = features, `_XD` = any leading dimensions and features, `_X1` = one number a row.
"""

import torch
from torch import Tensor

__all__ = ["affine_layer_norm", "layer_norm", "unit_rows"]

ZERO_VARIANCE_ULPS = 8.0
"""A row is constant when its standard deviation is at most this many machine epsilons of its largest entry."""


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
    if not input_XD.is_floating_point():
        raise TypeError(f"layer_norm expects a floating-point tensor, got {input_XD.dtype}; convert it with .float()")
    x_XD = input_XD.float() if input_XD.dtype in (torch.float16, torch.bfloat16) else input_XD
    # N does not depend on the scale of x, so no gradient passes through the divisor: detaching it is exact.
    largest_X1 = x_XD.detach().abs().amax(dim=-1, keepdim=True)
    x_XD = x_XD / torch.where(largest_X1 > 0, largest_X1, 1.0)
    centred_XD = x_XD - x_XD.mean(dim=-1, keepdim=True)
    variance_X1 = centred_XD.square().mean(dim=-1, keepdim=True)
    constant_X1 = variance_X1 <= (ZERO_VARIANCE_ULPS * torch.finfo(x_XD.dtype).eps) ** 2
    # The inner `where` keeps 0/0 out of the gradient; the outer one makes output and gradient of such a row 0.
    inverse_std_X1 = torch.where(constant_X1, 0.0, torch.where(constant_X1, 1.0, variance_X1).sqrt().reciprocal())
    return (centred_XD * inverse_std_X1).to(input_XD.dtype)


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
    if not input_XD.is_floating_point():
        raise TypeError(f"unit_rows expects a floating-point tensor, got {input_XD.dtype}; convert it with .float()")
    x_XD = input_XD.float() if input_XD.dtype in (torch.float16, torch.bfloat16) else input_XD
    # As in `layer_norm`: the largest entry cancels, so squares neither overflow nor underflow.
    largest_X1 = x_XD.detach().abs().amax(dim=-1, keepdim=True)
    x_XD = x_XD / torch.where(largest_X1 > 0, largest_X1, 1.0)
    norm_X1 = torch.linalg.vector_norm(x_XD, dim=-1, keepdim=True)
    return (x_XD / torch.where(largest_X1 > 0, norm_X1, 1.0)).to(input_XD.dtype)


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
