"""Where the host does not read: all groups by a constant number of operations, each as if it were alone."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sibert.optim import ClippedSGD, synchronisation
from sibert.optim.norms import squared_norm, squared_norms
from sibert.optim.statistics import RECORDED

pytestmark = pytest.mark.usefixtures("device_decides")
MEMBERS = (1, 2, 3, 5, 1, 8)
"""Tensors of each group."""


@pytest.fixture
def device_decides(monkeypatch):
    """Take the code path of an accelerator on CPU tensors."""
    monkeypatch.setattr(synchronisation, "host_may_read", lambda device: False)


class Operations(TorchDispatchMode):
    """Counts what would be launched: everything but views."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        of_inputs = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        is_view = isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() in of_inputs
        self.count += not is_view or func._schema.is_mutable
        return result


def optimizer_of(members, rows=False, **options):
    generator = torch.Generator().manual_seed(0)
    groups = [
        {"params": [torch.nn.Parameter(torch.randn(4, 3 + k, generator=generator)) for k in range(m)], "rows": rows}
        for m in members
    ]
    return ClippedSGD(groups, **(options or {"intrinsic_lr": 0.05}))


def set_gradients(optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.randn(p.shape, generator=generator)


def operations(groups, rows):
    optimizer = optimizer_of([1] * groups, rows)
    for step in range(2):
        set_gradients(optimizer, step)
        with Operations() as counted:
            optimizer.step()
    return counted.count


def test_a_group_costs_its_own_descent_and_nothing_else():
    """Without the kernel: decay, step, and the two scalars that torch's fused SGD takes in float32."""
    few, many = operations(5, rows=False), operations(25, rows=False)
    assert (many - few) / 20 <= 4
    assert few <= 100


def test_a_group_of_rows_costs_its_norms_its_descent_and_its_means():
    few, many = operations(5, rows=True), operations(25, rows=True)
    assert (many - few) / 20 <= 13
    assert few <= 200


def assert_same_statistics(optimizer, twin):
    """To the last bit but for the angle: torch's atan2 rounds otherwise where a vector of numbers ends."""
    for record, twins_record in zip(optimizer.statistics(), twin.statistics(), strict=True):
        assert record.angular_update == pytest.approx(twins_record.angular_update, rel=1e-15, abs=0.0, nan_ok=True)
        same_angle = replace(record, angular_update=twins_record.angular_update)
        assert repr(same_angle) == repr(twins_record)  # NaN equals NaN in words


@pytest.mark.parametrize("rows", [False, True])
def test_every_group_steps_as_if_it_were_alone_to_the_last_bit(rows):
    together, alone = optimizer_of(MEMBERS, rows), optimizer_of(MEMBERS, rows)
    for step in range(4):
        set_gradients(together, step)
        set_gradients(alone, step)
        together.step()
        for index in range(len(MEMBERS)):
            alone._release(index)
        alone._released.clear()
    for group, twin in zip(together.param_groups, alone.param_groups, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(group["params"], twin["params"], strict=True))
    assert_same_statistics(together, alone)


def test_norms_of_groups_are_those_of_each():
    generator = torch.Generator().manual_seed(3)
    groups = [
        [torch.randn(3 + k, generator=generator).to(dtype) for k in range(m)]
        for m in MEMBERS
        for dtype in (torch.float32, torch.float64, torch.bfloat16)
    ]
    groups.append([groups[0][0], groups[1][0]])  # of two dtypes
    home = torch.device("cpu")
    expected = torch.stack([squared_norm(group, home, wide=True) for group in groups])
    torch.testing.assert_close(squared_norms(groups, home), expected, rtol=1e-12, atol=0)
    groups[4][0][0] = torch.inf  # of one group, and seen there alone
    assert squared_norms(groups, home).isfinite().logical_not().nonzero().flatten().tolist() == [4]


def test_what_has_no_gradient_or_no_learning_rate_stays():
    optimizer = optimizer_of((1, 1, 1))
    set_gradients(optimizer, 0)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.param_groups[1]["params"][0].grad = None
    before = copy.deepcopy([group["params"][0].detach() for group in optimizer.param_groups])
    optimizer.step()
    same = [torch.equal(g["params"][0], old) for g, old in zip(optimizer.param_groups, before, strict=True)]
    assert same == [True, True, False]
    assert [record.steps for record in optimizer.statistics()] == [0, 0, 1]


def test_groups_of_every_kind_step_side_by_side():
    """Explicit and intrinsic, clipped and not, rows and not, each as in an optimizer of its own."""
    kinds = [
        {"intrinsic_lr": 0.05},
        {"lr": 0.3, "weight_decay": 0.1},
        {"lr": 0.3, "weight_decay": 0.0, "clip": None},
        {"lr": 0.01, "weight_decay": 5.0, "two_sided": True},
        {"lr": 0.01, "weight_decay": 5.0, "two_sided": True, "rows": True},
        {"intrinsic_lr": 0.05, "rows": True},
        {"lr": 0.3, "weight_decay": 0.1, "rows": True},
        {"intrinsic_lr": 0.05, "implementation": "reference"},
        {"intrinsic_lr": 0.05, "implementation": "foreach"},
    ]
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(4, 3, generator=generator) for _ in kinds]
    xs = [torch.nn.Parameter(x.clone()) for x in starts]
    optimizer = ClippedSGD(
        [{"params": [x], **kind} for x, kind in zip(xs, kinds, strict=True)], lr=0.1, weight_decay=0.1
    )
    alone = [
        ClippedSGD([{"params": [torch.nn.Parameter(x.clone())], **kind}], lr=0.1, weight_decay=0.1)
        for x, kind in zip(starts, kinds, strict=True)
    ]
    for _ in range(3):
        gradients = [torch.randn(4, 3, generator=generator) for _ in kinds]
        for x, single, gradient in zip(xs, alone, gradients, strict=True):
            x.grad, single.param_groups[0]["params"][0].grad = gradient.clone(), gradient.clone()
            single.step()
        optimizer.step()
    for x, single in zip(xs, alone, strict=True):
        assert torch.equal(x, single.param_groups[0]["params"][0])


def test_a_run_that_was_saved_with_a_dict_of_statistics_goes_on():
    optimizer, resumed = optimizer_of((2, 1)), optimizer_of((2, 1))
    set_gradients(optimizer, 0)
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        group["statistics"] = dict(zip(RECORDED, group["statistics"].unbind(), strict=True))
    resumed.load_state_dict(state)
    assert resumed.statistics() == optimizer.statistics()
