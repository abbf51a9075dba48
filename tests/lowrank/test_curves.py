from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import gaussian

from nlora_lab.core.errors import InputError
from nlora_lab.lowrank import curves
from nlora_lab.lowrank.cross import nystrom
from nlora_lab.lowrank.curves import error_curve, lu_without_pivoting
from nlora_lab.lowrank.factors import relative_error
from nlora_lab.lowrank.rules import CORES, PIVOTS
from nlora_lab.lowrank.svd import truncated_svd


def one_by_one(W, max_rank, **options):
    """The same curve, with each rank computed by itself."""
    errors = []
    for rank in range(1, max_rank + 1):
        if options.get("pivots") == "random":
            options["generator"].manual_seed(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            errors.append(relative_error(W, nystrom(W, rank, **options)))
    return torch.tensor(errors, dtype=torch.float64)


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(2, 30), st.integers(2, 30), st.integers(0, 10**6)),
    st.sampled_from(PIVOTS), st.sampled_from(CORES), st.integers(0, 3), st.sampled_from([None, 0.0, 0.1]),
)  # fmt: skip
def test_every_rank_at_once_is_each_rank_by_itself(shape, pivots, core, extra, rtol):
    m, n, seed = shape
    W, max_rank = gaussian(m, n, seed), max(1, min(m, n) - 3)
    options = {"pivots": pivots, "core": core, "rtol": rtol, "oversample": 0 if core == "block" else extra}
    options["oversample"] = min(options["oversample"], m - max_rank)
    options["generator"] = torch.Generator().manual_seed(1)
    curve = error_curve(W, max_rank, **options)
    assert torch.allclose(curve, one_by_one(W, max_rank, **options), rtol=1e-6)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_lower_precision_too(core, dtype):
    W = gaussian(70, 50, 5).to(dtype)
    assert torch.allclose(error_curve(W, 40, core=core), one_by_one(W, 40, core=core), rtol=2e-3)


@pytest.mark.parametrize("pivots", PIVOTS)
@pytest.mark.parametrize("core", ["pinv", "optimal"])
@pytest.mark.parametrize("extra", [0, 2])
@pytest.mark.parametrize("kind", ["low rank", "duplicates", "zero row", "decaying"])
def test_degenerate_matrices_up_to_the_full_rank(pivots, core, extra, kind):
    W = gaussian(16, 12, 4)
    if kind == "low rank":
        W = gaussian(16, 5, 0) @ gaussian(5, 12, 1)
    elif kind == "duplicates":
        W[1], W[:, 5] = W[0], W[:, 4]
    elif kind == "zero row":
        W[2] = 0
    else:
        W = W * 10.0 ** (-torch.arange(12, dtype=torch.float64) / 3)
    options = {"pivots": pivots, "core": core, "oversample": extra, "rtol": 1e-9}
    options["generator"] = torch.Generator().manual_seed(1)
    curve, expected = error_curve(W, 12, **options), one_by_one(W, 12, **options)
    assert torch.allclose(curve, expected, rtol=1e-4, atol=1e-8)


def test_the_last_error_of_an_exact_rank_is_not_the_noise_of_the_gram_matrix():
    low = gaussian(600, 5, 0) @ gaussian(5, 700, 1)
    assert error_curve(low, 5, "svd")[-1] < 1e-12


@pytest.mark.parametrize("core", CORES)
def test_a_matrix_of_low_rank_is_followed_through_its_singular_blocks(core):
    W = gaussian(20, 3, 0) @ gaussian(3, 15, 1)
    curve = error_curve(W, 8, core=core)
    assert torch.allclose(curve, one_by_one(W, 8, core=core), rtol=1e-5, atol=1e-11)
    if core != "block":
        assert curve[2] < 1e-9 < 1e-3 < curve[1]


