r"""The error at every rank at once.

With nested pivots the blocks ``A_1 ⊂ A_2 ⊂ …`` are the leading blocks of one matrix ``A = L D``
(elimination without pivoting: the pivoting is in the order). The approximation of rank k is then

.. math:: W_k = \sum_{j \le k} b_j f_j^T, \qquad B' = C D^{-1},\; F' = L^{-1} R,

the first k terms of one sum, so that ``‖W − W_k‖² = ‖W‖² − 2 Σ_j b_jᵀ W f_j + Σ_ij (B'ᵀB')∘(F'F'ᵀ)``
needs three small Gram matrices and no product of W's size. Everything is summed in float64, panel by
panel. Ranks at which that sum has lost its digits, or whose block is singular, are computed anew.
"""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import Tensor

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice
from nlora_lab.lowrank.checks import (
    IllConditionedWarning,
    check_count,
    check_generator,
    check_matrix,
    check_rank,
    check_rtol,
    rescaled,
    to_float64,
)
from nlora_lab.lowrank.cross import CORES, Core, nystrom, take_cols, take_rows
from nlora_lab.lowrank.factors import relative_error
from nlora_lab.lowrank.pivots import Pivots, extra_rows, pick
from nlora_lab.lowrank.svd import singular_values

PANEL = 512  # rows in float64 at a time
KEPT_DIGITS = 1e-9  # of the largest term: below this, a squared error is rounding noise


