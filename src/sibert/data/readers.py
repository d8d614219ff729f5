"""One file in, its documents out; whatever cannot be read is reported by file and place."""

import csv
import gzip
import io
import json
import logging
import lzma
import re
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet

from sibert.data.sources import FileSource

logger = logging.getLogger(__name__)

_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, pa.ArrowInvalid)
_SURROGATE = re.compile("[\ud800-\udfff]")
_MAX_KEPT = 100


@dataclass
class Problems:
    """What was skipped while reading, and why.

    Attributes:
        count: number of skipped files, lines, rows or documents.
        messages: the first hundred reasons, each with file and place.
        silent: do not log (for a pass whose problems a second pass reports).
    """

    count: int = 0
    messages: list[str] = field(default_factory=list)
    silent: bool = False

    def skip(self, message: str) -> None:
        """Count and log one skipped item.

        Args:
            message: what was skipped, where and why.
        """
        self.count += 1
        if len(self.messages) < _MAX_KEPT:
            self.messages.append(message)
            if not self.silent:
                logger.warning("skipped: %s", message)


def read_documents(source: FileSource, *, blank_line: bool, text_column: str, problems: Problems) -> Iterator[str]:
    """The documents of one file, stripped of surrounding white space, empty ones left out.

    Args:
        source: the file.
        blank_line: split text files at empty lines (BERT's convention) instead of taking a file as one document.
        text_column: the column of jsonl, csv and parquet files that holds the text; each row is a document.
        problems: collects what had to be skipped.

    Yields:
        Documents, with Unix line ends.

    Raises:
        ValueError: if the file is damaged, unreadable, or lacks the text column.
    """
    with _clear_errors(source):
        if source.kind == "parquet":
            documents = _parquet_documents(source, text_column, problems)
            yield from _clean(documents)
            return
        with _open(source) as stream:
            if source.kind == "jsonl":
                documents = _jsonl_documents(stream, source.name, text_column, problems)
            elif source.kind == "csv":
                documents = _csv_documents(stream, source.name, text_column, problems)
            elif blank_line:
                documents = _paragraph_documents(stream, source.name, problems)
            else:
                documents = _whole_document(stream, source.name, problems)
            yield from _clean(documents)


def _open(source: FileSource) -> BinaryIO:
    if source.compression == ".gz":
        return cast(BinaryIO, gzip.open(source.path, "rb"))
    if source.compression == ".xz":
        return cast(BinaryIO, lzma.open(source.path, "rb"))
    if source.compression == ".zst":
        # Arrow's reader, because zstandard's takes a truncated file for a whole one.
        return cast(BinaryIO, io.BufferedReader(pa.input_stream(str(source.path), compression="zstd")))
    return source.path.open("rb")


@contextmanager
def _clear_errors(source: FileSource) -> Iterator[None]:
    try:
        yield
    except (*_DAMAGE, OSError) as error:
        # gzip and Arrow report damage as OSError, but only the operating system sets an error number.
        if isinstance(error, OSError) and error.errno is not None:
            raise ValueError(f"{source.path} cannot be read: {error.strerror}") from error
        format_name = source.compression[1:] or source.kind
        raise ValueError(f"{source.path} is damaged or is no {format_name} file: {error}") from error


def _clean(documents: Iterator[str]) -> Iterator[str]:
    for document in documents:
        text = document.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").strip()
        if text:
            yield text


def _decode(data: bytes, name: str, offset: int, what: str, problems: Problems) -> str | None:
    """Strict UTF-8, or None after reporting the byte that broke it (`offset` is where `data` starts in the file)."""
    if (zero := data.find(b"\0")) >= 0:
        problems.skip(f"{name}: {what} looks binary (a zero byte at byte offset {offset + zero}), expected UTF-8 text")
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        place = offset + error.start
        problems.skip(
            f"{name}: {what} is not valid UTF-8 (byte 0x{data[error.start]:02x} at byte offset {place}: {error.reason})"
        )
        return None


def _whole_document(stream: BinaryIO, name: str, problems: Problems) -> Iterator[str]:
    text = _decode(stream.read(), name, 0, "the file", problems)
    if text is not None:
        yield text


