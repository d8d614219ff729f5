"""A fully connected network needs d^2 examples where a convolutional one needs a handful.

An algorithm is equivariant under a group of maps g if it learns the same from turned data: f trained on (g x_i, y_i)
and asked at g x says what f trained on (x_i, y_i) says at x. A fully connected network whose first layer begins with
independent Gaussian numbers is equivariant under all rotations if it is trained by SGD, with momentum and weight decay
or without; under permutations and changes of sign only if it is trained by Adam. An algorithm that does not notice
rotations needs of the order of d^2 examples for

    y = sign(x_1^2 + ... + x_d^2 - x_d+1^2 - ... - x_2d^2),   x ~ N(0, I),

whose rotated copies are all different; a convolution with pooling, which sees two patches, needs a number that does not
depend on d.

Here: equivariance run by run to rounding; the errors of least squares in all products x_i x_j, an equivariant learner,
and of a convolutional network with quadratic activation trained by gradient descent.

arXiv 2010.08515.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD, Adam, Optimizer

from sibert.lab.experiment import Scale, Verdict
from sibert.lab.intervals import mean_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REFERENCES = ("li2021convolutional",)
MINUTES: dict[Scale, float] = {"smoke": 0.1, "default": 1.5, "full": 15.0}
WIDTH, STEPS = 32, 200
SHARES = (0.125, 0.25, 1.0, 2.0, 4.0)
"""Examples over D^2; not near 1/2, where there are as many examples as products and least squares is at its worst."""
FILTERS, TRIALS = 8, 12
BY_TRIALS = f"t, {TRIALS} trials"
FEW = (32, 128, 512)
OPTIMIZERS: dict[str, Callable[[list[Tensor]], Optimizer]] = {
    "SGD": lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "Adam": lambda p: Adam(p, lr=0.01),
}


def measure(scale: Scale) -> dict[str, Any]:
    """Equivariance and errors.

    Args:
        scale: Dimensions.
    """
    dimensions = {"smoke": (8, 16), "default": (16, 32, 48), "full": (16, 32, 48, 64)}[scale]
    trials = 2 if scale == "smoke" else TRIALS
    generator = torch.Generator().manual_seed(0)
    return {
        "equivariance": _equivariance(generator),
        "dense": [_dense(D, trials, generator) for D in dimensions],
        "convolution": [_convolution(D, trials, generator) for D in dimensions],
    }


def _task(count: int, D: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x_ND = torch.randn(count, D, generator=generator, dtype=torch.float64)
    return x_ND, (x_ND[:, : D // 2].square().sum(1) - x_ND[:, D // 2 :].square().sum(1)).sign()


def _equivariance(generator: torch.Generator) -> dict[str, dict[str, float]]:
    """Largest difference of outputs between training on data and on data turned, and the outputs' size."""
    D = 16
    x_ND, y_N = _task(128, D, generator)
    test_ND, _ = _task(64, D, generator)
    first = torch.randn(WIDTH, D, generator=generator, dtype=torch.float64) / math.sqrt(D)
    second = torch.randn(1, WIDTH, generator=generator, dtype=torch.float64) / math.sqrt(WIDTH)
    batches = torch.randint(128, (STEPS, 32), generator=generator)
    turns = {
        "rotation": torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64))[0],
        "permutation": torch.eye(D, dtype=torch.float64)[torch.randperm(D, generator=generator)],
        "signs": torch.diag(torch.randint(2, (D,), generator=generator).double().mul_(2).sub_(1)),
    }

    def train(optimizer: str, turn: Tensor) -> Tensor:
        weights = [(first @ turn.T).requires_grad_(), second.clone().requires_grad_()]
        steps = OPTIMIZERS[optimizer](weights)
        for chosen in batches:
            logits = torch.tanh(x_ND[chosen] @ turn.T @ weights[0].T) @ weights[1].T
            loss = F.softplus(-y_N[chosen] * logits[:, 0]).mean()
            steps.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            steps.step()
        return (torch.tanh(test_ND @ turn.T @ weights[0].T) @ weights[1].T).detach()

    plain = torch.eye(D, dtype=torch.float64)
    return {
        optimizer: {
            name: (train(optimizer, turn) - train(optimizer, plain)).abs().max().item() for name, turn in turns.items()
        }
        for optimizer in OPTIMIZERS
    }


def _dense(D: int, trials: int, generator: torch.Generator) -> dict[str, Any]:
    """Test errors of least squares of smallest norm in the products of two entries."""
    rows, columns = torch.triu_indices(D, D)
    weight = torch.where(rows == columns, 1.0, math.sqrt(2.0)).double()  # the norm of the whole matrix x x'

    def features(x_ND: Tensor) -> Tensor:
        return torch.cat((x_ND[:, rows] * x_ND[:, columns] * weight, torch.ones(len(x_ND), 1, dtype=torch.float64)), 1)

    errors = []
    for share in SHARES:
        wrong = []
        for _ in range(trials):
            x_ND, y_N = _task(round(share * D**2), D, generator)
            test_ND, test_N = _task(2000, D, generator)
            found = _least_squares(features(x_ND), y_N)
            wrong.append(((features(test_ND) @ found).sign() != test_N).double().mean().item())
        errors.append(mean_interval(wrong))
    return {"D": D, "errors": errors}


