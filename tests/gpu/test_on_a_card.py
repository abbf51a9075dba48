"""What a card must do as the CPU does. Each test runs on both, so that CI runs its code without a card.

They need no more than pytest beside the package, because a GPU node may have no more.
"""

from __future__ import annotations

import math

import pytest
import torch

from nlora_lab.core.devices import PeakMemory
from nlora_lab.lowrank.cross import nystrom
from nlora_lab.lowrank.rules import PIVOTS
from nlora_lab.lowrank.svd import singular_values
from nlora_lab.methods.table import METHODS
from nlora_lab.runs.config import RunConfig
from nlora_lab.training import measurement
from nlora_lab.training.loop import fine_tune
from nlora_lab.training.races import race
from nlora_lab.training.setup import build

QUICK = {"steps": 3, "batch_size": 4, "task": "entailment", "train_rows": 64, "test_rows": 8}
RATES = {  # each near its best on the embedded model: above it training is chaotic
    "lora": 1e-2, "rslora": 5e-3, "dora": 1e-2, "pissa": 2e-3, "olora": 5e-4, "lora-xs": 2e-2, "slora": 1e-2,
    "nlora": 1e-4, "nlora-pivoted": 1e-3, "nlora-core": 5e-3, "nlora-balanced": 1e-3, "nlora-released": 5e-3,
    "inttune": 2e-2,
}  # fmt: skip
CARD = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
)


@pytest.fixture(params=["cpu", CARD])
def device(request, monkeypatch):
    monkeypatch.setenv("NLORA_LAB_DEVICE", request.param)
    return request.param


@pytest.fixture
def unmeasured(monkeypatch):
    """Runs are trained, but nothing is asked of them at the end."""
    monkeypatch.setattr(measurement, "measure_result", lambda *args: None)


@pytest.mark.parametrize("pivots", PIVOTS)
def test_a_card_gives_what_the_processor_gives(device, pivots):
    W = torch.randn(90, 70, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cpu, here = nystrom(W, 9, pivots=pivots), nystrom(W.to(device), 9, pivots=pivots)
    if pivots != "random":
        assert torch.allclose(cpu.product(), here.product().cpu(), rtol=1e-6)
    assert torch.allclose(singular_values(W), singular_values(W.to(device)).cpu(), rtol=1e-9)


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_trains(device, unmeasured, name):
    run = fine_tune(RunConfig(method=name, **QUICK))
    assert math.isfinite(run.final_loss)
    assert run.peak_memory > 0


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.step0 == "exact"])
def test_an_exact_start_changes_nothing_in_any_precision(device, unmeasured, name, precision):
    run = fine_tune(RunConfig(method=name, precision=precision, **{**QUICK, "steps": 1}))
    assert run.metrics["step0_change"] == 0.0


@pytest.mark.parametrize("name", ["slora", "nlora", "inttune"])
def test_under_bfloat16_what_trains_is_float32_and_the_rest_stays_as_it_was(device, unmeasured, name):
    config = RunConfig(method=name, precision="bf16", lr=1e-3, **QUICK)
    before = {n: p for n, p in build(config)[0].named_parameters() if p.requires_grad}
    run = fine_tune(config)
    assert run.weights is not None
    assert {w.dtype for n, w in run.weights.items() if n in before} == {torch.float32}
    assert any(not torch.equal(run.weights[n].cpu(), p.detach()) for n, p in before.items())


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_race_is_the_runs_one_by_one(device, unmeasured, precision):
    names = list(RATES) if device == "cuda" else ["lora", "nlora", "inttune"]
    configs = [RunConfig(method=m, lr=RATES[m], precision=precision, **QUICK) for m in names]
    # rounding to bfloat16 grows in NLoRA from step to step: its third gradient differs by a quarter to a half
    loss, losses, norms = (5e-2, 2, 1) if precision == "bf16" else (2e-3, 3, 3)
    for run in race(configs):
        alone = fine_tune(run.config)
        assert run.together == len(names)
        assert len(run.steps) == len(alone.steps) == 3
        assert [s.loss for s in run.steps[:losses]] == pytest.approx([s.loss for s in alone.steps[:losses]], rel=loss)
        raced, single = ([s.grad_norm for s in r.steps[:norms]] for r in (run, alone))
        assert raced == pytest.approx(single, rel=2e-2)


def test_a_run_resumes_on_the_device(device, unmeasured, tmp_path):
    config = RunConfig(method="nlora", lr=1e-4, **QUICK)
    fine_tune(config, lambda step: step.step == 2, checkpoints=tmp_path)
    resumed, straight = fine_tune(config, checkpoints=tmp_path), fine_tune(config)
    assert [s.loss for s in resumed.steps] == pytest.approx([s.loss for s in straight.steps], rel=1e-4)


def test_the_peak_holds_a_tensor_that_is_gone_again(device):
    peak, size = PeakMemory(device), 2**26
    before = peak.bytes
    x = torch.ones(size // 4, device=device)
    peak.look()
    del x
    peak.look()
    # resident memory of a process may have had room already, a card's allocator counts each byte
    assert peak.bytes >= before + (size if device == "cuda" else 0)
