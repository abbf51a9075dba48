"""The questions of notebook 06, as those of :mod:`nlora_lab.course.solutions`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median

from nlora_lab.course.solutions import Exercise, Mistake

Tried = Mapping[float, Sequence[float]]
"""The validation losses of every rate, one a seed; infinite where a run diverged."""


def _valleys() -> list[tuple[Tried]]:
    """Each rule has a favourite of its own; a rate that mostly diverges; one that is best by every rule."""
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
        ({1e-4: [0.30, 0.31], 2e-4: [0.20, 0.22], 5e-4: [0.60, 0.50]},),
    ]


def chosen(tried: Tried) -> float:
    """The rate with the lowest median over its seeds."""
    return min(tried, key=lambda rate: median(tried[rate]))


def _as_p(value: float) -> str:
    return f"with {value:g} pairs, all in favour, p is 2 / 2^{value:g} = {2 / 2**value:.3g}" if 0 < value < 64 else ""


# fmt: off
TABLE: tuple[Exercise, ...] = (
    Exercise(
        "6.1",
        "a rate over seeds",
        "Each rate was tried with several seeds. Write chosen(tried): the rate whose typical run, its median, has\n"
        "the lowest validation loss (about 1 line). tried maps a rate to its losses; infinite where one diverged.",
        chosen,
        "One lucky seed near the cliff can make a rate look best that fails two times out of three.",
        (
            Mistake(lambda tried: min(tried, key=lambda rate: min(tried[rate])),
                "that takes the rate of the luckiest seed. A typical run is asked for: the median."),
            Mistake(lambda tried: min(tried, key=lambda rate: max(tried[rate])),
                "that is the rate whose worst run is best: careful, but one unlucky seed decides it. Take the median."),
            Mistake(lambda tried: min(tried, key=lambda rate: fmean(tried[rate])),
                "that is the mean; one seed that fails pulls it as far as it likes. Take the median."),
            Mistake(lambda tried: min(tried, key=lambda rate: tried[rate][0]),
                "that looks at the first seed only. Take the median of all."),
            Mistake(lambda tried: max(tried, key=lambda rate: median(tried[rate])),
                "that is the rate with the highest loss; the lowest is wanted."),
            Mistake(lambda tried: min(median(losses) for losses in tried.values()),
                "that is the lowest loss itself; its rate is wanted."),
        ),
        inputs=_valleys,
    ),
    Exercise(
        "6.2",
        "how many pairs",
        "A test without normal distributions: if two methods were equal, each difference of a pair could as well\n"
        "have the other sign. With n pairs, all of them in favour of one, p = 2 / 2^n. What is the smallest n with\n"
        "p < 0.05? (One number, about 1 line.)",
        6,
        "Five seeds never convince this test. Student's, which nl.compare uses, can be convinced by five, because "
        "it assumes that differences scatter like a normal distribution.",
        (
            Mistake(5, "2 / 2^5 = 0.0625: near, but not below."),
            Mistake(4, "2 / 2^4 = 0.125."),
            Mistake(7, "that is enough, but one fewer is enough too."),
            Mistake(20, "that would be so if one sign in twenty had to be wrong; here all point the same way."),
        ),
        gives=_as_p,
        reason="2 / 2^6 = 0.03125.",
    ),
)
# fmt: on
