"""The lab's figure: loss over steps, and beside it final loss and accuracy against the learning rate.

Thin lines were recorded (median over seeds, the range as a band), thick ones are trained here. The slider's rate
stands in both plots on the right as a dotted line. A line is named where it ends, in its method's hue.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nlora_lab.methods.table import METHODS
from nlora_lab.plots.runs import Curve
from nlora_lab.plots.style import INK, MPL_DASH, axis, blank_layout, new_figure, png_bytes, spread, title
from nlora_lab.runs.index import LossCurve, RatePoint, running_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOSS_TICKS = [c * 10.0**e for e in range(-4, 3) for c in (1, 2, 5)]
RATE_TICKS = [10.0**e for e in range(-6, 2)]
FLOOR, CEILING = 1e-3, 5.0  # nothing is drawn outside; a diverged run stands at the ceiling
HEIGHT = 430
LEFT, RIGHT = (0.0, 0.52), (0.62, 1.0)  # of the figure's width


@dataclass(frozen=True)
class RecordedLine:
    """What was recorded of one method: its valley, and its loss curve at the chosen rate (``None``: none near it)."""

    name: str
    method: str
    valley: Sequence[RatePoint]
    here: RatePoint | None
    curve: LossCurve | None

    @property
    def colour(self) -> str:
        """The method's."""
        return METHODS[self.method].colour

    @property
    def dash(self) -> str:
        """The method's."""
        return METHODS[self.method].dash


