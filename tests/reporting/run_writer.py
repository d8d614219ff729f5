"""Synthetic run directories, small and deterministic."""

import json
import math
from pathlib import Path
from typing import Any


def train_record(step: int, **changes: Any) -> dict[str, Any]:
    """A train record of a scale-invariant run whose group relaxes to its equilibrium."""
    eta, weight_decay = 8.0, 1e-3 / 8.0
    norm = 10.0 + 40.0 * math.exp(-step / 50)
    record = {
        "kind": "train",
        "step": step,
        "epoch": step / 100,
        "wall_seconds": step / 10,
        "loss": 5.0 + 4.0 * math.exp(-step / 50),
        "tokens_per_second": 8000.0 + step,
        "peak_memory_bytes": 300 << 20,
        "optimizer_state_bytes": 9 << 20,
        "groups": {
            "encoder": {
                "lr": 1.0,
                "eta": eta,
                "weight_decay": weight_decay,
                "intrinsic_lr": eta * weight_decay,
                "effective_lr": eta / norm**2,
                "param_norm": norm,
                "grad_norm": 0.1,
                "equilibrium_norm": 10.0,
                "angular_update": 0.04,
                "clip_factor": 1.0,
                "clipped_fraction": 0.0,
                "skipped_steps": 0,
            },
            "head": {"lr": 1e-3},
        },
    }
    return record | changes


def twin_record(step: int, **changes: Any) -> dict[str, Any]:
    """A train record of the BERT twin: no invariant group."""
    return train_record(step) | {"groups": {"all": {"lr": 1e-3}}} | changes


def eval_record(step: int, **changes: Any) -> dict[str, Any]:
    loss = 5.1 + 4.0 * math.exp(-step / 50)
    record = {
        "kind": "eval",
        "step": step,
        "epoch": step / 100,
        "wall_seconds": step / 10 + 0.5,
        "loss": loss,
        "mlm_loss": loss,
        "accuracy": 0.25,
        "targets": 12345,
        "unigram_entropy": 6.25,
    }
    return record | changes


def default_records(make: Any = train_record) -> list[dict[str, Any]]:
    records = []
    for step in range(10, 210, 10):
        records.append(make(step))
        if step % 50 == 0:
            records.append(eval_record(step))
    return records


def write_run(
    path: Path,
    records: list[dict[str, Any]] | None = None,
    recipe: dict[str, Any] | None = None,
    environment: dict[str, Any] | None = None,
    tail: str = "",
) -> Path:
    path.mkdir(parents=True)
    standard = {"model": "sibert", "optimizer": "clipped_sgd", "size": "tiny", "steps": 200, "batch_size": 4}
    standard |= {"seq_length": 16, "data": ["a", "b"], "seed": 0}
    (path / "recipe.json").write_text(json.dumps(standard | (recipe or {})), encoding="utf-8")
    if environment is None:
        environment = {"sibert": "0.1.0", "torch": "2.13.0", "device": "cpu", "parameters": 123456}
    (path / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    lines = [json.dumps(record) + "\n" for record in (default_records() if records is None else records)]
    (path / "metrics.jsonl").write_text("".join(lines) + tail, encoding="utf-8")
    return path
