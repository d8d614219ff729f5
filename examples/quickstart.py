"""SIBERT on the bytes of a file with plain SGD, and then every matrix at a scale of its own, from 1e-6 to 1e6."""

import argparse
import sys
from pathlib import Path

import torch

from sibert.models import SibertConfig, SibertForMaskedLM, size_of
from sibert.optim import build_optimizer, default_intrinsic_lr

torch.manual_seed(0)
steps = 20 if "--smoke" in sys.argv else 1000
text = torch.tensor(list(Path(argparse.__file__).read_bytes()))  # a token is a byte, 256 is [MASK]
config = SibertConfig(vocab_size=257, max_position_embeddings=64, type_vocab_size=0, **size_of("tiny"))
model = SibertForMaskedLM(config)
optimizer = build_optimizer(model, intrinsic_lr=default_intrinsic_lr(steps))

for step in range(steps):
    ids_BT = text[torch.randint(len(text) - 64, (32, 1)) + torch.arange(64)]
    hidden_BT = torch.rand(ids_BT.shape) < 0.15
    batch = {"input_ids": ids_BT.masked_fill(hidden_BT, 256), "labels": ids_BT.masked_fill(~hidden_BT, -100)}
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % (steps // 10) == 0:
        print(f"step {step:4}: loss {loss.item():.3f} nats a byte")

model.eval()
with torch.no_grad():
    before = model(**batch).loss.item()
    for power, group in enumerate(model.scale_invariant_groups().values()):
        for parameter in {parameter for _, parameter in group.members}:  # a matrix, and its bias if it has one
            parameter.mul_(10.0 ** (power % 13 - 6))
    print(f"loss {before:.6f}; with every matrix at another scale {model(**batch).loss.item():.6f}")
