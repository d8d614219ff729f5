"""Converted models are saved as plain ones; folders with gains and directions are opened knowingly or not at all."""

import copy
import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
)

from sibert.conversion import build_optimizer, converted_weights, fold, make_scale_invariant
from sibert.conversion.saving import folded_state_dict, load_directions, save_directions
from sibert.training import DirectionsCallback, convert_folder, load_converted

TEXT = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
IDS = torch.randint(0, 50, (2, 6), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def bert():
    torch.manual_seed(0)
    return BertForMaskedLM(BertConfig(**TEXT)).eval()


@pytest.fixture
def folder(bert, tmp_path):
    bert.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def test_save_pretrained_writes_plain_weights(bert, tmp_path):
    make_scale_invariant(bert)
    with torch.no_grad():
        for weight in converted_weights(bert):
            weight.direction.add_(torch.randn_like(weight.direction), alpha=0.01)
    bert.save_pretrained(tmp_path)
    opened, report = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    torch.testing.assert_close(logits(opened), logits(bert), rtol=1e-5, atol=1e-5)
    assert type(opened) is BertForMaskedLM
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]


def test_state_that_is_handed_over_is_folded_too(bert, tmp_path):
    make_scale_invariant(bert)
    state = {name: tensor.clone() for name, tensor in bert.state_dict().items()}
    before = logits(bert)
    with torch.no_grad():
        for parameter in bert.parameters():
            parameter.zero_()
    bert.save_pretrained(tmp_path, state_dict=state)
    torch.testing.assert_close(logits(AutoModelForMaskedLM.from_pretrained(tmp_path)), before, rtol=1e-5, atol=1e-5)


def test_folded_state_has_the_names_of_the_plain_model(bert):
    plain = {name: tensor.clone() for name, tensor in bert.state_dict().items()}
    make_scale_invariant(bert)
    state = folded_state_dict(bert)
    assert state.keys() == plain.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, plain[name], rtol=1e-6, atol=1e-7)


def test_gains_and_directions_on_request(bert, tmp_path):
    make_scale_invariant(bert)
    with torch.no_grad():
        for weight in converted_weights(bert):
            weight.direction.mul_(3.0)
    bert.save_pretrained(tmp_path, fold=False)
    opened = load_converted(tmp_path)
    assert torch.equal(logits(opened), logits(bert))
    for weight, other in zip(converted_weights(bert), converted_weights(opened), strict=True):
        assert torch.equal(weight.direction, other.direction)
        assert weight.names == other.names


@pytest.mark.parametrize("open_it", [AutoModel.from_pretrained, AutoModelForMaskedLM.from_pretrained])
def test_auto_classes_refuse_gains_and_directions(bert, tmp_path, open_it):
    make_scale_invariant(bert)
    bert.save_pretrained(tmp_path, fold=False)
    with pytest.raises(ValueError, match="sibert_converted"):
        open_it(tmp_path)


def test_the_models_own_class_finds_no_weights_to_start_from(bert, tmp_path):
    make_scale_invariant(bert)
    bert.save_pretrained(tmp_path, fold=False)
    with pytest.raises(OSError, match="no file named"):
        BertForMaskedLM.from_pretrained(tmp_path)


def test_after_folding_everything_is_as_before(bert, tmp_path):
    make_scale_invariant(bert)
    fold(bert)
    assert type(bert) is BertForMaskedLM
    bert.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForMaskedLM.from_pretrained(tmp_path)), logits(bert))


