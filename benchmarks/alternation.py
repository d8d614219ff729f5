"""Time several things fairly on a machine that is shared: in turn, in one process, and while nothing else runs."""

import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

QUIET = 0.1
"""Cores that other processes may use while a round is timed."""


def synchronised_seconds(step: Callable[[], object], device: torch.device) -> float:
    """Time one call, with what it left running on the device."""
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


class OtherProcesses:
    """Measures how many cores all other processes together keep busy."""

    def __init__(self) -> None:
        self._own = psutil.Process()
        self._last = self._read()

    def _read(self) -> tuple[float, float, float]:
        times, own = psutil.cpu_times(), self._own.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        return time.perf_counter(), sum(times) - idle, own.user + own.system

    def cores_since_last_call(self) -> float:
        """Give the mean number of cores in use since this was last asked."""
        now, last = self._read(), self._last
        self._last = now
        return max(0.0, (now[1] - last[1]) - (now[2] - last[2])) / (now[0] - last[0])


def alternate(
    steps: dict[str, Callable], device: torch.device, rounds: int, patience: float
) -> tuple[dict[str, list[float]], bool]:
    """Time steps in turn, while the machine is quiet; when patience (seconds) is spent, also while it is not.

    The order is drawn anew for each turn: a step finds the caches as the one before it left them, and behind one that
    needs much memory the same code took a tenth longer.

    Returns:
        Seconds of each, and whether they are of quiet rounds only.
    """
    others, deadline = OtherProcesses(), time.monotonic() + patience
    quiet: dict[str, list[float]] = {name: [] for name in steps}
    every: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        synchronised_seconds(step, device)
    first, order = next(iter(steps)), random.Random(0)
    while len(every[first]) < rounds:
        waiting = time.monotonic() < deadline
        others.cores_since_last_call()
        time.sleep(0.2)
        if waiting and others.cores_since_last_call() > QUIET:
            continue
        # Four steps each: the clock of CPU time ticks every 10 ms, so shorter rounds could not be told to be quiet.
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(4):
            for name in order.sample(list(steps), len(steps)):
                seconds[name].append(synchronised_seconds(steps[name], device))
        calm = others.cores_since_last_call() < QUIET
        for name, values in seconds.items():
            quiet[name] += values if calm else []
            every[name] += values if calm or not waiting else []
    enough = len(quiet[first]) >= rounds // 2
    return (quiet if enough else every), enough


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and spread, in milliseconds."""
    lower, median, upper = statistics.quantiles(seconds, n=4)
    return {
        "median_ms": 1e3 * median,
        "lower_quartile_ms": 1e3 * lower,
        "upper_quartile_ms": 1e3 * upper,
        "mean_ms": 1e3 * statistics.mean(seconds),
        "min_ms": 1e3 * min(seconds),
    }


def processor() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def versions() -> dict[str, str]:
    """Of what a step runs through and is installed."""
    found = {}
    for name in ("torch", "transformers", "triton"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # its absence says that it took no part
            continue
    return found


def printed(*command: str) -> str | None:
    """What a command prints; None where it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def commit() -> str | None:
    """The short hash of the code that ran, with a plus if Python files differ from it; None without git."""
    here = ("git", "-C", str(Path(__file__).parent))
    found = printed(*here, "rev-parse", "--short", "HEAD")
    return f"{found}+" if found and printed(*here, "status", "--porcelain", "--", ":/*.py") else found


def machine(device: torch.device) -> dict[str, object]:
    """What a stored timing has to name: where it ran, with what, from which commit, and by which command."""
    found: dict[str, object] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "cores": psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        **versions(),
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        drivers = printed("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        found |= {"cuda": torch.version.cuda, "driver": drivers and drivers.splitlines()[0]}
    command = "python benchmarks/" + " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return {**found, "commit": commit(), "command": command}
