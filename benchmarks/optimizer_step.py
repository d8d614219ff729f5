"""How long is one optimizer step on BERT base's 110 million parameters, and how much state does it keep?

ClippedSGD with its three kinds of group against the optimizers of torch, on the CPU or a CUDA device:

    python benchmarks/optimizer_step.py                # writes benchmarks/results/optimizer_step.json
    python benchmarks/optimizer_step.py --no-compile   # without the compiled AdamW, which needs a C++ compiler
    python benchmarks/optimizer_step.py --device cuda --scale 10    # 1.1 billion parameters; ..._cuda.json

First every candidate is timed for a few steps. Then the three of ours ("fused", the default), SGD, and every AdamW that
may be the fastest alternate, step by step, in one process, each with a copy of the same parameters and gradients; the
reported ratios are those of their medians to that of the fastest AdamW, with the ratios of the means beside them (the
parameter norm of a joint group is measured once in 32 steps, which a median does not see). Muon takes the matrices of
the layers, as its paper has it, and AdamW the rest.

Bytes are the least that each has to read and write: of ours 4 passes over 4 bytes a parameter (the gradient twice, for
its norm and for the step; parameters read and written), 3 for rows, whose gradient stays in the cache between the two,
7 of AdamW. They give a bandwidth, shown as a share of what a copy of as many bytes reaches in the same run. On a
machine that is shared, rounds in which other processes used more than a tenth of a core are left out, as long as enough
quiet ones come.
"""

import argparse
import functools
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from alternation import alternate, machine, summary, synchronised_seconds
from torch import Tensor
from torch.optim import Optimizer

from sibert.optim import ClippedSGD

INTRINSIC_LR = 8e-6
"""eta * lambda of the paper's base experiments."""

PASSES = {"ClippedSGD row": 3, "ClippedSGD matrix": 4, "ClippedSGD joint": 4, "SGD fused": 3}
"""Least passes over memory of each; of AdamW 7."""

TARGETS = {"ClippedSGD row": 0.5, "ClippedSGD matrix": 0.75, "ClippedSGD joint": 0.75}


def bert_base_shapes(
    vocabulary: int = 30522, width: int = 768, inner: int = 3072, layers: int = 12
) -> list[tuple[int, ...]]:
    norm: list[tuple[int, ...]] = [(width,), (width,)]
    projection: list[tuple[int, ...]] = [(width, width), (width,)]
    feed_forward: list[tuple[int, ...]] = [(inner, width), (inner,), (width, inner), (width,)]
    embeddings: list[tuple[int, ...]] = [(vocabulary, width), (512, width), (2, width), *norm]
    return embeddings + layers * (4 * projection + norm + feed_forward + norm) + projection


@functools.cache
def make_gradients(device: torch.device, scale: int) -> list[torch.Tensor]:
    """Made once: nobody writes to them, and 1.1 billion of them are 4.4 GB."""
    generator = torch.Generator().manual_seed(1)
    return [(1e-4 * torch.randn(shape, generator=generator)).to(device) for shape in scale * bert_base_shapes()]


def make_parameters(device: torch.device, scale: int = 1) -> list[torch.nn.Parameter]:
    """Parameters with gradients; `scale` times as many layers, and tables."""
    generator = torch.Generator().manual_seed(0)
    parameters = []
    for shape, gradient in zip(scale * bert_base_shapes(), make_gradients(device, scale), strict=True):
        parameter = torch.nn.Parameter((0.02 * torch.randn(shape, generator=generator)).to(device))
        parameter.grad = gradient
        parameters.append(parameter)
    return parameters


def make_groups(kind: str, parameters: list[torch.nn.Parameter]) -> list[dict[str, object]]:
    """One group of all; one of each matrix and its bias, as one vector or as rows, and one of the other vectors."""
    if kind == "joint":
        return [{"params": parameters, "name": "all"}]
    members: list[list[torch.nn.Parameter]] = []
    others: list[torch.nn.Parameter] = []
    for parameter in parameters:
        if parameter.dim() > 1:
            members.append([parameter])
        elif len(members[-1]) == 1 and len(parameter) == len(members[-1][0]):
            members[-1].append(parameter)
        else:
            others.append(parameter)
    groups = [{"params": group, "name": str(i), "rows": kind == "row"} for i, group in enumerate(members)]
    return [*groups, {"params": others, "name": "vectors"}]


