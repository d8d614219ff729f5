import copy
import io
import math
import pickle

import pytest
import torch

from sibert.optim import ClippedSGD
from tests.optim.toys import algorithm_1, invariant_loss, quadratic_loss, start, trajectory

IMPLEMENTATIONS = ["reference", "foreach", "fused"]


def parameter(*values, dtype=torch.float64):
    return torch.nn.Parameter(torch.tensor(values, dtype=dtype))


def stepped(x, g, **options):
    optimizer = ClippedSGD([x], **options)
    x.grad = torch.tensor(g, dtype=x.dtype)
    optimizer.step()
    return optimizer


# Algorithm 1


THRESHOLD_FOUR = {"lr": 0.5, "weight_decay": 0.04}
"""x = (3, 4), |x| = 5; eta = 0.5, lambda = 0.04: threshold 2 sqrt(2 * 0.04 / 0.5) * 5 = 4, decay 0.98."""


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
class TestThreshold:
    def test_a_gradient_twice_the_threshold_is_halved(self, implementation):
        x = parameter(3.0, 4.0)
        optimizer = stepped(x, [0.0, 8.0], implementation=implementation, **THRESHOLD_FOUR)
        torch.testing.assert_close(x.detach(), torch.tensor([2.94, 3.92 - 0.5 * 4.0], dtype=torch.float64))
        assert optimizer.statistics()[0].clip_factor == pytest.approx(0.5)

    def test_a_gradient_just_below_the_threshold_is_left(self, implementation):
        x = parameter(3.0, 4.0)
        optimizer = stepped(x, [0.0, 3.999], implementation=implementation, **THRESHOLD_FOUR)
        torch.testing.assert_close(x.detach(), torch.tensor([2.94, 3.92 - 0.5 * 3.999], dtype=torch.float64))
        assert optimizer.statistics()[0].clip_factor == 1

    def test_a_gradient_of_zero_is_not_clipped_and_the_group_decays(self, implementation):
        x = parameter(3.0, 4.0)
        optimizer = stepped(x, [0.0, 0.0], implementation=implementation, **THRESHOLD_FOUR)
        torch.testing.assert_close(x.detach(), torch.tensor([2.94, 3.92], dtype=torch.float64))
        assert optimizer.statistics()[0].clip_factor == 1

    def test_without_clip_nothing_is_clipped(self, implementation):
        x = parameter(3.0, 4.0)
        stepped(x, [0.0, 800.0], implementation=implementation, clip=None, **THRESHOLD_FOUR)
        torch.testing.assert_close(x.detach(), torch.tensor([2.94, 3.92 - 400.0], dtype=torch.float64))

    def test_each_group_has_its_own_norm_and_threshold(self, implementation):
        """Four times the parameter, four times the threshold: the same gradient is clipped in one group only."""
        small, large = parameter(3.0, 4.0), parameter(12.0, 16.0)
        groups = [{"params": [small]}, {"params": [large]}]
        optimizer = ClippedSGD(groups, implementation=implementation, **THRESHOLD_FOUR)
        small.grad = large.grad = torch.tensor([0.0, 8.0], dtype=torch.float64)
        optimizer.step()
        assert [group.clip_factor for group in optimizer.statistics()] == [pytest.approx(0.5), 1.0]

    def test_the_tensors_of_one_group_are_one_vector(self, implementation):
        """|x| = 5 and |g| = 8 as in the first case, now spread over two tensors."""
        first, second = parameter(3.0), parameter(4.0)
        optimizer = ClippedSGD([first, second], implementation=implementation, **THRESHOLD_FOUR)
        first.grad, second.grad = torch.zeros(1, dtype=torch.float64), torch.full((1,), 8.0, dtype=torch.float64)
        optimizer.step()
        assert (first.item(), second.item()) == (pytest.approx(2.94), pytest.approx(1.92))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("loss", [invariant_loss, quadratic_loss])
