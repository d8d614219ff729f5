"""`sibert env`: what a bug report needs."""

import json

import typer

__all__ = ["show_environment"]


def show_environment() -> None:
    """Show versions, device and threads as JSON."""
    from sibert.training import environment

    typer.echo(json.dumps(environment(), indent=2))
