"""Is triton there, and how does it run? Asked without importing it: TRITON_INTERPRET has to be set before that."""

from importlib.util import find_spec

import torch

__all__ = ["capability", "installed", "interpreting"]


# torch.compile asks these once and keeps the answers in the graph: it cannot trace what they call.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def installed() -> bool:
    """Tell whether triton is installed.

    Returns:
        Whether it can be found; it is not imported.
    """
    return find_spec("triton") is not None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def interpreting() -> bool:
    """Tell whether triton runs kernels in its interpreter, on any device.

    Returns:
        What triton itself reads from TRITON_INTERPRET.
    """
    import triton  # type: ignore[import-untyped,import-not-found,unused-ignore]

    return bool(triton.knobs.runtime.interpret)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def capability(device: torch.device) -> tuple[int, int]:
    """Read the compute capability of a GPU.

    Args:
        device: A CUDA device.

    Returns:
        Its two numbers.
    """
    return torch.cuda.get_device_capability(device)
