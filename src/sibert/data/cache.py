"""Content-addressed folders: the name of a folder is a hash of everything that its contents depend on."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from filelock import FileLock

# Part of every key: raise it when the layout or the meaning of cached data changes.
FORMAT_VERSION = 2

_BLOCK_BYTES = 1 << 20


def cache_root(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Folder under which prepared data is kept.

    Args:
        cache_dir: an explicit folder; otherwise the environment variable `SIBERT_CACHE`, otherwise `~/.cache/sibert`.

    Returns:
        The folder's path, absolute; it need not exist yet.
    """
    chosen = cache_dir or os.environ.get("SIBERT_CACHE") or Path.home() / ".cache" / "sibert"
    return Path(chosen).expanduser().absolute()


def content_key(**parts: Any) -> str:
    """Hash of named, JSON-serialisable parts: equal parts, equal key, in every process and on every machine.

    Args:
        **parts: whatever the cached data depends on.

    Returns:
        32 hexadecimal digits.
    """
    text = json.dumps({"format": FORMAT_VERSION, **parts}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """Hash of a file's bytes, read in blocks.

    Args:
        path: the file.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Make `folder` unless it is there, also when several processes ask at once.

    The contents are built under a temporary name and renamed, so that a folder under its final name is always whole;
    a lock lets the other processes wait for the first one instead of repeating its work.

    Args:
        folder: the final path; its name should be a `content_key`.
        build: writes the contents into the (existing, empty) folder it is given.

    Returns:
        `folder`.

    Raises:
        ValueError: if the cache cannot be written (permissions, full disk).
    """
    if folder.is_dir():
        return folder
    partial = folder.with_name(folder.name + ".partial")
    with _writable(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(folder) + ".lock"):
            if folder.is_dir():
                return folder
            # Whoever holds the lock is alone here: a partial folder is what a killed process left behind.
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                build(partial)
                partial.rename(folder)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    return folder


def save_batches(folder: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write record batches as a data set that `datasets.load_from_disk` maps into memory.

    Args:
        folder: where the data set goes.
        schema: the columns.
        batches: the rows, never held in memory together.
    """
    stream_path = folder.with_name(folder.name + ".arrow")
    with pa.OSFile(str(stream_path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    with quiet_progress():
        datasets.Dataset.from_file(str(stream_path)).save_to_disk(str(folder))
    stream_path.unlink()


def load_rows(folder: Path) -> Any:
    """The memory-mapped data set that `save_batches` wrote.

    Args:
        folder: where the data set is.

    Returns:
        A `datasets.Dataset`.
    """
    return datasets.load_from_disk(str(folder), keep_in_memory=False)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a small JSON object, readable by people.

    Args:
        path: the file.
        value: the object.
    """
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Args:
        path: the file.

    Returns:
        The object.
    """
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


@contextmanager
def quiet_progress() -> Iterator[None]:
    """Switch the progress bars of `datasets` off, and back to what they were afterwards."""
    were_off = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            datasets.enable_progress_bars()


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error))
        raise ValueError(
            f"The cache folder {folder} cannot be written ({reason}); "
            "choose another one with cache_dir or the environment variable SIBERT_CACHE."
        ) from error