@pytest.mark.parametrize("clip", [1.05, 2.0])
def test_hundred_steps_follow_algorithm_1(implementation, loss, clip):
    """Also where the norm is bounded instead of measured, for losses invariant or not."""
    x, expected = torch.nn.Parameter(start()), start()
    optimizer = ClippedSGD([x], 0.03, 0.05, clip=clip, implementation=implementation)
    factors = []
    for step in range(100):
        optimizer.zero_grad()
        spike = 30.0 if step % 7 == 3 else 1.0
        (spike * loss(x, step)).backward()
        g = spike * torch.autograd.functional.jacobian(lambda y, step=step: loss(y, step), expected)
        optimizer.step()
        expected, s = algorithm_1(expected, g, 0.03, 0.05, clip)
        factors.append(s)
        assert optimizer.statistics()[0].clip_factor == pytest.approx(s)
        torch.testing.assert_close(x.detach(), expected, rtol=1e-10, atol=1e-12)
    assert min(factors) < max(factors) == 1


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_without_clipping_it_is_torch_sgd(implementation):
    ours = trajectory(
        lambda x: ClippedSGD([x], 0.05, 0.2, clip=None, implementation=implementation), start(), quadratic_loss
    )
    theirs = trajectory(lambda x: torch.optim.SGD([x], lr=0.05, weight_decay=0.2), start(), quadratic_loss)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_with_clipping_it_is_not_torch_sgd():
    ours = trajectory(lambda x: ClippedSGD([x], 0.05, 0.2, clip=1.1), start(), quadratic_loss)
    theirs = trajectory(lambda x: torch.optim.SGD([x], lr=0.05, weight_decay=0.2), start(), quadratic_loss)
    assert (ours - theirs).norm() > 0.01


def test_plain_sgd_without_weight_decay_is_allowed():
    x = parameter(1.0, 2.0)
    stepped(x, [1.0, 0.0], lr=0.5, weight_decay=0.0, clip=None)
    assert x.tolist() == [0.5, 2.0]


# Geometry of a scale-invariant group


def test_the_gradient_of_the_toy_is_orthogonal_to_the_parameters():
    x = torch.nn.Parameter(start())
    invariant_loss(x, 0).backward()
    assert abs((x.grad @ x).item()) < 1e-12 * (x.grad.norm() * x.norm()).item()


def test_the_gradient_of_its_negative_twin_is_not():
    x = torch.nn.Parameter(start())
    quadratic_loss(x, 0).backward()
    assert abs((x.grad @ x).item()) > 0.1 * (x.grad.norm() * x.norm()).item()


@pytest.mark.parametrize("initial_scale", [0.3, 1.0, 5.0])
def test_the_norm_converges_to_the_fixed_point_of_the_formula(initial_scale):
    """With |g| = sigma/|x|, orthogonal to x, |x|^2 has the fixed point sigma sqrt(eta / (lambda (2 - eta lambda)))."""
    eta, weight_decay, sigma = 0.1, 0.5, 3.0
    x = parameter(initial_scale, 0.0)
    optimizer = ClippedSGD([x], eta, weight_decay, clip=None)
    for _ in range(400):
        x.grad = sigma / x.detach().norm() ** 2 * torch.stack([-x.detach()[1], x.detach()[0]])
        optimizer.step()
    fixed_point = math.sqrt(sigma * math.sqrt(eta / (weight_decay * (2 - eta * weight_decay))))
    assert x.norm().item() == pytest.approx(fixed_point, rel=1e-9)
    assert optimizer.statistics(reset=True)[0].param_norm == pytest.approx(fixed_point, rel=1e-9)
    optimizer.step()
    assert optimizer.statistics()[0].equilibrium_norm == pytest.approx(fixed_point, rel=1e-9)


