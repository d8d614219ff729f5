"""How fast is normalised-ReLU attention beside softmax attention, and how does its memory grow?

    python benchmarks/attention.py                    # writes benchmarks/results/attention.json
    python benchmarks/attention.py --device cuda      # writes benchmarks/results/attention_cuda.json
    python benchmarks/attention.py --smoke            # toy sizes, no file

Every backend and every peer takes turns on the same tensors, forward alone and forward with backward, after a gate that
spares no size and no layout: where an output or a gradient differs from the reference in float32 (of softmax: from its
own), sequence by sequence and head by head, nothing is timed, and the script fails. The backend that "auto" takes is
timed as "auto" alone. A peer that the machine has no kernel for is left out, and the result says why. Backward is that
of the sum of the output times a fixed tensor. The number of tokens is the same at all lengths: ratios are of speeds.

On the CPU: 4 heads of width 64, 4096 tokens; `F.scaled_dot_product_attention` is the peer, sequence by sequence where
they are packed. On CUDA: 16 heads of width 64 and 128, 16,384 tokens in bfloat16, padded (every other sequence is half
padding) and packed (sequences of many lengths end to end); the peers are SDPA by FlashAttention and by cuDNN, and
FlexAttention, compiled anew for each case, with a score function that makes softmax compute the same weights
(exp(log ReLU(s)) = ReLU(s)). Peak memory is that of forward and backward on one sequence, beyond the inputs: on the CPU
that of the process, on CUDA the allocator's. With TRITON_INTERPRET=1 the smoke test runs the fused kernels, too; it
also tries the peers of CUDA, as far as a CPU can run them.

Operations per second count 4 S T K a head forward and 10 S T K backward, for all alike, masked or not.
"""

import argparse
import ctypes
import functools
import gc
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from alternation import alternate, machine, summary
from attention_contestants import BOTH, DTYPES, FORWARD, Attention, Case, Tensors, attempt, contestants, is_softmax
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from sibert.ops.relu_attention import choose_backend, relu_attention

Place = tuple[slice, slice, slice]
"""Of the batch, of the heads, of the rows."""
TOLERANCE = {"float32": 2e-4, "bfloat16": 4e-2}
"""Largest error of a result relative to the largest entry of the reference's, in one sequence."""
SCORES_AT_ONCE = 1 << 28
"""Scores that the gate forms at a time, in float32: 1 GiB."""


