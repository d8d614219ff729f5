"""Reading what a run left."""

import json
from pathlib import Path

from safetensors.torch import load_file


def records(run: Path, kind: str = "train") -> list[dict]:
    """The records of one kind."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def losses(run: Path) -> dict[int, float]:
    """Training losses by step."""
    return {record["step"]: record["loss"] for record in records(run)}


def weights(folder: Path) -> dict:
    """The weights in a folder."""
    return load_file(folder / "model.safetensors")


def assert_same_run(one: Path, other: Path) -> None:
    """Same losses, same evaluations, same weights, to the last bit."""
    assert losses(one) == losses(other)
    for kind, keys in (("eval", ("step", "mlm_loss", "accuracy")), ("train", ("step", "groups"))):
        assert [[r[k] for k in keys] for r in records(one, kind)] == [
            [r[k] for k in keys] for r in records(other, kind)
        ]
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    assert all((a[name] == b[name]).all() for name in a)
