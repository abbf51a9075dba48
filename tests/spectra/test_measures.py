from __future__ import annotations

import math

import pytest
import torch
from matrices import gaussian

from nlora_lab.core.errors import InputError
from nlora_lab.spectra.measures import (
    block_condition,
    effective_rank,
    leading_leverage,
    marchenko_pastur,
    marchenko_pastur_values,
    power_law,
    stable_rank,
)


def test_ranks_of_a_projection_and_of_one_direction():
    identity, one = torch.eye(6), torch.outer(torch.arange(1.0, 5.0), torch.ones(7))
    assert (stable_rank(identity), effective_rank(identity)) == pytest.approx((6, 6))
    assert stable_rank(one) == pytest.approx(1)
    assert effective_rank(one) == pytest.approx(1, abs=1e-4)
    assert stable_rank(torch.tensor([3.0, 4.0])) == pytest.approx(25 / 16)
    assert stable_rank(torch.zeros(3, 3)) == effective_rank(torch.zeros(3, 3)) == 0


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_ranks_do_not_depend_on_the_scale(scale):
    W = gaussian(9, 7)
    assert stable_rank(W * scale) == pytest.approx(stable_rank(W))
    assert effective_rank(W * scale) == pytest.approx(effective_rank(W))


def test_the_smallest_value_of_square_noise_is_small():
    """σ / √n has the density √(4 − x²) / π, 2/π at 0: the quantile 1/(2n) is at π / (4n)."""
    smallest = float(marchenko_pastur_values(400, 400, 1.0)[-1])
    assert smallest == pytest.approx(math.pi / 4 / 20, rel=1e-3)


@pytest.mark.parametrize("p", [0.0, 0.5, 1.5])
def test_the_power_law_of_one_is_its_exponent(p):
    s = torch.arange(1, 41, dtype=torch.float64) ** -p
    assert power_law(s) == pytest.approx(p, abs=1e-9)
    assert math.isnan(power_law(torch.ones(3)))
    assert math.isnan(power_law(torch.tensor([1.0, 0.5, 0.0, 0.0, 0.0])))


@pytest.mark.parametrize(("m", "n"), [(600, 600), (900, 300), (200, 800)])
def test_noise_follows_marchenko_and_pastur(m, n):
    W = 0.3 * gaussian(m, n)
    s = torch.linalg.svdvals(W)
    low, high = marchenko_pastur(m, n, 0.3)
    assert high == pytest.approx(float(s[0]), rel=0.03)
    if m != n:
        assert low == pytest.approx(float(s[-1]), rel=0.05)
    values = marchenko_pastur_values(m, n, 0.3)
    assert values.shape == s.shape
    assert low <= float(values[-1]) <= float(values[0]) <= high
    assert float((values - s).abs().max()) < 0.02 * high
    assert float(values.square().sum()) == pytest.approx(0.09 * m * n, rel=0.01)


def test_leverage_is_one_for_a_random_subspace_and_extreme_for_a_coordinate_one():
    U = torch.linalg.qr(gaussian(400, 20)).Q
    assert leading_leverage(U, 20) == pytest.approx(1, abs=0.3)
    assert leading_leverage(torch.eye(400)[:, :20], 20) == pytest.approx(20)
    assert leading_leverage(torch.eye(400).flip(0)[:, :20], 20) == 0


def test_the_condition_of_the_leading_block():
    W = gaussian(9, 7)
    assert block_condition(W, 4) == pytest.approx(float(torch.linalg.cond(W[:4, :4])))
    assert block_condition(torch.zeros(3, 3), 2) == math.inf


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: marchenko_pastur(0, 3, 1.0), "m=0"),
        (lambda: marchenko_pastur(3, 3.0, 1.0), "n=3.0"),
        (lambda: marchenko_pastur_values(3, 3, 0.0), "std=0.0"),
        (lambda: marchenko_pastur(3, 3, math.nan), "std=nan"),
        (lambda: stable_rank(torch.tensor([1.0, -1.0])), "singular values"),
        (lambda: effective_rank(torch.tensor([])), "singular values"),
        (lambda: power_law(torch.full((3, 3), torch.nan)), "NaN"),
        (lambda: block_condition(torch.eye(3), 4), "rank=4"),
        (lambda: stable_rank(torch.ones(2, 3, 3)), "one matrix"),
        (lambda: block_condition(torch.ones(2, 3, 3), 2), "one matrix"),
        (lambda: stable_rank(torch.ones(3, dtype=torch.cfloat)), "real numbers"),
        (lambda: marchenko_pastur(3, 3, "1"), "std='1'"),
    ],
)
def test_bad_input_is_named(call, names):
    with pytest.raises(InputError, match=names):
        call()
