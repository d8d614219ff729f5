"""What computing with a model says of its symmetries: each that is proved is tried, and others are looked for."""

import copy
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from .propagation import System
from .symmetry import Symmetry, SymmetryReport, Verdict

TOLERANCE = 1e-8
"""Relative change of outputs, or cosine of weights and gradient, that counts as none in float64."""
STEP = 1e-7
"""Second differences of smooth functions at this step are lost in float64; those of float32 inside a model are not."""
FACTOR = 1.7
NEARLY_ZERO = 1e-300
"""Batch norm refuses an epsilon of 0."""
PROJECTIONS = 2
EPSILON_NAME = re.compile(r"(^|_)eps(ilon)?(_|$)")


class InDouble(TorchFunctionMode):
    """Has a forward pass compute in float64 where it names or makes another precision."""

    NARROW = (Tensor.float, Tensor.half, Tensor.bfloat16)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(_double, (args, kwargs or {}))
        return tree_map(_double, (Tensor.double if func in self.NARROW else func)(*args, **kwargs))


@dataclass(frozen=True)
class Check:
    """A symmetry, tried.

    Attributes:
        symmetry: Which.
        deviation: Largest relative change of an output at a random factor, epsilons set to 0 where modules have them
            as attributes.
        at_scales: The same with epsilons as they are, by factor.
        tolerance: Largest deviation that rounding explains.
        orthogonality: <grad L, (a_p w_p)_p> in units of sum_p |w_p| |grad_p L| over all p, for a random loss L.
    """

    symmetry: Symmetry
    deviation: float
    tolerance: float
    at_scales: Mapping[float, float]
    orthogonality: float

    @property
    def holds(self) -> bool:
        """It changes nothing; with epsilons that could not be set to 0, little."""
        return self.deviation <= max(self.tolerance, 0.0 if self.symmetry.verdict is Verdict.EXACT else 1e-3)


@dataclass(frozen=True)
class Confirmation:
    """What was found by computing.

    Attributes:
        checks: One for each symmetry of the basis.
        observed: Parameters and modules that may be rescaled as far as computing shows, though no rule proves it.
    """

    checks: tuple[Check, ...]
    observed: tuple[str, ...]

    @property
    def contradicted(self) -> tuple[Check, ...]:
        """Proved, but false: errors of the checker."""
        return tuple(check for check in self.checks if not check.holds)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        checks = [asdict(check) for check in self.checks]
        for check, original in zip(checks, self.checks, strict=True):
            check["symmetry"] = {name: str(q) for name, q in original.symmetry.exponents.items()}
            check["holds"] = original.holds
        return {"checks": checks, "observed": list(self.observed)}


