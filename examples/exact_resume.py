"""Kill a pre-training half-way, resume it, and compare it with one that was not stopped: bit for bit.

    python examples/exact_resume.py --data SOME_FOLDER --steps 300

The second run is killed with SIGKILL, so it has no chance to say goodbye, at a moment that nothing in it determines.
"""

import argparse
import hashlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def start(*words: str) -> subprocess.Popen[bytes]:
    """Start `sibert pretrain`."""
    return subprocess.Popen([sys.executable, "-m", "sibert", "pretrain", *words])


def training_losses(run: Path) -> dict[int, float]:
    """Read the recorded losses by step. A line that is still being written has no end yet."""
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return {record["step"]: record["loss"] for record in records if record["kind"] == "train"}


def kill_after(process: subprocess.Popen[bytes], run: Path, step: int) -> None:
    """Kill a run soon after it has recorded a step."""
    try:
        while process.poll() is None:
            if (run / "metrics.jsonl").exists() and any(recorded >= step for recorded in training_losses(run)):
                break
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)  # does nothing to a process that has ended
        process.wait()


def main() -> None:
    """Run the comparison; ends with status 1 if a bit differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="files or folder; default: Python's standard library")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--smoke", action="store_true", help="a run of seconds, for CI")
    options = parser.parse_args()
    if options.smoke:
        options.size, options.steps, options.data = "nano", 40, str(Path(__file__).parents[1] / "docs")
    common = ["--steps", str(options.steps), "--size", options.size, "--dropout", "0.1", "--device", "cpu"]
    common += ["--save-every", str(max(1, options.steps // 8)), "--log-every", "1"]
    common += ["--data", options.data] if options.data else []
    common += ["--batch-size", "4", "--vocab-size", "500", "--seq-length", "32"] if options.smoke else []
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        if start(*common, "--out", str(whole)).wait():
            sys.exit("the uninterrupted run failed")
        kill_after(start(*common, "--out", str(killed)), killed, options.steps // 2)
        if (killed / "model.safetensors").exists():
            sys.exit("the run was over before it could be killed; give more --steps")
        if start("--resume", str(killed)).wait():
            sys.exit("the resumed run failed")
        digests = [hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest() for run in (whole, killed)]
        losses = [training_losses(run) for run in (whole, killed)]
    print(f"weights  {digests[0][:16]} {digests[1][:16]}  {'identical' if digests[0] == digests[1] else 'DIFFERENT'}")
    print(f"losses   {len(losses[0])} recorded  {'identical' if losses[0] == losses[1] else 'DIFFERENT'}")
    if digests[0] != digests[1] or losses[0] != losses[1]:
        sys.exit(1)


if __name__ == "__main__":
    main()
