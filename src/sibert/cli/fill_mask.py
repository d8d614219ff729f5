"""`sibert fill-mask RUN "text with [MASK]"`."""

from pathlib import Path

import typer

__all__ = ["fill_mask"]


def fill_mask(
    run: Path = typer.Argument(help="Run directory, or any folder with a masked-LM model and its tokenizer."),
    text: list[str] = typer.Argument(help="Text with one or more [MASK]."),
    top: int = typer.Option(5, "--top", min=1, help="Predictions to show for each mask."),
) -> None:
    """Show what a model would put in place of [MASK]."""
    from sibert.training import fill_masks

    for sentence in text:
        for number, (predictions, position) in enumerate(fill_masks(run, sentence, top=top), start=1):
            typer.echo(f"[MASK] {number} (token {position}) of: {sentence}")
            for token, probability in predictions:
                typer.echo(f"  {probability:6.1%}  {token}")
