"""The choice of rows and columns."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import SHAPES, gaussian

from nlora_lab.core.errors import InputError
from nlora_lab.lowrank.cross import nystrom
from nlora_lab.lowrank.pivots import choose_pivots
from nlora_lab.lowrank.rules import PIVOTS


@settings(deadline=None, max_examples=30)
@given(SHAPES, st.sampled_from(PIVOTS), st.data())
def test_pivots_are_different_indices_and_nested(shape, kind, data):
    m, n, seed = shape
    W = gaussian(m, n, seed)
    if data.draw(st.booleans()):  # a matrix of a lower rank than requested
        W = W[:, :1] @ W[:1]
    rank = data.draw(st.integers(1, min(m, n)))
    rows, cols = choose_pivots(W, rank, kind, generator=torch.Generator().manual_seed(seed))
    assert len(set(rows.tolist())) == len(set(cols.tolist())) == rank
    assert 0 <= min(rows) <= max(rows) < m
    assert 0 <= min(cols) <= max(cols) < n
    lower = data.draw(st.integers(1, rank))
    first = choose_pivots(W, lower, kind, generator=torch.Generator().manual_seed(seed))
    assert first[0].tolist() == rows[:lower].tolist()
    assert first[1].tolist() == cols[:lower].tolist()


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


@pytest.mark.parametrize("seed", range(4))
def test_qr_rows_are_those_of_partial_pivoting_in_lapack(seed):
    W = gaussian(30, 20, seed)
    rows, cols = choose_pivots(W, 7, "qr")
    places = scipy.linalg.lu(W[:, cols].numpy(), p_indices=True)[0]
    assert rows.tolist() == np.argsort(places)[:7].tolist()


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


def test_qr_pivots_update_distances_instead_of_computing_them_again(monkeypatch):
    """Pythagoras is enough for a Gaussian: one step costs a few products with a vector."""
    W = gaussian(60, 60, 0)
    products = []
    multiply = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: products.append(tuple(b.shape)) or multiply(a, b))
    choose_pivots(W, 30, "qr")
    assert len(products) >= 30
    assert sum(shape == (60, 60) for shape in products) <= 31  # q @ W once per step, and nothing else of W's size


@pytest.mark.parametrize("oversample", [-1, 38, 1.5, "1"])
def test_extra_rows_of_chosen_pivots_are_checked(oversample):
    with pytest.raises(InputError, match="oversample"):
        choose_pivots(gaussian(40, 30, 0), 3, oversample=oversample)
