"""Entry point of the command line: one sentence and a non-zero exit status for every mistake, never a traceback."""

import os
import sys
import warnings
from typing import NoReturn

import typer
from rich.console import Console
from typer.exceptions import TyperException

from sibert import __version__
from sibert.cli import check, convert, evaluate, export, fill_mask, finetune, lab, pretrain, report
from sibert.cli.environment import show_environment

__all__ = ["app", "main"]

app = typer.Typer(
    name="sibert",
    help="Pre-train, use and inspect scale-invariant BERTs trained with plain SGD.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("pretrain")(pretrain.pretrain)
app.command("finetune")(finetune.finetune)
app.command("evaluate")(evaluate.evaluate)
app.command("predict")(evaluate.predict)
app.command("export")(export.export)
app.command("fill-mask")(fill_mask.fill_mask)
app.command("report")(report.report)
app.command("check")(check.check)
app.command("convert")(convert.convert)
app.add_typer(lab.app, name="lab")
app.command("cite")(lab.cite)
app.command("env")(show_environment)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"sibert {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Show the version."),
) -> None:
    """Pre-train, use and inspect scale-invariant BERTs trained with plain SGD."""


def fail(message: str, status: int) -> NoReturn:
    """End with one sentence on standard error.

    Args:
        message: What was expected, what came, how to fix it.
        status: Exit status.
    """
    Console(stderr=True, highlight=False, soft_wrap=True, emoji=False).print(f"error: {message}", markup=False)
    sys.exit(status)


def main() -> None:
    """Run the command line."""
    # Libraries warn about their own future; a user of the command can do nothing about it.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    _quiet_libraries()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        status = app(standalone_mode=False)
    except TyperException as error:
        fail(error.format_message(), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        fail("interrupted", 130)
    except (ValueError, TypeError, OSError, MemoryError) as error:
        if os.environ.get("SIBERT_DEBUG"):
            raise
        fail(_one_sentence(error), 1)
    _leave_process_group()
    sys.exit(status if isinstance(status, int) else 0)


def _leave_process_group() -> None:
    """Join its threads: a process that ends beside one that still runs may be aborted, after all is done."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _quiet_libraries() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _one_sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror.lower()}: {error.filename}" if error.filename else error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__
