"""How fast is normalised-ReLU attention beside softmax attention, and how does its memory grow?

    python benchmarks/attention.py                    # writes benchmarks/results/attention.json
    python benchmarks/attention.py --device cuda      # writes benchmarks/results/attention_cuda.json
    python benchmarks/attention.py --smoke            # toy sizes, no file

Every backend and every peer takes turns on the same tensors, forward alone and forward with backward, after a gate: an
implementation whose output or gradients differ from the reference in float32 is not timed, and the script fails.
Backward is that of the sum of the output times a fixed tensor. The number of tokens is the same at all lengths, so
that a ratio is one of speeds.

On the CPU: 4 heads of width 64, 4096 tokens; `F.scaled_dot_product_attention` is the peer, sequence by sequence where
they are packed. On CUDA: 16 heads of width 64
and 128, 16,384 tokens in bfloat16, padded (every other sequence is half padding) and packed (sequences of many lengths
end to end); the peers are SDPA by FlashAttention and by cuDNN, and FlexAttention with a score function that makes
softmax compute the same weights (exp(log ReLU(s)) = ReLU(s)). Peak memory is that of forward and backward on one
sequence, beyond the inputs: on the CPU that of the process, on CUDA the allocator's. With TRITON_INTERPRET=1 the smoke
test runs the fused kernels, too.

Operations per second count 4 S T K a head forward and 10 S T K backward, for all alike, masked or not.
"""

import argparse
import contextlib
import ctypes
import functools
import gc
import json
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from alternation import alternate, machine, summary
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from sibert.ops.relu_attention import choose_backend, relu_attention

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 4e-2}
"""Largest error of a result relative to the largest entry of the reference's."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FLOPS = {"forward": 4, "forward and backward": 14}


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

    def forward(self, attention: Attention) -> Tensor:
        """Output alone, without what backward would need."""
        with torch.no_grad():
            return attention(*self.inputs)

    def both(self, attention: Attention) -> tuple[Tensor, ...]:
        """Output and gradients."""
        output = attention(*self.inputs)
        return output, *torch.autograd.grad(output, self.inputs, self.gradient)


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
    """FlexAttention of the same definition: the softmax of log ReLU(s) is ReLU(s) over its row sum."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def log_relu(score: Tensor, *_: Tensor) -> Tensor:
        return torch.where(score > 0, torch.log(score), -math.inf)

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
    compiled = torch.compile(flex_attention)
    return functools.partial(compiled, score_mod=log_relu, block_mask=mask, scale=1.0)


def in_interpreter() -> bool:
    """Whether the kernels for CUDA run on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def contestants(case: Case, device: torch.device) -> dict[str, Attention]:
    """Who takes turns."""
    if device.type == "cpu":
        names = ["auto", "reference", "deferred", "blocked", *(["triton"] if in_interpreter() else [])]
        return {**{name: ours(case, device, name) for name in names}, "SDPA": softmax(case, device, None)}
    found: dict[str, Attention] = {"auto": ours(case, device, "auto")}
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


def gate(case: Case, tensors: Tensors, competing: dict[str, Attention], device: torch.device) -> dict[str, float]:
    """Errors relative to the largest entry; refuses to go on with a wrong implementation.

    Softmax is checked against its own definition, and only where all is short enough to form the scores.
    """
    if case.batch * case.heads * case.length**2 > 1 << 31:  # compared at the shorter lengths
        return {}
    precise = Tensors(case, device)
    for name in ("query", "key", "value"):
        setattr(precise, name, getattr(tensors, name).detach().float().requires_grad_())
    precise.gradient = tensors.gradient.float()
    wanted = precise.both(ours(case, device, "reference"))
    errors = {}
    for name, attention in competing.items():
        expected = wanted
        if is_softmax(name):
            if case.layout != "full":
                continue
            expected = precise.both(softmax(case, device, SDPBackend.MATH))
        for result, right in zip(tensors.both(attention), expected, strict=True):
            error = ((result.float() - right).abs().max() / right.abs().max()).item()
            errors[name] = max(error, errors.get(name, 0.0))
        if not errors[name] <= TOLERANCE[DTYPES[case.dtype]]:
            raise SystemExit(f"{case.label}: {name} is wrong by {errors[name]:.1e} of the largest entry; not timed")
    return errors


def resident(kind: str) -> int:
    """Bytes of memory of this process: "VmRSS" now, "VmHWM" at most since the mark was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(kind))


def peak_bytes(case: Case, attention: Attention, device: torch.device) -> int | None:
    """Of forward and backward beyond what was there before; None where the system does not tell."""
    tensors = Tensors(case, device)
    if device.type == "cuda":
        tensors.both(attention)
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        tensors.both(attention)
        return torch.cuda.max_memory_allocated(device) - before
    if not sys.platform.startswith("linux"):
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free but kept would hide what is needed
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = resident("VmRSS")
    tensors.both(attention)
    return resident("VmHWM") - before


