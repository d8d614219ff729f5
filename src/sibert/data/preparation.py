"""From what the user named to what a model is trained on: one call."""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from sibert.data.cache import (
    build_once,
    cache_root,
    content_key,
    load_rows,
    read_json,
    save_batches,
    write_json,
)
from sibert.data.corpora import Corpus, CorpusReport, DocumentRule, check_fraction, choose_rule, load_corpus
from sibert.data.frequencies import TokenFrequencies
from sibert.data.masking import MaskedDataset
from sibert.data.packing import (
    Layout,
    TokenCount,
    block_batches,
    block_schema,
    check_length,
    pair_batches,
    pair_schema,
    token_documents,
)
from sibert.data.sources import find_sources
from sibert.data.streaming import DocumentStream, StreamingMaskedDataset, first_blocks, open_stream
from sibert.data.tokenizer import id_bound, load_tokenizer, tokenise, train_tokenizer

logger = logging.getLogger(__name__)

# Bounds the time of tokenizer training (about a second for two million characters on two cores); a choice, not tuned.
_TOKENIZER_CHARACTERS = 100_000_000
_STREAM_TOKENIZER_CHARACTERS = 20_000_000
_STREAM_VALIDATION_BLOCKS = 512
_STREAM_FREQUENCY_BLOCKS = 2048
_PAIRS_NEED_A_CORPUS = (
    "Next-sentence pairs cannot be streamed: a random second segment is drawn from the whole corpus; "
    "leave out streaming, or train without next-sentence prediction."
)
_PROBE = "[CLS] The quick brown fox; naïve 12,345 ##s?"


@dataclass(frozen=True)
class PreparedCorpus:
    """A tokenizer and packed text, ready for training.

    Attributes:
        tokenizer: a `transformers` tokenizer whose `model_max_length` is at most the sequence length.
        train: packed sequences, a `datasets.Dataset` in memory-mapped Arrow, or a `DocumentStream`.
        validation: packed sequences, a `datasets.Dataset`.
        report: counts of documents, tokens and whatever was skipped (of a stream: of its validation part only).
    """

    tokenizer: Any
    train: Any
    validation: Any
    report: CorpusReport

    def masked_train(
        self, mask_rate: float = 0.15, whole_word: bool = False, seed: int = 0
    ) -> MaskedDataset | StreamingMaskedDataset:
        """Training examples, masked anew in each epoch.

        Args:
            mask_rate: share of tokens that become targets.
            whole_word: mask all tokens of a word or none.
            seed: of masks, random pairs and order.

        Returns:
            A map-style data set, to be sampled by an `EpochSampler`, or an iterable one for a stream.
        """
        if isinstance(self.train, DocumentStream):
            return StreamingMaskedDataset(self.train, self.tokenizer, mask_rate, whole_word, seed)
        return MaskedDataset(self.train, self.tokenizer, mask_rate, whole_word, seed)

    def masked_validation(self, mask_rate: float = 0.15, whole_word: bool = False, seed: int = 0) -> MaskedDataset:
        """Validation examples, whose masks are the same at each evaluation.

        Args:
            mask_rate: share of tokens that become targets.
            whole_word: mask all tokens of a word or none.
            seed: of masks and random pairs.

        Returns:
            A map-style data set that takes plain indices.
        """
        return MaskedDataset(self.validation, self.tokenizer, mask_rate, whole_word, seed, fixed=True)

    def frequencies(self) -> TokenFrequencies:
        """Count the tokens of the training split (of a stream: of its beginning).

        Returns:
            The counts of all tokens.
        """
        if isinstance(self.train, DocumentStream):
            blocks = first_blocks(self.train, self.tokenizer, _STREAM_FREQUENCY_BLOCKS)
            return TokenFrequencies.of([blocks], self.tokenizer)
        rows = self.train.with_format("numpy", columns=["input_ids"])
        return TokenFrequencies.of((batch["input_ids"] for batch in rows.iter(batch_size=4096)), self.tokenizer)


