"""The intrinsic learning rate eta lambda is the clock: in units of its inverse a run forgets where it came from.

For a scale-invariant loss, (eta, lambda, w) and (c^2 eta, lambda / c^2, c w) visit the same functions. So eta and
lambda matter through their product alone, but for a scale of the first weights, and that is forgotten: the norm moves
like

    d|w|^4 / dt = -4 eta lambda |w|^4 + 2 eta^2 g^2,

g being the gradient at w / |w|, and the direction turns by sqrt(2 eta lambda) a step. If gradients did not know of
w_0, the cosine of w_t and w_0 would fall like exp(-eta lambda t). Those of a real loss lead back into the valley where
w_0 was: directions stay closer than that. Fast equilibrium is about answers:
after O(1 / (eta lambda)) steps the distribution of what a network
answers depends neither on its first weights nor on the earlier schedule.

Here: a normalised network on digits, 64 runs with random batches for each history, at two values of eta lambda: a
reference; rate times 16 with decay / 16; first weights times 4; one set of first weights for all runs; and training at
10 times the rate before. For each test picture the labels that the runs of two histories predict are two distributions;
the distance is their total variation, averaged over pictures. It cannot be 0 between finite numbers of runs: its floor
is that of two groups of runs of the reference. Half of the pictures are means of two digits, on which runs disagree. A
history counts as forgotten once its distance stays below 1.5 times the floor.

arXiv 2010.02916.
"""

import math
import statistics
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sibert.lab.ensemble import Ensemble
from sibert.lab.experiment import Scale, Verdict
from sibert.lab.pictures import Pictures, pictures
from sibert.lab.problems import CLASSES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REFERENCES = ("li2020reconciling",)
MINUTES: dict[Scale, float] = {"smoke": 0.3, "default": 3.0, "full": 20.0}
WIDTHS, BATCH, LR = (64, 16, 10), 16, 0.2
PRODUCTS = (1.6e-2, 4e-3)
"""Eta lambda."""
HISTORIES = ("reference", "again", "rate", "weights", "one start", "schedule")
LABELS = {
    "rate": "rate times 16, decay / 16",
    "weights": "first weights times 4",
    "one start": "one start for all",
    "schedule": "10 times the rate before",
}
FAR = ("weights", "one start", "schedule")
"""Histories whose answers differ from the reference's at some time; a rate times 16 alone is forgotten at once."""
CURVES = {
    "effective_lr": "effective learning rate",
    "loss": "loss",
    "cosine": "cosine of the direction and that one unit before",
}
UNITS, BEFORE, POINTS = 8.0, 1.0, 10
"""Length in units of 1 / (eta lambda), that of the earlier schedule, and observations a unit."""
LATE = 5.0
"""Units after which runs are taken for being at equilibrium: of what decays like exp(-t), less than 1 % is left."""
SPLITS, CHUNK, RESAMPLED = 200, 20, 60
BY_BOOTSTRAP = "bootstrap of the runs"
FREE_COPIES, FREE_ENTRIES = 64, 1000
"""Of the directions that random gradients turn."""
FORGOTTEN = 1.5
"""Distance over its floor at which a history counts as forgotten: ten standard deviations of the floor's noise."""


def measure(scale: Scale) -> dict[str, Any]:
    """Runs of all histories, and their distances.

    Args:
        scale: Number of runs, and how long.
    """
    copies, units = {"smoke": (16, 6.0), "default": (64, UNITS), "full": (256, UNITS)}[scale]
    products = PRODUCTS if scale != "smoke" else tuple(4.0 * product for product in PRODUCTS)
    data = pictures(torch.float32)
    probes = _probes(data)
    settings = []
    for product in products:
        runs = {name: _run(data, probes, name, product, copies, units) for name in HISTORIES}
        settings.append({"product": product, "units": units, **_compare(runs)})
    return {"settings": settings, "twins": _twins(data), "free": _free(max(products)), "copies": copies}


