"""What kernels are written in; without triton, stand-ins by which their modules can still be looked at."""

from typing import Any

__all__ = ["constexpr", "jit", "tl", "triton"]

triton: Any = None
tl: Any = None

try:
    import triton  # type: ignore[import-untyped,import-not-found,no-redef,unused-ignore]
    import triton.language as tl  # type: ignore[import-untyped,import-not-found,no-redef,unused-ignore]
    from triton.language import constexpr

    jit: Any = triton.jit
except ImportError:  # what chooses between kernels and plain operations refuses to run them

    def constexpr(value: Any) -> Any:  # type: ignore[no-redef]
        """Stand in for triton's."""
        return value

    def jit(kernel: Any) -> Any:
        """Stand in for triton's."""
        return kernel
