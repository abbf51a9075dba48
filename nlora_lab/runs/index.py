"""The index of recorded runs. The lab asks it for a task, a method, a rank, a start of N and a rate."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from nlora_lab.core.validation import check_choice
from nlora_lab.methods.table import METHODS, get_method
from nlora_lab.runs.config import ADDED_FIELDS, NOT_IDENTITY
from nlora_lab.runs.rate_points import LossCurve, RatePoint, loss_curve, rate_point, validation_loss
from nlora_lab.runs.run import Run
from nlora_lab.tasks.generated import DEFAULT_DIFFICULTY

if TYPE_CHECKING:
    import pandas as pd

NEAR_RATE = 1.6  # a rate stands for a recorded one up to this factor away: half a step of 1, 2, 5
NEAR_RANK = 1.5
Number = TypeVar("Number", int, float)


class RecordedRuns:
    """Finished runs, indexed by what the controls of the lab ask for.

    Runs of one task are compared only if they have one batch size, scale and so on: those of most runs. An index holds
    the runs of one number of steps, and ``at_steps`` makes that of another. Repetitions of a run (``replicate``) are
    left out: they measure noise.

    Args:
        runs: the runs.
        other_models: the models of further runs in the store.
        steps: the number of steps. Default: that of most runs, task by task.

    Attributes:
        other_models: the models of further runs in the store, which this index leaves out.
        failed: how many runs failed, for want of memory or because they were killed. They are left out.
        left_out: how many runs are left out because their batch size or the like is not that of most runs of their
            task.
        elsewhere: how many runs have another number of steps.
        budgets: the numbers of steps of the runs, in ascending order.
        usual_steps: the number of steps of the runs of each task in this index.
    """

    def __init__(self, runs: Iterable[Run], other_models: Iterable[str] = (), steps: int | None = None) -> None:
        self.other_models = tuple(other_models)
        self._cells: dict[tuple[str, str], dict[tuple[int, str | None], dict[float, list[Run]]]] = {}
        listed = list(runs)
        self.failed = sum(bool(run.error) for run in listed)
        known = [r for r in listed if not r.error and r.config.method in METHODS and not r.config.replicate]
        usual = _usual(known, _settings)
        comparable = [run for run in known if _settings(run) == usual[run.config.task]]
        self.left_out = len(known) - len(comparable)
        self._comparable = comparable
        self.budgets = tuple(sorted({run.config.steps for run in comparable}))
        common = _usual(comparable, lambda run: run.config.steps)
        self.usual_steps: dict[str, int] = {task: steps or most for task, most in common.items()}
        compared = [run for run in comparable if run.config.steps == self.usual_steps[run.config.task]]
        self.elsewhere = len(comparable) - len(compared)
        for run in compared:
            c = run.config
            of_method = self._cells.setdefault((c.task, c.method), {})
            cell = of_method.setdefault((c.rank, _recorded_init(c.method, c.init)), {})
            cell.setdefault(c.lr, []).append(run)
        self._at_steps: dict[int, RecordedRuns] = {}
        self._curves: dict[tuple[int, ...], LossCurve] = {}
        self._valleys: dict[tuple[str, str, int, str | None], list[RatePoint]] = {}

    def __len__(self) -> int:
        return sum(len(runs) for ranks in self._cells.values() for rates in ranks.values() for runs in rates.values())

    @property
    def models(self) -> tuple[str, ...]:
        """The models of the runs, in alphabetical order."""
        return tuple(sorted({run.config.model for run in self._comparable}))

    def at_steps(self, steps: int) -> RecordedRuns:
        """Index the runs of another number of steps.

        Args:
            steps: the number of optimiser steps.

        Returns:
            The index. It is empty if no run has this number.
        """
        if steps not in self._at_steps:
            self._at_steps[steps] = RecordedRuns(self._comparable, self.other_models, steps)
        return self._at_steps[steps]

    def of_seeds(self, wanted: Callable[[int], bool], steps: int) -> RecordedRuns:
        """Index the runs of some seeds.

        Args:
            wanted: whether the runs of a seed are taken.
            steps: the number of optimiser steps.

        Returns:
            The index. It is empty if no run is left.
        """
        return RecordedRuns((run for run in self._comparable if wanted(run.config.seed)), self.other_models, steps)

    def with_steps(self, task: str, method: str, steps: int, init: str | None = None) -> RecordedRuns:
        """Index the runs of a number of steps, if there are any of this method.

        Args:
            task: the name of the task.
            method: the name of the method.
            steps: the number of optimiser steps.
            init: the initialisation of N. ``None`` means the method's default.

        Returns:
            The index of that number of steps, or this index, which has the number of most runs.
        """
        index = self.at_steps(steps) if steps in self.budgets else self
        return index if index.ranks(task, method, init) else self

    def places(self) -> list[tuple[str, str, int, str | None]]:
        """List what was recorded.

        Returns:
            Task, method, rank and initialisation of N of every valley, as ``valley`` takes them.
        """
        return [(task, method, rank, init) for (task, method), ranks in self._cells.items() for rank, init in ranks]

    def ranks(self, task: str, method: str, init: str | None = None) -> list[int]:
        """List the recorded ranks.

        Args:
            task: the name of the task.
            method: the name of the method.
            init: the initialisation of N. ``None`` means the method's default.

        Returns:
            The ranks in ascending order.
        """
        init = _recorded_init(method, init)
        return sorted(rank for rank, start in self._cells.get((task, method), {}) if start == init)

    def nearest_rank(self, task: str, method: str, rank: int, init: str | None = None) -> int | None:
        """Find the recorded rank that a rank stands for.

        Args:
            task: the name of the task.
            method: the name of the method. Full fine-tuning has no rank, so any rank stands for its runs.
            rank: the rank.
            init: the initialisation of N. ``None`` means the method's default.

        Returns:
            The nearest recorded rank, or ``None`` if none is within a factor of 1.5.
        """
        known = self.ranks(task, method, init)
        if get_method(method).build is None:
            return known[0] if known else None
        return _nearest(known, rank, NEAR_RANK)

    def valley(self, task: str, method: str, rank: int, init: str | None = None) -> list[RatePoint]:
        """List what was recorded at every learning rate: the valley of the loss.

        Args:
            task: the name of the task.
            method: the name of the method.
            rank: the rank. The nearest recorded one is taken.
            init: the initialisation of N. ``None`` means the method's default.

        Returns:
            One point per recorded rate, in ascending order. Empty if no recorded rank is near.
        """
        init = _recorded_init(method, init)
        near = self.nearest_rank(task, method, rank, init)
        if near is None:
            return []
        key = (task, method, near, init)
        if key not in self._valleys:
            rates = self._cells[task, method][near, init]
            self._valleys[key] = [rate_point(lr, rates[lr]) for lr in sorted(rates)]
        return self._valleys[key]

    def at(self, task: str, method: str, rank: int, lr: float, init: str | None = None) -> RatePoint | None:
        """Find what was recorded at one learning rate.

        Args:
            task: the name of the task.
            method: the name of the method.
            rank: the rank. The nearest recorded one is taken.
            lr: the rate. The nearest recorded one is taken.
            init: the initialisation of N. ``None`` means the method's default.

        Returns:
            The point, or ``None`` if no recorded rate is within a factor of 1.6.
        """
        points = {point.lr: point for point in self.valley(task, method, rank, init)}
        near = _nearest(list(points), lr, NEAR_RATE)
        return None if near is None else points[near]

    def best(self, task: str, method: str, rank: int, init: str | None = None) -> RatePoint | None:
        """Find the rate that a fair comparison gives this method: the one of the lowest median *validation* loss.

        Args:
            task: the name of the task.
            method: the name of the method.
            rank: the rank. The nearest recorded one is taken.
            init: the initialisation of N. ``None`` means the method's default.

        Returns:
            The point of that rate, or ``None`` if nothing was recorded or every run diverged.
        """
        known = [p for p in self.valley(task, method, rank, init) if math.isfinite(validation_loss(p))]
        return min(known, key=validation_loss, default=None)

    def numbers(self, task: str, method: str, rank: int, lr: float, init: str | None = None) -> dict[str, Any]:
        """Summarise what was recorded at one rate and at the method's best rate.

        Args:
            task: the name of the task.
            method: the name of the method.
            rank: the rank. The nearest recorded one is taken.
            lr: the rate. The nearest recorded one is taken.
            init: the initialisation of N. ``None`` means the method's default.

        Returns:
            A row of numbers, NaN where nothing was recorded: ``parameters``, ``steps``, ``rate``, ``final_loss``,
            ``accuracy`` and its ``lowest`` and ``highest`` value over ``seeds``, then ``own_rate``, the method's best
            one, ``accuracy_there``, and ``test_loss`` at ``rate``. Accuracies are from 0 to 1.
        """
        point, best = self.at(task, method, rank, lr, init), self.best(task, method, rank, init)
        return {
            "method": method,
            "parameters": point.runs[0].trainable if point else math.nan,
            "steps": point.runs[0].config.steps if point else math.nan,
            "rate": _median(point, "lr"),
            "final_loss": _median(point, "loss"),
            "accuracy": _median(point, "accuracy"),
            "lowest": point.accuracy.low if point else math.nan,
            "highest": point.accuracy.high if point else math.nan,
            "seeds": point.seeds if point else 0,
            "own_rate": _median(best, "lr"),
            "accuracy_there": _median(best, "accuracy"),
            "test_loss": _median(point, "test_loss"),
        }

    def by_rank(self, task: str, methods: Iterable[str], what: str = "accuracy") -> pd.DataFrame:
        """Compare methods at every recorded rank, each at its best rate (see ``best``).

        Args:
            task: the name of the task.
            methods: the names of the methods.
            what: "accuracy" or "loss" (medians over seeds), or "lr", the rate itself.

        Returns:
            A frame with one row per rank and one column per method, NaN where nothing was recorded.

        Raises:
            InputError: ``what`` or a method is unknown.
        """
        import pandas as pd

        check_choice("what", what, ("accuracy", "loss", "lr"))
        names = [methods] if isinstance(methods, str) else list(methods)
        for name in names:
            check_choice("method", name, METHODS)
        ranks = sorted({rank for name in names for rank in self.ranks(task, name)})
        columns = {name: [_median(self._best_at_rank(task, name, r), what) for r in ranks] for name in names}
        return pd.DataFrame(columns, index=pd.Index(ranks, name="rank"))

    def _best_at_rank(self, task: str, method: str, rank: int) -> RatePoint | None:
        return self.best(task, method, rank) if rank in self.ranks(task, method) else None

    def by_init(self, task: str, method: str, rank: int, what: str = "loss") -> pd.DataFrame:
        """Compare the starts of N at every recorded rate.

        Args:
            task: the name of the task.
            method: the name of the method.
            rank: the rank. The nearest recorded one is taken.
            what: "loss" or "accuracy", medians over seeds.

        Returns:
            A frame with one row per start and one column per rate, NaN where nothing was recorded.

        Raises:
            InputError: ``what`` or the method is unknown.
        """
        import pandas as pd

        check_choice("what", what, ("accuracy", "loss"))
        check_choice("method", method, METHODS)
        inits = get_method(method).inits
        rows = {i: {p.lr: _median(p, what) for p in self.valley(task, method, rank, i)} for i in inits}
        return pd.DataFrame.from_dict(rows, orient="index", dtype=float).sort_index(axis=1)

    def by_rank_and_rate(self, task: str, method: str, what: str = "loss") -> pd.DataFrame:
        """Show a method at every recorded rank and rate.

        Args:
            task: the name of the task.
            method: the name of the method.
            what: "loss" or "accuracy", medians over seeds.

        Returns:
            A frame with one row per rank and one column per rate, NaN where nothing was recorded.

        Raises:
            InputError: ``what`` is unknown.
        """
        import pandas as pd

        check_choice("what", what, ("accuracy", "loss"))
        rows = {r: {p.lr: _median(p, what) for p in self.valley(task, method, r)} for r in self.ranks(task, method)}
        return pd.DataFrame.from_dict(rows, orient="index", dtype=float).sort_index().sort_index(axis=1)

    def curve(self, point: RatePoint) -> LossCurve:
        """Return the loss over the steps of the runs at one rate.

        Args:
            point: a point of this index.

        Returns:
            The curve, thinned to about 125 steps.
        """
        key = tuple(map(id, point.runs))  # the index keeps these runs, so no other run can get their ids
        if key not in self._curves:
            self._curves[key] = loss_curve(point.runs)
        return self._curves[key]


def _settings(run: Run) -> tuple[Any, ...]:
    """Return what two runs must share to be on one curve, beside what the controls of the lab ask for."""
    c = run.config
    scale = 1.0 if c.alpha is None else c.alpha / c.rank
    difficulty = c.difficulty or DEFAULT_DIFFICULTY
    added = {name: value for name, value in c.to_dict().items() if name in ADDED_FIELDS and name not in NOT_IDENTITY}
    first = (c.batch_size, scale, difficulty, c.warmup, c.weight_decay, c.clip_norm or 0.0, c.dropout)
    return (*first, json.dumps(added, sort_keys=True))


def _usual(runs: Iterable[Run], of: Callable[[Run], Any]) -> dict[str, Any]:
    """Return what most runs of each task have. If two are equally common, the larger one wins."""
    counts: dict[str, Counter[Any]] = {}
    for run in runs:
        counts.setdefault(run.config.task, Counter())[of(run)] += 1
    return {task: max(values, key=lambda v: (values[v], v)) for task, values in counts.items()}


def _median(point: RatePoint | None, what: str) -> float:
    if point is None:
        return math.nan
    return point.lr if what == "lr" else float(getattr(point, what).middle)


def _recorded_init(method: str, init: str | None) -> str | None:
    """Return an init as records say it: ``None`` for a method without a choice, and for its default."""
    inits = get_method(method).inits
    return None if init in inits[:1] or not inits else init


def _nearest(known: Sequence[Number], value: float, factor: float) -> Number | None:
    if not known or value <= 0:
        return None
    best = min(known, key=lambda number: abs(math.log(number / value)))
    return best if abs(math.log(best / value)) <= math.log(factor) * (1 + 1e-9) else None
