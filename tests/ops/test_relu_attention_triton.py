"""The fused kernels: on the CPU in triton's interpreter, and on a GPU if there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.assertions import relative_change
from tests.ops.attention_cases import Case, cases, needs_triton, results


@needs_triton
@pytest.mark.slow
def test_kernels_in_the_interpreter():
    # A process of its own: triton decides when it is imported whether it interprets.
    file = str(Path(__file__).parent / "interpreted_kernels.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [16, 64, 128, 256])
@pytest.mark.parametrize("name", cases())
def test_kernels_on_a_gpu(name, width, dtype):
    case = Case(**{**cases(queries=300, keys=333)[name].__dict__, "width": width})
    exact = results(case, "reference", torch.float64, "cuda")
    definition = results(case, "reference", dtype, "cuda")
    for ours, theirs, true in zip(results(case, "triton", dtype, "cuda"), definition, exact, strict=True):
        assert relative_change(ours.double(), true) < max(1.5 * relative_change(theirs.double(), true), 1e-5)
