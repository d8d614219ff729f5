"""The degree of a tensor: one linear form for all its entries, or forms that differ along some of its axes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .linear_form import LinearForm

Labels = NDArray[np.int64] | None
Forms = NDArray[Any]


@dataclass(frozen=True)
class Degree:
    """Degrees of the entries of a tensor: entry i has the form `forms[labels[0][i_0], labels[1][i_1], ...]`.

    An axis along which the degree does not change has labels None, and length 1 in `forms`. Labels are classes of
    indices, 0, 1, ...; so a row of a matrix can have a degree of its own without a form for each entry.
    """

    forms: Forms
    labels: tuple[Labels, ...]

    @classmethod
    def uniform(cls, form: LinearForm, rank: int) -> "Degree":
        """The same form for all entries."""
        forms = np.empty((1,) * rank, dtype=object)
        forms[...] = form
        return cls(forms, (None,) * rank)

    @classmethod
    def simplest(cls, forms: Forms, labels: Sequence[Labels]) -> "Degree":
        """Classes of equal forms made one."""
        kept: list[Labels] = list(labels)
        for axis, label in enumerate(labels):
            if label is None:
                continue
            slices = [tuple(np.take(forms, [i], axis).flat) for i in range(forms.shape[axis])]
            names = {one: number for number, one in reversed(list(enumerate(dict.fromkeys(slices))))}
            if len(names) < len(slices):
                first = [slices.index(one) for one in dict.fromkeys(slices)]
                forms = np.take(forms, first, axis)
            kept[axis] = None if len(names) == 1 else np.array([names[one] for one in slices])[label]
        return cls(forms, tuple(kept))

    @property
    def rank(self) -> int:
        """How many axes the tensor has."""
        return len(self.labels)

    @property
    def is_uniform(self) -> bool:
        """All entries have the same form."""
        return self.forms.size == 1

    @property
    def form(self) -> LinearForm:
        """The form of a uniform degree."""
        assert self.is_uniform
        form = self.forms.flat[0]
        assert isinstance(form, LinearForm)
        return form

    def varies(self, axis: int) -> bool:
        """It is not the same along this axis."""
        return self.labels[axis] is not None

    def map(self, function: Callable[[LinearForm], LinearForm]) -> "Degree":
        """A function of each form."""
        forms = np.empty_like(self.forms)
        forms.reshape(-1)[:] = [function(form) for form in self.forms.flat]
        return Degree.simplest(forms, self.labels)

    def __mul__(self, factor: Any) -> "Degree":
        return self.map(lambda form: form * factor)

    def __add__(self, other: "Degree") -> "Degree":
        return combine(self, other, LinearForm.__add__)

    def __sub__(self, other: "Degree") -> "Degree":
        return combine(self, other, LinearForm.__sub__)

    # Axes ------------------------------------------------------------------------------------------------------

    def permute(self, order: Sequence[int]) -> "Degree":
        """Axes in another order."""
        return Degree(self.forms.transpose(order), tuple(self.labels[axis] for axis in order))

    def insert(self, axis: int) -> "Degree":
        """One more axis, along which nothing changes."""
        return Degree(np.expand_dims(self.forms, axis), (*self.labels[:axis], None, *self.labels[axis:]))

    def lift(self, rank: int) -> "Degree":
        """More axes in front, as in broadcasting."""
        missing = rank - self.rank
        return Degree(self.forms.reshape((1,) * missing + self.forms.shape), (None,) * missing + self.labels)

    def take(self, axis: int, index: NDArray[np.int64]) -> "Degree":
        """The entries at these indices of an axis."""
        label = self.labels[axis]
        if label is None:
            return self
        return _renumbered(self.forms, self.labels, axis, label[index])

    def select(self, axis: int, index: int) -> "Degree":
        """One index of an axis, which goes away."""
        one = self.take(axis, np.array([index]))
        assert one.labels[axis] is None
        return Degree(np.squeeze(one.forms, axis), one.labels[:axis] + one.labels[axis + 1 :])

    def drop(self, axis: int) -> "Degree":
        """An axis along which nothing changes goes away."""
        assert self.labels[axis] is None
        return Degree(np.squeeze(self.forms, axis), self.labels[:axis] + self.labels[axis + 1 :])

    def spread(self, axis: int) -> tuple["Degree", list[LinearForm]]:
        """Make it the same along an axis.

        Returns:
            The degree of the first class for all, and the differences that have to vanish for it.
        """
        if self.labels[axis] is None:
            return self, []
        first = np.take(self.forms, [0], axis)
        differences = [form for form in (self.forms - first).flat if form]
        return Degree(first, (*self.labels[:axis], None, *self.labels[axis + 1 :])), differences

    def reshape(self, before: Sequence[int], after: Sequence[int]) -> "Degree":
        """As `torch.reshape` from one shape to another."""
        forms, labels = self.forms, list(self.labels)
        result: list[Labels] = []
        position = 0  # in `forms`
        for old, new in matching_axes(before, after):
            group = labels[old.start : old.stop]
            classes = forms.shape[position : position + len(group)]
            rest = forms.shape[:position], forms.shape[position + len(group) :]
            if all(label is None for label in group):
                forms = forms.reshape(rest[0] + (1,) * len(new) + rest[1])
                result += [None] * len(new)
            else:
                code = _code(group, classes, before[old.start : old.stop]).reshape(after[new.start : new.stop])
                flat = forms.reshape((*rest[0], prod(classes), *rest[1]))
                split, representatives = _split(code)
                forms = np.take(flat, representatives.reshape(-1), position)
                forms = forms.reshape(rest[0] + representatives.shape + rest[1])
                result += split
            position += len(new)
        return Degree.simplest(forms, result)


def _renumbered(forms: Forms, labels: Sequence[Labels], axis: int, label: NDArray[np.int64]) -> Degree:
    present, numbers = np.unique(label, return_inverse=True)
    kept = list(labels)
    kept[axis] = numbers.reshape(-1) if len(present) > 1 else None
    return Degree.simplest(np.take(forms, present, axis), kept)


def _code(group: Sequence[Labels], classes: Sequence[int], sizes: Sequence[int]) -> NDArray[np.int64]:
    """The number of the class of each entry of several axes taken together."""
    code = np.zeros((1,) * len(sizes), dtype=np.int64)
    for axis, (label, count, size) in enumerate(zip(group, classes, sizes, strict=True)):
        own = np.zeros(size, dtype=np.int64) if label is None else label
        code = code * count + own.reshape([-1 if i == axis else 1 for i in range(len(sizes))])
    return code


def _split(code: NDArray[np.int64]) -> tuple[list[Labels], NDArray[np.int64]]:
    """Labels of each axis of an array of classes, and the class for each tuple of labels."""
    labels: list[Labels] = []
    first: list[NDArray[np.int64]] = []
    for axis in range(code.ndim):
        slices = np.moveaxis(code, axis, 0).reshape(code.shape[axis], -1)
        _, index, numbers = np.unique(slices, axis=0, return_index=True, return_inverse=True)
        labels.append(numbers.reshape(-1) if len(index) > 1 else None)
        first.append(index)
    return labels, code[np.ix_(*first)]


def matching_axes(before: Sequence[int], after: Sequence[int]) -> list[tuple[range, range]]:
    """The finest division of the axes of two shapes into groups with equally many entries, in order."""
    if 0 in before:
        return [(range(len(before)), range(len(after)))]
    groups, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        start, other = i, j
        size = size_after = 1
        if i < len(before):
            size, i = before[i], i + 1
        if j < len(after):
            size_after, j = after[j], j + 1
        while size != size_after:
            if (size < size_after or j == len(after)) and i < len(before):
                size, i = size * before[i], i + 1
            else:
                size_after, j = size_after * after[j], j + 1
        groups.append((range(start, i), range(other, j)))
    return groups


def combine(a: Degree, b: Degree, operation: Callable[[LinearForm, LinearForm], LinearForm]) -> Degree:
    """An operation on the forms of two tensors, entry by entry, with broadcasting."""
    forms_a, forms_b, labels = aligned(a, b)
    shape = np.broadcast_shapes(forms_a.shape, forms_b.shape)
    forms = np.empty(shape, dtype=object)
    pairs = zip(np.broadcast_to(forms_a, shape).flat, np.broadcast_to(forms_b, shape).flat, strict=True)
    forms.reshape(-1)[:] = [operation(x, y) for x, y in pairs]
    return Degree.simplest(forms, labels)


def aligned(a: Degree, b: Degree) -> tuple[Forms, Forms, list[Labels]]:
    """The forms of both for the same labels, which are as fine as needed."""
    rank = max(a.rank, b.rank)
    a, b = a.lift(rank), b.lift(rank)
    (forms_a, forms_b), labels = _refined([a, b], range(rank))
    return forms_a, forms_b, labels


def _refined(degrees: Sequence[Degree], axes: Sequence[int]) -> tuple[list[Forms], list[Labels]]:
    """The forms of each for common labels along some axes; labels of other axes are those of the first."""
    forms = [degree.forms for degree in degrees]
    labels = list(degrees[0].labels)
    for axis in axes:
        varying = [i for i, degree in enumerate(degrees) if degree.varies(axis)]
        if not varying:
            continue
        several = np.stack([cast(Any, degrees[i].labels[axis]) for i in varying])
        classes, numbers = np.unique(several, axis=1, return_inverse=True)
        labels[axis] = numbers.reshape(-1)
        for i, own in zip(varying, classes, strict=True):
            forms[i] = np.take(forms[i], own, axis)
    return forms, labels


def concatenate(degrees: Sequence[Degree], sizes: Sequence[int], axis: int) -> Degree:
    """Tensors one after another along an axis: each part keeps its degree.

    Args:
        degrees: Of the parts.
        sizes: Lengths of the parts along the axis.
        axis: Not negative.
    """
    forms, labels = _refined(degrees, [i for i in range(degrees[0].rank) if i != axis])
    shape = np.broadcast_shapes(*(one.shape[:axis] + one.shape[axis + 1 :] for one in forms))
    parts, numbers, count = [], [], 0
    for degree, one, size in zip(degrees, forms, sizes, strict=True):
        label = degree.labels[axis]
        parts.append(np.broadcast_to(one, (*shape[:axis], one.shape[axis], *shape[axis:])))
        numbers.append(count + (np.zeros(size, dtype=np.int64) if label is None else label))
        count += one.shape[axis]
    return _renumbered(np.concatenate(parts, axis), labels, axis, np.concatenate(numbers))
