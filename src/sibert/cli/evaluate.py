"""`sibert evaluate RUN` and `sibert predict RUN`: what a fine-tuned model is worth, and what it says."""

import json
from pathlib import Path

import typer

__all__ = ["evaluate", "predict"]


def evaluate(
    run: Path = typer.Argument(help="Run of sibert finetune."),
    task: str = typer.Option(None, help="To be sure: the task that the run is for."),
    data: Path = typer.Option(None, help="Folder or file with labels. Default: the data it was fine-tuned with."),
    split: str = typer.Option(None, help="Default: every split with labels but train."),
    output: Path = typer.Option(None, help="File for the scores as JSON."),
    batch_size: int = typer.Option(64, min=1, help="Rows at once."),
) -> None:
    """Score a fine-tuned model by the task's official metrics."""
    from sibert.training.evaluate import evaluate_run

    scores = evaluate_run(run, task=task, data=data, split=split, batch_size=batch_size, note=typer.echo)
    for name, values in scores.items():
        for metric, value in values.items():
            typer.echo(f"{name:24} {metric:20} {value:.4f}")
    if output is not None:
        from sibert.training.checkpoints import write_atomically

        write_atomically(output, json.dumps(scores, indent=2) + "\n")


def predict(
    run: Path = typer.Argument(help="Run of sibert finetune."),
    source: Path = typer.Option(..., "--input", help="csv, tsv, jsonl or parquet; for questions also SQuAD's json."),
    target: Path = typer.Option(
        ..., "--output", help=".jsonl: everything; .csv, .tsv: index and prediction; .json: answers by id (SQuAD)."
    ),
    batch_size: int = typer.Option(64, min=1, help="Rows at once."),
    columns: str = typer.Option(None, help="Columns with the texts, if not those it was fine-tuned with."),
) -> None:
    """Predict for every row of a file, in its order; goes on where an earlier call was stopped."""
    import dataclasses

    from sibert.evaluation.prediction_files import predict_file
    from sibert.evaluation.predictor import Predictor

    predictor = Predictor.load(run, batch_size=batch_size)
    if columns is not None:
        names = tuple(name.strip() for name in columns.split(",") if name.strip())
        predictor = dataclasses.replace(predictor, task=predictor.task.renamed(names, predictor.task.target))
    done, earlier = predict_file(predictor, source, target)
    went_on = f" ({earlier} of them by an earlier call)" if earlier else ""
    typer.echo(f"{done} rows predicted{went_on}; wrote {target}")
    for note in predictor.tokenization.notes(source.name, done - earlier, predictor.cut):
        typer.echo(f"note: {note}")
