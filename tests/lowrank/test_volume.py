"""All blocks of a small matrix: their volumes and errors, and the bound for the largest volume."""

from __future__ import annotations

import pytest
import torch

import nlora_lab as nl
from nlora_lab.lowrank import all_blocks


def noise(m, n, seed=0):
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("m", "n", "r", "count"), [(5, 4, 2, 60), (4, 6, 1, 24), (3, 3, 3, 1), (6, 6, 3, 400)])
def test_volumes_and_errors_are_those_of_each_block(m, n, r, count):
    W = noise(m, n)
    blocks = all_blocks(W, r)
    assert len({(*a, *b) for a, b in zip(blocks.rows.tolist(), blocks.cols.tolist(), strict=True)}) == count
    assert blocks.volume.tolist() == sorted(blocks.volume.tolist(), reverse=True)
    for i in range(0, count, 7):
        rows, cols = blocks.rows[i], blocks.cols[i]
        assert torch.isclose(blocks.volume[i], torch.linalg.det(W[rows][:, cols]).abs())
        left = W - nl.nystrom(W, r, pivots=(rows, cols)).product()
        assert torch.isclose(blocks.error[i], left.abs().max(), atol=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_the_bound_holds_for_the_largest_volume_and_not_for_every_block(seed):
    W = noise(6, 7, seed)
    blocks = all_blocks(W, 2)
    assert blocks.bound == pytest.approx(3 * torch.linalg.svdvals(W)[2].item())
    assert blocks.error[0] <= blocks.bound
    assert blocks.error.max() > blocks.bound


def test_singular_blocks_are_left_out_and_full_rank_leaves_nothing():
    W = noise(4, 4)
    W[0] = 0
    assert not (all_blocks(W, 2).rows == 0).any()
    assert all_blocks(noise(3, 3), 3).bound == 0


@pytest.mark.parametrize(
    ("W", "r", "message"),
    [(noise(30, 30), 3, "at most 20,000"), (noise(2, 4)[None], 1, "one matrix"), (noise(3, 3), 4, "rank"),
     (torch.ones(3, 3), 2, "no invertible block"), (torch.zeros(3, 3), 1, "no invertible block")],
)  # fmt: skip
def test_bad_input_is_refused(W, r, message):
    with pytest.raises(nl.InputError, match=message):
        all_blocks(W, r)
