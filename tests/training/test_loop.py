from __future__ import annotations

import math

import pytest
import torch

from nlora_lab.core.errors import InputError
from nlora_lab.methods.attachment import attach
from nlora_lab.methods.table import METHODS
from nlora_lab.runs import resolution
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.run import STEP0_NOISE
from nlora_lab.training import measurement, setup
from nlora_lab.training.loop import fine_tune

QUICK = {"steps": 3, "batch_size": 4, "task": "entailment"}


@pytest.fixture(scope="module")
def runs():
    return {name: fine_tune(RunConfig(method=name, **QUICK)) for name in METHODS}


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_runs_and_is_measured(runs, name):
    run = runs[name]
    assert [s.step for s in run.steps] == [1, 2, 3]
    assert list(run.history.columns) == ["step", "loss", "lr", "grad_norm"]
    assert len(run.history) == 3
    assert all(math.isfinite(s.loss) and s.grad_norm > 0 for s in run.steps)
    assert 0 <= run.accuracy <= 1
    assert run.metrics["validation_loss"] > 0
    assert run.peak_memory > 2**20
    assert run.seconds > 0
    assert not run.diverged
    assert not run.stopped
    assert run.device.startswith("CPU")
    assert run.versions["torch"].partition("+")[0] == torch.__version__.partition("+")[0]  # PyPI leaves out the build
    assert torch.__version__ in run.versions["torch build"]


def test_trainable_parameters_are_what_the_formulas_say(runs):
    # every linear layer (m, n) of the embedded model but the tied head: 4 of 128x128, 2 of 352x128, 1 of 128x352
    sides = [(128, 128)] * 4 + [(352, 128)] * 2 + [(128, 352)]
    lora = 4 * sum(8 * (m + n) for m, n in sides)
    assert runs["lora"].trainable == lora
    assert runs["slora"].trainable == runs["nlora"].trainable == runs["nlora-released"].trainable == lora + 28 * 64
    assert runs["full"].trainable == 917_632


def test_only_the_released_start_changes_the_model(runs):
    for name, run in runs.items():
        change = run.metrics["step0_change"]
        assert change == 0 or METHODS[name].step0 != "exact", name
        assert (change > STEP0_NOISE) == (METHODS[name].step0 == "changed") == (name == "nlora-released"), name


def test_methods_that_keep_the_function_start_from_the_same_loss_on_the_same_batch(runs):
    exact = {run.steps[0].loss for name, run in runs.items() if METHODS[name].step0 == "exact"}
    near = {run.steps[0].loss for name, run in runs.items() if METHODS[name].step0 == "near"}
    assert len(exact) == 1
    assert near
    assert all(loss == pytest.approx(*exact, rel=1e-4) for loss in near)


def test_the_same_seed_gives_the_identical_history_and_another_does_not(runs):
    again = fine_tune(RunConfig(method="slora", **QUICK))
    assert again.steps == runs["slora"].steps
    assert again.metrics == runs["slora"].metrics
    other = fine_tune(RunConfig(method="slora", seed=1, **QUICK))
    assert other.steps[0].loss != runs["slora"].steps[0].loss


