"""Statistics on known cases, beside scipy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from nlora_lab.analysis.statistics import Interval, median_interval, standard_error, two_shares
from nlora_lab.core.errors import InputError

FIVE = [0.375, 0.72, 0.97, 0.66, 0.81]


@pytest.mark.parametrize("values", [FIVE, [3.0, 1.0, 2.0], [1.0, 2.0, 2.0, 5.0], list(np.linspace(0, 1, 9) ** 2)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_enumerated_bootstrap_is_scipys_drawn_one(values, confidence):
    ours = median_interval(values, confidence)
    drawn = stats.bootstrap(
        (np.asarray(values),), np.median, confidence_level=confidence, n_resamples=200_000, method="percentile",
        rng=np.random.default_rng(1),
    ).bootstrap_distribution  # fmt: skip
    # on a handful of values a quantile is a step: it must hold its share on either side
    for end, share in ((ours.low, (1 - confidence) / 2), (ours.high, (1 + confidence) / 2)):
        assert (drawn < end - 1e-9).mean() <= share + 0.005
        assert (drawn <= end + 1e-9).mean() >= share - 0.005
    assert ours.middle == np.median(values)


def test_many_values_are_drawn_and_agree_with_scipy():
    values = np.random.default_rng(2).normal(size=40)
    ours = median_interval(values.tolist())
    theirs = stats.bootstrap((values,), np.median, method="percentile", n_resamples=20_000).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.12)


def test_five_values_leave_the_whole_range_but_for_the_ends():
    # 3,125 resamples; three of the lowest or more: (10·16 + 5·4 + 1) / 3125 = 5.8 %, above 2.5 %
    assert median_interval(FIVE) == Interval(0.72, min(FIVE), max(FIVE))
    assert median_interval(FIVE, 0.5).low == 0.66


def test_infinite_losses_and_no_values():
    assert median_interval([0.1, math.inf, math.inf]) == Interval(math.inf, 0.1, math.inf)
    assert median_interval([0.1, math.inf]).middle == math.inf
    assert all(math.isnan(v) for v in vars(median_interval([])).values())
    assert median_interval([0.3]) == Interval(0.3, 0.3, 0.3)
    with pytest.raises(InputError, match="contain NaN"):
        median_interval([0.1, math.nan])
    with pytest.raises(InputError, match="confidence=95"):
        median_interval([0.1], 95)


def test_two_shares_is_the_chi_square_test_without_correction():
    z, p = two_shares(761, 745, 1319)
    table = np.asarray([[761, 1319 - 761], [745, 1319 - 745]])
    chi = stats.chi2_contingency(table, correction=False)
    assert z**2 == pytest.approx(chi.statistic)
    assert p == pytest.approx(chi.pvalue)
    assert two_shares(5, 5, 5) == (0.0, 1.0)
    assert standard_error(0.5, 100) == pytest.approx(0.05)
    with pytest.raises(InputError, match="first=7 and second=1 must be from 0 to of=5"):
        two_shares(7, 1, 5)