# Intrinsic mode


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("gamma", [1e-4, 0.1, 0.5])
def test_calibration_starts_at_norm_equilibrium(gamma, implementation):
    x = parameter(3.0, 4.0)
    optimizer = stepped(x, [-40.0, 30.0], intrinsic_lr=gamma, implementation=implementation)
    eta = 5.0 * math.sqrt(gamma * (2 - gamma)) / 50.0
    assert optimizer.param_groups[0]["eta"].item() == pytest.approx(eta, rel=1e-14)
    assert x.norm().item() == pytest.approx(5.0, rel=1e-14)
    statistics = optimizer.statistics()[0]
    assert statistics.equilibrium_norm == pytest.approx(5.0)
    assert statistics.weight_decay == pytest.approx(gamma / eta)
    assert statistics.intrinsic_lr == pytest.approx(gamma)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nothing_moves_before_the_first_gradient_that_is_not_zero(implementation):
    x = parameter(3.0, 4.0)
    optimizer = stepped(x, [0.0, 0.0], intrinsic_lr=0.1, implementation=implementation)
    assert x.tolist() == [3.0, 4.0]
    assert optimizer.statistics()[0].steps == 0
    x.grad = torch.tensor([math.nan, 1.0], dtype=torch.float64)
    optimizer.step()
    assert optimizer.param_groups[0]["eta"].item() == 0
    x.grad = torch.tensor([-4.0, 3.0], dtype=torch.float64)
    optimizer.step()
    assert x.tolist() != [3.0, 4.0]
    assert optimizer.statistics()[0].steps == 1


def test_intrinsic_mode_is_explicit_mode_with_the_calibrated_numbers():
    intrinsic = trajectory(lambda x: ClippedSGD([x], intrinsic_lr=0.02), start(), invariant_loss)
    x = torch.nn.Parameter(start())
    invariant_loss(x, 0).backward()
    eta = (x.norm() * math.sqrt(0.02 * 1.98) / x.grad.norm()).item()
    explicit = trajectory(lambda x: ClippedSGD([x], eta, 0.02 / eta), start(), invariant_loss)
    torch.testing.assert_close(intrinsic, explicit, rtol=1e-12, atol=1e-14)


