import multiprocessing
import time
from pathlib import Path

import pytest

from sibert.data.cache import build_once, cache_root, content_key

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def test_equal_parts_give_equal_keys_and_others_do_not():
    assert content_key(a=1, b=[2]) == content_key(b=[2], a=1)
    assert content_key(a=1) != content_key(a=2)


def test_the_root_is_the_argument_else_the_variable_else_the_home_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SIBERT_CACHE", str(tmp_path / "variable"))
    assert cache_root(tmp_path / "argument") == tmp_path / "argument"
    assert cache_root() == tmp_path / "variable"
    monkeypatch.delenv("SIBERT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "sibert"


def test_a_folder_is_built_once(tmp_path):
    calls = []

    def build(folder: Path) -> None:
        calls.append(folder)
        (folder / "data").write_text("x")

    for _ in range(2):
        assert (build_once(tmp_path / "key", build) / "data").read_text() == "x"
    assert len(calls) == 1


def test_a_failed_build_leaves_nothing_that_looks_whole(tmp_path):
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        build_once(tmp_path / "key", fail)
    assert not (tmp_path / "key").exists()
    (tmp_path / "key.partial").mkdir()  # what a killed process leaves
    (tmp_path / "key.partial" / "half").write_text("x")
    assert list(build_once(tmp_path / "key", lambda folder: None).iterdir()) == []


def _build_slowly(folder: Path) -> None:
    with (folder.parent / "builders").open("a") as log:
        log.write("x")
    time.sleep(0.2)
    (folder / "data").write_text("whole")


def test_of_several_processes_one_builds_and_the_others_wait(tmp_path):
    processes = [
        multiprocessing.get_context("fork").Process(target=build_once, args=(tmp_path / "key", _build_slowly))
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "builders").read_text() == "x"
    assert (tmp_path / "key" / "data").read_text() == "whole"


def test_an_unwritable_cache_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"cannot be written .* choose another one with cache_dir"):
        build_once(tmp_path / "file" / "key", lambda folder: None)


def test_a_full_disk_is_a_clear_error(tmp_path):
    def fill(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(ValueError, match="the disk is full"):
        build_once(tmp_path / "key", fill)
