"""Every figure of the toolkit, drawn twice from one description: by plotly (live) and matplotlib (PNG).

Conventions: one hue and one dash a method, the same everywhere (:data:`nlora_lab.METHODS`); the thin
line is the loss of each step, the thick one its mean over the last ten; a line is named at its end,
not in a legend; backgrounds are transparent, so that a figure sits on a light and on a dark page.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nlora_lab.methods import METHODS

if TYPE_CHECKING:
    from nlora_lab.records import Run, RunConfig, Step

WINDOW = 10  # steps in the thick line's running mean
INK = "#767676"  # readable on white and on JupyterLab's dark grey alike
GRID = "rgba(128,128,128,0.18)"
LOSS_TICKS = [c * 10.0**e for e in range(-4, 3) for c in (1, 2, 5)]
FLOOR = 1e-4  # a loss axis is logarithmic: nothing is drawn below this


@dataclass(frozen=True)
class Curve:
    """One run as a figure sees it."""

    name: str
    colour: str
    dash: str
    steps: tuple[Step, ...]
    accuracy: float  # NaN while there is none
    note: str = ""  # "diverged", "stopped" or nothing


def run_names(configs: Sequence[RunConfig]) -> list[str]:
    """A short name for each: the method, and only those settings in which the runs differ."""
    told = {"rank": "r {}", "lr": "{}", "task": "{}", "steps": "{} steps", "seed": "seed {}"}
    varying = [f for f in told if len({getattr(c, f) for c in configs}) > 1]
    names = [" · ".join([c.label, *(told[f].format(_told(getattr(c, f))) for f in varying)]) for c in configs]
    counts = [names[: i + 1].count(name) for i, name in enumerate(names)]
    return [name if n == 1 else f"{name} ({n})" for name, n in zip(names, counts, strict=True)]


def rate_text(rate: float) -> str:
    """``2e-4``, ``1.6e-2``: two digits at most, the exponent without zeros."""
    mantissa, _, exponent = f"{rate:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def _told(value: object) -> object:
    return rate_text(value) if isinstance(value, float) else value


def curves(runs: Sequence[Run]) -> list[Curve]:
    """Finished runs as curves, named so that they can be told apart."""
    return [
        curve(run.config, run.steps, name, run.accuracy, "diverged" if run.diverged else "stopped" * run.stopped)
        for run, name in zip(runs, run_names([r.config for r in runs]), strict=True)
    ]


def curve(config: RunConfig, steps: Sequence[Step], name: str, accuracy: float = math.nan, note: str = "") -> Curve:
    """A curve in its method's hue and dash."""
    method = METHODS[config.method]
    return Curve(name, method.colour, method.dash, tuple(steps), accuracy, note)


