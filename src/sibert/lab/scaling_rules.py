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
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sibert.dynamics import square_root_scaling
from sibert.lab.ensemble import Ensemble
from sibert.lab.experiment import Scale, Verdict
from sibert.lab.problems import digits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REFERENCES = ("li2021validity", "malladi2022sdes")
MINUTES: dict[Scale, float] = {"smoke": 0.3, "default": 2.0, "full": 15.0}
BATCH, LR, DECAY = 16, 0.05, 0.02
COPIES, WIDTHS = 16, (64, 16, 10)
KAPPAS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ADAM = {"lr": 0.01, "betas": (0.99, 0.99), "eps": 1.0}
CURVATURES = (0.5, 0.8, 1.0, 1.2, 1.5, 2.0)
NOISE = 10.0
REPLICAS, ADAM_STEPS = 4000, 6400


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
            {"kappa": kappa, "rule": rule, "deviations": _adam(kappa, rule, steps)}
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
    signal, noise = ensemble.noise(data, kappa * BATCH, 50, generator)
    with torch.no_grad():
        loss = ensemble.losses(data.train_BP[None], data.train_B[None]).mean().item()
    return {
        "kappa": kappa,
        "squared_norm": mean_S.mean().item(),
        "error": 1.96 * mean_S.std().item() / math.sqrt(COPIES),
        "signal": signal,
        "noise": noise,
        "loss": loss,
    }


def _adam(kappa: int, rule: str, steps: int) -> list[float]:
    """Standard deviations of the coordinates over replicas, after the same number of examples."""
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
    deviations: list[float] = x_RD.detach().std(0).tolist()
    return deviations


def _doubled(rows: list[dict[str, Any]]) -> float:
    """Kappa at which the squared norm is twice that of kappa = 1, between those that were run."""
    base = rows[0]["squared_norm"]
    before = rows[0]
    for row in rows[1:]:
        if row["squared_norm"] >= 2.0 * base:
            low, high = (math.log(one["squared_norm"] / base) for one in (before, row))
            share = (math.log(2.0) - low) / (high - low)
            return float(before["kappa"] * (row["kappa"] / before["kappa"]) ** share)
        before = row
    return math.inf


def judge(data: dict[str, Any]) -> list[Verdict]:
    """Where linear scaling holds and where it breaks; the square-root rule beside the linear one.

    Args:
        data: Of `measure`.
    """
    rows = data["linear"]
    base = rows[0]
    ratio = base["noise"] / base["signal"]
    bound = 2.0 * (1.0 + ratio)
    inside = [row for row in rows if row["kappa"] <= bound / 8.0]
    outside = [row for row in rows if row["kappa"] > bound]
    adam = {(row["kappa"], row["rule"]): row["deviations"] for row in data["adam"]}
    reference = adam[1, "none"]

    def worst(key: tuple[int, str]) -> float:
        return max(abs(math.log(now / then)) for now, then in zip(adam[key], reference, strict=True))

    return [
        Verdict.near(
            f"linear scaling, kappa up to an eighth of the bound C^2 (1 + N / G) = {bound:.3g}: squared norm over that "
            "of kappa = 1, furthest from 1",
            max((row["squared_norm"] / base["squared_norm"] for row in inside), key=lambda value: abs(value - 1.0)),
            1.0,
            0.25,
        ),
        Verdict.at_least(
            "kappa beyond the bound: squared norm over that of kappa = 1, smallest",
            min((row["squared_norm"] / base["squared_norm"] for row in outside), default=math.nan),
            2.0,
        ),
        Verdict.at_most("kappa at which the squared norm has doubled, over the bound", _doubled(rows) / bound, 1.0),
        Verdict.at_most("Adam, square-root rule, kappa = 4: deviations, largest change", worst((4, "root")), 0.05),
        Verdict.at_most("Adam, square-root rule, kappa = 16: deviations, largest change", worst((16, "root")), 0.1),
        Verdict.at_least("Adam, linear rule, kappa = 16: deviations, largest change", worst((16, "linear")), 0.4),
    ]


def draw(data: dict[str, Any], figure: "Figure") -> None:
    """Squared norms against kappa; deviations of Adam.

    Args:
        data: Of `measure`.
        figure: Empty.
    """
    left, right = figure.subplots(1, 2)
    rows = data["linear"]
    base = rows[0]
    kappas = [row["kappa"] for row in rows]
    left.loglog(kappas, [row["squared_norm"] / base["squared_norm"] for row in rows], "o-", label="measured")
    signal, noise = base["signal"], base["noise"]
    left.loglog(kappas, [(k * signal + noise) / (signal + noise) for k in kappas], "k:", label="theory, from kappa = 1")
    left.axvline(2.0 * (1.0 + noise / signal), color="C3", linewidth=0.8, label="C^2 (1 + N / G)")
    left.set(xlabel="kappa", ylabel="squared norm over that of kappa = 1", title="SGD, rate and batch times kappa")
    left.legend(fontsize="x-small")
    for row in data["adam"]:
        label = "kappa = 1" if row["rule"] == "none" else f"kappa = {row['kappa']}, {row['rule']} rule"
        right.plot(CURVATURES, row["deviations"], "o-", markersize=3, label=label)
    right.set(xlabel="curvature", ylabel="standard deviation", title="Adam", ylim=(0.0, None))
    right.legend(fontsize="x-small")
