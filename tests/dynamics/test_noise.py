"""Signal and noise of gradients, against distributions that are known."""

import math

import pytest
import torch
from torch import nn

from sibert.dynamics import GradientNoise, gradient_noise, square_root_scaling

MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
ROOT = torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.5, 0.0], [0.0, 1.0, 3.0]], dtype=torch.float64)
G, N = float(MEAN.square().sum()), float(ROOT.square().sum())


class Linear(nn.Module):
    """The gradient of its loss is the batch."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def loss(self, batch):
        return self.theta @ batch


def draw(count, seed=0, batch_size=1):
    generator = torch.Generator().manual_seed(seed)
    examples = torch.randn(count, batch_size, 3, generator=generator, dtype=torch.float64).mean(1)
    return list(MEAN + examples @ ROOT.T)


def test_both_estimates_are_right_and_their_errors_honest():
    model = Linear()
    found = [gradient_noise(model, model.loss, draw(64, seed), 1) for seed in range(200)]
    for name, expected in (("squared_mean", G), ("trace", N)):
        values = torch.tensor([getattr(one, name) for one in found])
        claimed = torch.tensor([getattr(one, f"{name}_error") for one in found]).mean()
        spread = values.std()
        assert values.mean().item() == pytest.approx(expected, abs=4 * spread.item() / math.sqrt(200))
        assert claimed.item() == pytest.approx(spread.item(), rel=0.25)


def test_both_are_those_of_the_sample_covariance():
    """N is the sum of the unbiased variances of the entries, G what is left of the squared mean."""
    model, batches = Linear(), draw(40, seed=3)
    gradients = torch.stack(batches)
    trace = gradients.var(0, correction=1).sum().item()
    found = gradient_noise(model, model.loss, batches, 1)
    assert found.trace == pytest.approx(trace, rel=1e-12)
    assert found.squared_mean == pytest.approx(gradients.mean(0).square().sum().item() - trace / 40, rel=1e-12)


def test_the_naive_estimate_of_the_signal_is_biased():
    """Twin: the squared norm of the mean is too large by N / n."""
    means = [torch.stack(draw(64, seed)).mean(0).square().sum().item() for seed in range(200)]
    assert sum(means) / 200 - G == pytest.approx(N / 64, rel=0.5)
    assert sum(means) / 200 - G > 0.1


def test_noise_falls_with_the_batch():
    model = Linear()
    large = gradient_noise(model, model.loss, draw(4000, batch_size=8), 8)
    assert large.trace == pytest.approx(N / 8, rel=0.05)
    assert large.at(1).trace == pytest.approx(N, rel=0.05)
    assert large.at(1).trace_error == pytest.approx(8 * large.trace_error)
    assert large.at(1).squared_mean_error == large.squared_mean_error
    assert large.critical_batch_size == pytest.approx(N / G, rel=0.1)
    assert large.at(1).critical_batch_size == pytest.approx(large.critical_batch_size)


def test_a_model_is_left_as_it_is():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 1))
    model[0].weight.grad = torch.ones_like(model[0].weight)
    batches = [torch.randn(8, 4) for _ in range(16)]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    numbers = torch.get_rng_state()
    gradient_noise(model, lambda x: model(x).square().mean(), batches, 8)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), numbers)
    assert model.training
    assert (model[0].weight.grad == 1).all()
    assert model[3].weight.grad is None


def test_some_parameters_only_and_parameters_that_do_not_matter():
    model = Linear()
    model.other = nn.Parameter(torch.ones(2, dtype=torch.float64))
    whole = gradient_noise(model, model.loss, draw(32), 1)
    assert whole == gradient_noise(model, model.loss, draw(32), 1, [model.theta])


def test_a_parameter_of_two_names_counts_once():
    model = Linear()
    once = gradient_noise(model, model.loss, draw(32), 1, [model.theta])
    assert gradient_noise(model, model.loss, draw(32), 1, [model.theta, model.theta]) == once


def test_sparse_gradients_and_callers_without_autograd():
    torch.manual_seed(0)
    dense = nn.Embedding(7, 4)
    sparse = nn.Embedding(7, 4, sparse=True, _weight=dense.weight.detach().clone())
    batches = [torch.randint(7, (5,)) for _ in range(16)]
    expected = gradient_noise(dense, lambda ids: dense(ids).square().mean(), batches, 5)
    with torch.no_grad():
        found = gradient_noise(sparse, lambda ids: sparse(ids).square().mean(), batches, 5)
    assert found.trace == pytest.approx(expected.trace)
    assert found.squared_mean == pytest.approx(expected.squared_mean)


def test_a_buffer_that_is_replaced_is_put_back():
    class Counts(Linear):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def loss(self, batch):
            self.count = self.count + 1
            return super().loss(batch)

    model = Counts()
    count = model.count
    gradient_noise(model, model.loss, draw(16), 1)
    assert model.count is count
    assert count == 0


class TestVerdicts:
    def noise(self, ratio):
        return GradientNoise(64, 32, 2.0, 2.0 * ratio, 0.1, 0.1)

    def test_of_the_equation(self):
        assert self.noise(1.0).sde_can_model
        assert not self.noise(0.99).sde_can_model
        assert "an SDE cannot model" in str(self.noise(0.5))
        assert "an SDE can model" in str(self.noise(20.0))

    def test_of_linear_scaling(self):
        assert self.noise(7.0).largest_linear_scaling == 16.0
        assert self.noise(7.0).critical_batch_size == 32 * 7.0
        assert "kappa = C^2 (1 + N / G) = 16;" in str(self.noise(7.0))

    def test_no_signal(self):
        nothing = GradientNoise(64, 32, -0.1, 2.0, 0.1, 0.1)
        assert nothing.noise_to_signal == math.inf
        assert nothing.sde_can_model


class TestSquareRootScaling:
    def test_by_hand(self):
        scaled = square_root_scaling(4.0, 0.01, (0.9, 0.99), 1e-6)
        assert scaled["lr"] == pytest.approx(0.02)
        assert scaled["betas"] == pytest.approx((0.6, 0.96))
        assert scaled["eps"] == pytest.approx(5e-7)
        assert square_root_scaling(4.0, 0.01, (0.0, 0.99))["betas"][0] == 0.0

    def test_it_keeps_the_spread_of_adam_and_the_linear_rule_does_not(self):
        """Noise of standard deviation 1 at batch 1 on a bowl; 16 times the batch, in a sixteenth of the steps."""

        def spread(lr, betas, eps, batch, steps):
            generator = torch.Generator().manual_seed(0)
            x = nn.Parameter(torch.zeros(4000, dtype=torch.float64))
            optimizer = torch.optim.Adam([x], lr=lr, betas=betas, eps=eps)
            for _ in range(steps):
                noise = torch.randn(4000, generator=generator, dtype=torch.float64) / math.sqrt(batch)
                x.grad = 0.2 * x.detach() + noise
                optimizer.step()
            return x.std().item()

        plain = {"lr": 0.01, "betas": (0.99, 0.99), "eps": 1.0}
        expected = spread(**plain, batch=1, steps=3200)
        assert spread(**square_root_scaling(16.0, **plain), batch=16, steps=200) == pytest.approx(expected, rel=0.05)
        assert spread(**plain | {"lr": 0.16}, batch=16, steps=200) > 1.4 * expected

    def test_refusals(self):
        with pytest.raises(ValueError, match="up to 10, got 16"):
            square_root_scaling(16.0, 0.01)
        with pytest.raises(ValueError, match="kappa must be positive"):
            square_root_scaling(0.0, 0.01)


class TestRefusals:
    def test_few_batches(self):
        model = Linear()
        with pytest.raises(ValueError, match="15 batches are too few"):
            gradient_noise(model, model.loss, draw(15), 1)

    def test_nothing_trainable(self):
        model = Linear().requires_grad_(False)
        with pytest.raises(ValueError, match="nothing to differentiate"):
            gradient_noise(model, model.loss, draw(16), 1)

    def test_not_finite(self):
        model = Linear()
        with pytest.raises(ValueError, match="not finite"):
            gradient_noise(model, model.loss, [*draw(20), torch.full((3,), math.nan, dtype=torch.float64)], 1)

    def test_gradients_of_zero(self):
        model = Linear()
        found = gradient_noise(model, model.loss, [torch.zeros(3, dtype=torch.float64)] * 16, 1)
        for verdict in ("noise_to_signal", "critical_batch_size", "sde_can_model", "largest_linear_scaling"):
            with pytest.raises(ValueError, match="without signal and without noise"):
                getattr(found, verdict)
        assert "SDE can model" not in str(found)
