"""Nyström's original method, for a positive semi-definite kernel matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from nlora_lab.core.array_types import Float, Int64
from nlora_lab.core.errors import InputError
from nlora_lab.lowrank.checks import check_generator, check_matrix, check_rank
from nlora_lab.lowrank.cross import nystrom
from nlora_lab.lowrank.factors import LowRank
from nlora_lab.lowrank.pivots import Pivots, choose_pivots


def nystrom_psd(
    K: Float[Tensor, "n n"],
    rank: int,
    *,
    pivots: Pivots = "leading",
    rtol: float | None = None,
    generator: torch.Generator | None = None,
) -> LowRank:
    """Approximate a kernel matrix by a few of its columns: ``K ≈ K[:, J] K[J, J]⁺ K[J, :]``.

    Rows and columns are the same indices J. The residual is then positive semi-definite too, so the error never exceeds
    ‖K‖, whatever J is. Source: Williams and Seeger (2001).

    Args:
        K: a symmetric positive semi-definite matrix, (n, n), any floating dtype.
        rank: the rank r, from 1 to n.
        pivots: "leading", "random", "cross", or a pair of twice the same indices. "cross" takes the largest diagonal
            entry of the residual at each step, which is pivoted Cholesky. "qr" is not offered.
        rtol: as for ``nystrom``.
        generator: the source of random numbers for "random". ``None`` means torch's global one.

    Returns:
        The factors left (n, r), core (r, r) and right (r, n), in the dtype of ``K`` (at least float32).

    Raises:
        InputError: ``K`` is not one finite symmetric matrix, has a negative diagonal entry, or an option is out of
            range.
    """
    work = _check_kernel(K)
    rank = check_rank(rank, tuple(work.shape))
    check_generator(generator)
    if isinstance(pivots, str) and pivots == "qr":
        raise InputError("pivots='qr' needs different rows and columns; choose leading, random or cross")
    if isinstance(pivots, str) and pivots == "random":
        device = work.device if generator is None else generator.device
        index = torch.randperm(len(work), generator=generator, device=device)[:rank].to(work.device)
    elif isinstance(pivots, str) and pivots == "cross":
        # the largest entry of a semi-definite matrix is on its diagonal, but ties may break elsewhere
        index = _diagonal_pivots(work, rank)
    else:  # leading, a pair of indices, or a mistake, which choose_pivots names
        index, cols = choose_pivots(work, rank, pivots)
        if not torch.equal(index, cols):
            raise InputError("K's rows and columns must be the same indices; give the same vector twice")
    return nystrom(work, rank, pivots=(index, index), rtol=rtol)


def _check_kernel(K: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    work = check_matrix(K, "K")
    if work.ndim != 2 or work.shape[0] != work.shape[1]:
        raise InputError(f"K must be one square matrix, not {tuple(work.shape)}")
    size, eps = float(work.abs().max()), torch.finfo(work.dtype).eps
    skew = float((work - work.T).abs().max())
    if skew > 100 * eps * size:
        raise InputError(f"K is not symmetric (entries differ by up to {skew:.1e}); use nystrom for a general matrix")
    lowest = float(work.diagonal().min())
    if lowest < -100 * eps * size:
        raise InputError(
            f"K is not positive semi-definite (its diagonal goes down to {lowest:.1e}); "
            "use nystrom for a general matrix"
        )
    return work


def _diagonal_pivots(K: Float[Tensor, "n n"], rank: int) -> Int64[Tensor, " r"]:
    """The choice of pivoted Cholesky, the largest variance not yet explained. O(n r²), reads r columns of K."""
    variance = K.diagonal().clone()
    factor = K.new_zeros(len(K), 0)
    chosen: list[int] = []
    for _ in range(rank):
        variance[chosen] = -torch.inf
        j = int(variance.argmax())
        chosen.append(j)
        if variance[j] <= 0:
            continue
        column = (K[:, j] - factor @ factor[j]) / variance[j].sqrt()
        factor = torch.cat([factor, column[:, None]], dim=1)
        variance = variance - column.square()
    return torch.tensor(chosen, device=K.device)
