"""Converted models with plain SGD against the same models with AdamW: BERT, GPT-2, ViT and ResNet, tiny, on real data.

    python benchmarks/conversion_training.py [--workers 2]     # results/conversion_training.json

Text is a part of the standard library, byte by byte; images are scikit-learn's digits. The transformers begin with
two standard deviations of their weights, for conversion keeps the norms that a model has. Both sides have the same
initial function, batches, steps, cosine schedule and number of trials: six rates, then six variations at the best of
them, each with one seed; the best of all, by validation loss, is run with three. AdamW begins with 5 % of warm-up,
betas (0.9, 0.98) and weight decay 0.1 on matrices. ClippedSGD's rates are those of gains, biases and norms
(`rest_lr`), its variations those of the intrinsic learning rate, which begins at 0.002; for text, one of the six
leaves the tables of positions and segments plain (ViT's table is no embedding and always stays plain). Results are
kept as they come; a run that is there is not repeated.
"""

import argparse
import json
import math
import os
import statistics
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from alternation import machine
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from sibert.conversion import build_optimizer, make_scale_invariant

RATES = [5e-4 * 2**k for k in range(6)]
VARIATIONS: dict[str, list[dict[str, float]]] = {
    "AdamW": [
        {"weight_decay": 0.01},
        {"weight_decay": 0.3},
        {"warm_up": 0.0},
        {"warm_up": 0.2},
        {"b2": 0.95},
        {"b2": 0.999},
    ],
    "ClippedSGD": [{"intrinsic_lr": rate} for rate in (2.5e-4, 5e-4, 1e-3, 4e-3, 8e-3)],
}
SIXTH: dict[str, dict[str, float]] = {
    "BERT": {"intrinsic_lr": 1e-3, "plain_positions": 1},
    "GPT-2": {"intrinsic_lr": 1e-3, "plain_positions": 1},
    "ViT": {"intrinsic_lr": 1.6e-2},
    "ResNet": {"intrinsic_lr": 1.6e-2},
}
"""Of ClippedSGD's variations, the one that is not the same for all."""
POSITIONS = {
    "BERT": ("bert.embeddings.position_embeddings.*", "bert.embeddings.token_type_embeddings.*"),
    "GPT-2": ("transformer.wpe.*",),
}
SEEDS = (0, 1, 2)
STEPS = {"BERT": 2000, "GPT-2": 600, "ViT": 400, "ResNet": 300}
DEVIATIONS = (0.02, 0.07)
"""Of initial weights: what transformers takes for any width, and what is to width 64 as 0.02 to BERT-base's 768."""
MODELS = [f"{name} at {std}" for name in ("BERT", "GPT-2", "ViT") for std in DEVIATIONS] + ["ResNet"]
LENGTH, TEXT_BATCH, IMAGE_BATCH, MASK = 64, 32, 64, 256
TEXT = {
    "vocab_size": 257,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 256,
}
MODULES_OF_TEXT = (
    "argparse",
    "ast",
    "datetime",
    "decimal",
    "doctest",
    "inspect",
    "mailbox",
    "pdb",
    "tarfile",
    "typing",
)

Batch = dict[str, Tensor]
Trial = tuple[str, str, float, int, dict[str, float]]
"""Model, method, rate, seed, variation."""


