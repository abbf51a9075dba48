"""The cross approximation: its cores, its options, and blocks that cannot be inverted."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import SHAPES, decaying, gaussian

from nlora_lab.core.errors import InputError
from nlora_lab.lowrank.checks import IllConditionedWarning, SingularBlockError, default_rtol
from nlora_lab.lowrank.cross import nystrom
from nlora_lab.lowrank.curves import error_curve
from nlora_lab.lowrank.factors import LowRank, relative_error
from nlora_lab.lowrank.rules import CORES, PIVOTS
from nlora_lab.lowrank.svd import generalized_nystrom, randomized_svd, truncated_svd


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.data())
def test_exact_iff_the_block_has_the_rank_of_the_matrix(shape, data):
    m, n, seed = shape
    true_rank = data.draw(st.integers(1, min(m, n)))
    W = gaussian(m, true_rank, seed) @ gaussian(true_rank, n, seed + 1)
    rank = data.draw(st.integers(1, min(m, n)))
    error = relative_error(W, nystrom(W, rank, rtol=1e-9))
    if rank >= true_rank:
        block = W[:rank, :rank]
        # a Gaussian block of the full rank is invertible, but maybe badly conditioned
        values = torch.linalg.svdvals(block)
        assert error < 1e-9 * float(values[0] / values[true_rank - 1]) ** 2
    else:
        best = float(torch.linalg.svdvals(W)[rank:].norm() / W.norm())
        assert error >= best * (1 - 1e-9) > 0


@settings(deadline=None, max_examples=40)
@given(SHAPES, st.data())
def test_reproduces_the_chosen_rows_and_columns(shape, data):
    m, n, seed = shape
    W, rank = gaussian(m, n, seed), data.draw(st.integers(1, min(m, n)))
    rows = torch.randperm(m, generator=torch.Generator().manual_seed(seed))[:rank]
    cols = torch.randperm(n, generator=torch.Generator().manual_seed(seed + 1))[:rank]
    f = nystrom(W, rank, pivots=(rows, cols))
    scale = float(torch.linalg.cond(W[rows][:, cols])) * float(W.abs().max())
    assert torch.allclose(f.product()[rows], W[rows], atol=1e-11 * scale)
    assert torch.allclose(f.product()[:, cols], W[:, cols], atol=1e-11 * scale)


@settings(deadline=None, max_examples=40)
@given(SHAPES, st.data())
def test_optimal_core_is_never_worse_than_zero_nor_than_any_other(shape, data):
    m, n, seed = shape
    W, rank = gaussian(m, n, seed), data.draw(st.integers(1, min(m, n)))
    errors = {core: relative_error(W, nystrom(W, rank, core=core)) for core in CORES}
    assert errors["optimal"] <= 1 + 1e-12
    assert errors["optimal"] <= min(errors.values()) + 1e-9


def test_scales_like_the_matrix_and_the_released_block_like_its_cube():
    W = gaussian(12, 9, 0)
    for core, power in (("pinv", 1), ("optimal", 1), ("block", 3)):
        once, thrice = nystrom(W, 4, core=core).product(), nystrom(3 * W, 4, core=core).product()
        assert torch.allclose(thrice, 3**power * once, rtol=1e-9)


def test_agrees_with_numpy():
    W = gaussian(10, 7, 5)
    w = W.numpy()
    expected = w[:, :3] @ np.linalg.pinv(w[:3, :3]) @ w[:3, :]
    assert np.allclose(nystrom(W, 3).product().numpy(), expected, rtol=1e-9)
    error = np.linalg.norm(w - expected, 2) / np.linalg.norm(w, 2)
    assert relative_error(W, nystrom(W, 3), norm="spectral") == pytest.approx(error, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_computes_in_float32_or_better(dtype):
    f = nystrom(gaussian(8, 6, 1).to(dtype), 3)
    assert f.core.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize(
    ("W", "rank", "options", "names"),
    [
        (torch.ones(4), 1, {}, "2-D"),
        (torch.tensor(4.0), 1, {}, "2-D"),
        ("no tensor", 1, {}, "str"),
        (torch.ones(4, 4, dtype=torch.int64), 1, {}, "int64"),
        (torch.ones(4, 4, dtype=torch.complex64), 1, {}, "complex64"),
        (torch.ones(4, 4).to_sparse(), 1, {}, "sparse"),
        (torch.ones(0, 4), 1, {}, "empty"),
        (torch.full((4, 4), torch.nan), 1, {}, "NaN"),
        (torch.full((4, 4), torch.inf), 1, {}, "infinity"),
        (torch.ones(4, 5), 0, {}, "rank=0"),
        (torch.ones(4, 5), 5, {}, "rank=5"),
        (torch.ones(4, 5), 2.0, {}, "rank=2.0"),
        (torch.ones(4, 5), 2, {"core": "best"}, "core='best'"),
        (torch.ones(4, 5), 2, {"rtol": float("nan")}, "rtol=nan"),
        (torch.ones(4, 5), 2, {"rtol": -1}, "rtol=-1"),
        (torch.ones(4, 5), 2, {"pivots": "middle"}, "pivots='middle'"),
        (torch.ones(4, 5), 2, {"pivots": ([0, 0], [0, 1])}, "rows"),
        (torch.ones(4, 5), 2, {"pivots": ([0, 1], [0, 5])}, "cols"),
        (torch.ones(4, 5), 2, {"pivots": ([0.5, 1.5], [0, 1])}, "rows"),
        (torch.ones(4, 5), 2, {"pivots": (["a", "b"], [0, 1])}, "rows"),
        (torch.ones(4, 5), 2, {"pivots": ([0, 1],)}, "pair"),
        (torch.ones(4, 5), 2, {"pivots": 3}, "pivots=3"),
        (torch.ones(4, 5), 2, {"oversample": 3}, "oversample=3"),
        (torch.ones(4, 5), 2, {"oversample": -1}, "oversample=-1"),
        (torch.ones(4, 5), 2, {"oversample": 1, "core": "block"}, "square block"),
        (torch.ones(4, 5), 2, {"rtol": "small"}, "rtol='small'"),
        (torch.ones(4, 5), 2, {"generator": 7}, "generator=7"),
        (torch.ones(4, 5, device="meta"), 2, {}, "meta device"),
    ],
)
def test_bad_input_is_named(W, rank, options, names):
    with pytest.raises(InputError, match=names.replace("(", r"\(")):
        nystrom(W, rank, **options)


@settings(deadline=None, max_examples=40)
@given(SHAPES, st.sampled_from(PIVOTS), st.sampled_from(CORES), st.data())
def test_balance_keeps_the_product_and_shares_its_singular_values(shape, pivots, core, data):
    m, n, seed = shape
    W, rank = gaussian(m, n, seed), data.draw(st.integers(1, min(m, n)))
    generator = torch.Generator()
    plain = nystrom(W, rank, pivots=pivots, core=core, generator=generator.manual_seed(seed))
    even = nystrom(W, rank, pivots=pivots, core=core, generator=generator.manual_seed(seed), balance=True)
    size = float(plain.left.norm() * plain.core.norm() * plain.right.norm())
    assert torch.allclose(even.product(), plain.product(), atol=1e-11 * size)
    assert torch.equal(even.core, torch.eye(rank, dtype=W.dtype))
    assert torch.allclose(torch.linalg.svdvals(even.left), torch.linalg.svdvals(even.right), rtol=1e-9, atol=1e-12)


def test_oversampling_gives_rectangular_blocks_and_calms_the_error():
    errors, calmer = [], []
    for seed in range(15):
        W = gaussian(60, 50, seed)
        f = nystrom(W, 8, oversample=8)
        assert (f.left.shape, f.core.shape, f.right.shape) == ((60, 8), (8, 16), (16, 50))
        expected = W[:, :8].numpy() @ np.linalg.pinv(W[:16, :8].numpy()) @ W[:16].numpy()
        assert np.allclose(f.product().numpy(), expected, rtol=1e-9, atol=1e-9)
        errors.append(relative_error(W, nystrom(W, 8)))
        calmer.append(relative_error(W, f))
    assert max(calmer) < 2 < max(errors)


def test_optimal_core_is_the_least_squares_solution():
    W = gaussian(14, 11, 3)
    C, R = W[:, :4].numpy(), W[:4].numpy()
    expected = np.linalg.pinv(C) @ W.numpy() @ np.linalg.pinv(R)
    assert np.allclose(nystrom(W, 4, core="optimal").core.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_permuting_rows_and_columns_moves_the_leading_start_and_only_permutes_the_others():
    W = gaussian(16, 12, 9)
    p, q = torch.randperm(16, generator=torch.Generator().manual_seed(0)), torch.arange(11, -1, -1)
    moved = W[p][:, q]
    for f, g, same in (
        (nystrom(W, 5, pivots="cross"), nystrom(moved, 5, pivots="cross"), True),
        (truncated_svd(W, 5), truncated_svd(moved, 5), True),
        (nystrom(W, 5), nystrom(moved, 5), False),
    ):
        assert torch.allclose(f.product()[p][:, q], g.product(), atol=1e-8) is same


def test_a_singular_block_is_approximated_with_a_warning_that_has_numbers():
    W = torch.zeros(4, 4)
    W[:2, 2:], W[2:, :2] = torch.eye(2), torch.eye(2)
    with pytest.warns(IllConditionedWarning, match=r"2×2 block .* condition number inf: 2 of its 2") as caught:
        f = inspect.unwrap(nystrom)(W, 2)  # the checks of shapes stand between a caller and the function
    assert caught[0].filename == __file__
    assert relative_error(W, f) == 1
    assert not f.interpolates
    assert relative_error(W, nystrom(W, 2, rtol=0.0)) == 1  # with rtol it is intended: no warning
    assert relative_error(W, nystrom(W, 4)) == 0


def test_a_nearly_singular_block_warns_and_its_small_values_are_dropped():
    W = gaussian(8, 3, 0) @ gaussian(3, 8, 1)
    with pytest.warns(IllConditionedWarning, match="1 of its 4 singular values"):
        f = nystrom(W.float(), 4)
    assert relative_error(W.float(), f) < 1e-4
    assert relative_error(W, nystrom(W, 4, rtol=1e-3)) < 1e-10


def test_the_default_tolerance_is_that_of_one_matrix_of_a_batch():
    assert default_rtol(torch.ones(50, 3, 4), torch.float32) == torch.finfo(torch.float32).eps * 4


def test_the_warning_of_a_batch_is_about_its_worst_block():
    W = torch.stack([gaussian(6, 6, seed) for seed in range(3)])
    for k, diagonal in enumerate([[1.0, 1.0, 1.0], [1.0, 1.0, 1e-17], [1.0, 1e-3, 1e-3]]):
        W[k, :3, :3] = torch.diag(torch.tensor(diagonal))
    with pytest.warns(IllConditionedWarning, match=r"condition number 1\.0e\+17: 1 of its 3"):
        nystrom(W, 3)


def test_a_pseudo_inverse_too_large_for_the_dtype_is_an_error():
    W = gaussian(8, 8, 0)
    with pytest.raises(SingularBlockError, match=r"float32.*scale W up"):
        nystrom((W * 1e-41).float(), 3)
    assert relative_error(W * 1e-41, nystrom(W * 1e-41, 3)) == pytest.approx(relative_error(W, nystrom(W, 3)))


def test_the_zero_matrix_is_approximated_exactly_and_without_a_warning():
    assert not nystrom(torch.zeros(4, 4), 2).product().any()


@pytest.mark.parametrize("pivots", PIVOTS)
@pytest.mark.parametrize("core", CORES)
def test_a_batch_is_its_matrices(pivots, core):
    W = torch.stack([gaussian(9, 7, s) for s in range(6)]).reshape(2, 3, 9, 7)
    options = {"pivots": pivots, "core": core, "balance": core == "optimal"}
    f = nystrom(W, 3, generator=torch.Generator().manual_seed(0), **options)
    errors = relative_error(W, f)
    assert errors.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            one = nystrom(W[i, j], 3, generator=torch.Generator().manual_seed(0), **options)
            assert float(errors[i, j]) == pytest.approx(relative_error(W[i, j], one), rel=1e-9)
    for g in (truncated_svd(W, 3), randomized_svd(W, 3), generalized_nystrom(W, 3)):
        assert isinstance(g, LowRank)
        assert g.product().shape == W.shape


@pytest.mark.parametrize("pivots", PIVOTS)
@pytest.mark.parametrize("core", ["pinv", "optimal"])
def test_the_factors_are_copies(pivots, core):
    W = gaussian(9, 7, 0)
    f = nystrom(W, 3, pivots=pivots, core=core)
    before = f.product()
    W.zero_()
    assert torch.equal(f.product(), before)


@pytest.mark.parametrize("pivots", PIVOTS)
@pytest.mark.parametrize("core", ["pinv", "optimal"])
@pytest.mark.parametrize("extra", [0, 2])
def test_a_matrix_of_rank_one_is_exact_at_any_rank(pivots, core, extra):
    W = torch.ones(30, 30)
    f = nystrom(W, 4, pivots=pivots, core=core, oversample=extra, rtol=1e-5)
    assert relative_error(W, f) < 1e-5
    assert float((W - f.product()).norm()) < 1e-4
    assert float(error_curve(W, 4, pivots=pivots, core=core, oversample=extra, rtol=1e-5).max()) < 1e-5


def test_noise_is_never_inverted_and_the_residual_is_true():
    D = gaussian(20, 16, 0)
    D[1], D[:, 5] = D[0], D[:, 4]
    for core in ("pinv", "optimal"):
        f = nystrom(D, 16, core=core, rtol=0.0)
        assert not f.interpolates
        assert torch.allclose(f.residual(D), D - f.product(), atol=1e-12)
    assert relative_error(D, nystrom(D, 15, core="optimal", rtol=0.0)) < 1


def test_the_optimal_core_balanced_keeps_its_digits_on_a_steep_spectrum():
    W = decaying(20, 20, 0.0)
    U, _, Vh = torch.linalg.svd(W)
    steep = (U @ torch.diag(10.0 ** (-torch.arange(20, dtype=torch.float64) / 2)) @ Vh).float()
    best_for_these = float(error_curve(steep, 10, core="optimal")[-1])
    assert relative_error(steep, nystrom(steep, 10, core="optimal", balance=True)) < 1.1 * best_for_these


def test_numpy_numbers_are_numbers():
    W = gaussian(6, 5, 0)
    assert torch.equal(nystrom(W, np.int64(2)).core, nystrom(W, 2).core)
    assert torch.equal(nystrom(W, 2, rtol=np.float32(0.1)).core, nystrom(W, 2, rtol=float(np.float32(0.1))).core)
