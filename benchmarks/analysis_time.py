"""How long does the checker take for BERT-base and GPT-2, export included, and how much memory?

    python benchmarks/analysis_time.py                # writes benchmarks/results/analysis_time.json

Each analysis runs in a process of its own, on tensors without data ("meta"): nothing of the model is computed. Peak
memory is that of the process; what importing takes is named beside it.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from alternation import machine

MODELS = ("BertForMaskedLM", "GPT2LMHeadModel")
TARGET = 30.0


def measure(name: str) -> dict[str, float]:
    """One analysis, in this process."""
    import transformers

    from sibert.homogeneity import analyze

    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    kind = getattr(transformers, name)
    with torch.device("meta"):
        model = kind(kind.config_class()).eval()
        ids = torch.zeros(2, 128, dtype=torch.long)
    options = {"use_cache": False} if "GPT2" in name else {}
    start = time.perf_counter()
    report = analyze(model, (), {"input_ids": ids, **options}, numeric=False)
    analysed = time.perf_counter()
    symmetries = len(report.symmetries)
    return {
        "seconds": analysed - start,
        "seconds_of_basis": time.perf_counter() - analysed,
        "exact": len(report.space()),
        "up_to_epsilon": symmetries,
        "parameters": sum(p.numel() for p in model.parameters()),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "imported_bytes": imported,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--one", choices=MODELS, help="analyse this one here and print the result")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one)))
        return
    models = {}
    for name in MODELS:
        runs = [
            json.loads(
                subprocess.run([sys.executable, __file__, "--one", name], stdout=subprocess.PIPE, check=True).stdout
            )
            for _ in range(arguments.repeats)
        ]
        seconds = sorted(run["seconds"] for run in runs)
        models[name] = {**runs[0], "seconds": statistics.median(seconds), "all_seconds": seconds}
        one = models[name]
        print(
            f"{name}: {one['seconds']:.1f} s ({seconds[0]:.1f} to {seconds[-1]:.1f}), "
            f"{one['exact']} exact symmetries, {one['up_to_epsilon']} up to epsilon; "
            f"peak {one['peak_bytes'] / 2**20:.0f} MiB, {one['imported_bytes'] / 2**20:.0f} of them imports; "
            f"the parameters would take {4 * one['parameters'] / 2**20:.0f} MiB"
        )
    result = {
        "question": f"seconds of analyze(..., numeric=False) without data; target: under {TARGET:g} on 2 cores",
        "models": models,
        **machine(torch.device("cpu")),
    }
    path = Path(__file__).parent / "results" / "analysis_time.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
