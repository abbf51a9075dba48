"""``FineTuneLab``: look up recorded fine-tuning runs with sliders, and train new ones.

Every event, such as a moved control or a report of the race, ends in one frozen ``LabView``. All parts draw from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from nlora_lab.core.errors import InputError
from nlora_lab.core.formatting import format_rate
from nlora_lab.core.validation import check_choice
from nlora_lab.labs.figures import Figures, allow_custom_widgets, in_colab
from nlora_lab.labs.live import Ended, Event, Finished, LiveRace, Loading, Started, Stepped
from nlora_lab.labs.panel import LivePanel
from nlora_lab.labs.run_list import RunActions, RunList
from nlora_lab.labs.tabs import Tabs
from nlora_lab.labs.training_controls import HINT, TrainingControls
from nlora_lab.labs.view import TABS, LabView, Message, make_view, method_view
from nlora_lab.methods.table import METHODS
from nlora_lab.models.names import EMBEDDED, check_model
from nlora_lab.pages.opening import shipped_opening
from nlora_lab.pages.recorded import recorded_data
from nlora_lab.plots.lab import LabDrawing
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.index import RecordedRuns
from nlora_lab.runs.rate_points import RatePoint
from nlora_lab.runs.run import Run, run_table
from nlora_lab.runs.shipped import recorded_runs
from nlora_lab.runs.store import RunStore, open_store

if TYPE_CHECKING:
    import pandas as pd


class FineTuneLab(LivePanel, RunActions):
    """A panel that shows recorded runs as its controls select them, and trains new runs.

    Every control is an attribute and can be set from Python. ``lab.run.click()`` trains all ticked methods in one
    race and returns at once. ``lab.stop.click()`` ends the race within a step and keeps what was trained.
    ``lab.wait()`` blocks until the race has ended. Colab shows nothing that a background thread sends. There the
    training runs in the foreground, and the stop button of the cell ends it.

    The methods ``rename``, ``hide``, ``pin``, ``delete``, ``compare`` and ``export`` do what the buttons of a run's
    row do. They take the number of the run: its index in ``runs``.

    Args:
        method: the name of the method ticked at first, or several names.
        model: "embedded", "larger", a folder, or a hub id. Recorded runs of the first two ship.
        figures: the kind of figure in the tab "inside": "plotly", "image", or "auto" to choose by the front end.
        recorded: the recorded runs to show, as a store or its folder. By default those that ship.
        store: a store or folder in which every finished run is saved too. By default none.

    Attributes:
        method: the ticked methods. ``value`` is a tuple of names; one name can be set too.
        rank: the slider of the rank r.
        init: the menu of the initialisation of N, for SLoRA.
        lr: the slider of the learning rate.
        own_rates: the box that trains each method at its own best recorded rate instead of ``lr``.
        steps: the slider of the number of training steps.
        task: the menu of the tasks.
        seed: the field of the seed.
        run: the button that starts a race.
        stop: the button that stops it.
        clear: the button that deletes all runs that are not pinned.
        widget: the controls and the figure as one anywidget, for notebooks that show no ipywidgets, such as marimo.
        inside: the panel of what happens inside the adapters, which can be displayed on its own.
        store: the store of finished runs, or ``None``.
        model: the model that is trained.

    Raises:
        InputError: a name is not known, the model cannot be found, or ``recorded`` is not a store.
    """

    def __init__(
        self, method: str | Iterable[str] = ("lora", "slora", "nlora"), *, model: str = EMBEDDED,
        figures: Figures = "auto", recorded: RunStore | str | Path | None = None,
        store: RunStore | str | Path | None = None,
    ) -> None:  # fmt: skip
        check_model(model)
        self.model = model
        self._recorded = open_store(recorded)
        self._opening = shipped_opening() if recorded is None and model == EMBEDDED else None
        self.store = store if isinstance(store, RunStore) or store is None else RunStore(store)
        self._list = RunList(self.store)
        self._race = LiveRace(self._on_race, background=not in_colab())
        self._remark = ""  # why a run of the last race could not be saved
        allow_custom_widgets()
        self._controls = c = TrainingControls(method, self._compact(), self._update)
        self.method, self.lr, self.own_rates, self.rank, self.init = c.method, c.lr, c.own_rates, c.rank, c.init
        self.steps, self.task, self.seed, self.run, self.stop = c.steps, c.task, c.seed, c.run, c.stop
        self.widget = c.widget
        self._tabs = Tabs(figures, self._edit, self._delete)
        self.inside, self.clear = self._tabs.inside, self._tabs.export_row.clear
        self._view = self._make_view(HINT)
        self._panel = widgets.VBox([self.widget, self._tabs])
        self._tabs.draw(self._view)
        c.draw(self._view)
        self.run.on_click(lambda _: self._start())
        self.stop.on_click(lambda _: self._race.stop())
        self.clear.on_click(lambda _: self._clear())
        self._tabs.export_row.write.on_click(lambda _: self._export_ticked())
        self._tabs.observe(lambda _: self._on_tab(), "selected_index")

    @cached_property
    def recordings(self) -> RecordedRuns:
        """The recorded runs. Those that ship are read when they are first needed."""
        return recorded_runs(self._recorded, self.model)

    @property
    def runs(self) -> list[Run]:
        """The runs trained here, in the order in which they ended."""
        return [entry.run for entry in self._list.entries]

    @property
    def running(self) -> bool:
        """Whether something is training."""
        return self._race.running

    @property
    def status(self) -> str:
        """The line beside the buttons, as text."""
        return " ".join(text for _, text in self._view.status)

    def configs(self) -> list[RunConfig]:
        """Return the runs that the controls select: one config per ticked method.

        Raises:
            InputError: the settings do not go together.
        """
        return [self._view.settings.config(m.method, m.rate, self.model) for m in self._view.methods]

    def rate(self, method: str) -> float:
        """Return the learning rate at which a method would be trained.

        Args:
            method: the name of the method. It need not be ticked.

        Returns:
            The rate of the slider, to the two digits that it shows. With ``own_rates`` it is the method's own best
            recorded rate, if one was recorded.

        Raises:
            InputError: the method is not known.
        """
        check_choice("method", method, METHODS)
        return method_view(self._view.settings, self.recordings, method).rate

    def recorded(self, method: str) -> RatePoint | None:
        """Return the recorded runs of a method at the settings of the controls.

        Args:
            method: the name of the method. It need not be ticked.

        Returns:
            The runs at the recorded rate that is nearest, or ``None`` if none is near.

        Raises:
            InputError: the method is not known.
        """
        check_choice("method", method, METHODS)
        return method_view(self._view.settings, self.recordings, method).point

    def wait(self) -> list[Run]:
        """Block until nothing is training, and return ``runs``.

        While a cell waits, the kernel does not hear the Stop button of the page. Interrupt the kernel (■) instead: it
        stops the training and keeps what was trained.

        Raises:
            Exception: the error that ended the training, if one did.
        """
        self._race.wait()
        return self.runs

    def table(self) -> pd.DataFrame:
        """Return the runs trained here as a table: one row per run, the columns of ``Run.summary``."""
        return run_table(self.runs)

    def numbers(self) -> pd.DataFrame:
        """Return what was recorded at the settings of the controls: a row per ticked method.

        Returns:
            A table with the columns of ``RecordedRuns.numbers``.
        """
        import pandas as pd

        s = self._view.settings
        asked = [(s.task, m.method, s.init_of(m.method), m.rate) for m in self._view.methods]
        return pd.DataFrame(
            self.recordings.with_steps(task, method, s.steps, init).numbers(task, method, s.rank, rate, init)
            for task, method, init, rate in asked
        )

    def open(self, tab: str) -> None:
        """Open a tab.

        Args:
            tab: "runs", "answers" or "inside".

        Raises:
            InputError: the tab does not exist.
        """
        check_choice("tab", tab, TABS)
        self._tabs.selected_index = TABS.index(tab)

    def save_page(self, path: str | Path) -> Path:
        """Write the lab into one HTML file: recorded runs as the controls stand now, no kernel, no network.

        Args:
            path: the file.

        Returns:
            The file.

        Raises:
            InputError: the file cannot be written.
        """
        from nlora_lab.pages.sections import write_lab  # imports torch

        return write_lab(path, self.recordings, self._controls.page_state())

    def drawing(self) -> LabDrawing:
        """Return the figure that the controls and the runs make now."""
        with self._race.lock:
            return self._make_view().drawing

    def picture(self) -> bytes:
        """Return the figure as PNG bytes."""
        ready = self._opening if not (self.runs or self.running) else None
        if ready and ready.settings == {**asdict(self._controls.settings()), "methods": list(self.method.value)}:
            return ready.picture
        return super().picture()

    def __repr__(self) -> str:
        s, trained = self._view.settings, len(self.runs)
        names = ", ".join(METHODS[name].label for name in s.methods) or "no method"
        at = "each at its own best rate" if s.own_rates else f"at the rate {format_rate(s.rate)}"
        runs = f"{trained} run{'s' * (trained != 1)} trained here"
        return f"FineTuneLab: {names} on {s.task}, rank {s.rank}, {at}: the recorded runs, and {runs}"

    # --- from an event to a view, and from the view to the parts ---

    def _compact(self) -> tuple[dict[str, Any], bytes]:
        return (self._opening.data, self._opening.curves) if self._opening else recorded_data(self.recordings)

    def _make_view(self, status: Message | None = None) -> LabView:
        return make_view(
            self._controls.settings(), lambda: self.recordings, entries=self._list.entries, tab=self._tabs.opened,
            training=self._race.curves.values(), running=self.running, progress=self._race.pace.progress,
            status=self._view.status if status is None else status, model=self.model,
        )  # fmt: skip

    def _update(self, status: Message | None = None) -> None:
        """Make a new view and draw everything from it. Without a new ``status`` the old one stays."""
        with self._race.lock:
            self._view = self._make_view(status)
            self._controls.draw(self._view)
            self._tabs.draw(self._view)

    def _say(self, kind: str, text: str) -> None:
        """Show a line beside the buttons. Nothing else has changed."""
        with self._race.lock:
            self._view = replace(self._view, status=((kind, text),))
            self._controls.draw_status(self._view)

    def _on_tab(self) -> None:
        """Fill the tab that was opened. Nothing else has changed."""
        with self._race.lock:
            self._view = replace(self._view, tab=self._tabs.opened)
            self._tabs.draw_open(self._view)

    def _on_race(self, event: Event) -> None:
        """Take in what the race reports. The lock is held."""
        match event:
            case Started():
                self._remark = ""
                self._update()
            case Loading(device):
                self._say("plain", f"Loading the model. It trains on: {device}")
            case Stepped():
                self._on_step(event)
            case Finished(run, recorder):
                self._remark = self._list.add(run, recorder) or self._remark
                if not self._race.stopping:  # else drawing would hold up the end, which draws everything too
                    self._update()
            case Ended():
                text, failed = event.outcome()
                remark = (("error", self._remark),) if self._remark else ()
                self._update((("error" if failed else "plain", text), *remark))

    def _on_step(self, event: Stepped) -> None:
        """Show progress and growing curves. Everything else is reused from the last view."""
        if self._race.pace.due():
            name, text = self._race.headline(event)
            status = ("strong", name), ("plain", text)
            self._view = replace(self._view, progress=self._race.pace.progress, status=status)
            self._controls.draw_status(self._view)
        if self._controls.due():
            self._view = self._view.grown(self._race.curves.values())
            self._controls.draw(self._view)

    def _start(self) -> None:
        try:
            configs = self.configs()
        except InputError as error:
            self._race.error = error
            self._say("error", str(error))
            return
        if configs:
            self._race.start(configs)
        else:
            self._say("error", "No method is ticked: tick at least one.")

    def _edit(self, run: Run, **changes: Any) -> None:
        with self._race.lock:
            self._list.edit(run, **changes)
            self._update()

    def _delete(self, run: Run) -> None:
        with self._race.lock:
            if self.running:
                self._say("plain", "You can delete a run once the training has ended.")
                return
            self._list.remove(run)
            self._update()

    def _clear(self) -> None:
        with self._race.lock:
            if not self.running:
                self._list.clear()
                self._update(HINT)

    def _export_ticked(self) -> None:
        ticked = [i for i, entry in enumerate(self._list.entries) if entry.ticked]
        try:
            written = self.export(*self._tabs.export_row.target(), *ticked)
            self._say("plain", f"Written: {', '.join(map(str, written))}")
        except InputError as error:
            self._say("error", str(error))
