"""Draws the description of a figure with matplotlib, as a PNG on white.

It uses matplotlib's object API only. pyplot keeps global state, and labs draw in threads.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nlora_lab.plots.figure import INK, Axis, Band, Bars, Figure, Heatmap, Line, Mark, Panel, Points, Values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

DASHES: dict[str, Any] = {
    "solid": "-", "dash": (0, (5, 2)), "dot": (0, (1, 1.5)), "dashdot": (0, (5, 2, 1, 2)), "longdash": (0, (9, 3)),
    "longdashdot": (0, (9, 3, 1, 3)),
}  # fmt: skip
SYMBOLS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "x": "X", "line-ns": "|"}
LEGENDS: dict[str, dict[str, Any]] = {
    "inside": {"loc": "upper right"},
    "beside": {"loc": "center left", "bbox_to_anchor": (1, 0.5)},
    "above": {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 4, "handlelength": 1.2, "markerscale": 0.25},
}
POINT = 0.72  # points in a pixel, as an inch has 100 pixels
PAD = 0.04  # inches around everything
PLAIN: dict[str, Any] = {"parse_math": False}  # a name between dollars is not a formula


def render(figure: Figure) -> bytes:
    """Return the figure as PNG bytes."""
    canvas = new_figure(figure.width / 100, figure.height / 100, figure.dpi, layout=None)
    for panel in figure.panels:
        _draw(canvas.add_axes((0, 0, 1, 1)), panel)
    above: dict[str, Any] = {"xycoords": "axes fraction", "xytext": (0, 20), "textcoords": "offset points"}
    look: dict[str, Any] = {"fontsize": 10, "color": INK, "weight": "bold", **PLAIN}
    canvas.axes[0].annotate(figure.heading, (0, 1), **above, **look)
    _arrange(canvas, figure)
    return png_bytes(canvas)


def new_figure(width: float, height: float, dpi: int = 110, layout: Any = "constrained") -> Canvas:
    """Return an empty matplotlib figure of this size in inches, made without pyplot and its global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(width, height), dpi=dpi, layout=layout)
    FigureCanvasAgg(canvas)
    return canvas


def png_bytes(canvas: Canvas, colours: int = 255) -> bytes:
    """Return the figure as a PNG with a palette: a third of the size, and no difference to see."""
    from PIL import Image

    full, out = io.BytesIO(), io.BytesIO()
    canvas.savefig(full, format="png", pil_kwargs={"compress_level": 0})
    Image.open(full).convert("RGB").quantize(colours, dither=Image.Dither.NONE).save(out, format="png", optimize=True)
    return out.getvalue()


def _arrange(canvas: Canvas, figure: Figure) -> None:
    """Give each panel its share of what the texts around the panels leave."""
    width, height = canvas.get_size_inches()

    def place(left: float, right: float, bottom: float, top: float) -> None:
        across, up = (width - left - right) / width, (height - bottom - top) / height
        for axes, panel in zip(canvas.axes, figure.panels, strict=True):
            (x0, x1), (y0, y1) = panel.across, panel.up
            corner = left / width + x0 * across, bottom / height + y0 * up
            axes.set_position((*corner, (x1 - x0) * across, (y1 - y0) * up))

    left, right, bottom, top = 0.6, 0.1, 0.5, 0.4  # margins in inches: a first guess, to measure the texts
    place(left, right, bottom, top)
    box = canvas.get_tightbbox()
    left, right = left - box.x0 + PAD, right + box.x1 - width + PAD
    place(left, right, bottom - box.y0 + PAD, top + box.y1 - height + PAD)


def _draw(axes: Axes, panel: Panel) -> None:
    from matplotlib.patheffects import withStroke

    for axis, name in ((panel.x, "x"), (panel.y, "y")):
        _axis(axes, axis, name)
    for mark in [*panel.marks, *panel.growing]:
        MARKS[type(mark)](axes, mark)
    for label in panel.labels:
        look: dict[str, Any] = {"ha": label.anchor, "va": "center", "fontsize": 8.5, "color": label.colour, **PLAIN}
        look["path_effects"] = [withStroke(linewidth=2.5, foreground="white")]  # readable on top of lines
        offset: dict[str, Any] = {"xytext": (label.offset * POINT, 0), "textcoords": "offset points"}
        axes.annotate(label.text, (label.x, label.y), weight="bold" if label.bold else "normal", **offset, **look)
    axes.text(0.5, 0.5, panel.message, transform=axes.transAxes, ha="center", va="center", color=INK, **PLAIN)
    look = {"fontsize": 9, "color": panel.heading_colour, "weight": "normal" if panel.heading_colour == INK else "bold"}
    axes.set_title(panel.heading, loc="left", **look, **PLAIN)
    axes.set_xlabel(panel.x.title, fontsize=9, **PLAIN)
    axes.set_ylabel(panel.y.title, fontsize=9, **PLAIN)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(not (panel.x.grid or panel.y.grid))
    if panel.legend and axes.get_legend_handles_labels()[0]:
        for text in axes.legend(frameon=False, fontsize=8, **LEGENDS[panel.legend]).get_texts():
            text.set(**PLAIN)


