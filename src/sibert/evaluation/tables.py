"""Rows of a csv, tsv, jsonl or parquet file, one at a time; what is wrong is told by file, row and column."""

import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

__all__ = ["FORMATS", "PACKED", "Row", "clear_errors", "opened", "parsed_json", "read_rows", "table_format"]

FORMATS = ("csv", "tsv", "jsonl", "parquet")
"""Formats of tables; all but parquet also packed."""

PACKED = ("", ".gz", ".xz", ".zst")
"""Ends that a packed file has behind its format."""

BLOCK_BYTES = 1 << 24
"""Of a csv or tsv file at once; a row has to fit in."""


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
    packed = bool(suffixes) and suffixes[-1] in PACKED
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
    with clear_errors(path, kind):
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
def clear_errors(path: Path, kind: str) -> Iterator[None]:
    """Say in one sentence why a file cannot be read.

    Args:
        path: Of the file.
        kind: What it is expected to be.

    Raises:
        ValueError: If it is missing, damaged, or not UTF-8.
    """
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not valid UTF-8 (byte 0x{error.object[error.start]:02x}); save it as UTF-8"
        ) from None
    except (EOFError, zlib.error, lzma.LZMAError, pa.ArrowInvalid, OSError) as error:
        # gzip and Arrow report damage as OSError, but only the operating system sets an error number.
        if isinstance(error, OSError) and error.errno is not None:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from error
        raise ValueError(f"{path} is damaged or is no {kind} file: {error}") from error


def _require(path: Path, columns: Sequence[str], required: Sequence[str], place: str = "") -> None:
    double = next((name for name in columns if name and columns.count(name) > 1), None)
    if double is not None:
        raise ValueError(f"{path} has two columns {double!r}: rename one of them")
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
        columns = _header(path, separator) if header is None else list(header)
        _require(path, columns, required)
        single = len(columns) == 1
        reader = pa.csv.open_csv(
            stream,
            # One thread, so that the number of a bad row is known.
            read_options=pa.csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES, column_names=columns),
            # An empty line is an empty text where there is one column, and no row where there are several.
            parse_options=_parse_options(separator, refuse, ignore_empty_lines=not single),
            # Bytes: numbers are read where they are wanted, and bad UTF-8 is found by row.
            convert_options=pa.csv.ConvertOptions(
                check_utf8=False, strings_can_be_null=False, column_types=dict.fromkeys(columns, pa.binary())
            ),
        )
        number, begun = 0, header is not None
        empty: list[Row] = []
        for batch in reader:
            for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                number += 1
                if not begun:  # the header, perhaps behind empty lines
                    begun = any(values)
                    continue
                place = f"row {number}"
                row = Row(path, place, {n: _decoded(path, place, n, v) for n, v in zip(columns, values, strict=True)})
                if single and not values[0]:  # no row at the end of the file
                    empty.append(row)
                    continue
                yield from empty
                empty.clear()
                yield row
    except pa.ArrowInvalid as error:
        if "Empty CSV file" in str(error):
            raise ValueError(f"{path} is empty") from error
        if ragged:
            raise ValueError(
                f"{path}, {ragged[0]}: is there a {'tab' if separator == chr(9) else 'comma'} too many, or a quotation "
                "mark missing?"
            ) from error
        if "straddling" in str(error):
            raise ValueError(
                f"{path} has a row of more than {BLOCK_BYTES >> 20} MiB: is a quotation mark missing?"
            ) from error
        raise


def _header(path: Path, separator: str) -> list[str]:
    with opened(path) as stream:
        reader = pa.csv.open_csv(
            stream,
            read_options=pa.csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
            parse_options=_parse_options(separator, lambda row: "skip"),
        )
        return list(reader.schema.names)


def _parse_options(separator: str, refuse: Callable[[Any], str], *, ignore_empty_lines: bool = True) -> Any:
    return pa.csv.ParseOptions(
        delimiter=separator,
        newlines_in_values=True,
        invalid_row_handler=refuse,
        ignore_empty_lines=ignore_empty_lines,
    )


def _decoded(path: Path, place: str, column: str, value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}, {place}, column {column!r}: not valid UTF-8 (byte 0x{value[error.start]:02x}); save it as UTF-8"
        ) from None


def _plain_rows(path: Path, stream: BinaryIO, header: Sequence[str] | None, required: Sequence[str]) -> Iterator[Row]:
    empty: list[Row] = []
    for number, line in enumerate(stream, start=1):
        place = f"row {number}"
        try:
            values = line.decode("utf-8").removeprefix("\ufeff").rstrip("\r\n").split("\t")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, {place}: not valid UTF-8 (byte 0x{line[error.start]:02x})") from None
        if header is None:
            header = values
            _require(path, header, required)
            continue
        row = Row(path, place, dict(zip(header, values, strict=False)))
        if values == [""]:  # no row at the end of the file
            empty.append(row)
            continue
        yield from empty
        empty.clear()
        yield row
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
        values = parsed_json(text, f"{path}, {place}")
        if not isinstance(values, dict):
            raise ValueError(f"{path}, {place}: expected a JSON object, got {type(values).__name__}")
        _require(path, list(values), required, place)
        yield Row(path, place, values)


def parsed_json(text: str, where: str) -> Any:
    """The value of a JSON text.

    Args:
        text: JSON.
        where: File and place of it.

    Raises:
        ValueError: If it is none, is nested too deeply, or has halves of characters, which are no text.
    """
    try:
        value = json.loads(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise ValueError(f"{where}: {half} is half of a character (a lone surrogate): write the whole one") from None
    except ValueError as error:
        raise ValueError(f"{where}: not valid JSON ({error})") from None
    except RecursionError:
        raise ValueError(f"{where}: the JSON is nested too deeply to be read") from None
    return value


def _parquet_rows(path: Path, required: Sequence[str]) -> Iterator[Row]:
    with pa.parquet.ParquetFile(path) as table:
        columns = table.schema_arrow.names
        _require(path, columns, required)
        number = 0
        for batch in table.iter_batches(batch_size=1024):
            for values in batch.to_pylist():
                number += 1
                yield Row(path, f"row {number}", values)
