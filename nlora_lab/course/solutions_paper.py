"""The questions of notebook 07, as those of :mod:`nlora_lab.course.solutions`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, median

from nlora_lab.course.solutions import Exercise, Mistake

Scores = Sequence[float]


def _tables() -> list[tuple[Scores, Scores]]:
    """The paper's IntTune and LoRA; a method that wins where little is reached; one that loses everywhere."""
    return [
        ([44.28, 6.86, 20.70, 34.40, 4.46], [42.30, 5.50, 18.29, 35.34, 4.58]),
        ([60.0, 3.0, 41.0], [64.0, 2.0, 40.0]),
        ([10.0, 45.0], [20.0, 50.0]),
    ]


def mean_gain(ours: Scores, theirs: Scores) -> float:
    """The change on each task in percent of theirs, and of these changes the mean."""
    return sum(100 * (a - b) / b for a, b in zip(ours, theirs, strict=True)) / len(ours)


def _accuracies() -> list[tuple[float, float, int]]:
    """NLoRA and SLoRA on GSM8K; 200 questions as in this course; a larger test on which little is reached."""
    return [(57.70, 56.48, 1319), (30.0, 42.0, 200), (8.0, 5.0, 5000)]


def z_of(first: float, second: float, items: int) -> float:
    """The difference in units of its standard error, with the pooled share."""
    p = (first + second) / 200
    return (first - second) / 100 / math.sqrt(2 * p * (1 - p) / items)


def _unpooled(first: float, second: float, items: int) -> float:
    a, b = first / 100, second / 100
    return (a - b) / math.sqrt((a * (1 - a) + b * (1 - b)) / items)


# fmt: off
TABLE: tuple[Exercise, ...] = (
    Exercise(
        "7.1",
        "two ways to average",
        "Two methods have scores on several tasks. Write mean_gain(ours, theirs), the average gain as the paper's\n"
        "7.45 % comes about: the change on each task in percent of theirs, then the mean of these (about 1 line).\n"
        "ours and theirs are lists of numbers, task by task.",
        mean_gain,
        "A task on which little is reached counts as much as any other: one and a half points more on it can be a "
        "quarter more.",
        (
            Mistake(lambda ours, theirs: 100 * (fmean(ours) - fmean(theirs)) / fmean(theirs),
                "that is the change of the means. There a task counts by how many points it has; here each change is "
                "made relative first."),
            Mistake(lambda ours, theirs: fmean(a - b for a, b in zip(ours, theirs, strict=True)),
                "that is the mean change in points. Divide each change by what theirs reaches on that task."),
            Mistake(lambda ours, theirs: fmean(100 * (a - b) / a for a, b in zip(ours, theirs, strict=True)),
                "you divided by ours. A gain over theirs is in percent of theirs."),
            Mistake(lambda ours, theirs: fmean((a - b) / b for a, b in zip(ours, theirs, strict=True)),
                "that is a fraction; percent are asked for, a hundred times as many."),
            Mistake(lambda ours, theirs: fmean(100 * a / b for a, b in zip(ours, theirs, strict=True)),
                "that is what percentage of theirs ours is. The gain is what it has above 100."),
            Mistake(lambda ours, theirs: median(100 * (a - b) / b for a, b in zip(ours, theirs, strict=True)),
                "that is the median of the changes, a more cautious choice. The paper takes the mean."),
            Mistake(lambda ours, theirs: sum(100 * (a - b) / b for a, b in zip(ours, theirs, strict=True)),
                "that is the sum of the changes; divide it by how many tasks there are."),
        ),
        inputs=_tables,
    ),
    Exercise(
        "7.2",
        "is that a difference",
        "Two models answer the same number of questions; first and second are their percentages of right answers.\n"
        "Write z_of(first, second, items): the difference of the two shares, divided by its standard error\n"
        "√(2 p (1 − p) / items) with the pooled share p, the mean of both shares (about 2 lines).",
        z_of,
        "Below about 2, chance alone makes such a difference more often than once in twenty times.",
        (
            Mistake(lambda first, second, items: z_of(first, second, items) * math.sqrt(2),
                "that is the standard error of one share. Two shares scatter, so the error of their difference is √2 "
                "times as large."),
            Mistake(lambda first, second, items: 100 * z_of(first, second, items),
                "the difference is in percent and its error in shares. Turn both into shares."),
            Mistake(lambda first, second, items: -z_of(first, second, items),
                "the sign is turned round: first less second."),
            Mistake(lambda first, second, items: (first - second) / 100,
                "that is the difference itself. Divide it by its standard error."),
            Mistake(lambda first, second, items: z_of(first, second, items) ** 2,
                "that is z squared: is there a root missing, or a square too many?"),
            Mistake(lambda first, second, items: z_of(first, second, items) / math.sqrt(items),
                "the number of questions has dropped out of the error. More questions, less scatter."),
            Mistake(_unpooled,
                "each share has its own scatter there. It is close, and a test of its own; here, as both might be the "
                "same, one pooled p stands for both."),
        ),
        inputs=_accuracies,
    ),
)
# fmt: on
