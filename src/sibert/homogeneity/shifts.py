"""Which shifts a tensor of the graph may undergo without changing an output.

A softmax ignores what is constant along its axis, a layer norm what is constant along the axes it normalises. So the
bias of the keys (constant along the keys) does not reach the output of an attention, whatever its scale, nor does a
bias before a batch norm. For each tensor we go back from its users and keep sets of axes: adding anything constant
along all axes of such a set changes no output. A set stands for all that hold it.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any

from torch import Tensor, fx

from .degree import matching_axes
from .graph import operation_name

Sets = frozenset[frozenset[int]]
NONE: Sets = frozenset()
ALL: Sets = frozenset({frozenset()})
"""Nothing of the tensor matters."""


def ignored_shifts(nodes: Sequence[fx.Node], outputs: Mapping[str, fx.Node]) -> dict[fx.Node, Sets]:
    """The sets of axes of each tensor.

    Args:
        nodes: In the order in which they run.
        outputs: All of which everything matters.
    """
    kept = set(nodes)
    ends = set(outputs.values())
    ignored: dict[fx.Node, Sets] = {}
    for node in reversed(nodes):
        sets = NONE if node in ends else ALL
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or not value.is_floating_point():  # rounding does not keep a shift
            ignored[node] = NONE
            continue
        centred = _centred(node, kept)
        for user in node.users:
            if user not in kept or user in centred:
                continue
            for position, argument in enumerate(user.args):
                if argument is node:
                    sets = _both(sets, _through(user, position, ignored.get(user, NONE)))
                elif isinstance(argument, list | tuple) and node in argument:
                    sets = NONE
            if node in user.kwargs.values():
                sets = NONE
        for user, axes in centred.items():
            if operation_name(user.target) == "aten.sub":
                sets = _both(sets, ignored.get(user, NONE) | {axes})
        ignored[node] = sets
    return ignored


def _both(one: Sets, other: Sets) -> Sets:
    """What both ignore: constant along the axes of a set of each."""
    unions = {a | b for a in one for b in other}
    return frozenset(a for a in unions if not any(b < a for b in unions))


def _centred(node: fx.Node, kept: set[fx.Node]) -> dict[fx.Node, frozenset[int]]:
    """Users that together are x - mean(x): the mean and the difference, with the axes of the mean."""
    found = {}
    for mean in node.users:
        if operation_name(mean.target) != "aten.mean" or len(mean.args) < 3 or not mean.args[2] or mean not in kept:
            continue
        users = [user for user in mean.users if user in kept]
        dims = mean.args[1] if isinstance(mean.args[1], list | tuple) else [mean.args[1]]
        axes = frozenset(int(dim) % len(node.meta["val"].shape) for dim in dims)  # type: ignore[arg-type, call-overload]
        if all(operation_name(user.target) == "aten.sub" and user.args == (node, mean) for user in users):
            found[mean] = axes
            found |= dict.fromkeys(users, axes)
    return found


# How an operation hands on what its result ignores ---------------------------------------------------------------


def _rank(value: Any) -> int:
    return len(value.meta["val"].shape)


def _axes(value: Any, dims: Any) -> frozenset[int]:
    several = dims if isinstance(dims, list | tuple) else [dims]
    return frozenset(int(dim) % max(_rank(value), 1) for dim in several)


def _own_axis(node: fx.Node, position: int, sets: Sets) -> Sets:
    """Softmax and variance: along an axis or some."""
    if position:
        return NONE
    dims = node.args[1] if len(node.args) > 1 else None
    if dims is None or isinstance(dims, bool) or dims == []:  # in `var(x, unbiased)`, the second is no axis
        dims = list(range(_rank(node.args[0])))
    return frozenset({_axes(node.args[0], dims)})


def _last_axes(node: fx.Node, position: int, sets: Sets) -> Sets:
    rank = _rank(node.args[0])
    if position or any(_is_statistic(user) for user in node.users):
        return NONE
    return frozenset({frozenset(range(rank - len(node.args[1]), rank))})  # type: ignore[arg-type]


def _all_but_channels(node: fx.Node, position: int, sets: Sets) -> Sets:
    name = operation_name(node.target)
    rank = _rank(node.args[0])
    is_training = {"aten.batch_norm": 5, "aten._native_batch_norm_legit_functional": 5, "aten.instance_norm": 5}
    if position or not node.args[is_training[name]] or any(_is_statistic(user) for user in node.users):
        return NONE
    axes = range(2, rank) if name == "aten.instance_norm" else [axis for axis in range(rank) if axis != 1]
    return frozenset({frozenset(axes)})


def _is_statistic(user: fx.Node) -> bool:
    """A mean or variance beside the normalised tensor, which somebody uses."""
    return user.target is operator.getitem and bool(user.args[1] != 0) and bool(user.users)


def _group_norm(node: fx.Node, position: int, sets: Sets) -> Sets:
    rank, channels = _rank(node.args[0]), node.args[0].meta["val"].shape[1]  # type: ignore[union-attr]
    first = 2 if node.args[1] == channels else 1
    return NONE if position else frozenset({frozenset(range(first, rank))})


def _attention(node: fx.Node, position: int, sets: Sets) -> Sets:
    """The softmax runs along the keys."""
    return frozenset({frozenset({_rank(node.args[1]) - 2})}) if position == 1 else NONE


def _same(node: fx.Node, position: int, sets: Sets) -> Sets:
    return sets if position == 0 else NONE


def _broadcast(node: fx.Node, position: int, sets: Sets) -> Sets:
    """Sums: an argument lacks the axes along which it is broadcast, and is constant along them."""
    argument = node.args[position]
    front = _rank(node) - _rank(argument)
    shape = argument.meta["val"].shape  # type: ignore[union-attr]
    moved = {frozenset(a - front for a in axes if a >= front and shape[a - front] > 1) for axes in sets}
    return frozenset(moved)


def _product(node: fx.Node, position: int, sets: Sets) -> Sets:
    """A product with what is constant along the axes."""
    other = node.args[1 - position]
    if isinstance(other, fx.Node):
        front = _rank(node) - _rank(other)
        shape = other.meta["val"].shape
        sets = frozenset(axes for axes in sets if all(a < front or shape[a - front] == 1 for a in axes))
    return _broadcast(node, position, sets) if isinstance(node.args[position], fx.Node) else NONE


def _filled(node: fx.Node, position: int, sets: Sets) -> Sets:
    """Entries that are set to -inf stay so."""
    return _broadcast(node, 0, sets) if position == 0 and node.args[2] == -inf else NONE


def _linear(node: fx.Node, position: int, sets: Sets) -> Sets:
    last = _rank(node) - 1
    return frozenset(axes for axes in sets if last not in axes) if position == 0 else NONE


def _matmul(node: fx.Node, position: int, sets: Sets) -> Sets:
    """Constant along the rows of the first or the columns of the second argument, and where the other has no batch."""
    rank = _rank(node)
    if any(_rank(argument) != rank for argument in node.args[:2]) or rank < 2:
        return NONE
    shape = node.args[1 - position].meta["val"].shape  # type: ignore[union-attr]
    lost = {rank - 1 if position == 0 else rank - 2, *(axis for axis in range(rank - 2) if shape[axis] > 1)}
    return frozenset(axes for axes in sets if not axes & lost)


def _reshaped(node: fx.Node, position: int, sets: Sets) -> Sets:
    old, new = node.args[0].meta["val"].shape, node.meta["val"].shape  # type: ignore[union-attr]
    moved = set()
    for axes in sets:
        target: set[int] = set()
        left = set(axes)
        for before, after in matching_axes(tuple(old), tuple(new)):
            group = {a for a in after if new[a] > 1}
            if group and group <= axes:
                target.update(before)
                left -= set(after)
            left -= {a for a in after if new[a] == 1}
        if not left:
            moved.add(frozenset(target))
    return frozenset(moved)


def _permuted(node: fx.Node, position: int, sets: Sets) -> Sets:
    rank = _rank(node)
    if operation_name(node.target) == "aten.permute":
        order = [int(dim) % rank for dim in node.args[1]]  # type: ignore[union-attr, arg-type]
    elif operation_name(node.target) == "aten.t":
        order = list(range(rank))[::-1]
    else:
        order = list(range(rank))
        a, b = int(node.args[1]) % rank, int(node.args[2]) % rank  # type: ignore[arg-type]
        order[a], order[b] = order[b], order[a]
    return frozenset(frozenset(order[axis] for axis in axes) for axes in sets)


def _selected(node: fx.Node, position: int, sets: Sets) -> Sets:
    axis = int(node.args[1]) % (_rank(node) + 1)  # type: ignore[arg-type]
    return frozenset(frozenset(a + (a >= axis) for a in axes) for axes in sets)


Through = Callable[[fx.Node, int, Sets], Sets]
THROUGH: dict[str, Through] = {
    **dict.fromkeys(["softmax", "_softmax", "log_softmax", "_log_softmax", "var", "std"], _own_axis),
    **dict.fromkeys(["layer_norm", "native_layer_norm"], _last_axes),
    **dict.fromkeys(["batch_norm", "_native_batch_norm_legit_functional", "instance_norm"], _all_but_channels),
    "group_norm": _group_norm,
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(["clone", "contiguous", "_to_copy", "alias", "detach", "neg", "slice"], _same),
    **dict.fromkeys(["add", "sub", "expand"], _broadcast),
    "mul": _product,
    "div": lambda node, position, sets: _product(node, position, sets) if position == 0 else NONE,
    "masked_fill": _filled,
    "linear": _linear,
    **dict.fromkeys(["matmul", "bmm", "mm"], _matmul),
    **dict.fromkeys(["view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze"], _reshaped),
    **dict.fromkeys(["permute", "transpose", "t"], _permuted),
    "select": _selected,
}


def _through(node: fx.Node, position: int, sets: Sets) -> Sets:
    """What the argument at a position may undergo, from what the result may."""
    hand_on = THROUGH.get(operation_name(node.target).removeprefix("aten."))
    return NONE if hand_on is None else hand_on(node, position, sets)
