"""A diagnosis of runs that are made to be wrong, each of which trains for some steps, and of one that is sound."""

import dataclasses
import json
import math
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional as F

from sibert.dynamics import Hessian
from sibert.lab import Rates, Standing, diagnose, diagnose_run, diagnosis, diagnosis_run, write_diagnosis
from sibert.lab.diagnosis_page import HEAD
from sibert.ops.normalize import layer_norm
from sibert.optim import ClippedSGD, InvariantGroup
from sibert.training import PretrainRecipe, run_pretraining

STEPS, BATCH = 300, 16


class Net(nn.Module):
    """Two matrices whose scale does not matter, and a head that is not trained; labels are wrong in a fifth of cases.

    With `claims` "all" it says that of its head, too; with `rows` the scale of no row matters.
    """

    def __init__(self, claims="matrices", dropout=0.0, rows=False):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = nn.Linear(8, 16, bias=False), nn.Linear(16, 16, bias=False)
        self.head = nn.Linear(16, 3)
        self.head.requires_grad_(claims == "all")
        self.dropout, self.claims, self.rows = nn.Dropout(dropout), claims, rows

    def forward(self, x):
        for layer in (self.first, self.second):
            weight = F.normalize(layer.weight, eps=0.0) if self.rows else layer.weight
            x = self.dropout(layer_norm(F.linear(x, weight)).relu())
        return self.head(x)

    def loss(self, batch):
        return F.cross_entropy(self(batch[0]), batch[1])

    def scale_invariant_groups(self):
        groups = {name: InvariantGroup([(name, getattr(self, name).weight)]) for name in ("first", "second")}
        if self.claims == "all":
            groups["head"] = InvariantGroup([("head", self.head.weight)])
        return groups


PANGRAM = "the quick brown fox jumps over a lazy dog while seven wizards pack their boxes"
TEACHER = torch.randn(8, 3, generator=torch.Generator().manual_seed(5))


def batches(count, size=BATCH, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        x = torch.randn(size, 8, generator=generator)
        wrong = torch.rand(size, generator=generator) < 0.2
        y = torch.where(wrong, torch.randint(3, (size,), generator=generator), (x @ TEACHER).argmax(1))
        yield x, y


def trained(model, optimizer, steps=STEPS, size=BATCH):
    for batch in batches(steps, size, seed=1):
        optimizer.zero_grad()
        model.loss(batch).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model


def sgd(model, lr=0.5, weight_decay=0.01, **options):
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr, weight_decay=weight_decay, **options)


def about(diagnosis):
    return {finding.about for finding in diagnosis.findings if finding.mend}


def the(diagnosis, kind):
    (finding,) = (one for one in diagnosis.findings if one.about == kind and one.mend)
    return finding


def test_a_sound_run_has_nothing_to_mend():
    model = Net()
    optimizer = sgd(model)
    trained(model, optimizer)
    found = diagnose(model, model.loss, batches(64), optimizer, batch_size=BATCH, steps=STEPS)
    assert found.sound, str(found)
    assert "nothing to mend" in str(found)
    assert [group.invariant for group in found.groups] == [True, True]
    for group in found.groups:
        one = group.standing
        assert one.intrinsic_lr == pytest.approx(0.005)
        assert one.equilibrium_angle == pytest.approx(math.sqrt(0.01), rel=0.01)
        assert one.norm == pytest.approx(one.equilibrium_norm, rel=0.2)
        assert one.relaxation_steps == pytest.approx(50.0)
        assert one.effective_lr == pytest.approx(0.5 / one.norm**2, rel=1e-6)
        # the line of the sphere is 2 (1 - eta lambda) / effective learning rate
        assert group.stability == pytest.approx(group.spherical_sharpness * one.effective_lr / (2 * 0.995), rel=1e-6)
    assert max(group.stability for group in found.groups) * found.stability.line <= found.stability.sharpness * 1.01


