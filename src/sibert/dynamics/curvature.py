"""Curvature of a loss where a model is: eigenvalues at both ends, trace, alignment with the gradient, and the sphere.

H is the Hessian of the mean loss of some batches in the chosen parameters, known by its products with vectors, which
are second derivatives by double backward. Gradient descent with rate eta is stable in a direction of curvature h while
eta h <= 2; near the end of training the largest eigenvalue often hovers there (the edge of stability).

For a group x to whose scale the loss is invariant, H shrinks like 1 / |x|^2 as x grows, and only |x|^2 H means
something: the spherical sharpness |x|^2 lambda_1(H), whose line of stability is 2 |x|^2 / eta, with weight decay
2 (1 - eta lambda) |x|^2 / eta.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sibert.dynamics.observation import observed, observed_parameters, seed_observed
from sibert.dynamics.radial import radial_tolerance

__all__ = ["Estimate", "Hessian", "stability_line"]


@dataclass(frozen=True)
class Estimate:
    """A mean of random samples.

    Attributes:
        value: The mean; of a Hessian's trace in units of the loss per squared parameter.
        error: Its standard error, in the same unit.
    """

    value: float
    error: float


class Hessian:
    """The Hessian of a loss in some parameters, at their values now; as wide as they have entries, never written down.

    Model, `.grad` and random numbers stay as they are. Attention falls back to torch's plain kernel, for the fused ones
    cannot be differentiated twice. Exact to the rounding of the parameters' dtype: take float64 for small eigenvalues.

    Args:
        model: Any module.
        loss: Mean loss of a batch as a scalar: `lambda batch: model(**batch).loss`. Batches weigh the same.
        batches: Over which the loss is averaged.
        parameters: In which it is differentiated, each once, however often it is named; None = all trainable ones.

    Raises:
        ValueError: If the loss is random (dropout) or not finite, or there is nothing to differentiate.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any], Tensor],
        batches: Sequence[Any],
        parameters: Sequence[nn.Parameter] | None = None,
    ) -> None:
        self.model, self.loss, self.batches = model, loss, list(batches)
        chosen = observed_parameters(model, parameters)
        if not chosen or not self.batches:
            raise ValueError("there is nothing to differentiate: give trainable parameters and at least one batch")
        self.parameters = chosen
        self.size = sum(p.numel() for p in chosen)
        self._check_determinism()

    def gradient(self) -> Tensor:
        """The gradient of the loss, [size]."""
        total = torch.zeros(self.size, dtype=self.parameters[0].dtype, device=self.parameters[0].device)
        with self._evaluation():
            for batch in self.batches:
                total += self._flat(self._gradients(batch, twice=False)) / len(self.batches)
        return total

    def __matmul__(self, vector: Tensor) -> Tensor:
        """H v.

        Args:
            vector: [size].

        Returns:
            [size].
        """
        if vector.shape != (self.size,):
            raise ValueError(f"the vector must have the shape ({self.size},), got {tuple(vector.shape)}")
        sizes = [p.numel() for p in self.parameters]
        parts = [v.view_as(p) for v, p in zip(torch.split(vector, sizes), self.parameters, strict=True)]
        total = torch.zeros_like(vector)
        with self._evaluation():
            for batch in self.batches:
                gradients = self._gradients(batch, twice=True)
                with torch.enable_grad():
                    product = sum((g * v.to(g)).sum() for g, v in zip(gradients, parts, strict=True))
                assert isinstance(product, Tensor)
                if product.requires_grad:  # otherwise the loss is linear in the parameters
                    found = torch.autograd.grad(product, self.parameters, allow_unused=True)
                    total += self._flat(found).to(total) / len(self.batches)
        return total

    def eigenvalues(
        self, count: int = 1, smallest: bool = False, tolerance: float = 1e-6, seed: int = 0
    ) -> list[float]:
        """Eigenvalues at one end, by Lanczos' method (ARPACK, which reorthogonalises).

        Args:
            count: How many.
            smallest: The smallest (most negative) instead of the largest.
            tolerance: Relative to the largest in magnitude.
            seed: Of the first vector.

        Returns:
            The outermost first.

        Raises:
            ValueError: If there are not so many, or they do not converge.
        """
        return self._eigenpairs(count, smallest, tolerance, seed)[0]

    def top_eigenvector(self, tolerance: float = 1e-6, seed: int = 0) -> tuple[float, Tensor]:
        """The largest eigenvalue and its eigenvector of norm 1, [size].

        Args:
            tolerance: Relative.
            seed: Of the first vector.
        """
        values, vectors = self._eigenpairs(1, False, tolerance, seed)
        return values[0], vectors[0]

    def trace(self, samples: int = 32, seed: int = 0) -> Estimate:
        """Hutchinson's estimate: the mean of z'Hz over vectors z of random signs.

        Args:
            samples: At least 2.
            seed: Of the signs.
        """
        if samples < 2:
            raise ValueError(f"an estimate with an error needs at least 2 samples, got {samples}")
        generator = torch.Generator().manual_seed(seed)
        values = []
        for _ in range(samples):
            signs = torch.randint(2, (self.size,), generator=generator).mul_(2).sub_(1).to(self.parameters[0])
            values.append(torch.dot(signs, self @ signs).item())
        return Estimate(statistics.fmean(values), statistics.stdev(values) / math.sqrt(samples))

    def alignment(self, tolerance: float = 1e-6) -> float:
        """Of the gradient g with the top eigenvector, g'Hg / (|g|^2 lambda_1): 1 if they are the same.

        Args:
            tolerance: Of lambda_1, relative.

        Raises:
            ValueError: At a stationary point, where the gradient has no direction, and without curvature.
        """
        gradient = self.gradient()
        squared = torch.dot(gradient, gradient).item()
        if squared == 0.0:
            raise ValueError("the gradient is 0: at a stationary point it has no direction to be aligned")
        curvature = torch.dot(gradient, self @ gradient).item() / squared
        largest = self.eigenvalues(tolerance=tolerance)[0]
        if largest == 0.0:
            raise ValueError(
                "the largest eigenvalue is 0: a loss without curvature has no direction to be aligned with"
            )
        return curvature / largest

    def spherical_sharpness(self, tolerance: float = 1e-6) -> float:
        """|x|^2 lambda_1(H): the largest eigenvalue at x / |x|, for parameters whose common scale does not matter.

        Args:
            tolerance: Relative.

        Raises:
            ValueError: If the loss depends on their scale: the gradients of the batches are then not orthogonal to
                them, or H x is not -g, as for any function of x / |x|. Both are looked at here only, to rounding (1e-3
                in float32); `sibert check` decides. And if they have no length.
        """
        x = self._flat([p.detach() for p in self.parameters])
        norm = x.norm().item()
        if not 0.0 < norm < math.inf:
            raise ValueError(f"the norm of the parameters is {norm}: without length they are on no sphere")
        scales = "there is no sphere to speak of; take those of a scale-invariant group, which `sibert check` finds"
        limit = radial_tolerance(self.parameters)
        with self._evaluation():
            gradients = [self._flat(self._gradients(batch, twice=False)) for batch in self.batches]
        whole = norm * math.hypot(*(g.norm().item() for g in gradients))
        radial = math.hypot(*(torch.dot(x, g).item() for g in gradients))
        if not radial <= limit * whole:
            raise ValueError(
                f"the cosine of parameters and gradient is {radial / whole:.2g}: the loss depends on their scale, and "
                + scales
            )
        largest = self.eigenvalues(tolerance=tolerance)[0]
        gradient = torch.stack(gradients).mean(0)
        product: Tensor = self @ x
        size = gradient.norm().item() + max(norm * abs(largest), product.norm().item())
        error = (product + gradient).norm().item()
        if not error <= limit * size:
            raise ValueError(
                f"H x is not -g, by {error / size:.2g} of their size: the gradient is orthogonal to the parameters "
                f"here, but the loss depends on their scale nearby, and {scales}"
            )
        return float(norm**2 * largest)

    def preconditioned_sharpness(
        self, rates: Sequence[float | Tensor], tolerance: float = 1e-6, seed: int = 0
    ) -> float:
        """The largest eigenvalue of D^(1/2) H D^(1/2), D = the learning rate of each entry: sharpness without a unit.

        Gradient descent with these rates is stable while it is at most 2 (with momentum m at most 2 (1 + m), and with
        Adam's rates eta / (sqrt(v) + epsilon) at most 2 (1 + b1) / (1 - b1): arXiv 2103.00065, 2207.14484). For one
        scale-invariant group it is effective learning rate times spherical sharpness.

        Args:
            rates: For each parameter its learning rate, or one for each of its entries (or a shape that broadcasts).
            tolerance: Relative.
            seed: Of the first vector.

        Raises:
            ValueError: If a rate is negative, or there are more or fewer rates than parameters.
        """
        if len(rates) != len(self.parameters):
            raise ValueError(f"give a rate for each of the {len(self.parameters)} parameters, got {len(rates)}")
        tensors = [torch.as_tensor(r).to(p).expand_as(p) for r, p in zip(rates, self.parameters, strict=True)]
        if any(bool((rate < 0.0).any()) for rate in tensors):
            raise ValueError("a learning rate must not be negative: its square root has to be real")
        return self._eigenpairs(1, False, tolerance, seed, self._flat(tensors).sqrt())[0][0]

    def _eigenpairs(
        self, count: int, smallest: bool, tolerance: float, seed: int, root: Tensor | None = None
    ) -> tuple[list[float], list[Tensor]]:
        """Of H, or of root H root for a diagonal."""
        if not 1 <= count <= self.size:
            raise ValueError(f"count must be between 1 and {self.size}, the number of parameters, got {count}")
        like = self.parameters[0]

        def multiply(vector: np.ndarray) -> np.ndarray:
            v = torch.from_numpy(np.ascontiguousarray(vector.reshape(-1))).to(like)
            product = self @ v if root is None else root * (self @ (root * v))
            return product.double().cpu().numpy()

        if self.size <= max(32, 2 * count + 2):  # too small for Lanczos' method
            matrix = np.stack([multiply(column) for column in np.eye(self.size)])
            values, vectors = np.linalg.eigh((matrix + matrix.T) / 2.0)
        else:
            values, vectors = _lanczos(multiply, self.size, count, smallest, tolerance, seed)
        order = np.argsort(values if smallest else -values)[:count]
        return [float(values[i]) for i in order], [torch.from_numpy(vectors[:, i].copy()).to(like) for i in order]

    def _gradients(self, batch: Any, twice: bool) -> list[Tensor]:
        with torch.enable_grad():  # whatever the caller has
            loss = self.loss(batch)
        found = torch.autograd.grad(loss, self.parameters, create_graph=twice, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, found, strict=True)]

    def _flat(self, tensors: Sequence[Tensor | None]) -> Tensor:
        like = self.parameters[0]
        return torch.cat(
            [
                (torch.zeros_like(p) if t is None else t).reshape(-1).to(like)
                for t, p in zip(tensors, self.parameters, strict=True)
            ]
        )

    @contextmanager
    def _evaluation(self) -> Iterator[None]:
        """Plain attention, and a model that is left as it is."""
        with observed(self.model), sdpa_kernel(SDPBackend.MATH):
            yield

    def _check_determinism(self) -> None:
        values = []
        for seed in (0, 1):
            with self._evaluation(), torch.no_grad():
                seed_observed(self.model, seed)
                values.append(float(self.loss(self.batches[0])))
        if not all(map(math.isfinite, values)):
            raise ValueError(f"the loss is {values[0]}: where it is not finite it has no curvature")
        if values[0] != values[1]:
            raise ValueError(
                f"the same parameters and batch gave the losses {values[0]:.6g} and {values[1]:.6g}: a Hessian is that "
                "of a function, and this is a random variable; turn dropout off with model.eval()"
            )


