"""Whole checkpoints: which of a run's checkpoints were written to the end, and are still what was written.

A checkpoint is whole once `complete.json` lies in it. That file is written last, under a temporary name that is then
renamed, and lists size and checksum of every other file. A process killed in mid-write leaves no such file, so what it
left is never taken for a checkpoint.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import xxhash

__all__ = [
    "COMPLETE",
    "discard_after",
    "discard_oldest",
    "latest_checkpoint",
    "mark_complete",
    "verify",
    "write_atomically",
]

COMPLETE = "complete.json"
CHUNK_BYTES = 1 << 20


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that it is either there as a whole or not at all.

    Args:
        path: Where to.
        text: What.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def mark_complete(checkpoint: Path) -> None:
    """Declare a checkpoint whole, after everything else was written.

    Args:
        checkpoint: The folder.
    """
    files = {
        path.relative_to(checkpoint).as_posix(): {"bytes": path.stat().st_size, "xxh3_128": _checksum(path)}
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != COMPLETE
    }
    write_atomically(checkpoint / COMPLETE, json.dumps({"files": files}, indent=2) + "\n")


def verify(checkpoint: Path) -> str | None:
    """Check a checkpoint against its list of files.

    Args:
        checkpoint: The folder.

    Returns:
        None if it is whole, else what is wrong with it, as part of a sentence.
    """
    try:
        files = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return "it was not written to the end"
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError):
        return f"its {COMPLETE} is damaged"
    for name, expected in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
        if _checksum(path) != expected["xxh3_128"]:
            return f"the contents of {name} have changed"
    return None


def _numbered(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.glob("checkpoint-*") if folder.is_dir() else ():
        if match := re.fullmatch(r"checkpoint-(\d+)", path.name):
            yield int(match[1]), path


def latest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """Find the latest whole checkpoint.

    Args:
        folder: The `checkpoints` folder of a run.

    Returns:
        The checkpoint, or None if there is no whole one, and a sentence for each later one that was passed over.
    """
    passed_over: list[str] = []
    for _, path in sorted(_numbered(folder), reverse=True):
        problem = verify(path)
        if problem is None:
            return path, passed_over
        passed_over.append(f"{path} is not used: {problem}")
    return None, passed_over


def discard_after(folder: Path, step: int) -> None:
    """Remove what was written after a step, whole or not: the resumed run writes it again.

    Args:
        folder: The `checkpoints` folder of a run.
        step: Number of the checkpoint that is kept.
    """
    for number, path in _numbered(folder):
        if number > step:
            shutil.rmtree(path)


def discard_oldest(folder: Path, keep: int, spared: Path | None = None) -> None:
    """Remove all but the latest checkpoints.

    Args:
        folder: The `checkpoints` folder of a run.
        keep: How many are left; the latest one always is.
        spared: One of them that is kept whatever its age, beside the latest.
    """
    latest, *others = sorted(_numbered(folder), reverse=True)
    kept = {latest[1].name} | ({spared.name} if spared else set())
    for _, path in others:
        if len(kept) < keep:
            kept.add(path.name)
        elif path.name not in kept:
            shutil.rmtree(path)