class TestRunsMadeToBeWrong:
    def test_a_learning_rate_a_hundred_times_too_small(self):
        model = Net()
        optimizer = sgd(model, lr=0.005)
        found = diagnose(trained(model, optimizer), model.loss, batches(32), optimizer, batch_size=BATCH, steps=STEPS)
        assert about(found) == {"intrinsic rate"}
        finding = the(found, "intrinsic rate")
        assert finding.groups == ("first", "second")
        assert "here 5e-05 * 300 = 0.015" in finding.inequality
        # 3.5 / steps would turn by more in a step than what was good when measured
        assert "to 0.00605 (lr = 0.605 at weight_decay = 0.01), or train for 2e+04 steps at least" in finding.remedy
        assert "in 5e+03 steps" in finding.statement  # 1 / (4 eta lambda)

    def test_a_run_too_short_for_any_learning_rate_and_one_that_is_not(self):
        model = Net()
        remedies = {}
        for steps in (100, 1000):
            found = diagnose(model, model.loss, batches(16), sgd(model, lr=5e-4), batch_size=BATCH, steps=steps)
            remedies[steps] = the(found, "intrinsic rate").remedy
        assert remedies[100].endswith(
            "to 0.00605 (lr = 0.605 at weight_decay = 0.01), and train for 165 steps at least"
        )
        assert remedies[1000].endswith(
            "to 0.0035 (lr = 0.35 at weight_decay = 0.01), or train for 2e+05 steps at least"
        )

    def test_without_weight_decay(self):
        model = Net()
        optimizer = sgd(model, weight_decay=0.0)
        trained(model, optimizer)
        found = diagnose(model, model.loss, batches(32), optimizer, batch_size=BATCH, steps=STEPS, each_group=False)
        assert about(found) == {"weight decay"}
        finding = the(found, "weight decay")
        assert finding.groups == ("first", "second")
        assert "weight_decay = 0.0121 (eta lambda = 0.00605)" in finding.remedy
        assert all(group.standing.equilibrium_norm is None for group in found.groups)

    def test_a_batch_far_beyond_the_critical_size(self):
        model, size = Net(), 4096
        optimizer = sgd(model)
        trained(model, optimizer, 5, size)
        found = diagnose(model, model.loss, batches(16, size), optimizer, batch_size=size, sharpness=False)
        assert "batch" in about(found)
        finding = the(found, "batch")
        assert found.noise.critical_batch_size < size / 4
        assert f"here {found.noise.noise_to_signal:.2g}" in finding.inequality
        assert f"take a batch of {found.noise.critical_batch_size:.0f}" in finding.remedy
        small = diagnose(model, model.loss, batches(64), optimizer, batch_size=BATCH, sharpness=False)
        assert "batch" not in about(small)  # negative twin: the same parameters, a small batch

    def test_a_group_that_is_not_invariant_is_named(self):
        model = Net(claims="all")
        optimizer = sgd(model)
        trained(model, optimizer)
        found = diagnose(model, model.loss, batches(32), optimizer, batch_size=BATCH, steps=STEPS, each_group=False)
        assert about(found) == {"invariance"}
        finding = the(found, "invariance")
        assert finding.groups == ("head",)
        assert finding.statement.startswith("head is said to be scale invariant, and is not")
        (head,) = (group for group in found.groups if group.name == "head")
        assert (head.invariant, head.standing) == (False, None)
        assert head.deviation > 0.01
        assert "1. head is said" in str(found)

    def test_far_from_equilibrium_with_little_time(self):
        model = Net()
        with torch.no_grad():
            model.first.weight.mul_(30.0)
        optimizer = sgd(model)
        late, early = (
            diagnose(model, model.loss, batches(32), optimizer, batch_size=BATCH, steps=steps, sharpness=False)
            for steps in (300, 30_000)
        )
        finding = the(late, "equilibrium")
        assert finding.groups == ("first",)
        standing = late.groups[0].standing
        ratio = standing.norm / standing.equilibrium_norm
        assert f"here {ratio:.2g}" in finding.inequality
        needed = 50.0 * math.log((ratio**4 - 1.0) / (1.05**4 - 1.0))
        assert standing.steps_to_equilibrium == pytest.approx(needed, rel=1e-3)
        assert f"it gets there in {needed:.0f} steps, {needed / 300:.0%} of the 300 at these rates" in finding.statement
        assert "equilibrium" not in about(early)  # it gets there by itself
        assert any(one.about == "equilibrium" and not one.mend for one in early.findings)

    def test_a_step_that_turns_too_far(self):
        model = Net()
        found = diagnose(model, model.loss, batches(16), Rates("sgd", 1.0, 0.1), batch_size=BATCH, sharpness=False)
        assert "sqrt(2 eta lambda) <= 0.15; here 0.45" in the(found, "intrinsic rate").inequality

    def test_too_much_clipping(self):
        model = Net()
        with torch.no_grad():
            model.first.weight.mul_(0.05)
        rates = Rates("sgd", 0.5, 0.01, clip=2.0)
        found = diagnose(model, model.loss, batches(16), rates, batch_size=BATCH, sharpness=False)
        assert the(found, "clipping").groups == ("first",)
        assert found.groups[0].standing.clipped_share == 1.0
        assert found.groups[1].standing.clipped_share < 0.15

    def test_curvature_beyond_the_line(self):
        model = Net()
        trained(model, sgd(model), 50)
        with torch.no_grad():
            model.first.weight.mul_(0.1)
        found = diagnose(model, model.loss, batches(16), sgd(model), batch_size=BATCH, each_group=False)
        finding = the(found, "sharpness")
        assert f"here {found.stability.sharpness:.3g}" in finding.inequality
        assert found.stability.sharpness > 1.5 * found.stability.line


