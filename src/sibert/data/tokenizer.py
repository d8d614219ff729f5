"""WordPiece tokenizers: trained from text, reproducibly, or loaded."""

import itertools
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import transformers
from tokenizers import models, normalizers, pre_tokenizers, trainers

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUATION = "##"

# As in BERT's own vocabularies, characters beyond the thousand most frequent become [UNK].
_MAX_ALPHABET = 1000

_PIECE = re.compile(r"[^ \t\n]+")


def train_tokenizer(texts: Callable[[], Iterable[str]], vocab_size: int, lowercase: bool = True) -> Any:
    """A BERT tokenizer whose WordPiece vocabulary is learned from text; the same text gives the same vocabulary.

    The trainer of `tokenizers` numbers single characters in the order of a randomly seeded hash map and breaks ties
    between equally frequent pairs by these numbers, so that its vocabularies differ from process to process. Here a
    first pass collects the characters, and the second one gets them, sorted, as if they were special tokens:
    their numbers, and with them every tie, are then fixed.

    Args:
        texts: returns a fresh iterator over the training documents; called two or three times.
        vocab_size: wanted number of tokens, special tokens included; fewer if the text has no more pairs to merge.
        lowercase: fold case and strip accents, as BERT-uncased does.

    Returns:
        A `transformers.BertTokenizer`: ids 0 to 4 are [PAD], [UNK], [CLS], [SEP], [MASK], then single characters,
        then longer tokens by length and alphabet.

    Raises:
        ValueError: if there is no text, or the characters alone need more than `vocab_size` tokens.
    """
    base = _characters(texts, lowercase)
    if not base:
        raise ValueError("A tokenizer cannot be trained: the text has no characters besides white space.")
    smallest = len(SPECIAL_TOKENS) + len(base)
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size={vocab_size} is too small: this text needs at least {smallest} tokens "
            f"({len(SPECIAL_TOKENS)} special ones, and {len(base)} for its characters at and after a word's start)."
        )
    vocabulary = _learn(texts, vocab_size, lowercase, base)
    longer = sorted(set(vocabulary).difference(base, SPECIAL_TOKENS), key=lambda token: (len(token), token))
    ids = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *base, *longer))}
    return transformers.BertTokenizer(vocab=ids, do_lower_case=lowercase)


def load_tokenizer(path_or_name: str) -> Any:
    """A tokenizer from a folder or from the hub, checked for what masked-language modelling needs.

    Args:
        path_or_name: a folder with a saved tokenizer, or the name of a model on the Hugging Face hub.

    Returns:
        The `transformers` tokenizer.

    Raises:
        ValueError: if it cannot be loaded, or lacks a [CLS], [SEP], [PAD] or [MASK] token.
    """
    path = Path(path_or_name).expanduser()
    if path.is_file():
        raise ValueError(f"{path_or_name} is a file; expected the folder that a tokenizer was saved in.")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(path) if path.is_dir() else path_or_name)
    # Missing files, hub, network and broken JSON each raise their own kinds; to the user all mean the same.
    except Exception as error:
        where = (
            "the folder holds no tokenizer that can be read"
            if path.is_dir()
            else "there is no such folder here, nor can the hub help"
        )
        first_line = str(error).strip().split("\n")[0].rstrip(".")
        raise ValueError(f"The tokenizer {path_or_name!r} cannot be loaded ({where}): {first_line}.") from error
    for role in ("cls", "sep", "pad", "mask"):
        if getattr(tokenizer, f"{role}_token_id") is None:
            raise ValueError(
                f"The tokenizer {path_or_name!r} has no [{role.upper()}] token, which masked-language modelling needs; "
                "take a BERT-like tokenizer, or leave it out to train one."
            )
    return tokenizer


def tokenise(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens, however long.

    A text that contains a literal "[MASK]" or "[SEP]" gets ordinary tokens for it, never the special token.

    Args:
        tokenizer: a `transformers` tokenizer.
        texts: the documents.

    Returns:
        One list of ids per text.
    """
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        split_special_tokens=True,
        verbose=False,
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def id_bound(tokenizer: Any) -> int:
    """One more than the largest token id, added tokens included.

    Args:
        tokenizer: a `transformers` tokenizer.

    Returns:
        The smallest size of an embedding table that holds every id.
    """
    return 1 + int(max(tokenizer.get_vocab().values()))


def special_table(tokenizer: Any) -> np.ndarray:
    """Which ids are special tokens ([UNK] included).

    Args:
        tokenizer: a `transformers` tokenizer.

    Returns:
        Booleans, shape [V].
    """
    table_V = np.zeros(id_bound(tokenizer), dtype=bool)
    table_V[tokenizer.all_special_ids] = True
    return table_V


def continuation_table(tokenizer: Any) -> np.ndarray:
    """Which ids continue a word (begin with ##).

    Args:
        tokenizer: a WordPiece tokenizer.

    Returns:
        Booleans, shape [V].

    Raises:
        ValueError: if the vocabulary does not mark continuations with ##.
    """
    table_V = np.zeros(id_bound(tokenizer), dtype=bool)
    table_V[[index for token, index in tokenizer.get_vocab().items() if token.startswith(CONTINUATION)]] = True
    if not table_V.any():
        raise ValueError(
            "Whole-word masking needs a WordPiece tokenizer, which marks the inside of words with '##'; "
            "this one has no such token."
        )
    return table_V


def _backend(lowercase: bool) -> Any:
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return backend


def _learn(
    texts: Callable[[], Iterable[str]], vocab_size: int, lowercase: bool, base: Sequence[str] = ()
) -> dict[str, int]:
    """The trainer's vocabulary; with `base`, characters outside it are left out."""
    alphabet = [token for token in base if len(token) == 1]
    backend = _backend(lowercase)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *base],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet) or sys.maxunicode,
        show_progress=False,
    )
    backend.train_from_iterator(texts(), trainer)
    vocabulary: dict[str, int] = backend.get_vocab()
    return vocabulary


def _characters(texts: Callable[[], Iterable[str]], lowercase: bool) -> list[str]:
    """Single-character tokens, at ("a") and after ("##a") a word's start, sorted; at most a thousand characters."""
    # No word reaches across a space, so that the distinct pieces between spaces, a fraction of the text, show the
    # same characters.
    pieces = set(itertools.chain.from_iterable(map(_PIECE.findall, texts())))
    found = set(_learn(lambda: pieces, 0, lowercase)).difference(SPECIAL_TOKENS)
    if sum(len(token) == 1 for token in found) > _MAX_ALPHABET:
        normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        counts: Counter[str] = Counter()
        for character, count in Counter(itertools.chain.from_iterable(texts())).items():
            for part in normalizer.normalize_str(character):
                counts[part] += count
        ranked = sorted(counts, key=lambda character: (-counts[character], character))
        frequent = set(itertools.islice((character for character in ranked if not character.isspace()), _MAX_ALPHABET))
        found = {token for token in found if token[-1] in frequent}
    return sorted(found)
