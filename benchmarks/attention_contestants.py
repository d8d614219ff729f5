"""Who takes turns in `attention.py`, and on what: ours by every backend, and the peers."""

import contextlib
import functools
import itertools
import math
import os
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from sibert.ops.relu_attention import relu_attention

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
Result = TypeVar("Result")
FORWARD, BOTH = "forward", "forward and backward"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FLOPS = {FORWARD: 4, BOTH: 14}


@dataclass(frozen=True)
class Case:
    """One size: what attends to what.

    Attributes:
        batch: Sequences, or 1 where they are packed.
        heads: Heads.
        length: Tokens of a sequence, padding included; of all, where they are packed.
        width: Of a head.
        dtype: A key of `DTYPES`.
        layout: "full", "padded" or "packed".
    """

    batch: int
    heads: int
    length: int
    width: int
    dtype: str
    layout: str = "full"

    @property
    def seqlens(self) -> list[int]:
        """Valid tokens of each sequence."""
        if self.layout == "packed":  # of every length from an eighth of the longest on, in an order that repeats
            shares, left, lengths = (1, 7, 3, 5, 2, 8, 6, 4), self.length, []
            while left:
                lengths.append(min(left, max(1, self.length * shares[len(lengths) % 8] // 64)))
                left -= lengths[-1]
            return lengths
        half = self.layout == "padded"
        return [self.length // 2 if half and number % 2 else self.length for number in range(self.batch)]

    @property
    def pairs(self) -> int:
        """Query-key pairs of a head."""
        return sum(length * (length if self.layout == "packed" else self.length) for length in self.seqlens)

    def flops(self, what: str) -> float:
        """Floating-point operations."""
        return FLOPS[what] * self.heads * self.width * self.pairs

    @property
    def sequences(self) -> Iterator[tuple[int, slice, int]]:
        """Where each sequence lies (in the batch, and its rows), and how many of its keys are valid."""
        if self.layout == "packed":
            ends = list(itertools.accumulate(self.seqlens))
            yield from ((0, slice(end - valid, end), valid) for end, valid in zip(ends, self.seqlens, strict=True))
        else:
            yield from ((number, slice(0, self.length), valid) for number, valid in enumerate(self.seqlens))

    @property
    def label(self) -> str:
        """In words."""
        return f"T = {self.length}, head width {self.width}, {self.dtype}, {self.layout}"


class Tensors:
    """Queries, keys, values and the gradient of the output."""

    def __init__(self, case: Case, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (case.batch, case.heads, case.length, case.width)
        made = [torch.randn(shape, generator=generator).to(device, DTYPES[case.dtype]) for _ in range(4)]
        self.query, self.key, self.value = (tensor.requires_grad_() for tensor in made[:3])
        self.gradient = made[3]

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """As an attention takes them."""
        return self.query, self.key, self.value

    def forward(self, attention: Attention) -> tuple[Tensor]:
        """Output alone, without what backward would need."""
        return (attention(*(tensor.detach() for tensor in self.inputs)),)

    def both(self, attention: Attention) -> tuple[Tensor, ...]:
        """Output and gradients."""
        output = attention(*self.inputs)
        return output, *torch.autograd.grad(output, self.inputs, self.gradient)

    def run(self, what: str, attention: Attention) -> tuple[Tensor, ...]:
        """One of both."""
        return self.forward(attention) if what == FORWARD else self.both(attention)


def ours(case: Case, device: torch.device, backend: str) -> Attention:
    """Normalised-ReLU attention by a backend."""
    options: dict[str, Any] = {"backend": backend}
    if case.layout == "padded":
        options["seqlens"] = torch.tensor(case.seqlens, device=device)
    if case.layout == "packed":
        options["cu_seqlens"] = torch.tensor([0, *case.seqlens], device=device).cumsum(0)
    return lambda query, key, value: relu_attention(query, key, value, **options)[0]


def softmax(case: Case, device: torch.device, kernel: SDPBackend | None) -> Attention:
    """PyTorch's fused softmax attention; by one kernel, or by what it chooses itself."""
    if case.layout == "packed":
        return functools.partial(one_by_one, case.seqlens)
    mask = None
    if case.layout == "padded":
        mask = torch.arange(case.length, device=device) < torch.tensor(case.seqlens, device=device)[:, None, None, None]

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with contextlib.nullcontext() if kernel is None else sdpa_kernel(kernel):
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    return attention


def one_by_one(seqlens: list[int], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention of sequences that lie end to end, where no kernel takes them at once."""
    pieces = [tensor.split(seqlens, dim=2) for tensor in (query, key, value)]
    return torch.cat([F.scaled_dot_product_attention(*piece) for piece in zip(*pieces, strict=True)], dim=2)


def packed_softmax(case: Case, device: torch.device) -> Attention:
    """FlashAttention over sequences that lie end to end."""
    from torch.nn.attention.varlen import varlen_attn

    bounds = torch.tensor([0, *case.seqlens], device=device).cumsum(0).to(torch.int32)
    longest = max(case.seqlens)

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        flat = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
        return varlen_attn(*flat, bounds, bounds, longest, longest).transpose(0, 1)[None]

    return attention


def flex(case: Case, device: torch.device) -> Attention:
    """FlexAttention of the same definition: the softmax of log ReLU(s) is ReLU(s) over its row sum.

    All cases would be compilations of one function, and beyond the limit of these it would run unfused. So each begins
    with none, and with `fullgraph` reaching the limit all the same is an error.
    """
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch.compiler.reset()

    def log_relu(score: Tensor, *_: Tensor) -> Tensor:
        positive = score > 0  # the logarithm of what is not would turn its gradient, 0, into NaN
        return torch.where(positive, torch.log(torch.where(positive, score, 1.0)), -math.inf)

    seqlens = torch.tensor(case.seqlens, device=device)
    mask = None
    if case.layout == "padded":
        mask = create_block_mask(
            lambda b, _, __, k: k < seqlens[b], case.batch, None, case.length, case.length, device=device
        )
    if case.layout == "packed":
        document = torch.arange(len(case.seqlens), device=device).repeat_interleave(seqlens)
        mask = create_block_mask(
            lambda _, __, q, k: document[q] == document[k], None, None, case.length, case.length, device=device
        )
    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    return functools.partial(compiled, score_mod=log_relu, block_mask=mask, scale=1.0)


def in_interpreter() -> bool:
    """Whether the kernels for CUDA run on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def contestants(case: Case, device: torch.device, smoke: bool = False) -> dict[str, Attention]:
    """Who takes turns; on the CPU the peers of CUDA only to see what becomes of them."""
    if device.type == "cpu":
        names = ["auto", "reference", "deferred", "blocked", *(["triton"] if in_interpreter() else [])]
        found = {**{name: ours(case, device, name) for name in names}, "SDPA": softmax(case, device, None)}
        if smoke and case.layout == "packed":
            found |= {"SDPA flash": packed_softmax(case, device), "FlexAttention": flex(case, device)}
        return found
    found = {"auto": ours(case, device, "auto")}
    if case.batch * case.heads * case.length**2 <= 1 << 31:  # the reference's scores would not fit beyond it
        found["reference"] = ours(case, device, "reference")
    if case.layout == "packed":
        found["SDPA flash"] = packed_softmax(case, device)
    elif case.layout == "full":  # FlashAttention takes no mask
        found["SDPA flash"] = softmax(case, device, SDPBackend.FLASH_ATTENTION)
    if case.layout != "packed":
        found["SDPA cuDNN"] = softmax(case, device, SDPBackend.CUDNN_ATTENTION)
    return {**found, "FlexAttention": flex(case, device)}


def is_softmax(name: str) -> bool:
    """Whether a contestant computes another function than ours."""
    return name.startswith("SDPA")


def attempt(name: str, call: Callable[[], Result]) -> tuple[Result | None, str]:
    """Call; where a peer has no kernel for it give None and the reason. One of ours has to work."""
    try:
        return call(), ""
    except RuntimeError as error:
        if not is_softmax(name) and name != "FlexAttention":
            raise
        return None, "not available: " + textwrap.shorten(str(error) or type(error).__name__, 120)
