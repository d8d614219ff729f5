"""A fine-tuned model as a graph: torch.export, ONNX, and ONNX with 8-bit weights, each checked against the model."""

import importlib.util
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sibert.evaluation.predictor import Predictor

__all__ = ["FORMATS", "Exported", "GraphModel", "export_model"]

FORMATS = {"torch": "model.pt2", "onnx": "model.onnx", "int8": "model.int8.onnx"}
"""Name of a format -> file."""
OUTPUTS = {"qa": ("start_logits", "end_logits"), "embedding": ("last_hidden_state",)}
LARGEST_DIFFERENCE = 1e-3
"""Of an output, in units of the largest one; rounding stays far below."""


@dataclass(frozen=True)
class Exported:
    """A file and how it was checked.

    Attributes:
        file: Where it is.
        bytes: Its size.
        difference: Largest difference of an output from the model's, in units of the largest output, over batches of
            other sizes and lengths than the exported one.
    """

    file: Path
    bytes: int
    difference: float


class GraphModel(nn.Module):
    """An exported file that a `Predictor` can use in place of its model.

    Args:
        file: .onnx or .pt2.
        names: Of the outputs.
    """

    def __init__(self, file: Path, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)  # tells where inputs belong
        if file.suffix == ".onnx":
            import onnxruntime

            session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
            self._run: Any = lambda inputs: session.run(None, {name: t.numpy() for name, t in inputs.items()})
        else:
            program = torch.export.load(str(file)).module()
            self._run = lambda inputs: program(**inputs)

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Outputs by name."""
        return {name: torch.as_tensor(out) for name, out in zip(self.names, self._run(inputs), strict=True)}


class _Outputs(nn.Module):
    """The model with tensors for outputs."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        found = self.model(input_ids=input_ids, attention_mask=attention_mask, **more)
        return tuple(found[name] for name in self.names)


def output_names(kind: str) -> tuple[str, ...]:
    """Names of the outputs that a task needs.

    Args:
        kind: Of the task.
    """
    return OUTPUTS.get(kind, ("logits",))


def export_model(predictor: Predictor, folder: Path, formats: Sequence[str] = tuple(FORMATS)) -> dict[str, Exported]:
    """Write a fine-tuned model as graphs with any batch size and length.

    Args:
        predictor: A fine-tuned run, on the CPU.
        folder: New; it also gets the tokenizer.
        formats: Keys of `FORMATS`.

    Returns:
        By format.

    Raises:
        ValueError: If the folder exists, a format is unknown, a library is missing, or a graph computes something
            else; nothing is written then.
    """
    unknown = sorted(set(formats) - set(FORMATS))
    if unknown or not formats:
        raise ValueError(f"formats are {', '.join(FORMATS)}, got {', '.join(unknown) or 'none'}")
    if folder.exists():
        raise ValueError(f"{folder} exists: give a new folder")
    needed = {"onnx", "onnxruntime", "onnxscript"} if {"onnx", "int8"} & set(formats) else set()
    if missing := sorted(name for name in needed if importlib.util.find_spec(name) is None):
        raise ValueError(f"ONNX needs {', '.join(missing)}: pip install 'sibert[export]'")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        found = _export(predictor, staging, formats)
        predictor.tokenization.tokenizer.save_pretrained(staging)
        staging.chmod(0o755)
        os.replace(staging, folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return {name: Exported(folder / one.file.name, one.bytes, one.difference) for name, one in found.items()}


def _export(predictor: Predictor, folder: Path, formats: Sequence[str]) -> dict[str, Exported]:
    names = output_names(predictor.task.kind)
    model = _Outputs(predictor.model, names).eval()
    with _quiet(), torch.no_grad():
        inputs = _inputs(predictor, 2, 8)
        batch = torch.export.Dim("batch", min=1, max=1 << 16)
        length = torch.export.Dim("length", min=2, max=predictor.tokenization.length)
        shapes = {name: {0: batch, 1: length} for name in inputs}
        program = torch.export.export(model, (), inputs, dynamic_shapes=shapes, strict=False)
        if "torch" in formats:
            torch.export.save(program, str(folder / FORMATS["torch"]))
        if {"onnx", "int8"} & set(formats):
            decompositions = torch.export.default_decompositions()
            decompositions[torch.ops.aten.frexp.Tensor] = _frexp
            # With dynamic shapes given again, the axes keep their names.
            onnx = torch.onnx.export(
                program.run_decompositions(decompositions),
                (),
                kwargs=inputs,
                dynamic_shapes=shapes,
                output_names=list(names),
                verbose=False,
            )
            assert onnx is not None
            onnx.save(str(folder / FORMATS["onnx"]))
        if "int8" in formats:
            _quantize(folder / FORMATS["onnx"], folder / FORMATS["int8"])
            if "onnx" not in formats:
                (folder / FORMATS["onnx"]).unlink()
        found = {}
        for name in formats:
            file = folder / FORMATS[name]
            difference = _difference(predictor, model, GraphModel(file, names))
            if name != "int8" and not difference < LARGEST_DIFFERENCE:
                raise ValueError(f"the exported graph ({name}) computes something else, by {difference:.1e}")
            found[name] = Exported(file, file.stat().st_size, difference)
    return found


def _frexp(x: Tensor) -> tuple[Tensor, Tensor]:
    """ONNX has no frexp. Normalisation divides by a power of two near the largest entry; which one, does not matter."""
    exponent = torch.where(x == 0, 0.0, torch.floor(torch.log2(x.abs())) + 1)
    return x * torch.exp2(-exponent), exponent.to(torch.int32)


def _inputs(predictor: Predictor, rows: int, length: int) -> dict[str, Tensor]:
    reading = predictor.tokenization
    generator = torch.Generator().manual_seed(rows * 1000 + length)
    ids = torch.randint(0, len(reading.tokenizer), (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, length // 2 :] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if reading.segments:
        inputs["token_type_ids"] = torch.zeros_like(ids)
    return inputs


def _difference(predictor: Predictor, model: nn.Module, graph: GraphModel) -> float:
    largest = 0.0
    for rows, length in ((1, 2), (5, predictor.tokenization.length), (3, 7)):
        inputs = _inputs(predictor, rows, length)
        mask = inputs["attention_mask"].bool()
        for expected, found in zip(model(**inputs), graph(**inputs).values(), strict=True):
            if expected.shape[:2] == mask.shape:  # what stands at padding is nobody's concern
                expected, found = expected[mask], found[mask]
            largest = max(largest, float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30)))
    return largest


def _quantize(source: Path, target: Path) -> None:
    """8-bit weights, and activations quantised as they come; normalised weights are computed beforehand."""
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    folded = target.with_suffix(".folded")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    try:
        quantize_dynamic(str(folded), str(target), weight_type=QuantType.QInt8, per_channel=True)
    finally:
        folded.unlink(missing_ok=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters talk about their own insides."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
