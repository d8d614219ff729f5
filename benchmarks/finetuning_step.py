"""A step of fine-tuning, and what the optimizer keeps: BERT with AdamW, converted with ClippedSGD, and SIBERT.

    python benchmarks/finetuning_step.py              # writes benchmarks/results/finetuning_step.json

All take turns, step by step, in one process, on a batch of 16 x 128 random tokens with two labels; the size is BERT
base's with fewer layers. AdamW is torch's fused one. Bytes are those of the optimizer's state. See `alternation.py` for
what happens on a machine that is not quiet.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from alternation import alternate, machine, summary
from torch.optim import Optimizer
from transformers import BertConfig, BertForSequenceClassification

from sibert import conversion
from sibert.models import SibertConfig, SibertForSequenceClassification
from sibert.optim import ClippedSGD, Hybrid, param_groups
from sibert.training import optimizer_state_bytes

PEER = "BERT, AdamW"
BATCH, LENGTH, VOCABULARY = 16, 128, 30522


def runners(layers: int) -> dict[str, tuple[torch.nn.Module, Optimizer]]:
    """Models and their optimizers, as `sibert finetune` makes them."""
    sizes = {"vocab_size": VOCABULARY, "num_hidden_layers": layers}
    plain = BertForSequenceClassification(BertConfig(**sizes))
    found: dict[str, tuple[torch.nn.Module, Optimizer]] = {
        PEER: (plain, torch.optim.AdamW(plain.parameters(), lr=1e-5, fused=True))
    }
    for granularity in ("row", "matrix"):
        model = BertForSequenceClassification(BertConfig(**sizes))
        conversion.make_scale_invariant(model, granularity=granularity)
        optimizer = conversion.build_optimizer(model, intrinsic_lr=1e-4)
        found[f"BERT converted by {granularity}, ClippedSGD"] = (model, optimizer)
    sibert = SibertForSequenceClassification(SibertConfig(**sizes))
    groups = param_groups(sibert)
    invariant = [group for group in groups if group["scale_invariant"]]
    head = [group for group in groups if not group["scale_invariant"]]
    optimizers: list[Optimizer] = [ClippedSGD(invariant, intrinsic_lr=1e-4), torch.optim.AdamW(head, lr=1e-3)]
    found["SIBERT matrix, ClippedSGD"] = (sibert, Hybrid(optimizers))
    return found


def make_step(model: torch.nn.Module, optimizer: Optimizer) -> Callable[[], None]:
    """One step; AdamW's with the usual clipping of gradients."""
    model.train()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, VOCABULARY, (BATCH, LENGTH), generator=generator)
    labels = torch.randint(2, (BATCH,), generator=generator)

    def step() -> None:
        optimizer.zero_grad()
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss.backward()
        if isinstance(optimizer, torch.optim.AdamW):
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=24, help="steps of each that are timed in turn")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds to wait for quiet rounds")
    arguments = parser.parse_args()
    device = torch.device("cpu")
    built = runners(arguments.layers)
    seconds, quiet = alternate(
        {name: make_step(*pair) for name, pair in built.items()}, device, arguments.rounds, arguments.patience
    )
    timed = {name: summary(values) for name, values in seconds.items()}
    result = {
        "question": f"seconds of a step of fine-tuning and bytes of optimizer state, against {PEER}",
        "layers": arguments.layers,
        "ratio_of_medians": {name: one["median_ms"] / timed[PEER]["median_ms"] for name, one in timed.items()},
        "alternating": timed,
        "optimizer_state_bytes": {name: optimizer_state_bytes(optimizer) for name, (_, optimizer) in built.items()},
        "parameters": {name: sum(p.numel() for p in model.parameters()) for name, (model, _) in built.items()},
        "steps_timed": len(seconds[PEER]),
        "machine_was_quiet": quiet,
        **machine(device),
    }
    for name, one in timed.items():
        print(
            f"{name:38s} median {one['median_ms']:7.1f} ms   quartiles {one['lower_quartile_ms']:.1f} to "
            f"{one['upper_quartile_ms']:.1f} ms   ratio {result['ratio_of_medians'][name]:.3f}   "
            f"state {result['optimizer_state_bytes'][name] / 1e6:.1f} MB"
        )
    path = Path(__file__).parent / "results" / "finetuning_step.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