def _axis(axes: Axes, axis: Axis, name: str) -> None:
    drawn = getattr(axes, f"{name}axis")
    axes.set(**{f"{name}scale": "log" if axis.log else "linear"})
    if axis.limits is not None:
        axes.set(**{f"{name}lim": axis.limits})
    ticks = axis.ticks if axis.names is None else dict(enumerate(axis.names))
    if ticks is not None:
        low, high = sorted(axis.limits or (-math.inf, math.inf))
        every = max(1, len(ticks) // 16) if axis.names is not None and name == "x" else 1
        shown = {v: text for v, text in ticks.items() if low <= v <= high}
        drawn.set_ticks(list(shown)[::every], labels=list(shown.values())[::every], **PLAIN)
        drawn.set_ticks([], minor=True)
    if axis.grid:
        drawn.grid(alpha=0.25, linewidth=0.6)
    drawn.set_tick_params(labelsize=8)


def _line(axes: Axes, line: Line) -> None:
    look: dict[str, Any] = {"color": line.colour, "linestyle": DASHES[line.dash], "alpha": line.opacity}
    if line.symbol:
        look |= {"marker": SYMBOLS[line.symbol], "markersize": 4, "markevery": line.every}
    axes.plot(_array(line.x), _array(line.y), linewidth=0.8 * line.width, label=line.name or "_", **look)


def _band(axes: Axes, band: Band) -> None:
    axes.fill_between(band.x, band.low, band.high, color=band.colour, alpha=band.opacity, linewidth=0)


def _points(axes: Axes, points: Points) -> None:
    import numpy as np

    x, y = _array(points.x), _array(points.y)
    colours, symbols, sizes = points.looks()
    if points.dash and len(x):
        axes.plot(x, y, color=colours[0], linestyle=DASHES[points.dash], linewidth=0.8 * points.width)
    if points.whiskers is not None and len(x):
        reach = [np.nan_to_num(np.abs(_array(ends) - y)) for ends in points.whiskers]
        axes.errorbar(x, y, yerr=reach, fmt="none", ecolor=colours[0], elinewidth=1.1, capsize=2)
    for symbol in dict.fromkeys(symbols):
        chosen = [i for i, other in enumerate(symbols) if other == symbol]
        areas, hues = [(POINT * sizes[i]) ** 2 for i in chosen], [colours[i] for i in chosen]
        look: dict[str, Any] = {"edgecolors": points.edge or "face", "linewidths": 1.2 if points.edge else 0}
        if symbol == "line-ns":
            look = {"linewidths": 1.5}
        look |= {"marker": SYMBOLS[symbol], "label": points.name or "_", "clip_on": False, "zorder": 3}
        axes.scatter(x[chosen], y[chosen], areas, hues, **look)


def _bars(axes: Axes, bars: Bars) -> None:
    starts = [bar.get_x() + bar.get_width() for bar in axes.containers[-1]] if axes.containers else 0
    look: dict[str, Any] = {"color": bars.colours, "hatch": 3 * bars.pattern, "edgecolor": "white", "label": bars.name}
    axes.barh(bars.places, bars.lengths, left=starts, height=bars.width, **look)


def _heatmap(axes: Axes, cells: Heatmap) -> None:
    import numpy as np
    from matplotlib.patches import Rectangle

    levels, (low, high) = np.array(cells.levels, dtype=float), cells.limits
    if not levels.size:
        return
    image = axes.imshow(levels, cmap=cells.colours, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    if cells.texts is not None and cells.show_texts:
        dark = image.to_rgba(levels)[..., :3] @ (0.299, 0.587, 0.114) < 0.5
        for (i, j), value in np.ndenumerate(levels):
            hue = INK if np.isnan(value) else "white" if dark[i, j] else "black"
            axes.text(j, i, cells.texts[i][j], ha="center", va="center", fontsize=8, color=hue, **PLAIN)
    if cells.framed is not None:
        row, column = cells.framed
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=2))


MARKS: dict[type[Mark], Callable[[Any, Any], None]] = {
    Line: _line, Band: _band, Points: _points, Bars: _bars, Heatmap: _heatmap,
}  # fmt: skip


def _array(values: Values) -> Any:
    import numpy as np

    return np.array(values, dtype=float)  # None becomes NaN, a gap
