"""A GPT-2 of transformers with normalised-ReLU attention instead of softmax, trained on the bytes of a file.

The scale of queries and keys then changes nothing: not the output, and not what a step does to the model.
"""

import argparse
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GPT2Config

import sibert  # noqa: F401  (registers attn_implementation="relu_normalized")

torch.manual_seed(0)
steps = 20 if "--smoke" in sys.argv else 400
text = torch.tensor(list(Path(argparse.__file__).read_bytes()))  # a token is a byte
config = GPT2Config(vocab_size=256, n_positions=64, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
model = AutoModelForCausalLM.from_config(config, attn_implementation="relu_normalized")
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

for step in range(steps):
    ids_BT = text[torch.randint(len(text) - 64, (16, 1)) + torch.arange(64)]
    loss = model(input_ids=ids_BT, labels=ids_BT).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % (steps // 5) == 0:
        print(f"step {step:3}: loss {loss.item():.3f} nats a byte")

model.eval()
with torch.no_grad():
    ids_BT = text[torch.arange(64)][None]
    before = model(input_ids=ids_BT).logits
    for block in model.transformer.h:
        queries, keys, _ = block.attn.c_attn.weight.chunk(3, dim=1)
        queries_bias, keys_bias, _ = block.attn.c_attn.bias.chunk(3)
        for tensor in (queries, queries_bias):
            tensor.mul_(1e4)
        for tensor in (keys, keys_bias):
            tensor.mul_(1e-3)
    change = (model(input_ids=ids_BT).logits - before).abs().max().item()
    ids_BT[:, 40:] = 0
    seen = (model(input_ids=ids_BT).logits[:, :40] - before[:, :40]).abs().max().item()
print(f"queries times 1e4 and keys times 1e-3 change the logits by {change:.0e}; later bytes change them by {seen:.0e}")
