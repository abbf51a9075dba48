"""One description, drawn by plotly and by matplotlib: what both make of it."""

from __future__ import annotations

import io

import matplotlib.image
import numpy as np
import plotly.graph_objects as go
import pytest

from nlora_lab.plots.drawings import Picture, picture_bundle
from nlora_lab.plots.figure import Axis, Band, Bars, Figure, Heatmap, Label, Line, Panel, Points, log_limits
from nlora_lab.plots.plotly_renderer import render

NASTY = "<a href='x'>$run$</a> & co\nnext"
ESCAPED = "&lt;a href='x'&gt;&#36;run&#36;&lt;/a&gt; &amp; co<br>next"
HUE = "#d55e00"
MARKS = {
    "line": Line([1, 2, 3, 4], [1, 2, None, 2], HUE, "dash", name="a", hover="%{y}"),
    "line with markers": Line([1, 2, 3], [1, 2, 3], HUE, symbol="triangle-up", every=2, values=[1, 2, 3]),
    "band": Band([1, 2, 3], [1, 1, 1], [2, 3, 2], HUE, opacity=1),
    "points": Points([1, 2], [1, None], HUE, ["circle", "x"], [20, 5], edge="black", texts=["one", "two"]),
    "valley": Points([1, 2], [1, 2], HUE, dash="solid", whiskers=([0.5, float("nan")], [2, 3])),
    "ticks": Points([1, 2], [1, 2], HUE, "line-ns", 20),
    "no points": Points([], [], [], [], [], dash="dot", whiskers=([], []), texts=[]),
    "bars": Bars([0, 1], [1, 2], HUE, "/", name="part"),
    "cells": Heatmap([[0.0, 1.0], [np.nan, 0.5]], (0, 1), "Blues", [["0", "1"], ["", "½"]], framed=(0, 1), gap=2),
    "array": Heatmap(np.zeros((2, 3), dtype=np.int8), (-1, 1), "RdBu_r"),
}


def one(*marks, **panel):
    return Picture(Figure([Panel(Axis("x"), Axis("y"), marks, **panel)], 720, 300), "a figure")


def pixels(picture):
    return matplotlib.image.imread(io.BytesIO(picture.png()))[..., :3]


@pytest.mark.parametrize("name", list(MARKS))
@pytest.mark.parametrize("legend", ["", "inside", "beside", "above"])
def test_every_mark_is_drawn_by_both(name, legend):
    picture = one(MARKS[name], legend=legend)
    figure = go.Figure(*picture.plotly())  # plotly accepts every name and value
    assert len(figure.data) == 1
    image = pixels(picture)
    assert image.shape == (300, 720, 3)
    if name not in ("no points", "cells", "array"):
        colour = [int(HUE[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert (abs(image - colour).max(axis=-1) < 0.03).sum() > 20


def test_text_is_never_markup():
    labels = [Label(1, 1, NASTY), Label(1, 1, NASTY, bold=True)]
    marks = [Line([1], [1], name=NASTY, hover="%{y}"), Points([1], [1], HUE, texts=[NASTY], hover="%{text}")]
    axis = Axis(NASTY, ticks={1: NASTY})
    words = Panel(axis, axis, marks, labels, NASTY, message=NASTY, legend="inside")
    cells = Panel(Axis.of_names([NASTY]), Axis.of_names([NASTY]), [Heatmap([[1]], (0, 1), "Blues", [[NASTY]])])
    figure = Figure([words, cells], heading=NASTY)
    traces, layout = render(figure)
    notes = [note["text"] for note in layout["annotations"]]
    bold = f"<b>{ESCAPED}</b>"
    assert notes == [ESCAPED, bold, ESCAPED, bold, ESCAPED]
    assert [trace["name"] for trace in traces] == [ESCAPED, "", ""]
    assert traces[0]["hovertemplate"] == "%{y}<extra>%{fullData.name}</extra>"
    assert traces[1]["text"] == traces[2]["x"] == traces[2]["y"] == traces[2]["text"][0] == [ESCAPED]
    assert layout["xaxis"]["title"]["text"] == layout["xaxis"]["ticktext"][0] == ESCAPED
    assert "href" not in str(layout).replace(ESCAPED, "")
    assert Picture(figure, "").png().startswith(b"\x89PNG")  # and matplotlib reads no formula


def test_axes_name_the_same_properties_whatever_they_show():
    """A live figure keeps what an update does not name."""
    axes = [
        Axis(),
        Axis("x", (1, 10), True, {1: "one"}),
        Axis.of_names(["a"], reverse=True),
        Axis(ticks={}, grid=False),
    ]
    layout = render(Figure([Panel(axis, axis) for axis in axes]))[1]
    drawn = [layout[f"{letter}axis{i}"] for letter in "xy" for i in ("", 2, 3, 4)]
    assert len({tuple(axis) for axis in drawn}) == 1
    assert [axis["type"] for axis in drawn[:4]] == ["linear", "log", "category", "linear"]
    assert drawn[1]["range"] == [0, 1]
    assert drawn[2]["range"] == [0.5, -0.5]


def test_what_grows_comes_last_and_a_label_keeps_its_place_on_a_logarithmic_axis():
    first = Panel(
        Axis(), Axis(log=True), [Line([1], [1])], [Label(3, 100, "here")], growing=[Line([1], [2], name="live")]
    )
    traces, layout = render(Figure([first, Panel(Axis(), Axis(), [Line([1], [3])], follows=0)]))
    assert [trace["y"] for trace in traces] == [[1], [3], [2]]
    assert (layout["annotations"][0]["x"], layout["annotations"][0]["y"]) == (3, 2)
    assert layout["xaxis2"]["matches"] == "x"


def test_nothing_is_cut_off_in_a_picture():
    names = dict(enumerate(["a very long name of a bar " * 3, "short"]))
    bars = Bars([0, 1], [1, 2], HUE)
    image = pixels(Picture(Figure([Panel(Axis("x"), Axis(ticks=names, grid=False), [bars])], 720, 300), ""))
    edges = [image[:2], image[-2:], image[:, :2], image[:, -2:]]
    assert all((edge == 1).all() for edge in edges)


def test_limits_leave_a_margin_and_survive_odd_numbers():
    assert log_limits([1, 100], 0.5) == pytest.approx((0.1, 1000))
    assert log_limits([10], 0.5) == pytest.approx((10**0.5, 10**1.5))
    assert log_limits([0.0, float("inf")], 1) == pytest.approx((0.1, 10))


def test_a_panel_without_a_kernel_has_a_line_and_a_picture():
    class Widget:
        def _repr_mimebundle_(self):
            return {"application/vnd.jupyter.widget-view+json": {}}

    assert picture_bundle(Widget(), "a line") == {
        "application/vnd.jupyter.widget-view+json": {},
        "text/plain": "a line",
    }
    assert picture_bundle(Widget(), "a line", b"png")["image/png"] == "cG5n"
