"""Gradient descent with weight decay on a scale-invariant loss never settles; without weight decay it does.

Weight decay shortens the weights as long as the gradient is small, the effective learning rate eta / |w|^2 grows
exponentially, and once it exceeds 2 over the curvature the run is thrown out of its minimum. The step that throws it
out makes the weights long again, and all begins anew.

Here: L = x^2 / (x^2 + y^2) in the plane; least squares on the sphere with isotropic data, where correlation q with the
target and effective rate Phi obey

    q' = (q + Phi (1 - q^2)) / s,   Phi' = Phi / (a^2 s^2),   s^2 = 1 + Phi^2 (1 - q^2),   a = 1 - eta lambda

with the one fixed point q = sqrt((1 + a) / 2), Phi = sqrt(2 (1 + a)) / a, an unstable spiral: its Jacobian has the
modulus sqrt(1 + a - a^2) > 1; and a normalised network trained on digits by the gradient of all examples.

arXiv 2010.02916.
"""

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from torch.optim import SGD

from sibert.lab.experiment import Scale, Verdict
from sibert.lab.pictures import pictures
from sibert.lab.problems import NormalizedNet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REFERENCES = ("li2020reconciling",)
MINUTES: dict[Scale, float] = {"smoke": 0.1, "default": 1.5, "full": 15.0}
LR, DECAY = 0.1, 0.05
"""Of the toy."""
NET_LR, NET_DECAY = 0.5, 2e-3
EXAMPLES = 200


def measure(scale: Scale) -> dict[str, Any]:
    """Losses of toy and network with weight decay and without; the spiral of the isotropic problem.

    Args:
        scale: How many steps.
    """
    steps = {"smoke": 1000, "default": 20_000, "full": 200_000}[scale]
    return {
        "toy": {name: _toy(decay, steps) for name, decay in (("decay", DECAY), ("none", 0.0))},
        "spiral": _spiral(1.0 - LR * DECAY),
        "net": {name: _net(decay, steps) for name, decay in (("decay", NET_DECAY), ("none", 0.0))},
    }


def _toy(decay: float, steps: int) -> list[float]:
    x, y = 0.6, 0.8
    losses = []
    for _ in range(steps):
        squared = x * x + y * y
        losses.append(x * x / squared)
        slope = 2.0 * x * y / squared**2
        x, y = (1.0 - LR * decay) * x - LR * slope * y, (1.0 - LR * decay) * y + LR * slope * x
    return losses


def _spiral(a: float) -> dict[str, Any]:
    """Distance to the fixed point by step, from next to it; and the modulus that it grows by."""
    q_fixed, rate_fixed = math.sqrt((1.0 + a) / 2.0), math.sqrt(2.0 * (1.0 + a)) / a

    def step(q: float, rate: float) -> tuple[float, float]:
        squared = 1.0 + rate**2 * (1.0 - q**2)
        return (q + rate * (1.0 - q**2)) / math.sqrt(squared), rate / (a**2 * squared)

    h = 1e-7
    columns = [
        [(one - other) / (2.0 * h) for one, other in zip(step(*plus), step(*minus), strict=True)]
        for plus, minus in (
            ((q_fixed + h, rate_fixed), (q_fixed - h, rate_fixed)),
            ((q_fixed, rate_fixed + h), (q_fixed, rate_fixed - h)),
        )
    ]
    modulus = math.sqrt(abs(columns[0][0] * columns[1][1] - columns[0][1] * columns[1][0]))
    q, rate = q_fixed, rate_fixed * (1.0 + 1e-9)
    distances: list[float] = []
    while not distances or distances[-1] < 0.1:
        distances.append(math.hypot(q - q_fixed, rate - rate_fixed))
        q, rate = step(q, rate)
    moved = step(q_fixed, rate_fixed)
    return {
        "a": a,
        "fixed_error": math.hypot(moved[0] - q_fixed, moved[1] - rate_fixed),
        "modulus": modulus,
        "distances": distances,
    }


def _net(decay: float, steps: int) -> dict[str, list[float]]:
    data = pictures(torch.float32)
    x, y = data.train_BP[:EXAMPLES], data.train_B[:EXAMPLES]
    net = NormalizedNet((64, 32, 10))
    optimizer = SGD(net.matrices(), lr=NET_LR, weight_decay=decay)
    losses, norms = [], []
    for _ in range(steps):
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.item())
        norms.append(net.matrices()[0].detach().square().sum().item())
        optimizer.step()
    return {"losses": losses, "effective_lr": [NET_LR / norm for norm in norms]}


def judge(data: dict[str, Any]) -> list[Verdict]:
    """With decay losses rise again and again; without they do not.

    Args:
        data: Of `measure`.
    """
    toy, net, spiral = data["toy"], data["net"], data["spiral"]
    late = {name: losses[len(losses) // 2 :] for name, losses in toy.items()}
    later = {name: run["losses"][len(run["losses"]) // 2 :] for name, run in net.items()}
    a = spiral["a"]
    inside = [d for d in spiral["distances"] if 1e-8 < d < 1e-3]
    growth = (inside[-1] / inside[0]) ** (1.0 / (len(inside) - 1))
    rates = net["decay"]["effective_lr"]
    ratios = sorted(after / before for before, after in pairwise(rates))
    return [
        Verdict.at_least("toy with decay: largest loss of the second half", max(late["decay"]), 0.1),
        Verdict.at_most("toy with decay: smallest loss of the second half", min(late["decay"]), 1e-12),
        Verdict.at_most("toy without decay: largest loss of the second half", max(late["none"]), 1e-12),
        Verdict.at_most("isotropic problem: one step moves the fixed point by", spiral["fixed_error"], 1e-12),
        Verdict.near("isotropic problem: modulus of the Jacobian", spiral["modulus"], math.sqrt(1.0 + a - a**2), 1e-6),
        Verdict.near("isotropic problem: growth of a deviation by step", growth, math.sqrt(1.0 + a - a**2), 1e-4),
        Verdict.at_least("network with decay: largest loss of the second half", max(later["decay"]), 0.1),
        Verdict.at_most("network with decay: smallest loss of the second half", min(later["decay"]), 0.01),
        Verdict.at_most("network without decay: largest loss of the second half", max(later["none"]), 0.01),
        Verdict.near(
            "network with decay: growth of the effective learning rate by step, median",
            ratios[len(ratios) // 2],
            (1.0 - NET_LR * NET_DECAY) ** -2,
            1e-5,
        ),
    ]


def draw(data: dict[str, Any], figure: "Figure") -> None:
    """Losses of toy and network, and the network's effective learning rate.

    Args:
        data: Of `measure`.
        figure: Empty.
    """
    left, middle, right = figure.subplots(1, 3)
    for name, label in (("decay", "with weight decay"), ("none", "without")):
        losses = data["toy"][name][-4000:]
        left.semilogy([max(loss, 1e-20) for loss in losses], linewidth=0.8, label=label)
        run = data["net"][name]
        middle.semilogy(run["losses"], linewidth=0.8)
        right.semilogy(run["effective_lr"], linewidth=0.8)
    left.set(xlabel="last 4000 steps", ylabel="loss", title="x^2 / (x^2 + y^2)")
    middle.set(xlabel="step", ylabel="loss", title="network, gradient of all examples")
    right.set(xlabel="step", ylabel="effective learning rate", title="network")
    left.legend(fontsize="x-small")
