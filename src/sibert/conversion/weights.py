"""What is converted in a module."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from sibert.conversion.direction import Direction

__all__ = ["Converted", "converted_weights", "lists", "places"]


@dataclass(frozen=True)
class Converted:
    """A weight that was converted.

    Attributes:
        names: Of the weight in all its places, before the conversion.
        gain: [R] or [].
        direction: v [R, ...].
        parametrisation: Which has the granularity.
    """

    names: tuple[str, ...]
    gain: nn.Parameter
    direction: nn.Parameter
    parametrisation: Direction


def converted_weights(module: nn.Module) -> list[Converted]:
    """All weights of a module that were converted, tied ones once.

    Args:
        module: After `make_scale_invariant`.
    """
    found: dict[int, tuple[list[str], Any]] = {}
    for path, _, name, several in places(module):
        names, _ = found.setdefault(id(several), ([], several))
        names.append(f"{path}.{name}".lstrip("."))
    return [
        Converted(tuple(names), several.original0, several.original1, several[0]) for names, several in found.values()
    ]


def places(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, Any]]:
    """Path, module, name and list of parametrisations of every converted weight, shared ones under each path."""
    for path, part in module.named_modules(remove_duplicate=False):
        if not parametrize.is_parametrized(part):
            continue
        for name, several in lists(part).items():
            assert isinstance(several, parametrize.ParametrizationList)
            if len(several) == 1 and isinstance(several[0], Direction):
                yield path, part, name, several


def lists(module: nn.Module) -> nn.ModuleDict:
    """The lists of parametrisations of a module, by the names of its weights."""
    found = module.parametrizations
    assert isinstance(found, nn.ModuleDict)
    return found
