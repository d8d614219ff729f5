"""How many tokens a second does pre-training of a model of BERT's base size take in, beside BERT?

    python benchmarks/pretraining_throughput.py                # writes benchmarks/results/pretraining_throughput.json
    python benchmarks/pretraining_throughput.py --device cuda  # ..._cuda.json: 64 sequences of 512, TF32 allowed
    python benchmarks/pretraining_throughput.py --all          # float32 tried, too
    python benchmarks/pretraining_throughput.py --smoke        # toy size, no file

The peer is `BertForMaskedLM` of transformers as a user gets it, with SDPA and fused AdamW; ours is what
`sibert pretrain` makes, with ClippedSGD. The peer sends all positions through the vocabulary's projection, ours those
that are predicted; so a second BERT has that change alone (`BertTwinForMaskedLM`, the baseline of `sibert pretrain
--model bert`). Whole steps take turns in one process: forward, backward, optimizer, on a
batch of random tokens of which 15 % are predicted, no dropout, all compiled as `--compile` does it, under bfloat16
autocast. A gate before: nobody drops anything, and all losses start within 10 % of log(vocabulary).

With --all: what are the peer and SIBERT matrix in float32, which was slower for both on a processor that multiplies
bfloat16? Each contestant counts by its faster precision.
Model operations: 6 for each weight of a matrix and token (of the head: and predicted position; BERT is credited with
those alone, too), and 12 T D a layer and token for attention.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from alternation import alternate, machine, summary
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel

from sibert.models import BertTwinForMaskedLM, SibertConfig, SibertForMaskedLM
from sibert.optim import build_optimizer
from sibert.training.pretrain import compiler_options

PEER = "BertForMaskedLM"
PREDICTED_ONLY = "the same, predicted positions only"
BASE = {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
TOY = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
PEAKS = {"H100": 989e12, "H200": 989e12}
"""Operations per second in bfloat16 without sparsity, of the data sheets (SXM)."""

IN_FLOAT32 = (PEER, "SIBERT matrix")
"""Who is tried in float32."""

WITHOUT_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

Made = tuple[PreTrainedModel, torch.optim.Optimizer]


def bert(kind: type[PreTrainedModel], sizes: dict[str, int]) -> Made:
    """BERT, with AdamW."""
    config = BertConfig(**sizes, **WITHOUT_DROPOUT)
    model = kind._from_config(config, attn_implementation="sdpa")
    return model, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)


def sibert(invariance: str, sizes: dict[str, int]) -> Made:
    """SIBERT, with the optimizer of `sibert pretrain`."""
    config = SibertConfig(**sizes, **WITHOUT_DROPOUT, invariance=invariance, type_vocab_size=0)
    model = SibertForMaskedLM(config)
    model.sibert.embeddings.one_gradient = invariance != "joint"
    return model, build_optimizer(model, intrinsic_lr=1e-3)


CONTESTANTS: dict[str, Callable[[dict[str, int]], Made]] = {
    PEER: lambda sizes: bert(BertForMaskedLM, sizes),
    PREDICTED_ONLY: lambda sizes: bert(BertTwinForMaskedLM, sizes),
    "SIBERT joint": lambda sizes: sibert("joint", sizes),
    "SIBERT matrix": lambda sizes: sibert("matrix", sizes),
}


def operations(sizes: dict[str, int], length: int) -> float:
    """Floating-point operations of a step for each token, forward and backward."""
    D, F, L = sizes["hidden_size"], sizes["intermediate_size"], sizes["num_hidden_layers"]
    predicted = max(1, round(0.15 * length)) / length
    matrices = L * (4 * D * D + 2 * D * F) + predicted * (D * D + D * sizes["vocab_size"])
    return 6.0 * matrices + 12.0 * L * length * D


def make_batches(sizes: dict[str, int], sequences: int, device: torch.device) -> dict[str, dict[str, torch.Tensor]]:
    """One batch in both forms: predicted positions by -100 at all others, and by their places."""
    generator = torch.Generator().manual_seed(0)
    length = sizes["max_position_embeddings"]
    shape = (sequences, length)
    ids = torch.randint(5, sizes["vocab_size"], shape, generator=generator)
    places = torch.rand(shape, generator=generator).argsort(dim=1)[:, : max(1, round(0.15 * length))].sort(dim=1).values
    targets = ids.gather(1, places)
    batches = {
        "everywhere": {"input_ids": ids, "labels": torch.full(shape, -100).scatter(1, places, targets)},
        "in places": {"input_ids": ids, "labels": targets, "masked_positions": places},
    }
    return {name: {key: value.to(device) for key, value in batch.items()} for name, batch in batches.items()}


def make_step(
    name: str, sizes: dict[str, int], sequences: int, device: torch.device, bfloat16: bool
) -> Callable[[], torch.Tensor]:
    """One step of training of a contestant of its own."""
    torch.manual_seed(0)
    model, optimizer = CONTESTANTS[name](sizes)
    model.to(device).train()
    if any(getattr(model.config, name) for name in WITHOUT_DROPOUT):
        raise SystemExit(f"{name} uses dropout, which others do not; not timed")
    compiled = torch.compile(model)
    batch = make_batches(sizes, sequences, device)["everywhere" if name == PEER else "in places"]

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            loss = compiled(**batch).loss
        loss.backward()
        optimizer.step()
        return loss.detach()

    level = math.log(sizes["vocab_size"])
    with compiler_options():  # the peer is faster so, too
        loss = step().item()
    if not abs(loss / level - 1.0) < 0.1:
        raise SystemExit(f"{name} does not start near {level:.2f} nats; not timed")
    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=4, help="steps of each that are timed in turn")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds to wait for quiet rounds")
    parser.add_argument("--all", action="store_true", help="float32 tried, too")
    parser.add_argument("--smoke", action="store_true", help="a toy size, to see that it works; no file")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    length, sequences = (32, 4) if arguments.smoke else (512, 64) if device.type == "cuda" else (128, 8)
    vocabulary = 1024 if arguments.smoke else 30522
    sizes = {**(TOY if arguments.smoke else BASE), "vocab_size": vocabulary, "max_position_embeddings": length}
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    precisions: dict[str, Any] = {}
    for precision in (*(["float32"] if arguments.all else []), "bfloat16 autocast"):
        torch.compiler.reset()
        names = IN_FLOAT32 if precision == "float32" else tuple(CONTESTANTS)
        steps = {name: make_step(name, sizes, sequences, device, precision != "float32") for name in names}
        seconds, quiet = alternate(steps, device, arguments.rounds, arguments.patience)
        precisions[precision] = {
            "alternating": {name: summary(values) for name, values in seconds.items()},
            "steps_timed": len(seconds[PEER]),
            "machine_was_quiet": quiet,
        }
        del steps
    tokens = sequences * length
    best = {
        name: max(
            (1e3 * tokens / found["alternating"][name]["median_ms"], precision)
            for precision, found in precisions.items()
            if name in found["alternating"]
        )
        for name in CONTESTANTS
    }
    result = {
        "question": "tokens per second of pre-training, each contestant at its faster precision; target against the "
        f"peer, {PEER}: 1.15 on a CPU, 1.3 on an H100",
        "sizes": sizes,
        "tokens_per_step": tokens,
        "tokens_per_second": {name: speed for name, (speed, _) in best.items()},
        "faster_precision": {name: precision for name, (_, precision) in best.items()},
        "speed_relative_to_peer": {name: speed / best[PEER][0] for name, (speed, _) in best.items()},
        "model_operations_per_second": {name: speed * operations(sizes, length) for name, (speed, _) in best.items()},
        "precisions": precisions,
        **machine(device),
    }
    if peak := next((peak for name, peak in PEAKS.items() if name in str(result["device"])), None):
        rates = result["model_operations_per_second"]
        result["model_flop_utilisation"] = {name: rate / peak for name, rate in rates.items()}
    for name, (speed, precision) in best.items():
        print(f"{name:36} {speed:9.0f} tokens/s in {precision:18} {speed / best[PEER][0]:.2f} of the peer")
    if arguments.smoke:
        return
    file = "pretraining_throughput" if device.type == "cpu" else f"pretraining_throughput_{device.type}"
    path = Path(__file__).parent / "results" / f"{file}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
