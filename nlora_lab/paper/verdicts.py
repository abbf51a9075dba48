"""What a claim and a finding are, and the verdicts in which a check can end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nlora_lab.methods.table import METHODS
from nlora_lab.runs.index import RecordedRuns

KINDS = ("printed", "runs", "elsewhere")

# Verdicts on claims that only the reported figures can support.
CORRECT = "correct as printed"
ROUNDED = "correct only after rounding both numbers"
NOT_SO = "does not follow from the printed numbers"
APART = "distinguishable as printed"
CHANCE = "not distinguishable as printed"
CONFOUNDED = "compares shape and size at once"
UNTESTABLE = "cannot be tested here"

# Verdicts on claims that runs can test.
REPRODUCED = "reproduced"
OPPOSITE = "not reproduced: the opposite holds"
SAME = "not reproduced: not distinguishable with these seeds"
OTHERWISE = "not reproduced"
FEW = "not settled: too few seeds"
UNJUDGED = "not settled: a run diverged"
NEITHER = "not settled: neither method reaches the loss"
EDGE = "not settled: a best rate is at the edge of the rates tried"
NO_RUNS = "not settled: no runs yet"
DIFFER = "formula and released code differ"
AGREE = "formula and released code agree"

# How a claim is tested.
RECOMPUTED = "recomputed from the printed numbers"
SHARES = "z test of two shares of 1,319 questions"
COUNTED = "counted, without a test"
WELCH = "Welch's t test over seeds, p times the family"
TIMED = "timed on this machine"
NOT_TESTED = "not tested"

OUR_READING = "tested with NLoRA by our reading of the Nyström formula"
"""The paper's figure and code show no pseudo-inverse, and we could not check its equations."""


@dataclass(frozen=True)
class Finding:
    """The result of checking a claim.

    Attributes:
        evidence: what the check measured or computed, in words.
        verdict: the verdict, which follows from the evidence by a rule.
        command: a shell command that shows the reader the same numbers.
    """

    evidence: str
    verdict: str
    command: str


@dataclass(frozen=True)
class Claim:
    """A statement about the methods, its source, and the check that tests it.

    Attributes:
        name: a short name, unique in the ledger.
        kind: "printed" (the reported figures alone can support it), "runs" (it can be measured here, mostly on the
            recorded runs) or "elsewhere" (only the paper's own models and tasks can tell).
        says: the statement in our words. The paper's own words are in quotation marks.
        source: where the statement comes from.
        check: a function that takes recorded runs and returns a ``Finding``.
        tested: how the check decides: which test, or what is counted or timed.
    """

    name: str
    kind: str
    says: str
    source: str
    check: Callable[[RecordedRuns], Finding]
    tested: str = "by a check of its own"


def combine_verdicts(verdicts: Mapping[str, str]) -> str:
    """Combine the verdicts of several tasks into one text.

    Args:
        verdicts: by task, its verdict.

    Returns:
        The verdict that all tasks share, or each verdict after the name of its task.
    """
    if not verdicts:
        return NO_RUNS
    if len(set(verdicts.values())) == 1:
        return next(iter(verdicts.values()))
    return "; ".join(f"{task}: {verdict}" for task, verdict in verdicts.items())


def python_command(expression: str) -> str:
    """Return the shell command that prints an expression of ``nlora_lab.paper``."""
    return f'python -c "from nlora_lab import paper; print({expression})"'


def method_label(name: object) -> str:
    """Return the name of a method as figures and tables print it."""
    return METHODS[str(name)].label
