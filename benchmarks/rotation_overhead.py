"""What does measuring rotation cost, sampled every 50 steps?

    python benchmarks/rotation_overhead.py            # writes benchmarks/results/rotation_overhead.json

Fifty steps of training without and with a `RotationRecorder`, in turn, in one process, with the same batch of random
tokens; one of the fifty is measured. The contestants and sizes are those of `training_step.py`. Ratios are of medians,
with the quartiles of the ratio of neighbours. See `alternation.py` for what happens on a machine that is not quiet.
"""

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from alternation import alternate, machine, summary

sys.path.insert(0, str(Path(__file__).parent / "quality"))
import training_step
from contestants import CONTESTANTS, Contestant, Sizes

from sibert.dynamics import RotationRecorder

EVERY = 50
RUNNERS = ("sibert-joint", "sibert-matrix", "sibert-row")
SIZES = {"2 layers x 64, 16 x 32 tokens": (Sizes(2, 64, 2, 256), 1024, 32, 16), **training_step.SIZES}


def with_recorder(contestant: Contestant) -> Contestant:
    """The same, measured."""

    def optimizer(model: torch.nn.Module, rate: float) -> torch.optim.Optimizer:
        made = contestant.optimizer(model, rate)
        RotationRecorder(made, every=EVERY)
        return made

    return dataclasses.replace(contestant, optimizer=optimizer)


def make_block(name: str, size: tuple, device: str) -> Callable[[], None]:
    """EVERY steps of a contestant."""
    step = training_step.make_step(name, *size, device=device)

    def block() -> None:
        for _ in range(EVERY):
            step()

    return block


def compare(name: str, size: tuple, device: torch.device, rounds: int, patience: float) -> dict[str, object]:
    """Both, in turn."""
    CONTESTANTS["measured"] = with_recorder(CONTESTANTS[name])
    blocks = {kind: make_block(one, size, str(device)) for kind, one in (("plain", name), ("measured", "measured"))}
    seconds, quiet = alternate(blocks, device, rounds, patience)
    pairs = zip(seconds["measured"], seconds["plain"], strict=True)
    lower, median, upper = statistics.quantiles([one / other - 1.0 for one, other in pairs], n=4)
    timed = {kind: summary(values) for kind, values in seconds.items()}
    return {
        "overhead_of_medians": timed["measured"]["median_ms"] / timed["plain"]["median_ms"] - 1.0,
        "overhead_of_neighbours": {"lower_quartile": lower, "median": median, "upper_quartile": upper},
        "alternating": timed,
        "blocks_timed": len(seconds["plain"]),
        "machine_was_quiet": quiet,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=16, help="blocks of 50 steps of each that are timed in turn")
    parser.add_argument("--patience", type=float, default=600.0, help="seconds to wait for quiet rounds, for each pair")
    parser.add_argument("--smoke", action="store_true", help="the smallest size alone, to see that it works; no file")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    chosen = dict(list(SIZES.items())[:1]) if arguments.smoke else SIZES
    sizes: dict[str, dict[str, object]] = {}
    for label, size in chosen.items():
        sizes[label] = {}
        for name in RUNNERS[1:2] if arguments.smoke else RUNNERS:
            result = compare(name, size, device, arguments.rounds, arguments.patience)
            sizes[label][name] = result
            spread = result["overhead_of_neighbours"]
            print(
                f"{label}, {name}: {100 * result['overhead_of_medians']:+.2f} % (quartiles of neighbours "
                f"{100 * spread['lower_quartile']:+.2f} to {100 * spread['upper_quartile']:+.2f} %), "
                f"{result['blocks_timed']} blocks each, machine {'' if result['machine_was_quiet'] else 'not '}quiet"
            )
    if arguments.smoke:
        return
    question = f"overhead of a RotationRecorder that measures one of {EVERY} steps; target: below 1 %"
    name = "rotation_overhead" if device.type == "cpu" else f"rotation_overhead_{device.type}"
    path = Path(__file__).parent / "results" / f"{name}.json"
    path.write_text(json.dumps({"question": question, "sizes": sizes, **machine(device)}, indent=2) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
