"""SIBERT: a BERT whose encoder output does not depend on the scale of the encoder's parameters.

Multiply all parameters of `SibertModel` by any c > 0: `last_hidden_state` stays the same. Degrees (exponent k in
f(c x) = c^k f(x), where c scales the parameters) of what flows through the encoder:

    token + position + segment embeddings      1    lookup in degree-1 tables
    affine layer norm                          1    (x; 1): gain and bias are parameters
    lift, a linear map without bias            2    (1; 2)
    each layer: N(stream)                      0    (2; 0)
      queries, keys, values, with biases       1    (0; 1): W n and b both have degree 1
      scores q k^T                             2    and their normalised ReLU: 0
      output projection, no bias               2    weights (0) * values (1) * W (1)
      feed-forward in, with bias; ReLU         1    (0; 1)
      feed-forward out, no bias                2    (1; 2)
      stream + branch                          2    both terms have degree 2: PreNorm keeps it
    final N                                    0

The paper shows the way from embeddings to layers as a picture only. The lift is our reading of it: a stream that the
branches (degree 2) may be added to must have degree 2 itself, and an affine norm gives degree 1 whatever precedes it,
so one more bias-free linear map is needed, and it suffices. The keys of a layer could also do without a bias and the
values carry one; we give all three a bias, as BERT does: their input has degree 0, so every bias term has degree 1 like
W n.

The heads (masked-LM, next-sentence, tasks) are not scale invariant and are trained separately. The decoder is not tied
to the embeddings, so that the loss, too, is invariant to the encoder's scale.

That is `invariance="joint"`, the model of the paper. The other two are ours. There, everything that flows between the
parts has degree 0 in every single parameter, because each part normalises what it hands on; u(w) = w/|w|:

    N(u(token row) [+ u(segment row)])
    each layer: stream + N(branch(N(stream))) / sqrt(2 layers), the branches as above, but: softmax attention whose
        scores are sqrt(head width) * cos(query, key), both turned by their positions; the values are the input itself,
        head h mixes the h-th part of its features
    masked-LM head: N(ReLU(W N(stream)))
    logits: scale * cos(head, token row) + bias of the token, the rows tied to the embeddings

"matrix" is invariant to the scale of every matrix, because the branch is homogeneous in each of its matrices; "row"
uses u(w) for every row of every matrix as well. Two parameters are not invariant: the bias and the scale of the
logits. Normalised-ReLU attention, a table of positions and a matrix for the values, which fit as well, learn to use
context later; gains for the branches and other forms of embeddings and decoder were no better (LOGBOOK, 2026-11-23).

Sequences may also lie one after the other in a single row, without padding (`flat_batch.py`): B is then 1 and T the
tokens of all sequences, but in what is said of sequences B is their number.

Shape suffixes: B = batch, T = tokens, D = hidden size, H = heads, K = head width, F = feed-forward width,
V = vocabulary, P = predicted positions, L = labels, C = choices.

References: Li et al., "Robust Training of Neural Networks using Scale Invariant Architectures", arXiv 2202.00980,
sections 3 and Table 2; Devlin et al., arXiv 1810.04805, for everything that is BERT's; He and Hofmann, "Simplifying
Transformer Blocks", arXiv 2311.01906, for attention without matrices for values.
"""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from sibert.models.chunked_loss import chunked_cross_entropy, chunks_pay
from sibert.models.configuration_sibert import SibertConfig
from sibert.models.flat_batch import FlatBatch, attend_within, flat_batch
from sibert.models.masked_lm_loss import (
    IGNORED,
    gather_positions,
    masked_lm_loss,
    next_sentence_loss,
    per_target,
    wide,
)
from sibert.models.tied_table import TiedTable
from sibert.ops import (
    affine_layer_norm,
    cosine_attention,
    layer_norm,
    relu_attention,
    rotary_positions,
    rotate,
    unit_rows,
)
from sibert.ops.relu_attention.choice import Backend
from sibert.ops.rotary import Rotation
from sibert.optim import InvariantGroup

__all__ = [
    "SibertForMaskedLM",
    "SibertForMultipleChoice",
    "SibertForPreTraining",
    "SibertForPreTrainingOutput",
    "SibertForQuestionAnswering",
    "SibertForSequenceClassification",
    "SibertForTokenClassification",
    "SibertModel",
    "SibertPreTrainedModel",
]


INITIAL_LOGIT_VARIANCE = 0.5
"""Of scale * cos: cosines of independent directions have variance 1 / D, so the scale begins at sqrt(0.5 D)."""


