"""The exercises of notebook 06, with their solutions and with hints for typical mistakes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median, pvariance, variance

from nlora_lab.course.exercises import Exercise, Mistake, Question

Group = Sequence[float]
"""The accuracies of one method, in percent, one per seed."""
Trials = Mapping[float, Sequence[float]]
"""The validation losses of each rate, one per seed. A loss is infinite if the run diverged."""


def _rates_and_seeds() -> list[tuple[Trials]]:
    """Two tables where each rule picks another rate, one with a rate that mostly diverges, one where all agree."""
    return [
        (
            {
                2e-3: [0.21, 0.22, 0.20],
                5e-3: [0.12, 0.11, 0.45],
                1e-2: [0.41, 0.02, 0.34],
                2e-2: [0.18, 0.19, 0.23],
                5e-2: [0.05, 0.60, 0.70],
                1e-1: [0.90, 1.20, math.inf],
            },
        ),
        ({5e-3: [0.09, 0.09, 0.95], 1e-2: [0.12, 0.13, 0.14], 2e-2: [0.01, math.inf, math.inf]},),
        ({1e-4: [0.70, 0.72], 2e-4: [0.20, 0.22], 5e-4: [0.60, 0.50]},),
        (
            {
                1e-3: [0.30, 0.31, 0.33],
                2e-3: [0.28, 0.29, 0.40],
                4e-3: [0.05, 0.50, 0.60],
                8e-3: [0.70, 0.20, 0.90],
                1.6e-2: [0.02, 0.45, 0.44],
                3.2e-2: [2.10, 1.90, math.inf],
            },
        ),
    ]


def chosen(tried: Trials) -> float:
    """Return the rate with the lowest median over its seeds."""
    return min(tried, key=lambda rate: median(tried[rate]))


def _p_of_pairs(value: float) -> str:
    return f"with {value:g} pairs, all in favour, p is 2 / 2^{value:g} = {2 / 2**value:.3g}" if 0 < value < 64 else ""


def _groups() -> list[tuple[Group, Group]]:
    """Groups of different sizes and scatters. The better one stands first or second."""
    return [
        ([93.0, 79.5, 97.0, 90.0, 94.5], [29.5, 12.0, 45.5, 40.0, 31.0]),
        ([50.0, 54.0, 47.0], [58.0, 30.0, 71.0, 64.0]),
        ([20.0, 70.0], [99.0, 98.0, 99.5, 97.0]),
    ]


def welch_t(first: Group, second: Group) -> float:
    """Return the difference of the means over its standard error. The groups may scatter differently."""
    error = math.sqrt(variance(first) / len(first) + variance(second) / len(second))
    return (fmean(first) - fmean(second)) / error


def _pooled_t(first: Group, second: Group) -> float:
    n, m = len(first), len(second)
    pooled = ((n - 1) * variance(first) + (m - 1) * variance(second)) / (n + m - 2)
    return (fmean(first) - fmean(second)) / math.sqrt(pooled * (1 / n + 1 / m))


def _seeds() -> list[tuple[Group, Group]]:
    """Methods whose seeds go together, go apart, and have nothing to do with each other."""
    return [
        ([80.0, 60.0, 90.0, 70.0], [75.0, 58.0, 83.0, 61.0]),
        ([80.0, 60.0, 90.0, 70.0], [58.0, 83.0, 55.0, 75.0]),
        ([93.0, 79.5, 97.0, 90.0, 94.5], [29.5, 41.0, 45.5, 12.0, 31.0]),
    ]


def pairing(first: Group, second: Group) -> float:
    """Return the variance of the differences of one seed, over that of differences of two seeds."""
    return variance(a - b for a, b in zip(first, second, strict=True)) / (variance(first) + variance(second))


# a mistake and its hint are one paragraph here, not five lines
# fmt: off
EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        "6.1",
        "a rate over seeds",
        "Each rate was tried with several seeds. Write chosen(tried): the rate whose typical run, its median, has\n"
        "the lowest validation loss (about 1 line). tried maps each rate to its losses. A loss is infinite if the run\n"
        "diverged.",
        chosen,
        "One lucky seed near the cliff can make a rate look best that fails two times out of three.",
        (
            Mistake(lambda tried: min(tried, key=lambda rate: min(tried[rate])),
                "that takes the rate of the luckiest seed. Take a typical run: the median."),
            Mistake(lambda tried: min(tried, key=lambda rate: max(tried[rate])),
                "that is the rate whose worst run is best: careful, but one unlucky seed decides it. Take the median."),
            Mistake(lambda tried: min(tried, key=lambda rate: fmean(tried[rate])),
                "that is the mean. One seed that fails pulls it as far as it likes. Take the median."),
            Mistake(lambda tried: min(tried, key=lambda rate: tried[rate][0]),
                "that looks at the first seed only. Take the median of all."),
            Mistake(lambda tried: max(tried, key=lambda rate: median(tried[rate])),
                "that is the rate with the highest loss. Take the lowest."),
            Mistake(lambda tried: min(median(losses) for losses in tried.values()),
                "that is the lowest loss itself. Return its rate."),
        ),
        inputs=_rates_and_seeds,
        level="understand",
    ),
    Exercise(
        "6.2",
        "how many pairs",
        "This test needs no normal distribution. If two methods were equal, the difference of each pair could as well\n"
        "have the other sign. With n pairs, all of them in favour of one, p = 2 / 2^n. What is the smallest n with\n"
        "p < 0.05? One number (about 1 line).",
        6,
        "Five pairs never convince this test. A t test, which nl.compare uses, can be convinced by five, because it "
        "assumes that the numbers scatter like a normal distribution.",
        (
            Mistake(5, "2 / 2^5 = 0.0625: near, but not below."),
            Mistake(4, "2 / 2^4 = 0.125."),
            Mistake(7, "that is enough, but one fewer is enough too."),
            Mistake(20, "that is far more than enough. p halves with every pair: it does not fall as 1 / n."),
        ),
        gives=_p_of_pairs,
        reason="2 / 2^6 = 0.03125.",
        level="warm-up",
    ),
    Exercise(
        "6.3",
        "does pairing help",
        "Two methods ran with the same seeds. first and second are their accuracies, in the order of the seeds.\n"
        "Write pairing(first, second): the variance of the differences of one seed, divided by the variance that the\n"
        "difference of two independent runs has, which is the sum of both variances (about 2 lines). Use the variance\n"
        "with n − 1.",
        pairing,
        "Below 1, pairs see more than two independent groups. At 1 a seed says nothing about another method, and pairs "
        "only cost degrees of freedom.",
        (
            Mistake(lambda first, second: 1 / pairing(first, second),
                "that is the ratio upside down. The variance of the differences of one seed stands above."),
            Mistake(lambda first, second: math.sqrt(pairing(first, second)),
                "that is a ratio of standard deviations. Variances are their squares."),
            Mistake(lambda first, second: variance(a - b for a, b in zip(first, second, strict=True)),
                "that is the variance of the differences. Divide it by the sum of both variances."),
            Mistake(lambda first, second: 2 * pairing(first, second),
                "you divided by the mean of both variances. For a difference the variances add up: take their sum."),
            Mistake(lambda first, second: pvariance([a - b for a, b in zip(first, second, strict=True)])
                    / (variance(first) + variance(second)),
                "one of the variances divides by n and the others by n − 1. Use n − 1 everywhere."),
            Mistake(lambda first, second: 1 - pairing(first, second),
                "that is the share that pairing saves. The question is about the ratio itself."),
        ),
        inputs=_seeds,
        level="understand",
    ),
    Exercise(
        "6.4",
        "Welch's t",
        "Two methods ran with several seeds each. Write welch_t(first, second): the difference of the means, first\n"
        "minus second, divided by its standard error. The variance of a mean is the variance of the group (with\n"
        "n − 1) over its number of seeds, and the variances of two independent means add up (about 3 lines). The\n"
        "groups may have different sizes.",
        welch_t,
        "This is the test behind nl.compare. It does not assume that both methods scatter alike, which they do not.",
        (
            Mistake(_pooled_t,
                "that pools both variances, as Student's test does. It assumes that both methods scatter alike. Add "
                "the two variances of the means instead."),
            Mistake(lambda first, second: -welch_t(first, second),
                "the sign is wrong: first minus second."),
            Mistake(lambda first, second: (fmean(first) - fmean(second))
                    / math.sqrt(variance(first) + variance(second)),
                "that is the scatter of single runs. A mean over n seeds has a variance n times smaller."),
            Mistake(lambda first, second: (fmean(first) - fmean(second)) / math.sqrt(
                    pvariance(first) / len(first) + pvariance(second) / len(second)),
                "these variances divide by n. The mean was estimated from the same runs, so divide by n − 1."),
            Mistake(lambda first, second: (fmean(first) - fmean(second)) / (
                    math.sqrt(variance(first) / len(first)) + math.sqrt(variance(second) / len(second))),
                "standard errors do not add up, variances do. Add first, then take the root."),
            Mistake(lambda first, second: (fmean(first) - fmean(second)) / (
                    variance(first) / len(first) + variance(second) / len(second)),
                "that is the variance of the difference. Take its root."),
            Mistake(lambda first, second: fmean(first) - fmean(second),
                "that is the difference itself. Divide it by its standard error."),
        ),
        inputs=_groups,
        level="build",
    ),
)
# fmt: on

QUESTIONS: tuple[Question, ...] = (
    Question(
        "6.Q1",
        "The rate may lie in the valley of X and far outside that of LoRA. X may take larger steps through its\n"
        "scale or its start, so it gets a larger rate under the same name. Three points may be chance: ask for\n"
        "the number of test items and of seeds. Others: a rate chosen on the test set, more rates tried for X,\n"
        "more trained numbers.",
    ),
    Question(
        "6.Q2",
        "For example: six rates for each method with one seed (24 runs), chosen by validation loss. Then five\n"
        "seeds at the best rate and four at the next best (36 runs). Do the coarse ladder first, and look whether\n"
        "the best rate lies at its edge.",
    ),
    Question(
        "6.Q3",
        "Use it to place the first rate: measure it for the new method and for one whose best rate you know, and\n"
        "scale that rate. Then try a rung or two on both sides. Do not trust it across models, batch sizes or\n"
        "schedules, and not for a ranking of methods: it predicts a rate, not a result.",
    ),
)
