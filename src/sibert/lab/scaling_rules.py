"""Batch and rate grow together, linearly for SGD and by the square root for Adam, no further than the noise allows.

Batches kappa times as large have a kappa-th of the noise. SGD at kappa eta then has the same diffusion in the same
number of examples. On a scale-invariant loss with weight decay the squared norm R settles at 2 lambda R = eta (G + N),
G the squared norm of the mean gradient and N the trace of a batch's covariance, and at kappa times both

    R_kappa / R = (kappa G + N) / (G + N).

as long as the larger steps leave G and N as they are. So squared norm, G and N can stay the same up to a factor C, by
custom the root of 2, only if kappa <= C^2 (1 + N / G), a number known from the small batch alone. The bound is
necessary, not sharp: well before it larger steps find steeper places, G grows, and the norm by more than the formula
says.

Of Adam the same law needs sqrt(kappa) eta, kappa (1 - b_1), kappa (1 - b_2) and epsilon / sqrt(kappa), in a kappa-th of
the steps.

Here: a normalised network on digits at batches of 16 and up to 256 times that; Adam on a quadratic in six dimensions,
up to kappa = 64, and with less noise, which no longer dominates at kappa = 64: there the square-root rule breaks, too.

arXiv 2102.12470, 2205.10287. The bound and the norm's law are derived here.
"""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from sibert.dynamics import square_root_scaling
from sibert.lab.ensemble import Ensemble
from sibert.lab.experiment import Scale, Verdict
from sibert.lab.intervals import bootstrap, mean_interval
from sibert.lab.pictures import pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REFERENCES = ("li2021validity", "malladi2022sdes")
MINUTES: dict[Scale, float] = {"smoke": 0.3, "default": 2.0, "full": 15.0}
BATCH, LR, DECAY = 16, 0.05, 0.02
COPIES, WIDTHS = 16, (64, 16, 10)
BY_COPIES = f"bootstrap of {COPIES} copies"
TIMES = 300
"""At which gradients are measured, at most."""
KAPPAS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ADAM_LR, BETAS, EPS = 0.01, (0.99, 0.99), 1.0
CURVATURES = (0.5, 0.8, 1.0, 1.2, 1.5, 2.0)
NOISE, QUIET = 10.0, 0.1
"""Deviation of the gradient's noise: larger than curvature times deviation at every kappa, and not at kappa = 64."""
REPLICAS, ADAM_STEPS = 4000, 6400
BY_REPLICAS = f"normal, {REPLICAS} replicas"


def measure(scale: Scale) -> dict[str, Any]:
    """Norms and gradients at equilibrium for every kappa; deviations of Adam's iterates.

    Args:
        scale: Steps at the smallest batch, in units of 1 / (eta lambda).
    """
    units, least = {"smoke": (1.0, 8), "default": (6.0, 200), "full": (30.0, 1000)}[scale]
    kappas = KAPPAS if scale != "smoke" else KAPPAS[::4]
    steps = ADAM_STEPS if scale != "smoke" else 640
    return {
        "linear": [_sgd(kappa, units, least) for kappa in kappas],
        "adam": [
            {"kappa": kappa, "rule": rule, "noise": noise, **_adam(kappa, rule, steps, noise)}
            for kappa, rule, noise in (
                (1, "none", NOISE),
                *((kappa, "root", NOISE) for kappa in (4, 16, 64)),
                (16, "linear", NOISE),
                (1, "none", QUIET),
                (64, "root", QUIET),
            )
        ],
    }


