"""The curvature of a run against the run itself, and against its dense Hessian."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from nlora_lab.analysis import curvature
from nlora_lab.analysis.curvature import PREDICTORS, RunProbe, curvature_of, curvature_table, rate_predictors
from nlora_lab.core.errors import InputError
from nlora_lab.lowrank.lanczos import flatten
from nlora_lab.methods.table import METHODS
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.resolution import ResolvedRun
from nlora_lab.tasks.registry import load_task
from nlora_lab.training import measurement
from nlora_lab.training.loop import fine_tune

QUICK = {"steps": 4, "batch_size": 4, "task": "entailment", "lr": 1e-3, "device": "cpu"}


@pytest.fixture(scope="module", autouse=True)
def small_runs():
    """Runs on a few rows, which are not measured at their end."""
    task = load_task(QUICK["task"])
    task = replace(task, train=task.train.select(range(64)), validation=task.validation.select(range(8)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResolvedRun, "task", task)
        patch.setattr(measurement, "measure_result", lambda *args, **kwargs: None)
        yield


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_is_measured_where_its_run_is(name):
    cfg = RunConfig(method=name, **QUICK)
    run = fine_tune(cfg)
    for at in (0, 2) if name in ("lora", "nlora", "full") else (2,):
        result = curvature_of(cfg, at_step=at, iterations=5, rtol=0.3)
        assert result.loss == pytest.approx(run.steps[at].loss, rel=1e-4)
        assert result.gradient == pytest.approx(run.steps[at].grad_norm, rel=1e-3)
        assert result.linearity == pytest.approx(1, abs=0.03)
        numbers = [result.row()[key] for key in PREDICTORS]
        assert all(isinstance(v, float) and not math.isnan(v) for v in numbers)
        assert min(numbers[:2]) > 0
        assert result.seconds < 60


@pytest.mark.parametrize("name", ["lora", "nlora", "dora", "full"])
@pytest.mark.parametrize("at_step", [0, 3])
def test_the_next_step_is_the_one_that_torchs_adam_makes(name, at_step):
    cfg = RunConfig(method=name, clip_norm=0.1, **QUICK)
    probe = RunProbe(cfg, at_step + 1)
    probe.train(at_step)
    step, scale = probe.next_step(probe.batches[at_step:])
    before = flatten(probe.parameters).clone()
    probe.model(**probe.batches[at_step]).loss.backward()
    torch.nn.utils.clip_grad_norm_(probe.parameters, 0.1)
    for group in probe.adam.param_groups:
        group["lr"] = 1.0  # so that the step stands out of the rounding of NLoRA's large factors
    probe.adam.step()
    moved = before - flatten(probe.parameters)
    assert torch.allclose(step, moved, atol=1e-3)
    unmoved = scale.isinf()
    assert bool((step[unmoved] == 0).all())
    # at the start only B moves, and the lengths of DoRA
    share = float(unmoved.float().mean())
    assert 0.2 < share < 0.8 if at_step == 0 and name in ("lora", "dora") else share < 0.1


@pytest.mark.parametrize("batches", [1, 2])
def test_an_adapter_against_its_dense_hessian(batches):
    cfg = RunConfig(method="inttune", rank=2, **{**QUICK, "batch_size": 2})
    result = curvature_of(cfg, batches=batches, iterations=100, rtol=1e-3)
    probe = RunProbe(cfg, batches)
    probe.train(0)
    probe.model.set_attn_implementation("eager")
    loss = torch.stack([probe.model(**b).loss for b in probe.batches]).mean()
    g = torch.cat([t.reshape(-1) for t in torch.autograd.grad(loss, probe.parameters, create_graph=True)])
    H = torch.stack([flatten(torch.autograd.grad(entry, probe.parameters, retain_graph=True)) for entry in g])
    assert len(H) == 28 * 4
    g = g.detach()
    assert result.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    assert result.gradient == pytest.approx(float(g.norm()), rel=1e-4)
    assert result.largest.value == pytest.approx(float(torch.linalg.eigvalsh(H)[-1]), rel=1e-3)
    slopes = [flatten(torch.autograd.grad(probe.model(**b).loss, probe.parameters)) for b in probe.batches]
    shares = [0.999 ** (batches - 1 - i) * 0.001 / (1 - 0.999**batches) for i in range(batches)]
    v = sum(share * s.square() for share, s in zip(shares, slopes, strict=True))
    shares = [0.9 ** (batches - 1 - i) * 0.1 / (1 - 0.9**batches) for i in range(batches)]
    m = sum(share * s for share, s in zip(shares, slopes, strict=True))
    D = v.sqrt() + 1e-8
    scaled = (H / (D[:, None] * D[None, :]).sqrt()).double()
    assert result.preconditioned.value == pytest.approx(float(torch.linalg.eigvalsh(scaled)[-1]), rel=0.01)
    step = m / D
    along_step = float(step @ H @ step)
    assert result.model_rate == pytest.approx(float(g @ step) / along_step if along_step > 0 else math.inf, rel=0.02)


@pytest.mark.parametrize("name", ["lora", "nlora", "pissa", "full"])
def test_a_steps_effect_is_the_derivative_along_it(name):
    cfg = RunConfig(method=name, **QUICK)
    result = curvature_of(cfg, iterations=1)
    probe = RunProbe(cfg, 1)
    probe.train(0)
    batch = probe.batches[0]
    step, _ = probe.next_step([batch])
    before = flatten(probe.parameters).clone()
    probe.effects(step, batch)
    assert torch.equal(before, flatten(probe.parameters))

    # in float64, for differences so small that nothing is curved
    probe.model.double()
    with torch.no_grad():
        logits, weights = probe._logits(batch), probe._changes()
        sizes = sum(float(view.weight.norm()) ** 2 for view in probe.observed.layers()) ** 0.5
        with probe.moved(step.double(), 1e-7):
            change = probe._logits(batch) - logits
            moved = sum(float((a - b).norm()) ** 2 for a, b in zip(probe._changes(), weights, strict=True)) ** 0.5
    assert result.weight_change == pytest.approx(moved / sizes / 1e-7, rel=0.01)
    assert result.logit_change == pytest.approx(float(change.norm() / logits.norm()) / 1e-7, rel=0.03)


def test_in_lora_the_first_step_is_that_of_b_times_a():
    """Adam's first step is the sign of the gradient where there is one: ``sign(∂B) A`` for a rate of 1."""
    cfg = RunConfig(method="lora", **QUICK)
    probe = RunProbe(cfg, 1)
    probe.model(**probe.batches[0]).loss.backward()
    layers = list(probe.observed.layers())
    moved = math.hypot(*(float((v.gradients["B"].sign() @ v.factors["A"]).norm()) for v in layers))
    size = math.hypot(*(float(v.weight.norm()) for v in layers))
    assert curvature_of(cfg, iterations=1).weight_change == pytest.approx(moved / size, rel=0.01)


