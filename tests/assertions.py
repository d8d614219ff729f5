"""Domain assertions: tests state the property, and their negative twins its failure."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

INVARIANCE_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Relative Frobenius norm of the change of an output under rescaling; rounding, amplified by the depth of the model."""


def relative_change(new: Tensor, old: Tensor) -> float:
    """Relative Frobenius norm of a difference; NaN counts as infinitely far."""
    distance = ((new - old).norm() / old.norm()).item()
    return distance if distance == distance else float("inf")


@contextmanager
def scaled(parameters: Iterable[Tensor], c: float) -> Iterator[None]:
    """Multiply parameters by c inside a `with` block, then put the old values back."""
    parameters = list(parameters)
    old = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter in parameters:
            parameter.mul_(c)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, old, strict=True):
                parameter.copy_(value)


def homogeneity_error(f: Callable[[], Tensor], parameters: Iterable[Tensor], degree: float, c: float) -> float:
    """How far f(c x) is from c^degree f(x), relatively."""
    parameters = list(parameters)
    with torch.no_grad():
        old = f().clone()
        with scaled(parameters, c):
            return relative_change(f() / c**degree, old)


def assert_homogeneous(
    f: Callable[[], Tensor],
    parameters: Iterable[Tensor],
    degree: float,
    scales: Iterable[float] = (0.01, 0.5, 3.0, 100.0),
) -> None:
    """Assert f(c x) = c^degree f(x) for several c."""
    parameters = list(parameters)
    for c in scales:
        error = homogeneity_error(f, parameters, degree, c)
        assert error <= 1e-10, f"degree {degree} fails at c = {c}: relative error {error:.1e}"


def assert_not_homogeneous(
    f: Callable[[], Tensor], parameters: Iterable[Tensor], degree: float, c: float = 3.0
) -> None:
    """Assert that the property fails, visibly."""
    error = homogeneity_error(f, parameters, degree, c)
    assert error > 1e-4, f"expected degree {degree} to fail at c = {c}, but the relative error is only {error:.1e}"


def euler_residual(loss: Tensor, parameters: Iterable[nn.Parameter]) -> float:
    """|<grad L(x), x>| / (|grad L| |x|): 0 for a scale-invariant loss."""
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    pairs = [(g, x) for g, x in zip(gradients, parameters, strict=True) if g is not None]
    inner = sum((g * x).sum() for g, x in pairs)
    norms = sum(g.square().sum() for g, _ in pairs).sqrt() * sum(x.square().sum() for _, x in pairs).sqrt()
    return (inner.abs() / norms).item()