@dataclass(frozen=True)
class LabDrawing:
    """The figure of recorded and live runs (a :class:`~nlora_lab.plots.style.Drawing`).

    ``lr``: the slider's rate; ``planned``: the steps the left axis leaves room for; ``metric``: what accuracy means.
    """

    recorded: Sequence[RecordedLine]
    live: Sequence[Curve]
    lr: float
    planned: int
    metric: str = "accuracy"

    # --- what both ways of drawing need ---

    def _end(self) -> int:
        ends = [line.curve.steps[-1] for line in self.recorded if line.curve and line.curve.steps]
        ends += [c.steps[-1].step for c in self.live if c.steps]
        return max([self.planned, *ends])

    def _loss_range(self) -> tuple[float, float]:
        """log10 limits for both loss axes, in quarter decades so that they do not twitch while a run grows."""
        values = [v for line in self.recorded if line.curve for v in line.curve.middle]
        values += [v for c in self.live for v in _mean(c)[1]]
        values += [p.loss.middle for line in self.recorded for p in line.valley]
        known = [min(max(v, FLOOR), CEILING) for v in values if math.isfinite(v)]
        low, high = math.log10(min(known, default=0.1)), math.log10(max(known, default=2.0))
        low, high = math.floor(4 * low - 0.8) / 4, math.ceil(4 * high + 0.2) / 4  # below: room for a name
        return low, max(high, low + 1)

    def _rate_range(self) -> tuple[float, float]:
        """log10 limits of the rate axis: all that is shown, and the slider."""
        rates = [p.lr for line in self.recorded for p in line.valley] + [c.lr for c in self.live] + [self.lr]
        low, high = math.log10(min(rates)), math.log10(max(rates))
        return low - 0.25, max(high, low + 1) + 0.25

    def _ends(self) -> list[tuple[float, float, str, str]]:
        """Where the names stand on the left: step, log10 of the loss, text, colour."""
        low, high = self._loss_range()
        places = []
        for line in self.recorded:
            if line.curve and line.curve.steps:
                places.append((line.curve.steps[-1], _log(line.curve.middle[-1]), line.name, line.colour))
        for c in self.live:
            x, y = _mean(c)
            if x:
                told = html.escape(f"{c.name} {c.note}".strip(), quote=False)  # plotly reads a little HTML
                places.append((x[-1], _log(y[-1]), f"<b>{told}</b>", c.colour))
        heights = spread([min(max(y, low), high) for _, y, _, _ in places], gap=0.05 * (high - low))
        return [(x, y, text, colour) for (x, _, text, colour), y in zip(places, heights, strict=True)]

    def _bottoms(self) -> list[tuple[float, float, str, str]]:
        """Where the names stand on the right: at the lowest point of each valley."""
        low, high = self._loss_range()
        found = []
        for line in self.recorded:
            points = [p for p in line.valley if math.isfinite(p.loss.middle)]
            if points:
                best = min(points, key=lambda p: p.loss.middle)
                found.append((math.log10(best.lr), _log(best.loss.middle), line.name, line.colour))
        # names stand under their points, moved apart where two valleys share a place
        order = spread([y - 0.07 * (high - low) for _, y, _, _ in found], gap=0.075 * (high - low))
        return [(x, y, text, colour) for (x, _, text, colour), y in zip(found, order, strict=True)]

    def headings(self) -> tuple[str, str, str]:
        """Of the three plots."""
        return "loss over steps", "final loss against the learning rate", self.metric

    # --- plotly ---

    def plotly(self) -> tuple[list[Any], dict[str, Any]]:
        """Traces (as dicts) and layout; the last two traces of each live run are its curve."""
        top = 10 ** self._loss_range()[1]
        traces = [_cursor(self.lr, [10 ** self._loss_range()[0], top], "y2"), _cursor(self.lr, [0, 100], "y3")]
        for line in self.recorded:
            traces += _recorded_traces(line, top)
        traces += self._points(top)
        traces += self.growing()
        return traces, {**self._layout(), "annotations": self.annotations()}

    def growing(self) -> list[dict[str, Any]]:
        """The traces that grow while a run trains: two for each live run."""
        traces = []
        for c in self.live:
            x, mean = _mean(c)
            raw = [max(s.loss, FLOOR) for s in c.steps if math.isfinite(s.loss)]
            look = {"color": c.colour, "dash": c.dash}
            common = {"type": "scatter", "mode": "lines", "x": x, "showlegend": False, "name": c.name}
            told = "step %{x}: loss %{y:.3f}<extra>%{fullData.name}</extra>"
            traces.append({**common, "y": raw, "line": {**look, "width": 1}, "opacity": 0.25, "hoverinfo": "skip"})
            traces.append({**common, "y": mean, "line": {**look, "width": 3.5}, "opacity": 1.0, "hovertemplate": told})
        return traces

    def annotations(self) -> list[dict[str, Any]]:
        """Headings, names, and a word where there is nothing yet."""
        notes = [
            {"x": x, "y": y, "text": text, "showarrow": False, "xanchor": "left", "xshift": 5, "xref": "x", "yref": "y",
             "font": {"color": colour, "size": 12}}
            for x, y, text, colour in self._ends()
        ]  # fmt: skip
        notes += [
            {"x": x, "y": y, "text": text, "showarrow": False, "xref": "x2", "yref": "y2",
             "font": {"color": colour, "size": 12}}
            for x, y, text, colour in self._bottoms()
        ]  # fmt: skip
        for text, x, y in zip(self.headings(), ("x", "x2", "x2"), ("y", "y2", "y3"), strict=True):
            notes.append(title(text, x, y))
        if not self._ends():
            middle = {"x": 0.5, "y": 0.5, "xref": "x domain", "yref": "y domain", "showarrow": False}
            notes.append({**middle, "text": "nothing was recorded here: press Run,<br>and the losses appear"})
        return notes

    def _points(self, top: float) -> list[dict[str, Any]]:
        """The finished live runs on the right: one trace a plot."""
        done = [c for c in self.live if not math.isnan(c.final_loss) or c.note == "diverged"]
        losses = [top if math.isnan(c.final_loss) else min(c.final_loss, top) for c in done]
        told = "%{text}<br>rate %{x}<extra></extra>"
        common = {
            "type": "scatter", "mode": "markers", "name": "trained here",
            "x": [c.lr for c in done], "xaxis": "x2", "showlegend": False,
            "text": [html.escape(c.name) for c in done], "hovertemplate": told, "cliponaxis": False,
        }  # fmt: skip
        marker = {
            "color": [c.colour for c in done], "size": 13, "line": {"width": 2, "color": "white"},
            "symbol": ["x" if c.note == "diverged" else "diamond" for c in done],
        }  # fmt: skip
        right = [None if math.isnan(c.accuracy) else 100 * c.accuracy for c in done]
        return [
            {**common, "y": losses, "yaxis": "y2", "marker": marker},
            {**common, "y": right, "yaxis": "y3", "marker": marker},
        ]

    def _layout(self) -> dict[str, Any]:
        low, high = self._loss_range()
        slow, fast = self._rate_range()
        losses = {
            **axis(), "type": "log", "range": [low, high], "tickvals": LOSS_TICKS,
            "ticktext": [f"{v:g}" for v in LOSS_TICKS],
        }  # fmt: skip
        layout = {
            **blank_layout(HEIGHT),
            "xaxis": {**axis(), "domain": list(LEFT), "range": [0, self._end() * 1.36], "title": {"text": "step"}},
            "yaxis": {**losses, "domain": [0, 1], "title": {"text": "training loss, nats a token"}},
            "xaxis2": {
                **axis(), "domain": list(RIGHT), "anchor": "y3", "type": "log", "range": [slow, fast],
                "tickvals": RATE_TICKS, "ticktext": [f"10<sup>{round(math.log10(v))}</sup>" for v in RATE_TICKS],
                "title": {"text": "learning rate"},
            },
            "yaxis2": {**losses, "domain": [0.5, 1], "anchor": "x2", "title": {"text": "final loss"}},
            "yaxis3": {
                **axis(), "domain": [0, 0.36], "anchor": "x2", "range": [0, 104], "ticksuffix": " %", "dtick": 50,
            },
            "hovermode": "closest",
        }  # fmt: skip
        layout["margin"] = {"l": 62, "r": 12, "t": 30, "b": 46}
        return layout

    # --- matplotlib ---

    def png(self) -> bytes:
        """The same as a picture, through matplotlib's object API (safe in threads)."""
        figure = new_figure(10.4, 4.3, 100)
        grid = figure.add_gridspec(2, 2, width_ratios=[1.35, 1], height_ratios=[1.35, 1])
        left, valley, right = (figure.add_subplot(grid[place]) for place in ((slice(None), 0), (0, 1), (1, 1)))
        (low, high), (slow, fast) = self._loss_range(), self._rate_range()
        left.set(xlim=(0, self._end() * 1.34), yscale="log", ylim=(10**low, 10**high))
        valley.set(xscale="log", xlim=(10**slow, 10**fast), yscale="log", ylim=(10**low, 10**high))
        right.set(xscale="log", xlim=(10**slow, 10**fast), ylim=(0, 104), yticks=[0, 50, 100])
        for line in self.recorded:
            _recorded_picture(line, left, valley, right, 10**high)
        for c in self.live:
            x, mean = _mean(c)
            style: dict[str, Any] = {"color": c.colour, "linestyle": MPL_DASH[c.dash]}
            left.plot(x, [s.loss for s in c.steps if math.isfinite(s.loss)], linewidth=0.7, alpha=0.3, **style)
            left.plot(x, mean, linewidth=2.6, **style)
        for points, axes in zip(self._points(10**high), (valley, right), strict=True):
            rows = zip(points["x"], points["y"], points["marker"]["color"], points["marker"]["symbol"], strict=True)
            for x0, y0, colour, symbol in rows:
                if y0 is not None:
                    mark = "X" if symbol == "x" else "D"
                    axes.plot([x0], [y0], mark, color=colour, markersize=8, markeredgecolor="white", clip_on=False)
        for x0, y0, text, colour in self._ends():
            plain = html.unescape(text.removeprefix("<b>").removesuffix("</b>"))
            weight = "bold" if plain != text else "normal"
            left.text(
                x0 + 0.012 * self._end(),
                10**y0,
                plain,
                color=colour,
                va="center",
                fontsize=8.5,
                weight=weight,
                parse_math=False,
            )
        for x0, y0, text, colour in self._bottoms():
            valley.text(10**x0, 10**y0, text, color=colour, ha="center", va="center", fontsize=8, parse_math=False)
        for axes in (valley, right):
            axes.axvline(self.lr, color=INK, linestyle=":", linewidth=1.2)
        left.set(xlabel="step", ylabel="training loss, nats a token")
        right.set(xlabel="learning rate")
        valley.tick_params(labelbottom=False)
        for axes in (left, valley):
            axes.set_yticks([v for v in LOSS_TICKS if 10**low <= v <= 10**high])
            axes.set_yticks([], minor=True)
            axes.yaxis.set_major_formatter("{x:g}")
        right.yaxis.set_major_formatter("{x:.0f} %")
        for heading, axes in zip(self.headings(), (left, valley, right), strict=True):
            axes.set_title(heading, loc="left", fontsize=9.5, color=INK)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8)
            axes.grid(alpha=0.25, linewidth=0.6)
        if not self._ends():
            middle: dict[str, Any] = {"transform": left.transAxes, "ha": "center", "color": INK}
            left.text(0.5, 0.5, "nothing was recorded here: press Run,\nand the losses appear", **middle)
        return png_bytes(figure)


