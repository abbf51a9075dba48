from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nlora_lab.core.errors import InputError
from nlora_lab.lowrank.checks import IllConditionedWarning, SingularBlockError
from nlora_lab.lowrank.cross import CORES, nystrom
from nlora_lab.lowrank.curves import error_curve
from nlora_lab.lowrank.factors import LowRank, relative_error
from nlora_lab.lowrank.pivots import PIVOTS, choose_pivots
from nlora_lab.lowrank.psd import nystrom_psd
from nlora_lab.lowrank.svd import generalized_nystrom, randomized_svd, singular_values, truncated_svd

shapes = st.tuples(st.integers(2, 24), st.integers(2, 24), st.integers(0, 10**6))


def gaussian(m: int, n: int, seed: int) -> torch.Tensor:
    return torch.randn(m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=60)
@given(shapes, st.data())
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
@given(shapes, st.data())
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
@given(shapes, st.data())
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


def test_relative_error_of_the_zero_matrix_has_no_meaning():
    W = torch.zeros(3, 3)
    with pytest.raises(InputError, match="zero matrix"):
        relative_error(W, nystrom(W, 1))


# --- pivots ---


@settings(deadline=None, max_examples=30)
@given(shapes, st.sampled_from(PIVOTS), st.data())
def test_pivots_are_different_indices_and_nested(shape, kind, data):
    m, n, seed = shape
    W = gaussian(m, n, seed)
    if data.draw(st.booleans()):  # a rank below that of the pivots asked for
        W = W[:, :1] @ W[:1]
    rank = data.draw(st.integers(1, min(m, n)))
    rows, cols = choose_pivots(W, rank, kind, generator=torch.Generator().manual_seed(seed))
    assert len(set(rows.tolist())) == len(set(cols.tolist())) == rank
    assert 0 <= min(rows) <= max(rows) < m
    assert 0 <= min(cols) <= max(cols) < n
    lower = data.draw(st.integers(1, rank))
    few = choose_pivots(W, lower, kind, generator=torch.Generator().manual_seed(seed))
    assert few[0].tolist() == rows[:lower].tolist()
    assert few[1].tolist() == cols[:lower].tolist()


def test_complete_pivoting_takes_the_largest_entry_of_each_schur_complement():
    W = gaussian(9, 7, 2)
    rows, cols = choose_pivots(W, 4, "cross")
    left = W.numpy().copy()
    for i, j in zip(rows.tolist(), cols.tolist(), strict=True):
        assert abs(left[i, j]) == pytest.approx(np.abs(left).max(), rel=1e-12)
        left = left - np.outer(left[:, j], left[i]) / left[i, j]


@pytest.mark.parametrize("seed", range(8))
def test_qr_columns_are_those_of_lapack(seed):
    W = gaussian(30, 20, seed) @ torch.diag(torch.logspace(0, -8, 20, dtype=torch.float64))
    W = W @ torch.linalg.qr(gaussian(20, 20, seed + 100)).Q
    *_, expected = scipy.linalg.qr(W.numpy(), pivoting=True, mode="economic")
    assert choose_pivots(W, 15, "qr")[1].tolist() == expected[:15].tolist()


def test_extra_rows_are_the_next_or_the_worst():
    W = gaussian(12, 8, 4)
    assert choose_pivots(W, 3, oversample=2)[0].tolist() == [0, 1, 2, 3, 4]
    rows, cols = choose_pivots(W, 3, "cross", oversample=2)
    residual = nystrom(W, 3, pivots=(rows[:3], cols)).residual(W).norm(dim=1)
    assert set(rows[3:].tolist()) == set(residual.topk(2).indices.tolist())


def test_explicit_pivots_may_be_lists_numpy_or_other_integer_types():
    W, expected = gaussian(6, 5, 0), nystrom(gaussian(6, 5, 0), 2, pivots=([3, 1], [0, 4])).core
    for make in (tuple, np.array, lambda v: torch.tensor(v, dtype=torch.int32)):
        assert torch.equal(nystrom(W, 2, pivots=(make([3, 1]), make([0, 4]))).core, expected)


# --- cores, oversampling, balance ---


@settings(deadline=None, max_examples=40)
@given(shapes, st.sampled_from(PIVOTS), st.sampled_from(CORES), st.data())
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


# --- trouble ---


