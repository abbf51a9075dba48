"""A race gives what the runs one by one give: together on one frozen base, each with its own rate, rank and luck."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from factories import tiny_gpt2, tiny_llama

import nlora_lab as nl
from nlora_lab.core.errors import InputError
from nlora_lab.methods.table import METHODS
from nlora_lab.runs import resolution
from nlora_lab.runs.config import RunConfig
from nlora_lab.training import loop, measurement, races, setup
from nlora_lab.training.batched import trainer
from nlora_lab.training.export import tuned_model
from nlora_lab.training.loop import fine_tune
from nlora_lab.training.races import race

QUICK = {"steps": 3, "batch_size": 4, "task": "entailment"}
RATES = {  # each near its best on the embedded model: above it training is chaotic
    "lora": 1e-2, "rslora": 5e-3, "dora": 1e-2, "pissa": 2e-3, "olora": 5e-4, "lora-xs": 2e-2, "slora": 1e-2,
    "nlora": 1e-4, "nlora-pivoted": 1e-3, "nlora-core": 5e-3, "nlora-balanced": 1e-3, "nlora-released": 5e-3,
    "inttune": 2e-2,
}  # fmt: skip


@pytest.fixture
def unmeasured(monkeypatch):
    """Runs are trained, but nothing is asked of them at the end, which takes most of a short run's time."""
    monkeypatch.setattr(measurement, "measure_result", lambda *args: None)


def alike(raced, alone, loss=2e-3, norm=2e-2):
    """The same history to rounding, relative to each number."""
    assert [s.step for s in raced.steps] == [s.step for s in alone.steps]
    for a, b in zip(raced.steps, alone.steps, strict=True):
        assert a.lr == b.lr
        assert a.loss == pytest.approx(b.loss, rel=loss), a.step
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=norm), a.step


def test_every_method_but_full_can_share_a_base():
    assert set(RATES) == {name for name, m in METHODS.items() if m.build is not None}


@pytest.fixture(scope="module")
def field():
    """Every method that can share a base, in one race of 8 steps: methods, rates, a rank and an init apart."""
    configs = [RunConfig(method=m, lr=lr, **{**QUICK, "steps": 8}) for m, lr in RATES.items()]
    configs.append(RunConfig(method="slora", init="identity", rank=2, lr=5e-3, **{**QUICK, "steps": 8}))
    return race(configs)


@pytest.mark.parametrize("number", range(len(RATES) + 1))
def test_a_race_of_all_methods_is_the_runs_one_by_one(field, number):
    raced = field[number]
    alone = fine_tune(raced.config)
    alike(raced, alone)
    assert raced.together == len(RATES) + 1
    assert alone.together == 1
    assert raced.trainable == alone.trainable
    exact = METHODS[raced.config.method].step0 == "exact"
    assert raced.metrics["step0_change"] == pytest.approx(
        alone.metrics["step0_change"], rel=1e-2, abs=0 if exact else 1e-5
    )
    assert raced.metrics["distance"] == pytest.approx(alone.metrics["distance"], rel=2e-2)
    assert raced.metrics["validation_loss"] == pytest.approx(alone.metrics["validation_loss"], rel=2e-2)
    assert raced.accuracy == pytest.approx(alone.accuracy, abs=0.02)
    assert len(raced.answers) == len(alone.answers) == 3
    assert set(raced.weights) == set(alone.weights)


def test_seconds_are_shared_and_the_runs_are_in_order(field):
    assert [r.config.method for r in field][:3] == ["lora", "rslora", "dora"]
    assert len({round(r.seconds, 6) for r in field}) == 1
    assert all(r.seconds > 0 for r in field)


@pytest.mark.parametrize("number", [0, 3, 6, 7, 12])
def test_the_weights_of_a_raced_run_are_the_tuned_model(field, number):
    """Loaded into the model `build` makes, they answer as the run did."""
    run = field[number]
    model, tokenizer = tuned_model(run)
    said = nl.answers(model, tokenizer, resolution.load_task("entailment"))  # the rows that the run was measured on
    assert sum(a.correct for a in said) / len(said) == pytest.approx(run.accuracy, abs=0.011)
    assert tuple(a.text for a in said[:3]) == run.answers


