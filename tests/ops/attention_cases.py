"""What an attention may be asked: named options with inputs, for every backend to be compared with the reference on."""

import math
from dataclasses import dataclass, field
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


@dataclass(frozen=True)
class Case:
    """Sizes and options of a call of `relu_attention`; tensors are made from a seed."""

    batch: int = 2
    heads: int = 2
    groups: int = 2
    queries: int = 63
    keys: int = 111
    width: int = 20
    mask: tuple[int, ...] | None = None
    options: dict = field(default_factory=dict)

    def inputs(self, dtype: torch.dtype = torch.float64, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(3)

        def draw(heads: int, length: int) -> Tensor:
            # As models have them: positions before heads in memory.
            rows = torch.randn(self.batch, length, heads, self.width, generator=generator, dtype=torch.float64)
            return rows.to(device, dtype).transpose(1, 2).requires_grad_()

        return draw(self.heads, self.queries), draw(self.groups, self.keys), draw(self.groups, self.keys)

    def keywords(self, device: str = "cpu") -> dict:
        generator = torch.Generator().manual_seed(4)
        options = {k: torch.tensor(v, device=device) if isinstance(v, list) else v for k, v in self.options.items()}
        if self.mask is not None:
            mask = torch.rand(self.mask, generator=generator) < 0.5
            mask[0] = False  # one sequence is padding throughout, or one query of all sequences sees nothing
            options["mask"] = mask.to(device)
        return options


def cases(queries: int = 63, keys: int = 111) -> dict[str, Case]:
    """Every option once, and those together that meet in practice; lengths are odd."""
    S, T = queries, keys
    packed = {"batch": 1, "queries": T, "keys": T}
    bounds = [0, 1, 1, T // 2, T // 2 + 7, T // 2 + 7, T]  # one token, nothing, the rest
    return {
        "plain": Case(queries=S, keys=T),
        "one token": Case(queries=1, keys=1),
        "padding": Case(queries=S, keys=T, mask=(2, T)),
        "any mask": Case(queries=S, keys=T, groups=1, mask=(2, 2, S, T)),
        "mask of all sequences": Case(queries=S, keys=T, mask=(1, 1, S, T)),
        "causal": Case(queries=S, keys=T, options={"causal": True}),
        "causal, more queries than keys": Case(queries=T, keys=S, options={"causal": True}),
        "window": Case(queries=T, keys=T, options={"window": 9}),
        "causal window, grouped": Case(queries=T, keys=T, heads=4, options={"causal": True, "window": 5}),
        "lengths": Case(batch=3, queries=S, keys=T, options={"seqlens": [0, 5, T]}),
        "lengths, causal, a mask, grouped": Case(
            batch=3, heads=4, queries=T, keys=T, mask=(3, 1, 1, T), options={"seqlens": [0, 5, T], "causal": True}
        ),
        "packed": Case(**packed, options={"cu_seqlens": bounds}),
        "packed, causal window, one key head": Case(
            **packed, groups=1, options={"cu_seqlens": bounds, "causal": True, "window": 7}
        ),
        "dropout": Case(queries=S, keys=T, groups=1, options={"dropout_p": 0.6}),
        "packed, dropout, causal": Case(**packed, options={"cu_seqlens": bounds, "dropout_p": 0.1, "causal": True}),
    }


def results(case: Case, backend: str, dtype: torch.dtype = torch.float64, device: str = "cpu") -> list[Tensor]:
    """Output and every gradient; dropout draws from the same seed."""
    from sibert.ops import relu_attention

    inputs = case.inputs(dtype, device)
    torch.manual_seed(11)
    output, _ = relu_attention(*inputs, backend=backend, **case.keywords(device))
    generator = torch.Generator().manual_seed(5)
    cotangent = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(device, dtype)
    return [output, *torch.autograd.grad(output, inputs, cotangent)]


def poison_new_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill new memory with NaN: what a backend forgets to write shows."""

    def poison(make):
        def poisoned(*args, **kwargs):
            made = make(*args, **kwargs)
            return made.fill_(math.nan) if made.is_floating_point() else made

        return poisoned

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))
