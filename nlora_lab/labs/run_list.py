"""The list of the runs trained in the lab. Each can be ticked, named, hidden, pinned, deleted and exported."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import ipywidgets as widgets

from nlora_lab.core.errors import InputError
from nlora_lab.core.formatting import format_bytes, format_rate
from nlora_lab.core.validation import check_choice, check_text, whole_number
from nlora_lab.labs.panel import ROW
from nlora_lab.labs.view import Entry, LabView
from nlora_lab.methods.table import METHODS
from nlora_lab.plots.lab import run_names
from nlora_lab.runs.run import Run, run_table
from nlora_lab.runs.store import RunStore

if TYPE_CHECKING:
    import pandas as pd

DASHES = {"solid": "━━", "dash": "╍╍", "dot": "┅┅", "dashdot": "━╍", "longdash": "━ ━", "longdashdot": "━ ┅"}
EXPORTS = {
    "losses as CSV": "csv",
    "records as JSON": "json",
    "adapter (PEFT)": "peft",
    "adapter (plain LoRA)": "lora",
}
"""What can be exported: the choices of the menu, and the kinds that they stand for."""
EMPTY = "No run of your own yet. Press Run."


class Edit(Protocol):
    """Changes fields of a run's ``Entry``."""

    def __call__(self, run: Run, **changes: Any) -> None:
        """Set these fields."""


def swatch(method: str) -> str:
    """Return a short line in the method's hue and dash, as HTML."""
    entry = METHODS[method]
    return f'<span style="color:{entry.colour};font-weight:bold;white-space:pre">{DASHES[entry.dash]}</span>'


def run_numbers(run: Run) -> tuple[str, ...]:
    """Return the settings of a run and its results, as the cells of its row."""
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


class RunList:
    """The runs trained in a lab, as a list of entries that is replaced with every change.

    Args:
        store: where finished runs are saved too, or ``None``.
    """

    def __init__(self, store: RunStore | None) -> None:
        self.entries: list[Entry] = []
        self._store = store

    def add(self, run: Run, recorder: Any) -> str:
        """Add a finished run, and name all runs apart. Return why the run could not be saved, or nothing."""
        entries = [*self.entries, Entry(run, "", recorder)]
        names = run_names([entry.run.config for entry in entries])
        self.entries = [e if e.renamed else replace(e, name=name) for e, name in zip(entries, names, strict=True)]
        if self._store is None or run.stopped:
            return ""
        try:
            self._store.add(run)
        except InputError as error:
            return f"Not kept on disk: {error}. The run stays here."
        return ""

    def edit(self, run: Run, **changes: Any) -> None:
        """Change fields of a run's entry."""
        self.entries = [replace(e, **changes) if e.run is run else e for e in self.entries]

    def remove(self, run: Run) -> None:
        """Remove a run."""
        self.entries = [e for e in self.entries if e.run is not run]

    def clear(self) -> None:
        """Remove all runs that are not pinned."""
        self.entries = [e for e in self.entries if e.pinned]

    def find(self, number: int) -> Entry:
        """Return the entry of a run by its number, or raise ``InputError``."""
        count, index = len(self.entries), whole_number(number)
        if index is None or not -count <= index < count:
            remedy = f"choose from 0 to {count - 1}" if count else "press Run first"
            raise InputError(f"number={number!r} is not a run of this lab, which has {count} runs; {remedy}")
        return self.entries[index]

    def compare(self, numbers: Sequence[int]) -> pd.DataFrame:
        """Return one column per run, all runs if no number is given."""
        entries = [self.find(number) for number in numbers] or self.entries
        frame = run_table(e.run for e in entries).T
        frame.columns = [e.name for e in entries]
        return frame

    def export(self, kind: str, path: str | Path, numbers: Sequence[int]) -> list[Path]:
        """Write runs to disk, all runs if no number is given, and return the files or folders."""
        from nlora_lab.training import export

        check_choice("kind", kind, EXPORTS.values())
        entries = [self.find(number) for number in numbers] or self.entries
        if not entries:
            raise InputError("the lab has no run to export yet; press Run first")
        names, runs = [e.name for e in entries], [e.run for e in entries]
        if kind == "csv":
            return [export.save_csv(runs, names, path)]
        if kind == "json":
            return [export.save_json(runs, path, names)]
        places = [self.entries.index(e) + 1 for e in entries]
        folders = [export.free_folder(path, f"{i:02}-{r.config.method}") for i, r in zip(places, runs, strict=True)]
        return [export.save_adapter(run, folder, kind) for run, folder in zip(runs, folders, strict=True)]


