"""The rule of the grid on the larger model: rates until the best one lies between two others, then fresh seeds."""

from statistics import pstdev

import pytest
from factories import recorded_run

from nlora_lab.analysis.comparison import compare
from nlora_lab.analysis.fresh_seeds import fresh_groups
from nlora_lab.analysis.selection import at_best
from nlora_lab.runs.config import SHARED_RATE
from nlora_lab.runs.shipped import shipped_store
from nlora_lab.runs.store import RunStore, run_key
from tools.larger_model import CHOOSING_SEEDS, COMPARED, FRESH_SEEDS, MOST_RATES, grid, next_rates
from tools.study import MIDDLE


@pytest.mark.parametrize("method", COMPARED)
def test_a_rate_is_added_beyond_the_edge_until_the_best_one_lies_inside(method):
    first = next_rates(method, {})
    assert first == [pytest.approx(MIDDLE[method] / 2, rel=0.01), MIDDLE[method]]
    low, high = first
    assert next_rates(method, {low: 1.0, high: 2.0}) == [pytest.approx(low / 2, rel=0.01)]
    assert next_rates(method, {low: 2.0, high: 1.0}) == [2 * high]
    assert next_rates(method, {low: 2.0, high: 1.0, 2 * high: float("inf")}) == []
    assert next_rates(method, {high * 2**k: -k for k in range(MOST_RATES)}) == []


def test_the_best_rate_gets_fresh_seeds_once_both_seeds_chose_it(tmp_path):
    store = RunStore(tmp_path)
    assert {cfg.seed for cfg in grid(store) if cfg.lr != SHARED_RATE} == set(CHOOSING_SEEDS)
    store.add(recorded_run(SHARED_RATE, 0, validation=0.1, model="larger", steps=250, device="cpu"))
    store.add(recorded_run(SHARED_RATE, 1, validation=0.1, model="larger", steps=250, device="cpu"))
    losses = {0.00352: 0.3, 0.00705: 0.2, 0.0141: 0.5}
    for rate, loss in losses.items():
        store.add(recorded_run(rate, 0, validation=loss, model="larger", steps=250, device="cpu"))
    of_lora = [cfg for cfg in grid(store) if cfg.method == "lora" and cfg.lr != SHARED_RATE]
    assert {cfg.seed for cfg in of_lora} == set(CHOOSING_SEEDS)  # one seed chooses nothing
    for rate, loss in losses.items():
        store.add(recorded_run(rate, 1, validation=loss, model="larger", steps=250, device="cpu"))
    of_lora = [cfg for cfg in grid(store) if cfg.method == "lora" and cfg.lr != SHARED_RATE]
    assert {cfg.lr for cfg in of_lora} == set(losses)  # the shared rate has the lowest loss, and is not on the ladder
    assert {cfg.seed for cfg in of_lora if cfg.lr == 0.00705} == {*CHOOSING_SEEDS, *FRESH_SEEDS}
    assert {cfg.model for cfg in grid(store)} == {"larger"}


def test_no_rate_is_chosen_on_a_fresh_seed():
    assert not set(CHOOSING_SEEDS) & set(FRESH_SEEDS)


def test_the_grid_is_recorded():
    store = shipped_store()
    assert {run_key(cfg) for cfg in grid(store)} <= store.keys()


def test_what_the_readme_says_of_the_larger_model():
    groups = fresh_groups(COMPARED, model="larger")
    for method, runs in groups.items():
        assert runs[0].config.lr == pytest.approx(MIDDLE[method] / 2, rel=0.01)
    ends = compare(groups, metric="log_test_loss")
    verdicts = {name: verdict.split()[0] for name, verdict in ends["verdict"].items()}
    assert {name for name, verdict in verdicts.items() if verdict == "worse"} == {"nlora", "nlora-balanced"}
    assert {name for name, verdict in verdicts.items() if verdict == "not"} == {"slora", "nlora-released", "pissa"}
    assert ends.loc["lora", "median"] < ends.loc["nlora-balanced", "median"] < ends.loc["nlora", "median"]


def test_runs_on_the_larger_model_depend_less_on_the_seed():
    small, large = at_best(methods=COMPARED), fresh_groups(COMPARED, model="larger")
    spread = {name: [pstdev(run.accuracy for run in groups[name]) for groups in (small, large)] for name in COMPARED}
    assert all(on_larger < on_embedded for on_embedded, on_larger in spread.values())
