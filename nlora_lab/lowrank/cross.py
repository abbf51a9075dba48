"""The cross approximation ``W ≈ C N R`` (Nyström, skeleton, CUR) and its cores."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from nlora_lab.core.array_types import Float, Int64
from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice, check_whole_number
from nlora_lab.lowrank.checks import (
    IllConditionedWarning,
    SingularBlockError,
    check_generator,
    check_matrix,
    check_rank,
    check_rtol,
    default_rtol,
    to_float64,
)
from nlora_lab.lowrank.factors import LowRank, is_leading
from nlora_lab.lowrank.pivots import Pivots, resolve_pivots
from nlora_lab.lowrank.rules import CORES, Core

WELL_CONDITIONED = 1e-2  # condition number times eps: up to here the block's inverse reproduces rows and columns


def nystrom(
    W: Float[Tensor, "*batch m n"],
    rank: int,
    *,
    pivots: Pivots = "leading",
    core: Core = "pinv",
    rtol: float | None = None,
    oversample: int = 0,
    balance: bool = False,
    generator: torch.Generator | None = None,
) -> LowRank:
    """Approximate a matrix by a few of its rows and columns (cross or Nyström approximation).

    The result is ``W ≈ C N R`` with the chosen columns ``C = W[:, cols]``, the chosen rows ``R = W[rows, :]`` and a
    core ``N`` between them. It is exact if and only if the block ``W[rows, cols]`` has the rank of ``W``.

    Args:
        W: the matrix, (..., m, n), any floating dtype.
        rank: the rank r, from 1 to min(m, n).
        pivots: "leading", "random", "cross", "qr", or a pair ``(rows, cols)``. See ``choose_pivots``.
        core: "pinv" is the pseudo-inverse of the block. "optimal" is ``C⁺ W R⁺``, the best core for these rows and
            columns in the Frobenius norm (Stewart 1999). "block" is the block itself, as the NLoRA authors released it.
        rtol: singular values of the block that are at most ``rtol · σ₁`` count as zero in its pseudo-inverse. ``None``
            takes ``eps · max(block shape)`` of the working dtype, and warns if any value counts as zero.
        oversample: p, how many more rows than columns to take, from 0 to m − r. It is the usual remedy for a bad block.
        balance: return the same product with its singular values shared evenly: left is ``U √S``, right is ``√S Vᵀ``,
            and the core is the identity.
        generator: the source of random numbers for ``pivots="random"``. ``None`` means torch's global one.

    Returns:
        The factors left (..., m, r), core (..., r, r + p) and right (..., r + p, n), in the dtype of ``W`` (at least
        float32). A balanced result has a core (..., r, r) and a right (..., r, n).

    Raises:
        InputError: ``W`` is not a finite matrix, or an option is out of range.
        SingularBlockError: the pseudo-inverse of the block does not fit into the dtype.

    Warns:
        IllConditionedWarning: the block is numerically singular, and no ``rtol`` was given.
    """
    work = check_matrix(W)
    rank = check_rank(rank, tuple(work.shape))
    oversample = check_cross_options(core, rtol, oversample, work.shape[-2] - rank, generator)
    rows, cols = resolve_pivots(work, rank, pivots, oversample, generator)
    left, right = take_cols(work, cols), take_rows(work, rows)  # (m, r), (r + p, n)
    block = take_cols(right, cols)  # (r + p, r)
    interpolates = False
    if core == "block":
        middle = block
    elif core == "pinv":
        middle, dropped, rounding = block_pinv(block, rtol)
        interpolates = dropped == 0 and not oversample and not balance and rounding < WELL_CONDITIONED
        if dropped and rtol is None and bool(work.any()):  # for the zero matrix, 0 is exact
            warnings.warn(_describe_singular(block), IllConditionedWarning, stacklevel=2)
    elif balance:
        f = _optimal_in_bases(work, left, right, rtol, rows, cols)
        middle = f.core
    else:
        middle = optimal_core(work, left, right, rtol)
    if not bool(torch.isfinite(middle).all()):
        raise SingularBlockError(
            f"the block's pseudo-inverse does not fit into {work.dtype}: its entries are at most "
            f"{float(block.abs().max()):.1e}; scale W up, or give it in float64"
        )
    if core == "optimal" and balance:
        return balanced(f)
    # copies: leading rows and columns are views, and a later change of W must not reach the factors
    left, middle, right = (t.clone(memory_format=torch.contiguous_format) for t in (left, middle, right))
    f = LowRank(left, middle, right, rows, cols, interpolates)
    return balanced(f) if balance else f


def check_cross_options(
    core: Core, rtol: float | None, oversample: int, most: int, generator: torch.Generator | None
) -> int:
    """Check the options that ``nystrom`` and ``error_curve`` share; return ``oversample``, from 0 to ``most``."""
    check_choice("core", core, CORES)
    if rtol is not None:
        check_rtol(rtol, "None takes eps · max(block shape)")
    check_generator(generator)
    oversample = check_whole_number("oversample", oversample, 0, most)
    if core == "block" and oversample:
        raise InputError(f"oversample={oversample}: core='block' is the square block itself; leave oversample out")
    return oversample


def take_rows(W: Float[Tensor, "*batch m n"], rows: Int64[Tensor, "*#batch q"]) -> Float[Tensor, "*batch q n"]:
    """Return ``W[rows, :]``, where all matrices share ``rows`` (q,) or each has its own; a view of leading rows."""
    if is_leading(rows):
        return W[..., : len(rows), :]
    return W[..., rows, :] if rows.ndim == 1 else torch.take_along_dim(W, rows[..., None], dim=-2)


def take_cols(W: Float[Tensor, "*batch m n"], cols: Int64[Tensor, "*#batch r"]) -> Float[Tensor, "*batch m r"]:
    """Return ``W[:, cols]``, where all matrices share ``cols`` (r,) or each has its own; a view of leading columns."""
    if is_leading(cols):
        return W[..., : len(cols)]
    return W[..., cols] if cols.ndim == 1 else torch.take_along_dim(W, cols[..., None, :], dim=-1)


def block_pinv(
    block: Float[Tensor, "*batch q r"], rtol: float | None = None
) -> tuple[Float[Tensor, "*batch r q"], int, float]:
    """Compute the pseudo-inverse ``A⁺`` of a block and how far it can be trusted.

    The fast path is LU in float64. Its result is used if ``‖A‖ ‖A⁻¹‖`` (Frobenius, an upper bound of the condition
    number κ) shows that no singular value is below ``rtol · σ₁``. Otherwise the SVD decides.

    Args:
        block: A, (..., q, r), float32 or float64.
        rtol: as for ``nystrom``.

    Returns:
        ``A⁺`` (..., r, q) in the dtype of the block; how many singular values of the batch count as zero; and a bound
        of κ · eps, where κ is the worst condition number of the batch without those values, and eps that of the dtype.
    """
    A, cut = to_float64(block), default_rtol(block, block.dtype) if rtol is None else rtol
    if A.shape[-1] == A.shape[-2]:
        inverse, failed = torch.linalg.inv_ex(A)
        bound = torch.linalg.matrix_norm(A) * torch.linalg.matrix_norm(inverse)
        if not bool(failed.any()) and bool((bound * max(cut, torch.finfo(A.dtype).eps) < 1).all()):
            return inverse.to(block.device, block.dtype), 0, float(bound.max()) * torch.finfo(block.dtype).eps
    inverse, dropped = _svd_pinv(A, cut)
    bound = torch.linalg.matrix_norm(A) * torch.linalg.matrix_norm(inverse)
    return inverse.to(block.device, block.dtype), dropped, float(bound.max()) * torch.finfo(block.dtype).eps


def _svd_pinv(A: Float[Tensor, "*batch q r"], rtol: float) -> tuple[Float[Tensor, "*batch r q"], int]:
    """The pseudo-inverse by SVD, and how many singular values of the complete batch count as zero."""
    U, S, Vh = torch.linalg.svd(A, full_matrices=False)
    # below eps of the arithmetic itself there is only noise, whatever the caller counts as zero
    cut = max(rtol, torch.finfo(A.dtype).eps * max(A.shape[-2:]))
    nonzero = torch.logical_and(S > 0, S / S[..., :1] > cut)  # 0 / 0 is not above anything
    inverse = torch.where(nonzero, 1 / S, torch.zeros_like(S))
    return Vh.mT @ (inverse[..., None] * U.mT), int((~nonzero).sum())


def _describe_singular(block: Float[Tensor, "*batch q r"]) -> str:
    """The warning about the worst block of a batch."""
    A, cut = to_float64(block), default_rtol(block, block.dtype)
    S = torch.linalg.svdvals(A).reshape(-1, min(A.shape[-2:]))
    values = S[int((S[:, -1] / S[:, 0]).nan_to_num(0).argmin())]
    condition = float(values[0] / values[-1]) if values[-1] > 0 else float("inf")
    return (
        f"the {A.shape[-2]}×{A.shape[-1]} block on the chosen rows and columns has condition number {condition:.1e}: "
        f"{int((values <= cut * values[0]).sum())} of its {len(values)} singular values are at most {cut:.1e} of the "
        "largest and count as zero. Try other pivots, oversample or core='optimal', or set rtol= to accept it"
    )


def optimal_core(
    W: Float[Tensor, "*batch m n"],
    left: Float[Tensor, "*batch m r"],
    right: Float[Tensor, "*batch q n"],
    rtol: float | None = None,
) -> Float[Tensor, "*batch r q"]:
    """Compute the optimal core ``C⁺ W R⁺`` by two QR factorisations instead of two large pseudo-inverses.

    Rounded to the dtype of ``W``, ``C N R`` is off by about ``eps · κ(C) κ(R)``. On a steeply decaying spectrum in
    float32 that can be more than the error itself. ``balance=True`` avoids this loss.

    Args:
        W: the matrix, (..., m, n), float32 or float64.
        left: C, (..., m, r).
        right: R, (..., q, n).
        rtol: as for ``nystrom``.

    Returns:
        The core, (..., r, q), in the dtype of ``W``.
    """
    (_, _, Tc_inverse), between, (_, _, Tr_inverse) = _bases(W, left, right, rtol)
    return (Tc_inverse @ between @ Tr_inverse.mT).to(W.device, W.dtype)


def _optimal_in_bases(
    W: Float[Tensor, "*batch m n"],
    left: Float[Tensor, "*batch m r"],
    right: Float[Tensor, "*batch q n"],
    rtol: float | None,
    rows: Int64[Tensor, "*#batch q"],
    cols: Int64[Tensor, "*#batch r"],
) -> LowRank:
    """``C C⁺ W R⁺ R`` in orthonormal bases, so that no step divides by a small number and multiplies by it again."""
    (Qc, Tc, Tc_inverse), between, (Qr, Tr, Tr_inverse) = _bases(W, left, right, rtol)
    middle = (Tc @ Tc_inverse) @ between @ (Tr @ Tr_inverse).mT
    return LowRank(Qc, middle.to(W.device, W.dtype), Qr.mT, rows, cols)


# Q, T and T⁺ of a factor Q T, with T and T⁺ in float64: of C (m, r), and of Rᵀ (n, q), where p = min(n, q)
ColumnBasis = tuple[Float[Tensor, "*batch m r"], Float[Tensor, "*batch r r"], Float[Tensor, "*batch r r"]]
RowBasis = tuple[Float[Tensor, "*batch n p"], Float[Tensor, "*batch p q"], Float[Tensor, "*batch q p"]]


def _bases(
    W: Float[Tensor, "*batch m n"],
    left: Float[Tensor, "*batch m r"],
    right: Float[Tensor, "*batch q n"],
    rtol: float | None,
) -> tuple[ColumnBasis, Float[Tensor, "*batch r p"], RowBasis]:
    """The bases of C (m, r) and Rᵀ (n, q), and ``Qcᵀ W Qr`` between them in float64."""
    cut = default_rtol(W, W.dtype) if rtol is None else rtol
    (Qc, Tc), (Qr, Tr) = ((Q, to_float64(T)) for Q, T in (torch.linalg.qr(left), torch.linalg.qr(right.mT)))
    return (Qc, Tc, _svd_pinv(Tc, cut)[0]), to_float64(Qc.mT @ (W @ Qr)), (Qr, Tr, _svd_pinv(Tr, cut)[0])


def balanced(f: LowRank) -> LowRank:
    """Share the singular values of an approximation evenly between its outer factors.

    Args:
        f: any approximation, of rank r.

    Returns:
        The same product as ``U √S · I · √S Vᵀ``: left (..., m, r), the identity (..., r, r), right (..., r, n).
    """
    Ql, Tl = torch.linalg.qr(f.left)
    Qr, Tr = torch.linalg.qr(f.right.mT)
    U, S, Vh = torch.linalg.svd(to_float64(Tl) @ to_float64(f.core) @ to_float64(Tr).mT, full_matrices=False)
    r, root = f.rank, S.sqrt()
    dtype, device = f.left.dtype, f.left.device
    U, Vh, root = U[..., :r], Vh[..., :r, :], root[..., :r]
    left = Ql @ (U * root[..., None, :]).to(device, dtype)
    right = (root[..., :, None] * Vh).to(device, dtype) @ Qr.mT
    core = torch.eye(r, dtype=dtype, device=device).expand(*f.core.shape[:-2], r, r)
    return LowRank(left, core.contiguous(), right, f.rows, f.cols)
