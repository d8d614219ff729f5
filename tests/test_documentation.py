"""What the documents say and what the code does is compared where a machine can."""

import json
import re
import shlex
from pathlib import Path

import typer.main

import sibert
from sibert.cli.app import app
from sibert.homogeneity.rules import as_table
from sibert.models import SIZES
from tests import downstream

ROOT = Path(__file__).parent.parent


def test_the_quickstart_of_the_readme_is_the_example_that_ci_runs():
    example = (ROOT / "examples" / "quickstart.py").read_text(encoding="utf-8").rstrip("\n")
    assert f"```python\n{example}\n```" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_command_and_option_is_documented_and_no_other():
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    commands = typer.main.get_command(app).commands
    assert set(re.findall(r"^## sibert ([a-z]\S*)$", page, re.MULTILINE)) == set(commands)
    options = {
        option
        for command in commands.values()
        for parameter in command.params
        for option in parameter.opts + parameter.secondary_opts
        if option.startswith("--")
    }
    assert set(re.findall(r"`(--[a-z-]+)`", page)) == options - {"--help"}


def test_the_table_of_rules_is_that_of_the_code():
    page = (ROOT / "docs" / "concepts" / "rules.md").read_text(encoding="utf-8")
    assert page.endswith(as_table() + "\n"), (
        "write sibert.homogeneity.rules.as_table() to the end of docs/concepts/rules.md"
    )


def test_the_sizes_of_the_training_guide_are_those_of_the_code():
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([a-z]+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", page, re.MULTILINE)
    fields = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    assert {name: dict(zip(fields, map(int, numbers), strict=True)) for name, *numbers in rows} == SIZES


def test_the_citation_has_the_version_of_the_package():
    assert f"\nversion: {sibert.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_the_page_on_fine_tuning_can_be_followed(tmp_path, monkeypatch, run, capsys):
    """Its files are written, its commands and its Python are run, in their order, with models that know nothing."""
    downstream.pretrained(tmp_path / "run")
    downstream.pretrained(tmp_path / "bert-folder", "bert")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "fine-tuning.md").read_text(encoding="utf-8")
    for language, title, text in re.findall(
        r"^```(\w+)(?: title=\"(.+?)\")?\n(.*?)^```$", page, re.MULTILINE | re.DOTALL
    ):
        if title:
            Path(title).write_text(text)
        elif language == "bash":
            for line in text.splitlines():
                command, *words = shlex.split(line)
                assert command == "sibert"
                status, _, err = run(*words)
                assert status == 0, err
        else:
            exec(text, {})
            assert re.search("praise|complaint", capsys.readouterr().out)
    assert [json.loads(line)["index"] for line in Path("labels.jsonl").read_text().splitlines()] == [0, 1]
    assert json.loads(Path("sweep/sweep.json").read_text())["best"]
