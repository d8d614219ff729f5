"""The pages on the lab: one for each experiment, every number from the stored results."""

import dataclasses
import importlib.util
import json
import re
import types
from pathlib import Path

import pytest

from sibert.lab import EXPERIMENTS, Experiment, Verdict, load_outcome, run_experiment

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "lab"


def _script():
    spec = importlib.util.spec_from_file_location("docs_figures_lab", ROOT / "docs" / "figures" / "lab.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = _script()


def example() -> types.ModuleType:
    """The experiment by which the documentation shows how to add one."""
    (source,) = re.findall(r"^```python\n(.*?)^```$", (PAGES / "index.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    module = types.ModuleType("somewhere.dice")
    exec(source, module.__dict__)
    return module


class TestStored:
    def test_what_pages_include_is_made_of_the_stored_results(self):
        assert script.PARTS.read_text("utf-8") == script.parts(script.outcomes()), "run: python docs/figures/lab.py"

    def test_another_number_would_be_noticed(self):
        found = script.outcomes()
        name, outcome = next((name, outcome) for name, outcome in found.items() if outcome is not None)
        first = dataclasses.replace(outcome.verdicts[0], measured=outcome.verdicts[0].measured * 1.01)
        found[name] = dataclasses.replace(outcome, verdicts=[first, *outcome.verdicts[1:]])
        assert script.PARTS.read_text("utf-8") != script.parts(found)

    def test_figures_are_those_of_the_results(self):
        figures = {path.stem: path.read_text("utf-8") for path in script.FIGURES.glob("*.svg")}
        assert figures == {name: one.figure for name, one in script.outcomes().items() if one is not None}

    @pytest.mark.parametrize("name", EXPERIMENTS)
    def test_nothing_is_stored_in_its_smallest_form(self, name):
        outcome = load_outcome(EXPERIMENTS[name], script.RESULTS)
        assert outcome is None or outcome.scale != "smoke"

    def test_only_small_data_are_stored(self):
        assert all(path.stat().st_size <= script.LARGEST_DATA for path in script.RESULTS.glob("*-data.json"))


class TestPages:
    @pytest.mark.parametrize("name", EXPERIMENTS)
    def test_every_experiment_has_a_page(self, name):
        page = (PAGES / f"{name}.md").read_text("utf-8")
        for part in (f"{name}-claim", name, f"{name}-references"):
            assert f'--8<-- "benchmarks/results/lab.md:{part}"' in page
        for heading in ("Assumptions", "Formulas", "Why", "What was measured", "Code", "References"):
            assert f"\n## {heading}\n" in page
        assert f"`src/sibert/lab/{name.replace('-', '_')}.py`" in page
        assert f"`sibert cite {name}`" in page
        assert f"lab/{name}.md" in (ROOT / "mkdocs.yml").read_text("utf-8")

    def test_there_is_no_page_without_an_experiment(self):
        assert {path.stem for path in PAGES.glob("*.md")} == {*EXPERIMENTS, "index"}

    def test_the_example_is_an_experiment(self, tmp_path):
        one = Experiment.of(example())
        assert run_experiment(one, "default", tmp_path).word == "agrees"
        assert "paper" in one.text
        assert "Here: " in one.text


class TestScript:
    @pytest.fixture
    def only_the_example(self, monkeypatch, tmp_path):
        one = Experiment.of(example())
        monkeypatch.setattr(script, "EXPERIMENTS", {"dice": one})
        monkeypatch.setattr(script, "ROOT", tmp_path)
        monkeypatch.setattr(script, "RESULTS", tmp_path / "results")
        monkeypatch.setattr(script, "PARTS", tmp_path / "results.md")
        monkeypatch.setattr(script, "FIGURES", tmp_path / "figures")
        return one

    def test_a_missing_result_is_said_and_then_taken_over(self, only_the_example, tmp_path):
        assert script.main([]) == 1
        assert "No result is stored: `sibert lab run dice` makes one." in script.PARTS.read_text("utf-8")
        run_experiment(only_the_example, "default", tmp_path / "runs")
        assert script.main([str(tmp_path / "runs")]) == 0
        text = script.PARTS.read_text("utf-8")
        assert "| deviation of the mean | 0.1" in text
        assert re.search(r"`sibert lab run dice`\. These numbers took \d+ s: ", text)
        assert "agrees | 1 of 1 |" in text
        assert (script.FIGURES / "dice.svg").read_text("utf-8").startswith("<?xml")

    def test_large_data_stay_behind(self, only_the_example, tmp_path, monkeypatch):
        run_experiment(only_the_example, "default", tmp_path / "runs")
        script.take(tmp_path / "runs")
        assert (tmp_path / "results" / "dice-data.json").is_file()
        monkeypatch.setattr(script, "LARGEST_DATA", 10)
        script.take(tmp_path / "runs")  # the smaller ones of before would not belong to the result
        assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["dice.json", "dice.svg"]

    def test_a_failure_is_shown(self, only_the_example, tmp_path):
        outcome = run_experiment(only_the_example, "default", tmp_path / "runs")
        path = tmp_path / "runs" / "dice.json"
        record = json.loads(path.read_text("utf-8"))
        record["verdicts"][0]["measured"] = 7.0
        path.write_text(json.dumps(record), "utf-8")
        assert outcome.word == "agrees"
        script.main([str(tmp_path / "runs")])
        text = script.PARTS.read_text("utf-8")
        assert text.count("**DISAGREES**") == 2  # in the overview and in the table
        assert "| 0 of 1 |" in text

    def test_undecided_is_not_called_agreement(self, only_the_example, tmp_path):
        run_experiment(only_the_example, "default", tmp_path / "runs")
        self.change(tmp_path / "runs" / "dice.json", error=1.0)
        script.main([str(tmp_path / "runs")])
        text = script.PARTS.read_text("utf-8")
        assert text.count("*undecided*") == 2
        assert "| 0 of 1 |" in text

    @pytest.mark.parametrize("field", ["interval", "error"])
    def test_results_of_an_older_form_are_refused(self, only_the_example, tmp_path, field):
        run_experiment(only_the_example, "default", tmp_path / "runs")
        self.change(tmp_path / "runs" / "dice.json", **{field: None})
        with pytest.raises(ValueError, match=r"dice\.json is of an older form: run it again with: sibert lab run dice"):
            script.main([str(tmp_path / "runs")])

    def change(self, path, **fields):
        """Other values in the stored verdict; None takes a field out."""
        record = json.loads(path.read_text("utf-8"))
        (verdict,) = record["verdicts"]
        record["verdicts"] = [{k: v for k, v in {**verdict, **fields}.items() if v is not None or k not in fields}]
        path.write_text(json.dumps(record), "utf-8")

    @pytest.mark.parametrize(
        ("verdict", "cells"),
        [
            (Verdict.near("", 1.02321, 1.0232, relative=1e-4), ["1.0232", "1.0232", "1.0231 to 1.0233"]),
            (Verdict.near("", 1.0, 1.0), ["1", "1", "1 to 1"]),
            (Verdict.at_most("", 1.5, 2.0, error=0.123), ["1.5 ± 0.12", "", "≤ 2"]),
            (Verdict.at_least("", 12345.678, 1e4), ["1.235e+04", "", "≥ 1e+04"]),
        ],
    )
    def test_the_ends_of_a_range_can_be_told_apart(self, verdict, cells):
        assert script.row(verdict)[1:4] == cells

    def test_no_statement_breaks_a_table(self):
        (line,) = script.verdicts(
            types.SimpleNamespace(verdicts=[Verdict.at_most("|x|_* is *small*, <x, g> too", 1.0, 2.0)])
        ).splitlines()[2:]
        assert line.startswith(r"| \|x\|\_\* is \*small\*, &lt;x, g> too | 1 |")
