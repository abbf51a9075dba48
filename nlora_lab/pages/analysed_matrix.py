"""A matrix with the results that the labs show: spectrum, errors at every rank, approximations, and the figure."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nlora_lab.core.errors import InputError
from nlora_lab.lowrank.checks import IllConditionedWarning, check_matrix
from nlora_lab.lowrank.cross import nystrom
from nlora_lab.lowrank.curves import error_curve
from nlora_lab.lowrank.factors import LowRank
from nlora_lab.lowrank.matrices import with_spectrum
from nlora_lab.lowrank.svd import singular_values
from nlora_lab.models.names import EMBEDDED
from nlora_lab.models.weights import list_weights
from nlora_lab.pages.matrices import PAGE_ENTRIES
from nlora_lab.plots.approximations import APPROXIMATIONS, ErrorLine, line_of
from nlora_lab.plots.matrices import NystromDrawing, thumbnail

MAX_RANK = 96
SIZE = 128  # rows and columns of the generated matrices
EXACT_RANK = 12


@dataclass
class AnalysedMatrix:
    """A matrix, with the results that are computed once.

    The options of the methods are those of ``nl.nystrom``, without ``generator``: random pivots are those of seed 0.

    Attributes:
        W: the matrix, (m, n).
        max_rank: the largest rank of the slider.
        thumb: the matrix as a small image.
        scale: the size of an entry that an image shows in full colour.
        sigma: the singular values.
        best: the relative errors of the best approximations of rank 1 to ``max_rank``.
    """

    W: Tensor
    max_rank: int = field(init=False)
    thumb: Tensor = field(init=False)
    scale: float = field(init=False)
    sigma: list[float] = field(init=False)
    best: list[float] = field(init=False)
    _curves: dict[Any, list[float]] = field(default_factory=dict)
    _latest: tuple[Any, LowRank] | None = None

    def __post_init__(self) -> None:
        self.max_rank = max(1, min(MAX_RANK, 3 * min(self.W.shape) // 4))
        self.thumb = thumbnail(self.W)
        self.scale = float(self.thumb.abs().flatten().quantile(0.98)) or float(self.thumb.abs().max())
        self.sigma = singular_values(self.W).tolist()
        self.best = error_curve(self.W, self.max_rank, "svd").tolist()

    def curve(self, options: dict[str, Any]) -> list[float]:
        """Return the relative errors of the Nyström approximations of rank 1 to ``max_rank``."""
        key = tuple(options.items())
        if key not in self._curves:
            errors = error_curve(self.W, self.max_rank, generator=torch.Generator().manual_seed(0), **options)
            self._curves[key] = errors.tolist()
        return self._curves[key]

    def approximation(self, rank: int, options: dict[str, Any]) -> LowRank:
        """Return the Nyström approximation of a rank. The latest one is kept."""
        key = rank, tuple(options.items())
        if self._latest is None or self._latest[0] != key:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", IllConditionedWarning)  # the lab shows the condition number
                f = nystrom(self.W, rank, generator=torch.Generator().manual_seed(0), **options)
            self._latest = key, f
        return self._latest[1]

    def condition(self, rank: int, options: dict[str, Any]) -> float:
        """Return the condition number of the block of W on the rows and columns of the approximation."""
        f = self.approximation(rank, options)
        s = torch.linalg.svdvals(self.W[f.rows][:, f.cols].double())
        return float(s[0] / s[-1]) if s[-1] > 0 else math.inf

    def drawing(self, rank: int, options: dict[str, Any]) -> NystromDrawing:
        """Return the figure of the approximation of a rank."""
        errors = self.curve(options)
        lines = [line_of("svd", self.best, 1.5)]
        if options["core"] != "optimal":
            lines.append(line_of("optimal", self.curve({**options, "core": "optimal"}), 1.5))
        label = f"{options['pivots']}, {options['core']}"
        lines.append(ErrorLine(label, APPROXIMATIONS["nystrom"].colour, "solid", errors, 3.0))
        residual = self.approximation(rank, options).residual(self.W)
        images = self.thumb, thumbnail(self.W - residual), thumbnail(residual)
        m, n = self.W.shape
        return NystromDrawing(images, self.scale, lines, self.sigma, rank, (m, n), errors[rank - 1])

    def entry(self) -> dict[str, Any]:
        """Return the matrix as ``static/nystrom_controls.js`` reads it.

        Its "random" are the rows and columns that ``pivots="random"`` draws from seed 0. The numbers "W" are left out
        of a matrix that is too large for a page, which the kernel has to compute.
        """
        generator = torch.Generator().manual_seed(0)
        entry = {
            "m": self.W.shape[0],
            "n": self.W.shape[1],
            "max_rank": self.max_rank,
            "eps": torch.finfo(self.W.dtype).eps,
            "sigma": self.sigma,
            "best": self.best,
            "random": [torch.randperm(size, generator=generator).tolist() for size in self.W.shape],
        }
        in_page = self.W.numel() <= PAGE_ENTRIES
        return {**entry, "W": self.W.cpu().contiguous().numpy().tobytes()} if in_page else entry


def named_matrix(name: str, p: float = 1.0) -> Tensor:
    """Make or read a matrix.

    Args:
        name: "gaussian", "power", "exact", or the name of a weight of the embedded model.
        p: the exponent of "power": its singular values are k^-p.

    Returns:
        The matrix, float32.
    """
    if name == "gaussian":
        return gaussian(SIZE, SIZE, 0)
    if name == "power":
        return with_spectrum(torch.arange(1, SIZE + 1, dtype=torch.float32) ** -p)
    if name == "exact":
        return gaussian(SIZE, EXACT_RANK, 0) @ gaussian(EXACT_RANK, SIZE, 1)
    return check_matrix(next(w for w in list_weights(EMBEDDED) if w.name == name).read())


def gaussian(m: int, n: int, seed: int) -> Tensor:
    """Draw independent standard normal entries, (m, n) in float32, from a seed."""
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


def check_one_matrix(W: Tensor) -> Tensor:
    """Return ``W`` in float32 or better, or raise ``InputError`` unless it is one matrix that is not zero."""
    work = check_matrix(W)
    if work.ndim != 2:
        raise InputError(f"W of shape {tuple(work.shape)} must be one matrix, with rows and columns")
    if not bool(work.any()):
        raise InputError("W must not be zero: a relative error needs something to compare with")
    return work
