"""Figures that change in place: plotly's widget where it works, and an image everywhere else."""

from __future__ import annotations

import asyncio
import html
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
from nlora_lab.plots.drawings import Drawing

Figures = Literal["auto", "plotly", "image"]
OVERRIDE = "NLORA_LAB_FIGURES"


class LiveFigure(Protocol):
    """What a lab needs of a figure."""

    widget: widgets.Widget

    def draw(self, drawing: Drawing) -> None:
        """Show a drawing."""

    def on_click(self, report: Callable[[str, str], None]) -> None:
        """Call ``report(x, y)`` when a cell of the first trace is clicked, if the figure can notice clicks."""


CHOICES = ("auto", "plotly", "image")


def in_colab() -> bool:
    """Return whether this kernel runs in Google Colab."""
    return "google.colab" in sys.modules


def pick_figures(figures: Figures = "auto") -> Literal["plotly", "image"]:
    """Choose plotly's live figure, or an image where the live figure is not reliable (Colab, VS Code).

    A kernel cannot ask its page what the page can show. So the choice depends on where the kernel was started. The
    environment variable ``NLORA_LAB_FIGURES`` ("plotly" or "image") overrides it.

    Args:
        figures: "plotly", "image", or "auto" to choose.

    Returns:
        "plotly" or "image".

    Raises:
        InputError: ``figures`` or the variable is something else.
    """
    override = os.environ.get(OVERRIDE)
    check_choice("figures", figures, CHOICES)
    if override:
        check_choice(OVERRIDE, override, CHOICES)
    choice = override or figures
    if choice == "auto":
        elsewhere = in_colab() or "VSCODE_PID" in os.environ or "VSCODE_CWD" in os.environ
        choice = "image" if elsewhere or not _has_figure_widget() else "plotly"
    return "image" if choice == "image" else "plotly"


def _has_figure_widget() -> bool:
    # making one to see would keep it alive, and every page would be sent its five megabytes
    return find_spec("anywidget") is not None and find_spec("plotly") is not None


def live_figure(first: Drawing, figures: Figures = "auto") -> LiveFigure:
    """Make the figure that :func:`pick_figures` chooses, and show ``first`` in it."""
    return ImageFigure(first) if pick_figures(figures) == "image" else PlotlyFigure(first)


