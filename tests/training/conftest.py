import dataclasses

import pytest

from sibert.training import PretrainRecipe


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "the",
        "lazy",
        "dog",
        "while",
        "seven",
        "wizards",
        "pack",
        "their",
        "boxes",
        "with",
        "liquor",
        "jugs",
    ]
    for number in range(60):
        turned = words[number % 11 :] + words[: number % 11]
        (folder / f"{number}.txt").write_text(" ".join(turned * (8 + number % 5)) + f" number {number}.\n")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SIBERT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def recipe(text_folder):
    """A recipe of seconds; `recipe(steps=3)` changes it."""
    base = PretrainRecipe(
        data=[str(text_folder)],
        vocab_size=300,
        seq_length=32,
        validation_fraction=0.2,
        size="nano",
        steps=12,
        batch_size=4,
        log_every=1,
        eval_every=6,
        save_every=5,
        device="cpu",
    )

    def make(**changes):
        return dataclasses.replace(base, **changes)

    return make
