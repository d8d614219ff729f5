"""Batch and learning rate grow together, linearly for SGD and by the square root for Adam, as far as the noise allows.

Batches kappa times as large have a kappa-th of the noise. SGD at kappa eta then has the same diffusion in the same
number of examples. On a scale-invariant loss with weight decay the squared norm R settles at 2 lambda R = eta (G + N),
G the squared norm of the mean gradient and N the trace of a batch's covariance, and at kappa times both

    R_kappa / R = (kappa G + N) / (G + N).

So norms, gradients and noise can stay the same up to a factor C^2 = 2 only if kappa <= C^2 (1 + N / G), a number known
from the small batch alone. Of Adam the same law needs sqrt(kappa) eta, kappa (1 - b_1), kappa (1 - b_2) and
epsilon / sqrt(kappa), in a kappa-th of the steps.

Here: a normalised network on digits at batches of 16 and up to 256 times that; Adam on a quadratic in six dimensions.

arXiv 2102.12470, 2205.10287. The bound and the norm's law are derived here.
"""

import math
import statistics
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from sibert.dynamics import square_root_scaling
from sibert.lab.ensemble import Ensemble
from sibert.lab.experiment import Scale, Verdict
from sibert.lab.intervals import bootstrap, mean_interval
from sibert.lab.problems import digits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REFERENCES = ("li2021validity", "malladi2022sdes")
MINUTES: dict[Scale, float] = {"smoke": 0.3, "default": 2.0, "full": 15.0}
BATCH, LR, DECAY = 16, 0.05, 0.02
COPIES, WIDTHS = 16, (64, 16, 10)
BY_COPIES = f"bootstrap of {COPIES} copies"
KAPPAS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ADAM = {"lr": 0.01, "betas": (0.99, 0.99), "eps": 1.0}
CURVATURES = (0.5, 0.8, 1.0, 1.2, 1.5, 2.0)
NOISE = 10.0
REPLICAS, ADAM_STEPS = 4000, 6400
BY_REPLICAS = f"normal, {REPLICAS} replicas"


def measure(scale: Scale) -> dict[str, Any]:
    """Norms and gradients at equilibrium for every kappa; deviations of Adam's iterates.

    Args:
        scale: Steps at the smallest batch, in units of 1 / (eta lambda).
    """
    units = {"smoke": 1.0, "default": 6.0, "full": 30.0}[scale]
    kappas = KAPPAS if scale != "smoke" else KAPPAS[::4]
    steps = ADAM_STEPS if scale != "smoke" else 640
    return {
        "linear": [_sgd(kappa, units) for kappa in kappas],
        "adam": [
            {"kappa": kappa, "rule": rule, **_adam(kappa, rule, steps)}
            for kappa, rule in ((1, "none"), (4, "root"), (16, "root"), (16, "linear"))
        ],
    }


def _sgd(kappa: int, units: float) -> dict[str, Any]:
    data = digits(torch.float32)
    ensemble = Ensemble(COPIES, WIDTHS, same=True)
    generator = torch.Generator().manual_seed(kappa)
    lr = kappa * LR
    steps = max(8, round(units / (lr * DECAY)))
    norms = []
    for t in range(steps):
        ensemble.step(ensemble.gradients(*ensemble.batch(data, kappa * BATCH, generator)), lr, DECAY)
        if t >= steps // 2:
            norms.append(ensemble.squared_norms())
    mean_S = torch.stack(norms).mean(0)
    signal_S, noise_S = ensemble.noise(data, kappa * BATCH, 50, generator)
    with torch.no_grad():
        loss = ensemble.losses(data.train_BP[None], data.train_B[None]).mean().item()
    return {
        "kappa": kappa,
        "squared_norms": mean_S.tolist(),
        "signals": signal_S.tolist(),
        "noises": noise_S.tolist(),
        "loss": loss,
    }


