"""Rules by operation of ATen: what it does to degrees, or which equation it imposes, and why.

A rule is a function of the operation and its arguments, tensors being `Edge`s; it returns the edge of the result, and
calls `op.zero`, `op.equal` or `op.same_along` for what has to hold. Families are files: entry by entry (`pointwise`),
along axes (`reductions`), products (`contractions`), `normalisations`, `shapes`, `indexing`, `losses`.
"""

from . import contractions, indexing, losses, normalisations, pointwise, reductions, shapes
from .registry import RULES, Rule, as_table, rule

__all__ = ["RULES", "Rule", "as_table", "rule"]
_FAMILIES = (contractions, indexing, losses, normalisations, pointwise, reductions, shapes)