@dataclass(frozen=True)
class Growing:
    """A :class:`LabDrawing` while runs are training: of what grows, only that is computed when it is asked for."""

    whole: Callable[[], LabDrawing]
    live: Callable[[], list[Curve]]

    def plotly(self) -> tuple[list[Any], dict[str, Any]]:
        """The whole figure's traces and layout."""
        return self.whole().plotly()

    def png(self) -> bytes:
        """The whole figure as a picture."""
        return self.whole().png()

    def growing(self) -> list[dict[str, Any]]:
        """The last traces of the figure, those of the live runs in training."""
        return LabDrawing([], self.live(), 1.0, 1).growing()

    def annotations(self) -> list[dict[str, Any]]:
        """The layout's annotations: names move with the ends of their curves."""
        return self.whole().annotations()


def _log(value: float) -> float:
    return math.log10(min(max(value, FLOOR), CEILING)) if not math.isnan(value) else math.log10(CEILING)


def _mean(c: Curve) -> tuple[list[int], list[float]]:
    """Steps and running mean of what is finite of a live run."""
    finite = [s for s in c.steps if math.isfinite(s.loss)]
    return [s.step for s in finite], running_mean([max(s.loss, FLOOR) for s in finite])


def _cursor(lr: float, ends: list[float], y: str) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "lines", "x": [lr, lr], "y": ends, "xaxis": "x2", "yaxis": y, "hoverinfo": "skip",
        "showlegend": False, "line": {"color": INK, "dash": "dot", "width": 1.5}, "name": "the slider's rate",
    }  # fmt: skip


