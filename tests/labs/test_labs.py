"""The lab, driven from Python the way a notebook drives it."""

from __future__ import annotations

import asyncio
import base64
import math
import re
import threading
import time
from dataclasses import FrozenInstanceError

import pytest

import nlora_lab as nl
from nlora_lab.labs import figures, fine_tuning
from nlora_lab.labs.fine_tuning import FineTuneLab
from nlora_lab.plots.lab import LabDrawing, curve
from nlora_lab.runs.run import Step
from nlora_lab.training import measurement, setup


@pytest.fixture(params=["plotly", "image"])
def lab(request):
    return small(FineTuneLab(figures=request.param))


def small(lab, steps=3):
    lab.steps.value, lab.task.value = steps, "entailment"
    return lab


def test_run_trains_what_the_controls_say(lab):
    lab.method.value = ("slora", "nlora")
    lab.rank.value, lab.init.value, lab.lr.value, lab.seed.value = 16, "identity", 1e-3, 3
    lab.run.click()
    runs = lab.wait()
    assert [r.config.method for r in runs] == ["slora", "nlora"]
    assert {(r.config.rank, r.config.lr, r.config.seed, r.config.steps) for r in runs} == {(16, 1e-3, 3, 3)}
    assert [r.config.init for r in runs] == ["identity", None]
    assert not lab.running
    assert not lab.run.disabled
    assert lab.stop.disabled
    assert not lab.clear.disabled
    assert all("SLoRA" in row.children[2].value or "NLoRA" in row.children[2].value for row in lab._tabs.rows.children)
    assert list(lab.table()["method"]) == ["slora", "nlora"]
    assert repr(lab).endswith("the recorded runs, and 2 runs trained here")


def test_the_same_as_without_a_lab(lab):
    lab.method.value = "lora"
    lab.run.click()
    run = lab.wait()[-1]
    assert run.steps == nl.fine_tune(run.config).steps


def test_runs_stay_until_cleared(lab):
    lab.method.value = "lora"
    for _ in range(2):
        lab.run.click()
        lab.wait()
    assert len(lab.runs) == 2
    lab.clear.click()
    assert lab.runs == []
    assert repr(lab).endswith("and 0 runs trained here")


def test_stop_is_obeyed_and_keeps_the_partial_run():
    lab = small(FineTuneLab("lora", figures="plotly"), steps=500)
    lab.run.click()
    until(lambda: any(len(steps) >= 3 for _, steps in lab._race.curves.values()))
    started = time.monotonic()
    lab.stop.click()
    (run,) = lab.wait()
    assert time.monotonic() - started < 5
    assert run.stopped
    assert 3 <= len(run.steps) < 500
    assert "kept" in lab.status


def test_run_pressed_twice_trains_once():
    lab = small(FineTuneLab("lora", figures="image"))
    lab.run.click()
    lab.run.click()
    assert len(lab.wait()) == 1


def test_stop_before_run_and_wait_without_run_do_nothing():
    lab = small(FineTuneLab("lora", figures="image"))
    lab.stop.click()
    assert lab.wait() == []
    lab.run.click()
    assert not lab.wait()[0].stopped


def test_two_labs_at_once():
    labs = [small(FineTuneLab("lora", figures="image")) for _ in range(2)]
    for lab in labs:
        lab.run.click()
    first, second = (lab.wait()[0] for lab in labs)
    assert first.steps == second.steps


def test_an_interrupt_while_waiting_stops_and_keeps(monkeypatch):
    lab = small(FineTuneLab("lora", figures="image"), steps=500)
    lab.run.click()
    until(lambda: lab._race.curves)
    real = threading.Thread.join
    calls = []

    def join(thread, timeout=None):
        calls.append(timeout)
        if len(calls) == 1:
            raise KeyboardInterrupt
        real(thread, timeout)

    monkeypatch.setattr(threading.Thread, "join", join)
    (run,) = lab.wait()
    assert run.stopped


def test_errors_are_shown_in_words_and_raised_by_wait(monkeypatch):
    lab = small(FineTuneLab("lora", figures="image", model="embedded"))
    lab.method.value = ()
    lab.run.click()
    assert "tick at least one" in lab.status
    assert lab.wait() == []

    def broken(*args, **kwargs):
        raise RuntimeError("out of <memory>")

    monkeypatch.setattr(setup, "build", broken)
    lab.method.value = "lora"
    lab.run.click()
    with pytest.raises(RuntimeError, match="out of"):
        lab.wait()
    assert "out of <memory>" in lab.status
    assert not lab.running
    assert not lab.run.disabled


