"""Every task runs from end to end on files in its official format, and leaves an ordinary folder of transformers."""

import dataclasses
import json
import math
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from rich.console import Console
from sentence_transformers import SentenceTransformer
from torchmetrics.functional.text import squad as squad_of_torchmetrics
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertModel,
    ModernBertForSequenceClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)

from sibert.conversion import converted_weights
from sibert.evaluation.prediction_files import predict_file
from sibert.evaluation.predictor import HEADS, DivergedError, Predictor
from sibert.evaluation.tasks import GENERIC, TASKS
from sibert.training import finetune
from sibert.training.checkpoints import latest_checkpoint
from sibert.training.evaluate import evaluate_run
from sibert.training.finetune import FinetuneDirectory, load_examples, read_results, run_finetuning
from sibert.training.finetune_recipe import FinetuneRecipe
from sibert.training.sweep import parse_grid, run_sweep
from sibert.training.task_model import build_task_model, build_task_optimizer
from tests import downstream
from tests.training.runs import records, weights

GLUE = [name for name, task in TASKS.items() if task.hub and task.hub[0].endswith("glue")]
OWN = [name for name in GENERIC if name != "embedding"]  # which has a class of its own below


@pytest.fixture(scope="module")
def sibert(tmp_path_factory):
    return downstream.pretrained(tmp_path_factory.mktemp("models") / "sibert")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return downstream.pretrained(tmp_path_factory.mktemp("models") / "bert", "bert")


@pytest.fixture(scope="module")
def sst2(tmp_path_factory):
    return downstream.glue(tmp_path_factory.mktemp("glue") / "SST-2", "sst2")


def data_for(task, folder):
    if task in GLUE:
        return downstream.glue(folder, task)
    if task.startswith("squad"):
        return downstream.squad(folder, "2.0" if task == "squad2" else "1.1")
    return downstream.own_files(folder, task)


def recipe(model, task, data, **changes):
    return FinetuneRecipe(
        **{
            "model": str(model),
            "task": task,
            "data": str(data),
            "epochs": 1.0,
            "batch_size": 8,
            "device": "cpu",
            **changes,
        }
    )


@pytest.mark.parametrize("task", [*GLUE, "squad", "squad2", *OWN])
def test_every_task_runs_from_end_to_end(task, sibert, tmp_path, quiet):
    data = data_for(task, tmp_path / "data")
    assert run_finetuning(recipe(sibert, task, data), tmp_path / "run", console=quiet) == 0
    results = read_results(tmp_path / "run")
    assert set(results["scores"]) == set({**TASKS, **GENERIC}[task].splits)
    for scores in results["scores"].values():
        assert set({**TASKS, **GENERIC}[task].metrics) <= set(scores)
        assert all(math.isfinite(value) for value in scores.values())
    again = evaluate_run(tmp_path / "run")
    # A correlation of predictions that are nearly the same feels the rounding of a batch of another shape.
    assert {split: pytest.approx(scores, abs=1e-4) for split, scores in again.items()} == results["scores"]
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("invariance", ["joint", "row"])
def test_the_other_forms_of_sibert(invariance, sst2, tmp_path, quiet):
    folder = downstream.pretrained(tmp_path / "model", invariance)
    assert run_finetuning(recipe(folder, "sst2", sst2), tmp_path / "run", console=quiet) == 0


def test_it_learns(sibert, sst2, tmp_path, quiet):
    run_finetuning(recipe(sibert, "sst2", sst2, epochs=30.0, intrinsic_lr=0.003, head_lr=0.01), tmp_path, console=quiet)
    scores = read_results(tmp_path)["scores"]["validation"]
    assert scores["accuracy"] == 1.0


