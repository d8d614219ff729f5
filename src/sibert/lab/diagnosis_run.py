"""The diagnosis of a finished run of `sibert pretrain`: its model and data as they are, its groups as they were.

At the end of most runs the learning rate is close to 0, and says nothing about the run. So norms, angles and clipping
are those that the run has recorded while its learning rate was at least half of the largest, in the later half of that
time; time is counted in steps at the mean rate of it. Curvature is that of the model that is left, and is compared with
the learning rates of the last step; of a BERT under SGD, whose groups have no records but their rates, of that time.
"""

import math
import statistics
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sibert.data import EpochSampler, MaskedDataset, collate
from sibert.lab.diagnosis import BATCHES, Diagnosis, diagnose
from sibert.lab.diagnosis_advice import advice
from sibert.lab.diagnosis_groups import Rates, Standing
from sibert.models import (
    BertTwinForMaskedLM,
    BertTwinForPreTraining,
    ModernBertTwinForMaskedLM,
    SibertForMaskedLM,
    SibertForPreTraining,
)
from sibert.reporting import Run, load_run
from sibert.training import PretrainRecipe, RunDirectory
from sibert.training.pretrain import TWIN_WEIGHT_DECAY
from sibert.training.pretraining_corpus import pretraining_corpus

__all__ = ["diagnose_run"]

NEW_MASKS = 1_000_000
"""The epoch whose masks are used: one that training has not seen."""
SMALL = 200_000
"""Parameters up to which the curvature of each group is measured."""


def diagnose_run(run: Path | str, batches: int = BATCHES) -> Diagnosis:
    """Diagnose a finished run of pre-training, on batches of its own text.

    Args:
        run: Its folder.
        batches: How many are drawn, at least 16.

    Returns:
        The diagnosis.

    Raises:
        FileNotFoundError: If nothing is there.
        NotADirectoryError: If a file is there.
        ValueError: If it is no such folder, or not finished, or its text is gone.
    """
    run = Path(run)
    _check(run)
    records, recipe = load_run(run), PretrainRecipe.from_json(run / "recipe.json")
    if not records.train:
        raise ValueError(f"{run} has no record of training: it is no run that `sibert pretrain` has finished")
    device = torch.device("cuda" if torch.cuda.is_available() and recipe.device != "cpu" else "cpu")
    drawn = [{key: x.to(device) for key, x in batch.items()} for batch in islice(_batches(recipe, run), batches)]
    model = _model(recipe, run).to(device).train()
    window, steps = _window(records)
    rates, standings = _recorded(recipe, window)
    last = rates if isinstance(rates, Rates) else _recorded(recipe, [dict(records.train[-1].get("groups", {}))])[0]
    found = diagnose(
        model,
        lambda batch: model(**batch).loss,
        drawn,
        last,
        batch_size=recipe.batch_size,
        steps=steps,
        standings=standings,
        # of a schedule that ends near 0 each group's share of the line is near 0, too, and tells nothing
        each_group=recipe.schedule == "constant" and sum(p.numel() for p in model.parameters()) <= SMALL,
    )
    size = recipe.batch_size * recipe.accumulation * int(records.environment.get("processes", 1))
    found = replace(found, batch_size=size, noise=found.noise.at(size), findings=())
    if not isinstance(rates, Rates):
        found = replace(found, rates=next(iter(rates.values()), None))
    return replace(found, findings=advice(found))


def _check(run: Path) -> None:
    if run.is_dir() and not (run / "recipe.json").is_file():
        for name, command in (("finetune.json", "sibert finetune"), ("config.json", "save_pretrained")):
            if (run / name).is_file():
                raise ValueError(
                    f"{run} is a folder of {command}, which has no records of pre-training: give the folder that "
                    "`sibert pretrain --out` wrote; sibert.lab.diagnose takes any model, loss, batches and optimizer"
                )
    if (run / "recipe.json").is_file() and not RunDirectory(run).finished:
        raise ValueError(f"{run} is not finished; go on with: sibert pretrain --resume {run}")


def _model(recipe: PretrainRecipe, run: Path) -> Any:
    kind: Any = {
        ("sibert", False): SibertForMaskedLM,
        ("sibert", True): SibertForPreTraining,
        ("bert", False): BertTwinForMaskedLM,
        ("bert", True): BertTwinForPreTraining,
        ("modernbert", False): ModernBertTwinForMaskedLM,
    }[recipe.model, recipe.next_sentence]
    return kind.from_pretrained(run)


