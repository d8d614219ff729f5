"""What does measuring rotation cost, sampled every 50 steps?

    python benchmarks/rotation_overhead.py            # writes benchmarks/results/rotation_overhead.json

Single steps of training take turns in one process, on the same batch of random tokens: plain; with a
`RotationRecorder` that is not to measure now; and with one that measures. Of fifty steps, 49 cost what the second costs
more than the first, and one what the third does; medians. (Whole blocks of fifty steps scatter by 3 % on a shared
machine, more than what is to be found.) The contestants and sizes are those of `training_step.py`. See `alternation.py`
for what happens on a machine that is not quiet.
"""

import argparse
import dataclasses
import json
import sys
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


NEVER = 10**9
KINDS = {"plain": None, "idle": NEVER, "measuring": 1}
"""Steps between measurements of each kind of step."""


def with_recorder(contestant: Contestant, every: int) -> Contestant:
    """The same, measured."""

    def optimizer(model: torch.nn.Module, rate: float) -> torch.optim.Optimizer:
        made = contestant.optimizer(model, rate)
        RotationRecorder(made, every=every)
        return made

    return dataclasses.replace(contestant, optimizer=optimizer)


def compare(name: str, size: tuple, device: torch.device, rounds: int, patience: float) -> dict[str, object]:
    """All three, in turn."""
    steps = {}
    for kind, every in KINDS.items():
        CONTESTANTS[kind] = CONTESTANTS[name] if every is None else with_recorder(CONTESTANTS[name], every)
        steps[kind] = training_step.make_step(kind, *size, device=str(device))
    for _ in range(2):  # a recorder that never measures has to get past the first step, which it does measure
        for step in steps.values():
            step()
    seconds, quiet = alternate(steps, device, rounds, patience)
    timed = {kind: summary(values) for kind, values in seconds.items()}
    plain, idle, measuring = (timed[kind]["median_ms"] for kind in KINDS)
    return {
        "overhead": ((EVERY - 1) * (idle - plain) + (measuring - plain)) / (EVERY * plain),
        "of_the_measuring_step": (measuring - plain) / (EVERY * plain),
        "alternating": timed,
        "steps_timed": len(seconds["plain"]),
        "machine_was_quiet": quiet,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=40, help="steps of each that are timed in turn")
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
            print(
                f"{label}, {name}: {100 * result['overhead']:+.2f} %, of which the measuring step "
                f"{100 * result['of_the_measuring_step']:+.2f} %, {result['steps_timed']} steps each, machine "
                f"{'' if result['machine_was_quiet'] else 'not '}quiet",
                flush=True,
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
