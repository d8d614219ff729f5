"""Weight decay is a schedule: the same functions to machine precision, step by step, and negative twins."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from sibert.dynamics import EquivalentExponentialLR, characteristic_root, texp, texp_plus_plus

STEPS = 200


class Net(nn.Module):
    """Two matrices whose scale does not matter, and a head whose scale does."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second, self.head = nn.Linear(6, 8, bias=False), nn.Linear(8, 8, bias=False), nn.Linear(8, 3)
        self.double()

    def forward(self, x):
        for layer in (self.first, self.second):
            x = F.layer_norm(layer(x), (8,), eps=0.0).relu()
        return self.head(x)

    def groups(self):
        matrices = {"params": [self.first.weight, self.second.weight], "scale_invariant": True}
        return [matrices, {"params": self.head.parameters(), "weight_decay": 0.03}]


def data(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 6, generator=generator, dtype=torch.float64), torch.randint(3, (16,), generator=generator)


def train(make_schedule, momentum, lr=0.2, weight_decay=0.005, steps=STEPS, correction=None):
    net = Net()
    optimizer = torch.optim.SGD(net.groups(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    scheduler = make_schedule(optimizer)
    losses = []
    for step in range(steps):
        x, y = data(step)
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        if correction and step in correction:
            with torch.no_grad():
                for parameter in optimizer.param_groups[0]["params"]:
                    state = optimizer.state[parameter]
                    buffer = state.get("momentum_buffer")
                    # torch's first step copies the gradient: what the buffer held before it has to be added by hand
                    if buffer is None:
                        parameter.grad.add_(parameter, alpha=momentum * correction[step])
                    else:
                        buffer.add_(parameter, alpha=correction[step])
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses, net, scheduler


def plain(factor, weight_decay_factor=None):
    def make(optimizer):
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [factor, factor])
        if weight_decay_factor is None:
            return scheduler
        group, base = optimizer.param_groups[0], optimizer.param_groups[0]["weight_decay"]

        class Both:
            count = 0

            def step(self):
                scheduler.step()
                self.count += 1
                group["weight_decay"] = base * weight_decay_factor(self.count)

        group["weight_decay"] = base * weight_decay_factor(0)
        return Both()

    return make


def explicit(schedule, factor):
    """The learning rates of a translated schedule; the head follows the plain one."""

    def make(optimizer):
        optimizer.param_groups[0]["weight_decay"] = 0.0
        base = optimizer.param_groups[0]["lr"]
        rates = [*schedule.lr, 0.0]
        return torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda t: rates[t] / base, factor])

    return make


