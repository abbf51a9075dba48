"""The exercises of notebook 09, with their solutions and with hints for typical mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median

from nlora_lab.course.exercises import Exercise, Mistake, Question

Rows = Mapping[str, tuple[float, float, int]]
"""Comparisons by name: the difference of the means, the p-value of this comparison alone, and the number of seeds."""

Results = Mapping[float, Sequence[float]]
"""The accuracies at each rate, one per seed."""


def _comparisons() -> list[tuple[Rows, int]]:
    """Three ledgers. In each, every rule that leaves something out accepts another list."""
    return [
        (
            {
                "clear": (0.20, 0.001, 5),
                "worse": (-0.30, 0.0001, 5),
                "p alone": (0.10, 0.02, 5),
                "three seeds": (0.40, 0.001, 3),
                "noise": (0.05, 0.20, 5),
                "ten seeds": (0.08, 0.002, 10),
            },
            5,
        ),
        (
            {
                "a": (0.02, 0.030, 5),
                "b": (0.25, 0.004, 6),
                "c": (-0.02, 0.001, 7),
                "d": (0.30, 0.002, 4),
                "e": (0.15, 0.003, 5),
                "f": (0.01, 0.150, 8),
            },
            4,
        ),
        ({"x": (0.1, 0.04, 5), "y": (0.2, 0.004, 5), "z": (-0.1, 0.003, 9), "w": (0.3, 0.001, 2)}, 10),
    ]


def reproduced(rows: Rows, tests: int) -> list[str]:
    """Return the names that the declared rule accepts: enough seeds, the right sign, and p over all comparisons."""
    return [name for name, (difference, p, seeds) in rows.items() if seeds >= 5 and difference > 0 and p * tests < 0.05]


def _accuracies() -> list[tuple[Results, Results]]:
    """Two methods, each with a rate that the other did not try, a tie, and a seed that misleads the mean."""
    return [
        (
            {2e-4: [0.3, 0.3, 0.3], 1e-3: [0.5, 0.6, 0.7], 5e-3: [0.8, 0.9, 0.1], 1e-2: [0.7, 0.2, 0.2], 2e-2: [0.4]},
            {1e-4: [0.0], 2e-4: [0.3, 0.2, 0.4], 1e-3: [0.4, 0.4, 0.9], 5e-3: [0.7, 0.7, 0.7], 1e-2: [0.3, 0.3, 0.3]},
        ),
        (
            {1e-3: [0.2, 0.2], 2e-3: [0.9, 0.1, 0.1], 5e-3: [0.6, 0.6, 0.2], 1e-2: [0.8, 0.8], 5e-2: [0.9]},
            {5e-4: [0.1], 1e-3: [0.2, 0.2], 2e-3: [0.2, 0.3, 0.2], 5e-3: [0.5, 0.5, 0.5], 1e-2: [0.9, 0.6]},
        ),
    ]


def leads(ours: Results, theirs: Results) -> list[float]:
    """Return the rates that both tried and at which the median of ours is higher."""
    return [rate for rate in ours if rate in theirs and median(ours[rate]) > median(theirs[rate])]


def _leads_by(ours: Results, theirs: Results, middle: object) -> list[float]:
    return [rate for rate in ours if rate in theirs and middle(ours[rate]) > middle(theirs[rate])]  # type: ignore[operator]


def _factor(value: float) -> str:
    return f"at rank {value:g} LoRA trains {8192 / value:,.4g} times as many" if value > 0 else ""


# a mistake and its hint are one paragraph here, not five lines
# fmt: off
EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        "9.1",
        "the declared rule",
        "A comparison reproduces the claim *ours is better* if it has at least five seeds, if the difference is\n"
        "above 0, and if p is below 0.05 after it is multiplied by the number of comparisons. Write\n"
        "reproduced(rows, tests): the list of the names that pass (about 2 lines). rows maps each name to\n"
        "(difference, p, seeds), and tests is the number of comparisons.",
        reproduced,
        "A rule like this can be written down before the runs. After the runs it leaves nothing to choose.",
        (
            Mistake(lambda rows, tests: [k for k, (d, p, n) in rows.items() if n >= 5 and d > 0 and p < 0.05],
                "p is not multiplied. With many comparisons, some p-values are small by luck."),
            Mistake(lambda rows, tests: [k for k, (d, p, n) in rows.items() if d > 0 and p * tests < 0.05],
                "the seeds are not counted. With three seeds, p depends on how alike three numbers happen to be."),
            Mistake(lambda rows, tests: [k for k, (d, p, n) in rows.items() if n >= 5 and p * tests < 0.05],
                "the sign is not asked for. A clear difference in the other direction does not reproduce the claim."),
            Mistake(lambda rows, tests: [k for k, (d, p, n) in rows.items() if n > 5 and d > 0 and p * tests < 0.05],
                "five seeds are enough: at least five, not more than five."),
            Mistake(lambda rows, tests: [k for k, (d, p, n) in rows.items() if n >= 5 and d > 0 and p / tests < 0.05],
                "p is divided by the number of comparisons. That makes the test easier, and it has to be harder."),
            Mistake(lambda rows, tests: [k for k, (d, p, n) in rows.items() if n >= 5 and d > 0 and p * tests >= 0.05],
                "the comparison of p is turned round. A small p speaks against chance."),
        ),
        inputs=_comparisons,
        level="understand",
    ),
    Exercise(
        "9.2",
        "who leads at which rate",
        "Two methods were tried at several rates. ours and theirs map each rate to the accuracies of its seeds. Write\n"
        "leads(ours, theirs): the list of the rates that both tried, and at which the median of ours is higher\n"
        "(about 1 line).",
        leads,
        "If this list is neither empty nor complete, a comparison at one shared rate tells you about the rate.",
        (
            Mistake(lambda ours, theirs: [rate for rate in ours if median(ours[rate]) > median(theirs[rate])],
                "one of the methods did not try every rate. Ask first whether the rate is in both."),
            Mistake(lambda ours, theirs: [r for r in ours if median(ours[r]) > median(theirs.get(r, [0]))],
                "a rate that theirs did not try counts as 0 for theirs. Nobody knows what theirs would do there."),
            Mistake(lambda ours, theirs: _leads_by(ours, theirs, fmean),
                "that is the mean. One seed that fails moves it. Take the median."),
            Mistake(lambda ours, theirs: _leads_by(ours, theirs, max),
                "that compares the luckiest seeds. Take the median."),
            Mistake(lambda ours, theirs: [r for r in ours if r in theirs and median(ours[r]) >= median(theirs[r])],
                "a tie counts as a lead. The median of ours has to be higher."),
            Mistake(lambda ours, theirs: leads(theirs, ours),
                "these are the rates at which theirs is higher."),
        ),
        inputs=_accuracies,
        level="understand",
    ),
    Exercise(
        "9.3",
        "a hundred times fewer",
        "A weight matrix is 4096 × 4096. LoRA trains B and A, and LoRA-XS trains only an r × r matrix between frozen\n"
        "factors. Both have the same rank r. What is the largest r at which LoRA-XS trains at least 100 times fewer\n"
        "numbers? One whole number (about 1 line).",
        81,
        "The factor is 8192 / r, so it belongs to the rank and to the size of the matrix. Ask at which rank a paper "
        "counts.",
        (
            Mistake(82, "that is a little too large: the factor is 99.9 there."),
            Mistake(40, "LoRA has two factors: B and A have 4096 r numbers each."),
            Mistake(163, "that is a factor of 50."),
            Mistake(100, "100 is the factor. The question asks for the rank."),
            Mistake(64, "that rank is small enough, but it is not the largest one."),
        ),
        gives=_factor,
        reason="2 · 4096 · r / r² = 8192 / r, and 8192 / 100 = 81.92.",
        level="warm-up",
    ),
)
# fmt: on

QUESTIONS: tuple[Question, ...] = (
    Question(
        "9.Q1",
        "The paper compares under one set-up, so the row at one shared rate is its claim. The row with own rates\n"
        "is a different question, which readers often take for the first. An audit reports both and says which is\n"
        "which. If the verdicts differ, the claim depends on the rate, and that is the finding.",
    ),
    Question(
        "9.Q2",
        "No. It means that these seeds cannot tell. Look at the detectable difference: if a gain of 5 points\n"
        "would have been missed, the runs say nothing about a gain of 5 points. To show that two methods match,\n"
        "declare beforehand how large a difference would still count as a match, and make enough runs that the\n"
        "interval lies within it.",
    ),
    Question(
        "9.Q3",
        "For example: the same comparison at another rank, on another task, or after more steps, declared before\n"
        "the runs. One that could overturn the verdict is worth more than one that could only confirm it. Here\n"
        "that is a rate between the rungs of the ladder for the method that lost, and a longer training.",
    ),
)
