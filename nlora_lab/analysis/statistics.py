"""Statistics for a handful of seeds: intervals, and tests of two shares.

Every function takes plain numbers, so that scipy can check it. ``nlora_lab.analysis.comparison`` applies them to runs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from statistics import median

import numpy as np

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_number

EXACT = 9  # up to this many values the bootstrap is enumerated (24,310 samples); above, samples are drawn
DRAWS = 20_000
LEAST_SEEDS = 5  # no verdict with fewer: a t test of three depends on how alike three numbers happen to be


@dataclass(frozen=True)
class Interval:
    """A number with its confidence interval.

    Attributes:
        middle: the number.
        low: the lower end of the interval.
        high: the upper end of the interval.
    """

    middle: float
    low: float
    high: float


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Compute the median and its percentile bootstrap interval (Efron 1979).

    Up to 9 values all resamples are enumerated. Above that, 20,000 resamples are drawn from a fixed seed. With five
    values the interval is nearly always the full range. The full range covers the true median with probability
    1 − 2 · 0.5⁵ = 0.9375, so fewer values cannot promise more.

    Args:
        values: the numbers. An infinite value (a loss that diverged) is allowed.
        confidence: the level of the interval, between 0 and 1.

    Returns:
        The median with its interval. All three numbers are NaN without any value.

    Raises:
        InputError: a value is NaN, or the confidence is out of range.
    """
    check_confidence(confidence)
    ordered = sorted(float(v) for v in values)
    if any(math.isnan(v) for v in ordered):
        raise InputError(f"values={ordered} contain NaN; leave out what was not measured")
    if not ordered:
        return Interval(math.nan, math.nan, math.nan)
    medians, weights = _resampled_medians(ordered)
    share = np.cumsum(weights) / np.sum(weights)
    # the smallest value with at least this share of the resamples at or below it; the sum may be off by rounding
    low, high = (
        medians[int(np.searchsorted(share, at - 1e-12))] for at in ((1 - confidence) / 2, (1 + confidence) / 2)
    )
    return Interval(median(ordered), float(low), float(high))


def _resampled_medians(ordered: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """The medians of the resamples in ascending order, and how often each occurs."""
    n = len(ordered)
    if n > EXACT:
        resamples = np.random.default_rng(0).choice(np.asarray(ordered), (DRAWS, n))
        medians, counts = np.unique(_row_medians(np.sort(resamples, axis=1)), return_counts=True)
        return medians, counts
    weights: Counter[float] = Counter()
    for resample in combinations_with_replacement(range(n), n):  # ascending, as `ordered` is
        ways = math.factorial(n)
        for count in Counter(resample).values():
            ways //= math.factorial(count)
        weights[float(_row_medians(np.asarray([[ordered[i] for i in resample]]))[0])] += ways
    ascending = sorted(weights)
    return np.asarray(ascending), np.asarray([weights[v] for v in ascending])


def _row_medians(rows: np.ndarray) -> np.ndarray:
    """The medians of sorted rows. numpy's own function returns NaN for the mean of two infinities."""
    n = rows.shape[1]
    low, high = rows[:, (n - 1) // 2], rows[:, n // 2]
    same = low == high
    return np.where(same, low, low / 2 + np.where(same, 0.0, high) / 2)


def two_shares(first: int, second: int, of: int) -> tuple[float, float]:
    """Test the difference of two shares (the two-sided z test with the pooled share).

    This test needs only two printed percentages of one test set. It treats the two results as independent. If the
    answer to every item is known, McNemar's test is sharper.

    Args:
        first: the number of right answers of the first model.
        second: the number of right answers of the second model.
        of: the number of items that each model answered.

    Returns:
        z and p. z is positive if ``first`` is larger.

    Raises:
        InputError: a number is negative or larger than ``of``, or ``of`` is not positive.
    """
    if not (0 <= first <= of and 0 <= second <= of and of > 0):
        raise InputError(f"first={first} and second={second} must be from 0 to of={of}; give numbers of right answers")
    pooled = (first + second) / (2 * of)
    spread = math.sqrt(2 * pooled * (1 - pooled) / of)
    z = (first - second) / of / spread if spread else 0.0
    return z, math.erfc(abs(z) / math.sqrt(2))


def standard_error(share: float, of: int) -> float:
    """Return the standard error √(p (1 − p) / n) of a share.

    Args:
        share: the share p, 0 to 1.
        of: the number n of independent items.

    Returns:
        The standard error, as a share.
    """
    return math.sqrt(share * (1 - share) / of)


def check_confidence(confidence: float) -> None:
    """Check that a confidence level is between 0 and 1.

    Args:
        confidence: the level.

    Raises:
        InputError: the level is out of range, or not a number.
    """
    check_number("confidence", confidence, above=0, below=1, remedy="try 0.95")
