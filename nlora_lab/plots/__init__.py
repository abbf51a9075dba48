"""Every figure of the toolkit."""

from __future__ import annotations

from nlora_lab.plots.charts import Chart, MethodBars, chart, method_bars
from nlora_lab.plots.comparisons import (
    HeatTable,
    Intervals,
    MethodScatter,
    Valleys,
    heat_table,
    intervals,
    method_scatter,
    valleys,
)
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
    "HeatTable",
    "InsideDrawing",
    "InsideRecord",
    "Intervals",
    "LabDrawing",
    "LayerMapDrawing",
    "LayersDrawing",
    "MethodBars",
    "MethodScatter",
    "NystromDrawing",
    "RecordedLine",
    "Valleys",
    "chart",
    "curve",
    "heat_table",
    "inside_record",
    "intervals",
    "method_bars",
    "method_scatter",
    "rate_text",
    "run_names",
    "spread",
    "thumbnail",
    "valleys",
]
