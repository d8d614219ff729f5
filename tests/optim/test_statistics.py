import dataclasses
import math

import pytest
import torch

from sibert.optim import ClippedSGD, GroupStatistics
from tests.optim.toys import invariant_loss, quadratic_loss, start


def run(implementation, loss=invariant_loss, steps=100, observe=lambda *_: None, **options):
    x = torch.nn.Parameter(start())
    optimizer = ClippedSGD([{"params": [x], **options}], intrinsic_lr=0.01, implementation=implementation)
    for step in range(steps):
        before = x.detach().clone()
        optimizer.zero_grad()
        loss(x, step).backward()
        optimizer.step()
        observe(before, x.grad, x.detach(), optimizer.statistics()[0])
    return optimizer


def test_before_the_first_step_nothing_is_known():
    record = ClippedSGD([torch.ones(2)], 0.1, 0.1).statistics()[0]
    assert (record.steps, record.skipped_steps, record.lr, record.weight_decay) == (0, 0, 0.1, 0.1)
    assert all(
        math.isnan(value) for value in (record.eta, record.param_norm, record.grad_norm, record.clipped_fraction)
    )


@pytest.mark.parametrize("implementation", ["reference", "foreach", "fused"])
def test_norms_and_angles_are_those_of_the_step_that_was_taken(implementation):
    """Also between measurements, where the fused step carries the norm on by Pythagoras."""

    def check(before, gradient, after, record):
        assert record.param_norm == pytest.approx(before.norm().item(), rel=1e-9)
        assert record.grad_norm == pytest.approx(gradient.norm().item(), rel=1e-9)
        cosine = torch.nn.functional.cosine_similarity(before, after, dim=0).item()
        assert record.angular_update == pytest.approx(math.acos(min(1.0, cosine)), rel=1e-5)
        assert record.effective_lr == pytest.approx(record.eta / before.norm().item() ** 2)
        assert record.intrinsic_lr == pytest.approx(0.01)

    run(implementation, observe=check)


def test_where_the_gradient_is_not_orthogonal_the_norm_is_measured_if_the_group_says_so():
    def check(before, gradient, after, record):
        assert record.param_norm == pytest.approx(before.norm().item(), rel=1e-9)

    run("fused", quadratic_loss, observe=check, scale_invariant=False)
    with pytest.raises(AssertionError):
        run("fused", quadratic_loss, observe=check, scale_invariant=True)


def test_the_window_counts_and_averages_since_the_last_reset():
    x = torch.nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    optimizer = ClippedSGD([x], 0.5, 0.04)
    sigmas, clipped = [], []
    for length in (1.0, 8.0, 2.0, 20.0):
        x.grad = torch.tensor([0.0, length], dtype=torch.float64)
        optimizer.step()
        record = optimizer.statistics()[0]
        sigmas.append((record.clip_factor * record.grad_norm * record.param_norm) ** 2)
        clipped.append(record.clip_factor < 1)
    record = optimizer.statistics(reset=True)[0]
    assert record.mean_squared_sigma == pytest.approx(sum(sigmas) / 4)
    assert record.clipped_fraction == sum(clipped) / 4 == 0.5
    x.grad = torch.tensor([0.0, 0.1], dtype=torch.float64)
    optimizer.step()
    record = optimizer.statistics()[0]
    assert record.clipped_fraction == 0
    assert record.steps == 5


def test_a_scheduler_that_moved_lr_since_the_step_does_not_change_what_the_step_was():
    x = torch.nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    optimizer = ClippedSGD([x], 0.5, 0.04)
    x.grad = torch.tensor([0.0, 1.0], dtype=torch.float64)
    optimizer.step()
    before = optimizer.statistics()[0]
    optimizer.param_groups[0]["lr"] = 0.125
    assert optimizer.statistics()[0] == dataclasses.replace(before, lr=0.125)


def test_without_weight_decay_there_is_no_equilibrium():
    x = torch.nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    optimizer = ClippedSGD([x], 0.5, 0.0, clip=None)
    x.grad = torch.tensor([0.0, 1.0], dtype=torch.float64)
    optimizer.step()
    assert optimizer.statistics()[0].equilibrium_norm == math.inf


def test_every_number_is_a_plain_one():
    optimizer = run("fused", steps=2)
    types = {
        field.name: type(getattr(optimizer.statistics()[0], field.name))
        for field in dataclasses.fields(GroupStatistics)
    }
    assert types.pop("name") is str
    assert {types.pop("steps"), types.pop("skipped_steps")} == {int}
    assert set(types.values()) == {float}
