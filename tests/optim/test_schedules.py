import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sibert.optim import SCHEDULES, ClippedSGD, default_intrinsic_lr, schedule, schedule_groups


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", [1, 1, 1, 1, 1, 1, 1]),
        ("linear", [1.0, 0.75, 0.5, 0.4, 0.1, 0.0, 0.0]),
        ("cosine", [1.0, 0.8535533905932737, 0.5, 0.3454915028125263, 0.024471741852423234, 0.0, 0.0]),
        ("piecewise", [1, 1, 1, 0.1, 0.01, 0.01, 0.01]),
    ],
)
def test_schedules_by_hand(name, expected):
    f = schedule(name, 100)
    assert [f(step) for step in (0, 25, 50, 60, 90, 100, 1000)] == pytest.approx(expected)


@settings(deadline=None)
@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    total=st.integers(2, 10_000),
    warmup=st.floats(0, 0.99),
    final=st.floats(0, 1),
    step=st.integers(0, 20_000),
)
def test_multipliers_lie_between_0_and_1_and_never_rise_after_warm_up(name, total, warmup, final, step):
    f = schedule(name, total, int(warmup * total), final)
    assert 0 <= f(step) <= 1
    if step >= f.warmup_steps:
        assert f(step + 1) <= f(step) + 1e-12


def test_the_first_multiplier_is_1_without_warm_up_and_never_0_with():
    assert schedule("linear", 10)(0) == 1
    warm = schedule("linear", 10, warmup_steps=4)
    assert [warm(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_final_is_reached_at_the_end():
    for name in ("linear", "cosine"):
        assert schedule(name, 10, final=0.25)(10) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("quadratic", 10), "one of"),
        (("linear", 0), "total_steps"),
        (("linear", 10, 10), "warmup_steps"),
        (("linear", 10, -1), "warmup_steps"),
        (("linear", 10, 0, 1.5), "final"),
    ],
)
def test_wrong_schedules_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        schedule(*arguments)


def optimizer_of_two():
    groups = [{"params": [torch.ones(2)], "name": name} for name in ("encoder", "head")]
    return ClippedSGD(groups, intrinsic_lr=0.01)


def advance(optimizer, scheduler, steps):
    rates = []
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
    return rates


def test_each_group_may_have_a_schedule_of_its_own():
    optimizer = optimizer_of_two()
    scheduler = schedule_groups(optimizer, schedule("constant", 10), {"head": schedule("linear", 10)})
    assert advance(optimizer, scheduler, 2) == [[1.0, 0.9], [1.0, 0.8]]
    with pytest.raises(ValueError, match="decoder"):
        schedule_groups(optimizer, schedule("constant", 10), {"decoder": schedule("linear", 10)})


def test_a_resumed_schedule_goes_on_where_it_was():
    optimizer = optimizer_of_two()
    scheduler = schedule_groups(optimizer, schedule("cosine", 10), {"head": schedule("linear", 10, 3)})
    advance(optimizer, scheduler, 4)
    saved, weights = pickle.loads(pickle.dumps(scheduler.state_dict())), optimizer.state_dict()
    expected = advance(optimizer, scheduler, 4)

    resumed = optimizer_of_two()
    scheduler = schedule_groups(resumed, schedule("cosine", 10), {"head": schedule("linear", 10, 3)})
    resumed.load_state_dict(weights)
    scheduler.load_state_dict(saved)
    assert advance(resumed, scheduler, 4) == expected


def test_schedules_are_values():
    f = schedule("cosine", 100, 10, 0.1)
    assert pickle.loads(pickle.dumps(f)) == f


def test_the_default_intrinsic_learning_rate_is_a_share_of_the_budget():
    assert default_intrinsic_lr(1000) == 0.0035
    assert default_intrinsic_lr(1000, D=5) == 0.005
    assert default_intrinsic_lr(20) == 0.175
    for total, D in ((19, 10.0), (0, 10.0), (100, 0.0), (100, -1.0)):
        with pytest.raises(ValueError, match="1/2"):
            default_intrinsic_lr(total, D)
