"""Singular values, the best approximation, and the two randomised ones."""

from __future__ import annotations

import torch
from torch import Tensor

from nlora_lab.lowrank.checks import (
    check_count,
    check_generator,
    check_matrix,
    check_rank,
    default_rtol,
    rescaled,
    standard_normal,
    to_float64,
)
from nlora_lab.lowrank.factors import LowRank

GRAM_FROM = 512 * 512  # entries
GRAM_PANEL = 512  # rows turned into float64 at a time
GRAM_BLOCK = 256  # columns of a block on the diagonal


def truncated_svd(W: Tensor, rank: int) -> LowRank:
    """The best rank-``rank`` approximation of ``W`` (…, m, n) in both norms (Eckart–Young).

    left (m, r) and right (r, n) have orthonormal columns and rows, core is ``diag(σ)``.
    """
    work = check_matrix(W)
    rank = check_rank(rank, tuple(work.shape))
    U, S, Vh = torch.linalg.svd(work, full_matrices=False)
    return LowRank(U[..., :rank].contiguous(), torch.diag_embed(S[..., :rank]), Vh[..., :rank, :].contiguous())


def randomized_svd(
    W: Tensor, rank: int, oversample: int = 8, n_iter: int = 1, generator: torch.Generator | None = None
) -> LowRank:
    """A nearly best approximation from ``rank + oversample`` random combinations of the columns of ``W``.

    Halko, Martinsson and Tropp (2011), algorithms 4.4 and 5.1: ``n_iter`` power iterations, each
    orthonormalised, sharpen a slowly decaying spectrum. Cost: 2 (n_iter + 1) products of W with a
    thin matrix. ``oversample`` is cut where the matrix is smaller.
    """
    work = check_matrix(W)
    rank = check_rank(rank, tuple(work.shape))
    check_generator(generator)
    check_count("n_iter", n_iter, 0, 100)
    check_count("oversample", oversample, 0, 10**6)
    work, scale = rescaled(work)
    n = work.shape[-1]
    width = min(rank + oversample, *work.shape[-2:])
    Q = torch.linalg.qr(work @ standard_normal(*work.shape[:-2], n, width, like=work, generator=generator)).Q
    for _ in range(n_iter):
        Q = torch.linalg.qr(work @ torch.linalg.qr(work.mT @ Q).Q).Q
    U, S, Vh = torch.linalg.svd(Q.mT @ work, full_matrices=False)
    left = Q @ U[..., :rank]
    return LowRank(left, torch.diag_embed(S[..., :rank]) / scale, Vh[..., :rank, :].contiguous())


def generalized_nystrom(
    W: Tensor, rank: int, oversample: int | None = None, generator: torch.Generator | None = None
) -> LowRank:
    """``W ≈ W X (Yᵀ W X)⁺ Yᵀ W`` with Gaussian X (n, r) and Y (m, r + p): sketches instead of rows.

    Nakatsukasa, *Fast and stable randomized low-rank matrix approximation* (arXiv 2009.11392); one
    pass over W. p is ``oversample`` (default r / 2, rounded up), cut to m − r. The pseudo-inverse drops
    singular values below ``eps · (r + p)`` of the largest, as that paper advises.
    """
    work = check_matrix(W)
    rank = check_rank(rank, tuple(work.shape))
    check_generator(generator)
    work, scale = rescaled(work)
    m, n = work.shape[-2:]
    if oversample is not None:
        check_count("oversample", oversample, 0, 10**6)
    extra = min((rank + 1) // 2 if oversample is None else oversample, m - rank)
    batch = work.shape[:-2]
    X = standard_normal(*batch, n, rank, like=work, generator=generator)
    Y = standard_normal(*batch, m, rank + extra, like=work, generator=generator)
    left, right = work @ X, Y.mT @ work  # (m, r), (r + p, n)
    core = torch.linalg.pinv(to_float64(right @ X), rtol=default_rtol(right @ X, work.dtype))
    return LowRank(left, core.to(work.device, work.dtype), right / scale)


def singular_values(W: Tensor, accurate: bool = False) -> Tensor:
    """The singular values of ``W`` (…, m, n), largest first, (…, min(m, n)) in its working dtype.

    Large matrices go by the Gram matrix of the smaller side, formed in float64: faster than a dense SVD, the more
    so the less square they are (benchmarks/linear_algebra.py). Its eigenvalues are σ², with an absolute error of
    about ``eps64 · σ₁²``, so σ has a relative error of about ``1e-16 (σ₁/σ)²``: 1e-10 at σ = 1e-3 σ₁, nothing
    reliable below 1e-7 σ₁.
    Small ones (fewer than 512 × 512 entries, where it gains nothing) and ``accurate=True`` get the
    dense SVD, which is right to ``eps · σ₁`` in W's own dtype.
    """
    work = check_matrix(W)
    if work.device.type == "mps":  # neither float64 nor an SVD there
        return singular_values(work.cpu(), accurate).to(work.device)
    if accurate or work.shape[-2] * work.shape[-1] < GRAM_FROM:
        values: Tensor = torch.linalg.svdvals(work)
        return values
    work, scale = rescaled(work)
    squares: Tensor = torch.linalg.eigvalsh(gram(work), UPLO="L").flip(-1)
    return (squares.clamp(min=0).sqrt() / scale).to(work.dtype)


def gram(W: Tensor) -> Tensor:
    """``WᵀW`` or ``WWᵀ``, whichever is smaller, (…, k, k) in float64: its lower triangle, zeros above.

    W is widened panel by panel, and a block above the diagonal is never computed: half of the work.
    """
    if W.ndim > 2:
        grams = [gram(matrix) for matrix in W.reshape(-1, *W.shape[-2:])]
        return torch.stack(grams).reshape(*W.shape[:-2], *grams[0].shape)
    tall = W if W.shape[0] >= W.shape[1] else W.T
    k = tall.shape[1]
    total = torch.zeros(k, k, dtype=torch.float64, device=W.device)
    for start in range(0, len(tall), GRAM_PANEL):
        wide = tall[start : start + GRAM_PANEL].to(torch.float64)
        for left in range(0, k, GRAM_BLOCK):
            block = slice(left, left + GRAM_BLOCK)
            total[left:, block].addmm_(wide[:, left:].T, wide[:, block])
    return total.tril_()
