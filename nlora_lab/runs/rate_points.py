"""The recorded runs at one learning rate: final loss, accuracy and loss curve, as median and range over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

from nlora_lab.runs.run import Run

WINDOW = 10  # steps in the running mean of a curve
POINTS = 125  # of a curve as it is drawn


@dataclass(frozen=True)
class Spread:
    """Median and range of one number over seeds.

    Attributes:
        middle: the median. All three are NaN without any number.
        low: the smallest number.
        high: the largest number.
    """

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Compute the spread of numbers.

        Args:
            values: the numbers. Infinity may stand for a run that diverged. NaN is left out.

        Returns:
            The spread.
        """
        known = sorted(v for v in values if not math.isnan(v))
        return cls(median(known), known[0], known[-1]) if known else cls(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class RatePoint:
    """The recorded runs of one method at one learning rate.

    Attributes:
        lr: the rate.
        loss: the final loss over seeds, infinite for a run that diverged.
        accuracy: the test accuracy over seeds, 0 for a run that diverged.
        test_loss: the loss of the right answers to the test items over seeds, in nats per token, infinite for a run
            that diverged. NaN where it was not measured.
        runs: the runs.
    """

    lr: float
    loss: Spread
    accuracy: Spread
    test_loss: Spread
    runs: tuple[Run, ...] = field(repr=False)

    @property
    def seeds(self) -> int:
        """The number of different seeds. Several machines may have made the same run."""
        return len({run.config.seed for run in self.runs})

    @property
    def diverged(self) -> int:
        """The number of runs that diverged."""
        return sum(run.diverged for run in self.runs)


@dataclass(frozen=True)
class LossCurve:
    """The running mean of the training loss over the steps, as median and range over seeds.

    Attributes:
        steps: the steps, from 1.
        middle: the median at each step.
        low: the smallest value at each step.
        high: the largest value at each step.
    """

    steps: tuple[int, ...]
    middle: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def rate_point(lr: float, runs: Sequence[Run]) -> RatePoint:
    """Summarise the runs at one learning rate. Several runs of one seed count once, with their mean."""
    losses = by_seed(runs, lambda run: math.inf if run.diverged else run.final_loss)
    accuracies = by_seed(runs, lambda run: 0.0 if run.diverged else run.accuracy)
    answers = by_seed(runs, lambda run: math.inf if run.diverged else run.metrics.get("test_loss", math.nan))
    measured = answers.values() if any(map(math.isfinite, answers.values())) else ()
    return RatePoint(
        lr, Spread.of(losses.values()), Spread.of(accuracies.values()), Spread.of(measured), tuple(runs)
    )  # fmt: skip


def loss_curve(runs: Sequence[Run]) -> LossCurve:
    """Compute the curve of the runs at one learning rate, thinned to about 125 steps."""
    smooth = [running_mean([s.loss for s in run.steps if math.isfinite(s.loss)]) for run in runs]
    longest = max(map(len, smooth), default=0)
    drawn = range(0, longest, max(1, -(-longest // POINTS)))
    steps = sorted({*drawn, longest - 1}) if longest else []
    spreads = [Spread.of(curve[i] for curve in smooth if i < len(curve)) for i in steps]
    middle, low, high = (tuple(getattr(s, name) for s in spreads) for name in ("middle", "low", "high"))
    return LossCurve(tuple(i + 1 for i in steps), middle, low, high)


def running_mean(values: Sequence[float], window: int = WINDOW) -> list[float]:
    """Return the mean of each value and the values before it.

    Args:
        values: the values.
        window: how many values each mean is of. The first means are of fewer.

    Returns:
        One mean per value.
    """
    means, total = [], 0.0
    for i, value in enumerate(values):
        total += value - (values[i - window] if i >= window else 0.0)
        means.append(total / min(i + 1, window))
    return means


def by_seed(runs: Iterable[Run], number: Callable[[Run], float]) -> dict[int, float]:
    """Return one number per seed.

    Args:
        runs: the runs. Several machines, or several people, may have made the same run: their mean is taken.
        number: the number of one run. NaN is left out.

    Returns:
        The numbers by seed, in ascending order of the seeds.
    """
    values: dict[int, list[float]] = {}
    for run in runs:
        value = number(run)
        if not math.isnan(value):
            values.setdefault(run.config.seed, []).append(value)
    return {seed: fmean(of_seed) for seed, of_seed in sorted(values.items())}


def validation_loss(point: RatePoint) -> float:
    """Return the median validation loss over the seeds of a point, in nats per target token.

    Args:
        point: the point.

    Returns:
        The median. A run that diverged, or whose loss was not measured, counts as infinite.
    """
    return median(by_seed(point.runs, _validation_loss).values())


def _validation_loss(run: Run) -> float:
    value = run.metrics.get("validation_loss", math.inf)
    return math.inf if run.diverged or math.isnan(value) else value
