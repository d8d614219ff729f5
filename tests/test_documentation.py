"""What the documents say and what the code does is compared where a machine can."""

import ast
import importlib
import inspect
import json
import pkgutil
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import typer.main

import sibert
from sibert.cli.app import app
from sibert.homogeneity.rules import as_table
from sibert.models import SIZES
from tests import downstream
from tests.test_public_api import PUBLIC

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


def undocumented(package):
    """Public names that mkdocstrings leaves out of the package's page: without a text, or shadowed by a module."""
    module = importlib.import_module(package)
    page = (ROOT / "docs" / "api" / f"{package.partition('.')[2]}.md").read_text(encoding="utf-8")
    assert re.search(rf"^::: {package}$", page, re.MULTILINE)
    modules = {found.name for found in pkgutil.iter_modules(module.__path__)}
    return {
        name
        for name in module.__all__
        if not has_text(package, name)
        or (name in modules and not re.search(rf"^::: {package}.{name}.{name}$", page, re.MULTILINE))
    }


def has_text(package, name):
    """Whether a class or function has a docstring, or a constant a string below it where it is assigned."""
    thing = getattr(importlib.import_module(package), name)
    if inspect.isclass(thing) or inspect.isroutine(thing):
        return bool(thing.__doc__)
    body = ast.parse(inspect.getsource(importlib.import_module(package))).body
    for line in body:
        if isinstance(line, ast.ImportFrom) and name in (alias.name for alias in line.names):
            return has_text(line.module, name)
    for line, below in pairwise([*body, None]):
        targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    return False


@pytest.mark.parametrize("package", sorted(f"sibert.{page.stem}" for page in (ROOT / "docs" / "api").glob("*.md")))
def test_every_public_name_is_on_its_page(package):
    assert undocumented(package) == set()


def test_every_package_has_a_page():
    assert set(PUBLIC) - {"sibert", "sibert.cli"} == {
        f"sibert.{page.stem}" for page in (ROOT / "docs" / "api").glob("*.md")
    }


def test_names_that_mkdocstrings_would_leave_out_are_found(monkeypatch):
    """A module of the same name, and a constant without a text."""
    monkeypatch.setattr("sibert.ops.__all__", [*importlib.import_module("sibert.ops").__all__, "rotary", "unheard_of"])
    monkeypatch.setattr("sibert.ops.unheard_of", 3, raising=False)
    assert undocumented("sibert.ops") == {"rotary", "unheard_of"}


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
