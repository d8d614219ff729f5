"""What training does after the loss has reached its minimum: slow flows along the manifold of minimisers.

Gamma, the minimisers of L, is a manifold whose tangent space is the null space of the Hessian H and whose normal space
is its range; P_T and P_N project on them. With a small rate eta, training comes near Gamma in about 1 / eta steps, and
then moves along it, slowly. Its position follows a differential equation in a time of its own:

    label noise, Sigma = c H           -(c/4) P_T grad tr H                     eta^2 a step          arXiv 2110.06914
    normalised gradient descent        -(1/4) P_T grad log lambda_1             eta^2 a step          arXiv 2205.09745
    gradient descent on sqrt(L)        -(1/8) P_T grad lambda_1                 eta^2 a step          arXiv 2205.09745
    GD + weight decay, |x| = 1         -2 G / (4 + |G|^2), G = P_T grad log lambda_1 on the sphere
                                                                                eta lambda a step     arXiv 2206.07085

Everything here is about a pure function of a vector in float64; `function_of` makes one of a model. Only products of
the Hessian with vectors are formed, and gradients of v'Hw.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from sibert.dynamics.observation import observed

__all__ = [
    "Drift",
    "Minimiser",
    "follow",
    "function_of",
    "label_noise_velocity",
    "normalized_gd_velocity",
    "project",
    "sphere_velocity",
    "sqrt_loss_velocity",
]

Function = Callable[[Tensor], Tensor]
FAR = 1e-3
"""Distance to the manifold, relative to |x|, from which on a point is not taken for a minimiser."""


def function_of(
    model: nn.Module,
    loss: Callable[[Any], Tensor],
    batches: Sequence[Any],
    parameters: Sequence[nn.Parameter] | None = None,
) -> tuple[Function, Tensor]:
    """The mean loss of some batches as a function of one vector, and the vector of the model's parameters.

    Args:
        model: Any module; it is left as it is.
        loss: Mean loss of a batch as a scalar: `lambda batch: model(**batch).loss`.
        batches: Over which the loss is averaged; they weigh the same.
        parameters: The variables; None = all trainable ones. The rest stays as it is.

    Returns:
        The function, and its argument at the model, [n] in float64.
    """
    chosen = {id(p) for p in (model.parameters() if parameters is None else parameters) if p.requires_grad}
    named = {name: p for name, p in model.named_parameters() if id(p) in chosen}
    if not named or not batches:
        raise ValueError("there is nothing to differentiate: give trainable parameters and at least one batch")
    sizes = [p.numel() for p in named.values()]
    evaluation = _Evaluation(model, loss)

    def function(x: Tensor) -> Tensor:
        parts = torch.split(x, sizes)
        values = {f"model.{name}": v.view_as(p).to(p.dtype) for (name, p), v in zip(named.items(), parts, strict=True)}
        total = x.new_zeros(())
        with observed(model), sdpa_kernel(SDPBackend.MATH):
            for batch in batches:
                # Copies, for autograd will read them after the model's own have been put back.
                copies = {f"model.{name}": buffer.clone() for name, buffer in model.named_buffers()}
                total = total + functional_call(evaluation, values | copies, (batch,)).to(x.dtype) / len(batches)
        return total

    return function, torch.cat([p.detach().reshape(-1).double() for p in named.values()])


class _Evaluation(nn.Module):
    """A loss as a module's output, so that the parameters of its model can be replaced for the time of a call."""

    def __init__(self, model: nn.Module, loss: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Any) -> Tensor:
        return self.loss(batch)