def test_a_singular_leading_minor_does_not_end_the_elimination():
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert error_curve(swap, 2).tolist() == [1.0, 0.0]
    W = gaussian(12, 12, 3)
    W[0, 0] = 0
    assert torch.allclose(error_curve(W, 9), one_by_one(W, 9), rtol=1e-7)
    assert [len(t) for t in lu_without_pivoting(W)] == [0, 0]
    W[0, 0] = 1
    L, U = lu_without_pivoting(W)
    assert torch.allclose(L @ U, W, atol=1e-9)


@pytest.mark.parametrize(
    ("block", "rtol"),
    [([[1.0, 0.0], [0.0, 1e-4]], 1e-3), ([[1.0, 1.0], [1000.0, 1001.0]], 1e-5)],  # U, then L, has a large inverse
)
def test_a_singular_value_below_the_tolerance_is_dropped_in_the_curve_too(block, rtol):
    W = gaussian(9, 7, 4)
    W[:2, :2] = torch.tensor(block, dtype=W.dtype)
    curve = error_curve(W, 3, rtol=rtol)
    assert torch.allclose(curve, one_by_one(W, 3, rtol=rtol), rtol=1e-7)
    assert not torch.allclose(curve[1], error_curve(W, 3, rtol=1e-9)[1], rtol=0.1)  # so it was dropped


def test_the_best_possible_curve_is_that_of_the_svd():
    W = gaussian(25, 18, 0)
    expected = [relative_error(W, truncated_svd(W, r)) for r in range(1, 19)]
    assert torch.allclose(error_curve(W, 18, "svd"), torch.tensor(expected, dtype=torch.float64), atol=1e-12)
    low = gaussian(600, 5, 0) @ gaussian(5, 700, 1)  # large enough for the Gram matrix
    assert error_curve(low, 6, "svd")[4:].max() < 1e-12
    assert error_curve(low, 6, "svd")[3] > 0.1


@pytest.mark.parametrize("core", CORES)
def test_a_wide_matrix_is_read_in_panels_of_fewer_rows(core, monkeypatch):
    W = gaussian(40, 60, 2)
    whole = error_curve(W, 7, core=core)
    monkeypatch.setattr(curves, "PANEL", 12)
    monkeypatch.setattr(curves, "WIDE", 25)
    assert [panel.stop for panel in curves._panels(W)] == list(range(5, 41, 5))
    assert torch.allclose(error_curve(W, 7, core=core), whole, rtol=1e-12)


def test_a_batch_is_its_matrices():
    W = torch.stack([gaussian(9, 7, s) for s in range(4)]).reshape(2, 2, 9, 7)
    for options in ({}, {"pivots": "cross"}, {"core": "optimal", "oversample": 1}):
        errors = error_curve(W, 5, **options)
        assert errors.shape == (2, 2, 5)
        assert torch.allclose(errors[1, 0], error_curve(W[1, 0], 5, **options))
        assert torch.equal(error_curve(W[1], 5, **options), errors[1])  # one leading dimension
    assert error_curve(W, 5, "svd").shape == (2, 2, 5)


@pytest.mark.parametrize(
    ("W", "rank", "options", "names"),
    [
        (torch.ones(4, 5), 5, {}, "max_rank=5"),
        (torch.ones(4, 5), 2, {"kind": "qr"}, "kind='qr'"),
        (torch.ones(4, 5), 2, {"core": "best"}, "core='best'"),
        (torch.ones(4, 5), 2, {"pivots": "best"}, "pivots='best'"),
        (torch.ones(4, 5), 2, {"oversample": 3}, "oversample=3"),
        (torch.ones(4, 5), 2, {"oversample": 1, "core": "block"}, "square block"),
        (torch.zeros(4, 5), 2, {}, "zero matrix"),
        (torch.full((4, 5), torch.nan), 2, {}, "NaN"),
    ],
)
def test_bad_input_is_named(W, rank, options, names):
    with pytest.raises(InputError, match=names):
        error_curve(W, rank, **options)
