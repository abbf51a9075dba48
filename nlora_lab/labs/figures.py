"""A figure that changes in place: plotly's widget where it works, an image everywhere else."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, Protocol

import ipywidgets as widgets

from nlora_lab.core.validation import check_choice
from nlora_lab.plots.style import Drawing

Figures = Literal["auto", "plotly", "image"]
OVERRIDE = "NLORA_LAB_FIGURES"


class GrowingDrawing(Drawing, Protocol):
    """A drawing whose last traces grow while something trains."""

    def growing(self) -> list[dict[str, Any]]:
        """Those traces, the last ones of :meth:`plotly`."""

    def annotations(self) -> list[dict[str, Any]]:
        """The layout's, which move with them."""


class LiveFigure(Protocol):
    """What a lab needs of a figure."""

    widget: widgets.Widget

    def draw(self, drawing: Drawing) -> None:
        """Show this now."""

    def grow(self, drawing: GrowingDrawing) -> None:
        """Its last curves have grown: show them, unless that was done a moment ago."""

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
    check_choice("figures", choice, ("auto", "plotly", "image"))
    if choice == "auto":
        elsewhere = in_colab() or "VSCODE_PID" in os.environ or "VSCODE_CWD" in os.environ
        choice = "image" if elsewhere or not _has_figure_widget() else "plotly"
    return "image" if choice == "image" else "plotly"


def _has_figure_widget() -> bool:
    # not by making one: it would stay, and every page would be sent its five megabytes
    return find_spec("anywidget") is not None and find_spec("plotly") is not None


def live_figure(first: Drawing, wanted: Figures = "auto") -> LiveFigure:
    """The figure :func:`pick_figures` chooses, showing ``first``."""
    return ImageFigure(first) if pick_figures(wanted) == "image" else PlotlyFigure(first)


class _Throttle:
    """When to draw again: not more often than ``every``, and so that it takes one ``share``-th of the time at most."""

    def __init__(self, every: float, share: int) -> None:
        self.every, self.share, self._next = every, share, 0.0

    def due(self) -> bool:
        return self.left() <= 0

    def left(self) -> float:
        """Seconds until it is due."""
        return self._next - time.monotonic()

    @contextmanager
    def drawing(self) -> Iterator[None]:
        started = time.monotonic()
        yield
        now = time.monotonic()
        self._next = now + max(self.every, self.share * (now - started)) if self.every else 0.0


