"""The figures of what happens inside a run show the numbers they are given, and nothing else."""

from __future__ import annotations

import io
import math
from itertools import pairwise

import matplotlib.image
import plotly.graph_objects as go
import pytest

from nlora_lab.methods.table import METHODS
from nlora_lab.plots.inside import SIGNS, SYMBOLS, InsideDrawing, InsideRecord, inside_record, place_text
from nlora_lab.plots.layer_maps import LayerMapDrawing, cell_text
from nlora_lab.plots.matplotlib_renderer import DASHES
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.snapshots import LayerState, Snapshot

UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj"
HEAD = "score"


def state(layer, step, scale=1.0, factors="AB", last=False):
    """Numbers that tell layer, step and quantity apart; B starts from zero, and so does the change."""
    size = 0.0 if step == 0 else scale * step
    norms = {f: size if f == "B" else 2.0 + i for i, f in enumerate(factors)}
    gradients = {} if last else {f: (0.0 if f == "A" and step == 0 else scale / (i + 1)) for i, f in enumerate(factors)}
    return LayerState(
        layer, (size, size / 2, size / 4, 0.0), 10.0, size / 10, norms, gradients, int(scale) if last else None
    )


def snapshots(steps=(0, 10, 20, 30), scale=1.0, factors="AB", layers=(UP, DOWN)):
    taken = []
    for step in steps:
        last = step == steps[-1]
        states = [state(layer, step, scale * i, factors, last) for i, layer in enumerate(layers, start=1)]
        taken.append(Snapshot(step, tuple(states)))
    return tuple(taken)


def record(method="lora", **options):
    return inside_record(RunConfig(method=method), snapshots(**options))


def lines(drawing):
    """The traces that hold something, by name and panel."""
    figure = go.Figure(*drawing.plotly())  # plotly accepts every property
    return {(t.name, t.yaxis): t for t in figure.data if t.x != (None,)}


def texts(drawing):
    return [a["text"] for a in drawing.plotly()[1]["annotations"]]


def opened(png):
    image = matplotlib.image.imread(io.BytesIO(png))
    assert image.shape[1] > 900
    return image