class SibertTables(nn.Module, ABC):
    """Token and segment tables, and one of positions where these are not rotations of queries and keys."""

    def __init__(self, config: SibertConfig):
        super().__init__()
        # No padding_idx: padding is masked out of the attention, and a row pinned to 0 would be a special case.
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = (
            nn.Embedding(config.max_position_embeddings, config.hidden_size) if config.invariance == "joint" else None
        )
        self.token_type_embeddings = (
            nn.Embedding(config.type_vocab_size, config.hidden_size) if config.type_vocab_size else None
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        # Set by training: a tied decoder then shares the gradient of the lookup. First derivatives only, and not while
        # compiling: what the two uses share is hidden from the compiler, which would lose it.
        self.one_gradient = False
        self.tied_table: TiedTable | None = None

    def forward(
        self,
        input_ids_BT: Tensor | None,
        token_type_ids_BT: Tensor | None,
        position_ids_BT: Tensor,
        inputs_embeds_BTD: Tensor | None,
    ) -> Tensor:
        """Take one row from each table and join them, [B, T, D]."""
        self.tied_table = None
        if inputs_embeds_BTD is not None:
            rows = [inputs_embeds_BTD]
        elif self.one_gradient and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self.tied_table = TiedTable(self.word_embeddings.weight)
            rows = [self.tied_table.rows(cast(Tensor, input_ids_BT))]
        else:
            rows = [self.word_embeddings(input_ids_BT)]
        if self.position_embeddings is not None:
            rows.append(self.position_embeddings(position_ids_BT))
        if self.token_type_embeddings is not None:
            if token_type_ids_BT is None:
                token_type_ids_BT = torch.zeros_like(position_ids_BT)
            rows.append(self.token_type_embeddings(token_type_ids_BT))
        return self.join(rows)

    @abstractmethod
    def join(self, rows: list[Tensor]) -> Tensor:
        """Make one stream of the rows: [B, T, D] or, of positions that all sequences share, [1, T, D]."""


class SibertEmbeddings(SibertTables):
    """The sum of the rows, lifted to the residual stream: (; 2)."""

    def __init__(self, config: SibertConfig):
        super().__init__(config)
        self.norm = SibertAffineNorm(config.hidden_size)
        self.lift = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def join(self, rows: list[Tensor]) -> Tensor:
        """Sum, normalise with gain and bias, lift."""
        stream_BTD: Tensor = self.lift(self.dropout(self.norm(_sum(rows))))
        return stream_BTD


class SibertUnitEmbeddings(SibertTables):
    """The normalised sum of u(row): degree 0 in every row of every table."""

    def join(self, rows: list[Tensor]) -> Tensor:
        """Sum rows of norm 1, normalise."""
        stream_BTD: Tensor = self.dropout(layer_norm(_sum([unit_rows(row) for row in rows])))
        return stream_BTD


def _sum(terms: list[Tensor]) -> Tensor:
    return functools.reduce(torch.add, terms)


class SibertLinear(nn.Linear):
    """A linear map whose matrix, or with `by_row` each of its rows, may be rescaled on its own.

    The matrix is used as it is, since what follows normalises its output; with `by_row` each row is used as u(w). A
    bias belongs to the matrix, and to its rows: it is the column of a constant feature sqrt(D), as large as all others
    of the normalised input together. A smaller one would be learnt more slowly than they are.
    """

    def __init__(self, config: SibertConfig, in_features: int, out_features: int, bias: bool = False):
        super().__init__(in_features, out_features, bias=bias)
        self.by_row = config.invariance == "row"

    def forward(self, input_XD: Tensor) -> Tensor:
        weight, bias = self._unit_rows() if self.by_row else (self.weight, self.bias)
        return F.linear(input_XD, weight, None if bias is None else math.sqrt(self.in_features) * bias)

    def _unit_rows(self) -> tuple[Tensor, Tensor | None]:
        if self.bias is None:
            return unit_rows(self.weight), None
        rows = unit_rows(torch.cat((self.weight, self.bias[:, None]), dim=1))
        return rows[:, :-1], rows[:, -1]


def _linear(config: SibertConfig, in_features: int, out_features: int, bias: bool) -> nn.Linear:
    """Make a linear map of a branch; with a bias where its input has degree 0, so that both terms have degree 1."""
    if config.invariance == "joint":
        return nn.Linear(in_features, out_features, bias=bias)
    return SibertLinear(config, in_features, out_features, bias)


class SibertCosineLinear(nn.Linear):
    """scale * cos(h, w_r) + b_r for every row: degree 0 in h and in each row."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, input_XD: Tensor, tied: TiedTable | None = None) -> Tensor:
        """Score; `tied` are the other uses of the matrix in this forward pass."""
        return F.linear(*self.factors(input_XD, tied))

    def factors(self, input_XD: Tensor, tied: TiedTable | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Give x [X, D], w [V, D] and b [V] such that the scores are x w^T + b."""
        weight = self.weight if tied is None else tied.decoder()
        return unit_rows(input_XD) * self.log_scale.exp(), unit_rows(weight), self.bias


class SibertAffineNorm(nn.Module):
    """Layer norm with gain and bias and without epsilon: (x; 1)."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        return affine_layer_norm(hidden_BTD, self.weight, self.bias)


class SibertAttention(nn.Module):
    """Multi-head attention of a degree-0 input: (0; 2).

    Its weights have degree 0: in the joint form they are normalised ReLU scores, in the others softmax of cosines, of
    queries and keys that are turned by their positions. The others take the input as values: (0; 1).
    """

    def __init__(self, config: SibertConfig):
        super().__init__()
        self.attend = relu_attention if config.invariance == "joint" else cosine_attention
        self.backend: dict[str, Any] = {}
        self.num_heads = config.num_attention_heads
        self.dropout_p = float(config.attention_probs_dropout_prob)
        self.query = _linear(config, config.hidden_size, config.hidden_size, bias=True)
        self.key = _linear(config, config.hidden_size, config.hidden_size, bias=True)
        # A bias here would have degree 1 beside a term of degree 2.
        self.output = _linear(config, config.hidden_size, config.hidden_size, bias=False)
        # A matrix for the values and one for the output, with nothing in between, are a product, slow to learn for SGD.
        joint = config.invariance == "joint"
        self.value = nn.Linear(config.hidden_size, config.hidden_size) if joint else nn.Identity()

    def forward(
        self,
        hidden_BTD: Tensor,
        attention_mask: Tensor | None,
        rotation: Rotation | None = None,
        flat: FlatBatch | None = None,
        *,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        def heads(projected_BTD: Tensor) -> Tensor:
            heads_BTHK: Tensor = projected_BTD.unflatten(-1, (self.num_heads, -1))  # type: ignore[no-untyped-call]
            return heads_BTHK.transpose(1, 2)

        query_BHTK, key_BHTK = heads(self.query(hidden_BTD)), heads(self.key(hidden_BTD))
        if rotation is not None:
            query_BHTK, key_BHTK = rotate(query_BHTK, rotation), rotate(key_BHTK, rotation)
        inputs = (query_BHTK, key_BHTK, heads(self.value(hidden_BTD)))
        options = {"dropout_p": self.dropout_p if self.training else 0.0, "need_weights": need_weights, **self.backend}
        if flat is None:
            mixed_BHTK, weights_BHTT = self.attend(*inputs, attention_mask, **options)
        else:
            mixed_BHTK, weights_BHTT = attend_within(self.attend, flat, *inputs, **options)
        return self.output(mixed_BHTK.transpose(1, 2).flatten(-2)), weights_BHTT


class SibertFeedForward(nn.Module):
    """Two linear maps around a ReLU, of a degree-0 input: (0; 2)."""

    def __init__(self, config: SibertConfig):
        super().__init__()
        self.input = _linear(config, config.hidden_size, config.intermediate_size, bias=True)
        self.output = _linear(config, config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        output_BTD: Tensor = self.output(self.input(hidden_BTD).relu())
        return output_BTD


class SibertLayer(GradientCheckpointingLayer):  # type: ignore[misc]
    """One PreNorm layer: x + ATTN(N(x)), then x + FF(N(x)); (2; 2).

    Not joint: each branch f as N(f(N(x))) / sqrt(2 layers), so that all branches together weigh as much as the
    embeddings.
    """

    def __init__(self, config: SibertConfig):
        super().__init__()
        self.attention = SibertAttention(config)
        self.feed_forward = SibertFeedForward(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.joint = config.invariance == "joint"
        self.branch_weight = 1.0 if self.joint else 1.0 / math.sqrt(2 * config.num_hidden_layers)

    def forward(
        self,
        stream_BTD: Tensor,
        attention_mask: Tensor | None,
        rotation: Rotation | None = None,
        flat: FlatBatch | None = None,
        *,
        need_weights: bool = False,
    ) -> Tensor:
        mixed_BTD, _ = self.attention(layer_norm(stream_BTD), attention_mask, rotation, flat, need_weights=need_weights)
        stream_BTD = self._add(stream_BTD, mixed_BTD)
        return self._add(stream_BTD, self.feed_forward(layer_norm(stream_BTD)))

    def _add(self, stream_BTD: Tensor, branch_BTD: Tensor) -> Tensor:
        if not self.joint:
            branch_BTD = layer_norm(branch_BTD)
        return torch.add(stream_BTD, self.dropout(branch_BTD), alpha=self.branch_weight)


class SibertPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """What all SIBERT models share: configuration, initialisation, and who is scale invariant."""

    config_class = SibertConfig
    config: SibertConfig
    base_model_prefix = "sibert"
    supports_gradient_checkpointing = True
    _no_split_modules = ["SibertEmbeddings", "SibertUnitEmbeddings", "SibertLayer"]  # noqa: RUF012 (the contract of transformers)
    _can_record_outputs = {"hidden_states": SibertLayer, "attentions": SibertAttention}  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise every parameter: truncated normal matrices and tables, zero biases, unit gains.

        | parameter | distribution |
        |---|---|
        | linear weights, embeddings | normal, std `initializer_range`, cut at two standard deviations |
        | biases of `SibertLinear`: columns of its matrix | the same |
        | other biases | 0 |
        | gains of normalisations | 1 |
        | scale of the logits | square root of `INITIAL_LOGIT_VARIANCE` times the width |
        """
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding):
            init.trunc_normal_(module.weight, mean=0.0, std=std, a=-2 * std, b=2 * std)
        elif isinstance(module, SibertAffineNorm | nn.LayerNorm):
            init.ones_(module.weight)
        if isinstance(module, nn.Linear | SibertAffineNorm | nn.LayerNorm) and module.bias is not None:
            if isinstance(module, SibertLinear):
                init.trunc_normal_(module.bias, mean=0.0, std=std, a=-2 * std, b=2 * std)
            else:
                init.zeros_(module.bias)
        if isinstance(module, SibertCosineLinear):
            init.constant_(module.log_scale, 0.5 * math.log(INITIAL_LOGIT_VARIANCE * self.config.hidden_size))

    def _get_resized_lm_head(self, old_lm_head: nn.Linear, *args: Any, **kwargs: Any) -> nn.Linear:
        """Resize an untied decoder. transformers makes an `nn.Linear` of it, whose scores are no cosines."""
        resized: nn.Linear = super()._get_resized_lm_head(old_lm_head, *args, **kwargs)
        if resized is old_lm_head or not isinstance(old_lm_head, SibertCosineLinear):
            return resized
        decoder = SibertCosineLinear(resized.in_features, resized.out_features)
        decoder.weight, decoder.bias, decoder.log_scale = resized.weight, resized.bias, old_lm_head.log_scale
        return decoder

    def set_attention_backend(self, backend: Backend) -> None:
        """Choose how normalised-ReLU attention is computed from now on; it is no part of a saved model.

        Cosine attention, of the other forms, has one path, torch's own.

        Args:
            backend: See `sibert.ops.relu_attention`.
        """
        for module in self.modules():
            if isinstance(module, SibertAttention) and self.config.invariance == "joint":
                module.backend = {"backend": backend}

    def _encode(
        self, inputs: Sequence[Tensor | None], keywords: dict[str, Any]
    ) -> tuple[BaseModelOutput, FlatBatch | None]:
        """Run the encoder on inputs in the order of its `forward`, and say where sequences are in the output."""
        input_ids, attention_mask, _, position_ids, inputs_embeds = inputs
        given = inputs_embeds if input_ids is None else input_ids
        flat = None if given is None else flat_batch(given, position_ids, attention_mask, keywords)
        return self.base_model(*inputs, **{**keywords, "flat_batch": flat, "return_dict": True}), flat

    def scale_invariant_groups(self) -> dict[str, InvariantGroup]:
        """Name the parameters that can be scaled together without changing the output.

        Returns:
            Group name -> group, parameter names as in `named_parameters()` of this model. "joint": all parameters of
            the encoder are one group. Otherwise every matrix and every table is a group of its own; with "row", those
            of `SibertLinear` are groups of rows. For every c > 0, multiplying a group (or a row of a group of rows) by
            c leaves `last_hidden_state`, and so every loss, unchanged. What is in no group is head.
        """
        names: dict[int, list[str]] = {}
        for name, parameter in self.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        if self.config.invariance == "joint":
            encoder = self.base_model.parameters()
            return {"encoder": InvariantGroup([(name, p) for p in encoder for name in names[id(p)]])}
        groups = {}
        for name, module in self.named_modules():
            if isinstance(module, SibertLinear | nn.Embedding):
                parameters = list(module.parameters())
            elif isinstance(module, SibertCosineLinear):
                parameters = [module.weight]  # type: ignore[list-item]  # a Parameter that torch declares a Tensor
            else:
                continue
            members = [(own, p) for p in parameters for own in names.pop(id(p), [])]
            if members:  # a tied weight belongs to the first module that has it
                groups[name] = InvariantGroup(members, rows=getattr(module, "by_row", False))
        return groups