def test_seeds_ranks_and_clipping_are_each_runs_own(unmeasured):
    configs = [
        RunConfig(method="lora", seed=0, rank=1, lr=1e-2, **QUICK),
        RunConfig(method="slora", seed=1, rank=32, lr=5e-3, clip_norm=0.5, **QUICK),
        RunConfig(method="nlora", seed=2, rank=4, alpha=8, lr=1e-4, weight_decay=0.1, **QUICK),
        RunConfig(method="lora", seed=0, rank=1, lr=1e-2, **QUICK),  # the first once more
    ]
    raced = race(configs)
    assert {r.together for r in raced} == {4}
    for run in raced:
        alike(run, fine_tune(run.config), loss=1e-3)
    assert [s.loss for s in raced[0].steps] == pytest.approx([s.loss for s in raced[3].steps], rel=1e-5)
    assert raced[0].steps[0].loss != raced[1].steps[0].loss  # other seeds, other batches


def test_what_cannot_share_a_base_runs_alone_and_in_its_place(unmeasured):
    configs = [
        RunConfig(method="lora", **QUICK), RunConfig(method="full", **QUICK),
        RunConfig(method="slora", dropout=0.1, **QUICK), RunConfig(method="nlora", **QUICK),
        RunConfig(method="lora", **{**QUICK, "steps": 2}),
    ]  # fmt: skip
    runs = race(configs)
    assert [r.config for r in runs] == configs
    assert [r.together for r in runs] == [2, 1, 1, 2, 1]
    apart = race(configs[::3], together=False)
    assert [r.together for r in apart] == [1, 1]
    for a, b in zip(apart, runs[::3], strict=True):
        alike(b, a)


def test_a_race_of_one_and_of_none(unmeasured):
    assert race([]) == []
    (only,) = race([RunConfig(**QUICK)])
    assert only.together == 1
    assert only.steps == fine_tune(RunConfig(**QUICK)).steps


def test_who_diverges_drops_out_and_the_others_run_on_as_if_it_had_not_been(unmeasured):
    calm = [RunConfig(method=m, lr=1e-3, **{**QUICK, "steps": 6}) for m in ("lora", "slora")]
    wild = RunConfig(method="nlora", lr=1e30, **{**QUICK, "steps": 6})
    done = []
    runs = race([calm[0], wild, calm[1]], on_run=done.append)
    assert done[0].config is wild  # at once, not at the end
    assert [r.diverged for r in runs] == [False, True, False]
    assert 1 < len(runs[1].steps) < 6
    assert math.isnan(runs[1].final_loss)
    for run in (runs[0], runs[2]):
        alike(run, fine_tune(run.config), loss=1e-4)


def test_on_step_hears_every_adapter_and_can_stop_all_of_them():
    heard = []

    def on_step(config, step):
        heard.append((config.method, step.step))
        return step.step == 2 and config.method == "nlora"

    configs = [RunConfig(method=m, **{**QUICK, "steps": 50}) for m in ("lora", "nlora")]
    runs = race([*configs, RunConfig(method="full", **QUICK)], on_step=on_step)
    assert heard == [("lora", 1), ("nlora", 1), ("lora", 2), ("nlora", 2)]
    assert [(r.config.method, r.stopped, len(r.steps)) for r in runs] == [("lora", True, 2), ("nlora", True, 2)]
    assert all(r.weights and r.answers and math.isnan(r.accuracy) for r in runs)


def test_an_interrupt_keeps_every_partial_run_and_ends_the_race():
    def interrupt(config, step):
        if config.method == "slora" and step.step == 2:
            raise KeyboardInterrupt

    done = []
    configs = [RunConfig(method=m, **{**QUICK, "steps": 9}) for m in ("lora", "slora")]
    runs = race([*configs, RunConfig(method="full", **QUICK)], on_step=interrupt, on_run=done.append)
    assert [r.config.method for r in runs] == ["lora", "slora"]
    assert runs == done
    assert all(r.stopped and len(r.steps) == 2 for r in runs)


