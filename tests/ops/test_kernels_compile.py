"""The fused kernels as the compiler makes them for a GPU, without one: what the interpreter cannot tell.

They compile, multiply on tensor cores, fit the shared memory of a program, and keep nearly all numbers in registers.
"""

import importlib
import re
import subprocess
from pathlib import Path

import pytest
import torch

from sibert.ops.relu_attention.dropout import drop_threshold
from sibert.ops.relu_attention.tiles import H100_MEMORY, tile_sizes
from tests.ops.attention_cases import needs_triton

TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
POINTERS = {"MASK": "*u8", "SEED": "*i64", **dict.fromkeys(("LOWER", "UPPER", "FIRST", "LAST"), "*i32")}
POINTERS |= dict.fromkeys(("TOTAL", "INVERSE", "SHIFT"), "*fp32")
COUNTS = ("H", "GROUP", "S", "T")
SPILLED = 300
"""Bytes of a thread that may leave the registers, with all options at once."""


def compiled(which, width, dtype, everything, capability, memory):
    """One kernel, compiled; with padding, causality and dropout, or without."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernels = importlib.import_module("sibert.ops.relu_attention.triton")
    kernel = getattr(kernels, f"_{which}_kernel")
    tiles = tile_sizes(width, dtype, memory)[which]
    constants = {
        "KEEP": 1 / 0.9, "DROP_BELOW": drop_threshold(0.1), "MASKED": everything, "SPANS": everything,
        "DROPOUT": everything, "HALF": dtype == torch.float16,
        "PRECISION": "tf32" if dtype == torch.float16 else "ieee",
        "BLOCK_S": tiles.queries, "BLOCK_T": tiles.keys, "PADDED": max(16, width), "WIDTH": width,
    }  # fmt: skip
    signature = {}
    for name in kernel.arg_names:
        pointer = POINTERS.get(name, TYPES[dtype]) if name.isupper() and name not in COUNTS else "i32"
        signature[name] = "constexpr" if name in constants else pointer
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if name not in constants and name not in ("H", "GROUP")
    }
    source = ASTSource(kernel, signature, constants, aligned)
    options = {"num_warps": tiles.warps, "num_stages": tiles.stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def stack_bytes(kernel, folder):
    """What a thread keeps outside of registers, as the assembler says."""
    import triton

    file = folder / "kernel.cubin"
    file.write_bytes(kernel.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run([tool, "-res-usage", file], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:(\d+)", usage)[1])


@needs_triton
@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("which", ["forward", "queries", "keys"])
def test_kernels_for_an_h100(which, width, everything, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = compiled(which, width, torch.bfloat16, everything, 90, H100_MEMORY)
    assert "wgmma" in kernel.asm["ptx"]
    assert kernel.metadata.shared <= H100_MEMORY
    assert stack_bytes(kernel, tmp_path) <= SPILLED


@needs_triton
@pytest.mark.parametrize(("capability", "kibibytes"), [(80, 163), (86, 99)])
@pytest.mark.parametrize(("dtype", "width"), [(torch.float16, 128), (torch.bfloat16, 256), (torch.float32, 64)])
@pytest.mark.parametrize("which", ["forward", "queries", "keys"])
def test_kernels_for_gpus_before(which, dtype, width, capability, kibibytes, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = compiled(which, width, dtype, True, capability, kibibytes * 1024)
    assert ("mma.sync" in kernel.asm["ptx"]) == (dtype != torch.float32)  # float32 is not rounded to TF32
    assert kernel.metadata.shared <= kibibytes * 1024