def project(loss: Function, x: Tensor, tolerance: float = 1e-10, evaluations: int = 100_000) -> Tensor:
    """Phi(x): where the gradient flow from x ends, dx/dt = -grad L.

    The flow is followed until |grad L| is the root of the tolerance. What is left is linear up to the square of that,
    and done by Newton's steps: conjugate gradients do not resolve the flat directions, for it has no part in them.

    Args:
        loss: L, of a vector.
        x: [n], float64.
        tolerance: About the error of the result, where lengths and eigenvalues are about 1.
        evaluations: Of the gradient, at most.

    Returns:
        [n].

    Raises:
        ValueError: If the flow does not end, or x is not float64.
    """
    from scipy.integrate import DOP853
    from scipy.sparse.linalg import LinearOperator, cg

    _check_precision(x)

    def gradient(y: np.ndarray) -> np.ndarray:
        return _gradient(loss, torch.from_numpy(y).to(x.device)).cpu().numpy()

    start = x.detach().cpu().numpy().copy()
    with np.errstate(all="ignore"):
        solver = DOP853(lambda _, y: -gradient(y), 0.0, start, math.inf, rtol=max(tolerance, 1e-12), atol=tolerance)
        while np.linalg.norm(solver.f) > math.sqrt(tolerance):
            if solver.status == "failed" or solver.nfev > evaluations or not np.isfinite(solver.f).all():
                raise ValueError(
                    f"the gradient flow has not come to rest: |grad L| = {np.linalg.norm(solver.f):.2g} after "
                    f"{solver.nfev} gradients; a loss without minimisers has no manifold of them, and for a loss with "
                    "very flat directions a larger tolerance is needed"
                )
            solver.step()
    y, rest = solver.y.copy(), -solver.f
    for _ in range(20):
        if np.linalg.norm(rest) <= 1e-3 * tolerance:
            break
        at = torch.from_numpy(y).to(x)
        product = LinearOperator(
            (y.size, y.size),
            matvec=lambda v, at=at: _product(loss, at, torch.from_numpy(v.reshape(-1).copy()).to(x)).cpu().numpy(),
        )
        y = y - cg(product, rest, rtol=1e-2)[0]
        rest = gradient(y)
    if not np.linalg.norm(rest) <= math.sqrt(tolerance):
        raise ValueError(
            f"Newton's steps have led away from the end of the flow, to |grad L| = {np.linalg.norm(rest):.2g}: the "
            "loss is not smooth there, or its curvature falls off too fast; try a smaller tolerance"
        )
    return torch.from_numpy(y).to(x)


@dataclass(frozen=True)
class Drift:
    """Of the limiting equation dY = P_T Sigma^(1/2) dW + drift dtau: its three terms, [n] each.

    Attributes:
        curvature: -(1/2) H^+ d2(grad L)[Sigma_TT], normal to Gamma: keeps a diffusing point on it.
        mixed: -P_T d2(grad L)[H^+ Sigma_NT].
        regularization: -(1/2) P_T d2(grad L)[Lyap^-1 Sigma_NN]: what noise normal to Gamma favours.
    """

    curvature: Tensor
    mixed: Tensor
    regularization: Tensor

    @property
    def total(self) -> Tensor:
        """The drift, [n]: half the second derivative of Phi, applied to Sigma."""
        return self.curvature + self.mixed + self.regularization


