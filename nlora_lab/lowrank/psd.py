"""Nyström's method where it comes from: a positive semi-definite kernel matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from nlora_lab.core.errors import InputError
from nlora_lab.lowrank.checks import check_generator, check_matrix, check_rank
from nlora_lab.lowrank.cross import nystrom
from nlora_lab.lowrank.factors import LowRank
from nlora_lab.lowrank.pivots import Pivots, choose_pivots


def nystrom_psd(
    K: Tensor,
    rank: int,
    *,
    pivots: Pivots = "leading",
    rtol: float | None = None,
    generator: torch.Generator | None = None,
) -> LowRank:
    """``K ≈ K[:, J] K[J, J]⁺ K[J, :]`` for a symmetric positive semi-definite ``K`` (n, n).

    Williams and Seeger (2001). Rows and columns are the same indices J, and then the residual is
    positive semi-definite too: the error never exceeds ‖K‖, whatever J is. "cross" takes the largest
    diagonal entry left at each step, which is pivoted Cholesky; "qr" is not offered. Raises
    :class:`InputError` if K is not symmetric, or a diagonal entry is negative.
    """
    work = check_matrix(K, "K")
    if work.ndim != 2 or work.shape[0] != work.shape[1]:
        raise InputError(f"K must be one square matrix, not {tuple(work.shape)}")
    rank = check_rank(rank, tuple(work.shape))
    check_generator(generator)
    size, eps = float(work.abs().max()), torch.finfo(work.dtype).eps
    skew = float((work - work.T).abs().max())
    if skew > 100 * eps * size:
        raise InputError(f"K is not symmetric (entries differ by up to {skew:.1e}); use nystrom for a general matrix")
    lowest = float(work.diagonal().min())
    if lowest < -100 * eps * size:
        raise InputError(f"K is not positive semi-definite: its diagonal goes down to {lowest:.1e}")
    if isinstance(pivots, str) and pivots == "qr":
        raise InputError("pivots='qr' needs different rows and columns; choose leading, random or cross")
    if isinstance(pivots, str) and pivots == "random":
        where = work.device if generator is None else generator.device
        index = torch.randperm(len(work), generator=generator, device=where)[:rank].to(work.device)
    elif isinstance(pivots, str) and pivots == "cross":
        # the largest entry of a semi-definite matrix is on its diagonal, but ties may break elsewhere
        index = _diagonal_pivots(work, rank)
    else:  # leading, or a pair of indices, or a mistake, which this names
        index, cols = choose_pivots(work, rank, pivots)
        if not torch.equal(index, cols):
            raise InputError("K's rows and columns must be the same indices; give the same vector twice")
    return nystrom(work, rank, pivots=(index, index), rtol=rtol)


def _diagonal_pivots(K: Tensor, rank: int) -> Tensor:
    """Pivoted Cholesky's choice: the largest variance not yet explained. O(n r²), reads r columns of K."""
    left = K.diagonal().clone()
    factor = K.new_zeros(len(K), 0)
    taken: list[int] = []
    for _ in range(rank):
        left[taken] = -torch.inf
        j = int(left.argmax())
        taken.append(j)
        if left[j] <= 0:
            continue
        column = (K[:, j] - factor @ factor[j]) / left[j].sqrt()
        factor = torch.cat([factor, column[:, None]], dim=1)
        left = left - column.square()
    return torch.tensor(taken, device=K.device)