def test_lr_multiplies_eta_and_leaves_lambda():
    x = parameter(3.0, 4.0)
    optimizer = stepped(x, [-4.0, 3.0], intrinsic_lr=0.1)
    before = optimizer.statistics()[0]
    optimizer.param_groups[0]["lr"] = 0.25
    optimizer.step()
    after = optimizer.statistics()[0]
    assert after.eta == before.eta / 4
    assert after.weight_decay == before.weight_decay
    assert after.intrinsic_lr == pytest.approx(before.intrinsic_lr / 4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("mode", [{"intrinsic_lr": 0.1}, {"lr": 0.1, "weight_decay": 0.1}])
def test_a_learning_rate_of_zero_moves_nothing(mode, implementation):
    x = parameter(3.0, 4.0)
    optimizer = ClippedSGD([x], implementation=implementation, **mode)
    x.grad = torch.tensor([-4.0, 3.0], dtype=torch.float64)
    for lr in (0.0, 1.0, 0.0):
        optimizer.param_groups[0]["lr"] = lr
        before = x.tolist()
        optimizer.step()
        assert (x.tolist() == before) == (lr == 0.0)
    assert optimizer.statistics()[0].steps == 1


@pytest.mark.parametrize(
    ("of_first", "of_second", "defaults"),
    [
        ({"intrinsic_lr": 0.1}, {}, {"lr": 0.5, "weight_decay": 0.04}),
        ({}, {"lr": 0.5, "weight_decay": 0.04}, {"intrinsic_lr": 0.1}),
    ],
    ids=["explicit by default", "intrinsic by default"],
)
def test_groups_may_differ_in_mode(of_first, of_second, defaults):
    x, y = parameter(3.0, 4.0), parameter(3.0, 4.0)
    optimizer = ClippedSGD([{"params": [x], **of_first}, {"params": [y], **of_second}], **defaults)
    x.grad = y.grad = torch.tensor([-4.0, 3.0], dtype=torch.float64)
    optimizer.step()
    first, second = optimizer.statistics()
    assert (first.lr, first.intrinsic_lr) == (1.0, pytest.approx(0.1))
    assert (second.lr, second.intrinsic_lr) == (0.5, pytest.approx(0.02))
    assert (second.eta, second.weight_decay) == (0.5, 0.04)
    assert ["eta" in group for group in optimizer.param_groups] == [True, False]


# Steps that must not be taken


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_one_bad_gradient_skips_the_step_of_every_group(bad, implementation):
    x, y = parameter(3.0, 4.0), parameter(1.0, 2.0)
    optimizer = ClippedSGD([{"params": [x]}, {"params": [y]}], intrinsic_lr=0.1, implementation=implementation)
    x.grad, y.grad = (torch.tensor([-4.0, 3.0], dtype=torch.float64) for _ in range(2))
    optimizer.step()
    before = x.tolist(), y.tolist(), [group.grad_norm for group in optimizer.statistics()]
    y.grad[1] = bad
    optimizer.step()
    assert (x.tolist(), y.tolist(), [group.grad_norm for group in optimizer.statistics()]) == before
    assert optimizer.skipped_steps == 1
    assert [(group.steps, group.skipped_steps) for group in optimizer.statistics()] == [(1, 1), (1, 1)]
    y.grad[1] = 1.0
    optimizer.step()
    assert x.tolist() != before[0]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_parameter_without_gradient_decays_with_its_group(implementation):
    x, y = parameter(3.0, 4.0), parameter(1.0)
    optimizer = ClippedSGD([x, y], 0.5, 0.04, implementation=implementation)
    x.grad = torch.zeros(2, dtype=torch.float64)
    optimizer.step()
    assert y.item() == pytest.approx(0.98)


def test_a_group_without_any_gradient_is_left_alone():
    x, y = parameter(3.0, 4.0), parameter(1.0)
    optimizer = ClippedSGD([{"params": [x]}, {"params": [y]}], 0.5, 0.04)
    optimizer.step()
    x.grad = torch.zeros(2, dtype=torch.float64)
    optimizer.step()
    assert y.item() == 1.0
    assert [group.steps for group in optimizer.statistics()] == [1, 0]


# A torch.optim.Optimizer like others


def test_there_is_no_state_for_parameters():
    x = parameter(3.0, 4.0)
    optimizer = stepped(x, [-4.0, 3.0], intrinsic_lr=0.1)
    assert len(optimizer.state) == 0
    assert optimizer.state_dict()["state"] == {}


def run(optimizer, x, first, last):
    for step in range(first, last):
        optimizer.zero_grad()
        invariant_loss(x, step).backward()
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("interrupted_after", [1, 17, 40])
def test_a_resumed_run_is_bit_identical_and_logs_the_same(interrupted_after, dtype):
    whole = torch.nn.Parameter(start(dtype=dtype))
    optimizer = ClippedSGD([("x", whole)], intrinsic_lr=0.02)
    run(optimizer, whole, 0, interrupted_after)
    saved = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "x": whole.detach()}, saved)
    run(optimizer, whole, interrupted_after, 80)

    saved.seek(0)
    loaded = torch.load(saved, weights_only=True)
    x = torch.nn.Parameter(loaded["x"])
    resumed = ClippedSGD([("x", x)], intrinsic_lr=0.02)
    resumed.load_state_dict(loaded["optimizer"])
    run(resumed, x, interrupted_after, 80)
    assert torch.equal(x, whole)
    assert resumed.statistics() == optimizer.statistics()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_goes_on_as_the_original(copied):
    x = torch.nn.Parameter(start())
    optimizer = ClippedSGD([x], intrinsic_lr=0.02, implementation="foreach")
    run(optimizer, x, 0, 5)
    twin, y = copied((optimizer, x))
    run(optimizer, x, 5, 10)
    run(twin, y, 5, 10)
    assert torch.equal(x, y)
    assert twin.param_groups[0]["implementation"] == "foreach"


def test_a_closure_is_evaluated_with_gradients_and_its_loss_returned():
    x = torch.nn.Parameter(start())
    optimizer = ClippedSGD([x], intrinsic_lr=0.02)

    def closure():
        optimizer.zero_grad()
        loss = invariant_loss(x, 0)
        loss.backward()
        return loss

    first = optimizer.step(closure)
    second = optimizer.step(closure)
    assert second < first


def test_torch_schedulers_drive_lr():
    x = torch.nn.Parameter(start())
    optimizer = ClippedSGD([x], intrinsic_lr=0.02)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    run(optimizer, x, 0, 1)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.5
    run(optimizer, x, 1, 2)
    assert optimizer.statistics()[0].intrinsic_lr == pytest.approx(0.01)