@pytest.mark.parametrize("granularity", ["row", "matrix"])
def test_folders_are_converted_and_checked(folder, tmp_path, granularity):
    done = convert_folder(folder, tmp_path / "converted", granularity=granularity)
    assert done.difference < 1e-5
    assert set(done.proved.values()) == {"exact"}
    assert set(done.proved) == set(done.names)
    assert done.share > 0.8
    torch.testing.assert_close(
        logits(load_converted(tmp_path / "converted")),
        logits(AutoModelForMaskedLM.from_pretrained(folder)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_tied_and_transposed_weights_of_gpt2(tmp_path):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path / "gpt2")
    done = convert_folder(tmp_path / "gpt2", tmp_path / "converted")
    assert set(done.proved.values()) == {"exact"}
    opened = load_converted(tmp_path / "converted")
    tied = next(weight for weight in converted_weights(opened) if "transformer.wte.weight" in weight.names)
    assert tied.names == ("transformer.wte.weight", "lm_head.weight")
    torch.testing.assert_close(logits(opened), logits(model), rtol=1e-4, atol=1e-5)


def test_of_a_run_the_tokenizer_comes_along(folder, tmp_path):
    """Its folder has the tokenizer twice: beside the model, and in a folder from the first step on."""
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    (folder / "tokenizer.json").write_text('{"model": 1}')
    (folder / "vocab.txt").write_text("[PAD]")
    (tmp_path / "new").mkdir()
    convert_folder(folder, tmp_path / "new", check=False)
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {"config.json", "converted.safetensors", "tokenizer.json", "vocab.txt"}
    assert (tmp_path / "new" / "tokenizer.json").read_text() == '{"model": 1}'


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that cannot be read")
def test_what_fails_while_it_is_written_leaves_nothing(folder, tmp_path):
    (folder / "tokenizer.json").symlink_to("/proc/self/mem")
    with pytest.raises(OSError, match="error"):
        convert_folder(folder, tmp_path / "new", check=False)
    assert not (tmp_path / "new").exists()


def test_damaged_gains_and_directions_are_named(folder, tmp_path):
    convert_folder(folder, tmp_path / "new", check=False)
    weights = tmp_path / "new" / "converted.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"converted\.safetensors is damaged"):
        load_converted(tmp_path / "new")


class TestCommand:
    def test_convert_and_check(self, folder, tmp_path, run):
        status, out, _ = run("convert", folder, tmp_path / "new")
        assert status == 0
        assert "each row of" in out
        assert "outputs before and after differ by" in out
        status, out, _ = run("check", tmp_path / "new", "--static", "-i", "*.original1")
        assert status == 0
        status, _, err = run("convert", tmp_path / "new", tmp_path / "again")
        assert status == 1
        assert "is converted already" in err

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["{folder}", "{folder}"], "exists and is not empty"),
            (["{folder}/no", "{tmp}/new"], "has no config.json"),
            (["{folder}", "{tmp}/new", "--granularity", "column"], "--granularity is row or matrix, got 'column'"),
            (["{folder}", "{tmp}/new", "--exclude", "nothing"], "'nothing' matches no parameter"),
        ],
    )
    def test_mistakes_leave_nothing(self, folder, tmp_path, run, words, message):
        status, _, err = run("convert", *(word.format(folder=folder, tmp=tmp_path) for word in words))
        assert status == 1
        assert message in err
        assert not (tmp_path / "new").exists()

    def test_damaged_weights_are_named(self, folder, tmp_path, run):
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        status, _, err = run("convert", folder, tmp_path / "new")
        assert status == 1
        assert f"error: {weights} is damaged" in err
        assert not (tmp_path / "new").exists()

    def test_a_plain_folder_is_not_opened_as_converted(self, folder):
        with pytest.raises(ValueError, match="holds no converted model"):
            load_converted(folder)


