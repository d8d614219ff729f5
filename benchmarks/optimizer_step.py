"""How long is one optimizer step on BERT base's 110 million parameters, and how much state does it keep?

ClippedSGD with its three kinds of group against the optimizers of torch, on the CPU or a CUDA device:

    python benchmarks/optimizer_step.py                # writes benchmarks/results/optimizer_step.json
    python benchmarks/optimizer_step.py --compiled     # with AdamW compiled, too, as always on CUDA; on the CPU it was
                                                       # never the fastest: 1.4 to 1.6 of the fused one's time
    python benchmarks/optimizer_step.py --device cuda --scale 10    # 1.1 billion parameters; ..._cuda_x10.json
    python benchmarks/optimizer_step.py --smoke        # toy size, no file

First a gate: for each kind of group the three implementations of ClippedSGD have to agree, clipped steps included, or
nothing is timed. Then every candidate is timed for a few steps. Then the three of ours ("fused", the default), SGD, and
the two fastest AdamW alternate, step by step, in one process; the reported ratios are those of their medians to that of
the faster AdamW, with the ratios of the means beside them (the parameter norm of a joint group is measured once in 32
steps, which a median does not see). Muon takes the matrices of the layers, as its paper has it, and AdamW the rest.

Of P parameters, all share the gradients and the peers one set of parameters, which a rate of 1e-7 leaves as they are.
Each of ours has its own, whose norms it follows. With the buffers of the copy and the state of two AdamW that makes
1 + 1 + 3 + 2 + 4 = 11 times 4 P bytes, and 2 more for a moment where a list of steps is formed: 57 GB of 80 for 1.1
billion parameters.

Bytes are the least that each has to read and write: of ours 4 passes over 4 bytes a parameter (the gradient twice, for
its norm and for the step; parameters read and written), 3 for rows, whose gradient stays in the cache between the two,
7 of AdamW. They give a bandwidth, shown as a share of what a copy of as many bytes reaches in the same run. A copy
counts one read and one write; a processor that fetches a line before it writes to it moves half as much again, which is
not counted, so that a share can exceed 1. On a machine that is shared, rounds in which other processes used more than a
tenth of a core are left out, as long as enough quiet ones come.
"""

import argparse
import functools
import gc
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

KINDS = ("joint", "matrix", "row")

TARGETS = {"ClippedSGD row": 0.5, "ClippedSGD matrix": 0.75, "ClippedSGD joint": 0.75}


def bert_base_shapes(
    vocabulary: int = 30522, width: int = 768, inner: int = 3072, layers: int = 12
) -> list[tuple[int, ...]]:
    norm: list[tuple[int, ...]] = [(width,), (width,)]
    projection: list[tuple[int, ...]] = [(width, width), (width,)]
    feed_forward: list[tuple[int, ...]] = [(inner, width), (inner,), (width, inner), (width,)]
    embeddings: list[tuple[int, ...]] = [(vocabulary, width), (512, width), (2, width), *norm]
    return embeddings + layers * (4 * projection + norm + feed_forward + norm) + projection