class PlotlyFigure:
    """``FigureWidget``; only what has changed is sent, and growing curves ten times a second at most."""

    every = 0.1  # seconds
    share = 100  # one part in so many of the training time; what is recorded inside takes another one or two

    def __init__(self, first: Drawing) -> None:
        if in_colab():
            _allow_custom_widgets()
        traces, layout = _plain(first)
        self.widget = _figure_widget()(data=traces, layout=layout)
        # plotly offers no public way to give a FigureWidget its page settings
        self.widget._config = {"responsive": True, "displayModeBar": False}
        self.widget._view_count = 0  # from None: the page now counts its views of the figure
        self.widget.observe(self._shown, "_view_count")
        self._sent, self._layout = traces, layout
        self._throttle = _Throttle(self.every, self.share)
        self._lock = threading.RLock()  # _fit comes from a thread of its own, and a batch_update stands no other

    def draw(self, drawing: Drawing) -> None:
        """Make the figure the same as ``drawing``: what differs in the traces and the layout is sent."""
        traces, layout = _plain(drawing)
        with self._lock, self._throttle.drawing():
            if [_identity(t) for t in traces] != [_identity(t) for t in self._sent]:
                # a page loses changes of a trace that come together with new traces, so all of them are new
                self.widget.data = ()
                self.widget.add_traces(traces)
                self._sent = traces
            with self.widget.batch_update():
                for drawn, old, new in zip(self.widget.data, self._sent, traces, strict=True):
                    changed = _difference(old, new)
                    if changed:
                        drawn.update(changed, overwrite=False)
                changed = _difference(self._layout, layout)
                # update() would merge the old labels and lines into the new ones, one by one
                for name in ("annotations", "shapes"):
                    if name in changed:
                        setattr(self.widget.layout, name, changed.pop(name) or [])
                if changed:
                    self.widget.layout.update(changed)
            self._sent, self._layout = traces, layout

    def grow(self, drawing: GrowingDrawing) -> None:
        """Send the points of the growing curves and the labels."""
        if not self._throttle.due():
            return
        growing = drawing.growing()
        with self._lock:
            if growing and len(growing) <= len(self._sent):
                self._grow(growing, drawing.annotations())

    def _grow(self, growing: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> None:
        with self._throttle.drawing(), self.widget.batch_update():
            first = len(self._sent) - len(growing)
            for i, new in enumerate(growing, start=first):
                self.widget.data[i].update({"x": new["x"], "y": new["y"]})
                self._sent[i] = {**self._sent[i], "x": new["x"], "y": new["y"]}
            self._layout["annotations"] = annotations
            self.widget.layout.annotations = annotations

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
        with self._lock:
            self.widget.update_layout(autosize=False)
            self.widget.update_layout(autosize=True)


@cache
def _figure_widget() -> Any:
    """``FigureWidget``, but a page that connects again gets the figure as it is now, not as it was first made."""
    import plotly.graph_objects as go

    class Figure(go.FigureWidget):
        def get_state(self, key: Any = None, drop_defaults: bool = False) -> Any:
            if key is None and hasattr(self, "_layout_obj"):  # a page asks for everything
                self._trait_values["_widget_data"] = deepcopy(self._data)
                self._trait_values["_widget_layout"] = deepcopy(self._layout_obj._props)
            return super().get_state(key, drop_defaults)

    return Figure


def _plain(drawing: Drawing) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    traces, layout = drawing.plotly()
    return [t if isinstance(t, dict) else {"type": t.type, **t.to_plotly_json()} for t in traces], layout


def _identity(trace: dict[str, Any]) -> tuple[Any, ...]:
    """What a trace is, as opposed to what it shows."""
    return tuple(trace.get(key) for key in ("type", "name", "xaxis", "yaxis"))


def _difference(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """What to set so that ``old`` becomes ``new``; what is gone becomes ``None``."""
    changed = {name: value for name, value in new.items() if name not in old or not _same(old[name], value)}
    return changed | {name: None for name in old if name not in new}


def _same(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except ValueError:  # arrays
        import numpy as np

        return np.array_equal(a, b)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    """This thread's event loop, if it is running: the kernel's while it handles a message."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _allow_custom_widgets() -> None:
    """Colab shows a widget of plotly's only when it may load the widget's own script."""
    with suppress(ImportError, AttributeError):
        import_module("google.colab.output").enable_custom_widget_manager()


class ImageFigure:
    """A PNG drawn anew, once a second at most while something grows; needs nothing but ipywidgets of the page.

    A page sends dozens of events while a slider is dragged, and a picture takes a quarter of a second. So of drawings
    that come faster than that, the first is drawn at once, and the latest when the kernel's event loop has had a moment
    for those that wait in its queue: no thread, for in Colab nothing from one reaches the page. Where no event loop
    runs in this thread (plain Python, a race in the background) every drawing is drawn at once.
    """

    every = 1.0  # seconds
    share = 10  # a picture takes a quarter of a second, and one in ten seconds would not look alive
    rest = 0.1  # seconds between two pictures while the events come in; as long as a picture takes, if that is longer

    def __init__(self, first: Drawing) -> None:
        self.widget = widgets.Image(format="png", layout=widgets.Layout(max_width="100%"))
        self._throttle, self._hold = _Throttle(self.every, self.share), _Throttle(self.rest, 1)
        self._lock = threading.RLock()
        self._waiting: Drawing | None = None  # the latest, if it is not drawn yet
        self._draw(first)

    def draw(self, drawing: Drawing) -> None:
        """Draw and send the picture, now or, where the last one was just now, in a moment."""
        with self._lock:
            loop = _running_loop()
            if loop is None or self._hold.due():
                self._draw(drawing)
                return
            if self._waiting is None:
                loop.call_later(self._hold.left(), self._draw_waiting)
            self._waiting = drawing

    def grow(self, drawing: GrowingDrawing) -> None:
        """Draw now, unless that was done a moment ago."""
        if self._throttle.due():
            self._draw(drawing)

    def _draw(self, drawing: Drawing) -> None:
        with self._lock, self._throttle.drawing(), self._hold.drawing():
            self._waiting = None  # older than this one
            self.widget.value = drawing.png()

    def _draw_waiting(self) -> None:
        with self._lock:
            if self._waiting is not None:
                self._draw(self._waiting)

    def on_click(self, tell: Callable[[str, str], None]) -> None:
        """Nothing: an image does not say where it was clicked; the dropdowns do the same."""
