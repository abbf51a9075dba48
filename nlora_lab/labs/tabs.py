"""What is happening inside the runs of a lab: singular values, norms and gradients of their adapters over the steps."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets

from nlora_lab.labs import words
from nlora_lab.labs.entries import Entry
from nlora_lab.labs.figures import Figures, LiveFigure, live_figure
from nlora_lab.methods.table import METHODS
from nlora_lab.plots.inside import InsideDrawing
from nlora_lab.plots.layer_map import LayerMapDrawing

EVERYTHING = "all layers"
VIEWS = {"over the steps": "", "distance by layer": "distance", "intruders by layer": "intruders"}
EMPTY = (
    "What happens inside the adapters of your own runs stands here once one is done; a recorded run has no more of it."
)


class InsidePanel:
    """A figure of the run chosen; made when there is something to show for the first time."""

    def __init__(self, figures: Figures) -> None:
        self._figures: Figures = figures
        self._figure: LiveFigure | None = None
        self._entries: list[Entry] = []
        self.view = widgets.ToggleButtons(options=list(VIEWS.items()), style={"button_width": "140px"})
        self.layer = widgets.Dropdown(options=[EVERYTHING], description="layer", style={"description_width": "50px"})
        self.run = widgets.Dropdown(options=[], description="run", style={"description_width": "40px"})
        self._hint, self._failed = widgets.HTML(EMPTY), widgets.HTML()
        row = widgets.Layout(flex_flow="row wrap", align_items="center", width="100%")
        self._bar = widgets.Box([self.view, self.run, self.layer], layout=row)
        self.widget = widgets.VBox([self._hint])
        for control in (self.view, self.layer, self.run):
            control.observe(lambda _: self._draw(), "value")

    def show(self, entries: Sequence[Entry]) -> None:
        """Offer these runs, the last one first; a choice made before stays."""
        self._entries = [e for e in entries if e.inside is not None and e.inside.snapshots]
        if not self._entries:
            self._failed.value = "".join(failure(e) for e in entries)
            self.widget.children = [self._hint, self._failed]
            return
        offered = [(e.name, id(e)) for e in reversed(self._entries)]
        if list(self.run.options) != offered:
            kept, known = self.run.value, [key for _, key in offered]
            self.run.options = offered
            self.run.value = kept if kept in known else known[0]
        layers = [EVERYTHING, *(state.layer for state in self._chosen().inside.snapshots[0].layers)]
        if list(self.layer.options) != layers:
            self.layer.options = layers
        self._draw()

    def _chosen(self) -> Entry:
        return next((e for e in self._entries if id(e) == self.run.value), self._entries[-1])

    def drawing(self) -> Any:
        """The figure as the controls say now."""
        entry = self._chosen()
        method = METHODS[entry.run.config.method]
        if self.view.value:
            return LayerMapDrawing(entry.name, entry.inside.snapshots, self.view.value)
        layer = None if self.layer.value == EVERYTHING else self.layer.value
        return InsideDrawing([(entry.name, method.colour, method.dash, entry.inside.snapshots)], layer)

    def __repr__(self) -> str:
        return f"what happens inside {len(self._entries)} run{'s' * (len(self._entries) != 1)}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """The live panel, and beside it a picture and a line for pages without a kernel."""
        bundle: dict[str, Any] = dict(self.widget._repr_mimebundle_())
        bundle["text/plain"] = repr(self)
        if self._entries:
            bundle["image/png"] = base64.b64encode(self.drawing().png()).decode()
        return bundle

    def _draw(self) -> None:
        if not self._entries:
            return
        self.layer.disabled = bool(self.view.value)  # the map shows them all
        if self._figure is None:
            self._figure = live_figure(self.drawing(), self._figures)
        else:
            self._figure.draw(self.drawing())
        self._failed.value = failure(self._chosen())
        self.widget.children = [self._bar, self._failed, self._figure.widget]


def failure(entry: Entry) -> str:
    """Why the recording of a run has ended before the run, as HTML; empty where it has not."""
    if entry.inside is None or not entry.inside.failed:
        return ""
    return words.error(f"{entry.name}: the recording of what happens inside ended {entry.inside.failed}") + "<br>"