def _lanczos(
    multiply: Callable[[np.ndarray], np.ndarray], size: int, count: int, smallest: bool, tolerance: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Some eigenpairs at one end.

    ARPACK never finds an eigenvalue of 0 converged, and every symmetry of a loss gives it one: a multiple of the
    identity brings the wanted end away from 0.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    first = np.random.default_rng(seed).standard_normal(size)
    if not multiply(first).any():
        return np.zeros(count), np.eye(size, count)

    def shifted(shift: float) -> LinearOperator:
        return LinearOperator((size, size), matvec=lambda v: multiply(v) + shift * v.reshape(-1), dtype=np.float64)

    try:
        largest = eigsh(shifted(0.0), k=1, which="LM", v0=first, tol=1e-2, return_eigenvectors=False)[0]
        shift = 1.1 * abs(float(largest)) * (-1.0 if smallest else 1.0)
        values, vectors = eigsh(shifted(shift), k=count, which="SA" if smallest else "LA", v0=first, tol=tolerance)
    except ArpackNoConvergence as error:
        raise ValueError(f"{len(error.eigenvalues)} of {count} eigenvalues converged: raise the tolerance") from None
    return values - shift, vectors


def stability_line(lr: float, norm: float = 1.0, weight_decay: float = 0.0) -> float:
    """Where gradient descent ceases to be stable: sharpness 2 / eta, or of a scale-invariant group on the sphere.

    Args:
        lr: eta.
        norm: |x| of a scale-invariant group, for its spherical sharpness; 1 = plain sharpness.
        weight_decay: lambda of that group.

    Returns:
        2 (1 - eta lambda) |x|^2 / eta.
    """
    if not (lr > 0.0 and norm > 0.0 and 0.0 <= lr * weight_decay < 1.0):
        raise ValueError(
            f"lr and norm must be positive and lr * weight_decay in [0, 1), got {lr}, {norm}, {weight_decay}"
        )
    return 2.0 * (1.0 - lr * weight_decay) * norm**2 / lr
