"""The environment of a run: versions, device, threads; what a figure must be read with."""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from sibert import __version__

__all__ = ["environment"]

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "numpy")


def environment() -> dict[str, Any]:
    """Describe the machine and the installed versions.

    Returns:
        A flat, JSON-able record: versions, Python, system, processor, threads, device and its memory in bytes.
    """
    record: dict[str, Any] = {"sibert": __version__}
    for package in PACKAGES:
        try:
            record[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            record[package] = None
    record["python"] = platform.python_version()
    record["system"] = platform.platform()
    record["processor"] = _processor()
    record["cores"] = os.cpu_count()
    record["threads"] = torch.get_num_threads()
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        record |= {"device": properties.name, "devices": torch.cuda.device_count()}
        record |= {"device_memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
    else:
        record["device"] = "cpu"
    return record


def _processor() -> str:
    """Name the processor: Linux tells it in /proc/cpuinfo only."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
