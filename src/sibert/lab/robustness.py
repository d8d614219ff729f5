"""Rescaling weights, loss or learning rate costs some steps more, as many as their logarithm says, and no more.

On a scale-invariant loss weight decay brings any norm to its equilibrium |x|_*, from above by the factor
1 - eta lambda a step; from below one step overshoots to about |x|_*^2 / |x|, and decay does the rest. With eta and
lambda fixed the number of extra steps is

    |ln c| / (eta lambda)        for initial weights times c
    |ln c| / (2 eta lambda)      for the loss times c, or eta times c and lambda / c: the equilibrium moves by sqrt(c).

A gradient that is far above its mean throws the norm up. Relative Global Clipping at |g| <= sqrt(2 C lambda / eta) |x|
bounds a step's growth,

    |x'|^2 / |x|^2 <= (1 - eta lambda)^2 + 2 C eta lambda,

whatever the gradient.

Here: least squares on the sphere with noise; SGD on gradients with heavy tails; and the examples of the paper's
introduction, where plain gradient descent explodes: logistic regression on a product of weights, and the factorisation
of a matrix from unbalanced factors. Each is made scale invariant by dividing every factor by its norm.

arXiv 2202.00980 (its Theorems 4.1 and 4.8, Examples 1.1 and 1.2; the settings of the examples are ours).
"""

import math
import statistics
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sibert.lab.experiment import Scale, Verdict
from sibert.lab.intervals import mean_interval
from sibert.optim import ClippedSGD

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REFERENCES = ("li2022robust",)
MINUTES: dict[Scale, float] = {"smoke": 0.1, "default": 0.5, "full": 3.0}
LR, DECAY, DIMENSION = 0.1, 0.02, 200
FACTORS = [10.0**k for k in range(-4, 5)]
SEEDS, COPIES = 5, 16
CLIP = 4.0
"""C, the square of the clipping multiple."""


def measure(scale: Scale) -> dict[str, Any]:
    """Steps to equilibrium for all factors, heavy tails with and without clipping, and the two examples.

    Args:
        scale: How long the heavy-tailed runs are.
    """
    steps = {"smoke": 3000, "default": 20_000, "full": 200_000}[scale]
    ones = [1.0] * len(FACTORS)
    # All three beside each other: a seed's runs see the same problem and the same noise.
    columns = [*FACTORS, *ones, *ones], [*ones, *FACTORS, *ones], [*ones, *ones, *FACTORS]
    needed = [_steps_needed(*columns, seed) for seed in range(SEEDS)]
    return {
        "factors": FACTORS,
        **{
            name: [steps[i * len(FACTORS) : (i + 1) * len(FACTORS)] for steps in needed]
            for i, name in enumerate(("weights", "loss", "rate"))
        },
        "tails": {name: _heavy_tails(clip, steps) for name, clip in (("clipped", CLIP), ("unclipped", None))},
        "examples": {"product": _product(), "factorisation": _factorisation()},
    }


def _steps_needed(weights: list[float], losses: list[float], rates: list[float], seed: int) -> list[int]:
    """Steps until the norm is within 5 % of its equilibrium for good, a number for each run.

    From weights, losses, and rates times factors; decay is divided by those of the rates.
    """
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(DIMENSION, DIMENSION, generator=generator, dtype=torch.float64) / math.sqrt(DIMENSION)
    b = torch.randn(DIMENSION, generator=generator, dtype=torch.float64)
    u = torch.randn(DIMENSION, generator=generator, dtype=torch.float64)
    weight_E1, loss_E1, rate_E1 = (torch.tensor(c, dtype=torch.float64)[:, None] for c in (weights, losses, rates))
    # at scale 1 the run starts close to its equilibrium
    x_ED = math.sqrt(math.sqrt(LR * 4.0 * DIMENSION / (2.0 * DECAY))) * weight_E1 * (u / u.norm())
    steps = round((math.log(max(FACTORS)) + 8.0) / (LR * DECAY))
    squares_TE = torch.empty(steps, len(weights), dtype=torch.float64)
    for t in range(steps):
        squared_E1 = x_ED.square().sum(1, keepdim=True)
        v_ED = x_ED / squared_E1.sqrt()
        noise_D = 2.0 * torch.randn(DIMENSION, generator=generator, dtype=torch.float64)
        g_ED = loss_E1 * ((v_ED @ A.T - b) @ A + noise_D)
        g_ED = (g_ED - (g_ED * v_ED).sum(1, keepdim=True) * v_ED) / squared_E1.sqrt()
        squares_TE[t] = squared_E1.squeeze(1)
        x_ED = (1.0 - LR * DECAY) * x_ED - LR * rate_E1 * g_ED
    equilibrium_E = squares_TE[math.ceil(0.9 * steps) :].mean(0)
    far_TE = ((squares_TE / equilibrium_E).sqrt() - 1.0).abs() > 0.05
    # argmax gives the first of equals: counted from the end, the last step that is far
    return torch.where(far_TE.any(0), steps - far_TE.flip(0).byte().argmax(0), 0).tolist()


