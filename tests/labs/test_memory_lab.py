"""The memory lab: every control moves the bars as the formulas say, and nothing is loaded for it."""

from __future__ import annotations

from io import BytesIO

import pytest
from PIL import Image

import nlora_lab as nl
from nlora_lab.labs.memory import MODELS
from nlora_lab.plots.memory import PARTS


@pytest.fixture
def lab():
    return nl.MemoryLab(figures="image")


def total(lab, method="nlora"):
    return sum(lab.drawing().parts[method].values())


def test_it_opens_on_a_model_that_does_not_fit_and_says_so(lab):
    assert "fits: none" in lab.summary()
    assert set(lab.drawing().parts) == {"lora", "nlora", "full"}
    assert all(set(parts) == set(PARTS) for parts in lab.drawing().parts.values())
    bundle = lab._repr_mimebundle_()
    assert {"text/plain", "image/png", "application/vnd.jupyter.widget-view+json"} <= set(bundle)


@pytest.mark.parametrize(
    ("control", "value", "grows"),
    [("rank", 64, True), ("length", 1024, True), ("batch", 64, True), ("parts", 4, False), ("half", False, True),
     ("checkpointing", True, False)],
)  # fmt: skip
def test_each_control_moves_the_memory_in_its_direction(lab, control, value, grows):
    before, line = total(lab), lab._line.value
    getattr(lab, control).value = value
    assert (total(lab) > before) is grows
    assert total(lab) != before
    assert lab._line.value != line


def test_the_bars_are_the_estimates(lab):
    lab.rank.value, lab.parts.value = 16, 2
    for name, e in lab.estimates.items():
        assert lab.drawing().parts[name] == {part: getattr(e, part) for part in PARTS}
        assert lab.drawing().peaks[name] == e.total
        assert lab.drawing().fits(name) is e.fits
        assert e.cfg.rank == 16
        assert e.cfg.accumulation == 2


def test_the_card_is_the_line_and_decides_what_fits(lab):
    lab.checkpointing.value, lab.parts.value, lab.rank.value = True, 16, 4
    assert lab.drawing().fits("nlora")  # weights in bfloat16, on a T4
    lab.rank.value = 128
    assert not lab.drawing().fits("nlora")
    lab.card.value = "A100"
    assert lab.drawing().fits("nlora")
    assert not lab.drawing().fits("full")
    assert "full fine-tuning (does not fit)" in lab.drawing().labels


@pytest.mark.parametrize("model", list(MODELS))
def test_every_model_is_drawn_in_both_ways(lab, model):
    import plotly.graph_objects as go

    lab.model.value = model
    with Image.open(BytesIO(lab.picture())) as picture:
        assert picture.size[0] > 600
    figure = go.Figure(*lab.drawing().plotly())
    drawn = [trace for trace in figure.data if trace.type == "bar"]
    assert [t.name for t in drawn] == [name for name, _, _ in PARTS.values()]
    assert sum(t.x[1] for t in drawn) * 2**30 == pytest.approx(total(lab))
    assert len({t.marker.pattern.shape for t in drawn}) >= len(drawn) - 1  # colour is not alone


def test_no_rank_is_above_the_narrowest_layer_and_no_part_without_a_row(lab):
    lab.model.value, lab.rank.value, lab.batch.value, lab.parts.value = "the embedded model", 128, 2, 16
    assert lab.config("lora").rank <= 128
    assert lab.config("lora").accumulation == 2


def test_a_model_of_ones_own_and_methods_of_ones_own():
    lab = nl.MemoryLab(["inttune"], "embedded", figures="image")
    assert lab.model.value == "yours"
    assert lab.estimates["inttune"].trained == 1792
    with pytest.raises(nl.InputError, match="method='no'"):
        nl.MemoryLab(["no"])
    with pytest.raises(nl.InputError, match="must be a list of names"):
        nl.MemoryLab("lora")
    with pytest.raises(nl.ModelError):
        nl.MemoryLab(model="no/such-model")
