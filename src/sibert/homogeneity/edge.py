"""What is known of a tensor on an edge of the graph: its degree, and what of its entries matters to the rules."""

from dataclasses import dataclass, replace
from math import inf

import numpy as np
import torch
from torch import Tensor

from .degree import Degree
from .linear_form import ZERO, LinearForm

FEW = 8
"""Sets of values larger than this are not followed."""
SATURATING = -1e4
"""Masks at or below this stand for -inf: after a softmax they leave no trace in the precision of the tensor, unless the
other scores are as large."""


@dataclass(frozen=True)
class Edge:
    """A tensor of the graph.

    Attributes:
        shape: Of the tensor.
        dtype: Of the tensor.
        degree: Of its entries in the parameters.
        values: All values that an entry can have, where these are few; None = not known.
        is_nonnegative: No entry is negative, whatever parameters and inputs.
        constant: The tensor itself, where it depends neither on parameters nor on inputs.
        constant_along: Axes along which all entries are equal.
        decided_by: Conditions by which entries were chosen at the same places.
        changes: Of whole numbers that depend on parameters: forms that have to vanish for these not to change.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    degree: Degree
    values: frozenset[float] | None = None
    is_nonnegative: bool = False
    constant: Tensor | None = None
    constant_along: frozenset[int] = frozenset()
    decided_by: frozenset[str] = frozenset()
    changes: frozenset[LinearForm] = frozenset()

    @classmethod
    def of(cls, tensor: Tensor, degree: Degree | None = None) -> "Edge":
        """An edge of a tensor's shape; of degree 0 where nothing else is said."""
        degree = Degree.uniform(ZERO, tensor.ndim) if degree is None else degree
        values = frozenset({0.0, 1.0}) if tensor.dtype == torch.bool else None
        ones = frozenset(axis for axis, size in enumerate(tensor.shape) if size == 1)
        return cls(tuple(tensor.shape), tensor.dtype, degree, values, values is not None, None, ones)

    @classmethod
    def known(cls, tensor: Tensor) -> "Edge":
        """A constant."""
        if tensor.is_complex():
            return replace(cls.of(tensor), constant=tensor)
        values = np.unique(tensor.double().numpy())
        few = frozenset(values.tolist()) if len(values) <= FEW else None
        return replace(cls.of(tensor), values=few, is_nonnegative=bool((values >= 0).all()), constant=tensor)

    @property
    def rank(self) -> int:
        """How many axes the tensor has."""
        return len(self.shape)

    @property
    def is_zero(self) -> bool:
        """All entries are 0."""
        return self.values == frozenset({0.0})

    @property
    def has_any_degree(self) -> bool:
        """Its entries are 0 and infinite: multiplied by c > 0 they are what they were, so any degree is right."""
        return self.values is not None and self.values <= {0.0, inf, -inf}

    @property
    def saturates(self) -> bool:
        """Its entries are 0 and so negative that they stand for -inf."""
        return self.values is not None and all(value in (0.0, inf) or value <= SATURATING for value in self.values)

    def axis(self, axis: int) -> int:
        """An axis counted from the front."""
        return axis % max(self.rank, 1)

    def constant_axes_in(self, shape: tuple[int, ...]) -> frozenset[int]:
        """The axes of a shape along which this tensor is constant when it is broadcast to that."""
        front = len(shape) - self.rank
        own = {axis + front for axis in range(self.rank) if axis in self.constant_along or self.shape[axis] == 1}
        return frozenset(range(front)) | own
