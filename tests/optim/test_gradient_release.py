"""Steps inside backward are the steps after it, and no gradient stays."""

import copy
import math
import os

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sibert.models import SibertConfig, SibertForMaskedLM
from sibert.optim import (
    ClippedSGD,
    GradientRelease,
    Hybrid,
    Lamb,
    build_optimizer,
    schedule,
    schedule_groups,
    synchronisation,
)
from tests.optim.test_device_step import assert_same_statistics

VOCABULARY, STEPS = 60, 8


def make(invariance="matrix", release=False, **options):
    torch.manual_seed(0)
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    model = SibertForMaskedLM(
        SibertConfig.of_size("nano", vocab_size=VOCABULARY, invariance=invariance, **dropout)
    ).train()
    optimizer = build_optimizer(model, **{"intrinsic_lr": 0.02, **options})
    scheduler = schedule_groups(optimizer, schedule("cosine", 2 * STEPS))
    return model, optimizer, scheduler, GradientRelease(optimizer) if release else None


def train(model, optimizer, scheduler, steps=range(STEPS), forward=None):
    losses = []
    for step in steps:
        torch.manual_seed(100 + step)
        input_ids = torch.randint(5, VOCABULARY, (4, 16))
        optimizer.zero_grad()
        loss = (30.0 if step == 5 else 1.0) * (model if forward is None else forward)(input_ids, labels=input_ids).loss
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses


def assert_same_state(one, other):
    """Parameters, etas, statistics, states: equal to the last bit."""
    (model, optimizer, *_), (twin, twins_optimizer, *_) = one, other
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
    assert_same_statistics(optimizer, twins_optimizer)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        a, b = optimizer.state.get(p, {}), twins_optimizer.state.get(q, {})
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("decides", ["host", "device"])
@pytest.mark.parametrize("implementation", ["reference", None])
@pytest.mark.parametrize("invariance", ["matrix", "row"])
def test_training_is_the_same_bit_for_bit(invariance, implementation, decides, monkeypatch):
    """Groups of a matrix, of a matrix and its bias, of rows, tied to the decoder; eta from the first gradient."""
    if decides == "device":
        monkeypatch.setattr(synchronisation, "host_may_read", lambda device: False)
    ordinary = make(invariance, implementation=implementation)
    released = make(invariance, release=True, implementation=implementation)
    losses = train(*ordinary[:3])
    assert train(*released[:3]) == losses
    assert len(set(losses)) == STEPS
    assert any(record.clipped_fraction > 0 for record in ordinary[1].statistics())
    assert_same_state(ordinary, released)


