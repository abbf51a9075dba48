"""One frozen view of the fine-tuning lab: its settings, the recorded runs that they select, and the runs trained here.

Every event in the lab ends in one call of :func:`make_view`. The parts of the lab draw themselves from the view and
read nothing else. While runs are training, a step replaces the growing curves alone and reuses everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

from nlora_lab.core.formatting import format_rate
from nlora_lab.methods.table import METHODS
from nlora_lab.models.names import EMBEDDED
from nlora_lab.pages.recorded import metric
from nlora_lab.plots.lab import Curve, LabDrawing, RecordedLine, curve, run_names
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.index import RecordedRuns
from nlora_lab.runs.rate_points import LossCurve, RatePoint
from nlora_lab.runs.run import KEPT_ANSWERS, Run, Step
from nlora_lab.runs.shipped import BaseAnswers, base_answers
from nlora_lab.tasks.generated import first_items
from nlora_lab.tasks.task import Item

TABS = ("runs", "answers", "inside")
"""The tabs of the lab, by their titles."""

Message = tuple[tuple[str, str], ...]
"""A line of text in parts, each with its kind: "plain", "strong" or "error"."""


@dataclass(frozen=True)
class Settings:
    """What the controls of the lab are set to.

    Attributes:
        methods: the names of the ticked methods.
        rank: the rank r.
        init: the initialisation of N, for SLoRA.
        rate: the learning rate of the slider, to the two digits that the slider shows.
        own_rates: whether each method is trained at its own best recorded rate.
        steps: the number of training steps.
        task: the name of the task.
        seed: the seed of the runs.
    """

    methods: tuple[str, ...]
    rank: int
    init: str
    rate: float
    own_rates: bool
    steps: int
    task: str
    seed: int

    def init_of(self, method: str) -> str | None:
        """Return the initialisation of N for a method, or ``None`` for a method without a choice."""
        return self.init if METHODS[method].inits else None

    def config(self, method: str, rate: float, model: str) -> RunConfig:
        """Return the run of a method at a learning rate."""
        return RunConfig(
            method, rank=self.rank, lr=rate, init=self.init_of(method), steps=self.steps, task=self.task,
            seed=self.seed, model=model,
        )  # fmt: skip


@dataclass(frozen=True)
class MethodView:
    """The recorded runs of one method that the settings select.

    Attributes:
        method: the name of the method.
        label: its label, with the recorded rank or rate where that differs from the slider's.
        rate: the learning rate at which the method would be trained.
        point: the recorded runs at that rate, or ``None`` if no recorded rate is near it.
        best: the recorded runs at the method's best rate, or ``None`` if no rate was recorded.
        valley: the recorded runs at every rate.
        curve: the recorded loss over the steps, at ``point``.
    """

    method: str
    label: str
    rate: float
    point: RatePoint | None
    best: RatePoint | None
    valley: Sequence[RatePoint]
    curve: LossCurve | None


@dataclass(frozen=True, eq=False)
class Entry:
    """A run trained in the lab, and what its reader decided about it.

    Attributes:
        run: the run.
        name: its name in figures and tables.
        inside: the recorder that watched the run, or ``None``.
        hidden: the figure leaves the run out.
        pinned: the run stays when the others are cleared, and is listed first.
        ticked: the run is compared and exported.
        renamed: the reader chose the name.
    """

    run: Run
    name: str
    inside: Any = None  # an InsideRecorder, which would import torch
    hidden: bool = False
    pinned: bool = False
    ticked: bool = False
    renamed: bool = field(default=False, repr=False)


@dataclass(frozen=True)
class LabView:
    """Everything that the lab shows at one moment.

    Attributes:
        settings: what the controls are set to.
        recordings: returns the recorded runs. It is called when a part of the lab needs them.
        entries: the runs trained here, in the order in which they ended.
        finished: the curves of those runs that are not hidden and are of the chosen task.
        live: the curves of the runs of the chosen task that are training.
        running: whether something is training.
        progress: the number of training steps done, and of all of them.
        status: the line beside the buttons.
        tab: the title of the open tab.
        model: the model that is trained.
    """

    settings: Settings
    recordings: Callable[[], RecordedRuns]
    entries: tuple[Entry, ...]
    finished: tuple[Curve, ...]
    live: tuple[Curve, ...]
    running: bool
    progress: tuple[int, int]
    status: Message
    tab: str
    model: str

    def grown(self, training: Iterable[tuple[RunConfig, Sequence[Step]]]) -> LabView:
        """Return this view with new curves of the runs that are training."""
        return replace(self, live=live_curves(self.entries, training, self.settings.task))

    @property
    def visible(self) -> list[Entry]:
        """The runs trained here that are not hidden."""
        return [entry for entry in self.entries if not entry.hidden]

    @property
    def first_items(self) -> Sequence[Item]:
        """The test items whose answers a run records."""
        return _first_items(self.settings.task)

    @property
    def base_answers(self) -> BaseAnswers | None:
        """The answers of a model that ships before any tuning, or ``None`` for another model."""
        return _base_answers(self.settings.task, self.model)

    @cached_property
    def methods(self) -> tuple[MethodView, ...]:
        """The ticked methods, in the order of the methods table."""
        return tuple(method_view(self.settings, self.recordings(), name) for name in self.settings.methods)

    @cached_property
    def drawing(self) -> LabDrawing:
        """The figure."""
        lines = [RecordedLine(m.label, m.method, m.valley, m.point, m.curve) for m in self.methods]
        live = [*self.finished, *self.live]
        return LabDrawing(lines, live, self.settings.rate, self.settings.steps, metric(self.settings.task))


def make_view(
    settings: Settings,
    recordings: Callable[[], RecordedRuns],
    *,
    entries: Iterable[Entry] = (),
    training: Iterable[tuple[RunConfig, Sequence[Step]]] = (),
    running: bool = False,
    progress: tuple[int, int] = (0, 1),
    status: Message = (),
    tab: str = TABS[0],
    model: str = EMBEDDED,
) -> LabView:
    """Make the view of the lab after an event.

    Args:
        settings: what the controls are set to.
        recordings: returns the recorded runs to look up.
        entries: the runs trained here.
        training: the config and the steps so far of every run that is training.
        running: whether something is training.
        progress: the number of training steps done, and of all of them.
        status: the line beside the buttons.
        tab: the title of the open tab.
        model: the model that is trained.

    Returns:
        The view, which does not change any more.
    """
    entries = tuple(entries)
    finished = tuple(
        curve(e.run.config, e.run.steps, e.name, e.run.accuracy, e.run.final_loss, e.run.ended)
        for e in entries
        if not e.hidden and e.run.config.task == settings.task
    )
    live = live_curves(entries, training, settings.task)
    return LabView(settings, recordings, entries, finished, live, running, progress, status, tab, model)


def method_view(settings: Settings, recordings: RecordedRuns, method: str) -> MethodView:
    """Look up the recorded runs of one method, ticked or not."""
    where = settings.task, method, settings.rank
    init = settings.init_of(method)
    several = len(recordings.budgets) > 1
    recordings = recordings.with_steps(settings.task, method, settings.steps, init)
    best = recordings.best(*where, init)
    rate = best.lr if settings.own_rates and best is not None else settings.rate
    point = recordings.at(*where, rate, init)
    recorded_curve = None if point is None else recordings.curve(point)
    label = _label(settings, method, point, several)
    return MethodView(method, label, rate, point, best, recordings.valley(*where, init), recorded_curve)


def live_curves(
    entries: Sequence[Entry], training: Iterable[tuple[RunConfig, Sequence[Step]]], task: str
) -> tuple[Curve, ...]:  # fmt: skip
    """Return the curves of the runs of a task that are training, named apart from each other and the finished runs."""
    runs = list(training)
    names = run_names([*(entry.run.config for entry in entries), *(config for config, _ in runs)])[len(entries) :]
    named = zip(runs, names, strict=True)
    return tuple(curve(config, steps, name) for (config, steps), name in named if config.task == task)


def _label(settings: Settings, method: str, point: RatePoint | None, several: bool) -> str:
    """The method's label, with the recorded rank, rate or steps where they stand in for those of the controls."""
    label = METHODS[method].label
    if point is None:
        return label
    config = point.runs[0].config
    parts = [label] if config.init is None else [f"{label}, N {config.init}"]
    if METHODS[method].build is not None and config.rank != settings.rank:
        parts.append(f"r {config.rank}")
    if settings.own_rates:
        parts.append(format_rate(point.lr))
    if several and config.steps != settings.steps:
        parts.append(f"{config.steps} steps")
    return " · ".join(parts)


@cache
def _first_items(task: str) -> Sequence[Item]:
    return first_items(task, KEPT_ANSWERS)


@cache
def _base_answers(task: str, model: str) -> BaseAnswers | None:
    return base_answers(task, model)
