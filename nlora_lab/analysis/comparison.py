"""Comparing methods: each at its own best rate, over seeds, with a verdict in words.

The rate is chosen by the loss on validation items. What is compared, measured on test items, takes no part in the
choice. Two groups are compared as independent samples (Welch's test), although runs of one seed see the same batches:
``seed_pairing`` shows that pairs of one seed scatter as much as pairs of different seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from statistics import median
from typing import TYPE_CHECKING, Any

from nlora_lab.analysis.noise import pairing_gain, welch
from nlora_lab.analysis.statistics import LEAST_SEEDS, check_confidence, median_interval
from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice, check_number
from nlora_lab.methods.table import METHODS
from nlora_lab.runs.rate_points import by_seed, running_mean
from nlora_lab.runs.run import Run
from nlora_lab.tasks.generated import DEFAULT_DIFFICULTY

if TYPE_CHECKING:
    import pandas as pd

Groups = Mapping[str, Sequence[Run]]

PLANNED = ("slora", "nlora", "nlora-released", "nlora-balanced", "pissa")
"""The methods that this project asks about: their comparisons with LoRA are one family of tests.

The list follows the questions of the course. Most of the recorded runs existed when it was written down.
"""


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
        if self.name == "steps_to_90":
            return run.steps_until(0.9)
        if self.name == "log_test_loss":
            return _log10(run.metrics.get("test_loss", math.nan))
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
        Metric("test_loss", -1, math.inf, " nats", 1.0),
        Metric("log_test_loss", -1, math.inf, " powers of ten", 1.0),
        Metric("steps_to_90", -1, math.inf, " steps", 1.0),
    )
}


def compare(groups: Groups, baseline: str = "lora", metric: str = "accuracy", confidence: float = 0.95) -> pd.DataFrame:
    """Compare groups of runs with a baseline. Runs that failed are left out, because they measured nothing.

    The verdict of a group does not depend on which other groups are passed. Against LoRA, p is multiplied by the number
    of planned comparisons (``PLANNED``), or by the number of all methods for a method that is not among them. Groups
    with names of your own, and comparisons with another baseline, are a family of their own: p is multiplied by the
    number of the other groups (Bonferroni).

    Args:
        groups: runs by name, as ``nl.at_best`` returns them, or your own. The runs of a group differ only in seeds.
        baseline: the name of the group that all others are compared with.
        metric: "accuracy" (a run that diverged counts as 0), "final_loss", "validation_loss", "test_loss",
            "log_test_loss", its logarithm to base 10 (in all of these a run that diverged counts as infinite), or
            "steps_to_90", the steps until 90 % of the validation answers are right, for runs with ``measure_every`` (a
            run that never got there counts as infinite).
        confidence: the level of the intervals and of the verdicts, between 0 and 1.

    Returns:
        One row per group, the best median first. Columns:

        - ``rate``, ``seeds``, and ``diverged``, the number of seeds that diverged.
        - ``median``, ``low``, ``high``: of the group itself, with its interval (``statistics.median_interval``).
        - ``difference``, ``difference_low``, ``difference_high``: the mean of the group less that of the baseline, with
          Welch's interval. NaN if a value is infinite, because the mean of the others would favour the group that
          diverged.
        - ``against``: the number of seeds of the baseline; ``infinite``: the infinite values in both groups.
        - ``p`` (``noise.welch``); ``tests``, the number that multiplies it; ``p_adjusted``, the product, at most 1.
        - ``detectable``: the smallest true difference that this comparison would have found in 8 of 10 cases.
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
    values = {name: list(_values(name, runs, chosen).values()) for name, runs in groups.items()}
    rows = {}
    for name in groups:
        tests = 1 if name == baseline else family_size(name, baseline, len(groups) - 1)
        rows[name] = _row(groups[name], values[name], values[baseline], confidence, tests)
        rows[name]["verdict"] = _verdict(rows[name], _label(baseline), chosen, confidence)
    rows[baseline]["verdict"] = "the baseline"
    order = sorted(rows, key=lambda name: -chosen.sign * rows[name]["median"])
    return pd.DataFrame.from_dict({name: rows[name] for name in order}, orient="index")


