"""Exported graphs compute what the model does, at any batch size and length; what they are not is refused."""

import json

import pytest
import torch
from transformers import AutoTokenizer, BertForSequenceClassification

from sibert.evaluation import task_named
from sibert.evaluation.export import FORMATS, GraphModel, _frexp, export_model, output_names
from sibert.evaluation.predictor import Predictor
from sibert.evaluation.tokenization import Tokenization
from sibert.models import SibertForQuestionAnswering, SibertForSequenceClassification
from tests import downstream


def predictor_of(folder, kind, task):
    torch.manual_seed(1)
    classes = {"bert": BertForSequenceClassification}
    name = "classification" if task == "classification" else task
    plain = SibertForQuestionAnswering if task == "squad" else SibertForSequenceClassification
    downstream.pretrained(folder, kind)
    model = classes.get(kind, plain).from_pretrained(folder).eval()
    labels = ("bad", "good") if task == "classification" else None
    return Predictor(model, Tokenization.of(model, AutoTokenizer.from_pretrained(folder)), task_named(name), labels)


@pytest.mark.parametrize(
    ("kind", "task"),
    [("matrix", "classification"), ("bert", "classification"), ("row", "squad")],
)
def test_graphs_predict_what_the_model_does(kind, task, tmp_path):
    predictor = predictor_of(tmp_path / "model", kind, task)
    formats = tuple(FORMATS) if kind == "matrix" else ("torch",)  # an export to ONNX takes ten seconds
    found = export_model(predictor, tmp_path / "out", formats)
    assert set(found) == set(formats)
    columns = {"text": ["a fine film", "dull", "the best story and great music " * 5]}
    if task == "squad":
        columns = {"question": ["Who?"], "context": ["Anna lives in Oslo. " * 9]}
    expected = predictor.predict(columns)
    for name in formats:
        model = GraphModel(found[name].file, output_names(predictor.task.kind))
        predictor.model, plain = model, predictor.model
        shown = predictor.predict(columns)
        predictor.model = plain
        for one, other in zip(shown, expected, strict=True):
            tolerance = 0.05 if name == "int8" else 1e-4
            assert one["score"] == pytest.approx(other["score"], abs=tolerance)
            assert name == "int8" or {**one, "score": 0, "no_answer": 0} == {**other, "score": 0, "no_answer": 0}
    assert all(one.difference < 1e-4 for name, one in found.items() if name != "int8")
    assert not list(tmp_path.glob(".out*"))
    AutoTokenizer.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_replacement_of_frexp(dtype):
    x = torch.tensor([0.0, 1.0, -1.0, 0.5, 3.0, 1e-30, 1e30, 2.0**-126, 7.25], dtype=dtype)
    mantissa, exponent = _frexp(x)
    torch.testing.assert_close(mantissa * torch.exp2(exponent.to(dtype)), x)
    assert ((mantissa.abs() >= 0.25) | (x == 0)).all()
    assert (mantissa.abs() <= 1).all()


def test_mistakes_leave_nothing(tmp_path, monkeypatch):
    predictor = predictor_of(tmp_path / "model", "matrix", "classification")
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="there exists: give a new folder"):
        export_model(predictor, tmp_path / "there")
    with pytest.raises(ValueError, match="formats are torch, onnx, int8, got gguf"):
        export_model(predictor, tmp_path / "out", ["gguf"])
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(
            ValueError, match=r"ONNX needs onnx, onnxruntime, onnxscript: pip install 'sibert\[export\]'"
        ):
            export_model(predictor, tmp_path / "out")
    monkeypatch.setattr("sibert.evaluation.export._difference", lambda *_: 0.5)
    with pytest.raises(ValueError, match="computes something else"):
        export_model(predictor, tmp_path / "out", ["torch"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "there"]


def test_the_command(tmp_path, run, quiet):
    from sibert.training import FinetuneRecipe, run_finetuning

    model = downstream.pretrained(tmp_path / "model")
    data = downstream.own_files(tmp_path / "data", "classification")
    recipe = FinetuneRecipe(model=str(model), task="classification", data=str(data), epochs=1.0, device="cpu")
    run_finetuning(recipe, tmp_path / "run", console=quiet)
    status, shown, _ = run("export", tmp_path / "run", tmp_path / "out", "--formats", "torch")
    assert status == 0
    assert "model.pt2" in shown
    score = json.loads((tmp_path / "run" / "results.json").read_text())["scores"]["validation"]["accuracy"]
    assert shown.count(f"on validation: accuracy {100 * score:.1f}") == 2
