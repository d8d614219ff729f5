"""How does a step of pre-training grow with tokens and with layers?

    python benchmarks/growth.py            # writes benchmarks/results/growth.json
    python benchmarks/growth.py --smoke    # toy sizes, no file

Seconds of forward, backward and ClippedSGD at several numbers of sequences and of layers, in turn. A step with n times
the tokens, or layers, should take a fixed part and n times another: least squares give both and how much of the
variance they explain, and the exponent of a power law beside it. (`attention.py` has the growth of attention.) A gate
before: the loss of every model is within 10 % of log(vocabulary) at its first step, and finite after it.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from alternation import alternate, machine, summary
from pretraining_throughput import make_batches, sibert

FORMS = ("joint", "matrix")
SIZES = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024, "vocab_size": 8192}
LENGTH, LAYERS, SEQUENCES = 128, 4, 8
SWEEPS = {"tokens": [(LAYERS, count) for count in (2, 4, 8, 16, 32)], "layers": [(n, SEQUENCES) for n in (2, 4, 8, 16)]}
TOY = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 64}


def make_step(form: str, sizes: dict[str, int], layers: int, sequences: int, device: torch.device) -> Callable[[], Any]:
    """One step of training, which leaves its loss on the device."""
    torch.manual_seed(0)
    sizes = {**sizes, "num_hidden_layers": layers, "max_position_embeddings": LENGTH}
    model, optimizer = sibert(form, sizes)
    model.to(device).train()
    batch = make_batches(sizes, sequences, device)["in places"]

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        return loss.detach()

    check_losses(step().item(), step().item(), math.log(sizes["vocab_size"]))
    return step


def check_losses(first: float, second: float, level: float) -> None:
    """Refuse to time a model that does not train."""
    if not abs(first / level - 1.0) < 0.1 or not math.isfinite(second):
        raise SystemExit(f"the loss is {first} at first and then {second}, expected near {level:.2f}; not timed")


def fit(sizes: list[int], seconds: list[float]) -> dict[str, float]:
    """Of a line and of a power law."""
    line = statistics.linear_regression(sizes, seconds)
    logs = [math.log(size) for size in sizes], [math.log(second) for second in seconds]
    return {
        "fixed_ms": 1e3 * line.intercept,
        "ms_each": 1e3 * line.slope,
        "explained_variance": statistics.correlation(sizes, seconds) ** 2,
        "exponent": statistics.linear_regression(*logs).slope,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=8, help="steps of each that are timed in turn")
    parser.add_argument("--patience", type=float, default=20.0, help="seconds to wait for quiet rounds, for each sweep")
    parser.add_argument("--smoke", action="store_true", help="toy sizes, to see that it works; no file")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    forms: dict[str, Any] = {}
    for form in FORMS:
        forms[form] = {}
        for name, sweep in SWEEPS.items():
            steps = {
                str(count * LENGTH if name == "tokens" else layers): make_step(
                    form, TOY if arguments.smoke else SIZES, layers, count, device
                )
                for layers, count in (sweep[:3] if arguments.smoke else sweep)
            }
            seconds, quiet = alternate(steps, device, arguments.rounds, arguments.patience)
            medians = [statistics.median(values) for values in seconds.values()]
            found = fit([int(size) for size in steps], medians)
            forms[form][name] = {
                **found,
                "alternating": {size: summary(values) for size, values in seconds.items()},
                "machine_was_quiet": quiet,
            }
            print(
                f"SIBERT {form}, {name}: {found['fixed_ms']:.1f} ms + {found['ms_each']:.3f} ms each, "
                f"R^2 {found['explained_variance']:.4f}, exponent {found['exponent']:.2f}",
                flush=True,
            )
    if arguments.smoke:
        return
    name = "growth" if device.type == "cpu" else f"growth_{device.type}"
    path = Path(__file__).parent / "results" / f"{name}.json"
    question = "growth of a step of pre-training with tokens and with layers; expected: a line"
    where = f"{LAYERS} layers of width {SIZES['hidden_size']} and {SEQUENCES} x {LENGTH} tokens, if not varied"
    path.write_text(
        json.dumps({"question": question, "where": where, "forms": forms, **machine(device)}, indent=2) + "\n"
    )
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
