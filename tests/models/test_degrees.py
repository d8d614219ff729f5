"""Degrees of paper.md's Table 2, block by block, each with a negative twin that the same assertion catches."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sibert.models import SibertConfig, SibertForMaskedLM, SibertModel
from sibert.models.modeling_sibert import (
    SibertAffineNorm,
    SibertAttention,
    SibertEmbeddings,
    SibertFeedForward,
    SibertLayer,
)
from sibert.ops import layer_norm
from tests.assertions import assert_homogeneous, assert_not_homogeneous, euler_residual
from tests.models.builders import deep_config, roughened

POSITIONS = torch.arange(19)[None]


@pytest.fixture
def config():
    return SibertConfig.of_size("nano", vocab_size=97, max_position_embeddings=40, invariance="joint")


@pytest.fixture
def hidden():
    return torch.randn(2, 7, 32).double()


def make(block, config):
    return roughened(block(config).double().eval())


def test_embeddings_have_degree_two(config, batch):
    block = make(SibertEmbeddings, config)
    assert_homogeneous(lambda: block(batch["input_ids"], None, POSITIONS, None), block.parameters(), degree=2)


def test_embeddings_without_the_lift_have_degree_one(config, batch):
    block = make(SibertEmbeddings, config)
    block.lift = nn.Identity()
    assert_homogeneous(lambda: block(batch["input_ids"], None, POSITIONS, None), block.parameters(), degree=1)


def test_a_biased_lift_breaks_it(config, batch):
    block = make(SibertEmbeddings, config)
    block.lift = roughened(nn.Linear(32, 32).double())
    assert_not_homogeneous(lambda: block(batch["input_ids"], None, POSITIONS, None), block.parameters(), degree=2)


def test_affine_norm_has_degree_one_for_an_input_of_any_degree(hidden):
    block = roughened(SibertAffineNorm(32).double())
    assert_homogeneous(lambda: block(hidden), block.parameters(), degree=1)
    assert_homogeneous(lambda: block(hidden), [hidden, *block.parameters()], degree=1)


def test_attention_has_degree_two(config, hidden):
    block = make(SibertAttention, config)
    assert_homogeneous(lambda: block(hidden, None)[0], block.parameters(), degree=2)
    assert_homogeneous(lambda: block(hidden, None, need_weights=True)[1], block.parameters(), degree=0)


def test_a_biased_output_projection_breaks_attention(config, hidden):
    block = make(SibertAttention, config)
    block.output = roughened(nn.Linear(32, 32).double())
    assert_not_homogeneous(lambda: block(hidden, None)[0], block.parameters(), degree=2)


def test_softmax_breaks_attention(config, hidden, monkeypatch):
    def softmax_attention(query, key, value, mask, **kwargs):
        return F.scaled_dot_product_attention(query, key, value), None

    monkeypatch.setattr("sibert.models.modeling_sibert.relu_attention", softmax_attention)
    block = make(SibertAttention, config)
    assert_not_homogeneous(lambda: block(hidden, None)[0], block.parameters(), degree=2)


def test_an_input_of_degree_one_breaks_attention_with_biases(config, hidden):
    block = make(SibertAttention, config)
    assert_not_homogeneous(lambda: block(hidden, None)[0], [hidden, *block.parameters()], degree=3)


def test_feed_forward_has_degree_two(config, hidden):
    block = make(SibertFeedForward, config)
    assert_homogeneous(lambda: block(hidden), block.parameters(), degree=2)


def test_gelu_and_an_output_bias_break_feed_forward(config, hidden):
    block = make(SibertFeedForward, config)
    assert_not_homogeneous(lambda: block.output(F.gelu(block.input(hidden))), block.parameters(), degree=2)
    block.output = roughened(nn.Linear(64, 32).double())
    assert_not_homogeneous(lambda: block(hidden), block.parameters(), degree=2)


def test_a_layer_keeps_degree_two(config, hidden):
    block = make(SibertLayer, config)

    def f():
        return block(hidden, None)

    with torch.no_grad():
        old = f()
        for c in (0.01, 3.0, 100.0):
            scaled_block = make(SibertLayer, config)
            scaled_block.load_state_dict({name: c * value for name, value in block.state_dict().items()})
            torch.testing.assert_close(scaled_block(c**2 * hidden, None), c**2 * old, rtol=1e-10, atol=0)
            # The stream must have degree 2: with degree 1 the sum of stream and branch has no degree.
            assert (scaled_block(c * hidden, None) - c * old).norm() > 1e-3 * (c * old).norm()


def test_a_norm_with_epsilon_breaks_the_encoder(batch, monkeypatch):
    model = roughened(SibertModel(deep_config()).double().eval())

    def f():
        return model(**batch).last_hidden_state

    assert_homogeneous(f, model.parameters(), degree=0, scales=(1e-3,))
    monkeypatch.setattr("sibert.models.modeling_sibert.layer_norm", lambda x: F.layer_norm(x, x.shape[-1:], eps=1e-12))
    assert_not_homogeneous(f, model.parameters(), degree=0, c=1e-3)


def test_gradients_are_orthogonal_to_the_encoder(batch):
    model = roughened(SibertForMaskedLM(deep_config()).double().eval())
    labels = batch["input_ids"].clone()
    loss = model(**batch, labels=labels).loss
    assert euler_residual(loss, model.sibert.parameters()) < 1e-12
    loss = model(**batch, labels=labels).loss
    head = [p for name, p in model.named_parameters() if not name.startswith("sibert.")]
    assert euler_residual(loss, head) > 1e-4


def test_gradients_have_degree_minus_one(batch):
    model = roughened(SibertForMaskedLM(deep_config()).double().eval())
    labels = batch["input_ids"].clone()
    parameters = list(model.sibert.parameters())

    def gradient():
        with torch.enable_grad():
            return torch.cat([g.flatten() for g in torch.autograd.grad(model(**batch, labels=labels).loss, parameters)])

    assert_homogeneous(gradient, parameters, degree=-1)


def test_queries_alone_can_be_rescaled(config, hidden):
    # Each of Q and K with its bias is a group of its own: the weights have degree 0 in the scores.
    block = make(SibertAttention, config)
    assert_homogeneous(lambda: block(hidden, None)[0], block.query.parameters(), degree=0)
    assert_homogeneous(lambda: block(hidden, None)[0], block.key.parameters(), degree=0)
    assert_not_homogeneous(lambda: block(hidden, None)[0], block.value.parameters(), degree=0)


def test_layer_norm_of_the_stream_is_what_makes_it_degree_zero(hidden):
    assert_homogeneous(lambda: layer_norm(hidden), [hidden], degree=0)
