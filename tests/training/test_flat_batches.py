"""Batches without padding train as padded ones do, wherever SIBERT is trained."""

import dataclasses

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from sibert.data import LengthSampler, flatten
from sibert.evaluation.predictor import Predictor
from sibert.models.modeling_sibert import SibertAttention
from sibert.training import FinetuneRecipe, PretrainRecipe, run_finetuning, run_pretraining
from sibert.training.finetune import FinetuneDirectory, TaskTrainer, load_examples
from sibert.training.finetune import _prepare as prepare_finetuning
from sibert.training.pretrain import _is_flat, build_model
from sibert.training.task_model import build_task_model, takes_flat_batches
from sibert.training.trainer import PretrainTrainer
from tests import downstream
from tests.training.runs import losses, records


@pytest.fixture
def inputs_seen(monkeypatch):
    """The batches that a model is pre-trained on."""
    seen = []
    compute_loss = PretrainTrainer.compute_loss

    def spy(self, model, inputs, *args, **kwargs):
        seen.append(inputs)
        return compute_loss(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(PretrainTrainer, "compute_loss", spy)
    return seen


@pytest.mark.parametrize("invariance", [pytest.param("joint", marks=pytest.mark.slow), "row"])
def test_pairs_are_pre_trained_flat_with_the_losses_of_padded_ones(invariance, recipe, tmp_path, inputs_seen):
    """Accumulation included: both losses are divided by the targets and the sequences of the global batch."""
    chosen = recipe(next_sentence=True, invariance=invariance, steps=6, eval_every=3, accumulation=2)
    run_pretraining(chosen, tmp_path / "flat")
    flat = list(inputs_seen)
    inputs_seen.clear()
    run_pretraining(dataclasses.replace(chosen, backend="reference"), tmp_path / "padded")
    assert len(flat) == len(inputs_seen) == 12
    for one, other in zip(flat, inputs_seen, strict=True):
        assert one["input_ids"].shape == (1, int(other["attention_mask"].sum()))
        assert one["labels"].shape == (1, int((other["labels"] != -100).sum()))
    assert sum(one["input_ids"].numel() for one in flat) < sum(one["input_ids"].numel() for one in inputs_seen)
    ours, theirs = losses(tmp_path / "flat"), losses(tmp_path / "padded")
    assert ours == pytest.approx(theirs, rel=1e-4)
    for ours, theirs in zip(records(tmp_path / "flat", "eval"), records(tmp_path / "padded", "eval"), strict=True):
        same = ("mlm_loss", "nsp_loss", "targets")
        assert [ours[k] for k in same] == pytest.approx([theirs[k] for k in same], rel=1e-3)


def finetuning(model, task, data, **changes):
    chosen = {"epochs": 10.0, "batch_size": 8, "dropout": 0.0, "device": "cpu", **changes}
    return FinetuneRecipe(model=str(model), task=task, data=str(data), **chosen)


CASES = {
    "joint": ("classification", "joint"),
    "tags": ("token-classification", "row"),
    "answers": ("qa", "sibert"),
    "embeddings": ("embedding", "sibert"),
}


@pytest.mark.parametrize(
    "name", ["joint", "answers", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tags", "embeddings"))]
)
def test_thirty_steps_of_fine_tuning_have_the_losses_of_padded_ones(name, tmp_path, quiet, monkeypatch):
    task, kind = CASES[name]
    model = downstream.pretrained(tmp_path / "model", kind)
    data = downstream.own_files(tmp_path / "data", task)
    few = {"batch_size": 5, "epochs": 30.0} if task == "embedding" else {}
    chosen = finetuning(model, task, data, eval_every=30, **few)
    losses_of = {}
    training_step = TaskTrainer.training_step
    for backend in ("auto", "reference"):
        found = losses_of[backend] = []
        monkeypatch.setattr(
            TaskTrainer, "training_step", lambda *args, found=found: found.append(training_step(*args)) or found[-1]
        )
        run_finetuning(dataclasses.replace(chosen, backend=backend), tmp_path / backend, console=quiet)
    flat, padded = (torch.stack(losses_of[backend]) for backend in ("auto", "reference"))
    assert len(flat) == len(padded) == 30
    difference = (flat - padded).abs() / padded
    # What float32 rounds in each step moves the next: the curves part slowly.
    assert difference[:5].max() < 1e-4
    assert difference.max() < 2e-3
    assert (flat[-3:].mean() - flat[:3].mean()).abs() > 20 * (flat - padded).abs().max()  # it is training they agree on
    ours, theirs = (Predictor.load(tmp_path / "auto", batch_size=3) for _ in range(2))
    theirs.flat = False
    examples = load_examples(chosen)
    assert ours.evaluate(examples, "validation") == pytest.approx(theirs.evaluate(examples, "validation"), abs=1e-6)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {kind: downstream.pretrained(folder / kind, kind) for kind in ("sibert", "joint", "bert")}


@pytest.fixture(scope="module")
def sst2(tmp_path_factory):
    return downstream.glue(tmp_path_factory.mktemp("glue") / "SST-2", "sst2")


@pytest.mark.parametrize(
    ("kind", "changes", "flat"),
    [
        ("sibert", {}, True),
        ("joint", {}, True),
        ("sibert", {"backend": "reference"}, False),
        ("sibert", {"convert": "row"}, False),
        ("bert", {}, False),
    ],
)
def test_flat_are_the_batches_of_sibert_as_it_is(kind, changes, flat, models, sst2, tmp_path, quiet):
    recipe = finetuning(models[kind], "sst2", sst2, **changes)
    trainer, _ = prepare_finetuning(recipe, FinetuneDirectory(tmp_path / "run"), quiet)
    batch = next(iter(trainer.get_train_dataloader()))
    assert ("cu_seq_lens_q" in batch) == flat != ("attention_mask" in batch)
    assert trainer.predictor.flat == flat
    assert isinstance(trainer._get_train_sampler(), LengthSampler)  # rows of like lengths share a batch in any case


def test_several_gpus_of_one_process_get_padded_batches(models, sst2, tmp_path, monkeypatch):
    """`torch.nn.DataParallel` cuts the first dimension of every tensor."""
    recipe = finetuning(models["sibert"], "sst2", sst2)
    model, _ = build_task_model(recipe, load_examples(recipe))
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    pretraining = PretrainRecipe(next_sentence=True)
    assert takes_flat_batches(recipe, model, arguments)
    assert _is_flat(pretraining, arguments)
    monkeypatch.setattr(type(arguments), "n_gpu", property(lambda self: 2))
    assert not takes_flat_batches(recipe, model, arguments)
    assert not _is_flat(pretraining, arguments)


def test_reference_is_the_attention_as_it_is_defined_and_is_not_saved(models, sst2, tmp_path):
    recipe = finetuning(models["joint"], "sst2", sst2, backend="reference")
    finetuned, _ = build_task_model(recipe, load_examples(recipe))
    pretrained = build_model(PretrainRecipe(size="nano", invariance="joint", backend="reference"), 50, 0)
    for model in (finetuned, pretrained):
        attentions = [module for module in model.modules() if isinstance(module, SibertAttention)]
        assert attentions
        assert all(one.backend == {"backend": "reference"} for one in attentions)
    finetuned.save_pretrained(tmp_path)
    assert "backend" not in (tmp_path / "config.json").read_text()


def test_another_backend_is_refused():
    for make in (PretrainRecipe, lambda **changes: finetuning("model", "sst2", "data", **changes)):
        with pytest.raises(ValueError, match="backend must be one of auto, reference, got 'fast'"):
            make(backend="fast")


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("split", [False, True], ids=["own batches", "split batches"])
def test_processes_share_rows_before_these_are_laid_end_to_end(processes, split):
    """accelerate divides batches of indices, and repeats rows of the first batch where the last one is short."""
    rows = [{"input_ids": [k] * (1 + k % 5), "labels": k} for k in range(22)]
    seen = []
    for rank in range(processes):
        loader = DataLoader(rows, batch_size=4 * (processes if split else 1), collate_fn=flatten)
        shard = prepare_data_loader(
            loader, num_processes=processes, process_index=rank, split_batches=split, put_on_device=False
        )
        for batch in shard:
            parts = batch["input_ids"][0].split(batch["cu_seq_lens_q"].diff().tolist())
            assert [len(part) for part in parts] == [1 + int(part[0]) % 5 for part in parts]
            assert [int(part[0]) for part in parts] == batch["labels"].tolist()
            seen += batch["labels"].tolist()
    assert set(seen) == set(range(22))


def test_blocks_are_collated_as_ever_and_pairs_flat(recipe):
    arguments = TrainingArguments(output_dir="unused", use_cpu=True)
    cases = (({}, False), ({"next_sentence": True}, True), ({"next_sentence": True, "model": "bert"}, False))
    for changes, flat in cases:
        assert _is_flat(recipe(**changes), arguments) == flat
