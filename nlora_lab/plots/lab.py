"""The figure of ``FineTuneLab``: loss over steps, and beside it final loss and accuracy against the learning rate.

Thin lines were recorded (the median over seeds, with their range as a band). Thick ones are trained in the lab.
A dotted line marks the slider's rate in both panels on the right. A line has its name at its end, in its method's hue.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from nlora_lab.core.formatting import format_rate
from nlora_lab.methods.table import METHODS
from nlora_lab.plots.drawings import Described
from nlora_lab.plots.figure import Axis, Band, Figure, Label, Limits, Line, Mark, Panel, Points, apart
from nlora_lab.runs.rate_points import LossCurve, RatePoint, Spread, running_mean

if TYPE_CHECKING:
    from nlora_lab.runs.config import RunConfig
    from nlora_lab.runs.run import Step

LOSS_TICKS = {v: f"{v:g}" for e in range(-4, 3) for v in (1 * 10.0**e, 2 * 10.0**e, 5 * 10.0**e)}
RATE_TICKS = {10.0**e: "10" + str(e).translate(str.maketrans("-0123456", "⁻⁰¹²³⁴⁵⁶")) for e in range(-6, 2)}
PERCENT_TICKS = {0.0: "0 %", 50.0: "50 %", 100.0: "100 %"}
FLOOR, CEILING = 1e-3, 5.0  # nothing is drawn outside; a diverged run stands at the ceiling
LEFT, RIGHT = (0.0, 0.52), (0.62, 1.0)  # of the figure's width
VALLEYS = "final loss against the learning rate"
STEP = "step %{x}: loss %{y:.3f}"
EMPTY = "nothing was recorded here: press Run,\nand the losses appear"


@dataclass(frozen=True)
class Curve:
    """One live run as a figure sees it."""

    name: str
    colour: str
    dash: str
    steps: tuple[Step, ...]
    lr: float = math.nan
    accuracy: float = math.nan  # NaN while there is none
    final_loss: float = math.nan
    note: str = ""  # "diverged", "stopped", "failed" or nothing

    @cached_property
    def mean(self) -> tuple[list[int], list[float]]:
        """The steps whose loss is finite, and the running mean of the loss at those steps."""
        finite = [s for s in self.steps if math.isfinite(s.loss)]
        return [s.step for s in finite], running_mean([max(s.loss, FLOOR) for s in finite])


def curve(
    config: RunConfig, steps: Sequence[Step], name: str, accuracy: float = math.nan, final_loss: float = math.nan,
    note: str = "",
) -> Curve:  # fmt: skip
    """Return a run in its method's hue and dash."""
    method = METHODS[config.method]
    return Curve(name, method.colour, method.dash, tuple(steps), config.lr, accuracy, final_loss, note)


def run_names(configs: Sequence[RunConfig]) -> list[str]:
    """Return a short name for each run: the method, and only those settings in which the runs differ."""
    forms = {"rank": "r {}", "lr": "{}", "task": "{}", "steps": "{} steps", "seed": "seed {}"}
    varying = [field for field in forms if len({getattr(c, field) for c in configs}) > 1]
    names = []
    for config in configs:
        settings = [(forms[field], getattr(config, field)) for field in varying]
        texts = [form.format(format_rate(v) if isinstance(v, float) else v) for form, v in settings]
        names.append(" · ".join([config.label, *texts]))
    counts = [names[: i + 1].count(name) for i, name in enumerate(names)]
    return [name if n == 1 else f"{name} ({n})" for name, n in zip(names, counts, strict=True)]


@dataclass(frozen=True)
class RecordedLine:
    """What was recorded of one method.

    ``valley`` has a point per rate. ``point`` is the one at the chosen rate, and ``curve`` its loss over the steps.
    Both are ``None`` where no recorded rate is near.
    """

    name: str
    method: str
    valley: Sequence[RatePoint]
    point: RatePoint | None
    curve: LossCurve | None

    @property
    def look(self) -> tuple[str, str]:
        """The method's hue and dash."""
        return METHODS[self.method].colour, METHODS[self.method].dash