def _free(product: float) -> tuple[float, float]:
    """Cosine of directions one unit apart, at equilibrium under random gradients orthogonal to w."""
    generator = torch.Generator().manual_seed(0)
    w_SN = F.normalize(torch.randn(FREE_COPIES, FREE_ENTRIES, generator=generator), dim=1)
    first_SN = w_SN
    for _ in range(round(1.0 / product)):
        g_SN = torch.randn(w_SN.shape, generator=generator)
        g_SN = g_SN - (g_SN * w_SN).sum(1, keepdim=True) / w_SN.square().sum(1, keepdim=True) * w_SN
        # at the norm 1 of equilibrium a step is as long as what decay takes away
        size_S1 = math.sqrt(1.0 - (1.0 - product) ** 2) / w_SN.norm(dim=1, keepdim=True)
        w_SN = (1.0 - product) * w_SN - size_S1 * F.normalize(g_SN, dim=1)
    return _mean((F.normalize(w_SN, dim=1) * first_SN).sum(1))


def _twins(data: Pictures) -> dict[str, float]:
    """Largest difference of outputs after 200 steps on the same batches from (eta, lambda, w)."""

    def outputs(scale: float, rate: float, decay: float) -> Tensor:
        ensemble = Ensemble(4, WIDTHS)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for w_SQP in ensemble.trained:
                w_SQP.mul_(scale)
        for _ in range(200):
            ensemble.step(ensemble.gradients(*ensemble.batch(data, BATCH, generator)), rate * LR, decay * 0.02)
        return ensemble.logits(data.test_BP[None]).detach()

    plain = outputs(1.0, 1.0, 1.0)
    return {
        "all": (outputs(4.0, 16.0, 1.0 / 16.0) - plain).abs().max().item(),
        "rate": (outputs(1.0, 16.0, 1.0 / 16.0) - plain).abs().max().item(),
    }


def _probes(data: Pictures) -> Tensor:
    """Test pictures, and means of two of them that show different digits."""
    order = torch.randperm(len(data.test_B), generator=torch.Generator().manual_seed(0))
    different = data.test_B != data.test_B[order]
    return torch.cat((data.test_BP, (data.test_BP + data.test_BP[order])[different] / 2.0))


def _run(data: Pictures, probes: Tensor, name: str, product: float, copies: int, units: float) -> dict[str, Any]:
    """Predicted labels [times, copies, pictures] and means of a history, observed POINTS times a unit."""
    seed = HISTORIES.index(name)
    ensemble = Ensemble(copies, WIDTHS, seed=100 + seed, same=name == "one start")
    generator = torch.Generator().manual_seed(seed)
    lr, decay = LR, product / LR
    with torch.no_grad():
        for w_SQP in ensemble.trained:
            w_SQP.mul_(4.0 if name == "weights" else 1.0)
    if name == "rate":
        lr, decay = 16.0 * lr, decay / 16.0
    if name == "schedule":
        for _ in range(round(BEFORE / product)):
            ensemble.step(ensemble.gradients(*ensemble.batch(data, BATCH, generator)), 10.0 * lr, decay)
    times = [round(k / (product * POINTS)) for k in range(round(units * POINTS) + 1)]
    labels = []
    curves: dict[str, list[Tensor]] = {"effective_lr": [], "loss": [], "cosine": []}
    earlier: list[Tensor] = []
    for t in range(times[-1] + 1):
        if t in times:
            with torch.no_grad():
                labels.append(ensemble.logits(probes[None]).argmax(2).to(torch.uint8))
                curves["loss"].append(ensemble.losses(data.train_BP[None], data.train_B[None]))
                curves["effective_lr"].append(lr / ensemble.squared_norms())
                w_SN = torch.cat([w_SQP.detach().flatten(1) for w_SQP in ensemble.trained], 1)
                earlier.append(F.normalize(w_SN, dim=1))
                if len(earlier) > POINTS:
                    curves["cosine"].append((earlier[-1] * earlier.pop(0)).sum(1))
        ensemble.step(ensemble.gradients(*ensemble.batch(data, BATCH, generator)), lr, decay)
    late = round((units - LATE) * POINTS) + 1
    return {
        "labels": torch.stack(labels),
        "curves": {name: [values_S.mean().item() for values_S in curve] for name, curve in curves.items()},
        "late": {name: _mean(torch.stack(curve[-late:]).mean(0)) for name, curve in curves.items()},
    }


def _mean(values_S: Tensor) -> tuple[float, float]:
    """Mean, and half width of its 95 % confidence interval."""
    return values_S.mean().item(), 1.96 * values_S.std().item() / math.sqrt(len(values_S))


