"""`sibert report RUN [RUN ...]`: one self-contained HTML page."""

from pathlib import Path

import typer

__all__ = ["report"]


def report(
    runs: list[Path] = typer.Argument(help="Run directories; several are drawn together."),
    out: Path = typer.Option(None, "--out", help="The page to write. Default: report.html in the first run directory."),
) -> None:
    """Write one self-contained HTML page about one or more runs."""
    from sibert.reporting import write_report

    page = write_report(runs, out if out is not None else runs[0] / "report.html")
    typer.echo(f"wrote {page}")
