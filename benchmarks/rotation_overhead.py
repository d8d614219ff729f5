"""What does measuring rotation cost, sampled every 50 steps?

    python benchmarks/rotation_overhead.py            # writes benchmarks/results/rotation_overhead.json

Single steps of one training run, on the same batch of random tokens, take turns in being measured by a
`RotationRecorder` and not; medians of both. One of fifty steps costs what the one costs more than the other; in the
other 49 the recorder counts, which takes microseconds. (Blocks of fifty steps scatter by 3 % on a shared machine, and
so do two copies of one model: more than what is to be found.) The contestants and sizes are those of
`training_step.py`. See `alternation.py` for what happens on a machine that is not quiet.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from alternation import alternate, machine, summary, synchronised_seconds

sys.path.insert(0, str(Path(__file__).parent / "quality"))
import training_step
from contestants import CONTESTANTS, Sizes

from sibert.dynamics import RotationRecorder

EVERY = 50
FEWEST_ROUNDS, MOST_ROUNDS = 16, 1000
RUNNERS = ("sibert-joint", "sibert-matrix", "sibert-row")
SIZES = {"2 layers x 64, 16 x 32 tokens": (Sizes(2, 64, 2, 256), 1024, 32, 16), **training_step.SIZES}

NEVER = 10**9


def make_steps(name: str, size: tuple, device: torch.device) -> dict[str, Callable[[], None]]:
    """A step that the recorder measures, and one that it does not, of the same run."""
    contestant, recorders = CONTESTANTS[name], []

    def optimizer(model: torch.nn.Module, rate: float) -> torch.optim.Optimizer:
        made = contestant.optimizer(model, rate)
        recorders.append(RotationRecorder(made))
        return made

    CONTESTANTS["recorded"] = dataclasses.replace(contestant, optimizer=optimizer)
    step = training_step.make_step("recorded", *size, device=str(device))

    def every(steps: int) -> None:
        recorders[0].every = steps
        step()

    every(1)  # the first step, which is always measured
    return {"plain": lambda: every(NEVER), "measured": lambda: every(1)}


def compare(name: str, size: tuple, device: torch.device, seconds_each: float, patience: float) -> dict[str, object]:
    """Both, in turn, for about so many seconds each."""
    steps = make_steps(name, size, device)
    steps["plain"]()
    rounds = round(seconds_each / synchronised_seconds(steps["plain"], device))
    seconds, quiet = alternate(steps, device, min(MOST_ROUNDS, max(FEWEST_ROUNDS, rounds)), patience)
    timed = {kind: summary(values) for kind, values in seconds.items()}
    return {
        "overhead": (timed["measured"]["median_ms"] / timed["plain"]["median_ms"] - 1.0) / EVERY,
        "alternating": timed,
        "steps_timed": len(seconds["plain"]),
        "machine_was_quiet": quiet,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=10.0, help="time for each kind of step, about")
    parser.add_argument("--patience", type=float, default=600.0, help="seconds to wait for quiet rounds, for each pair")
    parser.add_argument("--smoke", action="store_true", help="the smallest size alone, to see that it works; no file")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    chosen = dict(list(SIZES.items())[:1]) if arguments.smoke else SIZES
    sizes: dict[str, dict[str, object]] = {}
    for label, size in chosen.items():
        sizes[label] = {}
        for name in RUNNERS[1:2] if arguments.smoke else RUNNERS:
            result = compare(name, size, device, arguments.seconds, arguments.patience)
            sizes[label][name] = result
            print(
                f"{label}, {name}: {100 * result['overhead']:+.2f} %, {result['steps_timed']} steps each, machine "
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
