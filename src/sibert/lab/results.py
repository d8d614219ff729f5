"""Results of experiments: run one, keep data, figure and verdicts in a folder, read them again."""

import io
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sibert.lab.experiment import Experiment, Scale, Verdict, Word
from sibert.lab.pictures import from_folder
from sibert.training.checkpoints import write_atomically
from sibert.training.environment import environment

__all__ = ["Outcome", "load_outcome", "run_experiment"]


@dataclass(frozen=True)
class Outcome:
    """What came out of an experiment.

    Attributes:
        name: Of the experiment.
        scale: At which it was run.
        seconds: How long it took.
        verdicts: With the measured numbers.
        environment: Versions and machine.
        figure: An SVG document.
        images: The folder of the user's pictures, if it was made on any.
    """

    name: str
    scale: str
    seconds: float
    verdicts: Sequence[Verdict]
    environment: dict[str, Any]
    figure: str
    images: str | None = None

    @property
    def word(self) -> Word:
        """The worst of its verdicts: one that disagrees, or one that is undecided."""
        found = {verdict.word for verdict in self.verdicts}
        return "DISAGREES" if "DISAGREES" in found else "undecided" if "undecided" in found else "agrees"


def run_experiment(experiment: Experiment, scale: Scale, out: Path, images: Path | None = None) -> Outcome:
    """Run an experiment and keep what comes out: NAME.json (verdicts, environment), NAME-data.json and NAME.svg.

    Args:
        experiment: One of `EXPERIMENTS`.
        scale: How much of it.
        out: The folder; made if it is missing.
        images: See `sibert.lab.pictures`.

    Returns:
        What was kept.

    Raises:
        ValueError: If the pictures cannot be read.
    """
    begin = time.perf_counter()
    with torch.random.fork_rng(devices=[]), from_folder(images) as source:
        data = experiment.measure(scale)
    seconds = time.perf_counter() - begin
    verdicts = experiment.judge(data)
    outcome = Outcome(experiment.name, scale, seconds, verdicts, environment(), _draw(experiment, data))
    if source.used and images is not None:
        outcome = replace(outcome, images=str(images))
    record = {name: value for name, value in asdict(outcome).items() if name != "figure"}
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / f"{experiment.name}-data.json", json.dumps(data) + "\n")
    write_atomically(out / f"{experiment.name}.svg", outcome.figure)
    write_atomically(out / f"{experiment.name}.json", json.dumps(record, indent=1) + "\n")
    return outcome


def load_outcome(experiment: Experiment, out: Path) -> Outcome | None:
    """Read what `run_experiment` has kept.

    Args:
        experiment: One of `EXPERIMENTS`.
        out: The folder.

    Returns:
        None if the experiment has not been run.

    Raises:
        ValueError: If its files are damaged.
    """
    path = out / f"{experiment.name}.json"
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["verdicts"] = [Verdict(**verdict) for verdict in record["verdicts"]]
        return Outcome(**record, figure=path.with_suffix(".svg").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} cannot be read: run it again with: sibert lab run {experiment.name}") from error


def _draw(experiment: Experiment, data: dict[str, Any]) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    # The same data give the same file.
    with matplotlib.rc_context({"svg.hashsalt": experiment.name, "svg.fonttype": "none", "font.size": 9.0}):
        figure = Figure(figsize=(9.0, 3.6), layout="constrained")
        experiment.draw(data, figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
