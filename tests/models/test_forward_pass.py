"""The forward pass against its formulas in plain torch, and that each dropout drops."""

import math

import pytest
import torch
from torch.nn import functional as F

from sibert.models import (
    INVARIANCES,
    SibertConfig,
    SibertForMaskedLM,
    SibertForMultipleChoice,
    SibertForPreTraining,
    SibertForQuestionAnswering,
    SibertForSequenceClassification,
    SibertForTokenClassification,
    SibertModel,
)
from tests.models.builders import roughened

IDS = torch.randint(5, 97, (3, 11), generator=torch.Generator().manual_seed(1))
TYPES = (torch.arange(11) > 4).long().expand(3, 11)
MASK = torch.ones(3, 11, dtype=torch.long)
MASK[1, 6:] = 0
BATCH = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": TYPES}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def norm(x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / centred.square().mean(-1, keepdim=True).sqrt()


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


class Plain:
    """SIBERT as docs/concepts/granularity.md and, the joint form, section 3 of the paper have it."""

    def __init__(self, model):
        self.config, self.joint = model.config, model.config.invariance == "joint"
        self.weights = {name.removeprefix("sibert."): value for name, value in model.state_dict().items()}

    def affine(self, name, x):
        return x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0.0)

    def linear(self, name, x):
        if self.joint:
            return self.affine(name, x)
        weight = self.weights[f"{name}.weight"]
        columns = torch.cat([weight, self.weights.get(f"{name}.bias", torch.zeros(len(weight)).double())[:, None]], 1)
        columns = unit(columns) if self.config.invariance == "row" else columns
        return torch.cat([x, math.sqrt(x.shape[-1]) * torch.ones_like(x[..., :1])], -1) @ columns.T

    def embed(self, ids, types):
        rows = [self.weights["embeddings.word_embeddings.weight"][ids]]
        rows += [self.weights["embeddings.token_type_embeddings.weight"][types]]
        if not self.joint:
            return norm(sum(unit(row) for row in rows))
        rows += [self.weights["embeddings.position_embeddings.weight"][: ids.shape[1]]]
        gain, bias = (self.weights[f"embeddings.norm.{name}"] for name in ("weight", "bias"))
        return self.affine("embeddings.lift", gain * norm(sum(rows)) + bias)

    def turn(self, x):
        half = x.shape[-1] // 2
        angles = torch.arange(x.shape[-2])[:, None] * self.config.rope_theta ** -(torch.arange(half).double() / half)
        turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([turned.real, turned.imag], -1)

    def attention(self, layer, n, mask):
        def heads(x):
            return torch.stack(x.chunk(self.config.num_attention_heads, -1), 1)

        query, key = (heads(self.linear(f"{layer}.attention.{name}", n)) for name in ("query", "key"))
        if self.joint:
            scores = (query @ key.mT).relu() * mask[:, None, None]
            shares = (scores / scores.sum(-1, keepdim=True)).nan_to_num(0.0)
            value = heads(self.linear(f"{layer}.attention.value", n))
        else:
            cosines = self.turn(unit(query)) @ self.turn(unit(key)).mT
            scores = math.sqrt(query.shape[-1]) * cosines + mask[:, None, None].double().log()
            shares, value = scores.softmax(-1), heads(n)
        return self.linear(f"{layer}.attention.output", torch.cat((shares @ value).unbind(1), -1))

    def feed_forward(self, layer, n, mask):
        return self.linear(f"{layer}.feed_forward.output", self.linear(f"{layer}.feed_forward.input", n).relu())

    def encode(self, ids, mask, types):
        stream, depth = self.embed(ids, types), self.config.num_hidden_layers
        states = [stream]
        for number in range(depth):
            for branch in (self.attention, self.feed_forward):
                change = branch(f"layers.{number}", norm(stream), mask)
                stream = stream + (change if self.joint else norm(change) / math.sqrt(2 * depth))
            states.append(stream)
        return [*states[:-1], norm(stream)]

    def cosines(self, name, x):
        weight, bias, log_scale = (self.weights[f"{name}.{part}"] for part in ("weight", "bias", "log_scale"))
        return log_scale.exp() * unit(x) @ unit(weight).T + bias

    def predict(self, hidden):
        if self.joint:
            gain, bias = self.weights["head.norm.weight"], self.weights["head.norm.bias"]
            transformed = F.layer_norm(F.gelu(self.affine("head.dense", hidden)), gain.shape, gain, bias, eps=1e-12)
            return self.affine("decoder", transformed)
        return self.cosines("decoder", norm(self.linear("head.dense", hidden).relu()))

    def pool(self, hidden, mask, pooling):
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        pooled = self.linear("pooler.dense", mean if pooling == "mean" else hidden[:, 0])
        return torch.tanh(pooled if self.joint else norm(pooled))


@pytest.fixture(params=INVARIANCES)
def invariance(request):
    return request.param


def config_of(invariance, **fields):
    return SibertConfig.of_size(
        "nano", **{"vocab_size": 97, "max_position_embeddings": 40, "invariance": invariance, **NO_DROPOUT, **fields}
    )


def model_and_transcription(model_class, invariance, **fields):
    model = roughened(model_class(config_of(invariance, **fields)).double().eval())
    transcription = Plain(model)
    return model, transcription, transcription.encode(IDS, MASK, TYPES)


