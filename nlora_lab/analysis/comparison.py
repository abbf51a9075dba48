"""Comparing methods: each at its own best rate, over seeds, in pairs, with a verdict in words.

The rate is chosen by the loss on validation items. What is compared, the accuracy on test items, takes no part in the
choice. Runs with the same seed see the same batches in the same order, and are tested on the same items. So their
*difference* scatters less than either of them, and the verdict is about the difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import median
from typing import TYPE_CHECKING, Any

from nlora_lab.analysis.statistics import LEAST_PAIRS, check_confidence, holm, median_interval, paired
from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice, check_number
from nlora_lab.methods.table import METHODS
from nlora_lab.runs.rate_points import by_seed, running_mean
from nlora_lab.runs.run import Run
from nlora_lab.tasks.generated import DEFAULT_DIFFICULTY

if TYPE_CHECKING:
    import pandas as pd

Groups = Mapping[str, Sequence[Run]]


@dataclass(frozen=True)
class Metric:
    """A number of a run, by which groups are compared.

    Attributes:
        name: its name in ``Run.metrics``, or "final_loss".
        sign: 1 where more is better, −1 where less is better.
        diverged: what it counts as when the run diverged.
        unit: its unit in a verdict.
        scale: by what a verdict multiplies it.
    """

    name: str
    sign: int
    diverged: float
    unit: str
    scale: float

    def of(self, run: Run) -> float:
        """Return the metric of a run: NaN if the run failed, because then nothing was measured."""
        if run.error:
            return math.nan
        if run.diverged:
            return self.diverged
        value = run.final_loss if self.name == "final_loss" else run.metrics.get(self.name, math.nan)
        return float(value)

    def format(self, difference: float) -> str:
        """Print a difference with its sign and unit."""
        return f"{difference * self.scale:+.3g}{self.unit}"


METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", 1, 0.0, " points", 100.0),
        Metric("final_loss", -1, math.inf, " nats", 1.0),
        Metric("validation_loss", -1, math.inf, " nats", 1.0),
    )
}


def compare(groups: Groups, baseline: str = "lora", metric: str = "accuracy", confidence: float = 0.95) -> pd.DataFrame:
    """Compare groups of runs with a baseline. Runs that failed are left out, because they measured nothing.

    Args:
        groups: runs by name, as ``nl.at_best`` returns them, or your own. The runs of a group differ only in seeds.
        baseline: the name of the group that all others are compared with.
        metric: "accuracy" (a run that diverged counts as 0), "final_loss" or "validation_loss" (such a run counts as
            infinite).
        confidence: the level of the intervals and of the verdicts, between 0 and 1.

    Returns:
        One row per group, the best median first. Columns:

        - ``rate``, ``seeds``, and ``diverged``, the number of seeds that diverged.
        - ``median``, ``low``, ``high``: of the group itself, with its interval (``statistics.median_interval``).
        - ``difference``, ``difference_low``, ``difference_high``: the mean of *group − baseline* over pairs of one
          seed, with Student's interval. NaN if a loss is infinite in a pair, because the mean of the other pairs would
          favour the group that diverged.
        - ``pairs``; ``infinite``, the pairs in which a loss is infinite; ``above``, the pairs in which the group has
          more than the baseline.
        - ``p`` and ``p_signs`` (``statistics.paired``), and ``p_adjusted``, which is ``p`` for as many
          comparisons as there are (Holm).
        - ``verdict``, by ``p_adjusted``. It is about this model and these test items. Other items would add a scatter
          of their own.

        Accuracies are from 0 to 1, and losses are in nats per target token.

    Raises:
        InputError: the metric or the baseline is unknown, a group has no runs or mixes configs, or the groups were
            tested on different items.
    """
    import pandas as pd

    check_choice("metric", metric, METRICS)
    groups = _checked_groups(groups)
    check_choice("baseline", baseline, groups)
    check_confidence(confidence)
    _check_comparable(groups)
    chosen = METRICS[metric]
    values = {name: _values(name, runs, chosen) for name, runs in groups.items()}
    rows = {name: _row(groups[name], values[name], values[baseline], confidence) for name in groups}
    others = [name for name in groups if name != baseline]
    for name, p in zip(others, holm([rows[name]["p"] for name in others]), strict=True):
        rows[name]["p_adjusted"] = p
        rows[name]["verdict"] = _verdict(rows[name], _label(baseline), chosen, confidence)
    rows[baseline]["verdict"] = "the baseline"
    order = sorted(rows, key=lambda name: -chosen.sign * rows[name]["median"])
    return pd.DataFrame.from_dict({name: rows[name] for name in order}, orient="index")


def _checked_groups(groups: Groups) -> dict[str, tuple[Run, ...]]:
    if not isinstance(groups, Mapping):
        raise InputError(f"groups={groups!r} must be runs by name, as nl.at_best returns them")
    return {str(name): tuple(runs) for name, runs in groups.items()}


def _check_comparable(groups: Mapping[str, Sequence[Run]]) -> None:
    """Check that a group has one config but for seeds, and that all groups have one model and one set of test items."""
    tested: dict[tuple[str, ...], str] = {}
    for name, runs in groups.items():
        configs = [{**run.config.identity(), "seed": None} for run in runs]
        mixed = [key for key in dict.fromkeys(chain(*configs)) if len({c.get(key) for c in configs}) > 1]
        if mixed:
            raise InputError(f"group {name!r} mixes runs of different {' and '.join(mixed)}; make a group of each")
        for c in (run.config for run in runs):
            choices = {key: getattr(c, key) for key in ("data", "columns", "test_rows", "revision")}
            items = [f"{key}={value}" for key, value in choices.items() if value is not None]
            tested.setdefault((c.model, c.task, c.difficulty or DEFAULT_DIFFICULTY, *items), name)
    if len(tested) > 1:
        differences = "; ".join(f"{name!r}: {' '.join(items)}" for items, name in tested.items())
        raise InputError(f"the groups were tested on different items ({differences}); compare groups with the same")


def _values(name: str, runs: Sequence[Run], metric: Metric) -> dict[int, float]:
    """The metric of a group by seed."""
    values = by_seed(runs, metric.of)
    if not values:
        raise InputError(f"group {name!r} has no finished run with {metric.name}; make runs with nl.sweep")
    return values


def _row(
    runs: Sequence[Run], values: dict[int, float], baseline: dict[int, float], confidence: float
) -> dict[str, Any]:
    """A row of the table, without its verdict."""
    spread = median_interval(list(values.values()), confidence)
    pairs = [(values[seed], baseline[seed]) for seed in values if seed in baseline]
    infinite = sum(math.isinf(ours) or math.isinf(theirs) for ours, theirs in pairs)
    # the mean of the remaining pairs would favour the group that lost the others
    difference = paired([] if infinite else [ours - theirs for ours, theirs in pairs], confidence)
    return {
        "rate": runs[0].config.lr,
        "seeds": len(values),
        "diverged": len({run.config.seed for run in runs if run.diverged}),
        "median": spread.middle,
        "low": spread.low,
        "high": spread.high,
        "difference": difference.mean,
        "difference_low": difference.low,
        "difference_high": difference.high,
        "pairs": len(pairs),
        "infinite": infinite,
        "above": sum(ours > theirs for ours, theirs in pairs),
        "p": difference.p,
        "p_signs": difference.p_signs,
        "p_adjusted": math.nan,
    }


def _label(name: str) -> str:
    """The label of a method, or the name of another group."""
    return METHODS[name].label if name in METHODS else name


def _verdict(row: Mapping[str, Any], baseline: str, metric: Metric, confidence: float) -> str:
    """What a row of ``compare`` allows to say."""
    n = int(row["pairs"])
    if n < LEAST_PAIRS:
        return f"too few seeds to tell: {n} of them shared"
    if row["infinite"]:
        return f"not judged by means: in {int(row['infinite'])} of {n} pairs a run diverged"
    if not row["p_adjusted"] <= 1 - confidence:  # NaN is not
        return f"not distinguishable from {baseline} with these {n} seeds"
    word = "better" if row["difference"] * metric.sign > 0 else "worse"
    low, high = (metric.format(row[f"difference_{end}"]).removesuffix(metric.unit) for end in ("low", "high"))
    return f"{word} than {baseline}: {metric.format(row['difference'])} ({low} to {high}; {n} seeds)"


def learning(groups: Groups, target: float) -> pd.DataFrame:
    """Measure how soon the training loss of each group is down to ``target``.

    Args:
        groups: runs by name, as ``nl.at_best`` returns them.
        target: a training loss, in nats per target token.

    Returns:
        One row per group. Columns: ``seeds``; ``reached``, the number of seeds that reached the target; ``steps``, the
        median over those, of a running mean of ten losses, with its interval ``low`` and ``high``; and ``seconds``,
        the median, with the load that the machine had. Several runs of one seed count as one, their mean.

    Raises:
        InputError: the target is not above 0, or ``groups`` is not a mapping.
    """
    import pandas as pd

    check_number("target", target, above=0, remedy="try 0.2")
    rows = {}
    for name, group in _checked_groups(groups).items():
        runs = [run for run in group if not run.error]
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
    """Find the first step at which the running mean of ten training losses is at most ``target``.

    Args:
        run: the run.
        target: a training loss, in nats per target token.

    Returns:
        The number of the step, from 1, or ``None`` if the loss is never that low.
    """
    losses = [step.loss for step in run.steps if math.isfinite(step.loss)]
    means = running_mean(losses)
    return next((i + 1 for i, mean in enumerate(means) if i + 1 >= min(10, len(means)) and mean <= target), None)


def costs(groups: Groups) -> pd.DataFrame:
    """Compare what each group reaches with what it costs.

    Args:
        groups: runs by name, as ``nl.at_best`` returns them.

    Returns:
        One row per group, medians over its runs. Columns: ``accuracy``, 0 to 1, where a run that diverged counts as 0;
        ``trainable``, the number of trainable parameters; ``seconds`` of training; ``memory``, the peak in bytes, on a
        CPU of the process; and ``pareto``, whether no other group is at least as good in all four and better in one.
        Runs that raced together were timed together and share a peak. If a group has such runs, ``pareto`` ignores
        seconds and memory.

    Raises:
        InputError: a group has no finished run.
    """
    import pandas as pd

    rows, raced = {}, False
    for name, group in _checked_groups(groups).items():
        accuracy = median(_values(name, group, METRICS["accuracy"]).values())
        runs = [run for run in group if not run.error]
        raced = raced or any(run.together > 1 for run in runs)
        rows[name] = {
            "accuracy": accuracy,
            "trainable": median(run.trainable for run in runs),
            "seconds": median(run.seconds for run in runs),
            "memory": median(run.peak_memory for run in runs),
        }
    frame = pd.DataFrame.from_dict(rows, orient="index")
    less = ["trainable"] if raced else ["trainable", "seconds", "memory"]
    frame["pareto"] = pareto(frame, more=["accuracy"], less=less)
    return frame


def pareto(frame: pd.DataFrame, more: Sequence[str], less: Sequence[str]) -> pd.Series[bool]:
    """Find the Pareto front of a table.

    Args:
        frame: the table.
        more: the columns of which more is better.
        less: the columns of which less is better.

    Returns:
        For each row whether it is on the front: no other row is at least as good in every column named and better in
        one. A row with NaN is never on the front.

    Raises:
        InputError: the table has no such column.
    """
    import pandas as pd

    for name in (*more, *less):
        check_choice("column", name, [str(c) for c in frame.columns])
    points = [[-row[c] for c in more] + [row[c] for c in less] for _, row in frame.iterrows()]

    def is_dominated(point: list[float]) -> bool:
        if any(math.isnan(v) for v in point):
            return True
        return any(all(a <= b for a, b in zip(other, point, strict=True)) and other != point for other in points)

    return pd.Series([not is_dominated(point) for point in points], index=frame.index)