class Numbers:
    """A model in float64 with random parameters, to be evaluated at rescaled ones.

    Args:
        module: It is copied.
        args: Example inputs.
        kwargs: More of them.
        select: From the module's output to what counts.
        system: Unknowns and the parts of parameters that they belong to.
        seed: Of parameters, and of dropout in each evaluation.
    """

    def __init__(
        self,
        module: nn.Module,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        select: Callable[[Any], Any],
        system: System,
        seed: int,
    ) -> None:
        self.module = copy.deepcopy(module).double()
        self.args, self.kwargs = tree_map(_double, tuple(args)), tree_map(_double, dict(kwargs))
        self.select, self.system, self.seed = select, system, seed
        self.parameters = _randomised(self.module, seed)
        first, again = self.outputs({}), self.outputs({})
        if any(output.isnan().any() for output in first):
            raise ValueError(
                "outputs are NaN at these inputs and at random parameters, so nothing can be checked by computing: "
                "give other inputs, or analyse with numeric=False (--static)"
            )
        if any(not torch.equal(a, b) for a, b in zip(first, again, strict=True)):
            raise ValueError(
                "the module gives other outputs at the same inputs, parameters and random seed, so nothing can be "
                "checked by computing: find the source of randomness, or analyse with numeric=False (--static)"
            )
        self.reference = first
        everything = {i: Fraction(1) for i in range(len(system.variables))}
        up, down = (self.outputs(everything, 1 + step) for step in (STEP, -STEP))
        noise = relative_change(first, [(a + b) / 2 for a, b in zip(up, down, strict=True)])
        self.tolerance = max(TOLERANCE, 100 * noise)

    def scaled(self, exponents: Mapping[int, Fraction], factor: float) -> dict[str, Tensor]:
        """The parameters, multiplied by factor^(a_p)."""
        scaled = dict(self.parameters)
        for i, exponent in exponents.items():
            variable = self.system.variables[i]
            c = factor ** float(exponent)
            if variable.parameter in self.system.labels:
                axis, labels = self.system.labels[variable.parameter]
                first = next(j for j, v in enumerate(self.system.variables) if v.parameter == variable.parameter)
                factors = torch.ones(len(labels), dtype=torch.float64)
                factors[torch.from_numpy(labels == i - first)] = c
                shape = [-1 if a == axis else 1 for a in range(scaled[variable.parameter].ndim)]
                scaled[variable.parameter] = scaled[variable.parameter] * factors.reshape(shape)
            else:
                scaled[variable.parameter] = scaled[variable.parameter] * c
        return scaled

    def run(self, parameters: Mapping[str, Tensor]) -> list[Tensor]:
        """All floating-point outputs, with the random numbers of the seed."""
        buffers = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), InDouble():
            warnings.simplefilter("ignore")
            torch.manual_seed(self.seed)
            given = {**parameters, **buffers}
            result = self.select(torch.func.functional_call(self.module, given, self.args, self.kwargs))
        return [x for x in tree_flatten(result)[0] if isinstance(x, Tensor) and x.is_floating_point()]

    def outputs(self, exponents: Mapping[int, Fraction], factor: float = 1.0) -> list[Tensor]:
        """The outputs at rescaled parameters."""
        with torch.no_grad():
            return self.run(self.scaled(exponents, factor))

    def deviation(self, exponents: Mapping[int, Fraction], factor: float) -> float:
        """How much rescaling changes the outputs."""
        return relative_change(self.reference, self.outputs(exponents, factor))

    def gradients(self, seed: int) -> dict[str, Tensor]:
        """Of a random linear function of the outputs."""
        parameters = {name: p.clone().requires_grad_() for name, p in self.parameters.items()}
        generator = torch.Generator().manual_seed(seed)
        outputs = [x for x in self.run(parameters) if x.requires_grad]
        if not outputs:
            return {}
        loss = torch.stack(
            [
                (torch.randn(x.shape, generator=generator, dtype=torch.float64) * x.nan_to_num(0.0, 0.0, 0.0)).sum()
                for x in outputs
            ]
        ).sum()
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        return {name: g for name, g in zip(parameters, found, strict=True) if g is not None}


