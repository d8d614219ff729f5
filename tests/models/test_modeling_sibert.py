"""The contract of transformers: classes, round trips, pipelines, compilation, export."""

import copy

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertTokenizer,
    pipeline,
)

from sibert.models import (
    INVARIANCES,
    SIZES,
    BertTwinForMaskedLM,
    BertTwinForPreTraining,
    ModernBertTwinForMaskedLM,
    SibertConfig,
    SibertForMaskedLM,
    SibertForMultipleChoice,
    SibertForPreTraining,
    SibertForQuestionAnswering,
    SibertForSequenceClassification,
    SibertForTokenClassification,
    SibertModel,
    modern_bert_config,
)
from sibert.models.masked_lm_loss import masked_lm_loss, next_sentence_loss
from tests.models.builders import deep_config, roughened

WITH_BIAS = ("query.bias", "key.bias", "feed_forward.input.bias")
CLASSES = {
    SibertModel: (AutoModel, {}),
    SibertForMaskedLM: (AutoModelForMaskedLM, {"labels": lambda ids: ids}),
    SibertForPreTraining: (
        AutoModelForPreTraining,
        {"labels": lambda ids: ids, "next_sentence_label": lambda ids: ids[:, 0] % 2},
    ),
    SibertForSequenceClassification: (AutoModelForSequenceClassification, {"labels": lambda ids: ids[:, 0] % 2}),
    SibertForTokenClassification: (AutoModelForTokenClassification, {"labels": lambda ids: ids % 2}),
    SibertForQuestionAnswering: (
        AutoModelForQuestionAnswering,
        {"start_positions": lambda ids: ids[:, 0] % 19, "end_positions": lambda ids: ids[:, 1] % 19},
    ),
    SibertForMultipleChoice: (AutoModelForMultipleChoice, {"labels": lambda ids: ids[:, 0, 0] % 2}),
}


def inputs_for(model_class, batch, with_labels=True):
    inputs = dict(batch)
    if model_class is SibertForMultipleChoice:
        inputs = {name: value.view(2, 2, -1) for name, value in inputs.items()}
    labels = {name: make(inputs["input_ids"]) for name, make in CLASSES[model_class][1].items()} if with_labels else {}
    return {**inputs, **labels}