def cases(device: torch.device, smoke: bool) -> Iterator[Case]:
    """Sizes, from short to long."""
    if smoke:
        yield from (Case(2, 2, 96, 16, "float32"), Case(2, 2, 96, 16, "float32", "padded"))
        yield Case(1, 2, 96, 16, "float32", "packed")
    elif device.type == "cpu":
        for length in (64, 128, 256, 512, 1024, 2048, 4096):
            for dtype in DTYPES:
                yield Case(4096 // length, 4, length, 64, dtype)
        for layout in ("padded", "packed"):
            yield Case(1 if layout == "packed" else 8, 4, 4096 if layout == "packed" else 512, 64, "float32", layout)
    else:
        for width in (64, 128):
            for length in (512, 1024, 2048, 4096, 8192, 16384):
                for layout in ("full", "padded") if length < 16384 else ("full",):
                    yield Case(16384 // length, 16, length, width, "bfloat16", layout)
            yield Case(1, 16, 16384, width, "bfloat16", "packed")


def rounds_of(case: Case, rounds: int) -> int:
    """More turns where one takes milliseconds, which scatter, and fewer where it takes seconds."""
    size = case.pairs * case.heads * case.width
    return 3 * rounds if size <= 1 << 28 else rounds if size < 1 << 31 else max(4, rounds // 2)


def compare(case: Case, device: torch.device, rounds: int, patience: float) -> dict[str, Any]:
    """All contestants of a case, forward and with backward, in turn."""
    tensors = Tensors(case, device)
    competing = contestants(case, device)
    result: dict[str, Any] = {"errors": gate(case, tensors, competing, device)}
    result["auto_takes"] = choose_backend(tensors.query, tensors.key)._asdict()
    for what, runner in (("forward", tensors.forward), ("forward and backward", tensors.both)):
        steps = {name: functools.partial(runner, attention) for name, attention in competing.items()}
        seconds, quiet = alternate(steps, device, rounds_of(case, rounds), patience)
        timed = {name: summary(values) for name, values in seconds.items()}
        own = seconds["auto"]
        speedups = {
            name: statistics.quantiles([peer / mine for peer, mine in zip(values, own, strict=True)], n=4)
            for name, values in seconds.items()
            if name != "auto"
        }
        result[what] = {
            "speed_relative_to": {
                name: timed[name]["median_ms"] / timed["auto"]["median_ms"] for name in timed if name != "auto"
            },
            "quartiles_of_neighbours": {name: [low, high] for name, (low, _, high) in speedups.items()},
            "alternating": timed,
            "tera_operations_per_second": {
                name: case.flops(what) / values["median_ms"] / 1e9 for name, values in timed.items()
            },
            "turns": len(own),
            "machine_was_quiet": quiet,
        }
        shown = ", ".join(f"{name} {ratio:.2f}" for name, ratio in result[what]["speed_relative_to"].items())
        print(f"{case.label:48} {what:21} {timed['auto']['median_ms']:9.2f} ms; faster than: {shown}", flush=True)
    alone = Case(1, case.heads, case.length, case.width, case.dtype, "packed" if case.layout == "packed" else "full")
    result["peak_bytes_of_one_sequence"] = {
        name: peak_bytes(alone, attention, device) for name, attention in contestants(alone, device).items()
    }
    return result


def slope(sizes: list[int], values: list[float]) -> float:
    """Exponent of a power law, by least squares on logarithms."""
    xs, ys = [math.log(size) for size in sizes], [math.log(value) for value in values]
    return statistics.linear_regression(xs, ys).slope


def growth(found: dict[Case, dict[str, Any]], longest_of: int = 4) -> dict[str, Any]:
    """Exponents of time and memory of one sequence in its length, over the longest full ones of each kind."""
    kinds: dict[str, list[Case]] = {}
    for case in found:
        if case.layout == "full":
            kinds.setdefault(f"head width {case.width}, {case.dtype}", []).append(case)
    slopes: dict[str, Any] = {}
    for kind, ones in kinds.items():
        ones = ones[-longest_of:]
        if len(ones) < 2:
            continue
        both, lengths = "forward and backward", [case.length for case in ones]
        names = set.intersection(*(set(found[case][both]["alternating"]) for case in ones))
        slopes[kind] = {
            "lengths": lengths,
            "time": {
                name: slope(lengths, [found[c][both]["alternating"][name]["median_ms"] / c.batch for c in ones])
                for name in sorted(names)
            },
            "memory": {
                name: slope(lengths, peaks)
                for name in sorted(names)
                if all(peaks := [found[c]["peak_bytes_of_one_sequence"][name] for c in ones])
            },
        }
    return slopes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--rounds", type=int, default=8, help="turns of each; thrice as many of short ones, half of long ones"
    )
    parser.add_argument("--patience", type=float, default=20.0, help="seconds to wait for quiet rounds, for each case")
    parser.add_argument("--smoke", action="store_true", help="toy sizes, to see that it works; no file")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    found = {
        case: compare(case, device, arguments.rounds, arguments.patience) for case in cases(device, arguments.smoke)
    }
    if arguments.smoke:
        return
    name = "attention" if device.type == "cpu" else f"attention_{device.type}"
    path = Path(__file__).parent / "results" / f"{name}.json"
    result = {
        "question": "speed of normalised-ReLU attention relative to its peers (above 1: ours is faster)",
        "cases": [{**vars(case), **values} for case, values in found.items()],
        "growth": growth(found),
        **machine(device),
    }
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
