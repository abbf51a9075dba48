"""The lab's list of runs: each can be named, hidden, pinned, ticked to be compared or exported, and deleted."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ipywidgets as widgets

from nlora_lab.core.formatting import format_bytes, format_rate
from nlora_lab.methods.table import METHODS
from nlora_lab.runs.run import Run

DASHES = {"solid": "━━", "dash": "╍╍", "dot": "┅┅", "dashdot": "━╍", "longdash": "━ ━", "longdashdot": "━ ┅"}
EMPTY = "No run of your own yet: press Run."


@dataclass
class Entry:
    """A run in the lab, and what its reader has decided about it."""

    run: Run
    name: str
    inside: Any = None  # an InsideRecorder
    hidden: bool = False
    pinned: bool = False
    ticked: bool = False
    renamed: bool = field(default=False, repr=False)


def swatch(method: str) -> str:
    """A short line in the method's hue and dash, as HTML."""
    entry = METHODS[method]
    return f'<span style="color:{entry.colour};font-weight:bold;white-space:pre">{DASHES[entry.dash]}</span>'


def numbers(run: Run) -> tuple[str, ...]:
    """What a run was asked and what it reached, in the words of the lab's tables."""
    c, method = run.config, METHODS[run.config.method]
    together = f" ({run.together} at once)" if run.together > 1 else ""
    return (
        f"{run.trainable:,} parameters",
        f"r {c.rank}" if method.build else "–",
        format_rate(c.lr),
        f"seed {c.seed}",
        f"{len(run.steps)} steps",
        "–" if run.ended in ("diverged", "failed") or not run.steps else f"loss {run.final_loss:.3f}",
        run.ended or f"{run.accuracy:.1%} right",
        f"{run.seconds:.0f} s{together}",
        format_bytes(run.peak_memory),
    )


class RunRows(widgets.VBox):
    """One row a run. ``changed`` is called after any of its controls was used; the row of a run is made once."""

    def __init__(self, changed: Callable[[], None], delete: Callable[[Entry], None]) -> None:
        self._changed, self._delete = changed, delete
        self._rows: dict[int, tuple[Entry, widgets.HBox]] = {}
        self._locked = False
        self._none = widgets.HTML(EMPTY)
        super().__init__([self._none])

    def show(self, entries: list[Entry]) -> None:
        """Show these: pinned ones first."""
        known = self._rows
        self._rows = {id(e): known.get(id(e)) or (e, self._row(e)) for e in entries}
        for gone in known.keys() - self._rows.keys():
            self._close(known[gone][1])
        ordered = sorted(entries, key=lambda e: not e.pinned)
        for entry in entries:
            name = self._rows[id(entry)][1].children[2]
            if name.value != entry.name:
                name.value = entry.name
        self.children = [self._rows[id(e)][1] for e in ordered] or [self._none]

    def forget(self) -> None:
        """Make every row anew: something was decided from Python."""
        self.children = []
        for _, row in self._rows.values():
            self._close(row)
        self._rows = {}

    @staticmethod
    def _close(row: widgets.HBox) -> None:
        """ipywidgets holds on to every widget that is not closed, and its callbacks to the run and its weights."""
        for part in (*row.children, row):
            part.unobserve_all()
            part.close()

    def lock(self, locked: bool) -> None:
        """While something trains, nothing can be deleted."""
        self._locked = locked
        for _, row in self._rows.values():
            row.children[-1].disabled = locked

    def _row(self, entry: Entry) -> widgets.HBox:
        tick = widgets.Checkbox(entry.ticked, indent=False, tooltip="compare or export this run", layout=_wide("28px"))
        tick.description, tick.style = "", {"description_width": "0px"}
        name = widgets.Text(entry.name, layout=_wide("190px"), continuous_update=False, tooltip="name of this run")
        cells = "".join(
            f'<span style="margin-right:14px;white-space:nowrap">{html.escape(t)}</span>' for t in numbers(entry.run)
        )
        told = widgets.HTML(f'<div style="line-height:1.5" title="{html.escape(entry.run.error)}">{cells}</div>')
        told.layout = widgets.Layout(flex="1 1 200px", min_width="0", height="auto")
        hide = widgets.ToggleButton(entry.hidden, icon="eye-slash", tooltip="hide in the figure", layout=_wide("42px"))
        pin = widgets.ToggleButton(
            entry.pinned, icon="thumb-tack", tooltip="pin: stays when runs are cleared", layout=_wide("42px")
        )
        gone = widgets.Button(icon="trash", tooltip="delete this run", disabled=self._locked, layout=_wide("42px"))
        for control, what in ((tick, "ticked"), (hide, "hidden"), (pin, "pinned")):
            control.observe(lambda change, what=what: self._set(entry, what, change["new"]), "value")
        name.observe(lambda change: self._set(entry, "name", change["new"]), "value")
        gone.on_click(lambda _: self._delete(entry))
        look = widgets.HTML(swatch(entry.run.config.method), layout=_wide("44px"))
        row = widgets.Layout(align_items="center", width="100%", flex_flow="row nowrap")
        return widgets.HBox([tick, look, name, told, hide, pin, gone], layout=row)

    def _set(self, entry: Entry, what: str, value: Any) -> None:
        if getattr(entry, what) != value:
            setattr(entry, what, value)
            entry.renamed = entry.renamed or what == "name"
            self._changed()


def _wide(width: str) -> widgets.Layout:
    return widgets.Layout(width=width, flex=f"0 0 {width}")
