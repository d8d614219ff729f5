"""`sibert finetune MODEL --task NAME`: from a pre-trained model to one that does a task."""

from pathlib import Path

import typer

from sibert.cli.pretrain import given_options, read_clip

__all__ = ["finetune"]

DATA, OPTIMIZER, RUN = "Data", "Model and optimizer", "Run"


def finetune(
    context: typer.Context,
    model: str = typer.Argument(None, help="Run of sibert pretrain, folder of transformers, or hub name."),
    task: str = typer.Option(
        None,
        help="cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli, squad, squad2, docstrings; or for your own files "
        "classification, pair-classification, regression, token-classification, qa, embedding.",
        rich_help_panel=DATA,
    ),
    data: str = typer.Option(
        None,
        help="Folder with the task's official files or with train.csv, validation.csv, ...; or the training file "
        "(csv, tsv, jsonl, parquet; for questions also SQuAD's json). Default: the hub's.",
        rich_help_panel=DATA,
    ),
    validation: str = typer.Option(
        None, help="File to validate on. Default: a tenth of the rows.", rich_help_panel=DATA
    ),
    columns: str = typer.Option(None, help="Columns with the texts, as name,name.", rich_help_panel=DATA),
    target: str = typer.Option(None, help="Column with the label, number, tags or answers.", rich_help_panel=DATA),
    length: int = typer.Option(None, help="Most tokens of a row. Default: 128; questions 384.", rich_help_panel=DATA),
    stride: int = typer.Option(None, help="Tokens that windows share. Default: length / 4.", rich_help_panel=DATA),
    convert: str = typer.Option(
        None, help="row or matrix: train any model by clipped_sgd; saved as a plain model.", rich_help_panel=OPTIMIZER
    ),
    dropout: float = typer.Option(None, help="Default: the model's.", rich_help_panel=OPTIMIZER),
    optimizer: str = typer.Option(
        None, help="clipped_sgd (scale-invariant or converted models), adamw, lamb.", rich_help_panel=OPTIMIZER
    ),
    intrinsic_lr: float = typer.Option(None, help="Of clipped_sgd. Default: 0.1 / steps.", rich_help_panel=OPTIMIZER),
    clip: str = typer.Option("2.0", help="Relative Global Clipping: sqrt(C), or none.", rich_help_panel=OPTIMIZER),
    lr: float = typer.Option(None, help="Of adamw and lamb. Default: 1e-4 and 2e-3.", rich_help_panel=OPTIMIZER),
    head_lr: float = typer.Option(
        None, help="AdamW's beside clipped_sgd: head, gains, biases. Default: 1e-3.", rich_help_panel=OPTIMIZER
    ),
    weight_decay: float = typer.Option(0.01, help="Of adamw and lamb.", rich_help_panel=OPTIMIZER),
    epochs: float = typer.Option(3.0, help="Passes over the training split.", rich_help_panel=OPTIMIZER),
    schedule: str = typer.Option("linear", help="linear, cosine, piecewise, constant.", rich_help_panel=OPTIMIZER),
    warmup_share: float = typer.Option(0.1, help="Of the steps, for all but clipped_sgd.", rich_help_panel=OPTIMIZER),
    batch_size: int = typer.Option(32, help="Rows of a step.", rich_help_panel=OPTIMIZER),
    out: Path = typer.Option(None, help="New folder. Default: runs/TASK-NUMBER.", rich_help_panel=RUN),
    resume: Path = typer.Option(None, help="Run to go on with; takes no other option.", rich_help_panel=RUN),
    seed: int = typer.Option(0, help="Of new parameters, order, dropout.", rich_help_panel=RUN),
    seeds: int = typer.Option(1, min=1, help="Runs, whose mean and spread are shown.", rich_help_panel=RUN),
    grid: list[str] = typer.Option(
        [], help="Settings to try, as name=value,value; repeatable, resumable.", rich_help_panel=RUN
    ),
    eval_every: int = typer.Option(None, help="Steps between evaluations. Default: an epoch.", rich_help_panel=RUN),
    patience: int = typer.Option(None, help="Stop after so many evaluations in vain.", rich_help_panel=RUN),
    precision: str = typer.Option("fp32", help="fp32, bf16, fp16.", rich_help_panel=RUN),
    backend: str = typer.Option(
        "auto", help="auto: fast paths; reference: padded batches, attention as defined.", rich_help_panel=RUN
    ),
    device: str = typer.Option("auto", help="auto or cpu.", rich_help_panel=RUN),
    baselines: bool = typer.Option(
        False, "--baselines", help="Score the majority and a bag of words, too.", rich_help_panel=RUN
    ),
) -> int:
    """Fine-tune a model for a task, and keep the best (Ctrl-C saves; --resume goes on)."""
    given = given_options(context)
    from sibert.training.finetune import run_finetuning
    from sibert.training.finetune_recipe import FinetuneRecipe
    from sibert.training.run_directory import numbered
    from sibert.training.sweep import parse_grid, run_sweep

    if resume is not None:
        others = sorted(f"--{name.replace('_', '-')}" for name in given if name != "resume")
        if others:
            raise ValueError(
                f"--resume takes no other option, got {', '.join(others)}: the run goes on with its own recipe"
            )
        return run_finetuning(FinetuneRecipe.from_json(resume / "finetune.json"), resume, resume=True)
    if model is None or task is None:
        raise ValueError("give a model and a task: sibert finetune MODEL --task NAME")
    settings = parse_grid(given.pop("grid", []))
    for name in ("out", "seeds"):
        given.pop(name, None)
    if "clip" in given:
        given["clip"] = read_clip(clip)
    if "columns" in given:
        given["columns"] = [name.strip() for name in str(columns).split(",") if name.strip()]
    recipe = FinetuneRecipe(**given)
    folder = out if out is not None else numbered(Path("runs"), task)
    if seeds > 1 or settings:
        return run_sweep(recipe, folder, seeds=seeds, grid=settings)
    return run_finetuning(recipe, folder)
