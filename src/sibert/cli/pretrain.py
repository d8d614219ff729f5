"""`sibert pretrain`: from text to a masked language model."""

from pathlib import Path
from typing import Any

import typer

__all__ = ["given_options", "pretrain", "read_clip"]

DATA, MODEL, OPTIMIZER, RUN = "Data", "Model", "Optimizer", "Run"


def given_options(context: typer.Context) -> dict[str, Any]:
    """What the user has written, defaults left out.

    Args:
        context: Of the command.
    """
    return {
        name: context.params[name]
        for name in context.params
        if (source := context.get_parameter_source(name)) is not None and source.name != "DEFAULT"
    }


def read_clip(value: str) -> float | None:
    """A clipping threshold as it is written on a command line.

    Args:
        value: A number, or "none".
    """
    if value.lower() in ("none", "inf"):
        return None
    try:
        return float(value)
    except ValueError:
        raise typer.BadParameter(f"expected a number above 1 or none, got {value!r}") from None


def pretrain(
    context: typer.Context,
    data: list[str] = typer.Option(
        [],
        help="Files, folders, globs, or a hub data set; repeatable. Default: Python's standard library.",
        rich_help_panel=DATA,
    ),
    text_column: str = typer.Option("text", help="Column with the text, in jsonl, csv, parquet.", rich_help_panel=DATA),
    documents: str = typer.Option(
        "auto", help="What a document of a text file is: auto, file, blank-line.", rich_help_panel=DATA
    ),
    streaming: bool = typer.Option(False, "--streaming", help="Read the data as it is needed.", rich_help_panel=DATA),
    validation_fraction: float = typer.Option(
        0.05, help="Share of the documents kept for validation.", rich_help_panel=DATA
    ),
    tokenizer: str = typer.Option(
        None, help="Folder or hub name. Default: trained from the data.", rich_help_panel=DATA
    ),
    vocab_size: int = typer.Option(8192, help="Size of the trained vocabulary.", rich_help_panel=DATA),
    lowercase: bool = typer.Option(True, "--lowercase/--cased", help="Lower-case the text.", rich_help_panel=DATA),
    seq_length: int = typer.Option(128, help="Tokens of a sequence.", rich_help_panel=DATA),
    mask_rate: float = typer.Option(0.15, help="Share of the tokens to predict.", rich_help_panel=DATA),
    whole_word: bool = typer.Option(False, "--whole-word", help="Mask whole words.", rich_help_panel=DATA),
    next_sentence: bool = typer.Option(False, "--next-sentence", help="Sentence pairs, as BERT.", rich_help_panel=DATA),
    model: str = typer.Option("sibert", help="sibert, or a twin: bert, modernbert.", rich_help_panel=MODEL),
    size: str = typer.Option("mini", help="nano, tiny, mini, small, medium, base, large.", rich_help_panel=MODEL),
    invariance: str = typer.Option(
        "matrix", help="What may be rescaled alone: joint (the paper), matrix, row.", rich_help_panel=MODEL
    ),
    dropout: float = typer.Option(0.0, help="Dropout of branches and attention weights.", rich_help_panel=MODEL),
    initial_scale: float = typer.Option(
        1.0, help="Factor on all scale-invariant parameters at the start.", rich_help_panel=MODEL
    ),
    optimizer: str = typer.Option(
        None, help="clipped_sgd, adamw, lamb (SIBERT); adamw, lamb, sgd (twin).", rich_help_panel=OPTIMIZER
    ),
    steps: int = typer.Option(10_000, help="Optimizer steps.", rich_help_panel=OPTIMIZER),
    intrinsic_lr: float = typer.Option(
        None,
        help="lr * weight decay. Default: 3.5 / steps, at most 0.006 (joint: 10 / steps, 0.002).",
        rich_help_panel=OPTIMIZER,
    ),
    lr: float = typer.Option(
        None, help="Learning rate (with --weight-decay, instead of --intrinsic-lr).", rich_help_panel=OPTIMIZER
    ),
    weight_decay: float = typer.Option(None, help="Weight decay.", rich_help_panel=OPTIMIZER),
    clip: str = typer.Option("2.0", help="Relative Global Clipping: sqrt(C), or none.", rich_help_panel=OPTIMIZER),
    two_sided: bool = typer.Option(
        None,
        "--two-sided/--one-sided",
        help="Clip short gradients, too. Default: yes, joint no.",
        rich_help_panel=OPTIMIZER,
    ),
    head_lr: float = typer.Option(
        None, help="Learning rate of the head. Default: 0.003, joint 0.01.", rich_help_panel=OPTIMIZER
    ),
    schedule: str = typer.Option("cosine", help="cosine, linear, piecewise, constant.", rich_help_panel=OPTIMIZER),
    warmup_steps: int = typer.Option(None, help="Of all but clipped_sgd's matrices.", rich_help_panel=OPTIMIZER),
    max_grad_norm: float = typer.Option(
        None, help="Absolute clipping, not with clipped_sgd.", rich_help_panel=OPTIMIZER
    ),
    batch_size: int = typer.Option(32, help="Sequences a process and micro-batch.", rich_help_panel=OPTIMIZER),
    accumulation: int = typer.Option(1, help="Micro-batches a step.", rich_help_panel=OPTIMIZER),
    out: Path = typer.Option(None, help="Run directory. Default: runs/MODEL-SIZE-NUMBER.", rich_help_panel=RUN),
    resume: Path = typer.Option(None, help="Run directory to go on with; takes no other option.", rich_help_panel=RUN),
    seed: int = typer.Option(0, help="Of initialisation, order, masks, dropout.", rich_help_panel=RUN),
    precision: str = typer.Option(
        "fp32", help="fp32, bf16, bf16-weights (the weights, too), fp16.", rich_help_panel=RUN
    ),
    gradient_checkpointing: bool = typer.Option(
        False, "--gradient-checkpointing", help="Less memory.", rich_help_panel=RUN
    ),
    gradient_release: bool = typer.Option(
        False,
        "--gradient-release",
        help="Less memory: steps inside backward, same result.",
        rich_help_panel=RUN,
    ),
    backend: str = typer.Option(
        "auto", help="auto: fast paths; reference: all as defined, padded.", rich_help_panel=RUN
    ),
    compile: bool = typer.Option(
        False, "--compile", help="torch.compile; needs a C++ compiler on a CPU.", rich_help_panel=RUN
    ),
    workers: int = typer.Option(0, help="Data-loading processes.", rich_help_panel=RUN),
    log_every: int = typer.Option(10, help="Steps between records.", rich_help_panel=RUN),
    eval_every: int = typer.Option(None, help="Steps between evaluations. Default: steps / 10.", rich_help_panel=RUN),
    save_every: int = typer.Option(None, help="Steps between checkpoints. Default: steps / 10.", rich_help_panel=RUN),
    keep_checkpoints: int = typer.Option(2, help="Checkpoints to keep.", rich_help_panel=RUN),
    device: str = typer.Option("auto", help="auto or cpu.", rich_help_panel=RUN),
) -> int:
    """Pre-train a masked language model on your own text (Ctrl-C saves; --resume goes on bit for bit)."""
    given = given_options(context)
    from sibert.training import PretrainRecipe, next_run_directory, run_pretraining

    if resume is not None:
        others = sorted(f"--{name.replace('_', '-')}" for name in given if name != "resume")
        if others:
            raise ValueError(
                f"--resume takes no other option, got {', '.join(others)}: "
                "the run goes on with the recipe it began with"
            )
        return run_pretraining(PretrainRecipe.from_json(resume / "recipe.json"), resume, resume=True)
    given.pop("out", None)
    if "clip" in given:
        given["clip"] = read_clip(clip)
    recipe = PretrainRecipe(**given)
    return run_pretraining(recipe, out if out is not None else next_run_directory(recipe))