def _batches(recipe: PretrainRecipe, run: Path) -> Iterator[dict[str, Tensor]]:
    """Batches of the training text with new masks, without end."""
    tokenizer = RunDirectory(run).tokenizer
    corpus = pretraining_corpus(recipe, str(tokenizer if tokenizer.exists() else run))
    train = corpus.masked_train(mask_rate=recipe.mask_rate, whole_word=recipe.whole_word, seed=recipe.seed)
    batch: list[Any] = []
    for epoch in count(NEW_MASKS):
        train.set_epoch(epoch)
        for example in (train[key] for key in EpochSampler(train)) if isinstance(train, MaskedDataset) else train:
            batch.append(example)
            if len(batch) == recipe.batch_size:
                yield collate(batch)
                batch = []


def _window(run: Run) -> tuple[list[dict[str, dict[str, float]]], float]:
    """Groups as recorded at high learning rates, and the run's length in steps at their mean rate."""
    name = next(iter(run.invariant_groups or run.train[0].get("groups", {})), "")
    steps, rates = run.group_curve(name, "lr")
    if not (len(rates) and all(map(math.isfinite, rates))):
        raise ValueError(
            f"{run.path} has no learning rates of groups in its records, or some that are not finite: a diagnosis "
            "needs them; give a run whose metrics.jsonl `sibert pretrain` wrote"
        )
    highest = max(rates)
    high = [i for i, rate in enumerate(rates) if rate >= 0.5 * highest]
    later = high[len(high) // 2 :]
    mean = statistics.fmean(float(rates[i]) for i in later)
    lengths = [float(b - a) for a, b in zip([0.0, *steps[:-1]], steps, strict=True)]
    total = sum(length * float(rate) for length, rate in zip(lengths, rates, strict=True))
    at = {int(steps[i]) for i in later}
    return [dict(record["groups"]) for record in run.train if record["step"] in at], total / mean if mean else 0.0


def _recorded(
    recipe: PretrainRecipe, window: list[dict[str, dict[str, float]]]
) -> tuple[Rates | dict[str, Rates], dict[str, Standing]]:
    """Rates and standings of the groups."""
    name = recipe.optimizer_name
    if name != "clipped_sgd":
        decay = TWIN_WEIGHT_DECAY if recipe.weight_decay is None else recipe.weight_decay
        if name == "lamb":  # its balance is not known
            return {}, {}
        lr = statistics.fmean(one["lr"] for groups in window for one in groups.values() if "lr" in one)
        return Rates("adamw" if name == "adamw" else "sgd", lr, decay), {}
    rates, standings = {}, {}
    two_sided = recipe.two_sided
    if two_sided is None:
        two_sided = recipe.invariance != "joint" and recipe.clip is not None
    for group in {name: None for groups in window for name in groups}:
        seen = [groups[group] for groups in window if "param_norm" in groups.get(group, {})]
        if not any(one.get("eta") for one in seen):
            continue  # it has never been stepped

        def values(key: str, seen: list[dict[str, float]] = seen) -> list[float]:
            return [one[key] for one in seen if key in one]

        gamma, eta = statistics.fmean(values("intrinsic_lr")), statistics.fmean(values("eta"))
        rates[group] = one = Rates("sgd", eta, gamma / eta, clip=recipe.clip, two_sided=two_sided)
        norm, squares = statistics.median(values("param_norm")), [a * a for a in values("angular_update")]
        balances = values("equilibrium_norm")
        standing = Standing(
            norm,
            None,
            statistics.fmean(squares) ** 0.5,
            None,
            gamma,
            statistics.median(values("effective_lr")),
            None,
            None,
            None if recipe.clip is None else statistics.fmean(values("clipped_fraction")),
        )
        if gamma > 0.0 and balances:
            balance = replace(one.equilibrium(None, 1), norm=statistics.median(balances))
            standing = replace(
                standing,
                equilibrium_norm=balance.norm,
                equilibrium_angle=balance.angular_update,
                relaxation_steps=balance.relaxation_steps,
                steps_to_equilibrium=balance.steps_until(norm),
            )
        standings[group] = standing
    return rates, standings
