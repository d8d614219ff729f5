"""A corpus: the documents of all sources without duplicates, split into train and validation by their hash."""

import hashlib
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import datasets
import huggingface_hub
import pyarrow as pa

from sibert.data.cache import (
    build_once,
    cache_root,
    content_key,
    file_digest,
    load_rows,
    read_json,
    save_batches,
    write_json,
)
from sibert.data.readers import Problems, read_documents
from sibert.data.sources import FileSource, HubSource

logger = logging.getLogger(__name__)

DocumentRule = Literal["auto", "file", "blank-line"]
Split = Literal["train", "validation"]

# Below this many documents a split by document is too coarse, and text files are taken apart at empty lines.
FEW_DOCUMENTS = 100

_SCHEMA = pa.schema([("text", pa.large_string()), ("source", pa.string())])
_BATCH_ROWS = 256
# Changing the salt would move documents between the splits of every user: never change it.
_SPLIT_SALT = b"sibert-split-1"


@dataclass(frozen=True)
class CorpusReport:
    """What was read and what became of it.

    Attributes:
        sources: number of files and hub data sets.
        rule: how text files were cut into documents, "file" or "blank-line" (rows are always one document each).
        documents: distinct documents kept.
        duplicates: exact copies removed.
        train_documents: documents of the train split.
        validation_documents: documents of the validation split.
        characters: length of the kept text.
        skipped: files, lines, rows or documents that could not be read.
        skipped_messages: why, the first hundred, each with file and place.
        train_tokens: tokens of the train split, special tokens not counted.
        validation_tokens: tokens of the validation split.
        unknown_tokens: how many of these tokens are [UNK].
        train_examples: packed sequences, or sentence pairs, in the train split.
        validation_examples: the same of the validation split.
        short_documents: documents of one token, which cannot make a sentence pair.
    """

    sources: int
    rule: str
    documents: int = 0
    duplicates: int = 0
    train_documents: int = 0
    validation_documents: int = 0
    characters: int = 0
    skipped: int = 0
    skipped_messages: tuple[str, ...] = ()
    train_tokens: int = 0
    validation_tokens: int = 0
    unknown_tokens: int = 0
    train_examples: int = 0
    validation_examples: int = 0
    short_documents: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-serialisable values.

        Returns:
            One entry per attribute.
        """
        return asdict(self) | {"skipped_messages": list(self.skipped_messages)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CorpusReport":
        """The inverse of `to_dict`.

        Args:
            values: what `to_dict` returned.

        Returns:
            The report.
        """
        return cls(**values | {"skipped_messages": tuple(values["skipped_messages"])})


@dataclass(frozen=True)
class Corpus:
    """Documents on disk, split.

    Attributes:
        train: a `datasets.Dataset` with the columns `text` and `source`, memory-mapped.
        validation: the same, for the documents held out.
        report: counts.
        key: hash of everything the documents depend on.
    """

    train: Any
    validation: Any
    report: CorpusReport
    key: str


def document_digest(text: str) -> bytes:
    """The identity of a document: a salted 128-bit hash of its text.

    Args:
        text: the document.

    Returns:
        16 bytes.
    """
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16, key=_SPLIT_SALT).digest()


def split_position(digest: bytes) -> float:
    """A number that is uniform in [0, 1) over documents; documents below the validation fraction are held out.

    Since it depends on nothing but the document, adding other data never moves a document to the other split.

    Args:
        digest: from `document_digest`.

    Returns:
        The position, a multiple of 2^-53.
    """
    return (int.from_bytes(digest[:8], "big") >> 11) * 2.0**-53


def choose_rule(sources: Sequence[FileSource | HubSource], rule: DocumentRule, text_column: str) -> str:
    """Settle "auto": a file is a document, unless that makes fewer than a hundred documents in all.

    Args:
        sources: the files and hub data sets.
        rule: "auto", "file" or "blank-line".
        text_column: the column of row formats that holds the text.

    Returns:
        "file" or "blank-line".

    Raises:
        ValueError: if the rule is unknown.
    """
    if rule not in ("auto", "file", "blank-line"):
        raise ValueError(f"documents={rule!r} is unknown; expected 'auto', 'file' or 'blank-line'.")
    if rule != "auto":
        return rule
    texts = sum(isinstance(source, FileSource) and source.kind == "text" for source in sources)
    rows = [source for source in sources if not isinstance(source, FileSource) or source.kind != "text"]
    if texts == 0 or any(isinstance(source, HubSource) for source in rows):
        return "file"
    wanted = max(0, FEW_DOCUMENTS - texts)
    counted = itertools.islice(iterate_documents(rows, "file", text_column, Problems(silent=True)), wanted)
    return "file" if texts + sum(1 for _ in counted) >= FEW_DOCUMENTS else "blank-line"


def iterate_documents(
    sources: Sequence[FileSource | HubSource], rule: str, text_column: str, problems: Problems
) -> Iterator[dict[str, str]]:
    """All documents, in the order of the sources, duplicates included.

    Args:
        sources: the files and hub data sets.
        rule: "file" or "blank-line", for text files.
        text_column: the column of row formats and hub data sets that holds the text.
        problems: collects what had to be skipped.

    Yields:
        `{"text", "source"}`.

    Raises:
        ValueError: if a source cannot be read.
    """
    for source in sources:
        if isinstance(source, HubSource):
            rows = open_hub(source, text_column)
            try:
                for row in rows:
                    if isinstance(row[text_column], str) and row[text_column].strip():
                        yield {"text": row[text_column].strip(), "source": source.name}
            # A connection that breaks off is an OSError, as a cache that cannot be written is.
            except Exception as error:
                raise ValueError(_hub_sentence(source, error)) from error
            continue
        for text in read_documents(source, blank_line=rule == "blank-line", text_column=text_column, problems=problems):
            yield {"text": text, "source": source.name}


def open_hub(source: HubSource, text_column: str) -> Any:
    """The train split of a hub data set, read as a stream.

    Args:
        source: its name and configuration.
        text_column: the column that holds the text.

    Returns:
        A `datasets.IterableDataset` with that column.

    Raises:
        ValueError: if there is no such data set, no network, or no such column.
    """
    try:
        rows = datasets.load_dataset(source.name, source.config, split="train", streaming=True)
        columns = rows.column_names or list(next(iter(rows)))
    # Hub, network, offline mode and the format's builder each raise their own kinds; to the user all mean the same.
    except Exception as error:
        raise ValueError(_hub_sentence(source, error)) from error
    if text_column not in columns:
        raise ValueError(
            f"The hub data set {source.name} has no column {text_column!r}; columns found: {', '.join(columns)}. "
            "Name yours with text_column."
        )
    return rows.select_columns([text_column])


def load_corpus(
    sources: Sequence[FileSource | HubSource],
    *,
    documents: DocumentRule = "auto",
    text_column: str = "text",
    validation_fraction: float = 0.05,
    cache_dir: str | Path | None = None,
) -> Corpus:
    """Read, de-duplicate and split the documents of all sources, or find them in the cache.

    Args:
        sources: from `find_sources`.
        documents: how text files become documents: "file" (one each), "blank-line" (split at empty lines), or "auto".
        text_column: the column of jsonl, csv, parquet and hub data that holds the text.
        validation_fraction: expected share of documents held out, between 0 and 1.
        cache_dir: see `cache_root`.

    Returns:
        The corpus.

    Raises:
        ValueError: if the text cannot be read or split; the message says what was found and what to change.
    """
    check_fraction(validation_fraction)
    rule = choose_rule(sources, documents, text_column)
    contents = [_fingerprint(source) for source in sources]
    key = content_key(
        stage="documents", contents=contents, rule=rule, text_column=text_column, fraction=validation_fraction
    )

    def build(folder: Path) -> None:
        report = CorpusReport(sources=len(sources), rule=rule)
        writer = _CorpusWriter(report, validation_fraction)
        problems = Problems()
        writer.write(folder, iterate_documents(sources, rule, text_column, problems))
        report = replace(writer.report, skipped=problems.count, skipped_messages=tuple(problems.messages))
        _require_documents(report, sources, writer.lowest, writer.highest)
        write_json(folder / "report.json", report.to_dict())

    folder = build_once(cache_root(cache_dir) / "documents" / key, build)
    report = CorpusReport.from_dict(read_json(folder / "report.json"))
    logger.info("%d documents (rule: %s), %d duplicates removed", report.documents, rule, report.duplicates)
    return Corpus(load_rows(folder / "train"), load_rows(folder / "validation"), report, key)


def check_fraction(validation_fraction: float) -> None:
    """Refuse a validation fraction that leaves one side empty.

    Args:
        validation_fraction: share of documents held out.

    Raises:
        ValueError: unless it is between 0 and 1, both excluded.
    """
    if not 0.0 < validation_fraction < 1.0:
        raise ValueError(f"validation_fraction={validation_fraction} is out of range; expected 0 < fraction < 1.")


class _CorpusWriter:
    """Writes both splits in one pass over the documents and counts."""

    def __init__(self, report: CorpusReport, validation_fraction: float) -> None:
        self.report = report
        self.lowest = 1.0
        self.highest = 0.0
        self._fraction = validation_fraction
        self._seen: set[bytes] = set()

    def write(self, folder: Path, documents: Iterator[dict[str, str]]) -> None:
        # save_batches pulls; the validation documents of this pass are few and wait in a second Arrow file.
        held_out = folder / "held-out.arrow"
        with pa.OSFile(str(held_out), "wb") as sink, pa.ipc.new_stream(sink, _SCHEMA) as validation:
            save_batches(folder / "train", _SCHEMA, self._route(documents, validation))
        with pa.memory_map(str(held_out)) as source, pa.ipc.open_stream(source) as batches:
            save_batches(folder / "validation", _SCHEMA, batches)
        held_out.unlink()

    def _route(self, documents: Iterator[dict[str, str]], validation: Any) -> Iterator[pa.RecordBatch]:
        count = duplicates = held = characters = 0
        rows: dict[bool, list[dict[str, str]]] = {True: [], False: []}
        for document in documents:
            digest = document_digest(document["text"])
            if digest in self._seen:
                duplicates += 1
                continue
            self._seen.add(digest)
            position = split_position(digest)
            self.lowest, self.highest = min(self.lowest, position), max(self.highest, position)
            is_held_out = position < self._fraction
            count, held, characters = count + 1, held + is_held_out, characters + len(document["text"])
            rows[is_held_out].append(document)
            if len(rows[is_held_out]) == _BATCH_ROWS:
                batch = pa.RecordBatch.from_pylist(rows[is_held_out], schema=_SCHEMA)
                rows[is_held_out] = []
                if is_held_out:
                    validation.write_batch(batch)
                else:
                    yield batch
        validation.write_batch(pa.RecordBatch.from_pylist(rows[True], schema=_SCHEMA))
        yield pa.RecordBatch.from_pylist(rows[False], schema=_SCHEMA)
        self.report = replace(
            self.report,
            documents=count,
            duplicates=duplicates,
            train_documents=count - held,
            validation_documents=held,
            characters=characters,
        )


def _require_documents(
    report: CorpusReport, sources: Sequence[FileSource | HubSource], lowest: float, highest: float
) -> None:
    names = ", ".join(source.name for source in sources[:3]) + (", ..." if len(sources) > 3 else "")
    if report.documents == 0:
        reason = f" {report.skipped_messages[0]}." if report.skipped_messages else ""
        raise ValueError(f"There is no text in {names}.{reason}")
    if report.documents == 1:
        raise ValueError(
            f"There is only one document in {names} (rule: {report.rule}), and training and validation need one each; "
            "separate documents by empty lines (documents='blank-line'), or add files."
        )
    if report.validation_documents == 0:
        raise ValueError(
            f"None of the {report.documents} documents falls to validation; "
            f"a validation_fraction above {lowest:.4f} holds out at least one."
        )
    if report.train_documents == 0:
        raise ValueError(
            f"All of the {report.documents} documents fall to validation; "
            f"a validation_fraction below {highest:.4f} leaves at least one for training."
        )


def _fingerprint(source: FileSource | HubSource) -> list[str]:
    if isinstance(source, FileSource):
        try:
            return [source.name, source.kind, source.compression, file_digest(source.path)]
        except OSError as error:
            raise ValueError(f"{source.path} cannot be read: {error.strerror or error}") from error
    try:
        revision = huggingface_hub.HfApi().dataset_info(source.name).sha
    except Exception as error:
        raise ValueError(_hub_sentence(source, error)) from error
    return ["hub", source.name, source.config or "", str(revision)]


def _hub_sentence(source: HubSource, error: Exception) -> str:
    offline = huggingface_hub.constants.HF_HUB_OFFLINE or isinstance(error, (ConnectionError, TimeoutError))
    reason = "there is no network, or offline mode is on" if offline else str(error).strip().split("\n")[0].rstrip(".")
    return (
        f"{source.name!r} is neither a file nor a folder here, and as a data set of the Hugging Face hub it cannot be "
        f"read: {reason}."
    )