@pytest.mark.parametrize("name", ["sgd", "sgdm", "adamw", "clipped", "intrinsic", "rows"])
def test_each_optimizer_is_seen_at_its_equilibrium(name):
    """Angle and norm, measured and predicted, after a run that is long enough for both to settle."""
    model = Net(rows=name == "rows")
    parameters = [model.first.weight, model.second.weight]
    optimizer = {
        "sgd": lambda: torch.optim.SGD(parameters, lr=0.5, weight_decay=0.01),
        "sgdm": lambda: torch.optim.SGD(parameters, lr=0.05, weight_decay=0.02, momentum=0.9),
        "adamw": lambda: torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.3, betas=(0.8, 0.99)),
        "clipped": lambda: ClippedSGD([{"params": [p]} for p in parameters], lr=0.5, weight_decay=0.01),
        "intrinsic": lambda: ClippedSGD([{"params": [p]} for p in parameters], intrinsic_lr=0.005),
        "rows": lambda: ClippedSGD([{"params": [p], "rows": True} for p in parameters], intrinsic_lr=0.005),
    }[name]()
    rows = name == "rows"
    groups = {n: InvariantGroup([(n, p)], rows) for n, p in zip(("first", "second"), parameters, strict=True)}
    trained(model, optimizer)
    if rows:  # negative twin of the symmetry: the other network's rows are no groups
        other = Net()
        wrong = {"first": InvariantGroup([("first", other.first.weight)], rows=True)}
        rates = Rates("sgd", 0.5, 0.01)
        found = diagnose(other, other.loss, batches(16), rates, batch_size=BATCH, groups=wrong, sharpness=False)
        assert the(found, "invariance").groups == ("first",)
    found = diagnose(
        model, model.loss, batches(32), optimizer, batch_size=BATCH, groups=groups, steps=STEPS, each_group=False
    )
    assert found.stability is not None
    for group in found.groups:
        one = group.standing
        assert one.angular_update == pytest.approx(one.equilibrium_angle, rel=0.5)
        assert one.norm == pytest.approx(one.equilibrium_norm, rel=0.4)
        assert (one.clipped_share is None) == (name in ("sgd", "sgdm", "adamw"))
        if name in ("sgdm", "adamw"):
            assert found.stability.line > 3.0


