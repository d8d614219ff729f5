"""Who competes: a model, an optimizer, and the rates to try. Everything else is equal.

AdamW, LAMB, Muon, Adafactor and SinkGD warm up during the first tenth of a run and clip gradients at norm 1, as is
customary for BERT; SGD, ClippedSGD and nGPT's Adam do neither. All rates are multiplied by a cosine that ends at 0.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from baselines import NormalizedBert, PreNormBert, Projected, SinkGD, newton_schulz, prenorm_config
from corpus import Corpus
from torch import nn
from torch.optim import Optimizer
from transformers import BertConfig

from sibert.models import (
    BertTwinForMaskedLM,
    ModernBertTwinForMaskedLM,
    SibertConfig,
    SibertForMaskedLM,
    initialize_from_frequencies,
    modern_bert_config,
)
from sibert.optim import ClippedSGD, Hybrid, InvariantGroup, Lamb, build_optimizer

BETAS = (0.9, 0.98)
MASK_RATE = 0.15
WEIGHT_DECAY = 0.1


@dataclass(frozen=True)
class Sizes:
    """Sizes of an encoder; the defaults have 0.8 M parameters without embeddings."""

    num_hidden_layers: int = 4
    hidden_size: int = 128
    num_attention_heads: int = 4
    intermediate_size: int = 512


@dataclass(frozen=True)
class Contestant:
    """One row of the table.

    Attributes:
        label: Its name in tables.
        model: Makes the model, initialised.
        optimizer: Makes the optimizer for a rate.
        rates: The grid of the search.
        warmup_share: Part of the run during which the rate rises.
        max_grad_norm: Absolute clipping; None = none.
        model_options: Names of the options that are the model's; others are the optimizer's.
        schedule: How the rate falls after warm-up.
    """

    label: str
    model: Callable[..., nn.Module]
    optimizer: Callable[..., Optimizer]
    rates: tuple[float, ...]
    warmup_share: float = 0.0
    max_grad_norm: float | None = None
    model_options: tuple[str, ...] = ()
    schedule: str = "cosine"

    def take_model_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """Take out of some options those that are the model's."""
        return {name: options.pop(name) for name in self.model_options if name in options}


def _shape(corpus: Corpus, sizes: Sizes) -> dict[str, Any]:
    return {"vocab_size": corpus.vocabulary, **vars(sizes)}


def _start_at_frequencies(model: nn.Module, corpus: Corpus) -> nn.Module:
    """Begin with the unigram distribution, all contestants alike; and SIBERT's token rows at norms by their frequency.

    The latter is part of the finer forms as `sibert pretrain` trains them; the ablation `equal_rows` goes without it.
    """
    initialize_from_frequencies(model, corpus.frequencies.log_targets(), corpus.frequencies.inputs(MASK_RATE))
    return model


