"""Degrees with labels behave as arrays with one form for each entry."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sibert.homogeneity.degree import Degree, combine, concatenate, matching_axes
from sibert.homogeneity.linear_form import LinearForm


def full(degree: Degree, shape: tuple[int, ...]) -> np.ndarray:
    """One form for each entry."""
    forms = degree.forms
    for axis, label in enumerate(degree.labels):
        if label is not None:
            forms = np.take(forms, label, axis)
    return np.broadcast_to(forms, shape)


@st.composite
def degrees(draw, shape: tuple[int, ...]) -> Degree:
    labels, sizes = [], []
    for size in shape:
        count = draw(st.integers(1, min(size, 3)))
        label = np.array(draw(st.permutations(list(range(count)) + [0] * (size - count))), dtype=np.int64)
        labels.append(label if count > 1 else None)
        sizes.append(count)
    forms = np.empty(sizes, dtype=object)
    for position in np.ndindex(*sizes):
        forms[position] = LinearForm({draw(st.integers(0, 2)): draw(st.integers(-1, 1))})
    return Degree.simplest(forms, labels)


def shapes(rank: int):
    return st.tuples(*[st.integers(1, 4)] * rank)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_operations_on_labels_are_those_on_arrays(data) -> None:
    shape = data.draw(shapes(data.draw(st.integers(1, 3))))
    degree = data.draw(degrees(shape))
    dense = full(degree, shape)
    order = data.draw(st.permutations(range(len(shape))))
    axis = data.draw(st.integers(0, len(shape) - 1))
    index = np.array(data.draw(st.lists(st.integers(0, shape[axis] - 1), min_size=1, max_size=5)))

    assert (full(degree.permute(order), tuple(shape[i] for i in order)) == dense.transpose(order)).all()
    taken = (*shape[:axis], len(index), *shape[axis + 1 :])
    assert (full(degree.take(axis, index), taken) == np.take(dense, index, axis)).all()
    chosen = np.asarray(np.take(dense, int(index[0]), axis))
    assert (full(degree.select(axis, int(index[0])), chosen.shape) == chosen).all()
    assert (full(degree.insert(axis), (*shape[:axis], 1, *shape[axis:])) == np.expand_dims(dense, axis)).all()


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_reshape_is_that_of_arrays(data) -> None:
    before, after = data.draw(
        st.sampled_from(
            [
                ((2, 6), (2, 2, 3)),
                ((4, 3), (12,)),
                ((2, 3, 4), (6, 4)),
                ((6, 4), (3, 8)),
                ((1, 6), (6, 1)),
                ((4,), (2, 2, 1)),
            ]
        )
    )
    if data.draw(st.booleans()):
        before, after = after, before
    degree = data.draw(degrees(before))
    assert (full(degree.reshape(before, after), after) == full(degree, before).reshape(after)).all()


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_sums_broadcast(data) -> None:
    shape = data.draw(shapes(2))
    a, b = data.draw(degrees(shape)), data.draw(degrees(shape[1:]))
    total = np.array([x + y for x, y in np.broadcast(full(a, shape), full(b, shape[1:]))], dtype=object).reshape(shape)
    assert (full(combine(a, b, LinearForm.__add__), shape) == total).all()
    assert (full(a + b, shape) == total).all()


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_concatenation_keeps_the_parts(data) -> None:
    rows, sizes = data.draw(st.integers(1, 3)), data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    parts = [data.draw(degrees((rows, size))) for size in sizes]
    dense = np.concatenate([full(part, (rows, size)) for part, size in zip(parts, sizes, strict=True)], 1)
    assert (full(concatenate(parts, sizes, 1), dense.shape) == dense).all()
    turned = [part.permute((1, 0)) for part in parts]
    assert (full(concatenate(turned, sizes, 0), dense.T.shape) == dense.T).all()


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_spread_names_what_has_to_vanish(data) -> None:
    shape = data.draw(shapes(2))
    degree = data.draw(degrees(shape))
    same, differences = degree.spread(1)
    dense = full(degree, shape)
    assert not same.varies(1)
    assert bool(differences) == bool((dense != dense[:, :1]).any())


def test_axes_are_matched_in_the_smallest_groups() -> None:
    assert matching_axes((2, 6, 5), (2, 2, 3, 5)) == [
        (range(1), range(1)),
        (range(1, 2), range(1, 3)),
        (range(2, 3), range(3, 4)),
    ]
    assert matching_axes((6, 4), (3, 8)) == [(range(2), range(2))]
    assert matching_axes((), (1, 1)) == [(range(0), range(1)), (range(0), range(1, 2))]
    assert matching_axes((0, 3), (3, 0)) == [(range(2), range(2))]
