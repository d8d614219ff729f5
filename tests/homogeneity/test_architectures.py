"""Real architectures at tiny width: the dimensions of their spaces of symmetries, counted by hand, and some of each.

The count of each is in its entry, for L = 2 layers unless it says otherwise. A norm's affine part, where it has one, is
gain and bias together; "stream" is the residual stream. Each symmetry that is found is tried in float64.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    ConvNextConfig,
    ConvNextModel,
    DebertaV2Config,
    DebertaV2Model,
    ElectraConfig,
    ElectraModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaModel,
    MambaConfig,
    MambaModel,
    ModernBertConfig,
    ModernBertModel,
    Qwen3Config,
    Qwen3Model,
    ResNetConfig,
    ResNetModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5Model,
    ViTConfig,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

from sibert.homogeneity import Verdict, analyze

TEXT = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
VISION = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32, "patch_size": 16}
IDS = torch.randint(5, 50, (2, 6), generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SOUND = torch.randn(1, 400, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Architecture:
    """A model and how many symmetries it has.

    Attributes:
        build: The module, in the mode that is meant.
        inputs: By position, or by name.
        count: The derivation of the two dimensions.
        exact: Dimension of the space of exact symmetries.
        epsilon: With those up to epsilon.
        holds: Some of them.
        observed: What computing finds and no rule proves.
    """

    build: Callable[[], nn.Module]
    inputs: tuple[Any, ...] | dict[str, Any]
    count: str
    exact: int
    epsilon: int
    holds: Sequence[Mapping[str, int]] = ()
    observed: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


def deberta() -> nn.Module:
    relative = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 4}
    return DebertaV2Model(DebertaV2Config(**TEXT, **relative))


def clip() -> nn.Module:
    text = {**TEXT, "num_hidden_layers": 1, **SPECIAL}
    return CLIPModel(CLIPConfig(text_config=text, vision_config={**VISION, "num_hidden_layers": 1}, projection_dim=8))


def wav2vec2() -> nn.Module:
    convolutions = {"conv_dim": [8, 8], "conv_stride": [5, 2], "conv_kernel": [10, 3], "num_feat_extract_layers": 2}
    return Wav2Vec2Model(
        Wav2Vec2Config(**TEXT, **convolutions, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2)
    )


def t5() -> nn.Module:
    return T5Model(T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2))


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0))


ARCHITECTURES = {
    "BERT": Architecture(
        lambda: BertModel(BertConfig(**TEXT), add_pooling_layer=False),
        (IDS,),
        "each layer: key bias, q against k, v against o; PostNorm: each norm but the last one frees the scale of its "
        "affine"
        " part (2 a layer, 1 of the embeddings, less the last), and the tables scale together",
        6,
        11,
        [
            {"encoder.layer.1.attention.self.key.bias": 1},
            {"encoder.layer.0.attention.self.query": 1, "encoder.layer.0.attention.self.key.weight": -1},
            {
                "embeddings.word_embeddings": 1,
                "embeddings.position_embeddings": 1,
                "embeddings.token_type_embeddings": 1,
            },
        ],
    ),
    "RoBERTa": Architecture(
        lambda: RobertaModel(RobertaConfig(**TEXT), add_pooling_layer=False), (IDS,), "as BERT", 6, 11
    ),
    "ELECTRA": Architecture(
        lambda: ElectraModel(ElectraConfig(**TEXT, embedding_size=8)),
        (IDS,),
        "as BERT, and the norm of the embeddings against the projection behind it",
        7,
        12,
        [{"embeddings.LayerNorm": 1, "embeddings_project.weight": -1}],
    ),
    "ModernBERT": Architecture(
        lambda: ModernBertModel(ModernBertConfig(**TEXT, **SPECIAL, cls_token_id=1, sep_token_id=2)),
        (IDS,),
        "norm gains against the fused matrices behind them (both of layer 1, that of the feed-forward of layer 0; "
        "GELU gates"
        " and softmax leave nothing else); tokens; the stream against everything that writes to it",
        3,
        5,
        [{"layers.0.mlp_norm.weight": 1, "layers.0.mlp.Wi.weight": -1}, {"embeddings.tok_embeddings.weight": 1}],
    ),
    "DeBERTa-v2": Architecture(
        deberta,
        (IDS,),
        "each layer: q against k with the projections of the positions, v against o; the table of relative positions "
        "against"
        " all its projections; 5 of norms and tables as in BERT. The bias of the keys of the positions shifts a row "
        "of scores"
        " by a constant, but through a gather, which no rule follows",
        5,
        10,
        observed=tuple(f"encoder.layer.{layer}.attention.self.pos_key_proj.bias" for layer in (0, 1)),
    ),
    "GPT-2": Architecture(
        gpt2,
        {"input_ids": IDS, "use_cache": False},
        "each layer: both norms against the (fused) matrices behind them, whose biases stay; the tied table and "
        "positions with"
        " the writers of the stream, against the last norm",
        4,
        5,
        [{"transformer.h.0.ln_1": 1, "transformer.h.0.attn.c_attn.weight": -1}],
    ),
    "Llama": Architecture(
        lambda: LlamaModel(LlamaConfig(**TEXT, num_key_value_heads=1)),
        {"input_ids": IDS, "use_cache": False},
        "each layer: q against k, v against o, up against down, both gains against q, k, v or gate, up; and the stream",
        10,
        11,
        [
            {"layers.0.self_attn.q_proj.weight": 1, "layers.0.self_attn.k_proj.weight": -1},
            {"layers.0.mlp.up_proj.weight": 1, "layers.0.mlp.down_proj.weight": -1},
        ],
    ),
    "Qwen3": Architecture(
        lambda: Qwen3Model(Qwen3Config(**TEXT, num_key_value_heads=1, head_dim=8)),
        {"input_ids": IDS, "use_cache": False},
        "as Llama, but with norms of queries and keys: their gains against each other, and q and k free up to epsilon",
        10,
        15,
        [{"layers.1.self_attn.k_proj.weight": 1}],
    ),
    "T5": Architecture(
        t5,
        {"input_ids": IDS, "decoder_input_ids": IDS, "use_cache": False},
        "ReLU: wi against wo. Encoder layer: q/k, v/o, gain/qkv, wi/wo, gain/wi = 5; decoder layer: 4 more of cross "
        "attention,"
        " less the gain against keys and values, which read the encoder: 8; and one for both streams, which share the "
        "table",
        26,
        27,
        [
            {
                "encoder.block.0.layer.1.DenseReluDense.wi.weight": 1,
                "encoder.block.0.layer.1.DenseReluDense.wo.weight": -1,
            }
        ],
    ),
    "ViT": Architecture(
        lambda: ViTModel(ViTConfig(**VISION, num_hidden_layers=2), add_pooling_layer=False),
        (IMAGES[:1],),
        "each layer: key bias, q/k, v/o, both norms against what is behind them; and the stream with all that writes "
        "to it",
        10,
        11,
        [{"layers.0.layernorm_after": 1, "layers.0.mlp.fc1.weight": -1}],
    ),
    "ResNet": Architecture(
        lambda: ResNetModel(
            ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        ).train(),
        (IMAGES,),
        "training: each of 6 convolutions before a batch norm; inside each of 2 blocks the first affine part against "
        "the second"
        " convolution; the stream of stage 0 with what reads and writes it. Up to epsilon the readers need not follow",
        3,
        9,
        [{"encoder.stages.1.layers.0.shortcut.convolution.weight": 1}],
    ),
    "ConvNeXt": Architecture(
        lambda: ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)),
        (IMAGES[:1],),
        "each block: layer scale against pwconv2, norm against pwconv1; the norm before downsampling against its "
        "convolution;"
        " up to epsilon the patches, each depthwise convolution with its bias, the stream of stage 0",
        5,
        9,
        [{"encoder.stages.0.layers.0.dwconv": 1}],
    ),
    "Wav2Vec2": Architecture(
        wav2vec2,
        (SOUND,),
        "the direction of a weight-normalised convolution; each layer: key bias, q/k, v/o; the first convolution "
        "before its"
        " group norm; PostNorm: 4 norms but the last, as in BERT",
        7,
        12,
        [{"encoder.pos_conv_embed.conv.parametrizations.weight.original1": 1}],
    ),
    "CLIP": Architecture(
        clip,
        {"input_ids": IDS, "pixel_values": IMAGES[:1]},
        "each tower (one layer): key bias, q/k, v/o, both norms against what is behind them; the last norm of the "
        "images"
        " against the projection; up to epsilon the stream of the text and the three embeddings of the images",
        11,
        13,
        [{"vision_model.post_layernorm": 1, "visual_projection.weight": -1}],
    ),
    "Mamba": Architecture(
        lambda: MambaModel(MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, state_size=4)),
        {"input_ids": IDS, "use_cache": False},
        "gain against in_proj; B and C by 1 each, D by 2, the steps undone in dt_proj, out_proj by -2; and the stream",
        2,
        3,
        [
            {
                "layers.0.mixer.D": 2,
                "layers.0.mixer.x_proj.weight": 1,
                "layers.0.mixer.dt_proj.weight": -1,
                "layers.0.mixer.out_proj.weight": -2,
            }
        ],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_report_is_what_was_counted_by_hand(name: str) -> None:
    one = ARCHITECTURES[name]
    torch.manual_seed(0)
    module = one.build()
    module = module if name == "ResNet" else module.eval()
    args, kwargs = (one.inputs, {}) if isinstance(one.inputs, tuple) else ((), one.inputs)
    report = analyze(module, args, kwargs)

    assert report.unsupported == ()
    assert (len(report.space()), len(report.space(up_to_epsilon=True))) == (one.exact, one.epsilon)
    for claim in one.holds:
        exponents = {name: q for key, q in claim.items() for name in report.select(key)}
        assert report.verdict(exponents) in (Verdict.EXACT, Verdict.UP_TO_EPSILON), claim
    assert report.confirmation is not None
    assert report.confirmation.contradicted == ()
    assert report.confirmation.observed == one.observed
    assert report.verdict("") is Verdict.NOT_PROVED
