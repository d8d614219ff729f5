"""Rows of a csv, tsv, jsonl or parquet file, one at a time; what is wrong is told by file, row and column."""

import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

__all__ = ["FORMATS", "Row", "opened", "read_rows", "table_format"]

FORMATS = ("csv", "tsv", "jsonl", "parquet")
"""Formats of tables; all but parquet also as .gz, .xz or .zst."""

_COMPRESSIONS = (".gz", ".xz", ".zst")


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        file: Where it is from.
        place: "row 2" (the header is row 1), "line 7" of a jsonl file.
        values: By column; text where the format knows nothing else.
    """

    file: Path
    place: str
    values: dict[str, Any]

    def wrong(self, column: str, message: str) -> ValueError:
        """The error that this row is to blame for.

        Args:
            column: Which one.
            message: What was expected, and what came.
        """
        return ValueError(f"{self.file}, {self.place}, column {column!r}: {message}")

    def text(self, column: str) -> str:
        """The text of a column.

        Args:
            column: Which one.

        Raises:
            ValueError: If there is none, or only white space.
        """
        value = self.values[column]
        if not isinstance(value, str):
            raise self.wrong(column, f"expected text, got {'nothing' if value is None else type(value).__name__}")
        if not value.strip():
            raise self.wrong(column, "the text is empty; delete the row or fill it in")
        return value

    def number(self, column: str) -> float:
        """The number of a column.

        Args:
            column: Which one.

        Raises:
            ValueError: If it is none, or not finite.
        """
        value = self.values[column]
        try:
            number = float(value) if not isinstance(value, bool) else float("nan")
        except (TypeError, ValueError):
            raise self.wrong(column, f"expected a number, got {value!r}") from None
        if not abs(number) < float("inf"):
            raise self.wrong(column, f"expected a finite number, got {value!r}")
        return number


def table_format(path: Path) -> str:
    """The format of a table by its name.

    Args:
        path: Of the file.

    Raises:
        ValueError: If it is none of `FORMATS`.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = bool(suffixes) and suffixes[-1] in _COMPRESSIONS
    kind = (suffixes[-2] if packed and len(suffixes) > 1 else suffixes[-1] if suffixes else "")[1:]
    if kind not in FORMATS or (kind == "parquet" and packed):
        raise ValueError(f"{path} is no table that can be read; supported are {', '.join(FORMATS)}, by the name's end")
    return kind


def read_rows(
    path: Path, *, header: Sequence[str] | None = None, plain: bool = False, required: Sequence[str] = ()
) -> Iterator[Row]:
    """The rows of a table, without reading more of it than needed.

    Args:
        path: Of a file that `table_format` knows, UTF-8.
        header: Names of the columns of a csv or tsv file that does not begin with them.
        plain: Whether a line is a row and quotation marks are text, whatever the name's end, as in GLUE's files; values
            behind the last column are left out, and a row may lack some.
        required: Columns that have to be there.

    Yields:
        In the order of the file.

    Raises:
        ValueError: If the file cannot be read, is damaged, or lacks a column.
    """
    kind = "tsv" if plain else table_format(path)
    with _clear_errors(path, kind):
        if kind == "parquet":
            yield from _parquet_rows(path, required)
            return
        with opened(path) as stream:
            if plain:
                yield from _plain_rows(path, stream, header, required)
            elif kind == "jsonl":
                yield from _jsonl_rows(path, stream, required)
            else:
                yield from _separated_rows(path, stream, "\t" if kind == "tsv" else ",", header, required)


def opened(path: Path) -> BinaryIO:
    """Open a file, packed or not.

    Args:
        path: Which may end in .gz, .xz or .zst.
    """
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if suffix == ".xz":
        return cast(BinaryIO, lzma.open(path, "rb"))
    if suffix == ".zst":
        return cast(BinaryIO, io.BufferedReader(pa.input_stream(str(path), compression="zstd")))
    return path.open("rb")


