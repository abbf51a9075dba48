"""Every figure of the toolkit."""

from __future__ import annotations

from nlora_lab.plots.charts import Chart, MethodBars, chart, method_bars
from nlora_lab.plots.inside import InsideDrawing, InsideRecord, inside_record
from nlora_lab.plots.lab import LabDrawing, RecordedLine
from nlora_lab.plots.layer_map import LayerMapDrawing
from nlora_lab.plots.layers import LayersDrawing
from nlora_lab.plots.matrices import NystromDrawing, thumbnail
from nlora_lab.plots.runs import Curve, curve, rate_text, run_names
from nlora_lab.plots.style import Drawing, spread

__all__ = [
    "Chart",
    "Curve",
    "Drawing",
    "InsideDrawing",
    "InsideRecord",
    "LabDrawing",
    "LayerMapDrawing",
    "LayersDrawing",
    "MethodBars",
    "NystromDrawing",
    "RecordedLine",
    "chart",
    "curve",
    "inside_record",
    "method_bars",
    "rate_text",
    "run_names",
    "spread",
    "thumbnail",
]
