"""What the recorded runs say about the paper's claims. Every verdict follows from a comparison by a rule.

The runs are of the embedded model (0.9 million parameters) on two generated tasks. "Reproduced" means reproduced there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from nlora_lab.analysis.comparison import compare, steps_to
from nlora_lab.analysis.fresh_seeds import DECLARED, fresh_groups
from nlora_lab.analysis.noise import welch
from nlora_lab.analysis.selection import Runs, at_best, at_each_rate, at_rate, best_rates, recorded_index
from nlora_lab.analysis.statistics import LEAST_SEEDS
from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice
from nlora_lab.methods.table import METHODS
from nlora_lab.models.names import EMBEDDED
from nlora_lab.paper.verdicts import EDGE, FEW, NEITHER, NO_RUNS, OPPOSITE, OTHERWISE, REPRODUCED, SAME, UNJUDGED
from nlora_lab.runs.config import SHARED_RATE
from nlora_lab.runs.index import RecordedRuns
from nlora_lab.runs.rate_points import RatePoint, by_seed
from nlora_lab.runs.run import Run
from nlora_lab.runs.shipped import RANK
from nlora_lab.tasks.generated import TASKS

if TYPE_CHECKING:
    import pandas as pd

TARGET = 0.3  # nats per target token: around this loss both tasks begin to be solved
METHOD_COLUMNS = [
    "rate", "median", "their_rate", "their_median", "difference", "low", "high", "seeds", "p",
    "detectable", "edge", "verdict",
]  # fmt: skip
CONVERGENCE_COLUMNS = [
    "steps", "their_steps", "missed", "their_missed", "difference", "low", "high", "seeds", "p",
    "detectable", "verdict",
]  # fmt: skip
RATE_COLUMNS = ["rate", "validation_loss", "low", "high", "seeds", "tried", "edge", "verdict"]
FRESH_COLUMNS = [
    "rate", "their_rate", "ratio", "low", "high", "seeds", "their_seeds", "p", "detectable", "verdict",
]  # fmt: skip
MAIN_METHODS = ["lora", "slora", "nlora"]


def compare_methods(
    ours: str, theirs: str = "lora", *, rate: float | None = None, rank: int = RANK, runs: Runs = None
) -> pd.DataFrame:
    """Compare two methods on the recorded tasks.

    The verdict is that of ``nl.compare``. Where a better rate could reverse it, the verdict is that nothing is settled.

    Args:
        ours: the method that the verdict is about.
        theirs: the method to compare with.
        rate: one learning rate for both methods. ``None`` gives each method its own best rate.
        rank: the rank of the adapters.
        runs: a store, its folder, or recorded runs. ``None`` takes the runs that ship.

    Returns:
        One row per task that has runs of both methods. Columns:

        - rate and median (accuracy, 0 to 1) of ours, their_rate and their_median;
        - difference, low and high: the difference of the mean accuracies, and its 95 % interval;
        - seeds: the seeds of the method that has fewer, p: the adjusted p-value, and detectable: the smallest true
          difference that would have been found in 8 of 10 cases;
        - edge: whose best rate is the first or the last one tried ("ours", "theirs", "both" or ""). A better rate may
          then lie outside;
        - verdict: on *ours has more right answers*.

    Raises:
        InputError: a method is unknown, or both are the same.
    """
    import pandas as pd

    check_choice("method", ours, METHODS)
    check_choice("method", theirs, METHODS)
    if ours == theirs:
        raise InputError(f"ours and theirs are both {ours!r}; name two methods")
    recorded, rows = recorded_index(runs), {}
    for task in TASKS:
        groups = _groups(recorded, task, [theirs, ours], rate, rank)
        if ours in groups and theirs in groups:
            comparison = compare(groups, theirs)
            row, base = comparison.loc[ours], comparison.loc[theirs]
            edge = "" if rate is not None else _edge(recorded, task, ours, theirs, rank)
            rows[task] = [
                *(row["rate"], row["median"], base["rate"], base["median"]),
                *(row["difference"], row["difference_low"], row["difference_high"]),
                *(min(row["seeds"], base["seeds"]), row["p_adjusted"], row["detectable"], edge),
                _at_edge_verdict(edge, claim_verdict(str(row["verdict"]))),
            ]
    return pd.DataFrame.from_dict(rows, orient="index", columns=METHOD_COLUMNS).rename_axis("task")


def _groups(
    recorded: RecordedRuns, task: str, names: Sequence[str], rate: float | None, rank: int
) -> Mapping[str, Sequence[Run]]:
    try:
        return at_best(recorded, task, names, rank) if rate is None else at_rate(rate, recorded, task, names, rank)
    except InputError:  # no method has a run
        return {}


def _edge(recorded: RecordedRuns, task: str, ours: str, theirs: str, rank: int) -> str:
    names = {"ours": ours, "theirs": theirs}
    sides = [side for side, name in names.items() if _best_at_edge(recorded, task, name, rank)]
    return "both" if len(sides) == 2 else "".join(sides)


def _best_at_edge(recorded: RecordedRuns, task: str, method: str, rank: int, init: str | None = None) -> bool:
    best = recorded.best(task, method, rank, init)
    tried = [point.lr for point in recorded.valley(task, method, rank, init)]
    return best is not None and best.lr in (tried[0], tried[-1])


def _at_edge_verdict(edge: str, verdict: str) -> str:
    """Return the verdict, or ``EDGE`` where the side that it goes against could have had a better rate."""
    against = {REPRODUCED: ("theirs", "both"), OPPOSITE: ("ours", "both"), SAME: ("ours", "theirs", "both")}
    return EDGE if edge in against.get(verdict, ()) else verdict


def claim_verdict(comparison: str) -> str:
    """Translate a verdict of ``nl.compare`` into one on the claim *it has more right answers*."""
    verdicts = {"better": REPRODUCED, "worse": OPPOSITE, "not dist": SAME, "not judged": UNJUDGED, "too few": FEW}
    return next(verdict for beginning, verdict in verdicts.items() if comparison.startswith(beginning))


def on_fresh_seeds(
    methods: Sequence[str] = ("slora", "nlora", "nlora-released"), runs: Runs = None, *, model: str = EMBEDDED
) -> pd.DataFrame:
    """Compare the loss with LoRA's, on seeds on which no rate was chosen: see ``nl.analysis.fresh_groups``.

    Args:
        methods: the methods to compare with LoRA.
        runs: a store, its folder, or recorded runs. ``None`` takes the runs that ship.
        model: "embedded" (500 steps) or "larger" (250 steps).

    Returns:
        One row per method that has such runs. Columns:

        - rate and their_rate: chosen on other seeds, by validation loss;
        - ratio, low and high: the geometric mean of the losses of the right answers to the test items, divided by
          LoRA's, and its 95 % interval;
        - seeds and their_seeds; p: the adjusted p-value; detectable: the smallest true ratio above 1 that would have
          been found in 8 of 10 cases;
        - verdict: on *ours has the smaller loss*.

    Raises:
        InputError: a method or the model is unknown, or an index holds the runs of another model.
    """
    import pandas as pd

    for name in methods:
        check_choice("method", name, METHODS)
    check_choice("model", model, DECLARED)
    index = recorded_index(runs, model)
    try:
        groups = fresh_groups(["lora", *methods], index, model=model)
    except InputError:  # no method has a run
        groups = {}
    rows = {}
    if "lora" in groups and len(groups) > 1:
        table = compare(groups, metric="log_test_loss")
        base = table.loc["lora"]
        for name in table.index.drop("lora"):
            row = table.loc[name]
            ratios = (10 ** row[end] for end in ("difference", "difference_low", "difference_high"))
            tested = (row["p_adjusted"], 10 ** row["detectable"], claim_verdict(str(row["verdict"])))
            rows[name] = [row["rate"], base["rate"], *ratios, row["seeds"], base["seeds"], *tested]
    return pd.DataFrame.from_dict(rows, orient="index", columns=FRESH_COLUMNS).rename_axis("method")


def compare_convergence(
    methods: Sequence[str] = ("slora", "nlora"), *, rate: float | None = None, runs: Runs = None,
    target: float = TARGET, tests: int | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Compare how many steps some methods and LoRA need until the training loss is down to ``target``.

    A run that never reaches the loss counts with all its steps. The difference is then a lower bound.

    Args:
        methods: the methods to compare with LoRA.
        rate: one learning rate for all. ``None`` gives each method its own best rate.
        runs: a store, its folder, or recorded runs. ``None`` takes the runs that ship.
        target: the training loss, in nats per target token.
        tests: the number of comparisons that are made together, which multiplies p. ``None``: that of ``methods``.

    Returns:
        One row per task and method. Columns:

        - steps and their_steps (LoRA's): medians over runs;
        - missed and their_missed: how many runs never reached the loss;
        - difference, low and high: steps more than LoRA, of the means, and its 95 % interval;
        - seeds: the seeds of the method that has fewer, p: the p-value, multiplied by ``tests``, and detectable: the
          smallest true difference that would have been found in 8 of 10 cases;
        - verdict: on *the method reaches the loss sooner than LoRA*.

    Raises:
        InputError: a method is unknown, or LoRA itself.
    """
    import pandas as pd

    for name in methods:
        check_choice("method", name, [known for known in METHODS if known != "lora"])
    recorded = recorded_index(runs)
    rows: dict[tuple[str, str], list[Any]] = {}
    for task in TASKS:
        groups = _groups(recorded, task, ["lora", *methods], rate, RANK)
        steps = {name: _steps_by_seed(of_method, target) for name, of_method in groups.items()}
        missed = {name: sum(steps_to(r, target) is None for r in of_method) for name, of_method in groups.items()}
        base = steps.pop("lora", [])
        for name, ours in steps.items() if base else ():
            family = tests or len(steps)
            test, seeds = welch(ours, base, tests=family), min(len(ours), len(base))
            p = min(1.0, test.p * family)  # NaN stays NaN
            verdict = FEW if seeds < LEAST_SEEDS else SAME if not p <= 0.05 else _sooner_verdict(test.difference)
            if missed[name] == len(groups[name]) and missed["lora"] == len(groups["lora"]):
                verdict = NEITHER
            rows[task, name] = [
                *(median(ours), median(base), missed[name], missed["lora"]),
                *(test.difference, test.interval.low, test.interval.high, seeds, p, test.detectable, verdict),
            ]
    index = pd.MultiIndex.from_tuples(list(rows), names=["task", "method"]) if rows else None
    return pd.DataFrame(list(rows.values()), columns=CONVERGENCE_COLUMNS, index=index)