class SibertModel(SibertPreTrainedModel):
    """The scale-invariant encoder: `last_hidden_state` has degree 0 in the parameters of this module.

    With `invariance="joint"` the hidden states between the layers have degree 2, else 0. `output_hidden_states=True`
    returns the embeddings ("joint": lifted to that degree), the stream after each layer but the last, and the final,
    normalised output.
    """

    def __init__(self, config: SibertConfig):
        super().__init__(config)
        self.embeddings = (SibertEmbeddings if config.invariance == "joint" else SibertUnitEmbeddings)(config)
        self.layers = nn.ModuleList([SibertLayer(config) for _ in range(config.num_hidden_layers)])
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the token embedding table."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding table."""
        self.embeddings.word_embeddings = value

    @merge_with_config_defaults  # type: ignore[untyped-decorator]
    @capture_outputs  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Encode a batch of token sequences.

        Args:
            input_ids: Token ids [B, T].
            attention_mask: 1 or True = attend, 0 or False = padding: [B, T], [B, S, T] or [B, 1, S, T]; a floating
                four-dimensional mask is read as additive (0 = attend, anything negative = not).
            token_type_ids: Segment ids [B, T]; default 0. A model without segment embeddings ignores them.
            position_ids: Positions [B, T], or [T] for all sequences; default 0, 1, 2, ...
            inputs_embeds: Token embeddings [B, T, D] instead of `input_ids`. They count as degree 1 when the scale of
                the encoder is changed.
            **kwargs: `output_attentions`, `output_hidden_states`, `return_dict`. For a flat batch, `input_ids` [1, N],
                also `cu_seq_lens_q` (bounds of the sequences in it, from 0 to N) and `max_length_q`, as
                `transformers.DataCollatorWithFlattening` makes them; default positions then begin anew in every
                sequence. Attentions are those of the padded batch.

        Returns:
            `BaseModelOutput` with `last_hidden_state` [B, T, D], [1, N, D] of a flat batch.

        Raises:
            ValueError: If not exactly one of `input_ids` and `inputs_embeds` is given, a sequence is too long, or the
                bounds of a flat batch do not fit its tokens.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        given = cast(Tensor, inputs_embeds if input_ids is None else input_ids)
        flat = flat_batch(given, position_ids, attention_mask, kwargs)
        length = given.shape[1] if flat is None else flat.mask_ST.shape[1]
        if length > self.config.max_position_embeddings:
            raise ValueError(
                f"the sequence has {length} tokens but the model has {self.config.max_position_embeddings} positions; "
                "truncate it or train with a larger max_position_embeddings"
            )
        mask = _boolean_mask(attention_mask)
        need_weights = bool(kwargs.get("output_attentions", self.config.output_attentions))
        if position_ids is None:
            position_ids = torch.arange(length, device=self.device)[None] if flat is None else flat.position_ids_1N
        elif position_ids.dim() == 1:
            position_ids = position_ids[None]
        stream_BTD = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)
        rotation = None
        if self.config.invariance != "joint":
            width = self.config.hidden_size // self.config.num_attention_heads
            rotation = rotary_positions(position_ids, width, self.config.rope_theta, stream_BTD.dtype)
        for layer in self.layers:
            stream_BTD = layer(stream_BTD, mask, rotation, flat, need_weights=need_weights)
        return BaseModelOutput(last_hidden_state=layer_norm(stream_BTD))