def text() -> tuple[Tensor, Tensor]:
    """Bytes to train on and to validate on."""
    library = Path(os.__file__).parent
    files = [(library / f"{'_pydecimal' if name == 'decimal' else name}.py").read_bytes() for name in MODULES_OF_TEXT]
    parts = [torch.tensor(list(data)) for data in files]
    cuts = [len(part) * 9 // 10 for part in parts]
    return (
        torch.cat([part[:cut] for part, cut in zip(parts, cuts, strict=True)]),
        torch.cat([part[cut:] for part, cut in zip(parts, cuts, strict=True)]),
    )


def text_batch(data: Tensor, generator: torch.Generator, masked: bool, size: int = TEXT_BATCH) -> Batch:
    """Windows of the text; for masked language modelling 15 % of them hidden."""
    starts = torch.randint(len(data) - LENGTH, (size, 1), generator=generator)
    ids = data[starts + torch.arange(LENGTH)]
    if not masked:
        return {"input_ids": ids, "labels": ids}
    hidden = torch.rand(ids.shape, generator=generator) < 0.15
    return {"input_ids": ids.masked_fill(hidden, MASK), "labels": ids.masked_fill(~hidden, -100)}


def digits() -> tuple[Batch, Batch]:
    """1,797 images of 8 x 8, a fifth of them for validation."""
    loaded = load_digits()
    images = torch.tensor(loaded.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    labels = torch.tensor(loaded.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    kept, held = order[len(order) // 5 :], order[: len(order) // 5]
    return (
        {"pixel_values": images[kept], "labels": labels[kept]},
        {"pixel_values": images[held], "labels": labels[held]},
    )


def build(name: str) -> nn.Module:
    """A tiny model of the architecture, with the standard deviation of its initial weights."""
    kind, _, deviation = name.partition(" at ")
    if kind == "ResNet":
        sizes = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "num_channels": 1}
        return ResNetForImageClassification(ResNetConfig(**sizes, layer_type="basic", num_labels=10))
    initial = {"initializer_range": float(deviation)}
    if kind == "BERT":
        config = BertConfig(**TEXT, **initial, max_position_embeddings=LENGTH, hidden_dropout_prob=0.0)
        return BertForMaskedLM(config)
    if kind == "GPT-2":
        sizes = {"vocab_size": 257, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": LENGTH}
        tokens = {"bos_token_id": 0, "eos_token_id": 0}
        return GPT2LMHeadModel(GPT2Config(**sizes, **initial, **tokens, resid_pdrop=0.0, embd_pdrop=0.0))
    sizes = {key: value for key, value in TEXT.items() if key != "vocab_size"}
    images = {"image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10}
    return ViTForImageClassification(ViTConfig(**sizes, **initial, **images, hidden_dropout_prob=0.0))


def adamw(model: nn.Module, rate: float, weight_decay: float = 0.1, b2: float = 0.98) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, b2))


def run(name: str, method: str, rate: float, seed: int, options: dict[str, float]) -> float | None:
    """Validation loss after training; None where it diverged."""
    torch.manual_seed(seed)
    kind = name.partition(" at ")[0]
    model, steps = build(name), STEPS[kind]
    options = dict(options)
    warm_up = options.pop("warm_up", 0.05 if method == "AdamW" else 0.0)
    if method == "AdamW":
        optimizer = adamw(model, rate, **options)
    else:
        plain = POSITIONS[kind] if options.pop("plain_positions", 0) else ()
        make_scale_invariant(model, exclude=plain)
        optimizer = build_optimizer(model, rest_lr=rate, **({"intrinsic_lr": 2e-3} | options))
    first = max(1, round(warm_up * steps))

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / first) * 0.5 * (1 + math.cos(math.pi * step / steps))

    scheduler = LambdaLR(optimizer, factor)
    batches, validation = _data(kind, seed)
    for _ in range(steps):
        loss = model(**batches()).loss
        loss.backward()
        if method == "AdamW":
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        losses = [_loss(kind, model, batch) for batch in validation]
    mean = statistics.mean(losses)
    return mean if math.isfinite(mean) else None


def _loss(name: str, model: nn.Module, batch: Batch) -> float:
    if name in ("BERT", "GPT-2"):
        return float(model(**batch).loss)
    return float(F.cross_entropy(model(pixel_values=batch["pixel_values"]).logits, batch["labels"]))


def _data(name: str, seed: int) -> tuple[Callable[[], Batch], list[Batch]]:
    generator = torch.Generator().manual_seed(1000 + seed)
    if name in ("BERT", "GPT-2"):
        train, held = text()
        fixed = torch.Generator().manual_seed(0)
        validation = [text_batch(held, fixed, name == "BERT", 128) for _ in range(8)]
        return lambda: text_batch(train, generator, name == "BERT"), validation
    images, validation_images = digits()

    def batch() -> Batch:
        rows = torch.randint(len(images["labels"]), (IMAGE_BATCH,), generator=generator)
        return {key: value[rows] for key, value in images.items()}

    return batch, [validation_images]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=MODELS, choices=tuple(MODELS))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    path = Path(__file__).parent / "results" / "conversion_training.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"runs": {}}
    runs = result["runs"]

    def losses(trials: Iterable[Trial]) -> list[float]:
        trials = list(trials)
        missing = [trial for trial in trials if key(*trial) not in runs]
        with ProcessPoolExecutor(arguments.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for trial, loss in zip(missing, pool.map(run, *zip(*missing, strict=True)) if missing else (), strict=True):
                runs[key(*trial)] = loss
                result.update(machine(torch.device("cpu")))
                _write(path, result)
                print(f"{key(*trial)}: {loss}", flush=True)
        return [math.inf if runs[key(*trial)] is None else runs[key(*trial)] for trial in trials]

    def lowest(trials: list[Trial]) -> Trial:
        return min(zip(losses(trials), trials, strict=True), key=lambda pair: pair[0])[1]

    result["question"] = "validation loss of converted models with ClippedSGD against AdamW; target: at least as low"
    best_of_all = result.setdefault("best", {})
    for name in arguments.models:
        for method, variations in VARIATIONS.items():
            more = [*variations, SIXTH[name.partition(" at ")[0]]] if method == "ClippedSGD" else variations
            rate = lowest([(name, method, rate, SEEDS[0], {}) for rate in RATES])[2]
            options = lowest([(name, method, rate, SEEDS[0], options) for options in [{}, *more]])[4]
            found = losses((name, method, rate, seed, options) for seed in SEEDS)
            best = {"rate": rate, "options": options, "mean": statistics.mean(found), "losses": found}
            best_of_all[f"{name} {method}"] = best
            print(f"{name:7s} {method:10s} {best}", flush=True)
    _write(path, result)
    print(f"wrote {path}")


def key(name: str, method: str, rate: float, seed: int, options: dict[str, float]) -> str:
    """What a trial is called among the results."""
    changed = (f"{option} {value:g}" for option, value in options.items())
    return " ".join([name, method, f"{rate:g}", *changed, f"seed {seed}"])


def _write(path: Path, result: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=2) + "\n")
    os.replace(partial, path)


if __name__ == "__main__":
    main()
