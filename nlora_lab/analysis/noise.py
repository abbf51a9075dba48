"""How much numbers scatter, and what a comparison can see through that scatter.

Every function takes plain numbers, as in ``nlora_lab.analysis.statistics``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nlora_lab.analysis.statistics import Interval, check_confidence
from nlora_lab.core.errors import InputError

POWER = 0.8
"""The probability with which a difference should be seen, as is usual."""

SAME = 1e-12  # numbers this close, relatively, differ by rounding alone


@dataclass(frozen=True)
class Scatter:
    """Two sources of scatter of one number: what differs between seeds, and what differs when a seed is repeated.

    Attributes:
        between: the standard deviation between seeds that remains when the scatter of repetitions is taken out.
        within: the standard deviation of repetitions of one seed. NaN if no seed was repeated.
        total: the standard deviation of a single run.
        seeds: the number of seeds.
        repetitions: the number of runs beyond the first of each seed.
    """

    between: float
    within: float
    total: float
    seeds: int
    repetitions: int


def scatter(values: Mapping[int, Sequence[float]]) -> Scatter:
    r"""Divide the variance of numbers into that between seeds and that within one seed.

    These are the estimates of a one-way analysis of variance with random effects. With the mean squares
    :math:`M_b` between and :math:`M_w` within seeds and about :math:`n_0` runs per seed, the variance between seeds is
    :math:`\max(0, (M_b - M_w) / n_0)`.

    Args:
        values: the finite numbers of each seed.

    Returns:
        The standard deviations. Without repetitions ``within`` is NaN, and ``between`` is that of the plain numbers.

    Raises:
        InputError: fewer than two seeds, or a number that is not finite.
    """
    groups = [np.asarray(numbers, dtype=float) for numbers in values.values() if len(numbers)]
    if len(groups) < 2 or not all(np.isfinite(group).all() for group in groups):
        raise InputError(f"values={dict(values)!r} must be finite numbers of at least two seeds")
    count, k = sum(map(len, groups)), len(groups)
    means = np.array([group.mean() for group in groups])
    repetitions = count - k
    if not repetitions:
        deviation = float(means.std(ddof=1))
        return Scatter(deviation, math.nan, deviation, k, 0)
    sizes = np.array([len(group) for group in groups], dtype=float)
    grand = float((sizes * means).sum() / count)
    between_square = float((sizes * (means - grand) ** 2).sum() / (k - 1))
    within_square = sum(float(((group - group.mean()) ** 2).sum()) for group in groups) / repetitions
    typical = float((count - (sizes**2).sum() / count) / (k - 1))
    between = max(0.0, (between_square - within_square) / typical)
    return Scatter(math.sqrt(between), math.sqrt(within_square), math.sqrt(between + within_square), k, repetitions)


@dataclass(frozen=True)
class Welch:
    """Statistics of the difference of two independent groups. With one number in a group, only ``difference`` is given.

    Where no group scatters, as at 0 % right answers in every run, the interval and ``detectable`` are unknown (NaN).

    Attributes:
        difference: the mean of the first group minus that of the second.
        interval: the difference with Welch's confidence interval.
        p: the p-value of Welch's two-sided t test that the true means are equal.
        detectable: the smallest true difference that this test would have found with probability ``POWER``.
    """

    difference: float
    interval: Interval
    p: float
    detectable: float


def welch(first: Sequence[float], second: Sequence[float], confidence: float = 0.95, tests: int = 1) -> Welch:
    """Compare the means of two independent groups (Welch 1947).

    Args:
        first: finite numbers.
        second: finite numbers.
        confidence: the level of the interval, between 0 and 1.
        tests: the number of comparisons in the family. The detectable difference is for the level
            (1 − confidence) / tests (Bonferroni).

    Returns:
        The difference, its interval, its p-value and the detectable difference.

    Raises:
        InputError: a number is not finite, a group is empty, or the confidence is out of range.
    """
    from scipy import stats

    check_confidence(confidence)
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if not len(a) or not len(b) or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError(f"first={a.tolist()} and second={b.tolist()} must be finite numbers, at least one each")
    difference = float(a.mean() - b.mean())
    if len(a) < 2 or len(b) < 2:
        return Welch(difference, Interval(difference, math.nan, math.nan), math.nan, math.nan)
    first_sd, second_sd = _deviation(a), _deviation(b)
    if first_sd == second_sd == 0.0:  # without scatter there is still doubt: the exact test that permutes the runs
        p = 1.0 if math.isclose(a[0], b[0], rel_tol=SAME) else 2 / math.comb(len(a) + len(b), len(a))
        return Welch(difference, Interval(difference, math.nan, math.nan), p, math.nan)
    error, freedom = _error_and_freedom(first_sd, len(a), second_sd, len(b))
    half = float(stats.t.ppf((1 + confidence) / 2, freedom)) * error
    p = 2 * float(stats.t.sf(abs(difference) / error, freedom))
    seen = detectable(first_sd, len(a), second_sd, len(b), (1 - confidence) / tests)
    return Welch(difference, Interval(difference, difference - half, difference + half), p, seen)


def _deviation(values: np.ndarray) -> float:
    """The standard deviation, 0 where numbers differ by rounding alone."""
    return 0.0 if np.ptp(values) <= SAME * np.abs(values).max() else float(values.std(ddof=1))


def _error_and_freedom(first: float, first_count: int, second: float, second_count: int) -> tuple[float, float]:
    """The standard error of a difference of means, and the degrees of freedom of Welch and Satterthwaite."""
    a, b = first**2 / first_count, second**2 / second_count
    return math.sqrt(a + b), (a + b) ** 2 / (a**2 / (first_count - 1) + b**2 / (second_count - 1))


def detectable(first: float, first_count: int, second: float, second_count: int, level: float = 0.05) -> float:
    """Compute the smallest true difference of two means that Welch's test finds with probability ``POWER``.

    The test statistic then has a noncentral t distribution with Welch's degrees of freedom.

    Args:
        first: the standard deviation of the first group.
        first_count: its size, at least 2.
        second: the standard deviation of the second group.
        second_count: its size, at least 2.
        level: the level of the two-sided test.

    Returns:
        The difference, in the unit of the standard deviations. NaN if nothing scatters: then nothing is known of it.
    """
    from scipy import optimize, stats

    if first == second == 0.0:
        return math.nan
    error, freedom = _error_and_freedom(first, first_count, second, second_count)
    limit = stats.t.ppf(1 - level / 2, freedom)

    def excess(shift: float) -> float:  # the other tail is far away at this power
        return float(stats.nct.sf(limit, freedom, shift)) - POWER

    high = 1.0
    while excess(high) < 0:
        high *= 1.5
    return float(optimize.brentq(excess, 0.0, high)) * error


def pairing_gain(pairs: Sequence[Sequence[tuple[float, float]]]) -> float:
    """Compute what pairing saves: the variance of differences of pairs over that of independent differences.

    Args:
        pairs: for each comparison, the two numbers of every seed.

    Returns:
        The ratio, pooled over the comparisons. 1 means that pairing gains nothing, 0 that it removes all scatter. NaN
        without two pairs of numbers that scatter.
    """
    together = apart = 0.0
    for comparison in pairs:
        table = np.asarray(comparison, dtype=float)
        if len(table) < 2 or not np.isfinite(table).all():
            continue
        freedom = len(table) - 1
        together += freedom * float((table[:, 0] - table[:, 1]).var(ddof=1))
        apart += freedom * float(table.var(axis=0, ddof=1).sum())
    return together / apart if apart else math.nan
