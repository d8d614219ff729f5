"""SVAG tells whether a stochastic differential equation models a run; gradient noise tells in advance where it cannot.

The equation that is to model SGD is dX = -grad L dt + (eta Sigma)^(1/2) dW, one step of SGD being the time eta. SVAG
makes l steps of rate eta / l for one of SGD, with batches combined so that the mean of the gradient stays and its
covariance is l Sigma. Its law tends to that of the equation, with an error of order 1 / l. Where SGD (l = 1) and SVAG
agree, the equation models the run; where they do not, it does not.

On a scale-invariant loss with weight decay the squared norm R settles for SGD at (2 - eta lambda) lambda R =
eta (G + N), G the squared norm of the mean gradient and N the trace of its covariance; for the equation at
2 lambda R = eta N; for SVAG at 2 lambda R = eta (G / l + N). So the two can agree up to a factor C^2 = 2 only if
N / G >= 1 / (C^2 - 1) = 1. SGD and SVAG then differ by (G + N) / (G / l + N), which is 2 / (1 + 1 / l) at N / G = 1.

Here: a linear problem with skewed noise, whose moments are known exactly; and a normalised network on digits. A run at
a batch of 8 comes first; `gradient_noise` finds N / G there, above the bound, and predicts for a batch of 512 that it
is below. Then SGD and SVAG are run at both. With the Gaussian noise of the same
covariance in place of a batch's (NGD) the small batch gives the same. So it does for a network without normalisation,
which has no such balance of norms, at a learning rate far below the edge of stability.

arXiv 2102.12470. The bound is derived here.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sibert.dynamics import SVAG, GradientNoise, gaussian_example_weights, gradient_noise, svag_coefficients
from sibert.lab.ensemble import Ensemble
from sibert.lab.experiment import Scale, Verdict
from sibert.lab.intervals import bootstrap, mean_interval
from sibert.lab.pictures import Pictures, pictures
from sibert.lab.problems import NormalizedNet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REFERENCES = ("li2021validity",)
MINUTES: dict[Scale, float] = {"smoke": 0.3, "default": 3.0, "full": 30.0}
LR, CURVATURE, TIME = 0.2, 1.0, 10
"""Of the linear problem: x' = x - (eta / l) (h x + noise), from 1, TIME steps of SGD."""
LEVELS = (1, 2, 4, 8, 16, 32, 64)
COPIES, WIDTHS, DECAY = 16, (64, 16, 10), 5e-3
PILOT_TIMES, PILOT_BATCHES = 10, 32
"""When and on how many batches the noise is measured in the run that comes first."""
LATE_TIMES = 100
"""At which norm and loss are measured, and G + N is estimated."""
BY_COPIES, BOOTSTRAP = f"t, {COPIES} copies", f"bootstrap of {COPIES} copies"
SETTINGS = {"inside": (8, 0.3), "outside": (512, 2.0), "plain": (8, 0.2)}
"""Batch size and learning rate of the normalised network in two settings, and of the one without normalisation."""
NORMALIZED = ("inside", "outside")


def measure(scale: Scale) -> dict[str, Any]:
    """Exact errors of the linear problem, a simulation of it, and the network.

    Args:
        scale: Steps of the network.
    """
    steps = {"smoke": 60, "default": 1500, "full": 6000}[scale]
    many = 4 if scale != "full" else 8
    data = pictures(torch.float32)
    pilot = _pilot(data, steps)
    runs = []
    for name, (batch, lr) in SETTINGS.items():
        length = steps if name == "inside" else steps // 2
        levels = (1, many) if name == "outside" else (1, many, 0)
        runs += [{"setting": name, **_network(data, batch, lr, length, level, name in NORMALIZED)} for level in levels]
    return {
        "linear": [_moments(level) for level in LEVELS],
        "equation": _equation(),
        "simulated": _simulate(4),
        "pilot": pilot,
        "network": runs,
    }


