"""At the edge of stability, normalised descent, descent on sqrt(L), and weight decay all walk towards flat minima.

Steps that are too long for the curvature overshoot the valley, and swing from one of its sides to the other. The swing
is felt along the valley, too: it drives the iterates towards smaller lambda_1, the largest eigenvalue of the Hessian.
On the manifold of minimisers they follow

    x - eta grad L / |grad L|      dX = -(1/4) P_T grad log lambda_1 dtau       tau = eta^2 t
    x - eta grad sqrt(L)           dX = -(1/8) P_T grad lambda_1 dtau           tau = eta^2 t
    GD + weight decay, |x| = 1     dX = -2 G / (4 + |G|^2) dtau                 tau = eta lambda t,

G = P_T grad log lambda_1 on the sphere. With the stableness S_t, rate times lambda_1, where the rate is eta / |grad L|
or eta / (2 sqrt(L)), two successive steps obey 1 / S_t + 1 / S_t+1 = 1; sqrt(L_t) + sqrt(L_t+1) is
eta sqrt(lambda_1 / 2) or eta lambda_1 / 2; and with weight decay effective learning rate times spherical sharpness is
2 on average.

Here: L = (1 + x^2) y^2, and on the sphere L = (2 + cos phi) z^2 / (2 |w|^2).

arXiv 2205.09745, 2206.07085. The constants of the third flow are derived here.
"""

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sibert.dynamics import follow, normalized_gd_velocity, sphere_velocity, sqrt_loss_velocity
from sibert.lab.experiment import Scale, Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REFERENCES = ("arora2022understanding", "lyu2022understanding")
MINUTES: dict[Scale, float] = {"smoke": 0.1, "default": 0.3, "full": 3.0}
TIME, START = 3.0, 2.0
SPHERE_START, SPHERE_ETA = 0.6, 0.05
NAMES = {"normalised": "normalised gradient descent", "root": "gradient descent on sqrt(L)"}


def measure(scale: Scale) -> dict[str, Any]:
    """The algorithms at several rates, and the flows.

    Args:
        scale: How small the rates become.
    """
    rates = {"smoke": (0.1, 0.05), "default": (0.1, 0.05, 0.025), "full": (0.1, 0.05, 0.025, 0.0125)}[scale]
    products = {"smoke": (1e-3,), "default": (1e-3, 2.5e-4, 6.25e-5), "full": (1e-3, 2.5e-4, 6.25e-5, 1.5e-5)}[scale]
    starts = 4 if scale == "smoke" else 16

    def valley(x: Tensor) -> Tensor:
        return (1.0 + x[0] ** 2) * x[1] ** 2

    def sphere(x: Tensor) -> Tensor:
        return 0.5 * (2.0 + torch.cos(torch.atan2(x[1], x[0]))) * x[2] ** 2 / (x @ x)

    begin = torch.tensor([START, 0.0], dtype=torch.float64)
    on_sphere = torch.tensor([math.cos(SPHERE_START), math.sin(SPHERE_START), 0.0], dtype=torch.float64)
    angles = [math.atan2(x[1], x[0]) for x in follow(sphere, on_sphere, sphere_velocity, TIME)]
    flows = {
        "normalised": [x[0].item() for x in follow(valley, begin, normalized_gd_velocity, TIME)],
        "root": [x[0].item() for x in follow(valley, begin, sqrt_loss_velocity, TIME)],
        "decay": angles,
    }
    valleys = {kind: [_valley(kind, eta, starts) for eta in rates] for kind in NAMES}
    return {"flows": flows, "valleys": valleys, "decay": [_sphere(product, starts) for product in products]}


