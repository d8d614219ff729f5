"""Rotation, measured: against the definition in float64, against ClippedSGD's own, and in loops of others."""

import importlib.util
import math
import shutil
import tempfile

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sibert.dynamics import LightningRotation, RotationRecorder, equilibrium, sgd_equilibrium
from sibert.models import SibertConfig, SibertForMaskedLM
from sibert.optim import ClippedSGD, InvariantGroup, build_optimizer
from tests.dynamics.test_equilibrium import Lion


class Net(nn.Module):
    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second, self.head = nn.Linear(6, 8, bias=False), nn.Linear(8, 8, bias=False), nn.Linear(8, 3)
        self.to(dtype)

    def forward(self, x):
        for layer in (self.first, self.second):
            x = F.layer_norm(layer(x), (8,), eps=0.0).relu()
        return self.head(x)

    @property
    def groups(self):
        return {"first": [self.first.weight], "second": [self.second.weight]}


def train(net, optimizer, steps, dtype=torch.float64, call=None):
    losses, before, after = [], [], []
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, 6, generator=generator, dtype=torch.float64).to(dtype)
        y = torch.randint(3, (16,), generator=generator)
        loss = F.cross_entropy((net if call is None else call)(x), y)
        optimizer.zero_grad()
        loss.backward()
        before.append(net.first.weight.detach().double().clone())
        optimizer.step()
        after.append(net.first.weight.detach().double().clone())
        losses.append(loss.item())
    return losses, before, after


def angle(x, y):
    x, y = x.flatten() / x.norm(), y.flatten() / y.norm()
    return 2.0 * math.asin((x - y).norm().item() / 2.0)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01),
    "sgdm": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "lion": lambda p: Lion(p, lr=0.01, weight_decay=0.1, betas=(0.9, 0.99)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_measures_what_it_says_and_changes_nothing(name, dtype):
    expected, _, _ = train(net := Net(dtype), OPTIMIZERS[name](net.parameters()), 9, dtype)
    net = Net(dtype)
    optimizer = OPTIMIZERS[name](net.parameters())
    recorder = RotationRecorder(optimizer, net.groups, every=4)
    losses, before, after = train(net, optimizer, 9, dtype)
    assert losses == expected
    assert [(one.name, one.step) for one in recorder.records] == [(n, s) for s in (1, 5, 9) for n in net.groups]
    for one in recorder.records[::2]:
        x, y = before[one.step - 1], after[one.step - 1]
        assert one.norm == pytest.approx(x.norm().item(), rel=1e-6)
        assert one.angular_update == pytest.approx(angle(x, y), rel=1e-9 if dtype == torch.float64 else 1e-4)
        squared, rate = x.norm().item() ** 2, {"sgd": 0.1, "sgdm": 0.1 / (1.0 - 0.5)}.get(name)
        assert one.effective_lr == (None if rate is None else pytest.approx(rate / squared, rel=1e-6))


@pytest.mark.parametrize("options", [{"dampening": 0.9}, {"dampening": 0.5}, {"nesterov": True}])
def test_the_effective_rate_is_all_that_a_gradient_moves_in_the_end(options):
    """A gradient in one step only, after a first step without any, which torch does not dampen."""
    x = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    optimizer = torch.optim.SGD([x], lr=0.1, momentum=0.9, **options)
    recorder = RotationRecorder(optimizer, {"x": [x]}, every=1)
    direction = torch.tensor([-4.0, 3.0], dtype=torch.float64)
    for step in range(400):
        x.grad = (1e-6 if step == 1 else 0.0) * direction
        optimizer.step()
    moved = (x.detach() - torch.tensor([3.0, 4.0], dtype=torch.float64)).norm().item() / (1e-6 * 5.0)
    assert recorder.records[0].effective_lr == pytest.approx(moved / 25.0, rel=1e-6)


def test_amsgrad_has_a_rotation_and_no_effective_rate():
    x = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = torch.optim.AdamW([x], lr=0.1, amsgrad=True)
    recorder = RotationRecorder(optimizer, {"x": [x]})
    x.grad = torch.tensor([-4.0, 3.0])
    optimizer.step()
    assert recorder.records[0].effective_lr is None
    assert recorder.records[0].angular_update > 0.0


def test_a_model_that_is_compiled_and_a_recorder_that_is_closed():
    net = Net()
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    recorder = RotationRecorder(optimizer, net.groups, every=1)
    train(net, optimizer, 2, call=torch.compile(net, backend="aot_eager"))
    assert len(recorder.records) == 4
    recorder.close()
    train(net, optimizer, 2)
    assert len(recorder.records) == 4


@pytest.mark.parametrize("invariance", ["joint", "matrix", "row"])
def test_sibert_by_groups_and_by_rows_as_its_optimizer_says(invariance):
    torch.manual_seed(0)
    config = SibertConfig.of_size("nano", vocab_size=30, invariance=invariance, type_vocab_size=0)
    model = SibertForMaskedLM(config).double()
    optimizer = build_optimizer(model, intrinsic_lr=0.01)
    recorder = RotationRecorder(optimizer, every=1)
    ids_BT = torch.randint(1, 30, (4, 12))
    model(input_ids=ids_BT, labels=ids_BT).loss.backward()
    optimizer.step()
    theirs = {one.name: one for one in optimizer.statistics()}
    assert {one.name for one in recorder.records} == set(theirs)
    for one in recorder.records:
        own = theirs[one.name]
        if one.quantiles is None:
            assert one.angular_update == pytest.approx(own.angular_update, rel=1e-6)
            assert one.norm == pytest.approx(own.param_norm, rel=1e-6)
            assert one.effective_lr == pytest.approx(own.effective_lr, rel=1e-6)
        else:
            assert one.quantiles[0] <= one.quantiles[1] <= one.quantiles[2]
            assert one.angular_update > 0
    assert any(one.quantiles for one in recorder.records) == (invariance == "row")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="the inductor needs a compiler")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own
