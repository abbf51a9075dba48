"""The exercises of notebook 07, with their solutions and with hints for typical mistakes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import truediv
from statistics import fmean, median

import torch
from torch import Tensor

from nlora_lab.course.exercises import Exercise, Mistake, Question

Scores = Sequence[float]


def _scores() -> list[tuple[Scores, Scores]]:
    """The paper's IntTune and LoRA, a method that wins where scores are low, and one that loses everywhere."""
    return [
        ([44.28, 6.86, 20.70, 34.40, 4.46], [42.30, 5.50, 18.29, 35.34, 4.58]),
        ([60.0, 3.0, 41.0], [64.0, 2.0, 40.0]),
        ([10.0, 45.0], [20.0, 50.0]),
    ]


def mean_gain(ours: Scores, theirs: Scores) -> float:
    """Return the mean of the changes on each task, in percent of theirs."""
    return sum(100 * (a - b) / b for a, b in zip(ours, theirs, strict=True)) / len(ours)


def _accuracies() -> list[tuple[float, float, int]]:
    """NLoRA and SLoRA on GSM8K, 200 questions as in this course, and a larger test with low scores."""
    return [(57.70, 56.48, 1319), (30.0, 42.0, 200), (8.0, 5.0, 5000)]


def z_of(first: float, second: float, items: int) -> float:
    """Return the difference in units of its standard error, with the pooled share."""
    p = (first + second) / 200
    return (first - second) / 100 / math.sqrt(2 * p * (1 - p) / items)


def _unpooled(first: float, second: float, items: int) -> float:
    a, b = first / 100, second / 100
    return (a - b) / math.sqrt((a * (1 - a) + b * (1 - b)) / items)


def _p_values() -> list[tuple[Tensor]]:
    return [(torch.tensor(ps),) for ps in ([0.01, 0.2, 0.03, 0.5], [0.06, 0.004], [0.4, 0.02, 0.01, 0.0002, 0.9])]


def bonferroni(ps: Tensor) -> Tensor:
    """Return each p-value times the number of comparisons, at most 1."""
    return (len(ps) * ps).clamp(max=1)


def _answers() -> list[tuple[Sequence[bool], Sequence[bool]]]:
    """Right (True) or wrong on the same questions: 9 against 2 of those where they differ, and 3 against 8."""
    return [
        ([True] * 30 + [True] * 9 + [False] * 2 + [False] * 9, [True] * 30 + [False] * 9 + [True] * 2 + [False] * 9),
        ([True] * 5 + [True] * 3 + [False] * 8, [True] * 5 + [False] * 3 + [True] * 8),
    ]


def mcnemar(ours: Sequence[bool], theirs: Sequence[bool]) -> float:
    """Return the exact p-value, two-sided: how often a fair coin divides the disagreements as unevenly as this."""
    return _two_sided(*_disagreements(ours, theirs))


def _disagreements(ours: Sequence[bool], theirs: Sequence[bool]) -> tuple[int, int]:
    """Return the smaller of the two counts, and both together."""
    differ = [a for a, b in zip(ours, theirs, strict=True) if a != b]
    return min(sum(differ), len(differ) - sum(differ)), len(differ)


def _two_sided(k: int, n: int) -> float:
    return min(1.0, 2 * _tail(k, n))


def _fewer(k: int, n: int) -> float:
    return 2 * _tail(k - 1, n)


def _exactly(k: int, n: int) -> float:
    return float(2 * math.comb(n, k) / 2**n)


def _tail(k: int, n: int) -> float:
    return float(sum(math.comb(n, i) for i in range(k + 1)) / 2**n)