def _sgd(kappa: int, units: float, least: int) -> dict[str, Any]:
    data = pictures(torch.float32)
    ensemble = Ensemble(COPIES, WIDTHS, same=True)
    generator = torch.Generator().manual_seed(kappa)
    lr = kappa * LR
    steps = max(least, round(units / (lr * DECAY)))
    norms, noise = [], []
    every = max(1, steps // (2 * TIMES))
    for t in range(steps):
        ensemble.step(ensemble.gradients(*ensemble.batch(data, kappa * BATCH, generator)), lr, DECAY)
        if t >= steps // 2:
            norms.append(ensemble.squared_norms())
            if t % every == 0:
                noise.append(ensemble.signal_and_total(data, kappa * BATCH, generator))
    mean_S = torch.stack(norms).mean(0)
    signal_S, total_S = torch.stack(noise).mean(0)
    with torch.no_grad():
        loss = ensemble.losses(data.train_BP[None], data.train_B[None]).mean().item()
    return {
        "kappa": kappa,
        "squared_norms": mean_S.tolist(),
        "signals": signal_S.tolist(),
        "noises": (total_S - signal_S).tolist(),
        "loss": loss,
    }


def _adam(kappa: int, rule: str, steps: int, noise: float) -> dict[str, list[float]]:
    """Standard deviations of the coordinates over replicas, after the same number of examples.

    And standard errors of their logarithms: (m_4 / s^4 - 1) / (4 n) is the variance of ln s.
    """
    generator = torch.Generator().manual_seed(0)
    eps = EPS * noise / NOISE
    settings: dict[str, Any] = {"lr": ADAM_LR * (kappa if rule == "linear" else 1), "betas": BETAS, "eps": eps}
    if rule == "root":
        settings = square_root_scaling(kappa, ADAM_LR, BETAS, eps)
    h_D = torch.tensor(CURVATURES, dtype=torch.float64)
    x_RD = nn.Parameter(torch.zeros(REPLICAS, len(CURVATURES), dtype=torch.float64))
    optimizer = torch.optim.Adam([x_RD], **settings)
    for _ in range(steps // kappa):
        noise_RD = torch.randn(x_RD.shape, generator=generator, dtype=torch.float64)
        x_RD.grad = h_D * x_RD.detach() + noise / math.sqrt(kappa) * noise_RD
        optimizer.step()
    centred_RD = x_RD.detach() - x_RD.detach().mean(0)
    deviation_D = centred_RD.std(0)
    fourth_D = (centred_RD / deviation_D).pow(4).mean(0)
    return {"deviations": deviation_D.tolist(), "errors": ((fourth_D - 1.0) / (4.0 * REPLICAS)).sqrt().tolist()}


def _doubled(kappas: list[int], norms: list[float]) -> float:
    """Kappa at which the squared norm is twice that of kappa = 1, between those that were run."""
    for (kappa, norm), (larger, more) in pairwise(zip(kappas, norms, strict=True)):
        if more >= 2.0 * norms[0]:
            share = math.log(2.0 * norms[0] / norm) / math.log(more / norm)
            return float(kappa * (larger / kappa) ** share)
    return math.inf


@dataclass(frozen=True)
class _Means:
    """Squared norm, G and N of each kappa."""

    kappas: list[int]
    norms: list[float]
    signals: list[float]
    noises: list[float]

    @classmethod
    def of(cls, rows: list[dict[str, Any]], generator: np.random.Generator | None = None) -> "_Means":
        """Over copies, or over copies that are drawn again, of each kappa by themselves."""
        chosen = [np.arange(COPIES) if generator is None else generator.integers(COPIES, size=COPIES) for _ in rows]
        means = (
            [float(np.asarray(row[name])[some].mean()) for row, some in zip(rows, chosen, strict=True)]
            for name in ("squared_norms", "signals", "noises")
        )
        return cls([row["kappa"] for row in rows], *means)

    @property
    def bound(self) -> float:
        return 2.0 * (1.0 + self.noises[0] / self.signals[0])

    def over_formula(self, k: int) -> float:
        """R_kappa / R over (kappa G + N) / (G + N), G and N of kappa = 1."""
        signal, noise = self.signals[0], self.noises[0]
        return self.norms[k] / self.norms[0] * (signal + noise) / (self.kappas[k] * signal + noise)

    def balance(self, k: int) -> float:
        """(2 - eta lambda) lambda R over eta (G + N), all of the same kappa."""
        lr = self.kappas[k] * LR
        return (2.0 - lr * DECAY) * DECAY * self.norms[k] / (lr * (self.signals[k] + self.noises[k]))


def judge(data: dict[str, Any]) -> list[Verdict]:
    """Where linear scaling holds and where it breaks; the square-root rule beside the linear one.

    Args:
        data: Of `measure`.
    """
    rows = data["linear"]
    means = _Means.of(rows)
    kappas, norms, bound = means.kappas, means.norms, means.bound
    # Where the noise allows none, the first beyond the bound's eighth stands in, and the verdict may well fail.
    inside = [k for k, kappa in enumerate(kappas) if 1 < kappa <= bound / 8.0] or [1]
    outside = [k for k, kappa in enumerate(kappas) if kappa > bound]
    furthest = max(inside, key=lambda k: abs(means.over_formula(k) - 1.0))
    unbalanced = max(range(len(kappas)), key=lambda k: abs(means.balance(k) - 1.0))
    smallest = min(outside, key=lambda k: norms[k], default=None)

    def width(number: Callable[[_Means], float]) -> float:
        return bootstrap(lambda generator: number(_Means.of(rows, generator)))

    def doubled(means: _Means) -> float:
        return _doubled(kappas, means.norms) / means.bound

    return [
        Verdict.near(
            f"linear scaling, kappa up to an eighth of the bound C^2 (1 + N / G) = {bound:.3g}: squared norm over that "
            "of kappa = 1, over the formula's, furthest from 1",
            means.over_formula(furthest),
            1.0,
            0.1,
            error=width(lambda means: means.over_formula(furthest)),
            interval=BY_COPIES,
        ),
        Verdict.near(
            "(2 - eta lambda) lambda R over eta (G + N), all of the same kappa, furthest from 1",
            means.balance(unbalanced),
            1.0,
            0.1,
            error=width(lambda means: means.balance(unbalanced)),
            interval=BY_COPIES,
        ),
        Verdict.at_least(
            "kappa beyond the bound: squared norm over that of kappa = 1, smallest",
            math.nan if smallest is None else norms[smallest] / norms[0],
            2.0,
            error=None if smallest is None else width(lambda means: means.norms[smallest] / means.norms[0]),
            interval=BY_COPIES,
        ),
        Verdict.at_most(
            "kappa at which the squared norm has doubled, over the bound",
            doubled(means),
            1.0,
            error=width(doubled),
            interval=BY_COPIES,
        ),
        *_adam_verdicts(data["adam"]),
    ]


def _adam_verdicts(rows: list[dict[str, Any]]) -> list[Verdict]:
    adam = {(row["kappa"], row["rule"], row["noise"]): row for row in rows}

    def worst(kappa: int, rule: str, noise: float = NOISE) -> dict[str, Any]:
        row, reference = adam[kappa, rule, noise], adam[1, "none", noise]
        changes = [abs(math.log(a / b)) for a, b in zip(row["deviations"], reference["deviations"], strict=True)]
        k = max(range(len(changes)), key=changes.__getitem__)
        return {
            "measured": changes[k],
            "error": 1.96 * math.hypot(row["errors"][k], reference["errors"][k]),
            "interval": BY_REPLICAS,
        }

    return [
        Verdict.at_most(
            "Adam, square-root rule, kappa = 4: deviations, largest change", bound=0.05, **worst(4, "root")
        ),
        Verdict.at_most(
            "Adam, square-root rule, kappa = 16: deviations, largest change", bound=0.1, **worst(16, "root")
        ),
        Verdict.at_most(
            "Adam, square-root rule, kappa = 64: deviations, largest change", bound=0.1, **worst(64, "root")
        ),
        Verdict.at_least(
            "the same with a hundredth of the noise, less than the signal at kappa = 64",
            bound=0.2,
            **worst(64, "root", QUIET),
        ),
        Verdict.at_least("Adam, linear rule, kappa = 16: deviations, largest change", bound=0.4, **worst(16, "linear")),
    ]


def draw(data: dict[str, Any], figure: "Figure") -> None:
    """Squared norms against kappa; deviations of Adam.

    Args:
        data: Of `measure`.
        figure: Empty.
    """
    left, right = figure.subplots(1, 2)
    rows = data["linear"]
    kappas = [row["kappa"] for row in rows]
    norms, widths = zip(*(mean_interval(row["squared_norms"]) for row in rows), strict=True)
    scaled, bars = ([value / norms[0] for value in values] for values in (norms, widths))
    left.errorbar(kappas, scaled, bars, fmt="o-", markersize=3, capsize=2, label="measured")
    left.set(xscale="log", yscale="log")
    signal, noise = (statistics.fmean(rows[0][name]) for name in ("signals", "noises"))
    left.loglog(kappas, [(k * signal + noise) / (signal + noise) for k in kappas], "k:", label="theory, from kappa = 1")
    left.axvline(2.0 * (1.0 + noise / signal), color="C3", linewidth=0.8, label="C^2 (1 + N / G)")
    left.set(xlabel="kappa", ylabel="squared norm over that of kappa = 1", title="SGD, rate and batch times kappa")
    left.legend(fontsize="x-small")
    for row in (row for row in data["adam"] if row["noise"] == NOISE):
        label = "kappa = 1" if row["rule"] == "none" else f"kappa = {row['kappa']}, {row['rule']} rule"
        right.plot(CURVATURES, row["deviations"], "o-", markersize=3, label=label)
    right.set(xlabel="curvature", ylabel="standard deviation", title="Adam", ylim=(0.0, None))
    right.legend(fontsize="x-small")
