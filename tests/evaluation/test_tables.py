"""Tables are read row by row, and every mistake has its place."""

import gzip
import json
import lzma
import re

import pyarrow as pa
import pyarrow.parquet
import pytest

from sibert.evaluation.tables import read_rows, table_format

ROWS = [{"text": 'she said "hi", twice', "label": "1"}, {"text": "two\nlines — ü", "label": "0"}]


def written(folder, name):
    file = folder / name
    separator = "\t" if ".tsv" in name else ","
    lines = [separator.join(["text", "label"])]
    lines += [separator.join('"' + row[c].replace('"', '""') + '"' for c in ("text", "label")) for row in ROWS]
    if ".jsonl" in name:
        lines = [json.dumps(row) for row in ROWS]
    data = ("\n".join(lines) + "\n").encode()
    if name.endswith("parquet"):
        pa.parquet.write_table(pa.Table.from_pylist(ROWS), file)
    elif name.endswith(".gz"):
        file.write_bytes(gzip.compress(data))
    elif name.endswith(".xz"):
        file.write_bytes(lzma.compress(data))
    elif name.endswith(".zst"):
        with pa.output_stream(str(file), compression="zstd") as stream:
            stream.write(data)
    else:
        file.write_bytes(data)
    return file


@pytest.mark.parametrize(
    "name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet", "a.csv.gz", "a.jsonl.xz", "a.v2.tsv.zst", "A.CSV"]
)
def test_every_format_gives_the_same_rows(tmp_path, name):
    assert [row.values for row in read_rows(written(tmp_path, name))] == ROWS


def test_places(tmp_path):
    assert [row.place for row in read_rows(written(tmp_path, "a.csv"))] == ["row 2", "row 3"]
    assert [row.place for row in read_rows(written(tmp_path, "a.jsonl"))] == ["line 1", "line 2"]
    assert [row.place for row in read_rows(written(tmp_path, "a.parquet"))] == ["row 1", "row 2"]


def test_a_byte_order_mark_and_numbers_are_no_trouble(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbftext,label\r\n007,1.50\r\n,\r\n")
    assert [row.values for row in read_rows(tmp_path / "a.csv")] == [
        {"text": "007", "label": "1.50"},
        {"text": "", "label": ""},
    ]


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        (b"\ntext,label\nx,1\n", [{"text": "x", "label": "1"}]),
        (b'text,"the\nlabel"\nx,1\n', [{"text": "x", "the\nlabel": "1"}]),
        (b"text,,\nx,,\n", [{"text": "x", "": ""}]),
    ],
)
def test_headers(data, rows, tmp_path):
    (tmp_path / "a.csv").write_bytes(data)
    assert [row.values for row in read_rows(tmp_path / "a.csv")] == rows


def test_a_long_text(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"' + "film " * 400_000 + '",1\nx,0\n')
    assert [len(row.values["text"]) for row in read_rows(tmp_path / "a.csv")] == [2_000_000, 1]


def test_an_empty_line_is_a_row_where_a_row_is_one_text(tmp_path):
    for name, plain in (("a.csv", False), ("a.tsv", True)):
        (tmp_path / name).write_text("text\nfine\n\nbad\n\n\n")
        rows = [(row.place, row.values) for row in read_rows(tmp_path / name, plain=plain)]
        assert rows == [("row 2", {"text": "fine"}), ("row 3", {"text": ""}), ("row 4", {"text": "bad"})]
    (tmp_path / "a.csv").write_text("text,label\nfine,1\n\nbad,0\n\n")
    assert [row.values["text"] for row in read_rows(tmp_path / "a.csv")] == ["fine", "bad"]


def test_plain_lines(tmp_path):
    (tmp_path / "a.txt").write_text('\ufeffone\ttwo\n"quoted\tand\tmore\nshort\n\n')
    rows = list(read_rows(tmp_path / "a.txt", plain=True))
    assert [row.values for row in rows] == [{"one": '"quoted', "two": "and"}, {"one": "short"}]


def test_nothing_is_read_before_it_is_needed(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\nnot json\n')
    rows = read_rows(tmp_path / "a.jsonl")
    assert next(rows).values == {"text": "good"}


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("no.csv", None, "no.csv does not exist"),
        ("a.xlsx", b"x", "is no table that can be read; supported are csv, tsv, jsonl, parquet"),
        ("a.csv", b"", "a.csv is empty"),
        ("a.csv", b"body,label\nx,1\n", "no column 'text'; columns found: body, label"),
        ("a.csv", b"text,label\nx,1\ny\n", "row 3: 1 values, expected 2"),
        ("a.csv", b"text,label,text\nx,1,y\n", "a.csv has two columns 'text': rename one of them"),
        ("a.tsv", b"text\ttext\nx\ty\n", "a.tsv has two columns 'text'"),
        ("a.csv", "text,label\nx,1\n".encode("utf-16"), "a.csv is not valid UTF-8 (byte 0xff); save it as UTF-8"),
        ("a.csv", b"text,label\nx,1\n\xff,2\n", "row 3, column 'text': not valid UTF-8 (byte 0xff)"),
        ("a.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', "line 2: no column 'text'; columns found: txt"),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', "line 2: expected a JSON object, got list"),
        ("a.jsonl", b'{"text": "a"\n', "line 1: not valid JSON"),
        ("a.jsonl", b'{"text": ' + b"[" * 10**5 + b"]" * 10**5 + b"}\n", "line 1: the JSON is nested too deeply"),
        ("a.jsonl", b'{"text": "fine \\ud800 film"}\n', r"line 1: \ud800 is half of a character"),
        ("a.jsonl", b'{"text": "\xff"}\n', "line 1: not valid UTF-8"),
        ("a.parquet", b"PAR1 no", "a.parquet is damaged or is no parquet file"),
        ("a.csv.gz", b"no gzip", "is damaged or is no csv file"),
        ("a.jsonl.xz", lzma.compress(b'{"text": "a"}\n' * 999)[:-20], "is damaged or is no jsonl file"),
    ],
)
def test_mistakes_have_a_place(tmp_path, name, data, message):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        list(read_rows(tmp_path / name, required=["text"]))
    assert str(tmp_path / name) in str(error.value)


def test_formats():
    from pathlib import Path

    assert table_format(Path("my.data.CSV.GZ")) == "csv"
    with pytest.raises(ValueError, match="no table"):
        table_format(Path("a.parquet.gz"))
