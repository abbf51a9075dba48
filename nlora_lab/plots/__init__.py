"""Every figure of the toolkit."""

from __future__ import annotations

from nlora_lab.plots.charts import Chart, MethodBars, chart, method_bars
from nlora_lab.plots.layers import LayersDrawing
from nlora_lab.plots.matrices import NystromDrawing, thumbnail
from nlora_lab.plots.runs import (
    Curve,
    RunsDrawing,
    curve,
    curves,
    figure_parts,
    picture,
    rate_text,
    run_names,
    running_mean,
)
from nlora_lab.plots.style import Drawing, spread

__all__ = [
    "Chart",
    "Curve",
    "Drawing",
    "LayersDrawing",
    "MethodBars",
    "NystromDrawing",
    "RunsDrawing",
    "chart",
    "curve",
    "curves",
    "figure_parts",
    "method_bars",
    "picture",
    "rate_text",
    "run_names",
    "running_mean",
    "spread",
    "thumbnail",
]
