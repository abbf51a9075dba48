"""Singular values, the best approximation (SVD), and two randomised ones."""

from __future__ import annotations

import torch
from torch import Tensor

from nlora_lab.core.array_types import Float, Float64
from nlora_lab.core.validation import check_whole_number
from nlora_lab.lowrank.checks import (
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


def truncated_svd(W: Float[Tensor, "*batch m n"], rank: int) -> LowRank:
    """Compute the best approximation of a given rank, by the singular value decomposition.

    It is the best in the Frobenius and in the spectral norm (Eckart and Young 1936).

    Args:
        W: the matrix, (..., m, n), any floating dtype.
        rank: the rank r, from 1 to min(m, n).

    Returns:
        The factors: left (..., m, r) with orthonormal columns, core ``diag(σ)`` (..., r, r), and right (..., r, n) with
        orthonormal rows, in the dtype of ``W`` (at least float32).

    Raises:
        InputError: ``W`` is not a finite matrix, or the rank is out of range.
    """
    work = check_matrix(W)
    rank = check_rank(rank, tuple(work.shape))
    U, S, Vh = torch.linalg.svd(work, full_matrices=False)
    return LowRank(U[..., :rank].contiguous(), torch.diag_embed(S[..., :rank]), Vh[..., :rank, :].contiguous())


def randomized_svd(
    W: Float[Tensor, "*batch m n"],
    rank: int,
    oversample: int = 8,
    n_iter: int = 1,
    generator: torch.Generator | None = None,
) -> LowRank:
    """Compute a nearly best approximation from random combinations of the columns of ``W``.

    Power iterations, each orthonormalised, sharpen a slowly decaying spectrum. The cost is 2 (n_iter + 1) products of
    ``W`` with a thin matrix. Source: Halko, Martinsson and Tropp (2011), algorithms 4.4 and 5.1.

    Args:
        W: the matrix, (..., m, n), any floating dtype.
        rank: the rank r, from 1 to min(m, n).
        oversample: how many more combinations than r to draw, from 0 on. Their number is cut to min(m, n).
        n_iter: the number of power iterations, from 0 to 100.
        generator: the source of random numbers. ``None`` means torch's global one.

    Returns:
        The factors: left (..., m, r) with orthonormal columns, core ``diag(σ)`` (..., r, r), and right (..., r, n) with
        orthonormal rows, in the dtype of ``W`` (at least float32).

    Raises:
        InputError: ``W`` is not a finite matrix, or an option is out of range.
    """
    work = check_matrix(W)
    rank = check_rank(rank, tuple(work.shape))
    check_generator(generator)
    check_whole_number("n_iter", n_iter, 0, 100)
    check_whole_number("oversample", oversample, 0, 10**6)
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
    W: Float[Tensor, "*batch m n"],
    rank: int,
    oversample: int | None = None,
    generator: torch.Generator | None = None,
) -> LowRank:
    """Approximate a matrix from random sketches instead of rows and columns: ``W ≈ W X (Yᵀ W X)⁺ Yᵀ W``.

    X (n, r) and Y (m, r + p) are Gaussian. The method makes one pass over ``W``. The pseudo-inverse drops singular
    values below ``eps · (r + p)`` of the largest, as the paper advises. Source: Nakatsukasa, *Fast and stable
    randomized low-rank matrix approximation* (arXiv 2009.11392).

    Args:
        W: the matrix, (..., m, n), any floating dtype.
        rank: the rank r, from 1 to min(m, n).
        oversample: p, from 0 on, cut to m − r. ``None`` takes r / 2, rounded up.
        generator: the source of random numbers. ``None`` means torch's global one.

    Returns:
        The factors: left ``W X`` (..., m, r), core (..., r, r + p), right ``Yᵀ W`` (..., r + p, n), in the dtype of
        ``W`` (at least float32).

    Raises:
        InputError: ``W`` is not a finite matrix, or an option is out of range.
    """
    work = check_matrix(W)
    rank = check_rank(rank, tuple(work.shape))
    check_generator(generator)
    work, scale = rescaled(work)
    m, n = work.shape[-2:]
    if oversample is not None:
        check_whole_number("oversample", oversample, 0, 10**6)
    extra = min((rank + 1) // 2 if oversample is None else oversample, m - rank)
    batch = work.shape[:-2]
    X = standard_normal(*batch, n, rank, like=work, generator=generator)
    Y = standard_normal(*batch, m, rank + extra, like=work, generator=generator)
    left, right = work @ X, Y.mT @ work  # (m, r), (r + p, n)
    core = torch.linalg.pinv(to_float64(right @ X), rtol=default_rtol(right @ X, work.dtype))
    return LowRank(left, core.to(work.device, work.dtype), right / scale)


def singular_values(W: Float[Tensor, "*batch m n"], accurate: bool = False) -> Float[Tensor, "*batch k"]:
    """Compute the singular values of a matrix.

    A large matrix goes by the Gram matrix of its smaller side, formed in float64. This is faster than a dense SVD, and
    the more so the less square the matrix is (benchmarks/linear_algebra.py). The eigenvalues of the Gram matrix are σ²,
    with an absolute error of about ``eps64 · σ₁²``. So σ has a relative error of about ``1e-16 (σ₁/σ)²``: 1e-10 at
    σ = 1e-3 σ₁, and nothing reliable below 1e-7 σ₁.

    A small matrix (fewer than 512 × 512 entries, where the Gram matrix gains nothing) and ``accurate=True`` get the
    dense SVD. It is right to ``eps · σ₁`` in the dtype of ``W``.

    Args:
        W: the matrix, (..., m, n), any floating dtype.
        accurate: whether to use the dense SVD at any size.

    Returns:
        The k = min(m, n) singular values, largest first, (..., k), in the dtype of ``W`` (at least float32).

    Raises:
        InputError: ``W`` is not a finite matrix.
    """
    work = check_matrix(W)
    if work.device.type == "mps":  # it has neither float64 nor an SVD
        return singular_values(work.cpu(), accurate).to(work.device)
    if accurate or work.shape[-2] * work.shape[-1] < GRAM_FROM:
        values: Tensor = torch.linalg.svdvals(work)
        return values
    work, scale = rescaled(work)
    squares: Tensor = torch.linalg.eigvalsh(gram(work), UPLO="L").flip(-1)
    return (squares.clamp(min=0).sqrt() / scale).to(work.dtype)


def truncation_errors(sigma: Float[Tensor, "*batch k"], max_rank: int) -> Float[Tensor, "*batch r"]:
    """Compute the relative Frobenius error of the truncated SVD at each rank, from the singular values alone.

    The error at rank r is ``sqrt(Σ_{k>r} σ_k²) / sqrt(Σ σ_k²)``.

    Args:
        sigma: the singular values of a matrix that is not zero, largest first, (..., k), preferably float64.
        max_rank: the largest rank, from 1 to k.

    Returns:
        The errors at rank 1 … ``max_rank``, (..., max_rank), in the dtype of ``sigma``.
    """
    tails = sigma.square().flip(-1).cumsum(-1).flip(-1)  # from the smallest up, so that small tails keep their digits
    tails = torch.cat([tails, torch.zeros_like(tails[..., :1])], dim=-1)
    return (tails[..., 1 : max_rank + 1] / tails[..., :1]).sqrt()


def gram(W: Float[Tensor, "*batch m n"]) -> Float64[Tensor, "*batch k k"]:
    """Compute the smaller of ``WᵀW`` and ``WWᵀ`` in float64: its lower triangle, with zeros above.

    Panels of ``W`` are converted one at a time, and no block above the diagonal is computed. That is half of the work.

    Args:
        W: the matrix, (..., m, n), float32 or float64.

    Returns:
        The lower triangle, (..., k, k) with k = min(m, n), in float64.
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
