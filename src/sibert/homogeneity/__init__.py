"""Every rescaling symmetry of a torch module, proved from its graph.

    from sibert.homogeneity import analyze
    report = analyze(module, (inputs,))
    print(report)

Each tensor of the exported graph has a degree, a linear form in the unknown exponents of the parameters; operations
map degrees or impose linear equations; the null space of the equations is the space of symmetries. The rules are in
`rules`.
"""

from .analysis import analyze, assert_scale_invariant, invariant_rows
from .confirmation import Check, Confirmation
from .graph import Place
from .operation import Kind
from .slices import Slices
from .symmetry import Blocker, Symmetry, SymmetryReport, Verdict

__all__ = [
    "Blocker",
    "Check",
    "Confirmation",
    "Kind",
    "Place",
    "Slices",
    "Symmetry",
    "SymmetryReport",
    "Verdict",
    "analyze",
    "assert_scale_invariant",
    "invariant_rows",
]
