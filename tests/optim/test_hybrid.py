import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn

from sibert.optim import ClippedSGD, Hybrid, Lamb, schedule, schedule_groups


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.encoder = nn.Parameter(torch.randn(4, 3, generator=generator))
        self.head = nn.Parameter(torch.randn(2, 4, generator=generator))

    def forward(self, x):
        h = torch.relu(x @ self.encoder.t())
        return (h / h.norm().clamp_min(1e-9)) @ self.head.t()


def make(model, head=Lamb):
    return Hybrid(
        [
            ClippedSGD([{"params": [("encoder", model.encoder)], "name": "encoder"}], intrinsic_lr=0.02),
            head([{"params": [("head", model.head)], "name": "head"}], lr=0.01),
        ]
    )


def run(model, optimizer, first, last, scheduler=None):
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(5, 3, generator=generator)).square().sum().backward()
        optimizer.step()
        if scheduler:
            scheduler.step()


def parameters(model):
    return [p.detach().clone() for p in model.parameters()]


def assert_same(model, other):
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_it_steps_as_its_children_would():
    model, twin = Model(), Model()
    optimizer, apart = make(model), make(twin).optimizers
    run(model, optimizer, 0, 5)
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        twin.zero_grad()
        twin(torch.randn(5, 3, generator=generator)).square().sum().backward()
        for child in apart:
            child.step()
    assert_same(model, twin)


def test_groups_are_the_very_dicts_of_the_children_and_states_their_union():
    model = Model()
    optimizer = make(model)
    run(model, optimizer, 0, 1)
    encoder, head = optimizer.optimizers
    assert optimizer.param_groups[0] is encoder.param_groups[0]
    assert optimizer.param_groups[1] is head.param_groups[0]
    assert set(optimizer.state) == {model.head}
    assert [record.name for record in optimizer.statistics()] == ["encoder"]
    optimizer.zero_grad()
    assert model.encoder.grad is None


def test_a_window_ends_where_it_is_reset_and_only_there():
    model = Model()
    optimizer = make(model)
    run(model, optimizer, 0, 3)
    whole = optimizer.statistics()
    assert optimizer.statistics(reset=True) == whole
    assert math.isnan(optimizer.statistics()[0].mean_squared_sigma)
    run(model, optimizer, 3, 4)
    [last] = optimizer.statistics()
    sigma = min(last.clip_factor, 1.0) * last.grad_norm * last.param_norm
    assert last.mean_squared_sigma == pytest.approx(sigma**2) != pytest.approx(whole[0].mean_squared_sigma)
    assert (whole[0].steps, last.steps) == (3, 4)


@pytest.mark.parametrize("head", [Lamb, torch.optim.AdamW])
@pytest.mark.parametrize("broken", ["encoder", "head"])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_bad_gradient_of_one_child_skips_the_step_of_all(head, broken, bad):
    model = Model()
    optimizer = make(model, head)
    run(model, optimizer, 0, 2)
    before, state = parameters(model), copy.deepcopy(list(optimizer.state.values()))
    getattr(model, broken).grad[0, 0] = bad
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    for entries, old in zip(optimizer.state.values(), state, strict=True):
        assert all(torch.equal(entries[key], old[key]) for key in old)
    assert optimizer.skipped_steps == 1
    assert optimizer.statistics()[0].steps == 2


def test_children_alone_would_not_protect_each_other():
    model = Model()
    optimizer = make(model)
    run(model, optimizer, 0, 2)
    before = model.encoder.detach().clone()
    model.head.grad[0, 0] = math.nan
    for child in optimizer.optimizers:
        child.step()
    assert not torch.equal(model.encoder, before)


@pytest.mark.parametrize("head", [Lamb, torch.optim.AdamW])
def test_a_resumed_run_is_bit_identical(head):
    model = Model()
    optimizer = make(model, head)
    schedules = schedule("cosine", 20), {"head": schedule("linear", 20, 5)}
    scheduler = schedule_groups(optimizer, *schedules)
    run(model, optimizer, 0, 7, scheduler)
    saved = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), scheduler.state_dict()], saved)
    run(model, optimizer, 7, 20, scheduler)

    saved.seek(0)
    loaded = torch.load(saved, weights_only=True)
    resumed = Model()
    twin = make(resumed, head)
    scheduler = schedule_groups(twin, *schedules)
    for target, state in zip((resumed, twin, scheduler), loaded, strict=True):
        target.load_state_dict(state)
    assert twin.param_groups[0] is twin.optimizers[0].param_groups[0]
    run(resumed, twin, 7, 20, scheduler)
    assert_same(resumed, model)
    assert twin.statistics() == optimizer.statistics()


def test_a_state_of_another_shape_is_refused():
    optimizer = make(Model())
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict(ClippedSGD([torch.ones(1)], intrinsic_lr=0.1).state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_goes_on_as_the_original(copied):
    model = Model()
    optimizer = make(model)
    run(model, optimizer, 0, 3)
    twin_model, twin = copied((model, optimizer))
    run(model, optimizer, 3, 6)
    run(twin_model, twin, 3, 6)
    assert_same(model, twin_model)


def test_closures_hooks_and_scaler_work_as_on_any_optimizer():
    model = Model()
    optimizer = make(model)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    x = torch.ones(5, 3)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) > optimizer.step(closure)
    assert calls == ["before", "after"] * 2

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = parameters(model)
    optimizer.zero_grad()
    scaler.scale(model(x).square().sum()).backward()
    model.head.grad[0, 0] = math.inf
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    assert scaler.get_scale() == 2.0**9


def test_children_without_gradients_wait():
    model = Model()
    optimizer = make(model)
    before = parameters(model)
    optimizer.step()
    model.head.grad = torch.ones_like(model.head)
    optimizer.step()
    assert torch.equal(model.encoder, before[0])
    assert not torch.equal(model.head, before[1])


def test_a_group_added_to_a_child_is_seen_and_to_the_hybrid_refused():
    optimizer = make(Model())
    optimizer.optimizers[1].add_param_group({"params": [("late", torch.ones(2))], "name": "late"})
    assert [group["name"] for group in optimizer.param_groups] == ["encoder", "head", "late"]
    with pytest.raises(TypeError, match="which of its optimizers"):
        optimizer.add_param_group({"params": [torch.ones(2)]})


def test_names_by_default_differ():
    model = Model()
    optimizer = Hybrid([ClippedSGD([model.encoder], intrinsic_lr=0.02), Lamb([model.head])])
    assert [group["name"] for group in optimizer.param_groups] == ["group0", "lamb0"]


def test_wrong_children_are_refused():
    x = nn.Parameter(torch.ones(2))
    sgd = ClippedSGD([x], intrinsic_lr=0.1)
    with pytest.raises(ValueError, match="at least one"):
        Hybrid([])
    with pytest.raises(TypeError, match="torch optimizers"):
        Hybrid([sgd, "adam"])
    with pytest.raises(ValueError, match="belongs to the optimizers 0 and 1"):
        Hybrid([sgd, Lamb([{"params": [x], "name": "head"}])])
    with pytest.raises(ValueError, match="names must differ"):
        Hybrid([sgd, Lamb([{"params": [torch.ones(2)], "name": "group0"}])])
    with pytest.raises(TypeError, match="LBFGS"):
        Hybrid([torch.optim.LBFGS([x])])
