"""Networks trained by the gradient of all examples sharpen until they are at the edge of stability, and stay there.

Gradient descent at the rate eta is stable where the largest eigenvalue lambda_1 of the Hessian is below 2 / eta. A run
that begins there sharpens until it reaches the edge, and then neither diverges nor turns back: it swings, and lambda_1
hovers about 2 / eta. Of a scale-invariant loss with weight decay the same is true on the sphere, with the effective
rate eta / ((1 - eta lambda) |x|^2) and the spherical sharpness |x|^2 lambda_1:

    eta lambda_1 / (1 - eta lambda) = 2 on average.

The effective rate finds the edge by itself, since weight decay makes it grow for as long as the run is stable. From
then on the swings drive the spherical sharpness down, in a time of 1 / (eta lambda) steps.

Here: a plain and a normalised network on digits, and a SIBERT on one batch of text, whose head does not learn; all in
float64. The average is over some swings only, and lambda_1 is seen at some steps only, hence a tolerance of 10 % where
the toys of `edge-of-stability` have 0.2 %. SIBERT's loss is still falling, and between the kinks of its ReLUs lambda_1
of an iterate is not that of the way which a step takes: it has to be no lower than the edge, and at most twice as high.

arXiv 2103.00065 (the edge), 2206.07085 (the sphere).
"""

import math
import statistics
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from sibert.dynamics import Hessian
from sibert.lab.experiment import Scale, Verdict
from sibert.lab.problems import CLASSES, NormalizedNet, digits, masked_text, sibert, text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REFERENCES = ("cohen2021gradient", "lyu2022understanding")
MINUTES: dict[Scale, float] = {"smoke": 0.2, "default": 3.0, "full": 20.0}
PLAIN_EXAMPLES, PLAIN_LR, PLAIN_STEPS = 200, 0.3, 2500
EXAMPLES, NET_WIDTHS, HEAD, NET_LR = 50, (64, 64, CLASSES), 8.0, 0.3
"""Few examples and a wide layer: the loss reaches the minimum that the claim about the sphere begins at. The outputs
are divided by HEAD."""
PRODUCTS, UNITS = (1e-3, 5e-4), 6.0
"""Eta lambda of the normalised network, and the length of its runs in units of 1 / (eta lambda)."""
TEXT_LR, TEXT_PRODUCT, TEXT_UNITS, TEXT_BATCH = 0.05, 1e-3, 0.3, 8
TOLERANCE = 1e-3
"""Of the eigenvalues; what is judged is 10 %."""


def measure(scale: Scale) -> dict[str, Any]:
    """Losses and sharpness of all runs.

    Args:
        scale: Share of their length.
    """
    share, points = {"smoke": (0.03, 4), "default": (1.0, 60), "full": (3.0, 200)}[scale]
    data = digits()
    x, y = data.train_BP[:PLAIN_EXAMPLES], data.train_B[:PLAIN_EXAMPLES]
    runs = [_plain(x, y, share, points)]
    x, y = x[:EXAMPLES], y[:EXAMPLES]
    runs += [_normalized(x, y, product, share, points) for product in PRODUCTS]
    runs.append(_text(share, points))
    return {"runs": runs}


