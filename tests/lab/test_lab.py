"""Verdicts, results, page and commands of the lab, and every experiment from end to end."""

import json
import math
import statistics
import types

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sibert.cli.app import app
from sibert.lab import (
    EXPERIMENTS,
    REFERENCES,
    Experiment,
    Outcome,
    Verdict,
    balanced_rotation,
    bibtex,
    equilibrium,
    intrinsic_clock,
    load_outcome,
    real_networks,
    references_of_run,
    robustness,
    run_experiment,
    write_page,
)
from sibert.lab.ensemble import Ensemble
from sibert.lab.intervals import block_interval, bootstrap, mean_interval
from sibert.lab.pictures import pictures

# What is quick enough is judged here; the others run in their smallest form, where verdicts may fail.
QUICK = ("edge-of-stability", "robustness")


def module(name: str, measured: float) -> types.ModuleType:
    made = types.ModuleType(f"somewhere.{name}", "A claim with <b>.\n\nOne <i>formula</i>:\n\n    a < b\n\narXiv 1.\n")
    made.REFERENCES = ("arora2019auto",)
    made.MINUTES = {"smoke": 0.1, "default": 1.0, "full": 2.0}
    made.measure = lambda scale: {"number": measured, "scale": scale}
    made.judge = lambda data: [
        Verdict.near("the number & more", data["number"], 1.0, relative=0.1, error=0.01),
        Verdict.at_most("the number", data["number"], 5.0),
    ]
    made.draw = lambda data, figure: figure.subplots().plot([0, data["number"]])
    return made


class TestVerdict:
    def test_near(self):
        assert Verdict.near("", 1.05, 1.0, relative=0.1).word == "agrees"
        assert Verdict.near("", 1.15, 1.0, relative=0.1).word == "DISAGREES"
        assert Verdict.near("", -2.1, -2.0, absolute=0.1 + 1e-9).word == "agrees"
        assert Verdict.near("", -2.3, -2.0, relative=0.1).word == "DISAGREES"

    def test_bounds(self):
        assert Verdict.at_most("", 1.0, 1.0).word == "agrees"
        assert Verdict.at_most("", 1.1, 1.0).word == "DISAGREES"
        assert Verdict.at_least("", 1.0, 1.0).word == "agrees"
        assert Verdict.at_least("", 0.9, 1.0).word == "DISAGREES"

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_no_number_agrees(self, value):
        assert Verdict.near("", value, 1.0, relative=1.0).word == "DISAGREES"

    def test_nan_agrees_with_no_bound(self):
        assert Verdict.at_most("", math.nan, 1.0).word == "DISAGREES"
        assert Verdict.at_least("", math.nan, 1.0).word == "DISAGREES"

    @pytest.mark.parametrize(
        ("measured", "error", "word"),
        [
            (1.05, 0.04, "agrees"),
            (1.05, 0.06, "undecided"),
            (0.95, 0.06, "undecided"),
            (1.0, 0.2, "undecided"),  # wider than the range
            (1.0, math.inf, "undecided"),
            (1.0, math.nan, "undecided"),
            (1.15, 0.1, "DISAGREES"),  # where the interval reaches does not excuse the number
        ],
    )
    def test_a_number_agrees_only_with_all_of_its_interval(self, measured, error, word):
        assert Verdict.near("", measured, 1.0, relative=0.1, error=error).word == word

    def test_an_interval_may_reach_to_where_there_is_no_bound(self):
        assert Verdict.at_least("", 5.0, 1.0, error=3.9).word == "agrees"
        assert Verdict.at_most("", 5.0, 6.0, error=1.1).word == "undecided"

    def test_an_experiment_is_worth_its_worst_verdict(self):
        agrees, undecided, disagrees = (
            Verdict.near("", value, 1.0, relative=0.1, error=0.01) for value in (1.0, 1.095, 9.0)
        )
        for verdicts, word in (
            ([agrees, agrees], "agrees"),
            ([agrees, undecided], "undecided"),
            ([undecided, disagrees, agrees], "DISAGREES"),
        ):
            assert Outcome("", "default", 1.0, verdicts, {}, "").word == word


