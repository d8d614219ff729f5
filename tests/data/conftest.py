import os

# Before the imports, because libraries read them when they are imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
import torch

from sibert.data import PreparedCorpus, prepare_corpus, train_tokenizer

SENTENCE = (
    "the quick brown fox jumps over lazy dogs while seven wizards brew strange potions under a pale winter moon and "
    "nobody asks why scale invariant networks forget their norms yet remember directions unbelievably"
)
WORDS = SENTENCE.split()


def make_text(number: int, words: int = 60) -> str:
    """A document that no other number gives."""
    generator = np.random.default_rng(number)
    return f"document {number} " + " ".join(generator.choice(WORDS, size=words))


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return [make_text(number) for number in range(120)]


@pytest.fixture(scope="session")
def tokenizer(texts):
    return train_tokenizer(lambda: iter(texts), vocab_size=150)


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("\n\n".join(texts), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


OPTIONS = {"vocab_size": 150, "seq_length": 32, "validation_fraction": 0.2}


@pytest.fixture(scope="session")
def prepared(corpus_file, cache_dir) -> PreparedCorpus:
    return prepare_corpus([str(corpus_file)], cache_dir=cache_dir, **OPTIONS)


@pytest.fixture(scope="session")
def prepared_pairs(corpus_file, cache_dir) -> PreparedCorpus:
    return prepare_corpus([str(corpus_file)], cache_dir=cache_dir, next_sentence=True, **OPTIONS)