def _plain(x: Tensor, y: Tensor, share: float, points: int) -> dict[str, Any]:
    """Tanh, squared error: smooth, and with a sharpness that does not fall as the loss does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, CLASSES)).double()
    target = F.one_hot(y, CLASSES).double()

    def loss(_: Any) -> Tensor:
        error: Tensor = (net(x) - target).square().sum(1).mean() / 2.0
        return error

    found = _descend(net, loss, list(net.parameters()), PLAIN_LR, 0.0, round(share * PLAIN_STEPS), points)
    return {"name": "plain network", **found}


def _normalized(x: Tensor, y: Tensor, product: float, share: float, points: int) -> dict[str, Any]:
    net = NormalizedNet(NET_WIDTHS).double()
    target = F.one_hot(y, CLASSES).double()

    def loss(_: Any) -> Tensor:
        error: Tensor = (net(x) / HEAD - target).square().sum(1).mean() / 2.0
        return error

    steps = round(share * UNITS / product)
    return {"name": "normalised network", **_descend(net, loss, net.matrices(), NET_LR, product, steps, points)}


def _text(share: float, points: int) -> dict[str, Any]:
    """All groups of the matrix form as one vector: rescaling all is rescaling each."""
    corpus = text()
    model = sibert(corpus, "matrix").double()
    batch = next(masked_text(corpus, TEXT_BATCH))
    groups = model.scale_invariant_groups().values()
    encoder = list({id(p): p for group in groups for _, p in group.members}.values())

    def loss(_: Any) -> Tensor:
        value: Tensor = model(**batch).loss
        return value

    steps = round(share * TEXT_UNITS / TEXT_PRODUCT)
    found = _descend(model, loss, encoder, TEXT_LR, TEXT_PRODUCT, steps, max(4, points // 4))
    return {"name": "SIBERT", **found}


def _descend(
    model: nn.Module,
    loss: Callable[[Any], Tensor],
    parameters: list[nn.Parameter],
    lr: float,
    product: float,
    steps: int,
    points: int,
) -> dict[str, Any]:
    """Gradient descent; by step the loss, and now and then the sharpness and |x|^2."""
    optimizer = SGD(parameters, lr=lr, weight_decay=product / lr)
    losses, rows = [], []
    every = max(1, steps // points)
    for step in range(steps + 1):
        if step % every == 0:
            sharpness = Hessian(model, loss, [None], parameters).eigenvalues(tolerance=TOLERANCE)[0]
            norm2 = sum(p.detach().square().sum().item() for p in parameters)
            rows.append({"step": step, "sharpness": sharpness, "squared_norm": norm2})
        optimizer.zero_grad()
        value = loss(None)
        value.backward()  # type: ignore[no-untyped-call]
        losses.append(value.item())
        optimizer.step()
    return {"lr": lr, "product": product, "losses": losses, "rows": rows}


def _edge(run: dict[str, Any]) -> list[float]:
    """Rate times sharpness, with weight decay on the sphere: 2 at the edge."""
    return [run["lr"] * row["sharpness"] / (1.0 - run["product"]) for row in run["rows"]]


def _late(values: list[float]) -> list[float]:
    return values[len(values) // 2 :]


def _spherical(run: dict[str, Any]) -> list[float]:
    return [row["sharpness"] * row["squared_norm"] for row in run["rows"]]


def _band(values: list[float]) -> float:
    """Half width of the 95 % interval of a mean of observations."""
    return 1.96 * statistics.stdev(values) / math.sqrt(len(values))


def _median_band(values: list[float]) -> float:
    """The same of a median, from the quartiles: one eigenvalue next to a kink may be a hundred times the others."""
    low, _, high = statistics.quantiles(values, n=4)
    return 1.96 * 1.25 * (high - low) / 1.35 / math.sqrt(len(values))


def judge(data: dict[str, Any]) -> list[Verdict]:
    """The way to the edge, where the runs stay, and what the sphere's sharpness does there.

    Args:
        data: Of `measure`.
    """
    plain, *sphere = data["runs"]
    edge = _edge(plain)
    late = _late(plain["losses"])
    rises = sum(after > before for before, after in pairwise(late))
    verdicts = [
        Verdict.at_most("plain network: eta lambda_1 at the start", edge[0], 1.2),
        Verdict.near(
            "plain network: eta lambda_1, mean of the second half",
            statistics.fmean(_late(edge)),
            2.0,
            0.1,
            error=_band(_late(edge)),
        ),
        Verdict.at_least(
            "plain network: share of the second half's steps in which the loss rises", rises / len(late), 0.05
        ),
        Verdict.at_most("plain network: loss at the end over that at half time", late[-1] / late[0], 1.0),
    ]
    for run in sphere:
        head = f"{run['name']}, eta lambda = {run['product']:g}"
        values = _late(_edge(run))
        spherical = _spherical(run)
        quarter = max(1, len(spherical) // 4)
        first, last = (statistics.median(part) for part in (spherical[quarter : 2 * quarter], spherical[-quarter:]))
        statement = f"{head}: effective rate times spherical sharpness, median of the second half"
        middle, error = statistics.median(values), _median_band(values)
        verdicts += [
            Verdict(statement, middle, 1.8, 4.0, 2.0, error)
            if run["name"] == "SIBERT"
            else Verdict.near(statement, middle, 2.0, 0.1, error=error),
            Verdict.at_most(
                f"{head}: spherical sharpness of the last quarter over that of the second, medians", last / first, 0.95
            ),
        ]
    slow, fast = (_spherical(run) for run in (sphere[1], sphere[0]))
    ratios = [one / other for one, other in zip(_late(slow), _late(fast), strict=False)]
    verdicts.append(
        Verdict.near(
            "normalised network: spherical sharpness at half of eta lambda over that at the same t eta lambda, median",
            statistics.median(ratios),
            1.0,
            0.2,
            error=_median_band(ratios),
        )
    )
    return verdicts


def draw(data: dict[str, Any], figure: "Figure") -> None:
    """Rate times sharpness, spherical sharpness, and losses.

    Args:
        data: Of `measure`.
        figure: Empty.
    """
    left, middle, right = figure.subplots(1, 3)
    for k, run in enumerate(data["runs"]):
        label = run["name"] + (f", {run['product']:g}" if run["product"] else "")
        steps = [row["step"] / len(run["losses"]) for row in run["rows"]]
        left.semilogy(steps, _edge(run), f"C{k}", linewidth=1, label=label)
        right.semilogy(
            [i / len(run["losses"]) for i in range(len(run["losses"]))], run["losses"], f"C{k}", linewidth=0.5
        )
        if run["product"]:
            middle.semilogy(
                [row["step"] * run["product"] for row in run["rows"]], _spherical(run), f"C{k}", linewidth=1
            )
    left.axhline(2.0, color="k", linewidth=0.8, linestyle=":")
    left.set(xlabel="share of the run", ylabel="rate times sharpness", title="at the edge", ylim=(0.5, 20.0))
    left.set_yticks([0.5, 1.0, 2.0, 5.0, 10.0, 20.0], ["0.5", "1", "2", "5", "10", "20"])
    left.minorticks_off()
    middle.set(xlabel="t eta lambda", ylabel="spherical sharpness", title="on the sphere")
    right.set(xlabel="share of the run", ylabel="loss", title="loss")
    left.legend(fontsize="xx-small", title="eta lambda", title_fontsize="xx-small")