def _shown(value: float, top: float) -> float | None:
    """A loss on the axis: at its top where the run diverged, nothing where there is no number."""
    return None if math.isnan(value) else min(max(value, FLOOR), top)


def _recorded_traces(line: RecordedLine, top: float) -> list[dict[str, Any]]:
    """Band and median on the left, loss and accuracy against the rate on the right: always four."""
    look = {"color": line.colour, "dash": line.dash, "width": 1.5}
    curve = line.curve or LossCurve((), (), (), ())
    common = {"type": "scatter", "showlegend": False, "name": f"{line.name}, recorded"}
    told = "step %{x}: loss %{y:.3f}<extra>%{fullData.name}</extra>"
    band = {
        **common, "mode": "lines", "x": [*curve.steps, *reversed(curve.steps)],
        "y": [max(v, FLOOR) for v in (*curve.high, *reversed(curve.low))],
        "fill": "toself", "fillcolor": line.colour, "opacity": 0.15,
        "line": {"width": 0, "color": line.colour}, "hoverinfo": "skip",
    }  # fmt: skip
    middle = {**common, "mode": "lines", "x": list(curve.steps), "y": [max(v, FLOOR) for v in curve.middle],
              "line": look, "hovertemplate": told}  # fmt: skip
    here = None if line.here is None else line.here.lr
    sizes = [10 if p.lr == here else 5 for p in line.valley]
    right = {
        **common, "mode": "lines+markers", "x": [p.lr for p in line.valley], "xaxis": "x2", "line": look,
        "cliponaxis": False,
        "text": [f"{len(p.runs)} seed{'s' * (len(p.runs) > 1)}" + f", {p.diverged} diverged" * (p.diverged > 0)
                 for p in line.valley],
    }  # fmt: skip
    losses = {
        **right, "yaxis": "y2", "y": [_shown(p.loss.middle, top) for p in line.valley],
        "marker": {"color": line.colour, "size": sizes,
                   "symbol": ["x" if math.isinf(p.loss.middle) else "circle" for p in line.valley]},
        "error_y": _bars([(p.loss.low, p.loss.middle, p.loss.high) for p in line.valley], line.colour, top),
        "hovertemplate": "rate %{x}: loss %{y:.3f}, %{text}<extra>%{fullData.name}</extra>",
    }  # fmt: skip
    accuracies = {
        **right, "yaxis": "y3",
        "y": [None if math.isnan(p.accuracy.middle) else 100 * p.accuracy.middle for p in line.valley],
        "marker": {"color": line.colour, "size": sizes},
        "error_y": _bars([(100 * p.accuracy.low, 100 * p.accuracy.middle, 100 * p.accuracy.high) for p in line.valley],
                         line.colour, 100.0),
        "hovertemplate": "rate %{x}: %{y:.1f} %, %{text}<extra>%{fullData.name}</extra>",
    }  # fmt: skip
    return [band, middle, losses, accuracies]