@pytest.mark.parametrize("together", [True, False])
def test_a_stop_between_two_steps_ends_the_race_and_keeps_it(together):
    heard = []
    configs = [RunConfig(method=m, **{**QUICK, "steps": 50}) for m in ("lora", "slora")]
    runs = race(configs, lambda c, s: heard.append(s.step), should_stop=lambda: len(heard) >= 4, together=together)
    assert [(r.stopped, len(r.steps)) for r in runs] == ([(True, 2)] * 2 if together else [(True, 4)])
    assert all(math.isnan(r.accuracy) and r.metrics["distance"] > 0 for r in runs)


@pytest.mark.parametrize(
    ("home", "stage"),
    [(races, "check_runs"), (setup, "build"), (measurement, "first_change")],
    ids=["check", "build", "first_change"],
)
@pytest.mark.parametrize("together", [True, False])
def test_a_stop_while_loading_ends_the_race_with_nothing(monkeypatch, home, stage, together):
    real, begun = getattr(home, stage), []
    monkeypatch.setattr(home, stage, lambda *args: begun.append(stage) or real(*args))
    configs = [RunConfig(method=m, **QUICK) for m in ("lora", "slora")]
    runs = race(configs, lambda *_: pytest.fail("a step was made"), should_stop=lambda: bool(begun), together=together)
    assert runs == []
    assert len(begun) == 1


@pytest.mark.parametrize("together", [True, False])
def test_a_stop_while_measuring_ends_the_race_without_accuracies(monkeypatch, together):
    real, begun, done = measurement.measure_result, [], []

    def finish(*args):
        begun.append(1)
        real(*args)

    monkeypatch.setattr(measurement, "measure_result", finish)
    configs = [RunConfig(method=m, **{**QUICK, "steps": 2}) for m in ("lora", "slora")]
    runs = race(
        [*configs, RunConfig(method="full", **QUICK)], None, done.append, lambda: bool(begun), together=together
    )
    assert runs == done
    assert [(r.config.method, r.stopped, len(r.steps)) for r in runs] == [("lora", True, 2), ("slora", True, 2)][
        : 2 if together else 1
    ]
    assert all(set(r.metrics) == {"step0_change", "distance"} and len(r.answers) == 3 and r.weights for r in runs)


@pytest.mark.parametrize("together", [True, False])
def test_another_error_ends_the_race_after_what_was_trained_is_handed_in(together):
    def broken(config, step):
        if step.step == 2:
            raise RuntimeError("size mismatch")

    done = []
    configs = [RunConfig(method=m, **QUICK) for m in ("lora", "slora")]
    with pytest.raises(RuntimeError, match="size mismatch"):
        race(configs, broken, done.append, together=together)
    wanted = [("lora", 2), ("slora", 2)] if together else [("lora", 2)]
    assert [(r.config.method, len(r.steps)) for r in done] == wanted
    assert {r.error for r in done} == {"RuntimeError: size mismatch"}


@pytest.mark.parametrize("together", [True, False])
def test_an_error_before_the_first_step_hands_in_nothing(monkeypatch, together):
    def broken(*args):
        raise RuntimeError("size mismatch")

    done = []
    monkeypatch.setattr(measurement, "first_change", broken)
    with pytest.raises(RuntimeError, match="size mismatch"):
        race([RunConfig(method=m, **QUICK) for m in ("lora", "slora")], on_run=done.append, together=together)
    assert done == []


@pytest.mark.parametrize(
    ("configs", "named"),
    [
        (RunConfig(), "not one RunConfig"), ({"method": ["lora"]}, "'method'"), (["lora"], "'lora'"), ("lora", "'l'"),
        (None, "configs=None"), ([RunConfig(), {"method": "lora"}], r"\{'method': 'lora'\}"),
    ],
)  # fmt: skip
def test_what_is_no_list_of_configs_is_named(configs, named):
    with pytest.raises(InputError, match=rf"{named}.*for example: race\(\[RunConfig"):
        race(configs)


