"""Maps of a model's layers: how far each moved in a run, and how well each can be approximated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from nlora_lab.core.formatting import format_rate
from nlora_lab.models.names import split_name
from nlora_lab.plots.approximations import ErrorLine, error_panel, spectrum_panel
from nlora_lab.plots.drawings import Described
from nlora_lab.plots.figure import INK, Axis, Figure, Heatmap, Line, Panel
from nlora_lab.runs.snapshots import LayerState, Snapshot

QUANTITIES = {"distance": ("distance from W, in % of ‖W‖", 100.0), "intruders": ("intruders among the first 10", 1.0)}
TEXTS = 16  # layers: of more, the cells have no room for a number
SPAN = 1.5  # colours end at errors of 10^±1.5; 1, as bad as approximating by zero, is white
SPECTRA = {  # what is drawn: hue, dash, width
    "these weights": ("#0072b2", "solid", 2.2),
    "fresh weights": ("#d98c00", "dash", 1.6),
    "noise, in theory": (INK, "dot", 1.6),
}


@dataclass(frozen=True)
class LayerMapDrawing(Described):
    """One quantity of every layer at a run's last snapshot: modules downwards, layers across.

    Attributes:
        name: the name of the run.
        snapshots: what was recorded of the run.
        quantity: "distance", "intruders" (recorded at the end of a run only), or another one of
            ``nlora_lab.training.recorder.LayerState.quantities``.
        chosen: the name of a layer to frame.
    """

    name: str
    snapshots: Sequence[Snapshot]
    quantity: str = "distance"
    chosen: str | None = None

    @cached_property
    def cells(self) -> dict[tuple[str, str], float]:
        """Values by (module, layer number as text); NaN where there was no measurement."""
        factor = self._quantity[1]
        values = [factor * state.quantities().get(self.quantity, math.nan) for state in self._states]
        return dict(zip(_places([state.layer for state in self._states]), values, strict=True))

    @property
    def heading(self) -> str:
        """The run, the quantity and the update it was measured after."""
        when = f", after {self.snapshots[-1].step} updates" if self.snapshots else ""
        return f"{self.name}: {self._quantity[0]}{when}"

    def figure(self) -> Figure:
        """Return the description that both renderers draw."""
        modules, layers = (list(dict.fromkeys(place[i] for place in self.cells)) for i in (0, 1))
        values = [[self.cells.get((module, layer), math.nan) for layer in layers] for module in modules]
        texts, hover = [[cell_text(v) for v in row] for row in values], "layer %{x}, %{y}: %{text}"
        names, framed = [state.layer for state in self._states], None
        if self.chosen in names:
            module, layer = list(self.cells)[names.index(self.chosen)]
            framed = modules.index(module), layers.index(layer)
        shown = texts, len(layers) <= TEXTS, framed
        cells = Heatmap(self._levels(values), (0, 1), "Blues", *shown, gap=2, hover=hover)
        axes = Axis.of_names(layers, "layer"), Axis.of_names(modules, reverse=True)
        panel = Panel(*axes, [cells], heading=self.heading, message=self._message)
        return Figure([panel], height=110 + 32 * max(4, len(modules)), dpi=110, margins=(20, 20, 36, 44))

    @property
    def _states(self) -> Sequence[LayerState]:
        return self.snapshots[-1].layers if self.snapshots else ()

    @property
    def _quantity(self) -> tuple[str, float]:
        return QUANTITIES.get(self.quantity, (self.quantity.replace("_", " "), 1.0))

    @property
    def _message(self) -> str:
        if any(math.isfinite(v) for v in self.cells.values()):
            return ""
        if not self.snapshots:
            return "nothing recorded yet"
        return "counted at the end of the run" if self.quantity == "intruders" else "not measured"

    def _levels(self, values: Sequence[Sequence[float]]) -> list[list[float]]:
        """From 0, the lightest, to 1: counts in proportion, all else by its logarithm over one decade or more."""
        finite = [v for row in values for v in row if math.isfinite(v)]
        top = max(finite, default=0.0) or 1.0
        if self.quantity == "intruders":
            return [[v / top for v in row] for row in values]
        least = min([*(v for v in finite if v > 0), top / 10])

        def level(v: float) -> float:
            return math.nan if math.isnan(v) else math.log(min(max(v, least), top) / least) / math.log(top / least)

        return [[level(v) for v in row] for row in values]


@dataclass(frozen=True)
class LayersDrawing(Described):
    """The figure of ``SpectrumLab``: every layer's error in one map, and the spectrum and errors of one layer.

    Attributes:
        modules: the names of the modules, the rows of the map.
        layers: the numbers of the layers, its columns.
        errors: the relative error of each module in each layer, one list per module; NaN without a weight.
        chosen: the row and the column of the layer on the right.
        heading: what the map shows.
        spectra: the singular values of that layer, by the names in ``SPECTRA``.
        lines: the errors of that layer at every rank.
        rank: the rank of the errors in the map.
    """

    modules: Sequence[str]
    layers: Sequence[int]
    errors: Sequence[Sequence[float]]
    chosen: tuple[int, int]
    heading: str
    spectra: Mapping[str, Sequence[float]]
    lines: Sequence[ErrorLine]
    rank: int

    def figure(self) -> Figure:
        """Return the description that both renderers draw."""
        row, column = self.chosen
        levels = [[_level(e) for e in errors] for errors in self.errors]
        texts = [[error_text(e) for e in errors] for errors in self.errors]
        shown, hover = (texts, len(self.layers) <= TEXTS, self.chosen), "layer %{x}, %{y}: error %{text}"
        cells = Heatmap(levels, (-SPAN, SPAN), "RdBu_r", *shown, gap=2, hover=hover)
        layers, modules = Axis.of_names(list(map(str, self.layers)), "layer"), Axis.of_names(self.modules, reverse=True)
        spectra = []
        for name, values in self.spectra.items():
            k, hover = range(1, len(values) + 1), "σ<sub>%{x}</sub> = %{y:.3g}"
            spectra.append(Line(k, values, *SPECTRA[name], name=name, hover=hover))
        heading = f"singular values: layer {self.layers[column]}, {self.modules[row]}"
        right = (0.64, 1)
        panels = [
            Panel(layers, modules, [cells], heading=self.heading, across=(0, 0.54)),
            replace(spectrum_panel(spectra, heading, right, (0.58, 1)), legend="inside"),
            error_panel(self.lines, self.rank, 1.75, "its error at every rank", right, (0, 0.4)),
        ]
        return Figure(panels, dpi=110, margins=(20, 20, 36, 44))


def cell_text(value: float) -> str:
    """Return two digits, as a cell has room for: ``0``, ``0.034``, ``2.1``, ``430``, ``4.3e-4``; nothing for NaN."""
    if not math.isfinite(value):
        return ""
    if value == 0 or 0.001 <= value < 1e5:
        return f"{value:.0f}" if value == 0 or value >= 9.95 else f"{value:.2g}"
    return format_rate(value)


def error_text(value: float) -> str:
    """Return two digits, as a cell of the map has room for: ``0.87``, ``5.0``, ``189``; nothing for NaN."""
    if math.isnan(value):
        return ""
    return f"{value:.2f}" if value < 0.995 else f"{value:.1f}" if value < 99.5 else f"{value:.0f}"


def _level(error: float) -> float:
    return error if math.isnan(error) else max(-SPAN, min(SPAN, math.log10(max(error, 1e-6))))


def _places(names: Iterable[str]) -> list[tuple[str, str]]:
    """(module, layer number) of each layer, all different; the number is empty outside the numbered layers."""
    listed = list(names)
    places = [split_name(name) for name in listed]
    if len(set(places)) < len(places):  # an encoder and a decoder each have a layer 0: keep what tells them apart
        places = [(i, name.replace(f".{i}.", ".", 1)) for (i, _), name in zip(places, listed, strict=True)]
    return [(module, str(i) if i >= 0 else "") for i, module in places]
