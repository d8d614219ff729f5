"""Curvature: against a dense Hessian in float64, hessian-eigenthings, and losses whose Hessian is known."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sibert.dynamics import Hessian, stability_line
from sibert.models import SibertConfig, SibertForMaskedLM

MATRIX = torch.diag(torch.tensor([3.0, 2.0, -1.5, 0.5] + [0.1 * k for k in range(40)], dtype=torch.float64))


class Bowl(nn.Module):
    def __init__(self):
        super().__init__()
        self.x = nn.Parameter(torch.linspace(1.0, 2.0, 44, dtype=torch.float64))

    def loss(self, factor=1.0):
        return 0.5 * factor * self.x @ MATRIX @ self.x


class Net(nn.Module):
    """An affine LayerNorm, attention, and a batch normalisation: what other ways of differentiating get wrong."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(7, 4)
        self.norm, self.batch_norm = nn.LayerNorm(4), nn.BatchNorm1d(4)
        self.dropout, self.head = nn.Dropout(0.2), nn.Linear(4, 7)
        self.double().eval()

    def forward(self, ids_BT):
        x_BTD = self.norm(self.embedding(ids_BT))
        x_BTD = F.scaled_dot_product_attention(x_BTD, x_BTD, x_BTD) + x_BTD
        x_BTD = self.batch_norm(x_BTD.transpose(1, 2)).transpose(1, 2)
        return self.head(self.dropout(torch.tanh(x_BTD)))

    def loss(self, ids_BT):
        return F.cross_entropy(self(ids_BT).flatten(0, 1), ids_BT.roll(1, 1).flatten())


def ids(seed, size=5):
    return torch.randint(7, (size, 6), generator=torch.Generator().manual_seed(seed))


