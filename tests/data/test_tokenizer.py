import json
import os
import subprocess
import sys

import pytest
import transformers

from sibert.data import load_tokenizer, train_tokenizer
from sibert.data.tokenizer import SPECIAL_TOKENS, continuation_table, special_table, tokenise


def test_special_tokens_have_the_first_ids_and_the_template_is_berts():
    tokenizer = train_tokenizer(lambda: iter(["the fox", "a moon"]), 100)
    assert tokenizer.convert_ids_to_tokens(range(5)) == list(SPECIAL_TOKENS)
    encoded = tokenizer("the fox", "a moon")
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"]) == [
        *("[CLS]", "the", "fox", "[SEP]"),
        *("a", "moon", "[SEP]"),
    ]
    assert encoded["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]


def test_auto_tokenizer_loads_what_was_saved(tmp_path, tokenizer, texts):
    tokenizer.save_pretrained(tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is type(tokenizer)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert dict(loaded(texts[0], texts[1])) == dict(tokenizer(texts[0], texts[1]))
    assert load_tokenizer(str(tmp_path)).get_vocab() == tokenizer.get_vocab()


def test_lowercase_is_an_option_that_survives_saving(tmp_path, texts):
    for lowercase, expected in ((True, "the"), (False, "The")):
        trained = train_tokenizer(lambda: iter(["The The The"]), 20, lowercase)
        trained.save_pretrained(tmp_path)
        assert transformers.AutoTokenizer.from_pretrained(tmp_path).tokenize("The") == [expected]


def test_a_larger_vocabulary_than_the_text_allows_is_no_error():
    assert len(train_tokenizer(lambda: iter(["aab aab"]), 1000)) < 20


def test_a_smaller_vocabulary_than_the_characters_need_is_an_error_with_the_number():
    with pytest.raises(ValueError, match=r"at least 9 tokens \(5 special ones, and 4 "):
        train_tokenizer(lambda: iter(["ab ba"]), 8)
    assert len(train_tokenizer(lambda: iter(["ab ba"]), 9)) == 9


def test_no_text_is_an_error():
    with pytest.raises(ValueError, match="no characters"):
        train_tokenizer(lambda: iter([" ", "\n"]), 100)


def test_rare_characters_beyond_a_thousand_are_unknown():
    many = [chr(0x4E00 + index) for index in range(1200)]
    text = " ".join([*many, *many[:900]])
    trained = train_tokenizer(lambda: iter([text]), 5000)
    assert len(trained) == 5 + 1000
    assert trained.unk_token_id not in tokenise(trained, [" ".join(many[:900])])[0]


# Many ties between pairs, and characters in every position: what a randomly seeded hash map would order anew.
_SCRIPT = """
import json, random
from sibert.data import train_tokenizer
draw = random.Random(0)
texts = [" ".join("".join(draw.choices("abcdefghij", k=draw.randint(1, 9))) for _ in range(60)) for _ in range(30)]
print(json.dumps(train_tokenizer(lambda: iter(texts), 200).get_vocab(), sort_keys=True))
"""


def test_every_process_learns_the_same_vocabulary():
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _SCRIPT],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for seed in ("1", "2")
    ]
    one, other = (process.communicate(timeout=120)[0] for process in processes)
    assert one == other
    assert len(json.loads(one)) == 200


def test_literal_special_tokens_in_a_text_become_ordinary_tokens(tokenizer):
    ids = tokenise(tokenizer, ["the [MASK] and [SEP] or [PAD]"])[0]
    assert not {tokenizer.mask_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id}.intersection(ids)
    assert tokenizer.mask_token_id in tokenizer("the [MASK]")["input_ids"]  # as fill-mask needs it


def test_long_texts_are_tokenised_whole_and_without_a_warning(tokenizer, texts):
    short = transformers.BertTokenizer(vocab=tokenizer.get_vocab(), model_max_length=16)
    assert len(tokenise(short, [texts[0]])[0]) > 60


def test_the_tables_say_what_the_tokens_are(tokenizer):
    special, continuation = special_table(tokenizer), continuation_table(tokenizer)
    for token, index in tokenizer.get_vocab().items():
        assert special[index] == (token in SPECIAL_TOKENS)
        assert continuation[index] == token.startswith("##")


def test_words_without_marks_cannot_be_told_apart():
    bare = transformers.BertTokenizer(vocab={token: index for index, token in enumerate([*SPECIAL_TOKENS, "a"])})
    with pytest.raises(ValueError, match="needs a WordPiece tokenizer"):
        continuation_table(bare)


def test_a_tokenizer_without_mask_is_refused(tmp_path, tokenizer):
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]"
    ).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no \[MASK\] token"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_that_is_not_there_is_one_clear_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="the folder holds no tokenizer"):
        load_tokenizer(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="no such folder here") as caught:
        load_tokenizer("no-such-owner/no-such-tokenizer")
    assert "\n" not in str(caught.value)
    (tmp_path / "file.json").write_text("{}")
    with pytest.raises(ValueError, match="is a file; expected the folder"):
        load_tokenizer(str(tmp_path / "file.json"))
