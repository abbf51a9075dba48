"""The lab, driven from Python the way a notebook drives it."""

from __future__ import annotations

import base64
import threading
import time

import pytest

import nlora_lab as nl
from nlora_lab import training
from nlora_lab.labs import figures
from nlora_lab.labs.fine_tune import FineTuneLab
from nlora_lab.plots import RunsDrawing, curve
from nlora_lab.records import Step


@pytest.fixture(params=["plotly", "image"])
def lab(request):
    made = FineTuneLab(figures=request.param)
    made.steps.value, made.task.value = 3, "entailment"
    return made


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
    assert "SLoRA" in lab._table.value
    assert list(lab.table()["method"]) == ["slora", "nlora"]
    assert repr(lab) == "FineTuneLab: 2 runs"


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
    assert repr(lab) == "FineTuneLab: 0 runs"


def test_stop_is_obeyed_and_keeps_the_partial_run():
    lab = small(FineTuneLab("lora", figures="plotly"), steps=500)
    lab.run.click()
    until(lambda: lab._live is not None and len(lab._live[1]) >= 3)
    started = time.monotonic()
    lab.stop.click()
    (run,) = lab.wait()
    assert time.monotonic() - started < 5
    assert run.stopped
    assert 3 <= len(run.steps) < 500
    assert "kept" in lab._status.value


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
    until(lambda: lab._live is not None)
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
    assert "tick at least one" in lab._status.value
    assert lab.wait() == []

    def broken(*args, **kwargs):
        raise RuntimeError("out of <memory>")

    monkeypatch.setattr(training, "fine_tune", broken)
    lab.method.value = "lora"
    lab.run.click()
    with pytest.raises(RuntimeError, match="out of"):
        lab.wait()
    assert "out of &lt;memory&gt;" in lab._status.value
    assert not lab.running
    assert not lab.run.disabled


def test_an_unknown_model_is_refused_at_once():
    with pytest.raises(nl.InputError, match="model='nope'"):
        FineTuneLab(model="nope")


def test_stop_while_a_run_is_measured_does_not_start_the_next(monkeypatch):
    lab = small(FineTuneLab(("lora", "slora"), figures="image"))
    real = training.finish

    def stop_then_measure(*args):
        lab.stop.click()
        return real(*args)

    monkeypatch.setattr(training, "finish", stop_then_measure)
    lab.run.click()
    assert [r.config.method for r in lab.wait()] == ["lora"]
    assert "Stopped" in lab._status.value


def test_labels_are_right_after_every_number_of_curves():
    figure = figures.PlotlyFigure(RunsDrawing([], 1))
    shown = [curve(nl.RunConfig(method=m), [Step(1, 1.0, 1.0, 1.0)], m) for m in ("lora", "slora", "nlora")]
    for n in (1, 2, 3, 0, 1):
        figure.draw(RunsDrawing(shown[:n], 10, "metric"))
        texts = [a.text for a in figure.widget.layout.annotations]
        hint = [] if n else ["press Run, and the losses appear here"]
        assert sorted(texts) == sorted([*("lora", "slora", "nlora")[:n], *hint, "loss over steps", "metric"])


def test_controls_that_make_no_difference_are_grey():
    lab = FineTuneLab(figures="image")
    assert not lab.init.disabled
    lab.method.value = "lora"
    assert lab.init.disabled
    assert "SLoRA" in lab.init.tooltip
    lab.method.value = "full"
    assert lab.rank.disabled


def test_boxes_and_value_agree():
    boxes = FineTuneLab(figures="image").method
    boxes._boxes["full"].value = True
    assert boxes.value == ("full", "lora", "slora", "nlora")
    boxes.value = ["nlora"]
    assert [n for n, b in boxes._boxes.items() if b.value] == ["nlora"]
    with pytest.raises(nl.InputError, match="method='lorra'"):
        boxes.value = "lorra"


def test_it_shows_a_panel_a_picture_and_a_line(lab):
    assert set(lab._repr_mimebundle_()) == {"application/vnd.jupyter.widget-view+json", "text/plain"}
    lab.method.value = "lora"
    lab.run.click()
    lab.wait()
    bundle = lab._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert bundle["text/plain"] == "FineTuneLab: 1 run"


def test_the_figure_grows_while_training(monkeypatch):
    lab = small(FineTuneLab("lora", figures="plotly"), steps=8)
    monkeypatch.setattr(figures.PlotlyFigure, "every", 0.0)
    lengths = []
    grow = lab._figure.grow

    def watch(*args):
        grow(*args)
        lengths.append(len(lab._figure.widget.data[-1].x))

    lab._figure.grow = watch
    lab.run.click()
    lab.wait()
    assert lengths == list(range(1, 9))


@pytest.mark.parametrize(
    ("environment", "wanted", "picked"),
    [
        ({}, "auto", "plotly"),
        ({"VSCODE_PID": "1"}, "auto", "image"),
        ({"VSCODE_PID": "1"}, "plotly", "plotly"),
        ({"NLORA_LAB_FIGURES": "image"}, "plotly", "image"),
    ],
)
def test_figures_are_chosen_by_where_the_kernel_runs(monkeypatch, environment, wanted, picked):
    for name in ("VSCODE_PID", "VSCODE_CWD", "NLORA_LAB_FIGURES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert figures.pick_figures(wanted) == picked


def test_in_colab_it_trains_in_the_foreground_with_an_image(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "google.colab", object())
    lab = small(FineTuneLab("lora"))
    assert isinstance(lab._figure, figures.ImageFigure)
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
