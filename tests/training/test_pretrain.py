"""Runs of a few steps: every kind of model, what a run directory holds, exact invariance to the initial scale."""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoTokenizer,
    BertForMaskedLM,
    ModernBertForMaskedLM,
    TrainingArguments,
)

from sibert.data import CorpusReport
from sibert.models import INVARIANCES, SibertConfig, SibertForMaskedLM
from sibert.optim import build_optimizer
from sibert.training import PretrainRecipe, PretrainTrainer, build_model, fill_masks, run_pretraining
from sibert.training.finetune_recipe import FinetuneRecipe
from sibert.training.metrics import LossWindow
from sibert.training.pretrain import build_training_optimizer, describe
from tests.assertions import relative_change, scaled
from tests.training.runs import losses, records, weights


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"next_sentence": True},
        {"whole_word": True, "mask_rate": 0.3},
        {"model": "bert"},
        {"model": "bert", "optimizer": "lamb"},
        {"model": "modernbert", "dropout": 0.1},
        {"model": "bert", "optimizer": "sgd", "next_sentence": True},
        {"optimizer": "adamw"},
        {"streaming": True},
        {"precision": "bf16"},
        {"gradient_checkpointing": True, "dropout": 0.1},
        {"lr": 0.01, "weight_decay": 0.1, "schedule": "piecewise"},
        {"lr": 0.01, "weight_decay": 0.0, "clip": None, "schedule": "linear"},
    ],
    ids=str,
)
def test_every_kind_of_run_moves_every_matrix_and_leaves_a_model(changes, recipe, tmp_path, monkeypatch):
    out, begun = tmp_path / "run", {}

    def remember(recipe, model):
        begun.update({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
        return build_training_optimizer(recipe, model)

    monkeypatch.setattr("sibert.training.pretrain.build_training_optimizer", remember)
    assert run_pretraining(recipe(steps=6, **changes), out) == 0
    loader = AutoModelForPreTraining if changes.get("next_sentence") else AutoModelForMaskedLM
    model = loader.from_pretrained(out)
    assert all(p.isfinite().all() for p in model.parameters())
    assert not [n for n, p in model.named_parameters() if p.dim() > 1 and torch.equal(p, begun[n])]
    assert len(AutoTokenizer.from_pretrained(out)) == model.config.vocab_size
    if changes.get("model", "sibert") == "sibert":  # what the next-sentence task has taught to stand for a text
        assert model.config.classifier_pooling == ("cls" if changes.get("next_sentence") else "mean")
    assert list(losses(out)) == [1, 2, 3, 4, 5, 6]
    evaluation = records(out, "eval")[-1]
    assert evaluation["step"] == 6
    assert evaluation["targets"] > 0
    assert evaluation["unigram_entropy"] > 0
    assert ("nsp_loss" in evaluation) == bool(changes.get("next_sentence"))


def test_the_speed_counts_every_token_of_every_micro_batch_once(recipe, tmp_path, monkeypatch):
    now, add = 0.0, LossWindow.add

    def add_after_a_second(window, losses, tokens):
        nonlocal now
        now += 1.0
        add(window, losses, tokens)

    monkeypatch.setattr(LossWindow, "add", add_after_a_second)
    monkeypatch.setattr("sibert.training.metrics.time", SimpleNamespace(perf_counter=lambda: now))
    run_pretraining(recipe(steps=4, accumulation=2, eval_every=4, save_every=4), tmp_path / "run")
    assert [record["tokens_per_second"] for record in records(tmp_path / "run")] == [4 * 32] * 4
    assert [record["wall_seconds"] for record in records(tmp_path / "run")] == [2, 4, 6, 8]


def test_the_run_directory(recipe, tmp_path):
    out = tmp_path / "run"
    run_pretraining(recipe(), out)
    names = {path.name for path in out.iterdir()}
    assert {
        "recipe.json", "environment.json", "corpus.json", "metrics.jsonl", "tensorboard", "tokenizer", "checkpoints",
        "config.json", "model.safetensors", "tokenizer.json",
    } <= names  # fmt: skip
    assert not any(name.startswith(".") for name in names)
    assert json.loads((out / "recipe.json").read_text())["optimizer"] == "clipped_sgd"
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["checkpoint-10", "checkpoint-12"]
    assert list((out / "tensorboard").glob("events*"))
    last = records(out)[-1]
    assert last["optimizer_state_bytes"] > 0  # LAMB of the head
    encoder = last["groups"]["sibert.layers.0.attention.query"]
    assert {
        "param_norm", "grad_norm", "effective_lr", "intrinsic_lr", "equilibrium_norm", "angular_update", "clip_factor",
        "clipped_fraction", "eta", "weight_decay", "skipped_steps",
    } <= set(encoder)  # fmt: skip
    assert encoder["effective_lr"] == pytest.approx(encoder["eta"] / encoder["param_norm"] ** 2)
    assert {"tokens_per_second", "peak_memory_bytes", "wall_seconds"} <= set(last)
    predictions, _ = next(fill_masks(out, "the quick [MASK] fox"))
    assert predictions


@pytest.mark.parametrize("invariance", INVARIANCES)
def test_scale_invariant_groups_have_no_optimizer_state(invariance, recipe, tmp_path):
    out = tmp_path / "run"
    run_pretraining(recipe(invariance=invariance), out)
    state = torch.load(out / "checkpoints" / "checkpoint-12" / "optimizer.pt", weights_only=True)
    model = SibertForMaskedLM.from_pretrained(out)
    in_state = sum(
        value.numel()
        for entry in state["state"].values()
        for value in entry.values()
        if isinstance(value, torch.Tensor) and value.dim() > 0
    )
    groups = model.scale_invariant_groups().values()
    in_groups = {name for group in groups for name, _ in group.members}
    head = sum(p.numel() for name, p in model.named_parameters() if name not in in_groups and p.dim() > 0)
    rows = sum(len(group.members[0][1]) for group in groups if group.rows)
    assert in_state == 2 * head + rows  # LAMB keeps two moments; a group nothing, or one eta for each of its rows


def test_the_loaded_encoder_is_scale_invariant(recipe, tmp_path):
    out = tmp_path / "run"
    run_pretraining(recipe(), out)
    model = AutoModelForMaskedLM.from_pretrained(out).eval()
    ids = torch.randint(5, model.config.vocab_size, (2, 20))
    with torch.no_grad():
        old = model(ids).logits
        for group in model.scale_invariant_groups().values():
            for c in (1e-6, 1e6):
                with scaled({p for _, p in group.members}, c):
                    assert relative_change(model(ids).logits, old) < 1e-4


@pytest.mark.parametrize(
    ("k", "invariance"), [(-20, "joint"), (20, "joint"), (-20, "matrix"), (7, "matrix"), (20, "row")]
)
def test_powers_of_two_of_the_initial_scale_change_no_bit_of_the_losses(k, invariance, recipe, tmp_path):
    common = {"steps": 30, "save_every": 30, "invariance": invariance}
    run_pretraining(recipe(**common), tmp_path / "plain")
    run_pretraining(recipe(**common, initial_scale=2.0**k), tmp_path / "scaled")
    assert losses(tmp_path / "plain") == losses(tmp_path / "scaled")
    assert len(losses(tmp_path / "plain")) == 30
    a, b = weights(tmp_path / "plain"), weights(tmp_path / "scaled")
    groups = SibertForMaskedLM.from_pretrained(tmp_path / "plain").scale_invariant_groups().values()
    in_groups = {name for group in groups for name, _ in group.members}
    for name in a:
        factor = 2.0**k if name in in_groups else 1.0
        assert torch.equal(factor * a[name], b[name]), name


def test_at_fixed_learning_rate_the_initial_scale_does_matter(recipe, tmp_path):
    fixed = {"steps": 10, "lr": 0.1, "weight_decay": 0.1}
    run_pretraining(recipe(**fixed), tmp_path / "plain")
    run_pretraining(recipe(**fixed, initial_scale=2.0), tmp_path / "scaled")
    assert losses(tmp_path / "plain") != losses(tmp_path / "scaled")


def test_accumulation_gives_the_step_of_one_large_batch(recipe, tmp_path):
    for pairs in (False, True):
        common = {"steps": 4, "next_sentence": pairs, "whole_word": True, "dropout": 0.0}
        run_pretraining(recipe(batch_size=8, **common), tmp_path / f"one-{pairs}")
        run_pretraining(recipe(batch_size=2, accumulation=4, **common), tmp_path / f"four-{pairs}")
        one, four = losses(tmp_path / f"one-{pairs}"), losses(tmp_path / f"four-{pairs}")
        assert list(four.values()) == pytest.approx(list(one.values()), rel=1e-4)
        a, b = weights(tmp_path / f"one-{pairs}"), weights(tmp_path / f"four-{pairs}")
        assert all(torch.allclose(a[name], b[name], rtol=1e-2, atol=1e-4) for name in a)


@pytest.mark.parametrize("kind", [PretrainRecipe, FinetuneRecipe])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "expected a JSON object, got list"),
        ('{"model": ', "is not valid JSON"),
        ('{"stepz": 3}', "has unknown options: stepz"),
        ('{"model": "bert", "task": "sst2", "batch_size": "8"}', "of the wrong type .*: numbers stand without quotes"),
    ],
)
def test_a_recipe_that_cannot_be_read(kind, text, message, tmp_path):
    if kind is PretrainRecipe:
        text = text.replace('"task": "sst2", ', "")
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        kind.from_json(tmp_path / "recipe.json")