def postnorm(corpus: Corpus, sizes: Sizes) -> nn.Module:
    """BERT as it was published: PostNorm, GELU, tied decoder."""
    config = BertConfig(
        **_shape(corpus, sizes),
        max_position_embeddings=corpus.length,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return _start_at_frequencies(BertTwinForMaskedLM(config), corpus)


def prenorm(corpus: Corpus, sizes: Sizes) -> nn.Module:
    """BERT with the normalisation at the beginning of each branch."""
    config = prenorm_config(
        corpus.length, **_shape(corpus, sizes), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    return _start_at_frequencies(PreNormBert(config), corpus)


def modern(corpus: Corpus, sizes: Sizes) -> nn.Module:
    """ModernBERT: PreNorm, rotary positions, gated feed-forward layers, no biases."""
    config = modern_bert_config(max_position_embeddings=corpus.length, pad_token_id=0, **_shape(corpus, sizes))
    return _start_at_frequencies(ModernBertTwinForMaskedLM(config), corpus)


def normalized(corpus: Corpus, sizes: Sizes) -> nn.Module:
    """An nGPT-style encoder."""
    model = NormalizedBert(
        corpus.vocabulary,
        corpus.length,
        sizes.hidden_size,
        sizes.num_attention_heads,
        sizes.intermediate_size,
        sizes.num_hidden_layers,
    )
    return _start_at_frequencies(model, corpus)


def sibert(invariance: str) -> Callable[..., nn.Module]:
    """SIBERT at a granularity of invariance."""

    def make(corpus: Corpus, sizes: Sizes, equal_rows: bool = False) -> nn.Module:
        config = SibertConfig(
            **_shape(corpus, sizes),
            max_position_embeddings=corpus.length,
            type_vocab_size=0,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            invariance=invariance,
        )
        model = _start_at_frequencies(SibertForMaskedLM(config), corpus)
        if equal_rows:
            with torch.no_grad():
                rows = model.get_input_embeddings().weight
                rows.div_(rows.norm(dim=1, keepdim=True))
        return model

    return make


def _split(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Matrices, which decay, and vectors, which do not."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    return matrices, [p for p in model.parameters() if p.dim() < 2]


def _hidden(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Matrices of the hidden layers, and everything else: embeddings, decoder and vectors."""
    ends = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    ends |= {id(p) for name, p in model.named_parameters() if "embeddings" in name}
    hidden = [p for p in model.parameters() if p.dim() == 2 and id(p) not in ends]
    chosen = {id(p) for p in hidden}
    return hidden, [p for p in model.parameters() if id(p) not in chosen]


def adamw(
    model: nn.Module, rate: float, weight_decay: float = WEIGHT_DECAY, b2: float = BETAS[1], lr_factor: float = 1.0
) -> Optimizer:
    """AdamW as BERT's successors use it. `lr_factor` leaves the product of learning rate and weight decay alone."""
    matrices, vectors = _split(model)
    groups: list[Mapping[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    rate, weight_decay = rate * lr_factor, weight_decay / lr_factor
    return torch.optim.AdamW(groups, lr=rate, betas=(BETAS[0], b2), weight_decay=weight_decay, fused=True)


def lamb(model: nn.Module, rate: float, weight_decay: float = 0.01) -> Optimizer:
    """LAMB, Algorithm 2 of its paper."""
    matrices, vectors = _split(model)
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return Lamb(groups, lr=rate, betas=(0.9, 0.999), weight_decay=weight_decay)


def muon(
    model: nn.Module, rate: float, weight_decay: float = WEIGHT_DECAY, b2: float = BETAS[1], momentum: float = 0.95
) -> Optimizer:
    """Muon for the hidden matrices, by the size of update that AdamW would have; AdamW at the same rate for the rest.

    That rest, tables and vectors, does not decay. Without momentum, steps are polar factors of the gradients.
    """
    hidden, rest = _hidden(model)
    if not hidden[0].is_cuda:
        torch.optim._muon._zeropower_via_newtonschulz = newton_schulz
    muon = torch.optim.Muon(
        hidden, lr=rate, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"
    )
    return Hybrid([muon, torch.optim.AdamW(rest, lr=rate, betas=(BETAS[0], b2), weight_decay=0.0)])


def adafactor(model: nn.Module, rate: float) -> Optimizer:
    """Adafactor of torch: the rate is relative to the root mean square of a matrix, and 1 / sqrt(step) at most."""
    return torch.optim.Adafactor(model.parameters(), lr=rate, eps=(None, 1e-3), d=1.0)


def sgd(model: nn.Module, rate: float, lr_factor: float = 1.0) -> Optimizer:
    """Plain SGD."""
    return torch.optim.SGD(model.parameters(), lr=rate * lr_factor)


def sinkgd(model: nn.Module, rate: float) -> Optimizer:
    """SinkGD for the hidden matrices, at 0.05 times the rate; AdamW for embeddings, decoder and vectors.

    As its authors use it, weight decay 0 included.
    """
    hidden, rest = _hidden(model)
    return Hybrid([SinkGD(hidden, lr=0.05 * rate), torch.optim.AdamW(rest, lr=rate, betas=BETAS, weight_decay=0.0)])


def projected_adam(model: NormalizedBert, rate: float) -> Optimizer:
    """Adam, and matrices brought back to the sphere after each step."""
    return Projected(model.parameters(), lr=rate, project=model.project)


def _is_table(group: str) -> bool:
    return "embeddings" in group


def clipped_sgd(
    model: SibertForMaskedLM,
    rate: float,
    one_group: bool = False,
    table_rows: bool = False,
    clip: float | None = 2.0,
    two_sided: bool | None = None,
    table_rate: float = 1.0,
    lr_factor: float = 1.0,
    trunk_lr_factor: float = 1.0,
    momentum: float = 0.0,
) -> Optimizer:
    """What `sibert pretrain` uses: ClippedSGD in intrinsic mode. The options are for ablation.

    Args:
        model: SIBERT.
        rate: Intrinsic learning rate.
        one_group: All matrices as one vector: the model stays what it is, but its rotation is not balanced.
        table_rows: Each row of a table as a vector of its own.
        clip: As for `ClippedSGD`.
        two_sided: As for `build_optimizer`.
        table_rate: Intrinsic learning rate of tables, relative to the other matrices.
        lr_factor: After the first step, which calibrates eta, multiply eta and divide lambda: a wrong guess of the
            learning rate at the same eta lambda, or, the same thing, parameters that are wrong by its square root.
        trunk_lr_factor: That, for all matrices but the tables.
        momentum: If not 0, each group steps by the exponential mean of its gradients with this factor, which is state
            of four bytes a parameter: no headline either.

    Returns:
        The optimizer.
    """
    groups = model.scale_invariant_groups()
    if one_group:
        groups = {"all": InvariantGroup([member for group in groups.values() for member in group.members])}
    if table_rows:
        groups |= {name: replace(group, rows=True) for name, group in groups.items() if _is_table(name)}
    model.scale_invariant_groups = lambda: groups  # type: ignore[method-assign]
    optimizer = build_optimizer(model, intrinsic_lr=rate, clip=clip, two_sided=two_sided)
    for table in optimizer.param_groups:
        if _is_table(table["name"]):
            table["intrinsic_lr"] *= table_rate

    def misjudge(*_: Any) -> None:
        for group in optimizer.param_groups:
            if group["scale_invariant"]:
                factor = lr_factor * (1.0 if _is_table(group["name"]) else trunk_lr_factor)
                (optimizer.state[group["params"][0]] if group["rows"] else group)["eta"].mul_(factor)
        once.remove()

    if (lr_factor, trunk_lr_factor) != (1.0, 1.0):
        once = optimizer.register_step_post_hook(misjudge)
    if momentum:
        optimizer.register_step_pre_hook(partial(_average_gradients, momentum))
    return optimizer


@torch.no_grad()
def _average_gradients(momentum: float, optimizer: Optimizer, *_: Any) -> None:
    """Step by means, kept where optimizers keep state: in the ClippedSGD of the matrices, for vectors have AdamW."""
    clipped = next(one for one in getattr(optimizer, "optimizers", [optimizer]) if isinstance(one, ClippedSGD))
    for group in clipped.param_groups:
        for parameter in group["params"]:
            state = clipped.state[parameter]
            if "momentum" not in state:
                state["momentum"] = parameter.grad.clone()
            parameter.grad.copy_(state["momentum"].lerp_(parameter.grad, 1.0 - momentum))


def one_sided(model: SibertForMaskedLM, rate: float, **options: Any) -> Optimizer:
    """Algorithm 1 of the paper for each group: clipped from above alone."""
    return clipped_sgd(model, rate, two_sided=False, **options)


def spectral(model: SibertForMaskedLM, rate: float, two_sided: bool = False, **options: Any) -> Optimizer:
    """ClippedSGD whose gradient of each hidden matrix is replaced by its polar factor, at the same norm.

    Steepest descent in the spectral norm, as Muon without its momentum; no state. It is not SGD any more: not a row of
    the headline, but a measure of what an even spectrum of the updates is worth.
    """
    optimizer = clipped_sgd(model, rate, two_sided=two_sided, **options)
    hidden, _ = _hidden(model)

    @torch.no_grad()
    def even_out(*_: Any) -> None:
        for parameter in hidden:
            left, values, right = torch.linalg.svd(parameter.grad, full_matrices=False)
            torch.mul(left @ right, values.square().mean().sqrt(), out=parameter.grad)

    optimizer.register_step_pre_hook(even_out)  # after the mean, if there is one
    return optimizer


def grid(lowest: float, highest: float, count: int = 8) -> tuple[float, ...]:
    """Equal ratios, two digits."""
    ratio = (highest / lowest) ** (1 / (count - 1))
    return tuple(float(f"{lowest * ratio**i:.2g}") for i in range(count))


def _with_clipped_sgd(label: str, invariance: str, optimizer: Callable[..., Optimizer] = clipped_sgd) -> Contestant:
    """SIBERT at a granularity, with a kind of ClippedSGD."""
    rates = grid(2e-4, 2.56e-2)
    return Contestant(label, sibert(invariance), optimizer, rates, model_options=("equal_rows",))


def _with_momentum(label: str, optimizer: Callable[..., Optimizer]) -> Contestant:
    """The matrix form, lower rates."""
    return Contestant(label, sibert("matrix"), partial(optimizer, momentum=0.9), grid(5e-5, 6.4e-3))


ADAPTIVE: dict[str, Any] = {"warmup_share": 0.1, "max_grad_norm": 1.0}
CONTESTANTS: dict[str, Contestant] = {
    "bert-postnorm-adamw": Contestant("BERT (PostNorm), AdamW", postnorm, adamw, grid(2.5e-4, 3.2e-2), **ADAPTIVE),
    "bert-prenorm-adamw": Contestant("BERT (PreNorm), AdamW", prenorm, adamw, grid(2.5e-4, 3.2e-2), **ADAPTIVE),
    "bert-modern-adamw": Contestant("ModernBERT, AdamW", modern, adamw, grid(2.5e-4, 3.2e-2), **ADAPTIVE),
    "bert-lamb": Contestant("BERT, LAMB", prenorm, lamb, grid(1e-3, 1.28e-1), **ADAPTIVE),
    "bert-muon": Contestant("BERT, Muon + AdamW", prenorm, muon, grid(2.5e-4, 3.2e-2), **ADAPTIVE),
    "bert-adafactor": Contestant("BERT, Adafactor", prenorm, adafactor, grid(1e-3, 1.28e-1), **ADAPTIVE),
    "bert-sgd": Contestant("BERT, SGD", prenorm, sgd, grid(1e-2, 10.0)),
    "bert-clipped-sgd": Contestant(
        "BERT, SGD with clipping at norm 1", prenorm, sgd, grid(1e-2, 10.0), max_grad_norm=1.0
    ),
    "bert-sinkgd": Contestant("BERT, SinkGD + AdamW", prenorm, sinkgd, grid(1e-3, 1.28e-1), **ADAPTIVE),
    # On absolute positions none of these leaves the plateau of the unigrams; the stronger architecture gets them too.
    "bert-modern-lamb": Contestant("ModernBERT, LAMB", modern, lamb, grid(1e-3, 1.28e-1), **ADAPTIVE),
    "bert-modern-muon": Contestant("ModernBERT, Muon + AdamW", modern, muon, grid(2.5e-4, 3.2e-2), **ADAPTIVE),
    "bert-modern-sinkgd": Contestant("ModernBERT, SinkGD + AdamW", modern, sinkgd, grid(1e-3, 1.28e-1), **ADAPTIVE),
    "ngpt-adam": Contestant("nGPT-style encoder, Adam", normalized, projected_adam, grid(2.5e-4, 3.2e-2)),
    "sibert-joint": _with_clipped_sgd("SIBERT joint (the paper), ClippedSGD", "joint"),
    "sibert-matrix": _with_clipped_sgd("SIBERT matrix, ClippedSGD", "matrix"),
    # Not rows of the headline: how much is the architecture, how much the optimizer?
    "sibert-matrix-one-sided": _with_clipped_sgd("SIBERT matrix, ClippedSGD from above alone", "matrix", one_sided),
    "sibert-row-one-sided": _with_clipped_sgd("SIBERT row, ClippedSGD from above alone", "row", one_sided),
    "sibert-matrix-adamw": Contestant(
        "SIBERT matrix, AdamW", sibert("matrix"), adamw, grid(2.5e-4, 3.2e-2), **ADAPTIVE
    ),
    "sibert-matrix-spectral": _with_clipped_sgd(
        "SIBERT matrix, polar gradients clipped from above (not SGD)", "matrix", spectral
    ),
    "sibert-row": _with_clipped_sgd("SIBERT row, ClippedSGD", "row"),
    # Not rows either: how much of Muon's result is its momentum, how much its architecture?
    "sibert-matrix-momentum": _with_momentum("SIBERT matrix, ClippedSGD with momentum 0.9", clipped_sgd),
    "sibert-matrix-spectral-momentum": _with_momentum(
        "SIBERT matrix, polar factors of gradients with momentum 0.9, clipped from above", spectral
    ),
    "bert-modern-polar": Contestant(
        "ModernBERT, Muon without momentum + AdamW",
        modern,
        partial(muon, momentum=0.0),
        grid(2.5e-4, 3.2e-2),
        **ADAPTIVE,
    ),
    "sibert-matrix-muon": Contestant(
        "SIBERT matrix, Muon + AdamW", sibert("matrix"), muon, grid(2.5e-4, 3.2e-2), **ADAPTIVE
    ),
}
