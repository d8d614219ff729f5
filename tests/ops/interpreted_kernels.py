"""The kernels, run on the CPU by triton's interpreter: test_relu_attention_triton.py starts this file in a process."""

import importlib
import os

import pytest
import torch

from sibert.ops import choose_backend, relu_attention
from sibert.ops.relu_attention.operators import triton_relu_attention
from sibert.ops.relu_attention.tiles import Tiles
from tests.ops.attention_cases import Case, cases, poison_new_memory, results
from tests.ops.test_relu_attention_backends import (
    FORBIDDEN,
    assert_agree,
    assert_one_graph,
    assert_rules_of_torch,
    with_forbidden_keys,
)

assert os.environ["TRITON_INTERPRET"] == "1"
kernels = importlib.import_module("sibert.ops.relu_attention.triton")
CASES = cases(queries=23, keys=37)


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    monkeypatch.setattr(
        kernels, "tile_sizes", lambda *_: dict.fromkeys(("forward", "queries", "keys"), Tiles(16, 16, 1, 1))
    )


@pytest.mark.parametrize("name", CASES)
def test_kernels_agree_with_the_reference(name, monkeypatch):
    poison_new_memory(monkeypatch)
    case = CASES[name]
    case = Case(**{**case.__dict__, "batch": min(case.batch, 3), "heads": 2, "groups": min(case.groups, 2)})
    assert_agree(results(case, "triton"), results(case, "reference"))


def test_real_tiles_agree_with_the_reference(monkeypatch):
    monkeypatch.undo()
    case = Case(batch=1, heads=1, groups=1, queries=63, keys=111)
    assert_agree(results(case, "triton", torch.float32), results(case, "reference", torch.float32), 1e-5)


def test_float16_agrees_at_scales_that_leave_its_range():
    query, key, value = Case(batch=1, heads=1, groups=1, queries=17, keys=23).inputs(torch.float16)
    plain, large = (relu_attention(query * c, key * c, value, backend="triton")[0] for c in (1.0, 256.0))
    assert torch.equal(plain, large)
    torch.testing.assert_close(plain, relu_attention(query, key, value, backend="reference")[0], atol=4e-3, rtol=1e-2)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_scales_of_queries_and_keys_cancel(scale):
    query, key, value = Case(batch=1, heads=1, groups=1, queries=9, keys=17).inputs(torch.float32)
    plain, rescaled = (relu_attention(query * c, key * c, value, backend="triton")[0] for c in (1.0, scale))
    torch.testing.assert_close(rescaled, plain, rtol=1e-5, atol=1e-6)


def test_gradient_is_right():
    inputs = Case(batch=1, heads=2, groups=1, queries=2, keys=3, width=2).inputs()
    assert torch.autograd.gradcheck(lambda *qkv: relu_attention(*qkv, backend="triton")[0], inputs)


def test_nan_is_not_hidden():
    query, key, value = Case(batch=1, queries=9, keys=9).inputs()
    with torch.no_grad():
        query[0, 0, 3] = torch.nan
    output, _ = relu_attention(query, key, value, backend="triton")
    assert output[0, 0, 3].isnan().all()
    assert output[0, 0, 4].isfinite().all()


@pytest.mark.parametrize("name", FORBIDDEN)
def test_finite_numbers_in_padding_and_in_other_sequences_change_no_bit(name):
    for one, other in zip(*(with_forbidden_keys("triton", name, fill) for fill in (0.0, 1e9)), strict=True):
        assert torch.equal(one, other)


def test_bfloat16_is_refused_by_the_interpreter():
    short = torch.zeros(1, 1, 4, 16, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="interpreter"):
        choose_backend(short, short, backend="triton")


def test_torch_compile_keeps_one_graph():
    assert_one_graph("triton", 20)


def test_the_operator_keeps_the_rules_of_torch():
    assert_rules_of_torch(triton_relu_attention)
