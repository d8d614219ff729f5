"""Refuse an environment that holds packages known to break the stack, or versions that constraints.txt does not name.

torchvision: with a CPU torch, pip picks a CUDA build of it without complaint; it cannot load its library, and
transformers, which sees it as available, then fails to import BERT, `Trainer` and `pipeline`. timm and
curvlinops-for-pytorch are the packages that bring it in.
"""

import importlib.metadata
import importlib.util
import re
import sys
from pathlib import Path

FORBIDDEN = ("torchvision", "timm", "curvlinops")
UNPINNED = {"pip", "setuptools", "sibert"}
CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"


def canonical(name: str) -> str:
    """The name of a package as PEP 503 normalises it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    """Exit with one sentence if a package is forbidden or without a version."""
    found = [name for name in FORBIDDEN if importlib.util.find_spec(name) is not None]
    if found:
        sys.exit(f"these packages must not be installed beside sibert, and are: {', '.join(found)}")
    pinned = {canonical(line.split("==")[0]) for line in CONSTRAINTS.read_text().splitlines() if "==" in line}
    installed = {canonical(one.metadata["Name"]) for one in importlib.metadata.distributions()}
    if missing := sorted(installed - pinned - UNPINNED):
        sys.exit(f"these packages are installed, and constraints.txt does not pin them: {', '.join(missing)}")
    print(f"free of {', '.join(FORBIDDEN)}; all packages are pinned")


if __name__ == "__main__":
    main()