# a mistake and its hint are one paragraph here, not five lines
# fmt: off
EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        "7.1",
        "two ways to average",
        "Two methods have scores on several tasks. Write mean_gain(ours, theirs): the average gain, computed as the\n"
        "paper computes its 7.45 %. Take the change on each task in percent of theirs, then the mean of these changes\n"
        "(about 1 line). ours and theirs are lists of numbers, one number per task.",
        mean_gain,
        "A task with low scores counts as much as any other. One and a half points more on it can be a quarter more.",
        (
            Mistake(lambda ours, theirs: 100 * (fmean(ours) - fmean(theirs)) / fmean(theirs),
                "that is the change of the means. There a task counts by how many points it has. Here each change is "
                "made relative first."),
            Mistake(lambda ours, theirs: fmean(a - b for a, b in zip(ours, theirs, strict=True)),
                "that is the mean change in points. Divide each change by the score of theirs on that task."),
            Mistake(lambda ours, theirs: fmean(100 * (a - b) / a for a, b in zip(ours, theirs, strict=True)),
                "you divided by ours. A gain over theirs is in percent of theirs."),
            Mistake(lambda ours, theirs: fmean((a - b) / b for a, b in zip(ours, theirs, strict=True)),
                "that is a fraction. In percent it is a hundred times as much."),
            Mistake(lambda ours, theirs: fmean(100 * a / b for a, b in zip(ours, theirs, strict=True)),
                "that is what percentage of theirs ours is. The gain is the part above 100."),
            Mistake(lambda ours, theirs: median(100 * (a - b) / b for a, b in zip(ours, theirs, strict=True)),
                "that is the median of the changes, a more cautious choice. The paper takes the mean."),
            Mistake(lambda ours, theirs: sum(100 * (a - b) / b for a, b in zip(ours, theirs, strict=True)),
                "that is the sum of the changes. Divide it by the number of tasks."),
        ),
        inputs=_scores,
        digits=3,
        level="understand",
    ),
    Exercise(
        "7.2",
        "is that a difference",
        "Two models answer the same number of questions. first and second are their percentages of right answers.\n"
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
                "the sign is wrong: first minus second."),
            Mistake(lambda first, second, items: (first - second) / 100,
                "that is the difference itself. Divide it by its standard error."),
            Mistake(lambda first, second, items: z_of(first, second, items) ** 2,
                "that is z squared. Is a root missing, or is there a square too many?"),
            Mistake(lambda first, second, items: z_of(first, second, items) / math.sqrt(items),
                "the number of questions is missing in the error. More questions mean less scatter."),
            Mistake(lambda first, second, items: (first - second) / math.sqrt(
                    (first + second) * (1 - (first + second) / 2) / items),
                "a percentage is under the root, so 1 − p is negative. Turn both accuracies into shares first: divide "
                "by 100."),
            Mistake(_unpooled,
                "that uses the scatter of each share separately. It is a valid test too, with nearly the same result. "
                "Here the question is whether both shares could be equal, so use one pooled p for both."),
        ),
        inputs=_accuracies,
        level="understand",
    ),
    Exercise(
        "7.3",
        "a family of tests",
        "Several comparisons were made, and each has a p-value. Chance alone gives a small one sooner or later.\n"
        "Write bonferroni(ps): the corrected p-values, in the same order. Multiply each by the number of comparisons.\n"
        "A probability is at most 1 (about 1 line). ps is a tensor. Return a tensor.",
        bonferroni,
        "So one comparison, declared before the runs, needs less evidence than the best one of thirteen.",
        (
            Mistake(lambda ps: len(ps) * ps,
                "one of these is above 1, and no probability is. Use .clamp(max=1)."),
            Mistake(lambda ps: ps / len(ps),
                "that makes every p smaller: with more tests there would be more winners. Multiply."),
            Mistake(lambda ps: 1 - (1 - ps) ** len(ps),
                "that is Šidák's correction, exact for independent tests. These share their baseline. Multiply by the "
                "number of comparisons."),
            Mistake(lambda ps: (ps < 0.05 / len(ps)).double(),
                "these are decisions. Return the corrected p-values."),
            Mistake(lambda ps: bonferroni(ps).sort().values,
                "the values are right, but not in the order of ps."),
            Mistake(lambda ps: bonferroni(ps).min(),
                "that is the smallest one alone. Return one value for each comparison."),
        ),
        inputs=_p_values,
        level="warm-up",
    ),
    Exercise(
        "7.4",
        "the same questions",
        "Two models answered the same questions. ours and theirs are lists of True (right) and False, in the order of\n"
        "the questions. Only questions on which they disagree can tell them apart. If both were equally good, each of\n"
        "these would be a fair coin. Write mcnemar(ours, theirs): the exact two-sided p-value. That is twice the\n"
        "probability that n coins show at most k heads. Here n counts the disagreements, and k is the smaller of the\n"
        "two counts (about 5 lines). math.comb(n, i) is the number of ways to choose i of n.",
        mcnemar,
        "Questions that both answer alike cancel. So this test can settle what two percentages leave open.",
        (
            Mistake(lambda ours, theirs: _tail(*_disagreements(ours, theirs)),
                "that is one side. Before the runs either model could have won, so take twice as much."),
            Mistake(lambda ours, theirs: _two_sided(min(sum(ours), sum(theirs)), sum(ours) + sum(theirs)),
                "that compares all right answers. Count only the questions on which the two disagree."),
            Mistake(lambda ours, theirs: _two_sided(_disagreements(ours, theirs)[0], len(ours)),
                "n is the number of disagreements, not of all questions."),
            Mistake(lambda ours, theirs: _exactly(*_disagreements(ours, theirs)),
                "that is the probability of exactly k heads. Add those of fewer than k."),
            Mistake(lambda ours, theirs: _fewer(*_disagreements(ours, theirs)),
                "k itself is missing in the sum: at MOST k heads includes k."),
            Mistake(lambda ours, theirs: truediv(*_disagreements(ours, theirs)),
                "that is the smaller share of the disagreements. How often does a fair coin give such a share?"),
        ),
        inputs=_answers,
        level="build",
    ),
)
# fmt: on

QUESTIONS: tuple[Question, ...] = (
    Question(
        "7.Q1",
        "Percent of what: relative, or points? At which learning rates: one for all, or one for each method? How\n"
        "many test items and seeds: could it be chance?",
    ),
    Question(
        "7.Q2",
        "One candidate is the size of the steps: at the one rate of the paper, LoRA may lie on the slope of its\n"
        "valley. Train both over a ladder of rates with several seeds, and compare the bottoms. A second test:\n"
        "give LoRA the start A' = N A. At the start it is then the same function with the same first step of B.",
    ),
    Question(
        "7.Q3",
        "That depends on your paper. Counts of parameters, relative changes and standard errors from the number\n"
        "of test items can nearly always be recomputed. A row has the claim as printed, your formula, your\n"
        "number, and a verdict.",
    ),
)
