import csv
import gzip
import io
import json
import lzma

import pyarrow as pa
import pyarrow.parquet
import pytest

from sibert.data.readers import Problems, read_documents
from sibert.data.sources import FileSource

ROWS = ["first, with comma", 'second "quoted"\nand two lines', "dritte — ünïcode"]


def read(path, *, blank_line=False, text_column="text"):
    problems = Problems()
    source = FileSource(path, path.name)
    return list(read_documents(source, blank_line=blank_line, text_column=text_column, problems=problems)), problems


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


COMPRESSORS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd}


def as_csv() -> bytes:
    table = io.StringIO()
    csv.writer(table).writerows([["id", "text"], *([index, row] for index, row in enumerate(ROWS))])
    return table.getvalue().encode()


def as_jsonl() -> bytes:
    return "\n".join(json.dumps({"id": 1, "text": row}) for row in ROWS).encode()


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize(("kind", "data"), [("csv", as_csv()), ("jsonl", as_jsonl())])
def test_rows_are_documents(tmp_path, kind, data, suffix):
    path = tmp_path / f"rows.{kind}{suffix}"
    path.write_bytes(COMPRESSORS[suffix](data))
    assert read(path) == (ROWS, Problems())


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize("extension", ["txt", "md", "rst", "py"])
def test_a_text_file_is_a_document(tmp_path, extension, suffix):
    path = tmp_path / f"text.{extension}{suffix}"
    path.write_bytes(COMPRESSORS[suffix](b"\xef\xbb\xbfone\r\n\r\ntwo\n"))
    assert read(path) == (["one\n\ntwo"], Problems())


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_or_a_document_per_paragraph(tmp_path, suffix):
    path = tmp_path / f"text.txt{suffix}"
    path.write_bytes(COMPRESSORS[suffix](b"one\nstill one\n\n \n\ntwo\r\n\r\nthree"))
    assert read(path, blank_line=True) == (["one\nstill one", "two", "three"], Problems())


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_rows_are_documents(tmp_path, kind):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pa.table({"text": pa.array([*ROWS, None]).cast(kind)}), path)
    documents, problems = read(path)
    assert documents == ROWS
    assert problems.messages == ["rows.parquet: row 4 has no text"]


BAD = "ü and then ".encode() + b"\xff\xfe rest"


def test_invalid_utf8_is_reported_at_its_byte_and_the_file_skipped(tmp_path):
    path = tmp_path / "bad.txt"
    path.write_bytes(BAD)
    documents, problems = read(path)
    assert documents == []
    assert problems.count == 1
    assert "bad.txt: the file is not valid UTF-8 (byte 0xff at byte offset 12" in problems.messages[0]


def test_with_paragraphs_only_the_bad_one_is_skipped_and_the_offset_is_that_in_the_file(tmp_path):
    path = tmp_path / "bad.txt.gz"
    path.write_bytes(gzip.compress(b"good\n\n" + BAD + b"\n\nalso good"))
    documents, problems = read(path, blank_line=True)
    assert documents == ["good", "also good"]
    assert "byte offset 18" in problems.messages[0]


def test_a_bad_line_of_jsonl_is_skipped(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(
        b'{"text": "good"}\n{"text": "\xff"}\nnot json\n[1]\n{"text": 3}\n{"text": "\\ud800"}\n{"text": "end"}'
    )
    documents, problems = read(path)
    assert documents == ["good", "end"]
    assert [message[:20] for message in problems.messages] == [
        "bad.jsonl: line 2 is",
        "bad.jsonl:3: not val",
        "bad.jsonl:4: expecte",
        "bad.jsonl:5: expecte",
        "bad.jsonl:6: the tex",
    ]
    assert "byte offset 27" in problems.messages[0]


def test_a_bad_row_of_csv_is_skipped_without_disturbing_the_next(tmp_path):
    path = tmp_path / "bad.csv"
    path.write_bytes(b'id,text\n1,good\n2,"two\n\xff lines"\n3\n4,end\n')
    documents, problems = read(path)
    assert documents == ["good", "end"]
    assert "line 4 is not valid UTF-8 (byte 0xff at byte offset 22" in problems.messages[0]
    assert "1 fields, expected 2" in problems.messages[1]


@pytest.mark.parametrize("header", ["text,source", "source,text", "text"])
def test_a_row_of_csv_with_other_fields_than_the_header_is_skipped(tmp_path, header):
    """An unquoted comma would cut the text off."""
    path = tmp_path / "bad.csv"
    path.write_text(f'{header}\n{header}\nThe quick, brown fox,web\n"{header}"\n{header}')
    documents, problems = read(path)
    skipped = [] if header == "text" else ["bad.csv:4: 1 fields, expected 2"]
    assert documents == ["text"] * (3 - len(skipped))
    assert problems.messages == [
        f"bad.csv:3: 3 fields, expected {header.count(',') + 1}; a text with commas needs quotes",
        *skipped,
    ]


def test_a_table_in_another_encoding_is_a_clear_error(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes("text\none\n".encode("utf-16"))
    with pytest.raises(
        ValueError, match=r"rows\.csv: the line of column names is not UTF-8 text; save the file as UTF-8"
    ):
        read(path)


def test_json_that_is_nested_too_deeply_is_skipped(tmp_path):
    path = tmp_path / "deep.jsonl"
    path.write_text('{"text": "good"}\n{"text": "x", "deep": ' + "[" * 100_000 + "]" * 100_000 + "}\n")
    documents, problems = read(path)
    assert documents == ["good"]
    assert problems.messages == ["deep.jsonl:2: the JSON is nested too deeply"]


def test_a_long_csv_field_is_no_problem(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text("text\n" + "x" * 200_000)
    assert len(read(path)[0][0]) == 200_000


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet"])
def test_a_missing_text_column_names_those_that_exist(tmp_path, name):
    path = tmp_path / name
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(pa.table({"id": ["1"], "body": ["x"]}), path)
    else:
        path.write_bytes(b'{"id": 1, "body": "x"}' if name.endswith("jsonl") else b"id,body\n1,x")
    with pytest.raises(ValueError, match="no column 'text'; columns found: id, body"):
        read(path)
    assert read(path, text_column="body")[0] == ["x"]


def test_a_column_of_numbers_is_refused(tmp_path):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pa.table({"text": [1, 2]}), path)
    with pytest.raises(ValueError, match="holds int64, expected text"):
        read(path)


def test_a_binary_file_is_reported(tmp_path):
    path = tmp_path / "binary.txt"
    path.write_bytes(b"\x89PNG\x00\x01")
    documents, problems = read(path)
    assert documents == []
    assert "looks binary (a zero byte at byte offset 4)" in problems.messages[0]


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_damaged_compressed_file_is_a_clear_error(tmp_path, suffix, whole):
    path = tmp_path / f"text.txt{suffix}"
    data = COMPRESSORS[suffix](bytes(range(1, 100)) * 500)
    path.write_bytes(b"not compressed at all" if whole else data[: len(data) // 2])
    with pytest.raises(ValueError, match=f"is damaged or is no {suffix[1:]} file"):
        read(path)


def test_a_damaged_parquet_file_is_a_clear_error(tmp_path):
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 but not really")
    with pytest.raises(ValueError, match="is damaged or is no parquet file"):
        read(path)


def test_a_file_that_went_away_is_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read(tmp_path / "gone.txt")
