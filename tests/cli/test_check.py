"""`sibert check`: exit statuses for CI, what forbids a rescaling, JSON."""

import json
import sys

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from sibert import SibertConfig, SibertForMaskedLM
from sibert.homogeneity.rules import RULES, rule

TINY = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    BertForMaskedLM(BertConfig(**TINY)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["joint", "matrix", "row"])
def sibert(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    SibertForMaskedLM(SibertConfig(invariance=request.param, **TINY)).save_pretrained(folder)
    return request.param, folder


def test_encoder_of_sibert_is_invariant_and_its_finer_symmetries_are_listed(sibert, run):
    invariance, folder = sibert
    status, out, _ = run("check", folder, "--rows", "--json")
    data = json.loads(out)
    assert status == 0
    assert data["asked"]["*"]["verdict"] == "exact"
    assert data["asked"]["*"]["epsilons"] == {}
    assert data["unsupported"] == []
    assert all(check["holds"] for check in data["confirmation"]["checks"])
    groups = {tuple(group) for group in data["invariant_groups"]}
    matrices = {
        "layers.0.attention.query",
        "layers.0.attention.key",
        "layers.0.attention.output",
        "layers.0.feed_forward.input",
        "layers.0.feed_forward.output",
    }
    alone = {group[0].removesuffix(".weight") for group in groups}
    if invariance == "joint":
        # Queries and keys have no scale of their own, since the rows of scores are divided by their sums.
        assert matrices & alone == {"layers.0.attention.query", "layers.0.attention.key"}
    else:
        assert matrices <= alone
    of_rows = {name for name, verdict in data["rows"].items() if verdict == "exact"}
    expected = {f"{name}.weight" for name in matrices} if invariance == "row" else set()
    assert of_rows & {f"{name}.weight" for name in matrices} == expected


def test_head_of_sibert_is_not_invariant(tmp_path, run):
    SibertForMaskedLM(SibertConfig(**TINY)).save_pretrained(tmp_path)
    status, out, _ = run("check", tmp_path, "--head", "--static", "-i", "sibert.*", "-i", "decoder.*")
    assert status == 1
    assert "= sibert.*, scaled together: exact" in out
    assert "x decoder.*, scaled together: not proved" in out


def test_bert_is_told_what_forbids_it(bert, run):
    status, out, err = run("check", bert)
    assert status == 1
    assert err == ""
    assert "scaled_dot_product_attention (modeling_bert.py:" in out
    assert "gelu (activations.py:" in out
    layer = "encoder.layer.0.attention.self"
    assert f"= {layer}.query.weight · {layer}.query.bias · {layer}.key.weight^(-1)" in out
    assert f"= {layer}.key.bias" in out


def test_parts_may_be_asked_for_and_epsilons_accepted(bert, run):
    assert run("check", bert, "--static", "-i", "*.key.bias")[0] == 0
    tables = ("-i", "embeddings.*_embeddings.*")
    assert run("check", bert, "--static", *tables)[0] == 1
    assert run("check", bert, "--static", *tables, "--up-to-epsilon")[0] == 0


def test_any_module_of_a_file(tmp_path, monkeypatch, run):
    (tmp_path / "my_model.py").write_text(
        "import torch\n"
        "def build():\n"
        "    net = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5, affine=False))\n"
        "    return net, (torch.randn(6, 4),)\n"
        "def wrong():\n"
        "    return 1\n"
        "def raises():\n"
        "    return {}['model']\n"
        "def asserts():\n"
        "    assert False\n"
    )
    monkeypatch.chdir(tmp_path)
    assert run("check", "my_model:build", "--training", "--up-to-epsilon")[0] == 0
    assert run("check", "my_model:build", "--up-to-epsilon")[0] == 1
    status, _, err = run("check", "my_model:wrong")
    assert status == 1
    assert "has to return (model, inputs)" in err
    for name, said in (("raises", "KeyError: 'model'"), ("asserts", "AssertionError")):
        status, _, err = run("check", f"my_model:{name}")
        assert status == 1
        assert err == f"error: my_model:{name} has to return (model, inputs), but raises {said}\n"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def build(:\n", "SyntaxError: "),
        ("raise RuntimeError('no GPU')\n", "RuntimeError: no GPU"),
        ("", "AttributeError: "),
    ],
)
def test_a_file_that_cannot_be_imported(code, said, tmp_path, monkeypatch, run):
    (tmp_path / "not_importable.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "not_importable", raising=False)
    status, _, err = run("check", "not_importable:build")
    assert status == 1
    assert err.startswith(f"error: cannot import not_importable:build: {said}")


@pytest.mark.parametrize(
    ("kind", "wrong", "said"),
    [
        ("bert", {"hidden_act": "nope"}, "no model can be built of {file}: KeyError: 'nope'"),
        ("bert", {"vocab_size": 0}, "no model can be built of {file}: IndexError: "),
        ("bert", {"hidden_size": "x"}, "{file} is no configuration of bert: StrictDataclassFieldValidationError: "),
        ("sibert", {"type_vocab_size": -1}, "type_vocab_size must be at least 0, got -1"),
    ],
)
def test_a_configuration_of_which_no_model_can_be_built(kind, wrong, said, tmp_path, run):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": kind, **TINY, **wrong}))
    status, _, err = run("check", tmp_path, "--static")
    assert status == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said.format(file=file) in err


@pytest.mark.parametrize("kind", ["bert", "sibert"])
def test_a_model_of_few_positions(kind, tmp_path, run):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **TINY, "max_position_embeddings": 4}))
    status, out, err = run("check", tmp_path, "--static")
    assert (status, err) == (0 if kind == "sibert" else 1, "")
    assert "all parameters together" in out


