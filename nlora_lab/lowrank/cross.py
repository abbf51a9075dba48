"""The cross (Nyström, skeleton, CUR) approximation ``W ≈ C U R`` and its cores."""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import Tensor

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice
from nlora_lab.lowrank.checks import (
    IllConditionedWarning,
    SingularBlockError,
    check_count,
    check_generator,
    check_matrix,
    check_rank,
    check_rtol,
    default_rtol,
    to_float64,
)
from nlora_lab.lowrank.factors import LowRank, is_leading
from nlora_lab.lowrank.pivots import Pivots, pick

Core = Literal["pinv", "optimal", "block"]
CORES: tuple[Core, ...] = ("pinv", "optimal", "block")
WELL_CONDITIONED = 1e-2  # condition number times eps: up to here the block's inverse reproduces rows and columns


def nystrom(
    W: Tensor,
    rank: int,
    *,
    pivots: Pivots = "leading",
    core: Core = "pinv",
    rtol: float | None = None,
    oversample: int = 0,
    balance: bool = False,
    generator: torch.Generator | None = None,
) -> LowRank:
    """The rank-``rank`` cross approximation of ``W`` (…, m, n): left (m, r), core (r, r + p), right (r + p, n).

    Args:
        W: one matrix or a batch, any floating dtype; computed in float32 or better, and the factors come
            back in that dtype.
        rank: r, from 1 to min(m, n).
        pivots: "leading", "random", "cross", "qr" or ``(rows, cols)``: see :func:`choose_pivots`.
        core: "pinv" (``A⁺``), "optimal" (``C⁺ W R⁺``, the best for these rows and columns in the
            Frobenius norm) or "block" (``A`` itself, as the NLoRA authors released).
        rtol: singular values of the block below ``rtol · σ₁`` count as zero in its pseudo-inverse
            (default: ``eps · max(block shape)`` of the working dtype, with a warning where it bites).
        oversample: p more rows than columns, from 0 to m − r: the usual remedy for a bad block.
        balance: the same product with its singular values shared evenly: left = U √S, right = √S Vᵀ,
            and the core is the identity.
        generator: for ``pivots="random"``.

    Warns :class:`IllConditionedWarning` where the block is numerically singular and no ``rtol`` was
    given. Raises :class:`InputError` for what cannot be used, and its child
    :class:`SingularBlockError` where the pseudo-inverse does not fit into the dtype.
    """
    work = check_matrix(W)
    rank = check_rank(rank, tuple(work.shape))
    check_choice("core", core, CORES)
    check_rtol(rtol)
    check_generator(generator)
    oversample = check_count("oversample", oversample, 0, work.shape[-2] - rank)
    if core == "block" and oversample:
        raise InputError(f"oversample={oversample}: core='block' is the square block itself; leave oversample out")
    rows, cols = pick(work, rank, pivots, oversample, generator)
    left, right = take_cols(work, cols), take_rows(work, rows)  # (m, r), (r + p, n)
    block = take_cols(right, cols)  # (r + p, r)
    interpolates = False
    if core == "block":
        middle = block
    elif core == "pinv":
        middle, lost, condition = block_pinv(block, rtol)
        interpolates = lost == 0 and not oversample and not balance and condition < WELL_CONDITIONED
        if lost and rtol is None and bool(work.any()):  # of the zero matrix, 0 is no approximation but exact
            _warn(block)
    elif balance:
        return balanced(_in_bases(work, left, right, rtol, rows, cols))
    else:
        middle = optimal_core(work, left, right, rtol)
    if not bool(torch.isfinite(middle).all()):
        raise SingularBlockError(
            f"the block's pseudo-inverse does not fit into {work.dtype}: its entries are at most "
            f"{float(block.abs().max()):.1e}; scale W up, or give it in float64"
        )
    # copies: leading rows and columns are views, and what is done to W later must not reach the factors
    left, middle, right = (t.clone(memory_format=torch.contiguous_format) for t in (left, middle, right))
    f = LowRank(left, middle, right, rows, cols, interpolates)
    return balanced(f) if balance else f


def take_rows(W: Tensor, rows: Tensor) -> Tensor:
    """``W[rows, :]`` for one matrix, a batch, or a batch with indices of its own; a view of leading rows."""
    if is_leading(rows):
        return W[..., : len(rows), :]
    return W[..., rows, :] if rows.ndim == 1 else torch.take_along_dim(W, rows[..., None], dim=-2)


def take_cols(W: Tensor, cols: Tensor) -> Tensor:
    """``W[:, cols]``, likewise."""
    if is_leading(cols):
        return W[..., : len(cols)]
    return W[..., cols] if cols.ndim == 1 else torch.take_along_dim(W, cols[..., None, :], dim=-1)