def test_explicit_learning_rates_and_checkpointed_layers_are_the_same_too():
    ordinary, released = (make(release=release, intrinsic_lr=None, lr=0.5, weight_decay=0.01) for release in (0, 1))
    for model in (ordinary[0], released[0]):
        # Later 5.x versions of transformers renamed the method.
        (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()
    assert train(*ordinary[:3]) == train(*released[:3])
    assert_same_state(ordinary, released)


def test_after_backward_only_the_head_has_a_gradient():
    model, optimizer, _, _ = make(release=True)
    input_ids = torch.randint(5, VOCABULARY, (4, 16))
    model(input_ids, labels=input_ids).loss.backward()
    left = {name for name, p in model.named_parameters() if p.grad is not None}
    assert left == {"decoder.bias", "decoder.log_scale"}
    before = copy.deepcopy(model.state_dict())
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == left


def test_the_hook_of_a_tied_parameter_fires_once_with_the_sum_of_its_gradients():
    """What the release of tied tables relies on."""
    x = nn.Parameter(torch.tensor([1.0, 2.0]))
    seen = []
    x.register_post_accumulate_grad_hook(lambda p: seen.append((p is x, p.grad.tolist())))
    (x.sum() + 3 * x.tanh().detach().sum() + (2 * x)[0]).backward()
    assert seen == [(True, [3.0, 1.0])]


def test_a_group_with_a_member_that_got_no_gradient_steps_at_step():
    def run(release):
        x, y = (nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(2))
        optimizer = ClippedSGD([{"params": [x, y]}], intrinsic_lr=0.1)
        if release:
            GradientRelease(optimizer)
        for step in range(3):
            optimizer.zero_grad()
            both = torch.cat([x, y if step else y.detach()])
            (both / both.norm())[0].backward()
            assert (x.grad is None) == (release and step > 0)
            optimizer.step()
        return x, y

    for one, other in zip(run(False), run(True), strict=True):
        assert torch.equal(one, other)


def test_a_saved_and_loaded_run_goes_on_bit_for_bit():
    whole, first, second = (make("row", release=True) for _ in range(3))
    losses = train(*whole[:3])
    assert train(*first[:3], range(3)) == losses[:3]
    for resumed, saved in zip(second[:3], first[:3], strict=True):
        resumed.load_state_dict(copy.deepcopy(saved.state_dict()))
    assert train(*second[:3], range(3, STEPS)) == losses[3:]
    assert_same_state(whole, second)


def test_a_gradient_that_is_not_finite_skips_its_own_group_alone():
    x, y, head = (nn.Parameter(torch.tensor([3.0, 4.0])) for _ in range(3))
    groups = [{"params": [x], "name": "x"}, {"params": [y], "name": "y"}]
    optimizer = Hybrid([ClippedSGD(groups, intrinsic_lr=0.1), Lamb([head], lr=0.1)])
    release = GradientRelease(optimizer)

    def backward(infinite):
        terms = {"x": (x / x.norm())[0], "y": (y / y.norm())[0], "head": head[0] ** 2}
        sum(term * (math.inf if name in infinite else 1.0) for name, term in terms.items()).backward()
        optimizer.step()
        optimizer.zero_grad()
        return [p[0].item() for p in (x, y, head)], [group.skipped_steps for group in optimizer.statistics()]

    after, skipped = backward("x")
    assert after[0] == 3.0
    assert 3.0 not in after[1:]
    assert skipped == [1, 0]
    again, skipped = backward(("head",))
    assert again[2] == after[2]
    assert again[0] != after[0]
    assert skipped == [1, 0]
    assert optimizer.optimizers[1].skipped_steps == 1
    # The negative twin: an ordinary step is skipped as a whole.
    release.remove()
    once_more, skipped = backward("x")
    assert once_more == again
    assert skipped == [2, 1]


def test_the_learning_rate_is_that_at_the_time_of_backward():
    def run(lrs):
        x = nn.Parameter(torch.tensor([3.0, 4.0]))
        optimizer = ClippedSGD([x], intrinsic_lr=0.1)
        GradientRelease(optimizer)
        for before, after in lrs:
            optimizer.param_groups[0]["lr"] = before
            (x / x.norm())[0].backward()
            optimizer.param_groups[0]["lr"] = after
            optimizer.step()
        return x.tolist()

    assert run([(1.0, 0.1), (0.5, 0.1)]) == run([(1.0, 1.0), (0.5, 0.5)]) != run([(1.0, 1.0), (0.1, 0.1)])


class TwoLayers(nn.Module):
    """Degree 0 in both matrices."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(5, 7), nn.Linear(7, 3, bias=False)

    def forward(self, h):
        h = self.second(nn.functional.normalize(self.first(h).relu(), dim=1))
        return nn.functional.normalize(h, dim=1)[:, 0].tanh().sum()


def test_a_compiled_model_trains_the_same():
    def run(release, compiled):
        model = TwoLayers()
        groups = [{"params": layer.parameters()} for layer in (model.first, model.second)]
        optimizer = ClippedSGD(groups, intrinsic_lr=0.02)
        if release:
            GradientRelease(optimizer)
        forward = torch.compile(model, backend="aot_eager") if compiled else model
        for step in range(5):
            optimizer.zero_grad()
            forward(torch.randn(4, 5, generator=torch.Generator().manual_seed(step))).backward()
            assert all((p.grad is None) == release for p in model.parameters())
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    expected = run(release=False, compiled=True)
    assert torch.equal(run(release=True, compiled=True), expected)
    torch.testing.assert_close(run(release=False, compiled=False), expected)


def test_what_is_needed_after_its_step_is_an_error_not_a_wrong_gradient():
    for implementation in ("reference", "fused"):
        x, y = (nn.Parameter(torch.tensor([[3.0, 4.0], [1.0, 2.0]])) for _ in range(2))
        GradientRelease(ClippedSGD([{"params": [x]}, {"params": [y]}], intrinsic_lr=0.1, implementation=implementation))
        earlier = y / y.norm() * x.detach()
        loss = (earlier * (x / x.norm())).sum()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


# What is refused


def test_gradient_accumulation_is_refused():
    model, optimizer, _, release = make(release=True)
    input_ids = torch.randint(5, VOCABULARY, (4, 16))
    model(input_ids, labels=input_ids).loss.backward()
    with pytest.raises(RuntimeError, match="no gradient accumulation"):
        model(input_ids, labels=input_ids).loss.backward()
    release.remove()
    optimizer.step()
    model(input_ids, labels=input_ids).loss.backward()  # now gradients are what they always were
    model(input_ids, labels=input_ids).loss.backward()


def test_a_parameter_in_two_reentrant_segments_is_refused_and_in_one_it_trains():
    def loss_of(x, segments):
        h = torch.ones(2, requires_grad=True)
        for _ in range(segments):
            h = checkpoint(lambda h: (x / x.norm() * h).sin(), h, use_reentrant=True)
        return h.sum()

    def run(segments, release):
        x = nn.Parameter(torch.tensor([3.0, 4.0]))
        optimizer = ClippedSGD([x], intrinsic_lr=0.1)
        if release:
            GradientRelease(optimizer)
        loss_of(x, segments).backward()
        optimizer.step()
        return x.tolist()

    assert run(1, release=True) == run(1, release=False)
    with pytest.raises(RuntimeError, match="reentrant checkpointing may not use a parameter in two segments"):
        run(2, release=True)


def test_the_joint_model_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="clip factor needs the norm of its whole gradient"):
        make("joint", release=True)


def test_an_optimizer_without_clipped_sgd_is_refused():
    with pytest.raises(TypeError, match="got AdamW"):
        GradientRelease(torch.optim.AdamW([nn.Parameter(torch.ones(2))]))


def test_a_gradient_scaler_is_refused():
    x = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = ClippedSGD([x], intrinsic_lr=0.1)
    GradientRelease(optimizer)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale((x / x.norm())[0]).backward()
    with pytest.raises(ValueError, match="cannot be used with a GradScaler"):
        scaler.step(optimizer)


def test_several_processes_are_refused_when_it_begins_and_when_they_come_later(tmp_path):
    x = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = ClippedSGD([x], intrinsic_lr=0.1)
    GradientRelease(optimizer)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="a process group is initialised"):
            (x / x.norm())[0].backward()
        with pytest.raises(ValueError, match="a process group is initialised"):
            GradientRelease(optimizer)
    finally:
        torch.distributed.destroy_process_group()
    assert "RANK" not in os.environ
