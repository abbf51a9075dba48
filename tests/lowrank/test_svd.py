"""Singular values, and the approximations that Nyström competes with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import SHAPES, decaying, gaussian

from nlora_lab.lowrank.cross import nystrom
from nlora_lab.lowrank.curves import error_curve
from nlora_lab.lowrank.factors import relative_error
from nlora_lab.lowrank.pivots import choose_pivots
from nlora_lab.lowrank.rules import CORES, PIVOTS
from nlora_lab.lowrank.svd import generalized_nystrom, randomized_svd, singular_values, truncated_svd


def test_truncated_svd_is_the_best_approximation():
    W = gaussian(15, 12, 0)
    s = np.linalg.svd(W.numpy(), compute_uv=False)
    f = truncated_svd(W, 5)
    assert relative_error(W, f) == pytest.approx(np.linalg.norm(s[5:]) / np.linalg.norm(s))
    assert relative_error(W, f, "spectral") == pytest.approx(s[5] / s[0])


@settings(deadline=None, max_examples=30)
@given(SHAPES, st.data())
def test_no_approximation_is_better_than_truncated_svd(shape, data):
    m, n, seed = shape
    W, rank = gaussian(m, n, seed), data.draw(st.integers(1, min(m, n)))
    best = relative_error(W, truncated_svd(W, rank))
    generator = torch.Generator().manual_seed(seed)
    rivals = [nystrom(W, rank, pivots=p, core=c, generator=generator, rtol=0.0) for p in PIVOTS for c in CORES]
    rivals += [randomized_svd(W, rank, generator=generator), generalized_nystrom(W, rank, generator=generator)]
    assert all(relative_error(W, f) >= best - 1e-9 for f in rivals)


def test_randomised_methods_come_close_and_exactly_where_the_rank_is_low():
    W = decaying(80, 60, 1.0)
    best = relative_error(W, truncated_svd(W, 10))
    generator = torch.Generator().manual_seed(0)
    errors = [relative_error(W, randomized_svd(W, 10, n_iter=q, generator=generator)) for q in (0, 1, 3)]
    assert best <= errors[2] <= errors[1] * 1.01 < errors[0] * 1.02
    assert errors[1] < 1.05 * best
    assert relative_error(W, generalized_nystrom(W, 10, generator=generator)) < 5 * best  # √(1 + 10/4)·√(1 + …)
    low = gaussian(40, 4, 3) @ gaussian(4, 30, 4)
    assert relative_error(low, randomized_svd(low, 4, generator=generator)) < 1e-12
    assert relative_error(low, generalized_nystrom(low, 4, generator=generator)) < 1e-10
    again = [randomized_svd(W, 3, generator=torch.Generator().manual_seed(5)).left for _ in range(2)]
    assert torch.equal(*again)


@pytest.mark.parametrize("shape", [(600, 700), (900, 512), (30, 20)])
def test_singular_values_by_the_gram_matrix_are_right(shape):
    W = decaying(*shape, 0.8)
    expected = np.linalg.svd(W.numpy(), compute_uv=False)
    assert np.allclose(singular_values(W).numpy(), expected, rtol=1e-8)
    float32 = singular_values(W.float()).numpy()
    big = expected > 1e-3 * expected[0]
    assert np.allclose(float32[big], expected[big], rtol=1e-4)
    batch = torch.stack([W, 2 * W])
    assert np.allclose(singular_values(batch)[1].numpy(), 2 * expected, rtol=1e-8)
    assert np.allclose(singular_values(W, accurate=True).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_the_gram_matrix_gives_the_values_of_tiny_and_huge_matrices_too(scale):
    W = decaying(600, 700, 0.99).float()
    expected = scale * singular_values(W)
    assert torch.allclose(singular_values(scale * W)[:100], expected[:100], rtol=1e-3, atol=0)


@pytest.mark.parametrize("scale", [1e-320, 1e-200, 1e-160, 1e160, 1e200, 1e300])
def test_float64_at_the_ends_of_its_range(scale):
    W = gaussian(12, 9, 0)
    tiny = W * scale
    expected = error_curve(W, 4, core="optimal")
    loose = {"rtol": 1e-3} if scale < 1e-310 else {"rtol": 1e-9}  # subnormal numbers have few digits
    assert torch.allclose(error_curve(tiny, 4, core="optimal"), expected, **loose)
    assert torch.allclose(error_curve(tiny, 4, "svd"), error_curve(W, 4, "svd"), **loose)
    assert choose_pivots(tiny, 4, "qr")[1].tolist() == choose_pivots(W, 4, "qr")[1].tolist()
    generator = torch.Generator()
    for method in (randomized_svd, generalized_nystrom):
        plain, scaled = (method(X, 3, generator=generator.manual_seed(0)) for X in (W, tiny))
        assert relative_error(tiny, scaled) == pytest.approx(relative_error(W, plain), rel=1e-2)