def _boolean_mask(attention_mask: Tensor | None) -> Tensor | None:
    """Read the mask forms of transformers: padding mask, additive mask, boolean mask; True = attend."""
    if attention_mask is None:
        return None
    if attention_mask.is_floating_point() and attention_mask.dim() == 4:
        return attention_mask >= 0
    mask = attention_mask != 0
    return mask[:, None] if mask.dim() == 3 else mask


class SibertPredictionHead(nn.Module):
    """BERT's transform before the decoder: dense, GELU, layer norm. Not scale invariant, and not meant to be."""

    def __init__(self, config: SibertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=1e-12)

    def forward(self, hidden_XD: Tensor) -> Tensor:
        transformed_XD: Tensor = self.norm(F.gelu(self.dense(hidden_XD)))
        return transformed_XD


class SibertInvariantHead(nn.Module):
    """The transform before the decoder as N(ReLU(W h)): degree 0 in W."""

    def __init__(self, config: SibertConfig):
        super().__init__()
        self.dense = SibertLinear(config, config.hidden_size, config.hidden_size)

    def forward(self, hidden_XD: Tensor) -> Tensor:
        return layer_norm(self.dense(hidden_XD).relu())


def _prediction_head(config: SibertConfig) -> tuple[nn.Module, nn.Linear]:
    """Make the transform and the decoder of the masked-LM head."""
    if config.invariance == "joint":
        return SibertPredictionHead(config), nn.Linear(config.hidden_size, config.vocab_size)
    return SibertInvariantHead(config), SibertCosineLinear(config.hidden_size, config.vocab_size)