def test_scaling_an_adapter_scales_what_adam_sees_by_as_much():
    """rsLoRA is LoRA times √r. Only B moves at first: g grows by √r, H by r, and H over ``√v`` by √r."""
    lora, rslora = (curvature_of(RunConfig(method=m, rank=4, **QUICK), rtol=1e-3) for m in ("lora", "rslora"))
    assert rslora.gradient == pytest.approx(2 * lora.gradient, rel=1e-4)
    for name in ("weight_change", "logit_change"):
        assert getattr(rslora, name) == pytest.approx(2 * getattr(lora, name), rel=0.01)
    assert rslora.preconditioned.value == pytest.approx(2 * lora.preconditioned.value, rel=0.03)  # eps does not scale
    assert rslora.model_rate == pytest.approx(lora.model_rate / 2, rel=0.01)


def test_at_the_start_the_rate_plays_no_part():
    first, second = (
        replace(curvature_of(replace(RunConfig(**QUICK), lr=lr), iterations=2), seconds=0) for lr in (1e-4, 1)
    )
    assert replace(first, config=second.config) == second


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({}, {"at_step": -1}, "at_step=-1"),
        ({}, {"at_step": 5}, "from 0 to 4"),
        ({}, {"batches": 0}, "batches=0"),
        ({}, {"iterations": 1.5}, "iterations=1.5"),
        ({}, {"rtol": 1}, "rtol=1"),
        ({"rank": 500}, {}, "rank=500"),
        ({"lr": 1e30}, {"at_step": 3}, "diverged in step"),
    ],
)
def test_bad_input_of_a_run_is_named(settings, options, message):
    with pytest.raises(InputError, match=message):
        curvature_of(RunConfig(**{**QUICK, **settings}), **options)


