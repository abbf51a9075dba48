"""Claims that the reported figures alone can support, and claims that only the paper's own models can test."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from nlora_lab.paper import arithmetic, reported_figures
from nlora_lab.paper.arithmetic import Difference, difference
from nlora_lab.paper.reported_figures import (
    ABSTRACT,
    FIGURE_4_BARS,
    GSM8K,
    GSM8K_ITEMS,
    INTTUNE_TABLE,
    PAPER_RANK,
    RELEASED_CODE,
    SECOND_HAND,
)
from nlora_lab.paper.verdicts import (
    APART,
    CHANCE,
    CONFOUNDED,
    CORRECT,
    COUNTED,
    NOT_SO,
    NOT_TESTED,
    RECOMPUTED,
    ROUNDED,
    SHARES,
    UNTESTABLE,
    Claim,
    Finding,
    method_label,
    python_command,
)
from nlora_lab.runs.index import RecordedRuns
from nlora_lab.tasks.generated import TASKS

IMPROVES_SLORA = '"Nyström-based initialization for SLoRA to improve its effectiveness"'
INTTUNE_NAME = f"inttune, r = {PAPER_RANK}"


def reported_claims() -> Iterator[Claim]:
    """Yield the claims that the reported figures alone can support."""
    yield from _claims_on_gsm8k()
    yield Claim(
        "what N adds", "printed", '"only 3.67M additional trainable parameters"', ABSTRACT, _check_added, RECOMPUTED
    )
    yield Claim(
        "IntTune's share", "printed", '"only 1.25% of its parameters", LoRA\'s', ABSTRACT, _check_share, RECOMPUTED
    )
    yield Claim(
        "IntTune's average",
        "printed",
        '"boosts average NLG performance over LoRA by 7.45%"',
        f"{ABSTRACT}; {INTTUNE_TABLE}",
        _check_average,
        RECOMPUTED,
    )
    yield Claim(
        "IntTune above LoRA on GSM8K",
        "printed",
        "44.28 % against 42.30 %, at rank 128",
        INTTUNE_TABLE,
        _check_inttune_on_gsm8k,
        SHARES,
    )
    yield Claim(
        "Kaiming against Gaussian",
        "printed",
        "the Kaiming start of N is the better one",
        f"{SECOND_HAND}; the Gaussian of 1/r is a comment in the {RELEASED_CODE}",
        _check_scales,
        RECOMPUTED,
    )


def _claims_on_gsm8k() -> Iterator[Claim]:
    yield Claim(
        "the gain over LoRA",
        "printed",
        'SLoRA and NLoRA reach 56.48 % and 57.70 % on GSM8K, "surpassing LoRA by 33.52% and 36.41%"',
        GSM8K.source,
        _check_gain,
        RECOMPUTED,
    )
    for ours, percent in (("slora", "56.48"), ("nlora", "57.70")):
        says, check = f"{percent} % against 42.30 %", partial(_check_pair, ours, "lora")
        yield Claim(f"{method_label(ours)} above LoRA on GSM8K", "printed", says, GSM8K.source, check, SHARES)
    yield Claim(
        "NLoRA above SLoRA on GSM8K",
        "printed",
        f"57.70 % against 56.48 %: {IMPROVES_SLORA}",
        GSM8K.source,
        partial(_check_pair, "nlora", "slora"),
        SHARES,
    )
    yield Claim(
        "NLoRA above SLoRA over the ranks",
        "printed",
        f"bars at eight ranks, on two tasks: {IMPROVES_SLORA}",
        FIGURE_4_BARS,
        _check_bars,
        COUNTED,
    )
    says = "about 46 % against about 22 % on GSM8K"
    yield Claim("SLoRA above LoRA at rank 1", "printed", says, FIGURE_4_BARS, _check_rank_one, SHARES)


def claims_elsewhere() -> Iterator[Claim]:
    """Yield the claims that only the paper's own models and tasks can test."""
    generation = "accuracies of LLaMA-2-7B and similar models on GSM8K, MATH, HumanEval, MBPP and MT-Bench"
    yield Claim(
        "the five generation tasks", "elsewhere", generation, f"{ABSTRACT}; {INTTUNE_TABLE}", _not_tested, NOT_TESTED
    )
    understanding = "results on 8 natural language understanding tasks"
    yield Claim("the eight understanding tasks", "elsewhere", understanding, ABSTRACT, _not_tested, NOT_TESTED)


def _check_gain(_: RecordedRuns) -> Finding:
    table = arithmetic.headline()
    unit = next((u for u in ("relative", "points") if (table[u] - table["reported"]).abs().max() < 0.005), None)
    gains = [
        f"{method_label(name)} {row['relative']:+.2f} % relative, {row['points']:+.2f} points"
        for name, row in table.iterrows()
    ]
    return Finding("; ".join(gains), f"{CORRECT}: {unit}" if unit else NOT_SO, python_command("paper.headline()"))


