"""One step of a group, x <- (1 - eta lambda) x - eta s g, written three times.

All subtract gamma x, with gamma = eta lambda, and never multiply by 1 - gamma: at the paper's gamma = 8e-6 rounding
that factor to float32 would change gamma by up to 0.4 %.

`reference` is the formula; `foreach` hands lists of tensors to torch; `fused` makes one pass over the memory. They
agree to rounding. Parameters of half precision are stepped in float32 and rounded once: to nearest, or, bfloat16 with
noise, stochastically (`rounding`), a piece at a time, so that the float32 copy is never of the size of the parameter.

On CUDA, with triton, "fused" is one kernel for all groups (`sibert.ops.descent`), and one pass over the memory.

Each has two ways to hear the step size and whether to step at all. Where the host may read (the CPU), it reads both and
branches. Elsewhere both stay tensors on the device; a step that must not happen is undone by selection, never by a
multiplication with 0, which would turn an infinite gradient into NaN.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor

from sibert.ops.descent import descend_together, fits_kernel, kernel_runs_on
from sibert.optim import synchronisation
from sibert.optim.rounding import Noise, draw, rounded, rounds

__all__ = [
    "IMPLEMENTATIONS",
    "Implementation",
    "at_least_float32",
    "descend",
    "descend_each",
    "resolve_implementation",
]

Implementation = Literal["reference", "foreach", "fused"]
IMPLEMENTATIONS: Final[tuple[str, ...]] = get_args(Implementation)

HALF_PRECISION = (torch.float16, torch.bfloat16)
FUSED_DTYPES = (torch.float64, torch.float32)
"""Not half precision: torch 2.13's fused SGD is wrong there on the CPU, off by the size of the entries, silently.

