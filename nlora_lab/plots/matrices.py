"""A matrix, its approximation and what is left: three heat maps, the error at every rank, the spectrum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nlora_lab.plots.approximations import ErrorLine, draw_errors, error_axes, error_traces
from nlora_lab.plots.style import INK, axis, blank_layout, new_figure, png_bytes, title

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

LEVELS = 100  # a heat map's colours, on either side of zero
LIMIT = 64  # rows and columns a heat map shows at most


def thumbnail(X: Tensor, limit: int = LIMIT) -> Tensor:
    """``X`` (m, n) with at most ``limit`` rows and columns; each cell is the largest entry of its block.

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
    """``X`` in whole steps from −LEVELS to LEVELS, ``scale`` and above being the last."""
    steps = (X / scale).nan_to_num(0).clamp(-1, 1) * LEVELS
    result: npt.NDArray[np.int8] = steps.round().to("cpu", torch.int8).numpy()
    return result


@dataclass(frozen=True)
class NystromDrawing:
    """The figure of :class:`nlora_lab.NystromLab`.

    ``heats`` are W, its approximation and the residual, (rows, columns) each, in one colour scale that
    ends at ``scale``; ``lines`` the errors at every rank; ``sigma`` the singular values of W. ``grey`` says
    that W is a picture, with grey values from 0 to 1.
    """

    heats: tuple[Tensor, Tensor, Tensor]
    scale: float
    lines: Sequence[ErrorLine]
    sigma: Sequence[float]
    rank: int
    shape: tuple[int, int]
    error: float
    grey: bool = False

    def _titles(self) -> tuple[str, str, str]:
        m, n = self.shape
        return f"W, {m} × {n}", f"approximation, rank {self.rank}", f"what is left: {self.error:.3g} of ‖W‖"

    def _levels(self, i: int) -> npt.NDArray[np.int8]:
        if self.grey:  # the residual of a picture is small: half of its range is full colour
            return levels(2 * self.heats[i] - 1, 1.0) if i < 2 else levels(self.heats[i], 0.5)
        return levels(self.heats[i], self.scale)

    def _is_grey(self, i: int) -> bool:
        return self.grey and i < 2

    def plotly(self) -> tuple[list[Any], dict[str, Any]]:
        """Three heat maps above, error against rank and the spectrum below."""
        import plotly.graph_objects as go

        traces: list[Any] = []
        layout = {**blank_layout(520), "margin": {"l": 60, "r": 20, "t": 36, "b": 44}}
        notes: list[dict[str, Any]] = []
        for i, text in enumerate(self._titles(), start=1):
            x, y = f"x{i if i > 1 else ''}", f"y{i if i > 1 else ''}"
            grey = self._is_grey(i - 1)
            look: dict[str, Any] = {"zmin": -LEVELS, "zmax": LEVELS, "showscale": False}
            look |= {"colorscale": "gray" if grey else "RdBu", "reversescale": not grey}
            traces.append(go.Heatmap(z=self._levels(i - 1), xaxis=x, yaxis=y, hoverinfo="skip", **look))
            left = (i - 1) * 0.345
            plain = {"showticklabels": False, "ticks": "", "showgrid": False, "zeroline": False}
            layout[f"xaxis{i if i > 1 else ''}"] = {**plain, "domain": [left, left + 0.31], "anchor": y}
            layout[f"yaxis{i if i > 1 else ''}"] = {
                **plain, "domain": [0.55, 1], "anchor": x, "autorange": "reversed",
            }  # fmt: skip
            notes.append(title(text, x, y))
        drawn, labels = error_traces(self.lines, self.rank, "x4", "y4")
        across, up = error_axes(self.lines, "x4", "y4", room=1.3)
        layout["xaxis4"] = {**across, "domain": [0, 0.6]}
        layout["yaxis4"] = {**up, "domain": [0, 0.4]}
        k = list(range(1, len(self.sigma) + 1))
        place = {"xaxis": "x5", "yaxis": "y5", "mode": "lines", "showlegend": False}
        told = "σ<sub>%{x}</sub> = %{y:.3g}<extra></extra>"
        drawn.append(go.Scatter(x=k, y=self.sigma, line={"color": INK, "width": 2}, hovertemplate=told, **place))
        ends = [min(self.sigma), max(self.sigma)]
        cursor = {"color": INK, "width": 1}
        drawn.append(go.Scatter(x=[self.rank] * 2, y=ends, line=cursor, hoverinfo="skip", **place))
        layout["xaxis5"] = {**axis(), "domain": [0.69, 1], "anchor": "y5", "title": {"text": "k"}}
        layout["yaxis5"] = {**axis(), "domain": [0, 0.4], "anchor": "x5", "rangemode": "tozero", "nticks": 5}
        notes += [title("error at every rank", "x4", "y4"), title("singular values of W", "x5", "y5")]
        return traces + drawn, {**layout, "annotations": notes + labels}

    def png(self) -> bytes:
        """The same with matplotlib."""
        figure = new_figure(9.6, 5.2)
        rows = figure.add_gridspec(2, 1, height_ratios=[1.1, 1])
        tops = rows[0].subgridspec(1, 3)
        for i, text in enumerate(self._titles()):
            axes = figure.add_subplot(tops[i])
            span: dict[str, Any] = {"cmap": "gray" if self._is_grey(i) else "RdBu_r", "vmin": -LEVELS, "vmax": LEVELS}
            axes.imshow(self._levels(i), aspect="auto", interpolation="nearest", **span)
            axes.set(xticks=[], yticks=[])
            axes.set_title(text, loc="left", fontsize=9, color=INK)
        grid = rows[1].subgridspec(1, 2, width_ratios=[2, 1])
        left, right = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
        draw_errors(left, self.lines, self.rank, room=1.3)
        left.set_title("error at every rank", loc="left", fontsize=9, color=INK)
        right.plot(range(1, len(self.sigma) + 1), self.sigma, color=INK, linewidth=1.6)
        right.axvline(self.rank, color=INK, linewidth=0.8)
        right.set(xlabel="k", ylim=(0, None))
        right.set_title("singular values of W", loc="left", fontsize=9, color=INK)
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8)
            axes.grid(alpha=0.25, linewidth=0.6)
        return png_bytes(figure)
