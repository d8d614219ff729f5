"""A small real task that needs no download: does the function that a docstring describes return a value?

The texts are the docstrings of the functions of this Python's standard library, the labels are read off their syntax
trees. A module is wholly in one split, and no text is in both.
"""

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from sibert.evaluation.tables import Row

__all__ = ["docstring_rows"]

LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo"})
HELD_OUT = 0.2
"""Share of the modules that are for validation."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def docstring_rows() -> dict[str, list[Row]]:
    """The splits "train" and "validation" of the task, each text once.

    Returns:
        Rows with "text" (the docstring) and "label" ("value" or "nothing").

    Raises:
        ValueError: If this Python came without the source of its library.
    """
    library = Path(sysconfig.get_path("stdlib"))
    files = [file for file in sorted(library.rglob("*.py")) if not LEFT_OUT & set(file.relative_to(library).parts)]
    if len(files) < 10:
        raise ValueError(f"{library} has no source files, so there are no docstrings: take a task with data of its own")
    splits: dict[str, list[Path]] = {"train": [], "validation": []}
    for file in files:
        splits["validation" if _position(file.relative_to(library)) < HELD_OUT else "train"].append(file)
    seen: set[str] = set()
    return {name: list(_rows(several, seen)) for name, several in splits.items()}


def _position(path: Path) -> float:
    """Where a path lies between 0 and 1, the same on every machine."""
    return int.from_bytes(hashlib.sha256(path.as_posix().encode()).digest()[:8]) / 2**64


def _rows(files: list[Path], seen: set[str]) -> Iterator[Row]:
    for file in files:
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if not isinstance(node, Function):
                continue
            text = ast.get_docstring(node)
            if text and text not in seen:
                seen.add(text)
                label = "value" if any(_gives(part) for part in _own(node)) else "nothing"
                yield Row(file, f"line {node.lineno}", {"text": text, "label": label})


def _own(function: Function) -> Iterator[ast.AST]:
    """The nodes of a function's body, those of functions and classes in it left out."""
    pending: list[ast.AST] = [*function.body]
    while pending:
        node = pending.pop()
        if not isinstance(node, Function | ast.ClassDef | ast.Lambda):
            yield node
            pending.extend(ast.iter_child_nodes(node))


def _gives(node: ast.AST) -> bool:
    if isinstance(node, ast.Return):
        return node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None)
    return isinstance(node, ast.Yield | ast.YieldFrom)