class Throttle:
    """Decides when to draw again.

    Args:
        every: the least time between two drawings, in seconds. With 0 it is always time.
        share: drawing takes at most one part in ``share`` of the time.
    """

    def __init__(self, every: float, share: int) -> None:
        self.every, self.share, self._next = every, share, 0.0

    def due(self) -> bool:
        """Return whether it is time to draw."""
        return self.left() <= 0

    def left(self) -> float:
        """The seconds until it is time to draw."""
        return self._next - time.monotonic()

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Measure how long a drawing takes, and so decide when the next one is due."""
        started = time.monotonic()
        yield
        now = time.monotonic()
        self._next = now + max(self.every, self.share * (now - started)) if self.every else 0.0


class PlotlyFigure:
    """Plotly's ``FigureWidget``. It sends what has changed.

    Args:
        first: the drawing to begin with.

    Attributes:
        widget: the widget to show.
    """

    def __init__(self, first: Drawing) -> None:
        allow_custom_widgets()
        traces, layout = first.plotly()
        self.widget = _figure_widget()(data=traces, layout=layout)
        # plotly offers no public way to give a FigureWidget its page settings
        self.widget._config = {"responsive": True, "displayModeBar": False}
        self.widget._view_count = 0  # from None: the page now counts its views of the figure
        self.widget.observe(self._on_view_count, "_view_count")
        self._sent, self._layout = traces, layout
        self._lock = threading.RLock()  # _fit runs in a thread of its own, and batch_update must not run twice at once

    def draw(self, drawing: Drawing) -> None:
        """Make the figure equal to ``drawing``, and send what differs in the traces and the layout."""
        traces, layout = drawing.plotly()
        with self._lock:
            if [_identity(t) for t in traces] != [_identity(t) for t in self._sent]:
                # a page loses changes to traces that come together with new traces, so send all of them as new ones
                self.widget.data = ()
                self.widget.add_traces(traces)
                self._sent = traces
            with self.widget.batch_update():
                for drawn, old, new in zip(self.widget.data, self._sent, traces, strict=True):
                    changed = _difference(old, new)
                    if changed:
                        drawn.update(changed, overwrite=False)
                changed = _difference(self._layout, layout)
                # update() would merge old labels and lines into the new ones
                for name in ("annotations", "shapes"):
                    if name in changed:
                        setattr(self.widget.layout, name, changed.pop(name) or [])
                if changed:
                    self.widget.layout.update(changed)
            self._sent, self._layout = traces, layout

    def on_click(self, report: Callable[[str, str], None]) -> None:
        """Call ``report(x, y)`` with the names of the cell that was clicked in the first trace."""

        def clicked(_: object, points: Any, __: object) -> None:
            if points.xs:
                report(html.unescape(str(points.xs[0])), html.unescape(str(points.ys[0])))  # plotly is given HTML

        self.widget.data[0].on_click(clicked)

    def _on_view_count(self, _: object) -> None:
        """Fit the figure to its page again: plotly first draws 700 pixels wide, before the figure has a place."""
        timer = threading.Timer(0.5, self._fit)
        timer.daemon = True
        timer.start()

    def _fit(self) -> None:
        with self._lock:
            self.widget.update_layout(autosize=False)
            self.widget.update_layout(autosize=True)


@cache
def _figure_widget() -> Any:
    """A ``FigureWidget`` that sends its present state, not its first one, to a page that connects again."""
    import plotly.graph_objects as go

    class Figure(go.FigureWidget):
        def get_state(self, key: Any = None, drop_defaults: bool = False) -> Any:
            if key is None and hasattr(self, "_layout_obj"):  # a page asks for everything
                self._trait_values["_widget_data"] = deepcopy(self._data)
                self._trait_values["_widget_layout"] = deepcopy(self._layout_obj._props)
            return super().get_state(key, drop_defaults)

    return Figure


def _identity(trace: dict[str, Any]) -> tuple[Any, ...]:
    """What tells a trace from others, without the points that it shows."""
    return tuple(trace.get(key) for key in ("type", "name", "xaxis", "yaxis"))


def _difference(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """What to set so that ``old`` becomes ``new``. A key that ``new`` lacks is set to ``None``."""
    changed: dict[str, Any] = {name: None for name in old if name not in new}
    for name, value in new.items():
        if isinstance(value, dict) and isinstance(old.get(name), dict):
            if part := _difference(old[name], value):
                changed[name] = part
        elif name not in old or not _same(old[name], value):
            changed[name] = value
    return changed


def _same(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except ValueError:  # arrays
        import numpy as np

        return np.array_equal(a, b)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs in this thread. In a kernel that handles a message, it is the kernel's loop."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def allow_custom_widgets() -> None:
    """Let Colab load the scripts of widgets that are not its own, without which it shows nothing."""
    if not in_colab():
        return
    with suppress(ImportError, AttributeError):
        import_module("google.colab.output").enable_custom_widget_manager()


class ImageFigure:
    """A PNG that is drawn anew, at most once a second while curves grow. A page needs ipywidgets alone to show it.

    A page sends dozens of events while a slider is dragged, and a picture takes a quarter of a second. So when
    drawings come faster than that, the first one is drawn at once. The latest one is drawn after a pause in which
    the kernel's event loop can take the waiting events from its queue. This needs no thread, because in Colab
    nothing that a thread sends reaches the page. Without an event loop in this thread (in plain Python, or in the
    thread of a race) every drawing is drawn at once.

    Args:
        first: the drawing to begin with.

    Attributes:
        widget: the widget to show.
    """

    rest = 0.1  # seconds between two pictures while events come in, or the time that a picture takes if that is longer

    def __init__(self, first: Drawing) -> None:
        self.widget = widgets.Image(format="png", layout=widgets.Layout(max_width="100%"))
        self._hold = Throttle(self.rest, 1)
        self._lock = threading.RLock()
        self._waiting: Drawing | None = None  # the latest drawing, while it is not drawn yet
        self._draw(first)

    def draw(self, drawing: Drawing) -> None:
        """Draw and send the picture: now, or in a moment if the last one was drawn just now."""
        with self._lock:
            loop = _running_loop()
            if loop is None or self._hold.due():
                self._draw(drawing)
                return
            if self._waiting is None:
                loop.call_later(self._hold.left(), self._draw_waiting)
            self._waiting = drawing

    def _draw(self, drawing: Drawing) -> None:
        with self._lock, self._hold.drawing():
            self._waiting = None  # it is older than this one
            self.widget.value = drawing.png()

    def _draw_waiting(self) -> None:
        with self._lock:
            if self._waiting is not None:
                self._draw(self._waiting)

    def on_click(self, report: Callable[[str, str], None]) -> None:
        """Do nothing: an image does not notice clicks. The dropdowns of the lab do the same."""