class TestTheResultIsAnOrdinaryFolder:
    def test_text_classification(self, sibert, sst2, tmp_path, quiet):
        run_finetuning(recipe(sibert, "sst2", sst2), tmp_path, console=quiet)
        pipe = pipeline("text-classification", model=str(tmp_path))
        mine = Predictor.load(tmp_path).predict({"text": ["a fine film"]})[0]
        theirs = pipe("a fine film")[0]
        assert theirs["label"] == mine["label"]
        assert theirs["score"] == pytest.approx(mine["score"], abs=1e-5)

    def test_token_classification(self, sibert, tmp_path, quiet):
        data = downstream.own_files(tmp_path / "data", "token-classification")
        run_finetuning(
            recipe(sibert, "token-classification", data, epochs=20.0, head_lr=0.02), tmp_path / "run", console=quiet
        )
        pipe = pipeline("token-classification", model=str(tmp_path / "run"), aggregation_strategy="first")
        mine = Predictor.load(tmp_path / "run").predict({"words": [["Anna", "lives", "in", "Oslo"]]})[0]
        assert mine["tags"] == ["B-PER", "O", "O", "B-LOC"]
        assert [(one["word"], one["entity_group"]) for one in pipe("Anna lives in Oslo")] == [
            ("anna", "PER"),
            ("oslo", "LOC"),
        ]

    def test_question_answering(self, sibert, tmp_path, quiet):
        data = downstream.squad(tmp_path / "data")
        run_finetuning(recipe(sibert, "squad", data, epochs=5.0), tmp_path / "run", console=quiet)
        question, context = "Where lives Anna?", "Anna lives in Oslo."
        mine = Predictor.load(tmp_path / "run").predict({"question": [question], "context": [context]})[0]
        assert context[mine["start"] : mine["end"]] == mine["answer"]
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
        model = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "run").eval()
        inputs = tokenizer(question, context, return_tensors="pt")
        with torch.no_grad():
            outputs = model(**inputs)
        places = [i for i, part in enumerate(inputs.sequence_ids()) if part == 1]
        scores_SE = outputs.start_logits[0, places][:, None] + outputs.end_logits[0, places][None]
        ordered = torch.ones_like(scores_SE).triu() > 0
        start, end = divmod(int(scores_SE.masked_fill(~ordered, -torch.inf).argmax()), len(places))
        assert inputs.token_to_chars(places[start]).start == mine["start"]
        assert inputs.token_to_chars(places[end]).end == mine["end"]

    def test_the_pipeline_of_question_answering(self, sibert, tmp_path, quiet):
        data = downstream.squad(tmp_path / "data")
        run_finetuning(recipe(sibert, "squad", data), tmp_path / "run", console=quiet)
        context = "Anna  lives in Oslo."
        pipe = pipeline("question-answering", model=str(tmp_path / "run"))
        answer = pipe(question="Where lives Anna?", context=context)
        assert context[answer["start"] : answer["end"]].strip() == answer["answer"]
        mine = Predictor.load(tmp_path / "run").predict({"question": ["Where lives Anna?"], "context": [context]})[0]
        assert (mine["best"], mine["start"], mine["end"]) == (answer["answer"], answer["start"], answer["end"])