class RunActions:
    """What can be done to the runs of a lab, by their numbers."""

    _list: RunList
    _edit: Edit
    _delete: Callable[[Run], None]

    def rename(self, number: int, name: str) -> None:
        """Give a run another name in figures and tables.

        Args:
            number: the index of the run in ``runs``.
            name: the new name.

        Raises:
            InputError: the run does not exist, or the name is blank.
        """
        run = self._list.find(number).run
        self._edit(run, name=check_text("name", name).strip(), renamed=True)

    def hide(self, number: int, hidden: bool = True) -> None:
        """Leave a run out of the figure, or show it again.

        Args:
            number: the index of the run in ``runs``.
            hidden: False shows the run again.

        Raises:
            InputError: the run does not exist.
        """
        self._edit(self._list.find(number).run, hidden=hidden)

    def pin(self, number: int, pinned: bool = True) -> None:
        """Pin a run: it stays when the others are cleared, and is listed first.

        Args:
            number: the index of the run in ``runs``.
            pinned: False lets the run go again.

        Raises:
            InputError: the run does not exist.
        """
        self._edit(self._list.find(number).run, pinned=pinned)

    def delete(self, number: int) -> None:
        """Remove a run from the lab. A copy in ``store`` stays there. Nothing is removed while something trains.

        Args:
            number: the index of the run in ``runs``.

        Raises:
            InputError: the run does not exist.
        """
        self._delete(self._list.find(number).run)

    def compare(self, *numbers: int) -> pd.DataFrame:
        """Return runs side by side.

        Args:
            *numbers: the indices of the runs in ``runs``. By default all runs.

        Returns:
            One column per run, one row per setting and result, as in ``Run.summary``.

        Raises:
            InputError: the run does not exist.
        """
        return self._list.compare(numbers)

    def export(self, kind: str, path: str | Path, *numbers: int) -> list[Path]:
        """Write runs to disk.

        Args:
            kind: "csv" (losses, one row per step) or "json" (complete records) write the file ``path``. "peft" and
                "lora" (see ``nl.save_adapter``) write one folder per run below ``path``.
            path: the file or folder.
            *numbers: the indices of the runs in ``runs``. By default all runs.

        Returns:
            The files or folders written.

        Raises:
            InputError: the kind is not known, the run does not exist, a run cannot be written in this form, or the
                path cannot be written.
        """
        return self._list.export(kind, path, numbers)


