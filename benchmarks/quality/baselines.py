"""The contestants that the library does not have: PreNorm BERT, the normalised transformer, and SinkGD.

Shape suffixes: B = batch, T = tokens, P = predicted positions, D = width, H = heads, K = head width, F = feed-forward
width, V = vocabulary.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from transformers import RobertaPreLayerNormConfig, RobertaPreLayerNormForMaskedLM
from transformers.modeling_outputs import MaskedLMOutput

from sibert.models.masked_lm_loss import gather_positions, masked_lm_loss


class PreNormBert(RobertaPreLayerNormForMaskedLM):
    """The PreNorm BERT of `transformers`, with the decoder at the masked positions only, as everywhere here."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, masked_positions: Tensor, **_: Any
    ) -> MaskedLMOutput:
        """Predict tokens; see `SibertForMaskedLM.forward`."""
        hidden_BTD = self.roberta_prelayernorm(input_ids, attention_mask=attention_mask).last_hidden_state
        logits_BPV = self.lm_head(gather_positions(hidden_BTD, masked_positions))
        return MaskedLMOutput(loss=masked_lm_loss(logits_BPV, labels), logits=logits_BPV)


def prenorm_config(length: int, **sizes: Any) -> RobertaPreLayerNormConfig:
    """RoBERTa counts positions from padding_idx + 1."""
    return RobertaPreLayerNormConfig(
        max_position_embeddings=length + 1, type_vocab_size=1, pad_token_id=0, layer_norm_eps=1e-12, **sizes
    )


def unit(x: Tensor) -> Tensor:
    """Divide by the norm along the last dimension."""
    return F.normalize(x, dim=-1)


class _Scale(nn.Module):
    """A learned vector: stored at `stored`, where Adam moves it at that scale, and used as if it began at `initial`."""

    def __init__(self, size: tuple[int, ...], initial: float, stored: float):
        super().__init__()
        self.weight = nn.Parameter(torch.full(size, stored))
        self.factor = initial / stored

    def forward(self) -> Tensor:
        return self.weight * self.factor


class _NormalizedLayer(nn.Module):
    def __init__(self, width: int, heads: int, feed_forward: int, layers: int):
        super().__init__()
        self.heads = heads
        stored = 1.0 / math.sqrt(width)
        self.query, self.key, self.value, self.output = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.inner, self.outer = nn.Linear(width, feed_forward, bias=False), nn.Linear(feed_forward, width, bias=False)
        self.query_key = _Scale((heads, 1, width // heads), 1.0, stored)
        self.feed_forward = _Scale((feed_forward,), 1.0, 1.0)
        self.attention_rate = _Scale((width,), 1.0 / layers, stored)
        self.feed_forward_rate = _Scale((width,), 1.0 / layers, stored)

    def forward(self, x_BTD: Tensor, mask: Tensor) -> Tensor:
        def heads(y_BTD: Tensor) -> Tensor:
            return y_BTD.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        scale = self.query_key()
        q_BHTK, k_BHTK = (unit(heads(p(x_BTD))) * scale for p in (self.query, self.key))
        v_BHTK = heads(self.value(x_BTD))
        mixed = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, mask, scale=math.sqrt(q_BHTK.shape[-1]))
        target_BTD = unit(self.output(mixed.transpose(1, 2).flatten(-2)))
        x_BTD = unit(x_BTD + self.attention_rate().abs() * (target_BTD - x_BTD))
        # Rows and inputs of norm 1 make products of size 1/sqrt(D), too small for GELU.
        h_BTF = self.inner(x_BTD) * self.feed_forward() * math.sqrt(x_BTD.shape[-1])
        target_BTD = unit(self.outer(F.gelu(h_BTF)))
        return unit(x_BTD + self.feed_forward_rate().abs() * (target_BTD - x_BTD))


class NormalizedBert(nn.Module):
    """An encoder after nGPT (arXiv 2410.01131, section 2): every vector along the width has norm 1.

    Differences from the paper, for everything else to be equal here: learned positions, GELU in place of SwiGLU, no
    causal mask, a bias of the decoder. `project` restores the norms of the matrices after each step.
    """

    def __init__(self, vocabulary: int, length: int, width: int, heads: int, feed_forward: int, layers: int):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.layers = nn.ModuleList([_NormalizedLayer(width, heads, feed_forward, layers) for _ in range(layers)])
        self.decoder = nn.Linear(width, vocabulary)
        self.config = None
        self.logit_scale = _Scale((vocabulary,), 1.0, 1.0 / math.sqrt(width))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=1.0 / math.sqrt(width))
        self.project()

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of token vectors."""
        return self.tokens

    def get_output_embeddings(self) -> nn.Linear:
        """The decoder."""
        return self.decoder

    @torch.no_grad()
    def project(self) -> None:
        """Bring every vector along the width back to norm 1."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2 and "weight" in name:
                dim = 0 if name.endswith(("output.weight", "outer.weight")) else 1
                parameter.div_(parameter.norm(dim=dim, keepdim=True))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, masked_positions: Tensor, **_: Any
    ) -> MaskedLMOutput:
        """Predict tokens; see `SibertForMaskedLM.forward`."""
        mask = attention_mask[:, None, None, :].bool()
        x_BTD = unit(self.tokens(input_ids) + self.positions.weight[: input_ids.shape[1]])
        for layer in self.layers:
            x_BTD = layer(x_BTD, mask)
        gathered_BPD = gather_positions(x_BTD, masked_positions)
        logits_BPV = F.linear(gathered_BPD, self.decoder.weight) * self.logit_scale() + self.decoder.bias
        return MaskedLMOutput(loss=masked_lm_loss(logits_BPV, labels), logits=logits_BPV)


class Projected(torch.optim.AdamW):
    """AdamW without decay, followed by a projection."""

    def __init__(self, params: Iterable[Any], lr: float, project: Callable[[], None]):
        super().__init__(params, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
        self.register_step_post_hook(lambda *_: project())


class SinkGD(Optimizer):
    """SinkGD (arXiv 2502.06742): rows and columns of the gradient are brought to equal norms in turn.

        X <- sqrt(n) diag(|rows|)^-1 X,    X <- sqrt(m) X diag(|columns|)^-1,    w <- w - lr X,

    for an m x n gradient. No state.

    Args:
        params: Matrices.
        lr: Root mean square of the change of an entry.
        iterations: Pairs of normalisations; the paper uses 5.
    """

    def __init__(self, params: Iterable[Any], lr: float, iterations: int = 5):
        super().__init__(params, {"lr": lr, "iterations": iterations})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Take one step."""
        for group in self.param_groups:
            for w in group["params"]:
                x, (m, n) = w.grad, w.shape
                for _ in range(group["iterations"]):
                    # What has no gradient stays.
                    x = x * (math.sqrt(n) / x.norm(dim=1, keepdim=True).clamp_min(1e-30))
                    x = x * (math.sqrt(m) / x.norm(dim=0, keepdim=True).clamp_min(1e-30))
                w.add_(x, alpha=-group["lr"])


def newton_schulz(gradient: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """The iteration of `torch.optim.Muon` in single precision: bfloat16 takes some CPUs ten times as long."""
    a, b, c = coefficients
    wide = gradient.shape[0] <= gradient.shape[1]
    x = gradient if wide else gradient.T
    x = x / x.norm().clamp_min(eps)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + torch.addmm(gram, gram, gram, beta=b, alpha=c) @ x
    return x if wide else x.T