def running_mean(values: Sequence[float], window: int = WINDOW) -> list[float]:
    """The mean of each value and up to ``window - 1`` before it."""
    means = []
    for i in range(len(values)):
        tail = values[max(0, i + 1 - window) : i + 1]
        means.append(sum(tail) / len(tail))
    return means


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """``heights`` moved apart as little as needed, so that neighbours are at least ``gap`` apart."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = [heights[i] for i in order]
    for _ in range(50):
        moved = False
        for i in range(len(placed) - 1):
            lack = gap - (placed[i + 1] - placed[i])
            if lack > 1e-9:
                placed[i] -= lack / 2
                placed[i + 1] += lack / 2
                moved = True
        if not moved:
            break
    result = [0.0] * len(heights)
    for i, value in zip(order, placed, strict=True):
        result[i] = value
    return result


@dataclass(frozen=True)
class _Line:
    """A curve ready to draw: what is finite of it, and where its name goes (log10 of the loss)."""

    curve: Curve
    x: list[int]
    raw: list[float]
    mean: list[float]
    label_y: float
    label: str


def _lines(shown: Sequence[Curve]) -> list[_Line]:
    drawn: list[tuple[Curve, list[int], list[float], list[float]]] = []
    for c in shown:
        finite = [s for s in c.steps if math.isfinite(s.loss)]
        raw = [max(s.loss, FLOOR) for s in finite]
        drawn.append((c, [s.step for s in finite], raw, running_mean(raw)))
    ends = [math.log10(mean[-1]) if mean else 0.0 for *_, mean in drawn]
    low, high = _loss_range(shown)
    label_ys = spread(ends, gap=0.065 * (high - low))
    return [
        _Line(c, x, raw, mean, y, f"{c.name} {c.note}".strip() if x else "")
        for (c, x, raw, mean), y in zip(drawn, label_ys, strict=True)
    ]


def _loss_range(shown: Sequence[Curve]) -> tuple[float, float]:
    """log10 limits of the loss axis: all means, never less than one decade."""
    values = [m for c in shown for m in running_mean([max(s.loss, FLOOR) for s in c.steps if math.isfinite(s.loss)])]
    low = min([math.log10(v) for v in values], default=-0.5)
    high = max([math.log10(v) for v in values], default=0.5)
    middle, half = (low + high) / 2, max((high - low) / 2, 0.5)
    return middle - half - 0.08, middle + half + 0.08


def _last_step(shown: Sequence[Curve], planned: int) -> int:
    return max([planned, *(c.steps[-1].step for c in shown if c.steps)], default=planned)


def _bars(shown: Sequence[Curve]) -> list[Curve]:
    return [c for c in shown if not math.isnan(c.accuracy) or c.note]


def figure_parts(shown: Sequence[Curve], planned: int, metric: str = "accuracy") -> tuple[list[Any], dict[str, Any]]:
    """Plotly traces and layout: loss over steps on the left, accuracy bars on the right.

    ``planned`` is the number of steps the x axis leaves room for.
    """
    import plotly.graph_objects as go

    lines, (low, high), end = _lines(shown), _loss_range(shown), _last_step(shown, planned)
    bars = _bars(shown)
    traces: list[Any] = [
        go.Bar(
            x=[0 if math.isnan(c.accuracy) else 100 * c.accuracy for c in bars],
            y=[c.name for c in bars],
            text=[c.note if math.isnan(c.accuracy) else f"{100 * c.accuracy:.0f} %" for c in bars],
            marker={"color": [c.colour for c in bars]},
            orientation="h",
            textposition="outside",
            cliponaxis=False,
            xaxis="x2",
            yaxis="y2",
            hoverinfo="skip",
            showlegend=False,
        ),
        # plotly draws no axes where there is no trace, and the left side starts without any
        go.Scatter(x=[None], y=[None], mode="lines", showlegend=False, hoverinfo="skip"),
    ]
    for line in lines:
        style = {"color": line.curve.colour, "dash": line.curve.dash}
        common = {"x": line.x, "mode": "lines", "showlegend": False, "name": line.curve.name}
        told = "step %{x}: loss %{y:.3f}<extra>%{fullData.name}</extra>"
        traces.append(go.Scatter(y=line.raw, line={**style, "width": 1}, opacity=0.25, hoverinfo="skip", **common))
        traces.append(go.Scatter(y=line.mean, line={**style, "width": 3}, hovertemplate=told, **common))
    notes = [
        {
            "x": line.x[-1], "y": line.label_y, "text": line.label, "showarrow": False, "xanchor": "left",
            "xshift": 6, "xref": "x", "yref": "y", "font": {"color": line.curve.colour, "size": 13},
        }
        for line in lines if line.x
    ]  # fmt: skip
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": INK, "ticks": "outside", "tickcolor": INK}
    if not lines:
        middle = {"x": 0.5, "y": 0.5, "xref": "x domain", "yref": "y domain", "showarrow": False}
        notes.append({**middle, "text": "press Run, and the losses appear here"})
    title = {"x": 0, "y": 1.09, "yref": "paper", "showarrow": False, "xanchor": "left"}
    notes += [{**title, "xref": f"{x} domain", "text": text} for x, text in (("x", "loss over steps"), ("x2", metric))]
    layout = {
        "xaxis": {**axis, "domain": [0, 0.6], "range": [0, end * 1.35], "title": {"text": "step"}},
        "yaxis": {
            **axis,
            "type": "log",
            "range": [low, high],
            "title": {"text": "training loss, nats a token"},
            "tickvals": LOSS_TICKS,
            "ticktext": [f"{v:g}" for v in LOSS_TICKS],
        },
        "xaxis2": {**axis, "domain": [0.78, 0.96], "range": [0, 100], "ticksuffix": " %", "anchor": "y2", "dtick": 50},
        "yaxis2": {
            **axis,
            "anchor": "x2",
            "type": "category",
            "autorange": "reversed",
            "showgrid": False,
            "ticks": "",
            "automargin": True,
        },
        "annotations": notes,
        "font": {"color": INK, "size": 12},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 60, "r": 30, "t": 36, "b": 44},
        "height": 360,
        "autosize": True,
        "bargap": 0.35,
    }  # fmt: skip
    return traces, layout


_MPL_DASH: dict[str, Any] = {
    "solid": "-", "dash": (0, (5, 2)), "dot": (0, (1, 1.5)), "dashdot": (0, (5, 2, 1, 2)), "longdash": (0, (9, 3)),
    "longdashdot": (0, (9, 3, 1, 3)),
}  # fmt: skip


def picture(shown: Sequence[Curve], planned: int, metric: str = "accuracy", dpi: int = 110) -> bytes:
    """The same figure as PNG bytes, on white, through matplotlib's object API (safe in threads)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.6), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[2.6, 1])
    low, high = _loss_range(shown)
    end = _last_step(shown, planned)
    for line in _lines(shown):
        style = {"color": line.curve.colour, "linestyle": _MPL_DASH[line.curve.dash]}
        left.plot(line.x, line.raw, linewidth=0.7, alpha=0.3, **style)
        left.plot(line.x, line.mean, linewidth=2.2, **style)
        if line.x:
            place = (line.x[-1] + 0.01 * end, 10**line.label_y)
            left.text(*place, line.label, color=line.curve.colour, va="center", fontsize=9)
    left.set(
        yscale="log", xlim=(0, end * 1.3), ylim=(10**low, 10**high), xlabel="step", ylabel="training loss, nats a token"
    )
    left.set_yticks([v for v in LOSS_TICKS if 10**low <= v <= 10**high])
    left.set_yticks([], minor=True)
    left.yaxis.set_major_formatter("{x:g}")
    left.set_title("loss over steps", loc="left", fontsize=10, color=INK)
    bars = _bars(shown)
    if bars:
        heights = [0.0 if math.isnan(c.accuracy) else 100 * c.accuracy for c in bars]
        drawn = right.barh([c.name for c in bars], heights, color=[c.colour for c in bars], height=0.65)
        texts = [c.note if math.isnan(c.accuracy) else f"{100 * c.accuracy:.0f} %" for c in bars]
        right.bar_label(drawn, texts, padding=3, fontsize=9)
        right.invert_yaxis()
    else:
        right.set_yticks([])
    right.set(xlim=(0, 118), xticks=[0, 50, 100], xlabel="%")
    right.set_title(metric, loc="left", fontsize=10, color=INK)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    left.grid(alpha=0.25, linewidth=0.6)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()
