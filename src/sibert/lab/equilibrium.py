"""Weight decay and gradient balance: norm and rotation of a scale-invariant group are known in advance.

A step of SGD makes x longer, |x|^2 by eta^2 |g|^2, and weight decay makes it shorter. With g^2 the mean squared
gradient at x / |x|, the norm moves like

    d|x|^4 / dt = -4 eta lambda |x|^4 + 2 eta^2 g^2

and settles where each step turns x by sqrt(2 eta lambda), whatever g is. Of gradients that do not know of each other:

    SGD, momentum m    angle^2 = 2 eta lambda / (1 + m)               |x|^4 = eta g^2 / (2 lambda (1 - m))
    AdamW              angle^2 = 2 eta lambda (1 - b1) / (1 + b1)     |x|^2 = eta C / (2 lambda)

Adam with the decay in the gradient (l2) has no such value: where it settles depends on the scale of the loss.

Here: random gradients orthogonal to x; then the pre-training of a SIBERT, in which each matrix is a group, with three
optimizers at a constant rate, and with the same share of a matrix that decay takes in the end. Gradients of successive
steps are correlated in a real run. SGD does not care, for its gradients are orthogonal to x and the balance holds step
by step. AdamW's steps u are not orthogonal to x, which is a sum of earlier ones, so that their correlations C_k =
E<u_t, u_t+k> count, and it turns by

    angle^2 = 2 eta lambda / (1 + 2 (C_1 + C_2 + ...) / C_0),   C_1 + C_2 + ... = -E<x, u> / eta.

arXiv 2010.02916 (the equation), 2305.17212 (the angles); AdamW's norm and the form with correlations are derived here.
"""

import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from sibert.dynamics import Equilibrium, RotationRecorder, adamw_equilibrium, sgd_equilibrium
from sibert.lab.experiment import Scale, Verdict
from sibert.lab.intervals import BY_BLOCKS, block_interval, mean_interval
from sibert.lab.problems import masked_text, sibert, text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REFERENCES = ("li2020reconciling", "wan2021spherical", "kosson2024rotational")
MINUTES: dict[Scale, float] = {"smoke": 1.0, "default": 5.0, "full": 30.0}
ENTRIES, GRADIENT, REPLICAS = 800, 3.0, 16
T_REPLICAS = 2.131
"""Student's t at 97.5 % for as many replicas."""
BY_REPLICAS = f"t, {REPLICAS} replicas"
LR, DECAY = 0.1, 1e-3
BETAS = (0.9, 0.99)
Make = Callable[[list[nn.Parameter]], Optimizer]
TOYS: dict[str, tuple[Make, Equilibrium]] = {
    "SGD": (lambda p: SGD(p, lr=LR, weight_decay=DECAY), sgd_equilibrium(LR, DECAY, 0.0, GRADIENT)),
    "SGD, momentum 0.9": (
        lambda p: SGD(p, lr=LR, weight_decay=DECAY, momentum=0.9),
        sgd_equilibrium(LR, DECAY, 0.9, GRADIENT),
    ),
    "AdamW": (
        lambda p: AdamW(p, lr=LR, weight_decay=DECAY, betas=BETAS, eps=0.0),
        adamw_equilibrium(LR, DECAY, BETAS, ENTRIES),
    ),
}
SCALES = (0.1, 1.0, 10.0)
GAMMA = 2e-3
"""Share of itself that decay takes from a matrix of SIBERT in a step."""
INTRINSIC = {"SGD": GAMMA, "SGD, momentum 0.9": (1.0 - 0.9) * GAMMA, "AdamW": GAMMA}
"""Eta lambda on SIBERT. Momentum multiplies what a decay does by 1 / (1 - m): all three forget at the same rate."""
WITHIN = 0.15