def family_size(name: str, baseline: str, others: int) -> int:
    """Return by how many comparisons a p-value is multiplied.

    Args:
        name: the group that is compared.
        baseline: what it is compared with.
        others: the number of groups beside the baseline.

    Returns:
        The number of planned comparisons with LoRA, that of all methods, or ``others``: see ``compare``.
    """
    if baseline != "lora" or name not in METHODS:
        return others
    return len(PLANNED) if name in PLANNED else len(METHODS) - 1


def seed_pairing(groups: Groups, metric: str = "accuracy") -> float:
    """Measure what pairing runs by their seed would gain, over all pairs of groups.

    Args:
        groups: runs by name, as ``nl.at_best`` returns them.
        metric: as in ``compare``.

    Returns:
        The variance of the differences of one seed, divided by the variance for independent runs. Near 1, pairing gains
        nothing; near 0, a difference of one seed scatters much less than the runs. Pairs with an infinite value are
        left out. NaN if no two groups share two seeds.

    Raises:
        InputError: the metric is unknown, or a group has no finished run with it.
    """
    check_choice("metric", metric, METRICS)
    values = [_values(name, runs, METRICS[metric]) for name, runs in _checked_groups(groups).items()]
    return pairing_gain(
        [
            [(first[s], second[s]) for s in first if s in second and math.isfinite(first[s] + second[s])]
            for first, second in combinations(values, 2)
        ]
    )


def _log10(loss: float) -> float:
    return math.log10(loss) if loss > 0 else -math.inf if loss == 0 else math.nan


def _checked_groups(groups: Groups) -> dict[str, tuple[Run, ...]]:
    if not isinstance(groups, Mapping):
        raise InputError(f"groups={groups!r} must be runs by name, as nl.at_best returns them")
    return {str(name): tuple(runs) for name, runs in groups.items()}


def _check_comparable(groups: Mapping[str, Sequence[Run]]) -> None:
    """Check that a group has one config but for seeds, and that all groups have one model and one set of test items."""
    tested: dict[tuple[str, ...], str] = {}
    for name, runs in groups.items():
        configs = [{**run.config.identity(), "seed": None, "replicate": 0} for run in runs]
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
    runs: Sequence[Run], values: Sequence[float], baseline: Sequence[float], confidence: float, tests: int
) -> dict[str, Any]:
    """A row of the table, without its verdict."""
    spread = median_interval(values, confidence)
    infinite = sum(map(math.isinf, (*values, *baseline)))
    # the mean of the remaining values would favour the group that lost the others
    test = None if infinite else welch(values, baseline, confidence, tests)
    p = test.p if test else math.nan
    return {
        "rate": runs[0].config.lr,
        "seeds": len(values),
        "diverged": len({run.config.seed for run in runs if run.diverged}),
        "median": spread.middle,
        "low": spread.low,
        "high": spread.high,
        "difference": test.difference if test else math.nan,
        "difference_low": test.interval.low if test else math.nan,
        "difference_high": test.interval.high if test else math.nan,
        "against": len(baseline),
        "infinite": infinite,
        "p": p,
        "tests": tests,
        "p_adjusted": p if math.isnan(p) else min(1.0, p * tests),
        "detectable": test.detectable if test else math.nan,
    }


def _label(name: str) -> str:
    """The label of a method, or the name of another group."""
    return METHODS[name].label if name in METHODS else name


def _verdict(row: Mapping[str, Any], baseline: str, metric: Metric, confidence: float) -> str:
    """What a row of ``compare`` allows to say."""
    seeds = f"{row['seeds']} against {row['against']} seeds"
    if min(row["seeds"], row["against"]) < LEAST_SEEDS:
        return f"too few seeds to tell: {seeds}"
    if row["infinite"]:
        return f"not judged by means: {row['infinite']} of {row['seeds'] + row['against']} values are infinite"
    low, high = (metric.format(row[f"difference_{end}"]).removesuffix(metric.unit) for end in ("low", "high"))
    scatters = not math.isnan(row["detectable"])
    interval = f"{low} to {high}" if scatters else "no scatter in either group"
    found = f"{metric.format(row['difference'])} ({interval}; {seeds})"
    if row["p_adjusted"] > 1 - confidence:
        limit = f"from {metric.format(row['detectable']).removeprefix('+')} on" if scatters else "unknown"
        return f"not distinguishable from {baseline}: {found}; detectable {limit}"
    word = "better" if row["difference"] * metric.sign > 0 else "worse"
    return f"{word} than {baseline}: {found}"


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