@dataclass(frozen=True)
class LabDrawing(Described):
    """The figure of ``FineTuneLab``: recorded and live runs.

    Attributes:
        recorded: the recorded runs, one entry per method.
        live: the runs of the lab itself.
        lr: the slider's learning rate.
        planned: the number of steps that the left axis leaves room for.
        metric: what accuracy means, the heading of the panel below right.
    """

    recorded: Sequence[RecordedLine]
    live: Sequence[Curve]
    lr: float
    planned: int
    metric: str = "accuracy"

    def figure(self) -> Figure:
        """Return the description that both renderers draw."""
        left, *right = [replace(panel, marks=marks) for panel, marks in zip(self._panels, self._marks(), strict=True)]
        left = replace(left, growing=self._live_lines())
        return Figure([left, *right], 1040, 430, margins=(62, 12, 30, 46))

    @cached_property
    def _panels(self) -> list[Panel]:
        """The panels with their names, but without marks."""
        names = self._names_at_ends()
        loss = Axis("training loss, nats per token", self._loss_limits, True, LOSS_TICKS)
        rate = Axis("learning rate", self._rate_limits, True, RATE_TICKS)
        steps, percent = Axis("step", (0, 1.36 * self._end)), Axis("", (0, 104), ticks=PERCENT_TICKS)
        upper = Axis("", rate.limits, True, dict.fromkeys(RATE_TICKS, ""))
        final, bottoms = replace(loss, title="final loss"), self._names_at_bottoms()
        return [
            Panel(steps, loss, (), names, "loss over steps", across=LEFT, message="" if names else EMPTY),
            Panel(upper, final, (), bottoms, VALLEYS, across=RIGHT, up=(0.5, 1)),
            Panel(rate, percent, (), (), self.metric, across=RIGHT, up=(0, 0.36), follows=1),
        ]

    # --- limits ---

    @property
    def _end(self) -> int:
        """The last step on the left."""
        ends = [line.curve.steps[-1] for line in self.recorded if line.curve and line.curve.steps]
        return max([self.planned, *ends, *(c.steps[-1].step for c in self.live if c.steps)])

    @cached_property
    def _loss_limits(self) -> Limits:
        """The ends of both loss axes, in quarter decades so that they do not twitch while a run grows."""
        values = [v for line in self.recorded if line.curve for v in line.curve.middle]
        values += [v for c in self.live for v in c.mean[1]]
        values += [p.loss.middle for line in self.recorded for p in line.valley]
        known = [_cut(v) for v in values if math.isfinite(v)]
        low, high = math.log10(min(known, default=0.1)), math.log10(max(known, default=2.0))
        low, high = math.floor(4 * low - 0.8) / 4, math.ceil(4 * high + 0.2) / 4  # below: room for a name
        return 10**low, 10 ** max(high, low + 1)

    @property
    def _rate_limits(self) -> Limits:
        """The ends of the rate axis: all points, and the slider."""
        rates = [p.lr for line in self.recorded for p in line.valley] + [c.lr for c in self.live] + [self.lr]
        low, high = math.log10(min(rates)), math.log10(max(rates))
        return 10 ** (low - 0.25), 10 ** (max(high, low + 1) + 0.25)

    # --- names ---

    def _names_at_ends(self) -> list[Label]:
        curves = [(line, line.curve) for line in self.recorded if line.curve and line.curve.steps]
        names = [Label(c.steps[-1], _cut(c.middle[-1]), line.name, line.look[0]) for line, c in curves]
        for c in self.live:
            x, y = c.mean
            if x:
                names.append(Label(x[-1], _cut(y[-1]), f"{c.name} {c.note}".strip(), c.colour, bold=True))
        return apart(names, self._loss_limits, 0.05)

    def _names_at_bottoms(self) -> list[Label]:
        """Names under the lowest point of each valley, moved apart where two valleys share a place."""
        names, (low, high) = [], self._loss_limits
        for line in self.recorded:
            points = [p for p in line.valley if math.isfinite(p.loss.middle)]
            if points:
                best = min(points, key=lambda p: p.loss.middle)
                under = _cut(best.loss.middle) * (low / high) ** 0.07
                names.append(Label(best.lr, under, line.name, line.look[0], "center"))
        return apart(names, self._loss_limits, 0.075)

    # --- marks ---

    def _marks(self) -> tuple[list[Mark], list[Mark], list[Mark]]:
        """What is recorded or finished, by panel: a band and a line, a valley of losses, and one of accuracies."""
        bottom, top = self._loss_limits
        cursor: dict[str, Any] = {"dash": "dot", "width": 1.5, "name": "the slider's rate"}
        left: list[Mark] = [mark for line in self.recorded for mark in _recorded_curve(line)]
        above: list[Mark] = [Line([self.lr] * 2, [bottom, top], **cursor)]
        below: list[Mark] = [Line([self.lr] * 2, [0, 100], **cursor)]
        for line in self.recorded:
            above.append(_valley(line, [p.loss for p in line.valley], 1, (FLOOR, top), "loss %{y:.3f}"))
            below.append(_valley(line, [p.accuracy for p in line.valley], 100, (0, 100), "%{y:.1f} %"))
        done = [c for c in self.live if not math.isnan(c.final_loss) or c.note == "diverged"]
        rates, colours, names = [c.lr for c in done], [c.colour for c in done], [c.name for c in done]
        symbols = ["x" if c.note == "diverged" else "diamond" for c in done]
        look: dict[str, Any] = {"edge": "white", "texts": names, "hover": "%{text}<br>rate %{x}"}
        losses = [top if math.isnan(c.final_loss) else min(c.final_loss, top) for c in done]
        above.append(Points(rates, losses, colours, symbols, 13, **look))
        below.append(Points(rates, [100 * c.accuracy for c in done], colours, symbols, 13, **look))
        return left, above, below

    def _live_lines(self) -> list[Line]:
        lines = []
        for c in self.live:
            x, mean = c.mean
            raw = [max(s.loss, FLOOR) for s in c.steps if math.isfinite(s.loss)]
            lines.append(Line(x, raw, c.colour, c.dash, 1, 0.25, name=c.name))
            lines.append(Line(x, mean, c.colour, c.dash, 3.5, name=c.name, hover=STEP))
        return lines


