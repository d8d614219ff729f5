"""The callback that records rotations, in a plain `transformers.Trainer`."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from sibert.models import SibertConfig, SibertForMaskedLM
from sibert.optim import build_optimizer
from sibert.training import RotationCallback


def trainer(folder, callbacks, optimizer):
    torch.manual_seed(0)
    config = SibertConfig.of_size("nano", vocab_size=30, type_vocab_size=0, num_hidden_layers=1)
    model = SibertForMaskedLM(config)
    rows = torch.randint(1, 30, (16, 8))
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=4, per_device_train_batch_size=4, logging_steps=2, max_grad_norm=0.0,
        report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    steps = optimizer(model)
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        optimizers=(steps, torch.optim.lr_scheduler.LambdaLR(steps, lambda step: 1.0)),
        callbacks=callbacks,
    )


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda model: build_optimizer(model, intrinsic_lr=0.01),
        lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3),
    ],
    ids=["clipped_sgd", "adamw"],
)
def test_it_records_and_logs_and_changes_nothing(optimizer, tmp_path):
    alone = trainer(tmp_path / "alone", [], optimizer)
    alone.train()
    callback = RotationCallback(every=2)
    observed = trainer(tmp_path / "observed", [callback], optimizer)
    observed.train()
    for p, q in zip(alone.model.parameters(), observed.model.parameters(), strict=True):
        assert torch.equal(p, q)
    names = list(observed.model.scale_invariant_groups())
    assert [(one.name, one.step) for one in callback.records] == [(n, s) for s in (1, 3) for n in names]
    assert all(one.angular_update > 0 for one in callback.records)
    logged = [row for row in observed.state.log_history if f"{names[0]}/angular_update" in row]
    assert [row["step"] for row in logged] == [2, 4, 4]  # and at the end of training
    last = {one.name: one for one in callback.records}
    assert logged[1][f"{names[0]}/angular_update"] == last[names[0]].angular_update


def test_groups_may_be_named(tmp_path):
    made = trainer(tmp_path, [], lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    member = next(iter(made.model.scale_invariant_groups().values())).members[0][1]
    made.add_callback(callback := RotationCallback({"one": [member]}, every=3))
    made.train()
    assert [(one.name, one.step) for one in callback.records] == [("one", 1), ("one", 4)]
