"""Every layer's error in one map, and the spectrum of the one that is chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nlora_lab.plots.approximations import ErrorLine, draw_errors, error_axes, error_traces
from nlora_lab.plots.style import INK, MPL_DASH, axis, blank_layout, new_figure, png_bytes, title

SPAN = 1.5  # the map's colours end at errors of 10^±1.5; 1, as bad as approximating by zero, is white
SPECTRA = {  # what is drawn: hue, dash, width
    "these weights": ("#0072b2", "solid", 2.2),
    "fresh weights": ("#d98c00", "dash", 1.6),
    "noise, in theory": (INK, "dot", 1.6),
}


def error_text(value: float) -> str:
    """Two digits, as a cell of the map has room for: ``0.87``, ``5.0``, ``189``."""
    if math.isnan(value):
        return ""
    return f"{value:.2f}" if value < 0.995 else f"{value:.1f}" if value < 99.5 else f"{value:.0f}"


@dataclass(frozen=True)
class LayersDrawing:
    """The figure of :class:`nlora_lab.SpectrumLab`.

    ``errors[i][j]`` is that of module ``modules[i]`` in layer ``layers[j]`` (NaN where there is none);
    ``chosen`` is such a pair (i, j); ``spectra`` are its singular values by the names of :data:`SPECTRA`, and
    ``lines`` its errors at every rank.
    """

    modules: Sequence[str]
    layers: Sequence[int]
    errors: Sequence[Sequence[float]]
    chosen: tuple[int, int]
    heading: str
    spectra: Mapping[str, Sequence[float]]
    lines: Sequence[ErrorLine]
    rank: int

    @property
    def _name(self) -> str:
        i, j = self.chosen
        return f"layer {self.layers[j]}, {self.modules[i]}"

    def _colours(self) -> list[list[float | None]]:
        def level(e: float) -> float | None:
            return None if math.isnan(e) else max(-SPAN, min(SPAN, math.log10(max(e, 1e-6))))

        return [[level(e) for e in row] for row in self.errors]

    def plotly(self) -> tuple[list[Any], dict[str, Any]]:
        """The map on the left; the chosen layer's spectrum and errors on the right."""
        import plotly.graph_objects as go

        texts = [[error_text(e) for e in row] for row in self.errors]
        names = [str(layer) for layer in self.layers]
        cells = go.Heatmap(
            z=self._colours(), x=names, y=list(self.modules), text=texts,
            texttemplate="%{text}" if len(self.layers) <= 16 else None, zmin=-SPAN, zmax=SPAN, colorscale="RdBu",
            reversescale=True, showscale=False, xgap=2, ygap=2,
            hovertemplate="layer %{x}, %{y}: error %{text}<extra></extra>",
        )  # fmt: skip
        i, j = self.chosen
        grey = {"xref": "x", "yref": "y", "line": {"color": INK, "width": 3}, "fillcolor": "rgba(0,0,0,0)"}
        frame = {"type": "rect", "x0": j - 0.5, "x1": j + 0.5, "y0": i - 0.5, "y1": i + 0.5, **grey}
        traces: list[Any] = [cells]
        common = {"xaxis": "x2", "yaxis": "y2", "mode": "lines"}
        for name, values in self.spectra.items():
            colour, dash, width = SPECTRA[name]
            told = "σ<sub>%{x}</sub> = %{y:.3g}<extra>" + name + "</extra>"
            style = {"color": colour, "dash": dash, "width": width}
            k = list(range(1, len(values) + 1))
            traces.append(go.Scatter(x=k, y=list(values), name=name, line=style, hovertemplate=told, **common))
        drawn, labels = error_traces(self.lines, self.rank, "x3", "y3")
        across, up = error_axes(self.lines, "x3", "y3", room=1.75)
        right = [0.64, 1]
        bare = {"showgrid": False, "zeroline": False, "ticks": "", "linecolor": INK}
        layout = {
            **blank_layout(520),
            "margin": {"l": 20, "r": 20, "t": 36, "b": 44},
            "xaxis": {**bare, "domain": [0, 0.54], "title": {"text": "layer"}, "type": "category", "anchor": "y"},
            "yaxis": {**bare, "type": "category", "autorange": "reversed", "automargin": True, "anchor": "x"},
            "xaxis2": {**axis(), "domain": right, "anchor": "y2", "title": {"text": "k", "standoff": 2}},
            "yaxis2": {**axis(), "domain": [0.58, 1], "anchor": "x2", "rangemode": "tozero", "nticks": 5},
            "xaxis3": {**across, "domain": right},
            "yaxis3": {**up, "domain": [0, 0.4]},
            "legend": {"x": 1, "y": 1, "xanchor": "right", "yanchor": "top", "bgcolor": "rgba(0,0,0,0)"},
            "shapes": [frame],
            "annotations": [
                title(self.heading, "x", "y"),
                title(f"singular values: {self._name}", "x2", "y2"),
                title("its error at every rank", "x3", "y3"),
                *labels,
            ],
        }  # fmt: skip
        return traces + drawn, layout

    def png(self) -> bytes:
        """The same with matplotlib."""
        from matplotlib.patches import Rectangle

        figure = new_figure(9.6, 5.2)
        grid = figure.add_gridspec(2, 2, width_ratios=[1.55, 1])
        left, above, below = (
            figure.add_subplot(grid[:, 0]),
            figure.add_subplot(grid[0, 1]),
            figure.add_subplot(grid[1, 1]),
        )
        shown = [[math.nan if v is None else v for v in row] for row in self._colours()]
        left.imshow(shown, cmap="RdBu_r", vmin=-SPAN, vmax=SPAN, aspect="auto")
        for i, row in enumerate(self.errors):
            for j, e in enumerate(row):
                if len(self.layers) <= 16:
                    dark = abs(shown[i][j]) > 0.75 * SPAN
                    left.text(j, i, error_text(e), ha="center", va="center", fontsize=8, color="w" if dark else "k")
        left.add_patch(
            Rectangle((self.chosen[1] - 0.5, self.chosen[0] - 0.5), 1, 1, fill=False, edgecolor="k", linewidth=2)
        )
        step = max(1, len(self.layers) // 16)
        left.set_xticks(range(0, len(self.layers), step), [str(layer) for layer in self.layers[::step]])
        left.set_yticks(range(len(self.modules)), list(self.modules))
        left.set(xlabel="layer")
        left.set_title(self.heading, loc="left", fontsize=9, color=INK)
        for name, values in self.spectra.items():
            colour, dash, width = SPECTRA[name]
            style = {"color": colour, "linestyle": MPL_DASH[dash], "linewidth": width * 0.8}
            above.plot(range(1, len(values) + 1), values, label=name, **style)
        above.set(ylim=(0, None), xlabel="k")
        above.legend(fontsize=8, frameon=False)
        above.set_title(f"singular values: {self._name}", loc="left", fontsize=9, color=INK)
        draw_errors(below, self.lines, self.rank, room=1.75)
        below.set_title("its error at every rank", loc="left", fontsize=9, color=INK)
        for axes in (above, below):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.25, linewidth=0.6)
        for axes in (left, above, below):
            axes.tick_params(labelsize=8)
        return png_bytes(figure)
