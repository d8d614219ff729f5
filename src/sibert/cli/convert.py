"""`sibert convert SRC DST`: a model of transformers made scale invariant, the same function."""

from pathlib import Path
from typing import Any, cast

import typer

__all__ = ["convert"]


def convert(
    source: Path = typer.Argument(help="Folder with a model of transformers and its weights."),
    target: Path = typer.Argument(help="New folder."),
    granularity: str = typer.Option(
        "row", "--granularity", help="row: each output neuron, channel or token on its own; matrix: each weight."
    ),
    exclude: list[str] = typer.Option(None, "--exclude", help="Parameter or pattern that stays. May be repeated."),
) -> int:
    """Write each weight of a model as gain times direction, check that nothing changed, and prove what is invariant.

    Exit status: 0 = converted, and every direction is proved to be invariant; 1 = not.
    """
    from sibert.homogeneity import Verdict
    from sibert.training.converted import convert_folder

    if granularity not in ("row", "matrix"):
        raise ValueError(f"--granularity is row or matrix, got {granularity!r}")
    done = convert_folder(source, target, granularity=cast(Any, granularity), exclude=tuple(exclude or ()))
    typer.echo(f"{len(done.names)} weights converted, {done.share:.1%} of all parameters")
    typer.echo(f"outputs before and after differ by {done.difference:.1e} of the largest")
    exact = [name for name, verdict in done.proved.items() if verdict is Verdict.EXACT]
    what = "each row of" if granularity == "row" else ""
    typer.echo(f"proved from the graph: {' '.join(f'{what} {len(exact)} weights may be rescaled on its own'.split())}")
    for name, verdict in done.proved.items():
        if verdict is not Verdict.EXACT:
            typer.echo(f"  {verdict}: {name}")
    typer.echo(f"saved to {target}; open it with sibert.training.load_converted")
    return 0 if len(exact) == len(done.proved) else 1
