"""Recorded runs, asked as the lab asks: this task, method, rank and start of N, at this rate and at every rate."""

from __future__ import annotations



import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, TypeVar

from nlora_lab.runs.config import ADDED_FIELDS
from nlora_lab.core.validation import check_choice
from nlora_lab.methods.table import METHODS, get_method
from nlora_lab.runs.run import Run
from nlora_lab.tasks.generated import DEFAULT_DIFFICULTY

if TYPE_CHECKING:
    import pandas as pd

NEAR_RATE = 1.6  # a slider's rate stands for a recorded one up to this factor away: half a step of 1, 2, 5
NEAR_RANK = 1.5
WINDOW = 10  # steps in a curve's running mean
POINTS = 125  # of a curve as it is drawn
Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Spread:
    """Median and range of one number over seeds; all NaN where there is none."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of numbers among which infinity may stand for a run that diverged, and NaN for no number."""
        known = sorted(v for v in values if not math.isnan(v))
        return cls(median(known), known[0], known[-1]) if known else cls(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class RatePoint:
    """The runs of one method at one rate: its final loss and accuracy over seeds, infinite and 0 where one diverged."""

    lr: float
    loss: Spread
    accuracy: Spread
    runs: tuple[Run, ...] = field(repr=False)

    @property
    def seeds(self) -> int:
        """How many different ones: several machines may have made the same run."""
        return len({run.config.seed for run in self.runs})

    @property
    def diverged(self) -> int:
        """How many of the runs did."""
        return sum(run.diverged for run in self.runs)


@dataclass(frozen=True)
class LossCurve:
    """The running mean of the training loss, median and range over seeds, at ``steps`` (from 1)."""

    steps: tuple[int, ...]
    middle: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


class RecordedRuns:
    """Finished runs, indexed by what the lab's controls ask for."""

    def __init__(self, runs: Iterable[Run], others: Iterable[str] = ()) -> None:
        #: the models of runs that were there too and are not looked at
        self.others = tuple(others)
        self._cells: dict[tuple[str, str], dict[tuple[int, str | None], dict[float, list[Run]]]] = {}
        given = list(runs)
        #: how many runs failed, for want of memory or because they were killed: no measurement, so left out
        self.failed = sum(bool(run.error) for run in given)
        kept = [run for run in given if not run.error and run.config.method in METHODS]
        usual = _usual_shapes(kept)
        #: how many runs are left out because their length, batch size or the like is not that of most of their task
        self.left_out = sum(_shape(run) != usual[run.config.task] for run in kept)
        for run in (run for run in kept if _shape(run) == usual[run.config.task]):
            c = run.config
            of_method = self._cells.setdefault((c.task, c.method), {})
            cell = of_method.setdefault((c.rank, _plain_init(c.method, c.init)), {})
            cell.setdefault(c.lr, []).append(run)
        self._curves: dict[tuple[int, ...], LossCurve] = {}
        self._valleys: dict[tuple[str, str, int, str | None], list[RatePoint]] = {}

    def __len__(self) -> int:
        return sum(len(runs) for ranks in self._cells.values() for rates in ranks.values() for runs in rates.values())

    def ranks(self, task: str, method: str, init: str | None = None) -> list[int]:
        """The ranks that were recorded."""
        init = _plain_init(method, init)
        return sorted(rank for rank, start in self._cells.get((task, method), {}) if start == init)

    def nearest_rank(self, task: str, method: str, rank: int, init: str | None = None) -> int | None:
        """The recorded rank that ``rank`` stands for, or ``None``; any for full fine-tuning, which has none."""
        known = self.ranks(task, method, init)
        if get_method(method).build is None:
            return known[0] if known else None
        return _nearest(known, rank, NEAR_RANK)

    def valley(self, task: str, method: str, rank: int, init: str | None = None) -> list[RatePoint]:
        """A point for every recorded rate, in their order; empty if there is none near this rank."""
        init = _plain_init(method, init)
        near = self.nearest_rank(task, method, rank, init)
        if near is None:
            return []
        key = (task, method, near, init)
        if key not in self._valleys:
            rates = self._cells[task, method][near, init]
            self._valleys[key] = [_point(lr, rates[lr]) for lr in sorted(rates)]
        return self._valleys[key]

    def at(self, task: str, method: str, rank: int, lr: float, init: str | None = None) -> RatePoint | None:
        """The runs at the recorded rate that ``lr`` stands for, or ``None`` if none is near."""
        points = {point.lr: point for point in self.valley(task, method, rank, init)}
        near = _nearest(list(points), lr, NEAR_RATE)
        return None if near is None else points[near]

    def best(self, task: str, method: str, rank: int, init: str | None = None) -> RatePoint | None:
        """The point of lowest median *validation* loss: the rate this method would be given by a fair comparison."""
        known = [p for p in self.valley(task, method, rank, init) if math.isfinite(validation_loss(p))]
        return min(known, key=validation_loss, default=None)

    def numbers(self, task: str, method: str, rank: int, lr: float, init: str | None = None) -> dict[str, Any]:
        """What was recorded at this rate, and at the method's best one, as a row of numbers; NaN where nothing was."""
        point, best = self.at(task, method, rank, lr, init), self.best(task, method, rank, init)
        return {
            "method": method,
            "parameters": point.runs[0].trainable if point else math.nan,
            "rate": _what(point, "lr"),
            "final_loss": _what(point, "loss"),
            "accuracy": _what(point, "accuracy"),
            "lowest": point.accuracy.low if point else math.nan,
            "highest": point.accuracy.high if point else math.nan,
            "seeds": point.seeds if point else 0,
            "own_rate": _what(best, "lr"),
            "accuracy_there": _what(best, "accuracy"),
        }

    def by_rank(self, task: str, methods: Iterable[str], what: str = "accuracy") -> pd.DataFrame:
        """One row a recorded rank, one column a method, each at its own best rate there (see :meth:`best`).

        ``what``: "accuracy" or "loss" (medians over seeds), or "lr", the rate itself; NaN where there is nothing.
        """
        import pandas as pd

        check_choice("what", what, ("accuracy", "loss", "lr"))
        names = [methods] if isinstance(methods, str) else list(methods)
        for name in names:
            check_choice("method", name, METHODS)
        ranks = sorted({rank for name in names for rank in self.ranks(task, name)})
        columns = {name: [_what(self._exactly(task, name, r), what) for r in ranks] for name in names}
        return pd.DataFrame(columns, index=pd.Index(ranks, name="rank"))

    def _exactly(self, task: str, method: str, rank: int) -> RatePoint | None:
        return self.best(task, method, rank) if rank in self.ranks(task, method) else None

    def by_init(self, task: str, method: str, rank: int, what: str = "loss") -> pd.DataFrame:
        """One row a start of N, one column a recorded rate: median "loss" or "accuracy" over seeds, NaN where none."""
        import pandas as pd

        check_choice("what", what, ("accuracy", "loss"))
        check_choice("method", method, METHODS)
        inits = get_method(method).inits
        rows = {i: {p.lr: _what(p, what) for p in self.valley(task, method, rank, i)} for i in inits}
        return pd.DataFrame.from_dict(rows, orient="index", dtype=float).sort_index(axis=1)

    def by_rank_and_rate(self, task: str, method: str, what: str = "loss") -> pd.DataFrame:
        """One row a recorded rank, one column a rate: median "loss" or "accuracy" over seeds, NaN where none."""
        import pandas as pd

        check_choice("what", what, ("accuracy", "loss"))
        rows = {r: {p.lr: _what(p, what) for p in self.valley(task, method, r)} for r in self.ranks(task, method)}
        return pd.DataFrame.from_dict(rows, orient="index", dtype=float).sort_index().sort_index(axis=1)

    def curve(self, point: RatePoint) -> LossCurve:
        """The loss over the steps of a point's runs."""
        key = tuple(map(id, point.runs))  # they are kept here, so no other run can get their numbers
        if key not in self._curves:
            self._curves[key] = _curve(point.runs)
        return self._curves[key]


def _shape(run: Run) -> tuple[Any, ...]:
    """What two runs must share to stand on one curve, beside what the lab's controls ask for."""
    c = run.config
    scale = 1.0 if c.alpha is None else c.alpha / c.rank
    difficulty = c.difficulty or DEFAULT_DIFFICULTY
    later = {name: value for name, value in c.to_dict().items() if name in ADDED_FIELDS}
    usual = (c.steps, c.batch_size, scale, difficulty, c.warmup, c.weight_decay, c.clip_norm or 0.0, c.dropout)
    return (*usual, json.dumps(later, sort_keys=True))


def _usual_shapes(runs: Iterable[Run]) -> dict[str, tuple[Any, ...]]:
    """The shape that most runs of a task have; the longest ones' where two are equally common."""
    counts: dict[str, Counter[tuple[Any, ...]]] = {}
    for run in runs:
        counts.setdefault(run.config.task, Counter())[_shape(run)] += 1
    return {task: max(shapes, key=lambda shape: (shapes[shape], shape)) for task, shapes in counts.items()}


def by_seed(runs: Iterable[Run], number: Callable[[Run], float]) -> dict[int, float]:
    """One number a seed: the mean where several machines, or several people, made the same run; NaN is left out."""
    found: dict[int, list[float]] = {}
    for run in runs:
        value = number(run)
        if not math.isnan(value):
            found.setdefault(run.config.seed, []).append(value)
    return {seed: fmean(of_seed) for seed, of_seed in sorted(found.items())}


def _what(point: RatePoint | None, what: str) -> float:
    if point is None:
        return math.nan
    return point.lr if what == "lr" else float(getattr(point, what).middle)


def validation_loss(point: RatePoint) -> float:
    """The median over a point's seeds; infinite where it was not measured, as in a run that diverged."""
    return median(by_seed(point.runs, _validation_loss).values())


def _validation_loss(run: Run) -> float:
    value = run.metrics.get("validation_loss", math.inf)
    return math.inf if run.diverged or math.isnan(value) else value


def _plain_init(method: str, init: str | None) -> str | None:
    """How a record says it: nothing for a method without a choice, and for its default."""
    inits = get_method(method).inits
    return None if init in inits[:1] or not inits else init


def _nearest(known: Sequence[Number], wanted: float, within: float) -> Number | None:
    if not known or wanted <= 0:
        return None
    best = min(known, key=lambda value: abs(math.log(value / wanted)))
    return best if abs(math.log(best / wanted)) <= math.log(within) * (1 + 1e-9) else None


def _point(lr: float, runs: Sequence[Run]) -> RatePoint:
    lost = by_seed(runs, lambda run: math.inf if run.diverged else run.final_loss)
    right = by_seed(runs, lambda run: 0.0 if run.diverged else run.accuracy)
    return RatePoint(lr, Spread.of(lost.values()), Spread.of(right.values()), tuple(runs))


def _curve(runs: Sequence[Run]) -> LossCurve:
    smooth = [running_mean([s.loss for s in run.steps if math.isfinite(s.loss)]) for run in runs]
    longest = max(map(len, smooth), default=0)
    shown = range(0, longest, max(1, -(-longest // POINTS)))
    steps = sorted({*shown, longest - 1}) if longest else []
    spreads = [Spread.of(curve[i] for curve in smooth if i < len(curve)) for i in steps]
    middle, low, high = (tuple(getattr(s, name) for s in spreads) for name in ("middle", "low", "high"))
    return LossCurve(tuple(i + 1 for i in steps), middle, low, high)


def running_mean(values: Sequence[float], window: int = WINDOW) -> list[float]:
    """The mean of each value and up to ``window - 1`` before it."""
    means, total = [], 0.0
    for i, value in enumerate(values):
        total += value - (values[i - window] if i >= window else 0.0)
        means.append(total / min(i + 1, window))
    return means
