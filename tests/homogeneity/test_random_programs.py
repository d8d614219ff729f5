"""Random programs of a few operations each: no rescaling that is proved exact may change a result."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from random import Random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sibert.homogeneity import SymmetryReport
from sibert.homogeneity.graph import Graph, trace
from sibert.homogeneity.propagation import propagate
from sibert.homogeneity.rules import RULES

SEEDS = (*range(40), 84, 176, 257, 366, 380, 400, 441, 606)
"""Those beyond 39 were found to meet shifts or unknown factors that were handed on wrongly."""
STEPS = 5
FACTOR = 1.7
T = torch.randn(4, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
SHAPES = {"w": (5, 6), "v": (5, 6), "row": (4, 1), "column": (6,), "number": (1,), "every": (4, 6)}


def constant(*shape: int) -> Tensor:
    """Entries of either sign."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def leaf(r: Random, m: nn.Module, shape: torch.Size) -> Tensor:
    """A parameter, a product with one, or a constant, that broadcasts to a shape."""
    own = [t for t in [T @ m.w, T @ m.v, m.row, m.column, m.number, m.every] if _fits(t.shape, shape)]
    return r.choice([*own, constant(*shape)])


def _fits(one: torch.Size, shape: torch.Size) -> bool:
    return len(one) <= len(shape) and all(a in (1, b) for a, b in zip(one[::-1], shape[::-1], strict=False))


PAIRS: list[Callable[[Tensor, Tensor], Tensor]] = [
    torch.add,
    torch.add,
    torch.add,
    torch.sub,
    torch.mul,
    torch.div,
    torch.maximum,
    torch.minimum,
    torch.hypot,
    torch.remainder,
    torch.atan2,
    lambda h, g: (h > g).to(h.dtype),
    lambda h, g: h.clamp(min=g),
    lambda h, g: torch.lerp(h, g, 0.3),
    lambda h, g: torch.where(constant(*h.shape) > 0, h, g),
    lambda h, g: torch.where(constant(*h.shape)[..., :1] > 0, h, g),
    lambda h, g: torch.where(constant(*h.shape) > 0, h, g)[..., 1:],
    lambda h, g: torch.where(h > 0, h, g),
    lambda h, g: torch.addcmul(h, g, constant(*h.shape)),
]


def batched(r: Random, m: nn.Module, h: Tensor) -> Tensor:
    """A product of batches of matrices, of which one or both vary over the batch."""
    h = torch.stack([h, h.flip(0)]) if h.ndim == 2 else h
    h = h + leaf(r, m, h.shape)
    other = constant(*h.shape[:-2], h.shape[-1], 3)
    other = other if r.random() < 0.7 else other[:1].expand_as(other)
    return h @ other if r.random() < 0.5 else other.mT @ h.mT


def moved(r: Random, m: nn.Module, h: Tensor) -> Tensor:
    """Entries of a tensor of two or more axes, elsewhere."""
    axis = r.randrange(h.ndim)
    size = h.shape[axis]
    k = r.randrange(size)
    choices: list[Callable[[], Tensor]] = [
        lambda: h.narrow(axis, k, size - k),
        lambda: h.flip(axis),
        lambda: h.roll(1, axis),
        lambda: h.transpose(axis, -1),
        lambda: h.reshape(2, -1) if h.numel() % 2 == 0 else h,
        lambda: h.reshape(-1, 3) if h.numel() % 3 == 0 else h,
        lambda: torch.cat([h, h.flip(axis)], axis),
        lambda: h.index_select(axis, torch.tensor([k, 0, size - 1])),
        lambda: h / h.roll(1, axis),
        lambda: h.unsqueeze(axis),
        lambda: h.select(axis, k) if h.ndim > 2 else h,
        lambda: batched(r, m, h),
        lambda: batched(r, m, h),
        lambda: constant(3, len(h)) @ h if h.ndim == 2 else h,
        lambda: F.relu(h),
        lambda: h - h.mean(axis, keepdim=True),
        lambda: h.cumsum(axis),
        lambda: h.masked_fill(constant(*h.shape) > 1, -torch.inf if r.random() < 0.3 else 0.0),
        lambda: torch.ldexp(h, -torch.frexp(h.abs().amax(axis, keepdim=True))[1]),
        lambda: torch.ldexp(h, torch.frexp(h)[1]),
    ]
    return r.choice(choices)()


def ended(r: Random, h: Tensor) -> Tensor:
    """What ignores scales or shifts."""
    axis = r.randrange(h.ndim)
    size = h.shape[axis]
    choices: list[Callable[[], Tensor]] = [
        lambda: h.softmax(axis),
        lambda: h.softmax(0),
        lambda: h.log_softmax(axis),
        lambda: F.layer_norm(h, h.shape[-1:], eps=0.0),
        lambda: F.layer_norm(h, h.shape[-1:], eps=0.0),
        lambda: h / h.norm(dim=axis, keepdim=True),
        lambda: h.select(axis, r.randrange(size)) / h.select(axis, r.randrange(size)),
        lambda: h.var(unbiased=False),
        lambda: h.std(unbiased=False),
        lambda: h.std(axis),
        lambda: F.batch_norm(h, None, None, training=True, eps=1e-300) if h.ndim in (2, 3) and len(h) > 1 else h,
        lambda: F.group_norm(h, 1, eps=0.0) if h.ndim > 1 else h,
        lambda: torch.sign(h),
    ]
    return r.choice(choices)()


def program(seed: int, m: nn.Module) -> Tensor:
    """Always the same operations for a seed."""
    r = Random(seed)
    h = leaf(r, m, torch.Size([4, 6]))
    h = h if h.shape == (4, 6) else T @ m.w + h
    for _ in range(r.randint(1, STEPS)):
        h = r.choice(PAIRS)(h, leaf(r, m, h.shape)) if r.random() < 0.5 else moved(r, m, h)
        h = h if h.ndim > 1 else h[None]
    h = ended(r, h + leaf(r, m, h.shape) if r.random() < 0.4 else h)
    return ended(r, h) if r.random() < 0.2 and h.ndim > 1 else h


class Programs(nn.Module):
    """All of some seeds."""

    def __init__(self, *seeds: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.seeds = seeds
        for name, shape in SHAPES.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)))

    def forward(self) -> list[Tensor]:
        return [program(seed, self) for seed in self.seeds]


@lru_cache
def graph_of_all() -> Graph:
    """One export for all programs, for an export takes longer than the rest."""
    return trace(Programs(*SEEDS), (), {}, lambda output: output, RULES.__contains__)


def report(seed: int) -> SymmetryReport:
    """Of one program."""
    whole = graph_of_all()
    outputs = {path: node for path, node in whole.outputs.items() if path == str(SEEDS.index(seed))}
    needed = set(outputs.values())
    for node in reversed(whole.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    nodes = tuple(node for node in whole.nodes if node in needed)
    return SymmetryReport(propagate(replace(whole, nodes=nodes, outputs=outputs), {}), {})


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_proved_is_measured(seed: int) -> None:
    module = Programs(seed)
    found = report(seed)
    assert found.unsupported == ()
    with torch.no_grad():
        before = module()[0]
        for symmetry in found.space():
            other = Programs(seed)
            for v, exponent in symmetry.items():
                other.get_parameter(found.names[v]).mul_(FACTOR ** float(exponent))
            torch.testing.assert_close(other()[0], before, rtol=1e-7, atol=1e-7, equal_nan=True)
