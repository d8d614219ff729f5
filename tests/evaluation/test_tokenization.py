"""What a model reads: nothing is cut in silence, every word is decided once, labels are where the words are."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, RobertaConfig, RobertaForMaskedLM

from sibert.evaluation import examples_of, task_named
from sibert.evaluation.sources import task_rows
from sibert.evaluation.tokenization import IGNORED, Tokenization
from sibert.models import SibertForMaskedLM
from tests import downstream


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return downstream.pretrained(tmp_path_factory.mktemp("models") / "sibert")


@pytest.fixture(scope="module")
def model(folder):
    return SibertForMaskedLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def reading(model, tokenizer):
    return Tokenization.of(model, tokenizer, 12, 3)


class TestTexts:
    def test_long_ones_are_cut_and_counted(self, reading):
        rows, cut = reading.texts({"text": ["a fine film", "a fine film " * 20, "great"]})
        assert cut == 1
        assert [len(row["input_ids"]) for row in rows] == [5, 12, 3]

    def test_of_a_pair_the_longer_one_is_cut(self, reading, tokenizer):
        rows, cut = reading.texts({"text": ["a fine film"], "text_pair": ["great and warm " * 10]})
        assert cut == 1
        assert tokenizer.decode(rows[0]["input_ids"]).startswith("[CLS] a fine film [SEP]")

    def test_a_text_that_just_fits_is_not(self, reading, tokenizer):
        words = "a " * 10
        assert reading.texts({"text": [words]})[1] == 0
        assert reading.texts({"text": [words + "a"]})[1] == 1

    def test_segments_where_the_model_has_them(self, model, tokenizer, reading):
        pair = {"text": ["great"], "text_pair": ["dull"]}
        assert "token_type_ids" in reading.texts(pair)[0][0]
        config = RobertaConfig(
            vocab_size=200, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, type_vocab_size=1
        )
        without = Tokenization.of(RobertaForMaskedLM(config), tokenizer)
        assert "token_type_ids" not in without.texts(pair)[0][0]
        assert without.length == 128

    @pytest.mark.parametrize(("positions", "length"), [(42, 40), (202, 128)])
    def test_a_default_length_is_one_that_the_model_reads(self, positions, length, tokenizer):
        sizes = {"vocab_size": 200, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        model = RobertaForMaskedLM(RobertaConfig(**sizes, max_position_embeddings=positions))
        assert Tokenization.of(model, tokenizer).length == length
        assert Tokenization.of(model, tokenizer, usual=384).length == positions - 2


WORDS = st.lists(
    st.sampled_from(["Anna", "lives", "in", "Straße", "Oslo", "music", "日本", "x", "\u200b"]), min_size=1, max_size=40
)


@settings(deadline=None, max_examples=60)
@given(several=st.lists(WORDS, min_size=1, max_size=3), length=st.integers(8, 20), stride=st.integers(0, 4))
def test_every_word_is_decided_once_and_at_its_first_token(model, tokenizer, several, length, stride):
    reading = Tokenization.of(model, tokenizer, length, stride)
    rows, owners, decides = reading.words(several)
    assert max(len(row["input_ids"]) for row in rows) <= length
    decided = [(owner, word) for owner, places in zip(owners, decides, strict=True) for _, word in places]
    assert len(set(decided)) == len(decided)
    expected = {
        (i, j)
        for i, words in enumerate(several)
        for j, word in enumerate(words)
        if tokenizer(word, add_special_tokens=False)["input_ids"]
    }
    assert set(decided) == expected
    for row, owner, places in zip(rows, owners, decides, strict=True):
        for place, word in places:
            first = tokenizer(several[owner][word], add_special_tokens=False)["input_ids"][0]
            assert row["input_ids"][place] == first


class TestTrainingRows:
    def rows(self, task, folder, reading):
        data = downstream.squad(folder) if task == "squad" else downstream.own_files(folder, task)
        examples = examples_of(task_named(task), task_rows(task_named(task), data))
        return examples, *reading.training(examples)

    def test_tags(self, tmp_path, reading):
        examples, rows, notes = self.rows("token-classification", tmp_path / "data", reading)
        labels = [label for row in rows for label in row["labels"] if label != IGNORED]
        assert labels == [label for row in examples.splits["train"] for label in row["label"]]
        assert notes == []

    def test_answers(self, tmp_path, model, tokenizer):
        reading = Tokenization.of(model, tokenizer, 24, 8)
        examples, rows, _ = self.rows("squad", tmp_path / "data", reading)
        assert len(rows) > len(examples.splits["train"])
        found = {
            tokenizer.decode(row["input_ids"][row["start_positions"] : row["end_positions"] + 1]) for row in rows
        } - {"[CLS]"}
        assert found == {answer["text"][0].lower() for answer in examples.splits["train"]["answers"]}


class TestQuestions:
    def test_long_ones_are_cut_and_counted_and_contexts_are_not(self, model, tokenizer):
        reading = Tokenization.of(model, tokenizer, 24, 6)
        context = "Anna lives in Oslo and Boris lives in Rome and Clara lives in Lima ."
        columns = {"question": ["who lives " * 30, "who?"], "context": [context, context]}
        found, cut = reading.questions(columns)
        assert cut == 1
        for question in (0, 1):
            shown = {offset for window in found if window.question == question for offset in window.offsets if offset}
            assert len(shown) == len(tokenizer(context, add_special_tokens=False)["input_ids"])

    @settings(deadline=None, max_examples=40)
    @given(words=st.integers(0, 80), length=st.integers(9, 48), stride=st.integers(0, 4))
    def test_there_is_always_room_for_the_context(self, words, length, stride, model, tokenizer):
        reading = Tokenization.of(model, tokenizer, length, stride)
        found, cut = reading.questions({"question": ["a " * words + "?"], "context": ["Anna lives in Oslo"]})
        assert all(any(window.offsets) for window in found)
        assert max(len(window.input_ids) for window in found) <= length
        asked = len(tokenizer("a " * words + "?", add_special_tokens=False)["input_ids"])
        assert cut == (asked > min(length // 2, length - 3 - stride - 1))


class TestMistakes:
    def test_a_tokenizer_of_another_model(self, model, folder):
        larger = AutoTokenizer.from_pretrained(folder)
        larger.add_tokens([f"new{i}" for i in range(5)])
        with pytest.raises(ValueError, match="they do not belong together"):
            Tokenization.of(model, larger)

    @pytest.mark.parametrize("length", [7, 49])
    def test_a_length_that_the_model_cannot_read(self, length, model, tokenizer):
        with pytest.raises(ValueError, match=f"reads rows of 8 to 48 tokens, got a length of {length}"):
            Tokenization.of(model, tokenizer, length)

    def test_windows_that_never_move_on(self, model, tokenizer):
        with pytest.raises(ValueError, match="stride must be less than the length of 16 tokens, got 13"):
            Tokenization.of(model, tokenizer, 16, 13)

    def test_a_tokenizer_without_offsets(self, model):
        class Slow:
            is_fast = False

        with pytest.raises(ValueError, match="gives no offsets"):
            Tokenization.of(model, Slow())
