"""``FineTuneLab``: choose methods, rank, init and learning rate, press Run, watch them learn."""

from __future__ import annotations

import base64
import html
import threading
import time
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from nlora_lab.errors import InputError
from nlora_lab.inits import CORE_INITS
from nlora_lab.labs.controls import MethodBoxes
from nlora_lab.labs.figures import Figures, in_colab, live_figure
from nlora_lab.methods import METHODS
from nlora_lab.models import check_model
from nlora_lab.plots import Curve, RunsDrawing, curve, curves, picture, rate_text, run_names
from nlora_lab.progress import duration
from nlora_lab.records import STEP0_NOISE, Run, RunConfig, Step, table
from nlora_lab.tasks import TASKS

if TYPE_CHECKING:
    import pandas as pd

WORDS = {"description_width": "110px"}
HINT = "Tick methods, move the sliders, press Run. Every method sees the same batches in the same order."


class FineTuneLab:
    """A panel that fine-tunes the embedded model with the methods ticked, one after the other.

    Every control is an attribute and can be set from Python: ``method`` (a name or several),
    ``rank``, ``init`` (of N, in SLoRA), ``lr``, ``steps``, ``task``, ``seed``. ``run.click()`` starts
    what the controls say and returns at once; ``stop.click()`` ends it within a step and keeps what
    there is; ``wait()`` blocks until it is done and returns ``runs``, all runs so far; ``running``
    says whether something is being trained.

    In Colab, which shows nothing from a background thread, training runs in the foreground and the
    cell's own stop button ends it.

    Args:
        method: the methods ticked at first.
        model: "embedded", a folder, or a hub id.
        figures: "plotly", "image", or "auto" to choose by where the notebook runs.
    """

    def __init__(
        self,
        method: str | Iterable[str] = ("lora", "slora", "nlora"),
        *,
        model: str = "embedded",
        figures: Figures = "auto",
    ) -> None:
        check_model(model)
        self.model = model
        self.runs: list[Run] = []
        self.error: Exception | None = None
        self.background = not in_colab()
        self._halt = threading.Event()
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self.running = False
        self._pace: _Pace | None = None
        self._live: tuple[RunConfig, list[Step]] | None = None

        self.method = MethodBoxes([method] if isinstance(method, str) else method)
        self.rank = widgets.IntSlider(8, 1, 128, description="rank r", style=WORDS)
        self.init = widgets.Dropdown(options=CORE_INITS, description="N in SLoRA", style=WORDS)
        self.lr = widgets.FloatLogSlider(
            2e-4,
            base=10,
            min=-5,
            max=-1,
            step=0.1,
            description="learning rate",
            readout_format=".1e",
            style=WORDS,
            layout=widgets.Layout(width="440px"),
        )
        self.steps = widgets.IntSlider(250, 1, 1000, description="steps", style=WORDS)
        self.task = widgets.Dropdown(options=list(TASKS), description="task", style=WORDS)
        self.seed = widgets.BoundedIntText(0, 0, 10**6, description="seed", style=WORDS)
        self.run = widgets.Button(description="Run", icon="play", button_style="primary")
        self.stop = widgets.Button(description="Stop", icon="stop", disabled=True)
        self.clear = widgets.Button(description="Clear runs", icon="trash", disabled=True)
        self._bar = widgets.IntProgress(0, 0, 1, layout=widgets.Layout(width="180px"))
        self._status = widgets.HTML(HINT)
        self._table = widgets.HTML()
        self._figure = live_figure(RunsDrawing([], 1), figures)
        self._controls = (self.rank, self.init, self.lr, self.steps, self.task, self.seed)

        self.run.on_click(lambda _: self._start())
        self.stop.on_click(lambda _: self._halt.set())
        self.clear.on_click(lambda _: self._clear())
        self.method.observe(lambda _: self._settle(), "value")
        self._panel = self._arrange()
        self._settle()

    # --- what it is as a Python object ---

    def configs(self) -> list[RunConfig]:
        """What the controls say now: one config for each ticked method."""
        return [
            RunConfig(
                method=name,
                rank=self.rank.value,
                lr=self.lr.value,
                init=self.init.value if METHODS[name].inits else None,
                steps=self.steps.value,
                task=self.task.value,
                seed=self.seed.value,
                model=self.model,
            )
            for name in self.method.value
        ]

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
        """The runs so far, one a row."""
        return table(self.runs)

    def picture(self) -> bytes:
        """The figure of the runs so far as PNG bytes."""
        return picture(curves(self.runs), self.steps.value, self._metric())

    def __repr__(self) -> str:
        return f"FineTuneLab: {len(self.runs)} run{'s' * (len(self.runs) != 1)}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """The live panel, and beside it a picture and a line for pages without a kernel."""
        bundle: dict[str, Any] = dict(self._panel._repr_mimebundle_())
        bundle["text/plain"] = repr(self)
        if self.runs:
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
                self._say(str(error), bad=True)
                return
            if not configs:
                self._say("No method is ticked: tick at least one.", bad=True)
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
        from nlora_lab.training import race

        total = sum(c.steps for c in configs)
        self._bar.max, self._bar.value = total, 0
        self._pace = progress = _Pace(total)
        try:
            self._say(f"Loading the model, to train on: {html.escape(find_device().words)}")
            started = len(self.runs)
            watch = partial(self._on_step, progress)
            race(configs, on_step=watch, on_run=self._on_run, halted=self._halt.is_set)
            self._say(_verdict(self.runs[started:], self._halt.is_set()))
        except InputError as error:
            self.error = error
            self._say(str(error), bad=True)
        except Exception as error:  # shown in the panel, and raised by wait()
            self.error = error
            self._say(f"{type(error).__name__}: {error}", bad=True)
        finally:
            with self._lock:
                self._live, self.running = None, False
                self._busy(False)
                self._redraw()

    def _on_step(self, progress: _Pace, config: RunConfig, step: Step) -> bool:
        with self._lock:
            if self._live is None or self._live[0] is not config:
                self._live = (config, [])
                self._redraw()
            self._live[1].append(step)
            progress.done += 1
            if progress.due():
                self._bar.value = progress.done
                self._say(
                    f"<b>{html.escape(config.label)}</b> step {step.step} of {config.steps} · "
                    f"loss {step.loss:.3f} · {progress.left()} left"
                )
            self._figure.grow(RunsDrawing(self._shown(), self.steps.value, self._metric()))
        return self._halt.is_set()

    def _on_run(self, run: Run) -> None:
        with self._lock:
            self.runs.append(run)
            self._live = None
            if self._pace is not None:
                self._pace.total -= run.config.steps - len(run.steps)
                self._bar.max = max(1, self._pace.total)
            self._redraw()

    # --- showing ---

    def _shown(self) -> list[Curve]:
        done = curves(self.runs)
        if self._live is None:
            return done
        config, steps = self._live
        name = run_names([*(r.config for r in self.runs), config])[-1]
        return [*done, curve(config, steps, name)]

    def _redraw(self) -> None:
        self._figure.draw(RunsDrawing(self._shown(), self.steps.value, self._metric()))
        self._table.value = _table_html(self.runs)
        self.clear.disabled = self.running or not self.runs

    def _metric(self) -> str:
        labels = TASKS[self.task.value].labels
        return "accuracy on 200 test items" if labels else "right answers of 200"

    def _say(self, text: str, bad: bool = False) -> None:
        self._status.value = f'<span style="color:#c0392b">{html.escape(text)}</span>' if bad else text

    def _busy(self, busy: bool) -> None:
        self.run.disabled, self.stop.disabled = busy, not busy
        self.method.disable(busy)
        for control in self._controls:
            control.disabled = busy
        self.clear.disabled = busy or not self.runs
        if not busy:
            self._settle()

    def _settle(self) -> None:
        """Grey out what makes no difference for the methods ticked."""
        used = any(METHODS[name].inits for name in self.method.value)
        self.init.disabled = not used
        self.init.tooltip = "" if used else "only SLoRA has a choice of N: tick it first"
        self.rank.disabled = set(self.method.value) == {"full"}

    def _clear(self) -> None:
        with self._lock:
            if not self.running:
                self.runs.clear()
                self._say(HINT)
                self._redraw()

    def _arrange(self) -> widgets.Widget:
        row = widgets.Layout(flex_flow="row wrap", align_items="center", width="100%")
        sliders = widgets.Box([self.lr, self.rank, self.steps], layout=row)
        choices = widgets.Box([self.init, self.task, self.seed], layout=row)
        buttons = widgets.Box([self.run, self.stop, self.clear, self._bar, self._status], layout=row)
        self._redraw()
        label = widgets.Label(
            "methods", layout=widgets.Layout(width="110px", margin="0 8px 0 0", justify_content="flex-end")
        )
        methods = widgets.Box([label, self.method], layout=row)
        return widgets.VBox([methods, sliders, choices, buttons, self._figure.widget, self._table])


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


def _verdict(runs: list[Run], halted: bool = False) -> str:
    if halted or any(r.stopped for r in runs):
        return "Stopped; what was trained is kept."
    gone = [r.config.label for r in runs if r.diverged]
    if gone:
        return f"Done. {html.escape(', '.join(gone))} diverged: the loss became infinite. Try a smaller rate."
    changed = [r for r in runs if r.metrics.get("step0_change", 0) > STEP0_NOISE]
    if changed:
        r = changed[-1]
        return f"Done. {r.config.label} changed the model by {r.metrics['step0_change']:.1%} before the first step."
    return "Done. Move a slider and run again: the runs stay."


_COLUMNS = ("", "method", "rank", "N", "rate", "seed", "parameters", "final loss", "accuracy", "seconds", "memory")


def _table_html(runs: list[Run]) -> str:
    if not runs:
        return ""
    cell = 'style="padding:2px 10px;text-align:right;white-space:nowrap"'
    head = "".join(f"<th {cell}>{c}</th>" for c in _COLUMNS)
    rows = "".join("<tr>" + "".join(f"<td {cell}>{c}</td>" for c in _cells(run)) + "</tr>" for run in runs)
    return f'<table style="border-collapse:collapse"><tr>{head}</tr>{rows}</table>'


def _cells(run: Run) -> tuple[str, ...]:
    c, method = run.config, METHODS[run.config.method]
    ended = "diverged" if run.diverged else "stopped" if run.stopped else ""
    return (
        f'<span style="color:{method.colour}">●</span>',
        method.label,
        str(c.rank) if method.build else "–",
        c.init or "–",
        rate_text(c.lr),
        str(c.seed),
        f"{run.trainable:,}",
        "–" if run.diverged or not run.steps else f"{run.final_loss:.3f}",
        ended or f"{run.accuracy:.1%}",
        f"{run.seconds:.0f}",
        f"{run.peak_memory / 2**20:,.0f} MB",
    )
