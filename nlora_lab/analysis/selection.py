"""Which runs to compare: each method's at its own best rate, or all at one; from a store, or from runs at hand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from nlora_lab.core.errors import InputError
from nlora_lab.methods.table import METHODS, check_init, get_method
from nlora_lab.models.names import EMBEDDED
from nlora_lab.runs.index import RatePoint, RecordedRuns, by_seed, validation_loss
from nlora_lab.runs.run import Run
from nlora_lab.runs.shipped import recorded_runs, runs_of_model
from nlora_lab.runs.store import RunStore, open_store
from nlora_lab.tasks.registry import check_task

if TYPE_CHECKING:
    import pandas as pd

Runs: TypeAlias = "RunStore | RecordedRuns | str | Path | Iterable[Run] | None"
Methods: TypeAlias = "Iterable[str] | str | None"


def known(runs: Runs = None, model: str = EMBEDDED) -> RecordedRuns:
    """The recordings of ``model`` in a store, its folder, or runs at hand; by default those that ship.

    Raises :class:`InputError` for a folder that is not there, and for what holds no runs.
    """
    if isinstance(runs, RecordedRuns):
        return runs
    if runs is None or isinstance(runs, RunStore | str | Path):
        return recorded_runs(open_store(runs), model)
    listed = list(runs) if isinstance(runs, Iterable) else [runs]
    if not all(isinstance(run, Run) for run in listed):
        raise InputError(f"runs={runs!r} must be a store, its folder, or runs; leave it out for those that ship")
    return runs_of_model(listed, model)


def best_rates(runs: Runs = None, task: str = "word-problems", rank: int = 8, *, model: str = EMBEDDED) -> pd.DataFrame:
    """Each method's best recorded rate on a task, by median validation loss; one row a method that has runs.

    Columns: rate, validation_loss and its low and high over seeds (infinite where one diverged), accuracy (median, of
    test items), seeds, tried (how many rates), and ``edge``: "low" or "high" where the best one is the last one tried,
    so that a better one may lie beyond; empty where the valley's bottom is inside. ``runs`` as for :func:`at_best`.
    """
    import pandas as pd

    recordings, rows = known(runs, model), {}
    check_task(task, None)
    for method in METHODS:
        best = _best(recordings, task, method, rank)
        if best is None:
            continue
        tried = [point.lr for point in recordings.valley(task, method, rank)]
        losses = by_seed(best.runs, lambda run: run.metrics.get("validation_loss", math.inf)).values()
        rows[method] = {
            "rate": best.lr,
            "validation_loss": validation_loss(best),
            "low": min(losses),
            "high": max(losses),
            "accuracy": best.accuracy.middle,
            "seeds": best.seeds,
            "tried": len(tried),
            "edge": "low" if best.lr == tried[0] else "high" if best.lr == tried[-1] else "",
        }
    columns = ["rate", "validation_loss", "low", "high", "accuracy", "seeds", "tried", "edge"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("method")


def at_best(
    runs: Runs = None, task: str = "word-problems", methods: Methods = None, rank: int = 8, *, model: str = EMBEDDED
) -> dict[str, tuple[Run, ...]]:
    """The runs of each method at its own best rate (see :func:`best_rates`), for :func:`nlora_lab.compare`.

    ``runs``: a store, its folder, recordings or runs; by default those that ship. Methods without runs are left out;
    raises :class:`InputError` if none is left, or for an unknown name. Where runs of a task differ in their steps,
    batch size or the like, those of the most common shape count.
    """
    recordings, names = known(runs, model), _names(methods)
    check_task(task, None)
    points = {name: _best(recordings, task, name, rank) for name in names}
    return _found(points, recordings, f"{', '.join(names)} on {task} at rank {rank}")


def at_rate(
    lr: float,
    runs: Runs = None,
    task: str = "word-problems",
    methods: Methods = None,
    rank: int = 8,
    *,
    model: str = EMBEDDED,
) -> dict[str, tuple[Run, ...]]:
    """The runs of each method at one rate for all, as most papers compare them; otherwise like :func:`at_best`."""
    recordings, names = known(runs, model), _names(methods)
    check_task(task, None)
    if isinstance(lr, bool) or not isinstance(lr, int | float) or not lr > 0:
        raise InputError(f"lr={lr!r} must be a number above 0; try 2e-4")
    points = {name: _at(recordings, task, name, rank, lr) for name in names}
    return _found(points, recordings, f"{', '.join(names)} on {task} at the rate {lr:g} and rank {rank}")


def at_each_rate(
    method: str, runs: Runs = None, task: str = "word-problems", rank: int = 8, *, init: str | None = None,
    model: str = EMBEDDED,
) -> dict[str, tuple[Run, ...]]:  # fmt: skip
    """The runs of one method, a group a rate, named by it (``"0.0002"``); otherwise like :func:`at_best`."""
    recordings = known(runs, model)
    check_task(task, None)
    check_init(get_method(method), init)
    points = recordings.valley(task, method, rank, init) if _there(recordings, task, method, rank, init) else []
    return _found({str(p.lr): p for p in points}, recordings, f"{method} on {task} at rank {rank}")


def _names(methods: Methods) -> list[str]:
    names = METHODS if methods is None else [methods] if isinstance(methods, str) else methods
    return [get_method(name).name for name in names]


def _there(recordings: RecordedRuns, task: str, method: str, rank: int, init: str | None = None) -> bool:
    """Whether there are runs at this very rank; a slider takes the nearest, a comparison must not."""
    return get_method(method).build is None or rank in recordings.ranks(task, method, init)


def _best(recordings: RecordedRuns, task: str, method: str, rank: int) -> RatePoint | None:
    return recordings.best(task, method, rank) if _there(recordings, task, method, rank) else None


def _at(recordings: RecordedRuns, task: str, method: str, rank: int, lr: float) -> RatePoint | None:
    point = recordings.at(task, method, rank, lr) if _there(recordings, task, method, rank) else None
    return point if point is not None and math.isclose(point.lr, lr) else None


def _found(points: dict[str, RatePoint | None], recordings: RecordedRuns, what: str) -> dict[str, tuple[Run, ...]]:
    found = {name: point.runs for name, point in points.items() if point is not None}
    if not found:
        others = ", ".join([*_left(recordings), *([] if len(recordings) else _elsewhere(recordings))]) or "it is empty"
        raise InputError(f"there is no run of {what}; make some with nl.sweep (the store: {others})")
    return found


def _elsewhere(recordings: RecordedRuns) -> list[str]:
    return [f"it holds runs of {name}: say model={name!r}" for name in recordings.others[:3]]


def left_out(recordings: RecordedRuns) -> str:
    """What of a store takes no part in a comparison, in words; "" if nothing."""
    return ", ".join(_left(recordings)[1 if len(recordings) else 0 :])


def _left(recordings: RecordedRuns) -> Sequence[str]:
    counts = ((len(recordings), "runs to choose from"), (recordings.left_out, "of another shape than most"))
    return [f"{n} {what}" for n, what in (*counts, (recordings.failed, "failed")) if n]
