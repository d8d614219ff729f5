"""Three implementations of one step, with the host reading decisions or leaving them on the device."""

import dataclasses
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sibert.optim import ClippedSGD, Hybrid, Lamb, synchronisation
from sibert.optim.statistics import read_record
from sibert.optim.updates import descend, resolve_implementation

IMPLEMENTATIONS = ["reference", "foreach", "fused"]
SHAPES = [(1,), (7,), (33, 5), (4097,), (), (0, 3)]
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
"""Two roundings in the result's precision; norms in float32 rows add 1e-7."""


@pytest.fixture
def device_decides(monkeypatch):
    """Take the code path of an accelerator on CPU tensors."""
    monkeypatch.setattr(synchronisation, "host_may_read", lambda device: False)


class NoReading(TorchDispatchMode):
    """Fails where a value travels from a tensor to Python."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in (
            torch.ops.aten._local_scalar_dense,
            torch.ops.aten.is_nonzero,
            torch.ops.aten.equal,
            torch.ops.aten.nonzero,
        ), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


def case(dtype, gradient_dtype=None):
    generator = torch.Generator().manual_seed(1)
    parameters = [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
    gradients = [torch.randn(shape, generator=generator).to(gradient_dtype or dtype) for shape in SHAPES]
    gradients[1] = None
    # A parameter and a gradient that are laid out differently in memory, either of them with gaps.
    parameters.append(torch.randn(6, 4, generator=generator).to(dtype).t())
    gradients.append(torch.randn(4, 6, generator=generator).to(gradient_dtype or dtype))
    parameters.append(torch.randn(6, 4, generator=generator).to(dtype))
    gradients.append(torch.randn(4, 6, generator=generator).to(gradient_dtype or dtype).t())
    return parameters, gradients


def step(implementation, dtype, gradient_dtype=None, hold=False, step_size=0.3):
    parameters, gradients = case(dtype, gradient_dtype)
    descend(
        parameters,
        gradients,
        gamma=0.02,
        step_size=torch.tensor(step_size, dtype=torch.float64),
        hold=torch.tensor(hold),
        implementation=implementation,
    )
    return parameters


def by_the_formula(dtype, gradient_dtype=None, step_size=0.3):
    parameters, gradients = case(dtype, gradient_dtype)
    return [
        (x.double() - 0.02 * x.double() - step_size * (0 if g is None else g.double())).to(dtype)
        for x, g in zip(parameters, gradients, strict=True)
    ]


def assert_all_close(results, expected, dtype):
    for result, value in zip(results, expected, strict=True):
        torch.testing.assert_close(result, value, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("step_size", [0.3, 0.0, 1e-33, 1e-42])
def test_every_implementation_is_the_formula(implementation, dtype, step_size):
    results = step(implementation, dtype, step_size=step_size)
    assert_all_close(results, by_the_formula(dtype, step_size=step_size), dtype)


@pytest.mark.usefixtures("device_decides")
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_implementation_is_the_formula_on_a_device(implementation, dtype):
    assert_all_close(step(implementation, dtype), by_the_formula(dtype), dtype)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_float32_gradients_of_bfloat16_parameters(implementation):
    results = step(implementation, torch.bfloat16, torch.float32)
    assert_all_close(results, by_the_formula(torch.bfloat16, torch.float32), torch.bfloat16)


@pytest.mark.parametrize("decides", ["host", "device"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_held_step_changes_no_bit(implementation, bad, decides, monkeypatch):
    monkeypatch.setattr(synchronisation, "host_may_read", lambda device: decides == "host")
    parameters, gradients = case(torch.float32)
    before = [x.clone() for x in parameters]
    for g in gradients:
        if g is not None:
            g.fill_(bad)
    descend(
        parameters,
        gradients,
        gamma=0.02,
        step_size=torch.tensor(math.nan, dtype=torch.float64),
        hold=torch.tensor(True),
        implementation=implementation,
    )
    assert all(torch.equal(x, old) for x, old in zip(parameters, before, strict=True))


def test_the_fused_kernel_is_used_only_where_it_reads_memory_rightly():
    x = torch.randn(4, 6)
    assert resolve_implementation(None, x, x.clone()) == "fused"
    assert resolve_implementation("fused", x, x.double()) == "foreach"
    assert resolve_implementation("fused", x.t(), x.t()) == "foreach"
    assert resolve_implementation("fused", x, torch.randn(6, 4).t()) == "foreach"
    assert resolve_implementation("fused", x.t(), torch.randn(6, 4)) == "foreach"
    assert resolve_implementation("fused", x, None) == "foreach"
    assert resolve_implementation("reference", x, x) == "reference"
    assert resolve_implementation(None, x.to("meta"), x.to("meta")) == "foreach"


def groups(dtype=torch.float32):
    generator = torch.Generator().manual_seed(2)
    first = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES[:4]]
    second = [torch.nn.Parameter(torch.randn(9, generator=generator, dtype=torch.float64))]
    return [{"params": first, "name": "mixed"}, {"params": [*second, torch.nn.Parameter(torch.ones(3))]}]


def train(make, steps=6):
    """Six steps: the third is clipped, the fifth has a gradient that is not finite."""
    parameter_groups = groups()
    parameters = [p for group in parameter_groups for p in group["params"]]
    optimizer = make(parameter_groups)
    generator = torch.Generator().manual_seed(3)
    for number in range(steps):
        for p in parameters:
            p.grad = (50.0 if number == 2 else 1.0) * torch.randn(p.shape, generator=generator).to(p.dtype)
        parameters[2].grad = None
        if number == 4:
            parameters[-1].grad[0] = math.inf
        optimizer.step()
    return parameters, optimizer


def clipped(parameter_groups, implementation):
    return ClippedSGD(parameter_groups, intrinsic_lr=0.05, implementation=implementation)


@pytest.mark.parametrize("implementation", [None, "foreach", "fused"])
@pytest.mark.parametrize("decides", ["host", "device"])
def test_whole_optimizers_agree(implementation, decides, monkeypatch):
    expected, reference = train(lambda g: clipped(g, "reference"))
    monkeypatch.setattr(synchronisation, "host_may_read", lambda device: decides == "host")
    results, optimizer = train(lambda g: clipped(g, implementation))
    assert_all_close([p.detach() for p in results], [p.detach() for p in expected], torch.float32)
    for ours, theirs in zip(optimizer.statistics(), reference.statistics(), strict=True):
        assert (ours.steps, ours.skipped_steps, ours.clipped_fraction) == (5, 1, 0.2)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-5)
        assert ours.clip_factor == pytest.approx(theirs.clip_factor, rel=1e-5)
        assert ours.eta == pytest.approx(theirs.eta, rel=1e-5)


@pytest.mark.parametrize("implementation", ["reference", "foreach", "fused"])
def test_a_device_records_every_number_that_the_host_does(implementation, monkeypatch):
    """Also what the statistics do not show: a run may be saved there and go on here."""
    _, host = train(lambda g: clipped(g, "reference"))
    monkeypatch.setattr(synchronisation, "host_may_read", lambda device: False)
    _, device = train(lambda g: clipped(g, implementation))
    for record, expected in zip(device.statistics(), host.statistics(), strict=True):
        numbers = {key: value for key, value in dataclasses.asdict(expected).items() if key != "name"}
        assert {key: getattr(record, key) for key in numbers} == pytest.approx(numbers, rel=1e-5)
    for group, twin in zip(device.param_groups, host.param_groups, strict=True):
        assert read_record(group["statistics"]) == pytest.approx(read_record(twin["statistics"]), rel=1e-5)


@pytest.mark.usefixtures("device_decides")
@pytest.mark.parametrize(
    "make",
    [
        *[lambda g, i=i: clipped(g, i) for i in IMPLEMENTATIONS],
        lambda g: ClippedSGD(g, 0.1, 0.1),
        Lamb,
        lambda g: Hybrid([clipped(g[:1], None), Lamb(g[1:])]),
    ],
    ids=[*IMPLEMENTATIONS, "explicit", "lamb", "hybrid"],
)
def test_a_step_on_a_device_never_reads_a_value(make):
    parameter_groups = groups()
    optimizer = make(parameter_groups)
    for group in parameter_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    with NoReading():
        optimizer.step()
        optimizer.step()


def test_the_guard_against_reading_sees_a_read():
    with NoReading(), pytest.raises(AssertionError, match="waits for the device"):
        torch.ones(()).item()


@pytest.mark.gpu
@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, None])
def test_a_step_on_a_gpu_never_waits_and_agrees_with_the_cpu(implementation):
    expected, _ = train(lambda g: clipped(g, "reference"))
    parameter_groups = groups()
    for group in parameter_groups:
        group["params"] = [torch.nn.Parameter(p.detach().cuda()) for p in group["params"]]
    parameters = [p for group in parameter_groups for p in group["params"]]
    optimizer = clipped(parameter_groups, implementation)
    generator = torch.Generator().manual_seed(3)
    torch.cuda.synchronize()
    for number in range(6):
        for p in parameters:
            gradient = (50.0 if number == 2 else 1.0) * torch.randn(p.shape, generator=generator).to(p.dtype)
            p.grad = gradient.cuda()
        parameters[2].grad = None
        if number == 4:
            parameters[-1].grad[0] = math.inf
        torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert_all_close([p.detach().cpu() for p in parameters], [p.detach() for p in expected], torch.float32)
    assert optimizer.skipped_steps == 1
