"""The lab's figure: what is in it, and that odd runs can be drawn."""

from __future__ import annotations

import io
import math

import matplotlib.image
import plotly.graph_objects as go
import pytest
from factories import recorded_run as run

from nlora_lab.methods.table import METHODS
from nlora_lab.plots.lab import LabDrawing, RecordedLine, curve
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.index import RecordedRuns
from nlora_lab.runs.run import Step


def steps(n=30, scale=1.0):
    return [Step(i, scale / i, 1e-3, 1.0) for i in range(1, n + 1)]


def line(method="lora", lr=2e-3, **changes):
    places = [(rate, height, seed) for rate, height in VALLEY for seed in (0, 1, 2)]
    runs = [run(rate, s, 0.1 * (1 + s) * height, method=method, **changes) for rate, height, s in places]
    known = RecordedRuns(runs)
    here = known.at("word-problems", method, 8, lr)
    valley = known.valley("word-problems", method, 8)
    return RecordedLine(METHODS[method].label, method, valley, here, here and known.curve(here))


def by_panel(traces):
    return [[t for t in traces if t["yaxis"] == y] for y in ("y", "y2", "y3")]


VALLEY = [(1e-3, 3.0), (2e-3, 2.0), (5e-3, 1.0), (1e-2, 4.0)]


def test_four_traces_a_recorded_method_and_two_a_live_run():
    live = curve(RunConfig(method="nlora"), steps(5), "NLoRA")
    traces, layout = LabDrawing([line(), line("slora")], [live], 2e-3, 250).plotly()
    assert len(traces) == 2 + 4 * 2 + 2 + 2
    go.Figure(traces, layout)  # plotly accepts every name and value
    left, (cursor, losses, *_), (same, accuracies, *_) = by_panel(traces)
    assert cursor["x"] == same["x"] == [2e-3, 2e-3]
    band, middle = left[:2]
    assert len(band["x"]) == 2 * len(middle["x"])
    assert losses["x"] == accuracies["x"] == [1e-3, 2e-3, 5e-3, 1e-2]
    assert losses["y"] == pytest.approx([0.6, 0.4, 0.2, 0.8])  # medians of three seeds
    assert losses["error_y"]["array"] == pytest.approx([0.3, 0.2, 0.1, 0.4])
    assert losses["marker"]["size"] == [5, 10, 5, 5]  # the slider's rate stands out
    assert accuracies["y"] == [50.0] * 4
    hues = {t["line"]["color"] for t in (middle, losses, accuracies)}
    assert hues == {band["fillcolor"]} == {METHODS["lora"].colour}
    texts = [a["text"] for a in layout["annotations"]]
    assert texts.count("LoRA") == 2  # at the curve's end and under the valley
    assert "<b>NLoRA</b>" in texts


def test_only_what_grows_is_at_the_end():
    drawing = LabDrawing([line()], [curve(RunConfig(), steps(5), "LoRA"), curve(RunConfig(), steps(3), "b")], 1e-3, 10)
    traces, _ = drawing.plotly()
    assert [len(t["x"]) for t in traces[-4:]] == [5, 5, 3, 3]


def test_a_finished_run_is_a_mark_at_its_rate_and_a_diverged_one_a_cross_at_the_top():
    done = curve(RunConfig(lr=5e-3), steps(), "mine", accuracy=0.75, final_loss=0.2)
    gone = curve(RunConfig(lr=1e-1), steps(3), "gone", note="diverged")
    traces, layout = LabDrawing([], [done, gone], 1e-3, 10).plotly()
    _, (_, losses), (_, accuracies) = by_panel(traces)
    assert losses["x"] == accuracies["x"] == [5e-3, 1e-1]
    assert losses["y"] == [0.2, pytest.approx(10 ** layout["yaxis"]["range"][1])]
    assert losses["marker"]["symbol"] == ["diamond", "x"]
    assert accuracies["y"] == [75.0, None]


def test_a_diverged_point_is_at_the_top_of_the_axis():
    known = RecordedRuns([run(1e-3, loss=0.1), run(2e-3, diverged=True)])
    drawn = RecordedLine("LoRA", "lora", known.valley("word-problems", "lora", 8), None, None)
    traces, layout = LabDrawing([drawn], [], 1e-3, 10).plotly()
    _, (_, losses, _), (_, accuracies, _) = by_panel(traces)
    assert losses["y"][1] == pytest.approx(10 ** layout["yaxis2"]["range"][1])
    assert losses["marker"]["symbol"] == ["circle", "x"]
    assert accuracies["y"] == [50.0, 0.0]  # as a comparison counts it
    assert LabDrawing([drawn], [], 1e-3, 10).png().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "odd", [[], [Step(1, math.nan, 1e-3, 1.0)], [Step(1, 0.0, 1e-3, 1.0)], steps(1), steps(4, 1e9)]
)
def test_odd_histories_can_be_drawn(odd):
    drawing = LabDrawing([], [curve(RunConfig(), odd, "LoRA")], 1e-3, 10)
    traces, layout = drawing.plotly()
    go.Figure(traces, layout)
    assert all(math.isfinite(v) for v in layout["yaxis"]["range"])
    assert drawing.png().startswith(b"\x89PNG")


def test_nothing_says_what_to_do():
    traces, layout = LabDrawing([], [], 1e-3, 10).plotly()
    assert len(traces) == 4 + 1  # plotly draws the axes on the left for a trace only
    assert any("press Run" in a["text"] for a in layout["annotations"])


def test_the_picture_shows_the_methods_in_their_colours():
    blank = matplotlib.image.imread(io.BytesIO(LabDrawing([], [], 1e-3, 100).png()))
    drawn = matplotlib.image.imread(io.BytesIO(LabDrawing([line("slora")], [], 1e-3, 100).png()))
    assert drawn.shape == blank.shape
    colour = [int(METHODS["slora"].colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    near = abs(drawn[..., :3] - colour).max(axis=-1) < 0.02
    assert near.sum() > 300
    assert not (abs(blank[..., :3] - colour).max(axis=-1) < 0.02).any()