class TestPlainWeightsLoadedIntoAConvertedModel:
    def test_are_taken(self, bert):
        torch.manual_seed(1)
        other = BertForMaskedLM(bert.config).eval()
        make_scale_invariant(bert)
        with pytest.warns(UserWarning, match="norms of its directions begin anew"):
            missing, unexpected = bert.load_state_dict(other.state_dict(), strict=False)
        assert (missing, unexpected) == ([], [])
        torch.testing.assert_close(logits(bert), logits(other), rtol=1e-5, atol=1e-5)

    def test_are_taken_by_a_part_of_a_larger_model(self):
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        other = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        make_scale_invariant(model[1])
        with pytest.warns(UserWarning, match="plain weights"):
            model.load_state_dict(other.state_dict())
        x = torch.randn(5, 3)
        torch.testing.assert_close(model(x), other(x))

    def test_gains_and_directions_stay_as_they_are(self, bert, recwarn):
        make_scale_invariant(bert)
        state = {name: 2 * tensor for name, tensor in bert.state_dict().items()}
        bert.load_state_dict(state)
        assert not recwarn.list
        for name, tensor in bert.state_dict().items():
            assert torch.equal(tensor, state[name])

    def test_after_folding_nothing_is_special(self, bert, recwarn):
        state = {name: tensor.clone() for name, tensor in bert.state_dict().items()}
        fold(make_scale_invariant(bert)).load_state_dict(state)
        assert not recwarn.list
        for name, tensor in bert.state_dict().items():
            assert torch.equal(tensor, state[name])


class TestTrainer:
    """`transformers.Trainer` with a converted model: 6 steps, or 3 and 3 more, are the same bit for bit."""

    def train(self, bert, folder, callbacks, resume=None, **options):
        model = make_scale_invariant(copy.deepcopy(bert))
        arguments = TrainingArguments(
            str(folder),
            per_device_train_batch_size=2,
            save_steps=3,
            use_cpu=True,
            report_to=[],
            seed=0,
            disable_tqdm=True,
            lr_scheduler_type="cosine",
            **{"max_steps": 6, **options},
        )
        data = [
            {"input_ids": row, "labels": row}
            for row in torch.randint(0, 50, (16, 6), generator=torch.Generator().manual_seed(0))
        ]
        optimizer = build_optimizer(model, intrinsic_lr=0.05)
        trainer = Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, None), callbacks=callbacks)
        trainer.train(resume_from_checkpoint=resume)
        return model

    def test_goes_on_bit_for_bit(self, bert, tmp_path):
        whole = self.train(bert, tmp_path, [DirectionsCallback()])
        with pytest.warns(UserWarning, match="DirectionsCallback"):
            resumed = self.train(bert, tmp_path, [DirectionsCallback()], str(tmp_path / "checkpoint-3"))
        for (name, tensor), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
            assert torch.equal(tensor, other), name

    def test_does_not_without_the_callback(self, bert, tmp_path):
        whole = self.train(bert, tmp_path, [])
        with pytest.warns(UserWarning, match="DirectionsCallback"):
            resumed = self.train(bert, tmp_path, [], str(tmp_path / "checkpoint-3"))
        assert any(
            not torch.equal(tensor, other)
            for tensor, other in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
        )

    def test_says_when_the_directions_were_not_kept(self, bert, tmp_path):
        self.train(bert, tmp_path, [])
        with (
            pytest.warns(UserWarning, match="plain weights"),
            pytest.raises(ValueError, match="had no DirectionsCallback"),
        ):
            self.train(bert, tmp_path, [DirectionsCallback()], str(tmp_path / "checkpoint-3"))

    def test_checkpoints_are_plain(self, bert, tmp_path):
        model = self.train(bert, tmp_path, [DirectionsCallback()])
        opened = AutoModelForMaskedLM.from_pretrained(tmp_path / "checkpoint-6")
        torch.testing.assert_close(logits(opened), logits(model.eval()), rtol=1e-5, atol=1e-5)


def test_directions_of_another_model_are_refused(bert, tmp_path):
    save_directions(make_scale_invariant(copy.deepcopy(bert)), tmp_path / "directions")
    before = logits(make_scale_invariant(bert, exclude="*.query.weight"))
    with pytest.raises(ValueError, match="was converted otherwise"):
        load_directions(bert, tmp_path / "directions")
    assert torch.equal(logits(bert), before)
