"""``FineTuneLab``: move rank, start and learning rate and see what was recorded; press Run to see it happen."""

from __future__ import annotations

import base64
import html
import math
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from nlora_lab.errors import InputError, one_of
from nlora_lab.inits import CORE_INITS
from nlora_lab.labs import words
from nlora_lab.labs.controls import MethodBoxes
from nlora_lab.labs.entries import Entry, RunRows
from nlora_lab.labs.figures import Figures, in_colab, live_figure
from nlora_lab.labs.inside import InsidePanel
from nlora_lab.methods import METHODS
from nlora_lab.models import EMBEDDED, check_model
from nlora_lab.plots import Curve, LabDrawing, RecordedLine, curve, rate_text, run_names
from nlora_lab.progress import duration
from nlora_lab.recorded import STEPS, before, recorded_store
from nlora_lab.recordings import Point, Recordings
from nlora_lab.records import SAMPLES, Run, RunConfig, Step, table
from nlora_lab.store import RunStore
from nlora_lab.tasks import TASKS, first_items

if TYPE_CHECKING:
    import pandas as pd

WORDS = {"description_width": "105px"}
HINT = "What you see was recorded: move the sliders. Run trains what they say, on this machine, and draws it over that."
EXPORTS = {
    "losses as CSV": "csv",
    "records as JSON": "json",
    "adapter (PEFT)": "peft",
    "adapter (plain LoRA)": "lora",
}
TABS = ("at this rate", "runs", "answers", "inside")


