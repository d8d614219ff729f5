"""Does the data path keep up? Tokens a second that one core prepares, against those that a training step consumes.

    python benchmarks/data_path.py            # writes benchmarks/results/data_path.json
    python benchmarks/data_path.py --smoke    # few files, one small model, no file written

The data path is what runs in every step: from the tokenised cache through masking and collator to tensors, by the data
loader of `sibert pretrain`, without worker processes; for fine-tuning from tokenised rows to a batch. Tokens are those
of the text: padding does not count. The model is SIBERT with its optimizer, forward, backward and step, on the
same core. Both take turns, see `alternation.py`. Target: at least 5 times as many tokens. A gate before: batches have
their shapes, 15 % of the tokens are to be predicted, nothing but these was changed, and flat batches have the tokens of
padded ones.
"""

import argparse
import itertools
import json
import statistics
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from alternation import alternate, machine
from torch.utils.data import DataLoader

from sibert.data import EpochSampler, PreparedCorpus, collate, collate_flat, flatten, prepare_corpus
from sibert.training import PretrainRecipe, build_model, build_training_optimizer

TARGET = 5.0
LENGTH, BATCH, BATCHES = 128, 32, 16
SIZES = {"tiny": 32, "base": 4}
"""Sequences of a step by the size of the model."""


class Loading:
    """Loads some batches at each call, epoch after epoch, and counts the tokens."""

    def __init__(self, batches: Callable[[], Any]) -> None:
        self.stream = itertools.chain.from_iterable(batches() for _ in itertools.count())
        self.tokens: list[int] = []

    def __call__(self) -> None:
        """Load."""
        loaded = list(itertools.islice(self.stream, BATCHES))
        self.tokens.append(sum(int(one.get("attention_mask", one["input_ids"] >= 0).sum()) for one in loaded))


def gate(blocks: PreparedCorpus, pairs: PreparedCorpus) -> None:
    """Refuse to time a data path whose batches are wrong."""
    ids = torch.tensor(blocks.train[: 2 * BATCH]["input_ids"])
    for whole_word in (False, True):
        masked = blocks.masked_train(whole_word=whole_word)
        check_masking(collate([masked[0, k] for k in range(len(ids))]), ids)
    masked = pairs.masked_train()
    examples = [masked[0, k] for k in range(min(len(masked), BATCH))]
    padded, flat = collate(examples), collate_flat(examples)
    if not torch.equal(flat["input_ids"][0], padded["input_ids"][padded["attention_mask"] != 0]):
        raise SystemExit("a flat batch does not have the tokens of the padded one; not timed")


def check_masking(batch: dict[str, torch.Tensor], ids: torch.Tensor) -> None:
    """Refuse a batch of the wrong shape, with too many or few tokens to predict, or with others changed."""
    if batch["input_ids"].shape != (len(ids), LENGTH) or batch["labels"].shape != batch["masked_positions"].shape:
        raise SystemExit(f"wrong shapes: {[(name, tuple(value.shape)) for name, value in batch.items()]}; not timed")
    predicted = batch["labels"] >= 0
    share = (predicted.sum() / batch["attention_mask"].sum()).item()
    if not 0.13 < share < 0.16:  # 15 % of those that are not special
        raise SystemExit(f"a share of {share:.3f} of the tokens is to be predicted, expected 0.15; not timed")
    restored = batch["input_ids"].clone()
    restored[predicted.nonzero()[:, 0], batch["masked_positions"][predicted]] = batch["labels"][predicted]
    if not torch.equal(restored, ids):
        raise SystemExit("tokens that are not to be predicted were changed; not timed")


def loadings(blocks: PreparedCorpus, pairs: PreparedCorpus) -> dict[str, Loading]:
    """The data paths."""
    tokenizer, masked = blocks.tokenizer, {"blocks": blocks.masked_train(), "pairs": pairs.masked_train()}
    words = blocks.masked_train(whole_word=True)

    def loader(data: Any, collator: Callable[..., Any]) -> DataLoader[Any]:
        return DataLoader(data, batch_size=BATCH, sampler=EpochSampler(data), collate_fn=collator, drop_last=True)

    texts = [tokenizer.decode(row["input_ids"][: 8 + 7 * k % 100]) for k, row in enumerate(pairs.train.take(2048))]
    rows = [{"input_ids": ids, "labels": k % 2} for k, ids in enumerate(tokenizer(texts)["input_ids"])]
    return {
        "pre-training, blocks": Loading(lambda: loader(masked["blocks"], collate)),
        "pre-training, blocks, whole words": Loading(lambda: loader(words, collate)),
        "pre-training, pairs, flat": Loading(lambda: loader(masked["pairs"], collate_flat)),
        "fine-tuning, flat": Loading(lambda: DataLoader(rows, batch_size=BATCH, shuffle=True, collate_fn=flatten)),
    }


def training_step(size: str, blocks: PreparedCorpus) -> tuple[Callable[[], None], int]:
    """A step of pre-training, and its tokens."""
    recipe = PretrainRecipe(size=size, seq_length=LENGTH, steps=10_000)
    model = build_model(recipe, len(blocks.tokenizer), blocks.tokenizer.pad_token_id)
    optimizer, _ = build_training_optimizer(recipe, model)
    masked = blocks.masked_train()
    batch = collate([masked[0, k] for k in range(SIZES[size])])

    def step() -> None:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()

    return step, int(batch["attention_mask"].sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help="calls of each that are timed in turn")
    parser.add_argument("--patience", type=float, default=30.0, help="seconds to wait for quiet, for each size")
    parser.add_argument("--smoke", action="store_true", help="few files, one small model, no file written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cpu")
    library = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    data = [str(file) for file in library[:40]] if arguments.smoke else None
    options: dict[str, Any] = {"seq_length": LENGTH, "vocab_size": 1000 if arguments.smoke else 8192}
    if arguments.smoke:
        options["validation_fraction"] = 0.2
    blocks, pairs = (prepare_corpus(data, next_sentence=flag, **options) for flag in (False, True))
    gate(blocks, pairs)
    paths = loadings(blocks, pairs)
    result: dict[str, Any] = {"question": f"tokens a second of the data path, target {TARGET:.0f} times the model's"}
    for size in ("tiny",) if arguments.smoke else SIZES:
        step, tokens = training_step(size, blocks)
        for path in paths.values():
            path.tokens.clear()
        seconds, quiet = alternate({"model": step, **paths}, device, arguments.rounds, arguments.patience)
        model = tokens / statistics.median(seconds["model"])
        rates = {name: statistics.mean(path.tokens) / statistics.median(seconds[name]) for name, path in paths.items()}
        result[size] = {
            "model_tokens_per_second": model,
            "data_tokens_per_second": rates,
            "ratio": {name: rate / model for name, rate in rates.items()},
            "calls_timed": len(seconds["model"]),
            "machine_was_quiet": quiet,
        }
        print(f"{size}: the model consumes {model:,.0f} tokens/s on one core, machine {'' if quiet else 'not '}quiet")
        for name, rate in rates.items():
            print(f"  {name:36s} {rate:12,.0f} tokens/s   {rate / model:8.1f} times")
    if arguments.smoke:
        return
    path = Path(__file__).parent / "results" / "data_path.json"
    path.write_text(json.dumps({**result, **machine(device)}, indent=2) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
