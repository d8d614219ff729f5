"""Gradient descent finds its own learning rate on the sphere, whatever rate it is given.

Without weight decay each step of gradient descent on a scale-invariant loss makes the weights longer, |w|^2 by
eta^2 |g|^2, and so the effective learning rate eta / |w|^2 smaller. With q the gradient at w / |w|,

    |w'|^4 = |w|^4 + 2 eta^2 q^2 + eta^4 q^4 / |w|^4
    eta / |w_t|^2 = [(|w_0|^2 / eta)^2 + 2 sum q_s^2 + ...]^(-1/2),

which is AdaGrad's rule for one learning rate. Therefore q goes to 0 for every eta. A step that is far too large cures
itself: it multiplies |w|^2 by the square of how much too large it was.

Here: least squares on the sphere in 20 dimensions, L(w) = |A w / |w| - b|^2 / 2, at seven rates over six orders of
magnitude; and the same with noise in the gradient, where q does not vanish and the law can be seen at work.

arXiv 1812.03981. The rate law is derived here from the norm's recursion.
"""

import math
from typing import TYPE_CHECKING, Any

import torch

from sibert.lab.experiment import Scale, Verdict
from sibert.lab.intervals import mean_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REFERENCES = ("arora2019auto",)
MINUTES: dict[Scale, float] = {"smoke": 0.1, "default": 1.0, "full": 10.0}
RATES = [10.0**k for k in range(-2, 5)]
DIMENSION, SEEDS = 20, 8
AFTER = 10
"""Steps after which the law without its last term is judged: the first ones may be huge."""


def measure(scale: Scale) -> dict[str, Any]:
    """Gradient descent at all rates at once, from the same weights; then the same with noise in the gradient.

    Args:
        scale: How many steps.
    """
    steps = {"smoke": 20_000, "default": 400_000, "full": 4_000_000}[scale]
    return {"rates": RATES, "exact": _run(steps, 0.0), "noisy": [_run(steps // 20, 1.0, seed) for seed in range(SEEDS)]}


def _run(steps: int, noise: float, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(DIMENSION, DIMENSION, generator=generator, dtype=torch.float64) / math.sqrt(DIMENSION)
    b = torch.randn(DIMENSION, generator=generator, dtype=torch.float64)
    w = torch.randn(DIMENSION, generator=generator, dtype=torch.float64)
    eta_E = torch.tensor(RATES, dtype=torch.float64)
    w_EN = (w / w.norm()).expand(len(RATES), -1).clone()
    squares_E, law_E = torch.zeros_like(eta_E), torch.zeros_like(eta_E)
    smallest_E = torch.full_like(eta_E, math.inf)
    watched = {round(10 ** (k / 8)) for k in range(8 * round(math.log10(steps)) + 1)} | {steps}
    rows: list[dict[str, Any]] = []
    first_E = eta_E
    for t in range(1, steps + 1):
        squared_E = w_EN.square().sum(1)
        u_EN = w_EN * squared_E.rsqrt()[:, None]
        slope_EN = (u_EN @ A.T - b) @ A
        if noise:
            slope_EN = slope_EN + noise * torch.randn(slope_EN.shape, generator=generator, dtype=torch.float64)
        slope_EN = slope_EN - (slope_EN * u_EN).sum(1, keepdim=True) * u_EN
        q2_E = slope_EN.square().sum(1)
        if t == 1:
            first_E = q2_E.sqrt()
        if t == AFTER:
            law_E = (squared_E / eta_E).square()
        law_E += 2.0 * q2_E
        squares_E += eta_E.square() * q2_E / squared_E
        smallest_E = torch.minimum(smallest_E, q2_E.sqrt())
        w_EN = w_EN - (eta_E * squared_E.rsqrt())[:, None] * slope_EN
        if t in watched:
            now_E = eta_E / w_EN.square().sum(1)
            rows.append(
                {
                    "step": t,
                    "effective_lr": now_E.tolist(),
                    "law": law_E.rsqrt().tolist() if t >= AFTER else None,
                    "smallest": smallest_E.tolist(),
                }
            )
    growth_E = w_EN.square().sum(1) - 1.0
    return {"first": first_E.tolist(), "norm_error": ((growth_E - squares_E).abs() / growth_E).tolist(), "rows": rows}


def judge(data: dict[str, Any]) -> list[Verdict]:
    """Pythagoras, the vanishing gradient, the cure of one step, and AdaGrad's law.

    Args:
        data: Of `measure`.
    """
    exact, noisy, rates = data["exact"], data["noisy"], data["rates"]
    large = rates[-1]
    cured = exact["rows"][0]["effective_lr"][-1] * large * exact["first"][-1] ** 2
    errors = [
        abs(now / law - 1.0)
        for run in noisy
        for row in run["rows"]
        if row["law"] and row["step"] > AFTER
        for now, law in zip(row["effective_lr"], row["law"], strict=True)
    ]
    slope, width = mean_interval([_slope(run, rates.index(1.0)) for run in noisy])
    return [
        Verdict.at_most(
            "|w|^2 against the sum of squared steps, largest relative error", max(exact["norm_error"]), 1e-10
        ),
        Verdict.at_most(
            "smallest gradient on the sphere over the first one, largest of the rates 1e-2 to 1e4",
            max(now / first for now, first in zip(exact["rows"][-1]["smallest"], exact["first"], strict=True)),
            1e-2,
        ),
        Verdict.near(
            f"effective learning rate after one step at {large:g}, times eta q_0^2", cured, 1.0, relative=1e-3
        ),
        Verdict.at_most(
            f"with noise, {SEEDS} problems: effective learning rate against AdaGrad's law after step {AFTER}, largest "
            "relative error",
            max(errors),
            0.01,
        ),
        Verdict.near(
            "with noise, rate 1: slope of the effective learning rate over the last decade of steps",
            slope,
            -0.5,
            0.02,
            error=width,
            interval=f"t, {SEEDS} problems",
        ),
    ]


def _slope(run: dict[str, Any], rate: int) -> float:
    """Of the effective learning rate's logarithm in that of time, over the last decade."""
    end = run["rows"][-1]
    middle = min(run["rows"], key=lambda row: abs(math.log(10.0 * row["step"] / end["step"])))
    return math.log(end["effective_lr"][rate] / middle["effective_lr"][rate]) / math.log(end["step"] / middle["step"])


def draw(data: dict[str, Any], figure: "Figure") -> None:
    """Gradients without noise, effective learning rates with it.

    Args:
        data: Of `measure`.
        figure: Empty.
    """
    left, right = figure.subplots(1, 2)
    for i, eta in enumerate(data["rates"]):
        rows = data["exact"]["rows"]
        smallest = [max(row["smallest"][i], 1e-17) for row in rows]
        (line,) = left.loglog([row["step"] for row in rows], smallest, label=f"{eta:g}")
        rows = data["noisy"][0]["rows"]
        right.loglog([row["step"] for row in rows], [row["effective_lr"][i] for row in rows], color=line.get_color())
        rows = [row for row in rows if row["law"]]
        right.loglog([row["step"] for row in rows], [row["law"][i] for row in rows], "k:", linewidth=1)
    left.set(xlabel="step", ylabel="smallest gradient on the sphere so far", title="gradient descent")
    right.set(xlabel="step", ylabel="effective learning rate", title="with noise (dotted: AdaGrad's law)")
    left.legend(title="learning rate", fontsize="x-small")
