"""Rules by operation."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Apply = Callable[..., Any]


@dataclass(frozen=True)
class Rule:
    """What an operation does to degrees.

    Attributes:
        operation: Its name without overload, `aten.relu`.
        family: The file that has the rule.
        reason: The mathematics, in one clause.
        apply: From the `Operation` and its arguments (tensors as `Edge`s) to the result's edge or edges.
        is_pointwise: Entry by entry, so a few possible values of its arguments give a few of its result.
    """

    operation: str
    family: str
    reason: str
    apply: Apply
    is_pointwise: bool = False


RULES: dict[str, Rule] = {}


def rule(*operations: str, reason: str, is_pointwise: bool = False) -> Callable[[Apply], Apply]:
    """Register a function as the rule of some operations of ATen."""

    def register(apply: Apply) -> Apply:
        put(operations, apply.__module__.rsplit(".", 1)[-1], reason, apply, is_pointwise)
        return apply

    return register


def put(operations: Iterable[str], family: str, reason: str, apply: Apply, is_pointwise: bool = False) -> None:
    """Register a rule; an operation has one."""
    for operation in operations:
        name = operation if "." in operation else f"aten.{operation}"
        assert name not in RULES, name
        RULES[name] = Rule(name, family, reason, apply, is_pointwise)


def as_table() -> str:
    """All rules as Markdown, by family; operations with the same reason in one row."""
    rows: dict[tuple[str, str], list[str]] = {}
    for one in sorted(RULES.values(), key=lambda one: (one.family, one.operation)):
        rows.setdefault((one.family, one.reason), []).append(f"`{one.operation.removeprefix('aten.')}`")
    lines = [
        f"| {family} | {', '.join(names)} | {reason.replace('|', chr(92) + '|')} |"
        for (family, reason), names in rows.items()
    ]
    return "\n".join(["| family | operations | reason |", "|---|---|---|", *lines])