def prepare_corpus(
    data: Sequence[str] | None = None,
    *,
    tokenizer: str | None = None,
    vocab_size: int = 8192,
    lowercase: bool = True,
    seq_length: int = 128,
    next_sentence: bool = False,
    streaming: bool = False,
    validation_fraction: float = 0.05,
    documents: DocumentRule = "auto",
    text_column: str = "text",
    cache_dir: str | Path | None = None,
) -> PreparedCorpus:
    """Find, read, split, tokenise and pack text; everything but a stream is cached by content.

    Args:
        data: files, folders, globs or hub names; None: the Python standard library of this machine.
        tokenizer: folder or hub name of a tokenizer; None: train one on the training documents.
        vocab_size: tokens of a trained tokenizer.
        lowercase: whether a trained tokenizer folds case.
        seq_length: T, tokens in a sequence, special tokens included.
        next_sentence: make sentence pairs instead of blocks.
        streaming: read and pack while training runs instead of storing the packed text.
        validation_fraction: expected share of documents held out.
        documents: "file", "blank-line" or "auto" (see `load_corpus`).
        text_column: the column of jsonl, csv, parquet and hub data that holds the text.
        cache_dir: see `sibert.data.cache.cache_root`.

    Returns:
        The prepared corpus.

    Raises:
        ValueError: if data, tokenizer or options are unusable; one sentence says what, where and how to fix it.
    """
    check_fraction(validation_fraction)
    if streaming and next_sentence:
        raise ValueError(_PAIRS_NEED_A_CORPUS)
    check_length(seq_length)
    loaded = _whole_tokenizer(tokenizer) if tokenizer is not None else None
    sources = find_sources(data)

    if streaming:
        rule = choose_rule(sources, documents, text_column)
        rows, column = open_stream(sources, rule, text_column)
        train = DocumentStream(rows, column, "train", validation_fraction, seq_length)
        report = CorpusReport(sources=len(sources), rule=rule)
        return _prepare_stream(train, loaded, vocab_size, lowercase, report, cache_dir)

    options: dict[str, Any] = {
        "text_column": text_column,
        "validation_fraction": validation_fraction,
        "cache_dir": cache_dir,
    }
    corpus = load_corpus(sources, documents=documents, **options)
    if loaded is None:
        loaded = _cached_tokenizer(_spread(corpus.train), corpus.key, vocab_size, lowercase, cache_dir)
    return _pack(corpus, _limited(loaded, seq_length), seq_length, next_sentence, cache_dir)