def test_a_model_that_the_inductor_compiles():
    eager, compiled = Net(), Net()
    recorders = []
    for net, call in ((eager, None), (compiled, torch.compile(compiled))):
        optimizer = OPTIMIZERS["sgd"](net.parameters())
        recorders.append(RotationRecorder(optimizer, net.groups, every=1))
        train(net, optimizer, 2, call=call)
    for one, other in zip(*(recorder.records for recorder in recorders), strict=True):
        assert one.angular_update == pytest.approx(other.angular_update, rel=1e-9)
        assert one.effective_lr == pytest.approx(other.effective_lr, rel=1e-12)


def test_rows_one_by_one():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(5, 4, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=0.3, weight_decay=0.1)
    recorder = RotationRecorder(optimizer, {"w": InvariantGroup([("w", weight)], rows=True)}, every=1)
    gradient = torch.randn(5, 4, dtype=torch.float64)
    old = weight.detach().clone()
    weight.grad = gradient - (gradient * old).sum(1, keepdim=True) * old / old.square().sum(1, keepdim=True)
    optimizer.step()
    angles = [angle(x, y) for x, y in zip(old, weight.detach(), strict=True)]
    (found,) = recorder.records
    assert found.angular_update == pytest.approx(math.sqrt(sum(a * a for a in angles) / 5))
    a = sorted(angles)
    assert found.quantiles == pytest.approx((0.6 * a[0] + 0.4 * a[1], a[2], 0.4 * a[3] + 0.6 * a[4]))
    assert found.norm == pytest.approx(old.square().sum(1).mean().sqrt().item())
    on_spheres = weight.grad.square().sum(1) * old.square().sum(1)
    assert found.gradient_norm == pytest.approx(on_spheres.mean().sqrt().item())


def test_the_gradient_is_that_on_the_sphere():
    x = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    optimizer = torch.optim.SGD([x], lr=0.1)
    recorder = RotationRecorder(optimizer, {"x": [x]})
    x.grad = torch.tensor([-8.0, 6.0], dtype=torch.float64)
    optimizer.step()
    assert recorder.records[0].gradient_norm == pytest.approx(5.0 * 10.0)


