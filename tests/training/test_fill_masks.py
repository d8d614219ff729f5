"""Predictions come from weights that were trained, of a text that the model can read; anything else is refused."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from sibert.data import train_tokenizer
from sibert.training import fill_masks

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture
def save(tmp_path):
    tokenizer = train_tokenizer(lambda: iter(["the quick brown fox"]), 60)

    def save(kind):
        torch.manual_seed(0)
        kind(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=12, **SIZES)).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return tmp_path

    return save


def test_each_mask_gets_its_likeliest_tokens(save):
    found = list(fill_masks(save(BertForMaskedLM), "the [MASK] brown [MASK]", top=3))
    assert [position for _, position in found] == [2, 4]
    for predictions, _ in found:
        probabilities = [probability for _, probability in predictions]
        assert len(predictions) == 3
        assert probabilities == sorted(probabilities, reverse=True)


def test_a_model_that_was_fine_tuned_has_no_such_head(save):
    with pytest.raises(ValueError, match=r"no weights for cls\.predictions.* fine-tuned for a task"):
        list(fill_masks(save(BertForSequenceClassification), "the [MASK]"))


def test_a_text_as_long_as_the_positions_is_read_and_a_longer_one_refused(save):
    folder = save(BertForMaskedLM)
    assert len(list(fill_masks(folder, "[MASK] " * 10))) == 10
    with pytest.raises(ValueError, match=r"the text has 13 tokens, but the model in .* reads 12: shorten the text"):
        list(fill_masks(folder, "[MASK] " * 11))


def test_damaged_files_are_named(save):
    folder = save(BertForMaskedLM)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        list(fill_masks(folder, "the [MASK]"))
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer .* cannot be loaded"):
        list(fill_masks(folder, "the [MASK]"))
