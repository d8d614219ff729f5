"""A run in a dozen numbers: the columns of the table at the top of the report."""

import math
from dataclasses import dataclass

import numpy as np

from sibert.reporting.run_directory import COUNT_LIMIT, Run, as_number, first_number

# The last train loss is a mean over this share of the log entries: one batch alone is too noisy to compare runs by.
FINAL_SHARE = 0.05

# What a recipe means that leaves the optimizer open.
_DEFAULT_OPTIMIZERS = {"sibert": "clipped_sgd", "bert": "adamw"}


@dataclass(frozen=True)
class Summary:
    """What a run cost and what it reached; ``None`` where its files do not say.

    Attributes:
        model: architecture, "sibert" or "bert".
        optimizer: name of the optimizer.
        size: named size.
        parameters: number of trainable parameters.
        steps: optimizer steps done.
        planned_steps: optimizer steps that the recipe asks for.
        tokens_seen: input tokens of all steps, padding included.
        train_loss: masked-LM loss in nats, mean of the last 5 % of the log entries.
        validation_loss: masked-LM loss in nats of the last evaluation.
        validation_step: the step of that evaluation.
        unigram_entropy: entropy in nats of that evaluation's targets under their own word frequencies.
        wall_seconds: seconds from the start to the last record.
        tokens_per_second: median of the log entries.
        peak_memory_bytes: largest value logged.
        optimizer_state_bytes: largest value logged.
        skipped_steps: steps that were not applied because a gradient was not finite.
    """

    model: str | None
    optimizer: str | None
    size: str | None
    parameters: int | None
    steps: int
    planned_steps: int | None
    tokens_seen: int | None
    train_loss: float | None
    validation_loss: float | None
    validation_step: int | None
    unigram_entropy: float | None
    wall_seconds: float | None
    tokens_per_second: float | None
    peak_memory_bytes: int | None
    optimizer_state_bytes: int | None
    skipped_steps: int

    @property
    def below_unigram(self) -> float | None:
        """How far the validation loss lies below the unigram entropy, in nats; what context has taught the model."""
        if self.validation_loss is None or self.unigram_entropy is None:
            return None
        return self.unigram_entropy - self.validation_loss


def summarise(run: Run) -> Summary:
    """Condense a run.

    Args:
        run: a run as :func:`~sibert.reporting.load_run` returns it.

    Returns:
        Its summary. A diverged run keeps its NaN or infinite losses.
    """
    records = run.train + run.evaluations
    steps = max(int(record["step"]) for record in records)
    _, losses = run.train_curve("mlm_loss", "loss")
    _, speeds = run.train_curve("tokens_per_second")
    speeds = speeds[np.isfinite(speeds)]
    last = run.evaluations[-1] if run.evaluations else {}
    walls = [as_number(record["wall_seconds"]) for record in records if record.get("wall_seconds") is not None]
    tail = max(1, math.ceil(FINAL_SHARE * len(losses)))
    validation = first_number(last, ("mlm_loss", "loss")) if "mlm_loss" in last or "loss" in last else None
    return Summary(
        model=_text(run, "model"),
        optimizer=_text(run, "optimizer") or _DEFAULT_OPTIMIZERS.get(_text(run, "model") or ""),
        size=_text(run, "size"),
        parameters=_whole(run.environment.get("parameters")),
        steps=steps,
        planned_steps=_whole(run.recipe.get("steps")),
        tokens_seen=_tokens_seen(run, steps),
        train_loss=float(np.mean(losses[-tail:])) if len(losses) else None,
        validation_loss=validation,
        validation_step=last.get("step"),
        unigram_entropy=as_number(last["unigram_entropy"]) if "unigram_entropy" in last else None,
        wall_seconds=max(walls) if walls else None,
        tokens_per_second=float(np.median(speeds)) if len(speeds) else None,
        peak_memory_bytes=_largest(run, "peak_memory_bytes"),
        optimizer_state_bytes=_largest(run, "optimizer_state_bytes"),
        skipped_steps=_skipped_steps(run),
    )


def _text(run: Run, key: str) -> str | None:
    value = run.recipe.get(key)
    return None if value is None else str(value)


def _whole(value: object) -> int | None:
    return int(value) if isinstance(value, (int, float)) and abs(value) < COUNT_LIMIT else None


def _largest(run: Run, key: str) -> int | None:
    _, values = run.train_curve(key)
    values = values[np.isfinite(values)]
    return int(values.max()) if len(values) else None


def _tokens_seen(run: Run, steps: int) -> int | None:
    counted = [record["tokens_seen"] for record in run.train if record.get("tokens_seen") is not None]
    if counted:
        return int(max(counted))
    batch_size, length = _whole(run.recipe.get("batch_size")), _whole(run.recipe.get("seq_length"))
    if batch_size is None or length is None:
        return None
    # batch_size counts the sequences of one process and one micro-batch.
    micro_batches = _whole(run.recipe.get("accumulation")) or 1
    processes = _whole(run.environment.get("processes")) or 1
    return steps * batch_size * length * micro_batches * processes


def _skipped_steps(run: Run) -> int:
    last: dict[str, int] = {}
    for record in run.train:
        for group, values in record.get("groups", {}).items():
            if values.get("skipped_steps") is not None:
                last[group] = int(values["skipped_steps"])
    # A step is skipped as a whole, in every group at once: the groups count the same steps.
    return max(last.values(), default=0)
