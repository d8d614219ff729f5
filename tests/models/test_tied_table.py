"""A tied table has one gradient, and it is the one that autograd would have added up."""

import pytest
import torch

from sibert.models import SibertForMaskedLM, SibertForPreTraining, SibertModel
from sibert.models.tied_table import TiedTable
from tests.models.builders import deep_config

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def gradients(model, batch, one_gradient, backwards=1):
    model.zero_grad()
    model.base_model.embeddings.one_gradient = one_gradient
    for _ in range(backwards):
        outputs = model(**batch)
        (outputs.loss if "loss" in outputs else outputs[0].sin().sum()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backwards", [1, 2])
@pytest.mark.parametrize("invariance", ["matrix", "row", "joint"])
@pytest.mark.parametrize("kind", [SibertForMaskedLM, SibertForPreTraining, SibertModel])
def test_gradients_are_the_same_bit_for_bit(kind, invariance, backwards, dtype):
    """Tied or not, with a decoder or without, also accumulated."""
    torch.manual_seed(0)
    config = deep_config(num_hidden_layers=1, invariance=invariance, **NO_DROPOUT)
    model = kind(config).to(dtype)
    ids = torch.randint(0, 9, (3, 8))  # few tokens, many times each
    batch = {"input_ids": ids}
    if kind is not SibertModel:
        batch["labels"] = ids
    if kind is SibertForPreTraining:
        batch["next_sentence_label"] = torch.tensor([0, 1, 1])
    expected, found = (gradients(model, batch, one, backwards) for one in (False, True))
    assert expected["embeddings.word_embeddings.weight" if kind is SibertModel else "head.dense.weight"].any()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_two_forward_passes_before_their_backwards_do_not_mix():
    torch.manual_seed(0)
    model = SibertForMaskedLM(deep_config(num_hidden_layers=1, invariance="matrix", **NO_DROPOUT)).double()

    def table_gradient(one_gradient):
        model.zero_grad()
        model.sibert.embeddings.one_gradient = one_gradient
        losses = [model(ids, labels=ids).loss for ids in (torch.arange(8).view(2, 4), torch.ones(2, 4).long())]
        for loss in losses:
            loss.backward()
        return model.decoder.weight.grad.clone()

    torch.testing.assert_close(table_gradient(True), table_gradient(False), rtol=1e-13, atol=0)


def test_the_gradient_of_the_lookup_is_added_in_place():
    table = torch.nn.Parameter(torch.randn(50, 4))
    made = []

    def spy(gradient):
        made.append(gradient.data_ptr())
        return gradient

    uses = TiedTable(table)
    hidden = uses.rows(torch.tensor([3, 3, 7])).tanh()
    decoder = uses.decoder()
    decoder.register_hook(spy)
    (hidden @ decoder.t()).sin().sum().backward()
    assert made == [table.grad.data_ptr()]


def test_input_embeddings_from_outside_leave_the_decoder_alone():
    torch.manual_seed(0)
    model = SibertForMaskedLM(deep_config(num_hidden_layers=1, invariance="matrix", **NO_DROPOUT)).double()
    model.sibert.embeddings.one_gradient = True
    ids = torch.arange(8).view(2, 4)
    model(ids, labels=ids)  # leaves nothing behind
    embeddings = torch.randn(2, 4, model.config.hidden_size, dtype=torch.float64)
    model(inputs_embeds=embeddings, labels=ids).loss.backward()
    assert model.decoder.weight.grad.norm() > 0
