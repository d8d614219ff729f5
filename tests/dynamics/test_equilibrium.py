"""Predicted against simulated: gradients at random, orthogonal to the parameters, of size g / |x|."""

import math

import numpy as np
import pytest
import torch

from sibert.dynamics import adamw_equilibrium, equilibrium, lion_equilibrium, sgd_equilibrium
from sibert.optim import ClippedSGD

ENTRIES, GRADIENT = 800, 3.0


class Lion(torch.optim.Optimizer):
    def __init__(self, params, **defaults):
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            (b1, b2), lr, decay = group["betas"], group["lr"], group["weight_decay"]
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                update = (b1 * m + (1 - b1) * p.grad).sign()
                m.mul_(b2).add_(p.grad, alpha=1 - b2)
                p.mul_(1 - lr * decay).sub_(update, alpha=lr)


def simulate(make, norm, steps, scale=1.0):
    """Norms, and squared angles, of the second half of a run that starts at a norm."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ENTRIES, dtype=torch.float64, generator=generator)
    x = torch.nn.Parameter(norm * x / x.norm())
    optimizer = make([x])
    norms, angles = [], []
    for step in range(steps):
        with torch.no_grad():
            g = torch.randn(ENTRIES, dtype=torch.float64, generator=generator)
            length = x.norm()
            g -= (g @ x) * x / length**2
            x.grad = scale * GRADIENT * g / (math.sqrt(ENTRIES) * length)
            before = x.clone()
            optimizer.step()
            cosine = (before @ x / (length * x.norm())).clamp(max=1.0)
            norms.append(x.norm().item())
            if step >= steps // 2:
                angles.append(torch.arccos(cosine).item() ** 2)
    return np.asarray(norms), math.sqrt(np.mean(angles))


def fourth_root(norms):
    return np.mean(norms[len(norms) // 2 :] ** 4) ** 0.25


def square_root(norms):
    return np.mean(norms[len(norms) // 2 :] ** 2) ** 0.5


@pytest.mark.parametrize(("lr", "weight_decay"), [(0.1, 0.01), (2.0, 0.05)])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd(lr, weight_decay, momentum):
    predicted = sgd_equilibrium(lr, weight_decay, momentum, GRADIENT)

    def make(p):
        return torch.optim.SGD(p, lr=lr, weight_decay=weight_decay, momentum=momentum)

    norms, angle = simulate(make, predicted.norm, 4000)
    high_order = 0.02 if lr * weight_decay < 0.01 or not momentum else 0.04
    assert fourth_root(norms) == pytest.approx(predicted.norm, rel=high_order)
    assert angle == pytest.approx(predicted.angular_update, rel=high_order)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_the_angle_with_momentum_is_exact_in_eta_lambda(momentum):
    """Of the recursion x' = (1 - p) x + m (x - x_last) + noise."""
    product = 0.3
    covariance = torch.eye(2, dtype=torch.float64)
    step = torch.tensor([[1.0 + momentum - product, -momentum], [1.0, 0.0]], dtype=torch.float64)
    noise = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    for _ in range(2000):
        covariance = step @ covariance @ step.T + noise
    angle = math.acos(covariance[0, 1].item() / covariance[0, 0].item())
    assert sgd_equilibrium(0.3, 1.0, momentum).angular_update == pytest.approx(angle, rel=1e-12)


@pytest.mark.parametrize(
    ("optimizer", "predict", "betas"),
    [
        (torch.optim.AdamW, adamw_equilibrium, (0.9, 0.999)),
        (torch.optim.AdamW, adamw_equilibrium, (0.5, 0.999)),
        (Lion, lion_equilibrium, (0.9, 0.99)),
        (Lion, lion_equilibrium, (0.5, 0.9)),
    ],
)
@pytest.mark.parametrize("weight_decay", [0.05, 0.2])
def test_steps_of_a_size_of_their_own(optimizer, predict, betas, weight_decay):
    predicted = predict(0.01, weight_decay, betas, ENTRIES)

    def make(p):
        return optimizer(p, lr=0.01, betas=betas, weight_decay=weight_decay)

    norms, angle = simulate(make, predicted.norm, 8000)
    assert square_root(norms) == pytest.approx(predicted.norm, rel=0.02)
    assert angle == pytest.approx(predicted.angular_update, rel=0.02)


