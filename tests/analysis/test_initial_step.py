"""What a start does to the model before the first step, and in it."""

from __future__ import annotations

import math

import pytest
import torch

from nlora_lab.analysis.initial_step import first_step, initial_change
from nlora_lab.core.errors import InputError
from nlora_lab.methods.table import METHODS
from nlora_lab.plots.charts import method_bars

TEXT = "Ana has 12 pears. She finds 5 more."


def test_only_the_released_start_changes_the_model():
    assert initial_change("nlora", TEXT) == initial_change("slora", TEXT) == 0
    assert initial_change("nlora-released", TEXT) > 0.01
    assert initial_change("nlora-released", TEXT) == initial_change("nlora-released", TEXT)


def test_the_first_step_is_what_adam_does_to_b_alone_in_lora(embedded):
    """With B = 0 only B moves, each entry by lr: the change is ± lr in every entry of B, times A."""
    model, _ = embedded
    torch.manual_seed(0)
    from nlora_lab.methods.attachment import attach
    from nlora_lab.models.loading import load_model

    tuned = attach(load_model()[0], "lora", rank=4)
    layers = [m.requires_grad_(False) for m in tuned.modules() if hasattr(m, "lora_A")]
    largest = torch.stack([1e-3 * m.lora_A["default"].weight.norm() * m.out_features**0.5 * 2 for m in layers]).norm()
    size = torch.stack([p.detach().norm() for n, p in model.named_parameters() if "proj" in n]).norm()
    step = first_step("lora", TEXT, rank=4, lr=1e-3)
    assert 0.05 * float(largest / size) < step < float(largest / size)
    assert first_step("lora", TEXT, rank=4, lr=2e-3) == pytest.approx(2 * step, rel=0.01)


def test_sizes_of_the_first_step_are_in_the_order_that_notebook_04_states():
    sizes = {name: first_step(name, TEXT) for name in ("lora", "nlora-balanced", "nlora")}
    assert sizes["lora"] < sizes["nlora-balanced"] / 10 < sizes["nlora"] / 100


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: first_step("loraa", TEXT), "loraa"),
        (lambda: first_step("full", TEXT), "method='full' has no adapter"),
        (lambda: first_step("lora", TEXT, lr=-1), "lr=-1"),
        (lambda: first_step("lora", TEXT, lr=math.nan), "lr=nan"),
        (lambda: first_step("lora", TEXT, rank=200), "rank=200"),
        (lambda: initial_change("lora", ""), "text=''"),
        (lambda: method_bars({"loraa": 1.0}), "loraa"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_bars_wear_the_methods_colours():
    bars = method_bars({"lora": 1e-3, "nlora": 0.5}, xlabel="size")
    assert repr(bars) == f"size: {METHODS['lora'].label}, {METHODS['nlora'].label}"
    assert bars._repr_png_().startswith(b"\x89PNG")
    assert method_bars({"lora": 1e-3}).png() != method_bars({"nlora": 1e-3}).png()
