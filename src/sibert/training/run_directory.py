"""Layout of a run directory.

Inside the folder that `--out` names:

    recipe.json          every choice of the run
    environment.json     versions, device, threads, number of parameters
    corpus.json          what the data were: documents, duplicates, skipped files, tokens (of fine-tuning: data.json)
    metrics.jsonl        one record a line
    tensorboard/         the same for TensorBoard
    tokenizer/           the tokenizer, from the first step on
    checkpoints/         checkpoint-N, each with complete.json once it is whole
    config.json, model.safetensors, tokenizer.json, ...   the final model: `from_pretrained("RUN")`
"""

import contextlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sibert.training.checkpoints import write_atomically
from sibert.training.recipe import PretrainRecipe

__all__ = ["RunDirectory", "next_run_directory", "numbered"]


@dataclass(frozen=True)
class RunDirectory:
    """Paths of a run, and how its files are written.

    Attributes:
        path: The directory.
    """

    path: Path

    @property
    def recipe(self) -> Path:
        """The recipe."""
        return self.path / "recipe.json"

    @property
    def metrics(self) -> Path:
        """The records."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer."""
        return self.path / "tokenizer"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def finished(self) -> bool:
        """Whether the final model is there."""
        return (self.path / "config.json").exists() and (self.path / "model.safetensors").exists()

    def create(self, recipe: Any) -> None:
        """Make the directory and write the recipe.

        Args:
            recipe: The recipe, which has a method `to_json`.

        Raises:
            ValueError: If the directory exists and is not empty, or cannot be written.
        """
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ValueError(
                f"{self.path} exists and is not empty; choose another --out, or go on with that run by "
                f"--resume {self.path}"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.recipe, recipe.to_json())
        except OSError as error:
            raise ValueError(
                f"cannot write to {self.path}: {(error.strerror or str(error)).lower()}; choose another --out"
            ) from None

    def withdraw(self) -> None:
        """Take back what is written before a run begins; a directory with anything else in it stays."""
        self.recipe.unlink(missing_ok=True)
        for name in ("corpus.json", "data.json", "environment.json"):
            (self.path / name).unlink(missing_ok=True)
        for folder in (self.tokenizer, self.tensorboard):
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def write_json(self, name: str, record: dict[str, Any]) -> None:
        """Write a JSON file.

        Args:
            name: File name.
            record: Contents.
        """
        write_atomically(self.path / name, json.dumps(record, indent=2) + "\n")

    def check_unchanged(self, name: str, record: dict[str, Any]) -> None:
        """Compare the counts of the data with those that the run began with.

        Args:
            name: File name.
            record: What would be written into it now.

        Raises:
            ValueError: If a number differs.
        """
        file = self.path / name
        before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        for key, count in record.items():
            if isinstance(count, int) and before.get(key, count) != count:
                raise ValueError(
                    f"the data of {self.path} have changed since it began: {key.replace('_', ' ')} {count} instead of "
                    f"{before[key]} ({file}); put the earlier ones back, or start another run with --out"
                )

    def save_model(self, model: Any, tokenizer: Any) -> None:
        """Write the final model so that its files appear one by one, each whole, `config.json` last.

        Args:
            model: The trained model.
            tokenizer: Its tokenizer.
        """
        staging = Path(tempfile.mkdtemp(prefix=".final-", dir=self.path))
        try:
            tokenizer.save_pretrained(staging)
            model.save_pretrained(staging)
            for path in sorted(staging.iterdir(), key=lambda path: path.name == "config.json"):
                os.replace(path, self.path / path.name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def next_run_directory(recipe: PretrainRecipe, parent: Path = Path("runs")) -> Path:
    """Name a directory that does not exist yet: runs/MODEL-SIZE-NUMBER.

    Args:
        recipe: The recipe of the run.
        parent: Folder of the runs.

    Returns:
        The path; nothing is created.
    """
    return numbered(parent, f"{recipe.model}-{recipe.size}")


def numbered(parent: Path, name: str) -> Path:
    """Name a directory that does not exist yet: NAME-NUMBER.

    Args:
        parent: Where it is to be.
        name: Begin of its name.

    Returns:
        The path; nothing is created.
    """
    number = 1
    while (path := parent / f"{name}-{number}").exists():
        number += 1
    return path
