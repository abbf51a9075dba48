"""A race that trains in the background and reports what happens. It knows no lab and no widget."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nlora_lab.core.errors import InputError
from nlora_lab.core.formatting import format_duration
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.run import STEP0_NOISE, Run, Step


@dataclass(frozen=True)
class Started:
    """A race has begun. Nothing is loaded yet."""


@dataclass(frozen=True)
class Loading:
    """The model is being loaded, for a device that is named in words."""

    device: str


@dataclass(frozen=True)
class Stepped:
    """A run has made a training step, perhaps its first one."""

    config: RunConfig
    step: Step
    first: bool


@dataclass(frozen=True)
class Finished:
    """A run is complete, stopped, diverged or failed. Its ``InsideRecorder`` watched it."""

    run: Run
    recorder: Any


@dataclass(frozen=True)
class Ended:
    """The race has ended, with these runs. It may have been stopped, or an error ended it."""

    runs: tuple[Run, ...]
    stopped: bool
    error: Exception | None

    def outcome(self) -> tuple[str, bool]:
        """Return how the race ended, in words, and whether something went wrong."""
        if self.error is not None:
            known = isinstance(self.error, InputError)
            return str(self.error) if known else f"{type(self.error).__name__}: {self.error}", True
        if failed := [run for run in self.runs if run.error]:
            return f"{failed[0].config.label}: {failed[0].error}. What was trained until then is kept.", True
        if self.stopped and not self.runs:
            return "Stopped before the first step.", False
        if self.stopped or any(run.stopped for run in self.runs):
            return "Stopped. What was trained is kept.", False
        if diverged := [run.config.label for run in self.runs if run.diverged]:
            labels = ", ".join(diverged)
            return f"Done. {labels} diverged: the loss became infinite. Try a smaller learning rate.", False
        if changed := [run for run in self.runs if run.metrics.get("step0_change", 0) > STEP0_NOISE]:
            label, change = changed[-1].config.label, changed[-1].metrics["step0_change"]
            return f"Done. {label} changed the model by {change:.1%} before the first step.", False
        return "Done. Move a slider and run again. Your runs stay in the list.", False


Event = Started | Loading | Stepped | Finished | Ended


class LiveRace:
    """Trains one race at a time, in a thread of its own or in the caller's.

    Args:
        report: called with every event, from the thread that trains, while ``lock`` is held.
        background: whether to train in a thread. Otherwise ``start`` returns when the race has ended.

    Attributes:
        lock: held while an event is reported. Whoever reads or changes what the events change holds it too.
        running: whether something is training.
        error: the exception that ended the last race, until ``wait`` raises it.
        curves: config and steps so far of every run that is training.
        pace: how far the race is.
    """

    def __init__(self, report: Callable[[Event], None], *, background: bool) -> None:
        self._report, self._background = report, background
        self.lock = threading.RLock()
        self.running = False
        self.error: Exception | None = None
        self.curves: dict[int, tuple[RunConfig, list[Step]]] = {}
        self.pace = Pace(1)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._recorders: dict[int, Any] = {}
        self._runs: list[Run] = []

    @property
    def stopping(self) -> bool:
        """Whether the race was told to stop."""
        return self._stop.is_set()

    def start(self, configs: Sequence[RunConfig]) -> None:
        """Start a race. While another one is running, do nothing: Run was pressed twice."""
        with self.lock:
            if self.running:
                return
            self._stop.clear()
            self.error, self._runs, self.pace, self.running = None, [], Pace(sum(c.steps for c in configs)), True
            try:
                self._report(Started())
            except BaseException:
                self.running = False
                raise
            self._thread = None
            if self._background:
                self._thread = threading.Thread(target=self._train, args=(configs,), daemon=True, name="nlora-lab")
                self._thread.start()
                return
        self._train(configs)

    def stop(self) -> None:
        """Stop the race within a step. What was trained until then is kept."""
        self._stop.set()

    def wait(self) -> None:
        """Block until nothing is training, and raise the error that ended the race. An interrupt stops the race."""
        thread = self._thread
        try:
            while thread is not None and thread.is_alive():
                thread.join(0.1)
        except KeyboardInterrupt:
            self.stop()
            if thread is not None:
                thread.join()
        error, self.error = self.error, None
        if error is not None:
            raise error

    def headline(self, event: Stepped) -> tuple[str, str]:
        """Return what is training, and its step, its loss and the time that is left."""
        labels = [config.label for config, _ in self.curves.values()]
        name = labels[0] if len(labels) == 1 else f"{len(labels)} methods"
        step = f"step {event.step.step} of {event.config.steps} · loss {event.step.loss:.3f}"
        return name, f"{step} · {self.pace.left()} left"

    # --- in the thread that trains ---

    def _train(self, configs: Sequence[RunConfig]) -> None:
        try:
            from nlora_lab.core.devices import find_device
            from nlora_lab.training.races import race
            from nlora_lab.training.recorder import InsideRecorder

            bases: dict[str, dict[str, Any]] = {c.model: {} for c in configs}
            self._recorders = {
                id(c): InsideRecorder(every=max(10, c.steps // 25), bases=bases[c.model]) for c in configs
            }
            self._tell(Loading(find_device().words))
            race(configs, on_step=self._on_step, on_run=self._on_run, should_stop=self._stop.is_set, watch=self._watch)
        except KeyboardInterrupt:
            self.stop()
            raise
        except Exception as error:  # reported, and raised by wait()
            self.error = error
        finally:
            with self.lock:
                ended = Ended(tuple(self._runs), self.stopping, self.error)
                self.curves, self._recorders, self._runs, self.running = {}, {}, [], False
                self._report(ended)

    def _tell(self, event: Event) -> None:
        with self.lock:
            self._report(event)

    def _watch(self, config: RunConfig, updates: int, subject: Any) -> None:
        self._recorders[id(config)](updates, subject)

    def _on_step(self, config: RunConfig, step: Step) -> bool:
        with self.lock:
            first = id(config) not in self.curves
            self.curves.setdefault(id(config), (config, []))[1].append(step)
            self.pace.done += 1
            self._report(Stepped(config, step, first))
        return self.stopping

    def _on_run(self, run: Run) -> None:
        with self.lock:
            self.curves.pop(id(run.config), None)
            self._runs.append(run)
            self.pace.total = max(1, self.pace.total - run.config.steps + len(run.steps))
            self._report(Finished(run, self._recorders.get(id(run.config))))


class Pace:
    """How many of the ``total`` training steps of a race are ``done``, and how long the rest will take."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self._started, self._shown = 0.0, 0.0

    @property
    def progress(self) -> tuple[int, int]:
        """The steps done, and all steps."""
        return self.done, self.total

    def due(self) -> bool:
        """Return whether to show the pace again: at most five times a second."""
        now = time.monotonic()
        self._started = self._started or now
        if now - self._shown < 0.2:
            return False
        self._shown = now
        return True

    def left(self) -> str:
        """Return the time that the rest will take, in words, or "…" while that is unknown."""
        if self.done <= 1:
            return "…"
        elapsed = time.monotonic() - self._started
        return format_duration(elapsed / (self.done - 1) * (self.total - self.done))