def test_what_the_optimizer_marks_is_found():
    x, y = (nn.Parameter(torch.tensor([3.0, 4.0])) for _ in range(2))
    groups = [{"params": [x], "scale_invariant": True, "name": "x"}, {"params": [y]}]
    assert list(RotationRecorder(torch.optim.SGD(groups, lr=0.1)).groups) == ["x"]
    assert list(RotationRecorder(ClippedSGD([x], lr=0.1, weight_decay=0.1)).groups)


def test_a_step_without_gradient_is_no_step_of_the_group():
    x, y = (nn.Parameter(torch.tensor([3.0, 4.0])) for _ in range(2))
    optimizer = torch.optim.SGD([x, y], lr=0.1)
    recorder = RotationRecorder(optimizer, {"x": [x], "y": [y]}, every=1)
    x.grad = torch.tensor([-4.0, 3.0])
    optimizer.step()
    assert [one.name for one in recorder.records] == ["x"]


def test_a_member_without_gradient_has_part_in_the_norm():
    x, y = (nn.Parameter(torch.tensor([3.0, 4.0])) for _ in range(2))
    optimizer = ClippedSGD([x, y], lr=1.0, weight_decay=0.0, clip=None)
    recorder = RotationRecorder(optimizer, every=1)
    x.grad = torch.tensor([-4.0, 3.0])
    optimizer.step()
    assert recorder.records[0].norm == pytest.approx(math.sqrt(50.0))
    assert recorder.records[0].angular_update == pytest.approx(math.atan(5.0 / math.sqrt(50.0)))


def test_at_equilibrium_it_measures_the_predicted_rotation():
    torch.manual_seed(0)
    x = nn.Parameter(torch.randn(400, dtype=torch.float64))
    optimizer = torch.optim.SGD([x], lr=0.5, weight_decay=0.02)
    with torch.no_grad():
        x.mul_(sgd_equilibrium(0.5, 0.02, gradient_norm=1.0).norm / x.norm())
    recorder = RotationRecorder(optimizer, {"x": [x]}, every=10)
    for _ in range(1000):
        g = torch.randn(400, dtype=torch.float64)
        g -= (g @ x.detach()) * x.detach() / x.detach().square().sum()
        x.grad = g / (20.0 * x.detach().norm())
        optimizer.step()
    measured = math.sqrt(sum(one.angular_update**2 for one in recorder.records) / len(recorder.records))
    assert measured == pytest.approx(equilibrium(optimizer, 0).angular_update, rel=0.02)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_all_matrices_together_and_the_rows_of_one(name):
    """The same steps seen at three granularities: |angle|^2 of a vector is the mean of its parts, weighted by |x|^2."""
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(4, 5, dtype=torch.float64)) for _ in range(2)]
    optimizer = OPTIMIZERS[name](weights)
    groups = {"all": weights, "one": [weights[0]], "rows": InvariantGroup([("w", weights[0])], rows=True)}
    recorder = RotationRecorder(optimizer, groups, every=1)
    old = [w.detach().clone() for w in weights]
    for w, x in zip(weights, old, strict=True):
        g = torch.randn(4, 5, dtype=torch.float64)
        w.grad = g - (g * x).sum(1, keepdim=True) * x / x.square().sum(1, keepdim=True)
    optimizer.step()
    seen = {record.name: record for record in recorder.records}
    both = [torch.cat([t.flatten() for t in tensors]) for tensors in (old, [w.detach() for w in weights])]
    assert seen["all"].angular_update == pytest.approx(angle(*both), rel=1e-9)
    assert seen["one"].angular_update == pytest.approx(angle(old[0], weights[0].detach()), rel=1e-9)
    by_row = [angle(x, y) for x, y in zip(old[0], weights[0].detach(), strict=True)]
    assert seen["rows"].angular_update == pytest.approx(math.sqrt(sum(a * a for a in by_row) / 4), rel=1e-9)
    assert seen["rows"].effective_lr is None


