"""One training run of one contestant, from a description to a record.

python benchmarks/quality/trial.py '{"contestant": "bert-prenorm-adamw", "rate": 2e-3, "tokens": 65536}'
"""

import argparse
import dataclasses
import json
import math
import resource
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from contestants import CONTESTANTS, Sizes
from corpus import VOCABULARY, Corpus

from sibert.models import SibertForMaskedLM
from sibert.optim import schedule
from sibert.training import environment
from sibert.training.metrics import optimizer_state_bytes

EVALUATIONS = 16
INSTRUMENTS = (0.25, 0.5, 0.75)
"""Parts of the run after which rotation is measured, in one step."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Everything a run depends on but the machine.

    Attributes:
        contestant: A key of `CONTESTANTS`.
        rate: Its learning rate; for ClippedSGD the intrinsic learning rate.
        seed: Of initialisation, order of the text and masks.
        tokens: Budget of the run.
        tokens_per_step: Size of a batch.
        sizes: Of the model.
        sources: Names of the files of the training text; empty = the text that the library brings along.
        vocabulary: Tokens of the tokenizer that is trained on the text.
        options: Arguments of the contestant's model or optimizer, or of the run ("init_scale", "loss_scale",
            "warmup_share", "schedule", "dtype", "precision"), that differ from its own. "dtype" is that of everything;
            "precision" is as for `sibert pretrain`: "bf16-weights" computes in bfloat16 and keeps matrices in it.
    """

    contestant: str
    rate: float
    seed: int = 0
    tokens: int = 1 << 21
    tokens_per_step: int = 1 << 12
    sizes: Sizes = field(default_factory=Sizes)
    sources: tuple[str, ...] = ()
    vocabulary: int = VOCABULARY
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Trial":
        """Read a trial from plain data."""
        fields = dict(record)
        fields["sizes"] = Sizes(**fields.get("sizes", {}))
        fields["sources"] = tuple(fields.get("sources", ()))
        return cls(**fields)

    @property
    def key(self) -> str:
        """The same text for the same trial."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


def run_trial(trial: Trial, sources: Sequence[str] = (), device: str = "cpu") -> dict[str, Any]:
    """Train, and evaluate along the way.

    Args:
        trial: What to do.
        sources: Where the text lies.
        device: Where to train.

    Returns:
        The trial and what it measured. "loss" is of the whole validation set, None where training diverged; "curve" is
        of a quarter of it.
    """
    corpus = Corpus(sources, trial.vocabulary)
    options = dict(trial.options)
    init_scale, loss_scale = options.pop("init_scale", 1.0), options.pop("loss_scale", 1.0)
    dtype, precision = getattr(torch, options.pop("dtype", "float32")), options.pop("precision", "fp32")
    contestant = CONTESTANTS[trial.contestant]
    torch.manual_seed(trial.seed)
    model = contestant.model(corpus, trial.sizes, **contestant.take_model_options(options)).to(device)
    rescale(model, init_scale)
    model.to(dtype)
    if precision == "bf16-weights":
        for parameter in invariant_parameters(model):
            parameter.data = parameter.data.bfloat16()
    steps = trial.tokens // trial.tokens_per_step
    warmup = round(steps * options.pop("warmup_share", contestant.warmup_share))
    multiplier = schedule(options.pop("schedule", contestant.schedule), steps, warmup)
    optimizer = contestant.optimizer(model, trial.rate, **options)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, multiplier)

    def validate(every: int) -> float:
        with computing(device, precision):
            return evaluate(model, corpus, device, every)

    sequences = trial.tokens_per_step // corpus.length
    curve: list[tuple[int, float | None]] = []
    groups: dict[int, dict[str, Any]] = {}
    rotation: dict[int, dict[str, Any]] = {}
    watched = {round(part * steps) for part in INSTRUMENTS}
    train_losses, seconds = [], []
    began = time.perf_counter()
    model.train()
    for step in range(steps):
        batch = {name: tensor.to(device) for name, tensor in corpus.batch(trial.seed, step, sequences).items()}
        started = time.perf_counter()
        with computing(device, precision):
            loss = model(**batch).loss
        optimizer.zero_grad()
        (loss_scale * loss).backward()
        if contestant.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), contestant.max_grad_norm)
        before = copy_matrices(model) if step in watched else {}
        optimizer.step()
        train_losses.append(loss.item())  # waits for the device
        seconds.append(time.perf_counter() - started)
        if step in watched:
            rotation[step] = angles(before, copy_matrices(model))
            if hasattr(optimizer, "statistics"):  # means since the last time
                groups[step] = {one.name: group_record(one) for one in optimizer.statistics(reset=True)}
        scheduler.step()
        if (step + 1) % max(1, steps // EVALUATIONS) == 0 or step + 1 == steps:
            curve.append(((step + 1) * trial.tokens_per_step, number(validate(every=4))))
        if not math.isfinite(train_losses[-1]):
            curve.append(((step + 1) * trial.tokens_per_step, None))
            break
    final = validate(every=1)
    peak = (
        torch.cuda.max_memory_allocated()
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return {
        "trial": dataclasses.asdict(trial),
        "loss": number(final),
        "curve": curve,
        "unigram_entropy": corpus.unigram_entropy,
        "train_loss_of_the_last_tenth": number(statistics.fmean(train_losses[-max(1, steps // 10) :])),
        "seconds": time.perf_counter() - began,
        "median_seconds_per_step": statistics.median(seconds),
        "peak_bytes": peak,
        "optimizer_state_bytes": optimizer_state_bytes(optimizer),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "groups": groups,
        "rotation": rotation,
        "environment": environment(),
    }


def computing(device: str, precision: str) -> torch.autocast:
    """Where the model is evaluated: in bfloat16 if that is the precision."""
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-weights")


def invariant_parameters(model: torch.nn.Module) -> set[torch.nn.Parameter]:
    """The parameters to whose scale SIBERT claims to be invariant; of a BERT, the matrices of its encoder."""
    if isinstance(model, SibertForMaskedLM):
        return {p for group in model.scale_invariant_groups().values() for _, p in group.members}
    return {p for p in getattr(model, "base_model", model).parameters() if p.dim() > 1}


@torch.no_grad()
def rescale(model: torch.nn.Module, factor: float) -> None:
    """Multiply the parameters to whose scale SIBERT claims to be invariant, or their like in a BERT."""
    for parameter in invariant_parameters(model):
        parameter.mul_(factor)


@torch.no_grad()
def evaluate(model: torch.nn.Module, corpus: Corpus, device: str, every: int) -> float:
    """Masked-LM loss on the validation set, nats per target; `every` = 4: on a quarter of it, for curves."""
    model.eval()
    total, targets = 0.0, 0
    for batch in corpus.validation[::every]:
        count = int((batch["labels"] >= 0).sum())
        total += count * model(**{name: tensor.to(device) for name, tensor in batch.items()}).loss.item()
        targets += count
    model.train()
    return total / targets


def copy_matrices(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All matrices, in double precision: a small angle is lost in the rounding of single precision."""
    return {name: p.detach().to(torch.float64, copy=True) for name, p in model.named_parameters() if p.dim() == 2}


