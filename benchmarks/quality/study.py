"""The whole comparison as a list of trials, run side by side, each result stored as soon as it is there.

    python benchmarks/quality/study.py [PHASE ...] [--scale cpu] [--sources FILE ...] [--workers 2] [--device cpu]

Phases, in this order: `tune` (every contestant, eight rates, the short budget), `recipe` (five variations of schedule,
warm-up and the like for those that the headline compares), `final` (the long budget: finalists down to a rate that
beats both neighbours, and with more seeds there; the others at one rate), `batch` (finalists at other batch sizes,
four rates or more; at the largest the best BERT with AdamW and the matrix form at the long budget, too), `ablation`
(what each part of the matrix form is worth, three rates or more), `robustness` (to initialisation, scale of the loss
and more; where context is learnt, so at the scale "context": on the plateau of token frequencies rounding alone decides
when a run leaves it), `misjudged` (a learning rate that is wrong by a factor of 100, at fixed eta lambda). A phase
reads what earlier ones found.
Results are lines of results/quality/SCALE.jsonl; a trial that is there is not run again, so a study may be stopped and
continued at will.
"""

import argparse
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from contestants import CONTESTANTS, Sizes
from corpus import VOCABULARY
from trial import Trial, run_trial

ROOT = Path(__file__).parents[2]
OURS = ("sibert-joint", "sibert-matrix", "sibert-row")
ATTRIBUTION = (
    "bert-modern-polar",
    "sibert-matrix-muon",
    "sibert-matrix-momentum",
    "sibert-matrix-spectral-momentum",
)
"""Asked where trials are short: what of Muon's result is its momentum, what its architecture."""
ADAMW = ("bert-postnorm-adamw", "bert-prenorm-adamw", "bert-modern-adamw")
PLAIN: dict[str, Any] = {}
OF_ADAMW = [
    {"schedule": "linear"},
    {"warmup_share": 0.02},
    {"weight_decay": 0.01},
    {"weight_decay": 0.3},
    {"b2": 0.999},
]
OF_CLIPPED = [{"schedule": "linear"}, {"warmup_share": 0.05}, {"clip": 4.0}, {"table_rate": 0.3}, {"table_rate": 3.0}]
OF_SPECTRAL: list[dict[str, Any]] = [{"two_sided": True}, {"two_sided": True, "clip": 1.1}]
"""Steps that cannot be short, and such as turn a matrix by almost the same angle always: Muon's have one size."""
RECIPES: dict[str, list[dict[str, Any]]] = {
    **dict.fromkeys((*ADAMW, "bert-modern-muon"), OF_ADAMW),
    **dict.fromkeys(("sibert-matrix", "sibert-row", "sibert-matrix-one-sided"), OF_CLIPPED),
    **dict.fromkeys(("sibert-matrix-spectral", "sibert-matrix-spectral-momentum"), OF_SPECTRAL),
}
ABLATIONS: list[dict[str, Any]] = [
    {"one_group": True, "two_sided": True},
    {"one_group": True},
    {"table_rows": True},
    {"equal_rows": True},
    {"table_rate": 0.1},
    {"clip": None},
    {"clip": 1.1},
]
ROBUSTNESS: list[dict[str, Any]] = [
    # The outer ones are powers of two, 1e-3, 1e3, 1e-4 and 1e4 almost: they change no rounding, the inner ones do.
    *({"init_scale": c} for c in (2**-10, 1e-1, 1e1, 2**10)),
    *({"loss_scale": c} for c in (2**-14, 1e-2, 1e2, 2**14)),
    *({"lr_factor": c} for c in (1e-2, 1e2)),
    {"dtype": "bfloat16"},
    {"precision": "bf16-weights"},
    {"warmup_share": 0.0},
]
DEPTHS = (2, 12, 24)
PRELOAD = ["sibert.models", "sibert.training", "transformers.models.roberta_prelayernorm.modeling_roberta_prelayernorm"]
"""What takes long to import. (Python 3.11's fork server does not look in the script's folder, where `trial` is.)"""
CONFIRMED = 0.02
"""Nats by which a variation has to be better in a long run: rounding alone makes as much (LOGBOOK, 2026-11-25)."""
MISJUDGED_RATE = 4e-3
"""eta lambda of the phase `misjudged`, where the schedule is constant: a factor of 100 then costs ln(10) / 0.004 = 576
steps."""


