"""Weight decay is nothing but an exponentially growing learning rate.

On a scale-invariant loss, SGD with momentum m, learning rates eta_t and weight decay lambda visits the same functions
as SGD with the same momentum, no weight decay and the learning rates

    eta'_t = eta_t / (P_t P_t+1),   P_t+1 = alpha_t P_t,   P_0 = 1
    alpha_t = 1 - eta_t lambda + m (eta_t / eta_t-1) (1 - 1 / alpha_t-1),   alpha_-1 = 1,

the weights of the one being P_t times those of the other (TEXP++). For a constant schedule alpha_t tends to the larger
root of x^2 - (1 + m - lambda eta) x + m = 0 and eta'_t grows like alpha^(-2t). A schedule by steps with one growth
factor in each phase (TEXP) is exact if the momentum buffer is corrected once at each change; without that a transient
remains.

Here: a normalised network on digits and SIBERT on text, both in float64, over 200 steps.

arXiv 1910.07454. The recursion for any schedule and the correction are derived here.
"""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from sibert.dynamics import EquivalentExponentialLR, ExponentialSchedule, texp
from sibert.lab.experiment import Scale, Verdict
from sibert.lab.pictures import pictures
from sibert.lab.problems import NormalizedNet, masked_text, sibert, text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REFERENCES = ("li2020exponential",)
MINUTES: dict[Scale, float] = {"smoke": 0.3, "default": 0.6, "full": 3.0}
STEPS = 200
LR, DECAY, MOMENTUM = 0.2, 0.005, 0.9
SCHEDULES: dict[str, Callable[[int], float]] = {
    "constant": lambda t: 1.0,
    "steps": lambda t: 1.0 if t < 70 else 0.1 if t < 140 else 0.01,
    "cosine": lambda t: 0.5 * (1.0 + math.cos(math.pi * t / (STEPS + 1))),
    "random": lambda t: 0.2 + ((7919 * t) % 101) / 101,
}
Outputs = list[Tensor]


