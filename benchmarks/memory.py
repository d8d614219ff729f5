"""How many bytes a parameter do weights, gradients and optimizer state need at the peak of a training step?

    python benchmarks/memory.py                 # BERT base; writes benchmarks/results/memory.json
    python benchmarks/memory.py --size large    # adds the large one to the same file; needs 6 GB
    python benchmarks/memory.py --smoke         # a toy size, all in one process, no file

Every contestant trains in a process of its own, one after the other, for a few steps on a small batch, so that
activations are small. Counted exactly are the bytes of all tensors that are alive: a dispatch mode sees every tensor
that an operation makes, and its storage tells when it is gone. A tensor is a gradient if autograd hands it to a
parameter, also while it waits for the other gradients of a tied one. `all_tensors` adds activations, their gradients
and the temporary tensors of a step. Ours count by their peak; BERT counts by what it holds when AdamW steps, 16 bytes,
and its transient gradients are left out, because under a dispatch mode autograd adds the two gradients of a tied table
out of place, which it would not do otherwise. Peak memory of the process is there as a check from outside; it includes
the libraries, kernels and the allocator. None of these figures depends on what else the machine does.

A gate: weights that the ledger counts have to be those of the model, byte for byte; the first loss is within 10 % of
log(vocabulary), all are finite; and gradient release, which changes no number, has to give the losses of the run
without it, bit for bit. Otherwise nothing is reported.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import torch
from alternation import machine
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sibert.optim import GradientRelease
from sibert.training import PretrainRecipe, build_model, build_training_optimizer

OURS: dict[str, Any] = {"model": "sibert", "invariance": "matrix"}
CONTESTANTS: dict[str, dict[str, Any]] = {
    "BERT + AdamW": {"model": "bert", "optimizer": "adamw"},
    "SIBERT + ClippedSGD": OURS,
    "with gradient release": {**OURS, "gradient_release": True},
    "with bfloat16 weights": {**OURS, "precision": "bf16-weights"},
    "with release and bfloat16 weights": {**OURS, "gradient_release": True, "precision": "bf16-weights"},
}
BASELINE = "BERT + AdamW"
TARGETS = {
    "base": {"SIBERT + ClippedSGD": 0.51, "with gradient release": 0.31, "with release and bfloat16 weights": 0.16},
    "large": {"SIBERT + ClippedSGD": 0.51, "with gradient release": 0.28, "with release and bfloat16 weights": 0.14},
}
VOCABULARY, TOKENS, PREDICTED, STEPS = 30522, 64, 10, 3


class Ledger(TorchDispatchMode):
    """Keeps the bytes of all live tensors by kind, and the peaks of their sums."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
        self.bytes = dict.fromkeys(("weights", "state", "gradients", "other"), 0)
        self.peaks: dict[str, dict[str, int]] = {"weights_gradients_state": {}, "all_tensors": {}}
        self._identities: dict[int, str] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # A sum of gradients that wait for each other is a gradient.
        adds = func.overloadpacket is torch.ops.aten.add
        waiting = adds and any(self._kind(tensor) == "gradients" for tensor in args if isinstance(tensor, torch.Tensor))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.note(tensor, "gradients" if waiting else None)
        return result

    def _kind(self, tensor: torch.Tensor) -> str | None:
        if tensor.layout == torch.sparse_coo:
            tensor = tensor._values()
        return self.kinds.get(tensor.untyped_storage())

    def note(self, tensor: torch.Tensor, kind: str | None = None) -> None:
        """Count a tensor's storage as of a kind; None leaves one that is known as it is."""
        if tensor.layout == torch.sparse_coo:
            self.note(tensor._indices(), kind)
            tensor = tensor._values()
        storage = tensor.untyped_storage()
        known = self.kinds.get(storage)
        if known is None:
            weakref.finalize(storage, self._forget, id(storage), storage.nbytes())
            self._identities[id(storage)] = kind or "other"
            self.bytes[kind or "other"] += storage.nbytes()
            self.kinds[storage] = kind or "other"
        elif kind is not None and known != kind:
            self.bytes[known] -= storage.nbytes()
            self.bytes[kind] += storage.nbytes()
            self.kinds[storage] = self._identities[id(storage)] = kind
        self._note_peaks()

    def _forget(self, identity: int, size: int) -> None:
        self.bytes[self._identities.pop(identity)] -= size

    def _note_peaks(self) -> None:
        for name, kinds in (("weights_gradients_state", list(self.bytes)[:3]), ("all_tensors", list(self.bytes))):
            if sum(self.bytes[kind] for kind in kinds) > sum(self.peaks[name].values()):
                self.peaks[name] = {kind: self.bytes[kind] for kind in kinds}


def watch_gradients(ledger: Ledger, loss: torch.Tensor) -> None:
    """Have the ledger told of every tensor that backward hands to a parameter, before it is added to others."""
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaves = [type(following).__name__ == "AccumulateGrad" for following, _ in node.next_functions]
        if any(leaves):

            def tell(gradients: Any, _: Any, leaves: list[bool] = leaves) -> None:
                for gradient, leaf in zip(gradients, leaves, strict=True):
                    if leaf and gradient is not None:
                        ledger.note(gradient, "gradients")

            node.register_hook(tell)
        waiting += [following for following, _ in node.next_functions]


