"""Every block of a small matrix: its volume, and the error of the cross approximation that uses it."""

from __future__ import annotations

import math
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from nlora_lab.core.array_types import Float, Float64, Int64
from nlora_lab.core.errors import InputError
from nlora_lab.lowrank.checks import check_matrix, check_rank, rescaled, to_float64
from nlora_lab.lowrank.svd import singular_values

MOST_BLOCKS = 20_000


class Blocks(NamedTuple):
    """All invertible r × r blocks of a matrix, the one of maximal volume first.

    Attributes:
        rows: the rows of each block, (blocks, r).
        cols: the columns of each block, (blocks, r).
        volume: the absolute value of each determinant, (blocks,), largest first.
        error: the largest entry, in size, of what the cross approximation of each block leaves, (blocks,).
        bound: (r + 1) σ_{r+1}, which the error of the first block never exceeds.
    """

    rows: Int64[Tensor, "b r"]
    cols: Int64[Tensor, "b r"]
    volume: Float64[Tensor, " b"]
    error: Float64[Tensor, " b"]
    bound: float


def all_blocks(W: Float[Tensor, "m n"], rank: int) -> Blocks:
    """Try every choice of r rows and r columns of a small matrix.

    The volume of a block is the absolute value of its determinant. For the block of maximal volume, no entry of
    ``W - C N R`` is larger than ``(r + 1) σ_{r+1}`` (Goreinov and Tyrtyshnikov 2001). Nothing like it holds for the
    others.

    Args:
        W: the matrix, (m, n), of rank r at least.
        rank: the rank r, from 1 to min(m, n).

    Returns:
        All invertible blocks, ordered by their volume.

    Raises:
        InputError: ``W`` is not a finite matrix, a value is out of range, or there are more than 20,000 blocks.
    """
    work, scale = rescaled(to_float64(check_matrix(W)))  # a volume is a product of r entries
    if work.ndim != 2:
        raise InputError(f"W has the shape {tuple(work.shape)}; give one matrix (m, n)")
    m, n = work.shape
    rank = check_rank(rank, (m, n))
    count = math.comb(m, rank) * math.comb(n, rank)
    if count > MOST_BLOCKS:
        raise InputError(f"a {m} × {n} matrix has {count:,} blocks of rank {rank}; at most {MOST_BLOCKS:,} are tried")
    sigma = singular_values(work, accurate=True)
    if float(sigma[rank - 1]) <= torch.finfo(torch.float64).eps * max(m, n) * float(sigma[0]):
        raise InputError(f"W has no invertible block of rank {rank}; give a smaller rank")
    pairs = list(combinations(range(m), rank)), list(combinations(range(n), rank))
    rows = torch.tensor(pairs[0]).repeat_interleave(len(pairs[1]), 0)  # each choice of rows with each of columns
    cols = torch.tensor(pairs[1]).repeat(len(pairs[0]), 1)
    blocks = work[rows[:, :, None], cols[:, None, :]]
    volume = torch.linalg.det(blocks).abs()
    order = volume.argsort(descending=True, stable=True)
    order = order[volume[order] > torch.finfo(torch.float64).eps * volume.max()]
    order = order[torch.linalg.inv_ex(blocks[order]).info == 0]  # a small volume may hide an exact zero
    rows, cols, volume = rows[order], cols[order], volume[order]
    columns = work[:, cols].movedim(1, 0)  # (blocks, m, r)
    left = work - columns @ torch.linalg.solve(blocks[order], work[rows])
    bound = (rank + 1) * float(sigma[rank]) if rank < len(sigma) else 0.0
    return Blocks(
        rows,
        cols,
        volume / torch.tensor(scale, dtype=torch.float64) ** rank,
        left.abs().amax((1, 2)) / scale,
        bound / scale,
    )
