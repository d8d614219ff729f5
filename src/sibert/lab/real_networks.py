"""Networks trained by the gradient of all examples sharpen until they are at the edge of stability, and stay there.

Gradient descent at the rate eta is stable where the largest eigenvalue lambda_1 of the Hessian is below 2 / eta. A run
that begins there sharpens until it reaches the edge, and then neither diverges nor turns back: it swings, and lambda_1
hovers about 2 / eta. Of a scale-invariant loss with weight decay the same is true on the sphere, with the effective
rate eta / ((1 - eta lambda) |x|^2) and the spherical sharpness |x|^2 lambda_1:

    eta lambda_1 / (1 - eta lambda) = 2 on average.

The effective rate finds the edge by itself, since weight decay makes it grow for as long as the run is stable. From
then on the swings drive the spherical sharpness down, in a time of 1 / (eta lambda) steps. Gradient flow, which never
overshoots, has no edge, and goes on sharpening.

Of several directions at the edge, each swings in bursts: it grows while its curvature is above 2 / eta, and the burst
presses that below. lambda_1 of an iterate is that of the direction which is about to swing, and above 2 / eta; it is
the mean of the Hessian along the way of many steps whose largest eigenvalue has to be 2 / eta.

Here: a plain and a normalised network on digits, and a SIBERT on one batch of text, whose head does not learn; all in
float64. SIBERT has many directions at the edge, so that its Hessian is averaged along 64 steps; its loss is not near a
minimum, so that its rate is small enough for the swings to be short. What is averaged are some swings only, hence a
tolerance of 10 % where the toys of `edge-of-stability` have 0.2 %.

arXiv 2103.00065 (the edge), 2206.07085 (the sphere).
"""

import statistics
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from sibert.dynamics import Hessian, function_of
from sibert.lab.experiment import Scale, Verdict
from sibert.lab.intervals import BY_BLOCKS, block_interval
from sibert.lab.pictures import pictures
from sibert.lab.problems import CLASSES, NormalizedNet, masked_text, sibert, text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REFERENCES = ("cohen2021gradient", "lyu2022understanding")
MINUTES: dict[Scale, float] = {"smoke": 0.2, "default": 5.0, "full": 30.0}
PLAIN_EXAMPLES, PLAIN_LR, PLAIN_STEPS = 200, 0.3, 2500
EXAMPLES, NET_WIDTHS, HEAD, NET_LR = 50, (64, 64, CLASSES), 8.0, 0.3
"""Few examples and a wide layer: the loss reaches the minimum that the claim about the sphere begins at. The outputs
are divided by HEAD."""
PRODUCTS, UNITS = (1e-3, 5e-4), 6.0
"""Eta lambda of the normalised network, and the length of its runs in units of 1 / (eta lambda)."""
TEXT_LR, TEXT_PRODUCT, TEXT_UNITS, TEXT_BATCH, TEXT_SEED = 2.5e-4, 2e-4, 0.4, 8, 2
"""SIBERT's. Rates were tried with other weights and another batch: at 0.05 the swings are so long that a single
eigenvalue is between 2.6 and 15 / eta; at 0.003 it is 2.4 / eta, at 0.001 2.3 / eta."""
TOLERANCE, TEXT_TOLERANCE = 1e-3, 1e-2
"""Of the eigenvalues; what is judged is 10 %. (Lanczos' method is far better than it promises.)"""
NODES = (0.5 - 8.0**-0.5, 0.5, 0.5 + 8.0**-0.5)
"""Chebyshev's, which weigh the same: their mean is that along a step for cubic polynomials."""
WINDOW, POINTS = 64, 8
"""Steps over which the Hessian of SIBERT is averaged, about twice as long as a burst, and points that are taken."""
FINER = 8
"""Steps of the plain network's flow for one of descent."""
TEXT_FINER, TEXT_SHORTER, WINDOWS = 4, 0.25, 12
"""SIBERT sharpens so far that steps of a quarter are no flow: they are at an edge of their own, four times as sharp.
And how many windows there are in a run."""


def measure(scale: Scale) -> dict[str, Any]:
    """Losses and sharpness of all runs.

    Args:
        scale: Share of their length.
    """
    share, points = {"smoke": (0.03, 4), "default": (1.0, 60), "full": (3.0, 200)}[scale]
    data = pictures()
    x, y = data.train_BP[:PLAIN_EXAMPLES], data.train_B[:PLAIN_EXAMPLES]
    plain, flow = _plain(x, y, share, points)
    x, y = x[:EXAMPLES], y[:EXAMPLES]
    normalized = [_normalized(x, y, product, share, points) for product in PRODUCTS]
    windows = max(4, round(WINDOWS * points / 60))
    texts = [_text(share, windows, 1), _text(share * TEXT_SHORTER, windows, TEXT_FINER)]
    return {"runs": [plain, *normalized, *texts], "flow": flow}