def test_fresh_momentum_and_the_angle_of_a_step_that_remembers():
    """With a memory the step is tried on a copy; its angle is that of the next step with the same batch."""
    model = Net()
    optimizer = sgd(model, lr=0.05, momentum=0.9)
    trained(model, optimizer, 50)
    same = list(batches(1)) * 16
    with pytest.raises(ValueError, match="too few"):
        diagnose(model, model.loss, same[:3], optimizer, batch_size=BATCH)
    found = diagnose(model, model.loss, same, optimizer, batch_size=BATCH, sharpness=False)
    before = model.first.weight.detach().clone().double().flatten()
    model.loss(same[0]).backward()
    optimizer.step()
    after = model.first.weight.detach().double().flatten()
    cosine = before @ after / before.norm() / after.norm()
    assert found.groups[0].standing.angular_update == pytest.approx(math.acos(cosine), rel=1e-4)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_nothing_is_changed(kind):
    model = Net(dropout=0.3)
    optimizer = sgd(model, momentum=0.9) if kind == "sgd" else torch.optim.AdamW(model.parameters(), lr=1e-3)
    trained(model, optimizer, 5)
    model.dropout.eval()
    model.first.weight.grad = torch.ones_like(model.first.weight)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    kept = {p: {k: torch.as_tensor(v).clone() for k, v in one.items()} for p, one in optimizer.state.items()}
    modes, numbers = [module.training for module in model.modules()], torch.get_rng_state()
    diagnose(model, model.loss, batches(16), optimizer, batch_size=BATCH, steps=10)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(
        torch.equal(torch.as_tensor(v), kept[p][k]) for p, one in optimizer.state.items() for k, v in one.items()
    )
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), numbers)
    assert bool((model.first.weight.grad == 1).all())
    assert model.second.weight.grad is None


def test_a_model_that_says_nothing_is_searched():
    model = Net(dropout=0.2)
    plain = nn.Module()
    plain.inner = model
    found = diagnose(plain, model.loss, batches(16), Rates("sgd", 0.5, 0.01), batch_size=BATCH, sharpness=False)
    assert {group.name for group in found.groups} == {"inner.first", "inner.second"}
    assert not any(group.claimed for group in found.groups)


def test_what_hardly_matters_is_not_taken_for_invariant():
    """Its loss changes by less than 1e-4 at twice the scale, as that of a fresh transformer's queries does."""
    torch.manual_seed(0)
    model = nn.Module()
    model.strong, model.weak = (nn.Parameter(torch.randn(8, 3)) for _ in range(2))

    def loss(batch):
        return F.cross_entropy(batch[0] @ (model.strong + 1e-7 * model.weak), batch[1])

    found = diagnose(model, loss, batches(16), Rates("sgd", 0.5, 0.01), batch_size=BATCH, sharpness=False)
    assert found.groups == ()


