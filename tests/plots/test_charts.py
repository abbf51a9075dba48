from __future__ import annotations

import math
from itertools import pairwise
from xml.etree import ElementTree

import pandas as pd
import pytest
import torch

from nlora_lab.core.errors import InputError
from nlora_lab.methods.table import METHODS
from nlora_lab.plots.approximations import APPROXIMATIONS, error_limits, error_panel, line_of
from nlora_lab.plots.charts import chart, heatmap, method_bars, scatter
from nlora_lab.plots.drawings import adapter_boxes
from nlora_lab.plots.figure import Label, apart, round_ticks, spread
from nlora_lab.plots.lab import run_names
from nlora_lab.plots.layer_maps import error_text
from nlora_lab.plots.matplotlib_renderer import DASHES
from nlora_lab.plots.matrices import thumbnail
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.run import Step


def steps(n=30, scale=1.0):
    return [Step(i, scale / i, 1e-3, 1.0) for i in range(1, n + 1)]


def test_names_tell_runs_apart_and_say_no_more():
    lora, nlora = RunConfig(), RunConfig(method="nlora")
    assert run_names([lora, nlora]) == ["LoRA", "NLoRA"]
    assert run_names([lora, RunConfig(lr=1e-2)]) == ["LoRA · 2e-4", "LoRA · 1e-2"]
    assert run_names([lora, RunConfig(lr=1.6e-2)])[1] == "LoRA · 1.6e-2"
    assert run_names([lora, RunConfig(rank=4)]) == ["LoRA · r 8", "LoRA · r 4"]
    assert run_names([lora, lora, lora]) == ["LoRA", "LoRA (2)", "LoRA (3)"]


def test_every_method_has_its_own_hue_and_every_dash_can_be_drawn():
    assert len({m.colour for m in METHODS.values()}) == len(METHODS)  # see test_methods.py for how far apart
    assert {m.dash for m in METHODS.values()} == set(DASHES)


def test_labels_are_moved_apart_and_keep_their_order():
    placed = spread([0.0, 0.01, 0.02, 1.0], [0.1] * 4)
    assert placed == sorted(placed)
    assert all(b - a >= 0.099 for a, b in pairwise(placed))
    assert placed[3] == pytest.approx(1.0)
    assert spread([0.0, 5.0, 0.1], [1.0, 1.0, 3.0]) == pytest.approx([-0.95, 5.0, 1.05])
    assert spread([], []) == []


def test_a_thumbnail_keeps_the_largest_entry_of_each_block_with_its_sign():
    X = torch.zeros(10, 7)
    X[9, 6], X[0, 3] = -5.0, 2.0
    small = thumbnail(X, limit=4)
    assert small.shape == (4, 4)
    assert small[3, 3] == -5
    assert small[0, 1] == 2
    assert int((small != 0).sum()) == 2
    assert thumbnail(X) is X


def test_errors_beyond_the_axis_are_drawn_at_its_edge_and_labels_do_not_collide():
    lines = [line_of("svd", [0.5, 1e-9]), line_of("nystrom", [1e7, math.nan]), line_of("cross", [1.0, 1.1e-9])]
    panel = error_panel(lines, 1, 1.4, "errors", (0, 1), (0, 1))
    low, high = error_limits(lines)
    drawn = [v for mark in panel.marks[2:] for v in mark.y if v == v]
    assert all(low <= v <= high for v in drawn)
    heights = sorted(math.log10(label.y) for label in panel.labels)
    assert len(heights) == 3
    assert all(b - a > 0.05 for a, b in pairwise(heights))
    assert list(round_ticks(0, 64)) == [0, 20, 40, 60]
    assert list(round_ticks(0, 3)) == [0, 1, 2, 3]
    assert error_panel([], 1, 1.4, "errors", (0, 1), (0, 1)).labels == []


def test_approximations_differ_in_hue_and_dash():
    seen = {(a.colour, a.dash) for a in APPROXIMATIONS.values()}
    assert len({c for c, _ in seen}) == len({d for _, d in seen}) == len(APPROXIMATIONS) == 5


@pytest.mark.parametrize(("value", "text"), [(0.874, "0.87"), (0.996, "1.0"), (5.02, "5.0"), (189.4, "189")])
def test_cells_have_room_for_two_digits(value, text):
    assert error_text(value) == text
    assert error_text(math.nan) == ""


def test_a_chart_is_a_picture_with_a_line_of_text():
    drawn = chart(
        {"flat": [1, 1, 1], "falling": torch.tensor([1.0, 0.1, 0.01])}, xlabel="rank", ylabel="error", log=True
    )
    assert repr(drawn) == "error against rank: flat, falling"
    assert drawn._repr_png_().startswith(b"\x89PNG")
    (panel,) = drawn.description.panels
    assert list(panel.x.ticks) == [1, 2, 3]  # no tick between whole numbers
    assert [(mark.name, list(mark.x)) for mark in panel.marks] == [("flat", [1, 2, 3]), ("falling", [1, 2, 3])]
    assert len({mark.colour for mark in panel.marks}) == len({mark.dash for mark in panel.marks}) == 2
    assert chart({"a": [1.0, 2.0]}, x=[0.5, 20]).description.panels[0].x.ticks is None
    with pytest.raises(InputError, match="a: 2 values and 3 places"):
        chart({"a": [1.0, 2.0]}, x=[1, 2, 3])