@pytest.fixture(scope="module")
def trained(sibert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedding")
    data = downstream.own_files(folder / "data", "embedding")
    chosen = recipe(sibert, "embedding", data, batch_size=5, epochs=60.0, intrinsic_lr=3e-3)
    run_finetuning(chosen, folder / "run", console=Console(quiet=True))
    return folder


class TestEmbeddings:
    def test_anchors_find_their_positives(self, trained):
        assert read_results(trained / "run")["scores"]["validation"]["retrieval_accuracy"] == 1.0
        state = read_results(trained / "run")["optimizer_state_bytes"]
        tokens = len(AutoTokenizer.from_pretrained(trained / "run"))
        assert state == 4 * tokens  # one eta for each; the whole encoder is scale invariant, and there is no head

    def test_sentence_transformers_opens_it(self, trained):
        loaded = SentenceTransformer(str(trained / "run"), device="cpu")
        texts = ["Anna lives", "in Oslo in Oslo"]
        theirs = loaded.encode(texts)
        mine = Predictor.load(trained / "run").embeddings(texts)
        np.testing.assert_allclose(theirs, mine, atol=1e-5)

    def test_predictions_need_one_text(self, trained, tmp_path):
        (tmp_path / "texts.csv").write_text("anchor\nAnna lives\n")
        predict_file(Predictor.load(trained / "run"), tmp_path / "texts.csv", tmp_path / "out.jsonl")
        vector = json.loads((tmp_path / "out.jsonl").read_text())["embedding"]
        assert sum(x * x for x in vector) == pytest.approx(1.0, abs=1e-5)

    def test_bert(self, bert, tmp_path, quiet):
        data = downstream.own_files(tmp_path / "data", "embedding")
        chosen = recipe(bert, "embedding", data, batch_size=5, convert="row")
        assert run_finetuning(chosen, tmp_path / "run", console=quiet) == 0
        SentenceTransformer(str(tmp_path / "run"), device="cpu")

    def test_fewer_pairs_than_a_batch(self, sibert, tmp_path, quiet):
        data = downstream.own_files(tmp_path / "data", "embedding")
        with pytest.raises(ValueError, match="5 pairs are fewer than a batch of 8"):
            run_finetuning(recipe(sibert, "embedding", data), tmp_path / "run", console=quiet)


class TestConverted:
    def test_a_modernbert(self, sst2, tmp_path, quiet):
        model = downstream.pretrained(tmp_path / "model", "modernbert")
        for name, changes in (("plain", {}), ("converted", {"convert": "row"})):
            run_finetuning(recipe(model, "sst2", sst2, **changes), tmp_path / name, console=quiet)
            loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / name)
            assert type(loaded) is ModernBertForSequenceClassification
            old = weights(model)
            moved = {n for n, tensor in weights(tmp_path / name).items() if n in old and (tensor != old[n]).any()}
            assert "model.layers.0.mlp.Wi.weight" in moved

    def test_is_trained_by_sgd_and_saved_as_it_was(self, bert, sst2, tmp_path, quiet):
        run_finetuning(recipe(bert, "sst2", sst2, convert="row"), tmp_path, console=quiet)
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert type(loaded).__module__.startswith("transformers.")
        assert set(weights(tmp_path)) == set(loaded.state_dict())
        moved = [
            name
            for name, tensor in weights(tmp_path).items()
            if name in weights(bert) and (tensor != weights(bert)[name]).any()
        ]
        assert "bert.encoder.layer.0.attention.self.query.weight" in moved
        assert read_results(tmp_path)["optimizer_state_bytes"] < 0.2 * sum(t.nbytes for t in weights(tmp_path).values())

    def test_begins_as_the_same_function(self, bert, sst2):
        plain, _ = build_task_model(recipe(bert, "sst2", sst2), load_examples(recipe(bert, "sst2", sst2)))
        chosen = recipe(bert, "sst2", sst2, convert="matrix")
        converted, _ = build_task_model(chosen, load_examples(chosen))
        assert converted_weights(converted)
        ids = torch.randint(5, 60, (2, 9))
        with torch.no_grad():
            torch.testing.assert_close(converted.eval()(ids).logits, plain.eval()(ids).logits)


class TestOptimizers:
    def groups(self, model, sst2, **changes):
        chosen = recipe(model, "sst2", sst2, **changes)
        built, _ = build_task_model(chosen, load_examples(chosen))
        optimizer, _ = build_task_optimizer(chosen, built, 100)
        return optimizer

    def test_sibert_has_no_state_but_for_its_head(self, sibert, sst2):
        optimizer = self.groups(sibert, sst2)
        invariant = [group for group in optimizer.param_groups if group.get("scale_invariant")]
        assert [group["intrinsic_lr"] for group in invariant] == [0.001] * len(invariant)
        assert [group["name"] for group in optimizer.param_groups if not group.get("scale_invariant")] == ["head"]

    @pytest.mark.parametrize("invariance", ["joint", "matrix", "row"])
    def test_tokens_turn_on_their_own_where_that_changes_nothing(self, invariance, sst2, tmp_path):
        model = downstream.pretrained(tmp_path / "model", invariance)
        groups = self.groups(model, sst2).param_groups
        tables = [group for group in groups if "word_embeddings" in group["name"]]
        assert [group["rows"] for group in tables] == ([] if invariance == "joint" else [True])

    @pytest.mark.parametrize("name", ["lamb", "adamw"])
    def test_the_paper_s_choice_and_the_twin_s(self, name, sibert, bert, sst2, tmp_path, quiet):
        for model in (sibert, bert):
            out = tmp_path / model.name
            assert run_finetuning(recipe(model, "sst2", sst2, optimizer=name), out, console=quiet) == 0
            assert read_results(out)["optimizer_state_bytes"] > 0

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"optimizer": "clipped_sgd"}, "BertForSequenceClassification is none: add --convert row"),
            ({"convert": "row", "lr": 1e-3}, "lr belongs to adamw and lamb"),
            ({"intrinsic_lr": 1e-3}, "belong to clipped_sgd; adamw takes lr"),
        ],
    )
    def test_what_makes_no_sense_is_refused_and_nothing_is_left(self, changes, message, bert, sst2, tmp_path, quiet):
        with pytest.raises(ValueError, match=message):
            run_finetuning(recipe(bert, "sst2", sst2, **changes), tmp_path / "run", console=quiet)
        assert not (tmp_path / "run").exists()