And float64 only where the host reads: the kernel takes a step size on the device in float32.
"""

PIECE = 1 << 18
"""Entries of a bfloat16 parameter that are stepped in float32 at a time: 1 MiB each of values, gradients and noise."""

FUSED_RANGE = (1e-30, 1e30)
"""Scalars that the fused kernel may round to float32 without loss of range."""


def resolve_implementation(
    implementation: Implementation | None, parameter: Tensor, gradient: Tensor | None = None
) -> Implementation:
    """Choose how a tensor is stepped.

    Args:
        implementation: What the user asked for; None for the fastest that supports the tensor.
        parameter: The (local) tensor to step.
        gradient: Its gradient, if it has one.

    Returns:
        The request itself, except that "fused" and None become "foreach" for tensors that torch's fused kernel would
        read wrongly or not at all: another device than CPU and CUDA, a gradient of another dtype, memory with gaps.
    """
    if implementation in ("reference", "foreach"):
        return implementation
    # The kernel walks both memories as if they were flat and does not look at strides.
    supported = (
        gradient is not None
        and parameter.device.type in ("cpu", "cuda")
        and parameter.dtype in FUSED_DTYPES
        and (parameter.dtype == torch.float32 or synchronisation.host_may_read(parameter.device))
        and parameter.dtype == gradient.dtype
        and parameter.is_contiguous()
        and gradient.is_contiguous()
    )
    return "fused" if supported else "foreach"


def descend(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    *,
    gamma: float,
    step_size: Tensor | float,
    hold: Tensor | None = None,
    implementation: Implementation | None = None,
    noise: Noise | None = None,
) -> None:
    """Take x <- x - (gamma x + step_size g) for every parameter, in place.

    Args:
        parameters: Plain tensors (local shards of DTensors).
        gradients: One of the same shape for each parameter; None is a zero gradient: the parameter decays.
        gamma: eta lambda, in [0, 1).
        step_size: eta * s, a 0-dim float64 tensor, or a number that the host knows.
        hold: 0-dim bool tensor; where True, no parameter changes by a single bit, whatever the gradients contain. None
            where the host knows that the step is to be taken.
        implementation: See `resolve_implementation`.
        noise: For parameters in bfloat16, which are then rounded stochastically; None rounds to nearest.
    """
    if noise is not None:
        generators = noise.generators(parameters)
        for parameter, gradient, generator in zip(parameters, gradients, generators, strict=True):
            if rounds(parameter, noise):
                _step_rounded(parameter, gradient, gamma, step_size, hold, generator)
        nearest = [not rounds(parameter, noise) for parameter in parameters]
        parameters = [parameter for parameter, here in zip(parameters, nearest, strict=True) if here]
        gradients = [gradient for gradient, here in zip(gradients, nearest, strict=True) if here]
    buckets: dict[tuple[Any, ...], tuple[list[Tensor], list[Tensor | None]]] = defaultdict(lambda: ([], []))
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if parameter.numel() == 0:
            continue
        chosen = resolve_implementation(implementation, parameter, gradient)
        key = (chosen, parameter.device, parameter.dtype, None if gradient is None else gradient.dtype)
        buckets[key][0].append(parameter)
        buckets[key][1].append(gradient)
    for (chosen, device, *_), (bucket, bucket_gradients) in buckets.items():
        present = [gradient for gradient in bucket_gradients if gradient is not None]
        if chosen == "reference":
            _reference(bucket, bucket_gradients, gamma, step_size, hold)
        elif isinstance(step_size, Tensor) and not synchronisation.host_may_read(device):
            assert hold is not None
            step_here, hold_here = step_size.to(device, non_blocking=True), hold.to(device, non_blocking=True)
            device_step = _fused_on_device if chosen == "fused" else _foreach_on_device
            device_step(bucket, present, gamma, step_here, hold_here)
        elif hold is None or not hold.item():
            host_step = _fused_on_host if chosen == "fused" else _foreach_on_host
            host_step(bucket, present, gamma, float(step_size))


def descend_each(
    parameters: Sequence[Sequence[Tensor]],
    gradients: Sequence[Sequence[Tensor | None]],
    *,
    gammas: Sequence[float],
    gamma_G: Tensor,
    step_G: Tensor,
    hold_G: Tensor,
    implementations: Sequence[Implementation | None],
    noises: Sequence[Noise | None],
) -> None:
    """Take the step of `descend` for many groups: one kernel for all, where triton's takes them, else one by one.

    Args:
        parameters: Of each group, plain tensors.
        gradients: Theirs.
        gammas: eta lambda of each group.
        gamma_G: The same on the device.
        step_G: eta * s of each group, float64.
        hold_G: bool; where True, no parameter of the group changes.
        implementations: What the user asked for.
        noises: For parameters in bfloat16.
    """
    together: dict[torch.dtype, list[tuple[Tensor, Tensor, int]]] = defaultdict(list)
    kernel = kernel_runs_on(step_G.device)
    for number, (members, descents) in enumerate(zip(parameters, gradients, strict=True)):
        rest, rest_gradients = [], []
        fused = kernel and implementations[number] in (None, "fused") and noises[number] is None
        for parameter, gradient in zip(members, descents, strict=True):
            if (
                fused
                and gradient is not None
                and parameter.device == step_G.device
                and fits_kernel(parameter, gradient)
            ):
                together[parameter.dtype].append((parameter, gradient, number))
            else:
                rest.append(parameter)
                rest_gradients.append(gradient)
        if rest:
            descend(
                rest,
                rest_gradients,
                gamma=gammas[number],
                step_size=step_G[number],
                hold=hold_G[number],
                implementation=implementations[number],
                noise=noises[number],
            )
    for waiting in together.values():
        chosen, descents, numbers = zip(*waiting, strict=True)
        descend_together(chosen, descents, numbers, gamma_G, step_G, ~hold_G)


def _reference(
    parameters: list[Tensor],
    gradients: list[Tensor | None],
    gamma: float,
    step_size: Tensor | float,
    hold: Tensor | None,
) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        x = at_least_float32(parameter)
        g = torch.zeros_like(x) if gradient is None else at_least_float32(gradient)
        step_here = step_size.to(x.device, non_blocking=True) if isinstance(step_size, Tensor) else step_size
        stepped = (x - (gamma * x + step_here * g)).to(parameter.dtype)
        held = None if hold is None else hold.to(x.device, non_blocking=True)
        parameter.copy_(stepped if held is None else torch.where(held, parameter, stepped))


def _step_rounded(
    parameter: Tensor,
    gradient: Tensor | None,
    gamma: float,
    step_size: Tensor | float,
    hold: Tensor | None,
    generator: torch.Generator,
) -> None:
    """Step a bfloat16 parameter in float32, in all implementations alike, and round stochastically."""
    on_host = hold is None or synchronisation.host_may_read(parameter.device)
    if on_host and hold is not None and hold.item():
        return
    held = None if on_host or hold is None else hold.to(parameter.device, non_blocking=True)
    if isinstance(step_size, Tensor):
        step_size = step_size.to(parameter.device, torch.float32, non_blocking=True)
    for x, g in _pieces(parameter, gradient, PIECE):
        stepped = x.float()
        stepped = torch.add(stepped, stepped, alpha=-gamma)
        if g is not None:
            stepped -= g.float() * step_size
        result = rounded(stepped, draw(stepped, generator))
        x.copy_(result if held is None else torch.where(held, x, result))


def _pieces(parameter: Tensor, gradient: Tensor | None, size: int) -> list[tuple[Tensor, Tensor | None]]:
    """Cut a parameter and its gradient into views of `size` entries, or not at all where one of them has gaps."""
    if not parameter.numel():
        return []
    if not (parameter.is_contiguous() and (gradient is None or gradient.is_contiguous())):
        return [(parameter, gradient)]
    parts = torch.split(parameter.view(-1), size)
    return list(
        zip(parts, [None] * len(parts) if gradient is None else torch.split(gradient.view(-1), size), strict=True)
    )


def _foreach_on_host(parameters: list[Tensor], gradients: list[Tensor], gamma: float, step_size: float) -> None:
    stepped = [at_least_float32(parameter) for parameter in parameters]
    torch._foreach_add_(stepped, stepped, alpha=-gamma)
    if gradients:
        torch._foreach_add_(stepped, _matching(gradients, stepped), alpha=-step_size)
    if stepped[0] is not parameters[0]:
        torch._foreach_copy_(parameters, stepped)


def _foreach_on_device(
    parameters: list[Tensor], gradients: list[Tensor], gamma: float, step_size: Tensor, hold: Tensor
) -> None:
    before = [at_least_float32(parameter) for parameter in parameters]
    stepped = list(torch._foreach_add(before, before, alpha=-gamma))
    if gradients:
        descents = torch._foreach_mul(_matching(gradients, stepped), step_size.to(stepped[0].dtype))
        torch._foreach_sub_(stepped, descents)
    selected = [torch.where(hold, p, s.to(p.dtype)) for p, s in zip(parameters, stepped, strict=True)]
    torch._foreach_copy_(parameters, selected)


def _fused_on_host(parameters: list[Tensor], gradients: list[Tensor], gamma: float, step_size: float) -> None:
    """Use x - h (g + w x), which torch's kernel computes in one pass, with h = eta s and w = gamma / h."""
    smallest, largest = FUSED_RANGE
    weight_decay = gamma / step_size if step_size else 0.0
    in_range = smallest < step_size < largest and (gamma == 0.0 or smallest < weight_decay < largest)
    if not in_range:
        _foreach_on_host(parameters, gradients, gamma, step_size)
        return
    # Backwards: the gradients whose norm was taken last are still in the cache.
    _fused_sgd(parameters[::-1], gradients[::-1], weight_decay=weight_decay, lr=step_size)


