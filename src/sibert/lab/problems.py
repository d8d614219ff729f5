"""What the experiments are made on: the text of the standard library, and small networks (pictures: `pictures`).

Shape suffixes: B = examples, P = pixels, T = tokens.
"""

from collections.abc import Iterator, Sequence
from itertools import count, pairwise

import torch
from torch import Tensor, nn

from sibert.data import EpochSampler, PreparedCorpus, collate, prepare_corpus
from sibert.models import SibertConfig, SibertForMaskedLM
from sibert.ops.normalize import layer_norm

__all__ = ["NormalizedNet", "masked_text", "sibert", "text"]

CLASSES = 10
VOCABULARY, LENGTH = 512, 32


class NormalizedNet(nn.Module):
    """Layers x -> N(W x), ReLU between them, and a head that is not trained: invariant to the scale of every W.

    Args:
        widths: Of input, hidden layers and output.
        seed: Of the weights.
        frozen: Whether the head stays as it is; otherwise it is trained, and its scale matters.
    """

    def __init__(self, widths: Sequence[int] = (64, 32, 32, CLASSES), seed: int = 0, frozen: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pairs = list(pairwise(widths[:-1]))
            self.layers = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairs)
            self.head = nn.Linear(widths[-2], widths[-1], bias=False)
            if frozen:  # large enough for losses near zero
                nn.init.normal_(self.head.weight)
        self.head.requires_grad_(not frozen)

    def forward(self, x_BP: Tensor) -> Tensor:
        """Logits [B, classes]."""
        for layer in self.layers:
            x_BP = layer_norm(layer(x_BP)).relu()
        logits: Tensor = self.head(x_BP)
        return logits

    def matrices(self) -> list[nn.Parameter]:
        """The matrices whose scale does not matter."""
        return [layer.weight for layer in self.layers]  # type: ignore[misc]


def text() -> PreparedCorpus:
    """The standard library's text in sequences of 32 of 512 tokens; kept after the first time."""
    return prepare_corpus(vocab_size=VOCABULARY, seq_length=LENGTH)


def masked_text(corpus: PreparedCorpus, batch_size: int, seed: int = 0) -> Iterator[dict[str, Tensor]]:
    """Batches for masked language modelling, without end.

    Args:
        corpus: Of `text`.
        batch_size: Sequences of each.
        seed: Of order and masks.
    """
    masked = corpus.masked_train(seed=seed)
    sampler = EpochSampler(masked)  # type: ignore[arg-type]
    for epoch in count():
        sampler.set_epoch(epoch)
        batch = []
        for key in sampler:
            batch.append(masked[key])  # type: ignore[index]
            if len(batch) == batch_size:
                yield collate(batch)
                batch = []


def sibert(corpus: PreparedCorpus, invariance: str = "matrix", size: str = "nano", seed: int = 0) -> SibertForMaskedLM:
    """A small SIBERT without dropout.

    Args:
        corpus: Whose tokens it reads.
        invariance: "joint", "matrix" or "row".
        size: A key of `sibert.models.SIZES`.
        seed: Of the weights.
    """
    config = SibertConfig.of_size(
        size,
        invariance=invariance,
        vocab_size=len(corpus.tokenizer),
        max_position_embeddings=LENGTH,
        type_vocab_size=0,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SibertForMaskedLM(config)