def _pilot(data: Pictures, steps: int) -> dict[str, list[list[float]]]:
    """G and N of each copy of a run at the smaller batch, and what that means for the larger: [copies, 2]."""
    batch, lr = SETTINGS["inside"]
    ensemble = Ensemble(COPIES, WIDTHS, same=True)
    generator = torch.Generator().manual_seed(100)
    found: list[list[GradientNoise]] = [[] for _ in range(COPIES)]
    every = max(1, 2 * steps // (5 * PILOT_TIMES))
    for t in range(1, steps + 1):
        ensemble.step(ensemble.gradients(*ensemble.batch(data, batch, generator)), lr, DECAY)
        if t > 0.6 * steps and (steps - t) % every == 0:
            for copy, estimates in enumerate(found):
                estimates.append(_instrument(ensemble, copy, data, batch, generator))
    sizes = {name: SETTINGS[name][0] for name in NORMALIZED}
    return {
        name: [[sum(one.at(size).squared_mean for one in own), sum(one.at(size).trace for one in own)] for own in found]
        for name, size in sizes.items()
    }


def _instrument(ensemble: Ensemble, copy: int, data: Pictures, batch: int, generator: torch.Generator) -> GradientNoise:
    """`gradient_noise` of one of the networks, as a user has it."""
    net = NormalizedNet(WIDTHS)
    with torch.no_grad():
        for weight, w_SQP in zip([*net.matrices(), net.head.weight], ensemble.weights_SQP, strict=True):
            weight.copy_(w_SQP[copy])
    chosen = torch.randint(len(data.train_B), (PILOT_BATCHES, batch), generator=generator)
    batches = [(data.train_BP[some], data.train_B[some]) for some in chosen]
    return gradient_noise(net, lambda pair: F.cross_entropy(net(pair[0]), pair[1]), batches, batch)


def _third(c1: float, c2: float) -> float:
    return c1**3 + c2**3


def _moments(level: int) -> dict[str, float]:
    """Mean, variance and third central moment of the linear problem; the noise is exponential, less its mean."""
    c1, c2 = svag_coefficients(level)
    rate = LR / level
    mean, variance, third = 1.0, 0.0, 0.0
    for _ in range(TIME * level):
        shrink = 1.0 - rate * CURVATURE
        mean, variance = shrink * mean, shrink**2 * variance + rate**2 * (c1**2 + c2**2)
        third = shrink**3 * third - rate**3 * 2.0 * _third(c1, c2)
    return {"level": level, "cube": third + 3.0 * mean * variance + mean**3, "square": variance + mean**2}


def _equation() -> dict[str, float]:
    """The same of dX = -h X dt + sqrt(eta) dW at the time eta TIME."""
    time = LR * TIME
    mean = math.exp(-CURVATURE * time)
    variance = LR * (1.0 - mean**2) / (2.0 * CURVATURE)
    return {"cube": 3.0 * mean * variance + mean**3, "square": variance + mean**2}


def _simulate(level: int) -> dict[str, float]:
    """The linear problem by `SVAG` itself, many copies."""
    copies = 200_000
    generator = torch.Generator().manual_seed(0)
    x = nn.Parameter(torch.ones(copies, dtype=torch.float64))
    svag = SVAG(torch.optim.SGD([x], lr=LR), level)

    def closure() -> float:
        noise = -torch.rand(copies, generator=generator, dtype=torch.float64).log() - 1.0
        x.grad = CURVATURE * x.detach() + noise
        return 0.0

    for _ in range(TIME * level):
        svag.step(closure)
    cubes = x.detach() ** 3
    return {
        "level": level,
        "cube": cubes.mean().item(),
        "error": 1.96 * cubes.std().item() / math.sqrt(copies),
    }


def _network(data: Pictures, batch: int, lr: float, steps: int, level: int, normalized: bool) -> dict[str, Any]:
    """Squared norm and loss of many copies from the same weights; level 0 is noisy gradient descent."""
    ensemble = Ensemble(COPIES, WIDTHS, same=True, normalized=normalized)
    generator = torch.Generator().manual_seed(level)
    small = max(1, level)
    c1, c2 = svag_coefficients(small)
    rows, late_R, late_L, totals = [], [], [], []
    every = max(1, steps // 60)
    often = max(1, 2 * steps // (5 * LATE_TIMES))
    for t in range(steps):
        for _ in range(small):
            if level == 0:
                weights = [gaussian_example_weights(len(data.train_B), batch, generator) for _ in range(COPIES)]
                gradients = ensemble.gradients(data.train_BP[None], data.train_B[None], torch.stack(weights))
            else:
                gradients = ensemble.gradients(*ensemble.batch(data, batch, generator))
                if level > 1:
                    others = ensemble.gradients(*ensemble.batch(data, batch, generator))
                    gradients = [c1 * one + c2 * other for one, other in zip(gradients, others, strict=True)]
            ensemble.step(gradients, lr / small, DECAY)
        if t % every == 0:
            norms_S, losses_S = ensemble.squared_norms(), _full_loss(ensemble, data)
            rows.append([t, norms_S.mean().item(), _band(norms_S), losses_S.mean().item(), _band(losses_S)])
        if t >= 0.6 * steps and t % often == 0:
            late_R.append(ensemble.squared_norms())
            late_L.append(_full_loss(ensemble, data))
            if level == 1 and normalized:
                totals.append(ensemble.signal_and_total(data, batch, generator)[1])
    R_S, L_S = torch.stack(late_R).mean(0), torch.stack(late_L).mean(0)
    return {
        "level": level,
        "lr": lr,
        "batch": batch,
        "rows": rows,
        "squared_norm": [R_S.mean().item(), _band(R_S)],
        "loss": [L_S.mean().item(), _band(L_S)],
        "balance": _balance(R_S, torch.stack(totals).mean(0), lr) if totals else None,
    }


@torch.no_grad()
def _full_loss(ensemble: Ensemble, data: Pictures) -> Tensor:
    return ensemble.losses(data.train_BP[None], data.train_B[None])


def _band(values_S: Tensor) -> float:
    """Half width of the 95 % confidence interval of the mean."""
    return mean_interval(values_S.tolist())[1]


def _ratio(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Of two means with their intervals."""
    value = one[0] / other[0]
    return value, abs(value) * math.hypot(one[1] / one[0], other[1] / other[0])


def _balance(R_S: Tensor, total_S: Tensor, lr: float) -> tuple[float, float]:
    """(2 - eta lambda) lambda R over eta (G + N) of averages over time, with its interval: bootstrap of copies."""
    factor = (2.0 - lr * DECAY) * DECAY / lr
    R, total = R_S.numpy(), total_S.numpy()

    def drawn(generator: np.random.Generator) -> float:
        some = generator.integers(len(R), size=len(R))
        return float(factor * R[some].mean() / total[some].mean())

    return float(factor * R.mean() / total.mean()), bootstrap(drawn)


def _noise_to_signal(pilot: list[list[float]]) -> tuple[float, float]:
    """N / G of the mean over copies, with half its interval: bootstrap of copies."""
    both = np.asarray(pilot)

    def ratio(some: np.ndarray) -> float:
        signal, noise = both[some].mean(0)
        return float(noise / signal)

    everyone = np.arange(len(both))
    return ratio(everyone), bootstrap(lambda generator: ratio(generator.choice(everyone, len(both))))


def judge(data: dict[str, Any]) -> list[Verdict]:
    """Order of the error; agreement and separation where the noise predicts them.

    Args:
        data: Of `measure`.
    """
    exact = data["equation"]["cube"]
    errors = {row["level"]: abs(row["cube"] - exact) for row in data["linear"]}
    slope = math.log(errors[64] / errors[8]) / math.log(8.0)
    by_level = {row["level"]: row for row in data["linear"]}
    simulated = data["simulated"]
    runs = {(run["setting"], run["level"]): run for run in data["network"]}
    many = max(level for _, level in runs)

    def ratio(setting: str, level: int, of: str = "squared_norm") -> tuple[float, float]:
        one, other = runs[setting, 1][of], runs[setting, level][of]
        return _ratio(one, other)

    found = {setting: ratio(setting, many) for setting in SETTINGS}
    ngd = ratio("inside", 0)
    ratios = {setting: _noise_to_signal(pilot) for setting, pilot in data["pilot"].items()}
    balance, balance_error = max(
        (run["balance"] for run in data["network"] if run["balance"]), key=lambda pair: abs(pair[0] - 1.0)
    )
    return [
        Verdict.near("linear problem: slope of the error of E x^3 in l, from 8 to 64", slope, -1.0, 0.05),
        Verdict.near(
            f"linear problem: E x^3 by simulation with l = {simulated['level']}",
            simulated["cube"],
            by_level[simulated["level"]]["cube"],
            0.05,
            error=simulated["error"],
            interval="normal, 200,000 copies",
        ),
        Verdict.at_least(
            "batch of 8, in a run before: N / G, which the bound wants to be at least 1",
            ratios["inside"][0],
            1.0,
            error=ratios["inside"][1],
            interval=BOOTSTRAP,
        ),
        Verdict.near(
            f"batch of 8: squared norm of SGD over SVAG's, l = {many}",
            found["inside"][0],
            1.0,
            0.1,
            error=found["inside"][1],
            interval=BY_COPIES,
        ),
        Verdict.near(
            "batch of 8: squared norm of SGD over that with Gaussian noise",
            ngd[0],
            1.0,
            0.1,
            error=ngd[1],
            interval=BY_COPIES,
        ),
        Verdict.at_most(
            "predicted from it for a batch of 512: N / G, which the bound wants to be at least 1",
            ratios["outside"][0],
            1.0,
            error=ratios["outside"][1],
            interval=BOOTSTRAP,
        ),
        Verdict.at_least(
            f"batch of 512: squared norm of SGD over SVAG's, l = {many}, at least that of N / G = 1",
            found["outside"][0],
            2.0 / (1.0 + 1.0 / many),
            error=found["outside"][1],
            interval=BY_COPIES,
        ),
        Verdict.near(
            "SGD: (2 - eta lambda) lambda R over eta (G + N), the one of the two that is further from 1",
            balance,
            1.0,
            0.15,
            error=balance_error,
            interval=BOOTSTRAP,
        ),
        *(
            Verdict.near(
                f"without normalisation, batch of 8: {quantity} of SGD over {other}",
                value,
                1.0,
                0.05,
                error=error,
                interval=BY_COPIES,
            )
            for quantity, key in (("squared norm", "squared_norm"), ("loss", "loss"))
            for level, other in ((many, f"SVAG's, l = {many}"), (0, "that with Gaussian noise"))
            for value, error in (ratio("plain", level, key),)
        ),
    ]


def draw(data: dict[str, Any], figure: "Figure") -> None:
    """Errors of the linear problem, squared norms of the network.

    Args:
        data: Of `measure`.
        figure: Empty.
    """
    left, *networks = figure.subplots(1, 4)
    exact = data["equation"]
    for name in ("square", "cube"):
        values = [abs(row[name] - exact[name]) for row in data["linear"]]
        left.loglog(LEVELS, values, "o-", markersize=3, label=f"E x^{2 if name == 'square' else 3}")
    left.loglog(LEVELS, [values[0] / level for level in LEVELS], "k:", label="1 / l")
    left.set(xlabel="l", ylabel="error", title="linear problem")
    left.legend(fontsize="x-small")
    for run in data["network"]:
        axis = networks[list(SETTINGS).index(run["setting"])]
        label = {0: "Gaussian noise", 1: "SGD"}.get(run["level"], f"SVAG, l = {run['level']}")
        steps, norms, bands = zip(*((row[0], row[1], row[2]) for row in run["rows"]), strict=True)
        axis.plot(steps, norms, label=label)
        low, high = zip(*((n - b, n + b) for n, b in zip(norms, bands, strict=True)), strict=True)
        axis.fill_between(steps, low, high, alpha=0.3)
    for axis, setting in zip(networks, SETTINGS, strict=True):
        run = next(run for run in data["network"] if run["setting"] == setting)
        what = "no normalisation"
        if setting in NORMALIZED:
            what = f"batch {run['batch']}: N / G = {_noise_to_signal(data['pilot'][setting])[0]:.2g}"
        axis.set(xlabel="steps of SGD", ylabel="squared norm", title=what)
        axis.legend(fontsize="x-small")
