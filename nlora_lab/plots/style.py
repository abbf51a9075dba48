"""What all figures share: colours, axes, and the two ways to draw.

A :class:`Drawing` is drawn twice from one description: by plotly (live) and by matplotlib's object API
(PNG, safe in threads). Backgrounds are transparent, so that a figure sits on a light and on a dark page.
One hue and one dash a method or an approximation, the same everywhere; a line is named where it ends.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#767676"  # readable on white and on JupyterLab's dark grey alike
GRID = "rgba(128,128,128,0.18)"
MPL_DASH: dict[str, Any] = {
    "solid": "-", "dash": (0, (5, 2)), "dot": (0, (1, 1.5)), "dashdot": (0, (5, 2, 1, 2)), "longdash": (0, (9, 3)),
    "longdashdot": (0, (9, 3, 1, 3)),
}  # fmt: skip


class Drawing(Protocol):
    """A figure that has not been drawn yet."""

    def plotly(self) -> tuple[list[Any], dict[str, Any]]:
        """Traces and layout, for ``plotly.graph_objects.Figure(data, layout)``."""

    def png(self) -> bytes:
        """The same as a picture."""


def axis() -> dict[str, Any]:
    """The look of a plotly axis."""
    return {"gridcolor": GRID, "zeroline": False, "linecolor": INK, "ticks": "outside", "tickcolor": INK}


def blank_layout(height: int) -> dict[str, Any]:
    """A transparent plotly layout of this height in pixels, as wide as its place."""
    return {
        "font": {"color": INK, "size": 12},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 60, "r": 30, "t": 36, "b": 44},
        "height": height,
        "autosize": True,
    }


def title(text: str, x: str, y: str, lift: float = 6) -> dict[str, Any]:
    """A heading over one of several plotly axes, as an annotation."""
    return {
        "x": 0, "y": 1, "xref": f"{x} domain", "yref": f"{y} domain", "text": text, "showarrow": False,
        "xanchor": "left", "yanchor": "bottom", "yshift": lift, "font": {"size": 13},
    }  # fmt: skip


def new_figure(width: float, height: float, dpi: int = 110) -> Figure:
    """An empty matplotlib figure (inches), without pyplot and its global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png_bytes(figure: Figure, colours: int = 255) -> bytes:
    """The figure as a PNG on white, with a palette: a third of the size, and no difference to see."""
    from PIL import Image

    full, out = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", pil_kwargs={"compress_level": 0})
    Image.open(full).convert("RGB").quantize(colours, dither=Image.Dither.NONE).save(out, format="png", optimize=True)
    return out.getvalue()


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
