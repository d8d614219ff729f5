"""Refuse an environment that holds packages known to break the stack.

torchvision: with a CPU torch, pip picks a CUDA build of it without complaint; it cannot load its library, and
transformers, which sees it as available, then fails to import BERT, `Trainer` and `pipeline`. timm and
curvlinops-for-pytorch are the packages that bring it in.
"""

import importlib.util
import sys

FORBIDDEN = ("torchvision", "timm", "curvlinops")


def main() -> None:
    """Exit with one sentence if a forbidden package can be found."""
    found = [name for name in FORBIDDEN if importlib.util.find_spec(name) is not None]
    if found:
        sys.exit(f"these packages must not be installed beside sibert, and are: {', '.join(found)}")
    print(f"free of {', '.join(FORBIDDEN)}")


if __name__ == "__main__":
    main()
