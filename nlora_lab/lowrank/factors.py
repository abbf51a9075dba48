"""``LowRank``, what every approximation returns, and how far it is from the matrix."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice
from nlora_lab.lowrank.checks import check_kind, check_matrix, rescaled

NORMS = ("frobenius", "spectral")


def _no_index() -> Tensor:
    return torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class LowRank:
    """``left @ core @ right``: (…, m, r) · (…, r, q) · (…, q, n), q = r unless rows were oversampled.

    For the cross family ``left`` is ``W[:, cols]`` and ``right`` is ``W[rows, :]`` (unless balanced),
    with ``rows`` (…, q) and ``cols`` (…, r) int64; they are empty for the other kinds.
    ``interpolates`` says that the chosen rows and columns are reproduced exactly, so that the residual
    is a Schur complement.
    """

    left: Tensor
    core: Tensor
    right: Tensor
    rows: Tensor = field(default_factory=_no_index)
    cols: Tensor = field(default_factory=_no_index)
    interpolates: bool = False

    @property
    def rank(self) -> int:
        """The number of columns of ``left``."""
        return self.left.shape[-1]

    def product(self) -> Tensor:
        """The approximation as a dense (…, m, n) matrix, in the factors' dtype."""
        return self.left @ (self.core @ self.right)

    def residual(self, W: Tensor) -> Tensor:
        """``W - product()``, dense (…, m, n), in the factors' dtype.

        Where the chosen rows and columns are reproduced, only the Schur complement on the others is
        computed: (m − r)(n − r) r multiply-adds instead of m n r. Raises :class:`InputError` if
        ``W`` is not of the approximation's shape.
        """
        shape = (*self.left.shape[:-1], self.right.shape[-1])
        if isinstance(W, Tensor) and tuple(W.shape) != shape:
            raise InputError(f"W is {tuple(W.shape)} and the approximation {shape}; give the matrix it was built from")
        work = check_kind(W).to(self.left.dtype)
        if self.interpolates and work.ndim == 2 and self._was_built_from(work):
            return self._schur(work)
        if work.ndim == 2:
            return torch.addmm(work, self.left, self.core @ self.right, alpha=-1)
        return work - self.product()

    def _was_built_from(self, W: Tensor) -> bool:
        if is_leading(self.rows) and is_leading(self.cols):  # slices: nothing is copied
            return torch.equal(W[: self.rank], self.right) and torch.equal(W[:, : self.rank], self.left)
        return torch.equal(W[self.rows], self.right) and torch.equal(W[:, self.cols], self.left)

    def _schur(self, W: Tensor) -> Tensor:
        r = self.rank
        if is_leading(self.rows) and is_leading(self.cols):
            out = torch.empty_like(W, memory_format=torch.contiguous_format)
            out[:r] = 0
            out[r:, :r] = 0
            torch.addmm(W[r:, r:], self.left[r:], self.core @ self.right[:, r:], alpha=-1, out=out[r:, r:])
            return out
        out = torch.addmm(W, self.left, self.core @ self.right, alpha=-1)
        out[self.rows] = 0
        out[:, self.cols] = 0
        return out


def is_leading(index: Tensor) -> bool:
    """Whether an index vector is 0, 1, 2, …; one of each matrix of a batch (…, r) never is."""
    return index.ndim == 1 and torch.equal(index, torch.arange(len(index), device=index.device))


def relative_error(W: Tensor, f: LowRank, norm: Literal["frobenius", "spectral"] = "frobenius") -> float | Tensor:
    """``‖W − product‖ / ‖W‖`` in the Frobenius or the spectral norm; 0 is exact, 1 as bad as zero.

    A float for one matrix, a tensor of the batch's shape for a batch. Raises :class:`InputError` for a
    zero matrix, of which a relative error has no meaning.
    """
    check_choice("norm", norm, NORMS)
    if not isinstance(f, LowRank):
        raise InputError(f"f={f!r} must be a LowRank, what nystrom and its kin return")
    work = check_matrix(W)
    tame, scale = rescaled(work)
    size = _norm(tame, norm)
    if not bool((size > 0).all()):
        raise InputError("W is the zero matrix, so a relative error has no meaning")
    left = f.residual(work)
    error = _norm(left if scale == 1 else left * scale, norm) / size
    return float(error) if error.ndim == 0 else error


def _norm(X: Tensor, norm: str) -> Tensor:
    if norm == "spectral":
        largest: Tensor = torch.linalg.matrix_norm(X, ord=2)
        return largest
    # squares of float32 overflow from 2e19 on, so they are summed in float64 (which MPS has not)
    wide = torch.float64 if X.device.type != "mps" else None
    size: Tensor = torch.linalg.vector_norm(X, dim=(-2, -1), dtype=wide)
    return size