def test_an_unknown_model_is_refused_at_once():
    with pytest.raises(nl.InputError, match="model='nope'"):
        FineTuneLab(model="nope")


def test_stop_while_the_first_run_is_measured_leaves_no_accuracy(monkeypatch):
    lab = small(FineTuneLab(("lora", "slora"), figures="image"))
    real = measurement.measure_result

    def stop_then_measure(*args):
        lab.stop.click()
        return real(*args)

    monkeypatch.setattr(measurement, "measure_result", stop_then_measure)
    lab.run.click()
    first, second = lab.wait()
    assert (first.config.method, second.config.method) == ("lora", "slora")
    assert first.stopped
    assert second.stopped
    assert len(first.steps) == len(second.steps) == 3
    assert math.isnan(first.accuracy)
    assert "accuracy" not in first.metrics
    assert "Stopped" in lab.status


class Slow:
    """A drawing that takes a while."""

    def __init__(self, number, drawn):
        self.number, self.drawn = number, drawn

    def png(self):
        time.sleep(0.03)
        self.drawn.append(self.number)
        return str(self.number).encode()


async def rested(figure):
    """Wait until a figure draws at once again. Its rest is as long as its last picture took."""
    while figure._waiting is not None or not figure._hold.due():
        await asyncio.sleep(0.01)


def test_of_many_events_an_image_draws_the_first_and_the_latest():
    async def drag(figure, drawn):
        await rested(figure)
        for number in range(40):
            figure.draw(Slow(number, drawn))
        assert drawn == [-1, 0]
        await rested(figure)
        figure.draw(Slow(40, drawn))  # one alone is drawn at once
        assert drawn[-1] == 40

    drawn = []
    asyncio.run(drag(figures.ImageFigure(Slow(-1, drawn)), drawn))
    assert drawn == [-1, 0, 39, 40]


def test_what_another_thread_draws_is_not_drawn_over_by_something_older():
    async def drag(figure, drawn):
        figure.draw(Slow(1, drawn))  # waits: the first picture was drawn just now
        thread = threading.Thread(target=figure.draw, args=(Slow(2, drawn),))
        thread.start()
        thread.join()
        await rested(figure)

    drawn = []
    figure = figures.ImageFigure(Slow(0, drawn))
    asyncio.run(drag(figure, drawn))
    assert drawn == [0, 2]
    assert figure.widget.value == b"2"


def test_without_an_event_loop_an_image_draws_everything_at_once():
    drawn = []
    figure = figures.ImageFigure(Slow(0, drawn))
    for number in (1, 2, 3):
        figure.draw(Slow(number, drawn))
    assert drawn == [0, 1, 2, 3]


