"""What users ask: verdicts, degrees, blockers, groups, mistakes."""

import json
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sibert.homogeneity import (
    Blocker,
    Kind,
    Slices,
    SymmetryReport,
    Verdict,
    analyze,
    assert_scale_invariant,
    invariant_rows,
)
from sibert.homogeneity.propagation import propagate
from sibert.homogeneity.rules import RULES, rule
from tests.homogeneity.zoo import Function, exact_norm, ids, linear, mlp, x


class Encoder(nn.Module):
    """A PreNorm net with one softmax, one GELU, and a norm with an epsilon."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = linear(6, 4)
        self.norm = nn.LayerNorm(6, elementwise_affine=False)
        self.query, self.key, self.value = linear(6, 6), linear(6, 6), linear(6, 6)
        self.branch = mlp(linear(8, 6), nn.GELU(), linear(6, 8, True))
        self.last = exact_norm(nn.LayerNorm, 6)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        h = self.embed(inputs)
        n = self.norm(h)
        scores = (self.query(n) @ self.key(n).transpose(-1, -2)).softmax(-1)
        h = h + scores @ self.value(n)
        h = h + self.branch(self.norm(h))
        return {"hidden": self.last(h), "stream": h}


@pytest.fixture(scope="module")
def report() -> SymmetryReport:
    torch.manual_seed(0)
    return analyze(Encoder(), (x(2, 3, 4),), output="hidden", numeric=False)


class TestReport:
    def test_blockers_are_those_that_a_person_would_name(self, report):
        blockers = report.blockers("*")
        found = {(b.place.module, b.place.operation, b.kind) for b in blockers}
        assert found == {
            ("norm", "layer_norm", Kind.EPSILON),
            ("", "softmax", Kind.RULE),
            ("branch.1", "gelu", Kind.RULE),
        }
        assert all(b.place.file.endswith("test_analysis.py") for b in blockers if not b.place.module)
        assert all(b.remedy for b in blockers)
        assert "ReLU" in next(b for b in blockers if b.place.operation == "gelu").remedy

    def test_without_its_blockers_the_claim_would_be_proved(self, report):
        exponents = {report.names.index(name): 1 for name in report.select("*")}
        blocked = {b.place for b in report.blockers("*")}
        left = [e for e in report.equations if e.place not in blocked]
        assert all(e.form(exponents) == 0 for e in left)
        for place in blocked:
            assert any(e.form(exponents) for e in report.equations if e.place == place)

    def test_epsilons_are_told_apart(self, report):
        writers = ["embed", "value", "branch.2"]
        assert report.verdict(writers) is Verdict.UP_TO_EPSILON
        assert report.is_scale_invariant(writers, up_to_epsilon=True)
        assert not report.is_scale_invariant(writers)
        assert report.epsilons(writers) == {"norm": 1e-5}
        assert report.blockers(writers, up_to_epsilon=True) == []

    def test_degree_of_an_output(self):
        torch.manual_seed(0)
        report = analyze(Encoder(), (x(2, 3, 4),), numeric=False)
        writers = ["embed", "value", "branch.2"]
        assert report.degree(writers, "stream") == 1
        assert report.degree(writers, "hidden") == 0
        assert (
            report.degree({"embed.weight": 2, "value.weight": 2, "branch.2.weight": 2, "branch.2.bias": 2}, "stream")
            == 2
        )
        assert report.degree("query", "stream") is None
        with pytest.raises(ValueError, match=r"name one of hidden, stream"):
            report.degree(writers)
        with pytest.raises(ValueError, match=r"no output 'x'"):
            report.degree(writers, "x")

    def test_symmetries_say_what_gradient_flow_conserves(self, report):
        one = next(s for s in report.symmetries if set(s.exponents) == {"query.weight", "key.weight"})
        assert one.verdict is Verdict.EXACT
        assert one.conserved == "|query.weight|² - |key.weight|²"

    def test_groups_are_parameters_then_modules(self):
        torch.manual_seed(0)
        net = mlp(linear(5, 4, True), exact_norm(nn.LayerNorm, 5), linear(5, 5), exact_norm(nn.LayerNorm, 5))
        report = analyze(net, (x(2, 4),), numeric=False)
        assert report.invariant_groups() == [("2.weight",), ("0.weight", "0.bias")]
        assert report.is_scale_invariant("*")

    def test_json_holds_everything(self, report):
        data = json.loads(report.to_json())
        assert data["outputs"] == ["hidden"]
        assert {"exponents": {"query.weight": "1", "key.weight": "-1"}, "verdict": "exact"} in data["symmetries"]
        assert data["confirmation"] is None

    def test_text_shows_tree_symmetries_and_confirmation(self):
        torch.manual_seed(0)
        text = str(analyze(mlp(linear(5, 4), nn.LayerNorm(5, elementwise_affine=False)), (x(2, 4),)))
        assert "~ weight" in text
        assert "(up to 1e-05 in 1)" in text
        assert "1 of 1 symmetries hold" in text
        assert "factor 0.01" in text

    def test_parts_are_selected_by_name_module_and_pattern(self, report):
        assert report.select("branch.*") == ["branch.0.weight", "branch.2.weight", "branch.2.bias"]
        assert report.select("branch") == report.select("branch.*")
        assert report.select(["query.weight", "*.bias"]) == ["query.weight", "branch.2.bias"]
        with pytest.raises(ValueError, match=r"'nothing' is no parameter, module or pattern"):
            report.select("nothing")
        with pytest.raises(ValueError, match=r"'nothing' is no parameter of the model"):
            report.verdict({"nothing": 1})


class TestAnalysis:
    def test_loss_is_what_counts(self):
        torch.manual_seed(0)
        net = linear(3, 4)
        plain = analyze(net, (x(2, 4),), numeric=False)
        cosine = analyze(net, (x(2, 4),), loss=lambda y: (y / y.norm()).sum())
        assert plain.verdict("weight") is Verdict.NOT_PROVED
        assert cosine.verdict("weight") is Verdict.EXACT
        assert plain.blockers("weight")[0].place.operation == "output"

    def test_nothing_of_the_module_changes(self):
        torch.manual_seed(0)
        net = mlp(linear(5, 4), nn.BatchNorm1d(5), nn.Dropout(0.5)).train()
        before = {name: value.clone() for name, value in net.state_dict().items()}
        state = torch.get_rng_state()
        analyze(net, (x(9, 4),))
        assert torch.equal(torch.get_rng_state(), state)
        assert net.training
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        assert all(p.grad is None and p.requires_grad for p in net.parameters())

    def test_operation_without_a_rule_is_named_and_unknown(self, monkeypatch):
        monkeypatch.delitem(RULES, "aten.relu")
        torch.manual_seed(0)
        report = analyze(mlp(linear(5, 4), nn.ReLU(), exact_norm(nn.LayerNorm, 5)), (x(2, 4),))
        assert [(p.module, p.operation) for p in report.unsupported] == [("1", "relu")]
        assert report.verdict("0.weight") is Verdict.UNKNOWN
        assert "write a rule" in report.blockers("0.weight")[0].remedy
        assert report.confirmation is not None
        assert report.confirmation.observed == ("0.weight", "0")
        assert "no rule for" in str(report)

    def test_wrong_rule_is_caught_by_computing(self, monkeypatch):
        monkeypatch.delitem(RULES, "aten.tanh")
        rule("tanh", reason="wrong")(lambda op, x: op.edge(x.degree))
        torch.manual_seed(0)
        report = analyze(mlp(linear(5, 4), nn.Tanh(), exact_norm(nn.LayerNorm, 5)), (x(2, 4),))
        assert report.confirmation is not None
        assert len(report.confirmation.contradicted) == 1
        assert "an error of the checker" in str(report)

    def test_meta_tensors_are_enough_to_prove(self):
        with torch.device("meta"):
            net, inputs = mlp(linear(5, 4), nn.ReLU(), linear(3, 5)), torch.empty(2, 4)
        assert analyze(net, (inputs,), numeric=False).verdict({"0.weight": 1, "2.weight": -1}) is Verdict.EXACT

    def test_rows(self):
        torch.manual_seed(0)
        net = Function(lambda m, t: (m.w / m.w.norm(dim=1, keepdim=True)) @ t + m.u @ t, w=(3, 4), u=(3, 4))
        assert invariant_rows(net, (x(4, 2),)) == {"w": Verdict.EXACT, "u": Verdict.NOT_PROVED}

    def test_a_row_that_the_inputs_do_not_reach_proves_nothing(self):
        torch.manual_seed(0)
        net = Function(lambda m, t: t + m.positions[: t.shape[0]], positions=(30, 4))
        assert invariant_rows(net, (x(5, 4),)) == {"positions": Verdict.NOT_PROVED}

    @pytest.mark.parametrize(
        ("function", "verdict"),
        [
            (lambda a, b, again: F.layer_norm(a, (4,), eps=0.0), Verdict.EXACT),
            (lambda a, b, again: F.layer_norm(a + 2 * again, (4,), eps=0.0), Verdict.EXACT),
            (lambda a, b, again: F.layer_norm(a + b, (4,), eps=0.0), Verdict.NOT_PROVED),
            (lambda a, b, again: F.normalize(a - b, dim=-1, eps=0.0), Verdict.NOT_PROVED),
            (lambda a, b, again: a / b, Verdict.NOT_PROVED),
            (lambda a, b, again: a[:, 1] / a[:, 2], Verdict.NOT_PROVED),
        ],
    )
    def test_rows_that_are_looked_up_by_other_indices_are_other_rows(self, function, verdict):
        torch.manual_seed(0)

        def forward(m, i, j):
            return function(F.embedding(i, m.table), F.embedding(j, m.table), F.embedding(i, m.table))

        rows = invariant_rows(Function(forward, table=(8, 4)), (ids(2, 5), ids(2, 5).flip(0)))
        assert rows == {"table": verdict}

    def test_a_single_index_may_be_that_of_any_row(self):
        torch.manual_seed(0)
        net = Function(lambda m, i: F.embedding(i, m.table), table=(8, 4))
        report = analyze(net, (ids(1),), slices={"table": Slices(index=3)}, numeric=False)
        assert {report.verdict(name) for name in report.names} == {Verdict.NOT_PROVED}

    @pytest.mark.parametrize(
        ("function", "verdict"),
        [
            (lambda h: h / (h.norm(dim=1, keepdim=True) + 1e-3), Verdict.UP_TO_EPSILON),
            (lambda h: h / (h.norm(dim=1, keepdim=True) + 1.0), Verdict.NOT_PROVED),
            (lambda h: F.layer_norm(h, (3,), eps=1e-3), Verdict.UP_TO_EPSILON),
            (lambda h: F.layer_norm(h, (3,), eps=1.0), Verdict.NOT_PROVED),
            (lambda h: (h - 2e4) / h.norm(), Verdict.NOT_PROVED),
            (lambda h: (h - torch.tensor([0.0, -2e4, 0.0])) / h.norm(), Verdict.NOT_PROVED),
            (lambda h: h.abs().pow(float("inf")), Verdict.NOT_PROVED),
        ],
    )
    def test_constants_that_are_not_small_are_no_epsilons(self, function, verdict):
        torch.manual_seed(0)
        report = analyze(Function(lambda m, t: function(t @ m.w), w=(4, 3)), (x(2, 4),))
        assert report.verdict("w") is verdict
        assert report.confirmation is not None
        assert report.confirmation.contradicted == ()

    def test_modules_that_name_a_precision_are_computed_in_float64(self):
        def forward(m, t):
            h = ((t @ m.w).float() @ torch.eye(3)).to(torch.float32)
            filled = torch.zeros(2, 3)
            filled[:, :] = h
            return filled / filled.norm()

        torch.manual_seed(0)
        report = analyze(Function(forward, w=(4, 3)), (x(2, 4),))
        assert report.confirmation is not None
        assert [check.deviation < 1e-12 for check in report.confirmation.checks] == [True]

    def test_assertion_teaches(self):
        torch.manual_seed(0)
        net = mlp(linear(5, 4), nn.GELU(), linear(5, 5), exact_norm(nn.LayerNorm, 5))
        assert_scale_invariant(net, (x(2, 4),), "2.weight")
        with pytest.raises(AssertionError, match=r"(?s)What forbids it:\n  gelu in 1 .*remedy: use ReLU"):
            assert_scale_invariant(net, (x(2, 4),), "0.weight")
        softened = mlp(linear(5, 4), nn.LayerNorm(5, elementwise_affine=False))
        assert_scale_invariant(softened, (x(2, 4),), "*", up_to_epsilon=True)
        with pytest.raises(AssertionError, match=r"adds 1e-05"):
            assert_scale_invariant(softened, (x(2, 4),), "*")


class TestMistakes:
    def test_no_module(self):
        with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got str"):
            analyze("model", ())

    def test_no_parameters(self):
        with pytest.raises(ValueError, match=r"no parameters"):
            analyze(nn.ReLU(), (x(2),))

    def test_complex_parameters(self):
        net = nn.Module()
        net.register_parameter("w", nn.Parameter(torch.zeros(2, dtype=torch.complex64)))
        with pytest.raises(ValueError, match=r"parameter w is torch\.complex64"):
            analyze(net, ())

    def test_wrong_inputs(self):
        with pytest.raises(
            ValueError, match=r"torch\.export cannot trace the module: .*see that it runs on these inputs"
        ):
            analyze(linear(3, 4), (x(2, 5),))

    def test_control_flow_on_values(self):
        net = Function(lambda m, t: t @ m.w if (t @ m.w).sum() > 0 else t, w=(4, 4))
        with pytest.raises(
            ValueError, match=r"control flow depends on values of tensors: replace that by torch\.where"
        ):
            analyze(net, (x(2, 4),))

    def test_shapes_that_depend_on_values(self):
        net = Function(lambda m, t: (t @ m.w)[(t @ m.w)[:, 0] > 0], w=(4, 4))
        with pytest.raises(ValueError, match=r"shape .* depends on values"):
            analyze(net, (x(2, 4),))

    def test_module_that_is_not_deterministic(self):
        count = iter(range(100))
        net = Function(lambda m, t: t @ m.w * next(count), w=(4, 4))
        with pytest.raises(ValueError, match=r"other outputs at the same inputs"):
            analyze(net, (x(2, 4),))

    def test_module_that_gives_nan(self):
        net = Function(lambda m, t: (-(t @ m.w).abs()).sqrt(), w=(4, 4))
        with pytest.raises(ValueError, match=r"outputs are NaN .*numeric=False \(--static\)"):
            analyze(net, (x(2, 4),))

    def test_module_that_has_no_gradient(self):
        def forward(m, t):
            return (t @ m.w).scatter(1, torch.zeros(2, 1, dtype=torch.int64), t, reduce="multiply")

        with pytest.raises(ValueError, match=r"in float64 fails: derivative .*numeric=False \(--static\)"):
            analyze(Function(forward, w=(4, 4)), (x(2, 4),))

    def test_output_and_loss(self):
        with pytest.raises(ValueError, match=r"either output or loss"):
            analyze(linear(3, 4), (x(2, 4),), output=0, loss=torch.sum)

    def test_missing_output(self):
        with pytest.raises(ValueError, match=r"no part 'logits'"):
            analyze(Encoder(), (x(2, 3, 4),), output="logits")

    def test_no_floating_point_output(self):
        with pytest.raises(ValueError, match=r"no floating-point tensor"):
            analyze(Function(lambda m, t: (t @ m.w).argmax(-1), w=(4, 4)), (x(2, 4),))

    @pytest.mark.parametrize(
        ("slices", "message"),
        [
            ({"v": Slices()}, r"slices of 'v': there is no such parameter"),
            ({"weight": Slices(axis=2)}, r"weight has 2 axes"),
            ({"weight": Slices(blocks=2)}, r"length 3: that is no multiple of 2 blocks"),
            ({"weight": Slices(index=7)}, r"there is no index 7"),
        ],
    )
    def test_slices(self, slices, message):
        with pytest.raises(ValueError, match=message):
            analyze(linear(3, 4), (x(2, 4),), slices=slices)


def test_half_a_degree_is_a_fraction() -> None:
    torch.manual_seed(0)
    report = analyze(Function(lambda m, t: (t.abs() @ m.w.abs()).sqrt(), w=(4, 3)), (x(2, 4),), numeric=False)
    assert report.degree("w") == Fraction(1, 2)


def test_public_objects_are_frozen() -> None:
    assert Blocker.__dataclass_params__.frozen
    assert callable(propagate)