def _paragraph_documents(stream: BinaryIO, name: str, problems: Problems) -> Iterator[str]:
    start = offset = 0
    lines: list[bytes] = []
    for line in stream:
        if line.strip():
            if not lines:
                start = offset
            lines.append(line)
        elif lines:
            text = _decode(b"".join(lines), name, start, "a document", problems)
            lines = []
            if text is not None:
                yield text
        offset += len(line)
    text = _decode(b"".join(lines), name, start, "a document", problems)
    if text is not None:
        yield text


def _jsonl_documents(stream: BinaryIO, name: str, text_column: str, problems: Problems) -> Iterator[str]:
    offset = 0
    for number, line in enumerate(stream, start=1):
        text = _decode(line, name, offset, f"line {number}", problems)
        offset += len(line)
        if text is None or not text.strip():
            continue
        try:
            row = json.loads(text.removeprefix("\ufeff"))
        except ValueError as error:
            problems.skip(f"{name}:{number}: not valid JSON ({error})")
            continue
        except RecursionError:
            problems.skip(f"{name}:{number}: the JSON is nested too deeply")
            continue
        if not isinstance(row, dict):
            problems.skip(f"{name}:{number}: expected a JSON object, got {type(row).__name__}")
            continue
        _require_column(text_column, list(row), f"{name}:{number}")
        yield from _text_value(row[text_column], f"{name}:{number}", problems)


def _csv_documents(stream: BinaryIO, name: str, text_column: str, problems: Problems) -> Iterator[str]:
    # Documents are longer than the module's limit of 128 KiB a field.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.reader(_csv_lines(stream, name, problems))
    try:
        header = next(reader, None)
        if header is None:
            return
        if any(map(_SURROGATE.search, header)):
            raise ValueError(f"{name}: the line of column names is not UTF-8 text; save the file as UTF-8")
        _require_column(text_column, header, name)
        column = header.index(text_column)
        for row in reader:
            if not row or any(_SURROGATE.search(cell) for cell in row):
                continue  # an empty line, or a row that _csv_lines has reported
            if len(row) != len(header):
                hint = "; a text with commas needs quotes" if len(row) > len(header) else ""
                problems.skip(f"{name}:{reader.line_num}: {len(row)} fields, expected {len(header)}{hint}")
                continue
            yield row[column]
    except csv.Error as error:
        raise ValueError(f"{name}:{reader.line_num}: not valid CSV ({error})") from error


def _csv_lines(stream: BinaryIO, name: str, problems: Problems) -> Iterator[str]:
    """Decoded lines; a bad one keeps its bytes as surrogates: quoting stays intact and its row can be left out."""
    offset = 0
    for number, line in enumerate(stream, start=1):
        text = _decode(line, name, offset, f"line {number}", problems)
        offset += len(line)
        if text is None:
            text = line.replace(b"\0", b"\xff").decode("utf-8", errors="surrogateescape")
        yield text.removeprefix("\ufeff") if number == 1 else text


def _parquet_documents(source: FileSource, text_column: str, problems: Problems) -> Iterator[str]:
    with pyarrow.parquet.ParquetFile(source.path) as table:
        _require_column(text_column, table.schema_arrow.names, source.name)
        kind = table.schema_arrow.field(text_column).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            raise ValueError(f"{source.name}: the column {text_column!r} holds {kind}, expected text.")
        number = 0
        for batch in table.iter_batches(batch_size=1024, columns=[text_column]):
            for value in batch.column(0).cast(pa.large_binary(), safe=False):
                number += 1
                data = value.as_py()
                if data is None:
                    problems.skip(f"{source.name}: row {number} has no text")
                    continue
                text = _decode(data, source.name, 0, f"the text of row {number}", problems)
                if text is not None:
                    yield text


def _require_column(text_column: str, columns: list[str], where: str) -> None:
    if text_column not in columns:
        found = ", ".join(columns) or "none"
        raise ValueError(f"{where}: no column {text_column!r}; columns found: {found}. Name yours with text_column.")


def _text_value(value: object, where: str, problems: Problems) -> Iterator[str]:
    if not isinstance(value, str):
        problems.skip(f"{where}: expected text, got {type(value).__name__}")
    elif _SURROGATE.search(value):
        problems.skip(f"{where}: the text has half a surrogate pair and is no valid Unicode")
    else:
        yield value
