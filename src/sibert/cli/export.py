"""`sibert export RUN FOLDER`: a fine-tuned model for other runtimes."""

import dataclasses
from pathlib import Path

import typer

__all__ = ["export"]


def export(
    run: Path = typer.Argument(help="Run of sibert finetune."),
    folder: Path = typer.Argument(help="New folder."),
    formats: str = typer.Option("torch,onnx,int8", help="torch (torch.export), onnx, int8 (ONNX, 8-bit weights)."),
    measure: bool = typer.Option(True, "--measure/--no-measure", help="Score each file on the run's validation data."),
) -> None:
    """Write a fine-tuned model as graphs, checked against it (a run itself is a folder of transformers already)."""
    from sibert.evaluation.export import GraphModel, export_model, output_names
    from sibert.evaluation.predictor import Predictor
    from sibert.training.finetune import evaluated_splits, load_examples
    from sibert.training.finetune_recipe import FinetuneRecipe

    predictor = Predictor.load(run)
    found = export_model(predictor, folder, [name.strip() for name in formats.split(",") if name.strip()])
    for name, one in found.items():
        typer.echo(
            f"{one.file}: {one.bytes / 1e6:.1f} MB, outputs differ by {one.difference:.1e} of the largest ({name})"
        )
    if measure:
        examples = load_examples(FinetuneRecipe.from_json(run / "finetune.json"))
        split = evaluated_splits(examples)[0]
        names = output_names(predictor.task.kind)
        models = {"model": predictor.model, **{name: GraphModel(one.file, names) for name, one in found.items()}}
        for name, model in models.items():
            scores = dataclasses.replace(predictor, model=model).evaluate(examples, split)
            shown = ", ".join(f"{key} {100 * value:.1f}" for key, value in scores.items() if key != "score")
            typer.echo(f"{name:8} on {split}: {shown}")