class TestResults:
    def test_what_is_kept_is_read_again(self, tmp_path):
        one = Experiment.of(module("one_claim", 1.04))
        assert (one.name, one.title) == ("one-claim", "A claim with <b>")
        outcome = run_experiment(one, "default", tmp_path)
        assert outcome.word == "agrees"
        assert load_outcome(one, tmp_path) == outcome
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "one-claim-data.json", "one-claim.json", "one-claim.svg",
        ]  # fmt: skip
        assert json.loads((tmp_path / "one-claim-data.json").read_text()) == {"number": 1.04, "scale": "default"}

    def test_the_same_data_give_the_same_figure(self, tmp_path):
        one = Experiment.of(module("one_claim", 1.04))
        figures = [run_experiment(one, "default", tmp_path / name).figure for name in "ab"]
        assert figures[0] == figures[1]

    def test_damaged(self, tmp_path):
        one = Experiment.of(module("one_claim", 1.0))
        assert load_outcome(one, tmp_path) is None
        (tmp_path / "one-claim.json").write_text("{")
        with pytest.raises(ValueError, match="run it again with: sibert lab run one-claim"):
            load_outcome(one, tmp_path)

    def test_page(self, tmp_path):
        both = [Experiment.of(module(name, n)) for name, n in (("one", 1.0), ("other", 9.0), ("third", 1.095))]
        missing = Experiment.of(module("missing", 9.0))
        for one in both:
            run_experiment(one, "default", tmp_path)
        page = write_page([*both, missing], tmp_path, tmp_path / "new" / "page.html").read_text()
        assert "1 of 3 experiments agree with theory, 1 cannot tell (1 have not been run)" in page
        assert page.count(">DISAGREES<") == 3  # two verdicts and the line of the table
        assert page.count(">undecided<") == 2
        assert "A claim with &lt;b&gt;" in page
        assert "<pre>a &lt; b</pre>" in page
        assert "the number &amp; more" in page
        assert "Arora et al. 2019, arXiv 1812.03981" in page
        assert "sibert lab run other" in page
        assert "http" not in page.replace("http-equiv", "")  # nothing is loaded from anywhere

    def test_page_of_nothing(self, tmp_path):
        with pytest.raises(ValueError, match="has no result of the lab: run one with"):
            write_page([Experiment.of(module("one", 1.0))], tmp_path, tmp_path / "page.html")


class TestExperiments:
    @pytest.mark.parametrize("name", EXPERIMENTS)
    def test_documents_itself(self, name):
        one = EXPERIMENTS[name]
        assert len(one.title) < 120
        assert "arXiv" in one.text or "paper" in one.text
        assert "Here: " in one.text
        assert all(key in REFERENCES for key in one.references)
        assert set(one.minutes) == {"smoke", "default", "full"}
        assert one.minutes["smoke"] <= one.minutes["default"] <= one.minutes["full"]

    def test_all_fit_in_an_hour(self):
        assert sum(one.minutes["default"] for one in EXPERIMENTS.values()) < 60
        assert sum(one.minutes["smoke"] for one in EXPERIMENTS.values()) < 5

    @pytest.mark.slow
    @pytest.mark.parametrize("name", EXPERIMENTS)
    def test_runs(self, name, tmp_path):
        one = EXPERIMENTS[name]
        outcome = run_experiment(one, "default" if name in QUICK else "smoke", tmp_path)
        assert all(math.isfinite(verdict.measured) for verdict in outcome.verdicts)
        if name in QUICK:
            assert outcome.word == "agrees", [verdict for verdict in outcome.verdicts if verdict.word != "agrees"]
        write_page([one], tmp_path, tmp_path / "page.html")


