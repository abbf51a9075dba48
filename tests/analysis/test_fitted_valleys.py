"""The fitted valley finds a bottom that is known, says how well it is known, and says so where there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from factories import recorded_run as run

from nlora_lab.analysis.fitted_valleys import valleys
from nlora_lab.core.errors import InputError

LADDER = [1e-2 * 2 ** (k / 2) for k in range(-4, 5)]


def runs_of(bottom, curvature=0.2, scatter=0.0, seeds=3, rates=LADDER, seed=1):
    rng = np.random.default_rng(seed)
    return [
        run(
            lr,
            s,
            validation=0.1 * math.exp(curvature * math.log2(lr / bottom) ** 2 + scatter * rng.normal()),
        )
        for lr in rates
        for s in range(seeds)
    ]


def test_a_parabola_is_found_between_the_rates_that_were_tried():
    row = valleys(runs_of(0.0117), methods="lora").loc["lora"]
    assert row["rate"] == pytest.approx(0.0117)
    assert (row["low"], row["high"]) == pytest.approx((0.0117, 0.0117))
    # twice the lowest loss where curvature x^2 = log 2
    assert row["width"] == pytest.approx(2 ** (2 * math.sqrt(math.log(2) / 0.2)))
    assert row["chosen"] in LADDER
    assert row["cliff"] == math.inf
    assert row["seeds"] == 3


def test_the_interval_covers_the_bottom_as_often_as_it_says():
    rows = [valleys(runs_of(0.0117, curvature=1.0, scatter=0.2, seed=n)).loc["lora"] for n in range(200)]
    covered = sum(row["low"] <= 0.0117 <= row["high"] for row in rows) / len(rows)
    assert covered == pytest.approx(0.95, abs=0.04)
    many = valleys(runs_of(0.0117, curvature=1.0, scatter=0.2, seeds=20)).loc["lora"]
    assert many["high"] / many["low"] < np.nanmedian([row["high"] / row["low"] for row in rows])


def test_the_fit_is_steadier_than_the_luckiest_rate():
    rates = {"rate": [], "chosen": []}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        made = [
            run(lr, s, validation=0.1 * math.exp(0.2 * math.log2(lr / 1e-2) ** 2 + 0.1 * rng.normal()))
            for lr in LADDER
            for s in range(3)
        ]
        row = valleys(made).loc["lora"]
        for name, values in rates.items():
            values.append(math.log2(row[name]))
    assert np.std(rates["rate"]) < np.std(rates["chosen"])


def test_the_cliff_is_the_first_rate_with_three_times_the_loss():
    beyond = [run(lr, s, validation=5.0) for lr in (0.04, 0.08) for s in range(3)]
    near = runs_of(1e-2, rates=LADDER[:7])
    assert valleys([*near, *beyond]).loc["lora", "cliff"] == pytest.approx(
        0.04 / valleys([*near, *beyond])["rate"]["lora"]
    )
    lost = [run(0.04, s, diverged=True) for s in range(3)]
    assert valleys([*near, *lost]).loc["lora", "cliff"] == pytest.approx(4.0)


def test_without_a_bottom_among_the_rates_there_is_no_number():
    falling = [run(lr, s, validation=1e-3 / lr) for lr in LADDER for s in range(3)]
    row = valleys(falling).loc["lora"]
    assert math.isnan(row["rate"])
    assert row["chosen"] == LADDER[-1]
    assert math.isnan(valleys(runs_of(1e-2, rates=LADDER[3:5])).loc["lora", "rate"])
    with pytest.raises(InputError, match="confidence=2"):
        valleys(falling, confidence=2)
