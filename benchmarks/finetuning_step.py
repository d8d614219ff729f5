"""A step of fine-tuning, and what the optimizer keeps: BERT with AdamW, converted with ClippedSGD, and SIBERT.

    python benchmarks/finetuning_step.py              # writes benchmarks/results/finetuning_step.json
    python benchmarks/finetuning_step.py --smoke      # one narrow layer, no file written

All take turns, step by step, in one process, on a batch of 16 x 128 random tokens with two labels; the size is BERT
base's with fewer layers. AdamW is torch's fused one. Bytes are those of the optimizer's state, and, each in a process
of its own, the peak beyond what the imports take. See `alternation.py` for what happens on a machine that is not quiet.

Real rows are shorter. A second table is of rows of the docstrings task (`sibert finetune --task docstrings`), cut at
128 tokens of a WordPiece vocabulary of their own, four batches of 16 at a time: padded to the longest row of a batch
drawn at random, as `transformers.Trainer` does by default; the same rows in batches of like lengths; and flat, without
padding, for SIBERT. Before anything is timed, SIBERT's flat loss has to be its padded one.
"""

import argparse
import itertools
import json
import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from alternation import alternate, machine, summary
from torch.optim import Optimizer
from transformers import BertConfig, BertForSequenceClassification

from sibert import conversion
from sibert.data import flatten, train_tokenizer
from sibert.evaluation.docstrings import docstring_rows
from sibert.models import SibertConfig, SibertForSequenceClassification
from sibert.optim import ClippedSGD, Hybrid, param_groups
from sibert.training import optimizer_state_bytes

PEER = "BERT, AdamW"
OURS = "SIBERT matrix, ClippedSGD"
BATCH, LENGTH, VOCABULARY = 16, 128, 30522
BATCHES = 4
"""Of rows of different lengths, that a timed call trains on."""


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
    OURS: invariant,
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


def train_on(model: torch.nn.Module, optimizer: Optimizer, batch: dict[str, Any]) -> None:
    """Take one step; AdamW's with the usual clipping of gradients."""
    optimizer.zero_grad()
    model(**batch).loss.backward()
    if isinstance(optimizer, torch.optim.AdamW):
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def make_step(model: torch.nn.Module, optimizer: Optimizer) -> Callable[[], None]:
    """One step on full rows."""
    model.train()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, VOCABULARY, (BATCH, LENGTH), generator=generator)
    labels = torch.randint(2, (BATCH,), generator=generator)
    return partial(
        train_on, model, optimizer, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    )


def docstring_ids(most: int | None = None) -> list[dict[str, Any]]:
    """Rows of the docstrings task in random order, with labels."""
    rows = docstring_rows()["train"][:most]
    texts = [str(row.values["text"]) for row in rows]
    tokenizer = train_tokenizer(lambda: iter(texts), VOCABULARY)
    ids = tokenizer(texts, truncation=True, max_length=LENGTH)["input_ids"]
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0)).tolist()
    return [{"input_ids": ids[k], "labels": int(rows[k].values["label"] == "value")} for k in order]


def pad(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch as wide as its longest row."""
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    return {
        "input_ids": torch.nn.utils.rnn.pad_sequence(ids, batch_first=True),
        "attention_mask": torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


def ragged_steps(sizes: dict[str, int], rows: list[dict[str, Any]]) -> dict[str, Callable[[], None]]:
    """Some steps at each call, on the same rows for all: padded as they come, padded by length, flat."""
    call = BATCH * BATCHES
    parts = [rows[k : k + call] for k in range(0, len(rows) - call + 1, call)]
    sorted_parts = [sorted(part, key=lambda row: len(row["input_ids"])) for part in parts]
    ways: dict[str, tuple[str, list[list[dict[str, Any]]], Callable[[list[dict[str, Any]]], dict[str, Any]]]] = {
        f"{PEER}, padded": (PEER, parts, pad),
        f"{PEER}, padded, by length": (PEER, sorted_parts, pad),
        "SIBERT, padded": (OURS, parts, pad),
        "SIBERT, padded, by length": (OURS, sorted_parts, pad),
        "SIBERT, flat": (OURS, parts, flatten),
        "SIBERT, flat, by length": (OURS, sorted_parts, flatten),
    }
    built = {name: RUNNERS[name](sizes) for name in (PEER, OURS)}
    model = built[OURS][0].eval()
    flat, padded = (model(**make(parts[0][:BATCH])).loss.item() for make in (flatten, pad))
    if abs(flat - padded) > 1e-4 * abs(padded):
        raise SystemExit(f"the loss of a flat batch is {flat}, of the padded one {padded}: nothing is timed")

    def steps(
        name: str, several: list[list[dict[str, Any]]], make: Callable[..., dict[str, Any]]
    ) -> Callable[[], None]:
        model, optimizer = built[name]
        model.train()
        turn = itertools.cycle(several)

        def call() -> None:
            part = next(turn)
            for begin in range(0, len(part), BATCH):
                train_on(model, optimizer, make(part[begin : begin + BATCH]))

        return call

    return {name: steps(*way) for name, way in ways.items()}


def ragged(sizes: dict[str, int], rounds: int, patience: float, most: int | None = None) -> dict[str, Any]:
    """Time rows of different lengths; all, or at most so many."""
    rows = docstring_ids(most)
    lengths = torch.tensor([len(row["input_ids"]) for row in rows], dtype=torch.float64)
    seconds, quiet = alternate(ragged_steps(sizes, rows), torch.device("cpu"), rounds, patience)
    timed = {name: summary(values) for name, values in seconds.items()}
    peer = timed[f"{PEER}, padded"]["median_ms"]
    for name, one in timed.items():
        print(f"{name:38s} median {one['median_ms']:7.1f} ms   {peer / one['median_ms']:.2f} times as fast as the peer")
    return {
        "question": f"seconds of {BATCHES} steps on {BATCH} docstrings each; target: flat 1.3 times as fast",
        "lengths": {
            "mean": lengths.mean().item(),
            "quartiles": lengths.quantile(torch.tensor([0.25, 0.5, 0.75]).double()).tolist(),
        },
        "times_as_fast": {name: peer / one["median_ms"] for name, one in timed.items()},
        "alternating": timed,
        "calls_timed": len(seconds[f"{PEER}, padded"]),
        "machine_was_quiet": quiet,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8, help="steps of each that are timed in turn")
    parser.add_argument("--patience", type=float, default=30.0, help="seconds to wait for quiet rounds")
    parser.add_argument("--smoke", action="store_true", help="one narrow layer, to see that it works; no file")
    arguments = parser.parse_args()
    device = torch.device("cpu")
    sizes = {"vocab_size": VOCABULARY, "num_hidden_layers": arguments.layers}
    if arguments.smoke:
        sizes |= {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128}
        ragged(sizes, 4, 0.0, most=128)
        return
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
        "ragged": ragged(sizes, max(4, arguments.rounds // 2), arguments.patience),
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
