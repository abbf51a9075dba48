"""What the matrix labs share: how they look in a notebook, with a kernel and without."""

from __future__ import annotations

import base64
import html
from typing import Any

import ipywidgets as widgets

from nlora_lab.labs.figures import Figures, LiveFigure, live_figure
from nlora_lab.plots.style import Drawing

WORDS = {"description_width": "100px"}
ROW = {"flex_flow": "row wrap", "align_items": "center", "width": "100%"}


def error_words(error: float) -> str:
    """Three digits, always with a decimal point: ``0.907``, ``1.97``, ``50.3``."""
    return f"{error:.3f}" if error < 1 else f"{error:.2f}" if error < 10 else f"{error:.1f}"


class FigurePanel:
    """Controls, a line of text and a figure that follows them.

    A child fills ``self._controls`` (rows of widgets), offers :meth:`drawing` and :meth:`told`, and then
    calls :meth:`_open`; every control that should move the figure is passed to :meth:`_follow`.
    """

    _controls: list[list[widgets.Widget]]
    _figure: LiveFigure

    def drawing(self) -> Drawing:
        """The figure as the controls say now."""
        raise NotImplementedError

    def told(self) -> str:
        """One line of what the figure shows, as plain text."""
        raise NotImplementedError

    def picture(self) -> bytes:
        """The figure as PNG bytes."""
        return self.drawing().png()

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {self.told()}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """The live panel, and beside it a picture and a line for pages without a kernel."""
        bundle: dict[str, Any] = dict(self._panel._repr_mimebundle_())
        bundle["text/plain"] = repr(self)
        bundle["image/png"] = base64.b64encode(self.picture()).decode()
        return bundle

    def _open(self, figures: Figures) -> None:
        self._held = False
        self._line = widgets.HTML()
        self._figure = live_figure(self.drawing(), figures)
        rows = [widgets.Box(row, layout=widgets.Layout(**ROW)) for row in self._controls]
        self._panel = widgets.VBox([*rows, self._line, self._figure.widget])
        self._say()

    def _follow(self, *controls: widgets.Widget) -> None:
        for control in controls:
            control.observe(lambda _: self._redraw(), "value")

    def _redraw(self) -> None:
        if not self._held:
            self._figure.draw(self.drawing())
            self._say()

    def _say(self) -> None:
        self._line.value = f"<div style='padding:2px 0 4px 8px'>{html.escape(self.told())}</div>"
