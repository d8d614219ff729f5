import numpy as np
import pytest
import transformers

import sibert.data
from sibert.data import find_sources, load_corpus, prepare_corpus

OPTIONS = {"vocab_size": 150, "seq_length": 32, "validation_fraction": 0.2}


def folders(cache, stage):
    return {path.name for path in (cache / stage).iterdir() if path.is_dir()}


def text_tokens(data, split):
    special = data.tokenizer.all_special_ids
    ids = np.asarray(split[:]["input_ids"])
    return ids[~np.isin(ids, special)].tolist()


def test_packed_text_is_the_text(prepared, corpus_file, cache_dir):
    corpus = load_corpus(find_sources([str(corpus_file)]), validation_fraction=0.2, cache_dir=cache_dir)
    for split in ("train", "validation"):
        tokens = text_tokens(prepared, getattr(prepared, split))
        assert prepared.tokenizer.decode(tokens) == " ".join(getattr(corpus, split)["text"])
        assert len(tokens) == getattr(prepared.report, f"{split}_tokens")
        assert len(getattr(prepared, split)) == getattr(prepared.report, f"{split}_examples")


def test_pairs_hold_the_same_tokens_as_blocks(prepared, prepared_pairs):
    for split in ("train", "validation"):
        blocks, pairs = getattr(prepared, split), getattr(prepared_pairs, split)
        assert text_tokens(prepared, blocks) == text_tokens(prepared_pairs, pairs)


def test_the_data_is_mapped_into_memory_not_loaded(prepared):
    assert prepared.train.cache_files


def test_the_tokenizer_knows_the_sequence_length(prepared):
    assert prepared.tokenizer.model_max_length == 32


def test_the_same_request_hits_the_cache_and_a_change_of_data_tokenizer_or_length_misses(tmp_path, texts):
    path, cache = tmp_path / "a.txt", tmp_path / "cache"
    path.write_text("\n\n".join(texts))

    def prepare(**options):
        return prepare_corpus([str(path)], cache_dir=cache, **(OPTIONS | options))

    prepare()
    before = {stage: folders(cache, stage) for stage in ("documents", "tokenizers", "packed")}
    assert {stage: len(found) for stage, found in before.items()} == {"documents": 1, "tokenizers": 1, "packed": 1}
    prepare()
    assert {stage: folders(cache, stage) for stage in before} == before

    expected = {"documents": 1, "tokenizers": 1, "packed": 1}
    for change, stages in (
        ({"seq_length": 16}, ["packed"]),
        ({"next_sentence": True}, ["packed"]),
        ({"vocab_size": 120}, ["tokenizers", "packed"]),
        ({"validation_fraction": 0.3}, ["documents", "tokenizers", "packed"]),
    ):
        prepare(**change)
        for stage in stages:
            expected[stage] += 1
        assert {stage: len(folders(cache, stage)) for stage in expected} == expected, change
    path.write_text("\n\n".join([*texts, "one more document"]))
    prepare()
    assert {stage: len(folders(cache, stage)) for stage in expected} == {s: n + 1 for s, n in expected.items()}


def test_a_given_tokenizer_is_used_and_is_part_of_the_key(tmp_path, corpus_file, tokenizer):
    cache = tmp_path / "cache"
    saved = tmp_path / "tokenizer"
    tokenizer.save_pretrained(saved)
    data = prepare_corpus([str(corpus_file)], tokenizer=str(saved), cache_dir=cache, **OPTIONS)
    assert data.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert not (cache / "tokenizers").exists()
    tokenizer.add_tokens(["wizards"])
    try:
        tokenizer.save_pretrained(saved)
    finally:
        tokenizer._tokenizer = type(tokenizer)(vocab=tokenizer._vocab)._tokenizer
    prepare_corpus([str(corpus_file)], tokenizer=str(saved), cache_dir=cache, **OPTIONS)
    assert len(folders(cache, "packed")) == 2


def test_a_tokenizer_that_knows_no_word_is_refused(tmp_path, corpus_file, texts):
    sibert.data.train_tokenizer(lambda: iter(["ж щ ю"]), 20).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="knows not one word"):
        prepare_corpus([str(corpus_file)], tokenizer=str(tmp_path), cache_dir=tmp_path / "cache", **OPTIONS)


def test_a_tokenizer_with_a_gap_in_its_ids_is_refused(tmp_path, corpus_file, tokenizer):
    vocabulary = {token: index + (index > 20) for token, index in tokenizer.get_vocab().items()}
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has 150 tokens, but an id of 150; a model needs ids without gaps"):
        prepare_corpus([str(corpus_file)], tokenizer=str(tmp_path), cache_dir=tmp_path / "cache", **OPTIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seq_length": 4}, "seq_length=4 is too short"),
        ({"vocab_size": 10}, "vocab_size=10 is too small"),
        ({"validation_fraction": 2.0}, "expected 0 < fraction < 1"),
        ({"documents": "page"}, "expected 'auto', 'file' or 'blank-line'"),
        ({"tokenizer": "/no/such/folder"}, "cannot be loaded"),
    ],
)
def test_wrong_options_are_one_clear_sentence(corpus_file, cache_dir, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        prepare_corpus([str(corpus_file)], cache_dir=cache_dir, **(OPTIONS | options))
    assert "\n" not in str(caught.value)
