"""What our recorded runs say to the paper's claims, each comparison with the verdict that follows from it by rule.

The runs are of the embedded model, 0.9 million parameters, on two generated tasks: "reproduced" means reproduced there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from nlora_lab.analysis.comparison import compare, steps_to
from nlora_lab.analysis.selection import Runs, at_best, at_each_rate, at_rate, best_rates, known
from nlora_lab.core.errors import InputError
from nlora_lab.core.statistics import LEAST_PAIRS, holm, paired
from nlora_lab.core.validation import check_choice
from nlora_lab.methods.table import METHODS
from nlora_lab.runs.config import SHARED_RATE
from nlora_lab.runs.index import RatePoint, RecordedRuns
from nlora_lab.runs.run import Run
from nlora_lab.runs.shipped import RANK
from nlora_lab.tasks.generated import TASKS

if TYPE_CHECKING:
    import pandas as pd

REPRODUCED = "reproduced"
OPPOSITE = "not reproduced: the other way round"
SAME = "not reproduced: not distinguishable with these seeds"
OTHERWISE = "not reproduced"
FEW = "not settled: too few seeds"
NEITHER = "not settled: neither gets there"
EDGE = "not settled: a best rate at the edge of those tried"
NO_RUNS = "not settled: no runs yet"
RIVALS = ("slora", "nlora", "nlora-released", "inttune")  # what is compared with LoRA, together
TARGET = 0.3  # nats a target token: where both tasks begin to be solved
COLUMNS = ["rate", "median", "their_rate", "their_median", "difference", "low", "high", "pairs", "p", "edge", "verdict"]
RATES = ["rate", "validation_loss", "low", "high", "seeds", "tried", "edge", "verdict"]
SOONER = ["steps", "their_steps", "missed", "their_missed", "difference", "low", "high", "pairs", "p", "verdict"]


def beside(
    ours: str, theirs: str = "lora", *, rate: float | None = None, rank: int = RANK, runs: Runs = None
) -> pd.DataFrame:
    """Two methods on the recorded tasks, one row a task that has runs of both; see :func:`~nlora_lab.compare`.

    ``rate``: one for both; without it, each at its own best. Beside LoRA, all of :data:`RIVALS` are compared at once
    and p is adjusted for as many. Columns: rate and median (accuracy), their_rate and their_median, difference, low
    and high (mean and interval over pairs of one seed), pairs, p, ``edge`` (whose own best rate is the first or last
    one tried, so that a better one may lie beyond: "ours", "theirs" or "both"), and ``verdict`` on *ours has more right
    answers*. A verdict that a better rate could turn round is not given.
    """
    import pandas as pd

    check_choice("method", ours, METHODS)
    check_choice("method", theirs, METHODS)
    if ours == theirs:
        raise InputError(f"ours and theirs are both {ours!r}; name two methods")
    names = list(dict.fromkeys([theirs, *(RIVALS if theirs == "lora" else ()), ours]))
    recordings, rows = known(runs), {}
    for task in TASKS:
        groups = _groups(recordings, task, names, rate, rank)
        if ours in groups and theirs in groups:
            both = compare(groups, theirs)
            row, base = both.loc[ours], both.loc[theirs]
            edge = "" if rate is not None else _edge(recordings, task, ours, theirs, rank)
            rows[task] = [
                *(row["rate"], row["median"], base["rate"], base["median"]),
                *(row["difference"], row["difference_low"], row["difference_high"]),
                *(row["pairs"], row["p_adjusted"], edge, _unless(edge, judged(str(row["verdict"])))),
            ]
    return pd.DataFrame.from_dict(rows, orient="index", columns=COLUMNS).rename_axis("task")


def _groups(
    recordings: RecordedRuns, task: str, names: Sequence[str], rate: float | None, rank: int
) -> dict[str, tuple[Run, ...]]:
    try:
        return at_best(recordings, task, names, rank) if rate is None else at_rate(rate, recordings, task, names, rank)
    except InputError:  # no run of any of them
        return {}


def _edge(recordings: RecordedRuns, task: str, ours: str, theirs: str, rank: int) -> str:
    names = {"ours": ours, "theirs": theirs}
    there = [who for who, name in names.items() if _at_edge(recordings, task, name, rank)]
    return "both" if len(there) == 2 else "".join(there)


def _at_edge(recordings: RecordedRuns, task: str, method: str, rank: int, init: str | None = None) -> bool:
    best = recordings.best(task, method, rank, init)
    tried = [point.lr for point in recordings.valley(task, method, rank, init)]
    return best is not None and best.lr in (tried[0], tried[-1])


def _unless(edge: str, verdict: str) -> str:
    """The verdict, unless the side it goes against could have had a better rate."""
    against = {REPRODUCED: ("theirs", "both"), OPPOSITE: ("ours", "both"), SAME: ("ours", "theirs", "both")}
    return EDGE if edge in against.get(verdict, ()) else verdict


def judged(said: str) -> str:
    """A verdict of :func:`~nlora_lab.compare` as one on *it has more right answers*."""
    words = {"better": REPRODUCED, "worse": OPPOSITE, "not ": SAME, "too few": FEW}
    return next(verdict for beginning, verdict in words.items() if said.startswith(beginning))


def sooner(*, rate: float | None = None, runs: Runs = None, target: float = TARGET) -> pd.DataFrame:
    """How many steps SLoRA and NLoRA need beside LoRA until the training loss is down to ``target``.

    One row a task and method. A run that never gets there counts with all its steps, so that its gap is one at the
    least. Columns: steps and their_steps
    (medians), missed and their_missed (how many runs never got there), difference, low and high (steps more than
    LoRA's: mean and interval over pairs of one seed), pairs, p (adjusted for both methods), and ``verdict`` on *it is
    there sooner*. ``rate`` as in :func:`beside`.
    """
    import pandas as pd

    recordings = known(runs)
    rows: dict[tuple[str, str], list[Any]] = {}
    for task in TASKS:
        groups = _groups(recordings, task, ["lora", "slora", "nlora"], rate, RANK)
        steps = {name: _steps_by_seed(of_method, target) for name, of_method in groups.items()}
        missed = {name: sum(steps_to(r, target) is None for r in of_method) for name, of_method in groups.items()}
        base = steps.pop("lora", {})
        pairs = {name: paired([own[s] - base[s] for s in own if s in base]) for name, own in steps.items() if base}
        for (name, pair), p in zip(pairs.items(), holm([pair.p for pair in pairs.values()]), strict=True):
            verdict = FEW if pair.pairs < LEAST_PAIRS else SAME if not p <= 0.05 else _signed(-pair.mean)
            if missed[name] == len(groups[name]) and missed["lora"] == len(groups["lora"]):
                verdict = NEITHER
            rows[task, name] = [
                *(median(steps[name].values()), median(base.values()), missed[name], missed["lora"]),
                *(pair.mean, pair.low, pair.high, pair.pairs, p, verdict),
            ]
    places = pd.MultiIndex.from_tuples(list(rows), names=["task", "method"]) if rows else None
    return pd.DataFrame(list(rows.values()), columns=SOONER, index=places)


def _steps_by_seed(runs: Iterable[Run], target: float) -> dict[int, float]:
    found: dict[int, list[float]] = {}
    for run in runs:
        found.setdefault(run.config.seed, []).append(steps_to(run, target) or run.config.steps)
    return {seed: fmean(of_seed) for seed, of_seed in found.items()}


def _signed(gain: float) -> str:
    return REPRODUCED if gain > 0 else OPPOSITE


def starts_of_n(*, rate: float | None = None, runs: Runs = None, task: str = "word-problems") -> pd.DataFrame:
    """SLoRA's starts of N beside Kaiming's, as :func:`~nlora_lab.compare` gives them; ``rate`` as in :func:`beside`.

    One more column, ``edge``: whether a start's own best rate is the first or last one tried with it.
    """
    recordings, groups = known(runs), {}
    for init in METHODS["slora"].inits:
        best = recordings.best(task, "slora", RANK, init)
        point = best if rate is None else _exactly(recordings, task, rate, init)
        if point is not None:
            groups[init] = point.runs
    if "kaiming" not in groups:
        raise InputError(f"there is no run of slora with N kaiming on {task}; make some with nl.sweep")
    rows = compare(groups, "kaiming")
    rows["edge"] = [rate is None and _at_edge(recordings, task, "slora", RANK, init) for init in rows.index]
    return rows


def _exactly(recordings: RecordedRuns, task: str, rate: float, init: str) -> RatePoint | None:
    point = recordings.at(task, "slora", RANK, rate, init)
    return point if point is not None and point.lr == rate else None


def own_rates(method: str, runs: Runs = None) -> pd.DataFrame:
    """A method's best recorded rate on each task (see :func:`~nlora_lab.best_rates`), one row a task.

    ``verdict`` is on *it is 2e-4*, by validation loss: whether the rates beside it, and the best, can be told from it.
    """
    import pandas as pd

    recordings, rows = known(runs), {}
    for task in TASKS:
        found = best_rates(recordings, task, RANK)
        if method in found.index:
            row = found.loc[method]
            verdict = EDGE if row["edge"] else _shared_is_best(recordings, task, method)
            rows[task] = [*row[RATES[:-1]], verdict]
    return pd.DataFrame.from_dict(rows, orient="index", columns=RATES).rename_axis("task")


def _shared_is_best(recordings: RecordedRuns, task: str, method: str) -> str:
    groups = at_each_rate(method, recordings, task, RANK)
    rates = list(groups)
    best = recordings.best(task, method, RANK)
    if str(SHARED_RATE) not in groups or best is None:
        return NO_RUNS
    at = rates.index(str(SHARED_RATE))
    beside = {*rates[max(0, at - 1) : at], *rates[at + 1 : at + 2], str(best.lr)} - {str(SHARED_RATE)}
    rows = compare(
        {rate: groups[rate] for rate in (str(SHARED_RATE), *sorted(beside))}, str(SHARED_RATE), "validation_loss"
    )
    found = [judged(str(verdict)) for verdict in rows["verdict"].drop(str(SHARED_RATE))]
    if REPRODUCED in found:  # another one is better
        return OTHERWISE
    return FEW if FEW in found else SAME if SAME in found else REPRODUCED


def by_rank(runs: Runs = None, task: str = "word-problems") -> pd.DataFrame:
    """LoRA, SLoRA and NLoRA at every recorded rank, each at its own best rate: accuracies, and the fewest ``seeds``."""
    recordings, names = known(runs), ["lora", "slora", "nlora"]
    frame = recordings.by_rank(task, names)
    bests = [[recordings.best(task, name, rank) for name in names] for rank in frame.index]
    frame["seeds"] = [min((best.seeds for best in row if best is not None), default=0) for row in bests]
    return frame


def step0_changes(runs: Runs = None) -> pd.DataFrame:
    """How far NLoRA's two starts move the model before any training, one row a start.

    ``smallest`` and ``largest``: the recorded step0_change, the relative change of the logits, over all ``runs``.
    """
    import pandas as pd

    recordings, rows = known(runs), {}
    for name in ("nlora", "nlora-released"):
        points = [point for task in TASKS for point in recordings.valley(task, name, RANK)]
        changes = [run.metrics.get("step0_change", math.nan) for point in points for run in point.runs]
        changes = [change for change in changes if not math.isnan(change)]
        if changes:
            rows[name] = [METHODS[name].start, min(changes), max(changes), len(changes)]
    return pd.DataFrame.from_dict(rows, orient="index", columns=["start", "smallest", "largest", "runs"])


def together(verdicts: dict[str, str]) -> str:
    """One verdict for several tasks: their common one, or each by its name."""
    if not verdicts:
        return NO_RUNS
    if len(set(verdicts.values())) == 1:
        return next(iter(verdicts.values()))
    return "; ".join(f"{task}: {verdict}" for task, verdict in verdicts.items())