def test_a_bar_of_nothing_is_left_out_and_named():
    (panel,) = method_bars({"lora": 1e-3, "nlora": 0.0}, xlabel="size").description.panels
    low, high = panel.x.limits
    assert low < 1e-3 < high
    assert [(label.text, label.x) for label in panel.labels] == [("0.001", 1e-3), ("0", low)]
    assert panel.marks[0].colours == [METHODS["lora"].colour, METHODS["nlora"].colour]
    assert method_bars({"lora": 0.0}).png().startswith(b"\x89PNG")


def test_a_heatmap_leaves_holes():
    frame = pd.DataFrame({2e-4: [0.1, math.nan], 1e-2: [0.5, math.inf]}, index=[1, 8])
    picture = heatmap(frame, title="LoRA", xlabel="learning rate", ylabel="rank", log=True)
    assert repr(picture) == "LoRA, rank × learning rate"
    (panel,) = picture.description.panels
    assert (panel.x.names, panel.y.names) == (["0.0002", "0.01"], ["1", "8"])
    (mark,) = panel.marks
    assert mark.texts == [["0.1", "0.5"], ["", "∞"]]
    assert mark.levels[0] == pytest.approx([math.log(0.1), math.log(0.5)])
    assert all(map(math.isnan, mark.levels[1]))
    assert mark.colours == "viridis"  # dark is low, and low is good
    assert heatmap(frame, high_is_good=True).description.panels[0].marks[0].colours == "viridis_r"
    assert picture.png().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="no number"):
        heatmap(pd.DataFrame())


def test_a_method_keeps_its_label_hue_and_dash_in_a_chart():
    picture = chart({"nlora": [1.0, 2.0], "noise": [2.0, 1.0]})
    method, other = picture.figure().panels[0].marks
    nlora = METHODS["nlora"]
    assert (method.name, method.colour, method.dash) == (nlora.label, nlora.colour, nlora.dash)
    assert other.name == "noise"
    assert other.colour != nlora.colour


def test_a_scatter_has_a_marker_per_row_and_a_look_per_group():
    frame = pd.DataFrame({"size": [1, 10, 100, math.nan], "right": [0.5, 0.7, 0.1, 0.9], "rank": [4, 8, 4, 8]})
    picture = scatter(frame, "size", "right", "rank", xlabel="norm", ylabel="accuracy")
    (panel,) = picture.figure().panels
    four, eight = panel.marks
    assert (four.name, list(four.x), list(four.y)) == ("rank 4", [1.0, 100.0], [0.5, 0.1])
    assert (eight.name, list(eight.x), list(eight.y)) == ("rank 8", [10.0], [0.7])
    assert four.colours != eight.colours
    assert four.symbols != eight.symbols
    assert panel.x.log
    assert repr(picture) == "accuracy against norm, by rank"
    assert picture.png().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        ({"size": [1.0], "rank": [1]}, "column='right'"),
        ({"size": [math.nan], "right": [1.0], "rank": [1]}, "no row"),
        ({"size": [0.0], "right": [1.0], "rank": [1]}, "logarithmic"),
    ],
)
def test_a_scatter_refuses_what_it_cannot_show(frame, words):
    with pytest.raises(InputError, match=words):
        scatter(pd.DataFrame(frame), "size", "right", "rank")


def test_adapters_are_drawn_as_boxes_filled_where_they_train():
    boxes = adapter_boxes(["lora", "nlora", "inttune", "full"])
    root = ElementTree.fromstring(boxes._repr_svg_())
    rects = root.findall("{http://www.w3.org/2000/svg}rect")
    filled = [rect.get("fill") for rect in rects if rect.get("fill") != "none"]
    # LoRA: B, A; NLoRA: B, N, A; IntTune: N; full fine-tuning: W
    counts = {name: filled.count(METHODS[name].colour) for name in ("lora", "nlora", "inttune", "full")}
    assert counts == {"lora": 2, "nlora": 3, "inttune": 1, "full": 1}
    assert len(rects) == 3 + 7 + 7 + 1
    assert repr(boxes) == root.get("aria-label") == "adapters as boxes: LoRA, NLoRA, IntTune, full fine-tuning"
    for wrong in ([], ["pissa"]):
        with pytest.raises(InputError, match="must be methods that can be drawn: full, lora"):
            adapter_boxes(wrong)
    with pytest.raises(InputError, match="'lorra' is not known"):
        adapter_boxes(["lorra"])


@pytest.mark.parametrize(
    "heights", [(0.011, 0.012, 0.0115), (0.01, 0.01, 5), (9.9, 9.8, 10), (0.1,), (0.02, 8, 0.02, 9)]
)
def test_names_stay_inside_the_axis_and_do_not_overlap(heights):
    limits, share = (0.01, 10.0), 0.1
    moved = apart([Label(1, y, str(y)) for y in heights], limits, share)
    assert [label.text for label in moved] == list(map(str, heights))
    at = sorted((math.log10(label.y) + 2) / 3 for label in moved)  # as shares of the axis
    assert at[0] > share / 2 - 1e-9
    assert at[-1] < 1 - share / 2 + 1e-9
    assert all(b - a > share - 1e-9 for a, b in pairwise(at))
