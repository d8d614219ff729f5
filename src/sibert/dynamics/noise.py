"""How noisy the gradients of a run are, and what follows for models of the run and for its batch size.

The gradient g of a batch of B examples has a mean, whose squared norm is G, and a covariance, whose trace is N. Both
are estimated without bias from n batches: with T the mean of |g_j|^2 and m the squared norm of the mean of the g_j,

    G = (n m - T) / (n - 1),   N = T - G.

N falls like 1 / B. For a scale-invariant loss under weight decay, SGD balances at (2 - eta lambda) lambda |x|^2 =
eta (G + N), and the stochastic differential equation dX = -grad L dt + (eta Sigma)^(1/2) dW that is to model it at
2 lambda |x|^2 = eta N. If both shall agree up to a factor C in squared weights, squared gradients and noise (arXiv
2102.12470; the bounds are re-derived, C^2 = 2 is its typical value):

    the equation can model the run only if          N / G >= 1 / (C^2 - 1)
    kappa times rate and batch can do the same only if   kappa <= C^2 (1 + N / G)
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sibert.dynamics.observation import observed, observed_parameters
from sibert.optim.norms import home_of, squared_norm

__all__ = ["GradientNoise", "gradient_noise", "square_root_scaling"]

BLOCKS = 8
CLOSENESS = 2.0
"""C^2."""
DEAD = (
    "the gradients are 0, without signal and without noise: no ratio of the two says anything about batch size or SDE; "
    "find out why the loss does not depend on the parameters"
)


@dataclass(frozen=True)
class GradientNoise:
    """Signal and noise of the gradients of batches.

    Attributes:
        batches: n.
        batch_size: B, examples of a batch.
        squared_mean: G, squared loss per squared parameter; an estimate, which may be negative where noise is all.
        trace: N, in the same unit.
        squared_mean_error: Standard error of G, from the estimates of blocks of the batches. G itself uses all pairs of
            batches, and not those of a block alone, so that this is too large, up to four times, where noise is all.
        trace_error: That of N.
    """

    batches: int
    batch_size: int
    squared_mean: float
    trace: float
    squared_mean_error: float
    trace_error: float

    @property
    def dead(self) -> bool:
        """Whether there is neither signal nor noise: gradients that are all 0."""
        return self.trace <= 0.0 and self.squared_mean <= 0.0

    @property
    def noise_to_signal(self) -> float:
        """N / G; infinite where noise is all.

        Raises:
            ValueError: If there is neither: nothing is compared with nothing.
        """
        if self.dead:
            raise ValueError(DEAD)
        return self.trace / self.squared_mean if self.squared_mean > 0.0 else math.inf

    @property
    def critical_batch_size(self) -> float:
        """Batch at which noise and signal are the same, B N / G: larger ones gain little (arXiv 1812.06162)."""
        return self.batch_size * self.noise_to_signal

    @property
    def sde_can_model(self) -> bool:
        """Whether N / G is at least 1 / (C^2 - 1): necessary for a run at equilibrium, not sufficient."""
        return self.noise_to_signal >= 1.0 / (CLOSENESS - 1.0)

    @property
    def largest_linear_scaling(self) -> float:
        """The largest factor of rate and batch for which linear scaling can hold: C^2 (1 + N / G)."""
        return CLOSENESS * (1.0 + self.noise_to_signal)

    def at(self, batch_size: int) -> "GradientNoise":
        """The same for batches of another size, for N is proportional to 1 / B.

        Args:
            batch_size: Examples of a batch.
        """
        factor = self.batch_size / batch_size
        return GradientNoise(
            self.batches,
            batch_size,
            self.squared_mean,
            factor * self.trace,
            self.squared_mean_error,
            factor * self.trace_error,
        )

    def __str__(self) -> str:
        """Both verdicts, with the inequalities that they rest on."""
        if self.dead:
            return DEAD
        found = f"N / G = {self.noise_to_signal:.3g} at a batch of {self.batch_size}"
        verdict = "can" if self.sde_can_model else "cannot"
        least = 1.0 / (CLOSENESS - 1.0)
        return (
            f"{found}: an SDE {verdict} model this run (needs N / G >= {least:.3g}); linear scaling can hold up to "
            f"kappa = C^2 (1 + N / G) = {self.largest_linear_scaling:.3g}; critical batch size "
            f"{self.critical_batch_size:.3g}"
        )


def gradient_noise(
    model: nn.Module,
    loss: Callable[[Any], Tensor],
    batches: Iterable[Any],
    batch_size: int,
    parameters: Sequence[nn.Parameter] | None = None,
) -> GradientNoise:
    """Estimate G and N at the model's present parameters, and leave the model as it is.

    Args:
        model: Any module.
        loss: Mean loss of a batch as a scalar that depends on the parameters: `lambda batch: model(**batch).loss`.
        batches: At least 16 batches of equal size, drawn independently.
        batch_size: Examples of each.
        parameters: Of which the gradients are taken, each once, however often it is named; None = all trainable ones.

    Returns:
        The estimates.

    Raises:
        ValueError: For fewer batches, or a gradient that is not finite.
    """
    chosen = observed_parameters(model, parameters)
    if not chosen:
        raise ValueError("there is nothing to differentiate: no parameter requires a gradient")
    batches = list(batches)
    if len(batches) < 2 * BLOCKS:
        raise ValueError(
            f"{len(batches)} batches are too few for an estimate and its error: give at least {2 * BLOCKS}"
        )
    home = home_of(chosen)
    total = [torch.zeros_like(p) for p in chosen]
    estimates, squares = [], 0.0
    with observed(model):
        for k in range(BLOCKS):
            block = batches[k * len(batches) // BLOCKS : (k + 1) * len(batches) // BLOCKS]
            own, own_squares = [torch.zeros_like(p) for p in chosen], 0.0
            for batch in block:
                gradient = _gradient(partial(loss, batch), chosen)
                own_squares += squared_norm(gradient, home).item()
                torch._foreach_add_(own, gradient)
            if not math.isfinite(own_squares):
                raise ValueError("a gradient is not finite: noise and signal of such a run mean nothing")
            estimates.append(_estimate(len(block), own_squares, squared_norm(own, home).item()))
            torch._foreach_add_(total, own)
            squares += own_squares
    squared_mean, trace = _estimate(len(batches), squares, squared_norm(total, home).item())
    errors = [statistics.stdev(values) / math.sqrt(BLOCKS) for values in zip(*estimates, strict=True)]
    return GradientNoise(len(batches), batch_size, squared_mean, trace, errors[0], errors[1])


def square_root_scaling(
    kappa: float, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> dict[str, Any]:
    """Adam's settings for a batch kappa times as large: the same law of the trajectory where noise dominates.

    eta sqrt(kappa), 1 - b_i times kappa, epsilon / sqrt(kappa), and 1 / kappa of the steps (arXiv 2205.10287).

    Args:
        kappa: New batch size over old one.
        lr: eta, in units of the parameters, for Adam's steps have no unit of their own.
        betas: b1 and b2, without unit; for RMSprop b1 = 0, which stays.
        eps: epsilon, in units of the gradient.

    Returns:
        "lr", "betas", "eps" in the same units: keyword arguments, which is why they are a dict and no record, for
        `torch.optim.Adam(parameters, **square_root_scaling(...))`.

    Raises:
        ValueError: If kappa (1 - b) would not be below 1: an average over less than a step.
    """
    if not kappa > 0.0:
        raise ValueError(f"kappa must be positive, got {kappa}")
    scaled = tuple(b if b == 0.0 else 1.0 - kappa * (1.0 - b) for b in betas)
    if not all(0.0 <= b < 1.0 for b in scaled):
        limit = min(1.0 / (1.0 - b) for b in betas if b)
        raise ValueError(f"with betas {betas} the rule holds for kappa up to {limit:.3g}, got {kappa:.3g}")
    return {"lr": lr * math.sqrt(kappa), "betas": scaled, "eps": eps / math.sqrt(kappa)}


def _gradient(loss: Callable[[], Tensor], parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Dense, of every parameter, whatever the caller has switched off."""
    with torch.enable_grad():
        found = torch.autograd.grad(loss(), parameters, allow_unused=True)
    return [
        torch.zeros_like(p) if g is None else g.to_dense() if g.is_sparse else g
        for p, g in zip(parameters, found, strict=True)
    ]


def _estimate(count: int, squares: float, squared_sum: float) -> tuple[float, float]:
    """G and N from the sum of |g_j|^2 and the squared norm of the sum of the g_j."""
    mean_square, squared_mean = squares / count, squared_sum / count**2
    signal = (count * squared_mean - mean_square) / (count - 1)
    return signal, mean_square - signal
