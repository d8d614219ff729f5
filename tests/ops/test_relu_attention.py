import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sibert.ops import relu_attention
from tests.assertions import assert_homogeneous, assert_not_homogeneous
from tests.ops.attention_inputs import SHAPES, draw, masks


def by_hand(query_K, key_TK, value_TK, keep_T):
    """One query, in plain Python."""
    scores = [
        max(0.0, float((query_K @ key_K).detach())) if keep else 0.0 for key_K, keep in zip(key_TK, keep_T, strict=True)
    ]
    total = sum(scores)
    if total == 0:
        return torch.zeros_like(query_K)
    return sum(score / total * value_K for score, value_K in zip(scores, value_TK, strict=True))


def test_the_reference_is_the_definition():
    shape = (2, 3, 7, 5, 4)
    query, key, value = draw(shape)
    mask = masks(shape)["full"]
    output, weights = relu_attention(query, key, value, mask, need_weights=True)
    for b in range(2):
        for h in range(3):
            for s in range(7):
                torch.testing.assert_close(
                    output[b, h, s], by_hand(query[b, h, s], key[b, h], value[b, h], mask[b, h, s])
                )
    total = weights.sum(dim=-1)
    assert (((total - 1).abs() < 1e-12) | (total == 0)).all()


@pytest.mark.parametrize("kind", ["none", "padding", "full", "keys"])
@pytest.mark.parametrize("shape", SHAPES)
def test_deferred_division_agrees_with_the_reference_gradients_included(shape, kind):
    inputs, mask = draw(shape), masks(shape)[kind]
    cotangent = torch.randn(*shape[:3], shape[4], dtype=torch.float64)
    results = {}
    for backend in ("reference", "deferred"):
        output, _ = relu_attention(*inputs, mask, backend=backend)
        results[backend] = (output, *torch.autograd.grad(output, inputs, cotangent))
    for ours, reference in zip(results["deferred"], results["reference"], strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("backend", ["reference", "deferred", "blocked"])
def test_rows_without_a_positive_score_give_zero_output_and_gradient(backend):
    query, key, value = draw((1, 1, 3, 4, 2))
    with torch.no_grad():
        key.abs_()
        query.abs_()
        query[0, 0, 1].neg_()
    output, _ = relu_attention(query, key, value, backend=backend)
    gradients = torch.autograd.grad(output[0, 0, 1].sum(), (query, key, value))
    assert (output[0, 0, 1] == 0).all()
    assert (output[0, 0, 0] != 0).any()
    for gradient in gradients:
        assert (gradient == 0).all()


@pytest.mark.parametrize("backend", ["reference", "deferred", "blocked"])
def test_degrees_and_the_softmax_twin(backend):
    query, key, value = draw((2, 2, 5, 5, 3))

    def attend():
        return relu_attention(query, key, value, backend=backend)[0]

    assert_homogeneous(attend, [query], degree=0)
    assert_homogeneous(attend, [key], degree=0)
    assert_homogeneous(attend, [value], degree=1)
    assert_homogeneous(attend, [query, key, value], degree=1)
    assert_not_homogeneous(lambda: (query @ key.mT).softmax(-1) @ value, [query, key, value], degree=1)


@given(k=st.integers(-20, 20), seed=st.integers(0, 100), backend=st.sampled_from(["reference", "deferred", "blocked"]))
@settings(max_examples=30, deadline=None)
def test_powers_of_two_in_queries_and_keys_change_no_bit(k, seed, backend):
    torch.manual_seed(seed)
    query, key, value = draw((2, 2, 6, 6, 8), torch.float32)
    plain, _ = relu_attention(query, key, value, backend=backend)
    rescaled, _ = relu_attention(query * 2.0**k, key * 2.0**k, value, backend=backend)
    assert torch.equal(plain, rescaled)


@pytest.mark.parametrize("backend", ["reference", "deferred", "blocked"])
def test_gradient_is_right(backend):
    inputs = draw((1, 2, 3, 4, 2))
    assert torch.autograd.gradcheck(lambda *qkv: relu_attention(*qkv, backend=backend)[0], inputs)


@pytest.mark.parametrize("backend", ["reference", "blocked"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_rows_in_float32(dtype, backend):
    # A sum of 4096 equal float16 scores of 40 would overflow at 65504.
    query = torch.full((1, 1, 1, 4), 3.0, dtype=dtype)
    key = torch.full((1, 1, 4096, 4), 3.0, dtype=dtype)
    value = torch.ones(1, 1, 4096, 4, dtype=dtype)
    output, _ = relu_attention(query, key, value, backend=backend)
    assert output.dtype == dtype
    torch.testing.assert_close(output.float(), torch.ones(1, 1, 1, 4), atol=2e-2, rtol=0)
