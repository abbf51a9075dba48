"""A race in the background of a lab: started, watched while it grows, stopped, waited for."""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Sequence
from typing import Any, Protocol

from nlora_lab.core.errors import InputError
from nlora_lab.core.formatting import format_duration
from nlora_lab.labs import words
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.run import Run, Step


class Listener(Protocol):
    """Who wants to know: all of it is called with the race's lock held, from whatever thread trains."""

    def changed(self) -> None:
        """A run has begun, or the race has ended: draw everything."""

    def grown(self) -> None:
        """A curve has another point."""

    def finished(self, run: Run, recorder: Any) -> str:
        """A run is done, with what was recorded inside it; returns what there is to be said about it, as HTML."""

    def progress(self, done: int, total: int) -> None:
        """So many of so many steps are made."""

    def say(self, text: str) -> None:
        """A line of HTML for the learner."""


class LiveRace:
    """Trains what it is given in a thread of its own, one race at a time.

    ``curves``: the config and the steps so far of every run in training. ``error``: what ended the last race, if it
    was an error; :meth:`wait` raises it. ``background=False`` trains in the caller's thread instead.
    """

    def __init__(self, listener: Listener, background: bool) -> None:
        self.listener, self.background = listener, background
        self.lock = threading.RLock()
        self.running = False
        self.error: Exception | None = None
        self.curves: dict[int, tuple[RunConfig, list[Step]]] = {}
        self._halt = threading.Event()
        self._thread: threading.Thread | None = None
        self._pace = Pace(1)
        self._recorders: dict[int, Any] = {}
        self._runs: list[Run] = []
        self._remark = ""
        self._unseen = False  # a curve has begun that the figure has no line for yet

    def start(self, configs: Sequence[RunConfig]) -> None:
        """Begin, unless something is being trained already."""
        with self.lock:
            if self.running:
                return  # Run pressed twice
            self.error = None
            self._halt.clear()
            self.running, self._runs, self._remark, self._unseen = True, [], "", False
            try:
                self.listener.changed()
            except BaseException:
                self.running = False  # nothing has begun
                raise
            self._thread = threading.Thread(target=self._train, args=(configs,), daemon=True, name="nlora-lab")
            if self.background:
                self._thread.start()
                return
            self._thread = None
        self._train(configs)

    def stop(self) -> None:
        """End it within a step, and keep what there is."""
        self._halt.set()

    def wait(self) -> None:
        """Block until nothing is being trained. An interrupt stops the training; an error that ended it is raised."""
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

    # --- in the thread ---

    def _train(self, configs: Sequence[RunConfig]) -> None:
        try:
            from nlora_lab.core.devices import find_device
            from nlora_lab.training.races import race
            from nlora_lab.training.recorder import InsideRecorder

            self._pace = Pace(sum(c.steps for c in configs))
            bases: dict[str, dict[str, Any]] = {c.model: {} for c in configs}
            self._recorders = {
                id(c): InsideRecorder(every=max(10, c.steps // 25), bases=bases[c.model]) for c in configs
            }
            self.listener.progress(0, self._pace.total)
            self.listener.say(f"Loading the model, to train on: {html.escape(find_device().words)}")
            race(configs, on_step=self._on_step, on_run=self._on_run, should_stop=self._halt.is_set, watch=self._watch)
            told = words.verdict(self._runs, self._halt.is_set())
            self.listener.say(f"{told} {self._remark}" if self._remark else told)
        except InputError as error:
            self.error = error
            self.listener.say(words.error(str(error)))
        except Exception as error:  # shown in the panel, and raised by wait()
            self.error = error
            self.listener.say(words.error(f"{type(error).__name__}: {error}"))
        finally:
            with self.lock:
                self.curves, self._recorders, self._runs, self.running = {}, {}, [], False
                self.listener.changed()

    def _watch(self, config: RunConfig, updates: int, subject: Any) -> None:
        self._recorders[id(config)](updates, subject)

    def _on_step(self, config: RunConfig, step: Step) -> bool:
        with self.lock:
            new = id(config) not in self.curves
            if new:
                self.curves[id(config)] = (config, [])
            elif self._unseen:
                self.listener.changed()  # once for all that made their first step together
            self._unseen = new
            self.curves[id(config)][1].append(step)
            self._pace.done += 1
            if self._pace.due():
                self.listener.progress(self._pace.done, self._pace.total)
                self.listener.say(
                    f"<b>{html.escape(self._who())}</b> step {step.step} of {config.steps} · "
                    f"loss {step.loss:.3f} · {self._pace.left()} left"
                )
            self.listener.grown()
        return self._halt.is_set()

    def _who(self) -> str:
        labels = [config.label for config, _ in self.curves.values()]
        return labels[0] if len(labels) == 1 else f"{len(labels)} methods"

    def _on_run(self, run: Run) -> None:
        with self.lock:
            self.curves.pop(id(run.config), None)
            self._runs.append(run)
            self._remark = self.listener.finished(run, self._recorders.get(id(run.config))) or self._remark
            self._pace.total -= run.config.steps - len(run.steps)
            self.listener.progress(self._pace.done, max(1, self._pace.total))
            if not self._halt.is_set():  # or the others' last pictures would hold up the end, which draws anyway
                self._unseen = False
                self.listener.changed()


class Pace:
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
        """In words."""
        elapsed = time.monotonic() - self._started
        return format_duration(elapsed / max(1, self.done - 1) * (self.total - self.done)) if self.done > 1 else "…"