def test_of_a_stream_nothing_is_said_that_is_not_known():
    known = describe(CorpusReport(sources=2, rule="file", validation_examples=5))
    assert known == "a stream of 2 sources, 5 sequences of it to validate on"


def test_accumulation_takes_the_steps_of_large_batches_in_later_epochs_too(recipe, tmp_path):
    common = {"steps": 24, "eval_every": 24, "save_every": 24}  # of which nine are an epoch
    run_pretraining(recipe(batch_size=32, **common), tmp_path / "one")
    run_pretraining(recipe(batch_size=8, accumulation=4, **common), tmp_path / "four")
    one, four = losses(tmp_path / "one"), losses(tmp_path / "four")
    assert list(four.values()) == pytest.approx(list(one.values()), rel=1e-3)


@pytest.mark.parametrize(("name", "kind"), [("bert", BertForMaskedLM), ("modernbert", ModernBertForMaskedLM)])
def test_a_twin_is_saved_as_what_it_is(name, kind, recipe, tmp_path):
    run_pretraining(recipe(model=name), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["architectures"] == [kind.__name__]
    assert type(AutoModelForMaskedLM.from_pretrained(tmp_path / "run")) is kind


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_a_twin_has_the_loss_of_the_model_it_stands_for(name, recipe, tmp_path):
    twin = build_model(recipe(model=name, dropout=0.0), vocab_size=50, pad_token_id=0).eval()
    plain = AutoModelForMaskedLM.from_config(twin.config).eval()
    plain.load_state_dict(twin.state_dict())
    ids_BT = torch.randint(1, 50, (3, 16))
    labels_BT = torch.where(torch.rand(3, 16) < 0.3, ids_BT, -100)
    labels_BT[:, 0] = ids_BT[:, 0]
    expected = plain(input_ids=ids_BT, labels=labels_BT).loss
    assert torch.allclose(twin(input_ids=ids_BT, labels=labels_BT).loss, expected, rtol=1e-5)


def test_modernbert_has_no_pairs(recipe):
    with pytest.raises(ValueError, match="no types of tokens"):
        recipe(model="modernbert", next_sentence=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "bert", "two_sided": True}, "two_sided belongs to clipped_sgd; optimizer adamw"),
        ({"two_sided": True, "clip": None}, "clip cannot be none; use 2"),
    ],
)
def test_two_sided_clipping_where_there_is_none_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PretrainRecipe(**options)


