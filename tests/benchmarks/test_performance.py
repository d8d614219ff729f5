"""The benchmarks of speed run from end to end at toy size, and refuse to time what is wrong."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script, *options, **environment):
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / script), "--smoke", "--rounds", "4", "--patience", "1", *options],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    ).stdout


@pytest.fixture
def attention(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    specification = importlib.util.spec_from_file_location("attention_benchmark", BENCHMARKS / "attention.py")
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, specification.name, module)
    specification.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_attention_is_compared_by_every_backend_the_kernels_included():
    printed = run("attention.py", TRITON_INTERPRET="1")
    for name in ("reference", "deferred", "blocked", "triton", "SDPA"):
        assert printed.count(f"{name} ") == 6
    assert printed.count("packed") == 2


def test_growth_is_fitted():
    printed = run("growth.py", "--rounds", "4")
    assert printed.count("exponent") == 4


def test_what_is_wrong_is_not_timed(attention):
    case, device = attention.Case(2, 2, 20, 8, "float32"), torch.device("cpu")
    tensors = attention.Tensors(case, device)
    right = attention.ours(case, device, "blocked")
    assert max(attention.gate(case, tensors, {"right": right}, device).values()) < 1e-5
    with pytest.raises(SystemExit, match="wrong is wrong by"):
        attention.gate(case, tensors, {"wrong": lambda q, k, v: 1.01 * right(q, k, v)}, device)


def test_packed_sequences_cover_the_tokens(attention):
    for length in (1, 7, 96, 4096):
        lengths = attention.Case(1, 1, length, 8, "float32", "packed").seqlens
        assert sum(lengths) == length
        assert min(lengths) > 0


def test_a_power_law_is_found(attention):
    sizes = [64, 128, 256, 512]
    assert attention.slope(sizes, [3.0 * size**1.7 for size in sizes]) == pytest.approx(1.7)