def test_groups_can_be_added_later():
    x, y = parameter(3.0, 4.0), parameter(1.0)
    optimizer = ClippedSGD([x], intrinsic_lr=0.1)
    optimizer.add_param_group({"params": [y], "name": "late"})
    x.grad, y.grad = torch.ones(2, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    optimizer.step()
    assert [(group.name, group.steps) for group in optimizer.statistics()] == [("group0", 1), ("late", 1)]


def test_a_refused_group_leaves_no_trace():
    optimizer = ClippedSGD([parameter(3.0)], intrinsic_lr=0.1)
    with pytest.raises(ValueError, match="norm 0"):
        optimizer.add_param_group({"params": [parameter(0.0)]})
    assert len(optimizer.param_groups) == 1


def test_steps_that_were_skipped_before_a_group_came_still_count():
    x = parameter(3.0, 4.0)
    optimizer = stepped(x, [math.nan, 1.0], intrinsic_lr=0.1)
    optimizer.add_param_group({"params": [parameter(1.0)]})
    assert optimizer.skipped_steps == 1
    assert [group.skipped_steps for group in optimizer.statistics()] == [1, 0]


@pytest.mark.parametrize(("length", "shortened"), [(8.0, 4.0), (0.1, 0.1)], ids=["clipped", "not clipped"])
def test_changing_the_parameters_from_outside_between_steps_is_noticed(length, shortened):
    """The lower bound on the norm must not outlive the parameters that it was proved for, nor may what is recorded."""
    x = parameter(300.0, 400.0)
    optimizer = stepped(x, [0.0, 0.1], lr=0.5, weight_decay=0.04)
    with torch.no_grad():
        x.copy_(torch.tensor([3.0, 4.0]))
    x.grad = torch.tensor([0.0, length], dtype=torch.float64)
    optimizer.step()
    torch.testing.assert_close(x.detach(), torch.tensor([2.94, 3.92 - 0.5 * shortened], dtype=torch.float64))
    assert optimizer.statistics()[0].param_norm == pytest.approx(5.0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_part_that_is_scaled_through_data_is_noticed(implementation):
    x = torch.nn.Parameter(torch.ones(4, 3, dtype=torch.float64))
    optimizer = ClippedSGD([x], 0.01, 0.01, implementation=implementation)
    for _ in range(3):
        x.grad = torch.full_like(x, 0.1)
        optimizer.step()
    x.data[[0, 1, 3]] *= 1e-4
    x.grad = torch.full_like(x, 2.0)
    norm = x.norm().item()
    optimizer.step()
    assert optimizer.statistics()[0].clip_factor == pytest.approx(2 * math.sqrt(2) * norm / x.grad.norm().item())


@pytest.mark.parametrize("loss_scale", [2.0**10, 2.0**40])
def test_a_gradient_scaler_unscales_skips_and_steps(loss_scale):
    x = torch.nn.Parameter(start(dtype=torch.float32))
    optimizer = ClippedSGD([x], intrinsic_lr=0.02)
    scaler = torch.amp.GradScaler("cpu", init_scale=loss_scale)
    expected = trajectory(lambda y: ClippedSGD([y], intrinsic_lr=0.02), start(dtype=torch.float32), invariant_loss, 3)
    for step in range(3):
        optimizer.zero_grad()
        scaler.scale(invariant_loss(x, step)).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(x.detach(), expected[step])
    optimizer.zero_grad()
    scaler.scale(x.sum() * math.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(x.detach(), expected[2])
    assert scaler.get_scale() == loss_scale / 2


# Errors that teach


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.1, "weight_decay": 0.0}, "never move"),
        ({}, "give lr and weight_decay, or intrinsic_lr"),
        ({"lr": 0.1}, "give lr and weight_decay"),
        ({"intrinsic_lr": 0.1, "lr": 0.1}, "either intrinsic_lr or lr"),
        ({"intrinsic_lr": 0.1, "weight_decay": 0.1}, "either intrinsic_lr or lr"),
        ({"lr": -0.1, "weight_decay": 0.1}, "lr must be a finite number >= 0"),
        ({"lr": math.nan, "weight_decay": 0.1}, "lr must be a finite number >= 0"),
        ({"lr": 0.1, "weight_decay": -1.0}, "weight_decay must be"),
        ({"lr": 10.0, "weight_decay": 0.1}, "< 1"),
        ({"intrinsic_lr": 0.0}, r"\(0, 1\)"),
        ({"intrinsic_lr": 1.0}, "< 1|\\(0, 1\\)"),
        ({"intrinsic_lr": 0.1, "clip": 1.0}, "clip must be greater than 1"),
        ({"intrinsic_lr": 0.1, "clip": math.inf}, "clip must be a finite"),
        ({"intrinsic_lr": 0.1, "implementation": "magic"}, "implementation must be"),
    ],
)
def test_bad_hyper_parameters_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ClippedSGD([parameter(1.0)], **options)