def test_a_baseline_that_the_data_do_not_allow_is_left_out(sibert, tmp_path, quiet):
    rows = "".join(f"a b c,{label}\n" for label in 8 * ["good", "bad"])
    for split in ("train", "validation"):
        (tmp_path / f"{split}.csv").write_text(f"text,label\n{rows}")
    chosen = recipe(sibert, "classification", tmp_path, baselines=True)
    assert run_finetuning(chosen, tmp_path / "run", console=quiet) == 0
    assert list(read_results(tmp_path / "run")["baselines"]) == ["majority"]  # no word has two letters


class TestGoingOn:
    @pytest.mark.parametrize("changes", [{}, {"convert": "row", "model": "bert"}])
    def test_a_stopped_run_ends_as_one_that_was_not(self, changes, sibert, bert, sst2, tmp_path, quiet, monkeypatch):
        model = bert if changes.pop("model", None) else sibert
        chosen = recipe(model, "sst2", sst2, epochs=2.0, eval_every=1, dropout=0.1, **changes)
        run_finetuning(chosen, tmp_path / "whole", console=quiet)
        from sibert.training.finetune import TaskTrainer

        evaluate = TaskTrainer.evaluate

        def stop_after_two(self, *args, **kwargs):
            if self.state.global_step == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return evaluate(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(TaskTrainer, "evaluate", stop_after_two)
            assert run_finetuning(chosen, tmp_path / "stopped", console=quiet) == 130
        assert not (tmp_path / "stopped" / "results.json").exists()
        with pytest.raises(ValueError, match="is not finished: sibert finetune --resume"):
            Predictor.load(tmp_path / "stopped")
        assert run_finetuning(chosen, tmp_path / "stopped", resume=True, console=quiet) == 0
        one, other = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
        assert all(torch.equal(one[name], other[name]) for name in one)
        curves = [[r["eval_score"] for r in records(tmp_path / name, "eval")] for name in ("whole", "stopped")]
        assert curves[0] == curves[1]

    @pytest.mark.parametrize("convert", [None, "row"])
    def test_a_run_that_had_trained_to_its_end_only_writes_its_results(
        self, convert, bert, sst2, tmp_path, quiet, monkeypatch
    ):
        chosen = recipe(bert, "sst2", sst2, epochs=1.2, eval_every=2, convert=convert)
        run_finetuning(chosen, tmp_path / "whole", console=quiet)
        with monkeypatch.context() as patch:
            patch.setattr(FinetuneDirectory, "save_model", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run_finetuning(chosen, tmp_path / "stopped", console=quiet)
        assert run_finetuning(chosen, tmp_path / "stopped", resume=True, console=quiet) == 0
        assert read_results(tmp_path / "stopped")["steps"] == read_results(tmp_path / "whole")["steps"]
        one, other = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
        assert all(torch.equal(one[name], other[name]) for name in one)

    def test_a_checkpoint_of_a_converted_model_is_whole_only_with_its_directions(
        self, bert, sst2, tmp_path, quiet, monkeypatch
    ):
        chosen = recipe(bert, "sst2", sst2, eval_every=1, convert="row")
        with monkeypatch.context() as patch:
            save = finetune.save_directions
            patch.setattr(
                finetune,
                "save_directions",
                lambda model, file: 1 / 0 if "-2" in file.parent.name else save(model, file),
            )
            with pytest.raises(ZeroDivisionError):
                run_finetuning(chosen, tmp_path, console=quiet)
        assert latest_checkpoint(tmp_path / "checkpoints")[0].name == "checkpoint-1"
        assert run_finetuning(chosen, tmp_path, resume=True, console=quiet) == 0

    def test_other_data_are_refused(self, sibert, sst2, tmp_path, quiet, monkeypatch):
        data = tmp_path / "data"
        shutil.copytree(sst2, data)
        chosen = recipe(sibert, "sst2", data, eval_every=1)
        with monkeypatch.context() as patch:
            patch.setattr(FinetuneDirectory, "save_model", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run_finetuning(chosen, tmp_path / "run", console=quiet)
        with (data / "train.tsv").open("a") as file:
            file.write("one film more\t1\n")
        with pytest.raises(ValueError, match="have changed since it began: rows of train"):
            run_finetuning(chosen, tmp_path / "run", resume=True, console=quiet)

    def test_what_diverges_is_refused_or_ends_at_its_best(self, bert, sst2, tmp_path, quiet, monkeypatch):
        chosen = recipe(bert, "sst2", sst2, eval_every=1)
        with pytest.raises(DivergedError, match="outputs of the model are not finite"):
            run_finetuning(dataclasses.replace(chosen, lr=1e35), tmp_path / "at once", console=quiet)
        step = finetune.TaskTrainer.training_step

        def diverge(self, model, *args):
            if self.state.global_step == 1:
                model.classifier.weight.data.fill_(math.nan)
            return step(self, model, *args)

        monkeypatch.setattr(finetune.TaskTrainer, "training_step", diverge)
        assert run_finetuning(chosen, tmp_path / "later", console=quiet) == 0
        assert {key: read_results(tmp_path / "later")[key] for key in ("steps", "best_step")} == {
            "steps": 2,
            "best_step": 1,
        }
        assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "later").values())

    def test_early_stopping_keeps_the_best(self, sibert, sst2, tmp_path, quiet):
        chosen = recipe(sibert, "sst2", sst2, epochs=50.0, eval_every=1, patience=2, head_lr=1e-9, intrinsic_lr=1e-12)
        run_finetuning(chosen, tmp_path, console=quiet)
        results = read_results(tmp_path)
        assert results["best_step"] == 1
        assert results["steps"] == 3


class TestSweep:
    def test_seeds_and_grid(self, sibert, sst2, tmp_path, quiet):
        grid = parse_grid(["head_lr=1e-3,1e-2", "epochs=1"])
        chosen = recipe(sibert, "sst2", sst2)
        assert run_sweep(chosen, tmp_path, seeds=2, grid=grid, console=quiet) == 0
        table = json.loads((tmp_path / "sweep.json").read_text())
        assert [row["setting"] for row in table["settings"]] == [{"head_lr": r, "epochs": 1} for r in (1e-3, 1e-2)]
        for row in table["settings"]:
            values = [
                read_results(tmp_path / row["name"] / f"seed-{seed}")["scores"]["validation"]["accuracy"]
                for seed in (0, 1)
            ]
            found = row["scores"]["validation"]["accuracy"]
            assert found["mean"] == pytest.approx(sum(values) / 2)
            assert found["std"] == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))

    def test_a_setting_that_diverges_is_left_out(self, bert, sst2, tmp_path, quiet):
        chosen = recipe(bert, "sst2", sst2)
        assert run_sweep(chosen, tmp_path, grid={"lr": [1e-4, 1e35]}, console=quiet) == 0
        table = json.loads((tmp_path / "sweep.json").read_text())
        assert [row["setting"] for row in table["settings"]] == [{"lr": 1e-4}]
        with pytest.raises(DivergedError):
            run_sweep(chosen, tmp_path / "all", grid={"lr": [1e35]}, console=quiet)

    def test_what_has_results_is_not_run_again(self, sibert, sst2, tmp_path, quiet):
        run_sweep(recipe(sibert, "sst2", sst2), tmp_path, seeds=2, console=quiet)
        before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("results.json")}
        run_sweep(recipe(sibert, "sst2", sst2), tmp_path, seeds=3, console=quiet)
        assert len(list(tmp_path.rglob("results.json"))) == 3
        assert all(file.stat().st_mtime_ns == time for file, time in before.items())
        with pytest.raises(ValueError, match="holds a run of another recipe"):
            run_sweep(recipe(sibert, "sst2", sst2, epochs=2.0), tmp_path, seeds=2, console=quiet)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("rate=1", "--grid takes NAME=VALUE"),
            ("lr=", "has no values"),
            ("lr", "has no values"),
            ("batch_size=8,8.5", "--grid batch_size takes a whole number, got '8.5'"),
            ("length=much", "--grid length takes a whole number or none, got 'much'"),
            ("epochs=none", "--grid epochs takes a number, got 'none'"),
            ("weight_decay=none", "--grid weight_decay takes a number, got 'none'"),
            ("lr=fast", "--grid lr takes a number or none, got 'fast'"),
        ],
    )
    def test_bad_grids(self, text, message):
        with pytest.raises(ValueError, match=message):
            parse_grid([text])

    def test_values_have_the_type_of_their_name(self):
        grid = parse_grid(["lr=1e-3,none", "epochs=2", "batch_size=8", "clip=none,2", "optimizer=none,lamb", "model=7"])
        assert grid == {
            "lr": [1e-3, None],
            "epochs": [2],
            "batch_size": [8],
            "clip": [None, 2],
            "optimizer": [None, "lamb"],
            "model": ["7"],
        }

    def test_names_are_shown_as_they_are(self, bert, sst2, tmp_path, capsys):
        model = tmp_path / "a:bug:[bold]"
        model.symlink_to(bert)
        run_sweep(recipe(bert, "sst2", sst2), tmp_path / "out", grid={"model": [str(model)]})
        assert f"== model={str(model).replace('/', '_')}/seed-0" in capsys.readouterr().out

    def test_a_grid_with_a_bad_value_runs_nothing(self, sibert, sst2, tmp_path, quiet):
        with pytest.raises(ValueError, match="epochs must be positive"):
            run_sweep(recipe(sibert, "sst2", sst2), tmp_path, grid={"epochs": [1, -1]}, console=quiet)
        assert not any(tmp_path.glob("*/seed*"))