def _heavy_tails(clip: float | None, steps: int) -> dict[str, Any]:
    """Norms of copies by step, rows of `ClippedSGD`, where gradient norms have the tail P(g > s) = s^-2.5."""
    generator = torch.Generator().manual_seed(1)
    # E g^2 = 5 at x / |x|
    start = (LR * 5.0 / (2.0 * DECAY)) ** 0.25
    rows_CK = nn.Parameter(start * torch.tensor([[1.0, 0.0]] * COPIES, dtype=torch.float64))
    group = {"params": [rows_CK], "rows": True}
    optimizer = ClippedSGD([group], LR, DECAY, clip=None if clip is None else math.sqrt(clip))
    norms_TC, growth = torch.empty(steps, COPIES, dtype=torch.float64), 0.0
    with torch.no_grad():
        for t in range(steps):
            across_CK = torch.stack((-rows_CK[:, 1], rows_CK[:, 0]), 1)
            squared_C1 = rows_CK.square().sum(1, keepdim=True)
            g_C1 = torch.rand(COPIES, 1, generator=generator, dtype=torch.float64) ** (-1.0 / 2.5)
            rows_CK.grad = g_C1 * across_CK / squared_C1
            optimizer.step()
            new_C1 = rows_CK.square().sum(1, keepdim=True)
            growth = max(growth, (new_C1 / squared_C1).max().item())
            norms_TC[t] = new_C1.sqrt().squeeze(1)
    norms_TC /= norms_TC.median(0).values
    return {
        "largest": norms_TC.max(0).values.tolist(),
        "growth": growth,
        "norms": norms_TC[:: steps // 1000, 0].tolist(),
    }


def _descend(loss: Any, x: Tensor, lr: float, decay: float, steps: int) -> list[float]:
    """Losses of gradient descent with weight decay; it ends where they are no numbers."""
    losses = []
    for _ in range(steps):
        x = x.detach().requires_grad_()
        value = loss(x)
        losses.append(value.item())
        if not math.isfinite(losses[-1]) or losses[-1] > 1e12:
            break
        (slope,) = torch.autograd.grad(value, x)
        x = (1.0 - lr * decay) * x - lr * slope
    return losses


def _product() -> dict[str, list[float]]:
    """Logistic loss of the product of eight weights, nine of ten labels positive, from weights of 3."""

    def logistic(f: Tensor) -> Tensor:
        loss: Tensor = 0.9 * F.softplus(-f) + 0.1 * F.softplus(f)
        return loss

    def plain(w: Tensor) -> Tensor:
        return logistic(w.prod())

    def invariant(
        w_KD: Tensor,
    ) -> Tensor:  # each factor the first coordinate of a direction, times the eighth root of 6
        unit_KD = w_KD / w_KD.norm(dim=1, keepdim=True)
        return logistic(6.0 * unit_KD[:, 0].prod())

    start = torch.full((8,), 3.0, dtype=torch.float64)
    pairs = torch.stack((start, start), 1)
    return {"plain": _descend(plain, start, 0.1, 0.0, 2000), "invariant": _descend(invariant, pairs, 0.1, 0.05, 2000)}


def _factorisation() -> dict[str, list[float]]:
    """|A B' - M|^2 with factors of norms 100 and 1/100; of the directions of A and B, and a scale known in advance."""
    generator = torch.Generator().manual_seed(2)
    a = torch.randn(2, 10, 2, generator=generator, dtype=torch.float64)
    target = a[0] @ a[1].T
    size = float(target.norm())
    scales = torch.tensor([100.0, 0.01], dtype=torch.float64)[:, None, None]
    start = torch.randn(2, 10, 2, generator=generator, dtype=torch.float64) * scales

    def plain(factors: Tensor) -> Tensor:
        error: Tensor = (factors[0] @ factors[1].T - target).square().sum() / size**2
        return error

    def invariant(factors: Tensor) -> Tensor:
        product = factors[0] @ factors[1].T
        error: Tensor = (product / product.norm() - target / size).square().sum()
        return error

    return {"plain": _descend(plain, start, 0.1, 0.0, 3000), "invariant": _descend(invariant, start, 0.1, 0.01, 20_000)}


def _slope(steps: list[int], places: tuple[int, int]) -> float:
    """Extra steps for each unit of ln c between two factors."""
    one, other = places
    return (steps[other] - steps[one]) / abs(math.log(FACTORS[other] / FACTORS[one]))


def judge(data: dict[str, Any]) -> list[Verdict]:
    """Slopes in ln c, growth under clipping, and which examples explode.

    Args:
        data: Of `measure`.
    """
    product = LR * DECAY
    last = len(FACTORS) - 1
    verdicts = []
    for name, label, slope in (
        ("weights", "initial weights", 1.0 / product),
        ("loss", "loss", 1.0 / (2.0 * product)),
        ("rate", "eta (and lambda divided)", 1.0 / (2.0 * product)),
    ):
        for places, side in (((last - 1, last), "10^3 to 10^4"), ((1, 0), "10^-3 to 10^-4")):
            verdicts.append(
                Verdict.near(
                    f"extra steps for each unit of ln c, {label} times {side}",
                    predicted=slope,
                    relative=0.03,
                    **_mean([_slope(steps, places) for steps in data[name]], "seeds"),
                )
            )
    tails, examples = data["tails"], data["examples"]
    return [
        *verdicts,
        Verdict.at_most(
            "heavy tails, clipped: largest growth of |x|^2 in a step",
            tails["clipped"]["growth"],
            (1.0 - product) ** 2 + 2.0 * CLIP * product + 1e-12,
        ),
        Verdict.at_most(
            "heavy tails, clipped: largest norm over the median, mean",
            bound=1.3,
            **_mean(tails["clipped"]["largest"], "copies"),
        ),
        Verdict.at_least(
            "heavy tails, not clipped: largest norm over the median, mean",
            bound=1.6,
            **_mean(tails["unclipped"]["largest"], "copies"),
        ),
        *(
            verdict
            for name, losses in examples.items()
            for verdict in (
                Verdict.at_least(f"{name}, gradient descent: largest loss", min(max(losses["plain"]), 1e300), 1e6),
                Verdict.at_most(
                    f"{name}, scale invariant with weight decay: last loss less the smallest possible",
                    losses["invariant"][-1] - (_entropy(0.1) if name == "product" else 0.0),
                    0.05,
                ),
            )
        ),
    ]


def _mean(values: list[float], what: str) -> dict[str, Any]:
    measured, error = mean_interval(values)
    return {"measured": measured, "error": error, "interval": f"t, {len(values)} {what}"}


def _entropy(p: float) -> float:
    """The smallest logistic loss where a share p of the labels is negative."""
    return -p * math.log(p) - (1.0 - p) * math.log(1.0 - p)


def draw(data: dict[str, Any], figure: "Figure") -> None:
    """Steps against factors, norms under heavy tails, losses of the examples.

    Args:
        data: Of `measure`.
        figure: Empty.
    """
    left, middle, right = figure.subplots(1, 3)
    for name, label in (("weights", "initial weights"), ("loss", "loss"), ("rate", "eta, 1 / lambda")):
        steps = [statistics.fmean(values) for values in zip(*data[name], strict=True)]
        left.semilogx(data["factors"], steps, "o-", markersize=3, label=label)
    left.set(xlabel="c", ylabel="steps to equilibrium")
    left.legend(fontsize="x-small")
    for name, run in data["tails"].items():
        middle.plot(run["norms"], linewidth=0.8, label=name)
    middle.set(xlabel="time", ylabel="norm over its median", title="heavy-tailed gradients")
    middle.legend(fontsize="x-small")
    for i, (name, losses) in enumerate(data["examples"].items()):
        right.loglog(range(1, len(losses["plain"]) + 1), losses["plain"], f"C{i}x-", label=f"{name}, plain")
        right.loglog(range(1, len(losses["invariant"]) + 1), losses["invariant"], f"C{i}", label=f"{name}, invariant")
    right.set(xlabel="step", ylabel="loss", ylim=(1e-6, 1e12))
    right.legend(fontsize="x-small")
