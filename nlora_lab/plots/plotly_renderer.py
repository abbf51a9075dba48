"""Draws the description of a figure with plotly: its traces and its layout, as dictionaries.

They are dictionaries and not plotly's objects, because those check every value: several milliseconds at each move of a
slider. All axes name the same properties, because a live figure keeps what an update does not name.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from typing import Any

from nlora_lab.plots.figure import INK, Axis, Band, Bars, Figure, Heatmap, Label, Line, Mark, Panel, Points, Values

Plotly = dict[str, Any]
GRID = "rgba(128,128,128,0.18)"
LEGENDS: dict[str, Plotly] = {
    "inside": {"x": 1, "y": 1, "xanchor": "right", "yanchor": "top"},
    "beside": {"x": 1.02, "y": 1, "xanchor": "left", "yanchor": "top"},
    "above": {"x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom", "orientation": "h"},
}


def render(figure: Figure) -> tuple[list[Plotly], Plotly]:
    """Return the traces, those that grow last, and the layout."""
    traces, growing, axes = [], [], {}
    for number, panel in enumerate(figure.panels, start=1):
        # plotly draws no axes without a trace
        marks = panel.marks if panel.marks or panel.growing else [Line([None], [None])]
        traces += [trace(mark, panel, number) for mark in marks]
        growing += [trace(mark, panel, number) for mark in panel.growing]
        x, y = _axis_names(number)
        follows = None if panel.follows is None else _axis_names(panel.follows + 1)[0]
        axes[x.replace("x", "xaxis")] = _axis(panel.x, panel.across, y, follows)
        axes[y.replace("y", "yaxis")] = _axis(panel.y, panel.up, x)
    margins = dict(zip("lrtb", figure.margins, strict=True))
    legends = [LEGENDS[panel.legend] for panel in figure.panels if panel.legend]
    look = {"font": {"color": INK, "size": 12}, "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)"}
    layout = {
        **look, **axes, "margin": margins, "height": figure.height, "autosize": True, "barmode": "stack",
        "hovermode": "closest", "showlegend": bool(legends), "annotations": annotations_of(figure),
        "legend": {"bgcolor": "rgba(0,0,0,0)", "traceorder": "normal", **(legends[0] if legends else {})},
        "shapes": [_frame(mark.framed, number) for number, panel in enumerate(figure.panels, start=1)
                   for mark in panel.marks if isinstance(mark, Heatmap) and mark.framed],
    }  # fmt: skip
    return traces + growing, layout


def trace(mark: Mark, panel: Panel, number: int = 1) -> Plotly:
    """Return a mark of a panel, the ``number``-th of its figure, as a trace."""
    x, y = _axis_names(number)
    drawn = {"name": _escape(mark.name), "xaxis": x, "yaxis": y, "showlegend": bool(panel.legend and mark.name)}
    name = "%{fullData.name}" if mark.name else ""
    drawn |= {"hovertemplate": f"{mark.hover}<extra>{name}</extra>"} if mark.hover else {"hoverinfo": "skip"}
    drawn |= {key: list(map(_escape, axis.names)) for key, axis in (("x", panel.x), ("y", panel.y)) if axis.names}
    return drawn | TRACES[type(mark)](mark)


def annotations_of(figure: Figure) -> list[Plotly]:
    """Return the labels, headings and messages of a figure."""
    notes: list[Plotly] = []
    for number, panel in enumerate(figure.panels, start=1):
        x, y = _axis_names(number)
        notes += [{"xref": x, "yref": y, **_label(label, panel)} for label in panel.labels]
        inside = {"xref": f"{x} domain", "yref": f"{y} domain", "showarrow": False, "x": 0.5, "y": 0.5}
        above = {**inside, "x": 0, "y": 1, "xanchor": "left", "yanchor": "bottom"}
        if panel.heading:
            text, font = _text(panel.heading, panel.heading_colour != INK), {"size": 13, "color": panel.heading_colour}
            notes.append({**above, "yshift": 6, "text": text, "font": font})
        if figure.heading and number == 1:
            notes.append({**above, "yshift": 28, "text": _text(figure.heading, True), "font": {"size": 13}})
        if panel.message:
            notes.append({**inside, "text": _escape(panel.message)})
    return notes


def _escape(text: str) -> str:
    """Plain text for plotly, which reads markup, links, formulas between dollars, and entities."""
    return html.escape(text, quote=False).replace("$", "&#36;").replace("\n", "<br>")


def _text(text: str, bold: bool) -> str:
    return f"<b>{_escape(text)}</b>" if bold else _escape(text)


def _axis_names(number: int) -> tuple[str, str]:
    return ("x", "y") if number == 1 else (f"x{number}", f"y{number}")


def _numbers(values: Values) -> list[float | None]:
    return [None if v != v else v for v in values]


def _line(line: Line) -> Plotly:
    drawn: Plotly = {
        "type": "scatter", "mode": "lines+markers" if line.symbol else "lines", "x": list(line.x),
        "y": _numbers(line.y), "opacity": line.opacity,
        "line": {"color": line.colour, "dash": line.dash, "width": line.width},
    }  # fmt: skip
    if line.symbol:
        sizes = [7 if i % line.every == 0 else 0 for i in range(len(line.x))]
        drawn["marker"] = {"symbol": line.symbol, "size": sizes, "color": line.colour, "opacity": 1}
    if line.values is not None:
        drawn["customdata"] = list(line.values)
    return drawn


def _band(band: Band) -> Plotly:
    return {
        "type": "scatter", "mode": "lines", "x": [*band.x, *reversed(band.x)],
        "y": [*band.high, *reversed(band.low)], "fill": "toself", "fillcolor": band.colour, "opacity": band.opacity,
        "line": {"width": 0, "color": band.colour},
    }  # fmt: skip


def _points(points: Points) -> Plotly:
    colours, symbols, sizes = points.looks()
    edges = {"width": 2, "color": points.edge or colours} if points.edge or "line-ns" in symbols else {"width": 0}
    drawn: Plotly = {
        "type": "scatter", "mode": "lines+markers" if points.dash else "markers", "x": list(points.x),
        "y": _numbers(points.y), "cliponaxis": False,
        "marker": {"color": colours, "symbol": symbols, "size": sizes, "line": edges, "opacity": 1},
    }  # fmt: skip
    first = colours[0] if colours else INK
    if points.dash:
        drawn["line"] = {"color": first, "dash": points.dash, "width": points.width}
    if points.whiskers is not None:
        low, high = points.whiskers
        drawn["error_y"] = {
            "type": "data", "symmetric": False, "array": _differences(high, points.y),
            "arrayminus": _differences(points.y, low), "color": first, "thickness": 1.2, "width": 3,
        }  # fmt: skip
    if points.texts is not None:
        drawn["text"] = list(map(_escape, points.texts))
    return drawn


def _differences(high: Values, low: Values) -> list[float]:
    """The lengths of error bars; 0 without a number."""
    pairs = zip(high, low, strict=True)
    return [0.0 if a is None or b is None or math.isnan(a - b) else a - b for a, b in pairs]


def _bars(bars: Bars) -> Plotly:
    pattern = {"shape": bars.pattern, "fgcolor": "white", "size": 6, "solidity": 0.25}
    return {
        "type": "bar", "orientation": "h", "y": list(bars.places), "x": list(bars.lengths), "width": bars.width,
        "marker": {"color": bars.colours, "pattern": pattern},
    }  # fmt: skip


def _heatmap(cells: Heatmap) -> Plotly:
    drawn: Plotly = {
        "type": "heatmap", "zmin": cells.limits[0], "zmax": cells.limits[1], "showscale": False,
        "z": [_numbers(row) for row in cells.levels] if isinstance(cells.levels, Sequence) else cells.levels,
        "colorscale": cells.colours.removesuffix("_r"), "reversescale": cells.colours.endswith("_r"),
        "xgap": cells.gap, "ygap": cells.gap,
    }  # fmt: skip
    if cells.texts is not None:
        drawn["text"] = [list(map(_escape, row)) for row in cells.texts]
        drawn["texttemplate"] = "%{text}" if cells.show_texts else None
    return drawn


TRACES: dict[type[Mark], Callable[[Any], Plotly]] = {
    Line: _line, Band: _band, Points: _points, Bars: _bars, Heatmap: _heatmap,
}  # fmt: skip


def _frame(cell: tuple[int, int], number: int) -> Plotly:
    (row, column), (x, y) = cell, _axis_names(number)
    place = {"x0": column - 0.5, "x1": column + 0.5, "y0": row - 0.5, "y1": row + 0.5, "xref": x, "yref": y}
    return {"type": "rect", **place, "line": {"color": INK, "width": 3}, "fillcolor": "rgba(0,0,0,0)"}


def _axis(axis: Axis, share: tuple[float, float], anchor: str, follows: str | None = None) -> Plotly:
    names, ticks, upright = axis.names is not None, axis.ticks or {}, anchor.startswith("x")
    return {
        "domain": list(share), "anchor": anchor, "type": "category" if names else "log" if axis.log else "linear",
        "autorange": axis.limits is None, "range": axis.limits and [_place(axis, v) for v in axis.limits],
        "tickmode": "auto" if axis.ticks is None else "array", "tickvals": list(ticks),
        "ticktext": list(map(_escape, ticks.values())), "nticks": 6 if upright and not names else None,
        "title": {"text": _escape(axis.title), "standoff": 6}, "matches": follows,
        "automargin": upright and not axis.grid, "showgrid": axis.grid, "gridcolor": GRID, "zeroline": False,
        "linecolor": INK, "tickcolor": INK, "ticks": "outside" if axis.grid else "",
    }  # fmt: skip


def _place(axis: Axis, value: float) -> float:
    """A position as the layout counts it: by its logarithm on a logarithmic axis."""
    return math.log10(value) if axis.log else value


def _label(label: Label, panel: Panel) -> Plotly:
    return {
        "x": _place(panel.x, label.x), "y": _place(panel.y, label.y), "text": _text(label.text, label.bold),
        "showarrow": False, "xanchor": label.anchor, "align": label.anchor, "xshift": label.offset,
        "font": {"color": label.colour, "size": 12},
    }  # fmt: skip