class TestModels:
    def test_a_head_with_other_labels_is_replaced_and_it_is_said(self, sibert, sst2, tmp_path, quiet):
        run_finetuning(recipe(sibert, "sst2", sst2), tmp_path / "first", console=quiet)
        data = downstream.glue(tmp_path / "MNLI", "mnli")
        chosen = recipe(tmp_path / "first", "mnli", data)
        model, notes = build_task_model(chosen, load_examples(chosen))
        assert model.config.num_labels == 3
        assert any("labels negative, positive and is replaced" in note for note in notes)

    def test_a_head_with_as_many_other_labels_is_kept_and_it_is_said(self, sibert, sst2, tmp_path, quiet):
        run_finetuning(recipe(sibert, "sst2", sst2), tmp_path / "first", console=quiet)
        data = downstream.glue(tmp_path / "CoLA", "cola")
        expected = (
            "the model's head had the labels negative, positive and goes on as it is, for unacceptable, acceptable"
        )
        for model, task, files, said in (
            (tmp_path / "first", "cola", data, [expected]),
            (tmp_path / "first", "sst2", sst2, []),
            (sibert, "cola", data, []),
        ):
            chosen = recipe(model, task, files)
            assert build_task_model(chosen, load_examples(chosen))[1] == said

    @pytest.mark.parametrize("kind", ["sibert", "bert", "modernbert", "distilbert"])
    def test_dropout_is_of_all_parts(self, kind, sst2, tmp_path):
        folder = tmp_path / "model"
        if kind == "distilbert":
            config = DistilBertConfig(vocab_size=60, dim=16, n_layers=1, n_heads=2, hidden_dim=16)
            DistilBertModel(config).save_pretrained(folder)
        else:
            downstream.pretrained(folder, kind)
        chosen = recipe(folder, "sst2", sst2, dropout=0.25)
        model, _ = build_task_model(chosen, load_examples(chosen))
        rates = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
        assert rates == {0.25}
        left_alone = {"classifier_dropout": None} if kind in ("sibert", "bert") else {}
        found = {name: value for name, value in model.config.to_dict().items() if "dropout" in name}
        assert found == dict.fromkeys(found, 0.25) | left_alone

    def test_dropout_of_a_model_without(self, sst2, tmp_path):
        (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
        chosen = recipe(tmp_path, "sst2", sst2, dropout=0.1)
        with pytest.raises(ValueError, match="resnet has no dropout that its configuration sets: leave dropout out"):
            build_task_model(chosen, load_examples(chosen))

    def test_weights_that_are_cut_off(self, sst2, tmp_path, quiet):
        weights = downstream.pretrained(tmp_path / "model") / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(
            ValueError, match=r"^\S*/model\.safetensors is damaged \(.*\): copy or save the model again"
        ):
            run_finetuning(recipe(tmp_path / "model", "sst2", sst2), tmp_path / "run", console=quiet)
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({}, "has no config.json"),
            ({"recipe.json": "{}"}, "has no model yet: go on with: sibert pretrain --resume"),
            ({"config.json": '{"model_type": "nonsense"}'}, "which transformers"),
            ({"config.json": '{"model_type": "sibert_converted"}'}, "is converted already"),
            (
                {"config.json": '{"model_type": "resnet"}'},
                "there is no (tokenizer|model) of this kind",
            ),
        ],
    )
    def test_folders_without_a_model(self, files, message, sst2, tmp_path, quiet):
        folder = tmp_path / "model"
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            run_finetuning(recipe(folder, "sst2", sst2), tmp_path / "run", console=quiet)
        assert not (tmp_path / "run").exists()

    def test_a_name_that_is_nothing_here_and_cannot_be_asked_for(self, sst2, tmp_path, quiet):
        with pytest.raises(ValueError, match="it is no folder here, and from the Hugging Face hub it cannot be read"):
            run_finetuning(recipe("nobody/nothing", "sst2", sst2), tmp_path / "run", console=quiet)

    def test_a_tokenizer_of_another_model(self, sibert, bert, sst2, tmp_path, quiet):
        folder = downstream.pretrained(tmp_path / "model")
        config = json.loads((folder / "config.json").read_text())
        AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
        assert config["vocab_size"] > 30
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens([f"new{i}" for i in range(5)])
        tokenizer.save_pretrained(folder)
        with pytest.raises(ValueError, match="they do not belong together"):
            run_finetuning(recipe(folder, "sst2", sst2), tmp_path / "run", console=quiet)


