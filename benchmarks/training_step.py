"""How long is one step of pre-training, forward, backward and optimizer, against BERT with fused AdamW?

    python benchmarks/training_step.py                # writes benchmarks/results/training_step.json

BERT, its PreNorm form (the peer) and ModernBERT with AdamW, and the three forms of SIBERT with ClippedSGD take turns,
step by step, in one process, with the same batch of random tokens; ratios are of medians. Two sizes: the one of the
quality study, and two layers of BERT base. See `alternation.py` for what happens on a machine that is not quiet.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from alternation import alternate, machine, summary

sys.path.insert(0, str(Path(__file__).parent / "quality"))
from contestants import CONTESTANTS, Sizes

from sibert.data import TokenFrequencies

PEER = "bert-prenorm-adamw"
RUNNERS = (PEER, "bert-postnorm-adamw", "bert-modern-adamw", "sibert-joint", "sibert-matrix", "sibert-row")
SIZES = {
    "4 layers x 128, 64 x 64 tokens": (Sizes(), 4096, 64, 64),
    "2 layers x 768, 8 x 128 tokens": (Sizes(2, 768, 12, 3072), 30522, 128, 8),
}


def make_step(name: str, sizes: Sizes, vocabulary: int, length: int, sequences: int, device: str) -> Callable[[], None]:
    """One training step of a contestant on a batch of its own."""
    torch.manual_seed(0)
    frequencies = TokenFrequencies(np.ones(vocabulary, dtype=np.int64), (0, 1, 2, 3), mask_id=4)
    corpus = SimpleNamespace(vocabulary=vocabulary, length=length, frequencies=frequencies)
    contestant = CONTESTANTS[name]
    model = contestant.model(corpus, sizes).to(device)
    optimizer = contestant.optimizer(model, contestant.rates[len(contestant.rates) // 2])
    masked = max(1, round(0.15 * length))
    places = torch.rand(sequences, length).argsort(dim=1)[:, :masked].sort(dim=1).values
    batch = {
        "input_ids": torch.randint(5, vocabulary, (sequences, length)),
        "attention_mask": torch.ones(sequences, length, dtype=torch.int64),
        "masked_positions": places,
        "labels": torch.randint(5, vocabulary, (sequences, masked)),
    }
    batch = {key: value.to(device) for key, value in batch.items()}

    def step() -> None:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        if contestant.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), contestant.max_grad_norm)
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=40, help="steps of each that are timed in turn")
    parser.add_argument("--patience", type=float, default=240.0, help="seconds to wait for quiet rounds, for each size")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    sizes = {}
    for label, size in SIZES.items():
        steps = {name: make_step(name, *size, device=arguments.device) for name in RUNNERS}
        seconds, quiet = alternate(steps, device, arguments.rounds, arguments.patience)
        timed = {name: summary(values) for name, values in seconds.items()}
        ratios = {name: values["median_ms"] / timed[PEER]["median_ms"] for name, values in timed.items()}
        sizes[label] = {
            "ratio_of_medians": ratios,
            "alternating": timed,
            "steps_timed": len(seconds[PEER]),
            "machine_was_quiet": quiet,
        }
        print(f"{label}: {len(seconds[PEER])} steps each, machine {'' if quiet else 'not '}quiet")
        for name, values in timed.items():
            print(
                f"{name:22s} median {values['median_ms']:7.1f} ms   quartiles {values['lower_quartile_ms']:.1f} to "
                f"{values['upper_quartile_ms']:.1f} ms   ratio {ratios[name]:.3f}"
            )
    result = {
        "question": f"seconds of a training step against {PEER}; target: ratio at most 1.05",
        "sizes": sizes,
        **machine(device),
    }
    name = "training_step" if device.type == "cpu" else f"training_step_{device.type}"
    path = Path(__file__).parent / "results" / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