class TestClock:
    def test_twins_visit_the_same_functions_and_nobody_else_does(self):
        twins = intrinsic_clock._twins(pictures(torch.float32))
        assert twins["all"] == 0.0  # factors are powers of two
        assert twins["rate"] > 0.1

    def test_distance_is_the_total_variation_averaged_over_pictures(self):
        labels = torch.tensor([[[0, 1], [0, 2]], [[3, 3], [3, 3]]])  # [times, copies, pictures]
        all_nine = torch.full_like(labels, 9)
        weights = torch.full((1, 2), 0.5)
        one, other = (weights @ intrinsic_clock._hot(each) for each in (labels, all_nine))
        assert intrinsic_clock._distance(one, one, 2).tolist() == [[0.0, 0.0]]
        assert intrinsic_clock._distance(one, other, 2).tolist() == [[1.0, 1.0]]
        half = labels.clone()
        half[0, 1, 0] = 5  # a half of the runs of one of two pictures at the first time
        assert intrinsic_clock._distance(one, weights @ intrinsic_clock._hot(half), 2).tolist() == [[0.25, 0.0]]

    def test_forgotten_is_the_last_time_above_the_floor(self):
        level = intrinsic_clock.FORGOTTEN
        assert intrinsic_clock._forgotten([0.5, 1.0], 1.0) == 0.0
        assert intrinsic_clock._forgotten([9.0, 1.0, level + 0.5, level - 0.5, 1.0], 1.0) == pytest.approx(0.25)
        assert intrinsic_clock._forgotten([1.0, 9.0], 1.0) == math.inf

    def test_directions_that_gradients_know_nothing_of_fade_like_the_exponential(self):
        cosine, error = intrinsic_clock._free(0.01)
        assert abs(cosine - math.exp(-1.0)) < max(2.0 * error, 0.01)


class TestEnsemble:
    def test_signal_and_total_are_those_of_the_gradient_of_all_examples_and_of_batches(self):
        data, size = pictures(torch.float32), 32
        ensemble = Ensemble(200, (64, 8, 10), same=True)
        generator = torch.Generator().manual_seed(0)
        signal_S, total_S = ensemble.signal_and_total(data, size, generator)
        (whole_SQP,) = ensemble.gradients(data.train_BP[None], data.train_B[None])
        exact = whole_SQP[0].square().sum().item()
        (batch_SQP,) = ensemble.gradients(*ensemble.batch(data, size, generator))
        signal, error = mean_interval(signal_S.tolist())
        assert abs(signal - exact) < 1.5 * error
        assert error < 0.2 * exact
        total, total_error = mean_interval(total_S.tolist())
        squares, squares_error = mean_interval(batch_SQP.square().sum((1, 2)).tolist())
        assert abs(total - squares) < 1.5 * math.hypot(total_error, squares_error)
        assert total > 1.2 * exact  # noise is no signal


class TestMatrices:
    def test_a_ratio_of_what_has_the_same_spikes_is_surer_than_its_parts(self):
        spikes = np.random.default_rng(0).pareto(3.0, 500) * 1e-3
        watched = object.__new__(balanced_rotation._Matrices)
        watched.total = np.arctan(np.sqrt(spikes)).tolist()
        watched.angles = {"matrix": np.arctan(np.sqrt(2.0 * spikes)).tolist()}
        watched.gradients, watched.shares = [1.0] * 500, {"matrix": [1.9] * 500}
        ratio, error = watched._over_share("matrix")
        assert ratio == pytest.approx(math.sqrt(2.0 / 1.9))
        assert error < 1e-9
        watched.total = watched.total[::-1]  # the spikes of other steps
        assert watched._over_share("matrix")[1] > 0.02