def _compare(runs: dict[str, Any]) -> dict[str, Any]:
    """Distances to the reference by time, their floor, and when they come near it, with resampled runs."""
    reference, again = (_hot(runs[name]["labels"]) for name in ("reference", "again"))
    times, copies = runs["reference"]["labels"].shape[:2]
    generator = torch.Generator().manual_seed(0)

    def resampled() -> Tensor:
        """Weights of runs, [R, S]: all alike, then those of drawing runs with replacement."""
        chosen_RS = torch.randint(copies, (RESAMPLED, copies), generator=generator)
        drawn_RS = F.one_hot(chosen_RS, copies).sum(1).float()
        weights: Tensor = torch.cat((torch.ones(1, copies), drawn_RS)) / copies
        return weights

    reference_RX, again_RX = resampled() @ reference, resampled() @ again
    late = round(LATE * POINTS)
    floor_RT = _distance(reference_RX, again_RX, times)
    both = torch.cat((reference, again))
    mean_X, parts = both.mean(0), []
    for _ in range(SPLITS // CHUNK):
        halves = torch.zeros(CHUNK, 2 * copies)
        for row_S in halves:
            row_S[torch.randperm(2 * copies, generator=generator)[:copies]] = 1.0 / copies
        half_RX = halves @ both
        parts.append(_distance(half_RX, 2.0 * mean_X - half_RX, times))
    splits_T = torch.cat(parts)
    middle = splits_T[:, late:].mean(1)
    distances, units, peaks = {}, {}, {}
    for name in LABELS:
        distance_RT = _distance(reference_RX, resampled() @ _hot(runs[name]["labels"]), times)
        distances[name] = distance_RT[0].tolist()
        # the floor of resampled runs is that of fewer runs: each is compared with its own
        levels = [splits_T[:, late:].mean().item(), *floor_RT[1:, late:].mean(1).tolist()]
        peaks[name] = [max(row) / level for row, level in zip(distance_RT.tolist(), levels, strict=True)]
        units[name] = [_forgotten(row, level) for row, level in zip(distance_RT.tolist(), levels, strict=True)]
    return {
        "curves": {name: run["curves"] for name, run in runs.items()},
        "late": {name: run["late"] for name, run in runs.items()},
        "floor": splits_T.mean(0).tolist(),
        "floor_interval": splits_T.quantile(torch.tensor([0.025, 0.975]), 0).tolist(),
        "late_floor": [middle.mean().item(), middle.std().item()],
        "floor_measured": floor_RT[0].tolist(),
        "distances": distances,
        "peaks": peaks,
        "units": units,
    }


def _hot(labels_TSN: Tensor) -> Tensor:
    """Labels as unit vectors, [S, X] with X = times x pictures x classes."""
    return F.one_hot(labels_TSN.long().transpose(0, 1), CLASSES).float().flatten(1)


def _distance(p_RX: Tensor, q_RX: Tensor, times: int) -> Tensor:
    """Total variation, mean over pictures, [R, T]."""
    found_RT: Tensor = 0.5 * (p_RX - q_RX).abs().view(len(p_RX), times, -1, CLASSES).sum(3).mean(2)
    return found_RT


def _forgotten(distances: list[float], floor: float) -> float:
    """Units after which the distance stays below FORGOTTEN times its floor."""
    above = [k for k, distance in enumerate(distances) if distance > FORGOTTEN * floor]
    if not above:
        return 0.0
    k = above[-1]
    if k + 1 == len(distances):
        return math.inf
    share = (distances[k] - FORGOTTEN * floor) / (distances[k] - distances[k + 1])
    return (k + share) / POINTS


def _late_distance(setting: dict[str, Any], name: str) -> float:
    return statistics.fmean(setting["distances"][name][round(LATE * POINTS) :])


def _width(resampled: list[float]) -> float:
    """Half the distance between the 2.5 % and the 97.5 % point."""
    low, *_, high = statistics.quantiles(resampled, n=40)
    return (high - low) / 2.0


def judge(data: dict[str, Any]) -> list[Verdict]:
    """Twins, late means, the floor of the distances, and the clock.

    Args:
        data: Of `measure`.
    """
    slow, fast = data["settings"][1], data["settings"][0]
    factor = fast["product"] / slow["product"]
    verdicts = [
        Verdict.at_most(
            "(16 eta, lambda / 16, 4 w) beside (eta, lambda, w): outputs after 200 steps, largest difference",
            data["twins"]["all"],
            1e-12,
        ),
        Verdict.at_least("the same without 4 w", data["twins"]["rate"], 0.1),
        Verdict.near(
            "random gradients: cosine of the direction and that one unit before",
            data["free"][0],
            math.exp(-1.0),
            0.05,
            error=data["free"][1],
            interval="normal, copies",
        ),
    ]
    for setting in data["settings"]:
        head = f"eta lambda = {setting['product']:g}"
        first = setting["curves"]["rate"]["effective_lr"][0] / setting["curves"]["weights"]["effective_lr"][0]
        verdicts.append(
            Verdict.at_least(f"{head}: effective learning rates at the start, largest over smallest", first, 100.0)
        )
        for name, label in CURVES.items():
            base, width = setting["late"]["reference"][name]
            ratios = [(value / base, math.hypot(w, width) / base) for value, w in _others(setting, name)]
            ratio, error = max(ratios, key=lambda pair: abs(pair[0] - 1.0))
            verdicts.append(
                Verdict.near(
                    f"{head}: {label} after {LATE:g} units over the reference's, history furthest from 1",
                    ratio,
                    1.0,
                    0.05,
                    error=error,
                    interval="normal, runs",
                )
            )
        cosine, width = setting["late"]["reference"]["cosine"]
        verdicts.append(
            Verdict.at_least(
                f"{head}: cosine of direction and that one unit before, of the reference, whose gradients know of it",
                cosine,
                1.5 * math.exp(-1.0),
                error=width,
                interval="normal, runs",
            )
        )
        floor, deviation = setting["late_floor"]
        peak = min((setting["peaks"][name] for name in FAR), key=lambda peaks: peaks[0])
        largest = max(LABELS, key=lambda name: _late_distance(setting, name))
        verdicts += [
            Verdict.at_least(
                f"{head}: largest distance over its floor, smallest of three histories",
                peak[0],
                3.0,
                error=_width(peak[1:]),
                interval=BY_BOOTSTRAP,
            ),
            Verdict.at_most(
                f"{head}: distance after {LATE:g} units over its floor, largest of 4 histories",
                _late_distance(setting, largest) / floor,
                1.05,  # the tolerance of the curves above
                error=1.96 * deviation / floor,
                interval=f"normal, {SPLITS} ways to split copies into two histories",
            ),
        ]
    for name in FAR:
        clocks = [one / other for one, other in zip(slow["units"][name], fast["units"][name], strict=True)]
        # a fixed number of steps would give 1 / factor, (eta lambda)^-2 would give factor: half way to them
        verdicts.append(
            Verdict(
                f"{LABELS[name]}: units until forgotten at eta lambda = {slow['product']:g} over those at "
                f"{fast['product']:g} ({slow['units'][name][0]:.2g} and {fast['units'][name][0]:.2g})",
                clocks[0],
                factor**-0.5,
                factor**0.5,
                1.0,
                _width(clocks[1:]),
                BY_BOOTSTRAP,
            )
        )
    return verdicts


def _others(setting: dict[str, Any], name: str) -> list[tuple[float, float]]:
    return [setting["late"][history][name] for history in LABELS]


def draw(data: dict[str, Any], figure: "Figure") -> None:
    """Effective learning rates, and distances at both settings.

    Args:
        data: Of `measure`.
        figure: Empty.
    """
    axes = figure.subplots(1, 3)
    setting = data["settings"][1]
    colours = dict(zip(("reference", *LABELS), ("k", "C0", "C1", "C2", "C3"), strict=True))
    for name, colour in colours.items():
        rates = setting["curves"][name]["effective_lr"]
        axes[0].semilogy([k / POINTS for k in range(len(rates))], rates, colour, linewidth=1)
    axes[0].set(xlabel="t eta lambda", ylabel="effective learning rate", title=f"eta lambda = {setting['product']:g}")
    for axis, setting in zip(axes[1:], data["settings"][::-1], strict=True):
        units = [k / POINTS for k in range(len(setting["floor"]))]
        axis.fill_between(units, *setting["floor_interval"], color="0.8", label="floor")
        for name, label in LABELS.items():
            axis.semilogy(units, setting["distances"][name], colours[name], linewidth=1, label=label)
        axis.set(
            xlabel="t eta lambda", ylabel="distance of predicted labels", title=f"eta lambda = {setting['product']:g}"
        )
        axis.set_yticks([0.05, 0.1, 0.2, 0.5], ["0.05", "0.1", "0.2", "0.5"])
        axis.minorticks_off()
    axes[1].legend(fontsize="x-small")