def measure(scale: Scale) -> dict[str, Any]:
    """Toys and a SIBERT.

    Args:
        scale: How many steps.
    """
    relaxations, steps = {"smoke": (0.2, 60), "default": (4.0, 4000), "full": (20.0, 20_000)}[scale]
    torch.manual_seed(0)
    toys = []
    for name, (make, predicted) in TOYS.items():
        assert predicted.norm is not None
        start = 1.5 * predicted.norm
        count = round(relaxations * predicted.relaxation_steps)
        # the way to equilibrium, and then as long again there
        norms, bands, angle, error = _random_gradients(make, start, 2 * count, count, 1.0)
        every = max(1, count // 100)
        toys.append(
            {
                "name": name,
                "norms": norms[::every],
                "norm_errors": bands[::every],
                "predicted": [predicted.norm_after(t, start) for t in range(0, 2 * count, every)],
                "every": every,
                "angle": angle,
                "angle_error": error,
                "predicted_angle": predicted.angular_update,
            }
        )
    l2 = []
    for factor in SCALES:
        row: dict[str, Any] = {"scale": factor}
        for name, kind in (("AdamW", AdamW), ("Adam + l2", Adam)):
            make = partial(kind, lr=1e-3, weight_decay=0.1, betas=BETAS)
            _, _, angle, error = _random_gradients(make, 5.0, 4 * steps, 2 * steps, factor)
            row[name] = [angle, error]
        l2.append(row)
    return {"toys": toys, "l2": l2, "sibert": [_pretrain(name, steps) for name in TOYS]}


def _random_gradients(
    make: Make, norm: float, steps: int, watched: int, factor: float
) -> tuple[list[float], list[float], float, float]:
    """Norms by step, and angle of the last steps, under random gradients orthogonal to each vector.

    Root mean squares of replicas, each with half its interval.
    """
    x_RC = torch.randn(REPLICAS, ENTRIES, dtype=torch.float64)
    parameter = nn.Parameter(norm * x_RC / x_RC.norm(dim=1, keepdim=True))
    optimizer = make([parameter])
    norms, bands, squares_R = [], [], torch.zeros(REPLICAS, dtype=torch.float64)
    for step in range(steps):
        with torch.no_grad():
            squared_R1 = parameter.square().sum(1, keepdim=True)
            g_RC = torch.randn(REPLICAS, ENTRIES, dtype=torch.float64)
            g_RC -= (g_RC * parameter).sum(1, keepdim=True) / squared_R1 * parameter
            parameter.grad = factor * GRADIENT * g_RC / (ENTRIES * squared_R1).sqrt()
            before_RC = parameter.clone()
            optimizer.step()
            norms.append(squared_R1.mean().sqrt().item())
            bands.append(T_REPLICAS * squared_R1.std().item() / math.sqrt(REPLICAS) / (2.0 * norms[-1]))
            along_R1 = (before_RC * parameter).sum(1, keepdim=True)
            across_R = (parameter - along_R1 / squared_R1 * before_RC).norm(dim=1)
            angle_R = torch.atan2(across_R * squared_R1.sqrt().squeeze(1), along_R1.squeeze(1))
            if step >= watched:
                squares_R += angle_R.square() / (steps - watched)
    return norms, bands, *_root(*mean_interval(squares_R.tolist()))


def _root(square: float, error: float) -> tuple[float, float]:
    """A root with half its interval, from its square with half of that's."""
    return math.sqrt(square), error / (2.0 * math.sqrt(square))


def _pretrain(name: str, steps: int) -> dict[str, Any]:
    """Rotation of each matrix of a SIBERT at equilibrium, and how successive updates are correlated."""
    corpus = text()
    model = sibert(corpus).double()
    batches = masked_text(corpus, 16)
    groups = {key: group for key, group in model.scale_invariant_groups().items() if not group.rows}
    members = {key: list({id(p): p for _, p in group.members}.values()) for key, group in groups.items()}
    chosen = {id(p) for group in members.values() for p in group}
    head = AdamW([p for p in model.parameters() if id(p) not in chosen], lr=1e-3, weight_decay=0.0)

    model(**next(batches)).loss.backward()
    momentum = 0.9 if "momentum" in name else 0.0
    product = INTRINSIC[name]
    settings: list[dict[str, Any]] = []
    for group in members.values():
        squared = sum(p.detach().square().sum().item() for p in group)
        gradient = math.sqrt(sum(p.grad.square().sum().item() for p in group if p.grad is not None) * squared)
        entries = sum(p.numel() for p in group)
        # eta so that the norm is near its equilibrium from the first step on
        lr = (
            math.sqrt(2.0 * product * squared / entries)
            if name == "AdamW"
            else squared * math.sqrt(2.0 * product * (1.0 - momentum)) / gradient
        )
        settings.append({"params": group, "lr": lr, "weight_decay": product / lr})
    optimizer: Optimizer = AdamW(settings, betas=BETAS) if name == "AdamW" else SGD(settings, lr=1.0, momentum=momentum)
    predicted = (
        adamw_equilibrium(1.0, product, BETAS) if name == "AdamW" else sgd_equilibrium(1.0, product, momentum)
    ).angular_update

    recorder = RotationRecorder(optimizer, members, every=1)
    names = list(members)
    squares, products = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    gradients = {key: [0.0, 0.0] for key in names}
    earlier: dict[str, Tensor] = {}
    for step in range(steps):
        optimizer.zero_grad()
        head.zero_grad()
        model(**next(batches)).loss.backward()
        before = {key: _flat(members[key]) for key in (names if step >= steps // 2 else [])}
        for key, x in before.items():
            g = _flat([p.grad for p in members[key]]) * x.norm()
            if key in earlier:
                gradients[key][0] += (g @ earlier[key]).item()
                gradients[key][1] += (g @ g).item()
            earlier[key] = g
        optimizer.step()
        head.step()
        for key, x in before.items():
            moved = x * (1.0 - product) - _flat(members[key])  # eta u
            squares[key] += (moved @ moved).item()
            products[key] -= 2.0 * (1.0 - product) * (x @ moved).item()
    recorder.close()
    late = [record for record in recorder.records if record.step > steps // 2]
    found = []
    for key, settings_of in zip(names, settings, strict=True):
        own = [record for record in late if record.name == key]
        size = math.sqrt(statistics.fmean(record.gradient_norm**2 for record in own))
        balance = sgd_equilibrium(settings_of["lr"], settings_of["weight_decay"], momentum, size)
        fourth = [(record.norm / (balance.norm or math.inf)) ** 4 for record in own]
        found.append(
            {
                "group": key,
                **_angle([record.angular_update for record in own]),
                "fourth_power": [statistics.fmean(fourth), block_interval(fourth)[1]],
                "gradient_correlation": gradients[key][0] / gradients[key][1],
                "memory": products[key] / squares[key],
            }
        )
    return {"name": name, "predicted": predicted, "groups": found}


def _flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors]).double()


def _angle(values: list[float]) -> dict[str, float]:
    square = statistics.fmean(value**2 for value in values)
    _, error = block_interval([value**2 for value in values])
    angle, error = _root(square, error)
    return {"angle": angle, "angle_error": error}


def _with_correlations(run: dict[str, Any], group: dict[str, Any]) -> float:
    """The angle that the balance with correlations gives."""
    squared = (1.0 - (1.0 - GAMMA) ** 2) / (1.0 + group["memory"])
    return math.sqrt(squared)


def judge(data: dict[str, Any]) -> list[Verdict]:
    """Toys within 2 %, SIBERT within 15 %, the correlations as the reason for the rest, and Adam with l2.

    Args:
        data: Of `measure`.
    """
    verdicts = []
    for toy in data["toys"]:
        rows = zip(toy["norms"], toy["predicted"], toy["norm_errors"], strict=True)
        error, width = max((abs(now / then - 1.0), band / then) for now, then, band in rows)
        verdicts += [
            Verdict.at_most(
                f"random gradients, {toy['name']}: norm by step, largest relative error",
                error,
                0.02,
                error=width,
                interval=BY_REPLICAS,
            ),
            Verdict.near(
                f"random gradients, {toy['name']}: rotation over theory's",
                toy["angle"] / toy["predicted_angle"],
                1.0,
                0.02,
                error=toy["angle_error"] / toy["predicted_angle"],
                interval=BY_REPLICAS,
            ),
        ]
    by_name = {run["name"]: run for run in data["sibert"]}
    for name, run in by_name.items():
        verdicts += _rotations(name, run)
    verdicts += [_norms(by_name["SGD"]), *(_count(run) for run in by_name.values())]
    run = by_name["AdamW"]
    spread = [abs(group["angle"] / run["predicted"] - 1.0) for group in run["groups"]]
    worst = max(range(len(spread)), key=spread.__getitem__)
    group = run["groups"][worst]
    explained = _with_correlations(run, group)
    scale = {row["scale"]: row for row in data["l2"]}

    def change(name: str) -> tuple[float, float]:
        (high, high_error), (low, low_error) = scale[10.0][name], scale[0.1][name]
        return high / low, high / low * math.hypot(high_error / high, low_error / low)

    kept, kept_error = change("AdamW")
    lost, lost_error = change("Adam + l2")
    return [
        *verdicts,
        Verdict.near(
            f"SIBERT, AdamW, the matrix that is furthest off (by {spread[worst]:.0%}): rotation over theory's with the "
            "correlations of its steps",
            group["angle"] / explained,
            1.0,
            0.1,
            error=group["angle_error"] / explained,
            interval=BY_BLOCKS,
        ),
        Verdict.near(
            "AdamW: rotation at a loss 100 times as large over that at the smaller one",
            kept,
            1.0,
            0.02,
            error=kept_error,
            interval=BY_REPLICAS,
        ),
        Verdict.at_most(
            "Adam with l2: rotation at a loss 100 times as large over that at the smaller one",
            lost,
            0.5,
            error=lost_error,
            interval=BY_REPLICAS,
        ),
    ]


def _rotations(name: str, run: dict[str, Any]) -> list[Verdict]:
    """Of SGD every matrix, whose theory holds step by step; of the others the matrix in the middle."""
    ratios = sorted(
        (group["angle"] / run["predicted"], group["angle_error"] / run["predicted"]) for group in run["groups"]
    )
    chosen = (
        [("smallest of the matrices", ratios[0]), ("largest", ratios[-1])]
        if name == "SGD"
        else [
            ("median of the matrices", (statistics.median(ratio for ratio, _ in ratios), ratios[len(ratios) // 2][1]))
        ]
    )
    return [
        Verdict.near(
            f"SIBERT, {name}: rotation over theory's, {which}", ratio, 1.0, 0.15, error=error, interval=BY_BLOCKS
        )
        for which, (ratio, error) in chosen
    ]


def _norms(run: dict[str, Any]) -> Verdict:
    """Norms of SGD over theirs at equilibrium, of the mean of fourth powers; g measured in the same steps."""
    power, width = max((group["fourth_power"] for group in run["groups"]), key=lambda pair: abs(pair[0] - 1.0))
    measured, error = power**0.25, width / (4.0 * power**0.75)
    return Verdict.near(
        "SIBERT, SGD: norm over (eta g^2 / (2 lambda))^(1/4), matrix furthest from 1",
        measured,
        1.0,
        WITHIN,
        error=error,
        interval=BY_BLOCKS,
    )


def _count(run: dict[str, Any]) -> Verdict:
    """How many matrices turn as predicted, of AdamW with the correlations of its steps; and which do not without."""
    groups = run["groups"]

    def is_off(group: dict[str, Any], predicted: float) -> bool:
        return bool(abs(group["angle"] / predicted - 1.0) + group["angle_error"] / predicted > WITHIN)

    plain = [_short(group["group"]) for group in groups if is_off(group, run["predicted"])]
    if run["name"] != "AdamW":
        label, off = "", plain
    else:
        label = f" with the correlations of its steps ({len(groups) - len(plain)} without)"
        off = [_short(group["group"]) for group in groups if is_off(group, _with_correlations(run, group))]
    without = ", ".join(off if run["name"] != "AdamW" else plain)
    return Verdict.near(
        f"SIBERT, {run['name']}: of {len(groups)} matrices, with a rotation within {WITHIN:.0%} of theory's{label} "
        "with all of its interval" + (f"; not: {without}" if without else ""),
        len(groups) - len(off),
        len(groups),
    )


def _short(name: str) -> str:
    return name.removeprefix("sibert.").removeprefix("layers.")


def draw(data: dict[str, Any], figure: "Figure") -> None:
    """Norms of the toys, rotations on SIBERT.

    Args:
        data: Of `measure`.
        figure: Empty.
    """
    left, right, lower = _axes(figure)
    for toy in data["toys"]:
        steps = [toy["every"] * k for k in range(len(toy["norms"]))]
        left.semilogx(steps[1:], [n / toy["predicted"][-1] for n in toy["norms"][1:]], label=toy["name"])
        left.semilogx(steps[1:], [n / toy["predicted"][-1] for n in toy["predicted"][1:]], "k:", linewidth=1)
    left.set(xlabel="step", ylabel="norm over that of equilibrium", title="random gradients (dotted: theory)")
    left.legend(fontsize="x-small")
    for i, run in enumerate(data["sibert"]):
        places = [k + 0.2 * (i - 1) for k in range(len(run["groups"]))]
        right.plot(places, [group["angle"] / run["predicted"] for group in run["groups"]], "o", label=run["name"])
    run = data["sibert"][-1]
    places = [k + 0.2 for k in range(len(run["groups"]))]
    explained = [_with_correlations(run, group) / run["predicted"] for group in run["groups"]]
    right.plot(places, explained, "k_", markersize=10, label="AdamW, theory with correlations")
    right.axhline(1.0, color="k", linewidth=0.8, linestyle=":")
    right.set(title="SIBERT", ylabel="rotation over theory's", ylim=(0.0, None))
    for i, run in enumerate(data["sibert"]):
        places = [k + 0.2 * (i - 1) for k in range(len(run["groups"]))]
        lower.plot(places, [group["gradient_correlation"] for group in run["groups"]], f"C{i}o", markersize=4)
    lower.axhline(0.0, color="k", linewidth=0.8, linestyle=":")
    lower.set(ylabel="correlation of\nsuccessive gradients")
    labels = [group["group"].removeprefix("sibert.").replace("embeddings.", "") for group in run["groups"]]
    lower.set_xticks(range(len(labels)), labels, rotation=60, ha="right", fontsize="xx-small")
    right.tick_params(labelbottom=False)
    right.legend(fontsize="x-small")


def _axes(figure: "Figure") -> tuple[Any, Any, Any]:
    """One on the left, two on the right, the lower of them with the same places below it."""
    grid = figure.add_gridspec(2, 2, width_ratios=(2, 3), height_ratios=(3, 2))
    left, right = figure.add_subplot(grid[:, 0]), figure.add_subplot(grid[0, 1])
    return left, right, figure.add_subplot(grid[1, 1], sharex=right)
