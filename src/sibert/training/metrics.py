"""What a run records: losses by the step, the state of each scale-invariant group, speed and memory, as JSON lines."""

import json
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sibert.training.checkpoints import write_atomically

__all__ = ["LossWindow", "MetricsFile", "optimizer_state_bytes", "peak_memory_bytes"]


class LossWindow:
    """Sums of losses and tokens since the last record.

    The sums stay on the device, so that a step needs no synchronisation; reading them does. They are part of a
    checkpoint, so that a resumed run records the same numbers as one that was not stopped.
    """

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self.steps = 0
        self.tokens = 0
        self.earlier_seconds = 0.0
        self._started = self._opened = time.perf_counter()

    def add(self, losses: Mapping[str, torch.Tensor | None], tokens: int) -> None:
        """Add the losses of a micro-batch, each already divided by the targets of the global batch.

        Args:
            losses: Scalars by name; None is left out.
            tokens: Number of input tokens of this process.
        """
        for name, loss in losses.items():
            if loss is not None:
                value = loss.detach().double()
                self._sums[name] = self._sums[name] + value if name in self._sums else value
        self.tokens += tokens

    @property
    def wall_seconds(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return self.earlier_seconds + time.perf_counter() - self._started

    def read(self, processes: int, reduce: Any) -> dict[str, float]:
        """Close the window: means over its steps, and the speed.

        Args:
            processes: Number of processes.
            reduce: Function that averages a tensor over processes.

        Returns:
            Mean of each loss, nats, and `tokens_per_second` over all processes.
        """
        steps = max(self.steps, 1)
        means = {name: float(reduce(total)) / steps for name, total in sorted(self._sums.items())}
        now = time.perf_counter()
        means["tokens_per_second"] = self.tokens * processes / max(now - self._opened, 1e-9)
        self._sums, self.steps, self.tokens, self._opened = {}, 0, 0, now
        return means

    def pause(self, seconds: float) -> None:
        """Leave seconds spent on something else (evaluation, checkpoints) out of the speed."""
        self._opened += seconds

    def save(self, path: Path) -> None:
        """Write the open window; JSON keeps every float exactly."""
        state = {
            "sums": {name: float(total) for name, total in self._sums.items()},
            "steps": self.steps,
            "tokens": self.tokens,
            "wall_seconds": self.wall_seconds,
        }
        write_atomically(path, json.dumps(state) + "\n")

    def load(self, path: Path, device: torch.device) -> None:
        """Read an open window that `save` wrote."""
        state = json.loads(path.read_text(encoding="utf-8"))
        self._sums = {
            name: torch.tensor(total, dtype=torch.float64, device=device) for name, total in state["sums"].items()
        }
        self.steps, self.earlier_seconds = state["steps"], state["wall_seconds"]
        # The tokens of the time before the stop would be divided by the time after it.
        self.tokens = 0


class MetricsFile:
    """`metrics.jsonl` of a run: one record a line, appended and flushed."""

    def __init__(self, path: Path):
        self.path = path

    def append(self, record: Mapping[str, Any]) -> None:
        """Append a record."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def truncate_after(self, step: int) -> None:
        """Drop the records after a step, and a half-written last line: the resumed run writes them again.

        Args:
            step: Last step that is kept.
        """
        if self.path.exists():
            write_atomically(self.path, "".join(f"{json.dumps(record)}\n" for record in self._until(step)))

    def last_evaluation(self, step: int) -> int | None:
        """Find the last evaluation up to a step.

        Args:
            step: The step.

        Returns:
            The step of that evaluation; None if there is none.
        """
        return max((record["step"] for record in self._until(step) if record["kind"] == "eval"), default=None)

    def _until(self, step: int) -> list[dict[str, Any]]:
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else ():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                break
            if record["step"] <= step:
                found.append(record)
        return found


def optimizer_state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Count the bytes of all tensors an optimizer keeps for its parameters.

    Args:
        optimizer: Any torch optimizer.

    Returns:
        Bytes; 0 for ClippedSGD.
    """
    return sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )


def peak_memory_bytes() -> int:
    """Tell the largest memory in use so far: of the CUDA device if there is one, else of this process.

    Returns:
        Bytes.
    """
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
