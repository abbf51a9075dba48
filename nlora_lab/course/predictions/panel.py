"""How a notebook shows a prediction: a control for the guess, a button, and the measurement beside the guess."""

from __future__ import annotations

import html
import math
import threading
import time
from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets

from nlora_lab.core.errors import InputError
from nlora_lab.course.predictions.kinds import Choice, Curve, Kind
from nlora_lab.course.predictions.prediction import Prediction
from nlora_lab.plots.drawings import Picture
from nlora_lab.plots.figure import Axis, Figure, Line, Panel

GUESS, MEASURED = "#0072b2", "#d55e00"
LATE = 30.0  # seconds after the button: on a busy machine the last move of a control that is now locked comes late
WIDE = widgets.Layout(width="min(420px, 95%)")


class PredictionPanel(Prediction):
    """A prediction that a notebook shows as widgets, and as a line of text on pages without a kernel.

    Args:
        key: a short name.
        question: what is to be predicted.
        answer: the measurement, or a function that returns it.
        kind: the kind of the prediction.
        show: what is displayed below the measurement, or ``None``.
    """

    def __init__(self, key: str, question: str, answer: Any, kind: Kind, show: Any = None) -> None:
        super().__init__(key, question, answer, kind)
        self.show = show
        self._panel: widgets.VBox | None = None
        self._locked_at = -LATE
        self._lock = threading.RLock()  # JupyterLab sends what happens to widgets to several threads of the kernel

    def commit(self, guess: Any) -> None:
        """Commit a guess, measure, and show both. See ``Prediction.commit``."""
        super().commit(guess)
        self._draw()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        if self._panel is None:
            self._build()
        self._draw()
        return {**self._panel._repr_mimebundle_(), "text/plain": repr(self)}  # type: ignore[union-attr]

    # --- widgets: made when the prediction is first shown ---

    def _build(self) -> None:
        self._inputs = _inputs(self.kind)
        self._button = widgets.Button(description="Commit my prediction", layout=widgets.Layout(width="220px"))
        self._line, self._sketch, self._shown = widgets.HTML(), widgets.Image(format="png"), widgets.Output()
        self._sketch.layout.max_width = "100%"
        self._button.on_click(lambda _: self._press())
        title = f"<b>Predict {html.escape(self.key)}.</b> {html.escape(self.question)}"
        parts = [widgets.HTML(title), *self._inputs, self._button, self._line, self._shown]
        if isinstance(self.kind, Curve):
            parts.insert(1, self._sketch)
        for control in self._inputs:
            control.observe(lambda _: self._on_value(), "value")
        self._panel = widgets.VBox(parts)

    def _press(self) -> None:
        with self._lock:
            if self.guess is not None:
                self._draw()
                return
            try:
                self.commit(self._current())
            except InputError as error:
                self._line.value = f'<span style="color:#d62728">{html.escape(str(error))}</span>'
            self._locked_at = time.monotonic()

    def _on_value(self) -> None:
        """Draw a sketch, or take in a last move of a control.

        A page sends a control's moves one by one and a button's press at once, so the press may come before the last
        move. That move was made before the page locked the control, and so before the measurement was shown.
        """
        with self._lock:
            if self.guess is not None and time.monotonic() - self._locked_at < LATE:
                self.guess = self.kind.guess(self._current())
                self._draw()
            else:
                self._draw_curve()

    def _current(self) -> Any:
        values = [control.value for control in self._inputs]
        return values if isinstance(self.kind, Curve) else values[0]

    def _draw(self) -> None:
        """Show guess and measurement, if there are any. The controls of a committed guess are locked."""
        if self._panel is None:
            return
        if self.guess is not None:
            measured = self.measure()
            for control in self._inputs:
                control.disabled = True
            self._button.description = "Show the measurement"
            self._button.layout.display = "none" if measured else ""
            self._line.value = self._outcome()
            if measured and self.show is not None and not self._shown.outputs:
                self._shown.append_display_data(self.show)
        self._draw_curve()

    def _outcome(self) -> str:
        row = {name: html.escape(text) for name, text in self.row().items()}
        said = f"<b>You:</b> {row['you']}"
        if self.measured is None:
            why = html.escape(self.missing)
            return f"{said}<br>The measurement is not there yet ({why}). Run the cells below, then press the button."
        return f"{said}<br><b>Measured:</b> {row['measured']}<br>{row['apart']}"

    def _draw_curve(self) -> None:
        if isinstance(self.kind, Curve):
            guess = self._current() if self.guess is None else self.guess
            self._sketch.value = curve_picture(self.kind, guess, self.measured).png()


def curve_picture(kind: Curve, guess: Sequence[float], measured: Sequence[float] | None) -> Picture:
    """Draw a guessed curve, and the measured one beside it.

    Args:
        kind: the points and the range.
        guess: one value per point.
        measured: one value per point, or ``None`` while the measurement is hidden.

    Returns:
        The picture, which a notebook shows as a PNG.
    """
    lines = [Line(kind.at, guess, GUESS, "solid", 2.5, symbol="circle", name="you")]
    if measured is not None:
        lines.append(Line(kind.at, measured, MEASURED, "dash", 2.5, symbol="square", name="measured"))
    values = [v for line in lines for v in line.y if v is not None]
    limits = min(kind.low, *values), max(kind.high, *values)
    log = kind.at[0] > 0 and kind.at[-1] / kind.at[0] >= 16
    across = Axis(ticks={place: f"{place:g}" for place in kind.at}, log=log)
    panel = Panel(across, Axis(kind.unit, limits, log=kind.log), lines, legend="beside")
    return Picture(Figure([panel], 560, 240), f"{len(lines)} curves at {len(kind.at)} points")


def _inputs(kind: Kind) -> list[widgets.Widget]:
    """The controls of a guess: radio buttons, one slider, a field, or one slider per point."""
    if isinstance(kind, Choice):
        return [widgets.RadioButtons(options=kind.choices, value=None, layout=widgets.Layout(width="95%"))]
    if isinstance(kind, Curve):
        return [_slider(kind.low, kind.high, kind.log, f"at {place:g}") for place in kind.at]
    if kind.low is None or kind.high is None:
        return [widgets.FloatText(description=kind.unit, layout=WIDE)]
    return [_slider(kind.low, kind.high, kind.log, kind.unit)]


def _slider(low: float, high: float, log: bool, description: str) -> widgets.Widget:
    look: dict[str, Any] = {"description": description, "layout": WIDE, "continuous_update": False}
    if log:
        ends = math.log10(low), math.log10(high)
        return widgets.FloatLogSlider(
            value=10 ** (sum(ends) / 2), min=ends[0], max=ends[1], step=0.05, readout_format=".2g", **look
        )
    if isinstance(low, int) and isinstance(high, int) and high - low >= 10:
        return widgets.IntSlider(value=(low + high) // 2, min=low, max=high, **look)
    return widgets.FloatSlider(
        value=(low + high) / 2, min=low, max=high, step=(high - low) / 100, readout_format=".3g", **look
    )