@pytest.mark.parametrize("model_class", CLASSES)
def test_round_trip_through_a_folder_and_the_auto_class(model_class, config, batch, tmp_path):
    model = roughened(model_class(config).eval())
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    assert isinstance(AutoConfig.from_pretrained(tmp_path), SibertConfig)
    loaded = CLASSES[model_class][0].from_pretrained(tmp_path).eval()
    assert type(loaded) is model_class
    inputs = inputs_for(model_class, batch)
    for name, value in model(**inputs).items():
        torch.testing.assert_close(loaded(**inputs)[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("model_class", CLASSES)
def test_every_parameter_gets_a_finite_gradient_and_a_group(model_class, config, batch):
    model = roughened(model_class(config).train())
    outputs = model(**inputs_for(model_class, batch))
    loss = (
        outputs.loss
        if "loss" in outputs
        else outputs.last_hidden_state.square().mean() + outputs.last_hidden_state[0, 0, 0]
    )
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    groups = model.scale_invariant_groups()
    members = {name for group in groups.values() for name, _ in group.members}
    if config.invariance == "joint":
        assert list(groups) == ["encoder"]
        assert members == {
            name for name, _ in model.named_parameters() if model_class is SibertModel or name.startswith("sibert.")
        }
    else:
        task_heads = ("classifier.", "qa_outputs.")
        matrices = {name for name, p in model.named_parameters() if p.dim() == 2 and not name.startswith(task_heads)}
        biases = {name for name in members if name.endswith(WITH_BIAS)}
        assert members - {"decoder.weight"} == matrices | biases
        assert len(biases) == 3 * config.num_hidden_layers


@pytest.mark.parametrize("invariance", INVARIANCES)
def test_initialisation_is_the_table_in_its_docstring(invariance):
    model = SibertForMaskedLM(SibertConfig.of_size("tiny", vocab_size=500, invariance=invariance))
    for name, parameter in model.named_parameters():
        column = invariance != "joint" and name.endswith(WITH_BIAS)
        if name.endswith("bias") and not column:
            assert (parameter == 0).all(), name
        elif name == "decoder.log_scale":
            assert parameter.exp().item() == pytest.approx((0.5 * model.config.hidden_size) ** 0.5)
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            # A normal distribution cut at two standard deviations keeps 0.88 of its standard deviation.
            assert parameter.std().item() == pytest.approx(0.02 * 0.8796, rel=0.25 if column else 0.1), name
            assert parameter.abs().max() <= 0.04, name


def test_base_and_large_have_berts_sizes():
    assert SIZES["base"] == {
        "num_hidden_layers": 12,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    }
    assert SIZES["large"] == {
        "num_hidden_layers": 24,
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    }
    default = SibertConfig()
    assert {name: getattr(default, name) for name in SIZES["base"]} == SIZES["base"]
    assert 108e6 < parameters_of_base("joint") < 111e6
    # Without matrices for values and without a table of positions.
    assert 108e6 < parameters_of_base("matrix") + 12 * 768**2 + 512 * 768 < 111e6


def parameters_of_base(invariance):
    with torch.device("meta"):
        encoder = SibertModel(SibertConfig.of_size("base", invariance=invariance))
    return sum(p.numel() for p in encoder.parameters())


def test_hidden_states_and_attentions(config, batch):
    model = roughened(SibertForMaskedLM(config).eval())
    outputs = model(**batch, output_hidden_states=True, output_attentions=True)
    assert len(outputs.hidden_states) == config.num_hidden_layers + 1
    assert [tuple(a.shape) for a in outputs.attentions] == [(4, 2, 19, 19)] * 2
    rows = outputs.attentions[0].sum(dim=-1)
    assert (((rows - 1).abs() < 1e-5) | (rows == 0)).all()
    assert (outputs.attentions[0][1, :, :, 11:] == 0).all()
    torch.testing.assert_close(outputs.logits, model(**batch).logits)
    torch.testing.assert_close(outputs.hidden_states[-1], model.sibert(**batch).last_hidden_state)
    as_tuple = model(**batch, return_dict=False)
    assert isinstance(as_tuple, tuple)


def test_masks_of_every_form_agree(config, batch):
    model = roughened(SibertModel(config).eval())
    mask = batch["attention_mask"]
    reference = model(**batch).last_hidden_state
    full = mask[:, None, :].expand(-1, 19, -1)
    additive = torch.zeros(4, 1, 19, 19).masked_fill(full[:, None] == 0, torch.finfo(torch.float32).min)
    for form in (mask.bool(), mask.float(), full, full[:, None].bool(), additive):
        torch.testing.assert_close(model(batch["input_ids"], attention_mask=form).last_hidden_state, reference)
    ones = torch.ones_like(mask)
    torch.testing.assert_close(
        model(batch["input_ids"], attention_mask=ones).last_hidden_state, model(batch["input_ids"]).last_hidden_state
    )


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_classifier_sees_the_first_token_or_the_mean_and_never_the_padding(pooling, config, batch):
    settings = SibertConfig.from_dict({**config.to_dict(), "classifier_pooling": pooling})
    model = roughened(SibertForSequenceClassification(settings).eval())
    seen = []
    model.pooler.dense.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    ids, mask = (batch[name][:3] for name in ("input_ids", "attention_mask"))
    logits = model(ids, attention_mask=mask).logits
    hidden = model.sibert(ids, attention_mask=mask).last_hidden_state
    expected = [h[m.bool()].mean(0) if pooling == "mean" else h[0] for h, m in zip(hidden, mask, strict=True)]
    torch.testing.assert_close(seen[0], torch.stack(expected))
    torch.testing.assert_close(model(torch.where(mask.bool(), ids, 7), attention_mask=mask).logits, logits)
    torch.testing.assert_close(model(ids, attention_mask=torch.ones_like(mask)).logits, model(ids).logits)
    assert torch.equal(model(ids, attention_mask=mask * torch.arange(1, 20)).logits, logits)  # not 0 = attend
    if pooling == "mean":
        with pytest.raises(ValueError, match=r"needs an attention_mask \[B, T\]"):
            model(ids, attention_mask=mask[:, None, :].expand(-1, 19, -1))
        model(ids, attention_mask=torch.zeros_like(mask))
        assert not seen[-1].any()  # nothing but padding


def test_masked_positions_give_the_loss_of_full_labels(config, batch):
    model = roughened(SibertForMaskedLM(config).eval())
    positions = torch.tensor([[2, 5, 7], [1, 3, 0], [4, 6, 0], [9, 0, 0]])
    labels = torch.tensor([[11, 12, 13], [14, 15, -100], [16, 17, -100], [18, -100, -100]])
    full = torch.full((4, 19), -100)
    for row, (places, targets) in enumerate(zip(positions, labels, strict=True)):
        for place, target in zip(places, targets, strict=True):
            if target != -100:
                full[row, place] = target
    sparse = model(**batch, labels=labels, masked_positions=positions)
    assert sparse.logits.shape == (4, 3, 97)
    torch.testing.assert_close(sparse.loss, model(**batch, labels=full).loss)


def test_losses_of_micro_batches_add_up_to_the_loss_of_the_batch():
    logits, labels = torch.randn(6, 5, 11).double(), torch.randint(0, 11, (6, 5))
    labels[0, 1:] = labels[3] = -100
    targets = (labels != -100).sum()
    parts = [masked_lm_loss(logits[i : i + 2], labels[i : i + 2], targets) for i in (0, 2, 4)]
    torch.testing.assert_close(sum(parts), masked_lm_loss(logits, labels))
    means = [masked_lm_loss(logits[i : i + 2], labels[i : i + 2]) for i in (0, 2, 4)]
    assert (sum(means) / 3 - masked_lm_loss(logits, labels)).abs() > 1e-3  # what averaging means would give
    assert masked_lm_loss(logits[3:4], labels[3:4]) == 0
    relation, follows = torch.randn(6, 2).double(), torch.tensor([0, 1, 1, 0, 1, 0])
    pairs = [next_sentence_loss(relation[i : i + 3], follows[i : i + 3], 6) for i in (0, 3)]
    torch.testing.assert_close(sum(pairs), next_sentence_loss(relation, follows))


def test_gradient_checkpointing_changes_nothing_but_memory(config, batch):
    model = roughened(SibertForMaskedLM(config)).double().train()
    twin = copy.deepcopy(model)
    twin.activation_checkpointing_enable()
    for one in (model, twin):
        torch.manual_seed(2)
        one(**batch, labels=batch["input_ids"]).loss.backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad)


def test_resize_token_embeddings(config, batch):
    model = SibertForMaskedLM(config).eval()
    old = model(**batch).logits
    model.resize_token_embeddings(120)
    assert model.config.vocab_size == 120
    logits = model(**batch).logits
    assert logits.shape[-1] == 120
    torch.testing.assert_close(logits[..., :97], old)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == (config.invariance != "joint")


@pytest.mark.parametrize("size", [120, 60])
def test_an_untied_decoder_is_resized_as_what_it_is(size, batch, tmp_path):
    model = SibertForMaskedLM(deep_config(invariance="matrix", tie_word_embeddings=False)).eval()
    ids = batch["input_ids"] % 60
    with torch.no_grad():
        model.decoder.log_scale.add_(0.5)
    old, groups = model(ids).logits, model.scale_invariant_groups()
    model.resize_token_embeddings(size)
    torch.testing.assert_close(model(ids).logits[..., : min(size, 97)], old[..., :size])
    assert model.scale_invariant_groups().keys() == groups.keys()
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(SibertForMaskedLM.from_pretrained(tmp_path).eval()(ids).logits, model(ids).logits)


def test_twins_return_what_their_models_do(batch):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 97}
    bert = BertConfig(**sizes, intermediate_size=64)
    modern = modern_bert_config(**sizes, intermediate_size=96, pad_token_id=0)
    ids = batch["input_ids"]
    for twin in (BertTwinForMaskedLM(bert), BertTwinForPreTraining(bert), ModernBertTwinForMaskedLM(modern)):
        outputs = twin.eval()(ids, labels=ids, output_hidden_states=True)
        assert len(outputs.hidden_states) == 3
        logits = outputs.get("logits", outputs.get("prediction_logits"))
        shorter = twin(ids, labels=ids, return_dict=False)
        assert isinstance(shorter, tuple)
        assert any(one.shape == logits.shape and torch.equal(one, logits) for one in shorter)