def test_squad_predictions_have_the_same_scores_by_another_scorer(sibert, tmp_path, quiet):
    """`sibert predict` to the leaderboard's format, scored by torchmetrics."""
    data = downstream.squad(tmp_path / "data")
    run_finetuning(recipe(sibert, "squad", data, epochs=3.0), tmp_path / "run", console=quiet)
    predict_file(Predictor.load(tmp_path / "run"), data / "dev-v1.1.json", tmp_path / "answers.json")
    answers = json.loads((tmp_path / "answers.json").read_text())
    questions = [
        question
        for article in json.loads((data / "dev-v1.1.json").read_text())["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]
    theirs = squad_of_torchmetrics(
        [{"id": key, "prediction_text": text} for key, text in answers.items()],
        [
            {
                "id": q["id"],
                "answers": {k: [a[k] for a in q["answers"]] for k in ("text", "answer_start")},
            }
            for q in questions
        ],
    )
    mine = read_results(tmp_path / "run")["scores"]["validation"]
    assert float(theirs["exact_match"]) / 100 == pytest.approx(mine["exact_match"])
    assert float(theirs["f1"]) / 100 == pytest.approx(mine["f1"])


def test_the_trainer_of_transformers_takes_model_and_optimizer(sibert, sst2, tmp_path):
    chosen = recipe(sibert, "sst2", sst2)
    examples = load_examples(chosen)
    model, _ = build_task_model(chosen, examples)
    tokenizer = AutoTokenizer.from_pretrained(sibert)
    rows = examples.splits["train"].map(lambda row: {**tokenizer(row["text"]), "labels": row["label"]})
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, use_cpu=True, report_to="none", disable_tqdm=True, max_grad_norm=0.0
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        optimizers=build_task_optimizer(chosen, model, 2),
    )
    assert math.isfinite(trainer.train().training_loss)


def test_heads_are_those_of_transformers():
    assert set(HEADS) == {task.kind for task in {**TASKS, **GENERIC}.values()}
