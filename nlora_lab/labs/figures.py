"""A figure that changes in place: plotly's widget where it works, an image everywhere else."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Literal, Protocol

import ipywidgets as widgets

from nlora_lab.errors import one_of
from nlora_lab.plots import Drawing

Figures = Literal["auto", "plotly", "image"]
OVERRIDE = "NLORA_LAB_FIGURES"


class LiveFigure(Protocol):
    """What a lab needs of a figure."""

    widget: widgets.Widget

    def draw(self, drawing: Drawing) -> None:
        """Show this now."""

    def grow(self, drawing: Drawing) -> None:
        """The last curve has grown: show it, unless that was done a moment ago."""

    def on_click(self, tell: Callable[[str, str], None]) -> None:
        """Call ``tell(x, y)`` when a cell of the first trace is clicked, where a page can say so."""


def in_colab() -> bool:
    """Whether this kernel runs in Google Colab."""
    return "google.colab" in sys.modules


def pick_figures(wanted: Figures = "auto") -> Literal["plotly", "image"]:
    """Plotly's live figure, or an image where it is known not to be reliable (Colab, VS Code).

    A kernel cannot ask its page what it can show, so this goes by where the kernel was started;
    ``NLORA_LAB_FIGURES=plotly`` or ``=image`` overrides.
    """
    choice = os.environ.get(OVERRIDE) or wanted
    one_of("figures", choice, ("auto", "plotly", "image"))
    if choice == "auto":
        elsewhere = in_colab() or "VSCODE_PID" in os.environ or "VSCODE_CWD" in os.environ
        choice = "image" if elsewhere or not _has_figure_widget() else "plotly"
    return "image" if choice == "image" else "plotly"


def _has_figure_widget() -> bool:
    try:
        import plotly.graph_objects as go

        go.FigureWidget()
    except ImportError:  # plotly without anywidget
        return False
    return True


def live_figure(first: Drawing, wanted: Figures = "auto") -> LiveFigure:
    """The figure :func:`pick_figures` chooses, showing ``first``."""
    return ImageFigure(first) if pick_figures(wanted) == "image" else PlotlyFigure(first)


class PlotlyFigure:
    """``FigureWidget``; a growing curve sends only its own new points, ten times a second at most."""

    every = 0.1  # seconds

    def __init__(self, first: Drawing) -> None:
        import plotly.graph_objects as go

        traces, layout = first.plotly()
        self.widget = go.FigureWidget(data=traces, layout=layout)
        # plotly offers no public way to give a FigureWidget its page settings
        self.widget._config = {"responsive": True, "displayModeBar": False}
        self.widget._view_count = 0  # from None: the page now counts its views of the figure
        self.widget.observe(self._shown, "_view_count")
        self._drawn = 0.0

    def draw(self, drawing: Drawing) -> None:
        """Replace traces and layout."""
        traces, layout = drawing.plotly()
        with self.widget.batch_update():
            while len(self.widget.data) < len(traces):
                self.widget.add_trace(traces[len(self.widget.data)])
            if len(self.widget.data) > len(traces):
                self.widget.data = self.widget.data[: len(traces)]
            for old, new in zip(self.widget.data, traces, strict=True):
                old.update(new.to_plotly_json(), overwrite=False)
            # update() would merge the old labels and lines into the new ones, one by one
            self.widget.layout.annotations = layout.pop("annotations", [])
            self.widget.layout.shapes = layout.pop("shapes", [])
            self.widget.layout.update(layout)
        self._drawn = time.monotonic()

    def grow(self, drawing: Drawing) -> None:
        """Send the last curve's points and the labels."""
        if time.monotonic() - self._drawn < self.every:
            return
        traces, layout = drawing.plotly()
        if len(traces) != len(self.widget.data):
            self.draw(drawing)
            return
        with self.widget.batch_update():
            for old, new in zip(self.widget.data[-2:], traces[-2:], strict=True):
                old.x, old.y = new.x, new.y
            self.widget.layout.annotations = layout["annotations"]
            self.widget.layout.yaxis.range = layout["yaxis"]["range"]
        self._drawn = time.monotonic()

    def on_click(self, tell: Callable[[str, str], None]) -> None:
        """Call ``tell(x, y)`` with the names of the cell clicked in the first trace."""

        def clicked(_: object, points: Any, __: object) -> None:
            if points.xs:
                tell(str(points.xs[0]), str(points.ys[0]))

        self.widget.data[0].on_click(clicked)

    def _shown(self, _: object) -> None:
        """Plotly draws before the figure has a place on the page, 700 pixels wide; have it look again."""
        timer = threading.Timer(0.5, self._fit)
        timer.daemon = True
        timer.start()

    def _fit(self) -> None:
        self.widget.update_layout(autosize=False)
        self.widget.update_layout(autosize=True)


class ImageFigure:
    """A PNG drawn anew, once a second at most; needs nothing but ipywidgets of the page."""

    every = 1.0  # seconds

    def __init__(self, first: Drawing) -> None:
        self.widget = widgets.Image(format="png", layout=widgets.Layout(max_width="100%"))
        self.draw(first)

    def draw(self, drawing: Drawing) -> None:
        """Draw and send the picture."""
        self.widget.value = drawing.png()
        self._drawn = time.monotonic()

    def grow(self, drawing: Drawing) -> None:
        """The same, unless a second has not passed yet."""
        if time.monotonic() - self._drawn >= self.every:
            self.draw(drawing)

    def on_click(self, tell: Callable[[str, str], None]) -> None:
        """Nothing: an image does not say where it was clicked; the dropdowns do the same."""