def error_curve(
    W: Tensor,
    max_rank: int,
    kind: Literal["nystrom", "svd"] = "nystrom",
    *,
    pivots: Pivots = "leading",
    core: Core = "pinv",
    rtol: float | None = None,
    oversample: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Relative Frobenius errors of the approximations of rank 1 … ``max_rank``: (…, max_rank), float64.

    Entry ``[r - 1]`` equals ``relative_error(W, nystrom(W, r, …))`` to the rounding of nystrom's factors, or
    that of ``truncated_svd`` for ``kind="svd"`` (which takes none of the other options). One elimination serves
    all ranks; only those with a numerically singular block are computed one by one, and ``oversample > 0``,
    whose blocks are not nested. An explicit pair of pivots gives its first r + oversample rows and r columns to
    rank r.

    Raises :class:`InputError` as :func:`nystrom` does, and for the zero matrix.
    """
    work = check_matrix(W)
    check_choice("kind", kind, ("nystrom", "svd"))
    check_choice("core", core, CORES)
    max_rank = check_rank(max_rank, tuple(work.shape), "max_rank")
    check_rtol(rtol)
    check_generator(generator)
    oversample = check_count("oversample", oversample, 0, work.shape[-2] - max_rank)
    if core == "block" and oversample:
        raise InputError(f"oversample={oversample}: core='block' is the square block itself; leave oversample out")
    if core != "block":  # which is not an approximation: it does not scale as W
        work, _ = rescaled(work)
    if not bool((work.abs().amax(dim=(-2, -1)) > 0).all()):
        raise InputError("W is the zero matrix, so a relative error has no meaning")
    if kind == "svd":
        return _best_possible(work, max_rank)
    order = _nested(work, max_rank, pivots, oversample, generator)
    if work.ndim == 2:
        return _curve(work, *order, core, rtol, oversample)
    flat = work.reshape(-1, *work.shape[-2:])
    rows, cols = (i.expand(*work.shape[:-2], i.shape[-1]).reshape(len(flat), -1) for i in order)
    curves = [_curve(flat[b], rows[b], cols[b], core, rtol, oversample) for b in range(len(flat))]
    return torch.stack(curves).reshape(*work.shape[:-2], max_rank)


def _nested(
    W: Tensor, max_rank: int, pivots: Pivots, oversample: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Pivots of which the first r + oversample rows and r columns belong to rank r."""
    if oversample and isinstance(pivots, str) and pivots in ("cross", "qr"):
        return pick(W, max_rank, pivots, 0, generator)  # the extra rows differ from rank to rank
    return pick(W, max_rank, pivots, oversample, generator)


def _best_possible(W: Tensor, max_rank: int) -> Tensor:
    """``sqrt(Σ_{k>r} σ_k²) / ‖W‖``; where little is left the Gram matrix would only show noise."""
    squares = singular_values(W).to(torch.float64 if W.device.type != "mps" else W.dtype).square()
    if bool((squares[..., min(max_rank, squares.shape[-1] - 1) :].sum(-1) < 1e-12 * squares.sum(-1)).any()):
        squares = singular_values(W, accurate=True).to(squares.dtype).square()
    tails = squares.flip(-1).cumsum(-1).flip(-1)  # from the smallest up, so that small tails keep their digits
    tails = torch.cat([tails, torch.zeros_like(tails[..., :1])], dim=-1)
    return (tails[..., 1 : max_rank + 1] / tails[..., :1]).sqrt()


def _curve(W: Tensor, rows: Tensor, cols: Tensor, core: Core, rtol: float | None, oversample: int) -> Tensor:
    """One matrix's curve: the closed form wherever it can be trusted, nystrom itself elsewhere."""
    max_rank = len(cols)
    if oversample:
        squares, trusted = W.new_zeros(max_rank, dtype=torch.float64), torch.zeros(max_rank, dtype=torch.bool)
    else:
        squares, trusted = _CLOSED_FORMS[core](W, rows, cols, rtol)
    errors = squares.clamp(min=0).sqrt().cpu()
    # the next rows in order, or, where the rule chooses them by the residual, those of each rank
    extra = extra_rows(W, rows, cols, oversample) if len(rows) < max_rank + oversample else None
    for k in (~trusted.cpu()).nonzero().flatten().tolist():
        with warnings.catch_warnings():
            # a curve goes through every block there is: a singular one is a point of it, not a mistake
            warnings.simplefilter("ignore", IllConditionedWarning)
            first = rows[: k + 1 + oversample] if extra is None else torch.cat([rows[: k + 1], extra[k]])
            chosen = (first, cols[: k + 1])
            f = nystrom(W, k + 1, pivots=chosen, core=core, rtol=rtol, oversample=oversample)
            errors[k] = float(relative_error(W, f))
    return errors.to(W.device) if W.device.type != "mps" else errors


def _pinv_squares(W: Tensor, rows: Tensor, cols: Tensor, rtol: float | None) -> tuple[Tensor, Tensor]:
    A = to_float64(take_cols(take_rows(W, rows), cols))
    L, D = eliminate(A)
    if len(L) == 0:  # not even the first pivot
        return W.new_zeros(len(rows), dtype=torch.float64), torch.zeros(len(rows), dtype=torch.bool)
    eye = torch.eye(len(L), dtype=A.dtype, device=A.device)
    L_inverse = torch.linalg.solve_triangular(L, eye, upper=False, unitriangular=True)
    D_inverse = torch.linalg.solve_triangular(D, eye, upper=True)
    done = len(L)
    B_of, F = take_cols(W, cols[:done]), L_inverse @ to_float64(take_rows(W, rows[:done]))
    total, cross, left_gram = _panel_sums(W, B_of, D_inverse, F)
    squares, peak = _partial_sums(total, cross, left_gram * (F @ F.T))
    # ‖A_k⁻¹‖² from the same nested factors: A_k⁻¹ = D_k⁻¹ L_k⁻¹
    inverse = _corner_sums((D_inverse.T @ D_inverse) * (L_inverse @ L_inverse.T))
    # ‖A_k‖ is at most that of the block around it, and a far better bound than its Frobenius norm
    largest = torch.linalg.eigvalsh(A[:done, :done].T @ A[:done, :done])[-1]
    cut = torch.finfo(W.dtype).eps * torch.arange(1, done + 1, device=A.device) if rtol is None else rtol
    regular = (largest * inverse).clamp(min=0).sqrt() * cut < 1
    for k in (~regular).nonzero().flatten().tolist():  # the bound is a bound: the block's own values decide
        values = torch.linalg.svdvals(A[: k + 1, : k + 1])
        regular[k] = values[-1] > torch.as_tensor(cut, device=A.device).expand(done)[k] * values[0]
    trusted = regular.to(squares.device) & (squares > KEPT_DIGITS * peak)
    return _padded(squares / total, len(rows)), _padded(trusted, len(rows))


def _optimal_squares(W: Tensor, rows: Tensor, cols: Tensor, rtol: float | None) -> tuple[Tensor, Tensor]:
    """``‖W − P_C W P_R‖² = ‖W‖² − ‖P_C W P_R‖²``: nested orthonormal bases of C and R."""
    Qc, Tc = torch.linalg.qr(to_float64(take_cols(W, cols)))
    Qr, Tr = torch.linalg.qr(to_float64(take_rows(W, rows)).mT)
    total, middle = W.new_zeros((), dtype=torch.float64), Qc.new_zeros(Qc.shape[1], Qr.shape[1])
    for start in range(0, W.shape[0], PANEL):
        wide = to_float64(W[start : start + PANEL])
        total = total + wide.square().sum()
        middle += Qc[start : start + PANEL].T @ (wide @ Qr)
    squares = total - _corner_sums(middle.square())
    cut = torch.finfo(W.dtype).eps * max(W.shape) if rtol is None else rtol
    regular = _well_conditioned(Tc, cut) & _well_conditioned(Tr, cut)
    return squares / total, regular & (squares > KEPT_DIGITS * total)


def _block_squares(W: Tensor, rows: Tensor, cols: Tensor, rtol: float | None) -> tuple[Tensor, Tensor]:
    """Core A itself: ``‖W‖² − 2 ⟨A, CᵀW Rᵀ⟩ + tr(Aᵀ G A H)`` on leading blocks."""
    C, R = take_cols(W, cols), take_rows(W, rows)
    A = to_float64(take_cols(R, cols))
    eye = torch.eye(len(A), dtype=A.dtype, device=A.device)
    total, product, G = _panel_sums(W, C, eye, to_float64(R), diagonal=False)
    H = to_float64(R) @ to_float64(R).T
    linear = _corner_sums(A * product)
    quadratic = torch.stack([((G[:k, :k] @ A[:k, :k]) * (A[:k, :k] @ H[:k, :k])).sum() for k in range(1, len(A) + 1)])
    squares = total - 2 * linear + quadratic
    return squares / total, squares > KEPT_DIGITS * torch.maximum(total, quadratic)


_CLOSED_FORMS = {"pinv": _pinv_squares, "optimal": _optimal_squares, "block": _block_squares}


def eliminate(A: Tensor) -> tuple[Tensor, Tensor]:
    """Gaussian elimination without pivoting, ``A = L D``: L unit lower, D upper triangular, (k, k).

    k is the order of ``A`` (R, R), or as far as it goes: it stops before the first pivot that is zero or
    so small that nothing after it could be trusted.
    """
    S = A.clone()
    L, D = torch.eye(len(A), dtype=A.dtype, device=A.device), torch.zeros_like(A)
    smallest = torch.finfo(A.dtype).eps * float(A.abs().max())
    pivots = []
    for k in range(len(A)):
        D[k, k:] = S[k, k:]
        pivots.append(S[k, k])
        L[k + 1 :, k] = S[k + 1 :, k] / S[k, k]
        S[k + 1 :, k + 1 :].addr_(L[k + 1 :, k], S[k, k + 1 :], alpha=-1)
    good = torch.stack(pivots).abs() > smallest  # NaN is not
    k = len(A) if bool(good.all()) else int((~good).nonzero()[0])
    return L[:k, :k], D[:k, :k]


def _panel_sums(
    W: Tensor, C: Tensor, D_inverse: Tensor, F: Tensor, diagonal: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """``‖W‖²``, ``B'ᵀ W Fᵀ`` (its diagonal, unless told otherwise) and ``B'ᵀB'`` with ``B' = C D⁻¹``."""
    total, gram = F.new_zeros(()), F.new_zeros(len(F), len(F))
    product = torch.zeros_like(gram) if not diagonal else F.new_zeros(len(F))
    for start in range(0, W.shape[0], PANEL):
        wide = to_float64(W[start : start + PANEL])
        B = to_float64(C[start : start + PANEL]) @ D_inverse
        total = total + wide.square().sum()
        gram += B.T @ B
        WF = wide @ F.T
        product += (B * WF).sum(0) if diagonal else B.T @ WF
    return total, product, gram


def _corner_sums(M: Tensor) -> Tensor:
    """Sums of the leading 1×1, 2×2, … blocks of ``M`` (R, R): (R,)."""
    return M.cumsum(0).cumsum(1).diagonal()


def _partial_sums(total: Tensor, cross: Tensor, quadratic: Tensor) -> tuple[Tensor, Tensor]:
    """``‖W‖² − 2 Σ cross + Σ quadratic`` for every k, and its largest term so far."""
    both = _corner_sums(quadratic)
    peak = torch.maximum(total, _corner_sums(quadratic.abs()))
    return total - 2 * cross.cumsum(0) + both, peak


def _well_conditioned(T: Tensor, cut: float) -> Tensor:
    """For each leading block of a triangle: whether its pseudo-inverse is its inverse, (R,)."""
    pivots = T.diagonal().abs()
    if not bool((pivots > 0).all()):
        k = int((pivots == 0).nonzero()[0])
        head = _well_conditioned(T[:k, :k], cut) if k else pivots[:0] > 0
        return torch.cat([head, torch.zeros(len(T) - k, dtype=torch.bool, device=T.device)])
    eye = torch.eye(len(T), dtype=T.dtype, device=T.device)
    inverse = torch.linalg.solve_triangular(T, eye, upper=True)
    return (_corner_sums(T.square()) * _corner_sums(inverse.square())).sqrt() * cut < 1


def _padded(t: Tensor, size: int) -> Tensor:
    return torch.cat([t, torch.zeros(size - len(t), dtype=t.dtype, device=t.device)])