@pytest.mark.parametrize("size", SIZES)
def test_modernberts_feed_forward_layer_has_three_matrices_of_two_thirds_of_the_width(size):
    bert = SIZES[size]
    modern = modern_bert_config(**bert)
    assert modern.intermediate_size % 8 == 0
    assert abs(modern.intermediate_size - 2 / 3 * bert["intermediate_size"]) <= 4
    with torch.device("meta"):
        mlp = ModernBertTwinForMaskedLM(modern).model.layers[0].mlp
    matrices = sum(p.numel() for p in mlp.parameters() if p.dim() == 2)
    assert matrices == pytest.approx(2 * bert["hidden_size"] * bert["intermediate_size"], rel=0.07)


def test_positions_may_be_those_of_all_sequences(config, batch):
    model = SibertModel(config).eval()
    ids = batch["input_ids"]
    shifted = torch.arange(ids.shape[1]) + 3
    expected = model(ids, position_ids=shifted.expand_as(ids)).last_hidden_state
    torch.testing.assert_close(model(ids, position_ids=shifted).last_hidden_state, expected)


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("model_class", [SibertModel, SibertForMaskedLM, SibertForSequenceClassification])
def test_compiles_to_one_graph(model_class, training, config, batch):
    torch.compiler.reset()  # all classes share a wrapper of transformers, whose graphs are counted together
    model = roughened(model_class(config)).train(training)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    inputs = inputs_for(model_class, batch)
    results = []
    for one in (model, compiled):
        torch.manual_seed(4)
        outputs = one(**inputs)
        loss = outputs.loss if "loss" in outputs else outputs.last_hidden_state[0, 0, 0]
        loss.backward()
        results.append([outputs[0].detach(), *[p.grad.clone() for p in one.parameters()]])
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("model_class", [SibertModel, SibertForMaskedLM, SibertForSequenceClassification])
def test_exports_with_dynamic_shapes(model_class, config, batch):
    model = roughened(model_class(config).eval())
    dimensions = {0: torch.export.Dim("batch", min=2, max=64), 1: torch.export.Dim("length", min=2, max=40)}
    program = torch.export.export(
        model,
        (),
        {"input_ids": torch.randint(0, 97, (3, 13)), "attention_mask": torch.ones(3, 13, dtype=torch.long)},
        dynamic_shapes={"input_ids": dimensions, "attention_mask": dimensions},
    )
    torch.testing.assert_close(program.module()(**batch)[0], model(**batch)[0], rtol=1e-5, atol=1e-6)


