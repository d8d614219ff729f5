"""What an experiment of the lab is: a claim of theory, a measurement, and verdicts that can fail."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Experiment", "Scale", "Verdict", "Word"]

Scale = Literal["smoke", "default", "full"]
"""How much is run: to see that it works, to judge on two cores, or more than that."""
Word = Literal["agrees", "undecided", "DISAGREES"]
"""Of a number: in the allowed range with all of its interval, in it itself, or outside."""


@dataclass(frozen=True)
class Verdict:
    """A measured number beside the range that theory allows.

    Attributes:
        statement: What was measured, in a sentence without a verb of success.
        measured: The number.
        low: The smallest value that theory and tolerance allow.
        high: The largest.
        predicted: Theory's own number, where it has one.
        error: Half width of the 95 % confidence interval of a statistical measurement.
        interval: How that was found: which observations, which distribution.
    """

    statement: str
    measured: float
    low: float = -math.inf
    high: float = math.inf
    predicted: float | None = None
    error: float | None = None
    interval: str = ""

    @property
    def text(self) -> str:
        """The statement, and what its interval is."""
        return f"{self.statement} (95 %: {self.interval})" if self.interval else self.statement

    @property
    def word(self) -> Word:
        """Agrees if its whole interval is in the range, undecided if it alone is; never of a number that is none."""
        if not self.low <= self.measured <= self.high:
            return "DISAGREES"
        error = self.error or 0.0
        return "agrees" if self.low <= self.measured - error and self.measured + error <= self.high else "undecided"

    @classmethod
    def near(
        cls,
        statement: str,
        measured: float,
        predicted: float,
        relative: float = 0.0,
        absolute: float = 0.0,
        error: float | None = None,
        interval: str = "",
    ) -> "Verdict":
        """A number that theory predicts up to a tolerance.

        Args:
            statement: What was measured.
            measured: The number.
            predicted: Theory's.
            relative: Tolerance as a share of the prediction.
            absolute: Tolerance in the number's own unit; the larger of the two counts.
            error: Half width of its confidence interval.
            interval: How that was found.
        """
        width = max(relative * abs(predicted), absolute)
        return cls(statement, float(measured), predicted - width, predicted + width, float(predicted), error, interval)

    @classmethod
    def at_most(
        cls, statement: str, measured: float, bound: float, error: float | None = None, interval: str = ""
    ) -> "Verdict":
        """A number that theory bounds from above.

        Args:
            statement: What was measured.
            measured: The number.
            bound: The largest value allowed.
            error: Half width of its confidence interval.
            interval: How that was found.
        """
        return cls(statement, float(measured), high=float(bound), error=error, interval=interval)

    @classmethod
    def at_least(
        cls, statement: str, measured: float, bound: float, error: float | None = None, interval: str = ""
    ) -> "Verdict":
        """A number that theory bounds from below.

        Args:
            statement: What was measured.
            measured: The number.
            bound: The smallest value allowed.
            error: Half width of its confidence interval.
            interval: How that was found.
        """
        return cls(statement, float(measured), low=float(bound), error=error, interval=interval)


@dataclass(frozen=True)
class Experiment:
    """A claim and how it is tested.

    Attributes:
        module: Its file: a docstring with the claim, the formula and the source; `measure`, `judge` and `draw`.
        references: Keys of `references.REFERENCES`.
        minutes: About how long it takes on two cores, by scale.
        measure: Makes the data: numbers, texts, lists and dictionaries of them.
        judge: Compares data with theory.
        draw: Fills a figure from data.
    """

    module: ModuleType
    references: tuple[str, ...]
    minutes: dict[Scale, float]
    measure: Callable[[Scale], dict[str, Any]]
    judge: Callable[[dict[str, Any]], list[Verdict]]
    draw: Callable[[dict[str, Any], "Figure"], None]

    @classmethod
    def of(cls, module: ModuleType) -> "Experiment":
        """The experiment of a file.

        Args:
            module: With `REFERENCES`, `MINUTES`, `measure`, `judge` and `draw`.
        """
        return cls(module, module.REFERENCES, module.MINUTES, module.measure, module.judge, module.draw)

    @property
    def name(self) -> str:
        """As the command line has it."""
        return self.module.__name__.rpartition(".")[2].replace("_", "-")

    @property
    def title(self) -> str:
        """The claim in one line."""
        return (inspect.getdoc(self.module) or "").partition("\n")[0].rstrip(".")

    @property
    def text(self) -> str:
        """Claim, formula and source."""
        return (inspect.getdoc(self.module) or "").partition("\n")[2].strip()
