"""Flows along the manifold of minimisers: against the algorithms they are limits of, and against finite differences."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sibert.dynamics import (
    Minimiser,
    follow,
    function_of,
    label_noise_velocity,
    normalized_gd_velocity,
    project,
    sphere_velocity,
    sqrt_loss_velocity,
)

F64 = torch.float64


def valley(x: Tensor) -> Tensor:
    """Minimisers (x1, 0); lambda_1 = 2 (1 + x1^2)."""
    return (1.0 + x[0] ** 2) * x[1] ** 2


def two_valleys(x: Tensor) -> Tensor:
    """Minimisers (x1, x2, 0, 0) with two eigenvalues, of which the first is larger."""
    return (3.0 + x[0] ** 2 + 0.5 * x[0] * x[1]) * x[2] ** 2 + (1.0 + 0.5 * x[1] ** 2) * x[3] ** 2


def on_sphere(x: Tensor) -> Tensor:
    """Invariant to the scale of x; minimisers z = 0, lambda_1 = (2 + cos phi) / |x|^2."""
    return 0.5 * (2.0 + torch.cos(torch.atan2(x[1], x[0]))) * x[2] ** 2 / (x @ x)


def curved(x: Tensor) -> Tensor:
    """Two equations in four unknowns: a curved surface of minimisers, and no symmetry."""
    generator = torch.Generator().manual_seed(1)
    A = torch.randn(2, 4, generator=generator, dtype=F64)
    B = 0.3 * torch.randn(2, 4, 4, generator=generator, dtype=F64)
    r = A @ x + torch.einsum("kij,i,j->k", B, x, x)
    return 0.5 * (r[0] ** 2 * (1.0 + 0.3 * torch.sin(x[2])) + r[1] ** 2 * (2.0 + 0.5 * x[3] ** 2) + 0.3 * r[0] * r[1])


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def gradient(loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(loss(x), x)[0]


@pytest.fixture(scope="module")
def surface() -> Minimiser:
    start = 0.3 * torch.randn(4, generator=torch.Generator().manual_seed(3), dtype=F64)
    return Minimiser(curved, project(curved, start, 1e-12))


# --- the flows and what they are the limits of ----------------------------------------------------------------------


def normalized_gd(x: Tensor, eta: float, time: float) -> Tensor:
    for _ in range(round(time / eta**2)):
        slope = gradient(valley, x)
        x = x - eta * slope / slope.norm()
    return x


def sqrt_loss_gd(x: Tensor, eta: float, time: float) -> Tensor:
    for _ in range(round(time / eta**2)):
        x = x - eta * gradient(lambda y: valley(y).sqrt(), x)
    return x


@pytest.mark.parametrize(
    ("algorithm", "velocity", "exact"),
    [
        # x' = -x / (2 (1 + x^2)) and x' = -x / 2
        (normalized_gd, normalized_gd_velocity, 1.341307),
        (sqrt_loss_gd, sqrt_loss_velocity, 2.0 * math.exp(-1.5)),
    ],
)
def test_flow_is_the_limit_of_gradient_descent(
    algorithm: Callable[[Tensor, float, float], Tensor], velocity: Callable[[Minimiser], Tensor], exact: float
) -> None:
    """A constant that is wrong by 5 % would move the end by 2 to 7 %."""
    end = follow(valley, vector(2.0, 0.0), velocity, 3.0, steps=40)[-1]
    assert end[0].item() == pytest.approx(exact, rel=1e-3)
    assert end[1].item() == pytest.approx(0.0, abs=1e-12)
    found = algorithm(vector(2.0, 0.05), 0.05, 3.0)
    assert found[0].item() == pytest.approx(exact, rel=5e-3)


def test_only_the_largest_eigenvalue_drives_normalised_gradient_descent() -> None:
    here = Minimiser(two_valleys, vector(0.8, 1.5, 0.0, 0.0))
    a, b = 2.0 * (2.0 * 0.8 + 0.5 * 1.5), 2.0 * 0.5 * 0.8
    top = 2.0 * (3.0 + 0.8**2 + 0.5 * 0.8 * 1.5)
    assert here.eigenvalues_M[0].item() == pytest.approx(top)
    torch.testing.assert_close(normalized_gd_velocity(here), vector(-a / 4.0 / top, -b / 4.0 / top, 0.0, 0.0))
    torch.testing.assert_close(sqrt_loss_velocity(here), vector(-a / 8.0, -b / 8.0, 0.0, 0.0))
    both = vector(a, b + 2.0 * 1.5, 0.0, 0.0)
    torch.testing.assert_close(label_noise_velocity(here, 0.7), -0.7 / 4.0 * both)


def test_weight_decay_on_the_sphere() -> None:
    """GD + WD at two rates against the flow; 5 % more or less of time would move the angle by 0.006."""
    start = vector(math.cos(0.6), math.sin(0.6), 0.0)
    end = follow(on_sphere, start, sphere_velocity, 3.0, steps=40)[-1]
    angle = torch.atan2(end[1], end[0]).item()
    assert end.norm().item() == pytest.approx(1.0, abs=1e-12)
    eta, decay = 0.05, 5e-3  # eta lambda = 2.5e-4
    x = vector(math.cos(0.6), math.sin(0.6), 1e-3) * math.sqrt(eta * 2.8 / 2.0)
    for _ in range(round(3.0 / (eta * decay))):
        x = (1.0 - eta * decay) * x - eta * gradient(on_sphere, x)
    assert angle == pytest.approx(0.9799, abs=2e-4)
    assert torch.atan2(x[1], x[0]).item() == pytest.approx(angle, abs=4e-3)


def test_label_noise_flow_has_its_exact_solution() -> None:
    """L = (1 + x^2) y^2 / 2, tr H = 1 + x^2: x exp(-c tau / 2)."""
    end = follow(lambda x: 0.5 * valley(x), vector(2.0, 0.0), lambda m: label_noise_velocity(m, 0.8), 1.5, 40)[-1]
    assert end[0].item() == pytest.approx(2.0 * math.exp(-0.6), rel=1e-4)


def test_label_noise_sgd_follows_the_flow() -> None:
    """Square loss on one example whose label is off by +-1: c = 1; many runs at once, and two rates for the limit."""
    time, runs = 0.2, 2000
    ends = []
    for eta in (0.05, 0.025):
        generator = torch.Generator().manual_seed(0)
        x, y = torch.full((runs,), 1.0, dtype=F64), torch.zeros(runs, dtype=F64)
        for _ in range(round(time / eta**2)):
            f = (1.0 + x**2).sqrt() * y  # L = f^2 / 2
            error = f - torch.randint(2, (runs,), generator=generator).double().mul_(2).sub_(1)
            root = (1.0 + x**2).sqrt()
            x, y = x - eta * error * x * y / root, y - eta * error * root
        ends.append(x.mean().item())
    extrapolated = 2.0 * ends[1] - ends[0]
    # a 5 % wrong c would move it by 0.005
    assert extrapolated == pytest.approx(math.exp(-time / 2.0), abs=2e-3)


def test_flow_is_of_second_order_in_its_steps() -> None:
    ends = [follow(valley, vector(2.0, 0.0), sqrt_loss_velocity, 3.0, n)[-1][0].item() for n in (5, 10, 20)]
    errors = [abs(end - 2.0 * math.exp(-1.5)) for end in ends]
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.25)
    assert errors[1] / errors[2] == pytest.approx(4.0, rel=0.25)


def test_flow_stays_on_a_curved_manifold(surface: Minimiser) -> None:
    points = follow(curved, surface.point, normalized_gd_velocity, 0.5, 10)
    assert max(curved(x).item() for x in points) < 1e-24
    values = [Minimiser(curved, x).eigenvalues_M[0].item() for x in points]
    assert values == sorted(values, reverse=True)
    assert values[0] > 1.01 * values[-1]


# --- projection and drift -------------------------------------------------------------------------------------------


def test_projection_does_not_see_the_gradient(surface: Minimiser) -> None:
    """Moving along the gradient flow does not change where it ends; on Gamma its derivative is P_T."""
    x = surface.point + 0.05 * vector(1.0, -1.0, 0.5, 0.3)
    end = project(curved, x, 1e-12)
    later = project(curved, x - 1e-4 * gradient(curved, x), 1e-12)
    assert (later - end).norm().item() < 1e-7  # 1e-8: the Euler step's own error
    v = vector(0.3, 0.2, -0.5, 0.7)
    h = 1e-4
    derivative = (project(curved, surface.point + h * v, 1e-12) - project(curved, surface.point - h * v, 1e-12)) / (
        2.0 * h
    )
    torch.testing.assert_close(derivative, surface.tangent(v), atol=1e-5, rtol=0.0)


def test_drift_is_the_second_derivative_of_the_projection(surface: Minimiser) -> None:
    """All three terms are large: none could be wrong by 5 % unseen."""
    generator = torch.Generator().manual_seed(5)
    factor = torch.randn(4, 3, generator=generator, dtype=F64)
    drift = surface.drift(factor)
    h, half = 1e-3, torch.zeros(4, dtype=F64)
    for column in factor.unbind(1):
        ends = [project(curved, surface.point + s * h * column, 1e-12) for s in (1.0, -1.0)]
        half += (ends[0] + ends[1] - 2.0 * surface.point) / (2.0 * h**2)
    scale = half.norm().item()
    assert (drift.total - half).norm().item() < 2e-4 * scale
    for term in (drift.curvature, drift.mixed, drift.regularization):
        assert term.norm().item() > 0.1 * scale


def test_drift_of_label_noise_is_its_velocity(surface: Minimiser) -> None:
    root = surface.vectors_NM * surface.eigenvalues_M.sqrt()
    drift = surface.drift(root)  # Sigma = H
    torch.testing.assert_close(drift.total, label_noise_velocity(surface, 1.0), atol=1e-9, rtol=1e-9)


def test_isotropic_noise_favours_a_small_determinant(surface: Minimiser) -> None:
    """Its normal part gives -(s^2 / 4) P_T grad log of the product of positive eigenvalues."""
    drift = surface.drift(torch.eye(4, dtype=F64))
    h = 1e-5
    expected = torch.zeros(4, dtype=F64)
    for axis in torch.eye(4, dtype=F64):
        t = surface.tangent(axis)
        logs = [
            Minimiser(curved, surface.retract(surface.point + s * h * t)).eigenvalues_M.log().sum() for s in (1.0, -1.0)
        ]
        expected += -0.25 * (logs[0] - logs[1]) / (2.0 * h) * axis
    torch.testing.assert_close(drift.regularization, surface.tangent(expected), atol=1e-6, rtol=1e-5)


# --- models ---------------------------------------------------------------------------------------------------------


def test_function_of_a_model_is_its_loss_and_leaves_it_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    batches = [(torch.randn(2, 3, dtype=F64), torch.randn(2, 1, dtype=F64)) for _ in range(2)]

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        return (model(batch[0]) - batch[1]).square().mean()

    before = [p.detach().clone() for p in model.parameters()]
    function, x = function_of(model, loss, batches)
    total = sum(loss(batch) for batch in batches) / 2.0
    assert isinstance(total, Tensor)
    torch.testing.assert_close(function(x), total)
    expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(total, list(model.parameters()))])
    torch.testing.assert_close(gradient(function, x), expected)
    assert function(x + 0.1).item() != pytest.approx(total.item())
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())

    # four equations in 21 unknowns
    minimiser = Minimiser(function, project(function, x))
    assert minimiser.eigenvalues_M.numel() == 4
    ends = follow(function, minimiser.point, normalized_gd_velocity, 0.2, 4)
    assert Minimiser(function, ends[-1]).eigenvalues_M[0] < 0.999 * minimiser.eigenvalues_M[0]


@pytest.mark.parametrize("training", [False, True])
def test_function_of_a_model_with_buffers(training: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh()).double().train(training)
    batches = [torch.randn(5, 3, dtype=F64) for _ in range(2)]
    function, x = function_of(model, lambda batch: model(batch).square().mean(), batches)
    before = [buffer.clone() for buffer in model.buffers()]
    found = gradient(function, x)
    assert all(torch.equal(old, new) for old, new in zip(before, model.buffers(), strict=True))
    total = torch.stack([model(batch).square().mean() for batch in batches]).mean()
    expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(total, list(model.parameters()))])
    torch.testing.assert_close(found, expected)


def test_function_of_some_parameters() -> None:
    model = nn.Linear(2, 1).double()
    function, x = function_of(
        model, lambda batch: model(batch).square().mean(), [torch.ones(1, 2).double()], [model.bias]
    )
    assert x.shape == (1,)
    assert function(x - x).item() == pytest.approx(model.weight.sum().item() ** 2)
    with pytest.raises(ValueError, match="nothing to differentiate"):
        function_of(model, lambda batch: model(batch).mean(), [])


# --- refusals -------------------------------------------------------------------------------------------------------


def test_refusals() -> None:
    with pytest.raises(ValueError, match="float64"):
        Minimiser(valley, torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="float64"):
        project(valley, torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="no minimiser"):
        Minimiser(lambda x: x[0] ** 2 - x[1] ** 2, vector(0.0, 0.0))
    with pytest.raises(ValueError, match=r"nearest minimiser is about 0\.33 away"):
        Minimiser(lambda x: (x[1] ** 2 - 1.0) ** 2, vector(1.0, 1.5))
    with pytest.raises(ValueError, match="Hessian is zero"):
        Minimiser(lambda x: x.sum(), vector(1.0, 0.5))
    with pytest.raises(ValueError, match="not come to rest"):
        project(lambda x: x.sum(), vector(1.0, 0.5), evaluations=1000)
    with pytest.raises(ValueError, match="multiple eigenvalue"):
        normalized_gd_velocity(Minimiser(lambda x: x[1] ** 2 + x[2] ** 2, vector(1.0, 0.0, 0.0)))
    with pytest.raises(ValueError, match="degree -2"):
        sphere_velocity(Minimiser(valley, vector(1.0, 0.0)))
    with pytest.raises(ValueError, match=r"shape \(2, K\)"):
        Minimiser(valley, vector(1.0, 0.0)).drift(torch.ones(3, 1, dtype=F64))
    with pytest.raises(ValueError, match="more steps"):
        follow(valley, vector(2.0, 0.0), lambda m: vector(1e9, 1e9), 1.0, 1)
