"""Runs that need less memory: gradients freed inside backward, weights in bfloat16."""

import pytest
import torch
from safetensors.torch import load_file

from sibert.models import SibertForMaskedLM, chunked_loss
from sibert.training import PretrainRecipe, build_model, build_training_optimizer, run_pretraining
from sibert.training.pretrain import PretrainTrainer
from tests.training.runs import assert_same_run, losses, weights


class StopError(Exception):
    """Stands for a crash."""


def resumed(chosen, out, step, monkeypatch):
    """Run until a crash after a step, and go on from the last checkpoint."""
    original = PretrainTrainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step == step:
            raise StopError
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(PretrainTrainer, "training_step", training_step)
        with pytest.raises(StopError):
            run_pretraining(chosen, out)
    torch.manual_seed(999)
    run_pretraining(chosen, out, resume=True)


@pytest.mark.parametrize(
    "changes", [{"dropout": 0.1}, {"invariance": "row", "precision": "bf16-weights", "gradient_checkpointing": True}]
)
def test_gradient_release_changes_no_bit_of_a_run_also_when_resumed(changes, recipe, tmp_path, monkeypatch):
    run_pretraining(recipe(**changes), tmp_path / "ordinary")
    released = recipe(**changes, gradient_release=True)
    resumed(released, tmp_path / "released", 7, monkeypatch)
    assert_same_run(tmp_path / "ordinary", tmp_path / "released")


def test_weights_in_bfloat16_resume_to_the_bit_and_are_saved_as_float32(recipe, tmp_path, monkeypatch):
    chosen = recipe(precision="bf16-weights", dropout=0.1)
    run_pretraining(chosen, tmp_path / "whole")
    resumed(chosen, tmp_path / "stopped", 8, monkeypatch)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    checkpoint = load_file(tmp_path / "whole" / "checkpoints" / "checkpoint-12" / "model.safetensors")
    float32 = {name for name, value in checkpoint.items() if value.dtype == torch.float32}
    assert float32 == {"decoder.bias", "decoder.log_scale"}
    saved = weights(tmp_path / "whole")
    assert all(torch.equal(saved[name], value.float()) for name, value in checkpoint.items() if name in saved)
    assert {p.dtype for p in SibertForMaskedLM.from_pretrained(tmp_path / "whole").parameters()} == {torch.float32}
    assert losses(tmp_path / "whole") != losses_in("bf16", recipe, tmp_path)


def losses_in(precision, recipe, tmp_path):
    run_pretraining(recipe(precision=precision, dropout=0.1), tmp_path / precision)
    return losses(tmp_path / precision)


def test_the_optimizer_of_bfloat16_weights_rounds_stochastically(recipe):
    chosen = recipe(precision="bf16-weights")
    model = build_model(chosen, 300, 0)
    optimizer, _ = build_training_optimizer(chosen, model)
    for group in optimizer.param_groups:
        dtypes = {p.dtype for p in group["params"]}
        assert dtypes == ({torch.bfloat16} if group["scale_invariant"] else {torch.float32})
        assert group.get("stochastic_rounding", True)


@pytest.mark.parametrize("next_sentence", [False, True])
def test_a_chunked_loss_trains_as_the_whole_one(next_sentence, recipe, tmp_path, monkeypatch):
    chosen = {"next_sentence": next_sentence, "steps": 5, "eval_every": 5}
    run_pretraining(recipe(**chosen), tmp_path / "whole")
    monkeypatch.setattr(chunked_loss, "LOGITS", 100)
    used = []
    original = chunked_loss._ChunkedLoss.apply
    monkeypatch.setattr(chunked_loss._ChunkedLoss, "apply", lambda *given: used.append(given) or original(*given))
    run_pretraining(recipe(**chosen), tmp_path / "chunked")
    assert len(used) == 5
    assert losses(tmp_path / "chunked") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


REFUSED = {
    "of a twin": ({"model": "bert"}, "depend on the gradient of their own group alone"),
    "joint": ({"invariance": "joint"}, "needs its whole gradient"),
    "accumulated": ({"accumulation": 2}, "accumulation must be 1, got 2"),
    "scaled": ({"precision": "fp16"}, "loss scaling changes gradients after backward"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_gradient_release_is_refused_where_it_cannot_be(name):
    changes, reason = REFUSED[name]
    with pytest.raises(ValueError, match=reason):
        PretrainRecipe(gradient_release=True, **changes)


def test_weights_of_a_twin_in_bfloat16_are_refused():
    with pytest.raises(ValueError, match="would round them to nearest"):
        PretrainRecipe(model="bert", precision="bf16-weights")
