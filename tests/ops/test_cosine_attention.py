import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sibert.ops import cosine_attention
from tests.assertions import assert_homogeneous, assert_not_homogeneous
from tests.ops.attention_inputs import SHAPES, draw, masks


def by_hand(query_K, key_TK, value_TK, keep_T):
    """One query, in plain Python."""
    kept = [t for t, keep in enumerate(keep_T) if keep]
    cosines = [float(query_K @ key_TK[t]) / math.hypot(*query_K) / math.hypot(*key_TK[t]) for t in kept]
    weights = [math.exp(math.sqrt(len(query_K)) * cosine) for cosine in cosines]
    return sum(
        (weight / sum(weights) * value_TK[t] for t, weight in zip(kept, weights, strict=True)),
        start=torch.zeros_like(query_K),
    )


def test_the_reference_is_the_definition():
    shape = (2, 3, 7, 5, 4)
    query, key, value = (x.detach() for x in draw(shape))
    mask = masks(shape)["full"]
    output, weights = cosine_attention(query, key, value, mask, need_weights=True)
    for b in range(2):
        for h in range(3):
            for s in range(7):
                torch.testing.assert_close(
                    output[b, h, s], by_hand(query[b, h, s], key[b, h], value[b, h], mask[b, h, s])
                )
    total = weights.sum(dim=-1)
    torch.testing.assert_close(total, mask.any(dim=-1).double())


@pytest.mark.parametrize("kind", ["none", "padding", "full", "keys"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_fast_path_agrees_with_the_reference_gradients_included(shape, kind):
    inputs, mask = draw(shape), masks(shape)[kind]
    cotangent = torch.randn(*shape[:3], shape[4], dtype=torch.float64)
    results = []
    for need_weights in (False, True):
        output, _ = cosine_attention(*inputs, mask, need_weights=need_weights)
        results.append((output, *torch.autograd.grad(output, inputs, cotangent)))
    for ours, reference in zip(*results, strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("need_weights", [False, True])
def test_a_query_without_keys_gives_zero_output_and_gradient(need_weights):
    query, key, value = draw((2, 1, 3, 4, 2))
    mask = torch.tensor([[False] * 4, [True] * 4])
    output, _ = cosine_attention(query, key, value, mask, need_weights=need_weights)
    assert (output[0] == 0).all()
    assert (output[1] != 0).any()
    for gradient in torch.autograd.grad(output.sum(), (query, key, value)):
        assert gradient.isfinite().all()
        assert (gradient[0] == 0).all()


@pytest.mark.parametrize("need_weights", [False, True])
def test_dropout_keeps_the_mean(need_weights):
    query, key, _ = draw((2, 2, 9, 200, 4))
    value = torch.ones(2, 2, 200, 4, dtype=torch.float64)
    torch.manual_seed(0)
    dropped, _ = cosine_attention(query, key, value, dropout_p=0.4, need_weights=need_weights)
    assert dropped.std() > 0.01
    assert abs(dropped.mean().item() - 1.0) < 0.1


@pytest.mark.parametrize("need_weights", [False, True])
def test_degrees_and_the_twin_without_cosines(need_weights):
    query, key, value = draw((2, 2, 5, 5, 3))

    def attend():
        return cosine_attention(query, key, value, need_weights=need_weights)[0]

    assert_homogeneous(attend, [query], degree=0)
    assert_homogeneous(attend, [key], degree=0)
    assert_homogeneous(attend, [value], degree=1)
    assert_not_homogeneous(lambda: (query @ key.mT).softmax(-1) @ value, [query], degree=0)


@given(k=st.integers(-60, 60), seed=st.integers(0, 100), need_weights=st.booleans())
@settings(max_examples=30, deadline=None)
def test_powers_of_two_in_queries_and_keys_change_no_bit(k, seed, need_weights):
    torch.manual_seed(seed)
    query, key, value = draw((2, 2, 6, 6, 8), torch.float32)
    plain, _ = cosine_attention(query, key, value, need_weights=need_weights)
    rescaled, _ = cosine_attention(query * 2.0**k, key * 2.0**-k, value, need_weights=need_weights)
    assert torch.equal(plain, rescaled)


@pytest.mark.parametrize("need_weights", [False, True])
def test_gradient_is_right(need_weights):
    mask = torch.tensor([[True, True, False, True]])
    inputs = draw((1, 2, 3, 4, 2))
    assert torch.autograd.gradcheck(lambda *x: cosine_attention(*x, mask, need_weights=need_weights)[0], inputs)


def test_wrong_masks_are_refused():
    query, key, value = draw((1, 1, 2, 2, 2))
    with pytest.raises(TypeError, match="boolean"):
        cosine_attention(query, key, value, torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"\[B, T\]"):
        cosine_attention(query, key, value, torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"= \[1, 1, 2, 2\], got \(1, 3\)"):
        cosine_attention(query, key, value, torch.ones(1, 3, dtype=torch.bool))
