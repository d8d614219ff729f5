import os

import pytest

from sibert.data.sources import FileSource, HubSource, find_sources, standard_library


def names(sources):
    return [source.name for source in sources]


@pytest.fixture
def folder(tmp_path):
    for name in ("b.txt", "a.md", "deep/er/c.py", "rows.jsonl.zst", "image.png", ".hidden.txt", "__pycache__/x.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text")
    return tmp_path


def test_a_folder_is_searched_recursively_in_sorted_order_and_unsupported_files_are_left_out(folder):
    assert names(find_sources([str(folder)])) == ["a.md", "b.txt", "deep/er/c.py", "rows.jsonl.zst"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_left_out_of_a_folder_and_refused_by_name(folder):
    os.mkfifo(folder / "pipe.txt")
    assert "pipe.txt" not in names(find_sources([str(folder)]))
    with pytest.raises(ValueError, match=r"pipe\.txt is neither a file nor a folder"):
        find_sources([str(folder / "pipe.txt")])


def test_a_link_to_nowhere_is_found_so_that_reading_it_says_so(folder):
    (folder / "link.txt").symlink_to(folder / "gone.txt")
    assert "link.txt" in names(find_sources([str(folder)]))


def test_bytes_of_a_name_that_are_not_utf8_are_escaped(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt")
    try:
        open(path, "w").close()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    for value in (str(tmp_path), path, str(tmp_path / "*.txt")):
        (source,) = find_sources([value])
        assert source.name.endswith("\\xff.txt")
        assert source.path.is_file()


def test_a_glob_finds_what_it_matches(folder):
    assert [source.path.name for source in find_sources([f"{folder}/**/*.py"])] == ["x.py", "c.py"]


def test_a_file_that_is_named_twice_is_read_once(folder):
    assert len(find_sources([str(folder / "b.txt"), str(folder)])) == 4


@pytest.mark.parametrize(
    ("name", "kind", "compression"),
    [
        ("a.txt", "text", ""),
        ("a.rst", "text", ""),
        ("a.TXT.GZ", "text", ".gz"),
        ("a.csv.xz", "csv", ".xz"),
        ("a.jsonl.zst", "jsonl", ".zst"),
        ("a.parquet", "parquet", ""),
        ("a.parquet.gz", "unsupported", ".gz"),
        ("a.gz", "unsupported", ".gz"),
        ("a.pdf", "unsupported", ""),
        ("a", "unsupported", ""),
    ],
)
def test_the_extension_gives_format_and_compression(tmp_path, name, kind, compression):
    source = FileSource(tmp_path / name, name)
    assert (source.kind, source.compression) == (kind, compression)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("wikitext", HubSource("wikitext")),
        ("owner/name", HubSource("owner/name")),
        ("owner/name-v1.2:config-2", HubSource("owner/name-v1.2", "config-2")),
    ],
)
def test_a_name_that_is_no_path_is_a_hub_data_set(value, expected):
    assert find_sources([value]) == [expected]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("/no/such/folder", "does not exist"),
        ("missing.txt", "does not exist"),
        ("notes.pdf", "does not exist"),
        ("no-such-*.txt", "matches nothing"),
        ("", "empty name"),
    ],
)
def test_what_is_not_there_is_a_clear_error(value, message):
    with pytest.raises(ValueError, match=message):
        find_sources([value])


def test_a_file_of_another_format_is_refused(folder):
    with pytest.raises(ValueError, match=r"image\.png has an extension that is not supported"):
        find_sources([str(folder / "image.png")])


def test_a_folder_without_text_is_refused(tmp_path):
    (tmp_path / "image.png").write_text("")
    with pytest.raises(ValueError, match="holds no supported file among 1"):
        find_sources([str(tmp_path)])


def test_the_default_is_the_standard_library_without_tests_and_tables():
    found = names(find_sources(None))
    assert "argparse.py" in found
    assert "asyncio/base_events.py" in found
    assert found == sorted(found)
    for part in ("test", "tests", "encodings", "site-packages", "pydoc_data", "idle_test"):
        assert not any(part in name.split("/") for name in found)


def test_a_python_without_sources_is_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match="carries no library sources"):
        standard_library(tmp_path)