class TestMomentum:
    def test_decay_takes_the_same_share_in_the_end_whatever_the_optimizer(self):
        x = {}
        for name, factor in (("SGD", 1.0), ("SGD, momentum 0.9", 1.0), ("wrong", 10.0)):
            parameter = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
            product = factor * equilibrium.INTRINSIC.get(name, equilibrium.INTRINSIC["SGD, momentum 0.9"])
            momentum = 0.0 if name == "SGD" else 0.9
            steps = torch.optim.SGD([parameter], lr=1.0, weight_decay=product, momentum=momentum)
            for _ in range(500):
                parameter.grad = torch.zeros_like(parameter)
                steps.step()
            x[name] = parameter.item()
        assert x["SGD, momentum 0.9"] == pytest.approx(x["SGD"], rel=0.05)
        assert x["wrong"] < 0.01 * x["SGD"]


class TestRescaling:
    def test_a_loss_times_c_takes_the_steps_of_a_rate_times_c_at_the_same_product(self, monkeypatch):
        monkeypatch.setattr(robustness, "FACTORS", [0.01, 1.0, 100.0])
        one, c = [1.0] * 3, [0.01, 1.0, 100.0]
        loss = robustness._steps_needed(one, c, one, 0)
        rate = robustness._steps_needed(one, one, c, 0)
        assert rate == loss
        assert rate[0] > rate[1] + 1000  # ln 100 / (2 eta lambda) = 1151


class TestRareRows:
    def test_rows_fall_where_decay_wins_and_hold_where_it_does_not(self):
        falling = balanced_rotation._random_rows("clipped", 0.1, 0.4)
        holding = balanced_rotation._random_rows("clipped", 0.5, 0.4)
        gamma = balanced_rotation.GAMMA
        assert falling["slope"] / gamma == pytest.approx(-0.6, abs=0.03)
        assert holding["slope"] / gamma == pytest.approx(0.0, abs=0.03)


class TestEdge:
    def run(self, edge, **changes):
        product = 1e-3
        rows = [
            {"step": 10 * k, "sharpness": value * (1.0 - product) / 0.3, "squared_norm": 1.0 / (1.0 + k)}
            for k, value in enumerate(edge)
        ]
        return {"name": "net", "lr": 0.3, "product": product, "losses": [2.0, 1.0] * 200, "rows": rows, **changes}

    def judged(self, edge, spherical_falls=True, start=0.2, flow=3.0, at_iterates=1.0, losses=None):
        sphere, text = self.run(edge), self.run([start, *edge], name="SIBERT")
        text["losses"] = losses or text["losses"]
        for row in text["rows"]:
            row["on_the_way"], row["sharpness"] = row["sharpness"], at_iterates * row["sharpness"]
        if not spherical_falls:
            for row in (*sphere["rows"], *text["rows"]):
                row["squared_norm"] = 1.0
        plain = self.run([0.5, *edge], product=0.0)
        rows = [{**row, "sharpness": row["sharpness"] * (1.0 if row["step"] == 0 else flow)} for row in plain["rows"]]
        found = real_networks.judge({"runs": [plain, sphere, sphere, text, text], "flow": {"rows": rows}})
        return [verdict.statement for verdict in found if verdict.word == "DISAGREES"]

    def test_sharpening_hovering_about_two_and_falling_agrees(self):
        assert self.judged([1.9, 2.1] * 10) == []

    def test_the_way_of_a_step_counts_not_its_ends(self):
        assert self.judged([1.9, 2.1] * 10, at_iterates=1.5) == []

    def test_another_edge_or_a_sharpness_that_stays_does_not(self):
        for edge in ([1.4, 1.6] * 10, [2.4, 2.5] * 10):
            assert sum("second half" in statement for statement in self.judged(edge)) >= 5
        assert sum("last quarter" in s for s in self.judged([1.9, 2.1] * 10, spherical_falls=False)) == 3

    def test_a_run_that_begins_at_the_edge_a_flow_that_has_one_and_a_loss_that_never_rises_do_not(self):
        sharpened = self.judged([1.9, 2.1] * 10, start=1.95)
        assert len(sharpened) == 2
        assert all("the start" in statement for statement in sharpened)
        assert len(self.judged([1.9, 2.1] * 10, flow=1.0)) == 1
        (still,) = self.judged([1.9, 2.1] * 10, losses=[1.0 - k / 400 for k in range(400)])
        assert "loss rises" in still

    def test_quartiles_that_are_wide_do_not_hide_behind_the_median(self):
        assert "SIBERT: upper quartile" in self.judged([1.9, 2.0, 2.1, 9.0] * 5)


