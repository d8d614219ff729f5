"""Matrices turn at one rate where each has a scale of its own, and at rates of their own where only all have one.

If the loss does not change when a group x_i alone is rescaled, its gradient is orthogonal to x_i, its norm has a
balance of its own, and at equilibrium it turns by

    sqrt(2 eta lambda)

a step, whatever its gradients are: rotation is balanced. If only the scaling of all groups together leaves the loss as
it is, the total turns by that much, and its parts share it in proportion to their gradients: x_i turns by

    sqrt(2 eta lambda) (|g_i| / |g|) (|x| / |x_i|),     g_i the part of its gradient orthogonal to x_i,

root mean squares over steps of |g_i| / |x_i| and |g| / |x|, the gradients as the step uses them, after clipping, and of
the tangent where an angle is large.

A row that receives a gradient in a share p of the steps, clipped at |g| <= sqrt(2 C lambda / eta) |x|, grows by
C eta lambda in such a step and shrinks by eta lambda in each: if C p < 1, its log-norm falls by

    (1 - C p) eta lambda

a step, for ever. If C p > 1, or without clipping, it has an equilibrium, |x|^4 = p eta g^2 / (2 lambda); if rows rest
while they have no gradient, as in `ClippedSGD`, it is |x|^4 = eta g^2 / (2 lambda) whatever p is.

Here: pre-training of a SIBERT in its three forms, by the optimizer of the paper at a constant rate; and rows with
random gradients.

arXiv 2305.17212 (balance), 2202.00980 (the joint form and clipping). The other two forms of the model, and what becomes
of rare rows, are derived here.
"""

import math
import statistics
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sibert.dynamics import RotationRecorder
from sibert.lab.experiment import Scale, Verdict
from sibert.lab.intervals import BLOCKS, BY_BLOCKS, block_interval, bootstrap, mean_interval
from sibert.lab.problems import masked_text, sibert, text
from sibert.models import INVARIANCES
from sibert.optim import ClippedSGD, InvariantGroup, build_optimizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REFERENCES = ("kosson2024rotational", "li2022robust")
MINUTES: dict[Scale, float] = {"smoke": 0.2, "default": 4.0, "full": 20.0}
GAMMA, BATCH, EVERY = 4e-3, 16, 1
"""Eta lambda, sequences of a batch, and steps between measurements."""
CLIP, RATE = 4.0, 0.1
"""C, and eta of the rows with random gradients."""
ROWS, WIDTH, ROW_GRADIENT = 256, 16, 3.0
FALLING = (0.01, 0.1, 0.2)
"""Shares p of steps with a gradient for which C p < 1."""
HOLDING = {"clipped": (0.5, 1.0), "not clipped": (0.1, 0.2, 0.5), "resting": (0.2, 0.5)}
"""Shares for which rows have an equilibrium, by rule."""
ACTIVE = 0.5
"""Share of the steps with a gradient from which on a row of the model counts."""


APART = ", both of the ratio as if they were independent"
BY_ROWS = f"normal, {ROWS} rows"


def measure(scale: Scale) -> dict[str, Any]:
    """The three forms, and the rows.

    Args:
        scale: Number of steps.
    """
    steps, units = {"smoke": (20, 0.3), "default": (2000, 3.0), "full": (10_000, 16.0)}[scale]
    rows = [
        {"rule": rule, "share": share, **_random_rows(rule, share, units)}
        for rule, shares in (("clipped", (*FALLING, *HOLDING["clipped"])), *list(HOLDING.items())[1:])
        for share in shares
    ]
    return {"forms": [_pretrain(form, steps) for form in INVARIANCES], "rows": rows}


