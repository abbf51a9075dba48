"""The loss along the first step of Adam, beside the curvature there and a step that an optimiser makes."""

from __future__ import annotations

import math

import pytest
import torch
from factories import few_rows

from nlora_lab.analysis.curvature import RunProbe, curvature_of
from nlora_lab.analysis.first_step_loss import FirstStepLoss, loss_along_first_step
from nlora_lab.core.errors import InputError
from nlora_lab.methods.table import METHODS
from nlora_lab.plots.comparisons import first_step_losses
from nlora_lab.plots.figure import Line, Points
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.shipped import recorded_runs


@pytest.fixture(scope="module", autouse=True)
def less_to_read():
    with few_rows(train=64, validation=16, test=20):
        yield


def test_slope_and_curvature_are_those_of_curvature_of():
    measured = loss_along_first_step("lora", [1e-3], batches=1, batch_size=4)
    other = curvature_of(RunConfig("lora", batch_size=4), iterations=1)
    assert measured.start == pytest.approx(other.loss, rel=1e-5)
    assert measured.model_rate == pytest.approx(other.model_rate, rel=1e-3)


@pytest.mark.parametrize("method", ["lora", "nlora", "full"])
def test_a_loss_is_that_after_a_step_of_adamw(method):
    rate = 1e-2 if method == "lora" else 5e-5
    measured = loss_along_first_step(method, [rate], batch_size=4)
    probe = RunProbe(RunConfig(method, lr=rate, batch_size=4), 2)
    probe.model.train()
    probe.model(**probe.batches[0]).loss.backward()
    probe.adam.step()
    probe.model.eval()
    with torch.no_grad():
        loss = float(probe.mean_loss(probe.batches))
    at = dict(zip(measured.rates, measured.losses, strict=True))
    assert at[rate] == pytest.approx(loss, rel=1e-3)
    assert abs(at[rate] - measured.start) > 0.01


def test_the_parabola_is_nearer_than_the_line_without_curvature():
    measured = loss_along_first_step("lora", [3e-4], batch_size=8)
    rate, loss = measured.rates[0], measured.losses[0]
    line = measured.start - measured.slope * rate
    assert abs(measured.parabola(rate) - loss) < 0.5 * abs(line - loss)


def test_the_best_recorded_rate_is_tried_as_well():
    best = recorded_runs().best("word-problems", "lora", 8)
    measured = loss_along_first_step("lora", [1e-3], batch_size=4)
    assert measured.best_rate == best.lr
    assert measured.rates == (1e-3, best.lr)


def test_nlora_has_to_stop_much_earlier_than_lora():
    rates = [10 ** (k / 2) for k in range(-10, 0)]
    nlora, lora = (loss_along_first_step(name, rates, batch_size=8) for name in ("nlora", "lora"))
    assert nlora.start == pytest.approx(lora.start, rel=1e-5)
    assert nlora.lowest_rate < lora.lowest_rate / 100
    assert nlora.slope > 100 * lora.slope
    assert nlora.curvature > 100**2 * lora.curvature


def made(method: str, best: float | None) -> FirstStepLoss:
    return FirstStepLoss(RunConfig(method), 2, 2.0, 10.0, 50.0, (0.01, 0.1, 1.0), (1.9, 1.5, math.inf), best)


def test_a_line_per_method_with_the_lowest_and_the_recorded_rate():
    picture = first_step_losses([made("lora", 0.1), made("nlora", None)])
    (panel,) = picture.figure().panels
    lines = [mark for mark in panel.marks if isinstance(mark, Line)]
    points = [mark for mark in panel.marks if isinstance(mark, Points)]
    assert [line.name for line in lines] == ["LoRA", "NLoRA", "parabola", ""]
    assert [line.colour for line in lines] == 2 * [METHODS["lora"].colour, METHODS["nlora"].colour]
    assert [(p.x, p.y, p.symbols) for p in points] == [
        ([0.1], [1.5], "circle"), ([0.1], [1.5], "diamond"), ([0.1], [1.5], "circle"),
    ]  # fmt: skip
    assert picture.png().startswith(b"\x89PNG")
    assert repr(picture) == "loss after one step of Adam against the learning rate: LoRA, NLoRA"


def test_a_loss_that_never_bends_upwards_has_no_lowest_rate():
    assert FirstStepLoss(RunConfig(), 1, 2.0, 10.0, -5.0, (0.1,), (1.5,), None).model_rate == math.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: loss_along_first_step("loraa"), "loraa"),
        (lambda: loss_along_first_step("lora", [0.0]), "rate=0.0"),
        (lambda: loss_along_first_step("lora", []), "no learning rate"),
        (lambda: loss_along_first_step("lora", batches=0), "batches=0"),
        (lambda: loss_along_first_step("lora", lr=1e-3), "lr"),
        (lambda: loss_along_first_step("lora", ranks=3), "ranks"),
        (lambda: first_step_losses([]), "measured"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
