"""From how many logits on is the loss faster by chunks? Sets `FEWEST_CHUNKS` of sibert.models.chunked_loss.

    python benchmarks/chunked_loss.py    # prints, writes no file

Cross-entropy of a decoder, forward and backward, with all logits at once and by chunks, in turn. A gate before: both
give the same loss.
"""

import math

import torch
from alternation import alternate, summary
from torch.nn import functional as F

from sibert.models.chunked_loss import LOGITS, chunked_cross_entropy

CASES = ((614, 4096, 128), (154, 30522, 768), (614, 30522, 768), (2458, 30522, 768))
"""Positions, vocabulary, width."""


def compare(positions: int, vocabulary: int, width: int, bfloat16: bool) -> str:
    """Medians of both, in words."""
    torch.manual_seed(0)
    hidden = torch.randn(positions, width, requires_grad=True)
    weight = torch.nn.Parameter(torch.randn(vocabulary, width) / math.sqrt(width))
    bias, labels = torch.nn.Parameter(torch.zeros(vocabulary)), torch.randint(0, vocabulary, (positions,))

    def whole() -> torch.Tensor:
        return F.cross_entropy(F.linear(hidden, weight, bias).float(), labels, reduction="sum")

    def chunked() -> torch.Tensor:
        return chunked_cross_entropy(hidden, weight, bias, labels)

    def step(loss_of) -> float:
        hidden.grad = weight.grad = bias.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = loss_of()
        loss.backward()
        return loss.item()

    if not math.isclose(step(whole), step(chunked), rel_tol=1e-2 if bfloat16 else 1e-5):
        raise SystemExit("the two losses differ; not timed")
    steps = {"whole": lambda: step(whole), "by chunks": lambda: step(chunked)}
    seconds, quiet = alternate(steps, torch.device("cpu"), rounds=8, patience=30.0)
    timed = ", ".join(f"{name} {summary(values)['median_ms']:.1f} ms" for name, values in seconds.items())
    chunks = positions * vocabulary / LOGITS
    precision = "bfloat16" if bfloat16 else "float32"
    return (
        f"{positions} positions, {vocabulary} tokens, width {width}, {precision}, {chunks:.1f} chunks: {timed}, "
        f"machine {'' if quiet else 'not '}quiet"
    )


if __name__ == "__main__":
    for case in CASES:
        for bfloat16 in (False, True):
            print(compare(*case, bfloat16), flush=True)
