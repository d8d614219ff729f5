"""From a module to the report of its rescaling symmetries."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from torch import nn

from .confirmation import confirm
from .graph import trace
from .propagation import propagate
from .rules import RULES
from .slices import Slices
from .symmetry import SymmetryReport, Verdict


def analyze(
    module: nn.Module,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    output: str | int | None = None,
    loss: Callable[[Any], Any] | None = None,
    slices: Mapping[str, Slices] | None = None,
    numeric: bool = True,
    scales: Sequence[float] = (1e-2, 1e2),
    seed: int = 0,
) -> SymmetryReport:
    """Find every rescaling w_p -> c^(a_p) w_p of parameters that leaves the outputs of a module unchanged, c > 0.

    The graph of the module gives each tensor a degree that is a linear form in the unknown exponents a_p, and each
    operation that is not homogeneous an equation between them. The rational null space of these equations is the space
    of all rescaling symmetries that the rules imply: each is one, and one that depends on something that no rule sees
    is missed.

    Args:
        module: In the mode (training or evaluation) in which it is meant. It is not changed.
        args: Example inputs, a tuple (or a single tensor). The proof holds for all inputs of their shapes and types.
        kwargs: Example inputs by name.
        output: Name or index of the output that counts; default: all floating-point ones.
        loss: From the module's output to what counts, instead of `output`.
        slices: Parameters of which parts have exponents of their own, by name.
        numeric: Also compute with the model in float64: try each symmetry, look for others.
        scales: Factors c at which symmetries that epsilons break are measured.
        seed: Of what is random in computing.

    Returns:
        The report; its confirmation is None without `numeric`.

    Raises:
        ValueError: The module cannot be exported, has no parameters or integer or complex ones, is not deterministic,
            cannot be computed with in float64 (see `numeric`), or a name matches nothing.
        TypeError: What is given is no module.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(module).__name__}")
    if output is not None and loss is not None:
        raise ValueError("give either output or loss: both say what counts")
    args = _tuple(args)
    kwargs = dict(kwargs or {})
    divided = dict(slices or {})
    known = {name for name, _ in module.named_parameters()}
    if missing := [name for name in divided if name not in known]:
        raise ValueError(
            f"slices of {missing[0]!r}: there is no such parameter; there are {', '.join(sorted(known)[:4])}"
        )
    select = loss or _selection(output)
    graph = trace(module, args, kwargs, select, RULES.__contains__)
    if output is not None:
        renamed = {path.replace("output", str(output), 1): node for path, node in graph.outputs.items()}
        graph = replace(graph, outputs=renamed)
    report = SymmetryReport(propagate(graph, divided), _modules(module))
    if not numeric:
        return report
    return replace(report, confirmation=confirm(module, args, kwargs, select, report, seed, scales))


def invariant_rows(
    module: nn.Module,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    output: str | int | None = None,
    loss: Callable[[Any], Any] | None = None,
) -> dict[str, Verdict]:
    """Say of which matrices, tables and kernels single rows may be rescaled, each on its own.

    A row goes together with the entry of the bias of the same module, where there is one: the row of (W, b). The first
    row, one of the middle and the last stand for all, which the graph treats alike unless it takes their axis apart.

    Args:
        module: As for `analyze`.
        args: Example inputs.
        kwargs: Example inputs by name.
        output: The output that counts.
        loss: Or from the output to what counts.

    Returns:
        The verdict on one row of each parameter with two or more axes, by its name.
    """
    shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
    rows: dict[str, list[str]] = {}
    for name, shape in shapes.items():
        if len(shape) > 1 and shape[0] > 1:
            bias = f"{name.rpartition('.')[0]}.bias".lstrip(".")
            partners = [bias] if bias != name and tuple(shapes.get(bias, ())) == tuple(shape[:1]) else []
            rows[name] = [name, *partners]
    parts = dict.fromkeys(part for several in rows.values() for part in several)
    graph = trace(module, _tuple(args), dict(kwargs or {}), loss or _selection(output), RULES.__contains__)
    verdicts: dict[str, Verdict] = {}
    for share in (0, Fraction(1, 3), 1):
        slices = {part: Slices(index=int(share * (shapes[part][0] - 1))) for part in parts}
        report = SymmetryReport(propagate(graph, slices), {})
        unused = {variable.parameter for i, variable in enumerate(report.system.variables) if i in report.system.unused}
        for name in rows.keys() - unused:
            verdict = report.verdict([slices[part].labels(part, shapes[part])[1][0] for part in rows[name]])
            verdicts[name] = max(verdict, verdicts.get(name, verdict), key=list(Verdict).index)
    return {name: verdicts[name] for name in rows if name in verdicts}


def _selection(output: str | int | None) -> Callable[[Any], Any]:
    def select(result: Any) -> Any:
        if output is None:
            return result
        if isinstance(output, str) and hasattr(result, output):
            return getattr(result, output)
        try:
            return result[output]
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"the module's output has no part {output!r}") from error

    return select


def _tuple(args: Any) -> tuple[Any, ...]:
    return tuple(args) if isinstance(args, tuple | list) else (args,)


def _modules(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """Parameters of each module that has some, tied ones by their first name."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {
        path: own for path, part in module.named_modules() if (own := tuple(names[id(p)] for p in part.parameters()))
    }


def assert_scale_invariant(
    module: nn.Module,
    args: Any,
    names: str | Sequence[str],
    *,
    kwargs: Mapping[str, Any] | None = None,
    output: str | int | None = None,
    loss: Callable[[Any], Any] | None = None,
    up_to_epsilon: bool = False,
) -> None:
    """For test suites: fail unless multiplying parameters by any c > 0 is proved to change no output.

    Args:
        module: As for `analyze`.
        args: Example inputs.
        names: Parameters, paths of modules or patterns; scaled together.
        kwargs: Example inputs by name.
        output: The output that counts.
        loss: Or from the output to what counts.
        up_to_epsilon: Count epsilons as 0.

    Raises:
        AssertionError: It is not proved; the message lists the operations that forbid it, and what to do about them.
    """
    report = analyze(module, args, kwargs, output=output, loss=loss, numeric=False)
    if not report.is_scale_invariant(names, up_to_epsilon=up_to_epsilon):
        blockers = report.blockers(names, up_to_epsilon=up_to_epsilon)
        lines = "\n".join(f"  {blocker}; remedy: {blocker.remedy}" for blocker in blockers)
        claim = f"scaling {names} is not proved to leave the outputs unchanged"
        raise AssertionError(f"{claim}. What forbids it:\n{lines}")
