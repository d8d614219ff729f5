"""Make any torch module scale invariant without changing its function, to train it with plain SGD.

from sibert.conversion import build_optimizer, fold, make_scale_invariant
make_scale_invariant(model)                           # w = gain * v / |v|, every row of every weight
optimizer = build_optimizer(model, intrinsic_lr=1e-4)
...
fold(model)                                           # plain weights again
"""

from sibert.conversion.convert import fold, make_scale_invariant
from sibert.conversion.direction import Direction
from sibert.conversion.groups import build_optimizer, param_groups, scale_invariant_groups
from sibert.conversion.weights import Converted, converted_weights

__all__ = [
    "Converted",
    "Direction",
    "build_optimizer",
    "converted_weights",
    "fold",
    "make_scale_invariant",
    "param_groups",
    "scale_invariant_groups",
]