class FineTuneLab:
    """A panel that shows recorded runs as its controls say, and trains new ones over them.

    Every control is an attribute and can be set from Python: ``method`` (a name or several), ``rank``, ``init`` (of
    N, in SLoRA), ``lr``, ``own_rates`` (each method at its own best recorded rate instead of ``lr``), ``steps``,
    ``task``, ``seed``. ``run.click()`` starts what the controls say, all ticked methods in one race, and returns
    at once; ``stop.click()`` ends it within a step and keeps what there is; ``wait()`` blocks until it is done and
    returns ``runs``, all runs so far; ``running`` says whether something is being trained.

    ``rename``, ``hide``, ``pin``, ``delete``, ``compare`` and ``export`` do with a run (by its number in ``runs``) what
    the buttons of its row do.

    In Colab, which shows nothing from a background thread, training runs in the foreground and the
    cell's own stop button ends it.

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
        self.recordings = _recordings(recorded, model)
        self.store = store if isinstance(store, RunStore) or store is None else RunStore(store)
        self.entries: list[Entry] = []
        self.error: Exception | None = None
        self.background = not in_colab()
        self._halt = threading.Event()
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self.running = False
        self._held = False
        self._pace: _Pace | None = None
        self._live: dict[int, tuple[RunConfig, list[Step]]] = {}
        self._watched: dict[int, Any] = {}
        self._make_controls([method] if isinstance(method, str) else method)
        self._figure = live_figure(self.drawing(), figures)
        self.inside = InsidePanel(figures)
        self._panel = self._arrange()
        self._redraw()

    def _make_controls(self, ticked: Iterable[str]) -> None:
        self.method = MethodBoxes(ticked)
        wide = widgets.Layout(width="400px")
        self.lr = widgets.FloatLogSlider(
            2e-4, base=10, min=-5, max=0, step=0.1, description="learning rate", readout_format=".1e", style=WORDS,
            layout=wide,
        )  # fmt: skip
        self.own_rates = widgets.Checkbox(
            False, description="each at its own best rate", indent=False, layout=widgets.Layout(width="210px"),
            tooltip="instead of the slider's: for each method the recorded rate with the lowest validation loss",
        )  # fmt: skip
        self.rank = widgets.IntSlider(8, 1, 128, description="rank r", style=WORDS, layout=wide)
        self.init = widgets.Dropdown(options=CORE_INITS, description="N in SLoRA", style=WORDS)
        self.steps = widgets.IntSlider(STEPS, 1, 1000, description="steps", style=WORDS)
        self.task = widgets.Dropdown(options=list(TASKS), description="task", style=WORDS)
        self.seed = widgets.BoundedIntText(0, 0, 10**6, description="seed", style=WORDS)
        self.run = widgets.Button(description="Run", icon="play", button_style="primary", tooltip="train this, here")
        self.stop = widgets.Button(
            description="Stop", icon="stop", disabled=True, tooltip="end it and keep what there is"
        )
        self.clear = widgets.Button(
            description="Clear runs", icon="trash", disabled=True, tooltip="delete all runs that are not pinned"
        )
        self._bar = widgets.IntProgress(0, 0, 1, layout=widgets.Layout(width="180px"))
        self._status, self._reasons = widgets.HTML(HINT), widgets.HTML()
        self._numbers, self._answers, self._compared = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self._rows = RunRows(self._redraw, self._delete)
        self._controls = (self.rank, self.init, self.lr, self.own_rates, self.steps, self.task, self.seed)
        self.run.on_click(lambda _: self._start())
        self.stop.on_click(lambda _: self._halt.set())
        self.clear.on_click(lambda _: self._clear())
        for control in (self.method, *self._controls):
            control.observe(lambda _: self._moved(), "value")

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
        if self.own_rates.value:
            best = self.recordings.best(self.task.value, method, self.rank.value, self._init_of(method))
            if best is not None:
                return best.lr
        return float(f"{self.lr.value:.1e}")

    def recorded(self, method: str) -> Point | None:
        """The recorded runs of a method as the controls say, or ``None`` where there are none near."""
        one_of("method", method, METHODS)
        where = self.task.value, method, self.rank.value, self.rate(method), self._init_of(method)
        return self.recordings.at(*where)

    def wait(self) -> list[Run]:
        """Block until nothing is being trained, then return :attr:`runs`.

        While a cell waits here the page's Stop button is not heard; interrupt the kernel instead (■),
        which stops the training and keeps what there is. Raises what ended the training if it was an
        error.
        """
        thread = self._thread
        try:
            while thread is not None and thread.is_alive():
                thread.join(0.1)
        except KeyboardInterrupt:
            self._halt.set()
            if thread is not None:
                thread.join()
        error, self.error = self.error, None
        if error is not None:
            raise error
        return self.runs

    def table(self) -> pd.DataFrame:
        """The runs trained here, one a row."""
        return table(self.runs)

    def numbers(self) -> pd.DataFrame:
        """What was recorded at these settings: one row a ticked method, NaN where there is nothing.

        Columns: method, parameters, rate, final_loss and accuracy (medians over seeds), seeds, and own_rate, the
        recorded rate with the lowest validation loss, with the accuracy there (0 to 1).
        """
        import pandas as pd

        return pd.DataFrame([self._numbers_of(name) for name in self.method.value])

    def _numbers_of(self, method: str) -> dict[str, Any]:
        point = self.recorded(method)
        best = self.recordings.best(self.task.value, method, self.rank.value, self._init_of(method))
        return {
            "method": method,
            "parameters": point.runs[0].trainable if point else math.nan,
            "rate": point.lr if point else math.nan,
            "final_loss": point.loss.middle if point else math.nan,
            "accuracy": point.accuracy.middle if point else math.nan,
            "seeds": len(point.runs) if point else 0,
            "own_rate": best.lr if best else math.nan,
            "accuracy_there": best.accuracy.middle if best else math.nan,
        }

    def open(self, tab: str) -> None:
        """Open one of the tabs: "at this rate", "runs", "answers", "inside"."""
        one_of("tab", tab, TABS)
        self._tabs.selected_index = TABS.index(tab)

    def rename(self, number: int, name: str) -> None:
        """Call run ``number`` (an index of :attr:`runs`) by this name in figures and tables."""
        entry = self._entry(number)
        entry.name, entry.renamed = name, True
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
        frame = table(e.run for e in chosen).T
        frame.columns = [e.name for e in chosen]
        return frame

    def export(self, kind: str, path: str | Path, *numbers: int) -> list[Path]:
        """Write runs (all if none is named) and return the files or folders.

        ``kind``: "csv" (losses, one row a step) or "json" (whole records) into the file ``path``; "peft" or "lora"
        (see :func:`nlora_lab.exports.save_adapter`) into one folder a run below ``path``.
        """
        from nlora_lab import exports

        one_of("kind", kind, EXPORTS.values())
        chosen = [self._entry(n) for n in numbers] or self.entries
        if not chosen:
            raise InputError("there is no run to export yet; press Run first")
        names = [e.name for e in chosen]
        if kind == "csv":
            return [exports.save_csv([e.run for e in chosen], names, path)]
        if kind == "json":
            return [exports.save_json((e.run for e in chosen), path)]
        folders = [Path(path) / f"{i + 1:02}-{e.run.config.method}" for i, e in enumerate(chosen)]
        return [exports.save_adapter(e.run, folder, kind) for e, folder in zip(chosen, folders, strict=True)]

    def picture(self) -> bytes:
        """The figure as PNG bytes."""
        return self.drawing().png()

    def drawing(self) -> LabDrawing:
        """The figure's data as controls and runs say now."""
        shown = [(name, self.recorded(name)) for name in self.method.value]
        lines = [self._line(name, point) for name, point in shown]
        return LabDrawing(lines, self._curves(), self.rate_shown(), self.steps.value, self._metric())

    def rate_shown(self) -> float:
        """Where the dotted line stands: at the slider's rate."""
        return float(f"{self.lr.value:.1e}")

    def __repr__(self) -> str:
        return f"FineTuneLab: {len(self.entries)} run{'s' * (len(self.entries) != 1)}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """The live panel, and beside it a picture and a line for pages without a kernel."""
        bundle: dict[str, Any] = dict(self._panel._repr_mimebundle_())
        bundle["text/plain"] = repr(self)
        bundle["image/png"] = base64.b64encode(self.picture()).decode()
        return bundle

    # --- running ---

    def _start(self) -> None:
        with self._lock:
            if self.running:
                return  # Run pressed twice
            try:
                configs = self.configs()
            except InputError as error:
                self.error = error
                self._say(words.error(str(error)))
                return
            if not configs:
                self._say(words.error("No method is ticked: tick at least one."))
                return
            self.error = None
            self._halt.clear()
            self.running = True
            self._busy(True)
            self._thread = threading.Thread(target=self._train, args=(configs,), daemon=True, name="nlora-lab")
            if self.background:
                self._thread.start()
                return
            self._thread = None
        self._train(configs)

    def _train(self, configs: list[RunConfig]) -> None:
        from nlora_lab.devices import find_device
        from nlora_lab.inside import InsideRecorder
        from nlora_lab.racing import race

        total = sum(c.steps for c in configs)
        self._bar.max, self._bar.value = total, 0
        self._pace = _Pace(total)
        self._watched = {id(c): InsideRecorder(every=max(10, c.steps // 25)) for c in configs}
        try:
            self._say(f"Loading the model, to train on: {html.escape(find_device().words)}")
            started = len(self.entries)
            race(
                configs, on_step=self._on_step, on_run=self._on_run, halted=self._halt.is_set,
                watch=lambda config, updates, subject: self._watched[id(config)](updates, subject),
            )  # fmt: skip
            told = words.verdict(self.runs[started:], self._halt.is_set())
            self._say(f"{told} {self._unkept}" if self._unkept else told)
        except InputError as error:
            self.error = error
            self._say(words.error(str(error)))
        except Exception as error:  # shown in the panel, and raised by wait()
            self.error = error
            self._say(words.error(f"{type(error).__name__}: {error}"))
        finally:
            with self._lock:
                self._live, self._watched, self.running = {}, {}, False
                self._busy(False)
                self._redraw()

    def _on_step(self, config: RunConfig, step: Step) -> bool:
        with self._lock:
            if id(config) not in self._live:
                self._live[id(config)] = (config, [])
                self._redraw()
            self._live[id(config)][1].append(step)
            pace = self._pace
            if pace is not None:
                pace.done += 1
                if pace.due():
                    self._bar.value = pace.done
                    self._say(
                        f"<b>{html.escape(self._racing())}</b> step {step.step} of {config.steps} · "
                        f"loss {step.loss:.3f} · {pace.left()} left"
                    )
            self._figure.grow(self._growing())
        return self._halt.is_set()

    def _racing(self) -> str:
        labels = [config.label for config, _ in self._live.values()]
        return labels[0] if len(labels) == 1 else f"{len(labels)} methods"

    def _on_run(self, run: Run) -> None:
        with self._lock:
            at = next((key for key, (config, _) in self._live.items() if config is run.config), None)
            recorder = self._watched.get(id(run.config))
            if at is not None:
                del self._live[at]
            self.entries.append(Entry(run, "", recorder))
            self._name_entries()
            self._keep(run)
            if self._pace is not None:
                self._pace.total -= run.config.steps - len(run.steps)
                self._bar.max = max(1, self._pace.total)
            self._redraw()

    _unkept = ""

    def _keep(self, run: Run) -> None:
        """Into the store, if there is one; a store that cannot be written costs nothing but a word."""
        if self.store is None or run.stopped:
            return
        try:
            self.store.add(run)
            self._unkept = ""
        except InputError as error:
            self._unkept = words.error(f"Not kept on disk: {error}. The run stays here.")

    # --- showing ---

    def _init_of(self, method: str) -> str | None:
        return self.init.value if METHODS[method].inits else None

    def _line(self, method: str, point: Point | None) -> RecordedLine:
        init = self._init_of(method)
        valley = self.recordings.valley(self.task.value, method, self.rank.value, init)
        drawn = None if point is None else self.recordings.curve(point)
        return RecordedLine(self._label(method, point), method, valley, point, drawn)

    def _label(self, method: str, point: Point | None) -> str:
        """The method's name, with the rank or rate that stands for the slider's where that is another."""
        label = METHODS[method].label
        if point is None:
            return label
        config = point.runs[0].config
        told = [label] if config.init is None else [f"{label}, N {config.init}"]
        if METHODS[method].build is not None and config.rank != self.rank.value:
            told.append(f"r {config.rank}")
        if self.own_rates.value:
            told.append(rate_text(point.lr))
        return " · ".join(told)

    def _curves(self) -> list[Curve]:
        done = [
            curve(e.run.config, e.run.steps, e.name, e.run.accuracy, e.run.final_loss, e.run.ended)
            for e in self.entries if not e.hidden
        ]  # fmt: skip
        return done + self._live_curves()

    def _live_curves(self) -> list[Curve]:
        live = list(self._live.values())
        names = run_names([*self.runs_configs(), *(config for config, _ in live)])[len(self.entries) :]
        return [curve(config, steps, name) for (config, steps), name in zip(live, names, strict=True)]

    def runs_configs(self) -> list[RunConfig]:
        """The configs of :attr:`runs`."""
        return [run.config for run in self.runs]

    def _growing(self) -> _Growing:
        return _Growing(self)

    def _name_entries(self) -> None:
        for entry, name in zip(self.entries, run_names(self.runs_configs()), strict=True):
            if not entry.renamed:
                entry.name = name

    def _moved(self) -> None:
        """A control has a new value."""
        if not self._held:
            self._settle()
            self._redraw()

    def _redraw(self) -> None:
        with self._lock:
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
            self._numbers.value = words.at_the_slider(shown, self.recordings, self.task.value, self.rank.value)
        elif opened == "runs":
            self._compared.value = words.comparison([e for e in self.entries if e.ticked])
        elif opened == "answers":
            own = [e for e in live if e.run.config.task == self.task.value]
            first = before(self.task.value) if self.model == EMBEDDED else None
            points = [(label, point) for _, label, point in shown]
            self._answers.value = words.answers(first_items(self.task.value, SAMPLES), first, points, own)
        else:
            self.inside.show([e for e in self.entries if e.inside is not None])

    def _metric(self) -> str:
        labels = TASKS[self.task.value].labels
        return "accuracy on 200 test items" if labels else "right answers to 200 test problems"

    def _say(self, text: str) -> None:
        self._status.value = text

    def _busy(self, busy: bool) -> None:
        self.run.disabled, self.stop.disabled = busy, not busy
        self._rows.lock(busy)
        self.clear.disabled = busy or not self.entries
        self._settle()

    def _settle(self) -> None:
        """Grey out what makes no difference for the methods ticked, and say why."""
        ticked = self.method.value
        self.init.disabled = not any(METHODS[name].inits for name in ticked)
        self.rank.disabled = set(ticked) == {"full"}
        self.lr.disabled = self.own_rates.value
        told = words.reasons(ticked, self.own_rates.value)
        self._reasons.value = f'<span style="opacity:.75">{html.escape(" ".join(told))}</span>' if told else ""

    def _entry(self, number: int) -> Entry:
        if (
            isinstance(number, bool)
            or not isinstance(number, int)
            or not -len(self.entries) <= number < len(self.entries)
        ):
            raise InputError(f"run {number!r} is not here; the lab has {len(self.entries)} runs, counted from 0")
        return self.entries[number]

    def _delete(self, entry: Entry) -> None:
        with self._lock:
            if not self.running:
                self.entries = [e for e in self.entries if e is not entry]
                self._redraw()

    def _clear(self) -> None:
        with self._lock:
            if not self.running:
                self.entries = [e for e in self.entries if e.pinned]
                self._say(HINT)
                self._redraw()

    def _remake_rows(self) -> None:
        self._rows.forget()
        self._redraw()

    def _export_clicked(self, kind: str, place: str) -> None:
        chosen = [i for i, e in enumerate(self.entries) if e.ticked]
        try:
            made = self.export(kind, Path(place) / f"runs.{kind}" if kind in ("csv", "json") else place, *chosen)
        except InputError as error:
            self._say(words.error(str(error)))
        else:
            self._say(f"Written: {html.escape(', '.join(map(str, made)))}")

    # --- layout ---

    def _arrange(self) -> widgets.Widget:
        row = widgets.Layout(flex_flow="row wrap", align_items="center", width="100%")

        def line(*parts: widgets.Widget) -> widgets.Widget:
            return widgets.Box(parts, layout=row)

        kind = widgets.Dropdown(
            options=list(EXPORTS.items()), description="export", style={"description_width": "50px"}
        )
        place = widgets.Text("exports", description="to folder", style={"description_width": "70px"})
        write = widgets.Button(
            description="Write", icon="download", tooltip="the ticked runs, or all if none is ticked"
        )
        write.on_click(lambda _: self._export_clicked(kind.value, place.value))
        runs = widgets.VBox([self._rows, self._compared, line(kind, place, write, self.clear)])
        self._tabs = widgets.Tab([self._numbers, runs, self._answers, self.inside.widget], titles=TABS)
        self._tabs.observe(lambda _: self._fill_tab(), "selected_index")
        self._settle()
        return widgets.VBox(
            [
                self.method,
                line(self.lr, self.own_rates),
                line(self.rank, self.init),
                line(self.steps, self.task, self.seed),
                self._reasons,
                line(self.run, self.stop, self._bar, self._status),
                self._figure.widget,
                self._tabs,
            ]
        )


class _Growing:
    """The lab's figure while it trains: only what grows is computed before it is asked for."""

    def __init__(self, lab: FineTuneLab) -> None:
        self._lab = lab

    def plotly(self) -> tuple[list[Any], dict[str, Any]]:
        return self._lab.drawing().plotly()

    def png(self) -> bytes:
        return self._lab.picture()

    def growing(self) -> list[dict[str, Any]]:
        return LabDrawing([], self._lab._live_curves(), 1.0, 1).growing()

    def annotations(self) -> list[dict[str, Any]]:
        return self._lab.drawing().annotations()


class _Pace:
    """How far a race is and how long it will still take."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self._started, self._said = 0.0, 0.0

    def due(self) -> bool:
        """True at most five times a second."""
        now = time.monotonic()
        self._started = self._started or now
        if now - self._said < 0.2:
            return False
        self._said = now
        return True

    def left(self) -> str:
        elapsed = time.monotonic() - self._started
        return duration(elapsed / max(1, self.done - 1) * (self.total - self.done)) if self.done > 1 else "…"


def _recordings(wanted: RunStore | str | Path | None, model: str) -> Recordings:
    if wanted is None:
        return Recordings(recorded_store() if model == EMBEDDED else ())
    return Recordings(wanted if isinstance(wanted, RunStore) else RunStore(wanted))
