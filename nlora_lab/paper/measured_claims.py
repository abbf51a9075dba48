"""Claims that are measured here, most of them on the recorded runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from nlora_lab.analysis.comparison import family_size
from nlora_lab.analysis.fresh_seeds import DECLARED
from nlora_lab.analysis.statistics import LEAST_SEEDS
from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice
from nlora_lab.methods.table import METHODS
from nlora_lab.models.names import EMBEDDED
from nlora_lab.paper import evidence
from nlora_lab.paper.reported_figures import ABSTRACT, FIGURE_4_BARS, GSM8K, INTTUNE_TABLE, RELEASED_CODE, SECOND_HAND
from nlora_lab.paper.start_costs import start_times
from nlora_lab.paper.verdicts import (
    AGREE,
    COUNTED,
    DIFFER,
    FEW,
    NO_RUNS,
    OPPOSITE,
    OTHERWISE,
    OUR_READING,
    REPRODUCED,
    SAME,
    TIMED,
    WELCH,
    Claim,
    Finding,
    combine_verdicts,
    method_label,
    python_command,
)
from nlora_lab.runs.config import SHARED_RATE
from nlora_lab.runs.index import RecordedRuns
from nlora_lab.runs.run import STEP0_NOISE
from nlora_lab.runs.shipped import RANK
from nlora_lab.tasks.generated import TASKS

SETTINGS = {"at the shared 2e-4": SHARED_RATE, "each at its own best rate": None}
ONE_RATE = "reported at one rate only"
TIMED_SHAPE, TIMED_RANK = (512, 512), 64  # small, so that the ledger takes no longer for it


def measured_claims() -> Iterator[Claim]:
    """Yield the claims that are measured here, in the order of the ledger."""
    yield from _claims_on_accuracy()
    yield from _claims_on_fresh_seeds()
    yield from _claims_on_convergence()
    yield from _claims_on_starts()


# --- which method has more right answers ---


def _claims_on_accuracy() -> Iterator[Claim]:
    against_lora = {
        "slora": ("SLoRA has more right answers than LoRA", GSM8K.source),
        "nlora": (f"NLoRA has more right answers than LoRA; {OUR_READING}", GSM8K.source),
        "nlora-released": (
            "NLoRA has more right answers than LoRA; tested with the start that the released code makes",
            f"{GSM8K.source}; {RELEASED_CODE}",
        ),
        "inttune": ("IntTune is above LoRA on average", f"{ABSTRACT}; {INTTUNE_TABLE}"),
    }
    for name, (says, source) in against_lora.items():
        yield from _at_both_settings(f"{method_label(name)} above LoRA", says, source, name, "lora")
    says = f"the Nyström start improves SLoRA; {OUR_READING}"
    yield from _at_both_settings("NLoRA above SLoRA", says, ABSTRACT, "nlora", "slora")
    name, says = "SLoRA above LoRA at rank 1", "24 points on GSM8K"
    yield from _at_both_settings(name, says, FIGURE_4_BARS, "slora", "lora", rank=1)
    name, says = "SLoRA at least NLoRA, rank by rank", "the bars show it in most cells"
    yield Claim(name, "runs", says, FIGURE_4_BARS, _check_rank_by_rank, COUNTED)


def _at_both_settings(name: str, says: str, source: str, ours: str, theirs: str, rank: int = RANK) -> Iterator[Claim]:
    for setting, rate in SETTINGS.items():
        statement = says if rate is not None else f"{says}; {ONE_RATE}"
        yield accuracy_claim(f"{name}, {setting}", statement, source, ours, theirs, rate=rate, rank=rank)


def accuracy_claim(
    name: str, says: str, source: str, ours: str, theirs: str = "lora", *, rate: float | None = None, rank: int = RANK
) -> Claim:
    """Return the claim that a method has more right answers than another, for a ledger of your own.

    Args:
        name: a short name.
        says: the statement. The paper's own words stand in quotation marks.
        source: where the statement comes from.
        ours: the method that the claim is about.
        theirs: the method that it is compared with.
        rate: one learning rate for both methods. ``None`` gives each method its own best rate.
        rank: the rank of the adapters.

    Returns:
        The claim. Its check is ``compare_methods``.
    """
    return Claim(name, "runs", says, source, partial(_check_more_right, ours, theirs, rate, rank), WELCH)


def convergence_claim(name: str, says: str, source: str, ours: str, *, rate: float | None = None) -> Claim:
    """Return the claim that a method reaches a low training loss sooner than LoRA, for a ledger of your own.

    Args:
        name: a short name.
        says: the statement. The paper's own words stand in quotation marks.
        source: where the statement comes from.
        ours: the method that the claim is about.
        rate: one learning rate for both methods. ``None`` gives each method its own best rate.

    Returns:
        The claim. Its check is ``compare_convergence``. p is multiplied as in ``nl.compare``: by the number of planned
        comparisons with LoRA, or by that of all methods.
    """
    check_choice("method", ours, [known for known in METHODS if known != "lora"])
    tests = family_size(ours, "lora", 1)
    return Claim(name, "runs", says, source, partial(_check_faster, ours, [ours], rate, tests), WELCH)


def _check_more_right(ours: str, theirs: str, rate: float | None, rank: int, runs: RecordedRuns) -> Finding:
    table = evidence.compare_methods(ours, theirs, rate=rate, rank=rank, runs=runs)
    parts = []
    for task, row in table.iterrows():
        rates = "" if rate is not None else f"; rates {row['rate']:g} and {row['their_rate']:g}{_edge(row['edge'])}"
        seeds = _seeds(row["seeds"]) + ("" if math.isnan(row["p"]) else f"; p = {row['p']:.2g}{_power(row, 100, 1)}")
        parts.append(f"{task} {_difference(row, 100, 1)} points ({_interval(row, 100, 1)}{seeds}{rates})")
    arguments = [repr(ours)] if theirs == "lora" else [repr(ours), repr(theirs)]
    command = python_command(f"paper.compare_methods({', '.join(arguments + _options(rate, rank))}).T")
    verdicts = {str(task): str(verdict) for task, verdict in table["verdict"].items()}
    if rank == RANK:
        verdicts = {task: verdicts.get(task, NO_RUNS) for task in TASKS}
    return Finding("; ".join(parts) or "no runs", combine_verdicts(verdicts), command)


def _edge(side: str) -> str:
    which = {"ours": "the first", "theirs": "the second", "both": "both"}
    return f", {which[side]} at the edge of the rates tried" if side else ""


def _options(rate: float | None, rank: int = RANK) -> list[str]:
    return ([] if rate is None else [f"rate={rate:g}"]) + ([] if rank == RANK else [f"rank={rank}"])


def _difference(row: Any, scale: float, digits: int) -> str:
    return f"{_rounded(row['difference'] * scale, digits):+.{digits}f}"


def _interval(row: Any, scale: float, digits: int) -> str:
    """The interval as text, or "" where there are too few seeds for one."""
    if math.isnan(row["low"]):
        return ""
    low, high = (_rounded(row[end] * scale, digits) for end in ("low", "high"))
    return f"{low:+.{digits}f} to {high:+.{digits}f}; "


def _power(row: Any, scale: float, digits: int) -> str:
    """The difference that would have been found, or "" where there are too few seeds to know."""
    if not math.isnan(row["detectable"]):
        return f"; detectable {row['detectable'] * scale:.{digits}f}"
    return "" if math.isnan(row["p"]) else "; no scatter"


def _rounded(value: float, digits: int) -> float:
    return round(value, digits) + 0.0  # −0 becomes 0


def _seeds(count: float) -> str:
    return f"{count:.0f} seed{'' if count == 1 else 's'}"


def _check_rank_by_rank(runs: RecordedRuns) -> Finding:
    table, command = evidence.by_rank(runs).dropna(), python_command("paper.by_rank()")
    if table.empty:
        return Finding("no runs", NO_RUNS, command)
    at_least, seeds = (table["slora"] >= table["nlora"]).sum(), table["seeds"].min()
    text = f"in {at_least} of {len(table)} ranks, each at its own best rate; at least {_seeds(seeds)}"
    verdict = FEW if seeds < LEAST_SEEDS else REPRODUCED if at_least > len(table) / 2 else OTHERWISE
    return Finding(text, verdict, command)


def _claims_on_fresh_seeds() -> Iterator[Claim]:
    for name in ("slora", "nlora", "nlora-released", "nlora-balanced"):
        label = method_label(name)
        says = (
            f"not a claim of the paper: after {DECLARED[EMBEDDED].steps} steps {label} has the smaller loss, on seeds "
            "on which no rate was chosen"
        )
        check = partial(_check_fresh_seeds, name)
        title = f"{label} below LoRA, {DECLARED[EMBEDDED].steps} steps, fresh seeds"
        yield Claim(title, "runs", says, "our own question, declared in tools/study.py", check, WELCH)


def _check_fresh_seeds(name: str, runs: RecordedRuns) -> Finding:
    table, command = evidence.on_fresh_seeds([name], runs), python_command(f"paper.on_fresh_seeds([{name!r}]).T")
    if name not in table.index:
        return Finding("no runs", NO_RUNS, command)
    row: Any = table.loc[name]
    seeds = f"{row['seeds']} against {row['their_seeds']} seeds; rates {row['rate']:g} and {row['their_rate']:g}"
    if math.isnan(row["low"]):  # too few seeds, or a run diverged
        return Finding(f"word-problems, {seeds}", str(row["verdict"]), command)
    text = f"word-problems {row['ratio']:.2g} times LoRA's loss ({row['low']:.2g} to {row['high']:.2g}; {seeds}; "
    text += f"p = {row['p']:.2g}; detectable {row['detectable']:.2g} times)"
    return Finding(text, str(row["verdict"]), command)


# --- which method is faster ---


def _claims_on_convergence() -> Iterator[Claim]:
    for method in ("slora", "nlora"):
        for setting, rate in SETTINGS.items():
            says = '"LoRA suffers from slow convergence", which the method is to mitigate'
            says += f"; {OUR_READING}" if method == "nlora" else ""
            name = f"{method_label(method)} faster than LoRA, {setting}"
            check = partial(_check_faster, method, ["slora", "nlora"], rate, None)
            yield Claim(name, "runs", says, ABSTRACT, check, WELCH)


def _check_faster(
    method: str, family: Sequence[str], rate: float | None, tests: int | None, runs: RecordedRuns
) -> Finding:
    table = evidence.compare_convergence(family, rate=rate, runs=runs, tests=tests)
    rows: dict[str, Any] = {task: table.loc[task, method] for task in TASKS if (task, method) in table.index}
    parts = [
        f"{task} {_steps(row, 'steps', 'missed')} against {_steps(row, 'their_steps', 'their_missed')} steps, "
        f"difference {_difference(row, 1, 0)}{' at least' * bool(row['their_missed'])} "
        f"({_interval(row, 1, 0)}{_seeds(row['seeds'])}{_power(row, 1, 0)})"
        for task, row in rows.items()
    ]
    verdicts = {task: str(rows[task]["verdict"]) if task in rows else NO_RUNS for task in TASKS}
    text = f"to a loss of {evidence.TARGET:g}: " + "; ".join(parts) if parts else "no runs"
    arguments = [repr(family), *_options(rate), *([] if tests is None else [f"tests={tests}"])]
    command = python_command(f"paper.compare_convergence({', '.join(arguments)}).T")
    return Finding(text, combine_verdicts(verdicts), command)


def _steps(row: Any, steps: str, missed: str) -> str:
    return f"{row[steps]:.0f}" + (f" (never reached by {row[missed]:.0f})" if row[missed] else "")


# --- rates, starts and costs ---


def _claims_on_starts() -> Iterator[Claim]:
    says = "a rate of 2e-4 is optimal for NLoRA"
    yield Claim("2e-4 is NLoRA's rate", "runs", says, SECOND_HAND, _check_best_rate, WELCH)
    for setting, rate in SETTINGS.items():
        says = "Kaiming is consistently the best start of N"
        check = partial(_check_kaiming, rate)
        yield Claim(f"Kaiming's N is best, {setting}", "runs", says, SECOND_HAND, check, WELCH)
    yield Claim(
        "Nyström's start is cheap",
        "runs",
        'variants such as PiSSA "primarily rely on Singular Value Decomposition '
        '(SVD) for initialization, leading to expensive computation"',
        ABSTRACT,
        _check_cheap,
        TIMED,
    )
    yield Claim(
        "the start leaves the model unchanged",
        "runs",
        "by our reading of the Nyström formula, N is the pseudo-inverse of the leading block, and the start is "
        "subtracted from W; in figure 3 and the released code, N is the block itself, and the code subtracts nothing",
        f"figure 3; {RELEASED_CODE}; we could not check whether the paper's equations have a pseudo-inverse",
        _check_unchanged,
        "the largest change of the logits, over all runs",
    )


def _check_best_rate(runs: RecordedRuns) -> Finding:
    parts, verdicts = [], {}
    for name in ("nlora", "nlora-released"):
        table = evidence.best_rate_by_task(name, runs)
        for task, row in table.iterrows():
            rates = f"{row['rate']:g}, the best of {row['tried']} rates"
            parts.append(f"{method_label(name)} on {task}: {rates} ({_seeds(row['seeds'])})")
        if name == "nlora":
            verdicts = {task: str(table["verdict"].get(task, NO_RUNS)) for task in TASKS}
    command = python_command("paper.best_rate_by_task('nlora').T")
    return Finding("; ".join(parts) or "no runs", combine_verdicts(verdicts), command)


def _check_kaiming(rate: float | None, runs: RecordedRuns) -> Finding:
    command = python_command(f"paper.starts_of_n({', '.join(_options(rate))}).verdict")
    try:
        table = evidence.starts_of_n(rate=rate, runs=runs)
    except InputError:
        return Finding("no runs", NO_RUNS, command)
    others = table.drop(index="kaiming")
    outcomes = others["verdict"].map(evidence.claim_verdict)
    count = {verdict: int((outcomes == verdict).sum()) for verdict in (OPPOSITE, REPRODUCED, SAME, FEW)}
    text = (
        f"of {len(others)} other starts {count[OPPOSITE]} worse, {count[REPRODUCED]} better, "
        f"{count[SAME]} not distinguishable, {count[FEW]} with too few seeds; median accuracy "
        f"{table['median']['kaiming']:.1%} against {others['median'].min():.1%} to {others['median'].max():.1%}"
    )
    if table["edge"].any():
        text += f"; best at the edge of the rates tried: {', '.join(table.index[table['edge']])}"
    return Finding(text, _kaiming_verdict(count, len(others)), command)


def _kaiming_verdict(count: dict[str, int], others: int) -> str:
    """The verdict on *Kaiming is the best start*, from how many of the other starts end in each verdict."""
    if count[REPRODUCED]:
        return f"{OTHERWISE}: {count[REPRODUCED]} better"
    if count[FEW] or not others:
        return FEW
    return REPRODUCED if count[OPPOSITE] == others else SAME


def _check_cheap(_: RecordedRuns) -> Finding:
    table = start_times(TIMED_SHAPE, TIMED_RANK, rounds=9)
    ratios = (table["low"] / table["low"]["Nyström"]).drop("Nyström")  # the fastest rounds: the machine may be busy
    # the text leaves out how much longer: that depends on the machine and on its load
    parts = [f"{name} takes longer" for name, ratio in ratios.items() if ratio > 1]
    if table["error"]["Nyström"] > 1:
        parts.append("but the product of the Nyström start is further from W than 0 is, on this matrix")
    text = f"one matrix of {TIMED_SHAPE[0]} × {TIMED_SHAPE[1]} at rank {TIMED_RANK}, measured now: {'; '.join(parts)}"
    return Finding(text, REPRODUCED if ratios.min() > 1 else OTHERWISE, python_command("paper.start_times()"))


def _check_unchanged(runs: RecordedRuns) -> Finding:
    table, command = evidence.step0_changes(runs), python_command("paper.step0_changes()")
    if len(table) < 2:
        return Finding("no runs of both starts", NO_RUNS, command)
    parts = [
        f"{method_label(name)} changes the logits by up to {row['largest']:.1%} ({row['runs']} runs)"
        if row["largest"] > STEP0_NOISE
        else f"{method_label(name)} leaves the logits unchanged ({row['runs']} runs)"
        for name, row in table.iterrows()
    ]
    changed = table["largest"] > STEP0_NOISE
    return Finding("; ".join(parts), DIFFER if changed.any() and not changed.all() else AGREE, command)
