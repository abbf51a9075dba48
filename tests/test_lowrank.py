from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nlora_lab.errors import InputError
from nlora_lab.lowrank import CORES, nystrom, relative_error

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
    ],
)
def test_bad_input_is_named(W, rank, options, names):
    with pytest.raises(InputError, match=names.replace("(", r"\(")):
        nystrom(W, rank, **options)


def test_relative_error_of_the_zero_matrix_has_no_meaning():
    W = torch.zeros(3, 3)
    with pytest.raises(InputError, match="zero matrix"):
        relative_error(W, nystrom(W, 1))