def block_pinv(block: Tensor, rtol: float | None = None) -> tuple[Tensor, int, float]:
    """``A⁺`` (…, r, q) of the block (…, q, r) in its dtype, how many singular values count as zero, and ``κ eps``.

    κ is a bound of the condition number of what is kept (the worst of a batch), eps that of the block's dtype.

    Fast path: LU in float64. It is kept if ``‖A‖ ‖A⁻¹‖`` (Frobenius, an upper bound of the condition
    number) shows that no singular value is below ``rtol · σ₁``; else the SVD decides.
    """
    A, cut = to_float64(block), default_rtol(block, block.dtype) if rtol is None else rtol
    if A.shape[-1] == A.shape[-2]:
        inverse, failed = torch.linalg.inv_ex(A)
        bound = torch.linalg.matrix_norm(A) * torch.linalg.matrix_norm(inverse)
        if not bool(failed.any()) and bool((bound * max(cut, torch.finfo(A.dtype).eps) < 1).all()):
            return inverse.to(block.device, block.dtype), 0, float(bound.max()) * torch.finfo(block.dtype).eps
    inverse, lost = _pinv(A, cut)
    bound = torch.linalg.matrix_norm(A) * torch.linalg.matrix_norm(inverse)
    return inverse.to(block.device, block.dtype), lost, float(bound.max()) * torch.finfo(block.dtype).eps


def _pinv(A: Tensor, rtol: float) -> tuple[Tensor, int]:
    """Pseudo-inverse by SVD, and how many singular values (of the whole batch) were taken for zero."""
    U, S, Vh = torch.linalg.svd(A, full_matrices=False)
    # below eps of the arithmetic itself there is only noise, whatever the caller counts as zero
    cut = max(rtol, torch.finfo(A.dtype).eps * max(A.shape[-2:]))
    kept = torch.logical_and(S > 0, S / S[..., :1] > cut)  # 0 / 0 is not above anything
    inverse = torch.where(kept, 1 / S, torch.zeros_like(S))
    return Vh.mT @ (inverse[..., None] * U.mT), int((~kept).sum())


def _warn(block: Tensor) -> None:
    """Name the worst block of the batch."""
    A, cut = to_float64(block), default_rtol(block, block.dtype)
    S = torch.linalg.svdvals(A).reshape(-1, min(A.shape[-2:]))
    values = S[int((S[:, -1] / S[:, 0]).nan_to_num(0).argmin())]
    condition = float(values[0] / values[-1]) if values[-1] > 0 else float("inf")
    warnings.warn(
        f"the {A.shape[-2]}×{A.shape[-1]} block on the chosen rows and columns has condition number {condition:.1e}: "
        f"{int((values <= cut * values[0]).sum())} of its {len(values)} singular values are at most {cut:.1e} of the "
        "largest and count as zero. Other pivots, oversample or core='optimal' help; rtol= says that you mean it",
        IllConditionedWarning,
        stacklevel=3,
    )


def optimal_core(W: Tensor, left: Tensor, right: Tensor, rtol: float | None = None) -> Tensor:
    """``C⁺ W R⁺`` (…, r, q), by two QR factorisations instead of two large pseudo-inverses.

    Rounded to W's dtype, ``C U R`` is off by about ``eps · κ(C) κ(R)``: on a steeply decaying spectrum in float32
    that can be more than the error itself. ``balance=True`` avoids the detour.
    """
    (_, _, Tc_inverse), between, (_, _, Tr_inverse) = _bases(W, left, right, rtol)
    return (Tc_inverse @ between @ Tr_inverse.mT).to(W.device, W.dtype)


def _in_bases(W: Tensor, left: Tensor, right: Tensor, rtol: float | None, rows: Tensor, cols: Tensor) -> LowRank:
    """``C C⁺ W R⁺ R`` in orthonormal bases: nothing is divided by a small number and multiplied by it again."""
    (Qc, Tc, Tc_inverse), between, (Qr, Tr, Tr_inverse) = _bases(W, left, right, rtol)
    middle = (Tc @ Tc_inverse) @ between @ (Tr @ Tr_inverse).mT
    return LowRank(Qc, middle.to(W.device, W.dtype), Qr.mT, rows, cols)


Basis = tuple[Tensor, Tensor, Tensor]
"""Q, T and T⁺ of a thin factor Q T; T and T⁺ in float64."""


def _bases(W: Tensor, left: Tensor, right: Tensor, rtol: float | None) -> tuple[Basis, Tensor, Basis]:
    """The bases of C (m, r) and Rᵀ (n, q), and ``Qcᵀ W Qr`` between them in float64."""
    cut = default_rtol(W, W.dtype) if rtol is None else rtol
    (Qc, Tc), (Qr, Tr) = ((Q, to_float64(T)) for Q, T in (torch.linalg.qr(left), torch.linalg.qr(right.mT)))
    return (Qc, Tc, _pinv(Tc, cut)[0]), to_float64(Qc.mT @ (W @ Qr)), (Qr, Tr, _pinv(Tr, cut)[0])


def balanced(f: LowRank) -> LowRank:
    """The same product as ``U √S · I · √S Vᵀ``: both factors of one size, the core the identity."""
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
