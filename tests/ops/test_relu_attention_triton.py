"""The fused kernels: on the CPU in triton's interpreter, and on a GPU if there is one."""

import contextlib
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sibert.ops.relu_attention.tiles import H100_MEMORY, Tiles, shared_bytes, tile_sizes
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("width", [16, 64, 100, 128, 256])
def test_tiles_fit_the_shared_memory_of_the_device(width, dtype):
    a100, others = 163 * 1024, 99 * 1024
    assert tile_sizes(width, dtype, a100) == tile_sizes(width, dtype, H100_MEMORY) == tile_sizes(width, dtype)
    for kernel, tiles in tile_sizes(width, dtype, others).items():
        assert shared_bytes(kernel, tiles, width, dtype) <= others
        assert min(tiles.queries, tiles.keys) >= 16  # what a product takes at least
    too_large = any(shared_bytes(*each, width, dtype) > others for each in tile_sizes(width, dtype).items())
    assert too_large == (width > 64 and dtype != torch.float32)


@pytest.mark.parametrize(
    ("kernel", "tiles", "width", "dtype", "asked"),
    [
        ("forward", Tiles(128, 64, 4, 3), 64, torch.bfloat16, 57344),
        ("queries", Tiles(128, 64, 8, 3), 64, torch.float16, 73728),
        ("keys", Tiles(64, 128, 8, 3), 64, torch.bfloat16, 74752),
        ("forward", Tiles(128, 64, 8, 3), 128, torch.bfloat16, 131072),
        ("forward", Tiles(128, 32, 8, 3), 128, torch.float16, 81920),
        ("queries", Tiles(128, 32, 8, 2), 128, torch.bfloat16, 86016),
        ("keys", Tiles(32, 128, 8, 2), 128, torch.float16, 86272),
        ("forward", Tiles(64, 64, 8, 2), 256, torch.float16, 122880),
        ("forward", Tiles(64, 32, 8, 2), 256, torch.float16, 77824),
        ("queries", Tiles(64, 32, 8, 1), 256, torch.bfloat16, 98304),
        ("keys", Tiles(32, 64, 8, 1), 256, torch.bfloat16, 114688),
        ("keys", Tiles(16, 64, 8, 1), 256, torch.bfloat16, 90112),
        ("keys", Tiles(32, 32, 4, 2), 128, torch.float32, 70016),
        ("keys", Tiles(16, 16, 4, 2), 256, torch.float32, 66688),
    ],
)
def test_no_kernel_asks_for_more_shared_memory_than_estimated(kernel, tiles, width, dtype, asked):
    """What kernels with a mask and spans asked for, compiled by triton 3.7.1 for compute capability 8.6."""
    assert asked <= shared_bytes(kernel, tiles, width, dtype) < 1.8 * asked


@needs_triton
def test_programs_run_on_the_device_of_the_tensors_and_however_many_heads_there_are(monkeypatch):
    kernels = importlib.import_module("sibert.ops.relu_attention.triton")
    current, grids = [torch.device("cuda:0")], []

    @contextlib.contextmanager
    def switched(device):
        current.append(device)
        yield
        current.pop()

    class Recorder:
        def __getitem__(self, grid):
            grids.append((grid, current[-1]))
            return lambda *_, **__: None

    monkeypatch.setattr(torch.cuda, "device", switched)
    monkeypatch.setattr(kernels, "shared_memory", lambda device: H100_MEMORY)
    for name in ("_forward_kernel", "_queries_kernel", "_keys_kernel"):
        monkeypatch.setattr(kernels, name, Recorder())
    with FakeTensorMode():
        query = torch.empty(700, 100, 300, 16, device="cuda:1")
        out, total = kernels.triton_forward(query, query, query, None, None, None, None, 0.0)
        kernels.triton_backward(out, query, query, query, out, total, None, None, None, None, 0.0)
    side = tile_sizes(16, torch.float32)["forward"].queries
    assert grids == [((70_000 * -(-300 // side),), torch.device("cuda:1"))] * 3


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