def _adam(kappa: int, rule: str, steps: int) -> dict[str, list[float]]:
    """Standard deviations of the coordinates over replicas, after the same number of examples.

    And standard errors of their logarithms: (m_4 / s^4 - 1) / (4 n) is the variance of ln s.
    """
    generator = torch.Generator().manual_seed(0)
    settings: dict[str, Any] = dict(ADAM)
    if rule == "root":
        settings = square_root_scaling(kappa, ADAM["lr"], ADAM["betas"], ADAM["eps"])  # type: ignore[arg-type]
    elif rule == "linear":
        settings["lr"] = kappa * ADAM["lr"]  # type: ignore[operator]
    h_D = torch.tensor(CURVATURES, dtype=torch.float64)
    x_RD = nn.Parameter(torch.zeros(REPLICAS, len(CURVATURES), dtype=torch.float64))
    optimizer = torch.optim.Adam([x_RD], **settings)
    for _ in range(steps // kappa):
        noise_RD = torch.randn(x_RD.shape, generator=generator, dtype=torch.float64)
        x_RD.grad = h_D * x_RD.detach() + NOISE / math.sqrt(kappa) * noise_RD
        optimizer.step()
    x_RD = x_RD.detach() - x_RD.detach().mean(0)  # type: ignore[assignment]
    fourth_D = (x_RD / x_RD.std(0)).pow(4).mean(0)
    return {"deviations": x_RD.std(0).tolist(), "errors": ((fourth_D - 1.0) / (4.0 * REPLICAS)).sqrt().tolist()}


def _doubled(kappas: list[int], norms: list[float]) -> float:
    """Kappa at which the squared norm is twice that of kappa = 1, between those that were run."""
    for (kappa, norm), (larger, more) in pairwise(zip(kappas, norms, strict=True)):
        if more >= 2.0 * norms[0]:
            share = math.log(2.0 * norms[0] / norm) / math.log(more / norm)
            return float(kappa * (larger / kappa) ** share)
    return math.inf


def _resampled(rows: list[dict[str, Any]], generator: np.random.Generator) -> tuple[float, list[float]]:
    """Bound and squared norms of copies that are drawn again, of each kappa by themselves."""
    base = rows[0]
    chosen = generator.integers(COPIES, size=(len(rows), COPIES))
    norms = [float(np.asarray(row["squared_norms"])[some].mean()) for row, some in zip(rows, chosen, strict=True)]
    signal, noise = (float(np.asarray(base[name])[chosen[0]].mean()) for name in ("signals", "noises"))
    return 2.0 * (1.0 + noise / signal), norms


def judge(data: dict[str, Any]) -> list[Verdict]:
    """Where linear scaling holds and where it breaks; the square-root rule beside the linear one.

    Args:
        data: Of `measure`.
    """
    rows = data["linear"]
    kappas = [row["kappa"] for row in rows]
    signal, noise = (statistics.fmean(rows[0][name]) for name in ("signals", "noises"))
    norms = [statistics.fmean(row["squared_norms"]) for row in rows]
    bound = 2.0 * (1.0 + noise / signal)
    # Where the noise allows none, the first beyond the bound's eighth stands in, and the verdict may well fail.
    inside = [k for k, kappa in enumerate(kappas) if 1 < kappa <= bound / 8.0] or [1]
    outside = [k for k, kappa in enumerate(kappas) if kappa > bound]
    furthest = max(inside, key=lambda k: abs(norms[k] / norms[0] - 1.0))
    smallest = min(outside, key=lambda k: norms[k], default=None)

    def width(number: Callable[[float, list[float]], float]) -> float:
        return bootstrap(lambda generator: number(*_resampled(rows, generator)))

    def doubled(bound: float, norms: list[float]) -> float:
        return _doubled(kappas, norms) / bound

    return [
        # theory: R_kappa / R <= 1 + kappa / (1 + N / G) = 1 + C^2 / 8
        Verdict.near(
            f"linear scaling, kappa up to an eighth of the bound C^2 (1 + N / G) = {bound:.3g}: squared norm over that "
            "of kappa = 1, furthest from 1",
            norms[furthest] / norms[0],
            1.0,
            0.25,
            error=width(lambda _, norms: norms[furthest] / norms[0]),
            interval=BY_COPIES,
        ),
        Verdict.at_least(
            "kappa beyond the bound: squared norm over that of kappa = 1, smallest",
            math.nan if smallest is None else norms[smallest] / norms[0],
            2.0,
            error=None if smallest is None else width(lambda _, norms: norms[smallest] / norms[0]),
            interval=BY_COPIES,
        ),
        Verdict.at_most(
            "kappa at which the squared norm has doubled, over the bound",
            doubled(bound, norms),
            1.0,
            error=width(doubled),
            interval=BY_COPIES,
        ),
        *_adam_verdicts(data["adam"]),
    ]


def _adam_verdicts(rows: list[dict[str, Any]]) -> list[Verdict]:
    adam = {(row["kappa"], row["rule"]): row for row in rows}
    reference = adam[1, "none"]

    def worst(key: tuple[int, str]) -> dict[str, Any]:
        row = adam[key]
        changes = [abs(math.log(a / b)) for a, b in zip(row["deviations"], reference["deviations"], strict=True)]
        k = max(range(len(changes)), key=changes.__getitem__)
        return {
            "measured": changes[k],
            "error": 1.96 * math.hypot(row["errors"][k], reference["errors"][k]),
            "interval": BY_REPLICAS,
        }

    return [
        Verdict.at_most(
            "Adam, square-root rule, kappa = 4: deviations, largest change", bound=0.05, **worst((4, "root"))
        ),
        Verdict.at_most(
            "Adam, square-root rule, kappa = 16: deviations, largest change", bound=0.1, **worst((16, "root"))
        ),
        Verdict.at_least(
            "Adam, linear rule, kappa = 16: deviations, largest change", bound=0.4, **worst((16, "linear"))
        ),
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
    for row in data["adam"]:
        label = "kappa = 1" if row["rule"] == "none" else f"kappa = {row['kappa']}, {row['rule']} rule"
        right.plot(CURVATURES, row["deviations"], "o-", markersize=3, label=label)
    right.set(xlabel="curvature", ylabel="standard deviation", title="Adam", ylim=(0.0, None))
    right.legend(fontsize="x-small")