def _bars(spreads: Sequence[tuple[float, float, float]], colour: str, top: float) -> dict[str, Any]:
    """The range over seeds as error bars."""
    cut = [[min(v, top) if not math.isnan(v) else 0.0 for v in triple] for triple in spreads]
    return {
        "type": "data", "symmetric": False, "array": [high - middle for _, middle, high in cut],
        "arrayminus": [middle - low for low, middle, _ in cut], "color": colour, "thickness": 1.2, "width": 3,
    }  # fmt: skip


def _recorded_picture(line: RecordedLine, left: Axes, valley: Axes, right: Axes, top: float) -> None:
    style: dict[str, Any] = {"color": line.colour, "linestyle": MPL_DASH[line.dash], "linewidth": 1.1}
    if line.curve and line.curve.steps:
        left.fill_between(line.curve.steps, line.curve.low, line.curve.high, color=line.colour, alpha=0.15, linewidth=0)
        left.plot(line.curve.steps, line.curve.middle, **style)
    for points, axes, scale in (
        ([(p, p.loss) for p in line.valley], valley, 1.0), ([(p, p.accuracy) for p in line.valley], right, 100.0),
    ):  # fmt: skip
        known = [(p, s) for p, s in points if not math.isnan(s.middle)]
        cut = [[min(v * scale, top if scale == 1.0 else 100.0) for v in (s.low, s.middle, s.high)] for _, s in known]
        rates = [p.lr for p, _ in known]
        ends = [[m - low for low, m, _ in cut], [high - m for _, m, high in cut]]
        axes.errorbar(rates, [m for _, m, _ in cut], yerr=ends, capsize=2, **style)
        for p, (_, m, _) in zip((p for p, _ in known), cut, strict=True):
            mark = "x" if math.isinf(p.loss.middle) else "o"
            size = 7 if line.here is not None and p.lr == line.here.lr else 3.5
            axes.plot([p.lr], [m], mark, color=line.colour, markersize=size, clip_on=False)