def _pretrain(form: str, steps: int) -> dict[str, Any]:
    """Rotations of groups, and of the matrices within them, in the second half of a run."""
    corpus = text()
    model = sibert(corpus, form)
    # Clipped from above alone: what is asked is whether decay and gradients balance by themselves.
    optimizer = build_optimizer(model, intrinsic_lr=GAMMA, two_sided=False)
    groups = model.scale_invariant_groups()
    recorder = RotationRecorder(optimizer, groups, every=EVERY)
    watched = _Matrices(groups, optimizer) if form == "joint" else _Rows(groups)
    for step, batch in zip(range(steps), masked_text(corpus, BATCH), strict=False):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        late = step >= steps // 2 and step % EVERY == 0
        if late:
            watched.before()
        optimizer.step()
        if late:
            watched.after()
    recorder.close()
    records = [record for record in recorder.records if record.step > steps // 2]
    found = {}
    for name, group in groups.items():
        own = [record for record in records if record.name == name]
        growth = 2.0 * math.log(own[-1].norm / own[0].norm) / (own[-1].step - own[0].step)
        angle, error = _rms([record.angular_update for record in own])
        found[name] = {"angle": angle, "error": error, "growth": growth, "rows": group.rows}
    return {"form": form, "groups": found, **watched.result()}


def _rms(values: list[float]) -> tuple[float, float]:
    """Root mean square of what follows each other, with half its interval."""
    squares = [value**2 for value in values]
    root = math.sqrt(statistics.fmean(squares))
    return root, block_interval(squares)[1] / (2.0 * root)


def _angle_between(old: Tensor, new: Tensor) -> float:
    along = (old @ new / old.norm()).item()
    return math.atan2(math.sqrt(max(0.0, (new @ new).item() - along**2)), along)


class _Matrices:
    """Angles of the matrices of a joint group, and what their gradients predict."""

    def __init__(self, groups: dict[str, InvariantGroup], optimizer: Optimizer) -> None:
        (group,) = groups.values()
        self.optimizer = optimizer
        self.all = list({id(p): p for _, p in group.members}.values())
        self.matrices = {name: p for name, p in group.members if p.dim() == 2}
        self.shares: dict[str, list[float]] = {name: [] for name in self.matrices}
        self.angles: dict[str, list[float]] = {name: [] for name in self.matrices}
        self.gradients: list[float] = []
        self.total: list[float] = []
        self.old: dict[str, Tensor] = {}
        self.whole = torch.empty(0)

    def before(self) -> None:
        self.whole = self._whole()
        norm2 = sum(p.detach().square().sum().item() for p in self.all)
        gradient2 = sum(p.grad.square().sum().item() for p in self.all if p.grad is not None)
        (settings,) = (one for one in self.optimizer.param_groups if one.get("intrinsic_lr") is not None)
        # spikes that are clipped turn nothing: eta s |g| <= sqrt(2 C eta lambda) |x|
        kept2 = min(1.0, 2.0 * settings["clip"] ** 2 * GAMMA * norm2 / (settings["eta"] ** 2 * gradient2))
        self.gradients.append(kept2 * gradient2 / norm2)
        self.old = {name: p.detach().clone() for name, p in self.matrices.items()}
        for name, p in self.matrices.items():
            assert p.grad is not None
            own2 = p.detach().square().sum().item()
            across2 = p.grad.square().sum().item() - (p.grad * p.detach()).sum().item() ** 2 / own2
            self.shares[name].append(kept2 * across2 / own2)

    def after(self) -> None:
        self.total.append(_angle_between(self.whole, self._whole()))
        for name, p in self.matrices.items():
            self.angles[name].append(_angle_between(self.old[name].double().flatten(), p.detach().double().flatten()))

    def _whole(self) -> Tensor:
        return torch.cat([p.detach().double().flatten() for p in self.all])

    def result(self) -> dict[str, Any]:
        measured = {name: _rms(angles) for name, angles in self.angles.items()}
        whole = math.fsum(self.gradients)
        shared = {name: math.sqrt(math.fsum(shares) / whole) for name, shares in self.shares.items()}
        return {
            "matrices": measured,
            "shared": shared,
            "tangents": {name: self._over_share(name) for name in self.matrices},
        }

    def _over_share(self, name: str) -> tuple[float, float]:
        """Tangent of a matrix over that of the encoder times its share, and half the interval of blocks' ratios."""
        series = [
            [math.tan(angle) ** 2 for angle in self.angles[name]],
            [math.tan(angle) ** 2 for angle in self.total],
            self.shares[name],
            self.gradients,
        ]

        def ratio(part: slice) -> float:
            turned, total, share, whole = (math.fsum(values[part]) for values in series)
            return math.sqrt(turned * whole / (total * share))

        # numerator and denominator of the same steps, which have the same spikes
        size = len(self.total) // BLOCKS
        if size == 0:
            return ratio(slice(None)), math.inf
        return ratio(slice(None)), mean_interval([ratio(slice(k * size, (k + 1) * size)) for k in range(BLOCKS)])[1]


class _Rows:
    """Angles of single rows, and in which share of the steps each has a gradient."""

    def __init__(self, groups: dict[str, InvariantGroup]) -> None:
        self.groups = {
            name: list({id(p): p for _, p in group.members}.values()) for name, group in groups.items() if group.rows
        }
        self.squares: dict[str, Tensor] = {}
        self.active: dict[str, Tensor] = {}
        self.old: dict[str, Tensor] = {}
        self.count = 0

    def _whole(self, parameters: list[nn.Parameter]) -> Tensor:
        return torch.cat([p.detach().double().reshape(len(p), -1) for p in parameters], 1)

    def before(self) -> None:
        self.count += 1
        for name, parameters in self.groups.items():
            self.old[name] = self._whole(parameters)
            g_RD = torch.cat([p.grad.reshape(len(p), -1) for p in parameters if p.grad is not None], 1)
            self.active[name] = self.active.get(name, torch.zeros(len(g_RD))) + (g_RD != 0).any(1).float()

    def after(self) -> None:
        for name, parameters in self.groups.items():
            new, old = self._whole(parameters), self.old[name]
            along = (old * new).sum(1) / old.norm(dim=1)
            across = (new.square().sum(1) - along.square()).clamp(min=0.0).sqrt()
            self.squares[name] = self.squares.get(name, torch.zeros(len(new))) + torch.atan2(across, along).square()

    def result(self) -> dict[str, Any]:
        rows = {
            name: {
                "angles": (self.squares[name] / self.active[name].clamp(min=1.0)).sqrt().tolist(),
                "active": (self.active[name] / self.count).tolist(),
            }
            for name in self.groups
        }
        return {"rows": rows}


def _random_rows(rule: str, share: float, units: float) -> dict[str, Any]:
    """Log-norms of rows with random gradients: slope of the second half with its interval, and where they are."""
    generator = torch.Generator().manual_seed(round(1000 * share))
    decay = GAMMA / RATE
    balanced = (RATE * ROW_GRADIENT**2 / (decay * (2.0 - GAMMA))) ** 0.25
    x_RD = torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64)
    # falling rows from where every gradient is clipped, resting ones from 1.2 times their equilibrium
    factor = 1.2 if rule == "resting" else 0.5 if (rule == "clipped" and share in FALLING) else share**0.25
    start = balanced * factor
    row = nn.Parameter(start * x_RD / x_RD.norm(dim=1, keepdim=True))
    resting = ClippedSGD([{"params": [row], "rows": True}], RATE, decay, clip=math.sqrt(CLIP))
    steps = round(units / GAMMA / (share if rule == "resting" else 1.0))
    middle_R, fourth_R = torch.zeros(ROWS, dtype=torch.float64), torch.zeros(ROWS, dtype=torch.float64)
    logs: list[float] = []
    for t in range(steps):
        with torch.no_grad():
            norm_R1 = row.norm(dim=1, keepdim=True)
            g_RD = torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64)
            g_RD -= (g_RD * row).sum(1, keepdim=True) / norm_R1**2 * row
            g_RD *= ROW_GRADIENT / (norm_R1 * g_RD.norm(dim=1, keepdim=True))
            g_RD *= (torch.rand(ROWS, 1, generator=generator, dtype=torch.float64) < share).double()
            if t == steps // 2:
                middle_R = norm_R1.log().squeeze(1)
            if t >= steps // 2:
                fourth_R += (norm_R1.squeeze(1) / balanced) ** 4 / (steps - steps // 2)
            if t % max(1, steps // 50) == 0:
                logs.append(norm_R1.log().mean().item())
            if rule == "resting":
                row.grad = g_RD
                resting.step()
                continue
            bound_R1 = math.sqrt(2.0 * CLIP * decay / RATE) * norm_R1
            if rule == "clipped":
                g_RD *= (bound_R1 / g_RD.norm(dim=1, keepdim=True).clamp(min=1e-30)).clamp(max=1.0)
            row.mul_(1.0 - GAMMA).sub_(g_RD, alpha=RATE)
    last_R = row.detach().norm(dim=1).log()
    slopes_R = (last_R - middle_R) / (steps - steps // 2)
    return {
        "steps": steps,
        "logs": [value - math.log(start) for value in logs],
        "slope": slopes_R.mean().item(),
        "error": 1.96 * slopes_R.std().item() / math.sqrt(ROWS),
        "fourth_power": fourth_R.mean().item(),
        "fourth_error": 1.96 * fourth_R.std().item() / math.sqrt(ROWS),
    }


def judge(data: dict[str, Any]) -> list[Verdict]:
    """Rotation of each form and its spread; slopes of rare rows, and where the others settle.

    Args:
        data: Of `measure`.
    """
    even = math.sqrt(2.0 * GAMMA)
    forms = {form["form"]: form for form in data["forms"]}
    joint, matrix, row = (forms[form] for form in ("joint", "matrix", "row"))
    (total,) = joint["groups"].values()
    return [
        *_joint_verdicts(joint, total, even),
        *_matrix_verdicts(matrix, even),
        _row_verdict(row, even),
        *(_rare_rows(rows) for rows in data["rows"]),
    ]


def _joint_verdicts(joint: dict[str, Any], total: dict[str, Any], even: float) -> list[Verdict]:
    parts = sorted(joint["matrices"].values())
    return [
        Verdict.near(
            "joint: rotation of the whole encoder over sqrt(2 eta lambda)",
            predicted=1.0,
            relative=0.15,
            **_measured((total["angle"] / even, total["error"] / even)),
        ),
        # more than is allowed below where rotation is balanced
        Verdict.at_least(
            "joint: fastest of its matrices over the slowest",
            bound=1.5,
            **_measured(_ratio(parts[-1], parts[0]), APART),
        ),
        Verdict.near(
            # in a spike a small matrix turns by half a radian and more
            "joint: tangent of a matrix's angle over the encoder's times its share by gradients, furthest from 1",
            predicted=1.0,
            relative=0.1,
            **_measured(_furthest(list(joint["tangents"].values())), ", of the blocks' own ratios"),
        ),
    ]


def _matrix_verdicts(matrix: dict[str, Any], even: float) -> list[Verdict]:
    groups = matrix["groups"].values()
    balanced = sorted((group["angle"] / even, group["error"] / even) for group in groups)
    drifting = [(group["angle"] / _with_growth(group), 0.0) for group in groups]
    return [
        Verdict.near(
            "matrix: rotation over sqrt(2 eta lambda), median",
            predicted=1.0,
            relative=0.1,
            **_measured((statistics.median(ratio for ratio, _ in balanced), balanced[len(balanced) // 2][1])),
        ),
        Verdict.near(
            "matrix: the same, matrix furthest from 1", predicted=1.0, relative=0.2, **_measured(_furthest(balanced))
        ),
        Verdict.near(
            "matrix: rotation over sqrt(2 eta lambda + growth of ln |x|^2), furthest from 1",
            _furthest(drifting)[0],  # of each run by itself
            1.0,
            0.03,
        ),
        Verdict.at_most(
            "matrix: fastest over slowest", bound=1.25, **_measured(_ratio(balanced[-1], balanced[0]), APART)
        ),
    ]


def _row_verdict(row: dict[str, Any], even: float) -> Verdict:
    angles = [values for values in _active_rows(row).values() if values]
    medians = [statistics.median(values) / even for values in angles]
    widths = [bootstrap(partial(_resampled_median, values)) / even for values in angles]
    whole = [(group["angle"] / even, group["error"] / even) for group in row["groups"].values() if not group["rows"]]
    measured, error = _furthest([*zip(medians, widths, strict=True), *whole])
    return Verdict.near(
        "row: rotation over sqrt(2 eta lambda), median of the rows with gradients, matrix furthest from 1",
        measured,
        1.0,
        0.2,
        error=error,
        interval="bootstrap of its rows" if measured in medians else BY_BLOCKS,
    )


def _resampled_median(values: list[float], generator: np.random.Generator) -> float:
    return float(np.median(generator.choice(values, len(values))))


def _rare_rows(rows: dict[str, Any]) -> Verdict:
    share, rule = rows["share"], rows["rule"]
    if rule == "clipped" and share in FALLING:
        # terms of second order are about C^2 p eta lambda = 0.01
        return Verdict.near(
            f"rows, clipped, p = {share:g}: slope of ln |x| over eta lambda",
            rows["slope"] / GAMMA,
            CLIP * share - 1.0,
            absolute=0.03,
            error=rows["error"] / GAMMA,
            interval=BY_ROWS,
        )
    return Verdict.near(
        f"rows, {rule}, p = {share:g}: |x|^4 over that of p = 1",
        rows["fourth_power"],
        1.0 if rule == "resting" else share + GAMMA * (1.0 - share),
        0.05,
        error=rows["fourth_error"],
        interval=BY_ROWS,
    )


def _measured(pair: Sequence[float], also: str = "") -> dict[str, Any]:
    return {"measured": pair[0], "error": pair[1], "interval": BY_BLOCKS + also}


def _ratio(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    value = one[0] / other[0]
    return value, value * math.hypot(one[1] / one[0], other[1] / other[0])


def _with_growth(group: dict[str, Any]) -> float:
    """The angle of a group whose norm still moves: |x'|^2 = (1 - eta lambda)^2 |x|^2 (1 + tan^2 angle)."""
    return math.atan(math.sqrt(math.exp(group["growth"]) / (1.0 - GAMMA) ** 2 - 1.0))


def _furthest(ratios: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return max(ratios, key=lambda pair: abs(math.log(pair[0])))


def _active_rows(form: dict[str, Any]) -> dict[str, list[float]]:
    """Angles of the rows that have a gradient often enough, by matrix."""
    return {
        name: [angle for angle, active in zip(rows["angles"], rows["active"], strict=True) if active >= ACTIVE]
        for name, rows in form["rows"].items()
    }


def draw(data: dict[str, Any], figure: "Figure") -> None:
    """Rotation by matrix, and log-norms of rare rows.

    Args:
        data: Of `measure`.
        figure: Empty.
    """
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    even = math.sqrt(2.0 * GAMMA)
    forms = {form["form"]: form for form in data["forms"]}
    names = [name.removesuffix(".weight") for name in forms["joint"]["matrices"]]
    names += [name for name in forms["matrix"]["groups"] if name not in names]
    places = {name: k for k, name in enumerate(names)}
    joint = forms["joint"]
    (total,) = joint["groups"].values()
    for values, style, label in (
        ({name: angle for name, (angle, _) in joint["matrices"].items()}, "C0o", "joint"),
        ({name: total["angle"] * value for name, value in joint["shared"].items()}, "k_", "joint, by gradient norms"),
    ):
        places_of = [places[name.removesuffix(".weight")] - 0.2 for name in values]
        left.plot(places_of, [value / even for value in values.values()], style, markersize=5, label=label)
    groups = forms["matrix"]["groups"]
    left.plot([places[name] for name in groups], [g["angle"] / even for g in groups.values()], "C1o", label="matrix")
    for name, angles in _active_rows(forms["row"]).items():
        low, *_, high = statistics.quantiles(angles, n=10)
        left.plot([places[name] + 0.2] * 2, [low / even, high / even], "C2", linewidth=1)
        left.plot(places[name] + 0.2, statistics.median(angles) / even, "C2o", markersize=4)
    left.plot([], [], "C2o-", markersize=4, label="rows: median, 10 to 90 %")
    left.axhline(1.0, color="k", linewidth=0.8, linestyle=":")
    labels = [name.removeprefix("sibert.").replace("embeddings.", "").replace("feed_forward", "ff") for name in names]
    left.set_xticks(range(len(labels)), labels, rotation=60, ha="right", fontsize="xx-small")
    left.set(ylabel="rotation over sqrt(2 eta lambda)", yscale="log", title="SIBERT")
    left.set_yticks([0.2, 0.5, 1.0, 2.0], ["0.2", "0.5", "1", "2"])
    left.minorticks_off()
    left.legend(fontsize="xx-small")
    for k, rows in enumerate(rows for rows in data["rows"] if rows["rule"] == "clipped"):
        units = [rows["steps"] * GAMMA * i / (len(rows["logs"]) - 1) for i in range(len(rows["logs"]))]
        right.plot(units, rows["logs"], f"C{k}", label=f"p = {rows['share']:g}")
        if rows["share"] in FALLING:
            right.plot(units, [(CLIP * rows["share"] - 1.0) * unit for unit in units], "k:", linewidth=1)
    right.set(xlabel="t eta lambda", ylabel="ln |x|, less that at first", title="rows, clipped, C = 4 (dotted: theory)")
    right.legend(fontsize="x-small")