class RecordedInttune:
    """Recorded runs of one method."""

    def best(self, task, method, rank, init):
        assert (task, rank, init) == (QUICK["task"], 8, None)
        return SimpleNamespace(lr=0.07) if method == "inttune" else None


def test_a_table_has_one_row_per_method_at_its_best_rate(monkeypatch):
    monkeypatch.setattr(curvature, "recorded_runs", lambda store, model: RecordedInttune())
    settings = {**QUICK, "iterations": 2}
    del settings["lr"]
    table = curvature_table(["inttune", "lora-xs"], **settings)
    assert list(table["method"]) == ["inttune", "lora-xs"]
    assert list(table["label"]) == [METHODS[m].label for m in table["method"]]
    assert list(table["rate"]) == [0.07, RunConfig.lr]
    assert table["best_rate"][0] == 0.07
    assert math.isnan(table["best_rate"][1])
    assert set(PREDICTORS) <= set(table)
    fixed = curvature_table("inttune", **{**settings, "lr": 3e-3})
    assert list(fixed["rate"]) == [3e-3]
    assert fixed["largest"][0] == table["largest"][0]
    with pytest.raises(InputError, match="sed"):
        curvature_table(["lora"], sed=1)
    with pytest.raises(InputError, match="loraa"):
        curvature_table(["loraa"])


def predictor_table(rates, **columns):
    return pd.DataFrame({"best_rate": rates, **{name: columns.get(name, rates) for name in PREDICTORS}})


def test_a_power_law_is_found_and_the_best_predictor_comes_first():
    rates = [1e-4, 1e-3, 5e-3, 1e-1]
    noisy = [3.0, 1.0, 2.0, 1.0]
    table = predictor_table(rates, largest=[4 / r**2 for r in rates], gradient=noisy, model_rate=[*rates[:3], math.inf])
    result = rate_predictors(table).set_index("quantity")
    assert list(result.index)[-1] == "gradient"
    assert result.loc["largest", "slope"] == pytest.approx(-0.5)
    assert result.loc["largest", "spearman"] == pytest.approx(-1)
    assert result.loc["largest", "spread"] == pytest.approx(0, abs=1e-9)
    assert dict(result["methods"]) == {**dict.fromkeys(PREDICTORS, 4), "model_rate": 3}
    from scipy.stats import spearmanr

    assert result.loc["gradient", "spearman"] == pytest.approx(spearmanr(noisy, rates).statistic)


def test_a_method_that_is_left_out_is_predicted_by_the_others():
    rates, quantity = [1e-4, 1e-3, 5e-3, 2e-2, 1e-1], [3e5, 2e3, 9e3, 50.0, 4.0]
    found = rate_predictors(predictor_table(rates, largest=quantity)).set_index("quantity").loc["largest"]
    errors = []
    for i in range(5):
        x, y = np.log10(np.delete(quantity, i)), np.log10(np.delete(rates, i))
        errors.append(np.log10(rates[i]) - np.polyval(np.polyfit(x, y, 1), np.log10(quantity[i])))
    assert found["unseen"] == pytest.approx(np.sqrt(np.mean(np.square(errors))))
    assert found["unseen"] > found["spread"]


def test_a_table_that_cannot_be_judged_is_named():
    with pytest.raises(InputError, match="'best_rate'"):
        rate_predictors(pd.DataFrame({"method": ["lora"]}))
    with pytest.raises(InputError, match="only 2 methods"):
        rate_predictors(predictor_table([1e-3, math.nan, 1e-2, -1]))
