"""`sibert lab list | run | report | diagnose` and `sibert cite`: the theory of training dynamics, by number."""

from pathlib import Path

import typer

__all__ = ["app", "cite"]

app = typer.Typer(help="Verify the theory of training dynamics by number.", no_args_is_help=True)
FOLDER = Path("runs/lab")


@app.command("list")
def list_experiments() -> None:
    """List the experiments, with the claim of each and about how long it takes on two cores."""
    from sibert.lab import EXPERIMENTS

    for name, experiment in EXPERIMENTS.items():
        typer.echo(f"{name:26} {experiment.minutes['default']:5.1f} min  {experiment.title}")


@app.command("run")
def run(
    names: list[str] = typer.Argument(None, metavar="NAME...", help="Experiments of `sibert lab list`; none = all."),
    full: bool = typer.Option(False, "--full", help="Go further than two cores do in an hour."),
    smoke: bool = typer.Option(False, "--smoke", help="As little as shows that everything works; verdicts may fail."),
    images: Path = typer.Option(
        None, "--images", help="Folder of MNIST, Fashion-MNIST or CIFAR-10 (binary). Default: scikit-learn's digits."
    ),
    out: Path = typer.Option(FOLDER, "--out", help="Folder of the results."),
) -> int:
    """Run experiments and judge them; the exit status is 1 if a number disagrees, not if one is undecided."""
    from sibert.lab import EXPERIMENTS, Scale, run_experiment

    if full and smoke:
        raise ValueError("--full and --smoke exclude each other")
    unknown = [name for name in names or [] if name not in EXPERIMENTS]
    if unknown:
        raise ValueError(f"there is no experiment {unknown[0]!r}; sibert lab list names them all")
    scale: Scale = "full" if full else "smoke" if smoke else "default"
    failed = False
    for name in names or EXPERIMENTS:
        experiment = EXPERIMENTS[name]
        typer.echo(f"{name}: {experiment.title} (about {experiment.minutes[scale]:g} min)")
        outcome = run_experiment(experiment, scale, out, images)
        for verdict in outcome.verdicts:
            error = "" if verdict.error is None else f" ± {verdict.error:.2g}"
            typer.echo(f"  {verdict.word:9} {verdict.text}: {verdict.measured:.4g}{error}")
        pictures = f", on the pictures of {outcome.images}" if outcome.images else ""
        typer.echo(f"  {outcome.seconds:.0f} s{pictures}")
        failed = failed or outcome.word == "DISAGREES"
    return 1 if failed and not smoke else 0


@app.command("report")
def report(
    results: Path = typer.Argument(FOLDER, help="Folder of the results."),
    out: Path = typer.Option(None, "--out", help="The page to write. Default: report.html in that folder."),
) -> None:
    """Write one HTML page with all claims, figures and verdicts."""
    from sibert.lab import EXPERIMENTS, write_page

    page = write_page(list(EXPERIMENTS.values()), results, out if out is not None else results / "report.html")
    typer.echo(f"wrote {page}")


@app.command("diagnose")
def diagnose(
    run: Path = typer.Argument(metavar="RUN", help="Folder of a finished run of `sibert pretrain`."),
    out: Path = typer.Option(None, "--out", help="The page to write. Default: diagnosis.html in that folder."),
) -> int:
    """Say what is wrong with a run of pre-training and what to do; the exit status is 1 if there is something to mend.

    Scale invariance, distance from equilibrium, clipping, noise and batch size, curvature against learning rate: each
    piece of advice comes with the inequality behind it. One HTML page, too.
    """
    from sibert.lab import diagnose_run, write_diagnosis

    found = diagnose_run(run)
    typer.echo(str(found))
    page = write_diagnosis(found, out if out is not None else run / "diagnosis.html", f"Diagnosis of {run.name}")
    typer.echo(f"wrote {page}")
    return 0 if found.sound else 1


def cite(
    what: list[str] = typer.Argument(
        None, metavar="RUN|EXPERIMENT...", help="Runs or experiments of the lab; none = the paper and this library."
    ),
) -> None:
    """Print the references of what was used, as BibTeX."""
    from sibert.lab import EXPERIMENTS, bibtex, references_of_run

    keys = [] if what else ["sibert", "li2022robust"]
    for one in what or []:
        keys += EXPERIMENTS[one].references if one in EXPERIMENTS else references_of_run(Path(one))
    typer.echo(bibtex(keys), nl=False)
