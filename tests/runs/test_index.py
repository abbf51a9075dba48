"""The index of recorded runs, and the runs that ship with the package."""

from __future__ import annotations

import math
import re

import pytest
from factories import recorded_run as run
from factories import some_run

from nlora_lab.core.errors import InputError
from nlora_lab.methods.table import METHODS
from nlora_lab.models.names import SHIPPED
from nlora_lab.runs.config import SHARED_RATE
from nlora_lab.runs.index import RecordedRuns
from nlora_lab.runs.rate_points import Spread, running_mean
from nlora_lab.runs.run import Step
from nlora_lab.runs.shipped import base_answers, recorded_runs, shipped_store
from nlora_lab.runs.store import RunStore, run_key
from nlora_lab.tasks.generated import TASKS, first_items
from tools.record_grid import (
    MAIN_METHODS,
    RATE_LADDER,
    best_rate_configs,
    complete_grid,
    fixed_grid,
    grid_parts,
    other_rank_configs,
    recorded_rates,
)


def test_a_point_is_the_median_and_the_range_over_seeds():
    point = RecordedRuns(run(seed=s, loss=v) for s, v in enumerate([0.1, 0.4, 0.2])).at(
        "word-problems", "lora", 8, 1e-3
    )
    assert (point.loss.low, point.loss.middle, point.loss.high) == pytest.approx((0.1, 0.2, 0.4))
    assert len(point.runs) == 3


def test_a_diverged_seed_counts_as_infinite_loss_and_no_right_answer():
    runs = [run(seed=0, loss=0.1), run(seed=1, diverged=True), run(seed=2, diverged=True)]
    (point,) = RecordedRuns(runs).valley("word-problems", "lora", 8)
    assert math.isinf(point.loss.middle)
    assert point.accuracy == Spread(0.0, 0.0, 0.5)
    assert point.diverged == 2
    assert RecordedRuns(runs).best("word-problems", "lora", 8) is None


def test_the_slider_stands_for_the_nearest_recorded_rate_and_for_none_far_away():
    known = RecordedRuns(run(lr) for lr in (1e-3, 2e-3, 5e-3))
    points = {lr: known.at("word-problems", "lora", 8, lr) for lr in (5e-4, 7e-4, 1.5e-3, 3e-3, 8e-3, 9e-3, 1e-1)}
    assert {lr: p and p.lr for lr, p in points.items()} == {
        5e-4: None, 7e-4: 1e-3, 1.5e-3: 2e-3, 3e-3: 2e-3, 8e-3: 5e-3, 9e-3: None, 1e-1: None,
    }  # fmt: skip


def test_the_rank_stands_for_the_nearest_recorded_one():
    known = RecordedRuns(run(rank=r) for r in (1, 2, 4, 8, 16))
    nearest = [known.nearest_rank("word-problems", "lora", r) for r in (1, 2, 3, 5, 6, 7, 12, 23, 25, 128)]
    assert nearest == [1, 2, 4, 4, 8, 8, 16, 16, None, None]
    full = RecordedRuns([run(method="full")])
    assert full.nearest_rank("word-problems", "full", 128) == 8


def test_inits_do_not_mix_and_the_default_needs_no_name():
    known = RecordedRuns([run(method="slora"), run(method="slora", init="identity", loss=0.3)])
    assert known.at("word-problems", "slora", 8, 1e-3, "kaiming").loss.middle == 1.0
    assert known.at("word-problems", "slora", 8, 1e-3, "identity").loss.middle == pytest.approx(0.3)
    assert known.valley("word-problems", "slora", 8, "orthogonal") == []
    assert known.valley("entailment", "slora", 8) == []


def test_the_best_rate_is_chosen_by_validation_loss_not_by_what_is_shown():
    runs = [run(1e-3, loss=0.1, validation=0.9), run(2e-3, loss=0.5, validation=0.2, accuracy=0.1)]
    assert RecordedRuns(runs).best("word-problems", "lora", 8).lr == 2e-3


def test_a_curve_is_thinned_and_ends_where_the_runs_do():
    known = RecordedRuns([some_run(steps=tuple(Step(i, 1.0 / i, 1e-3, 1.0) for i in range(1, 1001)))])
    point = known.at("word-problems", "slora", 8, 2e-4, "identity")
    curve = known.curve(point)
    assert known.curve(point) is curve
    assert len(curve.steps) <= 130
    assert curve.steps[0] == 1
    assert curve.steps[-1] == 1000
    assert curve.middle == curve.low == curve.high


def test_the_running_mean_looks_back_only():
    assert running_mean([4.0, 2.0, 0.0, 0.0], window=2) == [4.0, 3.0, 1.0, 0.0]
    assert running_mean([]) == []