def test_an_interrupt_while_measuring_keeps_what_is_trained(monkeypatch):
    real, done = measurement.measure_result, []

    def interrupt(*args):
        if done:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(measurement, "measure_result", interrupt)
    configs = [RunConfig(method=m, **{**QUICK, "steps": 2}) for m in ("lora", "slora", "nlora")]
    runs = race([*configs, RunConfig(method="full", **QUICK)], on_run=done.append)
    assert runs == done
    assert [(r.config.method, r.stopped, len(r.steps)) for r in runs] == [
        ("lora", False, 2), ("slora", True, 2), ("nlora", True, 2)
    ]  # fmt: skip
    assert runs[0].accuracy >= 0
    assert all(r.weights for r in runs)


def test_a_stop_between_two_runs_starts_no_more():
    done = []
    both = [RunConfig(**QUICK), RunConfig(method="full", **QUICK)]
    assert race(both, on_run=done.append, should_stop=lambda: bool(done)) == done
    assert [r.config.method for r in done] == ["lora"]
    assert not done[0].stopped


def test_watching_sees_each_adapter_with_its_gradients_before_every_update():
    seen = []

    def watch(config, updates, subject):
        layers = list(subject.layers())
        gradients = {f for layer in layers for f in layer.gradients}
        moved = sum(layer.change.norm() for layer in layers)
        seen.append((config.method, updates, len(layers), gradients, moved > 0))

    race([RunConfig(method=m, **{**QUICK, "steps": 2}) for m in ("lora", "inttune")], watch=watch)
    assert seen == [
        ("lora", 0, 28, {"A", "B"}, False), ("inttune", 0, 28, {"N"}, False),
        ("lora", 1, 28, {"A", "B"}, True), ("inttune", 1, 28, {"N"}, True),
        ("lora", 2, 28, set(), True), ("inttune", 2, 28, set(), True),
    ]  # fmt: skip


def test_too_little_memory_is_a_result_with_advice_and_the_rest_goes_on(monkeypatch):
    real = trainer.mean_losses
    calls = []

    def full(*args):
        calls.append(1)
        if len(calls) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(*args)

    monkeypatch.setattr(trainer, "mean_losses", full)
    configs = [RunConfig(method=m, **QUICK) for m in ("lora", "slora")]
    runs = race([*configs, RunConfig(method="full", **QUICK)])
    assert [bool(r.error) for r in runs] == [True, True, False]
    assert "together=False" in runs[0].error
    assert len(runs[0].steps) >= 1
    assert runs[2].accuracy >= 0
    assert nl.Run.from_json(runs[0].to_json()).error == runs[0].error


def test_everything_is_checked_before_anything_is_trained():
    done = []
    with pytest.raises(InputError, match=r"rank=129 is above 128.*q_proj"):
        race([RunConfig(**QUICK), RunConfig(rank=129, **QUICK)], on_run=done.append)
    assert done == []


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2], ids=["llama", "gpt2"])
def test_other_architectures_race_as_they_run(make, tmp_path):
    torch.manual_seed(3)
    _, tokenizer = nl.load_model()
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 256} if make is tiny_llama else {}
    model = make(**sizes)
    if make is tiny_gpt2:
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(**{**model.config.to_dict(), "vocab_size": len(tokenizer), "n_positions": 256,
                               "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0})  # fmt: skip
        model = GPT2LMHeadModel(config)
    model.config.eos_token_id, model.config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    asked = {**QUICK, "model": str(tmp_path), "rank": 4, "lr": 1e-3}
    runs = race([RunConfig(method=m, **asked) for m in ("lora", "slora", "nlora-balanced")])
    assert {r.together for r in runs} == {3}
    for run in runs:
        alike(run, fine_tune(run.config))


def test_a_model_with_dropout_of_its_own_races_one_by_one(tmp_path):
    _, tokenizer = nl.load_model()
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=256)
    ).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    runs = race([RunConfig(method=m, model=str(tmp_path), rank=2, **{**QUICK, "steps": 1}) for m in ("lora", "slora")])
    assert [r.together for r in runs] == [1, 1]


def test_the_race_is_where_the_lab_and_the_command_line_find_it():
    assert nl.race is races.race
    assert not hasattr(loop, "race")
    assert replace(RunConfig(), lr=1e-3).lr == 1e-3
