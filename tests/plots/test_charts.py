from __future__ import annotations

import io
import math
from itertools import pairwise

import pytest
import torch

from nlora_lab.core.errors import InputError
from nlora_lab.core.formatting import format_duration
from nlora_lab.core.progress import ProgressLine
from nlora_lab.methods.table import METHODS
from nlora_lab.plots.approximations import APPROXIMATIONS, error_range, error_traces, line_of, rank_ticks
from nlora_lab.plots.charts import chart
from nlora_lab.plots.layers import error_text
from nlora_lab.plots.matrices import thumbnail
from nlora_lab.plots.runs import run_names
from nlora_lab.plots.style import MPL_DASH, spread
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
    assert {m.dash for m in METHODS.values()} == set(MPL_DASH)


def test_labels_are_moved_apart_and_keep_their_order():
    placed = spread([0.0, 0.01, 0.02, 1.0], gap=0.1)
    assert placed == sorted(placed)
    assert all(b - a >= 0.099 for a, b in pairwise(placed))
    assert placed[3] == pytest.approx(1.0)
    assert spread([], 0.1) == []


def test_durations_and_the_progress_line():
    assert [format_duration(s) for s in (0.4, 59.6, 200, 7500)] == ["0 s", "1 min 0 s", "3 min 20 s", "2 h 5 min"]
    log = io.StringIO()
    line = ProgressLine(4, log, quiet=0)
    line.advance("one")
    line.skip(2)
    line.advance("two")
    assert "one  25 %" in log.getvalue()
    assert log.getvalue().splitlines()[-1] == "two  100 %  0 s left"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_in_a_terminal_the_line_rewrites_itself():
    screen = Terminal()
    line = ProgressLine(2, screen)
    line.advance("done", by=2)
    line.say("a line that stays")
    assert "\n" not in screen.getvalue().partition("a line")[0]
    assert screen.getvalue().endswith("\ra line that stays\n")


class Gone(io.StringIO):
    def write(self, text):
        raise BrokenPipeError


def test_progress_that_nobody_reads_never_ends_a_run():
    line = ProgressLine(2, Gone(), quiet=0)
    line.say("hello")
    line.advance("one")
    line.advance("two")
    assert line.done == 2


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
    traces, labels = error_traces(lines, 1, "x", "y")
    low, high = error_range(lines)
    drawn = [v for t in traces[2:] for v in t.y if v == v]
    assert all(low <= math.log10(v) <= high for v in drawn)
    heights = sorted(a["y"] for a in labels if a["y"] == a["y"])
    assert all(b - a > 0.05 for a, b in pairwise(heights))
    assert rank_ticks(64) == [0, 20, 40, 60]
    assert rank_ticks(3) == [0, 1, 2, 3]


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
    assert chart({"a": [1.0, 2.0]}, x=[10, 20]).png() != chart({"a": [1.0, 2.0]}).png()
    with pytest.raises(InputError, match="a: 2 values and 3 places"):
        chart({"a": [1.0, 2.0]}, x=[1, 2, 3]).png()
