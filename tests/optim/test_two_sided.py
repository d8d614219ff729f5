"""Relative clipping from both sides: every step turns a group neither too little nor too far."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sibert.models import SibertConfig, SibertForMaskedLM
from sibert.optim import ClippedSGD, build_optimizer, synchronisation
from sibert.optim.clipping import LARGEST_FACTOR, clip_factor, clip_factors
from tests.optim.toys import directions, invariant_loss, quadratic_loss, start, trajectory

GAMMA, CLIP = 0.01, 2.0
LEAST, MOST = math.sqrt(2 * GAMMA) / CLIP, math.sqrt(2 * GAMMA) * CLIP


@pytest.fixture(params=["host", "device"])
def decides(request, monkeypatch):
    """Take the code path of a CPU, and that of an accelerator on CPU tensors."""
    if request.param == "device":
        monkeypatch.setattr(synchronisation, "host_may_read", lambda device: False)


def transcription(x, g, eta, decay):
    """One step in Python numbers, and s."""
    relative = math.sqrt(2 * decay / eta) * x.norm().item() / g.norm().item()
    s = min(max(1.0, relative / CLIP), relative * CLIP)
    return (1 - eta * decay) * x - eta * s * g, s


@pytest.mark.usefixtures("decides")
@pytest.mark.parametrize("implementation", ["reference", "foreach", "fused"])
@pytest.mark.parametrize("loss", [invariant_loss, quadratic_loss])
def test_hundred_steps_follow_the_formula(loss, implementation):
    """Also where the norm is bounded instead of measured, for losses invariant or not."""
    x, expected = torch.nn.Parameter(start()), start()
    optimizer = ClippedSGD([x], 0.03, 0.05, clip=CLIP, two_sided=True, implementation=implementation)
    factors = []
    for step in range(100):
        scale = {2: 0.1, 3: 30.0}.get(step % 7, 1.0)
        optimizer.zero_grad()
        (scale * loss(x, step)).backward()
        g = scale * torch.autograd.functional.jacobian(lambda y, step=step: loss(y, step), expected)
        optimizer.step()
        expected, s = transcription(expected, g, 0.03, 0.05)
        factors.append(s)
        assert optimizer.statistics()[0].clip_factor == pytest.approx(s)
        torch.testing.assert_close(x.detach(), expected, rtol=1e-10, atol=1e-12)
    assert min(factors) < 1 < max(factors)
    assert 1 in factors


@settings(max_examples=50, deadline=None)
@given(
    norm=st.floats(1e-5, 1e5),
    scale=st.floats(1e-5, 1e5),
    mode=st.sampled_from([{"intrinsic_lr": GAMMA}, {"lr": 0.1, "weight_decay": GAMMA / 0.1}]),
    rows=st.booleans(),
)
def test_every_step_turns_between_its_bounds_whatever_the_norm_and_the_loss_scale(norm, scale, mode, rows):
    x = torch.nn.Parameter(norm * start()[None])
    optimizer = ClippedSGD([{"params": [x], "rows": rows}], clip=CLIP, two_sided=True, **mode)
    for step in range(20):
        before = x.detach().clone()
        optimizer.zero_grad()
        (scale * invariant_loss(x, step)).backward()
        optimizer.step()
        tangent = (x.detach() - (1 - GAMMA) * before).norm().item() / before.norm().item()
        assert LEAST * (1 - 1e-9) <= tangent <= MOST * (1 + 1e-9)


def test_from_above_only_a_norm_that_is_too_large_turns_no_more():
    """The negative twin, and what it costs."""
    turned = {}
    for two_sided in (True, False):

        def make(x, two_sided=two_sided):
            return ClippedSGD([x], 0.1, GAMMA / 0.1, two_sided=two_sided)

        path = trajectory(make, 1e3 * start(), invariant_loss, steps=30)
        turned[two_sided] = math.acos((directions(path)[0] @ directions(path)[-1]).item())
    assert turned[True] > 0.2
    assert turned[False] < 1e-4


def test_the_norm_still_goes_to_the_equilibrium_of_the_formula():
    """Decay wins over lengthened gradients, by 1 - 1 / clip^2; noise of constant length is then in [1 / clip, clip]."""
    eta, decay, ends = 0.1, GAMMA / 0.1, []
    for initial in (1e2, 1.0, 1e-2):
        generator = torch.Generator().manual_seed(1)
        x = torch.nn.Parameter(initial * start(100))
        optimizer = ClippedSGD([x], eta, decay, two_sided=True)
        for _ in range(1200):
            noise = torch.randn(100, generator=generator, dtype=torch.float64)
            noise -= (noise @ x.detach()) / x.detach().square().sum() * x.detach()
            x.grad = noise / noise.norm() / x.detach().norm()
            optimizer.step()
        ends.append(x.detach().norm().item())
    expected = (eta / (decay * (2 - GAMMA))) ** 0.25
    assert ends == pytest.approx([expected] * 3, rel=1e-4)


@pytest.mark.usefixtures("decides")
@pytest.mark.parametrize("rows", [False, True])
def test_the_reported_equilibrium_is_where_the_norm_goes_not_what_lengthened_gradients_would_hold(rows):
    found = {}
    for two_sided in (True, False):
        x = torch.nn.Parameter(1e3 * start()[None])
        optimizer = ClippedSGD([{"params": [x], "rows": rows}], 0.1, GAMMA / 0.1, two_sided=two_sided)
        invariant_loss(x, 0).backward()
        optimizer.step()
        found[two_sided] = optimizer.statistics()[0]
    assert found[True].clip_factor > 1e3
    assert found[True].equilibrium_norm == pytest.approx(found[False].equilibrium_norm)
    assert found[True].angular_update == pytest.approx(math.atan(LEAST / (1 - GAMMA)))


@settings(max_examples=20, deadline=None)
@given(exponent=st.integers(-15, 15), loss_exponent=st.integers(-15, 15))
def test_powers_of_two_change_no_bit(exponent, loss_exponent):
    def make(x):
        return ClippedSGD([x], intrinsic_lr=GAMMA, two_sided=True)

    x0 = start(dtype=torch.float32)
    plain = trajectory(make, x0, invariant_loss)
    scaled = trajectory(make, 2.0**exponent * x0, invariant_loss, loss_scale=2.0**loss_exponent)
    assert torch.equal(scaled, 2.0**exponent * plain)


@pytest.mark.usefixtures("decides")
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("length", [0.0, 1e-30])
def test_a_gradient_that_is_nothing_is_not_lengthened(length, rows):
    x = torch.nn.Parameter(start()[None])
    before = x.detach().clone()
    optimizer = ClippedSGD([{"params": [x], "rows": rows}], 0.1, GAMMA / 0.1, two_sided=True)
    x.grad = torch.zeros_like(x)
    x.grad[0, 0] = length
    optimizer.step()
    at_rest = rows and length == 0.0  # a row without gradient does not decay
    torch.testing.assert_close(x.detach(), before if at_rest else (1 - GAMMA) * before, rtol=1e-12, atol=1e-15)


@pytest.mark.usefixtures("decides")
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize(("exponent", "lengthened"), [(59.9, True), (60.1, False)])
def test_a_gradient_is_lengthened_by_less_than_two_to_the_sixty(exponent, lengthened, rows):
    x = torch.nn.Parameter(start()[None])
    before = x.detach().clone()
    optimizer = ClippedSGD([{"params": [x], "rows": rows}], 0.1, GAMMA / 0.1, two_sided=True)
    x.grad = torch.zeros_like(x)
    x.grad[0, 0] = LEAST * before.norm() / 0.1 * 2.0**-exponent
    optimizer.step()
    assert optimizer.statistics()[0].clip_factor == pytest.approx(2.0**exponent if lengthened else 1.0)
    tangent = (x.detach() - (1 - GAMMA) * before).norm().item() / before.norm().item()
    assert tangent == pytest.approx(LEAST if lengthened else 0.0, abs=1e-12)


def test_from_that_factor_on_a_step_is_left_as_it_is():
    boundary = 3.0 / LARGEST_FACTOR
    lengths = [math.nextafter(boundary, 0.0), boundary, math.nextafter(boundary, 1.0)]
    factors = [clip_factor(length, 12.0, 3.0) for length in lengths]
    assert factors == [1.0, 1.0, 3.0 / lengths[2]]
    bounds = (torch.full((3,), bound, dtype=torch.float64) for bound in (12.0, 3.0))
    assert clip_factors(torch.tensor(lengths, dtype=torch.float64), *bounds).tolist() == factors


def test_a_schedule_that_ends_at_zero_ends_it():
    x = torch.nn.Parameter(start())
    optimizer = ClippedSGD([x], intrinsic_lr=GAMMA, two_sided=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 10)
    turned = []
    for step in range(10):
        optimizer.zero_grad()
        ((1e-6 if step else 1.0) * invariant_loss(x, step)).backward()
        optimizer.step()
        turned.append(optimizer.statistics()[0].angular_update)
        scheduler.step()
    assert turned[-1] < 3 * turned[0] * math.sqrt(0.1)
    assert optimizer.param_groups[0]["lr"] == 0


@pytest.mark.parametrize(("invariance", "expected"), [("joint", False), ("matrix", True), ("row", True)])
def test_it_is_the_default_of_models_with_several_groups_alone(invariance, expected):
    config = SibertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=8, invariance=invariance,
    )  # fmt: skip

    def chosen(**options):
        groups = build_optimizer(SibertForMaskedLM(config), intrinsic_lr=GAMMA, **options).param_groups
        return {group["two_sided"] for group in groups if group["scale_invariant"]}

    assert chosen() == {expected}
    assert chosen(clip=None) == {False}
    assert chosen(two_sided=True) == {True}
    assert chosen(two_sided=False) == {False}


def test_a_run_that_was_saved_before_there_was_any_goes_on_as_it_was():
    x, y = torch.nn.Parameter(start()), torch.nn.Parameter(start())
    old, new = ClippedSGD([x], intrinsic_lr=GAMMA), ClippedSGD([y], intrinsic_lr=GAMMA, two_sided=True)
    saved = old.state_dict()
    del saved["param_groups"][0]["two_sided"]
    new.load_state_dict(saved)
    assert new.param_groups[0]["two_sided"] is False


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"two_sided": 1}, TypeError, "two_sided must be True or False, got 1"),
        ({"two_sided": True, "clip": None}, ValueError, "needs a clip factor.*give clip=2.0"),
    ],
)
def test_what_makes_no_sense_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        ClippedSGD([torch.nn.Parameter(start())], intrinsic_lr=GAMMA, **options)