@pytest.fixture
def tokenizer():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "mat", "."]
    return BertTokenizer(vocab={word: number for number, word in enumerate(words)})


def test_pipelines(tokenizer, tmp_path):
    config = SibertConfig.of_size("nano", vocab_size=len(tokenizer))
    SibertForMaskedLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    predictions = pipeline("fill-mask", model=str(tmp_path))("the cat sat on the [MASK] .", top_k=3)
    assert len(predictions) == 3
    assert 0 < sum(one["score"] for one in predictions) <= 1
    features = pipeline("feature-extraction", model=str(tmp_path))("the cat sat")
    assert (len(features[0]), len(features[0][0])) == (5, 32)


def test_the_trunk_of_a_pre_trained_model_serves_every_task(config, batch, tmp_path):
    model = roughened(SibertForPreTraining(config).eval())
    model.save_pretrained(tmp_path)
    for model_class in (SibertForMaskedLM, SibertForSequenceClassification, SibertModel):
        loaded = model_class.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(loaded.base_model(**batch)[0], model.sibert(**batch)[0], rtol=0, atol=0)


def test_errors_teach(config, batch):
    with pytest.raises(StrictDataclassError, match="multiple of num_attention_heads"):
        SibertConfig(hidden_size=30, num_attention_heads=4)
    with pytest.raises(StrictDataclassError, match="must be even"):
        SibertConfig(hidden_size=30, num_attention_heads=2)
    SibertConfig(hidden_size=30, num_attention_heads=2, invariance="joint")
    with pytest.raises(StrictDataclassError, match="rope_theta must be positive"):
        SibertConfig(rope_theta=0.0)
    with pytest.raises(StrictDataclassError, match="tie_word_embeddings must be False"):
        SibertConfig(invariance="joint", tie_word_embeddings=True)
    with pytest.raises(StrictDataclassError, match="invariance must be one of joint, matrix, row, got 'column'"):
        SibertConfig(invariance="column")
    with pytest.raises(StrictDataclassError, match="vocab_size must be at least 1"):
        SibertConfig(vocab_size=0)
    with pytest.raises(StrictDataclassError, match="'cls' or 'mean', got 'max'"):
        SibertConfig(classifier_pooling="max")
    with pytest.raises(StrictDataclassError, match="hidden_dropout_prob"):
        SibertConfig(hidden_dropout_prob=1.5)
    for wrong, message in (
        ({"num_hidden_layers": -1}, "num_hidden_layers must be at least 0, got -1"),
        ({"type_vocab_size": -1}, "type_vocab_size must be at least 0, got -1"),
        ({"initializer_range": -1.0}, r"initializer_range must be positive, got -1\.0"),
        ({"initializer_range": 0.0}, r"initializer_range must be positive, got 0\.0"),
        ({"classifier_dropout": 2}, r"classifier_dropout must be in \[0, 1\), got 2"),
    ):
        with pytest.raises(StrictDataclassError, match=message):
            SibertConfig(**wrong)
    SibertConfig(num_hidden_layers=0, type_vocab_size=0, classifier_dropout=None)
    with pytest.raises(StrictDataclassError, match="hidden_size"):
        SibertConfig(hidden_size="wide")
    with pytest.raises(ValueError, match=r"unknown size 'huge'.*base"):
        SibertConfig.of_size("huge")
    model = SibertModel(config)
    with pytest.raises(ValueError, match="exactly one"):
        model()
    with pytest.raises(ValueError, match="40 positions"):
        model(torch.zeros(1, 41, dtype=torch.long))
    ids = torch.zeros(2, 5, dtype=torch.long)
    with pytest.raises(ValueError, match=r"(?s)mask.*4"):
        model(ids, attention_mask=torch.ones(2, 4))
    for return_logits in (True, False):
        with pytest.raises(ValueError, match=r"labels must be .*: \[2, 1\] here, got \[2, 5\]"):
            SibertForMaskedLM(config)(ids, labels=ids, masked_positions=ids[:, :1], return_logits=return_logits)
    with pytest.raises(ValueError, match="exactly one"):
        SibertForMultipleChoice(config)()


