"""Where text comes from: files, folders, globs, hub data sets, or the Python standard library of this machine."""

import glob
import os
import re
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py")
ROW_SUFFIXES = (".jsonl", ".csv", ".parquet")
COMPRESSIONS = (".gz", ".xz", ".zst")

_SUPPORTED = "txt, md, rst, py, jsonl, csv (each also as .gz, .xz or .zst) and parquet"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(:[\w.-]+)?", re.ASCII)
# "notes.pdf" is a missing file, "web-text-v1.2" may be a data set.
_FILE_SUFFIX = re.compile(r"\.[A-Za-z]\w*", re.ASCII)

# Tests, third-party packages and generated tables: not prose and not code that anyone wrote by hand.
_STDLIB_SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data"}
)
_STDLIB_SKIPPED_FILES = frozenset({"html/entities.py"})
_STDLIB_GENERATED_PREFIXES = ("_sysconfigdata", "config-")


@dataclass(frozen=True)
class FileSource:
    """A local file.

    Attributes:
        path: where it is.
        name: what messages call it (relative to the folder it was found in); bytes that are not UTF-8 are escaped.
    """

    path: Path
    name: str

    @property
    def compression(self) -> str:
        """The compression suffix, or an empty string."""
        suffix = self.path.suffix.lower()
        return suffix if suffix in COMPRESSIONS else ""

    @property
    def kind(self) -> str:
        """The format: "text", "jsonl", "csv", "parquet", or "unsupported"."""
        suffixes = [suffix.lower() for suffix in self.path.suffixes]
        if self.compression:
            suffixes.pop()
        last = suffixes[-1] if suffixes else ""
        if last in TEXT_SUFFIXES:
            return "text"
        if last not in ROW_SUFFIXES or (last == ".parquet" and self.compression):
            return "unsupported"
        return last[1:]


@dataclass(frozen=True)
class HubSource:
    """A data set of the Hugging Face hub.

    Attributes:
        name: `name` or `owner/name`.
        config: the configuration of the data set, or None for its default.
    """

    name: str
    config: str | None = None


def find_sources(data: Sequence[str] | None = None) -> list[FileSource | HubSource]:
    """Turn what the user named into files and hub data sets.

    Args:
        data: files, folders (searched recursively), globs, or hub names `owner/name` or `name`, optionally
            `name:config`. None or empty: the Python standard library of this machine.

    Returns:
        The sources, in the order given; files of a folder or glob are sorted, and no file occurs twice.

    Raises:
        ValueError: if something is missing, unsupported, or holds no supported file.
    """
    if not data:
        return list(standard_library())
    found: dict[str, FileSource | HubSource] = {}
    for value in data:
        for source in _resolve(value):
            key = str(source.path.resolve()) if isinstance(source, FileSource) else f"hub:{source.name}:{source.config}"
            found.setdefault(key, source)
    return list(found.values())


def standard_library(root: Path | None = None) -> list[FileSource]:
    """The sources of the Python standard library: real text that is on every machine that runs this.

    Args:
        root: the library's folder; by default that of the running interpreter.

    Returns:
        Its `.py` files, sorted, without tests, third-party packages and generated tables.

    Raises:
        ValueError: if this interpreter carries no sources.
    """
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    sources = [
        source
        for source in _walk(root, _STDLIB_SKIPPED_FOLDERS)
        if source.path.suffix == ".py"
        and source.name not in _STDLIB_SKIPPED_FILES
        and not source.name.startswith(_STDLIB_GENERATED_PREFIXES)
    ]
    if not sources:
        raise ValueError(f"This Python carries no library sources in {root}; name your own text with --data.")
    return sources


def _resolve(value: str) -> list[FileSource] | list[HubSource]:
    path = Path(value).expanduser()
    if not value.strip():
        raise ValueError("An empty name was given as data; expected a file, a folder, a glob or a hub data set name.")
    if path.is_dir():
        return _supported(_walk(path), f"The folder {value}")
    if path.exists():
        if not path.is_file():
            raise ValueError(f"{value} is neither a file nor a folder; expected a file, a folder or a glob.")
        source = _file(path, path.name)
        if source.kind == "unsupported":
            raise ValueError(f"{value} has an extension that is not supported; supported are {_SUPPORTED}.")
        return [source]
    if glob.has_magic(value):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        if not matches:
            raise ValueError(f"The glob {value} matches nothing; quote it and check the folder it starts from.")
        return _supported([_file(match, str(match)) for match in matches if match.is_file()], f"The glob {value}")
    if _HUB_NAME.fullmatch(value) and not _FILE_SUFFIX.fullmatch(path.suffix):
        name, _, config = value.partition(":")
        return [HubSource(name, config or None)]
    raise ValueError(f"{value} does not exist; expected a file, a folder, a glob or a hub data set name.")


def _walk(folder: Path, skipped: frozenset[str] = frozenset({"__pycache__"})) -> list[FileSource]:
    found = []
    for parent, children, names in os.walk(folder):
        children[:] = [name for name in children if not name.startswith(".") and name not in skipped]
        paths = (Path(parent) / name for name in names if not name.startswith("."))
        # A pipe would wait for a writer for ever; a link to nowhere stays, to be reported when it is read.
        regular = (path for path in paths if path.is_file() or not path.exists())
        found += [_file(path, path.relative_to(folder).as_posix()) for path in regular]
    # Sorted, so that the corpus does not depend on the order of the file system.
    return sorted(found, key=lambda source: source.name)


def _file(path: Path, name: str) -> FileSource:
    return FileSource(path, os.fsencode(name).decode("utf-8", "backslashreplace"))


def _supported(sources: list[FileSource], where: str) -> list[FileSource]:
    kept = [source for source in sources if source.kind != "unsupported"]
    if not kept:
        raise ValueError(f"{where} holds no supported file among {len(sources)}; supported are {_SUPPORTED}.")
    return kept