def _steps_by_seed(runs: Iterable[Run], target: float) -> list[float]:
    return list(by_seed(runs, lambda run: float(steps_to(run, target) or run.config.steps)).values())


def _sooner_verdict(more_steps: float) -> str:
    return REPRODUCED if more_steps < 0 else OPPOSITE


def starts_of_n(*, rate: float | None = None, runs: Runs = None, task: str = "word-problems") -> pd.DataFrame:
    """Compare SLoRA's starts of N with the Kaiming start.

    Args:
        rate: one learning rate for all starts. ``None`` gives each start its own best rate.
        runs: a store, its folder, or recorded runs. ``None`` takes the runs that ship.
        task: the task.

    Returns:
        The table of ``nl.compare`` with one row per start, and one more column: ``edge``, whether the best rate of a
        start is the first or the last one tried with it.

    Raises:
        InputError: SLoRA has no run with the Kaiming start.
    """
    recorded, groups = recorded_index(runs), {}
    for init in METHODS["slora"].inits:
        best = recorded.best(task, "slora", RANK, init)
        point = best if rate is None else _exactly_at(recorded, task, rate, init)
        if point is not None:
            groups[init] = point.runs
    if "kaiming" not in groups:
        raise InputError(f"slora has no run with N kaiming on {task}; make some with nl.sweep")
    rows = compare(groups, "kaiming")
    rows["edge"] = [rate is None and _best_at_edge(recorded, task, "slora", RANK, init) for init in rows.index]
    return rows


