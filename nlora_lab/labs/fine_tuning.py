"""``FineTuneLab``: move rank, start and learning rate and see what was recorded; press Run to see it happen."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from nlora_lab.core.errors import InputError
from nlora_lab.core.formatting import format_rate
from nlora_lab.core.validation import check_choice
from nlora_lab.labs import words
from nlora_lab.labs.entries import Entry, RunRows
from nlora_lab.labs.figures import Figures, in_colab, live_figure
from nlora_lab.labs.inside import InsidePanel
from nlora_lab.labs.live import LiveRace
from nlora_lab.labs.training_controls import EXPORTS, HINT, TABS, TrainingControls, line
from nlora_lab.methods.table import METHODS
from nlora_lab.models.names import EMBEDDED, check_model
from nlora_lab.plots.lab import Growing, LabDrawing, RecordedLine
from nlora_lab.plots.runs import Curve, curve, run_names
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.index import RatePoint
from nlora_lab.runs.run import KEPT_ANSWERS, Run, run_table
from nlora_lab.runs.shipped import base_answers, recorded_runs
from nlora_lab.runs.store import RunStore, open_store
from nlora_lab.tasks.generated import TASKS
from nlora_lab.tasks.registry import first_items

if TYPE_CHECKING:
    import pandas as pd


class FineTuneLab:
    """A panel that shows recorded runs as its controls say, and trains new ones over them.

    Every control is an attribute and can be set from Python: ``method`` (a name or several), ``rank``, ``init`` (of
    N, in SLoRA), ``lr``, ``own_rates`` (each method at its own best recorded rate instead of ``lr``), ``steps``,
    ``task``, ``seed``. ``run.click()`` starts what the controls say, all ticked methods in one race, and returns
    at once; ``stop.click()`` ends it within a step and keeps what there is; ``wait()`` blocks until it is done and
    returns ``runs``, all runs so far; ``running`` says whether something is being trained.

    ``rename``, ``hide``, ``pin``, ``delete``, ``compare`` and ``export`` do with a run (by its number in ``runs``) what
    the buttons of its row do.

    In Colab, which shows nothing from a background thread, training runs in the foreground; its cell's stop ends it.

    Args:
        method: the methods ticked at first.
        model: "embedded", a folder, or a hub id. Recorded runs are of the embedded model.
        figures: "plotly", "image", or "auto" to choose by where the notebook runs.
        recorded: the runs to open on: a store or its folder; by default those that ship.
        store: a folder in which every finished run of yours is kept as well; by default none.
    """

    def __init__(
        self,
        method: str | Iterable[str] = ("lora", "slora", "nlora"),
        *,
        model: str = EMBEDDED,
        figures: Figures = "auto",
        recorded: RunStore | str | Path | None = None,
        store: RunStore | str | Path | None = None,
    ) -> None:
        check_model(model)
        self.model = model
        self.recordings = recorded_runs(open_store(recorded), model)
        self.store = store if isinstance(store, RunStore) or store is None else RunStore(store)
        self.entries: list[Entry] = []
        self._live_race = LiveRace(self, background=not in_colab())
        self._controls = c = TrainingControls([method] if isinstance(method, str) else method, self._moved)
        self.method, self.lr, self.own_rates, self.rank, self.init = c.method, c.lr, c.own_rates, c.rank, c.init
        self.steps, self.task, self.seed = c.steps, c.task, c.seed
        self.run, self.stop, self.clear = c.run, c.stop, c.clear
        self._numbers, self._answers, self._compared = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self._rows = RunRows(self._redraw, self._delete)
        self._figure = live_figure(self.drawing(), figures)
        self.inside = InsidePanel(figures)
        self.run.on_click(lambda _: self._start())
        self.stop.on_click(lambda _: self._live_race.stop())
        self.clear.on_click(lambda _: self._clear())
        c.write.on_click(lambda _: self._export_clicked(c.kind.value, c.place.value))
        self._panel = self._arrange()
        self.say(HINT)
        self.changed()

    # --- what it is as a Python object ---

    @property
    def runs(self) -> list[Run]:
        """The runs trained here, in their order."""
        return [entry.run for entry in self.entries]

    def configs(self) -> list[RunConfig]:
        """What the controls say now: one config for each ticked method."""
        return [
            RunConfig(
                method=name,
                rank=self.rank.value,
                lr=self.rate(name),
                init=self.init.value if METHODS[name].inits else None,
                steps=self.steps.value,
                task=self.task.value,
                seed=self.seed.value,
                model=self.model,
            )
            for name in self.method.value
        ]

    def rate(self, method: str) -> float:
        """The rate this method is trained at: the slider's as it reads, two digits, or with ``own_rates`` its own best.

        Where nothing was recorded to choose a best from, it is the slider's.
        """
        best = self._best(method) if self.own_rates.value else None
        if best is not None:
            return best.lr
        return self._controls.rate()

    def recorded(self, method: str) -> RatePoint | None:
        """The recorded runs of a method as the controls say, or ``None`` where there are none near."""
        check_choice("method", method, METHODS)
        task, rank, init = self.task.value, self.rank.value, self._init_of(method)
        return self.recordings.at(task, method, rank, self.rate(method), init)

    def wait(self) -> list[Run]:
        """Block until nothing is being trained, then return :attr:`runs`.

        While a cell waits here the page's Stop button is not heard; interrupt the kernel instead (■),
        which stops the training and keeps what there is. Raises what ended the training if it was an
        error.
        """
        self._live_race.wait()
        return self.runs

    def run_table(self) -> pd.DataFrame:
        """The runs trained here, one a row."""
        return run_table(self.runs)

    def numbers(self) -> pd.DataFrame:
        """What was recorded at these settings: one row a ticked method, NaN where there is nothing.

        Columns: method, parameters, rate, final_loss and accuracy (medians over seeds), seeds, and own_rate, the
        recorded rate with the lowest validation loss, with the accuracy there (0 to 1).
        """
        import pandas as pd

        task, rank = self.task.value, self.rank.value
        rows = [self.recordings.numbers(task, m, rank, self.rate(m), self._init_of(m)) for m in self.method.value]
        return pd.DataFrame(rows)

    def open(self, tab: str) -> None:
        """Open one of the tabs: "at this rate", "runs", "answers", "inside"."""
        check_choice("tab", tab, TABS)
        self._tabs.selected_index = TABS.index(tab)

    def rename(self, number: int, name: str) -> None:
        """Call run ``number`` (an index of :attr:`runs`) by this name in figures and tables."""
        entry = self._entry(number)
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"name={name!r} must be text, and not empty")
        entry.name, entry.renamed = name.strip(), True
        self._redraw()

    def hide(self, number: int, hidden: bool = True) -> None:
        """Leave a run out of the figure, or show it again."""
        self._entry(number).hidden = hidden
        self._remake_rows()

    def pin(self, number: int, pinned: bool = True) -> None:
        """Keep a run when the others are cleared, and show it first."""
        self._entry(number).pinned = pinned
        self._remake_rows()

    def delete(self, number: int) -> None:
        """Forget a run. What a ``store`` holds of it stays there."""
        self._delete(self._entry(number))

    def compare(self, *numbers: int) -> pd.DataFrame:
        """These runs (all if none is named) side by side, one column a run: what was asked, then what was reached."""
        chosen = [self._entry(n) for n in numbers] or self.entries
        frame = run_table(e.run for e in chosen).T
        frame.columns = [e.name for e in chosen]
        return frame

    def export(self, kind: str, path: str | Path, *numbers: int) -> list[Path]:
        """Write runs (all if none is named) and return the files or folders.

        ``kind``: "csv" (losses, one row a step) or "json" (whole records) into the file ``path``; "peft" or "lora"
        (see :func:`nlora_lab.training.export.save_adapter`) into one folder a run below ``path``.
        """
        from nlora_lab.training import export as exports

        check_choice("kind", kind, EXPORTS.values())
        chosen = [self._entry(n) for n in numbers] or self.entries
        if not chosen:
            raise InputError("there is no run to export yet; press Run first")
        names = [e.name for e in chosen]
        if kind == "csv":
            return [exports.save_csv([e.run for e in chosen], names, path)]
        if kind == "json":
            return [exports.save_json([e.run for e in chosen], path, names)]
        places = [(self.entries.index(e) + 1, e) for e in chosen]
        folders = [exports.free_folder(path, f"{i:02}-{e.run.config.method}") for i, e in places]
        return [exports.save_adapter(e.run, folder, kind) for e, folder in zip(chosen, folders, strict=True)]

    def picture(self) -> bytes:
        """The figure as PNG bytes."""
        return self.drawing().png()

    def drawing(self) -> LabDrawing:
        """The figure's data as controls and runs say now."""
        shown = [(name, self.recorded(name)) for name in self.method.value]
        lines = [self._line(name, point) for name, point in shown]
        return LabDrawing(lines, self._curves(), self._controls.rate(), self.steps.value, self._metric())

    def __repr__(self) -> str:
        return f"FineTuneLab: {len(self.entries)} run{'s' * (len(self.entries) != 1)}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """The live panel, and beside it a picture and a line for pages without a kernel."""
        bundle: dict[str, Any] = dict(self._panel._repr_mimebundle_())
        bundle["text/plain"] = repr(self)
        bundle["image/png"] = base64.b64encode(self.picture()).decode()
        return bundle

    # --- running: what LiveRace tells ---

    @property
    def running(self) -> bool:
        """Whether something is being trained."""
        return self._live_race.running

    def _start(self) -> None:
        try:
            configs = self.configs()
        except InputError as error:
            self._live_race.error = error
            self.say(words.error(str(error)))
            return
        if configs:
            self._live_race.start(configs)
        else:
            self.say(words.error("No method is ticked: tick at least one."))

    def changed(self) -> None:
        """Draw everything: a run has begun, or all have ended."""
        self.run.disabled, self.stop.disabled = self.running, not self.running
        self._rows.lock(self.running)
        self._settle()
        self._redraw()

    def grown(self) -> None:
        """Draw the growing curves, unless that was done a moment ago."""
        self._figure.grow(Growing(self.drawing, self._live_curves))

    def progress(self, done: int, total: int) -> None:
        """Move the bar."""
        self._controls.bar.max, self._controls.bar.value = total, done

    def say(self, text: str) -> None:
        """Show a line of HTML beside the buttons."""
        self._controls.status.value = text

    def finished(self, run: Run, recorder: Any) -> str:
        """Take a run in, and keep it on disk if there is a store; one that cannot be written costs only a word."""
        self.entries.append(Entry(run, "", recorder))
        for entry, name in zip(self.entries, run_names([r.config for r in self.runs]), strict=True):
            entry.name = entry.name if entry.renamed else name
        if self.store is None or run.stopped:
            return ""
        try:
            self.store.add(run)
        except InputError as error:
            return words.error(f"Not kept on disk: {error}. The run stays here.")
        return ""

    # --- showing ---

    def _init_of(self, method: str) -> str | None:
        return self.init.value if METHODS[method].inits else None

    def _best(self, method: str) -> RatePoint | None:
        return self.recordings.best(self.task.value, method, self.rank.value, self._init_of(method))

    def _settle(self) -> None:
        """Grey out what makes no difference, and say why."""
        unknown = [METHODS[m].label for m in self.method.value if self._best(m) is None]
        self._controls.settle(unknown if self.own_rates.value else [])

    def _line(self, method: str, point: RatePoint | None) -> RecordedLine:
        init = self._init_of(method)
        valley = self.recordings.valley(self.task.value, method, self.rank.value, init)
        drawn = None if point is None else self.recordings.curve(point)
        return RecordedLine(self._label(method, point), method, valley, point, drawn)

    def _label(self, method: str, point: RatePoint | None) -> str:
        """The method's name, with the rank or rate that stands for the slider's where that is another."""
        label = METHODS[method].label
        if point is None:
            return label
        config = point.runs[0].config
        told = [label] if config.init is None else [f"{label}, N {config.init}"]
        if METHODS[method].build is not None and config.rank != self.rank.value:
            told.append(f"r {config.rank}")
        if self.own_rates.value:
            told.append(format_rate(point.lr))
        return " · ".join(told)

    def _curves(self) -> list[Curve]:
        done = [
            curve(e.run.config, e.run.steps, e.name, e.run.accuracy, e.run.final_loss, e.run.ended)
            for e in self.entries if not e.hidden
        ]  # fmt: skip
        return done + self._live_curves()

    def _live_curves(self) -> list[Curve]:
        live = list(self._live_race.curves.values())
        configs = [*(run.config for run in self.runs), *(config for config, _ in live)]
        names = run_names(configs)[len(self.entries) :]
        return [curve(config, steps, name) for (config, steps), name in zip(live, names, strict=True)]

    def _moved(self) -> None:
        """A control has a new value."""
        self._settle()
        self._redraw()

    def _redraw(self) -> None:
        with self._live_race.lock:
            self._figure.draw(self.drawing())
            self._rows.show(self.entries)
            self.clear.disabled = self.running or all(e.pinned for e in self.entries)
            self._fill_tab()

    def _fill_tab(self) -> None:
        """The tab that is open; the others are filled when they are opened."""
        shown = [(name, self._label(name, self.recorded(name)), self.recorded(name)) for name in self.method.value]
        live = [e for e in self.entries if not e.hidden]
        opened = TABS[self._tabs.selected_index or 0]
        if opened == "at this rate":
            self._numbers.value = words.at_the_slider(shown, [self._best(name) for name in self.method.value])
        elif opened == "runs":
            self._compared.value = words.comparison([e for e in self.entries if e.ticked])
        elif opened == "answers":
            own = [e for e in live if e.run.config.task == self.task.value]
            first = base_answers(self.task.value) if self.model == EMBEDDED else None
            points = [(label, point) for _, label, point in shown]
            self._answers.value = words.answers(first_items(self.task.value, KEPT_ANSWERS), first, points, own)
        else:
            self.inside.show([e for e in self.entries if e.inside is not None])

    def _metric(self) -> str:
        labels = TASKS[self.task.value].labels
        return "accuracy on 200 test items" if labels else "right answers to 200 test problems"

    def _entry(self, number: int) -> Entry:
        whole = isinstance(number, Integral) and not isinstance(number, bool)  # numpy's too
        if not whole or not -len(self.entries) <= number < len(self.entries):
            raise InputError(f"run {number!r} is not here; the lab has {len(self.entries)} runs, counted from 0")
        return self.entries[number]

    def _delete(self, entry: Entry) -> None:
        if self.running:
            self.say("A run can be deleted once the training has ended.")
            return
        with self._live_race.lock:
            self.entries = [e for e in self.entries if e is not entry]
            self._redraw()

    def _clear(self) -> None:
        with self._live_race.lock:
            if not self.running:
                self.entries = [e for e in self.entries if e.pinned]
                self.say(HINT)
                self._redraw()

    def _remake_rows(self) -> None:
        with self._live_race.lock:
            self._rows.forget()
            self._redraw()

    def _export_clicked(self, kind: str, place: str) -> None:
        chosen = [i for i, e in enumerate(self.entries) if e.ticked]
        try:
            made = self.export(kind, Path(place) / f"runs.{kind}" if kind in ("csv", "json") else place, *chosen)
        except InputError as error:
            self.say(words.error(str(error)))
        else:
            self.say(f"Written: {html.escape(', '.join(map(str, made)))}")

    # --- layout ---

    def _arrange(self) -> widgets.Widget:
        c = self._controls
        runs = widgets.VBox([self._rows, self._compared, line(c.kind, c.place, c.write, self.clear)])
        self._tabs = widgets.Tab([self._numbers, runs, self._answers, self.inside.widget], titles=TABS)
        self._tabs.observe(lambda _: self._fill_tab(), "selected_index")
        return widgets.VBox([*c.lines(), self._figure.widget, self._tabs])
