"""The tabs below the figure of the fine-tuning lab: runs, answers, and the inside of the adapters."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence

import ipywidgets as widgets

from nlora_lab.core.formatting import format_rate
from nlora_lab.labs.figures import Figures, LiveFigure, live_figure, pick_figures
from nlora_lab.labs.panel import LivePanel, error_html, row_of
from nlora_lab.labs.run_list import Edit, ExportRow, RunRows, swatch
from nlora_lab.labs.view import TABS, Entry, LabView
from nlora_lab.plots.inside import InsideDrawing, inside_record
from nlora_lab.plots.layer_maps import LayerMapDrawing
from nlora_lab.runs.run import Run
from nlora_lab.tasks.final_answers import final_number
from nlora_lab.tasks.task import Item

CELL = 'style="padding:2px 12px 2px 0;text-align:right;white-space:nowrap"'
LEFT_CELL = 'style="padding:2px 12px 2px 0;text-align:left;white-space:nowrap"'
RIGHT, WRONG = "✓", "✗"
ALL_LAYERS = "all layers"
QUANTITIES = {"over the steps": "", "distance by layer": "distance", "intruders by layer": "intruders"}
"""What the tab "inside" can show: the buttons, and the quantity on the map of the layers ("" for no map)."""
INSIDE_EMPTY = (
    "This tab shows what happens inside the adapters of your own runs, as soon as a run has finished. "
    "Recorded runs do not hold these numbers."
)


class Tabs(widgets.Tab):
    """The tabs. A draw fills the list of runs and the open tab. The other tabs are filled when they are opened.

    Args:
        figures: the kind of figure in the tab "inside".
        edit: called when a control of a run's row changes its entry.
        delete: called with a run when its bin is clicked.
    """

    def __init__(self, figures: Figures, edit: Edit, delete: Callable[[Run], None]) -> None:
        self.comparison, self.answers = widgets.HTML(), widgets.HTML()
        self.rows, self.export_row = RunRows(edit, delete), ExportRow()
        self.inside = InsidePanel(figures)
        runs = widgets.VBox([self.rows, self.comparison, self.export_row])
        super().__init__([runs, self.answers, self.inside.widget], titles=TABS)

    @property
    def opened(self) -> str:
        """The title of the open tab."""
        return TABS[self.selected_index or 0]

    def draw(self, view: LabView) -> None:
        """Show the runs, and fill the open tab."""
        self.rows.draw(view)
        self.export_row.draw(view)
        self.draw_open(view)

    def draw_open(self, view: LabView) -> None:
        """Fill the open tab alone."""
        if view.tab == "runs":
            self.comparison.value = comparison([entry for entry in view.entries if entry.ticked])
        elif view.tab == "answers":
            self.answers.value = answers(view)
        else:
            self.inside.show(view.entries)


# --- tables, as HTML that follows the page's theme ---


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Return a table. The first column is set left. The cells are HTML already."""
    first = "".join(f"<th {LEFT_CELL if i == 0 else CELL}>{h}</th>" for i, h in enumerate(head))
    rows = ("".join(f"<td {LEFT_CELL if i == 0 else CELL}>{c}</td>" for i, c in enumerate(row)) for row in body)
    return (
        f'<div style="overflow-x:auto"><table style="border-collapse:collapse;line-height:1.4"><tr>{first}</tr>'
        + "".join(f"<tr>{row}</tr>" for row in rows)
        + "</table></div>"
    )


def answers(view: LabView) -> str:
    """Return a few test items with the answers of the untouched model, of recorded runs and of visible runs."""
    own_runs = [entry for entry in view.visible if entry.run.config.task == view.settings.task]
    before = view.base_answers
    blocks = []
    for i, item in enumerate(view.first_items):
        lines = []
        if before and i < len(before.answers):
            lines.append(_answer("before tuning", before.answers[i], item, None))
        for m in view.methods:
            if m.point and i < len(m.point.runs[0].answers):
                lines.append(_answer(f"{m.label}, recorded", m.point.runs[0].answers[i], item, m.method))
        for entry in own_runs:
            if i < len(entry.run.answers):
                lines.append(_answer(entry.name, entry.run.answers[i], item, entry.run.config.method))
        blocks.append(
            f'<div style="margin:4px 0 10px 0;line-height:1.45"><b>{html.escape(item["prompt"])}</b> '
            f'<span style="opacity:.75">(right: {html.escape(item["answer"])})</span>{"".join(lines)}</div>'
        )
    return "".join(blocks)


def _answer(label: str, text: str, item: Item, method: str | None) -> str:
    look = swatch(method) if method else '<span style="white-space:pre">··</span>'
    return (
        f'<div style="padding-left:1em">{look} <span style="opacity:.75">{html.escape(label)}:</span> '
        f"{html.escape(text.strip())} <b>{RIGHT if is_right(text, item) else WRONG}</b></div>"
    )


def is_right(text: str, item: Item) -> bool:
    """Return whether an answer is that of the item: its final number, or its word."""
    return item["answer"] in (final_number(text), text.strip())


