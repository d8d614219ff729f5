"""Which blocks of scores make attention fast? Sets `BLOCK` and `ROWS` of sibert.ops.relu_attention.blocked.

    python benchmarks/attention_blocks.py [--dtype bfloat16]    # prints, writes no file

Forward and backward at head width 64, 4 heads, 4096 tokens in all, with blocks of several shapes and SDPA in turn. That
blocks change nothing but rounding is tested in tests/ops.
"""

import argparse
import importlib

import torch
from alternation import alternate, summary
from torch.nn import functional as F

from sibert.ops import relu_attention

blocked = importlib.import_module("sibert.ops.relu_attention.blocked")
SHAPES = {
    "float32": ((724, 724), (512, 512), (256, 1024), (1024, 256), (1024, 384)),
    "bfloat16": ((1024, 1024), (724, 724), (512, 1024), (1024, 512), (1024, 256)),
}
"""Queries and keys of a block, of each thread."""


def compare(length: int, dtype: str, rounds: int) -> dict[str, float]:
    """Time of SDPA over that of each shape."""
    torch.manual_seed(0)
    shape = (4096 // length, 4, length, 64)
    inputs = [torch.randn(shape, dtype=getattr(torch, dtype), requires_grad=True) for _ in range(3)]
    gradient = torch.randn(shape, dtype=getattr(torch, dtype))

    def step(output: torch.Tensor) -> None:
        output.backward(gradient)
        for tensor in inputs:
            tensor.grad = None

    def ours(rows: int, keys: int) -> None:
        blocked.ROWS, blocked.BLOCK[getattr(torch, dtype)] = rows, rows * keys
        step(relu_attention(*inputs, backend="blocked")[0])

    steps = {f"{rows} x {keys}": lambda rows=rows, keys=keys: ours(rows, keys) for rows, keys in SHAPES[dtype]}
    steps["SDPA"] = lambda: step(F.scaled_dot_product_attention(*inputs))
    seconds, _ = alternate(steps, torch.device("cpu"), rounds, patience=30.0)
    medians = {name: summary(values)["median_ms"] for name, values in seconds.items()}
    return {name: medians["SDPA"] / median for name, median in medians.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=tuple(SHAPES), default="float32")
    parser.add_argument("--rounds", type=int, default=12, help="turns of each")
    arguments = parser.parse_args()
    for length in (512, 1024, 2048, 4096):
        speeds = compare(length, arguments.dtype, arguments.rounds)
        print(length, ", ".join(f"{name} {speed:.2f}" for name, speed in speeds.items()), flush=True)