def test_the_seed_decides_the_weights_too():
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(attach(setup.load_model()[0], "slora"))
    weights = [torch.cat([p.flatten() for n, p in m.named_parameters() if "nlora_N" in n]) for m in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_rate_warms_up_and_falls_to_zero():
    cfg = RunConfig(steps=100, warmup=0.1)
    factors = [cfg.rate_factor(s) for s in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1.0
    assert factors == sorted(factors[:10]) + sorted(factors[10:], reverse=True)
    assert factors[100] == pytest.approx(0.0)


def test_clipping_is_off_unless_asked(monkeypatch):
    asked = []
    real = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda p, n, **k: asked.append(n) or real(p, n, **k))
    fine_tune(RunConfig(**{**QUICK, "steps": 1}))
    fine_tune(RunConfig(clip_norm=0.5, **{**QUICK, "steps": 1}))
    assert asked == [math.inf, 0.5]


def test_a_diverging_run_is_a_result():
    run = fine_tune(RunConfig(method="full", lr=1e30, **{**QUICK, "steps": 30}))
    assert run.diverged
    assert not run.stopped
    assert 1 < len(run.steps) < 30
    assert math.isnan(run.final_loss)
    assert math.isnan(run.accuracy)
    assert run.summary()["final_loss"] is None


def test_on_step_can_stop_and_what_there_is_is_kept():
    run = fine_tune(RunConfig(**{**QUICK, "steps": 50}), on_step=lambda step: step.step == 4)
    assert run.stopped
    assert len(run.steps) == 4
    assert math.isfinite(run.final_loss)
    assert math.isnan(run.accuracy)


def test_an_interrupt_keeps_the_partial_run():
    def interrupt(step):
        if step.step == 2:
            raise KeyboardInterrupt

    run = fine_tune(RunConfig(**QUICK), on_step=interrupt)
    assert run.stopped
    assert len(run.steps) == 2
    assert run.weights


def test_too_little_memory_is_a_result_with_advice(monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def after_two(step):
        if step.step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    run = fine_tune(RunConfig(**QUICK), on_step=after_two)
    assert run.ended == "failed"
    assert len(run.steps) == 2
    assert "batch_size=2" in run.error
    assert math.isnan(run.final_loss)
    monkeypatch.setattr(setup, "build", full)
    assert "out of memory on CPU" in fine_tune(RunConfig(**QUICK)).error


def test_another_error_is_heard_and_carries_what_was_trained():
    def broken(step):
        if step.step == 2:
            raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch") as caught:
        fine_tune(RunConfig(**QUICK), on_step=broken)
    run = caught.value.run
    assert run.ended == "failed"
    assert run.error == "RuntimeError: size mismatch"
    assert len(run.steps) == 2


def test_an_error_before_the_first_step_carries_nothing(monkeypatch):
    def broken(*args):
        raise OSError("no such file")

    monkeypatch.setattr(setup, "build", broken)
    with pytest.raises(OSError, match="no such file") as caught:
        fine_tune(RunConfig(**QUICK))
    assert not hasattr(caught.value, "run")


STAGES = {
    "load_task": resolution, "build": setup, "load_untouched_base": setup, "first_change": measurement,
}  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_a_stop_while_loading_is_a_stopped_run_without_a_step(monkeypatch, stage):
    real, begun = getattr(STAGES[stage], stage), []
    monkeypatch.setattr(STAGES[stage], stage, lambda *args, **kwargs: begun.append(stage) or real(*args, **kwargs))
    after = {"load_task": "build", "build": "load_untouched_base", "load_untouched_base": "first_change"}.get(stage)
    if after:  # nothing more is loaded than what had begun
        monkeypatch.setattr(STAGES[after], after, lambda *args: pytest.fail(f"{after} has begun"))
    run = fine_tune(RunConfig(**QUICK), should_stop=lambda: bool(begun))
    assert run.ended == "stopped"
    assert run.steps == ()


@pytest.mark.parametrize(
    ("task", "asks"), [("entailment", 1), ("entailment", 2), ("entailment", 4), ("word-problems", 6)]
)
def test_a_stop_while_measuring_keeps_the_run_without_an_accuracy(monkeypatch, task, asks):
    """Whether between two batches, in the validation loss, or between two words of an answer."""
    real, asked = measurement.measure_result, []

    def finish(*args):
        asked.append(0)
        real(*args)

    def should_stop():
        asked.extend([1] if asked else [])
        return sum(asked) >= asks

    monkeypatch.setattr(measurement, "measure_result", finish)
    run = fine_tune(RunConfig(**{**QUICK, "task": task}), should_stop=should_stop)
    assert sum(asked) == asks  # its yes is obeyed the first time
    assert run.ended == "stopped"
    assert len(run.steps) == 3
    assert set(run.metrics) == {"step0_change", "distance"}
    assert math.isnan(run.accuracy)
    assert run.weights


def test_a_stopped_run_says_something_but_not_at_length(monkeypatch):
    stop = lambda step: step.step == 2  # noqa: E731
    assert len(fine_tune(RunConfig(**QUICK), stop).answers) == 3
    monkeypatch.setattr(measurement, "PATIENCE", -1.0)
    assert fine_tune(RunConfig(**QUICK), stop).answers == ()


def test_a_run_keeps_what_it_said_how_far_it_went_and_its_weights(runs):
    for name, run in runs.items():
        assert len(run.answers) == 3, name
        assert run.metrics["distance"] > 0, name
        assert sum(w.numel() for w in run.weights.values()) == run.trainable, name


def test_an_interrupt_while_measuring_keeps_the_trained_steps(monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(measurement, "measure_result", interrupt)
    run = fine_tune(RunConfig(**QUICK))
    assert run.stopped
    assert len(run.steps) == 3


def test_rank_does_not_matter_to_full_fine_tuning():
    assert fine_tune(RunConfig(method="full", rank=4000, **{**QUICK, "steps": 1})).trainable == 917_632


def test_dropout_changes_the_run_and_is_seeded():
    plain, wet, again = (fine_tune(RunConfig(method="nlora", dropout=d, **QUICK)) for d in (0.0, 0.5, 0.5))
    assert wet.steps == again.steps
    assert wet.steps[0].loss == plain.steps[0].loss  # both products see the same dropped input and cancel
    assert wet.steps[2].loss != plain.steps[2].loss


def test_the_environment_overrides_the_device(monkeypatch):
    monkeypatch.setenv("NLORA_LAB_DEVICE", "tpu")
    with pytest.raises(InputError, match="NLORA_LAB_DEVICE='tpu' is not known"):
        fine_tune(RunConfig(**QUICK))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_missing_device_is_named(monkeypatch):
    monkeypatch.delenv("NLORA_LAB_DEVICE", raising=False)
    with pytest.raises(InputError, match="device='cuda' is not available"):
        fine_tune(RunConfig(device="cuda", **QUICK))