def test_the_terms_of_leading_order():
    eta, decay, m, (b1, _) = 1e-4, 1e-2, 0.9, (0.9, 0.999)
    assert sgd_equilibrium(eta, decay, m).angular_update == pytest.approx(
        math.sqrt(2 * eta * decay / (1 + m)), rel=1e-5
    )
    norm = sgd_equilibrium(eta, decay, m, 2.0).norm
    assert norm**4 == pytest.approx(eta * 4.0 / (2 * decay * (1 - m)), rel=1e-5)
    adamw = adamw_equilibrium(eta, decay, entries=7)
    assert adamw.angular_update == pytest.approx(math.sqrt(2 * eta * decay * (1 - b1) / (1 + b1)), rel=1e-4)
    assert adamw.norm**2 == pytest.approx(eta * 7 / (2 * decay), rel=1e-4)
    assert adamw.relaxation_steps == pytest.approx(1 / (2 * eta * decay), rel=1e-4)
    assert sgd_equilibrium(eta, decay).relaxation_steps == pytest.approx(1 / (4 * eta * decay), rel=1e-4)


def test_lion_with_equal_betas_signs_its_momentum():
    """Then what the sign is taken of is the momentum itself, whose correlation k steps apart is b^k."""
    eta, decay, b = 0.01, 0.3, 0.9
    later = sum((1 - eta * decay) ** (k - 1) * 2 / math.pi * math.asin(b**k) for k in range(1, 400))
    expected = eta**2 * (1 + 2 * (1 - eta * decay) * later) / (1 - (1 - eta * decay) ** 2)
    assert lion_equilibrium(eta, decay, (b, b)).norm ** 2 == pytest.approx(expected, rel=1e-6)


def test_adam_with_the_decay_in_the_gradient_depends_on_the_scale_of_the_loss_and_adamw_does_not():
    def make(kind):
        return lambda p: kind(p, lr=0.01, weight_decay=0.2)

    angles = {
        kind: [simulate(make(kind), 4.0, 2000, scale)[1] for scale in (0.1, 10.0)]
        for kind in (torch.optim.Adam, torch.optim.AdamW)
    }
    assert angles[torch.optim.AdamW][0] == pytest.approx(angles[torch.optim.AdamW][1], rel=1e-4)
    assert max(angles[torch.optim.Adam]) > 2 * min(angles[torch.optim.Adam])


@pytest.mark.parametrize("start", [0.2, 5.0])
def test_the_way_to_equilibrium(start):
    lr, decay = 0.1, 0.01
    predicted = sgd_equilibrium(lr, decay, gradient_norm=GRADIENT)
    norms, _ = simulate(lambda p: torch.optim.SGD(p, lr=lr, weight_decay=decay), start * predicted.norm, 1500)
    for steps in (50, 200, 800):
        assert norms[steps - 1] == pytest.approx(predicted.norm_after(steps, start * predicted.norm), rel=0.02)
    steps = predicted.steps_until(start * predicted.norm)
    assert predicted.norm_after(steps, start * predicted.norm) / predicted.norm == pytest.approx(
        1.05 if start > 1 else 0.95
    )
    assert predicted.steps_until(1.02 * predicted.norm) == 0.0


@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_the_way_with_momentum(momentum):
    """Momentum m makes it 1 / (1 - m) times as fast."""
    lr, decay = 0.01, 0.02
    predicted = sgd_equilibrium(lr, decay, momentum, GRADIENT)
    assert predicted.relaxation_steps == pytest.approx((1.0 - momentum) / (4.0 * lr * decay))

    def make(p):
        return torch.optim.SGD(p, lr=lr, weight_decay=decay, momentum=momentum)

    steps = round(3.0 * predicted.relaxation_steps)
    norms, _ = simulate(make, 5.0 * predicted.norm, steps)
    assert norms[-1] == pytest.approx(predicted.norm_after(steps, 5.0 * predicted.norm), rel=0.015)


