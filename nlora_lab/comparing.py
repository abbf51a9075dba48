"""Comparing methods as it should be done: each at its own best rate, over seeds, paired, with a verdict in words.

The rate is chosen by the loss on validation items; what is compared, the accuracy on test items, takes no part in
the choice. Runs with the same seed see the same batches in the same order and are tested on the same items: so their
*difference* scatters less than either of them, and is what is judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, TypeAlias

from nlora_lab.errors import InputError, one_of
from nlora_lab.methods import METHODS, check_init, get_method
from nlora_lab.models import EMBEDDED
from nlora_lab.recorded import recordings_of
from nlora_lab.recordings import Recordings, running_mean, validation_loss
from nlora_lab.records import Run
from nlora_lab.statistics import LEAST_PAIRS, check_confidence, holm, median_interval, paired
from nlora_lab.tasks import check_task

if TYPE_CHECKING:
    import pandas as pd

    from nlora_lab.store import RunStore

Groups = Mapping[str, Sequence[Run]]
Runs: TypeAlias = "RunStore | Recordings | str | Path | None"


@dataclass(frozen=True)
class _Metric:
    """A number of a run, and what it is worth when the run diverged."""

    name: str
    better: int  # 1 where more is better, −1 where less is
    lost: float
    unit: str
    scale: float

    def of(self, run: Run) -> float:
        if run.diverged or run.error:
            return self.lost
        value = run.final_loss if self.name == "final_loss" else run.metrics.get(self.name, math.nan)
        return float(value)

    def told(self, value: float) -> str:
        return f"{value * self.scale:+.3g}{self.unit}"


METRICS = {
    m.name: m
    for m in (
        _Metric("accuracy", 1, 0.0, " points", 100.0),
        _Metric("final_loss", -1, math.inf, " nats", 1.0),
        _Metric("validation_loss", -1, math.inf, " nats", 1.0),
    )
}


def best_rates(runs: Runs = None, task: str = "word-problems", rank: int = 8, *, model: str = EMBEDDED) -> pd.DataFrame:
    """Each method's best recorded rate on a task, by median validation loss; one row a method that has runs.

    Columns: rate, validation_loss and its low and high over seeds, accuracy (median, of test items), seeds, tried
    (how many rates), and ``edge``: "low" or "high" where the best one is the last one tried, so that a better one may
    lie beyond; empty where the valley's bottom is inside. ``runs`` as for :func:`at_best`.
    """
    import pandas as pd

    known, rows = _known(runs, model), {}
    check_task(task, None)
    for method in METHODS:
        valley = known.valley(task, method, rank)
        best = known.best(task, method, rank)
        if best is None:
            continue
        losses = [run.metrics.get("validation_loss", math.inf) for run in best.runs]
        at = [p.lr for p in valley].index(best.lr)
        rows[method] = {
            "rate": best.lr,
            "validation_loss": validation_loss(best),
            "low": min(losses),
            "high": max(losses),
            "accuracy": best.accuracy.middle,
            "seeds": len(best.runs),
            "tried": len(valley),
            "edge": "low" if at == 0 else "high" if at == len(valley) - 1 else "",
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def at_best(
    runs: Runs = None,
    task: str = "word-problems",
    methods: Iterable[str] | None = None,
    rank: int = 8,
    *,
    model: str = EMBEDDED,
) -> dict[str, tuple[Run, ...]]:
    """The runs of each method at its own best rate (see :func:`best_rates`), for :func:`compare`.

    ``runs``: a store, its folder, or recordings; by default those that ship. Methods without runs are left out;
    raises :class:`InputError` if none is left, or for an unknown name.
    """
    names = list(METHODS if methods is None else methods)
    check_task(task, None)
    points = {get_method(name).name: _known(runs, model).best(task, name, rank) for name in names}
    found = {name: point.runs for name, point in points.items() if point is not None}
    if not found:
        raise InputError(f"there is no run of {', '.join(names)} on {task} at rank {rank}; make some with nl.sweep")
    return found


def at_rate(
    lr: float,
    runs: Runs = None,
    task: str = "word-problems",
    methods: Iterable[str] | None = None,
    rank: int = 8,
    *,
    model: str = EMBEDDED,
) -> dict[str, tuple[Run, ...]]:
    """The runs of each method at one rate for all, as most papers compare them; otherwise like :func:`at_best`."""
    known, names = _known(runs, model), list(METHODS if methods is None else methods)
    check_task(task, None)
    points = {get_method(name).name: known.at(task, name, rank, lr) for name in names}
    found = {name: point.runs for name, point in points.items() if point is not None and point.lr == lr}
    if not found:
        raise InputError(f"there is no run of {', '.join(names)} on {task} at the rate {lr:g} and rank {rank}")
    return found


def at_each_rate(
    method: str, runs: Runs = None, task: str = "word-problems", rank: int = 8, *, init: str | None = None,
    model: str = EMBEDDED,
) -> dict[str, tuple[Run, ...]]:  # fmt: skip
    """The runs of one method, a group a rate, named by it (``"0.0002"``); otherwise like :func:`at_best`."""
    check_task(task, None)
    check_init(get_method(method), init)
    found = {f"{p.lr:g}": p.runs for p in _known(runs, model).valley(task, method, rank, init)}
    if not found:
        raise InputError(f"there is no run of {method} on {task} at rank {rank}; make some with nl.sweep")
    return found


def compare(groups: Groups, baseline: str = "lora", metric: str = "accuracy", confidence: float = 0.95) -> pd.DataFrame:
    """Every group of runs beside ``baseline``: one row a group, the best first.

    ``groups``: runs by name, as :func:`at_best` gives them, or your own. ``metric``: "accuracy" (a run that
    diverged counts as 0), "final_loss" or "validation_loss" (such a run counts as infinite).

    Columns: rate, seeds, median, low, high (of the group itself, see
    :func:`~nlora_lab.statistics.median_interval`); difference, difference_low, difference_high (mean and Student's
    interval of *group − baseline*, pairs of one seed), pairs, above (in how many of them the group has more),
    p, p_signs (see :class:`~nlora_lab.statistics.Paired`), p_adjusted (p for as many comparisons as there are, by
    Holm), and verdict. The verdict goes by p_adjusted. It is about these test items and this model; other items would
    add their own scatter.

    Raises :class:`InputError` for an unknown metric or baseline, and a group without runs.
    """
    import pandas as pd

    one_of("metric", metric, METRICS)
    one_of("baseline", baseline, groups)
    check_confidence(confidence)
    chosen = METRICS[metric]
    values = {name: _by_seed(name, runs, chosen) for name, runs in groups.items()}
    rows = {name: _row(groups[name], values[name], values[baseline], chosen, confidence) for name in groups}
    others = [name for name in groups if name != baseline]
    for name, p in zip(others, holm([rows[name]["p"] for name in others]), strict=True):
        rows[name]["p_adjusted"] = p
    for name in groups:
        rows[name]["verdict"] = (
            "the baseline" if name == baseline else verdict(rows[name], _label(baseline), chosen, confidence)
        )
    order = sorted(rows, key=lambda name: -chosen.better * rows[name]["median"])
    return pd.DataFrame.from_dict({name: rows[name] for name in order}, orient="index")


def _by_seed(name: str, runs: Sequence[Run], metric: _Metric) -> dict[int, float]:
    """One number a seed: the mean where several machines, or several people, made the same run."""
    found: dict[int, list[float]] = {}
    for run in runs:
        value = metric.of(run)
        if not math.isnan(value):
            found.setdefault(run.config.seed, []).append(value)
    if not found:
        raise InputError(f"group {name!r} has no run with {metric.name}")
    return {seed: fmean(of_seed) for seed, of_seed in sorted(found.items())}


def _row(
    runs: Sequence[Run], ours: dict[int, float], theirs: dict[int, float], metric: _Metric, confidence: float
) -> dict[str, Any]:
    own = median_interval(list(ours.values()), confidence)
    both = [seed for seed in ours if seed in theirs and math.isfinite(ours[seed]) and math.isfinite(theirs[seed])]
    pair = paired([ours[seed] - theirs[seed] for seed in both], confidence)
    rates = {run.config.lr for run in runs}
    return {
        "rate": rates.pop() if len(rates) == 1 else math.nan,
        "seeds": len(ours),
        "median": own.middle,
        "low": own.low,
        "high": own.high,
        "difference": pair.mean,
        "difference_low": pair.low,
        "difference_high": pair.high,
        "pairs": pair.pairs,
        "above": pair.above,
        "p": pair.p,
        "p_signs": pair.p_signs,
        "p_adjusted": math.nan,
    }


def _label(name: str) -> str:
    """A method's name in words; any other group's as it is."""
    return METHODS[name].label if name in METHODS else name


def verdict(row: Mapping[str, Any], baseline: str, metric: _Metric, confidence: float = 0.95) -> str:
    """What a row of :func:`compare` allows to say."""
    n = int(row["pairs"])
    if n < LEAST_PAIRS:
        return f"too few seeds to tell: {n} of them shared"
    p = row["p_adjusted"]
    if not p <= 1 - confidence:
        return f"not distinguishable from {baseline} with these {n} seeds"
    word = "better" if row["difference"] * metric.better > 0 else "worse"
    ends = " to ".join(metric.told(row[end]).removesuffix(metric.unit) for end in ("difference_low", "difference_high"))
    return f"{word} than {baseline}: {metric.told(row['difference'])} ({ends}; {n} seeds)"


# --- beyond one number ---


def learning(groups: Groups, target: float) -> pd.DataFrame:
    """How soon each group's training loss is down to ``target`` (nats a target token): one row a group.

    Columns: runs, reached (how many of them), steps (median over those that did, of a running mean of ten), low, high,
    and seconds (median; as the machine was loaded then).
    """
    import pandas as pd

    if isinstance(target, bool) or not isinstance(target, int | float) or not target > 0:
        raise InputError(f"target={target!r} must be a loss above 0; try 0.2")
    rows = {}
    for name, runs in groups.items():
        steps = [(steps_to(run, target), run) for run in runs]
        there = [(n, run) for n, run in steps if n is not None]
        spread = median_interval([float(n) for n, _ in there])
        rows[name] = {
            "runs": len(runs),
            "reached": len(there),
            "steps": spread.middle,
            "low": spread.low,
            "high": spread.high,
            "seconds": median(run.seconds * n / len(run.steps) for n, run in there) if there else math.nan,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def steps_to(run: Run, target: float) -> int | None:
    """The first step at which the running mean of ten training losses is at most ``target``; ``None`` if never."""
    losses = [step.loss for step in run.steps if math.isfinite(step.loss)]
    means = running_mean(losses)
    return next((i + 1 for i, mean in enumerate(means) if i + 1 >= min(10, len(means)) and mean <= target), None)


def costs(groups: Groups) -> pd.DataFrame:
    """What each group reaches and what it takes, medians over its runs: one row a group.

    Columns: accuracy (0 to 1; a run that diverged counts as 0), trainable (numbers), seconds (of training), memory
    (bytes, the peak; on a CPU that of the whole process), and ``pareto``: whether no other group is at least as good in
    all four and better in one.
    """
    import pandas as pd

    accuracy = METRICS["accuracy"]
    rows = {
        name: {
            "accuracy": median(_by_seed(name, runs, accuracy).values()),
            "trainable": median(run.trainable for run in runs),
            "seconds": median(run.seconds for run in runs),
            "memory": median(run.peak_memory for run in runs),
        }
        for name, runs in groups.items()
    }
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame["pareto"] = pareto(frame, more=["accuracy"], less=["trainable", "seconds", "memory"])
    return frame


def pareto(frame: pd.DataFrame, more: Sequence[str], less: Sequence[str]) -> pd.Series[bool]:
    """Which rows no other row dominates: at least as good in every column named, and better in one.

    ``more``: columns of which more is better; ``less``: those of which less is. A row with NaN is never on the front.
    """
    import pandas as pd

    for name in (*more, *less):
        one_of("column", name, [str(c) for c in frame.columns])
    points = [[-row[c] for c in more] + [row[c] for c in less] for _, row in frame.iterrows()]

    def beaten(point: list[float]) -> bool:
        if any(math.isnan(v) for v in point):
            return True
        return any(all(a <= b for a, b in zip(other, point, strict=True)) and other != point for other in points)

    return pd.Series([not beaten(point) for point in points], index=frame.index)


def _known(runs: Runs, model: str) -> Recordings:
    return runs if isinstance(runs, Recordings) else recordings_of(runs, model)
