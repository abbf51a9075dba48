"""Making recorded runs again, and how far a repetition may fall from its record.

Rounding differs between processors, and training can amplify it, most of all above the best rate. How far apart two
repetitions lie is measured for each kind of rate, from the repetitions of single seeds among the recorded runs
(``RunConfig.replicate``).
"""

from __future__ import annotations

import math
import random
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from statistics import pvariance
from typing import TYPE_CHECKING, Any

from nlora_lab.analysis.selection import recorded_index
from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_whole_number
from nlora_lab.models.names import EMBEDDED
from nlora_lab.runs.index import RecordedRuns
from nlora_lab.runs.run import Run
from nlora_lab.runs.shipped import shipped_store
from nlora_lab.runs.store import RunStore, run_key
from nlora_lab.sweeps.engine import sweep

if TYPE_CHECKING:
    import pandas as pd

BELOW, AT, ABOVE = KINDS = ("below the best rate", "at the best rate", "above the best rate")
NEAR = 1.2  # a rate within this factor of the best one is at it; the steps of the ladders are √2
MEASURES = ("accuracy", "log_loss")
Ranges = Mapping[Any, Mapping[Any, float]]  # by kind, then by measure
LEAST_LOSS = 1e-5  # records keep five digits
WIDTH = 3.0  # standard deviations of the difference of two repetitions


def repetition_noise(store: RunStore | None = None) -> pd.DataFrame:
    """Measure how far repetitions of one seed scatter, by the kind of their rate.

    Args:
        store: recorded runs with repetitions, those of the embedded model. ``None`` takes the runs that ship.

    Returns:
        One row per kind of rate that has repetitions: below, at or above the method's best rate. Columns: ``accuracy``
        and ``log_loss`` (the natural logarithm of the final loss, so 0.1 is about 10 %), the standard deviations of
        single repetitions, pooled over tasks, methods, rates and seeds; ``groups``, the number of pairs of a config and
        a seed; ``repetitions``, the runs beyond the first of each.
    """
    import pandas as pd

    listed = [run for run in (shipped_store() if store is None else store) if run.config.model == EMBEDDED]
    index = recorded_index(listed)
    repeated: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in listed:
        kind = rate_kind(index, run)
        if kind and not run.error and not run.diverged:
            repeated[kind][run_key(replace(run.config, replicate=0))].append(run)
    rows = {}
    for kind in KINDS:
        groups = [runs for runs in repeated[kind].values() if len({run.config.replicate for run in runs}) > 1]
        if groups:
            rows[kind] = {
                **{name: _pooled(name, groups) for name in MEASURES},
                "groups": len(groups),
                "repetitions": sum(len(runs) - 1 for runs in groups),
            }
    return pd.DataFrame.from_dict(rows, orient="index", columns=[*MEASURES, "groups", "repetitions"])


def rate_kind(index: RecordedRuns, run: Run) -> str | None:
    """Say where a run's rate lies.

    Args:
        index: recorded runs of the same model.
        run: the run.

    Returns:
        Whether the rate is below, at or above the best recorded one of its task, method, rank, initialisation and
        number of steps. ``None`` where no rate was recorded.
    """
    c = run.config
    if c.steps not in index.budgets:
        return None
    best = index.at_steps(c.steps).best(c.task, c.method, c.rank, c.init)
    if best is None:
        return None
    return AT if best.lr / NEAR <= c.lr <= best.lr * NEAR else BELOW if c.lr < best.lr else ABOVE


def reproduce(
    count: int, *, seed: int = 0, store: RunStore | None = None, workers: int | None = None, progress: bool = True
) -> pd.DataFrame:
    """Make recorded runs again, drawn at random, and compare them with their records.

    Args:
        count: how many.
        seed: the seed of the draw.
        store: the recorded runs, those of the embedded model. ``None`` takes the runs that ship.
        workers: as for ``nl.sweep``.
        progress: show the progress and the time left.

    Returns:
        One row per run, in the order of the draw. Columns: ``run`` (its key), ``kind`` (of its rate), ``accuracy`` and
        ``log_loss`` as recorded (the natural logarithm of the final loss), ``accuracy_again`` and ``log_loss_again``,
        ``accuracy_range`` and ``log_loss_range``, and ``inside``, whether both differences are within their range. A
        range is 3 standard deviations of the difference of two repetitions of that kind (``repetition_noise``); for the
        accuracy it is at least one test item. ``inside`` is ``None`` where no repetitions of that kind were recorded.

    Raises:
        InputError: ``count`` is not a whole number from 1 to the number of records.
        RuntimeError: a run could not be made.
    """
    import pandas as pd

    records = shipped_store() if store is None else store
    index = recorded_index(run for run in records if run.config.model == EMBEDDED)
    known = {run_key(run.config): run for run in _all_runs(index)}
    if not known:
        raise InputError("the store has no run of the embedded model; leave it out for the runs that ship")
    check_whole_number("count", count, 1, len(known), limit=f"the {len(known)} runs recorded")
    drawn = random.Random(seed).sample(sorted(known), count)
    ranges = (WIDTH * math.sqrt(2) * repetition_noise(records)[list(MEASURES)]).T.to_dict()
    with tempfile.TemporaryDirectory() as folder:
        again = RunStore(folder)
        sweep([known[key].config for key in drawn], again, workers=workers, progress=progress)
        made = {run_key(run.config): run for run in again}
    return pd.DataFrame([_comparison(key, known[key], made[key], index, ranges) for key in drawn])


def _comparison(key: str, record: Run, again: Run, index: RecordedRuns, ranges: Ranges) -> dict[str, object]:
    kind = rate_kind(index, record)
    row: dict[str, object] = {"run": key, "kind": kind}
    limits = ranges.get(kind)
    inside: bool | None = None if limits is None else True
    for name in MEASURES:
        before, now = _measure(record, name), _measure(again, name)
        limit = math.nan if limits is None else limits[name]
        if name == "accuracy":
            limit = max(limit, 1 / 200)
        row |= {name: before, f"{name}_again": now, f"{name}_range": limit}
        if inside is not None:
            inside = inside and (before == now or abs(before - now) <= limit * (1 + 1e-9))
    return {**row, "inside": inside}


def _measure(run: Run, name: str) -> float:
    if run.diverged:
        return 0.0 if name == "accuracy" else math.inf
    return run.accuracy if name == "accuracy" else math.log(max(run.final_loss, LEAST_LOSS))


def _all_runs(index: RecordedRuns) -> Iterator[Run]:
    for steps in index.budgets:
        of_steps = index.at_steps(steps)
        for place in of_steps.places():
            for point in of_steps.valley(*place):
                yield from point.runs


def _pooled(name: str, groups: Iterable[list[Run]]) -> float:
    """The pooled standard deviation within groups of repetitions."""
    values = [[_measure(run, name) for run in group] for group in groups]
    squares = sum(len(group) * pvariance(group) for group in values)
    return math.sqrt(squares / sum(len(group) - 1 for group in values))