def _cut(loss: float) -> float:
    return CEILING if math.isnan(loss) else min(max(loss, FLOOR), CEILING)


def _recorded_curve(line: RecordedLine) -> list[Mark]:
    curve, name = line.curve or LossCurve((), (), (), ()), f"{line.name}, recorded"
    low, middle, high = ([max(v, FLOOR) for v in values] for values in (curve.low, curve.middle, curve.high))
    band = Band(curve.steps, low, high, line.look[0], name=name)
    return [band, Line(curve.steps, middle, *line.look, 1.5, name=name, hover=STEP)]


def _valley(line: RecordedLine, spreads: Sequence[Spread], scale: float, limits: Limits, hover: str) -> Points:
    """One number against the rate, with its range over seeds; the point at the slider's rate is larger."""
    parts = ([s.middle for s in spreads], [s.low for s in spreads], [s.high for s in spreads])
    middle, low, high = ([min(max(scale * v, limits[0]), limits[1]) for v in part] for part in parts)
    colour, dash = line.look
    symbols = ["x" if math.isinf(p.loss.middle) else "circle" for p in line.valley]
    sizes = [10 if line.point is not None and p.lr == line.point.lr else 5 for p in line.valley]
    return Points(
        [p.lr for p in line.valley], middle, colour, symbols, sizes, dash=dash, whiskers=(low, high),
        texts=[_seeds(p) for p in line.valley], name=f"{line.name}, recorded", hover=f"rate %{{x}}: {hover}, %{{text}}",
    )  # fmt: skip


def _seeds(point: RatePoint) -> str:
    runs = len(point.runs)
    return f"{runs} seed{'s' * (runs > 1)}" + f", {point.diverged} diverged" * (point.diverged > 0)
