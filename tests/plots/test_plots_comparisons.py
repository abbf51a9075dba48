"""Pictures of many runs: what they show, and what they refuse."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
import pytest
from factories import recorded_run as run

from nlora_lab.analysis.comparison import compare
from nlora_lab.core.errors import InputError
from nlora_lab.methods.table import METHODS
from nlora_lab.plots.comparisons import TOP, intervals, method_scatter, valleys
from nlora_lab.runs.index import RecordedRuns

PNG = b"\x89PNG"


def test_valleys_ring_the_best_by_validation_and_leave_out_what_was_not_recorded():
    runs = [run(1e-3, loss=0.1, validation=0.9), run(1e-2, loss=0.3, validation=0.2), run(1e-1, diverged=True)]
    picture = valleys(RecordedRuns(runs), methods=["lora", "slora"])
    (panel,) = picture.description.panels
    assert panel.heading == "LoRA"
    cursor, valley, ring = panel.marks
    assert cursor.x == [2e-4, 2e-4]
    assert valley.x == [1e-3, 1e-2, 1e-1]
    assert valley.y == pytest.approx([0.1, 0.3, TOP])
    assert valley.symbols == ["circle", "circle", "x"]
    assert (ring.x, ring.edge) == ([1e-2], "black")
    assert picture._repr_png_().startswith(PNG)
    assert repr(picture) == "final loss against the learning rate: LoRA"
    with pytest.raises(InputError, match="no run was recorded of slora with task='word-problems'"):
        valleys(RecordedRuns(runs), methods=["slora"])


def test_valleys_name_their_ticks_at_the_left_and_at_the_bottom():
    runs = [run(1e-3, method=method) for method in list(METHODS)[:7]]
    panels = valleys(RecordedRuns(runs)).description.panels
    assert [i for i, panel in enumerate(panels) if panel.y.title] == [0, 5]
    assert [i for i, panel in enumerate(panels) if panel.x.title] == [2, 3, 4, 5, 6]
    assert [i for i, panel in enumerate(panels) if any(panel.x.ticks.values())] == [2, 3, 4, 5, 6]
    assert [len(panel.marks) for panel in panels] == [6 + 3] * 7  # the others in grey, a dotted line, a valley, a ring
    traces, layout = valleys(RecordedRuns(runs)).plotly()
    go.Figure(traces, layout)  # all panels are within the figure
    assert len({trace["xaxis"] for trace in traces}) == 7


def test_intervals_show_every_seed_in_the_tables_order():
    groups = {
        "lora": [run(seed=s, accuracy=a) for s, a in enumerate((0.4, 0.6))],
        "mine": [run(seed=0, accuracy=0.9), run(seed=1, diverged=True)],
    }
    picture = intervals(compare(groups), groups)
    (panel,) = picture.description.panels
    names = {"lora": "LoRA (2)", "mine": "mine (2)"}
    assert list(panel.y.ticks.values()) == [names[name] for name in compare(groups).index]
    seeds = {mark.name: mark.x for mark in panel.marks if getattr(mark, "symbols", "") == "line-ns"}
    assert seeds == {"LoRA": [40.0, 60.0], "mine": [90.0, 0.0]}
    assert [mark.x for mark in panel.marks if getattr(mark, "dash", "") == "dot"] == [[50.0, 50.0]]
    assert picture.png().startswith(PNG)
    losses = intervals(compare({"lora": groups["lora"]}, metric="final_loss"), groups, metric="final_loss")
    assert repr(losses) == "final loss, nats: LoRA"


def test_a_scatter_takes_the_methods_that_have_both():
    def points(picture):
        return {mark.name: (*mark.x, *mark.y) for mark in picture.description.panels[0].marks if mark.name}

    picture = method_scatter({"lora": 1.0, "nlora": 100.0, "slora": 0.0}, {"lora": 1e-2, "nlora": 2e-4, "slora": 1e-2})
    assert set(points(picture)) == {"LoRA", "NLoRA"}
    columns = pd.DataFrame({"x": [1.0, 2.0], "y": [3.0, 4.0]}, index=["lora", "nlora"])
    assert points(method_scatter(columns["x"], columns["y"])) == {"LoRA": (1.0, 3.0), "NLoRA": (2.0, 4.0)}
    assert method_scatter({"lora": 1.0}, {"lora": 1.0}, slope=-1.0).png().startswith(PNG)
    with pytest.raises(InputError, match="no method has both"):
        method_scatter({"lora": 0.0}, {"lora": 1.0})
    with pytest.raises(InputError, match="lorra"):
        method_scatter({"lorra": 1.0}, {"lorra": 1.0})


def test_a_name_in_a_scatter_stands_where_there_is_room():
    picture = method_scatter({"lora": 1.0, "nlora": 2.0}, {"lora": 1.0, "nlora": 1.0})
    assert {label.text: label.anchor for label in picture.description.panels[0].labels} == {
        "LoRA": "right",
        "NLoRA": "left",
    }
