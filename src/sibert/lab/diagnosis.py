"""What is wrong with a run, and what to do about it: a model, its loss, batches and an optimizer, judged by theory.

Measured where the model is: which groups are scale invariant, how long they are and how far a step turns them, beside
what balances (`sibert.dynamics.equilibrium`); signal and noise of the gradients (`noise`); the largest curvature beside
the line of stability (`curvature`). `diagnosis_advice` draws the conclusions. Model, optimizer, gradients, mode and
random numbers stay as they are.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from sibert.dynamics import GradientNoise, Hessian, gradient_noise
from sibert.dynamics.observation import seed_observed
from sibert.lab.diagnosis_advice import Finding, advice
from sibert.lab.diagnosis_groups import (
    Group,
    Moments,
    Rates,
    Standing,
    Stepped,
    candidates,
    children,
    claimed_groups,
    invariance,
    moments,
    stepped,
    tried_angles,
)
from sibert.optim import InvariantGroup

__all__ = ["Diagnosis", "GroupDiagnosis", "Stability", "diagnose"]

BATCHES, GROUP_BATCHES, SHARPNESS_BATCHES, FEW_BATCHES = 64, 16, 4, 2
TOLERANCE = 1e-2
"""Of eigenvalues: what is judged is a factor."""


@dataclass(frozen=True)
class GroupDiagnosis:
    """One group.

    Attributes:
        name: Its name.
        entries: Number of its parameters' entries.
        rows: Whether each row is a vector of its own.
        claimed: Whether the model or the caller names it as scale invariant; False = found by computing.
        invariant: Whether it is: the gradient is orthogonal to it, and rescaling leaves the loss as it is.
        deviation: Relative change of the loss at twice and half the scale.
        cosine: Of parameters and gradient, the largest over the batches; 0 for a scale-invariant loss.
        standing: None if it is not invariant, or the balance of its optimizer is not known.
        unknown: Why there is no standing, as part of a sentence; empty if there is one.
        spherical_sharpness: |x|^2 lambda_1, unit of the loss; None if not measured, and for rows.
        stability: lambda_1 over the line of stability, 2 (1 + m) (1 - eta lambda) / eta for SGD; None if not measured.
    """

    name: str
    entries: int
    rows: bool
    claimed: bool
    invariant: bool
    deviation: float
    cosine: float
    standing: Standing | None = None
    unknown: str = ""
    spherical_sharpness: float | None = None
    stability: float | None = None


@dataclass(frozen=True)
class Stability:
    """Curvature against the learning rates of all scale-invariant groups together; without any, of all parameters.

    Attributes:
        sharpness: lambda_1 of D^(1/2) H D^(1/2), D = the learning rate of each entry; no unit.
        line: Up to which gradient descent is stable: 2 (1 + m) (1 - eta lambda), or 2 (1 + b1) / (1 - b1) for Adam.
    """

    sharpness: float
    line: float


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found.

    Attributes:
        groups: Of the model.
        rates: Of the first group with a known balance; None if there is none.
        batch_size: B, examples a step.
        steps: Steps left at these rates; None = not known.
        noise: Signal and noise of the gradients of the scale-invariant groups; without any, of all parameters.
        stability: None where the optimizer has no line of stability, or none was asked for.
        findings: What to mend, and notes.
    """

    groups: tuple[GroupDiagnosis, ...]
    rates: Rates | None
    batch_size: int
    steps: float | None
    noise: GradientNoise
    stability: Stability | None
    findings: tuple[Finding, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether there is nothing to mend."""
        return not any(finding.mend for finding in self.findings)

    def __str__(self) -> str:
        """The report as text."""
        from sibert.lab.diagnosis_page import as_text

        return as_text(self)


def diagnose(
    model: nn.Module,
    loss: Callable[[Any], Tensor],
    batches: Iterable[Any],
    optimizer: Optimizer | Rates | Mapping[str, Rates],
    *,
    batch_size: int,
    groups: Mapping[str, InvariantGroup | Sequence[nn.Parameter]] | None = None,
    steps: float | None = None,
    standings: Mapping[str, Standing] | None = None,
    sharpness: bool = True,
    each_group: bool = True,
) -> Diagnosis:
    """Say how a model trains, what is wrong with that, and what to do; the model is left as it is.

    Args:
        model: Any module, in the mode in which it is trained; dropout masks are held still where that matters.
        loss: Mean loss of a batch as a scalar: `lambda batch: model(**batch).loss`.
        batches: At least 16 batches of equal size, drawn independently; the first 64 are used.
        optimizer: With which it is trained, in its present state; or its `Rates`, of all groups or by group.
        batch_size: B, examples of each batch.
        groups: The groups that are said to be scale invariant, by name; None = the model's own
            `scale_invariant_groups()`, or, if it has no such method, what computing finds module by module.
        steps: How many steps are left at the present rates; None = not known, and nothing is said about time.
        standings: Of groups by name, measured elsewhere; they take the place of what is measured here.
        sharpness: Whether curvature is measured.
        each_group: Whether that of each group is, too, which costs as much again for each of them.

    Returns:
        The diagnosis; `print` it, or write it by `write_diagnosis`.

    Raises:
        ValueError: For too few batches, or a loss or gradients that are not finite.
    """
    chosen = list(islice(batches, BATCHES))
    if not chosen:
        raise ValueError("there are no batches: give at least 16, drawn independently")
    fixed, few = _with_fixed_masks(model, loss), chosen[:FEW_BATCHES]
    claimed = claimed_groups(model, groups)
    named = candidates(model) if claimed is None else claimed
    seen = dict(zip(named, moments(model, loss, chosen[:GROUP_BATCHES], named), strict=True))
    verdicts = {
        group: invariance(model, fixed, few, group, seen[group])
        for group in named
        if group.claimed or seen[group].may_be_orthogonal
    }
    if claimed is None:
        verdicts = _disjoint(verdicts)
    found, known = _stand(optimizer, verdicts, seen, standings or {})
    if isinstance(optimizer, Optimizer):
        turned = tried_angles(optimizer, list(known.values()), model, loss, chosen)
        found = [_turned(one, turned.get(one.name)) for one in found]
    members = [p for group, (invariant, _) in verdicts.items() if invariant for p in group.members]
    noise = gradient_noise(model, loss, chosen, batch_size, members or None)
    stability = None
    if sharpness:
        whole = list(known.values()) if members else _all_parameters(optimizer, seen)
        several = chosen[:SHARPNESS_BATCHES]
        stability = _stability(model, fixed, several, optimizer, whole)
        if each_group:
            found = [_with_sharpness(one, model, fixed, several, optimizer, known.get(one.name)) for one in found]
    rates = next((one.rates for one in known.values()), optimizer if isinstance(optimizer, Rates) else None)
    diagnosis = Diagnosis(tuple(found), rates, batch_size, steps, noise, stability)
    return replace(diagnosis, findings=advice(diagnosis))


def _stand(
    optimizer: Optimizer | Rates | Mapping[str, Rates],
    verdicts: Mapping[Group, tuple[bool, float]],
    seen: Mapping[Group, Moments],
    standings: Mapping[str, Standing],
) -> tuple[list[GroupDiagnosis], dict[str, Stepped]]:
    """Where each group stands, and how those whose balance is known are stepped."""
    found: list[GroupDiagnosis] = []
    known: dict[str, Stepped] = {}
    for group, (invariant, deviation) in verdicts.items():
        entries = sum(p.numel() for p in group.members)
        one = GroupDiagnosis(group.name, entries, group.rows, group.claimed, invariant, deviation, seen[group].cosine)
        answer = stepped(optimizer, group, seen[group]) if invariant else ""
        elsewhere = standings.get(group.name)
        if isinstance(answer, Stepped):
            known[group.name] = _with_lr_of(answer, seen[group], elsewhere)
            one = replace(one, standing=elsewhere or known[group.name].standing(seen[group]))
        elif invariant:
            one = replace(one, standing=elsewhere, unknown="" if elsewhere else answer)
        found.append(one)
    return found, known


def _with_fixed_masks(model: nn.Module, loss: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
    """The same dropout masks at each call: a function of the parameters."""

    def fixed(batch: Any) -> Tensor:
        seed_observed(model, 0)  # within `observed`, which puts the generators back
        return loss(batch)

    return fixed


def _disjoint(verdicts: Mapping[Group, tuple[bool, float]]) -> dict[Group, tuple[bool, float]]:
    """Of what computing finds, each parameter once; the finer groups come first."""
    taken: set[nn.Parameter] = set()
    kept = {}
    for group, verdict in verdicts.items():
        if verdict[0] and not taken & set(group.members):
            kept[group] = verdict
            taken |= set(group.members)
    return kept


def _with_lr_of(one: Stepped, seen: Moments, standing: Standing | None) -> Stepped:
    """Rows whose learning rates only a mean is known of: in proportion to |x|^2, as they are at equilibrium."""
    if standing is None or standing.effective_lr is None or not one.group.rows:
        return one
    return replace(one, lr_R=one.rates.lr * seen.norm_R.square() / seen.norm_R.square().mean())


def _turned(one: GroupDiagnosis, angle: float | None) -> GroupDiagnosis:
    if angle is None or one.standing is None:
        return one
    return replace(one, standing=replace(one.standing, angular_update=angle))


def _all_parameters(optimizer: Optimizer | Rates | Mapping[str, Rates], seen: Mapping[Group, Moments]) -> list[Stepped]:
    """Of a model that names no group and has none; empty if the rates of a parameter are not known."""
    single = [(group, one) for group, one in seen.items() if len(group.members) == 1 and not group.claimed]
    answers = [stepped(optimizer, group, one) for group, one in single]
    known = [answer for answer in answers if isinstance(answer, Stepped)]
    return known if len(known) == len(answers) else []


def _rates_of_entries(
    optimizer: Optimizer | Rates | Mapping[str, Rates], one: Stepped
) -> tuple[list[float | Tensor], float] | None:
    """Learning rate of each entry of each member, and the line of stability; None where there is none."""
    rates = one.rates
    if rates.rule == "sgd":
        line = 2.0 * (1.0 + rates.momentum) * (1.0 - rates.intrinsic_lr)
        lr_R = one.lr_R
        return [
            lr_R.view(-1, *[1] * (p.dim() - 1)) if one.group.rows else float(lr_R[0]) for p in one.group.members
        ], line
    if rates.rule == "lion" or not isinstance(optimizer, Optimizer):
        return None
    found: list[float | Tensor] = []
    states = {p: state for child in children(optimizer) for p, state in child.state.items()}
    epsilons = {p: group.get("eps", 1e-8) for group in optimizer.param_groups for p in group["params"]}
    for p in one.group.members:
        state = states.get(p, {})
        if "exp_avg_sq" not in state:
            return None
        largest = state.get("max_exp_avg_sq", state["exp_avg_sq"])  # AMSGrad's
        second = largest / (1.0 - rates.betas[1] ** float(state["step"]))
        found.append(rates.lr / (second.sqrt() + epsilons[p]))
    return found, 2.0 * (1.0 + rates.betas[0]) / (1.0 - rates.betas[0])


def _stability(
    model: nn.Module,
    loss: Callable[[Any], Tensor],
    batches: Sequence[Any],
    optimizer: Optimizer | Rates | Mapping[str, Rates],
    groups: Sequence[Stepped],
) -> Stability | None:
    answers = [_rates_of_entries(optimizer, one) for one in groups]
    known = [answer for answer in answers if answer is not None]
    if not known or len(known) < len(answers):
        return None
    members = [p for one in groups for p in one.group.members]
    hessian = Hessian(model, loss, batches, members)
    sharpness = hessian.preconditioned_sharpness([rate for rates, _ in known for rate in rates], TOLERANCE)
    return Stability(sharpness, min(line for _, line in known))


def _with_sharpness(
    result: GroupDiagnosis,
    model: nn.Module,
    loss: Callable[[Any], Tensor],
    batches: Sequence[Any],
    optimizer: Optimizer | Rates | Mapping[str, Rates],
    one: Stepped | None,
) -> GroupDiagnosis:
    found = None if one is None else _stability(model, loss, batches, optimizer, [one])
    if one is None or found is None:
        return result
    spherical = None
    if one.rates.rule == "sgd" and not result.rows:
        squared = sum(float(p.detach().double().square().sum()) for p in one.group.members)
        spherical = found.sharpness * squared / one.rates.lr
    return replace(result, spherical_sharpness=spherical, stability=found.sharpness / found.line)
