"""After zero loss, label noise goes on working: it finds the sparse vector that gradient descent does not.

Near the manifold of minimisers, SGD with noise of covariance Sigma follows dY = P_T Sigma^(1/2) dW + drift dtau in the
time tau = eta^2 t, where the drift is half the second derivative of the gradient flow's end point, applied to Sigma. It
has three terms (see `sibert.dynamics.Drift`). With label noise Sigma is c times the Hessian, nothing diffuses, and the
drift is

    -(c/4) P_T grad tr H.

Here: linear regression with w = u^2 - v^2 (entrywise), where tr H on the manifold is 8 (|u|^2 + |v|^2) for features
+-1, at least 8 |w|_1. From any start SGD with labels y +- delta finds a solution of least l1 norm, the sparse one,
from O(k log d) examples; gradient descent from the same large start finds nearly the one of least l2 norm, and needs
about d.

arXiv 2110.06914. The constants for this loss are derived here.
"""

import math
import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sibert.dynamics import Minimiser, project
from sibert.lab.experiment import Scale, Verdict
from sibert.lab.intervals import bootstrap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REFERENCES = ("li2022zero",)
MINUTES: dict[Scale, float] = {"smoke": 0.5, "default": 8.0, "full": 45.0}
NONZERO, SEEDS, PLAIN_SEEDS = 3, 64, 8
"""Entries of the sparse vector; problems for each number of examples up to d / 2, where label noise begins to succeed;
how many of them gradient descent gets, and of problems for more examples."""
BY_SEEDS = "bootstrap of {} problems for each number of examples"
SHARES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Examples over dimensions in the phase diagram."""
STEPS: dict[Scale, int] = {"smoke": 800, "default": 2000, "full": 10_000}
"""Of SGD, for each dimension, with noise. Half the rate in four times as many left the l1 norms at
d = 32 as they were."""
RECOVERED = 0.05
"""Relative squared error of a vector that counts as found."""


def measure(scale: Scale) -> dict[str, Any]:
    """The drift, one large problem, and a phase diagram.

    Args:
        scale: Dimensions of the problems.
    """
    dimensions = {"smoke": (16, 32), "default": (32, 64, 128), "full": (32, 64, 128, 256)}[scale]
    d, n = (30, 18) if scale == "smoke" else (100, 40)
    phases = []
    for dimension in dimensions:
        counts = sorted({round(dimension * share) for share in SHARES})
        phases += [{"d": dimension, **row} for row in _phase(dimension, counts, STEPS[scale])]
    noisy, plain = _recover(d, {n: 1}, STEPS[scale], curve=True)
    return {"drift": _drift(), "large": {"d": d, "n": n, "noisy": noisy, "plain": plain}, "phases": phases}


def _drift() -> list[dict[str, float]]:
    """The drift by Hessian products against second differences of the projection, for random covariances."""
    generator = torch.Generator().manual_seed(1)
    A = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    B = 0.3 * torch.randn(2, 4, 4, generator=generator, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        r = A @ x + torch.einsum("kij,i,j->k", B, x, x)
        weights = torch.stack((1.0 + 0.3 * torch.sin(x[2]), 2.0 + 0.5 * x[3] ** 2))
        return 0.5 * (weights * r**2).sum() + 0.15 * r[0] * r[1]

    rows = []
    for _ in range(3):
        start = 0.3 * torch.randn(4, generator=generator, dtype=torch.float64)
        here = Minimiser(loss, project(loss, start, 1e-12))
        factor = torch.randn(4, 4, generator=generator, dtype=torch.float64)
        drift = here.drift(factor)
        h, half = 1e-3, torch.zeros(4, dtype=torch.float64)
        for column in factor.unbind(1):
            ends = [project(loss, here.point + sign * h * column, 1e-12) for sign in (1.0, -1.0)]
            half += (ends[0] + ends[1] - 2.0 * here.point) / (2.0 * h**2)
        size = half.norm().item()
        terms = (drift.curvature, drift.mixed, drift.regularization)
        rows.append(
            {
                "error": (drift.total - half).norm().item() / size,
                "smallest_term": min(term.norm().item() for term in terms) / size,
            }
        )
    return rows


def _recover(
    d: int, problems: dict[int, int], steps: int, curve: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Many problems at once, by SGD with label noise and by gradient descent; [R, d], R problems by their examples."""
    generator = torch.Generator().manual_seed(d)
    n_R = torch.tensor([n for n, seeds in problems.items() for _ in range(seeds)])
    runs, most = len(n_R), int(n_R.max())
    z_RND = torch.randint(2, (runs, most, d), generator=generator).double().mul_(2).sub_(1)
    w_D = torch.zeros(d, dtype=torch.float64)
    w_D[:NONZERO] = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)[:NONZERO]
    y_RN = z_RND @ w_D
    used_RN = (torch.arange(most) < n_R[:, None]).double()
    every = torch.arange(runs)

    def error(u: Tensor, v: Tensor) -> list[float]:
        return ((u * u - v * v - w_D).square().sum(1) / w_D.square().sum()).tolist()

    # eta |Hessian of one example| = eta 8 (|u|^2 + |v|^2) = 16 eta d at the start. As |u|^2 + |v|^2 falls, eta grows,
    # by less: time passes faster on the same flow, and steps become ever shorter for the curvature.
    first = 0.1 / d
    steps *= d
    u = torch.ones(runs, d, dtype=torch.float64)
    v = torch.ones(runs, d, dtype=torch.float64)
    eta_R1 = torch.full((runs, 1), first, dtype=torch.float64)
    watched = []
    for t in range(steps + steps // 4):
        chosen_R = (torch.rand(runs, generator=generator, dtype=torch.float64) * n_R).long()
        z_RD, y_R = z_RND[every, chosen_R], y_RN[every, chosen_R]
        if t < steps:  # afterwards without noise, so that the vector itself is seen
            y_R = y_R + torch.randint(2, (runs,), generator=generator).double().mul_(2).sub_(1)
        if curve and t % (steps // 50) == 0:
            watched.append([t, error(u, v)[0]])
        if t % 50 == 0:
            eta_R1 = first * (2.0 * d / (u * u + v * v).sum(1, keepdim=True)).sqrt()
        slope_RD = 4.0 * eta_R1 * ((z_RD * (u * u - v * v)).sum(1) - y_R)[:, None] * z_RD
        u, v = u * (1.0 - slope_RD), v * (1.0 + slope_RD)
    noisy = {"errors": error(u, v), "curve": watched, "eta": first, "steps": steps}
    least = [_least_l1(z_ND[:n].numpy(), w_D.numpy()) for z_ND, n in zip(z_RND, n_R.tolist(), strict=True)]
    noisy["least_l1"] = [float(((w - w_D.numpy()) ** 2).sum() / (w_D.numpy() ** 2).sum()) for w in least]

    plain_R = torch.tensor([k < PLAIN_SEEDS for seeds in problems.values() for k in range(seeds)]).nonzero().squeeze(1)
    z_RND, y_RN, used_RN, n_R, runs = z_RND[plain_R], y_RN[plain_R], used_RN[plain_R], n_R[plain_R], len(plain_R)
    u = torch.ones(runs, d, dtype=torch.float64)
    v = torch.ones(runs, d, dtype=torch.float64)
    eta = 0.25 / d
    for _ in range(20_000):
        rest_RN = (torch.bmm(z_RND, (u * u - v * v)[:, :, None])[:, :, 0] - y_RN) * used_RN
        slope_RD = 4.0 * eta / n_R[:, None] * torch.bmm(rest_RN[:, None, :], z_RND)[:, 0]
        u, v = u * (1.0 - slope_RD), v * (1.0 + slope_RD)
    rest_RN = (torch.bmm(z_RND, (u * u - v * v)[:, :, None])[:, :, 0] - y_RN) * used_RN
    plain = {"errors": error(u, v), "training_loss": (rest_RN.square().sum(1) / n_R).tolist(), "eta": eta}
    return noisy, plain


def _least_l1(z_ND: np.ndarray, w_D: np.ndarray) -> np.ndarray:
    """The vector of least l1 norm with the same products, by linear programming: w = p - q, p and q not negative."""
    from scipy.optimize import linprog

    d = len(w_D)
    found = linprog(np.ones(2 * d), A_eq=np.hstack((z_ND, -z_ND)), b_eq=z_ND @ w_D, method="highs")
    assert found.status == 0
    solution: np.ndarray = found.x[:d] - found.x[d:]
    return solution


def _phase(d: int, counts: list[int], steps: int) -> list[dict[str, Any]]:
    problems = {n: SEEDS if 2 * n <= d else PLAIN_SEEDS for n in counts}
    noisy, plain = _recover(d, problems, steps)
    rows, start = [], 0
    for i, (n, seeds) in enumerate(problems.items()):
        part, plain_part = slice(start, start + seeds), slice(i * PLAIN_SEEDS, (i + 1) * PLAIN_SEEDS)
        start += seeds
        rows.append(
            {
                "n": n,
                "noisy": [error < RECOVERED for error in noisy["errors"][part]],
                "least_l1": [error < RECOVERED for error in noisy["least_l1"][part]],
                "plain": [error < RECOVERED for error in plain["errors"][plain_part]],
            }
        )
    return rows


def _needed(phases: list[dict[str, Any]], d: int, learner: str) -> float:
    """Examples at which half of the problems are solved, between the counts that were tried."""
    rows = [row for row in phases if row["d"] == d]
    before, solved_before = 0, 0.0
    for row in rows:
        solved = statistics.fmean(row[learner])
        if solved >= 0.5:
            return float(before + (0.5 - solved_before) / (solved - solved_before) * (row["n"] - before))
        before, solved_before = row["n"], solved
    return math.inf


def _resampled(phases: list[dict[str, Any]], generator: np.random.Generator) -> list[dict[str, Any]]:
    """The same with problems drawn again, each with what label noise and linear programming made of it."""
    drawn = []
    for row in phases:
        both, plain = (generator.integers(len(row[name]), size=len(row[name])) for name in ("noisy", "plain"))
        chosen = {"noisy": both, "least_l1": both, "plain": plain}
        drawn.append({**row, **{name: [row[name][k] for k in places] for name, places in chosen.items()}})
    return drawn


def judge(data: dict[str, Any]) -> list[Verdict]:
    """The drift, recovery against failure, and how the number of examples grows with the dimension.

    Args:
        data: Of `measure`.
    """
    large, phases = data["large"], data["phases"]
    dimensions = sorted({row["d"] for row in phases})
    low, high = dimensions[0], dimensions[-1]

    def logarithmic(phases: list[dict[str, Any]]) -> float:
        return max(_needed(phases, d, "noisy") / (NONZERO * math.log(d)) for d in dimensions)

    def beside_l1(phases: list[dict[str, Any]]) -> float:
        return sum(_needed(phases, d, "noisy") / _needed(phases, d, "least_l1") for d in dimensions) / len(dimensions)

    def share(phases: list[dict[str, Any]]) -> float:
        return float(_needed(phases, high, "noisy") / high)

    def linear(phases: list[dict[str, Any]]) -> float:
        return float(min(_needed(phases, d, "plain") / d for d in dimensions))

    def found(number: Callable[[list[dict[str, Any]]], float], problems: int = SEEDS) -> dict[str, Any]:
        error = bootstrap(lambda generator: number(_resampled(phases, generator)))
        return {"measured": number(phases), "error": error, "interval": BY_SEEDS.format(problems)}

    return [
        Verdict.at_most(
            "limiting drift against second differences of the projection, largest relative error",
            max(row["error"] for row in data["drift"]),
            1e-4,
        ),
        Verdict.at_least(
            "share of the smallest of its three terms", min(row["smallest_term"] for row in data["drift"]), 0.02
        ),
        Verdict.at_most(
            f"d = {large['d']}, n = {large['n']}: relative squared error with label noise",
            large["noisy"]["errors"][0],
            0.01,
        ),
        Verdict.at_least("the same by gradient descent from the same start", large["plain"]["errors"][0], 0.2),
        Verdict.at_most("which has fitted the labels: training loss", large["plain"]["training_loss"][0], 1e-10),
        Verdict.at_most(
            f"label noise: examples needed over {NONZERO} ln d, largest of d = {low} to {high}",
            bound=2.5,
            **found(logarithmic),
        ),
        Verdict.near(
            "label noise: examples needed over those that linear programming for the least l1 norm needs, mean",
            predicted=1.0,
            relative=0.15,
            **found(beside_l1),
        ),
        Verdict.at_most(f"label noise: examples needed over d at d = {high}", bound=0.3, **found(share)),
        Verdict.at_least(
            f"gradient descent: examples needed over d, smallest of d = {low} to {high}",
            bound=0.7,
            **found(linear, PLAIN_SEEDS),
        ),
    ]


def draw(data: dict[str, Any], figure: "Figure") -> None:
    """Error by step, and the phase diagram.

    Args:
        data: Of `measure`.
        figure: Empty.
    """
    left, middle, right = figure.subplots(1, 3)
    large = data["large"]
    left.semilogy(*zip(*large["noisy"]["curve"], strict=True), label="SGD with label noise")
    left.axhline(large["plain"]["errors"][0], color="C1", label="gradient descent")
    left.set(xlabel="step", ylabel="relative squared error", title=f"d = {large['d']}, n = {large['n']}")
    left.legend(fontsize="x-small")
    for axis, learner, title in ((middle, "noisy", "label noise"), (right, "plain", "gradient descent")):
        for d in sorted({row["d"] for row in data["phases"]}):
            rows = [row for row in data["phases"] if row["d"] == d]
            axis.semilogx(
                [row["n"] for row in rows],
                [statistics.fmean(row[learner]) for row in rows],
                "o-",
                markersize=3,
                label=f"d = {d}",
            )
        axis.set(xlabel="examples", ylabel="share recovered", title=title)
    middle.legend(fontsize="x-small")