def dense(model, loss, batches):
    """Second derivatives one by one, by finite differences of gradients."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    flat = torch.nn.utils.parameters_to_vector(parameters).detach().clone()

    def gradient(x):
        torch.nn.utils.vector_to_parameters(x, parameters)
        total = sum(loss(batch) for batch in batches) / len(batches)
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(total, parameters)])

    rows = []
    for k in range(len(flat)):
        step = torch.zeros_like(flat)
        step[k] = 1e-5
        rows.append((gradient(flat + step) - gradient(flat - step)) / 2e-5)
    torch.nn.utils.vector_to_parameters(flat, parameters)
    return torch.stack(rows)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_products_and_eigenvalues_are_those_of_the_dense_hessian(mode):
    model = Net()
    if mode == "train":
        model.train()
        model.dropout.p = 0.0
    batches = [ids(0), ids(1)]
    hessian = Hessian(model, model.loss, batches)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    columns = torch.stack([hessian @ column for column in torch.eye(hessian.size, dtype=torch.float64)])
    values = hessian.eigenvalues(3), hessian.eigenvalues(2, smallest=True)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.training == (mode == "train")
    assert all(p.grad is None for p in model.parameters())
    torch.testing.assert_close(columns, columns.T, atol=1e-12, rtol=0)
    expected = dense(model, model.loss, batches)
    torch.testing.assert_close(columns, expected, atol=1e-7, rtol=1e-6)
    spectrum = torch.linalg.eigvalsh(columns)
    assert values[0] == pytest.approx(spectrum[-3:].flip(0).tolist(), rel=1e-8)
    assert values[1] == pytest.approx(spectrum[:2].tolist(), rel=1e-8)


def test_a_parameter_of_two_names_counts_once_and_the_caller_may_have_switched_autograd_off():
    model = Bowl()
    with torch.no_grad():
        assert Hessian(model, model.loss, [1.0], [model.x, model.x]).eigenvalues() == pytest.approx([3.9])


def test_without_curvature_there_is_no_alignment():
    model = Bowl()
    with pytest.raises(ValueError, match="without curvature"):
        Hessian(model, lambda _: model.x.sum(), [1.0]).alignment()


def test_the_layer_norm_of_torch_func_is_wrong_and_this_is_not():
    """The trap that this file avoids; if it closes one day, torch.func.hessian may be used."""
    torch.manual_seed(0)
    x, weight = torch.randn(3, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.x, self.weight = nn.Parameter(x.clone()), nn.Parameter(weight.clone())

        def loss(self, _):
            return F.layer_norm(self.x, (4,), self.weight).pow(3).sum()

    model = One()
    hessian = Hessian(model, model.loss, [None])
    columns = torch.stack([hessian @ column for column in torch.eye(16, dtype=torch.float64)])
    torch.testing.assert_close(columns, dense(model, model.loss, [None]), atol=1e-6, rtol=1e-5)


def test_hessian_eigenthings_agrees():
    from hessian_eigenthings import HessianOperator, lanczos

    model = Net()
    hessian = Hessian(model, model.loss, [ids(0)])
    operator = HessianOperator(model, [ids(0)], lambda m, batch: m.loss(batch))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        theirs = lanczos(operator, k=3, max_iter=60, which="LA", reorthogonalize=True).eigenvalues
    assert hessian.eigenvalues(3) == pytest.approx(sorted(map(float, theirs), reverse=True), rel=1e-5)


class TestWhatIsKnown:
    def test_both_ends_trace_and_gradient(self):
        model = Bowl()
        hessian = Hessian(model, lambda _: model.loss(), [None])
        spectrum = MATRIX.diag().sort(descending=True).values.tolist()
        assert hessian.eigenvalues(3) == pytest.approx(spectrum[:3])
        assert hessian.eigenvalues(2, smallest=True) == pytest.approx([-1.5, 0.0], abs=1e-8)
        assert hessian.trace(4).value == pytest.approx(sum(spectrum))  # signs square to 1: exact for diagonals
        torch.testing.assert_close(hessian.gradient(), MATRIX @ model.x.detach())

    def test_eigenvalues_of_zero_are_found_as_often_as_they_are_there(self):
        model = Bowl()
        hessian = Hessian(model, lambda _: model.x[:3].square().sum(), [None])
        assert hessian.eigenvalues(5) == pytest.approx([2.0, 2.0, 2.0, 0.0, 0.0], abs=1e-6)
        assert hessian.eigenvalues(3, smallest=True) == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)

    def test_batches_are_averaged(self):
        model = Bowl()
        assert Hessian(model, model.loss, [1.0, 3.0]).eigenvalues() == pytest.approx([2 * 3.9])

    def test_the_error_of_the_trace_is_honest(self):
        model = Net()
        hessian = Hessian(model, model.loss, [ids(0)])
        exact = sum((hessian @ column)[k].item() for k, column in enumerate(torch.eye(hessian.size).double()))
        estimates = [hessian.trace(16, seed) for seed in range(40)]
        within = sum(abs(one.value - exact) < 2 * one.error for one in estimates)
        assert 30 <= within <= 40

    def test_alignment(self):
        model = Bowl()
        with torch.no_grad():
            model.x.zero_()[43] = 1.0  # the top eigenvector, 3.9
        hessian = Hessian(model, lambda _: model.loss(), [None])
        assert hessian.alignment() == pytest.approx(1.0)
        value, vector = hessian.top_eigenvector()
        assert value == pytest.approx(3.9)
        assert abs(vector[43].item()) == pytest.approx(1.0)
        with torch.no_grad():
            model.x[42] = 3.9 / 3.8  # a gradient in equal parts
        assert hessian.alignment() == pytest.approx((3.9 + 3.8) / 2 / 3.9)

    def test_a_loss_that_is_linear_has_none(self):
        model = Bowl()
        hessian = Hessian(model, lambda _: model.x.sum(), [None])
        assert (hessian @ torch.ones(44, dtype=torch.float64) == 0).all()
        assert hessian.eigenvalues(2) == [0.0, 0.0]


class TestSphere:
    def model(self, scale):
        torch.manual_seed(0)
        config = SibertConfig.of_size("nano", vocab_size=20, type_vocab_size=0, num_hidden_layers=1)
        model = SibertForMaskedLM(config).double().eval()
        group = list(model.scale_invariant_groups().values())[1]
        chosen = [p for _, p in group.members]
        with torch.no_grad():
            for p in chosen:
                p.mul_(scale)
        ids_BT = torch.randint(1, 20, (2, 6))
        return Hessian(model, lambda b: model(input_ids=b, labels=b).loss, [ids_BT], chosen)

    def test_the_sharpness_on_the_sphere_does_not_feel_the_scale(self):
        one, hundred = self.model(1.0), self.model(100.0)
        assert hundred.spherical_sharpness() == pytest.approx(one.spherical_sharpness(), rel=1e-5)
        assert hundred.eigenvalues()[0] == pytest.approx(one.eigenvalues()[0] / 1e4, rel=1e-5)

    def test_there_is_none_where_the_scale_counts(self):
        model = Bowl()
        with pytest.raises(ValueError, match="the loss depends on their scale"):
            Hessian(model, lambda _: model.loss(), [None]).spherical_sharpness()

    def test_orthogonal_at_one_point_is_not_invariant(self):
        """L = (x_1 - 1) x_2^2 at x = (.5, 1, ...): <x, g> = 0 there, but not at twice x."""
        x = nn.Parameter(torch.tensor([2.0 / 3.0, 1.0], dtype=torch.float64))
        hessian = Hessian(nn.ParameterList([x]), lambda _: (x[0] - 1.0) * x[1].square(), [None])
        assert abs(torch.dot(hessian.gradient(), x.detach()).item()) < 1e-12
        with pytest.raises(ValueError, match="H x is not -g"):
            hessian.spherical_sharpness()

    def test_batches_whose_radial_parts_cancel(self):
        x = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))

        def loss(sign):
            return x[0].square() / x.square().sum() + sign * x.square().sum()

        with pytest.raises(ValueError, match="the loss depends on their scale"):
            Hessian(nn.ParameterList([x]), loss, [1.0, -1.0]).spherical_sharpness()

    def test_of_several_batches_it_is_that_of_their_mean(self):
        x = nn.Parameter(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))

        def loss(k, x=x):
            return x[k].square() / x.square().sum()

        matrix = torch.autograd.functional.hessian(lambda y: (loss(0, y) + loss(1, y)) / 2, x.detach())
        expected = x.square().sum().item() * torch.linalg.eigvalsh(matrix)[-1].item()
        assert Hessian(nn.ParameterList([x]), loss, [0, 1]).spherical_sharpness() == pytest.approx(expected)

    def test_no_length_no_sphere(self):
        x = nn.Parameter(torch.zeros(3))

        def loss(_):
            return F.normalize(x, dim=0)[0]

        with pytest.raises(ValueError, match="the norm of the parameters is 0"):
            Hessian(nn.ParameterList([x]), loss, [None]).spherical_sharpness()

    def test_the_line(self):
        assert stability_line(0.1) == pytest.approx(20.0)
        assert stability_line(0.1, 3.0, 0.5) == pytest.approx(2 * 0.95 * 9 / 0.1)
        with pytest.raises(ValueError, match="must be positive"):
            stability_line(0.0)

    def test_gradient_descent_is_stable_below_the_line_and_not_above(self):
        """L = (x_1 / |x|)^2 at its minimum, in the plane: spherical sharpness 2."""

        def run(lr):
            x = torch.tensor([1e-3, 1.0], dtype=torch.float64, requires_grad=True)
            for _ in range(200):
                (g,) = torch.autograd.grad(x[0].square() / x.square().sum(), x)
                with torch.no_grad():
                    x -= lr * g
                    x /= x.norm()
            return abs(x[0].item())

        x = nn.Parameter(torch.tensor([0.0, 1.0], dtype=torch.float64))
        module = nn.ParameterList([x])
        sharpness = Hessian(module, lambda _: x[0].square() / x.square().sum(), [None]).spherical_sharpness()
        assert sharpness == pytest.approx(2.0)
        critical = 2.0 / sharpness
        assert run(0.9 * critical) < 1e-6 < 1e-2 < run(1.1 * critical)


class TestRates:
    def test_each_entry_at_its_own_rate(self):
        """lambda_1 of D^(1/2) H D^(1/2), dense."""
        model = Bowl()
        hessian = Hessian(model, lambda _: model.loss() + 0.1 * model.x[:6].sum() ** 2, [None])
        matrix = torch.stack([hessian @ column for column in torch.eye(44, dtype=torch.float64)])
        rates = torch.linspace(0.0, 2.0, 44, dtype=torch.float64)
        expected = torch.linalg.eigvalsh(rates.sqrt()[:, None] * matrix * rates.sqrt())[-1].item()
        assert hessian.preconditioned_sharpness([rates]) == pytest.approx(expected, rel=1e-6)
        assert hessian.preconditioned_sharpness([0.3]) == pytest.approx(0.3 * hessian.eigenvalues()[0], rel=1e-6)

    def test_two_groups_are_stable_together_below_2_and_not_above(self):
        """L = (a x + b y)^2 / 2 by GD with a rate for each: diverges exactly where the number exceeds 2."""

        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.x, self.y = (nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(2))

            def loss(self, _):
                return 0.5 * (3.0 * self.x + self.y).sum() ** 2

        for rates, stable in (((0.15, 0.5), True), ((0.15, 0.8), False)):
            model = Two()
            sharpness = Hessian(model, model.loss, [None]).preconditioned_sharpness(rates)
            assert sharpness == pytest.approx(9.0 * rates[0] + rates[1])
            assert (sharpness < 2.0) == stable
            for _ in range(200):
                gradients = torch.autograd.grad(model.loss(None), list(model.parameters()))
                with torch.no_grad():
                    for p, g, rate in zip(model.parameters(), gradients, rates, strict=True):
                        p.sub_(g, alpha=rate)
            assert (model.loss(None).item() < 1e-12) == stable

    def test_refusals(self):
        model = Bowl()
        hessian = Hessian(model, model.loss, [1.0])
        with pytest.raises(ValueError, match="a rate for each of the 1 parameters, got 2"):
            hessian.preconditioned_sharpness([0.1, 0.1])
        with pytest.raises(ValueError, match="must not be negative"):
            hessian.preconditioned_sharpness([-0.1])


def test_progressive_sharpening_over_a_run_ends_at_the_line():
    """A product of four weights fitted by gradient descent: sharpness rises while the loss falls, up to 2 / eta."""

    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.1, 0.2, 0.3, 2.5], dtype=torch.float64))

        def loss(self, _):
            return 0.5 * (self.w.prod() - 2.0) ** 2

    def run(eta):
        model, seen = Product(), []
        for step in range(600):
            if step % 11 == 0:  # odd: what alternates is seen in both phases
                seen.append(Hessian(model, model.loss, [None]).eigenvalues()[0])
            (gradient,) = torch.autograd.grad(model.loss(None), model.w)
            with torch.no_grad():
                model.w -= eta * gradient
        return seen

    slow, fast = run(0.01), run(0.15)
    assert slow[-1] > 5.0 * slow[0]
    assert stability_line(0.15) < slow[-1] < stability_line(0.01)  # where the slow run ends a fast one cannot stay
    assert sum(fast[-10:]) / 10 == pytest.approx(stability_line(0.15), rel=0.08)


class TestRefusals:
    def test_dropout(self):
        model = Net().train()
        with pytest.raises(ValueError, match="this is a random variable"):
            Hessian(model, model.loss, [ids(0)])

    def test_not_finite(self):
        model = Bowl()
        with pytest.raises(ValueError, match="not finite"):
            Hessian(model, lambda _: model.x.sum() * math.nan, [None])

    def test_nothing(self):
        model = Bowl()
        with pytest.raises(ValueError, match="nothing to differentiate"):
            Hessian(model, model.loss, [])
        with pytest.raises(ValueError, match="nothing to differentiate"):
            Hessian(model.requires_grad_(False), model.loss, [1.0])

    def test_sizes(self):
        model = Bowl()
        hessian = Hessian(model, model.loss, [1.0])
        with pytest.raises(ValueError, match=r"shape \(44,\)"):
            hessian @ torch.ones(3)
        with pytest.raises(ValueError, match="count must be between"):
            hessian.eigenvalues(45)
        with pytest.raises(ValueError, match="at least 2 samples"):
            hessian.trace(1)

    def test_a_stationary_point(self):
        model = Bowl()
        with torch.no_grad():
            model.x.zero_()
        with pytest.raises(ValueError, match="stationary point"):
            Hessian(model, model.loss, [1.0]).alignment()