@contextmanager
def _clear_errors(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except (EOFError, zlib.error, lzma.LZMAError, pa.ArrowInvalid, OSError) as error:
        # gzip and Arrow report damage as OSError, but only the operating system sets an error number.
        if isinstance(error, OSError) and error.errno is not None:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from error
        raise ValueError(f"{path} is damaged or is no {kind} file: {error}") from error


def _require(path: Path, columns: Sequence[str], required: Sequence[str], place: str = "") -> None:
    missing = [name for name in required if name not in columns]
    if missing:
        where = f"{path}, {place}" if place else str(path)
        raise ValueError(f"{where}: no column {missing[0]!r}; columns found: {', '.join(columns) or 'none'}")


def _separated_rows(
    path: Path, stream: BinaryIO, separator: str, header: Sequence[str] | None, required: Sequence[str]
) -> Iterator[Row]:
    ragged: list[str] = []

    def refuse(row: Any) -> str:
        ragged.append(f"row {row.number}: {row.actual_columns} values, expected {row.expected_columns}")
        return "error"

    try:
        reader = pa.csv.open_csv(
            stream,
            # One thread, so that the number of a bad row is known.
            read_options=pa.csv.ReadOptions(use_threads=False, column_names=header),
            parse_options=pa.csv.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=refuse),
            convert_options=pa.csv.ConvertOptions(check_utf8=False, **_as_bytes(path, separator, header)),
        )
        columns = reader.schema.names
        _require(path, columns, required)
        number = 1 if header is None else 0
        for batch in reader:
            lists = [column.to_pylist() for column in batch.columns]
            for values in zip(*lists, strict=True):
                number += 1
                place = f"row {number}"
                yield Row(path, place, {n: _decoded(path, place, n, v) for n, v in zip(columns, values, strict=True)})
    except pa.ArrowInvalid as error:
        if "Empty CSV file" in str(error):
            raise ValueError(f"{path} is empty") from error
        if ragged:
            raise ValueError(
                f"{path}, {ragged[0]}: is there a {'tab' if separator == chr(9) else 'comma'} too many, or a quotation "
                "mark missing?"
            ) from error
        raise


def _as_bytes(path: Path, separator: str, header: Sequence[str] | None) -> dict[str, Any]:
    """Have every column given as bytes: numbers are read where they are wanted, and bad UTF-8 is found by row."""
    if header is None:
        with opened(path) as stream:
            first = stream.readline().removeprefix(b"\xef\xbb\xbf")
        if not first.strip():
            return {}
        parse = pa.csv.ParseOptions(delimiter=separator)
        header = pa.csv.read_csv(io.BytesIO(first), parse_options=parse).column_names
    return {"column_types": dict.fromkeys(header, pa.binary()), "strings_can_be_null": False}


def _decoded(path: Path, place: str, column: str, value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}, {place}, column {column!r}: not valid UTF-8 (byte 0x{value[error.start]:02x}); save it as UTF-8"
        ) from None


def _plain_rows(path: Path, stream: BinaryIO, header: Sequence[str] | None, required: Sequence[str]) -> Iterator[Row]:
    for number, line in enumerate(stream, start=1):
        place = f"row {number}"
        try:
            values = line.decode("utf-8").removeprefix("\ufeff").rstrip("\r\n").split("\t")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, {place}: not valid UTF-8 (byte 0x{line[error.start]:02x})") from None
        if header is None:
            header = values
            _require(path, header, required)
        elif values != [""]:
            yield Row(path, place, dict(zip(header, values, strict=False)))
    if header is None:
        raise ValueError(f"{path} is empty")


def _jsonl_rows(path: Path, stream: BinaryIO, required: Sequence[str]) -> Iterator[Row]:
    for number, line in enumerate(stream, start=1):
        place = f"line {number}"
        try:
            text = line.decode("utf-8").removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, {place}: not valid UTF-8 (byte 0x{line[error.start]:02x})") from None
        if not text.strip():
            continue
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{path}, {place}: not valid JSON ({error})") from None
        if not isinstance(values, dict):
            raise ValueError(f"{path}, {place}: expected a JSON object, got {type(values).__name__}")
        _require(path, list(values), required, place)
        yield Row(path, place, values)


def _parquet_rows(path: Path, required: Sequence[str]) -> Iterator[Row]:
    with pa.parquet.ParquetFile(path) as table:
        columns = table.schema_arrow.names
        _require(path, columns, required)
        number = 0
        for batch in table.iter_batches(batch_size=1024):
            for values in batch.to_pylist():
                number += 1
                yield Row(path, f"row {number}", values)
