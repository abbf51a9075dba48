"""The controls of the fine-tuning lab, how they stand on the page, and when which of them is grey."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence

import ipywidgets as widgets

from nlora_lab.labs import words
from nlora_lab.labs.controls import MethodBoxes
from nlora_lab.lowrank.core_init import CORE_INITS
from nlora_lab.methods.table import METHODS
from nlora_lab.runs.config import SHARED_RATE
from nlora_lab.runs.shipped import STEPS
from nlora_lab.tasks.generated import TASKS

WORDS = {"description_width": "105px"}
EXPORTS = {
    "losses as CSV": "csv",
    "records as JSON": "json",
    "adapter (PEFT)": "peft",
    "adapter (plain LoRA)": "lora",
}
HINT = "What you see was recorded: move the sliders. Run trains what they say, on this machine, and draws it over that."
TABS = ("at this rate", "runs", "answers", "inside")


class TrainingControls:
    """The widgets themselves; ``moved`` is called when one of them has a new value."""

    def __init__(self, ticked: Iterable[str], moved: Callable[[], None]) -> None:
        wide = widgets.Layout(width="400px")
        self.method = MethodBoxes(ticked)
        self.lr = widgets.FloatLogSlider(
            SHARED_RATE, base=10, min=-5, max=0, step=0.1, description="learning rate", readout_format=".1e", style=WORDS,
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
        self.stop = widgets.Button(description="Stop", icon="stop", disabled=True, tooltip="end it, keep what there is")
        self.clear = widgets.Button(
            description="Clear runs", icon="trash", disabled=True, tooltip="delete all runs that are not pinned"
        )
        self.bar = widgets.IntProgress(0, 0, 1, layout=widgets.Layout(width="180px"))
        self.status, self.reasons = widgets.HTML(), widgets.HTML()
        self.kind = widgets.Dropdown(
            options=list(EXPORTS.items()), description="export", style={"description_width": "50px"}
        )
        self.place = widgets.Text("exports", description="to folder", style={"description_width": "70px"})
        self.write = widgets.Button(description="Write", icon="download", tooltip="the ticked runs, or all if none is")
        moving = (self.method, self.rank, self.init, self.lr, self.own_rates, self.steps, self.task, self.seed)
        for control in moving:
            control.observe(lambda _: moved(), "value")

    def settle(self, without_a_best: Sequence[str] = ()) -> None:
        """Grey out what makes no difference for the methods ticked, and say why.

        ``without_a_best``: labels of those that train at the slider's rate although each should have its own.
        """
        ticked = self.method.value
        self.init.disabled = not any(METHODS[name].inits for name in ticked)
        self.rank.disabled = set(ticked) == {"full"}
        self.lr.disabled = self.own_rates.value and not without_a_best
        told = words.reasons(ticked, self.own_rates.value, without_a_best)
        self.reasons.value = f'<span style="opacity:.75">{html.escape(" ".join(told))}</span>' if told else ""

    def rate(self) -> float:
        """The slider's rate as it reads: two digits."""
        return float(f"{self.lr.value:.1e}")

    def lines(self) -> list[widgets.Widget]:
        """From the methods down to the buttons."""
        return [
            self.method,
            line(self.lr, self.own_rates),
            line(self.rank, self.init),
            line(self.steps, self.task, self.seed),
            self.reasons,
            line(self.run, self.stop, self.bar, self.status),
        ]


def line(*parts: widgets.Widget) -> widgets.Widget:
    """Side by side, and below each other where the page is narrow."""
    return widgets.Box(parts, layout=widgets.Layout(flex_flow="row wrap", align_items="center", width="100%"))