class TestIntervals:
    def test_nineteen_of_twenty_hold_the_mean(self):
        draws = np.random.default_rng(0).exponential(size=(2000, 16))
        held = [abs(mean - 1.0) <= half for mean, half in (mean_interval(row.tolist()) for row in draws)]
        assert 0.9 < np.mean(held) < 0.96  # a little less, for exponentials are skewed

    @pytest.mark.parametrize(("memory", "at_least"), [(100, 0.86), (25, 0.9)])
    def test_blocks_know_what_single_observations_do_not(self, memory, at_least):
        noise = np.random.default_rng(0).standard_normal((400, 800))
        kept = math.exp(-1.0 / memory)
        series = np.empty_like(noise)
        series[:, 0] = noise[:, 0] / math.sqrt(1.0 - kept**2)
        for t in range(1, 800):
            series[:, t] = kept * series[:, t - 1] + noise[:, t]

        def held(interval):
            return np.mean([abs(mean) <= half for mean, half in (interval(row.tolist()) for row in series)])

        assert held(block_interval) > at_least
        assert held(lambda row: block_interval(row, statistics.median)) > at_least
        assert held(mean_interval) < 0.4

    def test_the_bootstrap_finds_the_width_of_a_mean_and_is_the_same_each_time(self):
        values = np.random.default_rng(1).standard_normal(400)

        def mean(generator):
            return float(generator.choice(values, 400).mean())

        assert bootstrap(mean) == bootstrap(mean)
        assert bootstrap(mean) == pytest.approx(mean_interval(values.tolist())[1], rel=0.1)

    def test_a_value_that_is_not_finite_leaves_nothing_and_disagrees(self):
        measured, error = mean_interval([1.0, math.nan, 1.0])
        assert (
            Verdict.near("number", measured, 1.0, relative=0.5, error=error, interval="t, 3 seeds").word == "DISAGREES"
        )

    def test_too_short_a_series_has_none(self):
        assert block_interval([1.0, 2.0]) == (1.5, math.inf)

    def test_what_is_statistical_says_how_sure_it_is(self):
        found = Verdict.near("number", 1.0, 1.0, relative=0.1, error=0.01, interval="t, 8 seeds")
        assert found.text == "number (95 %: t, 8 seeds)"
        assert Verdict.at_most("number", 1.0, 2.0).text == "number"