def test_a_singular_block_is_approximated_with_a_warning_that_has_numbers():
    W = torch.zeros(4, 4)
    W[:2, 2:], W[2:, :2] = torch.eye(2), torch.eye(2)
    with pytest.warns(IllConditionedWarning, match=r"2×2 block .* condition number inf: 2 of its 2") as caught:
        f = nystrom(W, 2)
    assert caught[0].filename == __file__
    assert relative_error(W, f) == 1
    assert not f.interpolates
    assert relative_error(W, nystrom(W, 2, rtol=0.0)) == 1  # said that it is meant: no warning
    assert relative_error(W, nystrom(W, 4)) == 0


def test_a_nearly_singular_block_warns_and_its_small_values_are_dropped():
    W = gaussian(8, 3, 0) @ gaussian(3, 8, 1)
    with pytest.warns(IllConditionedWarning, match="1 of its 4 singular values"):
        f = nystrom(W.float(), 4)
    assert relative_error(W.float(), f) < 1e-4
    assert relative_error(W, nystrom(W, 4, rtol=1e-3)) < 1e-10


def test_a_pseudo_inverse_too_large_for_the_dtype_is_an_error():
    W = gaussian(8, 8, 0)
    with pytest.raises(SingularBlockError, match=r"float32.*scale W up"):
        nystrom((W * 1e-41).float(), 3)
    assert relative_error(W * 1e-41, nystrom(W * 1e-41, 3)) == pytest.approx(relative_error(W, nystrom(W, 3)))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_errors_do_not_depend_on_the_scale(scale):
    W = gaussian(20, 15, 1).float()
    for norm in ("frobenius", "spectral"):
        expected = relative_error(W, nystrom(W, 4), norm)
        assert relative_error(W * scale, nystrom(W * scale, 4), norm) == pytest.approx(expected, rel=1e-4)


def test_the_zero_matrix_is_approximated_exactly_and_without_a_warning():
    assert not nystrom(torch.zeros(4, 4), 2).product().any()


# --- the residual ---


@settings(deadline=None, max_examples=30)
@given(shapes, st.sampled_from(PIVOTS), st.data())
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


# --- the others ---


def test_truncated_svd_is_the_best_there_is():
    W = gaussian(15, 12, 0)
    s = np.linalg.svd(W.numpy(), compute_uv=False)
    f = truncated_svd(W, 5)
    assert relative_error(W, f) == pytest.approx(np.linalg.norm(s[5:]) / np.linalg.norm(s))
    assert relative_error(W, f, "spectral") == pytest.approx(s[5] / s[0])


@settings(deadline=None, max_examples=30)
@given(shapes, st.data())
def test_nothing_beats_eckart_and_young(shape, data):
    m, n, seed = shape
    W, rank = gaussian(m, n, seed), data.draw(st.integers(1, min(m, n)))
    best = relative_error(W, truncated_svd(W, rank))
    generator = torch.Generator().manual_seed(seed)
    rivals = [nystrom(W, rank, pivots=p, core=c, generator=generator, rtol=0.0) for p in PIVOTS for c in CORES]
    rivals += [randomized_svd(W, rank, generator=generator), generalized_nystrom(W, rank, generator=generator)]
    assert all(relative_error(W, f) >= best - 1e-9 for f in rivals)


def decaying(m: int, n: int, p: float) -> torch.Tensor:
    k = min(m, n)
    U, V = torch.linalg.qr(gaussian(m, k, 1)).Q, torch.linalg.qr(gaussian(n, k, 2)).Q
    return U @ torch.diag(torch.arange(1, k + 1, dtype=torch.float64) ** -p) @ V.T


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


# --- kernels, where Nyström comes from ---


def kernel(n: int, seed: int) -> torch.Tensor:
    x = gaussian(n, 3, seed)
    return torch.exp(-torch.cdist(x, x).square() / 4)


@settings(deadline=None, max_examples=30)
@given(st.integers(3, 25), st.integers(0, 10**6), st.sampled_from(["leading", "random", "cross"]), st.data())
def test_psd_nystrom_never_does_worse_than_zero_and_leaves_a_psd_residual(n, seed, pivots, data):
    K, rank = kernel(n, seed), data.draw(st.integers(1, n))
    f = nystrom_psd(K, rank, pivots=pivots, generator=torch.Generator().manual_seed(seed), rtol=1e-12)
    assert relative_error(K, f, "spectral") <= 1 + 1e-8
    assert float(torch.linalg.eigvalsh(f.residual(K)).min()) > -1e-6
    assert torch.equal(f.rows, f.cols)


