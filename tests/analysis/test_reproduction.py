"""Making records again: what counts as the same is measured from repetitions, by the kind of the rate."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import stdev

import pytest
from factories import recorded_run as run

from nlora_lab.analysis import reproduction
from nlora_lab.analysis.reproduction import ABOVE, AT, BELOW, rate_kind, repetition_noise, reproduce
from nlora_lab.analysis.selection import recorded_index
from nlora_lab.cli import main as cli
from nlora_lab.core.errors import InputError
from nlora_lab.runs.store import RunStore

RATES = {1e-3: 0.9, 1e-2: 0.1, 1e-1: 0.5}  # validation losses: the best rate is in the middle


@pytest.fixture
def store(tmp_path):
    """Three rates, two seeds, and four repetitions of each seed at the best rate and below."""
    records = RunStore(tmp_path / "records")
    for lr, validation in RATES.items():
        for seed in (0, 1):
            records.add(run(lr, seed, validation=validation, accuracy=0.5, loss=0.3))
    for lr, spread in ((1e-3, 0.0), (1e-2, 0.1)):
        for seed in (0, 1):
            for k in (1, 2, 3, 4):
                shift = spread * (-1) ** k
                records.add(
                    run(lr, seed, validation=RATES[lr], accuracy=0.5 + shift, loss=0.3 + shift / 10, replicate=k)
                )
    return records


def test_a_rate_is_below_at_or_above_the_best_one(store):
    index = recorded_index(store)
    assert [rate_kind(index, run(lr)) for lr in (1e-3, 1e-2, 1.1e-2, 1e-1)] == [BELOW, AT, AT, ABOVE]
    assert rate_kind(index, run(1e-2, steps=500)) is None
    assert rate_kind(index, run(1e-2, method="slora")) is None


def test_noise_is_pooled_over_the_repetitions_of_each_kind(store):
    noise = repetition_noise(store)
    assert list(noise.index) == [BELOW, AT]  # nothing was repeated above
    assert noise.loc[BELOW, "accuracy"] == 0
    # five values of each seed: the record in the middle, and four repetitions 0.1 away
    assert noise.loc[AT, "accuracy"] == pytest.approx(math.sqrt(4 * 0.1**2 / 4))
    logs = [math.log(loss) for loss in (0.3, 0.29, 0.31, 0.29, 0.31)]
    assert noise.loc[AT, "log_loss"] == pytest.approx(stdev(logs))
    assert noise.loc[AT, ["groups", "repetitions"]].tolist() == [2, 8]


def repeat(change):
    """A sweep that makes every run with another accuracy."""

    def sweep(configs, store, **_):
        for config in configs:
            store.add(run(config.lr, config.seed, accuracy=0.5 + change, loss=0.3, validation=RATES[config.lr]))

    return sweep


@pytest.mark.parametrize(("change", "at_best", "below"), [(0.0, True, True), (0.3, True, False), (0.45, False, False)])
def test_a_repetition_is_inside_if_it_scatters_no_more_than_others_of_its_kind(
    store, monkeypatch, change, at_best, below
):
    monkeypatch.setattr(reproduction, "sweep", repeat(change))
    table = reproduce(6, store=store).set_index("kind")
    assert sorted(table["run"]) == sorted(set(table["run"]))
    assert set(table.loc[AT, "inside"]) == {at_best}
    assert set(table.loc[BELOW, "inside"]) == {below}
    assert table.loc[ABOVE, "inside"].tolist() == [None, None]
    assert table.loc[AT, "accuracy_range"].iloc[0] == pytest.approx(3 * math.sqrt(2) * 0.1)
    assert table.loc[BELOW, "accuracy_range"].iloc[0] == 1 / 200
    assert (table["accuracy_again"] == 0.5 + change).all()


def test_the_draw_is_that_of_its_seed_and_the_command_says_what_is_outside(store, monkeypatch, capsys):
    monkeypatch.setattr(reproduction, "sweep", repeat(0.45))
    assert reproduce(3, store=store, seed=1)["run"].tolist() == reproduce(3, store=store, seed=1)["run"].tolist()
    assert cli.main(["reproduce", "6", "--store", str(store.path)]) == 1
    assert "4 of 6 runs are outside" in capsys.readouterr().out
    monkeypatch.setattr(reproduction, "sweep", repeat(0.0))
    assert cli.main(["reproduce", "6", "--store", str(store.path), "--json"]) == 0


def test_a_run_that_diverges_again_is_the_same(store, monkeypatch):
    records = RunStore(store.path)
    for seed in (2, 3):
        records.add(run(1e-1, seed, diverged=True))

    def sweep(configs, made, **_):
        for config in configs:
            lost = run(config.lr, config.seed, diverged=config.seed > 1, accuracy=0.5, loss=0.3)
            made.add(replace(lost, config=config))

    monkeypatch.setattr(reproduction, "sweep", sweep)
    table = reproduce(8, store=records)
    assert table["accuracy"].tolist() == table["accuracy_again"].tolist()


def test_a_wrong_number_and_an_empty_store_are_named(store, tmp_path):
    with pytest.raises(InputError, match="count=7 must be a whole number from 1 to the 6 runs recorded"):
        reproduce(7, store=store)
    with pytest.raises(InputError, match="no run of the embedded model"):
        reproduce(1, store=RunStore(tmp_path / "empty"))
