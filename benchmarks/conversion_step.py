"""What does conversion cost? Forward and backward of BERT-base, 4,096 tokens, plain and converted, in turn.

    python benchmarks/conversion_step.py              # writes benchmarks/results/conversion_step.json

The optimizer is left out: `optimizer_step.py` compares those. See `alternation.py` for what happens on a machine that
is not quiet.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from alternation import alternate, machine, summary
from transformers import BertConfig, BertForMaskedLM

from sibert.conversion import make_scale_invariant

TARGET = 1.05
FORMS = ("plain", "row", "matrix")


def make_step(form: str, layers: int, device: torch.device) -> Callable[[], None]:
    """Forward and backward on a batch of 32 x 128 random tokens."""
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(num_hidden_layers=layers)).to(device).train()
    if form != "plain":
        make_scale_invariant(model, granularity=form)
    ids = torch.randint(5, 30000, (32, 128), device=device)
    labels = torch.where(torch.rand(ids.shape, device=device) < 0.15, ids, -100)

    def step() -> None:
        model.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=8, help="steps of each that are timed in turn")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds to wait for quiet rounds")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    steps = {form: make_step(form, arguments.layers, device) for form in FORMS}
    seconds, quiet = alternate(steps, device, arguments.rounds, arguments.patience)
    timed = {form: summary(values) for form, values in seconds.items()}
    ratios = {form: values["median_ms"] / timed["plain"]["median_ms"] for form, values in timed.items()}
    for form, values in timed.items():
        print(
            f"{form:8s} median {values['median_ms']:8.1f} ms   quartiles {values['lower_quartile_ms']:.1f} to "
            f"{values['upper_quartile_ms']:.1f} ms   ratio {ratios[form]:.3f}"
        )
    result = {
        "question": f"forward and backward of BERT-base at 4,096 tokens; target: ratio at most {TARGET}",
        "layers": arguments.layers,
        "ratio_of_medians": ratios,
        "alternating": timed,
        "steps_timed": len(seconds["plain"]),
        "machine_was_quiet": quiet,
        **machine(device),
    }
    name = "conversion_step" if device.type == "cpu" else f"conversion_step_{device.type}"
    path = Path(__file__).parent / "results" / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
