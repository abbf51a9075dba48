from __future__ import annotations

import io
import math
from itertools import pairwise

import matplotlib.image
import pytest
from test_records import some_run

from nlora_lab.methods import METHODS
from nlora_lab.plots import _MPL_DASH, curve, curves, figure_parts, picture, run_names, running_mean, spread
from nlora_lab.progress import ProgressLine, duration
from nlora_lab.records import RunConfig, Step


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
    assert {m.dash for m in METHODS.values()} == set(_MPL_DASH)


def test_labels_are_moved_apart_and_keep_their_order():
    placed = spread([0.0, 0.01, 0.02, 1.0], gap=0.1)
    assert placed == sorted(placed)
    assert all(b - a >= 0.099 for a, b in pairwise(placed))
    assert placed[3] == pytest.approx(1.0)
    assert spread([], 0.1) == []


def test_the_running_mean_looks_back_only():
    assert running_mean([4.0, 2.0, 0.0, 0.0], window=2) == [4.0, 3.0, 1.0, 0.0]


def test_a_figure_has_a_thin_and_a_thick_line_a_run_and_a_bar_for_those_that_ended():
    live = curve(RunConfig(method="nlora"), steps(5), "NLoRA")
    shown = [*curves([some_run(), some_run(diverged=True, metrics={})]), live]
    traces, layout = figure_parts(shown, planned=100)
    assert len(traces) == 2 + 2 * 3
    assert list(traces[0].y) == ["SLoRA, N identity", "SLoRA, N identity (2)"]
    assert list(traces[0].text) == ["50 %", "diverged"]
    assert traces[2].line.color == traces[3].line.color == METHODS["slora"].colour
    assert {a["text"] for a in layout["annotations"]} > {"NLoRA", "SLoRA, N identity"}


@pytest.mark.parametrize("odd", [[], [Step(1, math.nan, 1e-3, 1.0)], [Step(1, 0.0, 1e-3, 1.0)], steps(1)])
def test_odd_histories_can_be_drawn(odd):
    shown = [curve(RunConfig(), odd, "LoRA")]
    _, layout = figure_parts(shown, 10)
    assert all(math.isfinite(v) for v in layout["yaxis"]["range"])
    assert picture(shown, 10).startswith(b"\x89PNG")


def test_the_picture_shows_the_methods_in_their_colours():
    blank = matplotlib.image.imread(io.BytesIO(picture([], 100)))
    drawn = matplotlib.image.imread(io.BytesIO(picture(curves([some_run()]), 100)))
    assert drawn.shape == blank.shape
    colour = [int(METHODS["slora"].colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    near = abs(drawn[..., :3] - colour).max(axis=-1) < 0.02
    assert near.sum() > 500
    assert not (abs(blank[..., :3] - colour).max(axis=-1) < 0.02).any()


def test_durations_and_the_progress_line():
    assert [duration(s) for s in (0.4, 59.6, 200, 7500)] == ["0 s", "1 min 0 s", "3 min 20 s", "2 h 5 min"]
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
