"""Pictures of many runs: what they show, and what they refuse."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from factories import recorded_run as run

from nlora_lab.analysis.comparison import compare
from nlora_lab.core.errors import InputError
from nlora_lab.plots import heatmap
from nlora_lab.plots.comparisons import intervals, method_scatter, valleys
from nlora_lab.runs.index import RecordedRuns

PNG = b"\x89PNG"


def test_valleys_ring_the_best_by_validation_and_leave_out_what_is_not_there():
    runs = [run(1e-3, loss=0.1, validation=0.9), run(1e-2, loss=0.3, validation=0.2), run(1e-1, diverged=True)]
    picture = valleys(RecordedRuns(runs), methods=["lora", "slora"])
    assert list(picture.points) == ["lora"]
    assert picture.best == {"lora": 1e-2}
    assert picture._repr_png_().startswith(PNG)
    assert "LoRA" in repr(picture)
    with pytest.raises(InputError, match="no recorded run of slora"):
        valleys(RecordedRuns(runs), methods=["slora"])


def test_intervals_show_every_seed_in_the_tables_order():
    groups = {
        "lora": [run(seed=s, accuracy=a) for s, a in enumerate((0.4, 0.6))],
        "mine": [run(seed=0, accuracy=0.9), run(seed=1, diverged=True)],
    }
    picture = intervals(compare(groups), groups)
    assert picture.seeds == {"lora": [40.0, 60.0], "mine": [90.0, 0.0]}
    assert list(picture.rows) == list(compare(groups).index)
    assert picture.rows["lora"][0] == 50.0
    assert picture.png().startswith(PNG)
    assert intervals(compare({"lora": groups["lora"]}, metric="final_loss"), groups, metric="final_loss").xlabel == (
        "final loss, nats"
    )


def test_a_heatmap_leaves_holes():
    frame = pd.DataFrame({2e-4: [0.1, math.nan], 1e-2: [0.5, 0.2]}, index=[1, 8])
    picture = heatmap(frame, title="LoRA", log=True)
    assert picture.columns == ["0.0002", "0.01"]
    assert picture.png().startswith(PNG)
    with pytest.raises(InputError, match="no number"):
        heatmap(pd.DataFrame())


def test_a_scatter_takes_the_methods_that_have_both():
    picture = method_scatter({"lora": 1.0, "nlora": 100.0, "slora": 0.0}, {"lora": 1e-2, "nlora": 2e-4, "slora": 1e-2})
    assert set(picture.points) == {"lora", "nlora"}
    columns = pd.DataFrame({"x": [1.0, 2.0], "y": [3.0, 4.0]}, index=["lora", "nlora"])
    assert method_scatter(columns["x"], columns["y"]).points == {"lora": (1.0, 3.0), "nlora": (2.0, 4.0)}
    assert method_scatter({"lora": 1.0}, {"lora": 1.0}, slope=-1.0).png().startswith(PNG)
    with pytest.raises(InputError, match="no method has both"):
        method_scatter({"lora": 0.0}, {"lora": 1.0})
    with pytest.raises(InputError, match="lorra"):
        method_scatter({"lorra": 1.0}, {"lorra": 1.0})
