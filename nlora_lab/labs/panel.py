"""What all labs share: how they look in a notebook, with a kernel and without."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import ipywidgets as widgets
import numpy as np
import traitlets

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice
from nlora_lab.labs.figures import Figures, LiveFigure, live_figure
from nlora_lab.plots.drawings import Drawing, picture_bundle

LABEL_STYLE = {"description_width": "100px"}
ROW = {"flex_flow": "row wrap", "align_items": "center", "width": "100%"}


def format_error(error: float) -> str:
    """Print a relative error in three digits, always with a decimal point: ``0.907``, ``1.97``, ``50.3``."""
    return f"{error:.3f}" if error < 1 else f"{error:.2f}" if error < 10 else f"{error:.1f}"


def error_html(message: str) -> str:
    """Return an error message as HTML, in a colour that shows on a light and on a dark page."""
    return f'<span style="color:#d62728;font-weight:bold">{html.escape(message)}</span>'


def row_of(*parts: widgets.Widget) -> widgets.Widget:
    """Put widgets side by side, and below each other where the page is narrow."""
    return widgets.Box(parts, layout=widgets.Layout(**ROW))


class _Value(traitlets.Any):
    allow_none = False  # traitlets would not check ``None``


class Control(traitlets.HasTraits):
    """A control of a lab that lives in a widget of ours. ``observe(handler, "value")`` reports changes of ``value``.

    Args:
        widget: the widget.
        trait: the name of the value there.
        check: called with a new value. It returns the value to take, or raises ``InputError``.
    """

    value = _Value()

    def __init__(self, widget: traitlets.HasTraits, trait: str, check: Callable[[Any], Any]) -> None:
        self._check = check
        super().__init__(value=getattr(widget, trait))
        traitlets.link((self, "value"), (widget, trait))

    @traitlets.validate("value")
    def _checked(self, proposal: dict[str, Any]) -> Any:
        return self._check(proposal["value"])


def within(name: str, value: Any, low: float, high: float) -> float:
    """Return a number, moved into its limits as a slider does, or raise ``InputError``."""
    is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not is_number or value != value:
        raise InputError(f"{name}={value!r} must be a number from {low:g} to {high:g}")
    return float(min(max(value, low), high))  # a whole number may be too large for a float


def flag(name: str, value: Any) -> bool:
    """Return a truth value, or raise ``InputError``."""
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name}={value!r} must be True or False")
    return bool(value)


def one_of(name: str, value: Any, choices: Iterable[str]) -> str:
    """Return a name if it is one of the choices, or raise ``InputError``."""
    check_choice(name, value, choices)
    return str(value)


class LivePanel:
    """Something that a notebook shows as widgets, and as a picture with a line of text on pages without a kernel.

    A subclass sets ``self._panel`` to its widget, and offers :meth:`drawing` and ``__repr__``.
    """

    _panel: widgets.Widget

    def drawing(self) -> Drawing:
        """Return the figure that the controls select."""
        raise NotImplementedError

    def picture(self) -> bytes:
        """Return the figure as PNG bytes."""
        return self.drawing().png()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return picture_bundle(self._panel, repr(self), self.picture() or None)


class FigurePanel(LivePanel):
    """Controls, a line of text, and a figure that follows the controls.

    A subclass fills ``self._controls`` (rows of widgets), offers :meth:`drawing` and :meth:`summary`, and then calls
    ``_open``. It passes every control that changes the figure to ``_follow``.
    """

    _controls: list[list[widgets.Widget]]
    _figure: LiveFigure

    def summary(self) -> str:
        """Return what the figure shows, in one line of plain text."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {self.summary()}"

    def _open(self, figures: Figures) -> None:
        self._held = False
        self._line = widgets.HTML()
        self._figure = live_figure(self.drawing(), figures)
        self._panel = widgets.VBox([*(row_of(*row) for row in self._controls), self._line, self._figure.widget])
        self._draw_summary()

    def _follow(self, *controls: widgets.Widget) -> None:
        for control in controls:
            control.observe(lambda _: self._redraw(), "value")

    @contextmanager
    def _one_redraw(self) -> Iterator[None]:
        """Draw once at the end, however many controls change within."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self._redraw()

    def _redraw(self) -> None:
        if not self._held:
            self._figure.draw(self.drawing())
            self._draw_summary()

    def _draw_summary(self) -> None:
        self._line.value = f"<div style='padding:2px 0 4px 8px'>{html.escape(self.summary())}</div>"