def _least_squares(f_NP: Tensor, y_N: Tensor) -> Tensor:
    """The solution of smallest norm, [P], by the smaller of the two Gram matrices."""
    count, size = f_NP.shape
    found_P: Tensor
    if count <= size:
        found_P = f_NP.T @ torch.linalg.solve(f_NP @ f_NP.T, y_N)
    else:
        found_P = torch.linalg.solve(f_NP.T @ f_NP, f_NP.T @ y_N)
    return found_P


def _convolution(D: int, trials: int, generator: torch.Generator) -> dict[str, Any]:
    """Test errors of the sum of a_kr mean((w_k x)^2) over filters k and two patches r, trained by gradient descent."""
    errors = []
    for count in FEW:
        wrong = []
        for _ in range(trials):
            x_ND, y_N = _task(count, D, generator)
            test_ND, test_N = _task(2000, D, generator)
            w_K = torch.randn(FILTERS, generator=generator, dtype=torch.float64)
            a_KR = 0.1 * torch.randn(FILTERS, 2, generator=generator, dtype=torch.float64)
            weights = [w_K.requires_grad_(), a_KR.requires_grad_()]

            def output(x_ND: Tensor, weights: list[Tensor] = weights) -> Tensor:
                patches_NR = x_ND.square().view(len(x_ND), 2, -1).mean(2)  # of w = 1; (w x)^2 = w^2 x^2
                logits_N: Tensor = patches_NR @ (weights[0].square() @ weights[1])
                return logits_N

            steps = SGD(weights, lr=0.1)
            for _ in range(2000):
                steps.zero_grad()
                F.softplus(-y_N * output(x_ND)).mean().backward()  # type: ignore[no-untyped-call]
                steps.step()
            wrong.append((output(test_ND).sign() != test_N).double().mean().item())
        errors.append(mean_interval(wrong))
    return {"D": D, "errors": errors}


def judge(data: dict[str, Any]) -> list[Verdict]:
    """Equivariance, one curve against n / D^2, and none against n for the convolution.

    Args:
        data: Of `measure`.
    """
    same, dense, convolution = data["equivariance"], data["dense"], data["convolution"]
    by_share = list(zip(*(row["errors"] for row in dense), strict=True))
    quarter = by_share[SHARES.index(0.25)]
    return [
        Verdict.at_most(
            "SGD: outputs after training on turned data, largest difference", max(same["SGD"].values()), 1e-10
        ),
        Verdict.at_most(
            "Adam: the same for permutations and signs", max(same["Adam"]["permutation"], same["Adam"]["signs"]), 1e-10
        ),
        Verdict.at_least("Adam: the same for a rotation", same["Adam"]["rotation"], 0.01),
        Verdict.at_most(
            "equivariant learner: spread of the error over dimensions at equal n / D^2, largest",
            bound=0.05,
            **_measured(max(map(_spread, by_share))),
        ),
        Verdict.at_least(
            "equivariant learner: error at n = D^2 / 4, smallest", bound=0.25, **_measured(min(map(tuple, quarter)))
        ),
        Verdict.at_most(
            "equivariant learner: error at n = 4 D^2, largest", bound=0.15, **_measured(max(map(tuple, by_share[-1])))
        ),
        Verdict.at_most(
            f"convolution: error with {FEW[-1]} examples, largest of the dimensions",
            bound=0.05,
            **_measured(max(tuple(row["errors"][-1]) for row in convolution)),
        ),
        Verdict.at_most(
            "convolution: spread of the error over dimensions at equal n, largest",
            bound=0.05,
            **_measured(max(map(_spread, zip(*(row["errors"] for row in convolution), strict=True)))),
        ),
    ]


def _spread(errors: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Largest less smallest mean, with its interval."""
    (low, low_width), (high, high_width) = min(map(tuple, errors)), max(map(tuple, errors))
    return high - low, math.hypot(low_width, high_width)


def _measured(pair: Sequence[float]) -> dict[str, Any]:
    return {"measured": pair[0], "error": pair[1], "interval": BY_TRIALS}


def draw(data: dict[str, Any], figure: "Figure") -> None:
    """Errors against n / D^2 and against n.

    Args:
        data: Of `measure`.
        figure: Empty.
    """
    left, right = figure.subplots(1, 2, sharey=True)
    for row in data["dense"]:
        left.errorbar(SHARES, *zip(*row["errors"], strict=True), fmt="o-", capsize=2, label=f"D = {row['D']}")
    for row in data["convolution"]:
        right.errorbar(FEW, *zip(*row["errors"], strict=True), fmt="o-", capsize=2)
    left.set(xscale="log", xlabel="examples / D^2", ylabel="test error", title="equivariant learner")
    right.set(xscale="log", xlabel="examples", title="convolution", ylim=(0.0, 0.5))
    left.legend(fontsize="x-small")