class _Problem:
    """A model, its batches, and what is compared: a function of the batch and its loss."""

    def __init__(self, name: str, size: str) -> None:
        self.size = size
        self.text = text() if name == "sibert" else None
        self.digits = pictures()

    def model(self) -> nn.Module:
        return NormalizedNet(frozen=False) if self.text is None else sibert(self.text, size=self.size).double()

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        if isinstance(model, NormalizedNet):
            invariant: list[nn.Parameter] = model.double().matrices()
        else:
            named = model.scale_invariant_groups()  # type: ignore[operator]
            invariant = list({id(p): p for group in named.values() for _, p in group.members}.values())
        rest = [p for p in model.parameters() if all(p is not q for q in invariant)]
        return [{"params": invariant, "scale_invariant": True}, {"params": rest, "weight_decay": 0.03}]

    def batches(self) -> Iterator[Any]:
        if self.text is not None:
            yield from masked_text(self.text, 8)
        generator = torch.Generator().manual_seed(0)
        while True:
            chosen = torch.randint(len(self.digits.train_B), (64,), generator=generator)
            yield self.digits.train_BP[chosen], self.digits.train_B[chosen]

    def evaluate(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        if self.text is not None:
            outputs = model(**batch)
            return outputs.logits, outputs.loss
        logits = model(batch[0])
        return logits, F.cross_entropy(logits, batch[1])


def _train(
    problem: _Problem,
    factor: Callable[[int], float],
    steps: int,
    schedule: ExponentialSchedule | None = None,
    equivalent: bool = False,
    corrected: bool = False,
) -> tuple[Outputs, list[float]]:
    """Outputs before each step, and learning rates of the invariant group, relative to the first."""
    model = problem.model()
    optimizer = SGD(problem.groups(model), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    invariant = optimizer.param_groups[0]
    scheduler: torch.optim.lr_scheduler.LRScheduler
    if equivalent:
        scheduler = EquivalentExponentialLR(optimizer, factor)
    elif schedule is not None:
        invariant["weight_decay"] = 0.0
        rates = [*schedule.lr, 0.0]
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda t: rates[t] / LR, factor])
    else:
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [factor, factor])
    outputs, seen = [], []
    for step, batch in zip(range(steps), problem.batches(), strict=False):
        output, loss = problem.evaluate(model, batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if corrected and schedule is not None and step in schedule.momentum_correction:
            _correct(optimizer, schedule.momentum_correction[step])
        outputs.append(output.detach())
        seen.append(float(invariant["lr"]))
        optimizer.step()
        scheduler.step()
    return outputs, seen


@torch.no_grad()
def _correct(optimizer: SGD, amount: float) -> None:
    """Add a multiple of the weights to the momentum buffer; torch's first step makes the buffer of the gradient."""
    group = optimizer.param_groups[0]
    for parameter in group["params"]:
        buffer = optimizer.state[parameter].get("momentum_buffer")
        if buffer is None:
            parameter.grad.add_(parameter, alpha=group["momentum"] * amount)
        else:
            buffer.add_(parameter, alpha=amount)


def _differences(one: Outputs, other: Outputs) -> list[float]:
    return [(a - b).abs().max().item() for a, b in zip(one, other, strict=True)]


def measure(scale: Scale) -> dict[str, Any]:
    """Outputs of both runs, batch by batch.

    Args:
        scale: 60 steps or 200, the smallest SIBERT or a larger one.
    """
    steps, size = (60 if scale == "smoke" else STEPS), ("tiny" if scale == "full" else "nano")
    runs = []
    for name in ("digits", "sibert"):
        problem = _Problem(name, size)
        for schedule, factor in SCHEDULES.items():
            original, plain = _train(problem, factor, steps)
            translated, grown = _train(problem, factor, steps, equivalent=True)
            spread = max(float(output.std()) for output in original)
            runs.append(
                {
                    "problem": name,
                    "schedule": schedule,
                    "differences": _differences(original, translated),
                    "output_deviation": spread,
                    "lr": plain,
                    "equivalent_lr": grown,
                }
            )
            if name == "digits" and schedule == "steps":
                phases = texp([LR * factor(t) for t in range(steps)], DECAY, MOMENTUM)
                exact, _ = _train(problem, factor, steps, phases, corrected=True)
                bare, _ = _train(problem, factor, steps, phases)
                without, _ = _train(problem, factor, steps, _undecayed(factor, steps))
                transient = {
                    "corrected": _differences(original, exact),
                    "uncorrected": _differences(original, bare),
                    "no_decay": _differences(original, without),
                }
    return {"runs": runs, "texp": transient}


def _undecayed(factor: Callable[[int], float], steps: int) -> ExponentialSchedule:
    """The schedule as it is: what the same run without weight decay would be."""
    return ExponentialSchedule(tuple(LR * factor(t) for t in range(steps)), (1.0,) * (steps + 1))


def judge(data: dict[str, Any]) -> list[Verdict]:
    """The same functions; TEXP's transient; and that leaving weight decay out is something else.

    Args:
        data: Of `measure`.
    """
    verdicts = [
        Verdict.at_most(
            f"{run['problem']}, {run['schedule']} schedule: largest difference of outputs",
            max(run["differences"]),
            1e-9,
        )
        for run in data["runs"]
    ]
    found = data["texp"]
    constant = next(run for run in data["runs"] if run["schedule"] == "constant" and run["problem"] == "digits")
    grown = constant["equivalent_lr"]
    middle = 1.0 + MOMENTUM - DECAY * LR
    root = (middle + math.sqrt(middle**2 - 4.0 * MOMENTUM)) / 2.0
    return [
        *verdicts,
        Verdict.near(
            "constant schedule: growth of the learning rate in the last step", grown[-1] / grown[-2], root**-2, 1e-6
        ),
        Verdict.at_most("TEXP with its corrections of the momentum: largest difference", max(found["corrected"]), 1e-9),
        Verdict.at_least("TEXP without them: largest difference, a transient", max(found["uncorrected"]), 1e-4),
        Verdict.at_least("no weight decay, no growth: largest difference", max(found["no_decay"]), 0.1),
    ]


def draw(data: dict[str, Any], figure: "Figure") -> None:
    """Learning rates, and differences of outputs.

    Args:
        data: Of `measure`.
        figure: Empty.
    """
    left, right = figure.subplots(1, 2)
    for run in data["runs"]:
        if run["problem"] == "digits":
            (line,) = left.semilogy(run["equivalent_lr"], label=run["schedule"])
            left.semilogy(run["lr"], ":", color=line.get_color(), linewidth=1)
    left.set(xlabel="step", ylabel="learning rate", title="with weight decay (dotted) and without")
    left.legend(fontsize="x-small")
    floor = 1e-17
    for run in data["runs"]:
        style = "-" if run["problem"] == "digits" else "--"
        values = [max(value, floor) for value in run["differences"]]
        right.semilogy(values, style, linewidth=0.8, label=f"{run['problem']}, {run['schedule']}")
    for key, label in (("uncorrected", "TEXP uncorrected"), ("no_decay", "no decay, no growth")):
        right.semilogy(
            [max(value, floor) for value in data["texp"][key]], "k-" if key == "no_decay" else "k:", label=label
        )
    right.set(xlabel="step", ylabel="largest difference of outputs")
    right.legend(fontsize="xx-small", ncols=2)