FACTORS = {
    "constant": lambda t: 1.0,
    "step": lambda t: 1.0 if t < 70 else 0.1 if t < 140 else 0.01,
    "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t / (STEPS + 1))),
    "random": lambda t: 0.2 + ((7919 * t) % 101) / 101,
}


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("name", FACTORS)
def test_the_same_functions_without_weight_decay(name, momentum):
    factor = FACTORS[name]
    expected, reference, _ = train(plain(factor), momentum)
    losses, net, scheduler = train(lambda optimizer: EquivalentExponentialLR(optimizer, factor), momentum)
    assert losses == pytest.approx(expected, rel=1e-9)
    for one, other in ((net.first, reference.first), (net.second, reference.second)):
        torch.testing.assert_close(one.weight * scheduler.shrinkage(0), other.weight, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(net.head.weight, reference.head.weight, rtol=1e-9, atol=1e-12)


def test_weight_decay_may_change_from_step_to_step():
    def decay(t):
        return 1.5 if t % 3 else 0.2

    expected, _, _ = train(plain(FACTORS["cosine"], decay), 0.9)
    losses, _, _ = train(
        lambda optimizer: EquivalentExponentialLR(optimizer, FACTORS["cosine"], weight_decay_lambda=decay), 0.9
    )
    assert losses == pytest.approx(expected, rel=1e-9)


def test_leaving_weight_decay_out_is_not_the_same():
    expected, _, _ = train(plain(FACTORS["step"]), 0.9)
    losses, _, _ = train(plain(FACTORS["step"]), 0.9, weight_decay=0.0)
    assert abs(losses[-1] - expected[-1]) > 1e-3


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_phases_of_texp_are_exact_with_their_corrections_and_only_with_them(momentum):
    factor = FACTORS["step"]
    expected, _, _ = train(plain(factor), momentum, weight_decay=0.005)
    schedule = texp([0.2 * factor(t) for t in range(STEPS)], 0.005, momentum)
    assert sorted(schedule.momentum_correction) == ([0, 70, 140] if momentum else [])
    corrected, _, _ = train(
        explicit(schedule, factor), momentum, weight_decay=0.005, correction=schedule.momentum_correction
    )
    assert corrected == pytest.approx(expected, rel=1e-9)
    bare, _, _ = train(explicit(schedule, factor), momentum, weight_decay=0.005)
    error = max(abs(a - b) for a, b in zip(bare, expected, strict=True))
    assert error > 1e-4 if momentum else error < 1e-9


@given(
    st.lists(st.floats(1e-3, 0.5), min_size=1, max_size=40),
    st.floats(0.0, 0.01),
    st.sampled_from([0.0, 0.3, 0.9]),
    st.data(),
)
@settings(max_examples=50, deadline=None)
def test_any_schedule_keeps_the_iterates_of_the_heavy_ball(rates, weight_decay, momentum, drawn):
    decays = drawn.draw(st.lists(st.floats(0.0, weight_decay), min_size=len(rates), max_size=len(rates)))
    schedule = texp_plus_plus(rates, decays, momentum)

    def gradient(x):  # of 1 - x_0 / |x|, which no scale changes
        u = x / x.norm()
        return (u[0] * u - torch.eye(3, dtype=torch.float64)[0]) / x.norm()

    x = y = torch.tensor([0.1, 1.0, -2.0], dtype=torch.float64)
    buffer_x = buffer_y = torch.zeros(3, dtype=torch.float64)
    for t, (eta, decay) in enumerate(zip(rates, decays, strict=True)):
        torch.testing.assert_close(schedule.shrinkage[t] * y, x, rtol=1e-10, atol=1e-12)
        buffer_x = momentum * buffer_x + gradient(x) + decay * x
        buffer_y = momentum * buffer_y + gradient(y)
        x, y = x - eta * buffer_x, y - schedule.lr[t] * buffer_y


def test_the_recursion_settles_at_the_root():
    recursion = texp_plus_plus([0.1] * 400, 0.02, 0.9)
    alpha = recursion.shrinkage[-1] / recursion.shrinkage[-2]
    assert alpha == pytest.approx(characteristic_root(0.1, 0.02, 0.9), rel=1e-9)
    assert characteristic_root(0.1, 0.02) == pytest.approx(0.998, rel=1e-15)


def test_the_growth_that_the_paper_reports():
    """PreResNet32: learning rate 0.1, momentum 0.9, weight decay 5e-4, 391 steps an epoch: 1.481 an epoch."""
    assert characteristic_root(0.1, 5e-4, 0.9) ** (-2 * 391) == pytest.approx(1.481, abs=5e-4)


@pytest.mark.parametrize("limit", [2.0, 8.0])
def test_renormalisation_changes_no_bit(limit, monkeypatch):
    expected, reference, _ = train(lambda o: EquivalentExponentialLR(o), 0.9, lr=0.2, weight_decay=0.01)
    monkeypatch.setattr("sibert.dynamics.exponential_lr.RENORMALISATION", limit)
    losses, net, scheduler = train(lambda o: EquivalentExponentialLR(o), 0.9, lr=0.2, weight_decay=0.01)
    assert losses == expected
    divided = (reference.first.weight.norm() / net.first.weight.norm()).item()
    assert divided in {limit**k for k in range(1, 20)}
    assert scheduler.shrinkage(0) > 0.9 / limit


def test_a_long_run_does_not_overflow():
    single = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.SGD([single], lr=0.5, weight_decay=0.5)
    scheduler = EquivalentExponentialLR(optimizer, groups=[0])
    for _ in range(3000):
        single.grad = torch.stack((single[1], -single[0])).detach() / single.detach().square().sum() / 100
        optimizer.step()
        scheduler.step()
    assert torch.isfinite(single).all()
    assert math.isfinite(scheduler.get_last_lr()[0])
    with pytest.raises(ValueError, match="overflows at step"):
        texp_plus_plus([0.5] * 3000, 0.5)


def test_a_state_goes_on_where_it_stopped():
    whole, _, _ = train(lambda o: EquivalentExponentialLR(o, FACTORS["cosine"]), 0.9)
    net = Net()
    optimizer = torch.optim.SGD(net.groups(), lr=0.2, momentum=0.9, weight_decay=0.005)
    scheduler = EquivalentExponentialLR(optimizer, FACTORS["cosine"])
    losses = []
    for step in range(STEPS):
        if step == 57:
            saved = [one.state_dict() for one in (net, optimizer, scheduler)]
            net = Net()
            optimizer = torch.optim.SGD(net.groups(), lr=0.2, momentum=0.9, weight_decay=0.005)
            scheduler = EquivalentExponentialLR(optimizer, FACTORS["cosine"])
            for one, state in zip((net, optimizer, scheduler), saved, strict=True):
                one.load_state_dict(state)
        x, y = data(step)
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    assert losses == whole


def test_groups_may_be_counted_from_the_end():
    def last(optimizer):
        optimizer.param_groups.reverse()
        return EquivalentExponentialLR(optimizer, groups=[-1])

    assert train(last, 0.9)[0] == train(EquivalentExponentialLR, 0.9)[0]


class TestRefusals:
    def parameter(self):
        return [torch.nn.Parameter(torch.ones(2))]

    @pytest.mark.parametrize("index", [1, -2])
    def test_of_a_group_that_is_not_there(self, index):
        with pytest.raises(ValueError, match=f"has 1 parameter groups, and none with the index {index}"):
            EquivalentExponentialLR(torch.optim.SGD(self.parameter(), lr=0.1), groups=[index])

    def test_another_optimizer(self):
        with pytest.raises(TypeError, match="got AdamW"):
            EquivalentExponentialLR(torch.optim.AdamW(self.parameter()), groups=[0])

    def test_no_group(self):
        with pytest.raises(ValueError, match="no parameter group is marked scale_invariant"):
            EquivalentExponentialLR(torch.optim.SGD(self.parameter(), lr=0.1))

    def test_nesterov(self):
        optimizer = torch.optim.SGD(self.parameter(), lr=0.1, momentum=0.9, nesterov=True)
        with pytest.raises(ValueError, match="nesterov"):
            EquivalentExponentialLR(optimizer, groups=[0])

    def test_beyond_the_root(self):
        with pytest.raises(ValueError, match="no exponential schedule"):
            characteristic_root(1.0, 0.5, 0.9)
        with pytest.raises(ValueError, match="must be positive"):
            texp_plus_plus([1.0] * 20, 0.5, 0.9)
        with pytest.raises(ValueError, match="must be positive"):
            texp([0.1, 0.0], 0.1)

    def test_a_rate_of_zero_on_the_way(self):
        with pytest.raises(ValueError, match="learning rate of 0 before others"):
            texp_plus_plus([0.1, 0.0, 0.1], 0.1, 0.9)
        assert texp_plus_plus([0.1, 0.0, 0.1], 0.1).lr[1] == 0.0
        assert texp_plus_plus([0.1, 0.1, 0.0], 0.1, 0.9).lr[2] == 0.0

    @pytest.mark.parametrize("momentum", [-0.1, 1.0])
    def test_momentum(self, momentum):
        with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\)"):
            texp_plus_plus([0.1], 0.1, momentum)

    def test_an_epoch(self):
        scheduler = EquivalentExponentialLR(torch.optim.SGD(self.parameter(), lr=0.1), groups=[0])
        with pytest.raises(ValueError, match="without an argument"):
            scheduler.step(3)

    def test_beyond_the_root_at_the_start(self):
        optimizer = torch.optim.SGD(self.parameter(), lr=1.0, momentum=0.9, weight_decay=0.01)
        with pytest.raises(ValueError, match="no exponential schedule"):
            EquivalentExponentialLR(optimizer, groups=[0])
        assert optimizer.param_groups[0]["weight_decay"] == 0.01  # left as it was

    def test_a_schedule_that_leaves_the_root_for_a_while_is_none_of_that(self):
        optimizer = torch.optim.SGD(self.parameter(), lr=1.0, momentum=0.9, weight_decay=0.01)
        scheduler = EquivalentExponentialLR(optimizer, lambda t: 1.0 if t < 3 else 0.1, groups=[0])
        for _ in range(50):
            optimizer.step()
            scheduler.step()
        assert 0.0 < scheduler.shrinkage(0) < 1.0

    def test_going_on_without_a_state(self):
        optimizer = torch.optim.SGD(self.parameter(), lr=0.1, weight_decay=0.01)
        with pytest.raises(ValueError, match="goes on with a run whose state group 0 does not have"):
            EquivalentExponentialLR(optimizer, groups=[0], last_epoch=10)

    def test_going_on_with_it(self):
        first = torch.optim.SGD(self.parameter(), lr=0.1, weight_decay=0.01)
        scheduler = EquivalentExponentialLR(first, groups=[0])
        for _ in range(5):
            first.step()
            scheduler.step()
        for last_epoch in (-1, 5):
            other = torch.optim.SGD(self.parameter(), lr=0.1, weight_decay=0.01)
            other.load_state_dict(first.state_dict())
            going_on = EquivalentExponentialLR(other, groups=[0], last_epoch=last_epoch)
            assert other.param_groups[0]["initial_weight_decay"] == 0.01
            going_on.load_state_dict(scheduler.state_dict())
            other.load_state_dict(first.state_dict())
            other.step()
            going_on.step()
            assert other.param_groups[0]["initial_weight_decay"] == 0.01
            assert going_on.get_last_lr()[0] == pytest.approx(0.1 * (1.0 - 0.001) ** -13)

    def test_no_length(self):
        with pytest.raises(ValueError, match="the norm of group 0 is 0"):
            EquivalentExponentialLR(torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))], lr=0.1), groups=[0])

    @pytest.mark.parametrize("momentum", [0.0, 0.9])
    def test_a_plain_layer(self, momentum):
        torch.manual_seed(0)
        layer = nn.Linear(6, 3)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=momentum, weight_decay=0.01)
        scheduler = EquivalentExponentialLR(optimizer, groups=[0])

        def run():
            for step in range(8):
                x, y = data(step)
                optimizer.zero_grad()
                F.cross_entropy(layer(x.float()), y % 3).backward()
                optimizer.step()
                scheduler.step()

        with pytest.raises(ValueError, match="weight decay is no schedule for it"):
            run()
