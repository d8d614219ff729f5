"""Robustness in intrinsic mode is exact: the initial scale changes no bit of the losses, a million-fold either way."""

import pytest
import torch

from sibert.models import INVARIANCES, SibertConfig, SibertForMaskedLM
from sibert.optim import build_optimizer, schedule, schedule_groups

STEPS = 12


def losses_from(scale: float, invariance: str, dtype: torch.dtype = torch.float32) -> list[float]:
    torch.manual_seed(3)
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    config = SibertConfig.of_size("nano", vocab_size=80, invariance=invariance, **dropout)
    model = SibertForMaskedLM(config).to(dtype).train()
    with torch.no_grad():
        for group in model.scale_invariant_groups().values():
            for parameter in {p for _, p in group.members}:
                parameter.mul_(scale)
    optimizer = build_optimizer(model, intrinsic_lr=0.02, head_lr=1e-2)
    scheduler = schedule_groups(optimizer, schedule("cosine", STEPS))
    losses = []
    for _ in range(STEPS):
        input_ids = torch.randint(5, 80, (4, 16))
        optimizer.zero_grad()
        loss = model(input_ids, labels=input_ids).loss
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("invariance", INVARIANCES)
def test_powers_of_two_change_no_bit(invariance):
    expected = losses_from(1.0, invariance)
    assert len(set(expected)) == STEPS
    for k in (-20, -7, 1, 20):
        assert losses_from(2.0**k, invariance) == expected, f"2^{k} changes a loss"


@pytest.mark.parametrize("invariance", INVARIANCES)
def test_other_factors_change_rounding_only(invariance):
    # In double precision: at this rate training amplifies rounding tenfold in a step.
    expected = torch.tensor(losses_from(1.0, invariance, torch.float64), dtype=torch.float64)
    for c in (1e-6, 3.0, 1e6):
        losses = torch.tensor(losses_from(c, invariance, torch.float64), dtype=torch.float64)
        torch.testing.assert_close(losses, expected, rtol=1e-9, atol=0)