def test_a_tensor_is_no_hyper_parameter():
    with pytest.raises(TypeError, match="Python number"):
        ClippedSGD([parameter(1.0)], torch.tensor(0.1), 0.1)


def test_a_scheduler_that_raises_lr_too_far_is_stopped():
    x = parameter(3.0, 4.0)
    optimizer = stepped(x, [1.0, 0.0], intrinsic_lr=0.1)
    optimizer.param_groups[0]["lr"] = 10.0
    with pytest.raises(ValueError, match="check the scheduler"):
        optimizer.step()


@pytest.mark.parametrize("values", [[0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_a_group_without_direction_is_refused(values):
    with pytest.raises(ValueError, match="direction"):
        ClippedSGD([parameter(*values)], intrinsic_lr=0.1)


def test_wrong_groups_are_refused():
    with pytest.raises(ValueError, match="at least one parameter"):
        ClippedSGD([{"params": []}], intrinsic_lr=0.1)
    with pytest.raises(ValueError, match="names must differ"):
        ClippedSGD([{"params": [parameter(1.0)], "name": n} for n in "aa"], intrinsic_lr=0.1)
    with pytest.raises(TypeError, match="floating-point"):
        ClippedSGD([torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))], intrinsic_lr=0.1)
    with pytest.raises(ValueError, match="either intrinsic_lr or weight_decay"):
        ClippedSGD([{"params": [parameter(1.0)], "intrinsic_lr": 0.1, "weight_decay": 0.1}])


def test_a_group_that_is_frozen_in_part_is_refused():
    """As one vector it would decay as a whole."""
    x, y = parameter(3.0, 4.0), parameter(1.0)
    optimizer = ClippedSGD([x, y], 0.5, 0.04)
    y.requires_grad_(False)
    x.grad = torch.ones(2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"group0: a parameter of shape \(1,\) is frozen .* and 1 others are not"):
        optimizer.step()
    assert y.item() == 1.0
    with pytest.raises(ValueError, match="leave frozen parameters out"):
        ClippedSGD([x, y], 0.5, 0.04)
    ClippedSGD([{"params": [x]}, {"params": [y]}], 0.5, 0.04).step()
    assert y.item() == 1.0


def test_the_state_of_another_optimizer_is_refused():
    x = parameter(3.0, 4.0)
    optimizer = stepped(x, [-4.0, 3.0], intrinsic_lr=0.1)
    before = optimizer.statistics()
    with pytest.raises(ValueError, match="not one of ClippedSGD: its group 0 has 'lr', 'betas'"):
        optimizer.load_state_dict(torch.optim.AdamW([x]).state_dict())
    assert optimizer.statistics() == before


def test_the_state_of_groups_in_another_order_is_refused():
    short, long = (
        {"params": [parameter(*entries)], "name": name} for name, entries in (("a", [3, 4]), ("b", [30, 40]))
    )
    saved = ClippedSGD([short, long], intrinsic_lr=0.1).state_dict()
    with pytest.raises(ValueError, match="the state has the groups a, b, this optimizer b, a"):
        ClippedSGD([long, short], intrinsic_lr=0.1).load_state_dict(saved)
    ClippedSGD([short, long], intrinsic_lr=0.1).load_state_dict(saved)


def test_sparse_gradients_are_refused():
    embedding = torch.nn.Embedding(5, 2, sparse=True)
    optimizer = ClippedSGD(embedding.parameters(), intrinsic_lr=0.1)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="dense"):
        optimizer.step()