def test_a_model_without_any_symmetry():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 3))

    def loss(batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    found = diagnose(model, loss, batches(16), sgd(model), batch_size=BATCH)
    assert found.groups == ()
    assert found.sound
    assert found.stability.sharpness > 0
    assert "no scale-invariant group was found" in str(found)


def test_optimizers_without_a_known_balance_are_named():
    model = Net()
    for optimizer, words in (
        (torch.optim.Adam(model.parameters(), weight_decay=0.1), "take AdamW"),
        (torch.optim.RMSprop(model.parameters()), "not that of RMSprop"),
        (torch.optim.SGD([model.first.weight], lr=0.1), "not in the optimizer"),
        (torch.optim.SGD(model.parameters(), lr=0.0), "learning rate is 0"),
        (sgd(model, momentum=0.9, nesterov=True), "not that of Nesterov's"),
        (torch.optim.AdamW(model.parameters(), amsgrad=True), "AMSGrad divides by the largest second moment"),
    ):
        found = diagnose(model, model.loss, batches(16), optimizer, batch_size=BATCH, sharpness=False)
        assert words in str(found)


def test_dampening_is_seen_as_the_smaller_rate_it_is():
    model = Net()
    found = [
        diagnose(model, model.loss, batches(16), optimizer, batch_size=BATCH, sharpness=False).groups[0].standing
        for optimizer in (sgd(model, 0.4, momentum=0.9, dampening=0.75), sgd(model, 0.1, momentum=0.9))
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("amsgrad", [False, True])
def test_adams_own_epsilon_counts(amsgrad):
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-2, weight_decay=0.0, amsgrad=amsgrad)
    trained(model, optimizer, 20)
    drawn = list(batches(16))
    found = diagnose(model, model.loss, drawn, optimizer, batch_size=BATCH, each_group=False).stability.sharpness
    matrices = [model.first.weight, model.second.weight]
    seconds = [optimizer.state[p]["max_exp_avg_sq" if amsgrad else "exp_avg_sq"] for p in matrices]
    rates = [1e-3 / ((second / (1.0 - 0.999**20)).sqrt() + 1e-2) for second in seconds]
    several = drawn[: diagnosis.SHARPNESS_BATCHES]
    assert found == pytest.approx(
        Hessian(model, model.loss, several, matrices).preconditioned_sharpness(rates), rel=1e-2
    )


def test_no_batches():
    model = Net()
    with pytest.raises(ValueError, match="no batches: give at least 16"):
        diagnose(model, model.loss, [], sgd(model), batch_size=BATCH)


def test_a_loss_that_is_not_finite():
    model = Net()
    with pytest.raises(ValueError, match="not finite"):
        diagnose(model, lambda batch: model.loss(batch) * math.nan, batches(16), sgd(model), batch_size=BATCH)


def test_a_group_without_length():
    model = Net()
    with torch.no_grad():
        model.first.weight.zero_()
    found = diagnose(model, model.loss, batches(16), sgd(model), batch_size=BATCH, sharpness=False)
    assert the(found, "invariance").groups == ("first",)


def test_the_square_root_rule_of_adam():
    model = Net()
    rates = Rates("adamw", 1e-3, 1.0, betas=(0.9, 0.999))
    found = diagnose(model, model.loss, batches(64, 4), rates, batch_size=4)
    (note,) = (one for one in found.findings if one.about == "batch")
    assert "square-root rule" in note.remedy
    assert "kappa (1 - b1) <= 1: 10" in note.inequality


def test_standings_from_elsewhere_count():
    model = Net()
    standing = Standing(1.0, 4.0, 0.1, 0.05, 0.001, 0.1, 250.0, 900.0, 0.5)
    found = diagnose(
        model, model.loss, batches(16), Rates("sgd", 0.5, 0.01), batch_size=BATCH, sharpness=False, steps=1000.0,
        standings={"first": standing},
    )  # fmt: skip
    assert found.groups[0].standing == standing
    assert {"equilibrium", "clipping"} <= about(found)


def test_the_page(tmp_path):
    model = Net(claims="all")
    found = diagnose(model, model.loss, batches(16), sgd(model), batch_size=BATCH, steps=100)
    found = dataclasses.replace(
        found, groups=tuple(dataclasses.replace(group, name=f"<{group.name}>") for group in found.groups)
    )
    page = write_diagnosis(found, tmp_path / "new" / "page.html", "Of <a> run").read_text()
    assert "What to mend" in page
    assert "&lt;head&gt;" in page
    assert "Of &lt;a&gt; run" in page
    assert "http" not in page.replace("http-equiv", "")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]
    with pytest.raises(ValueError, match="is a folder"):
        write_diagnosis(found, tmp_path)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A run of twelve steps on a few words: far too short for its intrinsic learning rate."""
    folder = tmp_path_factory.mktemp("pretrained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIBERT_CACHE", str(folder / "cache"))
        patch.setattr(diagnosis_run, "SMALL", 0)
        (folder / "texts").mkdir()
        words = [*PANGRAM.split()]
        for number in range(40):
            turned = words[number % 11 :] + words[: number % 11]
            (folder / "texts" / f"{number}.txt").write_text(
                " ".join(turned * (8 + number % 5)) + f" number {number}.\n"
            )
        recipe = PretrainRecipe(
            data=[str(folder / "texts")], vocab_size=200, seq_length=32, validation_fraction=0.2, size="nano", steps=12,
            intrinsic_lr=0.001,
            batch_size=4, accumulation=2, log_every=1, device="cpu",
        )  # fmt: skip
        assert run_pretraining(recipe, folder / "run", console=Console(quiet=True)) == 0
        yield folder / "run"


@pytest.fixture(scope="module")
def found(pretrained):
    return diagnose_run(pretrained, batches=16)


class TestARunOfPretraining:
    def test_what_it_recorded_is_judged(self, found):
        assert len(found.groups) == 12
        assert all(group.claimed and group.invariant and group.standing for group in found.groups)
        assert found.batch_size == 8
        assert found.noise.batch_size == 8
        assert 0.0 < found.stability.sharpness < found.stability.line  # the last learning rate of a cosine
        finding = the(found, "intrinsic rate")
        assert len(finding.groups) == 12
        assert 6.0 < found.steps < 10.0  # twelve steps of a cosine, at the mean of what is high
        standing = found.groups[1].standing
        assert 0.0005 < standing.intrinsic_lr < 0.001
        assert standing.equilibrium_angle == pytest.approx(math.sqrt(2 * standing.intrinsic_lr), rel=0.01)
        assert 0.5 < standing.norm / standing.equilibrium_norm < 2.0  # calibrated at the start
        assert standing.effective_lr == pytest.approx(found.rates.lr / standing.norm**2, rel=5.0)

    def test_the_command(self, pretrained, found, run, tmp_path, monkeypatch):
        monkeypatch.setattr("sibert.lab.diagnose_run", lambda path: found)
        status, shown, _ = run("lab", "diagnose", pretrained, "--out", tmp_path / "page.html")
        assert status == 1  # there is something to mend
        assert "12 of 12 groups are scale invariant as they are said to be" in shown
        assert "eta lambda T >= 1" in shown
        assert "Diagnosis of run" in (tmp_path / "page.html").read_text()
        sound = dataclasses.replace(found, findings=())
        monkeypatch.setattr("sibert.lab.diagnose_run", lambda path: sound)
        status, shown, _ = run("lab", "diagnose", pretrained)
        assert (status, "nothing to mend" in shown) == (0, True)
        assert (pretrained / "diagnosis.html").is_file()

    def test_mistakes_get_one_sentence(self, pretrained, run, tmp_path):
        def unfinished():
            (tmp_path / "unfinished").mkdir()
            for name in ("recipe.json", "metrics.jsonl"):
                (tmp_path / "unfinished" / name).write_bytes((pretrained / name).read_bytes())
            return tmp_path / "unfinished"

        (tmp_path / "empty").mkdir()
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text("{}")
        (tmp_path / "file").write_text("")
        for path, words in (
            (tmp_path / "nowhere", "no run directory at"),
            (tmp_path / "file", "is a file"),
            (tmp_path / "empty", "is not a run directory"),
            (tmp_path / "model", "is a folder of save_pretrained"),
            (unfinished(), "is not finished; go on with: sibert pretrain --resume"),
        ):
            status, shown, error = run("lab", "diagnose", path)
            assert (status, shown) == (1, "")
            assert error.startswith("error: ")
            assert error.count("\n") == 1
            assert words in error

    def test_a_run_whose_text_is_gone(self, pretrained, tmp_path):
        copied = shutil.copytree(pretrained, tmp_path / "copied")
        recipe = json.loads((copied / "recipe.json").read_text())
        (copied / "recipe.json").write_text(json.dumps({**recipe, "data": [str(tmp_path / "gone.txt")]}))
        with pytest.raises(ValueError, match=r"gone\.txt"):
            diagnose_run(copied)

    @pytest.mark.parametrize("groups", [None, {}, {"head": {}}, {"head": {"lr": None}}])
    def test_a_run_that_recorded_no_learning_rates(self, pretrained, tmp_path, groups):
        copied = shutil.copytree(pretrained, tmp_path / "copied")
        records = [json.loads(line) for line in (copied / "metrics.jsonl").read_text().splitlines()]
        changed = [{**record, "groups": groups} for record in records]
        if groups is None:
            changed = [{key: value for key, value in record.items() if key != "groups"} for record in records]
        (copied / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in changed))
        with pytest.raises(ValueError, match="has no learning rates of groups in its records"):
            diagnose_run(copied)

    def test_how_it_was_clipped_is_known(self, found):
        assert (found.rates.clip, found.rates.two_sided) == (2.0, True)

    def test_what_was_never_stepped_has_no_rates(self, pretrained):
        recipe = PretrainRecipe.from_json(pretrained / "recipe.json")
        still = {"eta": 0.0, "intrinsic_lr": 0.0, "param_norm": 1.0, "angular_update": 0.0, "effective_lr": 0.0}
        assert diagnosis_run._recorded(recipe, [{"still": still}]) == ({}, {})

    def test_of_a_twin_the_rates_are_those_of_the_time_that_is_judged(self, pretrained):
        recipe = PretrainRecipe.from_json(pretrained / "recipe.json")
        recipe = dataclasses.replace(recipe, model="bert", optimizer="adamw", intrinsic_lr=None)
        window = [{"a": {"lr": 1e-3}, "b": {"lr": 1e-3}}, {"a": {"lr": 5e-4}}]
        rates, standings = diagnosis_run._recorded(recipe, window)
        assert (rates.rule, rates.lr, standings) == ("adamw", pytest.approx(2.5e-3 / 3), {})

    def test_the_last_record_may_have_no_groups(self, pretrained, found, tmp_path):
        copied = shutil.copytree(pretrained, tmp_path / "copied")
        records = [json.loads(line) for line in (copied / "metrics.jsonl").read_text().splitlines()]
        last = max(record["step"] for record in records if record["kind"] == "train")
        more = {key: value for key, value in records[0].items() if key != "groups"} | {
            "kind": "train",
            "step": last + 1,
        }
        with (copied / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(more) + "\n")
        again = diagnose_run(copied, batches=16)
        assert [group.standing for group in again.groups] == [group.standing for group in found.groups]


def test_the_python_of_the_guide_says_what_the_guide_says(capsys):
    page = (Path(__file__).parents[2] / "docs" / "diagnose.md").read_text(encoding="utf-8")
    names = {}
    for code in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        exec(code, names)
    shown = capsys.readouterr().out
    assert "first, second: there is no weight decay" in shown
    assert re.search(r"^51 second 0\.\d+ 0\.\d+$", shown, re.MULTILINE)  # of the recorder


def test_the_commands_of_the_guide_do_what_the_guide_says(pretrained, tmp_path, monkeypatch, run):
    """As they are there, but on a few words and for twelve steps."""
    page = (Path(__file__).parents[2] / "docs" / "diagnose.md").read_text(encoding="utf-8")
    (commands,) = re.findall(r"^    (sibert pretrain .*)\n    (sibert lab diagnose .*)$", page, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIBERT_CACHE", str(tmp_path / "cache"))
    (_, *train), (_, *look) = map(shlex.split, commands)
    status, _, error = run(*train, "--data", pretrained.parent / "texts", "--steps", 12, "--validation-fraction", 0.2)
    assert (status, error) == (0, "")
    status, shown, _ = run(*look)
    assert status == 1  # there is something to mend
    assert shown.startswith("12 of 12 groups are scale invariant as they are said to be; 1 thing to mend\n1. ")
    assert "is too small for " in shown
    assert Path("slow/diagnosis.html").is_file()
    assert len(commands) == len(re.findall(r"^    sibert ", page, re.MULTILINE))


def test_the_guide_shows_what_the_command_prints_now():
    """The words of the report in the guide are those of the code."""
    page = (Path(__file__).parents[2] / "docs" / "diagnose.md").read_text(encoding="utf-8")
    report = re.search(r"^```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[1]
    assert report.startswith("12 of 12 groups are scale invariant as they are said to be; 1 thing to mend\n1. ")
    for words in (
        "eta lambda T >= 1; here ",
        "   do: raise eta lambda ",
        "critical batch size",
        "steps at these rates: ",
    ):
        assert words in report
    assert all(head in report for head in HEAD[:-1])  # the last is for constant learning rates
