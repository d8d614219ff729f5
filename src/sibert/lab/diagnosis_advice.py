"""What follows from a diagnosis: each piece of advice with the inequality that it rests on, and its numbers."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sibert.lab.diagnosis import Diagnosis, GroupDiagnosis
    from sibert.lab.diagnosis_groups import Rates, Standing

__all__ = ["Finding", "advice"]

ALLOWED_DEVIATION = 1e-4
LEAST_TIME, USUAL_TIME = 1.0, 3.5
"""eta lambda T: a direction forgets where it came from in 1 / (2 eta lambda) steps; `default_intrinsic_lr` has 3.5."""
USUAL_ANGLE, LARGEST_ANGLE = 0.11, 0.15
"""Radians a step: short runs were best at the first, and at 0.16 learnt next to nothing (LOGBOOK, 2026-11-28)."""
NORM_FACTOR = 1.5
"""Between norm and equilibrium; gradients that change while a run learns account for some 20 %."""
THEORY_CLIPPED, MUCH_CLIPPED = 0.015, 0.15
"""Share of clipped steps that the paper reports for its base runs, and ten times that."""
CLOSENESS = 2.0
"""C^2 of `sibert.dynamics.noise`."""
UNSTABLE = 1.5
"""Times the line of stability: runs at the edge of stability hover around 1."""


@dataclass(frozen=True)
class Finding:
    """One conclusion.

    Attributes:
        mend: Whether something is to be mended; otherwise it is a note.
        about: "invariance", "weight decay", "intrinsic rate", "equilibrium", "clipping", "batch" or "sharpness".
        groups: Names of the groups concerned; empty = the run.
        statement: What is the case, with numbers.
        inequality: What theory asks for, and what it is here.
        remedy: What to do.
    """

    mend: bool
    about: str
    groups: tuple[str, ...]
    statement: str
    inequality: str
    remedy: str


def advice(diagnosis: "Diagnosis") -> tuple[Finding, ...]:
    """Draw the conclusions.

    Args:
        diagnosis: Without findings.

    Returns:
        What to mend first, then notes.
    """
    parts = (_invariance, _weight_decay, _intrinsic_rate, _equilibrium, _clipping, _batch, _sharpness)
    found = [finding for part in parts for finding in part(diagnosis)]
    return tuple(sorted(found, key=lambda finding: not finding.mend))


def _invariance(d: "Diagnosis") -> Iterator[Finding]:
    for group in d.groups:
        if group.claimed and not group.invariant:
            yield Finding(
                True,
                "invariance",
                (group.name,),
                f"{group.name} is said to be scale invariant, and is not: at twice or half its scale the loss changes "
                f"by {_share(group.deviation)}, and the cosine of parameters and gradient is {group.cosine:.2g}",
                f"|L(2x) - L(x)| <= {ALLOWED_DEVIATION:g} |L(x)| and <x, grad L> = 0; here {group.deviation:.2g} and "
                f"a cosine of {group.cosine:.2g}",
                "train it with the head, without relative clipping, or change the model so that nothing but its "
                "direction counts: `sibert check` names the operation that sees its scale",
            )
    if not d.groups:
        yield Finding(
            False,
            "invariance",
            (),
            "no scale-invariant group was found: effective learning rate and equilibrium mean nothing here",
            "<x, grad L> = 0 for a scale-invariant group",
            "`sibert check` tells which parameters may be rescaled, `sibert convert` makes a model scale invariant",
        )
    for group in d.groups:
        if group.unknown:
            yield Finding(False, "equilibrium", (group.name,), f"{group.name}: {group.unknown}", "", "")


def _standing_groups(d: "Diagnosis") -> "list[tuple[GroupDiagnosis, Standing]]":
    return [(group, group.standing) for group in d.groups if group.standing is not None]


def _weight_decay(d: "Diagnosis") -> Iterator[Finding]:
    without = [group for group, standing in _standing_groups(d) if standing.intrinsic_lr == 0.0]
    if not without or d.rates is None:
        return
    target = min(USUAL_TIME / d.steps, USUAL_ANGLE**2 / 2.0) if d.steps else 1e-3
    yield Finding(
        True,
        "weight decay",
        tuple(group.name for group in without),
        f"{_names(without)}: there is no weight decay, so every step makes |x| longer and the effective learning rate "
        "smaller, without end; nothing but the initial norm sets how fast it turns",
        "eta lambda > 0 for a balance of |x|; here eta lambda = 0",
        f"set weight_decay = {_number(target / d.rates.lr)} (eta lambda = {_number(target)})",
    )


def _too_slow(d: "Diagnosis") -> "list[tuple[GroupDiagnosis, Standing]]":
    if d.steps is None:
        return []
    return [(g, s) for g, s in _standing_groups(d) if 0.0 < s.intrinsic_lr * d.steps < LEAST_TIME]


def _intrinsic_rate(d: "Diagnosis") -> Iterator[Finding]:
    slow = _too_slow(d)
    if slow and d.steps:
        s = min((standing for _, standing in slow), key=lambda standing: standing.intrinsic_lr)
        total = math.sqrt(2.0 * s.intrinsic_lr * d.steps)
        target = min(USUAL_TIME / d.steps, USUAL_ANGLE**2 / 2.0)
        steps = LEAST_TIME / s.intrinsic_lr
        longer = f"or train for {_number(steps)} steps at least"
        if target * d.steps < LEAST_TIME:  # too short a run for any rate
            longer = f"and train for {LEAST_TIME / target:.0f} steps at least"
        yield Finding(
            True,
            "intrinsic rate",
            tuple(group.name for group, _ in slow),
            f"{_names([group for group, _ in slow])}: eta lambda = {_number(s.intrinsic_lr)} is too small for "
            f"{d.steps:.0f} steps: at equilibrium all of them together turn a group by about {total:.2g} radian, and "
            f"its norm forgets its start in {_number(s.relaxation_steps or math.inf)} steps",
            f"eta lambda T >= {LEAST_TIME:g}; here {_number(s.intrinsic_lr)} * {d.steps:.0f} = "
            f"{s.intrinsic_lr * d.steps:.2g}",
            f"raise eta lambda {_number(target / s.intrinsic_lr)} times, to {_number(target)}"
            f"{_lr_for(d.rates, target)}, {longer}",
        )
    fast = [(g, s) for g, s in _standing_groups(d) if (s.equilibrium_angle or 0.0) > LARGEST_ANGLE]
    if fast:
        s = max((standing for _, standing in fast), key=lambda standing: standing.intrinsic_lr)
        yield Finding(
            True,
            "intrinsic rate",
            tuple(group.name for group, _ in fast),
            f"{_names([group for group, _ in fast])}: at equilibrium each step turns the parameters by "
            f"{s.equilibrium_angle or 0.0:.2g} radian: what one step learns the next ones forget",
            f"sqrt(2 eta lambda) <= {LARGEST_ANGLE:g}; here {math.sqrt(2.0 * s.intrinsic_lr):.2g}",
            f"lower eta lambda from {_number(s.intrinsic_lr)} to {_number(USUAL_ANGLE**2 / 2.0)} or less, and train "
            "for more steps",
        )


def _equilibrium(d: "Diagnosis") -> Iterator[Finding]:
    slow = {group.name for group, _ in _too_slow(d)}
    away = []
    for group, s in _standing_groups(d):
        if s.equilibrium_norm and group.name not in slow:
            ratio = s.norm / s.equilibrium_norm
            if not 1.0 / NORM_FACTOR <= ratio <= NORM_FACTOR:
                away.append((group, s, ratio))
    if not away:
        return
    group, s, ratio = max(away, key=lambda one: abs(math.log(max(one[2], 1e-300))))
    needed = s.steps_to_equilibrium or 0.0
    late = d.steps is not None and needed > d.steps / 2.0
    left = f", {needed / d.steps:.0%} of the {d.steps:.0f} at these rates" if d.steps else ""
    yield Finding(
        late,
        "equilibrium",
        tuple(one.name for one, _, _ in away),
        f"{_names([one for one, _, _ in away])}: |x| is {ratio:.2g} times that of equilibrium ({group.name}: "
        f"{_number(s.norm)} against {_number(s.equilibrium_norm or 0.0)}), so that a step turns it by "
        f"{s.angular_update:.2g} radian instead of {s.equilibrium_angle or 0.0:.2g}; it gets there in {needed:.0f} "
        f"steps{left}",
        f"1/{NORM_FACTOR:g} <= |x| / |x|_eq <= {NORM_FACTOR:g}; here {ratio:.2g}",
        ("train longer, raise eta lambda" if late else "wait")
        + (", clip from both sides (ClippedSGD's two_sided)" if ratio > 1.0 else "")
        + ", or divide its parameters by that, which changes no output",
    )


def _clipping(d: "Diagnosis") -> Iterator[Finding]:
    much = [(g, s) for g, s in _standing_groups(d) if (s.clipped_share or 0.0) > MUCH_CLIPPED]
    if much:
        group, s = max(much, key=lambda one: one[1].clipped_share or 0.0)
        yield Finding(
            True,
            "clipping",
            tuple(one.name for one, _ in much),
            f"{_names([one for one, _ in much])}: {_share(s.clipped_share or 0.0)} of the steps are clipped "
            f"({group.name}); at equilibrium, with sqrt(C) = 2, about {_share(THEORY_CLIPPED)} are",
            f"clipped share <= {_share(MUCH_CLIPPED)}; here {_share(s.clipped_share or 0.0)}",
            "gradients are of very different sizes: take a larger batch or a larger clip; if the norm is below that of "
            "equilibrium it passes",
        )


def _batch(d: "Diagnosis") -> Iterator[Finding]:
    if d.noise.dead:
        return
    noise, needed = d.noise, 1.0 / (CLOSENESS - 1.0)
    ratio = noise.noise_to_signal
    surely = noise.trace + 2.0 * noise.trace_error < needed * (noise.squared_mean - 2.0 * noise.squared_mean_error)
    sgd = d.rates is None or d.rates.rule == "sgd"
    if surely:
        critical = max(1.0, noise.critical_batch_size)
        change = f"by {critical / d.batch_size:.2g}" if sgd else f"by {math.sqrt(critical / d.batch_size):.2g}"
        yield Finding(
            True,
            "batch",
            (),
            f"the batch of {d.batch_size} is {d.batch_size / max(noise.critical_batch_size, 1e-12):.3g} times the "
            f"critical size of {noise.critical_batch_size:.3g}: signal outweighs noise, so that more examples a step "
            "teach hardly more, and no SDE describes the run",
            f"N / G >= 1 / (C^2 - 1) = {needed:g}; here {ratio:.2g}",
            f"take a batch of {critical:.0f}, multiply the learning rate {change} "
            f"({'linear' if sgd else 'square-root'} rule), and make more steps of it",
        )
        return
    if sgd:
        kappa, rule = noise.largest_linear_scaling, "linear rule: learning rate times kappa, weight decay as it is"
        bound = f"kappa <= C^2 (1 + N / G) = {kappa:.3g}"
        largest = max((s.intrinsic_lr for _, s in _standing_groups(d)), default=0.0)
        by_angle = USUAL_ANGLE**2 / 2.0 / largest if largest else math.inf
        if by_angle < kappa:
            kappa, bound = by_angle, f"{bound}, and sqrt(2 kappa eta lambda) <= {USUAL_ANGLE:g}: {by_angle:.3g}"
    else:
        assert d.rates is not None
        limit = 1.0 / (1.0 - min(b for b in d.rates.betas if b)) if any(d.rates.betas) else math.inf
        kappa = min(ratio, limit)
        rule = "square-root rule: learning rate times sqrt(kappa), 1 - b times kappa, epsilon over sqrt(kappa)"
        bound = f"kappa (1 - b1) <= 1: {limit:.3g}, and N / (kappa G) >= 1: {ratio:.3g}"
    if kappa >= 2.0:
        yield Finding(
            False,
            "batch",
            (),
            f"the batch of {d.batch_size} could grow up to {_number(kappa)} times, in as many times fewer steps "
            f"(critical size: {_number(noise.critical_batch_size)})",
            bound,
            rule,
        )


def _sharpness(d: "Diagnosis") -> Iterator[Finding]:
    if d.stability is None:
        return
    share = d.stability.sharpness / d.stability.line
    if share > UNSTABLE:
        yield Finding(
            True,
            "sharpness",
            (),
            f"the curvature is {share:.2g} times what gradient descent is stable at: the loss jumps up and down along "
            "the sharpest direction",
            f"lambda_1(D^(1/2) H D^(1/2)) <= {d.stability.line:.3g}, D = learning rates; here "
            f"{d.stability.sharpness:.3g}",
            f"divide the learning rate by {share:.2g}; a scale-invariant group at equilibrium grows out of it by "
            "itself within 1 / (4 eta lambda) steps",
        )


def _lr_for(rates: "Rates | None", target: float) -> str:
    if rates is None or not rates.weight_decay:
        return ""
    return f" (lr = {_number(target / rates.weight_decay)} at weight_decay = {_number(rates.weight_decay)})"


def _names(groups: "Sequence[GroupDiagnosis]") -> str:
    first = ", ".join(group.name for group in groups[:2])
    return first if len(groups) <= 2 else f"{first} and {len(groups) - 2} more"


def _share(value: float) -> str:
    return f"{100.0 * value:.2g} %"


def _number(value: float) -> str:
    return f"{value:.3g}"