def test_the_way_of_steps_of_one_size():
    """Lion, whose steps know nothing of the gradient's size: |x|^2 relaxes in 1 / (2 eta lambda) steps.

    That is 2500 steps here, long beside the 100 that its momentum remembers; with 250 norms are 2 to 4 % below.
    """
    predicted = lion_equilibrium(0.01, 0.02, (0.9, 0.99), ENTRIES)
    assert predicted.relaxation_steps == pytest.approx(1.0 / (2.0 * 0.01 * 0.02))

    def make(p):
        return Lion(p, lr=0.01, betas=(0.9, 0.99), weight_decay=0.02)

    norms, _ = simulate(make, 5.0 * predicted.norm, 4000)
    for steps in (2000, 4000):
        assert norms[steps - 1] == pytest.approx(predicted.norm_after(steps, 5.0 * predicted.norm), rel=0.005)


def test_the_way_of_adamw():
    predicted = adamw_equilibrium(0.01, 0.2, entries=ENTRIES)

    def make(p):
        return torch.optim.AdamW(p, lr=0.01, betas=(0.9, 0.98), weight_decay=0.2)

    norms, _ = simulate(make, 4 * predicted.norm, 1000)
    for steps in (100, 300, 900):  # the second moment lags behind gradients that grow as the norm falls
        assert norms[steps - 1] == pytest.approx(predicted.norm_after(steps, 4 * predicted.norm), rel=0.03)


class TestOfAnOptimizer:
    def parameters(self):
        return [torch.nn.Parameter(torch.ones(2, 3))]

    def test_sgd_and_adamw(self):
        sgd = torch.optim.SGD(self.parameters(), lr=0.1, weight_decay=0.02, momentum=0.9)
        assert equilibrium(sgd, 0, 2.0) == sgd_equilibrium(0.1, 0.02, 0.9, 2.0)
        adamw = torch.optim.AdamW(self.parameters(), lr=0.1, weight_decay=0.02)
        assert equilibrium(adamw, adamw.param_groups[0]) == adamw_equilibrium(0.1, 0.02, entries=6)

    def test_dampening_is_a_smaller_rate(self):
        """A run with dampening .75 balances where a quarter of the rate does, and not where the rate itself does."""

        def make(p):
            return torch.optim.SGD(p, lr=0.4, weight_decay=0.02, momentum=0.5, dampening=0.75)

        predicted = equilibrium(make(self.parameters()), 0, GRADIENT)
        assert predicted == sgd_equilibrium(0.1, 0.02, 0.5, GRADIENT)
        norms, angle = simulate(make, predicted.norm, 2000)
        assert fourth_root(norms) == pytest.approx(predicted.norm, rel=0.02)
        assert angle == pytest.approx(predicted.angular_update, rel=0.02)
        assert sgd_equilibrium(0.4, 0.02, 0.5, GRADIENT).angular_update > 1.9 * angle

    def test_dampening_without_momentum_is_none(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, weight_decay=0.02, dampening=0.9)
        assert equilibrium(optimizer, 0) == sgd_equilibrium(0.1, 0.02)

    def test_nesterov(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, weight_decay=0.02, momentum=0.9, nesterov=True)
        with pytest.raises(ValueError, match="not that of Nesterov's"):
            equilibrium(optimizer, 0)

    def test_nesterov_turns_further_than_plain_momentum(self):
        """Why it is refused."""
        predicted = sgd_equilibrium(0.1, 0.02, 0.9, GRADIENT)

        def make(p):
            return torch.optim.SGD(p, lr=0.1, weight_decay=0.02, momentum=0.9, nesterov=True)

        assert simulate(make, predicted.norm, 1000)[1] > 1.05 * predicted.angular_update

    def test_amsgrad(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.1, weight_decay=0.02, amsgrad=True)
        with pytest.raises(ValueError, match="which never forgets"):
            equilibrium(optimizer, 0)

    def test_lion(self):
        lion = Lion(self.parameters(), lr=0.1, weight_decay=0.02, betas=(0.9, 0.99))
        assert equilibrium(lion, 0) == lion_equilibrium(0.1, 0.02, (0.9, 0.99), 6)

    def test_clipped_sgd(self):
        explicit = ClippedSGD(self.parameters(), lr=0.1, weight_decay=0.02)
        assert equilibrium(explicit, 0, 2.0) == sgd_equilibrium(0.1, 0.02, gradient_norm=2.0)
        intrinsic = ClippedSGD(parameters := self.parameters(), intrinsic_lr=0.01)
        assert equilibrium(intrinsic, 0) == sgd_equilibrium(1.0, 0.01)
        with pytest.raises(ValueError, match="after the first step"):
            equilibrium(intrinsic, 0, 2.0)
        intrinsic.param_groups[0]["lr"] = 0.5  # as a schedule does
        assert equilibrium(intrinsic, 0) == sgd_equilibrium(0.5, 0.01)
        intrinsic.param_groups[0]["lr"] = 1.0
        parameters[0].grad = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
        intrinsic.step()
        norm = equilibrium(intrinsic, 0, math.sqrt(12.0)).norm  # calibrated: it starts at equilibrium
        assert norm == pytest.approx(math.sqrt(6.0), rel=0.01)

    def test_rows_have_no_norm_in_common(self):
        rows = ClippedSGD([{"params": self.parameters(), "rows": True}], intrinsic_lr=0.01)
        assert equilibrium(rows, 0).angular_update == pytest.approx(math.sqrt(0.02), rel=0.01)
        with pytest.raises(ValueError, match="each row of this group"):
            equilibrium(rows, 0, 1.0)

    def test_adam(self):
        with pytest.raises(ValueError, match="depends on the scale of the loss"):
            equilibrium(torch.optim.Adam(self.parameters(), weight_decay=0.1), 0)

    def test_another(self):
        with pytest.raises(TypeError, match="not that of RMSprop"):
            equilibrium(torch.optim.RMSprop(self.parameters(), weight_decay=0.1), 0)