def _check_pair(ours: str, theirs: str, _: RecordedRuns) -> Finding:
    return _finding_by_chance(GSM8K.rows[ours][0], GSM8K.rows[theirs][0])


def _finding_by_chance(first: float, second: float, remark: str = "") -> Finding:
    apart = difference(first, second)
    command = python_command(f"paper.difference({first}, {second})")
    return Finding(_describe(apart) + remark, APART if apart.p <= 0.05 else CHANCE, command)


def _describe(apart: Difference) -> str:
    p = f"p = {apart.p:.2f}" if apart.p >= 0.01 else "p < 0.01"
    text = f"{apart.points:+.2f} points: {apart.questions} questions of {GSM8K_ITEMS:,}, z = {apart.z:.2f}, {p}"
    return f"{text}, detectable {apart.detectable:.1f}"


def _check_bars(_: RecordedRuns) -> Finding:
    cells = arithmetic.cells()
    by_task = [f"{task} {part['at_least'].sum()} of {len(part)}" for task, part in cells.groupby(level="task")]
    clear = (cells["at_least"] & cells["clear"]).sum()
    evidence = (
        f"SLoRA is at least as high in {cells['at_least'].sum()} of {len(cells)} cells ({', '.join(by_task)}), "
        f"in {clear} of them by more than the bars can be misread"
    )
    against = cells["at_least"].mean() > 0.5
    verdict = "not supported: most cells show the opposite" if against else "supported by the figure"
    return Finding(evidence, verdict, python_command("paper.cells()"))


def _check_rank_one(_: RecordedRuns) -> Finding:
    bars = reported_figures.FIGURE_4["GSM8K"].rows
    remark = "; at rank 1 N is one number, so B N A can express exactly what B A can: structure cannot explain the gap"
    return _finding_by_chance(bars["slora"][0], bars["lora"][0], remark)


def _check_added(_: RecordedRuns) -> Finding:
    table = arithmetic.parameters()
    added, share = int(table["beyond"]["slora"]), table["share"]["slora"] - 100
    verdict = CORRECT if round(added, -4) == reported_figures.ADDED_PARAMETERS else NOT_SO
    return Finding(f"{added:,}, which is {share:+.2f} % of LoRA's", verdict, python_command("paper.parameters()"))


def _check_share(_: RecordedRuns) -> Finding:
    table = arithmetic.parameters()
    core, lora, share = *table["trainable"][["inttune", "lora"]], table["share"]["inttune"]
    of_millions = 100 * round(core / 1e6) / round(lora / 1e6)
    exact, rounded = (abs(value - reported_figures.INTTUNE_SHARE) < 0.005 for value in (share, of_millions))
    evidence = f"{core:,} of {lora:,} are {share:.3f} %; {core / 1e6:.0f}M of {lora / 1e6:.0f}M are {of_millions:.2f} %"
    return Finding(evidence, CORRECT if exact else ROUNDED if rounded else NOT_SO, python_command("paper.parameters()"))


def _check_average(_: RecordedRuns) -> Finding:
    row = arithmetic.averages().loc[INTTUNE_NAME]
    averages = row.index[:2]
    matching = [name for name in averages if abs(row[name] - reported_figures.INTTUNE_GAIN) < 0.05]
    evidence = "; ".join(f"{name} {row[name]:+.2f} %" for name in averages)
    evidence += f"; above LoRA on {row['tasks above LoRA']:.0f} of {len(reported_figures.INTTUNE.columns)} tasks"
    return Finding(evidence, f"{CORRECT}: {matching[0]}" if matching else NOT_SO, python_command("paper.averages()"))


def _check_inttune_on_gsm8k(_: RecordedRuns) -> Finding:
    rows = reported_figures.INTTUNE.rows
    return _finding_by_chance(rows[INTTUNE_NAME][0], rows["lora"][0])


def _check_scales(_: RecordedRuns) -> Finding:
    kaiming, gaussian = arithmetic.scales().values()
    evidence = (
        f"at rank {PAPER_RANK} the standard deviations are {kaiming:.4f} and {gaussian:.4f}, "
        f"a factor of {kaiming / gaussian:.1f}"
    )
    verdict = CONFOUNDED if kaiming > 2 * gaussian else "of similar size"
    return Finding(evidence, verdict, python_command("paper.scales()"))


def _not_tested(runs: RecordedRuns) -> Finding:
    tasks = " and ".join(TASKS)
    evidence = f"not tried: the {len(runs):,} runs here are of a model of 0.9 million parameters on {tasks}"
    return Finding(evidence, UNTESTABLE, python_command("paper.plan()"))
