"""The exercises of notebook 06, with their solutions and with hints for typical mistakes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median

from nlora_lab.course.exercises import Exercise, Mistake, Question

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