def _exactly_at(recorded: RecordedRuns, task: str, rate: float, init: str) -> RatePoint | None:
    point = recorded.at(task, "slora", RANK, rate, init)
    return point if point is not None and point.lr == rate else None


def best_rate_by_task(method: str, runs: Runs = None) -> pd.DataFrame:
    """Return the best recorded rate of a method on each task, and test whether it is 2e-4.

    Args:
        method: the name of the method.
        runs: a store, its folder, or recorded runs. ``None`` takes the runs that ship.

    Returns:
        One row per task that has runs. The columns rate to edge are those of ``nl.best_rates``. ``verdict`` is on *the
        best rate is 2e-4*: it compares the validation loss at 2e-4 with that at the neighbouring rates and at the best.
    """
    import pandas as pd

    recorded, rows = recorded_index(runs), {}
    for task in TASKS:
        table = best_rates(recorded, task, RANK)
        if method in table.index:
            row = table.loc[method]
            verdict = EDGE if row["edge"] else _shared_rate_verdict(recorded, task, method)
            rows[task] = [*row[RATE_COLUMNS[:-1]], verdict]
    return pd.DataFrame.from_dict(rows, orient="index", columns=RATE_COLUMNS).rename_axis("task")


def _shared_rate_verdict(recorded: RecordedRuns, task: str, method: str) -> str:
    groups = at_each_rate(method, recorded, task, RANK)
    rates, shared = list(groups), str(SHARED_RATE)
    best = recorded.best(task, method, RANK)
    if shared not in groups or best is None:
        return NO_RUNS
    place = rates.index(shared)
    others = {*rates[max(0, place - 1) : place], *rates[place + 1 : place + 2], str(best.lr)} - {shared}
    rows = compare({rate: groups[rate] for rate in (shared, *sorted(others))}, shared, "validation_loss")
    verdicts = [claim_verdict(str(verdict)) for verdict in rows["verdict"].drop(shared)]
    if REPRODUCED in verdicts:  # another rate is better
        return OTHERWISE
    return next((verdict for verdict in (FEW, UNJUDGED, SAME) if verdict in verdicts), REPRODUCED)