def relative_change(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """The largest change of one of several tensors, relative to its largest entry."""
    worst = 0.0
    for one, other in zip(before, after, strict=True):
        finite = one.isfinite()
        if not torch.equal(finite, other.isfinite()):
            return float("inf")
        if finite.any():
            size = one[finite].abs().max().clamp_min(torch.finfo(torch.float64).tiny)
            worst = max(worst, float((other - one)[finite].abs().max() / size))
    return worst


def _double(value: Any) -> Any:
    if isinstance(value, torch.dtype) and value.is_floating_point:
        return torch.float64
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _randomised(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """Parameters moved away from zeros, ones and whatever else is special about initialisation."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, parameter in module.named_parameters():
        p = parameter.detach()
        size = max(float(p.square().mean().sqrt()), 0.1) if p.numel() else 0.1
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        found[name] = p + 0.5 * size * noise + 0.1 * size
    return found


def _without_epsilons(module: nn.Module) -> nn.Module:
    """A copy whose modules have nearly 0 for every attribute that is called an epsilon."""
    module = copy.deepcopy(module)
    for part in module.modules():
        for name, value in list(vars(part).items()):
            if EPSILON_NAME.search(name.lower()) and isinstance(value, float):
                setattr(part, name, NEARLY_ZERO)
    return module


def confirm(
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    select: Callable[[Any], Any],
    report: SymmetryReport,
    seed: int = 0,
    scales: Sequence[float] = (1e-2, 1e2),
) -> Confirmation:
    """Try every symmetry of a report, and look for parameters and modules that may be rescaled unproved.

    Args:
        module: Of the report.
        args: Example inputs; here their values matter.
        kwargs: More of them.
        select: From the module's output to what counts.
        report: What was proved.
        seed: Of random parameters, factors and losses.
        scales: Factors at which symmetries up to epsilon are measured with their epsilons.

    Raises:
        ValueError: The module is not a function of inputs, parameters and random seed, gives NaN, or does not run in
            float64.
    """
    try:
        return _tried(module, args, kwargs, select, report, seed, scales)
    except RuntimeError as error:
        raise ValueError(
            f"computing with the module in float64 fails: {(str(error).splitlines() or [repr(error)])[0]}; "
            "analyse with numeric=False (--static)"
        ) from error


def _tried(
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    select: Callable[[Any], Any],
    report: SymmetryReport,
    seed: int,
    scales: Sequence[float],
) -> Confirmation:
    numbers = Numbers(_without_epsilons(module), args, kwargs, select, report.system, seed)
    as_it_is = Numbers(module, args, kwargs, select, report.system, seed)
    gradients = [numbers.gradients(seed + i) for i in range(PROJECTIONS)]
    generator = torch.Generator().manual_seed(seed)
    index = {name: i for i, name in enumerate(report.names)}
    checks = []
    for symmetry in report.symmetries:
        exponents = {index[name]: q for name, q in symmetry.exponents.items()}
        factor = float(torch.empty(()).uniform_(1.2, 3.0, generator=generator))
        measured, tolerance = {}, numbers.tolerance
        if symmetry.verdict is Verdict.UP_TO_EPSILON:
            # Epsilons that are no attribute of a module are still there, beside quantities of about 0.01 or more.
            tolerance = max([tolerance, *(100 * eps for eps in report.epsilons(symmetry.exponents).values())])
            measured = {float(c): as_it_is.deviation(exponents, c) for c in scales}
        deviation = max(numbers.deviation(exponents, c) for c in (factor, 1 / factor))
        checks.append(Check(symmetry, deviation, tolerance, measured, _orthogonality(numbers, exponents, gradients)))
    return Confirmation(tuple(checks), tuple(_observed(numbers, report, gradients)))


def _orthogonality(
    numbers: Numbers, exponents: Mapping[int, Fraction], gradients: Sequence[Mapping[str, Tensor]]
) -> float:
    """The largest cosine between a gradient and the direction of a rescaling."""
    worst = 0.0
    for gradient in gradients:
        inner = 0.0
        size = sum(float(numbers.parameters[name].norm() * g.norm()) for name, g in gradient.items())
        for i, exponent in exponents.items():
            one = numbers.scaled({i: Fraction(1)}, 2.0)
            name = numbers.system.variables[i].parameter
            if name in gradient:
                part = (one[name] - numbers.parameters[name]) * float(exponent)
                inner += float((part * gradient[name]).sum())
        worst = max(worst, abs(inner) / size if size else 0.0)
    return worst


def _observed(numbers: Numbers, report: SymmetryReport, gradients: Sequence[Mapping[str, Tensor]]) -> list[str]:
    """Parameters and modules whose rescaling changes nothing, though it is not proved."""
    index = {name: i for i, name in enumerate(report.names)}
    candidates = {name: [name] for name in report.names}
    candidates |= {path: list(report.select(path)) for path in report.modules if path and report.modules[path]}
    found = []
    for name, members in candidates.items():
        used = [member for member in members if index[member] not in report.system.unused]
        exponents = {index[member]: Fraction(1) for member in used}
        if not exponents or report.verdict(used) in (Verdict.EXACT, Verdict.UP_TO_EPSILON):
            continue
        if _orthogonality(numbers, exponents, gradients) > numbers.tolerance:
            continue
        if max(numbers.deviation(exponents, c) for c in (FACTOR, 1 / FACTOR)) <= numbers.tolerance:
            found.append(name)
    return found
