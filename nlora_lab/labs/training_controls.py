"""The controls of the fine-tuning lab, where they stand on the page, and which of them are grey."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable
from typing import Any

import ipywidgets as widgets
import traitlets

from nlora_lab.core.validation import check_choice
from nlora_lab.labs.panel import row_of
from nlora_lab.labs.view import LabView, Settings
from nlora_lab.lowrank.slora_init import CORE_INITS
from nlora_lab.methods.table import METHODS
from nlora_lab.runs.config import SHARED_RATE
from nlora_lab.runs.shipped import STEPS
from nlora_lab.tasks.generated import TASKS

LABEL_STYLE = {"description_width": "105px"}
HINT = (
    "These are recorded runs. Move the sliders to look up others. "
    "Press Run to train with these settings on this machine."
)
"""The line beside the buttons at first."""


class MethodBoxes(widgets.HBox):
    """One box per method. ``value`` is the tuple of ticked names. It can also be set to a single name.

    Args:
        ticked: the names ticked at first.
    """

    value = traitlets.Any()

    def __init__(self, ticked: Iterable[str]) -> None:
        self._boxes = {name: _method_box(name) for name in METHODS}
        self._setting = False  # while the boxes are set from ``value``
        super().__init__(list(self._boxes.values()), layout=widgets.Layout(flex_flow="row wrap"))
        self.value = tuple(ticked)
        for box in self._boxes.values():
            box.observe(self._read_boxes, "value")

    @traitlets.validate("value")
    def _check_names(self, proposal: dict[str, Any]) -> tuple[str, ...]:
        value = proposal["value"]
        names = [value] if isinstance(value, str) else list(value)
        for name in names:
            check_choice("method", name, self._boxes)
        return tuple(name for name in self._boxes if name in names)

    @traitlets.observe("value")
    def _set_boxes(self, change: dict[str, Any]) -> None:
        self._setting = True
        try:
            for name, box in self._boxes.items():
                box.value = name in change["new"]
        finally:
            self._setting = False

    def _read_boxes(self, _: object) -> None:
        if not self._setting:
            self.value = tuple(name for name, box in self._boxes.items() if box.value)


class TrainingControls:
    """The widgets above the figure.

    Args:
        ticked: the names of the methods ticked at first.
        changed: called when a setting has a new value.
    """

    def __init__(self, ticked: Iterable[str], changed: Callable[[], None]) -> None:
        wide = widgets.Layout(width="400px")
        self.method = MethodBoxes(ticked)
        self.lr = widgets.FloatLogSlider(
            SHARED_RATE, base=10, min=-5, max=0, step=0.1, description="learning rate", readout_format=".1e",
            style=LABEL_STYLE, layout=wide,
        )  # fmt: skip
        self.own_rates = widgets.Checkbox(
            False, description="each at its own best rate", indent=False, layout=widgets.Layout(width="210px"),
            tooltip="train each method at its recorded rate with the lowest validation loss, not at the slider's rate",
        )  # fmt: skip
        self.rank = widgets.IntSlider(8, 1, 128, description="rank r", style=LABEL_STYLE, layout=wide)
        self.init = widgets.Dropdown(options=CORE_INITS, description="N in SLoRA", style=LABEL_STYLE)
        self.steps = widgets.IntSlider(STEPS, 1, 1000, description="steps", style=LABEL_STYLE)
        self.task = widgets.Dropdown(options=list(TASKS), description="task", style=LABEL_STYLE)
        self.seed = widgets.BoundedIntText(0, 0, 10**6, description="seed", style=LABEL_STYLE)
        self.run = widgets.Button(
            description="Run", icon="play", button_style="primary", tooltip="train with these settings on this machine"
        )
        self.stop = widgets.Button(
            description="Stop", icon="stop", disabled=True, tooltip="stop training and keep what was trained"
        )
        self.bar = widgets.IntProgress(0, 0, 1, layout=widgets.Layout(width="180px"))
        self.status, self.reasons = widgets.HTML(), widgets.HTML()
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
        """Disable the controls that make no difference, say why, and show how far the training is."""
        settings = view.settings
        self.init.disabled = not any(METHODS[name].inits for name in settings.methods)
        self.rank.disabled = set(settings.methods) == {"full"}
        self.lr.disabled = settings.own_rates and not view.without_best_rate
        self.run.disabled, self.stop.disabled = view.running, not view.running
        text = html.escape(" ".join(reasons(view)))
        self.reasons.value = f'<span style="opacity:.75">{text}</span>' if text else ""
        self.bar.max = view.progress[1]
        self.bar.value = view.progress[0]
        self.status.value = view.status

    def rows(self) -> list[widgets.Widget]:
        """Return the rows above the figure, from the methods down to the buttons."""
        return [
            self.method,
            row_of(self.lr, self.own_rates),
            row_of(self.rank, self.init),
            row_of(self.steps, self.task, self.seed),
            self.reasons,
            row_of(self.run, self.stop, self.bar, self.status),
        ]


def reasons(view: LabView) -> list[str]:
    """Return why controls are grey, or make no difference to a ticked method, in complete sentences."""
    methods = view.settings.methods
    sentences = []
    if not any(METHODS[name].inits for name in methods):
        sentences.append("“N in SLoRA” is grey: only SLoRA has a choice of N, and it is not ticked.")
    if methods and all(METHODS[name].build is None for name in methods):
        sentences.append("“rank r” is grey: full fine-tuning trains every weight and has no rank.")
    if view.settings.own_rates:
        if view.without_best_rate:
            labels = ", ".join(view.without_best_rate)
            sentences.append(f"The slider's rate applies to {labels}: no best rate was recorded here.")
        else:
            sentences.append("“learning rate” is grey: each method has its own.")
    return sentences


def _method_box(name: str) -> widgets.Checkbox:
    method = METHODS[name]
    return widgets.Checkbox(
        description=method.label,
        tooltip=f"trains {method.trains}; starts from {method.start}",
        indent=False,
        layout=widgets.Layout(width="auto", margin="0 14px 0 0"),
    )