def by_rank(runs: Runs = None, task: str = "word-problems") -> pd.DataFrame:
    """Return the accuracy of LoRA, SLoRA and NLoRA at every recorded rank, each method at its own best rate.

    Args:
        runs: a store, its folder, or recorded runs. ``None`` takes the runs that ship.
        task: the task.

    Returns:
        One row per rank. There is one column per method (median accuracy, 0 to 1) and ``seeds``, the smallest number of
        seeds among the methods.
    """
    recorded = recorded_index(runs)
    frame = recorded.by_rank(task, MAIN_METHODS)
    bests = [[recorded.best(task, name, rank) for name in MAIN_METHODS] for rank in frame.index]
    frame["seeds"] = [min((best.seeds for best in row if best is not None), default=0) for row in bests]
    return frame


def step0_changes(runs: Runs = None) -> pd.DataFrame:
    """Return how far the two starts of NLoRA change the model before any training.

    Args:
        runs: a store, its folder, or recorded runs. ``None`` takes the runs that ship.

    Returns:
        One row per method: "nlora" (our reading of the Nyström formula) and "nlora-released". Columns: start (in
        words), smallest and largest (the recorded ``step0_change``, the relative change of the logits), and runs (how
        many).
    """
    import pandas as pd

    recorded, rows = recorded_index(runs), {}
    for name in ("nlora", "nlora-released"):
        points = [point for task in TASKS for point in recorded.valley(task, name, RANK)]
        changes = [run.metrics.get("step0_change", math.nan) for point in points for run in point.runs]
        changes = [change for change in changes if not math.isnan(change)]
        if changes:
            rows[name] = [METHODS[name].start, min(changes), max(changes), len(changes)]
    return pd.DataFrame.from_dict(rows, orient="index", columns=["start", "smallest", "largest", "runs"])