def check_agreement(device: torch.device) -> None:
    """Refuse to time implementations that do not do the same."""
    results = []
    for implementation in ("reference", "foreach", "fused"):
        torch.manual_seed(0)
        x = torch.nn.Parameter(torch.randn(1001, device=device))
        optimizer = ClippedSGD([x], intrinsic_lr=0.01, implementation=implementation)
        for scale in (1.0, 100.0, 1.0):
            x.grad = scale * torch.randn(1001, device=device)
            optimizer.step()
        results.append(x.detach())
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Count the bytes of all tensors that belong to parameters."""
    return sum(
        value.numel() * value.element_size()
        for entries in optimizer.state.values()
        for value in entries.values()
        if isinstance(value, Tensor)
    )


def candidates(
    device: torch.device, scale: int, compiled: bool
) -> dict[str, Callable[[], tuple[Sequence[Optimizer], Callable[[], object]]]]:
    """Ways to make each optimizer and its step."""

    def one(optimizer: Optimizer, step: Callable[[], object] | None = None) -> tuple[Sequence[Optimizer], Any]:
        return [optimizer], step or optimizer.step

    def adamw(**mode: bool) -> tuple[Sequence[Optimizer], Any]:
        return one(torch.optim.AdamW(make_parameters(device, scale), lr=1e-7, **mode))

    def adamw_compiled() -> tuple[Sequence[Optimizer], Any]:
        optimizer = torch.optim.AdamW(make_parameters(device, scale), lr=1e-7, foreach=True)
        return one(optimizer, torch.compile(optimizer.step))

    def muon() -> tuple[Sequence[Optimizer], Any]:
        parameters = make_parameters(device, scale)
        hidden = [p for p in parameters if p.dim() == 2 and min(p.shape) > 2 and max(p.shape) < 30000]
        rest = [p for p in parameters if all(p is not q for q in hidden)]
        both = torch.optim.Muon(hidden, lr=1e-7), torch.optim.AdamW(rest, lr=1e-7, fused=True)
        return both, lambda: [optimizer.step() for optimizer in both]

    def ours(kind: str, implementation: str = "fused") -> tuple[Sequence[Optimizer], Any]:
        groups = make_groups(kind, make_parameters(device, scale))
        return one(ClippedSGD(groups, intrinsic_lr=INTRINSIC_LR, implementation=implementation))

    table = {
        "AdamW fused": lambda: adamw(fused=True),
        "AdamW foreach": lambda: adamw(foreach=True),
        "AdamW for-loop": lambda: adamw(foreach=False, fused=False),
        "SGD fused": lambda: one(torch.optim.SGD(make_parameters(device, scale), lr=1e-7, fused=True)),
        "Adafactor": lambda: one(torch.optim.Adafactor(make_parameters(device, scale), lr=1e-7)),
        "Muon": muon,
        **{f"ClippedSGD {kind}": functools.partial(ours, kind) for kind in ("joint", "matrix", "row")},
        "ClippedSGD joint, reference": lambda: ours("joint", "reference"),
        "ClippedSGD joint, foreach": lambda: ours("joint", "foreach"),
    }
    if compiled:
        table["AdamW compiled"] = adamw_compiled
    return table


def qualify(table: dict, device: torch.device, steps: int) -> dict[str, dict]:
    """A few steps of each, alone."""
    results = {}
    for name, make in table.items():
        optimizers, step = make()
        synchronised_seconds(step, device)
        seconds = [synchronised_seconds(step, device) for _ in range(steps)]
        results[name] = {"median_ms": 1e3 * statistics.median(seconds), "min_ms": 1e3 * min(seconds)}
        results[name]["state_bytes"] = sum(state_bytes(optimizer) for optimizer in optimizers)
        print(
            f"{name:28s} min {results[name]['min_ms']:8.1f} ms   state {results[name]['state_bytes']:,} bytes",
            flush=True,
        )
        del optimizers, step
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scale", type=int, default=1, help="so many times BERT base's 110 million parameters")
    parser.add_argument("--threads", type=int, default=None, help="default: torch's own choice, all cores")
    parser.add_argument("--rounds", type=int, default=48, help="steps of each optimizer that are timed in turn")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds to wait for quiet rounds")
    parser.add_argument("--no-compile", action="store_true")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)

    check_agreement(device)
    table = candidates(device, arguments.scale, compiled=not arguments.no_compile)
    qualified = qualify(table, device, steps=3)
    modes_of_adamw = {name: entry["min_ms"] for name, entry in qualified.items() if name.startswith("AdamW")}
    rivals = [name for name, ms in modes_of_adamw.items() if ms < 1.5 * min(modes_of_adamw.values())]
    made = {name: table[name]()[1] for name in [*PASSES, *rivals]}
    count = arguments.scale * sum(math.prod(shape) for shape in bert_base_shapes())
    source = torch.randn(count, device=device)
    made["copy"] = functools.partial(torch.empty_like(source).copy_, source)
    seconds, quiet = alternate(made, device, arguments.rounds, arguments.patience)
    timed = {name: summary(values) for name, values in seconds.items()}
    fastest = min(rivals, key=lambda name: timed[name]["median_ms"])
    adamw = timed[fastest]
    passes = {**PASSES, **dict.fromkeys(rivals, 7), "copy": 2}
    bandwidth = {name: 4e-6 * passes[name] * count / values["median_ms"] for name, values in timed.items()}
    result = {
        "question": "seconds of one optimizer step on BERT base's parameters, relative to the fastest AdamW",
        "fastest_adamw": fastest,
        "ratio_of_medians": {name: values["median_ms"] / adamw["median_ms"] for name, values in timed.items()},
        "ratio_of_means": {name: values["mean_ms"] / adamw["mean_ms"] for name, values in timed.items()},
        "targets": TARGETS,
        "gigabytes_per_second": bandwidth,
        "share_of_copy_bandwidth": {name: value / bandwidth["copy"] for name, value in bandwidth.items()},
        "alternating": timed,
        "steps_timed": len(seconds["copy"]),
        "machine_was_quiet": quiet,
        "each_mode": qualified,
        "parameters": count,
        "tensors": arguments.scale * len(bert_base_shapes()),
        **machine(device),
    }
    for name, values in timed.items():
        print(
            f"{name:22s} median {values['median_ms']:7.1f} ms   quartiles {values['lower_quartile_ms']:.1f} "
            f"to {values['upper_quartile_ms']:.1f} ms   mean {values['mean_ms']:.1f} ms   "
            f"{result['ratio_of_medians'][name]:.3f} of {fastest}   {bandwidth[name]:.1f} GB/s"
        )
    print(f"{len(seconds['copy'])} steps each, machine {'' if quiet else 'not '}quiet")
    file = "optimizer_step" if device.type == "cpu" else f"optimizer_step_{device.type}"
    path = Path(__file__).parent / "results" / f"{file}{'' if arguments.scale == 1 else f'_x{arguments.scale}'}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
