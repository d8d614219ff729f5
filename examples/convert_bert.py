"""A BERT folder of transformers, made scale invariant, fine-tuned with plain SGD and folded back to plain weights.

The task is to tell the lines of two modules of the standard library apart; a token is a byte.
"""

import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification
from transformers.utils.logging import disable_progress_bar

from sibert.conversion import build_optimizer, fold
from sibert.training import convert_folder, load_converted

disable_progress_bar()
torch.manual_seed(0)
steps = 20 if "--smoke" in sys.argv else 600
library = Path(tempfile.__file__).parent
lines = [
    (line.strip()[:48], label)
    for label, name in enumerate(("decimal", "turtle"))
    for line in (library / f"{'_pydecimal' if name == 'decimal' else name}.py").read_text().splitlines()
    if len(line.strip()) > 20
]
order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(0)).tolist()
ids_NT = torch.full((len(lines), 48), 256)  # 256 is padding
labels_N = torch.empty(len(lines), dtype=torch.long)
for row, index in enumerate(order):
    text, labels_N[row] = lines[index]
    data = list(text.encode("utf-8"))[:48]
    ids_NT[row, : len(data)] = torch.tensor(data)
held_out = slice(0, 500)


def batch(rows: torch.Tensor | slice) -> dict[str, torch.Tensor]:
    return {"input_ids": ids_NT[rows], "attention_mask": (ids_NT[rows] != 256).long(), "labels": labels_N[rows]}


def accuracy(model: torch.nn.Module) -> float:
    with torch.no_grad():
        return (model(**batch(held_out)).logits.argmax(-1) == labels_N[held_out]).float().mean().item()


with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
    config = BertConfig(vocab_size=257, max_position_embeddings=48, pad_token_id=256, **sizes)
    BertForSequenceClassification(config).save_pretrained(folder / "bert")  # stands for one that you have

    done = convert_folder(folder / "bert", folder / "converted")
    print(f"{len(done.names)} weights, {done.share:.1%} of the parameters, converted", end="; ")
    print(f"outputs differ by {done.difference:.0e}; proved for every row: {set(done.proved.values()) == {'exact'}}")

    model = load_converted(folder / "converted").train()
    optimizer = build_optimizer(model, intrinsic_lr=1 / steps)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        loss = model(**batch(torch.randint(500, len(lines), (32,)))).loss
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step % (steps // 5) == 0:
            print(f"step {step:3}: loss {loss.item():.3f}")
    model.eval()
    print(f"accuracy on held-out lines: {accuracy(model):.3f}")

    with torch.no_grad():
        before = model(**batch(held_out)).logits
    fold(model).save_pretrained(folder / "fine-tuned")
    plain = AutoModelForSequenceClassification.from_pretrained(folder / "fine-tuned")
    with torch.no_grad():
        difference = (plain(**batch(held_out)).logits - before).abs().max().item()
    print(f"folded, saved and opened by transformers: {type(plain).__name__}, logits differ by {difference:.0e}")
