"""Parts of a parameter with exponents of their own: rows, columns, heads, the blocks of a fused projection."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Slices:
    """Parts of a parameter along one axis.

    Args:
        axis: Along which the parameter is divided; 0 = rows (output neurons, tokens), 1 = columns.
        blocks: So many parts of equal length, each with an exponent of its own. None: one index against the others.
        index: The one index. None: any; what is found holds for every index where the graph treats them alike, which
            it does unless it takes the axis apart.
    """

    axis: int = 0
    blocks: int | None = None
    index: int | None = None

    def labels(self, name: str, shape: Sequence[int]) -> tuple[NDArray[np.int64], list[str]]:
        """The part of each index, and names of the parts.

        Raises:
            ValueError: The parameter cannot be divided like this.
        """
        if not -len(shape) <= self.axis < len(shape):
            raise ValueError(f"{name} has {len(shape)} axes, so it has no slices along axis {self.axis}")
        axis = self.axis % len(shape)
        size = shape[axis]
        prefix = ":, " * axis
        if self.blocks is not None:
            if self.blocks < 1 or size % self.blocks:
                raise ValueError(
                    f"axis {axis} of {name} has length {size}: that is no multiple of {self.blocks} blocks"
                )
            length = size // self.blocks
            names = [f"{name}[{prefix}{i * length}:{(i + 1) * length}]" for i in range(self.blocks)]
            return np.arange(size) // length, names
        if size < 2:
            raise ValueError(f"axis {axis} of {name} has length {size}: there is nothing to divide")
        index = size // 3 if self.index is None else self.index
        if not -size <= index < size:
            raise ValueError(f"axis {axis} of {name} has length {size}, so there is no index {index}")
        labels = np.ones(size, dtype=np.int64)
        labels[index % size] = 0
        return labels, [f"{name}[{prefix}{index % size}]", f"{name}[{prefix}others]"]


Division = Mapping[str, Slices]