def _plain(x: Tensor, y: Tensor, share: float, points: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Descent and flow. Tanh, squared error: smooth, and with a sharpness that does not fall as the loss does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, CLASSES)).double()
    target = F.one_hot(y, CLASSES).double()

    def loss(_: Any) -> Tensor:
        error: Tensor = (net(x) - target).square().sum(1).mean() / 2.0
        return error

    steps = round(share * PLAIN_STEPS)
    parameters, every = list(net.parameters()), max(1, steps // points)
    flow = _flow(net, loss, parameters, PLAIN_LR, steps, every)
    return {"name": "plain network", **_descend(net, loss, parameters, PLAIN_LR, 0.0, steps, every)}, flow


def _normalized(x: Tensor, y: Tensor, product: float, share: float, points: int) -> dict[str, Any]:
    net = NormalizedNet(NET_WIDTHS).double()
    target = F.one_hot(y, CLASSES).double()

    def loss(_: Any) -> Tensor:
        error: Tensor = (net(x) / HEAD - target).square().sum(1).mean() / 2.0
        return error

    steps = round(share * UNITS / product)
    return {
        "name": "normalised network",
        **_descend(net, loss, net.matrices(), NET_LR, product, steps, max(1, steps // points)),
    }


def _text(share: float, windows: int, finer: int) -> dict[str, Any]:
    """All groups of the matrix form as one vector: rescaling all is rescaling each.

    They share the rate eta, so that the Hessian with each group in units of its effective rate is eta H.
    """
    corpus = text()
    model = sibert(corpus, "matrix", seed=TEXT_SEED).double()
    batch = next(masked_text(corpus, TEXT_BATCH, seed=TEXT_SEED))
    groups = model.scale_invariant_groups().values()
    encoder = list({id(p): p for group in groups for _, p in group.members}.values())

    def loss(_: Any) -> Tensor:
        value: Tensor = model(**batch).loss
        return value

    lr, product = TEXT_LR / finer, TEXT_PRODUCT / finer
    steps = round(share * TEXT_UNITS / product)
    name = "SIBERT" if finer == 1 else f"SIBERT at 1 / {finer} of the rate"
    found = _descend(model, loss, encoder, lr, product, steps, max(1, steps // windows), TEXT_TOLERANCE, WINDOW)
    return {"name": name, **found}


def _flow(
    model: nn.Module, loss: Callable[[Any], Tensor], parameters: list[nn.Parameter], lr: float, steps: int, every: int
) -> dict[str, Any]:
    """Descent in steps of a FINER-th, from the start, to which it goes back; counted in steps of the whole rate."""
    start = [p.detach().clone() for p in parameters]
    run = _descend(model, loss, parameters, lr / FINER, 0.0, steps * FINER, every * FINER)
    with torch.no_grad():
        for p, value in zip(parameters, start, strict=True):
            p.copy_(value)
    return {"rows": [{**row, "step": row["step"] / FINER} for row in run["rows"]]}


def _descend(
    model: nn.Module,
    loss: Callable[[Any], Tensor],
    parameters: list[nn.Parameter],
    lr: float,
    product: float,
    steps: int,
    every: int,
    tolerance: float = TOLERANCE,
    window: int = 0,
) -> dict[str, Any]:
    """Gradient descent; by step the loss, now and then |x|^2, the sharpness, and that of the mean along a window."""
    optimizer = SGD(parameters, lr=lr, weight_decay=product / lr)
    losses, rows = [], []
    for step in range(steps + 1):
        optimizer.zero_grad()
        value = loss(None)
        value.backward()  # type: ignore[no-untyped-call]
        losses.append(value.item())
        if step % every == 0:
            sharpness = Hessian(model, loss, [None], parameters).eigenvalues(tolerance=tolerance)[0]
            norm2 = sum(p.detach().square().sum().item() for p in parameters)
            rows.append({"step": step, "sharpness": sharpness, "squared_norm": norm2})
            way = _Way(model, loss, parameters, lr)
        if step % every < min(window, every):
            way.pass_by(step % every)
        if step % every == min(window, every) - 1:
            rows[-1]["on_the_way"] = way.sharpness(tolerance)
        optimizer.step()
    return {"lr": lr, "product": product, "losses": losses, "rows": rows}


class _Way:
    """Points on the way of some steps, and the largest eigenvalue of the mean Hessian there."""

    def __init__(
        self, model: nn.Module, loss: Callable[[Any], Tensor], parameters: list[nn.Parameter], lr: float
    ) -> None:
        self.function, _ = function_of(model, loss, [None], parameters)
        chosen = {id(p) for p in parameters}
        self.parameters = [p for p in model.parameters() if id(p) in chosen]
        self.lr = lr
        self.points: list[Tensor] = []

    def pass_by(self, step: int) -> None:
        """Now and then, of even and of odd steps alike, keep a point between here and x - eta g."""
        each = WINDOW // POINTS
        if step % each != (step // each) % 2:
            return
        node = NODES[len(self.points) % len(NODES)]
        parts = [(p.detach() - node * self.lr * p.grad).reshape(-1) for p in self.parameters if p.grad is not None]
        self.points.append(torch.cat(parts))

    def sharpness(self, tolerance: float) -> float:
        """Points take the place of batches, over which `Hessian` averages."""
        zero = nn.Parameter(torch.zeros_like(self.points[0]))
        mean = Hessian(nn.ParameterList([zero]), lambda point: self.function(point + zero), self.points, [zero])
        return mean.eigenvalues(tolerance=tolerance)[0]


def _edge(run: dict[str, Any]) -> list[float]:
    """Rate times sharpness, with weight decay on the sphere: 2 at the edge."""
    key = "on_the_way" if "on_the_way" in run["rows"][0] else "sharpness"  # the last window is not full
    return [run["lr"] * row[key] / (1.0 - run["product"]) for row in run["rows"] if key in row]


def _late(values: list[float]) -> list[float]:
    return values[len(values) // 2 :]


def _spherical(run: dict[str, Any]) -> list[float]:
    return [row["sharpness"] * row["squared_norm"] for row in run["rows"]]


def _median_band(values: list[float]) -> float:
    """Half the interval of a median: one eigenvalue next to a kink may be a hundred times the others."""
    return block_interval(values, statistics.median)[1]


def _sharpened(run: dict[str, Any]) -> float:
    """Largest spherical sharpness of a run over that at its start (plain, for a network without a sphere)."""
    values = _spherical(run) if run["product"] else [row["sharpness"] for row in run["rows"]]
    return max(values) / values[0]


def _rises(run: dict[str, Any]) -> float:
    """Share of the second half's steps in which the loss rises."""
    late = _late(run["losses"])
    return sum(after > before for before, after in pairwise(late)) / len(late)


def judge(data: dict[str, Any]) -> list[Verdict]:
    """The way to the edge, where the runs stay, and what the sphere's sharpness does there.

    Args:
        data: Of `measure`.
    """
    plain, *normalized, whole, finer = data["runs"]
    return [
        *_plain_verdicts(plain, data["flow"]),
        *(verdict for run in normalized for verdict in (_on_average(run), _falls(run))),
        _same_time(*normalized),
        *_text_verdicts(whole),
        _on_average(finer),
    ]


def _plain_verdicts(run: dict[str, Any], flow: dict[str, Any]) -> list[Verdict]:
    edge, late = _edge(run), _late(run["losses"])
    rates = [run["lr"] * row["sharpness"] for row in flow["rows"]]
    stable = next((k for k, value in enumerate(edge) if value > 1.8), len(edge))
    before = {row["step"]: value for row, value in zip(run["rows"][:stable], edge, strict=False)}
    ratios = [
        before[row["step"]] / rate for row, rate in zip(flow["rows"], rates, strict=True) if row["step"] in before
    ]
    return [
        Verdict.at_most("plain network: eta lambda_1 at the start", edge[0], 1.2),
        Verdict.at_least("plain network: largest sharpness over that at the start", _sharpened(run), 1.5),
        Verdict.near(
            "plain network: sharpness over that of gradient flow at the same time, below 1.8 / eta, furthest from 1",
            max(ratios, key=lambda ratio: abs(ratio - 1.0)),
            1.0,
            0.05,
        ),
        Verdict.at_least("plain network: eta lambda_1 of gradient flow at the end, which has no edge", rates[-1], 2.4),
        Verdict.near(
            "plain network: eta lambda_1, mean of the second half",
            statistics.fmean(_late(edge)),
            2.0,
            0.1,
            error=block_interval(_late(edge))[1],
            interval=BY_BLOCKS,
        ),
        Verdict.at_least("plain network: share of the second half's steps in which the loss rises", _rises(run), 0.05),
        Verdict.at_most("plain network: loss at the end over that at half time", late[-1] / late[0], 1.0),
    ]


def _on_average(run: dict[str, Any]) -> Verdict:
    values = _late(_edge(run))
    way = f" along {WINDOW} steps" if "on_the_way" in run["rows"][0] else ""
    return Verdict.near(
        f"{run['name']}, eta lambda = {run['product']:g}: effective rate times spherical sharpness{way}, median of the "
        "second half",
        statistics.median(values),
        2.0,
        0.1,
        error=_median_band(values),
        interval=BY_BLOCKS,
    )


def _falls(run: dict[str, Any]) -> Verdict:
    spherical = _spherical(run)
    quarter = max(1, len(spherical) // 4)
    first, last = (statistics.median(part) for part in (spherical[quarter : 2 * quarter], spherical[-quarter:]))
    return Verdict.at_most(
        f"{run['name']}, eta lambda = {run['product']:g}: spherical sharpness of the last quarter over that of the "
        "second, medians",
        last / first,
        0.95,
    )


def _text_verdicts(run: dict[str, Any]) -> list[Verdict]:
    edge, late, first = _edge(run), _late(run["losses"]), run["lr"] * run["rows"][0]["sharpness"]
    low, _, high = statistics.quantiles(_late(edge), n=4)
    return [
        Verdict.at_most("SIBERT: effective rate times spherical sharpness at the start", first, 1.0),
        Verdict.at_least("SIBERT: largest spherical sharpness over that at the start", _sharpened(run), 1.5),
        _on_average(run),
        Verdict.at_least("SIBERT: lower quartile of the same", low, 1.8),
        Verdict.at_most("SIBERT: upper quartile", high, 2.2),
        _falls(run),
        Verdict.at_least("SIBERT: share of the second half's steps in which the loss rises", _rises(run), 0.05),
        Verdict.at_most("SIBERT: loss at the end over that at half time", late[-1] / late[0], 1.0),
    ]


def _same_time(fast: dict[str, Any], slow: dict[str, Any]) -> Verdict:
    pairs = zip(_late(_spherical(slow)), _late(_spherical(fast)), strict=False)
    ratios = [one / other for one, other in pairs]
    return Verdict.near(
        "normalised network: spherical sharpness at half of eta lambda over that at the same t eta lambda, median",
        statistics.median(ratios),
        1.0,
        0.2,
        error=_median_band(ratios),
        interval=BY_BLOCKS,
    )


def draw(data: dict[str, Any], figure: "Figure") -> None:
    """Rate times sharpness, spherical sharpness, and losses.

    Args:
        data: Of `measure`.
        figure: Empty.
    """
    left, middle, right = figure.subplots(1, 3)
    for k, run in enumerate(data["runs"]):
        label = run["name"] + (f", {run['product']:g}" if run["product"] else "")
        edge = _edge(run)
        steps = [row["step"] / len(run["losses"]) for row in run["rows"]]
        left.semilogy(steps[: len(edge)], edge, f"C{k}", linewidth=1, label=label)
        right.semilogy(
            [i / len(run["losses"]) for i in range(len(run["losses"]))], run["losses"], f"C{k}", linewidth=0.5
        )
        if run["product"]:
            middle.semilogy(
                [row["step"] * run["product"] for row in run["rows"]], _spherical(run), f"C{k}", linewidth=1
            )
    plain, flow = data["runs"][0], data["flow"]["rows"]
    steps = [row["step"] / len(plain["losses"]) for row in flow]
    left.semilogy(steps, [plain["lr"] * row["sharpness"] for row in flow], "C0--", linewidth=1, label="gradient flow")
    left.axhline(2.0, color="k", linewidth=0.8, linestyle=":")
    left.set(xlabel="share of the run", ylabel="rate times sharpness", title="at the edge", ylim=(0.1, 20.0))
    left.set_yticks([0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0], ["0.1", "0.2", "0.5", "1", "2", "5", "10", "20"])
    left.minorticks_off()
    middle.set(xlabel="t eta lambda", ylabel="spherical sharpness", title="on the sphere")
    right.set(xlabel="share of the run", ylabel="loss", title="loss")
    left.legend(fontsize="xx-small", title="eta lambda", title_fontsize="xx-small")
