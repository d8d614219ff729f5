"""Small losses whose symmetry is known, and plain transcriptions of the algorithms."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor, int], Tensor]


def invariant_loss(x: Tensor, step: int) -> Tensor:
    """A loss of the direction x/|x|, another one at each step, as from minibatches. Degree 0."""
    generator = torch.Generator().manual_seed(step)
    matrix = torch.randn(x.numel(), x.numel(), generator=generator, dtype=torch.float64).to(x.dtype)
    direction = x.flatten() / x.norm()
    return direction @ matrix @ direction + torch.tanh(matrix[0] @ direction)


def quadratic_loss(x: Tensor, step: int) -> Tensor:
    """The negative twin: not scale invariant."""
    generator = torch.Generator().manual_seed(step)
    target = torch.randn(x.numel(), generator=generator, dtype=torch.float64).to(x.dtype)
    return 0.5 * (x.flatten() - target).square().sum()


def start(size: int = 7, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(42), dtype=torch.float64).to(dtype)


def trajectory(
    make: Callable[[torch.nn.Parameter], torch.optim.Optimizer],
    x0: Tensor,
    loss: Loss,
    steps: int = 30,
    loss_scale: float = 1.0,
) -> Tensor:
    """All iterates, one a row."""
    x = torch.nn.Parameter(x0.clone())
    optimizer = make(x)
    rows = []
    for step in range(steps):
        optimizer.zero_grad()
        (loss_scale * loss(x, step)).backward()
        optimizer.step()
        rows.append(x.detach().clone())
    return torch.stack(rows)


def directions(iterates: Tensor) -> Tensor:
    return iterates / iterates.norm(dim=1, keepdim=True)


def algorithm_1(x: Tensor, g: Tensor, eta: float, decay: float, clip: float) -> tuple[Tensor, float]:
    """One step of Algorithm 1 of arXiv 2202.00980 in Python numbers; decay is lambda. Returns the new x, and s."""
    threshold = clip * math.sqrt(2 * decay / eta) * x.norm().item()
    s = min(1.0, threshold / g.norm().item()) if g.norm() > 0 else 1.0
    return (1 - eta * decay) * x - eta * s * g, s
