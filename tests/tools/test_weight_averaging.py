"""Averaged weights: the sums are those of the last steps, and the last weights alone give the usual run."""

from __future__ import annotations

import csv

import pytest
from factories import few_rows

import nlora_lab as nl
from nlora_lab.analysis.variations import averaged_weights
from tools import weight_averaging
from tools.study import config


@pytest.fixture
def four_steps(monkeypatch):
    monkeypatch.setattr(weight_averaging, "STEPS", 4)
    cfg = config("lora", 0.01, 0, 4, measure_every=None)
    monkeypatch.setattr(weight_averaging, "configs", lambda: [cfg])
    with few_rows(64, 8, 8):
        yield cfg


def test_the_last_weights_give_the_usual_run_and_the_means_are_of_the_last_steps(four_steps, monkeypatch):
    seen = []
    add = weight_averaging.Averages.on_update

    def watched(self, session, step, ends):
        seen.append(weight_averaging.trained(session))
        add(self, session, step, ends)
        sums.update(self.sums)

    sums = {}
    monkeypatch.setattr(weight_averaging.Averages, "on_update", watched)
    rows = {row["share"]: row for row in weight_averaging.rows_of(four_steps)}
    usual = nl.fine_tune(four_steps)
    assert rows[0.0]["test_loss"] == pytest.approx(usual.metrics["test_loss"], rel=1e-6)
    assert rows[0.5]["test_loss"] != rows[0.0]["test_loss"]
    assert [sums[share][1] for share in (0.0, 0.25, 0.5)] == [1, 1, 2]
    for name, total in sums[0.5][0].items():
        assert total.sub(seen[2][name].double() + seen[3][name].double()).abs().max() < 1e-12


def test_a_run_that_was_made_is_not_made_again(four_steps, monkeypatch, tmp_path):
    monkeypatch.setattr(weight_averaging, "FILE", tmp_path / "averaging.csv")
    weight_averaging.main()
    text = (tmp_path / "averaging.csv").read_text()
    weight_averaging.main()
    assert (tmp_path / "averaging.csv").read_text() == text
    assert [row["share"] for row in csv.DictReader(text.splitlines())] == ["0.0", "0.25", "0.5"]


def test_the_recorded_rows_are_those_of_the_plan():
    rows = averaged_weights()
    planned = {(c.method, c.lr, c.seed) for c in weight_averaging.configs()}
    assert set(rows[["method", "rate", "seed"]].itertuples(index=False, name=None)) == planned
    assert len(rows) == len(planned) * len(weight_averaging.SHARES)
