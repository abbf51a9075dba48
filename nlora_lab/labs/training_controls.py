"""The widget of the fine-tuning lab, and its controls as Python sees them.

The page draws the recorded runs by itself. It asks the kernel for nothing while a slider moves, and tells it the new
value. The kernel sends the runs that it trains, and the line beside the buttons.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import anywidget
import numpy as np
import traitlets

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice
from nlora_lab.labs.figures import Throttle
from nlora_lab.labs.panel import Control, flag, one_of, within
from nlora_lab.labs.view import LabView, Message, Settings
from nlora_lab.lowrank.slora_init import CORE_INITS
from nlora_lab.methods.table import METHODS
from nlora_lab.pages.scripts import FINE_TUNING, module, style
from nlora_lab.plots.lab import Curve
from nlora_lab.runs.config import SHARED_RATE
from nlora_lab.runs.shipped import STEPS
from nlora_lab.tasks.generated import TASKS

HINT: Message = (
    ("plain", "These are recorded runs. Move the sliders to look up others."),
    ("plain", "Press Run to train with these settings on this machine."),
)
"""The line beside the buttons at first."""
LOWEST_RATE, HIGHEST_RATE = 1e-5, 1.0


class LabWidget(anywidget.AnyWidget):
    """The controls and the figure of the lab in the page. Every view of it shows the same state.

    Args:
        recorded: the recorded runs that the page can look up, and
        curves: their loss curves, as ``recorded_data`` returns them.
        press: called with "run" or "stop" when that button is pressed in the page.
    """

    _esm = module(FINE_TUNING)
    _css = style()

    kernel = traitlets.Bool(True).tag(sync=True)
    recorded = traitlets.Dict().tag(sync=True)
    curves = traitlets.Bytes().tag(sync=True)
    methods = traitlets.List(traitlets.Unicode()).tag(sync=True)
    lr = traitlets.Float(SHARED_RATE).tag(sync=True)
    own_rates = traitlets.Bool(False).tag(sync=True)
    rank = traitlets.Int(8).tag(sync=True)
    init = traitlets.Unicode(CORE_INITS[0]).tag(sync=True)
    steps = traitlets.Int(STEPS).tag(sync=True)
    task = traitlets.Unicode(next(iter(TASKS))).tag(sync=True)
    seed = traitlets.Int(0).tag(sync=True)
    measure = traitlets.Unicode("accuracy").tag(sync=True)
    live: traitlets.List[Any] = traitlets.List().tag(sync=True)
    running = traitlets.Bool(False).tag(sync=True)
    progress = traitlets.List([0, 1]).tag(sync=True)
    status: traitlets.List[Any] = traitlets.List().tag(sync=True)

    def __init__(self, recorded: dict[str, Any], curves: bytes, press: Callable[[str], None]) -> None:
        super().__init__(recorded=recorded, curves=curves)
        self.on_msg(lambda _, content, __: press(content.get("press", "")))


class Button:
    """A button of the lab. ``click()`` does what a click on it does."""

    def __init__(self) -> None:
        self._handlers: list[Callable[[Button], None]] = []
        self.disabled = False

    def on_click(self, handler: Callable[[Button], None]) -> None:
        """Call a function with this button when it is clicked."""
        self._handlers.append(handler)

    def click(self) -> None:
        """Click the button."""
        for handler in self._handlers:
            handler(self)


class TrainingControls:
    """The widget of the lab, with its controls.

    Args:
        ticked: the names of the methods ticked at first.
        recorded: the recorded runs that the page can look up, as ``recorded_data`` returns them.
        changed: called when a setting has a new value.
    """

    every = 0.1  # seconds between two messages while curves grow
    share = 100  # at most 1 % of the training time goes here; recording what is inside takes another 1 or 2 %

    def __init__(
        self, ticked: Iterable[str], recorded: tuple[dict[str, Any], bytes], changed: Callable[[], None]
    ) -> None:
        names = _method_names(ticked)
        self.run, self.stop = Button(), Button()
        self.widget = w = LabWidget(*recorded, self._press)
        w.methods = list(names)
        self.method = Control(w, "methods", _method_names)
        self.lr = Control(w, "lr", lambda v: within("lr", v, LOWEST_RATE, HIGHEST_RATE))
        self.own_rates = Control(w, "own_rates", lambda v: flag("own_rates", v))
        self.rank = Control(w, "rank", lambda v: round(within("rank", v, 1, 128)))
        self.init = Control(w, "init", lambda v: one_of("init", v, CORE_INITS))
        self.steps = Control(w, "steps", lambda v: round(within("steps", v, 1, 1000)))
        self.task = Control(w, "task", lambda v: one_of("task", v, TASKS))
        self.seed = Control(w, "seed", lambda v: round(within("seed", v, 0, 10**6)))
        self._throttle = Throttle(self.every, self.share)
        for control in (
            self.method, self.rank, self.init, self.lr, self.own_rates, self.steps, self.task, self.seed
        ):  # fmt: skip
            control.observe(lambda _: changed(), "value")

    def settings(self) -> Settings:
        """Return what the controls are set to."""
        return Settings(
            methods=self.method.value,
            rank=self.rank.value,
            init=self.init.value,
            rate=float(f"{self.lr.value:.1e}"),  # the two digits that the slider shows
            own_rates=self.own_rates.value,
            steps=self.steps.value,
            task=self.task.value,
            seed=self.seed.value,
        )

    def draw(self, view: LabView) -> None:
        """Send the runs of the lab, and what ``draw_status`` sends."""
        with self._throttle.drawing():
            self.widget.live = [_live(curve) for curve in (*view.finished, *view.live)]
        self.draw_status(view)

    def draw_status(self, view: LabView) -> None:
        """Send how far the training is, and the line beside the buttons."""
        self.run.disabled, self.stop.disabled = view.running, not view.running
        with self.widget.hold_sync():
            self.widget.running = view.running
            self.widget.progress = list(view.progress)
            self.widget.status = [list(part) for part in view.status]

    def page_state(self) -> dict[str, Any]:
        """Return what a page without a kernel shows first: the settings, and the runs trained here."""
        names = ("methods", "lr", "own_rates", "rank", "init", "steps", "task", "seed", "measure", "live")
        return {name: getattr(self.widget, name) for name in names}

    def due(self) -> bool:
        """Return whether growing curves may be sent again. It limits how much time they take from the training."""
        return self._throttle.due()

    def _press(self, name: str) -> None:
        button = {"run": self.run, "stop": self.stop}.get(name)
        if button is not None and not button.disabled:
            button.click()


def _live(curve: Curve) -> dict[str, Any]:
    """A run as the page draws it. The losses are single precision, one per step."""
    numbers = {"lr": curve.lr, "final_loss": curve.final_loss, "accuracy": curve.accuracy}
    return {
        "name": curve.name,
        "colour": curve.colour,
        "dash": curve.dash,
        "note": curve.note,
        "losses": np.array([s.loss for s in curve.steps], dtype="<f4").tobytes(),
        **{name: None if math.isnan(value) else value for name, value in numbers.items()},
    }


def _method_names(value: str | Iterable[str]) -> tuple[str, ...]:
    """The names in the order of the methods table. One name can stand alone."""
    if not isinstance(value, str) and (not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0):
        raise InputError(f"method={value!r} must be the name of a method, or a list of names")
    names = [value] if isinstance(value, str) else list(value)
    for name in names:
        check_choice("method", name, METHODS)
    return tuple(name for name in METHODS if name in names)
