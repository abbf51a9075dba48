"""The figures in the README are those of the records, which are those of this tree."""

from __future__ import annotations

import importlib.util

import pytest
from support import ROOT

from nlora_lab.training import fine_tune

SPEC = importlib.util.spec_from_file_location("first_table", ROOT / "benchmarks" / "first_table.py")
first_table = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(first_table)


@pytest.mark.parametrize("task", first_table.TASKS)
def test_the_readme_shows_the_recorded_table(task):
    assert first_table.table(task) in (ROOT / "README.md").read_text()


def test_the_rates_in_the_readme_are_the_ones_chosen_by_validation():
    own = {m: first_table.own_rate("word-problems", m) for m in first_table.RATES}
    text = ",".join(f"{m}={rate:.1e}".replace(".0e", "e").replace("e-0", "e-") for m, rate in own.items())
    assert f"--lr {text}" in (ROOT / "README.md").read_text()


def test_well_tuned_methods_learn_both_tasks_in_400_steps():
    runs = [first_table.load(cfg) for cfg in first_table.competence()]
    assert len(runs) == 4
    assert all(run.accuracy > 0.6 for run in runs)
    assert [f"{100 * r.accuracy:.1f}" for r in runs[:2]] == ["99.0", "99.0"]
    assert "both reach 99.0 %" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("method", list(first_table.RATES))
def test_a_recorded_run_is_found_again(method):
    """The first steps of a recorded run, at a rate where training is not chaotic."""
    recorded = first_table.load(first_table.config("word-problems", method, first_table.SHARED, 0))
    again = fine_tune(recorded.config, on_step=lambda step: step.step == 20)
    for a, b in zip(again.steps, recorded.steps, strict=False):
        assert a.loss == pytest.approx(b.loss, rel=5e-3)
        assert a.lr == b.lr
    assert len(again.steps) == 20
