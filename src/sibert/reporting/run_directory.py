"""What a run left on disk, read strictly: recipe.json, environment.json and metrics.jsonl.

The last line of metrics.jsonl may be half-written, because a run can be killed, or still be going on, while it is read.
Any other damage is an error that names file and line: a curve with silent holes would be believed.
"""

import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RECIPE_FILE = "recipe.json"
ENVIRONMENT_FILE = "environment.json"
METRICS_FILE = "metrics.jsonl"

_NUMBERS = (
    "step",
    "epoch",
    "wall_seconds",
    "loss",
    "mlm_loss",
    "nsp_loss",
    "tokens_per_second",
    "tokens_seen",
    "peak_memory_bytes",
    "optimizer_state_bytes",
    "accuracy",
    "nsp_accuracy",
    "targets",
    "unigram_entropy",
)
_COUNTS = ("step", "tokens_seen", "skipped_steps")
# More than anything counts; sums and products of such numbers fit into float64.
COUNT_LIMIT = 2**63

Record = Mapping[str, Any]
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class Run:
    """One training run as its directory tells it.

    Attributes:
        path: the run directory.
        name: what the page calls the run; the name of the directory.
        recipe: every option of the run.
        environment: versions, device, number of parameters; empty if the run wrote none.
        train: the train records by increasing step.
        evaluations: the eval records by increasing step.
        notes: sentences about what had to be tolerated while reading.
    """

    path: Path
    name: str
    recipe: Mapping[str, Any]
    environment: Mapping[str, Any]
    train: tuple[Record, ...]
    evaluations: tuple[Record, ...]
    notes: tuple[str, ...] = ()

    @property
    def invariant_groups(self) -> tuple[str, ...]:
        """Names of the groups measured as scale invariant (those with a parameter norm), in order of appearance."""
        found: dict[str, None] = {}
        for record in self.train:
            for group, values in record.get("groups", {}).items():
                if "param_norm" in values:
                    found.setdefault(group)
        return tuple(found)

    def train_curve(self, *keys: str, over: str = "step") -> Curve:
        """The train records' first present key of ``keys`` against ``over``."""
        return curve(self.train, keys, over)

    def evaluation_curve(self, *keys: str, over: str = "step") -> Curve:
        """The eval records' first present key of ``keys`` against ``over``."""
        return curve(self.evaluations, keys, over)

    def group_curve(self, group: str, key: str) -> Curve:
        """One measurement of one group against the step; empty if this run does not have it."""
        pairs = [
            (record["step"], as_number(record["groups"][group][key]))
            for record in self.train
            if key in record.get("groups", {}).get(group, {})
        ]
        return _columns(pairs)


def as_number(value: Any) -> float:
    """A JSON number as a float; null, which some writers use for a non-finite number, as NaN."""
    return float("nan") if value is None else float(value)


def first_number(record: Record, keys: Iterable[str]) -> float:
    """The value of the first of ``keys`` that the record has, NaN if it has none."""
    return next((as_number(record[key]) for key in keys if key in record), float("nan"))


def curve(records: Iterable[Record], keys: Iterable[str], over: str = "step") -> Curve:
    """Two equally long arrays, abscissa and ordinate, over the records that have one of ``keys``.

    Args:
        records: train or eval records.
        keys: alternatives, the preferred one first.
        over: the key of the abscissa, ``"step"`` or ``"wall_seconds"``.

    Returns:
        Abscissa [N] and ordinate [N] in float64; N = 0 if no record has any of the keys.
    """
    keys = tuple(keys)
    pairs = [
        (as_number(record[over]), first_number(record, keys))
        for record in records
        if over in record and any(key in record for key in keys)
    ]
    return _columns(pairs)


