"""``LowRank``, the result of every approximation, and its distance from the matrix."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from nlora_lab.core.array_types import Float, Int64
from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice
from nlora_lab.lowrank.checks import check_matrix, check_matrix_form, check_nonzero, rescaled

NORMS = ("frobenius", "spectral")
PANEL = 4096  # rows in float64 at a time


def _no_indices() -> Int64[Tensor, "0"]:
    return torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class LowRank:
    """An approximation in three factors: ``left @ core @ right``.

    The rank is r. The middle size q equals r, unless ``nystrom`` took more rows than columns.

    Attributes:
        left: (..., m, r), float32 or float64. For ``nystrom`` it is ``W[:, cols]``, unless it was balanced.
        core: (..., r, q), in the dtype of ``left``.
        right: (..., q, n), in the dtype of ``left``. For ``nystrom`` it is ``W[rows, :]``, unless it was balanced.
        rows: the chosen rows, int64: (q,), or (..., q) where each matrix of a batch has its own. Empty for the kinds
            that choose none.
        cols: the chosen columns, int64: (r,) or (..., r). Empty for the kinds that choose none.
        interpolates: whether the chosen rows and columns are reproduced exactly, up to rounding. The residual is then a
            Schur complement.
    """

    left: Float[Tensor, "*batch m r"]
    core: Float[Tensor, "*batch r q"]
    right: Float[Tensor, "*batch q n"]
    rows: Int64[Tensor, "..."] = field(default_factory=_no_indices)
    cols: Int64[Tensor, "..."] = field(default_factory=_no_indices)
    interpolates: bool = False

    @property
    def rank(self) -> int:
        """The rank r, which is the number of columns of ``left``."""
        return self.left.shape[-1]

    def product(self) -> Float[Tensor, "*batch m n"]:
        """Multiply the factors.

        Returns:
            The approximation as a dense matrix, (..., m, n), in the dtype of the factors.
        """
        return self.left @ (self.core @ self.right)

    def residual(self, W: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch m n"]:
        """Subtract the approximation from ``W``.

        Where the chosen rows and columns are reproduced exactly, the residual is zero on them. Only the Schur
        complement on the other rows and columns is then computed. This takes (m − r)(n − r) r multiply-adds instead of
        m n r.

        Args:
            W: the matrix, (..., m, n), any floating dtype.

        Returns:
            ``W - product()``, dense, (..., m, n), in the dtype of the factors.

        Raises:
            InputError: ``W`` is not a floating-point matrix of the shape of the approximation.
        """
        shape = (*self.left.shape[:-1], self.right.shape[-1])
        if isinstance(W, Tensor) and tuple(W.shape) != shape:
            raise InputError(f"W is {tuple(W.shape)} and the approximation {shape}; give the matrix it was built from")
        work = check_matrix_form(W).to(self.left.dtype)
        if self.interpolates and work.ndim == 2 and self._was_built_from(work):
            return self._schur_complement(work)
        if work.ndim == 2:
            return torch.addmm(work, self.left, self.core @ self.right, alpha=-1)
        return work - self.product()

    def _was_built_from(self, W: Float[Tensor, "m n"]) -> bool:
        if is_leading(self.rows) and is_leading(self.cols):  # slices: nothing is copied
            return torch.equal(W[: self.rank], self.right) and torch.equal(W[:, : self.rank], self.left)
        return torch.equal(W[self.rows], self.right) and torch.equal(W[:, self.cols], self.left)

    def _schur_complement(self, W: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
        """The residual of an interpolating approximation: the Schur complement, and zero on the chosen lines."""
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


def is_leading(index: Int64[Tensor, "... r"]) -> bool:
    """Return whether ``index`` is 0, 1, 2, …; indices (..., r) of a batch, one vector per matrix, never are."""
    return index.ndim == 1 and torch.equal(index, torch.arange(len(index), device=index.device))


def relative_error(
    W: Float[Tensor, "*batch m n"], f: LowRank, norm: Literal["frobenius", "spectral"] = "frobenius"
) -> float | Float[Tensor, "*batch"]:
    """Measure how far an approximation is from ``W``: ``‖W − product‖ / ‖W‖``.

    0 means exact, and 1 means as bad as approximating ``W`` by zero.

    Args:
        W: the matrix, (..., m, n), any floating dtype.
        f: the approximation, for example of ``nystrom`` or ``truncated_svd``.
        norm: "frobenius" or "spectral".

    Returns:
        A float for one matrix. For a batch, a tensor of the batch dimensions: float64 for the Frobenius norm (float32
        on MPS), the dtype of ``W`` (at least float32) for the spectral norm.

    Raises:
        InputError: ``W`` is not a finite matrix of the shape of the approximation, or is zero; ``f`` is not a
            ``LowRank``, or its product is not finite; or ``norm`` is not known.
    """
    check_choice("norm", norm, NORMS)
    if not isinstance(f, LowRank):
        raise InputError(f"f={f!r} must be a LowRank, such as nystrom and truncated_svd return")
    work = check_matrix(W)
    tame, scale = rescaled(work)
    size = _norm(tame, norm)
    check_nonzero(size)
    # at the ends of the range the difference itself may not fit, although its size beside W does
    rest = f.residual(work) if scale == 1 else replace(f, left=f.left * scale, interpolates=False).residual(tame)
    distance = _norm(rest, "frobenius")
    if not bool(torch.isfinite(distance).all()):
        raise InputError(f"the approximation does not fit into {rest.dtype}; scale W, or give it in float64")
    error = (distance if norm == "frobenius" else _norm(rest, norm)) / size
    return float(error) if error.ndim == 0 else error


def _norm(X: Float[Tensor, "*batch m n"], norm: str) -> Float[Tensor, "*batch"]:
    if norm == "spectral":
        largest: Tensor = torch.linalg.matrix_norm(X, ord=2)
        return largest
    # squares of float32 overflow from 2e19 on, so they are summed in float64, which MPS does not have
    wide = torch.float64 if X.device.type != "mps" else None
    # panel by panel: torch would turn all of X into float64, which is two more matrices of its size
    panels = torch.split(X, PANEL, dim=-2)
    sizes = torch.stack([torch.linalg.vector_norm(panel, dim=(-2, -1), dtype=wide) for panel in panels])
    return sizes[0] if len(panels) == 1 else torch.linalg.vector_norm(sizes, dim=0)
