"""Choosing the runs to compare: each method's at its own best rate, or all at one rate."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_number
from nlora_lab.methods.table import METHODS, check_init, get_method
from nlora_lab.models.names import EMBEDDED
from nlora_lab.runs.index import RecordedRuns
from nlora_lab.runs.rate_points import RatePoint, by_seed, validation_loss
from nlora_lab.runs.run import Run
from nlora_lab.runs.shipped import recorded_runs, runs_of_model
from nlora_lab.runs.store import RunStore, open_store
from nlora_lab.tasks.registry import check_task

if TYPE_CHECKING:
    import pandas as pd

Runs: TypeAlias = "RunStore | RecordedRuns | str | Path | Iterable[Run] | None"
Methods: TypeAlias = "Iterable[str] | str | None"


def recorded_index(runs: Runs = None, model: str = EMBEDDED, steps: int | None = None) -> RecordedRuns:
    """Index the recorded runs of one model.

    Args:
        runs: a store, its folder, finished runs, or an index. Default: the runs that ship with the package.
        model: the model whose runs to take. An index keeps its own.
        steps: the number of optimiser steps. Default: that of most runs, or that of the index.

    Returns:
        The index.

    Raises:
        InputError: the folder does not exist, ``runs`` holds something else than runs, or no run has these steps.
    """
    index = _index(runs, model)
    if steps is None:
        return index
    if index.budgets and steps not in index.budgets:
        known = ", ".join(map(str, index.budgets))
        raise InputError(f"steps={steps!r}: there are runs of {known} steps; choose one of these numbers")
    return index.at_steps(steps)


def _index(runs: Runs, model: str) -> RecordedRuns:
    if isinstance(runs, RecordedRuns):
        if model != EMBEDDED and runs.models not in ((), (model,)):
            raise InputError(f"model={model!r}: the index holds runs of {runs.models[0]!r}; give the store instead")
        return runs
    if runs is None or isinstance(runs, RunStore | str | Path):
        return recorded_runs(open_store(runs), model)
    listed = list(runs) if isinstance(runs, Iterable) else [runs]
    if not all(isinstance(run, Run) for run in listed):
        raise InputError(f"runs={runs!r} must be a store, its folder, or runs; leave it out for those that ship")
    return runs_of_model(listed, model)


def best_rates(
    runs: Runs = None, task: str = "word-problems", rank: int = 8, *, model: str = EMBEDDED, steps: int | None = None
) -> pd.DataFrame:
    """Find the best recorded rate of each method on a task: the one with the lowest median validation loss.

    Args:
        runs: a store, its folder, an index or runs. Default: the runs that ship with the package.
        task: the name of the task.
        rank: the rank of the adapters. Only runs at exactly this rank count.
        model: the model whose runs to take.
        steps: the number of optimiser steps. Default: that of most runs.

    Returns:
        One row per method that has runs. Columns: ``rate``; ``validation_loss``, its median over seeds in nats per
        target token, with ``low`` and ``high``, infinite where a seed diverged; ``accuracy``, the median on test items,
        0 to 1; ``seeds``; ``tried``, the number of rates tried; and ``edge``, which is "low" or "high" if the best rate
        is the first or the last one tried. A better rate may then lie beyond.

    Raises:
        InputError: the task is unknown, or ``runs`` holds no runs.
    """
    import pandas as pd

    index, rows = recorded_index(runs, model, steps), {}
    check_task(task, None)
    for method in METHODS:
        best = _best(index, task, method, rank)
        if best is None:
            continue
        rates = [point.lr for point in index.valley(task, method, rank)]
        losses = by_seed(best.runs, lambda run: run.metrics.get("validation_loss", math.inf)).values()
        rows[method] = {
            "rate": best.lr,
            "validation_loss": validation_loss(best),
            "low": min(losses),
            "high": max(losses),
            "accuracy": best.accuracy.middle,
            "seeds": best.seeds,
            "tried": len(rates),
            "edge": "low" if best.lr == rates[0] else "high" if best.lr == rates[-1] else "",
        }
    columns = ["rate", "validation_loss", "low", "high", "accuracy", "seeds", "tried", "edge"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("method")


def at_best(
    runs: Runs = None, task: str = "word-problems", methods: Methods = None, rank: int = 8, *, model: str = EMBEDDED,
    steps: int | None = None, fresh: Collection[int] | None = None, chosen_on: Collection[int] | None = None,
) -> dict[str, tuple[Run, ...]]:  # fmt: skip
    """Choose the runs of each method at its own best rate, for ``nl.compare``.

    The best rate is that of ``nl.best_rates``. Runs of a task can differ in their batch size and the like. Then those
    of the most common kind count. A rate that was chosen on some seeds looks a little too good on the same seeds.
    ``fresh`` keeps the two apart.

    Args:
        runs: a store, its folder, an index or runs. Default: the runs that ship with the package.
        task: the name of the task.
        methods: the names of the methods. Default: all.
        rank: the rank of the adapters. Only runs at exactly this rank count.
        model: the model whose runs to take.
        steps: the number of optimiser steps. Default: that of most runs.
        fresh: the seeds to compare. ``None`` compares all, at rates that were chosen on all.
        chosen_on: the seeds on which the rate is chosen if ``fresh`` is given, so that every rate has the same number
            of them. ``None`` takes all that are not in ``fresh``.

    Returns:
        The runs by method. Methods without runs are left out.

    Raises:
        InputError: a name is unknown, or no method has runs.
    """
    index, names = recorded_index(runs, model, steps), method_names(methods)
    check_task(task, None)
    if fresh is None or task not in index.usual_steps:
        points = {name: _best(index, task, name, rank) for name in names}
        return _groups(points, index, f"{', '.join(names)} on {task} at rank {rank}")
    seeds = frozenset(fresh)
    first = None if chosen_on is None else frozenset(chosen_on) - seeds
    choosing = index.of_seeds(
        lambda seed: seed not in seeds if first is None else seed in first, index.usual_steps[task]
    )
    compared = index.of_seeds(seeds.__contains__, index.usual_steps[task])
    rates = {name: point.lr for name in names if (point := _best(choosing, task, name, rank)) is not None}
    points = {name: _at(compared, task, name, rank, lr) for name, lr in rates.items()}
    return _groups(points, compared, f"fresh seeds of {', '.join(names)} on {task} at rank {rank}")


def at_rate(
    lr: float,
    runs: Runs = None,
    task: str = "word-problems",
    methods: Methods = None,
    rank: int = 8,
    *,
    model: str = EMBEDDED,
    steps: int | None = None,
) -> dict[str, tuple[Run, ...]]:
    """Choose the runs of each method at one rate for all, which is how most papers compare.

    Args:
        lr: the learning rate.
        runs: a store, its folder, an index or runs. Default: the runs that ship with the package.
        task: the name of the task.
        methods: the names of the methods. Default: all.
        rank: the rank of the adapters. Only runs at exactly this rank count.
        model: the model whose runs to take.
        steps: the number of optimiser steps. Default: that of most runs.

    Returns:
        The runs by method. Methods without runs at this rate are left out.

    Raises:
        InputError: the rate is not above 0, a name is unknown, or no method has runs.
    """
    index, names = recorded_index(runs, model, steps), method_names(methods)
    check_task(task, None)
    check_number("lr", lr, above=0, remedy="try 2e-4")
    points = {name: _at(index, task, name, rank, lr) for name in names}
    return _groups(points, index, f"{', '.join(names)} on {task} at the rate {lr:g} and rank {rank}")


def at_each_rate(
    method: str, runs: Runs = None, task: str = "word-problems", rank: int = 8, *, init: str | None = None,
    model: str = EMBEDDED, steps: int | None = None,
) -> dict[str, tuple[Run, ...]]:  # fmt: skip
    """Choose the runs of one method, one group per recorded rate.

    Args:
        method: the name of the method.
        runs: a store, its folder, an index or runs. Default: the runs that ship with the package.
        task: the name of the task.
        rank: the rank of the adapters. Only runs at exactly this rank count.
        init: the initialisation of N, for a method with a choice. Default: the method's default.
        model: the model whose runs to take.
        steps: the number of optimiser steps. Default: that of most runs.

    Returns:
        The runs by rate as text, for example ``"0.0002"``, in ascending order.

    Raises:
        InputError: a name is unknown, or there are no runs.
    """
    index = recorded_index(runs, model, steps)
    check_task(task, None)
    check_init(get_method(method), init)
    points = index.valley(task, method, rank, init) if _has_rank(index, task, method, rank, init) else []
    return _groups({str(p.lr): p for p in points}, index, f"{method} on {task} at rank {rank}")


def describe_left_out(index: RecordedRuns) -> str:
    """Say which runs of an index take no part in a comparison.

    Args:
        index: the recorded runs.

    Returns:
        Their number and the reason, or "" if all take part.
    """
    return ", ".join(_counts(index)[1 if len(index) else 0 :])


def method_names(methods: Methods) -> list[str]:
    """Return the names of methods: of all of them for ``None``, and of one for a text.

    Raises:
        InputError: a name is unknown.
    """
    names = METHODS if methods is None else [methods] if isinstance(methods, str) else methods
    return [get_method(name).name for name in names]


def _has_rank(index: RecordedRuns, task: str, method: str, rank: int, init: str | None = None) -> bool:
    """Whether there are runs at exactly this rank: a slider takes the nearest one, and a comparison must not."""
    return get_method(method).build is None or rank in index.ranks(task, method, init)


def _best(index: RecordedRuns, task: str, method: str, rank: int) -> RatePoint | None:
    return index.best(task, method, rank) if _has_rank(index, task, method, rank) else None


def _at(index: RecordedRuns, task: str, method: str, rank: int, lr: float) -> RatePoint | None:
    point = index.at(task, method, rank, lr) if _has_rank(index, task, method, rank) else None
    return point if point is not None and math.isclose(point.lr, lr) else None


def _groups(points: dict[str, RatePoint | None], index: RecordedRuns, request: str) -> dict[str, tuple[Run, ...]]:
    groups = {name: point.runs for name, point in points.items() if point is not None}
    if not groups:
        contents = _counts(index)
        if not len(index):
            contents += [f"it holds runs of {name}: pass model={name!r}" for name in index.other_models[:3]]
        state = ", ".join(contents) or "it is empty"
        raise InputError(f"the store has no run of {request}; make runs with nl.sweep (the store: {state})")
    return groups


def _counts(index: RecordedRuns) -> list[str]:
    """How many runs an index holds, and how many it leaves out for which reason."""
    others = ", ".join(map(str, index.budgets))
    counts = {
        "runs to choose from": len(index),
        "of another shape than most": index.left_out,
        f"of another number of steps (there are runs of {others})": index.elsewhere,
        "failed": index.failed,
    }
    return [f"{count} {reason}" for reason, count in counts.items() if count]
