"""`sibert check TARGET`: which parameters may be rescaled, proved from the graph."""

import importlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from sibert.homogeneity import SymmetryReport, Verdict

__all__ = ["check"]

PROVED, NOT_PROVED, CONTRADICTED = 0, 1, 3


def check(
    target: str = typer.Argument(
        help="A run, a folder with a model of transformers, or package.module:function, a function that returns "
        "(model, inputs): inputs a tuple, or a dict by name."
    ),
    invariant: list[str] = typer.Option(
        None,
        "--invariant",
        "-i",
        help="Parameter, module or pattern that has to be invariant, all that it matches scaled together. May be "
        "repeated. Default: all parameters together.",
    ),
    rows: bool = typer.Option(False, "--rows", help="Also say of which matrices single rows may be rescaled."),
    epsilon: bool = typer.Option(
        False, "--up-to-epsilon", help="Accept what would be invariant if epsilons were 0, too."
    ),
    head: bool = typer.Option(False, "--head", help="The whole saved model, not its encoder alone."),
    training: bool = typer.Option(False, "--training", help="In training mode (batch norm!)."),
    output: str = typer.Option(None, "--output", help="The output that counts, by name. Default: all."),
    static: bool = typer.Option(False, "--static", help="Prove only; do not compute with the model."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> int:
    """Prove which parameters of a model may be rescaled without changing its outputs.

    Exit status: 0 = what was asked for is proved, 1 = it is not, 3 = computing contradicts a proof (a bug).
    """
    from sibert.homogeneity import analyze, invariant_rows

    model, args, kwargs = _load(target, head)
    model.train(training)
    report = analyze(model, args, kwargs, output=output, numeric=not static)
    questions = invariant or ["*"]
    answers = {question: report.verdict(question) for question in questions}
    of_rows = invariant_rows(model, args, kwargs, output=output) if rows else None
    if as_json:
        typer.echo(json.dumps(_as_dict(report, answers, of_rows), indent=2))
    else:
        _show(report, answers, of_rows, epsilon)
    if report.confirmation is not None and report.confirmation.contradicted:
        return CONTRADICTED
    accepted = {"exact", "up to epsilon"} if epsilon else {"exact"}
    return PROVED if all(verdict in accepted for verdict in answers.values()) else NOT_PROVED


def _load(target: str, head: bool) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    if ":" in target and not Path(target).exists():
        return _called(target)
    if not Path(target).is_dir():
        raise ValueError(f"{target} is no folder: give a run, a folder with a model, or package.module:function")
    from sibert.models.example_inputs import example_inputs, model_of_folder
    from sibert.training.converted import is_converted, load_converted

    if is_converted(Path(target)):
        model = load_converted(target)
        return model, (), example_inputs(model)
    model, inputs = model_of_folder(Path(target), head=head)
    return model, (), inputs


def _called(target: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    from torch import nn

    module, _, name = target.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # a user's own file may raise anything
        raise ValueError(f"cannot import {target}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    try:
        result = function()
    except Exception as error:
        said = f"{type(error).__name__}: {error}".rstrip(": ")
        raise ValueError(f"{target} has to return (model, inputs), but raises {said}") from error
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], nn.Module)):
        raise ValueError(f"{target} has to return (model, inputs), a torch.nn.Module and a tuple or dict")
    model, inputs = result
    if isinstance(inputs, Mapping):
        return model, (), dict(inputs)
    return model, inputs if isinstance(inputs, tuple) else (inputs,), {}


def _as_dict(
    report: "SymmetryReport", answers: Mapping[str, "Verdict"], of_rows: Mapping[str, "Verdict"] | None
) -> dict[str, Any]:
    asked = {
        question: {
            "verdict": verdict,
            "epsilons": report.epsilons(question),
            "blockers": [
                {
                    "module": blocker.place.module,
                    "operation": blocker.place.operation,
                    "file": blocker.place.file,
                    "line": blocker.place.line,
                    "kind": blocker.kind,
                    "reason": blocker.reason,
                    "remedy": blocker.remedy,
                }
                for blocker in report.blockers(question)
            ],
        }
        for question, verdict in answers.items()
    }
    return {"asked": asked, **({} if of_rows is None else {"rows": dict(of_rows)}), **report.to_dict()}


def _show(
    report: "SymmetryReport",
    answers: Mapping[str, "Verdict"],
    of_rows: Mapping[str, "Verdict"] | None,
    epsilon: bool,
) -> None:
    from sibert.homogeneity.presentation import COLOURS, MARKS, as_renderable, blockers

    console = Console(highlight=False, soft_wrap=True, emoji=False)
    console.print(as_renderable(report))
    if of_rows is not None:
        console.print("\nsingle rows", style="bold")
        for name, verdict in of_rows.items():
            console.print(f"  {MARKS[verdict]} {name}: {verdict}", style=COLOURS[verdict], markup=False)
    for question, verdict in answers.items():
        what = "all parameters together" if question == "*" else f"{question}, scaled together"
        console.print(f"\n{MARKS[verdict]} {what}: {verdict}", style=f"bold {COLOURS[verdict]}", markup=False)
        console.print(blockers(report.blockers(question, up_to_epsilon=epsilon)), end="")
