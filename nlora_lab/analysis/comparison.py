"""Comparing methods as it should be done: each at its own best rate, over seeds, paired, with a verdict in words.

The rate is chosen by the loss on validation items; what is compared, the accuracy on test items, takes no part in
the choice. Runs with the same seed see the same batches in the same order and are tested on the same items: so their
*difference* scatters less than either of them, and is what is judged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import median
from typing import TYPE_CHECKING, Any

from nlora_lab.core.errors import InputError
from nlora_lab.core.statistics import LEAST_PAIRS, check_confidence, holm, median_interval, paired
from nlora_lab.core.validation import check_choice
from nlora_lab.methods.table import METHODS
from nlora_lab.runs.index import by_seed, running_mean
from nlora_lab.runs.run import Run
from nlora_lab.tasks.generated import DEFAULT_DIFFICULTY

if TYPE_CHECKING:
    import pandas as pd

Groups = Mapping[str, Sequence[Run]]


@dataclass(frozen=True)
class _Metric:
    """A number of a run, and what it is worth when the run diverged."""

    name: str
    better: int  # 1 where more is better, −1 where less is
    lost: float
    unit: str
    scale: float

    def of(self, run: Run) -> float:
        """The number; NaN where the run failed, which is no measurement."""
        if run.error:
            return math.nan
        if run.diverged:
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


def compare(groups: Groups, baseline: str = "lora", metric: str = "accuracy", confidence: float = 0.95) -> pd.DataFrame:
    """Every group of runs beside ``baseline``: one row a group, the best first.

    ``groups``: runs by name, as :func:`nlora_lab.at_best` gives them, or your own. ``metric``: "accuracy" (a run that
    diverged counts as 0), "final_loss" or "validation_loss" (such a run counts as infinite).

    Runs that failed are left out: they measured nothing. Columns:

    - rate, seeds, diverged (how many of them);
    - median, low, high: of the group itself (see :func:`~nlora_lab.core.statistics.median_interval`);
    - difference, difference_low, difference_high: mean of *group − baseline* over pairs of one seed, with Student's
      interval; pairs; infinite: in how many a loss is, and then means say nothing and none is given; above: in how many
      the group has more;
    - p, p_signs (see :class:`~nlora_lab.core.statistics.Paired`); p_adjusted: p for as many comparisons as there are (Holm);
    - verdict, which goes by p_adjusted. It is about these test items and this model; other items would add their own
      scatter.

    Raises :class:`InputError` for an unknown metric or baseline, a group without runs, a group that mixes configs, and
    groups that were tested on different items.
    """
    import pandas as pd

    check_choice("metric", metric, METRICS)
    groups = _groups(groups)
    check_choice("baseline", baseline, groups)
    check_confidence(confidence)
    _check_alike(groups)
    chosen = METRICS[metric]
    values = {name: _values(name, runs, chosen) for name, runs in groups.items()}
    rows = {name: _row(groups[name], values[name], values[baseline], confidence) for name in groups}
    others = [name for name in groups if name != baseline]
    for name, p in zip(others, holm([rows[name]["p"] for name in others]), strict=True):
        rows[name]["p_adjusted"] = p
        rows[name]["verdict"] = verdict(rows[name], _label(baseline), chosen, confidence)
    rows[baseline]["verdict"] = "the baseline"
    order = sorted(rows, key=lambda name: -chosen.better * rows[name]["median"])
    return pd.DataFrame.from_dict({name: rows[name] for name in order}, orient="index")


def _groups(groups: Groups) -> dict[str, tuple[Run, ...]]:
    if not isinstance(groups, Mapping):
        raise InputError(f"groups={groups!r} must be runs by name, as nl.at_best gives them")
    return {str(name): tuple(runs) for name, runs in groups.items()}


def _check_alike(groups: Mapping[str, Sequence[Run]]) -> None:
    """A group is one config but for its seeds; all groups are of one model and one set of test items."""
    tested: dict[tuple[str, ...], str] = {}
    for name, runs in groups.items():
        asked = [{**r.config.identity(), "seed": None} for r in runs]
        mixed = [key for key in dict.fromkeys(chain(*asked)) if len({a.get(key) for a in asked}) > 1]
        if mixed:
            raise InputError(f"group {name!r} mixes runs of different {' and '.join(mixed)}; make a group of each")
        for c in (run.config for run in runs):
            items = {
                k: getattr(c, k) for k in ("data", "columns", "test_rows", "revision") if getattr(c, k) is not None
            }
            rest = [f"{key}={value}" for key, value in items.items()]
            tested.setdefault((c.model, c.task, c.difficulty or DEFAULT_DIFFICULTY, *rest), name)
    if len(tested) > 1:
        told = "; ".join(f"{name!r}: {' '.join(what)}" for what, name in tested.items())
        raise InputError(f"the groups were tested on different things ({told}); compare within one")


def _values(name: str, runs: Sequence[Run], metric: _Metric) -> dict[int, float]:
    found = by_seed(runs, metric.of)
    if not found:
        raise InputError(f"group {name!r} has no finished run with {metric.name}")
    return found


def _row(runs: Sequence[Run], ours: dict[int, float], theirs: dict[int, float], confidence: float) -> dict[str, Any]:
    own = median_interval(list(ours.values()), confidence)
    both = [seed for seed in ours if seed in theirs]
    lost = [seed for seed in both if math.isinf(ours[seed]) or math.isinf(theirs[seed])]
    # the mean of those that are left would favour whoever lost the others
    pair = paired([] if lost else [ours[seed] - theirs[seed] for seed in both], confidence)
    return {
        "rate": runs[0].config.lr,
        "seeds": len(ours),
        "diverged": len({run.config.seed for run in runs if run.diverged}),
        "median": own.middle,
        "low": own.low,
        "high": own.high,
        "difference": pair.mean,
        "difference_low": pair.low,
        "difference_high": pair.high,
        "pairs": len(both),
        "infinite": len(lost),
        "above": sum(ours[seed] > theirs[seed] for seed in both),
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
    if row["infinite"]:
        return f"not judged by means: in {int(row['infinite'])} of {n} pairs a run diverged"
    p = row["p_adjusted"]
    if not p <= 1 - confidence:
        return f"not distinguishable from {baseline} with these {n} seeds"
    word = "better" if row["difference"] * metric.better > 0 else "worse"
    ends = " to ".join(metric.told(row[end]).removesuffix(metric.unit) for end in ("difference_low", "difference_high"))
    return f"{word} than {baseline}: {metric.told(row['difference'])} ({ends}; {n} seeds)"


# --- beyond one number ---


def learning(groups: Groups, target: float) -> pd.DataFrame:
    """How soon each group's training loss is down to ``target`` (nats a target token): one row a group.

    Columns: seeds, reached (how many of them), steps (median over those that did, of a running mean of ten), low, high,
    and seconds (median; as the machine was loaded then). Several runs of one seed count as one, their mean.
    """
    import pandas as pd

    if isinstance(target, bool) or not isinstance(target, int | float) or not target > 0:
        raise InputError(f"target={target!r} must be a loss above 0; try 0.2")
    rows = {}
    for name, given in _groups(groups).items():
        runs = [run for run in given if not run.error]
        steps = by_seed(runs, lambda run: steps_to(run, target) or math.nan)
        seconds = by_seed(runs, lambda run: (steps_to(run, target) or math.nan) * run.seconds / max(1, len(run.steps)))
        spread = median_interval(list(steps.values()))
        rows[name] = {
            "seeds": len({run.config.seed for run in runs}),
            "reached": len(steps),
            "steps": spread.middle,
            "low": spread.low,
            "high": spread.high,
            "seconds": median(seconds.values()) if seconds else math.nan,
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
    all four and better in one. Runs that raced together were timed together and share a peak: where there are such,
    ``pareto`` leaves seconds and memory out.
    """
    import pandas as pd

    accuracy, rows, raced = METRICS["accuracy"], {}, False
    for name, given in _groups(groups).items():
        right = median(_values(name, given, accuracy).values())
        runs = [run for run in given if not run.error]
        raced = raced or any(run.together > 1 for run in runs)
        rows[name] = {
            "accuracy": right,
            "trainable": median(run.trainable for run in runs),
            "seconds": median(run.seconds for run in runs),
            "memory": median(run.peak_memory for run in runs),
        }
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame["pareto"] = pareto(
        frame, more=["accuracy"], less=["trainable"] if raced else ["trainable", "seconds", "memory"]
    )
    return frame


def pareto(frame: pd.DataFrame, more: Sequence[str], less: Sequence[str]) -> pd.Series[bool]:
    """Which rows no other row dominates: at least as good in every column named, and better in one.

    ``more``: columns of which more is better; ``less``: those of which less is. A row with NaN is never on the front.
    """
    import pandas as pd

    for name in (*more, *less):
        check_choice("column", name, [str(c) for c in frame.columns])
    points = [[-row[c] for c in more] + [row[c] for c in less] for _, row in frame.iterrows()]

    def beaten(point: list[float]) -> bool:
        if any(math.isnan(v) for v in point):
            return True
        return any(all(a <= b for a, b in zip(other, point, strict=True)) and other != point for other in points)

    return pd.Series([not beaten(point) for point in points], index=frame.index)
