"""Residuals and relative errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import SHAPES, gaussian

from nlora_lab.core.errors import InputError
from nlora_lab.lowrank.cross import nystrom
from nlora_lab.lowrank.factors import relative_error
from nlora_lab.lowrank.rules import PIVOTS
from nlora_lab.lowrank.svd import truncated_svd


def test_the_relative_error_of_the_zero_matrix_is_refused():
    W = torch.zeros(3, 3)
    with pytest.raises(InputError, match="zero matrix"):
        relative_error(W, nystrom(W, 1))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_errors_do_not_depend_on_the_scale(scale):
    W = gaussian(20, 15, 1).float()
    for norm in ("frobenius", "spectral"):
        expected = relative_error(W, nystrom(W, 4), norm)
        assert relative_error(W * scale, nystrom(W * scale, 4), norm) == pytest.approx(expected, rel=1e-4)


@settings(deadline=None, max_examples=30)
@given(SHAPES, st.sampled_from(PIVOTS), st.data())
def test_the_schur_shortcut_equals_the_dense_residual(shape, pivots, data):
    m, n, seed = shape
    W, rank = gaussian(m, n, seed), data.draw(st.integers(1, min(m, n)))
    f = nystrom(W, rank, pivots=pivots, generator=torch.Generator().manual_seed(seed), rtol=0.0)
    assert f.interpolates
    size = 1 + float(f.left.norm() * f.core.norm() * f.right.norm())
    assert torch.allclose(f.residual(W), W - f.product(), atol=1e-12 * size)
    assert not f.residual(W)[f.rows].any()
    assert not f.residual(W)[:, f.cols].any()


def test_the_shortcut_is_not_taken_for_another_matrix():
    W = gaussian(9, 8, 0)
    f, other = nystrom(W, 3), gaussian(9, 8, 1)
    assert torch.allclose(f.residual(other), other - f.product())
    with pytest.raises(InputError, match=r"\(8, 9\)"):
        f.residual(W.T)


@pytest.mark.parametrize(
    "bad", ["W", None, [[1.0]], torch.ones(6, 5).to_sparse(), torch.ones(6, 5, dtype=torch.cfloat)]
)
def test_a_residual_needs_a_matrix(bad):
    with pytest.raises(InputError, match="W must be"):
        nystrom(gaussian(6, 5, 0), 2).residual(bad)
    with pytest.raises(InputError, match="f="):
        relative_error(gaussian(6, 5, 0), "f")


def test_the_error_of_a_tall_matrix_makes_no_matrix_in_float64():
    W = torch.randn(16384, 64, generator=torch.Generator().manual_seed(0))
    f = truncated_svd(W, 4)
    with torch.profiler.profile(profile_memory=True) as profile:
        error = relative_error(W, f)
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest <= 1.1 * W.nbytes  # the difference itself, in the dtype of W
    expected = (W.double() - f.product().double()).norm() / W.double().norm()
    assert error == pytest.approx(float(expected), rel=1e-6)
