"""The figures of the report: what is drawn together, and the sentence of theory that belongs under it.

Symbols in the captions: x the parameters of a scale-invariant group, g their gradient, η learning rate, λ weight decay,
σ the gradient norm on the unit sphere, √C the clipping multiple (arXiv 2202.00980, Algorithm 1 and section 4).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sibert.reporting.canvas import Line, Panel, Style, draw
from sibert.reporting.curves import Array, running_median, smooth
from sibert.reporting.run_directory import Curve, Run

# A diverged run may not press the others flat: the loss axis ends at this multiple of what an untrained model scores.
_LOSS_HEADROOM = 1.1
# A smoothing window is this share of a run; predictions get a wider one, being made from single gradients.
_WINDOW, _PREDICTION_WINDOW = 1 / 30, 1 / 12
# Beyond it axes overflow; no run that still trains has such numbers.
_LARGEST = 1e100
_TIME_UNITS = ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
_BYTE_UNITS = ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "bytes"))


@dataclass(frozen=True)
class Figure:
    """One picture of the page with what is written around it.

    Attributes:
        key: unique within the page, a valid HTML id.
        title: the heading, plain text.
        svg: an ``<svg>`` element.
        caption: one sentence of HTML: what is seen, and which formula predicts it.
        styles: what the kinds of line mean here: (style, plain text).
        runs: indices of the runs that have a curve here.
    """

    key: str
    title: str
    svg: str
    caption: str
    styles: tuple[tuple[Style, str], ...]
    runs: tuple[int, ...]


def loss_figure(runs: Sequence[Run], names: Sequence[str], over: str = "step") -> Figure | None:
    """Masked-LM losses of all runs, train and validation, against steps or seconds.

    Args:
        runs: the runs.
        names: what to call them in tool tips.
        over: ``"step"`` or ``"wall_seconds"``.

    Returns:
        The figure, or ``None`` if no run logged a loss with such an abscissa.
    """
    lines: list[Line] = []
    for index, run in enumerate(runs):
        x, y = run.train_curve("mlm_loss", "loss", over=over)
        lines += [Line(index, "training loss as logged", x, y, "faint")]
        lines += [Line(index, "training loss, smoothed", x, _smooth(y))]
        lines += [Line(index, "validation loss", *run.evaluation_curve("mlm_loss", "loss", over=over), "dots")]
    entropies = _entropy_lines(runs, over)
    levels = [float(line.y[0]) for line in lines if len(line.y) and 0 < line.y[0] < _LARGEST]
    levels += [float(line.y[-1]) for line in entropies]
    highest = max((float(np.max(line.y, initial=0.0, where=np.isfinite(line.y))) for line in lines), default=0.0)
    top = _LOSS_HEADROOM * max(levels) if levels and highest > _LOSS_HEADROOM * max(levels) else None
    lines, unit = _in_units(lines + entropies, over)
    by_step = over == "step"
    against = "steps done" if by_step else "time spent, evaluation and checkpoints included"
    return _figure(
        f"loss-by-{'step' if by_step else 'time'}",
        f"Loss by {'step' if by_step else 'time'}",
        f"Masked-LM loss against {against}; a model that only knew how frequent each word is would score the dotted "
        "line, the entropy <i>H</i> = −Σ <i>p</i> ln <i>p</i> of the validation targets, and whatever lies below it "
        "was learnt from context.",
        [Panel("masked-LM loss, nats per target", lines, top=top)],
        names,
        [("solid", "training, smoothed"), ("faint", "training, as logged"), ("dots", "validation"),
         ("dotted", "unigram entropy of the validation targets")],
        x_label="step" if by_step else unit,
    )  # fmt: skip


def group_figures(runs: Sequence[Run], names: Sequence[str], group: str, brief: bool = False) -> list[Figure]:
    """Norm, learning rates, angular update, gradient and clipping of one scale-invariant group.

    Args:
        runs: the runs; those without this group are passed over.
        names: what to call them in tool tips.
        group: name of the group.
        brief: norm and angular update alone, for runs with many groups.

    Returns:
        The figures that have anything to show.
    """
    key = "group-" + "".join(letter if letter.isascii() and letter.isalnum() else f"_{ord(letter)}" for letter in group)
    candidates = [
        _norm_figure(runs, names, group, key),
        _angle_figure(runs, names, group, key),
    ]
    if not brief:
        candidates += [
            _effective_lr_figure(runs, names, group, key),
            _intrinsic_lr_figure(runs, names, group, key),
            _relative_gradient_figure(runs, names, group, key),
            _clipping_figure(runs, names, group, key),
        ]
    return [figure for figure in candidates if figure is not None]


def overview_figures(runs: Sequence[Run], names: Sequence[str]) -> list[Figure]:
    """Angular updates, norms and clipping of all groups of each run, relative to what theory predicts.

    Args:
        runs: the runs; those with a single group are passed over.
        names: what to call them in tool tips.

    Returns:
        The figures that have anything to show.
    """
    angles: list[Line] = []
    norms: list[Line] = []
    clipped: list[Line] = []
    for index, run in enumerate(runs):
        for group in run.invariant_groups if len(run.invariant_groups) > 1 else ():
            x, angle = run.group_curve(group, "angular_update")
            expected = np.sqrt(2 * run.group_curve(group, "intrinsic_lr")[1])
            relative = _root_mean_square(angle) / np.where(expected > 0, expected, np.nan)
            angles.append(Line(index, group, x, relative, "faint"))
            x, norm = run.group_curve(group, "param_norm")
            at, predicted = _equilibrium_norm(run, group)
            _, here, there = np.intersect1d(x, at, return_indices=True)
            ratio = norm[here] / np.where(predicted[there] > 0, predicted[there], np.nan)
            norms.append(Line(index, group, x[here], ratio, "faint"))
            clipped.append(Line(index, group, *run.group_curve(group, "clipped_fraction"), "faint"))
    figures = [
        _figure(
            "groups-angular-update", "Balanced rotation",
            "The angular update of every group relative to √(2ηλ): at equilibrium all of them are at 1, whatever the "
            "size of their gradients. A line below 1 is a group that turns more slowly than its share.",
            [Panel("angle / √(2ηλ)", angles, from_zero=True)], names, [("faint", "one group")],
        ),
        _figure(
            "groups-norm", "Norms of the groups",
            "The norm of every group relative to the norm at which its gradients and weight decay balance; the way "
            "there takes about 1/(4ηλ) steps.",
            [Panel("‖x‖ / equilibrium", norms, from_zero=True)], names, [("faint", "one group")],
        ),
        _figure(
            "groups-clipping", "Clipping of the groups",
            "The share of steps in which the gradient of a group was longer than √C times that of equilibrium, and was "
            "shortened.",
            [Panel("clipped fraction of steps", clipped, from_zero=True)], names, [("faint", "one group")],
        ),
    ]  # fmt: skip
    return [figure for figure in figures if figure is not None]


def cost_figures(runs: Sequence[Run], names: Sequence[str]) -> list[Figure]:
    """Throughput and memory of all runs.

    Args:
        runs: the runs.
        names: what to call them in tool tips.

    Returns:
        The figures that have anything to show.
    """
    speeds: list[Line] = []
    memory: list[Line] = []
    for index, run in enumerate(runs):
        x, y = run.train_curve("tokens_per_second")
        speeds += [Line(index, "as logged", x, y, "faint"), Line(index, "smoothed", x, _smooth(y))]
        memory += [Line(index, "peak memory", *run.train_curve("peak_memory_bytes"))]
        memory += [Line(index, "optimizer state", *run.train_curve("optimizer_state_bytes"), "dashed")]
    highest = max((float(np.max(line.y, initial=0.0, where=np.isfinite(line.y))) for line in memory), default=0.0)
    size, unit = next((pair for pair in _BYTE_UNITS if highest >= pair[0]), _BYTE_UNITS[-1])
    memory = [Line(line.run, line.label, line.x, line.y / size, line.style) for line in memory]
    figures = [
        _figure(
            "throughput", "Throughput",
            "Input tokens that went through training per second, between one log entry and the next; a measurement of "
            "machine and code, which no formula of the theory predicts.",
            [Panel("tokens per second", speeds, from_zero=True)], names,
            [("solid", "smoothed"), ("faint", "as logged")],
        ),
        _figure(
            "memory", "Memory",
            "Peak memory of the run and, as a part of it, what the optimizer keeps between steps: nothing for each "
            "parameter that ClippedSGD moves, two numbers (8 bytes in float32) for each that AdamW or LAMB moves.",
            [Panel(unit, memory, from_zero=True)], names,
            [("solid", "peak memory"), ("dashed", "optimizer state")],
        ),
    ]  # fmt: skip
    return [figure for figure in figures if figure is not None]


def _norm_figure(runs: Sequence[Run], names: Sequence[str], group: str, key: str) -> Figure | None:
    lines = []
    for index, run in enumerate(runs):
        lines += [Line(index, "parameter norm", *run.group_curve(group, "param_norm"))]
        lines += [Line(index, "predicted equilibrium", *_equilibrium_norm(run, group), "dashed")]
    return _figure(
        f"{key}-norm", "Parameter norm",
        "Gradient steps lengthen x and weight decay shortens it; both balance at "
        "‖x‖ = (ησ² / (λ(2 − ηλ)))<sup>1/4</sup>, the dashed line, with σ² = ‖x‖²‖g‖² (median of neighbouring "
        "log entries), and the norm comes close to it within about 1/(4ηλ) steps.",
        [Panel("‖x‖", lines)], names, [("solid", "measured"), ("dashed", "predicted equilibrium")],
    )  # fmt: skip


def _effective_lr_figure(runs: Sequence[Run], names: Sequence[str], group: str, key: str) -> Figure | None:
    lines = []
    for index, run in enumerate(runs):
        lines += [Line(index, "effective learning rate", *run.group_curve(group, "effective_lr"))]
        at, norm = _equilibrium_norm(run, group)
        steps, eta = run.group_curve(group, "eta")
        _, here, there = np.intersect1d(at, steps, return_indices=True)
        norm = np.where(norm > 0, norm, np.nan)
        lines += [Line(index, "predicted at equilibrium", at[here], eta[there] / norm[here] ** 2, "dashed")]
    return _figure(
        f"{key}-effective-lr", "Effective learning rate",
        "The step size that a scale-invariant loss feels is η/‖x‖²; once the norm is at equilibrium it is "
        "√(ηλ(2 − ηλ)) / σ, the dashed line, in which the scale of the initialisation no longer occurs.",
        [Panel("η / ‖x‖²", lines)], names, [("solid", "measured"), ("dashed", "predicted at equilibrium")],
    )  # fmt: skip


def _relative_gradient_figure(runs: Sequence[Run], names: Sequence[str], group: str, key: str) -> Figure | None:
    lines = []
    for index, run in enumerate(runs):
        x, ratio = _quotient(run, group, "grad_norm", "param_norm")
        lines += [Line(index, "as measured", x, ratio, "faint"), Line(index, "smoothed", x, _root_mean_square(ratio))]
        x, ratio = _quotient(run, group, "weight_decay", "eta")
        lines += [Line(index, "√(2λ/η)", x, np.sqrt(2 * ratio), "dashed")]
    return _figure(
        f"{key}-gradient", "Gradient over parameter norm",
        "The size of the gradient seen from the parameters; at equilibrium it is √(2λ/η), the dashed line, up to the "
        "factor √(1 − ηλ/2), and a step in which it exceeds √C times that line is clipped.",
        [Panel("‖g‖ / ‖x‖", lines)], names,
        [("solid", "root mean square"), ("faint", "as measured"), ("dashed", "√(2λ/η)")],
    )  # fmt: skip


def _intrinsic_lr_figure(runs: Sequence[Run], names: Sequence[str], group: str, key: str) -> Figure | None:
    lines = [Line(i, "intrinsic learning rate", *run.group_curve(group, "intrinsic_lr")) for i, run in enumerate(runs)]
    return _figure(
        f"{key}-intrinsic-lr", "Intrinsic learning rate",
        "The product ηλ as the schedule drives it: the only dial that a scale-invariant group has at equilibrium, "
        "and the clock of the run, which forgets its start within a few 1/(ηλ) steps.",
        [Panel("ηλ", lines)], names, [("solid", "as the schedule sets it")],
    )  # fmt: skip


def _angle_figure(runs: Sequence[Run], names: Sequence[str], group: str, key: str) -> Figure | None:
    lines = []
    for index, run in enumerate(runs):
        x, angle = run.group_curve(group, "angular_update")
        lines += [Line(index, "as measured", x, angle, "faint"), Line(index, "smoothed", x, _root_mean_square(angle))]
        x, intrinsic_lr = run.group_curve(group, "intrinsic_lr")
        lines += [Line(index, "√(2ηλ)", x, np.sqrt(2 * intrinsic_lr), "dashed")]
    return _figure(
        f"{key}-angular-update", "Angular update",
        "The angle by which one step turns x; at equilibrium it is √(2ηλ), the dashed line, however large the "
        "gradients are, and clipping keeps it below about √C times that.",
        [Panel("radians per step", lines)], names,
        [("solid", "root mean square"), ("faint", "as measured"), ("dashed", "√(2ηλ)")],
    )  # fmt: skip


def _clipping_figure(runs: Sequence[Run], names: Sequence[str], group: str, key: str) -> Figure | None:
    factors = [Line(i, "clip factor", *run.group_curve(group, "clip_factor")) for i, run in enumerate(runs)]
    shares = [Line(i, "clipped fraction", *run.group_curve(group, "clipped_fraction")) for i, run in enumerate(runs)]
    return _figure(
        f"{key}-clipping", "Clipping",
        "Relative Global Clipping multiplies the gradient by s = min(1, √(2Cλ/η) ‖x‖/‖g‖) (above) and did so to the "
        "share of steps shown below; as ‖g‖ = √(2λ/η) ‖x‖ at equilibrium, only gradients of more than √C times their "
        "equilibrium size are shortened.",
        [Panel("clip factor s", factors, from_zero=True), Panel("clipped fraction of steps", shares, from_zero=True)],
        names, [],
    )  # fmt: skip


def _figure(
    key: str, title: str, caption: str, panels: Sequence[Panel], names: Sequence[str],
    styles: Sequence[tuple[Style, str]], x_label: str = "step",
) -> Figure | None:  # fmt: skip
    """Draw the panels that have a point within what can be drawn; ``None`` if none has."""
    panels = [replace(panel, lines=[_gaps(line) for line in panel.lines]) for panel in panels]
    panels = [replace(panel, lines=[line for line in panel.lines if np.isfinite(line.y).any()]) for panel in panels]
    panels = [panel for panel in panels if panel.lines]
    if not panels:
        return None
    lines = [line for panel in panels for line in panel.lines]
    drawn = {line.style for line in lines}
    return Figure(
        key,
        title,
        draw(key, f"{title}: {', '.join(panel.unit for panel in panels)} by {x_label}", panels, x_label, names),
        caption,
        tuple(pair for pair in styles if pair[0] in drawn),
        tuple(sorted({line.run for line in lines if line.run is not None})),
    )


def _gaps(line: Line) -> Line:
    return replace(line, y=np.where(np.abs(line.y) < _LARGEST, line.y, np.nan))


def _smooth(values: Array) -> Array:
    return smooth(values, round(len(values) * _WINDOW))


def _root_mean_square(values: Array) -> Array:
    # The theory's angle and gradient size are root mean squares: √(2ηλ) is not the mean angle.
    with np.errstate(over="ignore"):  # a gradient of 1e200 is infinite here, and leaves a gap
        return np.sqrt(_smooth(values**2))


def _equilibrium_norm(run: Run, group: str) -> Curve:
    # Each logged prediction is made from one gradient. A median, because the gradient of a clipped step is far larger
    # than the update that it leads to, and an average of σ² would follow it.
    x, norm = run.group_curve(group, "equilibrium_norm")
    return running_median(x, norm, round(len(norm) * _PREDICTION_WINDOW))


def _quotient(run: Run, group: str, above: str, below: str) -> Curve:
    """Quotient of two measurements of one group, at the steps that have both; NaN where the lower one is zero."""
    x, numerator = run.group_curve(group, above)
    steps, denominator = run.group_curve(group, below)
    at, here, there = np.intersect1d(x, steps, return_indices=True)
    denominator = np.where(denominator > 0, denominator, np.nan)
    return at, numerator[here] / denominator[there]


def _entropy_lines(runs: Sequence[Run], over: str) -> list[Line]:
    """One dotted line for all runs when they were evaluated on the same targets, else one for each run."""
    curves = [(index, *run.evaluation_curve("unigram_entropy", over=over)) for index, run in enumerate(runs)]
    curves = [(index, x, y) for index, x, y in curves if np.isfinite(y).any() and np.isfinite(y[-1])]
    if len(curves) > 1 and np.ptp([y[-1] for _, _, y in curves]) < 1e-6:
        return [Line(None, "unigram entropy", *curves[0][1:], "dotted")]
    return [Line(index if len(curves) > 1 else None, "unigram entropy", x, y, "dotted") for index, x, y in curves]


def _in_units(lines: list[Line], over: str) -> tuple[list[Line], str]:
    """Seconds as seconds, minutes or hours, whichever keeps the numbers small; steps as they are."""
    if over != "wall_seconds":
        return lines, over
    longest = max((float(line.x.max()) for line in lines if len(line.x)), default=0.0)
    seconds, unit = next((pair for pair in _TIME_UNITS if longest >= 2 * pair[0]), _TIME_UNITS[-1])
    return [Line(line.run, line.label, line.x / seconds, line.y, line.style) for line in lines], unit