def test_two_threads_never_change_a_figure_at_the_same_time(monkeypatch):
    """Plotly has one batch of updates a figure, and the page's first look at it comes from a timer's thread."""
    figure, busy, met = figures.PlotlyFigure(LabDrawing([], [], 1e-3, 10)), [], []

    def alone(real):
        def update(*args, **kwargs):
            met.extend(set(busy) - {threading.get_ident()})
            busy.append(threading.get_ident())
            time.sleep(0.05)
            try:
                return real(*args, **kwargs)
            finally:
                busy.remove(threading.get_ident())

        return update

    for home, name in ((figure.widget, "update_layout"), (figures, "_difference")):
        monkeypatch.setattr(home, name, alone(getattr(home, name)))
    threads = [
        threading.Thread(target=figure._fit),
        threading.Thread(target=figure.draw, args=(LabDrawing([], [], 1e-2, 10),)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert met == []


def test_only_what_differs_is_sent_and_the_figure_is_the_drawing_after_every_change():
    figure = figures.PlotlyFigure(LabDrawing([], [], 1e-3, 10))
    live = [curve(nl.RunConfig(method=m), [Step(1, 1.0, 1.0, 1.0)], m) for m in ("lora", "slora", "nlora")]
    for n, lr in ((1, 1e-3), (2, 1e-3), (3, 2e-3), (0, 2e-3), (1, 5e-3), (1, 5e-3)):
        drawing = LabDrawing([], live[:n], lr, 10, "metric")
        figure.draw(drawing)
        traces, layout = drawing.plotly()
        assert len(figure.widget.data) == len(traces)
        assert [a.text for a in figure.widget.layout.annotations] == [a["text"] for a in layout["annotations"]]
        for drawn, trace in zip(figure.widget.data, traces, strict=True):
            assert list(drawn.x) == list(trace["x"])
            assert list(drawn.y) == list(trace["y"])
            assert drawn.line.color == trace.get("line", {}).get("color")
    sent = []
    figure.widget._send_update_msg = lambda *args, **kwargs: sent.append(args)
    figure.draw(LabDrawing([], live[:1], 5e-3, 10, "metric"))
    assert sent == []


def test_it_shows_a_panel_a_picture_and_a_line(lab):
    bundle = lab._repr_mimebundle_()
    assert set(bundle) == {"application/vnd.jupyter.widget-view+json", "text/plain", "image/png"}
    assert re.fullmatch(
        r"FineTuneLab: LoRA, SLoRA, NLoRA on \S+, rank \d+, at the rate \S+: the recorded runs, and 0 runs trained.*",
        bundle["text/plain"],
    )
    lab.method.value = "lora"
    lab.run.click()
    lab.wait()
    bundle = lab._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert bundle["text/plain"].endswith("and 1 run trained here")


def test_the_figure_grows_while_training():
    lab = small(FineTuneLab(("lora", "slora"), figures="image"), steps=8)
    lab._controls._throttle.every = 0.0
    lengths, methods = [], []

    def watch(change):
        lengths.append([len(c["losses"]) // 4 for c in change["new"]])
        methods.append(lab._view.methods)

    lab._controls.widget.observe(watch, "live")
    lab.run.click()
    lab.wait()
    growing = [n for n in lengths if len(n) == 2]
    assert growing == sorted(growing)
    assert {tuple(n) for n in growing} >= {(i, i) for i in range(2, 9)}
    assert methods[1:-2] == [methods[1]] * len(methods[1:-2])  # a step looks up no recorded run


def test_an_event_makes_one_view_that_does_not_change(monkeypatch):
    lab = FineTuneLab(("lora", "slora", "nlora"), figures="image")
    views = []
    monkeypatch.setattr(lab._tabs, "draw", views.append)
    lab.method.value = ("full", "pissa")
    lab.lr.value = 1e-2
    assert [v.settings.methods for v in views] == [("full", "pissa")] * 2
    assert [v.settings.rate for v in views] == [2e-4, 1e-2]
    assert lab._view is views[-1]
    with pytest.raises(FrozenInstanceError):
        lab._view.status = "changed"


def test_runs_of_another_task_are_not_drawn_over_this_one(lab):
    lab.method.value = "lora"
    lab.run.click()
    lab.wait()
    assert len(lab.drawing().live) == 1
    lab.task.value = "word-problems"
    assert lab.drawing().live == []
    assert lab._controls.widget.live == []
    assert len(lab.runs) == 1
    lab.task.value = "entailment"
    assert len(lab.drawing().live) == 1


@pytest.mark.parametrize(
    ("environment", "requested", "picked"),
    [
        ({}, "auto", "plotly"),
        ({"VSCODE_PID": "1"}, "auto", "image"),
        ({"VSCODE_PID": "1"}, "plotly", "plotly"),
        ({"NLORA_LAB_FIGURES": "image"}, "plotly", "image"),
    ],
)
def test_figures_are_chosen_by_where_the_kernel_runs(monkeypatch, environment, requested, picked):
    for name in ("VSCODE_PID", "VSCODE_CWD", "NLORA_LAB_FIGURES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert figures.pick_figures(requested) == picked


def test_in_colab_it_trains_in_the_foreground(monkeypatch):
    allowed = []
    monkeypatch.setitem(__import__("sys").modules, "google.colab", object())
    monkeypatch.setattr(fine_tuning, "allow_custom_widgets", lambda: allowed.append(True))
    lab = small(FineTuneLab("lora"))
    assert allowed == [True]
    lab.run.click()
    assert len(lab.runs) == 1


def test_an_unknown_kind_of_figure_is_named():
    with pytest.raises(nl.InputError, match="figures='hologram'"):
        FineTuneLab(figures="hologram")


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)
