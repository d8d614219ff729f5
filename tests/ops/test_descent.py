"""The descent kernel: in triton's interpreter against the formula, and as the compiler makes it for a GPU."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ops.attention_cases import needs_triton

TYPES = {"ADDRESSES": "*i64", "GAMMA": "*fp64", "STEP": "*fp64", "MOVES": "*u8", "P": "i32"}


@needs_triton
@pytest.mark.slow
def test_the_kernel_and_the_steps_that_use_it_in_the_interpreter():
    # A process of its own: triton decides when it is imported whether it interprets.
    file = str(Path(__file__).parent / "interpreted_descent.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("rows", [False, True])
def test_the_kernel_for_a_gpu_moves_sixteen_bytes_at_once(rows, capability, tmp_path, monkeypatch):
    """Loads of single numbers would halve the bandwidth; nothing is multiplied with a number of 64 bits but scalars."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    descent = importlib.import_module("sibert.ops.descent")
    kernel = descent._descent_kernel
    constants = {"DTYPE": tl.float32, "ROWS": rows, "BLOCK": descent.BLOCK}
    signature = {name: "constexpr" if name in constants else TYPES.get(name, "*i32") for name in kernel.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if name not in constants and name != "P"
    }
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": descent.WARPS},
    )
    entries = descent.BLOCK // (32 * descent.WARPS)
    whole = re.findall(r"ld\.global\.v4|st\.global\.v4", compiled.asm["ptx"])
    assert len(whole) == 3 * entries // 4  # parameters, gradients, parameters again
    assert not re.search(r"(mul|fma)\.rn\.f64", compiled.asm["ptx"])