def test_a_proof_that_computing_contradicts_has_its_own_status(tmp_path, monkeypatch, run):
    (tmp_path / "with_tanh.py").write_text(
        "import torch\n"
        "def build():\n"
        "    norm = torch.nn.LayerNorm(5, eps=0.0, elementwise_affine=False)\n"
        "    return torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), norm), torch.randn(6, 4)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(RULES, "aten.tanh")
    rule("tanh", reason="wrong")(lambda op, x: op.edge(x.degree))
    status, out, _ = run("check", "with_tanh:build")
    assert status == 3
    assert "an error of the checker" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere is no folder: give a run, a folder with a model, or package.module:function"),
        (["no.such:thing"], "cannot import no.such:thing"),
        (["no_such:x"], "cannot import no_such:x: ModuleNotFoundError: No module"),
        (["{bert}", "-i", "nothing"], "'nothing' is no parameter, module or pattern"),
        (["{bert}", "--output", "nothing"], "the module's output has no part 'nothing'"),
        (["{empty}"], "has no config.json"),
        (["{unknown}"], "has model_type 'nonsense', which transformers"),
        (["{list}"], "has model_type None, which transformers"),
        (["{unhashable}"], "has model_type ['a'], which transformers"),
        (["{broken}"], "is no valid JSON"),
    ],
)
def test_mistakes(words, message, bert, tmp_path, run):
    folders = {
        "unknown": '{"model_type": "nonsense"}',
        "list": "[]",
        "broken": "{",
        "unhashable": '{"model_type": ["a"]}',
    }
    for name, text in folders.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    paths = {name: tmp_path / name for name in folders}
    status, _, err = run("check", *(word.format(bert=bert, empty=tmp_path, **paths) for word in words))
    assert status == 1
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err


def test_example_inputs_are_found_for_images_and_sound():
    from transformers import ViTConfig, ViTModel, Wav2Vec2Config, Wav2Vec2Model

    from sibert.models.example_inputs import example_inputs

    with torch.device("meta"):
        assert example_inputs(ViTModel(ViTConfig(image_size=32)))["pixel_values"].shape == (2, 3, 32, 32)
        assert example_inputs(Wav2Vec2Model(Wav2Vec2Config()))["input_values"].ndim == 2
