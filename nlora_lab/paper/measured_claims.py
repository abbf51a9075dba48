"""The claims, in the ledger's order, each with its check and the rule that makes its verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

from nlora_lab.core.errors import InputError
from nlora_lab.core.statistics import LEAST_PAIRS
from nlora_lab.methods.table import METHODS
from nlora_lab.paper import arithmetic, evidence, printed
from nlora_lab.paper.arithmetic import Difference, difference
from nlora_lab.paper.book import Claim, Finding
from nlora_lab.paper.evidence import FEW, NO_RUNS, OPPOSITE, OTHERWISE, REPRODUCED, SAME, together
from nlora_lab.paper.starts import start_times
from nlora_lab.runs.config import SHARED_RATE
from nlora_lab.runs.index import RecordedRuns
from nlora_lab.runs.run import STEP0_NOISE
from nlora_lab.runs.shipped import RANK
from nlora_lab.tasks.generated import TASKS

CORRECT = "correct as printed"
ROUNDED = "correct only after rounding both numbers"
NOT_SO = "does not follow from the printed numbers"
APART = "distinguishable as printed"
CHANCE = "not distinguishable as printed"
CONFOUNDED = "a comparison of sizes as well"
DIFFER = "derivation and code differ"
UNTESTABLE = "cannot be tested here"
SETTINGS = {"at the shared 2e-4": SHARED_RATE, "each at its own best rate": None}
ONE_RATE = "reported at one rate only"
QUICK = (512, 512), 64  # shape and rank at which the ledger measures starts


def claims() -> list[Claim]:
    """The claims of the ledger, in its order."""
    return [*_printed(), *_beaten(), *_converging(), *_further(), *_elsewhere()]


def _command(expression: str) -> str:
    return f'python -c "from nlora_lab import paper; print({expression})"'


# --- what the printed numbers allow to say ---


def _printed() -> Iterator[Claim]:
    gsm8k, bars = printed.GSM8K.source, printed.FIGURE
    better = '"Nyström-based initialization for SLoRA to improve its effectiveness"'
    yield Claim(
        "the gain over LoRA",
        "printed",
        'SLoRA and NLoRA reach 56.48 % and 57.70 % on GSM8K, "surpassing LoRA by 33.52% and 36.41%"',
        gsm8k,
        _gain,
    )
    for ours, share in (("slora", "56.48"), ("nlora", "57.70")):
        said = f"{share} % against 42.30 %"
        yield Claim(f"{_label(ours)} above LoRA on GSM8K", "printed", said, gsm8k, partial(_apart, ours, "lora"))
    said = f"57.70 % against 56.48 %: {better}"
    yield Claim("NLoRA above SLoRA on GSM8K", "printed", said, gsm8k, partial(_apart, "nlora", "slora"))
    yield Claim(
        "NLoRA above SLoRA over the ranks", "printed", f"bars at eight ranks, on two tasks: {better}", bars, _bars
    )
    yield Claim("SLoRA above LoRA at rank 1", "printed", "about 46 % against about 22 % on GSM8K", bars, _rank_one)
    yield Claim("what N adds", "printed", '"only 3.67M additional trainable parameters"', printed.ABSTRACT, _added)
    yield Claim("IntTune's share", "printed", '"only 1.25% of its parameters", LoRA\'s', printed.ABSTRACT, _share)
    yield Claim(
        "IntTune's average",
        "printed",
        '"boosts average NLG performance over LoRA by 7.45%"',
        f"{printed.ABSTRACT}; {printed.TABLE}",
        _average,
    )
    yield Claim(
        "IntTune above LoRA on GSM8K",
        "printed",
        "44.28 % against 42.30 %, at rank 128",
        printed.TABLE,
        _inttune_on_gsm8k,
    )
    yield Claim(
        "Kaiming against Gaussian",
        "printed",
        "Kaiming's start of N is the better one",
        f"{printed.SECOND_HAND}; the Gaussian of 1/r is a comment in the {printed.CODE}",
        _sizes,
    )


def _gain(_: RecordedRuns) -> Finding:
    found = arithmetic.headline()
    reading = next((way for way in ("relative", "points") if (found[way] - found["said"]).abs().max() < 0.005), None)
    told = [
        f"{_label(n)} {row['relative']:+.2f} % relative, {row['points']:+.2f} points" for n, row in found.iterrows()
    ]
    return Finding("; ".join(told), f"{CORRECT}: {reading}" if reading else NOT_SO, _command("paper.headline()"))


def _apart(ours: str, theirs: str, _: RecordedRuns) -> Finding:
    return _by_chance(printed.GSM8K.rows[ours][0], printed.GSM8K.rows[theirs][0])


def _by_chance(first: float, second: float, more: str = "") -> Finding:
    apart = difference(first, second)
    return Finding(
        _told(apart) + more, APART if apart.p <= 0.05 else CHANCE, _command(f"paper.difference({first}, {second})")
    )


def _told(apart: Difference) -> str:
    p = f"p = {apart.p:.2f}" if apart.p >= 0.01 else "p < 0.01"
    return f"{apart.points:+.2f} points: {apart.questions} questions of {printed.GSM8K_ITEMS:,}, z = {apart.z:.2f}, {p}"


def _bars(_: RecordedRuns) -> Finding:
    found = arithmetic.cells()
    of_task = [f"{task} {part['at_least'].sum()} of {len(part)}" for task, part in found.groupby(level="task")]
    clear = (found["at_least"] & found["clear"]).sum()
    told = (
        f"SLoRA is at least as high in {found['at_least'].sum()} of {len(found)} cells ({', '.join(of_task)}), "
        f"in {clear} of them by more than the bars can be misread"
    )
    against = found["at_least"].mean() > 0.5
    return Finding(
        told,
        "not supported: most cells go the other way" if against else "supported by the figure",
        _command("paper.cells()"),
    )


def _rank_one(_: RecordedRuns) -> Finding:
    bars = printed.FIGURE_4["GSM8K"].rows
    more = "; N is one number there, so B N A expresses what B A can and no more: structure alone cannot explain it"
    return _by_chance(bars["slora"][0], bars["lora"][0], more)


def _added(_: RecordedRuns) -> Finding:
    found = arithmetic.parameters()
    beyond, share = int(found["beyond"]["slora"]), found["share"]["slora"] - 100
    verdict = CORRECT if round(beyond, -4) == printed.ADDED else NOT_SO
    return Finding(f"{beyond:,}, which is {share:+.2f} % of LoRA's", verdict, _command("paper.parameters()"))


def _share(_: RecordedRuns) -> Finding:
    found = arithmetic.parameters()
    core, lora, share = *found["trainable"][["inttune", "lora"]], found["share"]["inttune"]
    millions = 100 * round(core / 1e6) / round(lora / 1e6)
    exact, rounded = (abs(value - printed.INTTUNE_SHARE) < 0.005 for value in (share, millions))
    told = f"{core:,} of {lora:,} are {share:.3f} %; {core / 1e6:.0f}M of {lora / 1e6:.0f}M are {millions:.2f} %"
    return Finding(told, CORRECT if exact else ROUNDED if rounded else NOT_SO, _command("paper.parameters()"))


def _average(_: RecordedRuns) -> Finding:
    row = arithmetic.averages().loc[f"inttune, r = {printed.LLAMA_RANK}"]
    ways = [way for way in row.index[:2] if abs(row[way] - printed.INTTUNE_GAIN) < 0.05]
    told = "; ".join(f"{way} {row[way]:+.2f} %" for way in row.index[:2])
    told += f"; above LoRA on {row['tasks above LoRA']:.0f} of {len(printed.INTTUNE.columns)} tasks"
    return Finding(told, f"{CORRECT}: {ways[0]}" if ways else NOT_SO, _command("paper.averages()"))


def _inttune_on_gsm8k(_: RecordedRuns) -> Finding:
    values = printed.INTTUNE.rows
    return _by_chance(values[f"inttune, r = {printed.LLAMA_RANK}"][0], values["lora"][0])


def _sizes(_: RecordedRuns) -> Finding:
    kaiming, gaussian = arithmetic.scales().values()
    told = (
        f"at rank {printed.LLAMA_RANK} the standard deviations are {kaiming:.4f} and {gaussian:.4f}: "
        f"{kaiming / gaussian:.1f} times"
    )
    return Finding(told, CONFOUNDED if kaiming > 2 * gaussian else "of one size", _command("paper.scales()"))


# --- what our runs say: who has more right answers ---


def _beaten() -> Iterator[Claim]:
    beaten = {
        "slora": ("SLoRA has more right answers than LoRA", printed.GSM8K.source),
        "nlora": ("NLoRA has more right answers than LoRA", printed.GSM8K.source),
        "nlora-released": (
            "the same of the start that the released code makes",
            f"{printed.GSM8K.source}; {printed.CODE}",
        ),
        "inttune": ("IntTune is above LoRA on average", f"{printed.ABSTRACT}; {printed.TABLE}"),
    }
    for name, (says, source) in beaten.items():
        yield from _at_both(f"{_label(name)} above LoRA", says, source, name, "lora")
    says = "Nyström's start improves SLoRA"
    yield from _at_both("NLoRA above SLoRA", says, printed.ABSTRACT, "nlora", "slora")
    yield from _at_both("SLoRA above LoRA at rank 1", "24 points on GSM8K", printed.FIGURE, "slora", "lora", rank=1)
    yield Claim(
        "SLoRA at least NLoRA, rank by rank", "runs", "the bars show it in most cells", printed.FIGURE, _our_ranks
    )


def _at_both(name: str, says: str, source: str, ours: str, theirs: str, rank: int = RANK) -> Iterator[Claim]:
    for setting, rate in SETTINGS.items():
        told = says if rate is not None else f"{says}; {ONE_RATE}"
        check = partial(_beats, ours, theirs, rate, rank)
        yield Claim(f"{name}, {setting}", "runs", told, source, check)


def _beats(ours: str, theirs: str, rate: float | None, rank: int, runs: RecordedRuns) -> Finding:
    found = evidence.beside(ours, theirs, rate=rate, rank=rank, runs=runs)
    told = []
    for task, row in found.iterrows():
        rates = "" if rate is not None else f"; rates {row['rate']:g} and {row['their_rate']:g}{_edges(row['edge'])}"
        seeds = _seeds(row["pairs"]) + ("" if math.isnan(row["p"]) else f"; p = {row['p']:.2g}")
        told.append(f"{task} {_gap(row, 100, 1)} points ({_span(row, 100, 1)}{seeds}{rates})")
    asked = ([repr(ours)] if theirs == "lora" else [repr(ours), repr(theirs)]) + _options(rate=rate, rank=rank)
    verdicts = {str(task): str(verdict) for task, verdict in found["verdict"].items()}
    if rank == RANK:
        verdicts = {task: verdicts.get(task, NO_RUNS) for task in TASKS}
    return Finding("; ".join(told) or "no runs", together(verdicts), _command(f"paper.beside({', '.join(asked)}).T"))


def _edges(edge: str) -> str:
    told = {"ours": "the first", "theirs": "the second", "both": "both"}
    return f", {told[edge]} at the edge of what was tried" if edge else ""


def _options(rate: float | None, rank: int) -> list[str]:
    return ([] if rate is None else [f"rate={rate:g}"]) + ([] if rank == RANK else [f"rank={rank}"])


def _gap(row: Any, scale: float, digits: int) -> str:
    return f"{_rounded(row['difference'] * scale, digits):+.{digits}f}"


def _span(row: Any, scale: float, digits: int) -> str:
    """The interval, where there are seeds enough to have one."""
    if math.isnan(row["low"]):
        return ""
    low, high = (_rounded(row[end] * scale, digits) for end in ("low", "high"))
    return f"{low:+.{digits}f} to {high:+.{digits}f}; "


def _rounded(value: float, digits: int) -> float:
    return round(value, digits) + 0.0  # never −0


def _seeds(count: float) -> str:
    return f"{count:.0f} seed{'' if count == 1 else 's'}"


def _label(name: object) -> str:
    return METHODS[str(name)].label


def _our_ranks(runs: RecordedRuns) -> Finding:
    found = evidence.by_rank(runs).dropna()
    if found.empty:
        return Finding("no runs", NO_RUNS, _command("paper.by_rank()"))
    least = (found["slora"] >= found["nlora"]).sum()
    told = f"in {least} of {len(found)} ranks, each at its own best rate; {_seeds(found['seeds'].min())} at the least"
    settled = found["seeds"].min() >= LEAST_PAIRS
    verdict = FEW if not settled else REPRODUCED if least > len(found) / 2 else OTHERWISE
    return Finding(told, verdict, _command("paper.by_rank()"))


def _converging() -> Iterator[Claim]:
    for method in ("slora", "nlora"):
        for setting, rate in SETTINGS.items():
            says = '"LoRA suffers from slow convergence", which the method is to mitigate'
            name = f"{_label(method)} faster than LoRA, {setting}"
            yield Claim(name, "runs", says, printed.ABSTRACT, partial(_faster, method, rate))


def _steps(row: Any, steps: str, missed: str) -> str:
    never = f" ({row[missed]:.0f} never there)" if row[missed] else ""
    return f"{row[steps]:.0f}{never}"


def _faster(method: str, rate: float | None, runs: RecordedRuns) -> Finding:
    found = evidence.sooner(rate=rate, runs=runs)
    rows: dict[str, Any] = {task: found.loc[task, method] for task in TASKS if (task, method) in found.index}
    told = [
        f"{task} {_steps(row, 'steps', 'missed')} against {_steps(row, 'their_steps', 'their_missed')} steps, "
        f"difference {_gap(row, 1, 0)}{' at least' * bool(row['their_missed'])} "
        f"({_span(row, 1, 0)}{_seeds(row['pairs'])})"
        for task, row in rows.items()
    ]
    verdicts = {task: str(rows[task]["verdict"]) if task in rows else NO_RUNS for task in TASKS}
    expression = f"paper.sooner({', '.join(_options(rate, RANK))}).T"
    begin = f"to a loss of {evidence.TARGET:g}: "
    return Finding(begin + "; ".join(told) if told else "no runs", together(verdicts), _command(expression))


# --- rates, starts, costs ---


def _further() -> Iterator[Claim]:
    yield Claim("2e-4 is NLoRA's rate", "runs", "a rate of 2e-4 is optimal for NLoRA", printed.SECOND_HAND, _own_rate)
    for setting, rate in SETTINGS.items():
        says = "Kaiming is consistently the best start of N"
        yield Claim(f"Kaiming's N is best, {setting}", "runs", says, printed.SECOND_HAND, partial(_kaiming, rate))
    yield Claim(
        "Nyström's start is cheap",
        "runs",
        'variants such as PiSSA "primarily rely on Singular Value Decomposition '
        '(SVD) for initialization, leading to expensive computation"',
        printed.ABSTRACT,
        _cheap,
    )
    yield Claim(
        "the start leaves the model as it is",
        "runs",
        "by the derivation N is the pseudo-inverse of the leading block, and the start is taken off W; in figure 3 and "
        "the code N is the block itself, and the code takes nothing off W",
        f"figure 3; {printed.CODE}",
        _unchanged,
    )


def _own_rate(runs: RecordedRuns) -> Finding:
    parts, verdicts = [], {}
    for name in ("nlora", "nlora-released"):
        found = evidence.own_rates(name, runs)
        for task, row in found.iterrows():
            parts.append(f"{_label(name)} on {task} {row['rate']:g} of {row['tried']} tried ({_seeds(row['seeds'])})")
        if name == "nlora":
            verdicts = {task: str(found["verdict"].get(task, NO_RUNS)) for task in TASKS}
    return Finding("; ".join(parts) or "no runs", together(verdicts), _command("paper.own_rates('nlora').T"))


def _kaiming(rate: float | None, runs: RecordedRuns) -> Finding:
    command = _command(f"paper.starts_of_n({', '.join(_options(rate, RANK))}).verdict")
    try:
        found = evidence.starts_of_n(rate=rate, runs=runs)
    except InputError:
        return Finding("no runs", NO_RUNS, command)
    others = found.drop(index="kaiming")
    outcome = others["verdict"].map(evidence.judged)
    count = {kind: int((outcome == kind).sum()) for kind in (OPPOSITE, REPRODUCED, SAME, FEW)}
    told = (
        f"of {len(others)} other starts {count[OPPOSITE]} worse, {count[REPRODUCED]} better, "
        f"{count[SAME]} not told apart, {count[FEW]} with too few seeds; median accuracy "
        f"{found['median']['kaiming']:.1%} against {others['median'].min():.1%} to {others['median'].max():.1%}"
    )
    if found["edge"].any():
        told += f"; best at the edge of the rates tried: {', '.join(found.index[found['edge']])}"
    return Finding(told, _best_of(count, len(others)), command)


def _best_of(count: dict[str, int], others: int) -> str:
    """The verdict on *Kaiming is the best*, from how the others compare with it."""
    if count[REPRODUCED]:
        return f"{OTHERWISE}: {count[REPRODUCED]} better"
    if count[FEW] or not others:
        return FEW
    return REPRODUCED if count[OPPOSITE] == others else SAME


def _cheap(_: RecordedRuns) -> Finding:
    (shape, rank), command = QUICK, _command("paper.start_times()")
    found = start_times(shape, rank, rounds=9)
    times = (found["low"] / found["low"]["Nyström"]).drop("Nyström")  # the quickest rounds: the machine may be busy
    # not how much longer: that depends on the machine, and on what else it does
    told = [f"the {name} takes longer" for name, t in times.items() if t > 1]
    if found["error"]["Nyström"] > 1:
        told.append("but its product is further from W than 0 is, on this matrix")
    where = f"one matrix of {shape[0]} × {shape[1]} at rank {rank}, measured now"
    return Finding(f"{where}: {'; '.join(told)}", REPRODUCED if times.min() > 1 else OTHERWISE, command)


def _unchanged(runs: RecordedRuns) -> Finding:
    found, command = evidence.step0_changes(runs), _command("paper.step0_changes()")
    if len(found) < 2:
        return Finding("no runs of both", NO_RUNS, command)
    told = [
        f"{_label(name)} changes the logits by up to {row['largest']:.1%} ({row['runs']} runs)"
        if row["largest"] > STEP0_NOISE
        else f"{_label(name)} leaves the logits as they are ({row['runs']} runs)"
        for name, row in found.iterrows()
    ]
    changed = found["largest"] > STEP0_NOISE
    return Finding(
        "; ".join(told), DIFFER if changed.any() and not changed.all() else "derivation and code agree", command
    )


# --- what only the paper's own models and tasks can tell ---


def _elsewhere() -> Iterator[Claim]:
    language = "accuracies of LLaMA-2-7B and its kin on GSM8K, MATH, HumanEval, MBPP and MT-Bench"
    yield Claim("the five generation tasks", "elsewhere", language, f"{printed.ABSTRACT}; {printed.TABLE}", _far)
    understanding = "results on 8 natural language understanding tasks"
    yield Claim("the eight understanding tasks", "elsewhere", understanding, printed.ABSTRACT, _far)


def _far(runs: RecordedRuns) -> Finding:
    told = f"not tried: the {len(runs):,} runs here are of a model of 0.9 million parameters on {' and '.join(TASKS)}"
    return Finding(told, UNTESTABLE, _command("paper.plan()"))
