"""A flat batch is the padded one without padding: same losses, same gradients, nothing between sequences."""

import importlib

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import DataCollatorWithFlattening

from sibert.models import (
    SibertForMaskedLM,
    SibertForMultipleChoice,
    SibertForPreTraining,
    SibertForQuestionAnswering,
    SibertForSequenceClassification,
    SibertModel,
)
from sibert.models.configuration_sibert import INVARIANCES
from tests.assertions import relative_change, scaled
from tests.models.flat_cases import HEADS, bounds, flat, model_of, padded, predictions, sequences, with_labels

LENGTHS = [5, 1, 12, 3, 1, 7]
SOME = settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def loss_and_gradients(model, batch):
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_training(model, one, other):
    (loss, gradients), (same_loss, same_gradients) = loss_and_gradients(model, one), loss_and_gradients(model, other)
    assert relative_change(same_loss, loss) < 1e-12
    assert gradients.keys() == same_gradients.keys()
    scale = max(gradient.norm() for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert (same_gradients[name] - gradient).norm() <= 1e-12 * scale, name


@pytest.mark.parametrize("invariance", INVARIANCES)
@pytest.mark.parametrize("kind", HEADS)
def test_loss_and_every_gradient_are_those_of_the_padded_batch(kind, invariance):
    assert_same_training(model_of(kind, invariance), *with_labels(kind, sequences(LENGTHS)))


@pytest.mark.parametrize("invariance", INVARIANCES)
@given(lengths=st.lists(st.integers(0, 20), min_size=1, max_size=8).filter(any), seed=st.integers(0, 99))
@SOME
def test_of_any_lengths_every_token_and_the_loss_are_those_of_the_padded_batch(invariance, lengths, seed):
    model = model_of(SibertForMaskedLM, invariance)
    ids = sequences(lengths, seed)
    one, other = with_labels(SibertForMaskedLM, ids, seed)
    states, same_states = model.sibert(**padded(ids)).last_hidden_state, model.sibert(**flat(ids)).last_hidden_state
    assert relative_change(same_states[0], states[one["attention_mask"] == 1]) < 1e-12
    assert_same_training(model, one, other)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("kind", [SibertForSequenceClassification, SibertForMultipleChoice])
def test_either_pooling_sees_its_own_sequence(pooling, kind):
    model = model_of(kind, "matrix", classifier_pooling=pooling)
    one, other = with_labels(kind, sequences(LENGTHS))
    assert_same_training(model, one, other)
    with torch.no_grad():
        assert relative_change(model(**other).logits, model(**one).logits) < 1e-12


@pytest.mark.parametrize("invariance", INVARIANCES)
@pytest.mark.parametrize("return_logits", [True, False])
def test_masked_positions_count_from_the_beginning_of_the_batch(invariance, return_logits):
    model = model_of(SibertForMaskedLM, invariance)
    ids = sequences([6, 2, 9])
    one, other = padded(ids), flat(ids)
    one |= {
        "masked_positions": torch.tensor([[1, 3], [0, 0], [2, 8]]),
        "labels": torch.tensor([[7, 8], [9, -100], [10, 11]]),
    }
    other |= {"masked_positions": torch.tensor([[1, 3, 6, 10, 16]]), "labels": torch.tensor([[7, 8, 9, 10, 11]])}
    assert_same_training(model, one | {"return_logits": return_logits}, other | {"return_logits": return_logits})


@pytest.mark.parametrize("invariance", INVARIANCES)
def test_attentions_and_checkpointed_gradients_are_those_of_the_padded_batch(invariance):
    model = model_of(SibertForMaskedLM, invariance)
    one, other = with_labels(SibertForMaskedLM, sequences(LENGTHS))
    weights = [model(**batch, output_attentions=True).attentions for batch in (one, other)]
    for of_padded, of_flat in zip(*weights, strict=True):
        rows = one["attention_mask"][:, None, :, None]
        torch.testing.assert_close(of_flat * rows, of_padded * rows, atol=1e-12, rtol=1e-12)
    loss, gradients = loss_and_gradients(model, other)
    model.activation_checkpointing_enable()
    again, same = loss_and_gradients(model, other)
    assert again == loss
    assert all(torch.equal(same[name], gradient) for name, gradient in gradients.items())


@pytest.mark.parametrize("invariance", INVARIANCES)
@given(data=st.data())
@SOME
def test_changing_one_sequence_changes_nothing_in_another(invariance, data):
    lengths = data.draw(st.lists(st.integers(1, 20), min_size=2, max_size=6))
    chosen = data.draw(st.integers(0, len(lengths) - 1))
    model = model_of(SibertModel, invariance).eval()
    before, after = sequences(lengths), sequences(lengths)
    after[chosen] = 5 + (after[chosen] + 11) % 90
    ends = torch.tensor(lengths).cumsum(0).tolist()
    own = slice(ends[chosen] - lengths[chosen], ends[chosen])
    with torch.no_grad():
        old, new = (model(**flat(ids)).last_hidden_state[0] for ids in (before, after))
    assert not torch.equal(new[own], old[own])
    old[own] = new[own] = 0
    assert torch.equal(new, old)


@pytest.mark.parametrize("kind", [SibertForPreTraining, SibertForQuestionAnswering, SibertForSequenceClassification])
@given(seed=st.integers(0, 99))
@SOME
def test_the_order_of_sequences_does_not_matter(kind, seed):
    model = model_of(kind, "matrix").eval()
    ids = sequences(LENGTHS, seed)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed)).tolist()
    with torch.no_grad():
        said = predictions(model(**flat(ids)))
        moved = predictions(model(**flat([ids[i] for i in order])))
    if said.shape[0] == 1:  # by token
        parts, moved_parts = said[0].split(LENGTHS), moved[0].split([LENGTHS[i] for i in order])
    else:
        parts, moved_parts = list(said), list(moved)
    for place, i in enumerate(order):
        torch.testing.assert_close(moved_parts[place], parts[i], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("invariance", INVARIANCES)
def test_the_scale_of_the_encoder_does_not_matter(invariance):
    model = model_of(SibertModel, invariance).eval()
    batch = flat(sequences(LENGTHS))
    with torch.no_grad():
        old = model(**batch).last_hidden_state
        for c in (1e-6, 1e-2, 1e6):
            with scaled(model.parameters(), c):
                assert relative_change(model(**batch).last_hidden_state, old) < 1e-10


@pytest.mark.parametrize("invariance", INVARIANCES)
def test_other_bounds_are_another_batch(invariance):
    model = model_of(SibertModel, invariance).eval()
    batch = flat(sequences([4, 6]))
    moved = batch | {"cu_seq_lens_q": torch.tensor([0, 5, 10]), "cu_seq_lens_k": torch.tensor([0, 5, 10])}
    with torch.no_grad():
        assert relative_change(model(**moved).last_hidden_state, model(**batch).last_hidden_state) > 1e-2
        keys = {name: moved[name] for name in moved if name != "cu_seq_lens_q"}
        assert torch.equal(model(**keys).last_hidden_state, model(**moved).last_hidden_state)


@pytest.mark.parametrize("invariance", INVARIANCES)
@pytest.mark.parametrize("keywords", [True, False], ids=["bounds", "positions"])
def test_the_collator_of_transformers_is_understood(invariance, keywords):
    model = model_of(SibertForMaskedLM, invariance)
    ids = sequences(LENGTHS)
    collate = DataCollatorWithFlattening(return_flash_attn_kwargs=keywords)
    batch = collate([{"input_ids": row.tolist(), "labels": row.tolist()} for row in ids])
    one, _ = with_labels(SibertForMaskedLM, ids)
    one["labels"] = one["input_ids"].masked_fill(one["attention_mask"] == 0, -100)
    one["labels"][:, 0] = -100  # as this collator does, for models that predict the next token
    one.pop("token_type_ids")
    assert_same_training(model, one, batch)
    assert model(**batch).logits.shape[:2] == (1, sum(LENGTHS))


def test_positions_that_do_not_begin_anew_are_only_positions():
    model = model_of(SibertModel, "joint").eval()
    ids = sequences([6])[0][None]
    with torch.no_grad():
        whole = model(ids).last_hidden_state
        assert torch.equal(model(ids, position_ids=torch.arange(6)[None]).last_hidden_state, whole)
        other = model(ids, position_ids=torch.tensor([[0, 1, 2, 0, 2, 1]])).last_hidden_state
        alone = model(ids[:, :3]).last_hidden_state
    assert relative_change(other[:, :3], alone) > 1e-2


def test_many_short_sequences_are_longer_than_the_model_and_one_long_one_is_refused():
    model = model_of(SibertModel, "joint").eval()
    assert model(**flat(sequences([20, 20, 20]))).last_hidden_state.shape[1] == 60
    with pytest.raises(ValueError, match="25 tokens but the model has 24 positions"):
        model(**flat(sequences([3, 25])))


WRONG = {
    "not from 0": ({"cu_seq_lens_q": [1, 4, 9]}, "must rise from 0 to the number of tokens, 9; got"),
    "not to N": ({"cu_seq_lens_q": [0, 4, 8]}, "must rise from 0"),
    "falling": ({"cu_seq_lens_q": [0, 7, 4, 9]}, "must rise from 0"),
    "another one for keys": ({"cu_seq_lens_k": [0, 5, 9]}, "must be equal"),
    "fewer for keys": ({"cu_seq_lens_k": [0, 9]}, "must be equal"),
    "no sequence": ({"cu_seq_lens_q": [0]}, "bounds of the sequences"),
    "too short": ({"max_length_q": 4, "max_length_k": 4}, "max_length_q is 4, but the longest sequence has 5"),
    "two rows": ({"input_ids": torch.full((2, 9), 7), "token_type_ids": None}, "in one row"),
    "a mask": ({"attention_mask": torch.ones(1, 9)}, "leave out attention_mask"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_bounds_are_refused_in_a_sentence(name):
    changes, sentence = WRONG[name]
    changes = {key: torch.tensor(value) if isinstance(value, list) else value for key, value in changes.items()}
    batch = flat(sequences([4, 5])) | changes
    if "cu_seq_lens_q" in changes:
        batch["cu_seq_lens_k"] = batch["cu_seq_lens_q"]
    with pytest.raises(ValueError, match=sentence):
        model_of(SibertModel, "matrix")(**batch)


def test_choices_of_a_flat_batch_are_told_by_labels_or_by_their_number():
    model = model_of(SibertForMultipleChoice, "matrix").eval()
    one, other = with_labels(SibertForMultipleChoice, sequences(LENGTHS))
    other.pop("labels")
    with torch.no_grad():
        assert relative_change(model(**other, num_choices=2).logits, model(**one).logits) < 1e-12
    for number in (None, 4):
        with pytest.raises(ValueError, match="cannot be divided into questions"):
            model(**other, num_choices=number)


def test_no_answer_begins_in_padding():
    model = model_of(SibertForQuestionAnswering, "matrix").eval()
    one, other = with_labels(SibertForQuestionAnswering, sequences([6, 2]))
    with torch.no_grad():
        scores, same = model(**one), model(**other)
        more = torch.nn.functional.pad
        wider = {name: more(t, (0, 9)) if t.dim() == 2 else t for name, t in one.items()}
        assert relative_change(model(**wider).loss, scores.loss) < 1e-12
    for name in ("start_logits", "end_logits"):
        assert (scores[name][1, 2:] == torch.finfo(torch.float64).min).all()
        assert torch.equal(same[name] < -1e300, scores[name] < -1e300)


def test_empty_sequences_are_as_a_row_of_padding_and_their_summary_is_that_of_nothing():
    model = model_of(SibertForSequenceClassification, "matrix", classifier_pooling="cls").eval()
    ids = sequences([3, 0, 2, 0])
    with torch.no_grad():
        logits = model(**flat(ids)).logits
        without = model(**flat([ids[0], ids[2]])).logits
    torch.testing.assert_close(logits[[0, 2]], without, atol=1e-12, rtol=1e-12)
    assert torch.equal(logits[1], logits[3])


@pytest.mark.slow
@pytest.mark.parametrize("invariance", ["joint", "matrix"])
def test_compiles_to_one_graph_of_any_number_of_tokens(invariance):
    model = model_of(SibertForSequenceClassification, invariance, num_hidden_layers=1)
    counter = CompileCounterWithBackend("eager")
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for lengths in ([9, 4, 18], [20, 2, 11, 5], [3, 19, 6, 7, 12]):
        batch = flat(sequences(lengths)) | {"labels": torch.arange(len(lengths)) % 2}
        for name, dimension in (("input_ids", 1), ("token_type_ids", 1), ("cu_seq_lens_q", 0), ("labels", 0)):
            torch._dynamo.maybe_mark_dynamic(batch[name], dimension)
        assert relative_change(compiled(**batch).loss, model(**batch).loss) < 1e-12
    assert counter.frame_count <= 2


def test_bounds_without_a_length_are_enough():
    model = model_of(SibertModel, "row").eval()
    ids = sequences(LENGTHS)
    only = {"input_ids": torch.cat(ids)[None], "cu_seq_lens_q": bounds(ids)["cu_seq_lens_q"]}
    with torch.no_grad():
        both = [model(**batch).last_hidden_state for batch in (only, {**only, **bounds(ids)})]
    assert torch.equal(*both)


@pytest.mark.parametrize("invariance", INVARIANCES)
@pytest.mark.parametrize("kind", HEADS)
def test_on_a_device_no_number_is_read(kind, invariance, monkeypatch):
    """Tensors of the device "meta" have none: what asks for one fails, as it would stop a GPU."""
    # torch refuses to say whether there is autocast on this device.
    monkeypatch.setattr(importlib.import_module("sibert.ops.relu_attention"), "_autocast", lambda *tensors: tensors)
    model = model_of(kind, invariance).to("meta")
    _, batch = with_labels(kind, sequences(LENGTHS))
    batch = {name: one.to("meta") if torch.is_tensor(one) else one for name, one in batch.items()}
    model(**batch).loss.backward()
    del batch["max_length_q"], batch["max_length_k"]
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        model(**batch)