def angles(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> dict[str, list[float | None]]:
    """How far each matrix turned in one step, and the tenth, fiftieth and ninetieth percentile of its rows, radians.

    Rows of zeros, which have no direction, are left out: a table's row of padding.
    """

    def between(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x, y = (z / z.norm(dim=-1, keepdim=True) for z in (x, y))
        return 2.0 * torch.asin(((x - y).norm(dim=-1) / 2.0).clamp_max(1.0))

    levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    return {
        name: [
            number(float(f"{angle:.3g}"))
            for angle in (
                between(old.flatten(), after[name].flatten()).item(),
                *between(old, after[name]).cpu().nanquantile(levels).tolist(),
            )
        ]
        for name, old in before.items()
    }


def group_record(statistics: Any) -> dict[str, float | None]:
    """The instruments of one group: how fast it turns, and whether its norm is that of equilibrium."""
    chosen = ("intrinsic_lr", "angular_update", "param_norm", "equilibrium_norm", "clipped_fraction")
    values = {name: getattr(statistics, name) for name in chosen}
    return {name: number(float(f"{value:.5g}")) for name, value in values.items()}


def number(value: float) -> float | None:
    """None for what is not finite: JSON has no NaN."""
    return value if math.isfinite(value) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trial", type=json.loads)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sources", nargs="*", default=[], help="Files with the text that the trial names.")
    arguments = parser.parse_args()
    print(json.dumps(run_trial(Trial.of(arguments.trial), arguments.sources, arguments.device)))


if __name__ == "__main__":
    main()