def check_weights(counted: int, weights: list[torch.Tensor]) -> None:
    """Refuse a count of bytes that is not the sum over the tensors of a model."""
    held = sum(tensor.nbytes for tensor in weights)
    if counted != held:
        raise SystemExit(f"the ledger counts {counted} bytes of weights, the model has {held}; not reported")


def check_losses(losses: list[float]) -> None:
    """Refuse to report on a model that does not train."""
    level = math.log(VOCABULARY)
    if not all(map(math.isfinite, losses)) or not abs(losses[0] / level - 1.0) < 0.1:
        raise SystemExit(f"losses {losses}, expected {level:.2f} at first; not reported")


def check_release(found: dict[str, dict[str, Any]]) -> None:
    """Refuse to report a saving by gradient release that costs exactness."""
    for plain, released in (
        ("SIBERT + ClippedSGD", "with gradient release"),
        ("with bfloat16 weights", "with release and bfloat16 weights"),
    ):
        if found[plain]["losses"] != found[released]["losses"]:
            raise SystemExit(f"{released}: losses {found[released]['losses']}, not those of {plain}; not reported")


def measure(size: str, contestant: str) -> dict[str, Any]:
    recipe = PretrainRecipe(size=size, seq_length=TOKENS, steps=100, device="cpu", **CONTESTANTS[contestant])
    ledger = Ledger()
    model = build_model(recipe, VOCABULARY, 0).train()
    weights = [*model.parameters(), *model.buffers()]
    for tensor in weights:
        ledger.note(tensor, "weights")
    check_weights(ledger.bytes["weights"], weights)
    optimizer, _ = build_training_optimizer(recipe, model)
    if recipe.gradient_release:
        GradientRelease(optimizer)
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda p: None if p.grad is None else ledger.note(p.grad, "gradients")
        )
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(STEPS):
        ids = torch.randint(5, VOCABULARY, (1, TOKENS), generator=generator)
        positions = torch.randperm(TOKENS, generator=generator)[None, :PREDICTED]
        with ledger:
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision != "fp32"):
                loss = model(ids, labels=ids.gather(1, positions), masked_positions=positions).loss
            watch_gradients(ledger, loss)
            loss.backward()
            held = sum(ledger.bytes.values()) - ledger.bytes["other"]
            optimizer.step()
            optimizer.zero_grad()
        for entries in list(optimizer.state.values()):
            for value in entries.values():
                if isinstance(value, torch.Tensor):
                    ledger.note(value, "state")
        losses.append(loss.item())
    check_losses(losses)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "parameters": parameters,
        "bytes_per_parameter": sum(ledger.peaks["weights_gradients_state"].values()) / parameters,
        "bytes_per_parameter_at_step": held / parameters,
        "peak_bytes": ledger.peaks,
        "peak_resident_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "losses": losses,
    }


def measure_alone(size: str, contestant: str) -> dict[str, Any]:
    """In a process of its own."""
    command = [sys.executable, __file__, "--size", size, "--contestant", contestant]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(printed.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="base", choices=["nano", "mini", "base", "large"])
    parser.add_argument("--contestant", choices=list(CONTESTANTS), help="measure this one here and print it as JSON")
    parser.add_argument("--smoke", action="store_true", help="a toy size, all in one process, no file")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "memory.json")
    arguments = parser.parse_args()
    if arguments.contestant:
        print(json.dumps(measure(arguments.size, arguments.contestant)))
        return
    size = "nano" if arguments.smoke else arguments.size
    found: dict[str, dict[str, Any]] = {}
    for contestant in CONTESTANTS:
        found[contestant] = measure(size, contestant) if arguments.smoke else measure_alone(size, contestant)
        ours, baseline = found[contestant], found[BASELINE]
        if contestant == BASELINE:
            ours["bytes_per_parameter"] = ours["bytes_per_parameter_at_step"]
        ours["ratio_per_parameter"] = ours["bytes_per_parameter"] / baseline["bytes_per_parameter"]
        ours["ratio_of_resident_bytes"] = ours["peak_resident_bytes"] / baseline["peak_resident_bytes"]
        ours["target"] = TARGETS.get(size, {}).get(contestant)
        print(
            f"{contestant:24s} {ours['bytes_per_parameter']:6.2f} bytes a parameter, "
            f"{ours['ratio_per_parameter']:.3f}x (target {ours['target']}); "
            f"process {ours['peak_resident_bytes'] / 1e9:.2f} GB, {ours['ratio_of_resident_bytes']:.3f}x",
            flush=True,
        )
    check_release(found)
    if arguments.smoke:
        return
    result = json.loads(arguments.output.read_text()) if arguments.output.exists() else {"sizes": {}}
    result["question"] = "bytes of weights, gradients and optimizer state at the peak of a step, batch 1 x 64 tokens"
    result["sizes"][size] = {"contestants": found, **machine(torch.device("cpu"))}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