class WithRows(Net):
    """A layer of unit vectors before the others."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Linear(6, 6, bias=False, dtype=torch.float64)

    def forward(self, x):
        return super().forward(F.linear(x, F.normalize(self.rows.weight, dim=1)))


def of_three_kinds(net):
    """Matrices one by one, together, and rows."""
    rows = InvariantGroup([("w", net.rows.weight)], rows=True)
    return {**net.groups, "together": [net.first.weight, net.second.weight], "rows": rows}


def distributed(rank, folder):
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results = {}
    for kind in ("ddp", "fsdp2"):
        for name in OPTIMIZERS:
            net = WithRows()
            if kind == "fsdp2":
                fully_shard(net, mesh=torch.distributed.init_device_mesh("cpu", (2,)))
                assert type(net.first.weight).__name__ == "DTensor"
            wrapped = DistributedDataParallel(net) if kind == "ddp" else net
            optimizer = OPTIMIZERS[name](net.parameters())
            recorder = RotationRecorder(optimizer, of_three_kinds(net), every=2)
            for step in range(3):
                generator = torch.Generator().manual_seed(step)
                x = torch.randn(16, 6, generator=generator, dtype=torch.float64)
                y = torch.randint(3, (16,), generator=generator)
                half = slice(8 * rank, 8 * rank + 8)
                optimizer.zero_grad()
                F.cross_entropy(wrapped(x[half]), y[half]).backward()
                optimizer.step()
            results[kind, name] = [vars(record) for record in recorder.records]
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_measure_what_one_does():
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(distributed, (folder,), nprocs=2)
        found = [torch.load(f"{folder}/{rank}.pt") for rank in range(2)]
    for name in OPTIMIZERS:
        net = WithRows()
        optimizer = OPTIMIZERS[name](net.parameters())
        recorder = RotationRecorder(optimizer, of_three_kinds(net), every=2)
        train(net, optimizer, 3)
        assert len(recorder.records) == 8
        assert [record.quantiles is not None for record in recorder.records] == [False, False, False, True] * 2
        for kind in ("ddp", "fsdp2"):
            for ranks in found:
                for one, record in zip(ranks[kind, name], recorder.records, strict=True):
                    expected = {key: value for key, value in vars(record).items() if key not in ("name", "radial")}
                    assert one.pop("quantiles") == (expected.pop("quantiles") and pytest.approx(record.quantiles))
                    assert one.pop("name") == record.name
                    assert one.pop("radial") == pytest.approx(0.0, abs=1e-9)
                    numbers = {key: value for key, value in expected.items() if value is not None}
                    assert {key: one[key] for key in numbers} == pytest.approx(numbers, rel=1e-7)
                    assert [one[key] for key in expected if key not in numbers] == [None] * (len(one) - len(numbers))


class TestLightning:
    class Module(Net):
        def scale_invariant_groups(self):
            return {name: InvariantGroup([(name, p) for p in members]) for name, members in self.groups.items()}

    class Trainer:
        """Calls what Lightning calls, in its order."""

        def __init__(self, *callbacks):
            self.callbacks, self.optimizers = callbacks, []

        def call(self, hook, *arguments):
            for callback in self.callbacks:
                getattr(callback, hook)(self, *arguments)

        def fit(self, module, optimizers):
            for hook in ("setup", "on_fit_start"):
                self.call(hook, module)
            self.optimizers = optimizers
            self.call("on_train_start", module)
            for optimizer in optimizers:
                self.call("on_train_batch_start", module, None, 0)
                train(module, optimizer, 3)
                self.call("on_train_batch_end", module, None, None, 0)
            for hook in ("on_train_end", "on_fit_end", "teardown"):
                self.call(hook, module)

    def test_in_a_trainer_with_its_hooks(self):
        callback = LightningRotation(every=2)
        module = self.Module()
        matrices = torch.optim.SGD([module.first.weight, module.second.weight], lr=0.1)
        head = torch.optim.AdamW(module.head.parameters())
        self.Trainer(callback).fit(module, [matrices, head])
        assert [(one.name, one.step) for one in callback.records] == [(n, s) for s in (1, 3) for n in module.groups]
        assert len(callback.recorders) == 1  # the head is none of its business
        train(module, matrices, 3)
        assert len(callback.records) == 4  # training has ended
        assert callback.state_dict() == {}
        with pytest.raises(AttributeError, match="no attribute 'fit'"):
            callback.fit()

    def test_of_several_optimizers_one_may_mark_no_group(self):
        module, callback = Net(), LightningRotation(every=2)
        groups = [{"params": [module.first.weight], "scale_invariant": True, "name": "first"}]
        optimizers = [torch.optim.AdamW(module.head.parameters()), torch.optim.SGD(groups, lr=0.1)]
        self.Trainer(callback).fit(module, optimizers)
        assert [one.name for one in callback.records] == ["first", "first"]
        with pytest.raises(ValueError, match="no optimizer of the trainer steps a scale-invariant group"):
            self.Trainer(LightningRotation()).fit(module, optimizers[:1])

    def test_an_exception_ends_it_too(self):
        callback, module = LightningRotation(every=2), self.Module()
        optimizer = torch.optim.SGD([module.first.weight, module.second.weight], lr=0.1)

        class Breaks(LightningRotation):
            def on_train_batch_end(self, *_):
                raise KeyboardInterrupt

        trainer = self.Trainer(callback, Breaks(every=2))
        with pytest.raises(KeyboardInterrupt) as caught:
            trainer.fit(module, [optimizer])
        trainer.call("on_exception", module, caught.value)
        train(module, optimizer, 3)
        assert [one.step for one in callback.records] == [1, 1, 3, 3]

    def test_a_run_that_goes_on_asks_for_both_keys(self):
        callback = LightningRotation()
        assert {callback.state_key: None}.get(callback.state_key, callback._legacy_state_key) is None

    @pytest.mark.skipif(importlib.util.find_spec("lightning") is None, reason="lightning is not installed")
    @pytest.mark.filterwarnings("default")  # Lightning's own
    def test_in_lightning_itself(self, tmp_path):
        import lightning

        class Real(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = TestLightning.Module()

            def scale_invariant_groups(self):
                return self.net.scale_invariant_groups()

            def training_step(self, batch, _):
                return F.cross_entropy(self.net(batch[0]), batch[1])

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.1)

        data = torch.utils.data.TensorDataset(torch.randn(32, 6, dtype=torch.float64), torch.randint(3, (32,)))
        loader = torch.utils.data.DataLoader(data, batch_size=8)

        def fit(steps, **options):
            callback = LightningRotation(every=2)
            trainer = lightning.Trainer(
                max_steps=steps, callbacks=[callback], logger=False, accelerator="cpu", default_root_dir=tmp_path,
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            )  # fmt: skip
            trainer.fit(Real(), loader, **options)
            trainer.save_checkpoint(tmp_path / "last.ckpt")
            return [one.step for one in callback.records]

        assert fit(4) == [1, 1, 3, 3]
        assert fit(6, ckpt_path=tmp_path / "last.ckpt", weights_only=False) == [1, 1]


class PreNorm(nn.Module):
    """A transformer with plain layer norms before attention and network: no matrix of it may be rescaled alone."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 32)
        layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0, batch_first=True, norm_first=True, activation="gelu")
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 50)

    def loss(self, seed):
        ids = torch.randint(50, (8, 16), generator=torch.Generator().manual_seed(seed))
        return F.cross_entropy(self.head(self.layers(self.table(ids))).flatten(0, 1).float(), ids.flatten())


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        sizes = [(20, 64), (64, 64), (64, 5)]
        parts = [part for size in sizes for part in (nn.Linear(*size), nn.GELU())]
        self.layers = nn.Sequential(*parts[:-1])

    def loss(self, seed):
        generator = torch.Generator().manual_seed(seed)
        x, y = torch.randn(32, 20, generator=generator), torch.randint(5, (32,), generator=generator)
        return F.cross_entropy(self.layers(x).float(), y)