def tokenizer_key(tokenizer: Any) -> str:
    """Hash of what a tokenizer does to text: its files, and for tokenizers without files a probe.

    Args:
        tokenizer: a `transformers` tokenizer.

    Returns:
        A key that changes with vocabulary, normalisation and special tokens.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    definition = backend.to_str() if backend is not None else tokenise(tokenizer, [_PROBE])
    return content_key(
        definition=definition, vocabulary=tokenizer.get_vocab(), special=sorted(tokenizer.all_special_ids)
    )


def _pack(
    corpus: Corpus, tokenizer: Any, seq_length: int, next_sentence: bool, cache_dir: str | Path | None
) -> PreparedCorpus:
    layout = Layout.of(tokenizer, seq_length)
    key = content_key(
        stage="packed",
        documents=corpus.key,
        tokenizer=tokenizer_key(tokenizer),
        seq_length=seq_length,
        next_sentence=next_sentence,
    )
    make = pair_batches if next_sentence else block_batches
    schema = pair_schema(layout) if next_sentence else block_schema(layout)

    def build(folder: Path) -> None:
        counts = {}
        for name, split in (("train", corpus.train), ("validation", corpus.validation)):
            count = counts[name] = TokenCount(unknown_id=tokenizer.unk_token_id)
            save_batches(folder / name, schema, make(token_documents(tokenizer, _texts(split), count), layout, count))
            _require_sequences(count, name, next_sentence)
        train, validation = counts["train"], counts["validation"]
        report = replace(
            corpus.report,
            train_tokens=train.tokens,
            validation_tokens=validation.tokens,
            unknown_tokens=train.unknown + validation.unknown,
            train_examples=train.sequences,
            validation_examples=validation.sequences,
            short_documents=train.short_documents + validation.short_documents,
        )
        write_json(folder / "report.json", report.to_dict())

    folder = build_once(cache_root(cache_dir) / "packed" / key, build)
    report = CorpusReport.from_dict(read_json(folder / "report.json"))
    return PreparedCorpus(tokenizer, load_rows(folder / "train"), load_rows(folder / "validation"), report)


def _require_sequences(count: TokenCount, split: str, next_sentence: bool) -> None:
    if count.sequences == 0:
        raise ValueError(f"The {split} documents have no tokens; give more text, or change validation_fraction.")
    if count.unknown == count.tokens:
        raise ValueError(
            f"The tokenizer knows not one word of the {split} documents (all tokens are [UNK]); "
            "train one on this text by leaving out tokenizer."
        )


def _prepare_stream(
    train: DocumentStream,
    tokenizer: Any,
    vocab_size: int,
    lowercase: bool,
    report: CorpusReport,
    cache_dir: str | Path | None,
) -> PreparedCorpus:
    if tokenizer is None:
        texts = list(_beginning(train.texts(), _STREAM_TOKENIZER_CHARACTERS))
        if not texts:
            raise ValueError("There is no text to train on: the stream has no training documents.")
        key = content_key(texts=texts)
        tokenizer = _cached_tokenizer(lambda: iter(texts), key, vocab_size, lowercase, cache_dir)
    tokenizer = _limited(tokenizer, train.seq_length)
    layout = Layout.of(tokenizer, train.seq_length)
    held_out = replace(train, split="validation")
    blocks_NT = first_blocks(held_out, tokenizer, _STREAM_VALIDATION_BLOCKS)
    if not len(blocks_NT):
        raise ValueError("No document of the stream falls to validation; raise validation_fraction or add documents.")
    if next(iter(train.texts()), None) is None:
        raise ValueError("All documents of the stream fall to validation; lower validation_fraction or add documents.")
    rows = pa.FixedSizeListArray.from_arrays(pa.array(blocks_NT.reshape(-1)), train.seq_length)
    validation = datasets.Dataset(pa.table([rows], schema=block_schema(layout)))
    return PreparedCorpus(tokenizer, train, validation, replace(report, validation_examples=len(blocks_NT)))


def _cached_tokenizer(
    texts: Callable[[], Iterable[str]], text_key: str, vocab_size: int, lowercase: bool, cache_dir: str | Path | None
) -> Any:
    key = content_key(stage="tokenizer", text=text_key, vocab_size=vocab_size, lowercase=lowercase)

    def build(folder: Path) -> None:
        trained = train_tokenizer(texts, vocab_size, lowercase)
        if len(trained) < vocab_size:
            logger.warning("the text allows only %d tokens, not %d", len(trained), vocab_size)
        trained.save_pretrained(str(folder))

    return load_tokenizer(str(build_once(cache_root(cache_dir) / "tokenizers" / key, build)))


def _whole_tokenizer(path_or_name: str) -> Any:
    """A tokenizer whose ids are 0 to V - 1: a model has a row of its table and an output for each of V tokens."""
    tokenizer = load_tokenizer(path_or_name)
    if id_bound(tokenizer) > len(tokenizer):
        raise ValueError(
            f"The tokenizer {path_or_name!r} has {len(tokenizer)} tokens, but an id of {id_bound(tokenizer) - 1}; a "
            "model needs ids without gaps: number its tokens anew, or leave it out to train one."
        )
    return tokenizer


def _limited(tokenizer: Any, seq_length: int) -> Any:
    """Texts longer than the model's positions are then cut when the tokenizer is asked to truncate."""
    tokenizer.model_max_length = min(tokenizer.model_max_length, seq_length)
    return tokenizer


def _spread(split: Any) -> Callable[[], Iterator[str]]:
    """Every k-th document, so that a tokenizer sees the whole corpus and not only its beginning."""
    length = sum(len(text) for text in itertools.islice(_texts(split), 1000))
    estimated = length * len(split) / min(1000, len(split))
    step = max(1, -(-int(estimated) // _TOKENIZER_CHARACTERS))
    return lambda: itertools.islice(_texts(split), 0, None, step)


def _texts(split: Any) -> Iterator[str]:
    for batch in split.iter(batch_size=256):
        yield from batch["text"]


def _beginning(texts: Iterable[str], characters: int) -> Iterator[str]:
    total = 0
    for text in texts:
        yield text
        total += len(text)
        if total >= characters:
            return
