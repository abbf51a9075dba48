"""The approximations compared in the figures about matrices: their names, hues, dashes and options."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nlora_lab.plots.style import INK, MPL_DASH, axis, spread


@dataclass(frozen=True)
class Approximation:
    """One way to approximate a matrix: how it is drawn, and the options of ``error_curve`` that give it."""

    name: str
    label: str
    short: str
    colour: str
    dash: str
    options: Mapping[str, Any] = field(default_factory=dict)


APPROXIMATIONS: dict[str, Approximation] = {
    a.name: a
    for a in (
        Approximation("nystrom", "leading block, pseudo-inverse (NLoRA)", "leading, pinv", "#009e73", "dashdot"),
        Approximation("optimal", "leading block, optimal core", "optimal core", "#56b4e9", "dash", {"core": "optimal"}),
        Approximation("cross", "complete pivoting", "complete pivoting", "#d55e00", "longdash", {"pivots": "cross"}),
        Approximation("qr", "pivoted QR", "pivoted QR", "#c0448f", "dot", {"pivots": "qr"}),
        Approximation("svd", "truncated SVD, the best possible", "best possible", INK, "solid", {"kind": "svd"}),
    )
}


@dataclass(frozen=True)
class ErrorLine:
    """Relative errors at ranks 1 … R, with a name, a hue and a dash."""

    label: str
    colour: str
    dash: str
    errors: Sequence[float]
    width: float = 2.0


def line_of(name: str, errors: Sequence[float], width: float = 2.0) -> ErrorLine:
    """An :class:`ErrorLine` in the look of ``APPROXIMATIONS[name]``."""
    a = APPROXIMATIONS[name]
    return ErrorLine(a.short, a.colour, a.dash, errors, width)


FLOOR = 1e-3  # errors below are drawn here: on a log scale, exact is nowhere
CEILING = 1e3


def _log(value: float) -> float:
    if math.isnan(value):
        return value
    return math.log10(min(max(value, FLOOR), CEILING))


def error_range(lines: Sequence[ErrorLine]) -> tuple[float, float]:
    """log10 limits that show every line and the error of zero, which is 1."""
    values = [_log(e) for line in lines for e in line.errors if not math.isnan(e)] or [0.0]
    low, high = min(-0.35, *values), max(0.35, *values)
    return low - 0.1 * (high - low), high + 0.05 * (high - low)


def _label_heights(lines: Sequence[ErrorLine], low: float, high: float) -> list[float]:
    """Where each line ends (log10), moved apart."""
    ends = [next((_log(e) for e in reversed(line.errors) if not math.isnan(e)), 0.0) for line in lines]
    return spread(ends, 0.085 * (high - low))


def rank_ticks(ranks: int) -> list[int]:
    """Round ranks up to the last one: the axis goes on for the labels, its numbers do not."""
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**9) if ranks / s <= 6)
    return list(range(0, ranks + 1, step))


def error_ticks() -> dict[float, str]:
    """Decades of the error axis, and what to call them; the outermost stand for all beyond."""
    names = {10.0**e: f"{10.0**e:g}" for e in range(-3, 4)}
    return {**names, FLOOR: f"≤ {FLOOR:g}", CEILING: f"≥ {CEILING:g}"}


def error_traces(lines: Sequence[ErrorLine], rank: int, x: str, y: str) -> tuple[list[Any], list[dict[str, Any]]]:
    """Plotly traces of error against rank with a cursor at ``rank``, and the labels at the lines' ends."""
    import plotly.graph_objects as go

    low, high = error_range(lines)
    ranks = max((len(line.errors) for line in lines), default=1)
    common = {"xaxis": x, "yaxis": y, "mode": "lines", "showlegend": False}
    grey = {"color": INK, "width": 1, "dash": "dot"}
    traces: list[Any] = [
        go.Scatter(x=[1, ranks], y=[1, 1], line=grey, hoverinfo="skip", **common),
        go.Scatter(x=[rank, rank], y=[10**low, 10**high], line={**grey, "dash": "solid"}, hoverinfo="skip", **common),
    ]
    for line in lines:
        told = "rank %{x}: error %{y:.3g}<extra>" + line.label + "</extra>"
        style = {"color": line.colour, "dash": line.dash, "width": line.width}
        drawn = [10 ** _log(e) for e in line.errors]
        traces.append(go.Scatter(x=list(range(1, len(drawn) + 1)), y=drawn, line=style, hovertemplate=told, **common))
    placed = _label_heights(lines, low, high)
    labels = [
        {
            "x": len(line.errors), "y": at, "text": line.label, "showarrow": False, "xanchor": "left", "xshift": 5,
            "xref": x, "yref": y, "font": {"color": line.colour, "size": 12},
        }
        for line, at in zip(lines, placed, strict=True)
    ]  # fmt: skip
    return traces, labels


def error_axes(lines: Sequence[ErrorLine], x: str, y: str, room: float = 1.4) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plotly's x and y axis for :func:`error_traces`; ``room`` is for the labels."""
    low, high = error_range(lines)
    ranks = max((len(line.errors) for line in lines), default=1)
    ticks = error_ticks()
    return (
        {**axis(), "range": [0, ranks * room], "tickvals": rank_ticks(ranks), "title": {"text": "rank"}, "anchor": y},
        {
            **axis(), "type": "log", "range": [low, high], "tickvals": list(ticks), "ticktext": list(ticks.values()),
            "title": {"text": "relative error"}, "anchor": x,
        },
    )  # fmt: skip


def draw_errors(axes: Any, lines: Sequence[ErrorLine], rank: int, room: float = 1.4) -> None:
    """The same with matplotlib."""
    low, high = error_range(lines)
    ranks = max((len(line.errors) for line in lines), default=1)
    axes.axhline(1, color=INK, linewidth=0.8, linestyle=":")
    axes.axvline(rank, color=INK, linewidth=0.8)
    for line in lines:
        drawn = [10 ** _log(e) for e in line.errors]
        style = {"color": line.colour, "linestyle": MPL_DASH[line.dash], "linewidth": line.width * 0.8}
        axes.plot(range(1, len(drawn) + 1), drawn, **style)
    placed = _label_heights(lines, low, high)
    for line, at in zip(lines, placed, strict=True):
        axes.text(len(line.errors) + 0.02 * ranks, 10**at, line.label, color=line.colour, fontsize=8, va="center")
    axes.set(yscale="log", xlim=(0, ranks * room), ylim=(10**low, 10**high), xlabel="rank", ylabel="relative error")
    axes.set_xticks(rank_ticks(ranks))
    shown = {t: name for t, name in error_ticks().items() if 10**low <= t <= 10**high}
    axes.set_yticks(list(shown), list(shown.values()))
    axes.set_yticks([], minor=True)