class Tensors:
    """Parameters of some shapes, all with the same gradients, to which nobody writes."""

    def __init__(self, shapes: list[tuple[int, ...]], device: torch.device) -> None:
        self.shapes, self.device = shapes, device
        self.count = sum(math.prod(shape) for shape in shapes)
        self._gradients = self._draw(1, 1e-4)

    def _draw(self, seed: int, scale: float) -> list[Tensor]:
        generator = torch.Generator(self.device).manual_seed(seed)
        return [torch.randn(shape, generator=generator, device=self.device).mul_(scale) for shape in self.shapes]

    def own(self) -> list[torch.nn.Parameter]:
        """New parameters."""
        parameters = [torch.nn.Parameter(value) for value in self._draw(0, 0.02)]
        for parameter, gradient in zip(parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return parameters

    @functools.cached_property
    def shared(self) -> list[torch.nn.Parameter]:
        """Those that all peers step."""
        return self.own()


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
    """Refuse to time implementations that do not do the same, in any kind of group."""
    tensors = Tensors(bert_base_shapes(vocabulary=101, width=33, inner=70, layers=1), device)
    for kind in KINDS:
        results = {}
        for implementation in ("reference", "foreach", "fused"):
            groups = make_groups(kind, tensors.own())
            optimizer = ClippedSGD(groups, intrinsic_lr=0.01, two_sided=kind != "joint", implementation=implementation)
            parameters = [parameter for group in groups for parameter in group["params"]]
            generator = torch.Generator(device).manual_seed(2)
            for scale in (1.0, 100.0, 0.01):  # the second is clipped, the third, from both sides, lengthened
                for parameter in parameters:
                    parameter.grad = scale * torch.randn(parameter.shape, generator=generator, device=device)
                optimizer.step()
            results[implementation] = torch.cat([parameter.detach().flatten() for parameter in parameters])
        for implementation, result in results.items():
            if not torch.allclose(result, results["reference"], rtol=1e-5, atol=1e-7):
                raise SystemExit(f"ClippedSGD {kind}: {implementation} does not do what the reference does; not timed")


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Count the bytes of all tensors that belong to parameters."""
    return sum(
        value.numel() * value.element_size()
        for entries in optimizer.state.values()
        for value in entries.values()
        if isinstance(value, Tensor)
    )


def candidates(
    tensors: Tensors, compiled: bool
) -> dict[str, Callable[[], tuple[Sequence[Optimizer], Callable[[], object]]]]:
    """Ways to make each optimizer and its step."""

    def one(optimizer: Optimizer, step: Callable[[], object] | None = None) -> tuple[Sequence[Optimizer], Any]:
        return [optimizer], step or optimizer.step

    def adamw(**mode: bool) -> tuple[Sequence[Optimizer], Any]:
        return one(torch.optim.AdamW(tensors.shared, lr=1e-7, **mode))

    def adamw_compiled() -> tuple[Sequence[Optimizer], Any]:
        optimizer = torch.optim.AdamW(tensors.shared, lr=1e-7, foreach=True)
        return one(optimizer, torch.compile(optimizer.step))

    def muon() -> tuple[Sequence[Optimizer], Any]:
        rows, width = max((p.shape for p in tensors.shared if p.dim() == 2), key=lambda shape: shape[0])
        hidden = [p for p in tensors.shared if p.dim() == 2 and min(p.shape) == width and len(p) < rows]
        rest = [p for p in tensors.shared if all(p is not q for q in hidden)]
        both = torch.optim.Muon(hidden, lr=1e-7), torch.optim.AdamW(rest, lr=1e-7, fused=True)
        return both, lambda: [optimizer.step() for optimizer in both]

    def ours(kind: str, implementation: str = "fused") -> tuple[Sequence[Optimizer], Any]:
        groups = make_groups(kind, tensors.own())
        two_sided = kind != "joint"  # as `build_optimizer` has it
        return one(ClippedSGD(groups, intrinsic_lr=INTRINSIC_LR, two_sided=two_sided, implementation=implementation))

    table = {
        "AdamW fused": lambda: adamw(fused=True),
        "AdamW foreach": lambda: adamw(foreach=True),
        "AdamW for-loop": lambda: adamw(foreach=False, fused=False),
        "SGD fused": lambda: one(torch.optim.SGD(tensors.shared, lr=1e-7, fused=True)),
        "Adafactor": lambda: one(torch.optim.Adafactor(tensors.shared, lr=1e-7)),
        "Muon": muon,
        **{f"ClippedSGD {kind}": functools.partial(ours, kind) for kind in KINDS},
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
        if "compiled" in name:  # what was compiled holds the state
            torch.compiler.reset()
        gc.collect()
    return results


def comparison(seconds: dict[str, list[float]], rivals: list[str], count: int) -> dict[str, Any]:
    """What timings of that many parameters say, relative to the faster AdamW and to a copy."""
    timed = {name: summary(values) for name, values in seconds.items()}
    fastest = min(rivals, key=lambda name: timed[name]["median_ms"])
    adamw = timed[fastest]
    passes = {**PASSES, **dict.fromkeys(rivals, 7), "copy": 2}
    bandwidth = {name: 4e-6 * passes[name] * count / values["median_ms"] for name, values in timed.items()}
    return {
        "question": "seconds of one optimizer step on BERT base's parameters, relative to the fastest AdamW",
        "fastest_adamw": fastest,
        "ratio_of_medians": {name: values["median_ms"] / adamw["median_ms"] for name, values in timed.items()},
        "ratio_of_means": {name: values["mean_ms"] / adamw["mean_ms"] for name, values in timed.items()},
        "targets": TARGETS,
        "gigabytes_per_second": bandwidth,
        "share_of_copy_bandwidth": {name: value / bandwidth["copy"] for name, value in bandwidth.items()},
        "alternating": timed,
        "steps_timed": len(seconds["copy"]),
    }


def show(result: dict[str, Any]) -> None:
    """Print it."""
    for name, values in result["alternating"].items():
        print(
            f"{name:22s} median {values['median_ms']:7.1f} ms   quartiles {values['lower_quartile_ms']:.1f} "
            f"to {values['upper_quartile_ms']:.1f} ms   mean {values['mean_ms']:.1f} ms   "
            f"{result['ratio_of_medians'][name]:.3f} of {result['fastest_adamw']}   "
            f"{result['gigabytes_per_second'][name]:.1f} GB/s"
        )
    print(f"{result['steps_timed']} steps each, machine {'' if result['machine_was_quiet'] else 'not '}quiet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scale", type=int, default=1, help="so many times BERT base's 110 million parameters")
    parser.add_argument("--threads", type=int, default=None, help="default: torch's own choice, all cores")
    parser.add_argument("--rounds", type=int, default=48, help="steps of each optimizer that are timed in turn")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds to wait for quiet rounds")
    parser.add_argument("--compiled", action="store_true", help="try a compiled AdamW, too; a minute more")
    parser.add_argument("--smoke", action="store_true", help="a toy size, to see that it works; no file")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)

    check_agreement(device)
    shapes = bert_base_shapes(101, 16, 32, 1) if arguments.smoke else arguments.scale * bert_base_shapes()
    tensors = Tensors(shapes, device)
    table = candidates(tensors, compiled=arguments.compiled or device.type == "cuda")
    qualified = qualify(table, device, steps=3)
    modes_of_adamw = sorted((entry["min_ms"], name) for name, entry in qualified.items() if name.startswith("AdamW"))
    rivals = [name for _, name in modes_of_adamw[:2]]
    made = {name: table[name]()[1] for name in [*PASSES, *rivals]}
    source = torch.randn(tensors.count, device=device)
    made["copy"] = functools.partial(torch.empty_like(source).copy_, source)
    seconds, quiet = alternate(made, device, arguments.rounds, arguments.patience)
    result = {**comparison(seconds, rivals, tensors.count), "machine_was_quiet": quiet, "each_mode": qualified}
    show(result)
    if arguments.smoke:
        return
    result |= {"parameters": tensors.count, "tensors": len(shapes), **machine(device)}
    file = "optimizer_step" if device.type == "cpu" else f"optimizer_step_{device.type}"
    path = Path(__file__).parent / "results" / f"{file}{'' if arguments.scale == 1 else f'_x{arguments.scale}'}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
