"""Which constants count as small, or as standing for minus infinity."""

from dataclasses import replace

from ..edge import Edge
from ..operation import Kind

LARGEST_EPSILON = 1e-2
"""Models have epsilons up to 1e-3, which half precision rounds up; a larger constant is a part of the function."""


def epsilon_kind(value: float) -> Kind:
    """Why a positive constant beside a quantity that scales imposes an equation."""
    return Kind.EPSILON if value <= LARGEST_EPSILON else Kind.RULE


def no_mask(edge: Edge) -> Edge:
    """A term of a sum that does not stand for -inf, however negative it is."""
    return replace(edge, values=None) if edge.saturates and not edge.has_any_degree else edge