class RunRow(widgets.HBox):
    """The row of one run.

    Args:
        entry: the run as it is listed at first.
        edit: called when a control of the row changes the entry.
        delete: called with the run when its bin is clicked.
    """

    def __init__(self, entry: Entry, edit: Edit, delete: Callable[[Run], None]) -> None:
        self._entry, self._edit = entry, edit
        run = entry.run
        self._tick = widgets.Checkbox(indent=False, tooltip="compare or export this run", layout=_fixed("28px"))
        self._tick.style = {"description_width": "0px"}
        self._name = widgets.Text(
            entry.name, continuous_update=False, tooltip="name of this run", layout=_fixed("190px")
        )
        self._hide = widgets.ToggleButton(icon="eye-slash", tooltip="hide in the figure", layout=_fixed("42px"))
        self._pin = widgets.ToggleButton(
            icon="thumb-tack", tooltip="pin: this run stays when runs are cleared", layout=_fixed("42px")
        )
        self._delete = widgets.Button(icon="trash", tooltip="delete this run", layout=_fixed("42px"))
        self._controls = {"ticked": self._tick, "name": self._name, "hidden": self._hide, "pinned": self._pin}
        self.draw(entry, running=False)
        for field, control in self._controls.items():
            control.observe(lambda change, field=field: self._changed(field, change["new"]), "value")
        self._delete.on_click(lambda _: delete(run))
        super().__init__(
            [
                self._tick, widgets.HTML(swatch(run.config.method), layout=_fixed("44px")), self._name,
                _numbers_cell(run), self._hide, self._pin, self._delete,
            ],
            layout=widgets.Layout(align_items="center", width="100%", flex_flow="row nowrap"),
        )  # fmt: skip

    def draw(self, entry: Entry, running: bool) -> None:
        """Show the entry. While something trains, no run can be deleted."""
        self._entry = entry
        for field, control in self._controls.items():
            control.value = getattr(entry, field)
        self._delete.disabled = running

    def close(self) -> None:
        """Give the row up: ipywidgets holds on to widgets that are not closed, and their callbacks to the run."""
        for part in self.children:
            part.unobserve_all()
            part.close()
        super().close()

    def _changed(self, field: str, value: Any) -> None:
        if getattr(self._entry, field) != value:  # else the lab itself has set the control
            self._edit(self._entry.run, **{field: value}, **({"renamed": True} if field == "name" else {}))


class RunRows(widgets.VBox):
    """One row per run. The row of a run is made once.

    Args:
        edit: called when a control of a row changes its entry.
        delete: called with a run when its bin is clicked.
    """

    def __init__(self, edit: Edit, delete: Callable[[Run], None]) -> None:
        self._edit, self._delete = edit, delete
        self._rows: dict[int, RunRow] = {}
        self._hint = widgets.HTML(EMPTY)
        super().__init__([self._hint])

    def draw(self, view: LabView) -> None:
        """Show the runs, the pinned ones first."""
        known = self._rows
        self._rows = {id(e.run): known.get(id(e.run)) or RunRow(e, self._edit, self._delete) for e in view.entries}
        for entry in view.entries:
            self._rows[id(entry.run)].draw(entry, view.running)
        ordered = sorted(view.entries, key=lambda entry: not entry.pinned)
        self.children = [self._rows[id(entry.run)] for entry in ordered] or [self._hint]
        for key in known.keys() - self._rows.keys():
            known[key].close()


class ExportRow(widgets.Box):
    """The row below the list of runs: what to write where, and the button that clears the list."""

    def __init__(self) -> None:
        self.kind = widgets.Dropdown(
            options=list(EXPORTS.items()), description="export", style={"description_width": "50px"}
        )
        self.place = widgets.Text("exports", description="to folder", style={"description_width": "70px"})
        self.write = widgets.Button(
            description="Write", icon="download", tooltip="write the ticked runs, or all runs if none is ticked"
        )
        self.clear = widgets.Button(
            description="Clear runs", icon="trash", disabled=True, tooltip="delete all runs that are not pinned"
        )
        super().__init__([self.kind, self.place, self.write, self.clear], layout=widgets.Layout(**ROW))

    def target(self) -> tuple[str, str | Path]:
        """Return the kind of export, and the file or folder to write."""
        kind, place = self.kind.value, self.place.value
        return kind, Path(place) / f"runs.{kind}" if kind in ("csv", "json") else place

    def draw(self, view: LabView) -> None:
        """Disable the button where there is nothing to clear."""
        self.clear.disabled = view.running or all(entry.pinned for entry in view.entries)


def _numbers_cell(run: Run) -> widgets.Widget:
    cells = " ".join(  # a narrow page breaks lines at these spaces
        f'<span style="margin-right:10px;white-space:nowrap">{html.escape(text)}</span>' for text in run_numbers(run)
    )
    return widgets.HTML(
        f'<div style="line-height:1.5" title="{html.escape(run.error)}">{cells}</div>',
        layout=widgets.Layout(flex="1 1 200px", min_width="0", height="auto"),
    )


def _fixed(width: str) -> widgets.Layout:
    return widgets.Layout(width=width, flex=f"0 0 {width}")
