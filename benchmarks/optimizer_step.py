"""How long is one optimizer step on BERT base's 110 million parameters, and how much state does it keep?

ClippedSGD in each implementation against torch.optim.AdamW in each of its own, on the CPU or a CUDA device:

    python benchmarks/optimizer_step.py                # writes benchmarks/results/optimizer_step.json
    python benchmarks/optimizer_step.py --no-compile   # without the compiled AdamW, which needs a C++ compiler

First every candidate is timed for a few steps. Then ClippedSGD as it is by default ("fused") and every AdamW that may
be the fastest alternate, step by step, in one process, each with a copy of the same parameters and gradients; the
reported ratio is that of their medians, with the ratio of the means beside it (ClippedSGD measures the parameter norm
once in 32 steps, which a median does not see). On a machine that is shared, rounds in which other processes used more
than a tenth of a core are left out, as long as enough quiet ones come.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from alternation import alternate, machine, summary, synchronised_seconds
from torch import Tensor

from sibert.optim import ClippedSGD

INTRINSIC_LR = 8e-6
"""eta * lambda of the paper's base experiments."""

OURS = "ClippedSGD fused"


def bert_base_shapes(
    vocabulary: int = 30522, width: int = 768, inner: int = 3072, layers: int = 12
) -> list[tuple[int, ...]]:
    norm: list[tuple[int, ...]] = [(width,), (width,)]
    projection: list[tuple[int, ...]] = [(width, width), (width,)]
    feed_forward: list[tuple[int, ...]] = [(inner, width), (inner,), (width, inner), (width,)]
    embeddings: list[tuple[int, ...]] = [(vocabulary, width), (512, width), (2, width), *norm]
    return embeddings + layers * (4 * projection + norm + feed_forward + norm) + projection


def make_parameters(device: torch.device) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    parameters = []
    for shape in bert_base_shapes():
        parameter = torch.nn.Parameter((0.02 * torch.randn(shape, generator=generator)).to(device))
        parameter.grad = (1e-4 * torch.randn(shape, generator=generator)).to(device)
        parameters.append(parameter)
    return parameters


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


def candidates(device: torch.device, compiled: bool) -> dict[str, Callable[[], tuple[object, object]]]:
    def adamw(**mode: bool) -> tuple[object, object]:
        optimizer = torch.optim.AdamW(make_parameters(device), lr=1e-7, **mode)
        return optimizer, optimizer.step

    def adamw_compiled() -> tuple[object, object]:
        optimizer, step = adamw(foreach=True)
        return optimizer, torch.compile(step)

    def ours(implementation: str) -> tuple[object, object]:
        optimizer = ClippedSGD(make_parameters(device), intrinsic_lr=INTRINSIC_LR, implementation=implementation)
        return optimizer, optimizer.step

    table = {
        "AdamW fused": lambda: adamw(fused=True),
        "AdamW foreach": lambda: adamw(foreach=True),
        "AdamW for-loop": lambda: adamw(foreach=False, fused=False),
        "ClippedSGD reference": lambda: ours("reference"),
        "ClippedSGD foreach": lambda: ours("foreach"),
        "ClippedSGD fused": lambda: ours("fused"),
    }
    if compiled:
        table["AdamW compiled"] = adamw_compiled
    return table


def qualify(table: dict, device: torch.device, steps: int) -> dict[str, dict]:
    results = {}
    for name, make in table.items():
        optimizer, step = make()
        synchronised_seconds(step, device)
        seconds = [synchronised_seconds(step, device) for _ in range(steps)]
        results[name] = {"median_ms": 1e3 * statistics.median(seconds), "min_ms": 1e3 * min(seconds)}
        results[name]["state_bytes"] = state_bytes(optimizer)
        print(
            f"{name:22s} min {results[name]['min_ms']:8.1f} ms   state {results[name]['state_bytes']:,} bytes",
            flush=True,
        )
        del optimizer, step
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=None, help="default: torch's own choice, all cores")
    parser.add_argument("--rounds", type=int, default=96, help="steps of each optimizer that are timed in turn")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds to wait for quiet rounds")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "optimizer_step.json")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)

    check_agreement(device)
    table = candidates(device, compiled=not arguments.no_compile)
    qualified = qualify(table, device, steps=3)
    modes_of_adamw = {name: entry["min_ms"] for name, entry in qualified.items() if name.startswith("AdamW")}
    rivals = [name for name, ms in modes_of_adamw.items() if ms < 2 * min(modes_of_adamw.values())]
    made = {name: table[name]() for name in [OURS, *rivals]}
    seconds, quiet = alternate(
        {name: step for name, (_, step) in made.items()}, device, arguments.rounds, arguments.patience
    )
    timed = {name: summary(values) for name, values in seconds.items()}
    fastest = min(rivals, key=lambda name: timed[name]["median_ms"])
    adamw, ours = timed[fastest], timed[OURS]
    result = {
        "question": "seconds of one optimizer step on BERT base's parameters; target: ratio at most 0.8",
        "fastest_adamw": fastest,
        "ratio_of_medians": ours["median_ms"] / adamw["median_ms"],
        "ratio_of_means": ours["mean_ms"] / adamw["mean_ms"],
        "alternating": timed,
        "steps_timed": len(seconds[OURS]),
        "machine_was_quiet": quiet,
        "each_mode": qualified,
        "parameters": sum(math.prod(shape) for shape in bert_base_shapes()),
        "tensors": len(bert_base_shapes()),
        **machine(device),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    for name, values in timed.items():
        print(
            f"{name:22s} median {values['median_ms']:7.1f} ms   quartiles {values['lower_quartile_ms']:.1f} "
            f"to {values['upper_quartile_ms']:.1f} ms   mean {values['mean_ms']:.1f} ms"
        )
    ratios = f"{result['ratio_of_medians']:.3f} (of means {result['ratio_of_means']:.3f})"
    print(f"ratio {ratios}; {len(seconds[OURS])} steps each, machine {'' if quiet else 'not '}quiet")


if __name__ == "__main__":
    main()