def test_pivoted_cholesky_takes_the_largest_variance_left():
    K = kernel(12, 0) * torch.outer(torch.arange(1.0, 13.0), torch.arange(1.0, 13.0))
    index = nystrom_psd(K, 4, pivots="cross").rows.tolist()
    assert index[0] == 11
    for k in range(1, 4):
        left = nystrom_psd(K, k, pivots=(index[:k], index[:k])).residual(K).diagonal()
        assert index[k] == int(left.argmax())


@pytest.mark.parametrize(
    ("K", "options", "names"),
    [
        (torch.ones(3, 4), {}, "square"),
        (torch.tensor([[1.0, 2.0], [0.0, 1.0]]), {}, "not symmetric"),
        (torch.tensor([[-1.0, 0.0], [0.0, 1.0]]), {}, "positive semi-definite"),
        (torch.eye(3), {"pivots": "qr"}, "qr"),
        (torch.eye(3), {"pivots": "best"}, "best"),
        (torch.eye(3), {"pivots": ([0], [1])}, "same indices"),
        (torch.eye(3), {"pivots": "cross", "rank": 4}, "rank=4"),
    ],
)
def test_what_is_no_kernel_matrix_is_refused(K, options, names):
    with pytest.raises(InputError, match=names):
        nystrom_psd(K, **{"rank": 1, **options})


# --- batches ---


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("pivots", PIVOTS)
def test_a_card_gives_what_the_processor_gives(pivots):
    W = gaussian(90, 70, 0)
    here, there = nystrom(W, 9, pivots=pivots), nystrom(W.cuda(), 9, pivots=pivots)
    if pivots != "random":
        assert torch.allclose(here.product(), there.product().cpu(), rtol=1e-6)
    assert torch.allclose(singular_values(W), singular_values(W.cuda()).cpu(), rtol=1e-9)


# --- what an attack found ---


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
def test_a_matrix_of_rank_one_is_exact_whatever_the_rank_asked_for(pivots, core, extra):
    W = torch.ones(30, 30)
    f = nystrom(W, 4, pivots=pivots, core=core, oversample=extra, rtol=1e-5)
    assert relative_error(W, f) < 1e-5
    assert float((W - f.product()).norm()) < 1e-4
    assert float(error_curve(W, 4, pivots=pivots, core=core, oversample=extra, rtol=1e-5).max()) < 1e-5


def test_noise_is_never_inverted_and_a_residual_is_what_is_left():
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
        here, there = (method(X, 3, generator=generator.manual_seed(0)) for X in (W, tiny))
        assert relative_error(tiny, there) == pytest.approx(relative_error(W, here), rel=1e-2)


def test_numpy_numbers_are_numbers():
    W = gaussian(6, 5, 0)
    assert torch.equal(nystrom(W, np.int64(2)).core, nystrom(W, 2).core)
    assert torch.equal(nystrom(W, 2, rtol=np.float32(0.1)).core, nystrom(W, 2, rtol=float(np.float32(0.1))).core)


def test_qr_pivots_do_not_measure_every_distance_anew(monkeypatch):
    """Pythagoras is enough for a Gaussian: one step costs a few products with a vector."""
    W = gaussian(60, 60, 0)
    products = []
    multiply = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: products.append(tuple(b.shape)) or multiply(a, b))
    choose_pivots(W, 30, "qr")
    assert len(products) >= 30
    assert sum(shape == (60, 60) for shape in products) <= 31  # q @ W once a step, nothing else of W's size


@pytest.mark.parametrize("oversample", [-1, 38, 1.5, "1"])
def test_extra_rows_of_chosen_pivots_are_checked(oversample):
    with pytest.raises(InputError, match="oversample"):
        choose_pivots(gaussian(40, 30, 0), 3, oversample=oversample)


@pytest.mark.parametrize("bad", [{"rank": 2.5}, {"rank": -1}, {"rank": "3"}, {"pivots": None}, {"pivots": 3},
                                 {"pivots": ("a", "b")}, {"pivots": ([0],)}, {"generator": 5}])  # fmt: skip
def test_the_psd_case_names_what_it_is_given(bad):
    with pytest.raises(InputError):
        nystrom_psd(torch.eye(4), **{"rank": 1, **bad})


@pytest.mark.parametrize(
    "bad", ["W", None, [[1.0]], torch.ones(6, 5).to_sparse(), torch.ones(6, 5, dtype=torch.cfloat)]
)
def test_a_residual_is_of_a_matrix(bad):
    with pytest.raises(InputError, match="W must be"):
        nystrom(gaussian(6, 5, 0), 2).residual(bad)
    with pytest.raises(InputError, match="f="):
        relative_error(gaussian(6, 5, 0), "f")