class Minimiser:
    """A point of the manifold, with the eigenpairs of its Hessian that span the normal space.

    The range of H is found by products with random vectors, as many as its rank and a few.

    Args:
        loss: L, of a vector.
        x: [n], float64, on the manifold: see `project`.
        cutoff: Eigenvalues below this share of the largest count as zero.
        seed: Of the random vectors.

    Attributes:
        point: x.
        eigenvalues_M: The M positive ones, the largest first.
        vectors_NM: Their eigenvectors.

    Raises:
        ValueError: If x is no minimiser, or not float64.
    """

    def __init__(self, loss: Function, x: Tensor, cutoff: float = 1e-6, seed: int = 0) -> None:
        _check_precision(x)
        self.loss, self.point = loss, x.detach()
        values, vectors = self._range(cutoff, seed)
        if values.numel() == 0:
            raise ValueError("the Hessian is zero: every direction is flat, and no direction is normal to minimisers")
        if values[-1] < 0.0:
            raise ValueError(
                f"the Hessian has the eigenvalue {values[-1].item():.2g} beside {values[0].item():.2g}: this point is "
                "no minimiser; follow the gradient flow to one by `project`"
            )
        self.eigenvalues_M, self.vectors_NM = values, vectors
        distance = self.pseudo_inverse(_gradient(loss, self.point)).norm().item()
        if distance > FAR * self.point.norm().item():
            raise ValueError(
                f"the nearest minimiser is about {distance:.2g} away, and |x| = {self.point.norm().item():.2g}: theory "
                "speaks of points on the manifold; follow the gradient flow to one by `project`"
            )

    def tangent(self, v: Tensor) -> Tensor:
        """P_T v, [n]."""
        return v - self.vectors_NM @ (self.vectors_NM.T @ v)

    def pseudo_inverse(self, v: Tensor) -> Tensor:
        """H^+ v, [n]."""
        return self.vectors_NM @ ((self.vectors_NM.T @ v) / self.eigenvalues_M)

    def retract(self, y: Tensor, iterations: int = 50) -> Tensor:
        """The minimiser that differs from y by a vector of the normal space of this point.

        Args:
            y: [n], near this point.
            iterations: At most.

        Raises:
            ValueError: If there is none so near.
        """
        first = last = math.inf
        for _ in range(iterations):
            step = self.pseudo_inverse(_gradient(self.loss, y))
            length = step.norm().item()
            if first == math.inf:
                first = length
            if not length <= 2.0 * last or not math.isfinite(length):
                break
            y, last = y - step, length
            if length <= 1e-14 * max(1.0, y.norm().item()):
                break
        if not last <= max(1e-9 * max(1.0, y.norm().item()), 1e-3 * first):
            raise ValueError("a step of the flow left the neighbourhood of the manifold: take more steps")
        return y

    def sharpness_gradient(self) -> Tensor:
        """Grad lambda_1 as a function of all x, [n].

        Raises:
            ValueError: If lambda_1 is a multiple eigenvalue, which has no gradient.
        """
        top = self.eigenvalues_M
        if top.numel() > 1 and top[0] - top[1] <= 1e-9 * top[0]:
            raise ValueError(
                f"the two largest eigenvalues are both {top[0].item():.6g}: a multiple eigenvalue has no gradient, and "
                "the flow that follows it is not defined here"
            )
        return _contraction(self.loss, self.point, [(self.vectors_NM[:, 0], self.vectors_NM[:, 0])])

    def trace_gradient(self) -> Tensor:
        """P_T grad tr H, [n]."""
        columns = [(v, v) for v in self.vectors_NM.unbind(1)]
        return self.tangent(_contraction(self.loss, self.point, columns))

    def drift(self, factor_NK: Tensor) -> Drift:
        """The drift of the limiting equation for a noise of covariance Sigma, time eta^2 a step.

        Args:
            factor_NK: Sigma = factor factor', for instance centred gradients of examples over sqrt(examples B).

        Returns:
            Its three terms.
        """
        if factor_NK.dim() != 2 or factor_NK.shape[0] != self.point.numel():
            raise ValueError(f"the factor must have the shape ({self.point.numel()}, K), got {tuple(factor_NK.shape)}")
        V_NM, h_M = self.vectors_NM, self.eigenvalues_M
        normal_MK = V_NM.T @ factor_NK
        tangent_NK = factor_NK - V_NM @ normal_MK
        solved_NK = V_NM @ (normal_MK / h_M[:, None])
        along = [(t, t) for t in tangent_NK.unbind(1)]
        across = list(zip(solved_NK.unbind(1), tangent_NK.unbind(1), strict=True))
        # H X + X H = Sigma_NN in the basis of eigenvectors; X = sum of weights times outer products
        X_MM = (normal_MK @ normal_MK.T) / (h_M[:, None] + h_M[None, :])
        weights_M, columns_MM = torch.linalg.eigh(X_MM)
        inside = [
            (w.sqrt() * v, w.sqrt() * v) for w, v in zip(weights_M, (V_NM @ columns_MM).unbind(1), strict=True) if w > 0
        ]
        return Drift(
            curvature=-0.5 * self.pseudo_inverse(_contraction(self.loss, self.point, along)),
            mixed=-self.tangent(_contraction(self.loss, self.point, across)),
            regularization=-0.5 * self.tangent(_contraction(self.loss, self.point, inside)),
        )

    def _range(self, cutoff: float, seed: int) -> tuple[Tensor, Tensor]:
        """Eigenpairs of H beyond the cutoff."""
        x = self.point
        generator = torch.Generator().manual_seed(seed)
        basis: list[Tensor] = []
        largest, misses = 0.0, 0
        while len(basis) < x.numel() and misses < 4:
            probe = torch.randn(x.numel(), generator=generator, dtype=x.dtype).to(x.device)
            image = _product(self.loss, x, probe)
            largest = max(largest, image.norm().item())
            for _ in range(2):  # once is not enough for orthogonality in floating point
                for q in basis:
                    image = image - torch.dot(q, image) * q
            rest = image.norm().item()
            if rest <= 0.1 * cutoff * largest / math.sqrt(x.numel()):
                misses += 1
            else:
                basis.append(image / rest)
        if not basis:
            return x.new_zeros(0), x.new_zeros(x.numel(), 0)
        Q_NK = torch.stack(basis, 1)
        HQ_NK = torch.stack([_product(self.loss, x, q) for q in basis], 1)
        small_KK = Q_NK.T @ HQ_NK
        values, vectors = torch.linalg.eigh((small_KK + small_KK.T) / 2.0)
        values, vectors = values.flip(0), vectors.flip(1)
        kept = values.abs() > cutoff * values.abs().max()
        return values[kept], Q_NK @ vectors[:, kept]