def assert_equal(ours, expected):
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_hidden_states_are_those_of_the_formulas(invariance):
    model, _, states = model_and_transcription(SibertModel, invariance)
    outputs = model(**BATCH, output_hidden_states=True)
    assert_equal(outputs.last_hidden_state, states[-1])
    assert_equal(outputs.hidden_states, tuple(states))


@torch.no_grad()
def test_masked_lm_logits_and_loss_are_those_of_the_formulas(invariance):
    model, plain, states = model_and_transcription(SibertForMaskedLM, invariance)
    targets = (torch.arange(11) % 3 == 1) & (MASK == 1)
    outputs = model(**BATCH, labels=torch.where(targets, IDS, -100))
    logits = plain.predict(states[-1])
    assert_equal(outputs.logits, logits)
    assert_equal(outputs.loss, -logits.log_softmax(-1)[targets, IDS[targets]].mean())


@torch.no_grad()
def test_next_sentence_logits_are_those_of_the_formulas(invariance):
    model, plain, states = model_and_transcription(SibertForPreTraining, invariance)
    pooled = plain.pool(states[-1], MASK, "cls")
    score = plain.affine if invariance == "joint" else plain.cosines
    outputs = model(**BATCH)
    assert_equal(outputs.prediction_logits, plain.predict(states[-1]))
    assert_equal(outputs.seq_relationship_logits, score("seq_relationship", pooled))


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_pooled_and_classified_sequences_are_those_of_the_formulas(pooling, invariance):
    model, plain, states = model_and_transcription(
        SibertForSequenceClassification, invariance, num_labels=3, classifier_pooling=pooling
    )
    pooled = plain.pool(states[-1], MASK, pooling)
    assert_equal(model.pooler(model.sibert(**BATCH).last_hidden_state, MASK), pooled)
    assert_equal(model(**BATCH).logits, plain.affine("classifier", pooled))


@torch.no_grad()
def test_classified_tokens_are_those_of_the_formulas(invariance):
    model, plain, states = model_and_transcription(SibertForTokenClassification, invariance, num_labels=3)
    assert_equal(model(**BATCH).logits, plain.affine("classifier", states[-1]))


@torch.no_grad()
def test_answers_start_by_the_first_row_of_the_head_and_end_by_the_second(invariance):
    model, plain, states = model_and_transcription(SibertForQuestionAnswering, invariance)
    outputs = model(**BATCH)
    lowest = torch.finfo(torch.float64).min
    start, end = plain.affine("qa_outputs", states[-1]).masked_fill(MASK[..., None] == 0, lowest).unbind(-1)
    assert_equal(outputs.start_logits, start)
    assert_equal(outputs.end_logits, end)


def test_tokens_are_of_the_first_type_unless_one_says_otherwise(invariance):
    model = roughened(SibertModel(config_of(invariance)).double().eval())
    default, first, second = (
        model(IDS, **types).last_hidden_state
        for types in ({}, {"token_type_ids": 0 * TYPES}, {"token_type_ids": 0 * TYPES + 1})
    )
    assert torch.equal(default, first)
    assert (default - second).abs().max() > 0.01


def assert_drops(model, output):
    """Outputs vary in training, and in evaluation they do not."""
    assert not torch.equal(output(), output())
    model.eval()
    assert torch.equal(output(), output())


def test_embeddings_drop(invariance):
    model = roughened(SibertModel(config_of(invariance, num_hidden_layers=0, hidden_dropout_prob=0.2)).train())
    assert_drops(model, lambda: model(**BATCH).last_hidden_state)


@pytest.mark.parametrize("branch", ["attention", "feed_forward"])
def test_each_branch_drops(branch, invariance):
    model = roughened(SibertModel(config_of(invariance, num_hidden_layers=1, hidden_dropout_prob=0.2)).train())
    model.embeddings.eval()
    other = model.layers[0].feed_forward if branch == "attention" else model.layers[0].attention
    torch.nn.init.zeros_(other.output.weight)
    assert_drops(model, lambda: model(**BATCH).last_hidden_state)


def test_attention_drops(invariance):
    model = roughened(SibertModel(config_of(invariance, attention_probs_dropout_prob=0.2)).train())
    assert_drops(model, lambda: model(**BATCH).last_hidden_state)


WITH_CLASSIFIER = [SibertForSequenceClassification, SibertForTokenClassification, SibertForMultipleChoice]


@pytest.mark.parametrize("model_class", WITH_CLASSIFIER)
@pytest.mark.parametrize(("hidden", "own", "drops"), [(0.2, None, True), (0.0, 0.2, True), (0.2, 0.0, False)])
def test_a_classifier_drops_as_the_encoder_does_or_at_a_rate_of_its_own(hidden, own, drops, model_class):
    model = roughened(model_class(config_of("matrix", hidden_dropout_prob=hidden, classifier_dropout=own)).train())
    model.sibert.eval()

    def output():
        return model(**BATCH, **({"num_choices": 3} if model_class is SibertForMultipleChoice else {})).logits

    if drops:
        assert_drops(model, output)
    else:
        assert torch.equal(output(), output())


def test_without_a_rate_nothing_drops(invariance):
    model = roughened(SibertForTokenClassification(config_of(invariance)).train())
    assert torch.equal(model(**BATCH).logits, model(**BATCH).logits)