class TestRefusals:
    @pytest.mark.parametrize(("lr", "decay"), [(0.1, 0.0), (0.0, 0.1)])
    def test_no_decay(self, lr, decay):
        with pytest.raises(ValueError, match="no balance"):
            sgd_equilibrium(lr, decay)

    def test_too_much(self):
        with pytest.raises(ValueError, match="must be below 1"):
            adamw_equilibrium(1.0, 2.0)

    def test_a_norm_without_gradient(self):
        with pytest.raises(ValueError, match="give gradient_norm"):
            sgd_equilibrium(0.1, 0.1).steps_until(1.0)

    def test_momentum(self):
        with pytest.raises(ValueError, match="momentum"):
            sgd_equilibrium(0.1, 0.1, 1.5)

    @pytest.mark.parametrize("norm", [0.0, -1.0, math.nan, math.inf])
    def test_what_is_no_length(self, norm):
        balance = sgd_equilibrium(0.1, 0.01, gradient_norm=2.0)
        with pytest.raises(ValueError, match="norm must be a positive length"):
            balance.steps_until(norm)
        with pytest.raises(ValueError, match="norm must be a positive length"):
            balance.norm_after(10, norm)

    def test_the_past_and_equilibrium_itself(self):
        balance = sgd_equilibrium(0.1, 0.01, gradient_norm=2.0)
        with pytest.raises(ValueError, match="steps must not be negative"):
            balance.norm_after(-1, 1.0)
        with pytest.raises(ValueError, match="tolerance must be between 0 and 1"):
            balance.steps_until(1.0, 0.0)

    def test_without_gradient_there_is_decay_and_no_end_of_it(self):
        balance = sgd_equilibrium(0.1, 0.01, gradient_norm=0.0)
        assert balance.norm_after(100, 2.0) == pytest.approx(2.0 * 0.999**100, rel=1e-3)
        with pytest.raises(ValueError, match="nothing to balance it"):
            balance.steps_until(1.0)

    @pytest.mark.parametrize("gradient", [-1.0, math.nan, math.inf])
    def test_gradients_without_size(self, gradient):
        with pytest.raises(ValueError, match="gradient_norm must be a finite length"):
            sgd_equilibrium(0.1, 0.01, gradient_norm=gradient)

    @pytest.mark.parametrize("make", [adamw_equilibrium, lion_equilibrium])
    @pytest.mark.parametrize("betas", [(1.5, 0.999), (1.0, 1.0), (0.9, 1.0), (-0.1, 0.9), (math.nan, 0.9)])
    def test_betas(self, make, betas):
        with pytest.raises(ValueError, match=r"betas must be in \[0, 1\)"):
            make(0.1, 0.01, betas)

    @pytest.mark.parametrize("make", [adamw_equilibrium, lion_equilibrium])
    def test_entries(self, make):
        with pytest.raises(ValueError, match="entries must be at least 1"):
            make(0.1, 0.01, entries=0)