def test_the_grid_has_every_task_and_method_at_its_rates():
    grid = fixed_grid()
    assert len(set(grid)) == len(grid)
    for task in TASKS:
        for method in METHODS:
            tried = {c.lr for c in grid if (c.task, c.method, c.rank, c.init, c.seed) == (task, method, 8, None, 0)}
            assert tried == set(recorded_rates(method)) >= {SHARED_RATE}
            assert len(tried) >= 7
            assert tried <= set(RATE_LADDER)
    assert {c.seed for c in grid if (c.rank, c.init) == (8, None)} == {0, 1, 2}


def test_finalists_are_five_seeds_at_the_best_rate_and_three_beside_it():
    runs = [run(lr, validation=loss) for lr, loss in ((5e-3, 0.5), (1e-2, 0.2), (2e-2, 0.3))]
    configs = [c for c in best_rate_configs(RecordedRuns(runs)) if c.lr != SHARED_RATE]
    assert {(c.lr, c.seed) for c in configs} == {
        *((1e-2, seed) for seed in range(5)), *((lr, seed) for lr in (5e-3, 2e-2) for seed in range(3)),
    }  # fmt: skip
    assert {(c.task, c.method, c.rank, c.steps) for c in configs} == {("word-problems", "lora", 8, 250)}


def test_a_start_of_n_and_rank_one_have_five_seeds_at_rates_of_their_own():
    start = {"method": "slora", "init": "identity"}
    runs = [run(lr, validation=loss, **start) for lr, loss in ((5e-3, 0.5), (2e-2, 0.1))]
    runs += [run(lr, validation=loss, rank=1) for lr, loss in ((2e-2, 0.4), (5e-2, 0.2), (1e-1, 0.3))]
    configs = [c for c in best_rate_configs(RecordedRuns(runs)) if c.lr != SHARED_RATE]
    assert {(c.method, c.rank, c.init, c.lr, c.seed) for c in configs} == {
        *(("slora", 8, "identity", 2e-2, seed) for seed in range(5)),
        ("slora", 8, "identity", 5e-2, 0),  # 2e-2 is the last one tried
        *(("lora", 1, None, 5e-2, seed) for seed in range(5)),
    }


def test_the_other_methods_are_tried_at_every_rank_near_their_best_rate():
    known = RecordedRuns(run(1e-2, validation=0.1, method=name) for name in METHODS)
    configs = other_rank_configs(known)
    assert {c.method for c in configs} == set(METHODS) - {*MAIN_METHODS, "full"}
    of_one = {(c.rank, c.lr, c.seed) for c in configs if c.method == "dora"}
    assert of_one == {(1, 2e-2, 0), (2, 2e-2, 0), (4, 1e-2, 0), (16, 5e-3, 0), (32, 5e-3, 0)}
    assert other_rank_configs(RecordedRuns([])) == []
    odd = [run(rate, validation=0.1, method="dora") for rate in (4e-3, 1e2)]  # not of the grid
    assert {c.lr for c in other_rank_configs(RecordedRuns(odd[:1]))} == {2e-3, 5e-3, 1e-2}
    assert {c.lr for c in other_rank_configs(RecordedRuns(odd[1:]))} == {2.0, 5.0}


def test_the_complete_grid_is_recorded():
    store = shipped_store()
    configs = complete_grid(store)
    assert len({run_key(c) for c in configs}) == len(configs)
    finished = store.keys()
    missing = [c.command for c in configs if run_key(c) not in finished]
    assert not missing


def test_the_parts_follow_the_finalists_until_they_stand_still(tmp_path):
    store = RunStore(tmp_path)
    parts = grid_parts(store)
    assert len(next(parts)) < len(fixed_grid())

    def of_lora():
        return [c for c in next(parts) if (c.task, c.method) == ("word-problems", "lora") and c.lr != SHARED_RATE]

    for lr, seed, loss in ((5e-3, 0, 0.5), (1e-2, 0, 0.2), (2e-2, 0, 0.3)):
        store.add(run(lr, seed, validation=loss, device="cpu"))
    configs = of_lora()
    assert {c.lr for c in configs} == {5e-3, 1e-2, 2e-2}
    for cfg in configs:  # with more seeds, 2e-2 is the best rate
        store.add(run(cfg.lr, cfg.seed, validation={1e-2: 0.9, 2e-2: 0.3, 5e-3: 0.5}[cfg.lr], device="cpu"))
    assert {(c.lr, c.seed) for c in of_lora()} == {(2e-2, 3), (2e-2, 4), *((5e-2, s) for s in range(3))}


def test_the_shipped_runs_hold_a_valley_of_every_main_method():
    known = recorded_runs()
    assert len(known) > 100
    for task in TASKS:
        for method in MAIN_METHODS:
            losses = [p.loss.middle for p in known.valley(task, method, 8)]
            assert len(losses) >= 7
            lowest = losses.index(min(losses))
            assert 0 < lowest < len(losses) - 1, (task, method)  # the grid holds the bottom of the valley, not a slope
        assert set(recorded_rates("lora")) <= {p.lr for p in known.valley(task, "lora", 8)}


