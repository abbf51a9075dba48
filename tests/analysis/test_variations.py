"""Runs that differ from the usual ones in named settings only."""

import math

import pytest

import nlora_lab as nl
from nlora_lab.runs.run import Run, Step


def made(seed=0, accuracy=0.5, loss=0.1, diverged=False, **settings):
    cfg = nl.RunConfig(**{"lr": 0.01, "seed": seed, "steps": 2, **settings})
    steps = tuple(Step(i, 1.0, cfg.rate_at(i - 1), 1.0) for i in (1, 2))
    return Run(cfg, steps, {"accuracy": accuracy, "validation_loss": loss}, 1, 1.0, 1, diverged=diverged)


def test_only_the_named_settings_may_change():
    runs = [
        made(accuracy=0.2), made(seed=1, accuracy=0.4), made(seed=2, accuracy=0.9, device="cpu", measure_every=1),
        made(lr_ratio=4.0, accuracy=0.7), made(lr_ratio=4.0, rank=4), made(replicate=1), made(warmup=0.2),
        made(method="slora"), made(task="entailment"), made(steps=1),
    ]  # fmt: skip
    table = nl.analysis.by_settings("lr_ratio", steps=2, runs=runs)
    assert table.to_dict("list") == {
        "lr_ratio": [1.0, 4.0], "rate": [0.01, 0.01], "rate_of_b": [0.01, 0.04], "seeds": [3, 1],
        "accuracy": [0.4, 0.7], "validation_loss": [0.1, 0.1],
    }  # fmt: skip
    assert list(nl.analysis.by_settings("warmup", "rank", steps=2, runs=runs)["warmup"]) == [0.03, 0.2]
    assert len(nl.analysis.by_settings(steps=2, runs=runs)) == 1
    assert list(nl.analysis.by_settings("lr_ratio", steps=2, seeds=range(2), runs=runs)["seeds"]) == [2, 1]


def test_a_run_of_a_model_that_is_gone_is_left_out_or_listed_by_its_name():
    gone = made()
    object.__setattr__(gone.config, "model", "elsewhere")
    assert len(nl.analysis.by_settings(steps=2, runs=[made(seed=1), gone])) == 1
    listed = nl.analysis.by_settings("model", steps=2, runs=[made(), gone])
    assert list(listed["model"]) == ["elsewhere", "embedded"]


def test_a_default_spelt_out_is_the_default_and_a_copied_run_is_one_seed():
    runs = [made(), made(alpha=8.0), made(seed=1, accuracy=1.0)]
    assert nl.analysis.by_settings("lr_ratio", steps=2, runs=runs)["seeds"].item() == 2


def test_a_diverged_run_is_infinite_and_a_failed_one_is_left_out():
    table = nl.analysis.by_settings(steps=2, runs=[made(diverged=True)])
    assert (table["validation_loss"].item(), table["accuracy"].item()) == (math.inf, 0.0)


def test_what_cannot_be_listed_is_said():
    with pytest.raises(nl.InputError, match="settings='warm_up'"):
        nl.analysis.by_settings("warm_up", runs=[made()])
    with pytest.raises(nl.InputError, match="settings='lr'"):
        nl.analysis.by_settings("lr", runs=[made()])
    with pytest.raises(nl.InputError, match="no run of method='nlora' on task='word-problems' has steps=2"):
        nl.analysis.by_settings(method="nlora", steps=2, runs=[made()])
