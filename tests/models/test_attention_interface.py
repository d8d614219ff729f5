"""attn_implementation="relu_normalized": models of transformers see what they should see, and nothing else."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    ModernBertConfig,
    ModernBertModel,
    T5Config,
    T5EncoderModel,
    ViTConfig,
    ViTModel,
)

from sibert.models import relu_normalized_attention
from sibert.models.attention_interface import NAME
from tests.assertions import relative_change
from tests.models.builders import roughened

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
VOCABULARY = 50


def build(model_class, config):
    torch.manual_seed(0)
    model = model_class._from_config(config, attn_implementation=NAME)
    return roughened(model.double().eval())


def bert():
    return build(BertModel, BertConfig(vocab_size=VOCABULARY, max_position_embeddings=40, **SMALL))


def gpt2():
    return build(GPT2LMHeadModel, GPT2Config(vocab_size=VOCABULARY, n_positions=40, n_embd=16, n_layer=2, n_head=4))


def llama(**fields):
    fields = {"num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 40, **SMALL, **fields}
    return build(LlamaForCausalLM, LlamaConfig(**fields))


def mistral():
    fields = {"num_key_value_heads": 2, "max_position_embeddings": 40, "sliding_window": 6, **SMALL}
    return build(MistralForCausalLM, MistralConfig(vocab_size=VOCABULARY, **fields))


def tokens(length=12):
    return torch.randint(3, VOCABULARY, (2, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_bert_does_not_see_padding():
    model, ids, mask = bert(), tokens(), torch.ones(2, 12, dtype=torch.long)
    mask[1, 7:] = 0
    changed = ids.clone()
    changed[1, 7:] = 1
    one, other = (model(input_ids=x, attention_mask=mask).last_hidden_state[mask.bool()] for x in (ids, changed))
    assert torch.equal(one, other)
    assert relative_change(model(input_ids=changed).last_hidden_state[0], one[:12]) < 1e-12
    assert relative_change(model(input_ids=changed).last_hidden_state[mask.bool()], one) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("build_model", [gpt2, llama])
def test_decoders_do_not_see_the_future(build_model, padded):
    model, ids = build_model(), tokens()
    mask = torch.ones(2, 12, dtype=torch.long)
    if padded:
        mask[1, :3] = 0
    changed = ids.clone()
    changed[:, 8:] = 1
    one, other = (model(input_ids=x, attention_mask=mask).logits for x in (ids, changed))
    torch.testing.assert_close(one[:, :8], other[:, :8])
    assert relative_change(other[:, 8:], one[:, 8:]) > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("build_model", [gpt2, llama])
def test_generation_with_a_cache_equals_generation_without(build_model):
    model, ids = build_model(), tokens(5)
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids), "pad_token_id": 0}
    assert torch.equal(model.generate(ids, use_cache=True, **options), model.generate(ids, use_cache=False, **options))


@torch.no_grad()
@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("build_model", [llama, mistral])
def test_packed_sequences_equal_sequences_one_by_one(build_model, with_mask):
    model, ids = build_model(), tokens(20)[:1]
    starts = torch.tensor([0, 4, 12, 20], dtype=torch.int32)  # the second and third are longer than Mistral's window
    bounds = {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": 8, "max_length_k": 8}
    mask = {"attention_mask": torch.ones_like(ids)} if with_mask else {}
    packed = model(input_ids=ids, **bounds, **mask).logits
    alone = torch.cat([model(input_ids=part).logits for part in ids.split([4, 8, 8], dim=1)], dim=1)
    torch.testing.assert_close(packed, alone)  # positions are relative in both models
    assert relative_change(model(input_ids=ids, **mask).logits[:, 4:], alone[:, 4:]) > 1e-2


@torch.no_grad()
def test_modern_bert_sees_its_window_only():
    fields = {"global_attn_every_n_layers": 5, "local_attention": 4, "pad_token_id": 0, "num_hidden_layers": 1}
    layers = {**SMALL, **fields, "layer_types": ["sliding_attention"]}
    model = build(ModernBertModel, ModernBertConfig(vocab_size=VOCABULARY, **layers))
    ids = tokens()
    changed = ids.clone()
    changed[:, 9:] = 1
    one, other = (model(input_ids=x).last_hidden_state for x in (ids, changed))
    torch.testing.assert_close(one[:, :7], other[:, :7])  # a window of 4 reaches two tokens to either side
    assert relative_change(other[:, 7], one[:, 7]) > 1e-6


def test_vit_trains_and_is_invariant_to_the_scale_of_its_queries():
    config = ViTConfig(image_size=8, patch_size=4, **SMALL)
    model, pixels = build(ViTModel, config), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    before = model(pixels).last_hidden_state
    before.square().sum().backward()
    queries = [p for n, p in model.named_parameters() if "query" in n or "q_proj" in n]
    assert len(queries) == 4
    assert all(p.grad is not None and p.grad.isfinite().all() for n, p in model.named_parameters() if "pooler" not in n)
    with torch.no_grad():
        for parameter in queries:
            parameter.mul_(1000.0)
        torch.testing.assert_close(model(pixels).last_hidden_state, before)
        model.set_attn_implementation("sdpa")
        assert relative_change(model(pixels).last_hidden_state, before) > 1e-3  # softmax is not


def test_models_are_saved_and_opened(tmp_path):
    model, ids = llama(), tokens()
    model.save_pretrained(tmp_path)
    opened = LlamaForCausalLM.from_pretrained(tmp_path, attn_implementation=NAME, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(opened(input_ids=ids).logits, model(input_ids=ids).logits)


def test_t5_is_refused():
    model = build(
        T5EncoderModel, T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=4)
    )
    with pytest.raises(ValueError, match=r"passes position_bias: it adds a bias to the scores"):
        model(input_ids=tokens())


class TestTheFunction:
    query, key = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8)
    module = torch.nn.Module()

    def attend(self, mask=None, **options):
        options = {"is_causal": False, **options}
        return relu_normalized_attention(self.module, self.query, self.key, self.key, mask, **options)

    def test_additive_and_boolean_masks_mean_the_same(self):
        keep = torch.rand(2, 1, 6, 6) < 0.6
        additive = torch.zeros(2, 1, 6, 6).masked_fill(~keep, torch.finfo(torch.float32).min)
        assert torch.equal(self.attend(keep)[0], self.attend(additive)[0])
        assert not torch.equal(self.attend(keep)[0], self.attend()[0])

    def test_no_mask_means_what_the_module_says(self):
        causal = torch.ones(6, 6).tril().bool()[None, None]
        assert torch.equal(self.attend(is_causal=True)[0], self.attend(causal)[0])
        self.module.is_causal = True
        assert torch.equal(self.attend(is_causal=None)[0], self.attend(causal)[0])

    def test_a_window_counts_where_no_mask_holds_it(self):
        distance = (torch.arange(6)[:, None] - torch.arange(6)).abs()
        assert torch.equal(self.attend(sliding_window=2)[0], self.attend((distance < 2)[None, None])[0])

    def test_packed_sequences_do_not_see_each_other(self):
        query, key = self.query[:1], self.key[:1]
        starts = torch.tensor([0, 2, 6], dtype=torch.int32)
        options = {"is_causal": False, "cu_seq_lens_q": starts, "cu_seq_lens_k": starts}
        together, _ = relu_normalized_attention(self.module, query, key, key, None, **options)
        alone, _ = relu_normalized_attention(
            self.module, query[:, :, :2], key[:, :, :2], key[:, :, :2], None, is_causal=False
        )
        torch.testing.assert_close(together[:, :2], alone)
        everything = torch.ones(1, 1, 6, 6, dtype=torch.bool)
        masked, _ = relu_normalized_attention(self.module, query, key, key, everything, **options)
        torch.testing.assert_close(masked, together)

    def test_weights_come_when_asked_for(self):
        assert self.attend()[1] is None
        assert self.attend(output_attentions=True)[1].shape == (2, 4, 6, 6)

    @pytest.mark.parametrize("options", [{"softcap": 30.0}, {"s_aux": torch.ones(4)}, {"scaling": 0.0}])
    def test_what_breaks_the_invariance_is_refused(self, options):
        with pytest.raises(ValueError, match=r"invarian|positive"):
            self.attend(**options)
