r"""The error of an approximation at every rank at once.

With nested pivots the blocks ``A_1 ⊂ A_2 ⊂ …`` are the leading blocks of one matrix ``A = L U``. The elimination needs
no pivoting, because the pivoting is in the order. (Here U is the upper factor of LU, not that of an SVD.) The
approximation of rank k is then

.. math:: W_k = \sum_{j \le k} b_j f_j^T, \qquad B' = C U^{-1},\; F' = L^{-1} R,

the first k terms of one sum. So ``‖W − W_k‖² = ‖W‖² − 2 Σ_j b_jᵀ W f_j + Σ_ij (B'ᵀB')∘(F'F'ᵀ)`` needs three small Gram
matrices and no product of the size of W. Every sum is taken in float64, panel by panel. Ranks at which that sum has
lost its digits, or whose block is singular, are computed one by one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from nlora_lab.core.array_types import Bool, Float, Float64, Int64
from nlora_lab.core.validation import check_choice
from nlora_lab.lowrank.checks import (
    IllConditionedWarning,
    check_matrix,
    check_nonzero,
    check_rank,
    rescaled,
    to_float64,
)
from nlora_lab.lowrank.cross import check_cross_options, nystrom, take_cols, take_rows
from nlora_lab.lowrank.factors import relative_error
from nlora_lab.lowrank.pivots import Pivots, extra_rows, resolve_pivots
from nlora_lab.lowrank.rules import Core
from nlora_lab.lowrank.svd import singular_values, truncation_errors

PANEL = 512  # rows in float64 at a time
WIDE = 8192  # columns up to which they are that many
RELIABLE = 1e-9  # of the largest term: below this, a squared error is rounding noise
Squares = tuple[Float64[Tensor, " r"], Bool[Tensor, " r"]]
"""The squared relative error at rank 1 … r, and at which ranks it can be trusted."""


def error_curve(
    W: Float[Tensor, "*batch m n"],
    max_rank: int,
    kind: Literal["nystrom", "svd"] = "nystrom",
    *,
    pivots: Pivots = "leading",
    core: Core = "pinv",
    rtol: float | None = None,
    oversample: int = 0,
    generator: torch.Generator | None = None,
) -> Float64[Tensor, "*batch r"]:
    """Compute the relative Frobenius error of an approximation at every rank from 1 to ``max_rank``.

    Entry ``[r - 1]`` equals ``relative_error(W, nystrom(W, r, …))`` up to the rounding of nystrom's factors. For
    ``kind="svd"`` it is the error of ``truncated_svd``. One elimination serves all ranks. Only ranks with a numerically
    singular block are computed one by one, and those of ``oversample > 0``, whose blocks are not nested.

    Args:
        W: the matrix, (..., m, n), any floating dtype. It must not be zero.
        max_rank: the largest rank, from 1 to min(m, n).
        kind: "nystrom" or "svd". "svd" uses none of the options below.
        pivots: as for ``nystrom``. Of an explicit pair, rank r uses the first r + oversample rows and the first r
            columns.
        core: as for ``nystrom``.
        rtol: as for ``nystrom``. A singular block gives no warning.
        oversample: as for ``nystrom``, from 0 to m − max_rank.
        generator: as for ``nystrom``.

    Returns:
        The errors, (..., max_rank), float64 (float32 for "svd" on Apple's MPS). 0 means exact, and 1 as bad as
        approximating ``W`` by zero.

    Raises:
        InputError: ``W`` is not a finite matrix or is zero, or an option is out of range.
        SingularBlockError: the pseudo-inverse of a block does not fit into the dtype.
    """
    work = check_matrix(W)
    check_choice("kind", kind, ("nystrom", "svd"))
    max_rank = check_rank(max_rank, tuple(work.shape), "max_rank")
    oversample = check_cross_options(core, rtol, oversample, work.shape[-2] - max_rank, generator)
    if core != "block":  # the error with this core depends on the scale of W
        work, _ = rescaled(work)
    check_nonzero(torch.linalg.vector_norm(work, ord=torch.inf, dim=(-2, -1)))  # nothing of W's size is made
    if kind == "svd":
        return _svd_curve(work, max_rank)
    # with "cross" and "qr", the extra rows differ from rank to rank, and each rank looks them up later
    shared_rows = 0 if isinstance(pivots, str) and pivots in ("cross", "qr") else oversample
    order = resolve_pivots(work, max_rank, pivots, shared_rows, generator)
    if work.ndim == 2:
        return _nystrom_curve(work, *order, core, rtol, oversample)
    flat = work.reshape(-1, *work.shape[-2:])
    rows, cols = (i.expand(*work.shape[:-2], i.shape[-1]).reshape(len(flat), -1) for i in order)
    curves = [_nystrom_curve(flat[b], rows[b], cols[b], core, rtol, oversample) for b in range(len(flat))]
    return torch.stack(curves).reshape(*work.shape[:-2], max_rank)


def _svd_curve(W: Float[Tensor, "*batch m n"], max_rank: int) -> Float[Tensor, "*batch r"]:
    """The errors of the truncated SVD. Where little is left, the dense SVD: the Gram matrix would only show noise."""
    dtype = torch.float64 if W.device.type != "mps" else W.dtype
    sigma = singular_values(W).to(dtype)
    squares = sigma.square()
    if bool((squares[..., min(max_rank, squares.shape[-1] - 1) :].sum(-1) < 1e-12 * squares.sum(-1)).any()):
        sigma = singular_values(W, accurate=True).to(dtype)
    return truncation_errors(sigma, max_rank)


def _nystrom_curve(
    W: Float[Tensor, "m n"],
    rows: Int64[Tensor, " q"],
    cols: Int64[Tensor, " r"],
    core: Core,
    rtol: float | None,
    oversample: int,
) -> Float64[Tensor, " r"]:
    """The curve of one matrix: the closed form at each rank where it can be trusted, ``nystrom`` itself elsewhere."""
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
            # a curve visits every block: a singular one is a point of it, and not a mistake
            warnings.simplefilter("ignore", IllConditionedWarning)
            first = rows[: k + 1 + oversample] if extra is None else torch.cat([rows[: k + 1], extra[k]])
            chosen = (first, cols[: k + 1])
            f = nystrom(W, k + 1, pivots=chosen, core=core, rtol=rtol, oversample=oversample)
            errors[k] = float(relative_error(W, f))
    return errors.to(W.device) if W.device.type != "mps" else errors


def _pinv_squares(
    W: Float[Tensor, "m n"], rows: Int64[Tensor, " r"], cols: Int64[Tensor, " r"], rtol: float | None
) -> Squares:
    """The core ``A⁺``: the sum in the docstring of this module."""
    A = to_float64(take_cols(take_rows(W, rows), cols))
    L, U = lu_without_pivoting(A)
    if len(L) == 0:  # the first pivot is already zero
        return W.new_zeros(len(rows), dtype=torch.float64), torch.zeros(len(rows), dtype=torch.bool)
    eye = torch.eye(len(L), dtype=A.dtype, device=A.device)
    L_inverse = torch.linalg.solve_triangular(L, eye, upper=False, unitriangular=True)
    U_inverse = torch.linalg.solve_triangular(U, eye, upper=True)
    done = len(L)
    C, F = take_cols(W, cols[:done]), L_inverse @ to_float64(take_rows(W, rows[:done]))
    total, cross, left_gram = _panel_sums(W, C, U_inverse, F)
    squares, peak = _partial_sums(total, cross, left_gram * (F @ F.T))
    # ‖A_k⁻¹‖² from the same nested factors: A_k⁻¹ = U_k⁻¹ L_k⁻¹
    inverse = _corner_sums((U_inverse.T @ U_inverse) * (L_inverse @ L_inverse.T))
    # ‖A_k‖ is at most that of the block around it, and a far better bound than its Frobenius norm
    largest = torch.linalg.eigvalsh(A[:done, :done].T @ A[:done, :done])[-1]
    cut = torch.finfo(W.dtype).eps * torch.arange(1, done + 1, device=A.device) if rtol is None else rtol
    regular = (largest * inverse).clamp(min=0).sqrt() * cut < 1
    for k in (~regular).nonzero().flatten().tolist():  # the bound may be too large: the singular values decide
        values = torch.linalg.svdvals(A[: k + 1, : k + 1])
        regular[k] = values[-1] > torch.as_tensor(cut, device=A.device).expand(done)[k] * values[0]
    trusted = regular.to(squares.device) & (squares > RELIABLE * peak)
    return _padded(squares / total, len(rows)), _padded(trusted, len(rows))


def _optimal_squares(
    W: Float[Tensor, "m n"], rows: Int64[Tensor, " r"], cols: Int64[Tensor, " r"], rtol: float | None
) -> Squares:
    """The core ``C⁺ W R⁺``: ``‖W − P_C W P_R‖² = ‖W‖² − ‖P_C W P_R‖²`` in nested orthonormal bases of C and R."""
    Qc, Tc = torch.linalg.qr(to_float64(take_cols(W, cols)))
    Qr, Tr = torch.linalg.qr(to_float64(take_rows(W, rows)).mT)
    total, middle = W.new_zeros((), dtype=torch.float64), Qc.new_zeros(Qc.shape[1], Qr.shape[1])
    for panel in _panels(W):
        wide = to_float64(W[panel])
        total = total + wide.square().sum()
        middle += Qc[panel].T @ (wide @ Qr)
    squares = total - _corner_sums(middle.square())
    cut = torch.finfo(W.dtype).eps * max(W.shape) if rtol is None else rtol
    regular = _well_conditioned(Tc, cut) & _well_conditioned(Tr, cut)
    return squares / total, regular & (squares > RELIABLE * total)


def _block_squares(
    W: Float[Tensor, "m n"], rows: Int64[Tensor, " r"], cols: Int64[Tensor, " r"], rtol: float | None
) -> Squares:
    """The core ``A`` itself: ``‖W‖² − 2 ⟨A, CᵀW Rᵀ⟩ + tr(Aᵀ G A H)`` on leading blocks."""
    C, R = take_cols(W, cols), take_rows(W, rows)
    A = to_float64(take_cols(R, cols))
    eye = torch.eye(len(A), dtype=A.dtype, device=A.device)
    total, product, G = _panel_sums(W, C, eye, to_float64(R), diagonal=False)
    H = to_float64(R) @ to_float64(R).T
    linear = _corner_sums(A * product)
    quadratic = torch.stack([((G[:k, :k] @ A[:k, :k]) * (A[:k, :k] @ H[:k, :k])).sum() for k in range(1, len(A) + 1)])
    squares = total - 2 * linear + quadratic
    return squares / total, squares > RELIABLE * torch.maximum(total, quadratic)


_CLOSED_FORMS = {"pinv": _pinv_squares, "optimal": _optimal_squares, "block": _block_squares}


def lu_without_pivoting(A: Float[Tensor, "r r"]) -> tuple[Float[Tensor, "k k"], Float[Tensor, "k k"]]:
    """Factor ``A = L U`` by Gaussian elimination without pivoting.

    The elimination stops before the first pivot that is zero, or so small that nothing after it can be trusted.

    Args:
        A: a square matrix, (r, r).

    Returns:
        L unit lower triangular and U upper triangular, (k, k), in the dtype of ``A``. k is r, or the number of pivots
        before it stopped.
    """
    S = A.clone()
    L, U = torch.eye(len(A), dtype=A.dtype, device=A.device), torch.zeros_like(A)
    smallest = torch.finfo(A.dtype).eps * float(A.abs().max())
    pivots = []
    for k in range(len(A)):
        U[k, k:] = S[k, k:]
        pivots.append(S[k, k])
        L[k + 1 :, k] = S[k + 1 :, k] / S[k, k]
        S[k + 1 :, k + 1 :].addr_(L[k + 1 :, k], S[k, k + 1 :], alpha=-1)
    good = torch.stack(pivots).abs() > smallest  # NaN is not
    k = len(A) if bool(good.all()) else int((~good).nonzero()[0])
    return L[:k, :k], U[:k, :k]


def _panel_sums(
    W: Float[Tensor, "m n"],
    C: Float[Tensor, "m k"],
    U_inverse: Float64[Tensor, "k k"],
    F: Float64[Tensor, "k n"],
    diagonal: bool = True,
) -> tuple[Float64[Tensor, ""], Float64[Tensor, "..."], Float64[Tensor, "k k"]]:
    """``‖W‖²``, ``B'ᵀ W Fᵀ`` and ``B'ᵀB'`` with ``B' = C U⁻¹``; of the second only its diagonal, if ``diagonal``."""
    total, gram = F.new_zeros(()), F.new_zeros(len(F), len(F))
    product = torch.zeros_like(gram) if not diagonal else F.new_zeros(len(F))
    for panel in _panels(W):
        wide = to_float64(W[panel])
        B = to_float64(C[panel]) @ U_inverse
        total = total + wide.square().sum()
        gram += B.T @ B
        WF = wide @ F.T
        product += (B * WF).sum(0) if diagonal else B.T @ WF
    return total, product, gram


def _panels(W: Float[Tensor, "m n"]) -> Iterator[slice]:
    """The rows of a matrix in panels that are small beside it in float64. Only a wide matrix has fewer in each."""
    height = max(1, min(PANEL, PANEL * WIDE // max(1, W.shape[1])))
    return (slice(start, start + height) for start in range(0, W.shape[0], height))


def _corner_sums(M: Float64[Tensor, "k k"]) -> Float64[Tensor, " k"]:
    """The sums of the leading 1×1, 2×2, … blocks of ``M``."""
    return M.cumsum(0).cumsum(1).diagonal()


def _partial_sums(
    total: Float64[Tensor, ""], cross: Float64[Tensor, " k"], quadratic: Float64[Tensor, "k k"]
) -> tuple[Float64[Tensor, " k"], Float64[Tensor, " k"]]:
    """``‖W‖² − 2 Σ cross + Σ quadratic`` for every k, and its largest term so far."""
    both = _corner_sums(quadratic)
    peak = torch.maximum(total, _corner_sums(quadratic.abs()))
    return total - 2 * cross.cumsum(0) + both, peak


def _well_conditioned(T: Float64[Tensor, "k k"], cut: float) -> Bool[Tensor, " k"]:
    """For each leading block of a triangle, whether its pseudo-inverse is its inverse."""
    pivots = T.diagonal().abs()
    if not bool((pivots > 0).all()):
        k = int((pivots == 0).nonzero()[0])
        head = _well_conditioned(T[:k, :k], cut) if k else pivots[:0] > 0
        return torch.cat([head, torch.zeros(len(T) - k, dtype=torch.bool, device=T.device)])
    eye = torch.eye(len(T), dtype=T.dtype, device=T.device)
    inverse = torch.linalg.solve_triangular(T, eye, upper=True)
    return (_corner_sums(T.square()) * _corner_sums(inverse.square())).sqrt() * cut < 1


def _padded(t: Float[Tensor, " k"] | Bool[Tensor, " k"], size: int) -> Float[Tensor, " r"] | Bool[Tensor, " r"]:
    return torch.cat([t, torch.zeros(size - len(t), dtype=t.dtype, device=t.device)])
