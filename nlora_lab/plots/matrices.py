"""A matrix, its approximation and the residual as heat maps, with the error at every rank and the spectrum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nlora_lab.plots.approximations import ErrorLine, error_panel, spectrum_panel
from nlora_lab.plots.drawings import Described
from nlora_lab.plots.figure import Axis, Figure, Heatmap, Line, Panel

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

LEVELS = 100  # a heat map's colours, on either side of zero
LIMIT = 64  # rows and columns a heat map shows at most


def thumbnail(X: Tensor, limit: int = LIMIT) -> Tensor:
    """Shrink ``X`` (m, n) to at most ``limit`` rows and columns; each cell is the largest entry of its block.

    Largest by absolute value and with its sign: a mean would make every large matrix look like zero.
    """
    for dim in (0, 1):
        size = X.shape[dim]
        width = -(-size // limit)
        if width == 1:
            continue
        X = X.movedim(dim, 0)
        lack = -size % width
        if lack:  # repeat the last row: it adds no entry of its own
            X = torch.cat([X, X[-1:].expand(lack, -1)])
        blocks = X.reshape(-1, width, X.shape[1])
        at = blocks.abs().argmax(dim=1, keepdim=True)
        X = blocks.gather(1, at).squeeze(1).movedim(0, dim)
    return X


def levels(X: Tensor, scale: float) -> npt.NDArray[np.int8]:
    """Round ``X`` (m, n) to steps from −LEVELS to LEVELS; ``scale`` and everything above it are the last step."""
    steps = (X / scale).nan_to_num(0).clamp(-1, 1) * LEVELS
    result: npt.NDArray[np.int8] = steps.round().to("cpu", torch.int8).numpy()
    return result


@dataclass(frozen=True)
class NystromDrawing(Described):
    """The figure of ``NystromLab`` and ``SvdLab``.

    Attributes:
        matrices: W, its approximation and the residual, (rows, columns) each, at most ``LIMIT`` or so of both.
        scale: the absolute value at which the colours of all three end.
        lines: the errors at every rank.
        sigma: the singular values of W.
        rank: the rank of the approximation.
        shape: the rows and columns of W itself.
        error: the relative error of the approximation.
        grey: whether W is a picture, with grey values from 0 to 1.
    """

    matrices: tuple[Tensor, Tensor, Tensor]
    scale: float
    lines: Sequence[ErrorLine]
    sigma: Sequence[float]
    rank: int
    shape: tuple[int, int]
    error: float
    grey: bool = False

    def figure(self) -> Figure:
        """Return the description that both renderers draw."""
        m, n = self.shape
        headings = f"W, {m} × {n}", f"approximation, rank {self.rank}", f"what is left: {self.error:.3g} of ‖W‖"
        maps = [self._map(i, heading) for i, heading in enumerate(headings)]
        errors = error_panel(self.lines, self.rank, 1.3, "error at every rank", (0, 0.6), (0, 0.4))
        sigma = Line(range(1, len(self.sigma) + 1), self.sigma, hover="σ<sub>%{x}</sub> = %{y:.3g}")
        spectrum = spectrum_panel([sigma], "singular values of W", (0.69, 1), (0, 0.4), self.rank)
        return Figure([*maps, errors, spectrum], dpi=110)

    def _map(self, i: int, heading: str) -> Panel:
        matrix, grey = self.matrices[i], self.grey and i < 2
        scale = 0.5 if self.grey else self.scale  # the residual of a picture is small: half of its range is full colour
        colours = levels(2 * matrix - 1, 1.0) if grey else levels(matrix, scale)
        m, n = colours.shape
        cells = Heatmap(colours, (-LEVELS, LEVELS), "gray" if grey else "RdBu_r")
        columns, rows = (Axis(limits=ends, ticks={}, grid=False) for ends in ((-0.5, n - 0.5), (m - 0.5, -0.5)))
        return Panel(columns, rows, [cells], heading=heading, across=(0.345 * i, 0.345 * i + 0.31), up=(0.49, 1))