@pytest.mark.parametrize(
    ("dtype", "loss_dtype"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_losses_are_in_the_precision_of_the_model_and_at_least_single(dtype, loss_dtype):
    ids, ones = torch.randint(5, 50, (2, 8)), torch.ones(2, dtype=torch.long)
    for model_class, labels in (
        (SibertForMaskedLM, {"labels": ids}),
        (SibertForSequenceClassification, {"labels": ones}),
        (SibertForTokenClassification, {"labels": ids % 2}),
        (SibertForQuestionAnswering, {"start_positions": ones, "end_positions": ones}),
        (SibertForMultipleChoice, {"labels": ones[:1]}),
    ):
        model = model_class(SibertConfig.of_size("nano", vocab_size=50)).to(dtype)
        given = ids[None] if model_class is SibertForMultipleChoice else ids
        assert model(given, **labels).loss.dtype == loss_dtype


def test_several_labels_at_once_may_be_whole_numbers(config, batch):
    settings = {**config.to_dict(), "num_labels": 3, "problem_type": "multi_label_classification"}
    model = SibertForSequenceClassification(SibertConfig.from_dict(settings)).eval()
    labels = torch.tensor([[0, 1, 1]]).expand(len(batch["input_ids"]), 3)
    assert model(**batch, labels=labels).loss == model(**batch, labels=labels.float()).loss


@pytest.mark.parametrize("none", [0, torch.tensor(0)])
def test_a_batch_without_any_target_has_loss_zero(none):
    logits, labels = torch.randn(2, 3, 5), torch.full((2, 3), -100)
    assert masked_lm_loss(logits, labels) == masked_lm_loss(logits, labels, none) == 0
    follows = torch.tensor([0, 1])
    assert next_sentence_loss(torch.randn(2, 2), follows, mlm_labels=labels, num_items_in_batch=none) == 0


@pytest.mark.parametrize("masked", [False, True])
def test_answers_outside_of_the_sequence_are_ignored_on_either_side(masked, config):
    model = SibertForQuestionAnswering(config).eval()
    ids = torch.randint(1, config.vocab_size, (2, 6))
    mask = {"attention_mask": torch.ones_like(ids)} if masked else {}

    def loss(first):
        places = {name: torch.tensor([first, 3]) for name in ("start_positions", "end_positions")}
        return model(ids, **mask, **places).loss

    assert loss(-1) == loss(6) == loss(99)
    assert loss(0) != loss(99)
    outside = {name: torch.tensor([99, -1]) for name in ("start_positions", "end_positions")}
    assert model(ids, **mask, **outside).loss == 0