def coloured(image, method):
    colour = [int(METHODS[method].colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return int((abs(image[..., :3] - colour).max(axis=-1) < 0.03).sum())


def test_there_is_a_line_for_every_value_norm_and_gradient_of_the_chosen_layer():
    found = lines(InsideDrawing([record("nlora", factors="ANB")], DOWN))
    names = [name for name, _ in found]
    assert names == [f"NLoRA {s}" for s in ("σ₁", "σ₂", "σ₃", "σ₄", "A", "N", "B", "A", "N", "B")]
    assert [panel for _, panel in found] == ["y"] * 4 + ["y2"] * 3 + ["y3"] * 3
    first = found["NLoRA σ₁", "y"]
    assert list(first.x) == [0, 10, 20, 30]
    assert list(first.customdata) == [0.0, 20.0, 40.0, 60.0]  # layer 1 has twice the scale
    assert list(first.y)[1:] == [20.0, 40.0, 60.0]
    assert first.line.color == METHODS["nlora"].colour
    assert first.line.dash == METHODS["nlora"].dash
    assert list(found["NLoRA N", "y2"].y) == [3.0] * 4
    gradient = found["NLoRA B", "y3"]
    assert list(gradient.x) == [0, 10, 20]  # at the end there is none
    assert list(gradient.y) == pytest.approx([2 / 3] * 3)


def test_the_smaller_a_singular_value_the_fainter_and_a_factor_is_its_marker():
    found = lines(InsideDrawing([record("slora", factors="ANB")], UP))
    faded = [found[f"SLoRA {s}", "y"].opacity for s in ("σ₁", "σ₂", "σ₃", "σ₄")]
    assert faded == sorted(faded, reverse=True)
    assert faded[0] == 1
    assert faded[3] >= 0.2
    assert {found[f"SLoRA {f}", "y2"].marker.symbol for f in "ANB"} == {SYMBOLS[f] for f in "ANB"}
    assert len(set(SYMBOLS.values())) == len(SYMBOLS) == len(SIGNS) == 5


def test_all_layers_together_are_a_root_mean_square():
    drawing = InsideDrawing([record()])
    assert list(lines(drawing)["LoRA σ₁", "y"].y)[1] == pytest.approx(math.sqrt((10**2 + 20**2) / 2))
    assert any("all layers together" in text for text in texts(drawing))


def test_zero_stands_below_everything_else_and_says_so():
    drawing = InsideDrawing([record()], UP)
    layout = drawing.plotly()[1]
    for axis, line in (("yaxis", "LoRA σ₁"), ("yaxis2", "LoRA B"), ("yaxis3", "LoRA A")):
        y = list(lines(drawing)[line, axis.replace("axis", "")].y)
        low, high = layout[axis]["range"]
        assert 10**low < y[0] < min(y[1:]) <= max(y) < 10**high
        assert dict(zip(layout[axis]["ticktext"], layout[axis]["tickvals"], strict=True))["0"] == y[0]
    without = InsideDrawing([record("nlora", factors="AN")], UP).plotly()[1]["yaxis2"]
    assert not {"0", "≈ 0"} & set(without["ticktext"])


def test_what_is_only_rounding_stands_on_the_level_of_zero():
    near = [Snapshot(0, (LayerState(UP, (1e-9,), 1.0, 1e-9, {"A": 1.0}, {}),)), *snapshots()[1:]]
    drawing = InsideDrawing([("PiSSA", "#7b3294", "dashdot", near)], UP, top=1)
    layout = drawing.plotly()[1]
    assert "≈ 0" in layout["yaxis"]["ticktext"]
    low, high = layout["yaxis"]["range"]
    assert high - low < 3
    assert lines(drawing)["PiSSA σ₁", "y"].customdata[0] == 1e-9  # what a pointer is told is the truth


def test_one_run_is_named_in_the_heading_two_at_their_ends_and_of_more_the_markers_are_explained():
    one, two = InsideDrawing([record()], UP), InsideDrawing([record(), record("slora", scale=3.0, factors="ANB")], UP)
    assert "<b>LoRA: layer 0, mlp.up_proj</b>" in texts(one)
    assert {"σ₁", "σ₂", "A", "B"} < set(texts(one))
    assert {"LoRA", "SLoRA", "A", "N", "B", "<b>layer 0, mlp.up_proj</b>"} < set(texts(two))
    assert "σ₂" not in texts(two)
    three = InsideDrawing([record(), record("slora", factors="ANB"), record("nlora-core", factors="ANB")], UP)
    assert "norms of the factors: ● A  ■ N  ◆ B" in texts(three)
    assert "A" not in texts(three)
    assert "NLoRA,<br>optimal core" in texts(three)


def test_names_do_not_collide_and_stay_in_order():
    runs = [record(m, scale=1 + i / 100) for i, m in enumerate(("lora", "nlora-core", "slora", "pissa"))]
    drawing = InsideDrawing(runs, UP)
    layout = drawing.plotly()[1]
    ends = [a for a in layout["annotations"] if a.get("xref") == "x" and "xshift" in a]
    heights = [a["y"] for a in ends]
    low, high = layout["yaxis"]["range"]
    assert len(heights) == 4
    assert heights == sorted(heights)
    assert all(b - a >= 0.059 * (high - low) for a, b in pairwise(heights))


def test_the_names_have_room_within_the_panel():
    for method in METHODS:
        layout = InsideDrawing([record(method), record()], UP).plotly()[1]
        end = layout["xaxis"]["range"][1]
        assert 1.15 * 30 < end < 2.05 * 30
        assert max(layout["xaxis"]["tickvals"]) <= 30


def test_fewer_values_and_factors_can_be_asked_for():
    found = lines(InsideDrawing([record("nlora", factors="ANB")], UP, top=1, factors="N"))
    assert [name for name, _ in found] == ["NLoRA σ₁", "NLoRA N", "NLoRA N"]


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_can_be_drawn_in_its_colour(method):
    factors = {"full": "W", "dora": "ABm"}.get(method) or METHODS[method].trains.replace(", ", "")
    drawing = InsideDrawing([record(method, factors=factors)])
    assert len(lines(drawing)) == 4 + 2 * len(factors)
    assert METHODS[method].dash in DASHES
    assert coloured(opened(drawing.png()), method) > 300


@pytest.mark.parametrize(
    ("records", "layer", "told"),
    [
        ([], None, "nothing recorded yet"),
        ([("LoRA", "#0072b2", "solid", ())], UP, "nothing recorded yet"),
        ([InsideRecord("LoRA", "#0072b2", "solid", snapshots())], "elsewhere", "no such layer in these runs"),
    ],
)
def test_nothing_to_show_is_said_in_empty_axes(records, layer, told):
    drawing = InsideDrawing(records, layer)
    assert lines(drawing) == {}
    assert told in texts(drawing)
    opened(drawing.png())
    assert len(drawing.plotly()[0]) == 3  # plotly draws no axes without a trace


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_run_that_ran_away_and_one_that_has_only_begun_can_be_drawn(bad):
    gone = Snapshot(10, (LayerState(UP, (bad, bad), 1.0, bad, {"A": bad, "B": 1e30}, {"A": bad}),))
    drawing = InsideDrawing([("LoRA", "#0072b2", "solid", [*snapshots()[:1], gone])], UP)
    layout = drawing.plotly()[1]
    assert all(math.isfinite(v) for axis in ("yaxis", "yaxis2", "yaxis3") for v in layout[axis]["range"])
    assert all(math.isfinite(a["y"]) for a in layout["annotations"])
    assert list(lines(drawing)["LoRA σ₁", "y"].y)[1] is None
    opened(drawing.png())
    opened(InsideDrawing([("LoRA", "#0072b2", "solid", snapshots()[:1])], UP).png())


def test_a_long_run_has_a_few_markers_only():
    found = lines(InsideDrawing([record(steps=tuple(range(0, 500, 10)))], UP))
    assert 4 <= sum(size > 0 for size in found["LoRA A", "y2"].marker.size) <= 8
    assert found["LoRA σ₁", "y"].mode == "lines"


def test_a_map_has_modules_downwards_and_layers_across():
    drawing = LayerMapDrawing("LoRA", snapshots(), chosen=DOWN)
    traces, layout = drawing.plotly()
    go.Figure(traces, layout)
    (cells,) = traces
    assert cells["x"] == ["0", "1"]
    assert cells["y"] == ["mlp.up_proj", "mlp.down_proj"]
    assert cells["text"] == [["300", ""], ["", "600"]]  # in % of ‖W‖
    assert cells["z"][0][1] is None
    assert 0 < cells["z"][0][0] < cells["z"][1][1] == 1
    assert [(s["x0"], s["y0"]) for s in layout["shapes"]] == [(0.5, 0.5)]
    assert [a["text"] for a in layout["annotations"]] == ["LoRA: distance from W, in % of ‖W‖, after 30 updates"]
    opened(drawing.png())


def test_a_map_of_intruders_and_of_any_other_quantity():
    assert LayerMapDrawing("LoRA", snapshots(), "intruders").cells == {
        ("mlp.up_proj", "0"): 1,
        ("mlp.down_proj", "1"): 2,
    }
    before = LayerMapDrawing("LoRA", snapshots()[:2], "intruders")
    assert "counted at the end of the run" in texts(before)
    opened(before.png())
    norms = LayerMapDrawing("LoRA", snapshots(), "norm A")
    assert texts(norms) == ["LoRA: norm A, after 30 updates"]
    assert set(norms.cells.values()) == {2.0}
    assert "not measured" in texts(LayerMapDrawing("LoRA", snapshots(), "norm Z"))
    assert "nothing recorded yet" in texts(LayerMapDrawing("LoRA", ()))
    opened(LayerMapDrawing("LoRA", ()).png())


def test_a_map_keeps_layers_of_one_number_apart_and_those_of_none():
    layers = ("encoder.block.0.q", "decoder.block.0.q", HEAD)
    cells = LayerMapDrawing("LoRA", snapshots(layers=layers)).cells
    assert list(cells) == [("encoder.block.q", "0"), ("decoder.block.q", "0"), (HEAD, "")]
    assert place_text(UP) == "layer 0, mlp.up_proj"
    assert place_text(HEAD) == HEAD


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (4.34e-4, "4.3e-4"), (0.0344, "0.034"), (2.14, "2.1"), (9.96, "10"), (434.6, "435"), (math.nan, "")],
)
def test_cells_hold_two_digits(value, text):
    assert cell_text(value) == text
