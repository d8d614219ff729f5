"""The claim of the project: the encoder's scale does not matter, from 1e-6 to 1e6, whatever the circumstances."""

import pytest
import torch
from torch import nn

from sibert.models import BertTwinForMaskedLM, SibertForMaskedLM, SibertForPreTraining, SibertModel
from sibert.optim import build_optimizer
from tests.assertions import INVARIANCE_TOLERANCE, relative_change, scaled
from tests.models.builders import deep_config, roughened

SCALES = [1e-6, 1e-3, 0.1, 10.0, 1e3, 1e6]


def worst_change(f, parameters, scales=SCALES):
    """The largest relative change of an output over all scales."""
    with torch.no_grad():
        old = f().clone()
        changes = []
        for c in scales:
            with scaled(parameters, c):
                changes.append(relative_change(f(), old))
    return max(changes)


def trained(model, batch, steps=200):
    """Train all parameters on one batch, with SGD of the encoder as in pre-training."""
    optimizer = build_optimizer(model, intrinsic_lr=10 / steps, head_lr=2e-3)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_at_initialisation_with_padding(dtype, batch):
    model = roughened(SibertModel(deep_config()).to(dtype).eval())
    assert all((bias != 0).all() for name, bias in model.named_parameters() if name.endswith("bias"))
    change = worst_change(lambda: model(**batch).last_hidden_state, model.parameters())
    assert change <= INVARIANCE_TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_after_two_hundred_steps_of_training(dtype, batch):
    model = roughened(
        SibertForMaskedLM(deep_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)).to(dtype)
    )
    first = model.eval()(**batch, labels=batch["input_ids"]).loss.item()
    trained(model, batch)
    assert model(**batch, labels=batch["input_ids"]).loss.item() < first - 0.5
    change = worst_change(lambda: model.sibert(**batch).last_hidden_state, list(model.sibert.parameters()))
    assert change <= INVARIANCE_TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_in_train_mode_with_the_same_dropout(dtype, batch):
    model = roughened(SibertModel(deep_config()).to(dtype)).train()

    def f():
        torch.manual_seed(11)
        return model(**batch).last_hidden_state

    torch.manual_seed(12)
    assert relative_change(model(**batch).last_hidden_state, f()) > 0.1  # dropout is at work
    assert worst_change(f, model.parameters()) <= INVARIANCE_TOLERANCE[dtype]


def test_under_bfloat16_autocast(batch):
    model = roughened(SibertModel(deep_config()).eval())

    def f():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(**batch).last_hidden_state.float()

    assert worst_change(f, model.parameters(), scales=[2.0**-20, 2.0**-3, 2.0**20]) == 0.0
    # Other factors move every weight to another bfloat16 neighbour: the change is that of rounding the weights.
    assert worst_change(f, model.parameters()) <= 5 * INVARIANCE_TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("model_class", [SibertForMaskedLM, SibertForPreTraining])
def test_the_loss_is_invariant_because_the_decoder_is_untied(model_class, batch):
    model = roughened(model_class(deep_config()).double().eval())
    labels = {"labels": batch["input_ids"]}
    if model_class is SibertForPreTraining:
        labels["next_sentence_label"] = torch.tensor([0, 1, 0, 1])
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    change = worst_change(lambda: model(**batch, **labels).loss, list(model.sibert.parameters()))
    assert change <= 1e-10


def test_a_tied_decoder_breaks_the_loss(batch):
    model = roughened(SibertForMaskedLM(deep_config()).double().eval())
    model.decoder.weight = model.get_input_embeddings().weight
    change = worst_change(
        lambda: model(**batch, labels=batch["input_ids"]).loss, list(model.sibert.parameters()), [10.0]
    )
    assert change > 1e-2


def test_the_bert_twin_is_not_invariant(batch):
    from transformers import BertConfig

    config = BertConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    model = roughened(BertTwinForMaskedLM(config).double().eval())
    change = worst_change(lambda: model.bert(**batch).last_hidden_state, list(model.bert.parameters()), [10.0])
    assert change > 1e-2


def test_powers_of_two_change_no_bit_of_loss_and_direction_of_gradient(batch):
    model = roughened(SibertForMaskedLM(deep_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)))
    parameters = list(model.sibert.parameters())

    def loss_and_gradient():
        loss = model(**batch, labels=batch["input_ids"]).loss
        return loss.detach(), torch.autograd.grad(loss, parameters)

    loss, gradient = loss_and_gradient()
    for k in range(-20, 21, 5):
        with scaled(parameters, 2.0**k):
            new_loss, new_gradient = loss_and_gradient()
        assert torch.equal(new_loss, loss)
        for new, old in zip(new_gradient, gradient, strict=True):
            assert torch.equal(new * 2.0**k, old)


def test_a_fully_padded_sequence_is_finite_with_finite_gradients(batch):
    model = roughened(SibertForMaskedLM(deep_config()).double().train())
    outputs = model(**batch, labels=batch["input_ids"])
    outputs.loss.backward()
    assert outputs.logits.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    # Its tokens attend to nothing: what they get is what they are, and what others get does not depend on them.
    model.eval()
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][1, 11:] = 7
    torch.testing.assert_close(model(**changed).logits[1, :11], model(**batch).logits[1, :11], rtol=1e-12, atol=1e-12)


def test_all_zero_embeddings_are_finite(config, batch):
    model = SibertModel(config).eval()
    with torch.no_grad():
        for module in model.embeddings.children():
            if isinstance(module, nn.Embedding):
                module.weight.zero_()
    assert model(**batch).last_hidden_state.isfinite().all()


@pytest.mark.parametrize("invariance", ["joint", "matrix", "row"])
def test_a_loss_times_a_power_of_two_trains_the_same_model_head_included(invariance, batch):
    """Bit for bit; with the epsilon that optimizers usually have for the head it would not be."""

    def run(exponent, epsilon=None):
        torch.manual_seed(0)
        still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        model = SibertForMaskedLM(deep_config(num_hidden_layers=3, invariance=invariance, **still)).train()
        optimizer = build_optimizer(model, intrinsic_lr=0.01)
        if epsilon is not None:
            optimizer.param_groups[-1]["eps"] = epsilon
        for step in range(6):
            optimizer.zero_grad()
            shifted = {**batch, "input_ids": (batch["input_ids"] + step) % 92 + 5}
            (2.0**exponent * model(**shifted, labels=batch["input_ids"]).loss).backward()
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    def same(left, right):
        return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))

    for exponent in (-14, 14):
        assert same(run(0), run(exponent))
    assert not same(run(0, 1e-8), run(-14, 1e-8))
