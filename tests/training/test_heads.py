"""A plain `transformers.Trainer`, our optimizer, every head: a few steps, the loss falls, a checkpoint resumes."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from sibert.models import (
    SibertConfig,
    SibertForMaskedLM,
    SibertForMultipleChoice,
    SibertForPreTraining,
    SibertForQuestionAnswering,
    SibertForSequenceClassification,
    SibertForTokenClassification,
)
from sibert.optim import build_optimizer, schedule, schedule_groups

STEPS = 40


def examples(model_class, count=16, length=12):
    """A task that a few steps can learn: every label is a function of the first token."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(count):
        ids = torch.randint(5, 60, (length,), generator=generator)
        kind = number % 2
        ids[0] = 60 + kind
        example = {"input_ids": ids, "attention_mask": torch.ones(length, dtype=torch.long)}
        if model_class is SibertForMultipleChoice:
            other = ids.clone()
            other[0] = 61 - kind
            mask = torch.ones(2, length, dtype=torch.long)
            example = {"input_ids": torch.stack([ids, other]), "attention_mask": mask}
        labels = {
            SibertForMaskedLM: {"labels": torch.full_like(ids, 7 + kind)},
            SibertForPreTraining: {
                "labels": torch.full_like(ids, 7 + kind),
                "next_sentence_label": torch.tensor(kind),
            },
            SibertForSequenceClassification: {"labels": torch.tensor(kind)},
            SibertForTokenClassification: {"labels": torch.full_like(ids, kind)},
            SibertForQuestionAnswering: {
                "start_positions": torch.tensor(2 + kind),
                "end_positions": torch.tensor(4 + kind),
            },
            SibertForMultipleChoice: {"labels": torch.tensor(kind)},
        }
        made.append({**example, **labels[model_class]})
    return made


HEADS = [
    SibertForMaskedLM,
    SibertForPreTraining,
    SibertForSequenceClassification,
    SibertForTokenClassification,
    SibertForQuestionAnswering,
    SibertForMultipleChoice,
]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("model_class", HEADS)
def test_a_few_steps_with_the_plain_trainer(model_class, accumulation, tmp_path):
    config = SibertConfig.of_size("nano", vocab_size=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = model_class(config)
    optimizer = build_optimizer(model, intrinsic_lr=0.02, head_lr=2e-2)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=STEPS,
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=0.0,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        save_steps=STEPS,
        remove_unused_columns=False,
        label_names=["labels"],
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=examples(model_class),
        optimizers=(optimizer, schedule_groups(optimizer, schedule("cosine", STEPS))),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == STEPS
    assert losses[-1] < 0.95 * losses[0]
    # A loss that accumulation multiplies would start at its multiple.
    ways = {
        SibertForMaskedLM: 64,
        SibertForPreTraining: 64 * 2,
        SibertForQuestionAnswering: 12,
    }.get(model_class, 2)
    assert losses[0] == pytest.approx(torch.tensor(float(ways)).log().item(), rel=0.35)
    assert (tmp_path / f"checkpoint-{STEPS}" / "model.safetensors").exists()
