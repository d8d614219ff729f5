import copy
import io
import math

import pytest
import torch

from sibert.optim import Lamb, synchronisation
from tests.optim.toys import quadratic_loss, start


def algorithm_2(x, gradients, lr, beta1, beta2, eps, weight_decay):
    """A plain transcription of Algorithm 2 of arXiv 1904.00962 for one tensor, phi = identity."""
    m, v = torch.zeros_like(x), torch.zeros_like(x)
    for t, g in enumerate(gradients, start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        r = (m / (1 - beta1**t)) / (torch.sqrt(v / (1 - beta2**t)) + eps)
        u = r + weight_decay * x
        ratio = (x.norm() / u.norm()).item() if x.norm() > 0 and u.norm() > 0 else 1.0
        x = x - lr * ratio * u
    return x


@pytest.fixture(params=["host", "device"])
def decides(request, monkeypatch):
    monkeypatch.setattr(synchronisation, "host_may_read", lambda device: request.param == "host")


@pytest.mark.usefixtures("decides")
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(5,), (4, 3), ()])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.5)])
def test_twenty_steps_are_those_of_the_paper(shape, weight_decay, betas):
    torch.manual_seed(1)
    x0 = torch.randn(shape, dtype=torch.float64)
    gradients = [torch.randn(shape, dtype=torch.float64) for _ in range(20)]
    x = torch.nn.Parameter(x0.clone())
    optimizer = Lamb([x], lr=0.05, betas=betas, eps=1e-6, weight_decay=weight_decay)
    for g in gradients:
        x.grad = g
        optimizer.step()
    expected = algorithm_2(x0, gradients, 0.05, *betas, 1e-6, weight_decay)
    torch.testing.assert_close(x.detach(), expected, rtol=1e-15 * 20, atol=1e-15)


def test_every_tensor_has_its_own_trust_ratio():
    torch.manual_seed(1)
    starts = [torch.randn(4, dtype=torch.float64), 100 * torch.randn(4, dtype=torch.float64)]
    parameters = [torch.nn.Parameter(x.clone()) for x in starts]
    for p in parameters:
        p.grad = torch.ones(4, dtype=torch.float64)
    Lamb(parameters, lr=0.05).step()
    for p, x in zip(parameters, starts, strict=True):
        assert ((p.detach() - x).norm() / x.norm()).item() == pytest.approx(0.05)


@pytest.mark.usefixtures("decides")
def test_a_tensor_of_zeros_moves_with_ratio_one():
    x = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = Lamb([x], lr=0.5, eps=1e-12)
    x.grad = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    optimizer.step()
    torch.testing.assert_close(x.detach(), torch.tensor([-0.5, 0.5, -0.5], dtype=torch.float64))


@pytest.mark.usefixtures("decides")
def test_a_gradient_of_zero_without_decay_moves_nothing():
    x = torch.nn.Parameter(torch.ones(3))
    optimizer = Lamb([x], weight_decay=0.0)
    x.grad = torch.zeros(3)
    optimizer.step()
    assert torch.equal(x, torch.ones(3))


@pytest.mark.usefixtures("decides")
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_bad_gradient_changes_neither_parameters_nor_moments_nor_the_count(bad):
    x, y = torch.nn.Parameter(start()), torch.nn.Parameter(start(3))
    optimizer = Lamb([x, y])
    x.grad, y.grad = torch.ones_like(x), torch.ones_like(y)
    optimizer.step()
    before = copy.deepcopy([x.detach(), y.detach(), *optimizer.state[x].values(), *optimizer.state[y].values()])
    y.grad[1] = bad
    optimizer.step()
    after = [x.detach(), y.detach(), *optimizer.state[x].values(), *optimizer.state[y].values()]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert optimizer.skipped_steps == 1


def run(optimizer, x, first, last):
    for step in range(first, last):
        optimizer.zero_grad()
        quadratic_loss(x, step).backward()
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_resumed_run_is_bit_identical(dtype):
    whole = torch.nn.Parameter(start(dtype=dtype))
    optimizer = Lamb([whole], lr=0.05)
    run(optimizer, whole, 0, 7)
    saved = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "x": whole.detach()}, saved)
    run(optimizer, whole, 7, 20)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=True)
    x = torch.nn.Parameter(loaded["x"])
    resumed = Lamb([x], lr=0.05)
    resumed.load_state_dict(loaded["optimizer"])
    run(resumed, x, 7, 20)
    assert torch.equal(x, whole)


def test_the_state_of_another_optimizer_is_refused():
    x = torch.nn.Parameter(start())
    with pytest.raises(ValueError, match="the state is not one of Lamb"):
        Lamb([x]).load_state_dict(torch.optim.AdamW([x]).state_dict())


def test_parameters_without_gradient_are_left_and_have_no_state():
    x, y = torch.nn.Parameter(start()), torch.nn.Parameter(start())
    optimizer = Lamb([x, y])
    optimizer.step()
    x.grad = torch.ones_like(x)
    optimizer.step()
    assert torch.equal(y, start())
    assert list(optimizer.state) == [x]


def test_a_closure_is_evaluated():
    x = torch.nn.Parameter(start())
    optimizer = Lamb([x], lr=0.01)

    def closure():
        optimizer.zero_grad()
        loss = quadratic_loss(x, 0)
        loss.backward()
        return loss

    assert optimizer.step(closure) > optimizer.step(closure)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr"),
        ({"lr": math.nan}, "lr"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"eps": 0.0}, "eps"),
        ({"betas": (0.9, 1.0)}, "betas"),
    ],
)
def test_bad_hyper_parameters_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Lamb([torch.ones(2)], **options)


def test_sparse_gradients_are_refused():
    embedding = torch.nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="dense"):
        Lamb(embedding.parameters()).step()