class TestReferences:
    def test_bibtex(self):
        text = bibtex(["li2022robust", "sibert", "li2022robust"])
        assert text.count("@") == 2
        assert "@inproceedings{li2022robust,\n  title = {Robust Training" in text
        assert "eprint = {2202.00980}" in text

    @pytest.mark.parametrize(
        ("recipe", "keys"),
        [
            ({"model": "sibert"}, {"sibert", "li2022robust", "devlin2019bert"}),
            ({"model": "bert", "optimizer": "adamw"}, {"sibert", "devlin2019bert", "loshchilov2019decoupled"}),
            ({"optimizer": "lamb"}, {"sibert", "li2022robust", "devlin2019bert", "you2020large"}),
            (
                {"model": "modernbert", "optimizer": "adamw"},
                {"sibert", "devlin2019bert", "warner2024smarter", "loshchilov2019decoupled"},
            ),
        ],
    )
    def test_of_a_run(self, recipe, keys, tmp_path):
        (tmp_path / "recipe.json").write_text(json.dumps(recipe))
        assert set(references_of_run(tmp_path)) == keys

    @pytest.mark.parametrize(
        ("config", "recipe", "keys"),
        [
            ("sibert", {"model": "runs/mine"}, {"sibert", "li2022robust", "devlin2019bert"}),
            ("bert", {"model": "x"}, {"sibert", "devlin2019bert", "loshchilov2019decoupled"}),
            ("bert", {"model": "x", "convert": "row"}, {"sibert", "li2022robust", "devlin2019bert"}),
            (
                None,
                {"model": "answerdotai/ModernBERT-base"},
                {"sibert", "devlin2019bert", "warner2024smarter", "loshchilov2019decoupled"},
            ),
        ],
    )
    def test_of_fine_tuning(self, config, recipe, keys, tmp_path):
        (tmp_path / "finetune.json").write_text(json.dumps(recipe))
        if config is not None:
            (tmp_path / "config.json").write_text(json.dumps({"model_type": config}))
        assert set(references_of_run(tmp_path)) == keys

    def test_no_run(self, tmp_path):
        with pytest.raises(ValueError, match="is no run"):
            references_of_run(tmp_path)

    @pytest.mark.parametrize("recipe", ["[1]", "{", '{"a": ' + "[" * 5000 + "]" * 5000 + "}"])
    def test_a_recipe_that_is_no_recipe(self, recipe, tmp_path):
        (tmp_path / "recipe.json").write_text(recipe)
        with pytest.raises(ValueError, match="is no run"):
            references_of_run(tmp_path)

    @pytest.mark.parametrize("config", ["[1]", "[" * 5000 + "]" * 5000])
    def test_a_configuration_that_is_none_leaves_the_name(self, config, tmp_path):
        (tmp_path / "finetune.json").write_text(json.dumps({"model": "my-bert"}))
        (tmp_path / "config.json").write_text(config)
        assert set(references_of_run(tmp_path)) == {"sibert", "devlin2019bert", "loshchilov2019decoupled"}


class TestCommands:
    def run(self, *arguments):
        return CliRunner().invoke(app, arguments)

    def test_list(self):
        result = self.run("lab", "list")
        assert result.exit_code == 0
        assert all(name in result.output for name in EXPERIMENTS)

    def test_run_and_report(self, tmp_path, monkeypatch):
        monkeypatch.setitem(EXPERIMENTS, "good", Experiment.of(module("good", 1.0)))
        monkeypatch.setitem(EXPERIMENTS, "bad", Experiment.of(module("bad", 9.0)))
        # the status is what the command returns; main() exits with it
        assert (
            CliRunner().invoke(app, ["lab", "run", "good", "--out", str(tmp_path)], standalone_mode=False).return_value
            == 0
        )
        failed = CliRunner().invoke(app, ["lab", "run", "bad", "--out", str(tmp_path)], standalone_mode=False)
        assert failed.return_value == 1
        assert "DISAGREES the number: 9" in failed.output
        monkeypatch.setitem(EXPERIMENTS, "wide", Experiment.of(module("wide", 1.095)))
        wide = CliRunner().invoke(app, ["lab", "run", "wide", "--out", str(tmp_path)], standalone_mode=False)
        assert wide.return_value == 0  # no failure, but not called agreement
        assert "undecided the number & more: 1.095 ± 0.01" in wide.output
        assert self.run("lab", "report", str(tmp_path)).exit_code == 0
        assert "DISAGREES" in (tmp_path / "report.html").read_text()

    def test_mistakes(self):
        with pytest.raises(ValueError, match="no experiment 'nope'; sibert lab list"):
            CliRunner().invoke(app, ["lab", "run", "nope"], catch_exceptions=False)
        with pytest.raises(ValueError, match="exclude each other"):
            CliRunner().invoke(app, ["lab", "run", "--full", "--smoke"], catch_exceptions=False)

    def test_cite(self):
        assert "li2020exponential" in self.run("cite", "exponential-schedule").output
        assert "li2022robust" in self.run("cite").output