@pytest.mark.parametrize(
    ("options", "expected"), [({}, True), ({"invariance": "joint"}, False), ({"clip": None}, False)]
)
def test_the_finer_forms_are_clipped_from_both_sides(options, expected):
    config = SibertConfig.of_size("nano", vocab_size=50, invariance=options.get("invariance", "matrix"))
    model = SibertForMaskedLM(config)
    optimizer, _ = build_training_optimizer(PretrainRecipe(**options), model)
    assert {group["two_sided"] for group in optimizer.param_groups if group.get("scale_invariant")} == {expected}


@pytest.mark.parametrize("invariance", INVARIANCES)
def test_the_head_warms_up_for_a_hundredth_of_the_run_and_the_scale_invariant_groups_never_do(invariance):
    model = SibertForMaskedLM(SibertConfig.of_size("nano", vocab_size=50, invariance=invariance))
    recipe = PretrainRecipe(steps=1000, invariance=invariance, schedule="constant")
    optimizer, lr_schedule = build_training_optimizer(recipe, model)
    shares = []
    for _ in range(11):
        shares.append({group["name"]: group["lr"] / group["initial_lr"] for group in optimizer.param_groups})
        optimizer.step()
        lr_schedule.step()
    for step, share in ((0, 1 / 11), (5, 6 / 11), (10, 1.0)):
        assert shares[step].pop("head") == pytest.approx(share)
        assert set(shares[step].values()) == {1.0}


@pytest.mark.parametrize("decay", [None, 0.2])
@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "sgd"])
@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_the_matrices_of_a_twin_decay_and_its_vectors_do_not(name, optimizer, decay, recipe):
    chosen = recipe(model=name, optimizer=optimizer, weight_decay=decay, warmup_steps=0)
    model = build_model(chosen, vocab_size=50, pad_token_id=0)
    groups = {group["name"]: group for group in build_training_optimizer(chosen, model)[0].param_groups}
    assert {group: groups[group]["weight_decay"] for group in groups} == {"matrices": decay or 0.01, "vectors": 0.0}
    assert all(group["lr"] > 0 for group in groups.values())
    assert {p.dim() for p in groups["matrices"]["params"]} == {2}
    assert {p.dim() for p in groups["vectors"]["params"]} == {1}
    assert sum(len(group["params"]) for group in groups.values()) == len(list(model.parameters()))


def test_absolute_clipping_is_refused_with_the_reason(tmp_path):
    model = SibertForMaskedLM(SibertConfig.of_size("nano", vocab_size=50))
    optimizer = build_optimizer(model, intrinsic_lr=0.01)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match="max_grad_norm must be 0"):
        PretrainTrainer(model=model, args=arguments, optimizers=(optimizer, None))