def comparison(entries: Sequence[Entry]) -> str:
    """Return runs side by side: first the settings in which they differ, then their results."""
    if len(entries) < 2:
        return "Tick two or more runs on the left of their rows to compare them here."
    runs = [entry.run for entry in entries]
    settings = ("method", "rank", "alpha", "init", "lr", "steps", "task", "seed")
    differing = [name for name in settings if len({getattr(run.config, name) for run in runs}) > 1]
    rows = [(name, *(html.escape(_setting(getattr(run.config, name))) for run in runs)) for name in differing]
    results = {
        "parameters": [f"{run.trainable:,}" for run in runs],
        "final loss": [_number(run.final_loss, ".4f") for run in runs],
        "validation loss": [_number(run.metrics.get("validation_loss", math.nan), ".4f") for run in runs],
        "accuracy": [_number(100 * run.accuracy, ".1f", " %") for run in runs],
        "change of the model at step 0": [_number(run.metrics.get("step0_change", math.nan), ".2g") for run in runs],
        "‖change of W‖ / ‖W‖": [_number(run.metrics.get("distance", math.nan), ".3f") for run in runs],
        "seconds": [f"{run.seconds:.0f}" for run in runs],
        "ended": [run.ended or "normally" for run in runs],
    }
    rows += [(name, *values) for name, values in results.items()]
    return table(("", *(f"{swatch(e.run.config.method)} {html.escape(e.name)}" for e in entries)), rows)


def _setting(value: object) -> str:
    return format_rate(value) if isinstance(value, float) else "–" if value is None else str(value)


def _number(value: float, form: str, unit: str = "") -> str:
    return "–" if math.isnan(value) else f"{value:{form}}{unit}"


# --- the inside of the adapters ---


class InsidePanel(LivePanel):
    """Singular values, norms and gradients of a run's adapters over the steps, or a map of its layers.

    Args:
        figures: "plotly", "image", or "auto" to choose by where the notebook runs.

    Attributes:
        view: the control that chooses what is shown.
        run: the control that chooses the run.
        layer: the control that chooses the layer.
        widget: the widget to show.
    """

    def __init__(self, figures: Figures) -> None:
        self._figures: Figures = pick_figures(figures)
        self._figure: LiveFigure | None = None  # made when there is something to show
        self._entries: list[Entry] = []
        self.view = widgets.ToggleButtons(options=list(QUANTITIES.items()), style={"button_width": "140px"})
        self.layer = widgets.Dropdown(options=[ALL_LAYERS], description="layer", style={"description_width": "50px"})
        self.run = widgets.Dropdown(options=[], description="run", style={"description_width": "40px"})
        self._hint, self._failed = widgets.HTML(INSIDE_EMPTY), widgets.HTML()
        self._bar = row_of(self.view, self.run, self.layer)
        self.widget = self._panel = widgets.VBox([self._hint])
        for control in (self.view, self.layer, self.run):
            control.observe(lambda _: self._draw(), "value")

    def show(self, entries: Sequence[Entry]) -> None:
        """Offer these runs, the last one first. A choice made before stays."""
        self._entries = [entry for entry in entries if entry.inside is not None and entry.inside.snapshots]
        if not self._entries:
            self._failed.value = "".join(failure(entry) for entry in entries)
            self.widget.children = [self._hint, self._failed]
            return
        options = [(entry.name, id(entry.run)) for entry in reversed(self._entries)]
        if list(self.run.options) != options:
            chosen, keys = self.run.value, [key for _, key in options]
            self.run.options = options
            self.run.value = chosen if chosen in keys else keys[0]
        layers = [ALL_LAYERS, *(state.layer for state in self._chosen().inside.snapshots[0].layers)]
        if list(self.layer.options) != layers:
            self.layer.options = layers
        self._draw()

    def drawing(self) -> InsideDrawing | LayerMapDrawing:
        """Return the figure that the controls select."""
        entry = self._chosen()
        if self.view.value:
            return LayerMapDrawing(entry.name, entry.inside.snapshots, self.view.value)
        layer = None if self.layer.value == ALL_LAYERS else self.layer.value
        return InsideDrawing([inside_record(entry.run.config, entry.inside.snapshots, entry.name)], layer)

    def picture(self) -> bytes:
        """Return the figure as PNG bytes, empty while no run has finished."""
        return self.drawing().png() if self._entries else b""

    def __repr__(self) -> str:
        return f"what happens inside {len(self._entries)} run{'s' * (len(self._entries) != 1)}"

    def _chosen(self) -> Entry:
        return next((entry for entry in self._entries if id(entry.run) == self.run.value), self._entries[-1])

    def _draw(self) -> None:
        if not self._entries:
            return
        self.layer.disabled = bool(self.view.value)  # a map shows all layers
        if self._figure is None:
            self._figure = live_figure(self.drawing(), self._figures)
        else:
            self._figure.draw(self.drawing())
        self._failed.value = failure(self._chosen())
        self.widget.children = [self._bar, self._failed, self._figure.widget]


def failure(entry: Entry) -> str:
    """Return why the recording of a run ended before the run, as HTML. It is empty if the recording is complete."""
    if entry.inside is None or not entry.inside.failed:
        return ""
    return error_html(f"{entry.name}: the recording of what happens inside ended {entry.inside.failed}") + "<br>"