@dataclass(frozen=True)
class Scale:
    """How large a study is.

    Attributes:
        sizes: Of the models.
        short: Tokens of a trial of the search.
        long: Tokens of a final run.
        tokens_per_step: Of search and final runs.
        other_batches: Tokens per step of the phase `batch`.
        seeds: Of the finalists' final runs.
        rates: How many of a contestant's rates are tried.
        variations: How many of each list of variations are tried; None = all.
        vocabulary: Tokens of the tokenizer.
        contestants: Who competes.
    """

    sizes: Sizes
    short: int
    long: int
    tokens_per_step: int
    other_batches: tuple[int, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    rates: int = 8
    variations: int | None = None
    vocabulary: int = VOCABULARY
    contestants: tuple[str, ...] = tuple(name for name in CONTESTANTS if name not in ATTRIBUTION)


MILLION = 1 << 20
# "cpu" and "gpu" are for Wikipedia or text like it; there, the budget of "cpu" is spent on token frequencies mostly.
# "context" is the demonstration's model and text: a small vocabulary and source text, where context is learnt at once.
# Its short budget is two thirds of the text, and the long one the same: more would be a second time round.
SCALES = {
    "smoke": Scale(Sizes(1, 32, 2, 64), 8192, 16384, 1024, (2048,), (0, 1), 2, 1),
    "cpu": Scale(Sizes(), 2 * MILLION, 8 * MILLION, 4096, (1024, 16384)),
    "context": Scale(
        Sizes(2, 128, 2, 512),
        2 * MILLION,
        2 * MILLION,
        2048,
        (1024, 16384),
        vocabulary=1024,
        contestants=(
            "bert-modern-adamw",
            "bert-modern-muon",
            "bert-sgd",
            *OURS,
            "sibert-matrix-adamw",
            "sibert-matrix-spectral",
            *ATTRIBUTION,
        ),
    ),
    "gpu": Scale(Sizes(6, 384, 6, 1536), 16 * MILLION, 100 * MILLION, 16384, (4096, 65536)),
}


def results(scale: str) -> Path:
    """Where the trials of a scale are kept; those of the smoke test are not worth keeping."""
    folder = ROOT / "runs" / "quality" if scale == "smoke" else ROOT / "benchmarks" / "results" / "quality"
    return folder / f"{scale}.jsonl"


class Study:
    """The trials of a scale and what is known of them.

    Args:
        name: A key of `SCALES`.
        sources: Training text.
        workers: Trials at once.
        device: Where they run.
    """

    def __init__(self, name: str, sources: Iterable[str], workers: int, device: str) -> None:
        self.scale, self.sources, self.workers, self.device = SCALES[name], tuple(sources), workers, device
        self.path = results(name)
        self.records = {Trial.of(record["trial"]).key: record for record in read(self.path)}

    def trial(self, contestant: str, rate: float, **fields: Any) -> Trial:
        """A trial of this study; the short budget where nothing else is said."""
        defaults = {"tokens": self.scale.short, "tokens_per_step": self.scale.tokens_per_step}
        names = tuple(Path(source).name for source in self.sources)
        defaults |= {"sizes": self.scale.sizes, "vocabulary": self.scale.vocabulary}
        return Trial(contestant=contestant, rate=rate, sources=names, **(defaults | fields))

    def run(self, trials: Iterable[Trial]) -> list[dict[str, Any]]:
        """Run those that have no result yet; give the records of all, in order."""
        trials = list({trial.key: trial for trial in trials}.values())
        missing = [trial for trial in trials if trial.key not in self.records]
        print(f"{len(trials)} trials, {len(missing)} to run", flush=True)
        # A process for each trial, for peak memory is a process's; forked from one that has imported everything.
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // self.workers))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        with ProcessPoolExecutor(self.workers, context, max_tasks_per_child=1) as pool:
            running = [pool.submit(run_trial, trial, self.sources, self.device) for trial in missing]
            failures = []
            for done in as_completed(running):
                if failure := done.exception():
                    failures.append(failure)
                else:
                    self._keep(done.result())
        if failures:
            raise RuntimeError(f"{len(failures)} of {len(missing)} trials failed; the first of them: {failures[0]!r}")
        return [self.records[trial.key] for trial in trials]

    def _keep(self, record: dict[str, Any]) -> None:
        trial = Trial.of(record["trial"])
        self.records[trial.key] = record
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
        loss = "diverged" if record["loss"] is None else f"{record['loss']:.4f}"
        print(f"{trial.contestant:22} {trial.rate:<8g} seed {trial.seed} {dict(trial.options)} {loss}", flush=True)

    def find(self, trial: Trial) -> dict[str, Any] | None:
        """The record of a trial, if it has been run."""
        return self.records.get(trial.key)

    def search(self, contestant: str, **fields: Any) -> dict[float, float]:
        """Loss by rate, of what has been run; at the short budget where nothing else is said."""
        known = {rate: self.find(self.trial(contestant, rate, **fields)) for rate in CONTESTANTS[contestant].rates}
        return {rate: finite(record) for rate, record in known.items() if record is not None}

    def best_rate(self, contestant: str, **fields: Any) -> float:
        """The rate with the lowest loss of a search."""
        losses = self.search(contestant, **fields)
        return min(losses, key=lambda rate: losses[rate])

    def rates(self, contestant: str) -> tuple[float, ...]:
        """The rates that this scale tries."""
        rates = CONTESTANTS[contestant].rates
        middle = (len(rates) - self.scale.rates) // 2
        return rates[middle : middle + self.scale.rates]

    def some(self, variations: Sequence[Any]) -> Sequence[Any]:
        """As many of the variations as this scale tries."""
        return variations[: self.scale.variations]

    def neighbours(self, contestant: str, rate: float, before: int = 1, after: int = 1) -> tuple[float, ...]:
        """Rates of the grid around one of them."""
        grid = CONTESTANTS[contestant].rates
        index = grid.index(rate)
        return grid[max(0, index - before) : index + after + 1]

    # Phases ----------------------------------------------------------------------------------------------------

    def tune(self) -> None:
        """Every contestant, all rates, one seed."""
        # By rate, not by contestant: what is stopped early has treated all alike.
        names = self.scale.contestants
        self.run(self.trial(name, self.rates(name)[i]) for i in self._inside_out() for name in names)

    def _inside_out(self) -> list[int]:
        return sorted(range(self.scale.rates), key=lambda i: abs(i - self.scale.rates // 2))

    def recipe(self) -> None:
        """Variations of the recipe at the best rate of the search."""
        self.run(
            self.trial(name, self.best_rate(name), options=options)
            for name, more in RECIPES.items()
            if name in self.scale.contestants
            for options in more
        )

    def best_options(self, contestant: str) -> dict[str, Any]:
        """The variation with the lowest loss at the short budget; often none.

        One seed finds it. Among those that have been run with more, their mean decides: luck is no recipe.
        """
        rate = self.best_rate(contestant)
        known = [
            (-len(losses), mean(losses), index, options)
            for index, options in enumerate([PLAIN, *RECIPES.get(contestant, [])])
            if (losses := self.losses_of_seeds(self.trial(contestant, rate, options=options)))
        ]
        return min(known)[-1]

    def losses_of_seeds(self, trial: Trial) -> list[float]:
        """Of the same trial with each seed, those that have been run."""
        return [finite(found) for seed in self.scale.seeds if (found := self.find(replace(trial, seed=seed)))]

    def best(self, contestant: str) -> float:
        """The lowest loss at the short budget, variations included."""
        fields = {"options": self.best_options(contestant)}
        return finite(self.records[self.trial(contestant, self.best_rate(contestant), **fields).key])

    @property
    def adamw(self) -> list[str]:
        """BERTs with AdamW that compete at this scale."""
        return [name for name in ADAMW if name in self.scale.contestants]

    def best_adamw(self) -> str:
        """The BERT with AdamW that is best in the search."""
        return min(self.adamw, key=self.best)

    def finalists(self) -> list[str]:
        """The better BERT with AdamW, the best other method that keeps state, and the three of ours."""
        others = [
            name
            for name in self.scale.contestants
            if name.startswith(("bert", "ngpt")) and name not in self.adamw and self.search(name)
        ]
        return [self.best_adamw(), *([min(others, key=self.best)] if others else []), *OURS]

    def final(self) -> None:
        """The long budget.

        A finalist goes along the grid from the best rate of the search to one that beats both neighbours. There the
        best variation of its recipe has to confirm itself against the plain one; with the better of the two it goes on
        to a rate that beats both neighbours, which is then run with the other seeds. The others are run at the best
        rate of the search.
        """
        finalists = self.finalists()

        def around() -> list[Trial]:
            return [trial for name in finalists for trial in self.around(name)]

        self._until_inside(around)
        self.run(self.long(name, self.final_rate(name), options=self.best_options(name)) for name in finalists)
        self._until_inside(around)
        self.run(
            self.long(name, self.final_rate(name), seed=seed) for seed in self.scale.seeds[1:] for name in finalists
        )
        # A run that ends early has its whole schedule, unlike the same share of a longer one.
        self.run(self.shortened(seed) for seed in self.scale.seeds)
        # The paper reports its gap after equal and after twice the steps.
        self.run([self.long("sibert-joint", self.final_rate("sibert-joint"), tokens=2 * self.scale.long)])
        self.run(self.long(name, self.best_rate(name)) for name in self.scale.contestants if name not in finalists)

    def around(self, contestant: str) -> list[Trial]:
        """The long trials at the best rate so far and at its neighbours."""
        return [self.long(contestant, rate) for rate in self.neighbours(contestant, self.final_rate(contestant))]

    def shortened(self, seed: int) -> Trial:
        """The matrix form with four fifths of the long budget."""
        steps = round(0.8 * self.scale.long / self.scale.tokens_per_step)
        tokens = steps * self.scale.tokens_per_step
        return self.long("sibert-matrix", self.final_rate("sibert-matrix"), tokens=tokens, seed=seed)

    def long(self, contestant: str, rate: float, **fields: Any) -> Trial:
        """A trial of the long budget with the recipe that is best there."""
        return self.trial(
            contestant, rate, **({"tokens": self.scale.long, "options": self.final_options(contestant)} | fields)
        )

    def final_options(self, contestant: str) -> dict[str, Any]:
        """The best variation of the recipe if it is clearly better than the plain one at the long budget; else that."""
        found = self.best_options(contestant)
        plain, varied = (
            min(self.search(contestant, tokens=self.scale.long, options=options).values(), default=float("inf"))
            for options in (PLAIN, found)
        )
        return found if varied < plain - CONFIRMED else PLAIN

    def final_rate(self, contestant: str) -> float:
        """The rate with the lowest loss at the long budget, seed 0; before there is any, that of the search."""
        fields = {"tokens": self.scale.long, "options": self.final_options(contestant)}
        losses = self.search(contestant, **fields) or {self.best_rate(contestant): 0.0}
        return min(losses, key=losses.__getitem__)

    def batch(self) -> None:
        """Four finalists at other batch sizes: four rates, and more until the best one is not at an end of them.

        The two whose order is claimed at every size have all seeds there, at the best rate. At the largest, where the
        short budget has few steps and seeds differ as much as neighbouring rates do, they are asked at the long budget
        as well, and have all seeds at the two best rates.
        """
        names = [name for name in self.finalists() if name != "sibert-row"]
        pairs = [(name, size) for size in self.scale.other_batches for name in names]
        self._until_inside(lambda: [trial for pair in pairs for trial in self.batch_trials(*pair)])
        claimed = (self.best_adamw(), "sibert-matrix")
        self._until_inside(lambda: [trial for name in claimed for trial in self.long_batch_trials(name)])
        self.run(
            trial
            for name in claimed
            for size, tokens in self.batches
            for trial in self.seeds_of_batch(name, size, tokens, self.best_options(name))
        )

    def seeds_of_batch(self, contestant: str, size: int, tokens: int, options: Mapping[str, Any]) -> list[Trial]:
        """A trial for each seed, at the best rate of a batch size and a budget; at the largest size at the two best."""
        fields = {"tokens_per_step": size, "tokens": tokens, "options": options}
        losses = self.search(contestant, **fields)
        count = 2 if size == self.largest_batch else 1
        rates = sorted(losses, key=losses.__getitem__)[:count]
        return [self.trial(contestant, rate, seed=seed, **fields) for rate in rates for seed in self.scale.seeds]

    def batch_trials(self, contestant: str, size: int) -> list[Trial]:
        """The best rate of the search and three lower ones, or one lower and two higher where the batch is larger."""
        fields = {"tokens_per_step": size, "options": self.best_options(contestant)}
        larger = size > self.scale.tokens_per_step
        rates = self.neighbours(contestant, self.best_rate(contestant), *((1, 2) if larger else (3, 0)))
        return self._with_neighbours(contestant, rates, **fields)

    def long_batch_trials(self, contestant: str) -> list[Trial]:
        """The largest batch at the long budget: the best rate of the short one, and those around the best so far."""
        fields = {"tokens_per_step": self.largest_batch, "options": self.best_options(contestant)}
        start = self.best_rate(contestant, **fields)
        return self._with_neighbours(contestant, [start], **fields, tokens=self.scale.long)

    @property
    def largest_batch(self) -> int:
        """Tokens a step."""
        return max(self.scale.other_batches)

    @property
    def batches(self) -> list[tuple[int, int]]:
        """Tokens a step and in all: the short budget at every size, and the long one at the largest."""
        sizes = sorted([self.scale.tokens_per_step, *self.scale.other_batches])
        batches = [*((size, self.scale.short) for size in sizes), (self.largest_batch, self.scale.long)]
        return list(dict.fromkeys(batches))  # one where the two budgets are the same

    def measured_batches(self) -> list[tuple[int, int]]:
        """Those of which there are trials of the matrix form."""
        recipes = (PLAIN, self.best_options("sibert-matrix"))
        return [
            (size, tokens)
            for size, tokens in self.batches
            if any(
                self.search("sibert-matrix", tokens_per_step=size, tokens=tokens, options=options)
                for options in recipes
            )
        ]

    def ablation(self) -> None:
        """Take one thing at a time away from the matrix form: three rates, and more until the best one is inside.

        What the claim rests on, that matrices turn alike, is taken away at the long budget, too.
        """
        self._until_inside(self.ablation_trials)
        name = "sibert-matrix"
        self.run(self.long(name, rate, options=ABLATIONS[0]) for rate in self.neighbours(name, self.final_rate(name)))

    def ablation_trials(self) -> list[Trial]:
        """The rates around the best one of the search, and those around the best one of each ablation so far."""
        name = "sibert-matrix"
        rates = self.neighbours(name, self.best_rate(name))
        return [
            trial for options in self.some(ABLATIONS) for trial in self._with_neighbours(name, rates, options=options)
        ]

    def _with_neighbours(self, contestant: str, rates: Sequence[float], **fields: Any) -> list[Trial]:
        """Trials at the given rates and around the best one so far."""
        if losses := self.search(contestant, **fields):
            rates = [*rates, *self.neighbours(contestant, min(losses, key=losses.__getitem__))]
        return [self.trial(contestant, rate, **fields) for rate in rates]

    def _until_inside(self, trials: Callable[[], list[Trial]]) -> None:
        """Run trials as long as what they find asks for more: until the best rate has both its neighbours."""
        while missing := [trial for trial in trials() if trial.key not in self.records]:
            self.run(missing)

    def robust(self) -> dict[str, Trial]:
        """The runs that `robustness` varies: the best ones of the search."""
        return {name: self.trial(name, self.best_rate(name)) for name in (*OURS, self.best_adamw())}

    def robustness(self) -> None:
        """Initialisation, loss scale, learning rate, bfloat16, warm-up, depth; one setting for all of a contestant."""
        trials = []
        for name, base in self.robust().items():
            applies = [
                options for options in ROBUSTNESS if CONTESTANTS[name].warmup_share or "warmup_share" not in options
            ]
            trials += [replace(base, options=options) for options in [PLAIN, *self.some(applies)]]
            trials += [replace(base, sizes=replace(base.sizes, num_hidden_layers=depth)) for depth in self.some(DEPTHS)]
        self.run(trials)

    def misjudged(self) -> None:
        """A learning rate that is wrong by a factor at fixed eta lambda, and the same for AdamW and plain SGD."""
        self.run(trial for trials in self.misjudged_trials() for trial in trials)

    def misjudged_trials(self) -> list[list[Trial]]:
        """For each contestant the right rate and the wrong ones."""
        fields: dict[str, Any] = {"tokens_per_step": min(self.scale.other_batches), "tokens": self.scale.short}
        trunk: list[dict[str, Any]] = [PLAIN, {"trunk_lr_factor": 1e2}, {"trunk_lr_factor": 1e-2}]
        whole: list[dict[str, Any]] = [PLAIN, {"lr_factor": 1e2}, {"lr_factor": 1e-2}]
        variations = {"sibert-joint": trunk, "sibert-matrix-one-sided": [*trunk, whole[1]], "sibert-matrix": trunk}
        variations |= {self.best_adamw(): whole, "bert-sgd": whole}
        return [
            [
                self.trial(
                    name,
                    MISJUDGED_RATE if name.startswith("sibert") else self.best_rate(name),
                    options={"schedule": "constant", **options},
                    **fields,
                )
                for options in [several[0], *self.some(several[1:])]
            ]
            for name, several in variations.items()
        ]


def finite(record: Mapping[str, Any]) -> float:
    """The loss; infinite where training diverged."""
    return float("inf") if record["loss"] is None else float(record["loss"])


def read(path: Path) -> list[dict[str, Any]]:
    """All records of a file of lines."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


PHASES = ("tune", "recipe", "final", "batch", "ablation", "robustness", "misjudged")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phases", nargs="*", metavar="PHASE", help=", ".join(PHASES))
    parser.add_argument("--scale", choices=tuple(SCALES), default="cpu")
    parser.add_argument("--sources", nargs="*", default=[])
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if unknown := sorted(set(options.phases) - set(PHASES)):
        parser.error(f"no such phase: {', '.join(unknown)}; choose from {', '.join(PHASES)}")
    if absent := [source for source in options.sources if not Path(source).is_file()]:
        parser.error(f"--sources names text files; there is none at {', '.join(absent)}")
    study = Study(options.scale, options.sources, options.workers, options.device)
    for phase in options.phases or PHASES:
        print(f"== {phase}", flush=True)
        getattr(study, phase)()


if __name__ == "__main__":
    main()
