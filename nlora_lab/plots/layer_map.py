"""A map of the layers of a run: how far each has moved, or how many of its directions are new."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nlora_lab.core.formatting import format_rate
from nlora_lab.models.weights import split_name
from nlora_lab.plots.style import INK, blank_layout, new_figure, png_bytes, title
from nlora_lab.training.recorder import LayerState, Snapshot

SHADES = {"distance": ("distance from W, in % of ‖W‖", 100.0), "intruders": ("intruders among the first 10", 1.0)}


def cell_text(value: float) -> str:
    """Two digits, as a cell has room for: ``0``, ``0.034``, ``2.1``, ``430``, ``4.3e-4``; nothing for NaN."""
    if not math.isfinite(value):
        return ""
    if value == 0 or 0.001 <= value < 1e5:
        return f"{value:.0f}" if value == 0 or value >= 9.95 else f"{value:.2g}"
    return format_rate(value)


@dataclass(frozen=True)
class LayerMapDrawing:
    """One quantity of every layer at a run's last snapshot: modules downwards, layers across.

    ``quantity``: "distance", "intruders" (there at the end of a run only), or any other of
    :meth:`nlora_lab.training.recorder.LayerState.quantities`. ``chosen``: the name of a layer to frame.
    """

    name: str
    snapshots: Sequence[Snapshot]
    quantity: str = "distance"
    chosen: str | None = None

    @cached_property
    def cells(self) -> dict[tuple[str, str], float]:
        """Values by (module, layer number as text); NaN where it was not measured."""
        factor = self._shade[1]
        values = [factor * state.quantities().get(self.quantity, math.nan) for state in self._states]
        return dict(zip(_places([state.layer for state in self._states]), values, strict=True))

    @property
    def _states(self) -> Sequence[LayerState]:
        return self.snapshots[-1].layers if self.snapshots else ()

    @property
    def _shade(self) -> tuple[str, float]:
        return SHADES.get(self.quantity, (self.quantity.replace("_", " "), 1.0))

    @property
    def heading(self) -> str:
        """The run, the quantity and the moment."""
        when = f", after {self.snapshots[-1].step} updates" if self.snapshots else ""
        return f"{self.name}: {self._shade[0]}{when}"

    @property
    def _missing(self) -> str:
        if any(math.isfinite(v) for v in self.cells.values()):
            return ""
        if not self.snapshots:
            return "nothing recorded yet"
        return "counted at the end of the run" if self.quantity == "intruders" else "not measured"

    def _table(self) -> tuple[list[str], list[str], list[list[float]], list[list[str]]]:
        modules, layers = (list(dict.fromkeys(place[i] for place in self.cells)) for i in (0, 1))
        values = [[self.cells.get((module, layer), math.nan) for layer in layers] for module in modules]
        return modules, layers, values, [[cell_text(v) for v in row] for row in values]

    def _levels(self, values: Sequence[Sequence[float]]) -> list[list[float]]:
        """From 0, the lightest, to 1: counts as they are, all else by its logarithm over one decade or more."""
        finite = [v for row in values for v in row if math.isfinite(v)]
        top = max(finite, default=0.0) or 1.0
        if self.quantity == "intruders":
            return [[v / top for v in row] for row in values]
        least = min([*(v for v in finite if v > 0), top / 10])

        def level(v: float) -> float:
            return math.nan if math.isnan(v) else math.log(min(max(v, least), top) / least) / math.log(top / least)

        return [[level(v) for v in row] for row in values]

    def _chosen(self, modules: Sequence[str], layers: Sequence[str]) -> tuple[int, int] | None:
        names = [state.layer for state in self._states]
        if self.chosen not in names:
            return None
        module, layer = list(self.cells)[names.index(self.chosen)]
        return modules.index(module), layers.index(layer)

    def plotly(self) -> tuple[list[Any], dict[str, Any]]:
        """One heat map."""
        import plotly.graph_objects as go

        modules, layers, values, texts = self._table()
        cells = go.Heatmap(
            z=[[None if math.isnan(v) else v for v in row] for row in self._levels(values)], x=layers, y=modules,
            text=texts, texttemplate="%{text}" if len(layers) <= 16 else None, zmin=0, zmax=1, colorscale="Blues",
            showscale=False, xgap=2, ygap=2, hovertemplate="layer %{x}, %{y}: %{text}<extra></extra>",
        )  # fmt: skip
        bare = {"showgrid": False, "zeroline": False, "ticks": "", "linecolor": INK, "type": "category",
                "domain": [0, 1], "tickmode": "auto"}  # fmt: skip
        notes = [title(self.heading, "x", "y")]
        if self._missing:
            middle = {"x": 0.5, "y": 0.5, "xref": "x domain", "yref": "y domain", "showarrow": False}
            notes.append({**middle, "text": self._missing})
        at, shapes = self._chosen(modules, layers), []
        if at is not None:
            i, j = at
            look = {"xref": "x", "yref": "y", "line": {"color": INK, "width": 3}, "fillcolor": "rgba(0,0,0,0)"}
            shapes = [{"type": "rect", "x0": j - 0.5, "x1": j + 0.5, "y0": i - 0.5, "y1": i + 0.5, **look}]
        layout = {
            **blank_layout(110 + 32 * max(4, len(modules))),
            "margin": {"l": 20, "r": 20, "t": 36, "b": 44},
            "xaxis": {**bare, "autorange": True, "title": {"text": "layer"}},
            "yaxis": {**bare, "autorange": "reversed", "automargin": True},
            "annotations": notes,
            "shapes": shapes,
        }
        return [cells], layout

    def png(self) -> bytes:
        """The same with matplotlib."""
        from matplotlib.patches import Rectangle

        modules, layers, values, texts = self._table()
        figure = new_figure(9.6, 1.0 + 0.32 * max(4, len(modules)))
        axes = figure.add_subplot()
        shades = self._levels(values)
        if shades:
            axes.imshow(shades, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for i, row in enumerate(texts):
            for j, text in enumerate(row if len(layers) <= 16 else ()):
                axes.text(j, i, text, ha="center", va="center", fontsize=8, color="w" if shades[i][j] > 0.55 else "k")
        at = self._chosen(modules, layers)
        if at is not None:
            axes.add_patch(Rectangle((at[1] - 0.5, at[0] - 0.5), 1, 1, fill=False, edgecolor="k", linewidth=2))
        step = max(1, len(layers) // 16)
        axes.set_xticks(range(0, len(layers), step), layers[::step])
        axes.set_yticks(range(len(modules)), modules)
        axes.set(xlabel="layer")
        axes.set_title(self.heading, loc="left", fontsize=9, color=INK)
        axes.tick_params(labelsize=8)
        if self._missing:
            axes.text(0.5, 0.5, self._missing, transform=axes.transAxes, ha="center", color=INK)
        return png_bytes(figure)


def _places(names: Iterable[str]) -> list[tuple[str, str]]:
    """(module, layer number) of each layer, all different; the number is empty outside the numbered layers."""
    listed = list(names)
    found = [split_name(name) for name in listed]
    if len(set(found)) < len(found):  # an encoder and a decoder each have a layer 0: keep what tells them apart
        found = [(i, name.replace(f".{i}.", ".", 1)) for (i, _), name in zip(found, listed, strict=True)]
    return [(module, str(i) if i >= 0 else "") for i, module in found]