def expected(case: Case, tensors: Tensors) -> Iterator[tuple[Place, Callable[[bool], tuple[Tensor, ...]]]]:
    """Output and gradients in float32 by the definitions, of one sequence after the other, as many heads as fit.

    Yields:
        Where they belong in the results, and a function that computes them, of softmax attention or of ours.
    """
    for number, rows, valid in case.sequences:
        heads = max(1, SCORES_AT_ONCE // ((rows.stop - rows.start) * valid))
        for first in range(0, case.heads, heads):
            place = (slice(number, number + 1), slice(first, first + heads), rows)

            def compute(by_softmax: bool, place: Place = place, valid: int = valid) -> tuple[Tensor, ...]:
                inputs = [tensor.detach()[place].float().requires_grad_() for tensor in tensors.inputs]
                query, key, value = inputs[0], inputs[1][:, :, :valid], inputs[2][:, :, :valid]
                if by_softmax:
                    with sdpa_kernel(SDPBackend.MATH):
                        output = F.scaled_dot_product_attention(query, key, value)
                else:
                    output = relu_attention(query, key, value, backend="reference")[0]
                return output, *torch.autograd.grad(output, inputs, tensors.gradient[place].float())

            yield place, compute


def relative_error(results: tuple[Tensor, ...], wanted: tuple[Tensor, ...], place: Place) -> float:
    """Of the worst result in a place, relative to its largest entry there; NaN if there is any.

    What is nothing but rounding (softmax of a single key has no gradient) counts relative to a tenth of the rest.
    """
    rest = max(right.abs().max().item() for right in wanted) / 10
    pairs = zip(results, wanted, strict=False)  # the output alone, where only forward ran
    errors = [
        (result[place].float() - right).abs().max() / (max(right.abs().max().item(), rest) or 1.0)
        for result, right in pairs
    ]
    return torch.stack(errors).max().item()


def is_miscompiled(name: str, case: Case, query: Tensor) -> bool:
    """Whether torch is known to compile it wrongly: 2.13 does so without AVX-512, and is right without compiling."""
    wrong_here = query.is_cpu and torch.backends.cpu.get_cpu_capability() == "AVX2"
    return name == "FlexAttention" and case.layout == "packed" and wrong_here


def gate(
    case: Case, tensors: Tensors, competing: dict[str, Attention]
) -> tuple[dict[str, float], dict[str, dict[str, str]]]:
    """Refuse to go on with a wrong implementation, forward or backward.

    A peer that torch is known to miscompile here counts as missing, see `is_miscompiled`.

    Returns:
        The largest relative error of each, and which peers are missing, forward and with backward, and why.
    """
    missing: dict[str, dict[str, str]] = {FORWARD: {}, BOTH: {}}
    results: dict[tuple[str, str], tuple[Tensor, ...]] = {}
    for name, attention in competing.items():
        for what in missing:
            result, reason = attempt(name, functools.partial(tensors.run, what, attention))
            if result is None:
                missing[what][name] = reason
            else:
                results[name, what] = result
    errors: dict[str, float] = {}
    for place, compute in expected(case, tensors):
        right = {kind: compute(kind) for kind in {is_softmax(name) for name, _ in results}}
        for (name, what), result in results.items():
            error = relative_error(result, right[is_softmax(name)], place)
            if not error <= TOLERANCE[case.dtype]:
                where = f"sequence {place[0].start}, rows {place[2].start} to {place[2].stop}"
                wrong = f"wrong by {error:.1e} of the largest entry, {what}, {where}; not timed"
                if not is_miscompiled(name, case, tensors.query):
                    raise SystemExit(f"{case.label}: {name} is {wrong}")
                missing[what].setdefault(name, wrong)
            errors[name] = max(error, errors.get(name, 0.0))
    return errors, missing


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
        yield from (Case(1, 2, 72, 16, "float32"), Case(2, 1, 72, 16, "float32", "padded"))
        yield Case(1, 2, 72, 16, "float32", "packed")
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
    """More turns where one takes milliseconds, which scatter, than where it takes seconds."""
    size = case.pairs * case.heads * case.width
    return 3 * rounds if size <= 1 << 28 else 2 * rounds if size <= 1 << 30 else max(4, rounds // 2)


def compare(case: Case, device: torch.device, rounds: int, patience: float, smoke: bool = False) -> dict[str, Any]:
    """All contestants of a case, forward and with backward, in turn."""
    tensors = Tensors(case, device)
    competing = contestants(case, device, smoke)
    errors, missing = gate(case, tensors, competing)
    result: dict[str, Any] = {"errors": errors}
    taken = choose_backend(tensors.query, tensors.key)
    result["auto_takes"] = taken._asdict()
    for what, absent in missing.items():
        steps = {
            name: functools.partial(tensors.run, what, attention)
            for name, attention in competing.items()
            if name not in absent and name != taken.name  # which would be the same code twice
        }
        seconds, quiet = alternate(steps, device, rounds if smoke else rounds_of(case, rounds), patience)
        result[what] = {**comparison(case, what, seconds), "not_available": absent, "machine_was_quiet": quiet}
        shown = ", ".join(f"{name} {ratio:.2f}" for name, ratio in result[what]["speed_relative_to"].items())
        own = result[what]["alternating"]["auto"]["median_ms"]
        print(f"{case.label:48} {what:21} {own:9.2f} ms, {taken.name}; faster than: {shown}", flush=True)
        for name, reason in absent.items():
            print(f"    {name}: {reason}", flush=True)
    alone = Case(1, case.heads, case.length, case.width, case.dtype, "packed" if case.layout == "packed" else "full")
    result["peak_bytes_of_one_sequence"] = {
        name: attempt(name, functools.partial(peak_bytes, alone, attention, device))[0]
        for name, attention in contestants(alone, device, smoke).items()
    }
    return result


def comparison(case: Case, what: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """What timings say, relative to ours."""
    timed = {name: summary(values) for name, values in seconds.items()}
    own = seconds["auto"]
    others = [name for name in timed if name != "auto"]
    quartiles = {
        name: statistics.quantiles([peer / mine for peer, mine in zip(seconds[name], own, strict=True)], n=4)
        for name in others
    }
    return {
        "speed_relative_to": {name: timed[name]["median_ms"] / timed["auto"]["median_ms"] for name in others},
        "quartiles_of_neighbours": {name: [low, high] for name, (low, _, high) in quartiles.items()},
        "alternating": timed,
        "tera_operations_per_second": {
            name: case.flops(what) / values["median_ms"] / 1e9 for name, values in timed.items()
        },
        "turns": len(own),
    }


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
        lengths = [case.length for case in ones]
        names = set.intersection(*(set(found[case][BOTH]["alternating"]) for case in ones))
        slopes[kind] = {
            "lengths": lengths,
            "time": {
                name: slope(lengths, [found[c][BOTH]["alternating"][name]["median_ms"] / c.batch for c in ones])
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
    parser.add_argument("--rounds", type=int, default=8, help="turns of each; two or three times as many of short ones")
    parser.add_argument("--patience", type=float, default=20.0, help="seconds to wait for quiet rounds, for each case")
    parser.add_argument("--smoke", action="store_true", help="toy sizes, to see that it works; no file")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    found = {
        case: compare(case, device, arguments.rounds, arguments.patience, arguments.smoke)
        for case in cases(device, arguments.smoke)
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
