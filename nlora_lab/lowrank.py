r"""Low-rank approximation of a weight matrix: the Nyström (cross) family and its error.

Write ``W`` with the ``r × r`` block ``A_r`` on chosen rows ``I`` and columns ``J``. The cross
approximation, Nyström's idea for a rectangular matrix, is

.. math:: W \approx W[:, J]\; U\; W[I, :], \qquad U = A_r^{+},

exact if and only if ``rank(A_r) = rank(W)``. The *optimal* core for the same rows and columns is
``U = C⁺ W R⁺`` (Stewart 1999). The NLoRA authors' released code uses ``U = A_r`` itself ("block"),
which is not an approximation of ``W``: it scales as ``W`` cubed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nlora_lab.errors import InputError, one_of

Core = Literal["pinv", "optimal", "block"]
CORES: tuple[Core, ...] = ("pinv", "optimal", "block")
NORMS = ("frobenius", "spectral")
Pivots = Literal["leading"] | tuple[Tensor, Tensor]


@dataclass(frozen=True)
class LowRank:
    """``left @ core @ right``: (m, r) · (r, q) · (q, n), with the rows and columns it was built on.

    ``left`` is ``W[:, cols]`` and ``right`` is ``W[rows, :]`` for the cross family; ``rows`` and
    ``cols`` are int64 index vectors.
    """

    left: Tensor
    core: Tensor
    right: Tensor
    rows: Tensor
    cols: Tensor

    def product(self) -> Tensor:
        """The approximation as a dense (m, n) matrix, in the factors' dtype."""
        return self.left @ (self.core @ self.right)

    def residual(self, W: Tensor) -> Tensor:
        """``W - product()``, dense (m, n), in the factors' dtype."""
        return W.to(self.left.dtype) - self.product()


def check_matrix(W: Tensor, what: str = "W") -> Tensor:
    """``W`` in float32 or better, or :class:`InputError` naming what is wrong with it."""
    if not isinstance(W, Tensor) or W.ndim != 2:
        shape = tuple(W.shape) if isinstance(W, Tensor) else type(W).__name__
        raise InputError(f"{what} must be a 2-D tensor, not {shape}; reshape it to (out, in) first")
    if W.layout != torch.strided or not W.is_floating_point():
        raise InputError(f"{what} must be dense and real floating point, not {W.dtype} {W.layout}; convert it first")
    if 0 in W.shape:
        raise InputError(f"{what} of shape {tuple(W.shape)} is empty")
    work = W.detach().to(torch.promote_types(W.dtype, torch.float32))
    if not bool(torch.isfinite(work).all()):
        raise InputError(f"{what} holds NaN or infinity; clean it before approximating it")
    return work


def check_rank(rank: int, shape: tuple[int, ...]) -> int:
    """``rank`` if it is a whole number from 1 to ``min(shape)``, else :class:`InputError`."""
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= min(shape):
        raise InputError(f"rank={rank!r} must be a whole number from 1 to min{tuple(shape)} = {min(shape)}")
    return rank


def nystrom(
    W: Tensor, rank: int, *, pivots: Pivots = "leading", core: Core = "pinv", rtol: float | None = None
) -> LowRank:
    """The rank-``rank`` cross approximation of ``W`` (m, n).

    ``pivots``: "leading" (the first ``rank`` rows and columns, as in the NLoRA paper) or a pair of
    int64 index vectors ``(rows, cols)``. ``core``: "pinv" (``A_r⁺``), "optimal" (``C⁺ W R⁺``) or
    "block" (``A_r`` itself, as the paper's authors released). ``rtol``: singular values of ``A_r``
    below ``rtol · σ₁`` count as zero in the pseudo-inverse (default: torch's, ``eps · max(m, n)``).

    Computed in float32 or better, whatever the dtype of ``W``; the factors come back in that dtype.
    Raises :class:`InputError` for a matrix, rank, pivots or core that cannot be used.
    """
    work = check_matrix(W)
    check_rank(rank, tuple(work.shape))
    one_of("core", core, CORES)
    if rtol is not None and not 0 <= rtol < 1:
        raise InputError(f"rtol={rtol!r} must be at least 0 and below 1; None takes eps · max(m, n)")
    rows, cols = _pivots(pivots, rank, work)
    left, right = work[:, cols], work[rows, :]  # (m, r), (r, n)
    block = work[rows][:, cols]  # (r, r)
    if core == "block":
        middle = block
    elif core == "pinv":
        middle = torch.linalg.pinv(block, rtol=rtol)
    else:
        middle = torch.linalg.pinv(left, rtol=rtol) @ work @ torch.linalg.pinv(right, rtol=rtol)
    return LowRank(left.contiguous(), middle.contiguous(), right.contiguous(), rows, cols)


def _pivots(pivots: Pivots, rank: int, W: Tensor) -> tuple[Tensor, Tensor]:
    if isinstance(pivots, str):
        one_of("pivots", pivots, ("leading",))
        leading = torch.arange(rank, device=W.device)
        return leading, leading.clone()
    picked = []
    for what, index, size in zip(("rows", "cols"), pivots, W.shape, strict=True):
        vector = torch.as_tensor(index, dtype=torch.int64, device=W.device)
        if vector.shape != (rank,) or len(set(vector.tolist())) != rank or not 0 <= vector.min() <= vector.max() < size:
            raise InputError(f"pivots: {what} must be {rank} different indices from 0 to {size - 1}, not {index!r}")
        picked.append(vector)
    return picked[0], picked[1]


def relative_error(W: Tensor, f: LowRank, norm: Literal["frobenius", "spectral"] = "frobenius") -> float:
    """``‖W − product‖ / ‖W‖`` in the Frobenius or the spectral norm; 0 is exact, 1 as bad as zero."""
    one_of("norm", norm, NORMS)
    work = check_matrix(W)
    order = "fro" if norm == "frobenius" else 2
    size = torch.linalg.matrix_norm(work, ord=order)
    if size == 0:
        raise InputError("W is the zero matrix, so a relative error has no meaning")
    return float(torch.linalg.matrix_norm(f.residual(work), ord=order) / size)
