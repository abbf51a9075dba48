"""Text from runs and files is text in every figure and on every page: no markup, no link, no template of plotly."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from factories import recorded_run

import nlora_lab.plots as plots
from nlora_lab.analysis.first_step_loss import FirstStepLoss
from nlora_lab.methods.table import METHODS, Method
from nlora_lab.pages.page import Lab, page_html
from nlora_lab.pages.recorded import recorded_data
from nlora_lab.plots.approximations import ErrorLine
from nlora_lab.plots.drawings import Described
from nlora_lab.plots.inside import InsideRecord
from nlora_lab.plots.lab import Curve, RecordedLine
from nlora_lab.plots.memory import PARTS
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.index import RecordedRuns
from nlora_lab.runs.run import Step
from nlora_lab.training.recorder import LayerState, Snapshot

EVIL = ["<img src=x onerror=alert(1)>", '<a href="javascript:alert(1)">a link</a>', "%{x} <b>$\\alpha$</b> &lt;"]
OURS = re.compile(r"</?(b|sub|extra|br)/?>")
"""The markup that our own templates and headings use."""


@pytest.fixture(params=EVIL)
def evil(request, monkeypatch) -> str:
    """A text, which is also the label of a method of its own."""
    text = request.param
    monkeypatch.setitem(METHODS, "evil", replace(METHODS["lora"], name="evil", label=text))
    return text


def runs(method: str) -> list[Any]:
    return [recorded_run(lr, seed, 0.1 + lr, method=method) for lr in (1e-3, 1e-2) for seed in (0, 1)]


def snapshots(text: str) -> list[Snapshot]:
    states = [
        LayerState(f"model.layers.{i}.{text}", (1.0, 0.5), 10.0, 0.1, {"A": 1.0, "B": 2.0}, {"A": 1.0}, 1)
        for i in (0, 1)
    ]
    return [Snapshot(step, tuple(states)) for step in (0, 10)]


def drawings(text: str) -> dict[str, Any]:
    """Every public drawing, with this text wherever a caller can give text."""
    index = RecordedRuns(runs("evil"))
    valley = index.valley("word-problems", "evil", 8)
    here = index.at("word-problems", "evil", 8, 1e-2)
    recorded = RecordedLine(text, "evil", valley, here, here and index.curve(here))
    steps = tuple(Step(i, 1.0 / i, 1e-3, 1.0) for i in range(1, 5))
    live = Curve(text, "#000000", "solid", steps, 1e-3, note=text)
    line = ErrorLine(text, "#000000", "solid", [0.5, 0.2])
    frame = pd.DataFrame({text: [0.1, 0.2], "b": [0.3, 0.4]}, index=[text, "c"])
    points = pd.DataFrame({"size": [1.0, 2.0], "right": [1.0, 2.0], text: [text, "b"]})
    rows = pd.DataFrame({"median": [0.5], "low": [0.4], "high": [0.6]}, index=[text])
    step = FirstStepLoss(RunConfig("evil"), 1, 2.0, 10.0, 50.0, (0.01, 0.1), (1.9, 1.5), 0.1)
    square = torch.eye(4)
    gib = 2**30
    return {
        "chart": plots.chart({text: [1.0, 2.0], "b": [2.0, 1.0]}, xlabel=text, ylabel=text),
        "block_errors": plots.block_errors(torch.eye(3) + 0.5, 1),
        "elimination": plots.elimination(torch.eye(3) + 0.5, 2),
        "elimination_step": plots.elimination_step(plots.elimination_steps(torch.eye(3) + 0.5, 2), 1),
        "first_step_losses": plots.first_step_losses([step]),
        "scatter": plots.scatter(points, "size", "right", text, xlabel=text, ylabel=text),
        "heatmap": plots.heatmap(frame, title=text, xlabel=text, ylabel=text),
        "method_bars": plots.method_bars({"evil": 1.0}, xlabel=text),
        "method_scatter": plots.method_scatter({"evil": 1.0}, {"evil": 2.0}, xlabel=text, ylabel=text),
        "intervals": plots.intervals(rows, {text: runs("lora")}, baseline=text),
        "valleys": plots.valleys(runs("evil"), methods=["evil"]),
        "LabDrawing": plots.LabDrawing([recorded], [live], 1e-2, 250, text),
        "InsideDrawing": plots.InsideDrawing(
            [InsideRecord(name, "#000000", "solid", snapshots(text)) for name in (text, "b")],
            f"model.layers.0.{text}",
        ),
        "LayerMapDrawing": plots.LayerMapDrawing(text, snapshots(text), chosen=f"model.layers.0.{text}"),
        "LayersDrawing": plots.LayersDrawing(
            [text, "b"], [0, 1], [[0.1, 0.2], [0.3, 0.4]], (0, 0), text, {}, [line], 1
        ),
        "NystromDrawing": plots.NystromDrawing((square,) * 3, 1.0, [line], [1.0, 0.5], 1, (4, 4), 0.1),
        "MemoryDrawing": plots.MemoryDrawing({"evil": dict.fromkeys(PARTS, gib)}, {"evil": gib}, 2 * gib, text),
        "Picture": plots.chart({text: [1.0]}),
    }  # fmt: skip


SVG = ("Boxes", "adapter_boxes")
NAMES = [name for name in plots.__all__ if name not in ("Drawing", "elimination_steps", *SVG)]
TEXTLESS = ("block_errors", "elimination", "elimination_step")  # drawings of numbers alone: a caller gives them no text


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from strings(inner)


@pytest.mark.parametrize("name", NAMES)
def test_plotly_gets_text_and_no_markup(name, evil):
    drawing = drawings(evil)[name]
    assert isinstance(drawing, Described)
    traces, layout = drawing.plotly()
    go.Figure(traces, layout)
    found = list(strings([traces, layout]))
    for text in found:
        assert "<" not in OURS.sub("", text)
        assert not re.search(r"href|onerror", text) or "&lt;" in text
    templates = [t for trace in traces for key, t in trace.items() if key in ("hovertemplate", "texttemplate") and t]
    assert not any(part in template for template in templates for part in ("&lt;", "onerror", "href", "alpha"))
    plain = [html.unescape(OURS.sub("", text)) for text in found]
    assert name in TEXTLESS or any(evil.split()[0] in text for text in plain)  # it is there, as it was written


@pytest.mark.parametrize("name", NAMES)
def test_matplotlib_draws_the_text_as_it_is(name, evil):
    assert drawings(evil)[name].png().startswith(b"\x89PNG")


def test_an_svg_has_the_text_as_text(evil, monkeypatch):
    monkeypatch.setitem(METHODS, "lora", replace(METHODS["lora"], label=evil))
    drawing = ElementTree.fromstring(plots.adapter_boxes(["lora"]).svg)
    assert {node.tag.rpartition("}")[2] for node in drawing.iter()} == {"svg", "rect", "text"}
    assert evil in [node.text for node in drawing.iter()]
    assert evil in (drawing.get("aria-label") or "")


def test_every_public_name_of_plots_is_drawn(monkeypatch):
    monkeypatch.setitem(METHODS, "evil", replace(METHODS["lora"], name="evil", label="x"))
    assert set(drawings("x")) == set(NAMES)
    assert isinstance(METHODS["evil"], Method)


def tags_of(page: str) -> list[tuple[str, dict[str, str | None]]]:
    from html.parser import HTMLParser

    seen: list[tuple[str, dict[str, str | None]]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            seen.append((tag, dict(attributes)))

    Reader().feed(page)
    return seen


def test_on_a_page_the_name_of_a_run_is_text(evil):
    data, curves = recorded_data(RecordedRuns(runs("evil")))
    state = {"recorded": data, "curves": curves, "live": [{"name": evil, "note": f"</script>{evil}"}]}
    plain = page_html("a", [Lab("b", "c", (), {})])
    page = page_html(evil, [Lab(evil, evil, (), state)])
    assert [tag for tag, _ in tags_of(page)] == [tag for tag, _ in tags_of(plain)]
    assert not any("onerror" in attributes or "href" in attributes for _, attributes in tags_of(page))
    (content,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert json.loads(content)["live"][0]["name"] == evil
