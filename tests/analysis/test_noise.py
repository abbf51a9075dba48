"""Scatter between and within seeds, Welch's test, and what a comparison can see, against simulations and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from nlora_lab.analysis.noise import POWER, detectable, pairing_gain, scatter, welch
from nlora_lab.core.errors import InputError


@pytest.mark.parametrize(("between", "within"), [(3.0, 1.0), (1.0, 3.0), (0.0, 2.0)])
def test_scatter_finds_the_variances_that_made_the_numbers(between, within):
    rng = np.random.default_rng(0)
    parts = []
    for _ in range(300):
        seeds = rng.normal(0, between, 6)
        found = scatter({i: rng.normal(seed, within, 3) for i, seed in enumerate(seeds)})
        parts.append((found.between**2, found.within**2, found.total**2))
        assert (found.seeds, found.repetitions) == (6, 12)
        assert found.total**2 == pytest.approx(found.between**2 + found.within**2)
    means = np.mean(parts, axis=0)
    assert means[1] == pytest.approx(within**2, rel=0.1)
    # cut off at 0, so above the truth where the seeds differ little
    assert between**2 * 0.9 <= means[0] <= between**2 * 1.1 + within**2 / 3


def test_scatter_with_unequal_numbers_of_repetitions_is_that_of_the_textbook():
    # the sums of squares by hand: means 2, 5, 8; within 2, 0, 2; sizes 2, 1, 2
    found = scatter({0: [1, 3], 1: [5], 2: [7, 9]})
    within = 4 / 2
    between_square = (2 * 9 + 0 + 2 * 9) / 2
    typical = (5 - 9 / 5) / 2
    assert found.within == pytest.approx(math.sqrt(within))
    assert found.between == pytest.approx(math.sqrt((between_square - within) / typical))


def test_without_repetitions_nothing_is_known_within_a_seed():
    found = scatter({0: [1.0], 1: [2.0], 2: [6.0]})
    assert math.isnan(found.within)
    assert found.between == found.total == pytest.approx(np.std([1, 2, 6], ddof=1))


@pytest.mark.parametrize("values", [{}, {0: [1.0, 2.0]}, {0: [1.0], 1: [math.inf]}, {0: [1.0], 1: [math.nan]}])
def test_scatter_needs_finite_numbers_of_two_seeds(values):
    with pytest.raises(InputError, match="must be finite numbers of at least two seeds"):
        scatter(values)


def test_welch_is_scipys_test():
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 1, 7), rng.normal(1, 4, 12)
    found, known = welch(a, b), stats.ttest_ind(a, b, equal_var=False)
    assert found.p == pytest.approx(known.pvalue)
    assert (found.interval.low, found.interval.high) == pytest.approx(tuple(known.confidence_interval(0.95)))
    assert found.difference == found.interval.middle == pytest.approx(a.mean() - b.mean())


@pytest.mark.parametrize(("sizes", "deviations", "level"), [((5, 5), (1, 1), 0.05), ((20, 5), (2, 1), 0.01)])
def test_a_detectable_difference_is_found_as_often_as_it_says(sizes, deviations, level):
    difference = detectable(deviations[0], sizes[0], deviations[1], sizes[1], level)
    rng = np.random.default_rng(2)
    first = rng.normal(difference, deviations[0], (4000, sizes[0]))
    second = rng.normal(0, deviations[1], (4000, sizes[1]))
    found = (stats.ttest_ind(first, second, axis=1, equal_var=False).pvalue < level).mean()
    assert found == pytest.approx(POWER, abs=0.05)  # the degrees of freedom are themselves estimated


def test_a_larger_family_of_tests_sees_less():
    a, b = [1.0, 2.0, 3.0, 2.5], [1.5, 2.5, 0.5, 1.0]
    assert welch(a, b, tests=13).detectable > welch(a, b).detectable > 0


def test_numbers_that_do_not_scatter():
    assert welch([1.0, 1.0], [1.0, 1.0]).p == 1.0
    assert welch([1.0, 1.0 + 1e-15, 1.0], [1.0, 1.0]).p == 1.0  # they differ by rounding alone
    assert welch([2.0, 2.0], [1.0, 1.0]).p == 2 / 6  # four runs in two groups of two: six ways
    assert welch([2.0] * 5, [1.0] * 5).p == 2 / 252
    one_sided = welch([1.0, 1.0, 1.0], [0.5, 0.7, 0.6])
    assert one_sided.p == pytest.approx(stats.ttest_1samp([0.5, 0.7, 0.6], 1.0).pvalue)
    alike = welch([0.0] * 5, [0.0] * 5)  # as at 0 % in every run: that does not show that the methods are equal
    assert all(map(math.isnan, (alike.detectable, alike.interval.low, alike.interval.high, detectable(0, 2, 0, 2))))
    assert math.isnan(welch([2.0], [1.0, 3.0]).p)


@pytest.mark.parametrize("numbers", [[], [math.nan, 1.0], [math.inf]])
def test_welch_needs_finite_numbers(numbers):
    with pytest.raises(InputError, match="must be finite numbers, at least one each"):
        welch(numbers, [1.0, 2.0])


def test_pairing_gains_what_the_pairs_share():
    rng = np.random.default_rng(3)
    shared, own = rng.normal(0, 3, (200, 1)), rng.normal(0, 1, (200, 2))
    assert pairing_gain([own]) == pytest.approx(1.0, abs=0.15)
    assert pairing_gain([shared + own]) == pytest.approx(0.1, abs=0.04)
    assert pairing_gain([[(1.0, 1.0), (2.0, 2.0)], [(math.inf, 1.0), (1.0, 2.0)]]) == 0.0
    assert math.isnan(pairing_gain([[(1.0, 2.0)]]))