def _fused_on_device(
    parameters: list[Tensor], gradients: list[Tensor], gamma: float, step_size: Tensor, hold: Tensor
) -> None:
    """Decay, then descend: the kernel takes its weight decay from the host, but the clip factor is on the device."""
    found_inf = hold.to(torch.float32)
    if gamma:
        # x - gamma x, with x itself as the gradient: each entry is read before it is written.
        _fused_sgd(parameters, parameters, weight_decay=0.0, lr=gamma, found_inf=found_inf)
    _fused_sgd(parameters, gradients, weight_decay=0.0, lr=step_size.to(torch.float32), found_inf=found_inf)


def _fused_sgd(
    parameters: list[Tensor],
    gradients: list[Tensor],
    *,
    weight_decay: float,
    lr: float | Tensor,
    found_inf: Tensor | None = None,
) -> None:
    """Take x <- x - lr (g + weight_decay x) in one pass, unless found_inf is 1."""
    torch._fused_sgd_(
        parameters,
        gradients,
        [],
        weight_decay=weight_decay,
        momentum=0.0,
        lr=lr,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,
        found_inf=found_inf,
    )
    # The kernel does not say that it changes them; autograd should know, where it has kept one for a later backward.
    torch.autograd.graph.increment_version(parameters)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Give half precision room to add a small step to a large entry.

    Args:
        tensor: Any floating-point tensor.

    Returns:
        The tensor itself, or a float32 copy of a float16 or bfloat16 one.
    """
    return tensor.float() if tensor.dtype in HALF_PRECISION else tensor


def _matching(gradients: list[Tensor], stepped: Sequence[Tensor]) -> list[Tensor]:
    return [gradient.to(x.dtype) for gradient, x in zip(gradients, stepped, strict=True)]
