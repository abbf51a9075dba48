"""Few numbers, honestly: intervals and paired differences for the handful of seeds that one can afford.

Everything here takes plain numbers, so that it can be checked against scipy; :mod:`nlora_lab.analysis.comparison` applies it to
runs.
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

EXACT = 9  # up to so many numbers the bootstrap is enumerated: 24,310 samples, instead of drawn
DRAWS = 20_000
LEAST_PAIRS = 5  # with fewer, nothing is said: a t test of three hangs on how alike three numbers happen to be


@dataclass(frozen=True)
class Interval:
    """A number and where it may lie."""

    middle: float
    low: float
    high: float


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The median and its percentile bootstrap interval (Efron 1979): all resamples up to 9 values, 20,000 draws above.

    Infinite values (a loss that diverged) are allowed; NaN is not. With five values the interval is nearly always the
    whole range, and that covers the true median with probability 1 − 2 · 0.5⁵ = 0.9375: fewer cannot promise more.
    All NaN for no value at all.
    """
    check_confidence(confidence)
    ordered = sorted(float(v) for v in values)
    if any(math.isnan(v) for v in ordered):
        raise InputError(f"values={ordered} hold NaN; leave out what was not measured")
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
    """The medians that resamples have, ascending, and how often."""
    n = len(ordered)
    if n > EXACT:
        drawn = np.random.default_rng(0).choice(np.asarray(ordered), (DRAWS, n))
        found, counts = np.unique(_medians(np.sort(drawn, axis=1)), return_counts=True)
        return found, counts
    weights: Counter[float] = Counter()
    for picked in combinations_with_replacement(range(n), n):  # ascending, as `ordered` is
        ways = math.factorial(n)
        for count in Counter(picked).values():
            ways //= math.factorial(count)
        weights[float(_medians(np.asarray([[ordered[i] for i in picked]]))[0])] += ways
    ascending = sorted(weights)
    return np.asarray(ascending), np.asarray([weights[v] for v in ascending])


def _medians(rows: np.ndarray) -> np.ndarray:
    """Of sorted rows; numpy's own makes NaN of two infinities."""
    n = rows.shape[1]
    low, high = rows[:, (n - 1) // 2], rows[:, n // 2]
    same = low == high
    return np.where(same, low, low / 2 + np.where(same, 0.0, high) / 2)


@dataclass(frozen=True)
class Paired:
    """Differences of pairs: their ``mean`` with Student's interval from ``low`` to ``high``.

    ``p``: of Student's t test that the true mean is 0, two-sided; where all differences are alike, so that there is no
    scatter to judge by, ``p_signs``. That is the exact test that flips signs: it assumes no normal distribution, only
    that a difference could as well have had the other sign; with n pairs it cannot be below 2 / 2ⁿ. ``above``: how many
    of the ``pairs`` differences are above 0. All NaN below two pairs.
    """

    pairs: int
    mean: float
    low: float
    high: float
    p: float
    p_signs: float
    above: int


def paired(differences: Sequence[float], confidence: float = 0.95) -> Paired:
    """:class:`Paired` of finite differences, one a seed. Raises :class:`InputError` for others."""
    from scipy import stats

    check_confidence(confidence)
    d = np.asarray(differences, dtype=float)
    if not np.isfinite(d).all():
        raise InputError(f"differences={d.tolist()} must be finite; leave out pairs of which one diverged")
    above = int((d > 0).sum())
    if len(d) < 2:
        middle = float(d[0]) if len(d) else math.nan
        return Paired(len(d), middle, math.nan, math.nan, math.nan, math.nan, above)
    signs = _sign_flips(d)
    if np.ptp(d) <= 1e-12 * np.abs(d).max():  # all alike but for rounding: no scatter to judge by
        same = float(d[0])
        return Paired(len(d), same, same, same, signs, signs, above)
    test = stats.ttest_1samp(d, 0.0)
    low, high = test.confidence_interval(confidence)
    return Paired(len(d), float(d.mean()), float(low), float(high), float(test.pvalue), signs, above)


def _sign_flips(d: np.ndarray) -> float:
    """The share of all 2ⁿ choices of signs whose sum is as far from 0 as the one seen; drawn above 16 numbers."""
    if len(d) > 16:
        signs = np.random.default_rng(0).choice([-1.0, 1.0], (DRAWS, len(d)))
    else:
        signs = 1.0 - 2.0 * ((np.arange(2 ** len(d))[:, None] >> np.arange(len(d))) & 1)
    return float((np.abs(signs @ np.abs(d)) >= abs(d.sum()) * (1 - 1e-12)).mean())


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of several comparisons made at once, adjusted by Holm (1979); NaN stays, and counts as one of them.

    Among twenty honest comparisons of equals one has p < 0.05; after this, one in twenty *sets* of comparisons has.
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    adjusted, highest = [math.nan] * len(p_values), 0.0
    for place, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(p_values) - place)))
        adjusted[i] = highest
    return adjusted


def two_shares(first: int, second: int, of: int) -> tuple[float, float]:
    """z and the two-sided p of the difference of two shares, each of ``of`` items, pooled: (first − second) / of.

    The test one can make with nothing but two printed percentages of one test set. It takes the two results for
    independent; were the items' own answers known, McNemar's test on them would be sharper.
    """
    if not (0 <= first <= of and 0 <= second <= of and of > 0):
        raise InputError(f"{first} and {second} of {of} are no shares")
    pooled = (first + second) / (2 * of)
    spread = math.sqrt(2 * pooled * (1 - pooled) / of)
    z = (first - second) / of / spread if spread else 0.0
    return z, math.erfc(abs(z) / math.sqrt(2))


def standard_error(share: float, of: int) -> float:
    """√(p (1 − p) / n) of a share p of n independent items."""
    return math.sqrt(share * (1 - share) / of)


def check_confidence(confidence: float) -> None:
    """Raise :class:`InputError` unless it is between 0 and 1."""
    if isinstance(confidence, bool) or not isinstance(confidence, int | float) or not 0 < confidence < 1:
        raise InputError(f"confidence={confidence!r} must be between 0 and 1; try 0.95")