@pytest.mark.parametrize("autocast", [False, True])
class TestWhatDependsOnItsScaleIsRefused:
    """In float32, and in bfloat16 by autocast; what does not, in the same precision, is not."""

    def run(self, loss, optimizer, autocast):
        for step in range(8):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                value = loss(step)
            value.backward()
            optimizer.step()

    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("kind", [Plain, PreNorm])
    def test_each_matrix_of_a_plain_network(self, kind, seed, autocast):
        torch.manual_seed(seed)
        net = kind()
        for name, matrix in net.named_parameters():
            if matrix.dim() < 2:
                continue
            optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
            recorder = RotationRecorder(optimizer, {name: [matrix]}, every=1)
            with pytest.raises(ValueError, match="the cosine of parameters and gradient is"):
                self.run(net.loss, optimizer, autocast)
            recorder.close()

    @pytest.mark.parametrize("seed", range(2))
    @pytest.mark.parametrize("invariance", ["joint", "matrix", "row"])
    def test_but_not_a_group_of_sibert(self, invariance, seed, autocast):
        torch.manual_seed(seed)
        model = SibertForMaskedLM(SibertConfig.of_size("nano", vocab_size=60, invariance=invariance))
        optimizer = build_optimizer(model, intrinsic_lr=0.01)
        recorder = RotationRecorder(optimizer, every=1)

        def loss(step):
            ids = torch.randint(5, 60, (4, 16))
            return model(input_ids=ids, labels=ids).loss

        self.run(loss, optimizer, autocast)
        assert recorder.records[-1].step == 8