def _predict(
    model: "SibertForMaskedLM | SibertForPreTraining",
    hidden_XD: Tensor,
    labels_X: Tensor | None,
    num_items_in_batch: Tensor | int | None,
    return_logits: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Score the tokens at each position, [X, V], and compute the loss; one or both may be None."""
    if labels_X is None and not return_logits:
        raise ValueError("return_logits=False needs labels: without logits the loss is all that a head has to give")
    if labels_X is not None and labels_X.numel() != hidden_XD[..., 0].numel():
        raise ValueError(
            f"labels must be [B, T], or [B, P] beside masked_positions [B, P]: {list(hidden_XD.shape[:-1])} here, got "
            f"{list(labels_X.shape)}"
        )
    embeddings = model.sibert.embeddings
    tied, embeddings.tied_table = embeddings.tied_table, None
    if tied is not None and tied.table_VD is not model.decoder.weight:
        tied = None
    hidden_XD = model.head(hidden_XD)
    decoder = model.decoder
    if return_logits or not chunks_pay(hidden_XD[..., 0].numel(), len(decoder.weight), hidden_XD.device):
        logits: Tensor = decoder(hidden_XD) if tied is None else decoder(hidden_XD, tied)
        loss = None if labels_X is None else masked_lm_loss(logits, labels_X, num_items_in_batch)
        return logits if return_logits else None, loss
    assert labels_X is not None
    if isinstance(decoder, SibertCosineLinear):
        hidden_XD, weight, bias = decoder.factors(hidden_XD, tied)
    else:
        weight, bias = decoder.weight, decoder.bias
    total = chunked_cross_entropy(hidden_XD.flatten(0, -2), weight, bias, labels_X.flatten())
    return None, per_target(total, labels_X, num_items_in_batch)


class SibertPooler(nn.Module):
    """BERT's summary of a sequence: dense and tanh of the first token, or of the mean of all.

    Joint: part of the head, since tanh is not homogeneous. Otherwise tanh(N(W h)), of degree 0 in W.

    Args:
        config: Configuration of the model.
        pooling: "cls" or "mean".
    """

    def __init__(self, config: SibertConfig, pooling: str):
        super().__init__()
        self.pooling = pooling
        self.dense = _linear(config, config.hidden_size, config.hidden_size, bias=config.invariance == "joint")

    def forward(
        self, hidden_BTD: Tensor, attention_mask: Tensor | None = None, flat: FlatBatch | None = None
    ) -> Tensor:
        if self.pooling == "mean":
            if flat is not None:
                hidden_BTD, attention_mask = flat.pad(hidden_BTD[0]), flat.mask_ST
            summary_BD = _mean_of_tokens(hidden_BTD, attention_mask)
        else:
            summary_BD = hidden_BTD[:, 0] if flat is None else flat.first(hidden_BTD[0])
        pooled_BD: Tensor = self.dense(summary_BD)
        if isinstance(self.dense, SibertLinear):
            pooled_BD = layer_norm(pooled_BD)
        return torch.tanh(pooled_BD)


def _mean_of_tokens(hidden_BTD: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The mean over tokens that are no padding; 0 where there are none."""
    if attention_mask is None:
        return hidden_BTD.mean(1)
    if attention_mask.dim() != 2:
        raise ValueError(
            f"the mean of tokens needs an attention_mask [B, T] that tells the padding, got "
            f"{tuple(attention_mask.shape)}; or set classifier_pooling='cls'"
        )
    mask_BT1 = (attention_mask[:, :, None] != 0).to(hidden_BTD.dtype)
    return (hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1.0)


class SibertForMaskedLM(SibertPreTrainedModel):
    """SIBERT with a masked language modelling head.

    With "joint" the decoder is untied, so the loss is invariant to the scale of the encoder; in the other forms it is
    tied to the embeddings, of whose rows it reads the directions alone.
    """

    accepts_loss_kwargs = True
    _tied_weights_keys = {"decoder.weight": "sibert.embeddings.word_embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: SibertConfig):
        super().__init__(config)
        self.sibert = SibertModel(config)
        self.head, self.decoder = _prediction_head(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """Return the decoder."""
        return self.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the decoder."""
        self.decoder = new_embeddings

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        masked_positions: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_logits: bool = True,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        """Predict tokens.

        Args:
            input_ids: Token ids [B, T].
            attention_mask: See `SibertModel.forward`.
            token_type_ids: Segment ids [B, T].
            position_ids: Positions [B, T].
            inputs_embeds: Token embeddings [B, T, D] instead of `input_ids`.
            labels: True tokens, -100 = not predicted: [B, T], or [B, P] beside `masked_positions`.
            masked_positions: Positions [B, P] to predict; [1, P] of a flat batch, counted from its beginning. The
                decoder, the largest matrix product of a small model, then runs on these alone, with static shapes.
            num_items_in_batch: Number of targets of the global batch, the divisor of the summed loss; default: those
                of this batch.
            return_logits: False, with labels: the loss alone, and logits None; where they would be many, they are
                computed a few positions at a time (`chunked_cross_entropy`).
            **kwargs: See `SibertModel.forward`.

        Returns:
            `MaskedLMOutput` with logits [B, T, V], or [B, P, V] beside `masked_positions`, and the loss in nats.
        """
        outputs = self.sibert(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True, **kwargs
        )
        predicted_XD = gather_positions(outputs.last_hidden_state, masked_positions)
        logits, loss = _predict(self, predicted_XD, labels, num_items_in_batch, return_logits)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


@dataclass
class SibertForPreTrainingOutput(ModelOutput):  # type: ignore[misc]
    """Output of `SibertForPreTraining`.

    Attributes:
        loss: Sum of the two losses, nats.
        mlm_loss: Masked-LM loss, nats per target.
        nsp_loss: Next-sentence loss, nats per sequence.
        prediction_logits: [B, T, V], or [B, P, V] beside `masked_positions`.
        seq_relationship_logits: [B, 2]; class 0 = the second segment follows the first.
        hidden_states: See `SibertModel`.
        attentions: Normalised attention weights [B, H, T, T] of each layer.
    """

    loss: Tensor | None = None
    mlm_loss: Tensor | None = None
    nsp_loss: Tensor | None = None
    prediction_logits: Tensor | None = None
    seq_relationship_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class SibertForPreTraining(SibertPreTrainedModel):
    """SIBERT with the masked-LM and the next-sentence head, as BERT is pre-trained."""

    accepts_loss_kwargs = True
    _tied_weights_keys = {"decoder.weight": "sibert.embeddings.word_embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: SibertConfig):
        super().__init__(config)
        self.sibert = SibertModel(config)
        self.head, self.decoder = _prediction_head(config)
        self.pooler = SibertPooler(config, "cls")
        self.seq_relationship = (nn.Linear if config.invariance == "joint" else SibertCosineLinear)(
            config.hidden_size, 2
        )
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """Return the decoder."""
        return self.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the decoder."""
        self.decoder = new_embeddings

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        masked_positions: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        num_sequences_in_batch: Tensor | int | None = None,
        return_logits: bool = True,
        **kwargs: Any,
    ) -> SibertForPreTrainingOutput:
        """Predict tokens, and whether the second segment follows the first.

        Args:
            input_ids: Token ids [B, T].
            attention_mask: See `SibertModel.forward`.
            token_type_ids: Segment ids [B, T].
            position_ids: Positions [B, T].
            inputs_embeds: Token embeddings [B, T, D] instead of `input_ids`.
            labels: See `SibertForMaskedLM.forward`.
            next_sentence_label: [B]; 0 = the second segment follows, 1 = it is random.
            masked_positions: See `SibertForMaskedLM.forward`.
            num_items_in_batch: Number of masked-LM targets of the global batch.
            num_sequences_in_batch: Number of sequences of the global batch, the divisor of the next-sentence loss;
                default: this batch's share of the targets tells its share of the sequences.
            return_logits: See `SibertForMaskedLM.forward`.
            **kwargs: See `SibertModel.forward`.

        Returns:
            `SibertForPreTrainingOutput`; `loss` is there when both kinds of label are given.
        """
        outputs, flat = self._encode((input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds), kwargs)
        hidden_BTD = outputs.last_hidden_state
        predicted_XD = gather_positions(hidden_BTD, masked_positions)
        logits, mlm_loss = _predict(self, predicted_XD, labels, num_items_in_batch, return_logits)
        relationship_B2 = self.seq_relationship(self.pooler(hidden_BTD, flat=flat))
        nsp_loss = None
        if next_sentence_label is not None:
            nsp_loss = next_sentence_loss(
                relationship_B2, next_sentence_label, num_sequences_in_batch, labels, num_items_in_batch
            )
        return SibertForPreTrainingOutput(
            loss=mlm_loss + nsp_loss if mlm_loss is not None and nsp_loss is not None else None,
            mlm_loss=mlm_loss,
            nsp_loss=nsp_loss,
            prediction_logits=logits,
            seq_relationship_logits=relationship_B2,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def _classifier_dropout(config: SibertConfig) -> nn.Dropout:
    own = config.classifier_dropout
    return nn.Dropout(config.hidden_dropout_prob if own is None else own)


class SibertForSequenceClassification(SibertPreTrainedModel):
    """SIBERT with a classifier (or, with one label, a regressor) of the pooled sequence: `classifier_pooling`."""

    accepts_loss_kwargs = False

    def __init__(self, config: SibertConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.sibert = SibertModel(config)
        self.pooler = SibertPooler(config, config.classifier_pooling)
        self.dropout = _classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Classify sequences.

        Args:
            input_ids: Token ids [B, T].
            attention_mask: See `SibertModel.forward`.
            token_type_ids: Segment ids [B, T].
            position_ids: Positions [B, T].
            inputs_embeds: Token embeddings [B, T, D] instead of `input_ids`.
            labels: Classes [B], or values [B] for regression, or [B, L] zeros and ones for several labels at once
                (`config.problem_type` says which; else it is inferred from `num_labels` and the dtype).
            **kwargs: See `SibertModel.forward`.

        Returns:
            `SequenceClassifierOutput` with logits [B, L].
        """
        outputs, flat = self._encode((input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds), kwargs)
        logits_BL = self.classifier(self.dropout(self.pooler(outputs.last_hidden_state, attention_mask, flat)))
        loss = None
        if labels is not None:
            if self.config.problem_type == "multi_label_classification":
                labels = labels.to(logits_BL.dtype)
            loss = self.loss_function(labels=labels, pooled_logits=wide(logits_BL), config=self.config)
        return SequenceClassifierOutput(
            loss=loss, logits=logits_BL, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class SibertForTokenClassification(SibertPreTrainedModel):
    """SIBERT with a classifier of every token."""

    accepts_loss_kwargs = True

    def __init__(self, config: SibertConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.sibert = SibertModel(config)
        self.dropout = _classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """Classify tokens.

        Args:
            input_ids: Token ids [B, T].
            attention_mask: See `SibertModel.forward`.
            token_type_ids: Segment ids [B, T].
            position_ids: Positions [B, T].
            inputs_embeds: Token embeddings [B, T, D] instead of `input_ids`.
            labels: Classes [B, T]; -100 = ignored.
            num_items_in_batch: Number of labelled tokens of the global batch.
            **kwargs: See `SibertModel.forward`.

        Returns:
            `TokenClassifierOutput` with logits [B, T, L].
        """
        outputs = self.sibert(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True, **kwargs
        )
        logits_BTL = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None if labels is None else masked_lm_loss(logits_BTL, labels, num_items_in_batch)
        return TokenClassifierOutput(
            loss=loss, logits=logits_BTL, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class SibertForQuestionAnswering(SibertPreTrainedModel):
    """SIBERT with the start and the end of an answer span scored at every token."""

    accepts_loss_kwargs = False

    def __init__(self, config: SibertConfig):
        super().__init__(config)
        self.sibert = SibertModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **kwargs: Any,
    ) -> QuestionAnsweringModelOutput:
        """Score answer spans.

        Args:
            input_ids: Token ids [B, T].
            attention_mask: See `SibertModel.forward`.
            token_type_ids: Segment ids [B, T].
            position_ids: Positions [B, T].
            inputs_embeds: Token embeddings [B, T, D] instead of `input_ids`.
            start_positions: First token of the answer [B], counted from the beginning of its sequence, in flat batches,
                too; positions outside the sequence are ignored.
            end_positions: Last token of the answer [B].
            **kwargs: See `SibertModel.forward`.

        Returns:
            `QuestionAnsweringModelOutput` with start and end logits [B, T]; T of a flat batch is `max_length_q`, or
            its longest sequence. Padding has the lowest number there is: no answer begins or ends in it.
        """
        outputs, flat = self._encode((input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds), kwargs)
        logits_BT2 = self.qa_outputs(outputs.last_hidden_state)
        if flat is not None:
            logits_BT2, attention_mask = flat.pad(logits_BT2[0]), flat.mask_ST
        tokens_BT = None
        if attention_mask is not None and attention_mask.dim() == 2:
            tokens_BT = attention_mask != 0
            logits_BT2 = logits_BT2.masked_fill(~tokens_BT[..., None], torch.finfo(logits_BT2.dtype).min)
        start_BT, end_BT = logits_BT2.unbind(dim=-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            if tokens_BT is None:
                tokens_BT = torch.ones_like(start_BT, dtype=torch.bool)
            start_loss = masked_lm_loss(start_BT, _ignored_outside(start_positions, tokens_BT))
            end_loss = masked_lm_loss(end_BT, _ignored_outside(end_positions, tokens_BT))
            loss = (start_loss + end_loss) / 2
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_BT,
            end_logits=end_BT,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def _ignored_outside(place_B: Tensor, tokens_BT: Tensor) -> Tensor:
    """Replace places that hold no token by `IGNORED`."""
    place_B = place_B.view(-1)
    length = tokens_BT.shape[1]
    inside_B = tokens_BT.gather(1, place_B.clamp(0, length - 1)[:, None])[:, 0] & (place_B >= 0) & (place_B < length)
    return torch.where(inside_B, place_B, IGNORED)


class SibertForMultipleChoice(SibertPreTrainedModel):
    """SIBERT with a score for each of several continuations."""

    accepts_loss_kwargs = False

    def __init__(self, config: SibertConfig):
        super().__init__(config)
        self.sibert = SibertModel(config)
        self.pooler = SibertPooler(config, config.classifier_pooling)
        self.dropout = _classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_choices: int | None = None,
        **kwargs: Any,
    ) -> MultipleChoiceModelOutput:
        """Score choices.

        Args:
            input_ids: Token ids [B, C, T]; [1, N] of a flat batch, with the choices of a question one after the other.
            attention_mask: Padding mask [B, C, T].
            token_type_ids: Segment ids [B, C, T].
            position_ids: Positions [B, C, T].
            inputs_embeds: Token embeddings [B, C, T, D] instead of `input_ids`.
            labels: The right choice [B].
            num_choices: C, which a flat batch without labels does not tell.
            **kwargs: See `SibertModel.forward`.

        Returns:
            `MultipleChoiceModelOutput` with logits [B, C].

        Raises:
            ValueError: If the sequences of a flat batch cannot be divided into questions.
        """
        given = input_ids if input_ids is not None else inputs_embeds
        if given is None:
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        inputs: list[Tensor | None] = [input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds]
        if given.dim() - (input_ids is None) == 3:
            num_choices = given.shape[1]
            inputs = [None if one is None else one.flatten(0, 1) for one in inputs]
        outputs, flat = self._encode(inputs, kwargs)
        scores_X1 = self.classifier(self.dropout(self.pooler(outputs.last_hidden_state, inputs[1], flat)))
        if flat is not None and labels is not None:
            num_choices = len(scores_X1) // len(labels)
        if not num_choices or len(scores_X1) % num_choices:
            raise ValueError(
                f"{len(scores_X1)} sequences cannot be divided into questions: give num_choices with a flat batch, or "
                "input_ids [B, C, T]"
            )
        logits_BC = scores_X1.view(-1, num_choices)
        return MultipleChoiceModelOutput(
            loss=None if labels is None else F.cross_entropy(wide(logits_BC), labels),
            logits=logits_BC,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