def _valley(kind: str, eta: float, starts: int) -> dict[str, Any]:
    """Runs from several distances to the valley: averages of the second half, and the mean end."""
    steps = round(TIME / eta**2)
    y = torch.linspace(0.2, 0.8, starts, dtype=torch.float64) * eta
    x = torch.full_like(y, START)
    path, roots, stable = [], [], []
    for t in range(steps + 1):
        curvature = 1.0 + x**2
        top = 2.0 * curvature  # lambda_1 on the valley
        slope_x, slope_y = 2.0 * x * y**2, 2.0 * curvature * y
        root = curvature.sqrt() * y.abs()
        rate = eta / torch.hypot(slope_x, slope_y) if kind == "normalised" else eta / (2.0 * root)
        if t % max(1, steps // 100) == 0:
            path.append([t * eta**2, x.mean().item()])
        if t >= steps // 2:
            roots.append(root / (eta * (top / 2.0).sqrt() if kind == "normalised" else eta * top / 2.0))
            stable.append(1.0 / (rate * top))
        if t < steps:
            x, y = x - rate * slope_x, y - rate * slope_y
    sums = torch.stack(roots)
    inverse = torch.stack(stable)
    return {
        "eta": eta,
        "end": x.mean().item(),
        "path": path,
        "root_sum": (sums[1:] + sums[:-1]).mean().item(),
        "stableness_sum": (inverse[1:] + inverse[:-1]).mean().item(),
    }


def _sphere(product: float, starts: int) -> dict[str, Any]:
    """Gradient descent with weight decay from several heights above the equator."""
    steps = round(TIME / product)
    decay = product / SPHERE_ETA
    z = torch.logspace(-4, -2, starts, dtype=torch.float64)
    length = math.sqrt(SPHERE_ETA * (2.0 + math.cos(SPHERE_START)) / 2.0)  # effective rate times sharpness = 2
    x = torch.full_like(z, length * math.cos(SPHERE_START))
    y = torch.full_like(z, length * math.sin(SPHERE_START))
    z = z * length
    path, edge = [], []
    for t in range(steps + 1):
        squared = x**2 + y**2 + z**2
        plane = x**2 + y**2
        cosine = x / plane.sqrt()
        factor = 2.0 + cosine
        rate = SPHERE_ETA / ((1.0 - product) * squared)
        if t >= steps // 4:
            edge.append(rate * factor)
        if t % max(1, steps // 100) == 0:
            path.append([t * product, torch.atan2(y, x).mean().item()])
        if t == steps:
            break
        # of L = factor z^2 / (2 |w|^2); d cos(phi) = -sin(phi) dphi
        turn = y / plane.sqrt() * z**2 / (2.0 * squared) / plane
        common = factor * z**2 / squared**2
        gx, gy, gz = turn * y - common * x, -turn * x - common * y, factor * z / squared - common * z
        x, y, z = (
            (1.0 - product) * x - SPHERE_ETA * gx,
            (1.0 - product) * y - SPHERE_ETA * gy,
            (1.0 - product) * z - SPHERE_ETA * gz,
        )
    return {
        "product": product,
        "decay": decay,
        "end": torch.atan2(y, x).mean().item(),
        "path": path,
        "edge": torch.stack(edge).mean().item(),
    }


def judge(data: dict[str, Any]) -> list[Verdict]:
    """Ends against flows, and the identities.

    Args:
        data: Of `measure`.
    """
    verdicts = []
    for kind, label in NAMES.items():
        runs, target = data["valleys"][kind], data["flows"][kind][-1]
        errors = [abs(run["end"] - target) for run in runs]
        last = runs[-1]
        verdicts += [
            Verdict.near(f"{label}, eta {last['eta']:g}: end point", last["end"], target, absolute=last["eta"] / 10.0),
            Verdict.at_least(
                f"{label}: error of the end point at eta over that at eta / 2, smallest",
                min(a / b for a, b in pairwise(errors)),
                1.8,
            ),
            Verdict.near(f"{label}: 1 / S_t + 1 / S_t+1, mean", last["stableness_sum"], 1.0, 0.005),
            Verdict.near(f"{label}: sqrt(L_t) + sqrt(L_t+1) over theory's sum, mean", last["root_sum"], 1.0, 0.005),
        ]
    runs, target = data["decay"], data["flows"]["decay"][-1]
    return [
        *verdicts,
        Verdict.near("weight decay on the sphere: angle at the end", runs[-1]["end"], target, absolute=2e-3),
        Verdict.near(
            "weight decay on the sphere: effective learning rate times sharpness, mean", runs[-1]["edge"], 2.0, 0.005
        ),
    ]


def draw(data: dict[str, Any], figure: "Figure") -> None:
    """Paths and flows.

    Args:
        data: Of `measure`.
        figure: Empty.
    """
    axes = figure.subplots(1, 3)
    for axis, (kind, label) in zip(axes, [*NAMES.items(), ("decay", "GD + weight decay, sphere")], strict=True):
        runs = data["decay"] if kind == "decay" else data["valleys"][kind]
        for run in runs:
            name = f"eta lambda {run['product']:g}" if kind == "decay" else f"eta {run['eta']:g}"
            axis.plot(*zip(*run["path"], strict=True), linewidth=1, label=name)
        flow = data["flows"][kind]
        axis.plot([TIME * k / (len(flow) - 1) for k in range(len(flow))], flow, "k:", label="flow")
        axis.set(xlabel="tau", ylabel="angle" if kind == "decay" else "x", title=label)
        axis.title.set_fontsize("small")
        axis.legend(fontsize="x-small")
