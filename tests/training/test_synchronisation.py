"""A step of training never waits for the device. Tensors without data stand for a device: reading one is an error."""

import pytest
import torch

from sibert.models import SibertConfig, SibertForMaskedLM
from sibert.optim import build_optimizer
from sibert.training.metrics import LossWindow

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def meta_step(invariance, one_gradient, masked):
    """Forward, backward, optimizer and what the window keeps of the losses."""
    config = SibertConfig(vocab_size=300, max_position_embeddings=32, invariance=invariance, type_vocab_size=0, **SIZES)
    model = SibertForMaskedLM(config).train()
    model.sibert.embeddings.one_gradient = one_gradient
    optimizer = build_optimizer(model, intrinsic_lr=1e-3)
    model.to("meta")
    ids = torch.zeros(4, 32, dtype=torch.long, device="meta")
    places = torch.zeros(4, 5, dtype=torch.long, device="meta")
    batch = {"input_ids": ids, "labels": places if masked else ids, "masked_positions": places if masked else None}
    loss = model(**batch, attention_mask=torch.ones_like(ids), num_items_in_batch=20, return_logits=False).loss
    loss.backward()
    window = LossWindow()
    window.add({"loss": loss}, tokens=ids.numel())
    optimizer.step()
    optimizer.zero_grad()
    return window


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("one_gradient", [True, False])
@pytest.mark.parametrize("invariance", ["matrix", "row"])  # not joint: its attention asks for the device's autocast
def test_a_step_reads_nothing_from_the_device(invariance, one_gradient, masked):
    meta_step(invariance, one_gradient, masked)


def test_the_record_that_logging_writes_does():
    """The negative twin."""
    window = meta_step("matrix", one_gradient=True, masked=True)
    with pytest.raises(RuntimeError, match="meta tensors"):
        window.read(processes=1, reduce=lambda total: total)
