"""A step of fine-tuning, and what the optimizer keeps: BERT with AdamW, converted with ClippedSGD, and SIBERT.

    python benchmarks/finetuning_step.py              # writes benchmarks/results/finetuning_step.json

All take turns, step by step, in one process, on a batch of 16 x 128 random tokens with two labels; the size is BERT
base's with fewer layers. AdamW is torch's fused one. Bytes are those of the optimizer's state, and, each in a process
of its own, the peak beyond what the imports take. See `alternation.py` for what happens on a machine that is not quiet.
"""

import argparse
import json
import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

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


def plain(sizes: dict[str, int]) -> tuple[torch.nn.Module, Optimizer]:
    """BERT."""
    model = BertForSequenceClassification(BertConfig(**sizes))
    return model, torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)


def converted(sizes: dict[str, int], granularity: Literal["row", "matrix"]) -> tuple[torch.nn.Module, Optimizer]:
    """BERT, made scale invariant."""
    model = BertForSequenceClassification(BertConfig(**sizes))
    conversion.make_scale_invariant(model, granularity=granularity)
    return model, conversion.build_optimizer(model, intrinsic_lr=1e-4)


def invariant(sizes: dict[str, int]) -> tuple[torch.nn.Module, Optimizer]:
    """SIBERT, with AdamW for its head."""
    model = SibertForSequenceClassification(SibertConfig(**sizes))
    groups = param_groups(model)
    own = [group for group in groups if group["scale_invariant"]]
    head = [group for group in groups if not group["scale_invariant"]]
    return model, Hybrid([ClippedSGD(own, intrinsic_lr=1e-4), torch.optim.AdamW(head, lr=1e-3)])


RUNNERS: dict[str, Callable[[dict[str, int]], tuple[torch.nn.Module, Optimizer]]] = {
    PEER: plain,
    "BERT converted by row, ClippedSGD": partial(converted, granularity="row"),
    "BERT converted by matrix, ClippedSGD": partial(converted, granularity="matrix"),
    "SIBERT matrix, ClippedSGD": invariant,
}
"""Models and their optimizers, as `sibert finetune` makes them."""


def peak_bytes(name: str, sizes: dict[str, int]) -> int:
    """Memory of three steps beyond that of the imports; for a process that has done nothing else."""

    def peak() -> int:
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = peak()
    step = make_step(*RUNNERS[name](sizes))
    for _ in range(3):
        step()
    return peak() - before


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
    sizes = {"vocab_size": VOCABULARY, "num_hidden_layers": arguments.layers}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        peaks = {name: pool.submit(peak_bytes, name, sizes).result() for name in RUNNERS}
    built = {name: build(sizes) for name, build in RUNNERS.items()}
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
        "peak_bytes_beyond_imports": peaks,
        "parameters": {name: sum(p.numel() for p in model.parameters()) for name, (model, _) in built.items()},
        "steps_timed": len(seconds[PEER]),
        "machine_was_quiet": quiet,
        **machine(device),
    }
    for name, one in timed.items():
        print(
            f"{name:38s} median {one['median_ms']:7.1f} ms   quartiles {one['lower_quartile_ms']:.1f} to "
            f"{one['upper_quartile_ms']:.1f} ms   ratio {result['ratio_of_medians'][name]:.3f}   "
            f"state {result['optimizer_state_bytes'][name] / 1e6:.1f} MB   peak {peaks[name] / 1e6:.0f} MB"
        )
    path = Path(__file__).parent / "results" / "finetuning_step.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