def test_the_shipped_runs_name_their_origin():
    for shipped in shipped_store():
        assert re.fullmatch(r"embedded|larger|renumbered-[1-5]", shipped.config.model)
        assert shipped.config.steps in (125, 250, 500, 1000)
        assert shipped.config.batch_size in (8, 16, 64)
        assert shipped.device == "CPU, 1 thread, float32"
        assert shipped.versions["torch"]
        assert len(shipped.answers) == (0 if shipped.diverged else 3)
        assert shipped.config.command.startswith("nlora-lab run --method ")


@pytest.mark.parametrize("model", SHIPPED)
@pytest.mark.parametrize("task", list(TASKS))
def test_what_was_recorded_before_tuning_is_what_the_model_says(task, model):
    from nlora_lab.evaluation.scoring import answers
    from nlora_lab.models.loading import load_model
    from nlora_lab.tasks.registry import load_task

    known = base_answers(task, model)
    marked = answers(*load_model(model), load_task(task), "test", len(known.answers))
    assert tuple(a.text for a in marked) == known.answers
    assert [a.prompt for a in marked] == [item["prompt"] for item in first_items(task, 3)]


def test_tables_by_rank_and_by_init():
    runs = [run(lr, rank=r, loss=lr * r, accuracy=1 / r) for r in (1, 4) for lr in (1e-3, 2e-3)]
    runs += [run(1e-3, method="slora", init=i, loss=v) for i, v in ((None, 0.5), ("identity", 0.25))]
    known = RecordedRuns(runs)
    table = known.by_rank("word-problems", ["lora", "nlora"])
    assert list(table.index) == [1, 4]
    assert list(table["lora"]) == [1.0, 0.25]
    assert table["nlora"].isna().all()
    assert list(known.by_rank("word-problems", ["lora"], "lr")["lora"]) == [1e-3, 1e-3]
    inits = known.by_init("word-problems", "slora", 8)
    assert inits.loc["kaiming", 1e-3] == pytest.approx(0.5)
    assert inits.loc["identity", 1e-3] == pytest.approx(0.25)
    with pytest.raises(InputError, match="what='speed'"):
        known.by_rank("word-problems", ["lora"], "speed")
    for ask in (
        lambda: known.by_rank("word-problems", ["lora", "lorra"]),
        lambda: known.by_init("entailment", "lorra", 8),
    ):
        with pytest.raises(InputError, match="method='lorra' is not known; choose one of: full, lora"):
            ask()
    assert list(known.by_rank("word-problems", "lora")["lora"]) == [1.0, 0.25]


def test_a_table_over_ranks_and_rates_keeps_their_order():
    runs = [run(lr, rank=r, loss=r * lr) for r, lr in ((8, 1e-2), (1, 1e-3), (8, 1e-3))]
    frame = RecordedRuns(runs).by_rank_and_rate("word-problems", "lora")
    assert list(frame.index) == [1, 8]
    assert list(frame.columns) == [1e-3, 1e-2]
    assert frame.loc[8, 1e-2] == pytest.approx(0.08)
    assert math.isnan(frame.loc[1, 1e-2])


def test_runs_of_another_number_of_steps_have_an_index_of_their_own():
    short = [run(lr, s, loss=0.5, validation=0.5) for lr in (1e-3, 2e-3) for s in range(3)]
    long = [run(1e-3, 0, steps=500, loss=0.25, validation=0.25), run(1e-3, 0, steps=500, method="slora")]
    known = RecordedRuns([*short, *long])
    assert known.budgets == (250, 500)
    assert (len(known), known.elsewhere, known.left_out) == (6, 2, 0)
    assert known.best("word-problems", "lora", 8).loss.middle == 0.5
    assert known.at_steps(500).best("word-problems", "lora", 8).loss.middle == 0.25
    assert known.at_steps(500).at_steps(250).best("word-problems", "lora", 8).loss.middle == 0.5
    assert len(known.at_steps(1000)) == 0


def test_a_method_without_runs_of_some_steps_shows_those_of_most_runs():
    known = RecordedRuns([*(run(seed=s) for s in range(3)), run(steps=500), run(steps=500, method="slora")])
    found = {n: known.with_steps("word-problems", "lora", n) for n in (1, 250, 400, 500)}
    assert {n: len(index.valley("word-problems", "lora", 8)[0].runs) for n, index in found.items()} == {
        1: 3, 250: 3, 400: 3, 500: 1,
    }  # fmt: skip
    assert known.with_steps("word-problems", "slora", 500).best("word-problems", "slora", 8) is not None
    assert known.with_steps("word-problems", "dora", 500) is known
    assert known.numbers("word-problems", "lora", 8, 1e-3)["steps"] == 250
    assert (known.usual_steps, known.at_steps(500).usual_steps) == ({"word-problems": 250}, {"word-problems": 500})


def test_repetitions_of_a_run_are_not_further_runs():
    known = RecordedRuns([run(loss=0.5), *(run(loss=0.1, replicate=k) for k in (1, 2, 3))])
    (point,) = known.valley("word-problems", "lora", 8)
    assert (point.loss.middle, len(point.runs), known.left_out) == (0.5, 1, 0)
