"""Many copies of a small network, trained at once on different batches.

Shape suffixes: S = copies, B = examples, P = inputs of a layer, Q = its outputs.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from sibert.lab.pictures import Pictures
from sibert.ops.normalize import layer_norm

__all__ = ["Ensemble"]


class Ensemble:
    """Networks of ReLU layers, each normalised (then their scale does not matter) or not, and a head.

    Args:
        copies: S.
        widths: Of input, hidden layers and output.
        seed: Of the weights; copies begin with different ones.
        normalized: Whether layers are x -> N(W x) and the head is not trained; otherwise all is trained.
        same: Whether copies begin with the same weights instead.
    """

    def __init__(
        self, copies: int, widths: Sequence[int], seed: int = 0, normalized: bool = True, same: bool = False
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.normalized = normalized
        self.weights_SQP = []
        for inputs, outputs in pairwise(widths):
            w_SQP = torch.randn(1 if same else copies, outputs, inputs, generator=generator) * math.sqrt(2.0 / inputs)
            self.weights_SQP.append(w_SQP.expand(copies, -1, -1).clone())
        if normalized:  # one head for all, large enough for losses near zero
            head_QP = torch.randn(widths[-1], widths[-2], generator=torch.Generator().manual_seed(0))
            self.weights_SQP[-1] = head_QP.expand(copies, -1, -1).clone()
        self.trained = self.weights_SQP[:-1] if normalized else self.weights_SQP
        for w_SQP in self.trained:
            w_SQP.requires_grad_()

    def logits(self, x_SBP: Tensor) -> Tensor:
        """[S, B, classes]; x may have one copy for all."""
        x_SBP = x_SBP.expand(len(self.weights_SQP[0]), -1, -1)
        for w_SQP in self.weights_SQP[:-1]:
            x_SBP = torch.bmm(x_SBP, w_SQP.transpose(1, 2))
            x_SBP = (layer_norm(x_SBP) if self.normalized else x_SBP).relu()
        return torch.bmm(x_SBP, self.weights_SQP[-1].transpose(1, 2))

    def losses(self, x_SBP: Tensor, y_SB: Tensor, weight_SB: Tensor | None = None) -> Tensor:
        """Mean cross-entropy of each copy, [S]; examples may have weights."""
        logits = self.logits(x_SBP)
        y_SB = y_SB.expand(logits.shape[0], -1)
        each_SB = F.cross_entropy(logits.flatten(0, 1), y_SB.flatten(), reduction="none").view(logits.shape[:2])
        return (each_SB if weight_SB is None else each_SB * weight_SB).mean(1)

    def gradients(self, x_SBP: Tensor, y_SB: Tensor, weight_SB: Tensor | None = None) -> list[Tensor]:
        """Of each copy's loss in its own weights."""
        return list(torch.autograd.grad(self.losses(x_SBP, y_SB, weight_SB).sum(), self.trained))

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], lr: float, decay: float) -> None:
        """One step of SGD with weight decay."""
        for w_SQP, g_SQP in zip(self.trained, gradients, strict=True):
            w_SQP.mul_(1.0 - lr * decay).sub_(g_SQP, alpha=lr)

    def batch(self, data: Pictures, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A batch for each copy, drawn with replacement: [S, B, P] and [S, B]."""
        chosen_SB = torch.randint(len(data.train_B), (len(self.weights_SQP[0]), size), generator=generator)
        return data.train_BP[chosen_SB], data.train_B[chosen_SB]

    @torch.no_grad()
    def squared_norms(self) -> Tensor:
        """Of all trained weights of each copy, [S]."""
        return torch.stack([w_SQP.square().sum((1, 2)) for w_SQP in self.trained]).sum(0)

    def signal_and_total(self, data: Pictures, size: int, generator: torch.Generator) -> Tensor:
        """One estimate of G, and of G + N of a batch, of each copy from two batches, [2, S]; without bias."""
        pair = [self.gradients(*self.batch(data, size, generator)) for _ in range(2)]

        def product(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
            return torch.stack([(a * b).sum((1, 2)) for a, b in zip(one, other, strict=True)]).sum(0)

        return torch.stack((product(*pair), (product(pair[0], pair[0]) + product(pair[1], pair[1])) / 2.0))
