"""Make the weights of any module scale invariant, without changing what it computes; and back."""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.utils import parametrize

from sibert.conversion.direction import Direction, Granularity
from sibert.conversion.saving import save_as_before, save_plain_weights, take_plain_weights
from sibert.conversion.weights import lists, places

__all__ = ["fold", "make_scale_invariant"]

Patterns = str | Iterable[str]

ROWS: dict[type[nn.Module], tuple[int, tuple[str, ...]]] = {
    nn.Linear: (0, ("weight",)),
    nn.Bilinear: (0, ("weight",)),
    nn.Embedding: (0, ("weight",)),
    nn.EmbeddingBag: (0, ("weight",)),
    nn.Conv1d: (0, ("weight",)),
    nn.Conv2d: (0, ("weight",)),
    nn.Conv3d: (0, ("weight",)),
    nn.ConvTranspose1d: (1, ("weight",)),
    nn.ConvTranspose2d: (1, ("weight",)),
    nn.ConvTranspose3d: (1, ("weight",)),
    nn.MultiheadAttention: (0, ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")),
}
"""The axis of the rows of a module's weights, and their names."""

ORDER = "names_before"
"""Attribute of a module's lists of parametrisations: its parameters in order, which optimizers count by."""


@dataclass(frozen=True)
class Use:
    """A weight in one of the modules that have it.

    Attributes:
        path: Of the module.
        module: The module.
        name: Of the weight in the module.
        axis: That counts its rows; None = not known, so that it cannot be converted there.
    """

    path: str
    module: nn.Module
    name: str
    axis: int | None

    def __str__(self) -> str:
        return f"{self.path}.{self.name}".lstrip(".")


def make_scale_invariant(
    module: nn.Module,
    *,
    granularity: Granularity = "row",
    include: Patterns | None = None,
    exclude: Patterns = (),
) -> nn.Module:
    """Replace weights w by g v / |v|: the same function, and every v may be rescaled on its own.

    What is converted are the matrices, tables and kernels of linear, embedding, convolution and attention layers.
    Gains, biases and norms stay: less than one percent of the parameters of a transformer. Tied weights stay tied.

    Args:
        module: Changed in place, once all checks have passed.
        granularity: "row": one gain for each output neuron, channel or token; "matrix": one for each weight.
        include: Names of parameters or modules, or patterns as `encoder.*`, of what is converted as far as it can be;
            None = everything.
        exclude: Names or patterns of those that stay as they are.

    Returns:
        The module.

    Raises:
        TypeError: If no module is given.
        ValueError: If a pattern matches nothing, there is nothing to convert, a weight is converted already, is used in
            two places that disagree about its rows, or belongs to a layer that cannot have it replaced; nothing has
            changed then.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(module).__name__}")
    if granularity not in ("row", "matrix"):
        raise ValueError(f"granularity is 'row' or 'matrix', got {granularity!r}")
    uses = _uses(module)
    chosen = _chosen(uses, include, exclude)
    for parameter, several in chosen:
        _check(parameter, several)
    for parameter, several in chosen:
        _replace(parameter, several, granularity)
    save_plain_weights(module)
    # It finds nothing to do after `fold`, and the second one nothing after the first.
    module.register_load_state_dict_pre_hook(take_plain_weights)  # type: ignore[no-untyped-call]
    return module


def _uses(module: nn.Module) -> dict[nn.Parameter, list[Use]]:
    """All parameters with the modules that have them."""
    uses: dict[nn.Parameter, list[Use]] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        axis, names = _rows_of(part)
        for name, parameter in part.named_parameters(recurse=False, remove_duplicate=False):
            uses.setdefault(parameter, []).append(Use(path, part, name, axis if name in names else None))
    return uses


def _rows_of(part: nn.Module) -> tuple[int, tuple[str, ...]]:
    for kind, rows in ROWS.items():
        if isinstance(part, kind):
            return rows
    # transformers' linear layer with a transposed weight, known by name: this package has torch alone.
    if type(part).__name__ == "Conv1D" and hasattr(part, "nf"):
        return 1, ("weight",)
    return 0, ()


def _chosen(
    uses: dict[nn.Parameter, list[Use]], include: Patterns | None, exclude: Patterns
) -> list[tuple[nn.Parameter, list[Use]]]:
    names = [str(use) for several in uses.values() for use in several]
    wanted, unwanted = _matching(names, include), _matching(names, exclude) or set()
    chosen = []
    for parameter, several in uses.items():
        named = [str(use) for use in several]
        asked = wanted is not None and any(name in wanted for name in named)
        exact = include is not None and any(name in _listed(include) for name in named)
        if all(use.axis is None for use in several) and not exact:
            continue
        if (wanted is not None and not asked) or all(name in unwanted for name in named):
            continue
        if any(name in unwanted for name in named):
            raise ValueError(f"{named[0]} is one weight with {named[1]}: exclude both or neither")
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(f"{named[0]} has no shape yet: run the module once before it is converted")
        chosen.append((parameter, several))
    if not chosen:
        raise ValueError(
            "there is nothing to convert: the module has no linear, embedding, convolution or attention layer that is "
            "included and not excluded (a module that is converted already has to be folded first)"
        )
    return chosen


def _listed(patterns: Patterns) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns)


def _matching(names: list[str], patterns: Patterns | None) -> set[str] | None:
    if patterns is None:
        return None
    found: set[str] = set()
    for pattern in _listed(patterns):
        matched = {name for name in names if fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")}
        if not matched:
            raise ValueError(f"{pattern!r} matches no parameter; parameters are, for example, {', '.join(names[:4])}")
        found |= matched
    return found


def _check(parameter: nn.Parameter, uses: list[Use]) -> None:
    """Refuse what would be wrong, before anything is changed."""
    first = uses[0]
    for use in uses:
        if isinstance(use.module, nn.RNNBase):
            raise ValueError(f"{use} belongs to a recurrent layer, which keeps its own list of weights; exclude it")
        if isinstance(use.module, parametrize.ParametrizationList):
            raise ValueError(f"{use} is parametrised already: fold it or remove its parametrisation first")
        if use.axis is None:
            raise ValueError(
                f"{use} belongs to a {type(use.module).__name__}, of which nothing is known: convert linear, "
                "embedding, convolution and attention layers only"
            )
        if getattr(use.module, "sparse", False):
            raise ValueError(f"{use} has sparse gradients, but the gradient through a norm is dense; set sparse=False")
        if getattr(use.module, "max_norm", None) is not None:
            raise ValueError(
                f"{use} is renormalised in place by max_norm, which would undo the gain; set max_norm=None"
            )
        if use.axis != first.axis:
            raise ValueError(
                f"{first} and {use} are one weight, but its rows are outputs in one place and inputs in the other: "
                "untie them, or exclude both"
            )
    if not parameter.is_floating_point():
        raise ValueError(f"{first} is {parameter.dtype}; only real floating-point weights have a direction")
    if parameter.numel() == 0 or not bool(torch.isfinite(parameter).all()):
        raise ValueError(f"{first} is empty or has entries that are not finite, so it has no direction")


def _replace(parameter: nn.Parameter, uses: list[Use], granularity: Granularity) -> None:
    shared: nn.Module | None = None
    for use in {(id(use.module), use.name): use for use in uses}.values():
        assert use.axis is not None
        order = list(use.module._parameters)
        parametrize.register_parametrization(use.module, use.name, Direction(granularity, use.axis))
        weights = lists(use.module)
        vars(weights).setdefault(ORDER, order)
        shared = weights[use.name] if shared is None else shared
        weights[use.name] = shared


def fold(module: nn.Module) -> nn.Module:
    """Put plain weights g v / |v| in the place of gains and directions: the same function, as it was before.

    Args:
        module: After `make_scale_invariant`; changed in place.

    Returns:
        The module.

    Raises:
        ValueError: If nothing in it was converted.
    """
    converted = {(id(part), name): (part, name, several) for _, part, name, several in places(module)}
    if not converted:
        raise ValueError("nothing in the module was converted, so there is nothing to fold")
    save_as_before(module)
    folded: dict[int, nn.Parameter] = {}
    for part, name, several in converted.values():
        if id(several) not in folded:
            trained = any(original.requires_grad for original in several.parameters())
            folded[id(several)] = nn.Parameter(several().detach(), requires_grad=trained)
        _put_back(part, name, folded[id(several)])
    return module


def _put_back(part: nn.Module, name: str, weight: nn.Parameter) -> None:
    """Do what torch's `remove_parametrizations` does, for frozen weights and for modules that were copied, too.

    A deep copy shares the class that has the property of the weight, so it is not the class that is changed.
    """
    kind, weights = type(part), lists(part)
    del weights[name]
    if weights:
        own = {key: value for key, value in vars(kind).items() if key not in (name, "__dict__", "__weakref__")}
        part.__class__ = type(kind.__name__, kind.__bases__, own)
    else:
        del part.parametrizations
        part.__class__ = kind.__bases__[0]
    part.register_parameter(name, weight)
    found = part._parameters
    ordered = {key: found[key] for key in (*vars(weights).get(ORDER, ()), *found) if key in found}
    found.clear()
    found.update(ordered)
