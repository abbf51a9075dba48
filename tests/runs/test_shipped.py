"""A random handful of the recorded runs, made again: the records are what this tree computes.

At rates up to the method's best, where training is not chaotic: two runs on different numbers of threads agree there
to rounding, and rounding is all that the tolerances leave room for.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from nlora_lab.methods.table import METHODS
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.run import Run
from nlora_lab.runs.shipped import recorded_runs, shipped_store
from nlora_lab.tasks.generated import TASKS
from nlora_lab.training.loop import fine_tune

STEPS = 20  # of 250, but with the rate as recorded
CHANCE = random.randrange(10**6)  # another handful each time; pytest shows it with a failure


def pick(number: int, wanted: Callable[[Run], bool]) -> list[Run]:
    """Of the runs at rates that no task calls too high for the method, at rank 8 or at the run's own rank and start."""
    runs, known = list(shipped_store()), recorded_runs(None)
    best = {m: [p.lr for t in TASKS if (p := known.best(t, m, 8)) is not None] for m in METHODS}

    def too_high(c: RunConfig) -> bool:
        own = known.best(c.task, c.method, c.rank, c.init)
        return own is None or c.lr > min([own.lr, *best[c.method]])

    calm = [r for r in runs if not r.error and wanted(r) and not too_high(r.config)]
    return random.Random(CHANCE).sample(sorted(calm, key=lambda r: r.config.command), number)


def test_a_handful_of_recorded_runs_takes_the_same_course_again():
    for recorded in pick(3, lambda run: True):
        again = fine_tune(recorded.config, lambda step: step.step >= STEPS)
        told = f"chance {CHANCE}: {recorded.config.command}"
        assert len(again.steps) == STEPS, told
        assert [s.loss for s in again.steps] == pytest.approx([s.loss for s in recorded.steps[:STEPS]], rel=2e-3), told
        assert again.trainable == recorded.trainable, told


def test_one_recorded_run_comes_to_the_same_end():
    (recorded,) = pick(1, lambda run: run.config.task == "entailment" and run.config.lr <= 1e-3)
    again = fine_tune(recorded.config)
    told = f"chance {CHANCE}: {recorded.config.command}"
    assert again.final_loss == pytest.approx(recorded.final_loss, rel=0.03), told
    assert again.metrics["validation_loss"] == pytest.approx(recorded.metrics["validation_loss"], rel=0.05), told
    assert again.accuracy == pytest.approx(recorded.accuracy, abs=0.03), told
