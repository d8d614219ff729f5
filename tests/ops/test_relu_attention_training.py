"""The fast path trains like the definition."""

import pytest
import torch

from sibert.models import SibertConfig, SibertForMaskedLM
from sibert.ops import relu_attention
from sibert.optim import build_optimizer


def losses(backend, monkeypatch, nudge=0.0, steps=200):
    monkeypatch.setattr(
        "sibert.models.modeling_sibert.relu_attention",
        lambda *inputs, **options: relu_attention(*inputs, **{**options, "backend": backend}),
    )
    torch.manual_seed(0)
    config = SibertConfig.of_size("nano", vocab_size=29, max_position_embeddings=24, invariance="joint")
    model = SibertForMaskedLM(config).double()
    with torch.no_grad():
        next(model.parameters()).mul_(1 + nudge)
    optimizer = build_optimizer(model, intrinsic_lr=1e-3)
    text = torch.randint(5, 29, (400,), generator=torch.Generator().manual_seed(2)).repeat(2)
    history = []
    for _ in range(steps):
        ids_BT = text[torch.randint(400, (8, 1)) + torch.arange(24)]
        hidden_BT = torch.rand(ids_BT.shape) < 0.2
        attention_mask = torch.ones_like(ids_BT)
        attention_mask[0, 13:] = 0
        labels_BT = ids_BT.masked_fill(~hidden_BT, -100)
        batch = {"input_ids": ids_BT.masked_fill(hidden_BT, 4), "attention_mask": attention_mask, "labels": labels_BT}
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append(loss.item())
    return torch.tensor(history, dtype=torch.float64)


@pytest.mark.slow
def test_losses_of_200_steps_agree_with_those_of_the_reference(monkeypatch):
    """Training amplifies rounding, so the reference with one table off by a rounding error sets the measure.

    Dropout is on: all backends draw one mask.
    """
    reference = losses("reference", monkeypatch)
    assert reference[-20:].mean() < reference[:20].mean() - 0.05
    rounding = (losses("reference", monkeypatch, nudge=1e-15) - reference).abs()
    for backend in ("deferred", "blocked"):
        difference = (losses(backend, monkeypatch) - reference).abs()
        assert difference[:10].max() < 1e-12
        assert difference.max() < 5 * rounding.max() < 0.01