def label_noise_velocity(minimiser: Minimiser, noise: float = 1.0) -> Tensor:
    """-(c/4) P_T grad tr H, of SGD whose gradients have the covariance c H; time eta^2 a step.

    Args:
        minimiser: Where.
        noise: c; of the loss (1/2n) sum (f - y)^2 with labels that are off by +-delta, and batches of B, delta^2 / B.

    Returns:
        [n].
    """
    return -noise / 4.0 * minimiser.trace_gradient()


def normalized_gd_velocity(minimiser: Minimiser) -> Tensor:
    """-(1/4) P_T grad log lambda_1, of x - eta grad L / |grad L|; time eta^2 a step. [n]."""
    return -0.25 * minimiser.tangent(minimiser.sharpness_gradient()) / minimiser.eigenvalues_M[0]


def sqrt_loss_velocity(minimiser: Minimiser) -> Tensor:
    """-(1/8) P_T grad lambda_1, of x - eta grad sqrt(L), where the minimum of L is 0; time eta^2 a step. [n]."""
    return -0.125 * minimiser.tangent(minimiser.sharpness_gradient())


def sphere_velocity(minimiser: Minimiser) -> Tensor:
    """-2 G / (4 + |G|^2), of GD + weight decay on a loss that is invariant to scale; time eta lambda a step.

    Args:
        minimiser: A point with |x| = 1.

    Returns:
        [n], orthogonal to x.
    """
    x = minimiser.point
    gradient = minimiser.tangent(minimiser.sharpness_gradient()) / minimiser.eigenvalues_M[0]
    radial = torch.dot(gradient, x)
    # lambda_1 has the degree -2 in x: its logarithm falls by 2 for each unit of log |x|
    if abs(x.norm().item() - 1.0) > 1e-9 or abs(radial.item() + 2.0) > 1e-5:
        raise ValueError(
            f"|x| = {x.norm().item():.6g} and lambda_1 has the degree {radial.item():.6g} in x: this flow is that of a "
            "loss invariant to the scale of x (degree -2), on the sphere |x| = 1"
        )
    gradient = gradient - radial * x
    return -2.0 * gradient / (4.0 + gradient.square().sum())


def follow(
    loss: Function,
    x: Tensor,
    velocity: Callable[[Minimiser], Tensor],
    time: float,
    steps: int = 100,
    cutoff: float = 1e-6,
) -> list[Tensor]:
    """Follow a flow along the manifold: midpoint steps, each brought back to it; an error of second order.

    Args:
        loss: L, of a vector.
        x: Where to begin, on the manifold: see `project`.
        velocity: One of the velocities above, or any other function of the point.
        time: How long, in the time of the flow.
        steps: How many steps.
        cutoff: As of `Minimiser`.

    Returns:
        The points, steps + 1 of them.
    """
    sphere = velocity is sphere_velocity
    length = time / steps
    points = [x.detach()]
    for _ in range(steps):
        here = Minimiser(loss, points[-1], cutoff)
        middle = here.retract(here.point + length / 2.0 * velocity(here))
        between = Minimiser(loss, _on_sphere(middle) if sphere else middle, cutoff)
        end = between.retract(here.point + length * velocity(between))
        points.append(_on_sphere(end) if sphere else end)
    return points


def _on_sphere(x: Tensor) -> Tensor:
    unit: Tensor = x / x.norm()
    return unit


def _gradient(loss: Function, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        found: Tensor = torch.autograd.grad(loss(x), x)[0]
        return found


def _product(loss: Function, x: Tensor, v: Tensor) -> Tensor:
    """H v."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        gradient = torch.autograd.grad(loss(x), x, create_graph=True)[0]
        if not gradient.requires_grad:  # a linear loss
            return torch.zeros_like(x)
        found: Tensor = torch.autograd.grad(torch.dot(gradient, v), x)[0]
        return found


def _contraction(loss: Function, x: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """d2(grad L)[sum of a b'] = the gradient of sum of a'H(x)b for frozen a and b."""
    x = x.detach().requires_grad_()
    total = torch.zeros_like(x)
    with torch.enable_grad():
        gradient = torch.autograd.grad(loss(x), x, create_graph=True)[0]
        for a, b in pairs:
            product = torch.autograd.grad(torch.dot(gradient, b), x, create_graph=True)[0]
            if product.requires_grad:  # not so for a quadratic loss
                total += torch.autograd.grad(torch.dot(product, a), x, retain_graph=True)[0]
    return total.detach()


def _check_precision(x: Tensor) -> None:
    if x.dtype != torch.float64 or x.dim() != 1:
        raise ValueError(
            f"x must be a vector in float64, got {x.dtype} with shape {tuple(x.shape)}: flat directions are told from "
            "curved ones by eigenvalues near zero, which coarser numbers do not show"
        )