def _columns(pairs: list[tuple[float, float]]) -> Curve:
    table = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def load_run(path: Path | str) -> Run:
    """Read a run directory.

    Where records of a step are repeated the later ones win, and what lay between is dropped; that leaves a note.

    Args:
        path: the directory that ``sibert pretrain --out`` wrote.

    Returns:
        The run.

    Raises:
        FileNotFoundError: nothing is there.
        NotADirectoryError: a file is there.
        ValueError: it is not a run directory, has no metrics yet, or a file in it is damaged (file and line are named).
    """
    path = Path(path)
    hint = "give the folder that `sibert pretrain --out` wrote"
    if not path.exists():
        raise FileNotFoundError(f"no run directory at {path}: {hint}")
    if not path.is_dir():
        raise NotADirectoryError(f"{path} is a file; expected a run directory, as `sibert pretrain --out` writes it")
    if not (path / RECIPE_FILE).is_file():
        raise ValueError(f"{path} is not a run directory: it has no {RECIPE_FILE}; {hint}")
    notes: list[str] = []
    recipe = _read_object(path / RECIPE_FILE)
    environment: dict[str, Any] = {}
    if (path / ENVIRONMENT_FILE).is_file():
        environment = _read_object(path / ENVIRONMENT_FILE)
    else:
        notes.append(f"there is no {ENVIRONMENT_FILE}, so parameters and versions are unknown")
    records = _drop_superseded(_read_metrics(path / METRICS_FILE, notes), notes)
    train = tuple(record for record in records if record["kind"] == "train")
    if not train and not any(record["kind"] == "eval" for record in records):
        raise ValueError(f"{path} has no metrics yet: no whole record in {METRICS_FILE}; wait for the first log entry")
    evaluations = tuple(record for record in records if record["kind"] == "eval")
    # abspath, not resolve: "." gets its name, a symbolic link keeps the one its owner chose.
    name = os.path.basename(os.path.abspath(path))
    return Run(path, name, recipe, environment, train, evaluations, tuple(notes))


def _read_object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}:{error.lineno}: not valid JSON ({error.msg})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text (byte {error.start})") from error
    except (ValueError, RecursionError) as error:  # a number of too many digits, lists of too many levels
        raise ValueError(f"{file}: cannot be read ({error}); mend it") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(value).__name__}")
    return value


def _read_metrics(file: Path, notes: list[str]) -> list[dict[str, Any]]:
    if not file.is_file():
        raise ValueError(f"{file.parent} has no metrics yet: {file.name} is missing; wait for the first log entry")
    # Bytes, so that a character cut in half damages its own line only.
    lines = [(number, line) for number, line in enumerate(file.read_bytes().split(b"\n"), start=1) if line.strip()]
    records = []
    for number, line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == lines[-1][0]:
                notes.append(f"the last line of {file.name} (line {number}) is half-written and was left out")
                continue
            raise ValueError(
                f"{file}:{number}: not valid JSON ({error}); only the last line may be half-written, "
                "so mend or delete this line"
            ) from error
        _check_record(record, f"{file}:{number}")
        if record["kind"] in ("train", "eval"):
            records.append(record)
    return records


def _check_record(record: Any, where: str) -> None:
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(record).__name__}")
    if not isinstance(record.get("kind"), str):
        raise ValueError(f'{where}: the record has no "kind"; expected "train" or "eval"')
    if record["kind"] not in ("train", "eval"):
        return
    if not isinstance(record.get("step"), int):
        raise ValueError(f'{where}: the record has no whole-numbered "step", got {record.get("step")!r}')
    groups = record.get("groups", {})
    if not isinstance(groups, dict) or not all(isinstance(values, dict) for values in groups.values()):
        raise ValueError(f'{where}: "groups" must map each group name to an object of numbers')
    measured = [(key, record[key]) for key in _NUMBERS if key in record]
    measured += [(f"{group}.{key}", value) for group, values in groups.items() for key, value in values.items()]
    for key, value in measured:
        if value is not None and not isinstance(value, (int, float)):
            raise ValueError(f'{where}: "{key}" must be a number or null, got {value!r}')
        if isinstance(value, int) and abs(value) > sys.float_info.max:
            raise ValueError(f'{where}: "{key}" must be a number of float64, got a whole number beyond 1e308')
        if value is not None and key.rpartition(".")[2] in _COUNTS and not abs(value) < COUNT_LIMIT:
            raise ValueError(f'{where}: "{key}" must be a count below 2^63 or null, got {value:g}')


def _drop_superseded(records: list[dict[str, Any]], notes: list[str]) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    dropped = 0

    def stands(old: dict[str, Any], new: dict[str, Any]) -> bool:
        return bool(old["step"] < new["step"] or (old["step"] == new["step"] and old["kind"] != new["kind"]))

    for record in records:
        # Steps never fall within one branch of a run, and a step has at most one record of each kind: the last two
        # tell whether the run went back to an older checkpoint, and what it logged after that step is a dead end.
        if not all(stands(old, record) for old in kept[-2:]):
            before = len(kept)
            kept = [old for old in kept if stands(old, record)]
            dropped += before - len(kept)
        kept.append(record)
    if dropped:
        notes.append(f"{dropped} log entries stand for steps that were logged again later; only the later ones count")
    return kept