@pytest.mark.parametrize("invariance", ["joint", "matrix", "row"])
def test_parameters_in_bfloat16_are_coarse_and_invariant(invariance):
    torch.manual_seed(0)
    model = SibertForMaskedLM(SibertConfig.of_size("nano", vocab_size=60, invariance=invariance)).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    recorder = RotationRecorder(optimizer, model.scale_invariant_groups(), every=1)
    for _ in range(4):
        ids = torch.randint(5, 60, (4, 16))
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    assert recorder.records[-1].step == 4


def test_a_gradient_that_is_orthogonal_by_chance_is_found_in_the_next_step():
    x = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    optimizer = torch.optim.SGD([x], lr=0.01)
    RotationRecorder(optimizer, {"x": [x]}, every=1)
    x.grad = torch.tensor([-4.0, 3.0], dtype=torch.float64)
    optimizer.step()
    x.grad = torch.tensor([-4.0, 3.1], dtype=torch.float64)
    with pytest.raises(ValueError, match="in the first 2 steps"):
        optimizer.step()


class TestRefusals:
    def test_no_group(self):
        with pytest.raises(ValueError, match="no parameter group is marked scale_invariant"):
            RotationRecorder(OPTIMIZERS["sgd"](Net().parameters()))

    def test_every(self):
        net = Net()
        with pytest.raises(ValueError, match="every must be at least 1"):
            RotationRecorder(OPTIMIZERS["sgd"](net.parameters()), net.groups, every=0)

    def test_a_group_that_is_not_invariant(self):
        net = Net()
        optimizer = OPTIMIZERS["sgd"](net.parameters())
        RotationRecorder(optimizer, {"head": [net.head.weight]})
        with pytest.raises(ValueError, match="head: the cosine of parameters and gradient"):
            train(net, optimizer, 1)

    def test_rows_that_are_not_invariant(self):
        net = Net()
        optimizer = OPTIMIZERS["sgd"](net.parameters())
        RotationRecorder(optimizer, {"first": InvariantGroup([("w", net.first.weight)], rows=True)})
        with pytest.raises(ValueError, match="first: the cosine"):
            train(net, optimizer, 1)

    def test_no_direction(self):
        x = nn.Parameter(torch.zeros(3))
        optimizer = torch.optim.SGD([x], lr=0.1)
        RotationRecorder(optimizer, {"x": [x]})
        x.grad = torch.ones(3)
        with pytest.raises(ValueError, match="x: a norm is 0"):
            optimizer.step()
