"""What is recorded inside a run is what is there: known starts, hand-made changes, and every method."""

from __future__ import annotations

import math
import threading
from dataclasses import replace

import pytest
import torch

from nlora_lab.core.errors import InputError
from nlora_lab.methods.table import METHODS
from nlora_lab.models.layers import linear_layers
from nlora_lab.models.loading import load_model
from nlora_lab.runs import resolution
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.snapshots import ALL_LAYERS, LayerState, Snapshot, series
from nlora_lab.tasks.registry import load_task
from nlora_lab.training import measurement
from nlora_lab.training import recorder as inside
from nlora_lab.training.layer_views import LayerView, WeightChange, relative_distance
from nlora_lab.training.loop import fine_tune
from nlora_lab.training.races import race
from nlora_lab.training.recorder import InsideRecorder, count_intruders
from nlora_lab.training.session import RunState

QUICK = {"steps": 3, "batch_size": 4, "task": "entailment"}
FACTORS = {m.name: m.trains.replace(", ", "") for m in METHODS.values()} | {"full": "W", "dora": "ABm"}


@pytest.fixture(scope="module", autouse=True)
def short():
    """Runs on a few items; what they can do is measured elsewhere, here only their distance."""
    task = load_task(QUICK["task"])
    task = replace(task, train=task.train.select(range(64)), validation=task.validation.select(range(16)))

    def distance(state, model, data, observed, should_stop):
        state.metrics["distance"] = relative_distance(observed.layers())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measurement, "measure_result", distance)
        patch.setattr(resolution, "load_task", lambda *args, **kwargs: task)
        yield


@pytest.fixture(scope="module")
def recorded():
    """Every method, three updates, looked at every two."""
    found = {}
    for name in METHODS:
        recorder = InsideRecorder(every=2)
        fine_tune(RunConfig(method=name, **QUICK), watch=recorder)
        found[name] = recorder
    return found


@pytest.mark.parametrize("name", list(METHODS))
def test_snapshots_are_taken_at_the_start_on_the_way_and_at_the_end(recorded, name):
    shots = recorded[name].snapshots
    assert [s.step for s in shots] == [0, 2, 3]
    names = list(linear_layers(load_model()[0]))
    assert all([state.layer for state in s.layers] == names for s in shots)
    assert len(names) == 28
    for state in (state for s in shots for state in s.layers):
        assert set(state.norms) == set(FACTORS[name])
        assert len(state.sigma) == 4
        assert list(state.sigma) == sorted(state.sigma, reverse=True)
        assert all(math.isfinite(v) for v in state.quantities().values())
        # the first values are part of the whole
        assert math.hypot(*state.sigma) <= state.distance * state.size * (1 + 1e-5) + 1e-12
    gradients = [{frozenset(state.gradients) for state in s.layers} for s in shots]
    assert gradients == [{frozenset(FACTORS[name])}] * 2 + [{frozenset()}]
    assert [{state.intruders is None for state in s.layers} for s in shots] == [{True}, {True}, {False}]
    assert 0 < recorded[name].seconds < 60


@pytest.mark.parametrize("name", list(METHODS))
def test_nothing_has_changed_at_the_start_and_something_has_after_it(recorded, name):
    first, later, last = recorded[name].snapshots
    assert all(state.distance > 0 for shot in (later, last) for state in shot.layers)
    for state in first.layers:
        if METHODS[name].step0 == "exact":
            assert (state.sigma, state.distance) == ((0.0,) * 4, 0.0)
        elif METHODS[name].step0 == "near":
            assert state.distance < 1e-4
        else:
            assert state.distance > 1e-2


def test_the_first_gradients_of_methods_that_start_from_zero(recorded):
    for name in ("lora", "rslora", "dora", "slora"):  # with B = 0 only B can learn at first
        for state in recorded[name].snapshots[0].layers:
            assert {f for f, value in state.gradients.items() if value == 0} == set(FACTORS[name]) - set("Bm")
            assert state.norms["B"] == 0
        assert all(state.gradients["A"] > 0 for state in recorded[name].snapshots[1].layers)
    for name in ("nlora", "pissa"):
        assert all(value > 0 for state in recorded[name].snapshots[0].layers for value in state.gradients.values())


def test_the_norms_at_the_start_are_those_of_rows_columns_and_the_pseudo_inverse(recorded):
    layers = linear_layers(load_model()[0])
    for state in recorded["nlora"].snapshots[0].layers:
        W = layers[state.layer].weight.detach()
        norm = torch.linalg.matrix_norm
        assert state.size == pytest.approx(float(norm(W)), rel=1e-5)
        assert state.norms["A"] == pytest.approx(float(norm(W[:8])), rel=1e-5)
        assert state.norms["B"] == pytest.approx(float(norm(W[:, :8])), rel=1e-5)
        assert state.norms["N"] == pytest.approx(float(norm(torch.linalg.pinv(W[:8, :8]))), rel=1e-3)
    for state in recorded["full"].snapshots[0].layers:
        assert state.norms["W"] == pytest.approx(state.size, rel=1e-6)


def test_the_values_are_those_of_the_merged_weight():
    recorder, kept = InsideRecorder(top=12), {}

    def watch(updates, subject):
        recorder(updates, subject)
        kept[updates] = {v.name: (v.weight.clone(), v.change.dense().clone()) for v in subject.layers()}

    fine_tune(RunConfig(method="nlora", **QUICK), watch=watch)
    for state in recorder.snapshots[-1].layers:
        W, change = kept[3][state.layer]
        true = torch.linalg.svdvals(change.double())
        assert state.sigma == pytest.approx(true[:12].tolist(), rel=1e-3, abs=1e-6)
        assert state.distance == pytest.approx(float(change.norm() / W.norm()), rel=1e-4)


def test_a_table_is_tidy_and_holds_every_number_once(recorded):
    table = recorded["nlora"].table()
    assert list(table.columns) == ["step", "layer", "quantity", "value"]
    assert not table.duplicated(["step", "layer", "quantity"]).any()
    always = {*(f"sigma_{k}" for k in range(1, 5)), "norm A", "norm N", "norm B", "distance"}
    gradients = {"gradient A", "gradient N", "gradient B"}
    told = {step: set(rows.quantity) for step, rows in table.groupby("step")}
    assert told == {0: always | gradients, 2: always | gradients, 3: always | {"intruders"}}
    assert len(table) == 28 * (11 + 11 + 9)
    assert table.value.dtype == float


def test_a_summary_is_of_all_layers_together(recorded):
    recorder = recorded["slora"]
    table, summary = recorder.table(), recorder.summary()
    assert list(summary.step) == [0, 2, 3]
    assert set(summary.columns) == {"step", *table.quantity}
    last = table[table.step == 3].pivot_table(index="layer", columns="quantity", values="value")
    row = summary[summary.step == 3].iloc[0]
    for quantity in ("norm A", "norm N", "norm B", "sigma_1"):
        assert row[quantity] == pytest.approx((last[quantity] ** 2).mean() ** 0.5)
    sizes = {state.layer: state.size for state in recorder.snapshots[-1].layers}
    moved = sum((last.distance[layer] * size) ** 2 for layer, size in sizes.items())
    assert row["distance"] == pytest.approx((moved / sum(size**2 for size in sizes.values())) ** 0.5)
    assert row["intruders"] == last.intruders.sum()
    assert summary.iloc[0].isna().sum() == 1  # the intruders
    assert series(recorder.snapshots, "gradient B")[0] == [0, 2]
    assert series(recorder.snapshots, "norm B", "model.layers.1.mlp.up_proj")[1][0] == 0
    assert series(recorder.snapshots, "norm B", "elsewhere") == ([], [])


def test_the_distance_is_the_one_of_the_record():
    recorder = InsideRecorder(every=100)
    run = fine_tune(RunConfig(method="dora", **QUICK), watch=recorder)
    assert recorder.snapshots[-1].together().distance == pytest.approx(run.metrics["distance"], rel=1e-4)


def test_watching_changes_nothing():
    config = RunConfig(method="nlora", **QUICK)
    assert fine_tune(config, watch=InsideRecorder(every=1)).steps == fine_tune(config).steps


def test_a_recorder_holds_the_last_run_it_watched():
    recorder = InsideRecorder(every=1, top=2)
    for steps in (3, 2):
        fine_tune(RunConfig(**{**QUICK, "steps": steps}), watch=recorder)
        assert [s.step for s in recorder.snapshots] == list(range(steps + 1))
    assert len(recorder.snapshots[0].layers[0].sigma) == 2


def test_a_stopped_and_a_diverged_run_keep_what_was_seen():
    recorder = InsideRecorder(every=2)
    fine_tune(RunConfig(**{**QUICK, "steps": 50}), on_step=lambda step: step.step == 3, watch=recorder)
    assert [s.step for s in recorder.snapshots] == [0, 2, 3]
    run = fine_tune(RunConfig(method="full", lr=1e30, **{**QUICK, "steps": 30}), watch=recorder)
    assert run.diverged
    assert recorder.snapshots[0].step == 0
    assert recorder.table().shape[1] == 4


def test_it_can_be_read_while_it_grows():
    recorder, seen, done = InsideRecorder(every=1), [], threading.Event()

    def read():
        while not done.is_set():
            seen.append((len(recorder.table()), len(recorder.summary())))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        fine_tune(RunConfig(**{**QUICK, "steps": 4}), watch=recorder)
    finally:
        done.set()
        reader.join(60)
    assert not reader.is_alive()
    assert seen == sorted(seen)
    assert len(recorder.summary()) == 5


class Handmade:
    """A subject of one layer."""

    def __init__(self, W, change, ended=False):
        self.ended = ended
        self.view = LayerView("layer", W, {"A": W[:1]}, {} if ended else {"A": W[:1]}, lambda: WeightChange(change))

    def layers(self):
        yield self.view


def matrix(m=30, n=20, rank=10):
    """W (m, n) with σ = 20, 19, …, 11, all well apart, so that their vectors mean something; and these, U and V."""
    generator = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(k, rank, generator=generator, dtype=torch.float64)).Q for k in (m, n))
    return (U * torch.arange(20, 20 - rank, -1)) @ V.T, U, V


def new_direction(U, V):
    """A unit rank-one matrix whose vectors are orthogonal to all of U and of V: it adds one singular value."""
    generator = torch.Generator().manual_seed(5)
    u, v = (torch.randn(X.shape[0], generator=generator, dtype=torch.float64) for X in (U, V))
    u, v = (x - X @ (X.T @ x) for x, X in ((u, U), (v, V)))
    return torch.outer(u / u.norm(), v / v.norm())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_large_change_in_a_new_direction_is_one_intruder_and_a_small_one_is_none(dtype):
    W, U, V = matrix()
    new = new_direction(U, V)
    count = lambda size, **options: count_intruders(W.to(dtype), (size * new).to(dtype), **options)  # noqa: E731
    assert [count(size) for size in (0.0, 1.0, 9.0)] == [0, 0, 0]  # it comes behind the ten that are examined
    assert [count(size) for size in (13.0, 60.0)] == [1, 1]
    assert count(9.0, first=11) == 1


def test_a_change_along_the_vectors_of_w_itself_brings_no_intruder():
    W, U, V = matrix()
    assert count_intruders(W, 100 * torch.outer(U[:, 7], V[:, 7])) == 0
    assert count_intruders(W, -2 * W) == 0  # the sign of a singular vector is arbitrary


def test_halfway_between_two_vectors_counts_by_the_threshold():
    W = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))
    # the new leading vector has the cosines √½, √½, 0, 0 with those of W
    change = 1e6 * torch.outer(torch.tensor([1.0, 1, 0, 0]), torch.tensor([0.0, 0, 0, 1]))
    assert count_intruders(W, change, first=1, alike=0.70) == 0
    assert count_intruders(W, change, first=1, alike=0.72) == 1


def test_vectors_of_no_singular_value_count_on_neither_side():
    W = torch.zeros(6, 5)
    W[0, 0] = 1.0
    change = torch.zeros(6, 5)
    change[3, 3] = 9.0
    assert count_intruders(W, torch.zeros(6, 5)) == 0  # one vector, and it is that of W
    assert count_intruders(W, change) == 1
    assert count_intruders(torch.zeros(6, 5), change) == 1
    assert count_intruders(W, -W) == 0  # nothing is left


def test_random_changes_bring_as_many_intruders_as_the_page_says():
    layers = [layer.weight.detach() for layer in linear_layers(load_model()[0]).values()]
    assert len(layers) == 28
    found = []
    for distance in (0.1, 0.3, 0.45):
        generator, total = torch.Generator().manual_seed(0), 0
        for W in layers:
            m, n = W.shape
            change = torch.randn(m, 8, generator=generator) @ torch.randn(8, n, generator=generator)
            total += count_intruders(W, change * (distance * W.norm() / change.norm()))
        found.append(total)
    assert found[0] == 0
    assert found[1:] == [pytest.approx(43, abs=15), pytest.approx(134, abs=30)]


def test_intruders_are_counted_at_the_end_and_in_small_matrices_unless_asked():
    W, U, V = matrix()
    change = 60 * new_direction(U, V)
    counts = []
    for limit in (1024, 20, 19, 0, None):
        recorder = InsideRecorder(intruder_limit=limit)
        recorder(0, Handmade(W, change))
        recorder(1, Handmade(W, change, ended=True))
        assert recorder.snapshots[0].layers[0].intruders is None
        counts.append(recorder.snapshots[1].layers[0].intruders)
    assert counts == [1, 1, None, None, 1]


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e300])
def test_weights_out_of_bounds_do_not_end_a_run(bad):
    W = torch.eye(4, dtype=torch.float64)
    recorder = InsideRecorder()
    recorder(0, Handmade(W, torch.full((4, 4), bad, dtype=torch.float64)))
    state = recorder.snapshots[0].layers[0]
    assert math.isnan(state.distance) or state.distance > 1e200 or math.isinf(state.distance)
    assert recorder.snapshots[0].together().layer == ALL_LAYERS
    assert len(recorder.table()) in (7, 8)


def test_layers_that_took_no_part_in_a_step_do_not_end_the_run():
    """A step without gradients does not mean the end. Only ``ended`` does."""
    subject = Handmade(torch.eye(4), torch.zeros(4, 4), ended=True)
    subject.ended = False
    recorder = InsideRecorder(every=5)
    for updates in range(7):
        recorder(updates, subject)
    assert [s.step for s in recorder.snapshots] == [0, 5]
    assert all(state.intruders is None for s in recorder.snapshots for state in s.layers)


@pytest.mark.parametrize("together", [True, False])
def test_the_end_is_told_by_the_loop(together):
    told = []
    configs = [RunConfig(method=m, **{**QUICK, "steps": 2}) for m in ("lora", "slora")]
    race(configs, watch=lambda config, updates, subject: told.append((updates, subject.ended)), together=together)
    assert sorted(told) == sorted([(0, False), (1, False), (2, True)] * 2)


def test_what_goes_wrong_while_looking_ends_the_recording_and_not_the_run(monkeypatch):
    def broken(*_, **__):
        raise torch.linalg.LinAlgError("it did not converge")

    recorder = InsideRecorder(every=1)
    with monkeypatch.context() as patch:
        patch.setattr(inside, "count_intruders", broken)
        run = fine_tune(RunConfig(**QUICK), watch=recorder)
    assert (run.ended, len(run.steps)) == ("", 3)
    assert recorder.failed == "after 3 updates: _LinAlgError: it did not converge"
    assert [s.step for s in recorder.snapshots] == [0, 1, 2]
    assert recorder.table().step.max() == 2
    fine_tune(RunConfig(**QUICK), watch=recorder)  # the next run is another one
    assert (recorder.failed, recorder.snapshots[-1].step) == ("", 3)


def test_factors_that_are_not_finite_are_recorded_as_such():
    nan = Handmade(torch.eye(4), torch.full((4, 2), math.nan))
    nan.view = replace(nan.view, make_change=lambda: WeightChange(torch.full((4, 2), math.nan), torch.ones(2, 4)))
    recorder = InsideRecorder()
    recorder(0, nan)
    assert recorder.failed == ""
    assert math.isnan(recorder.snapshots[0].layers[0].distance)


@pytest.mark.parametrize("together", [True, False])
def test_a_run_that_diverges_in_its_first_step_leaves_nothing_of_the_run_before(monkeypatch, together):
    recorders = {"lora": InsideRecorder(every=1), "slora": InsideRecorder(every=1)}
    watch = lambda config, *seen: recorders[config.method](*seen)  # noqa: E731
    configs = [RunConfig(method=m, **QUICK) for m in recorders]
    race(configs, watch=watch, together=together)
    assert recorders["lora"].snapshots[-1].step == 3
    with monkeypatch.context() as patch:
        patch.setattr(RunState, "add", lambda state, step: state.steps.append(step) or setattr(state, "diverged", True))
        assert all(run.diverged for run in race(configs, watch=watch, together=together))
    assert [[s.step for s in r.snapshots] for r in recorders.values()] == [[0], [0]]


def test_a_zero_weight_and_a_model_without_layers():
    recorder = InsideRecorder()
    recorder(0, Handmade(torch.zeros(3, 3), torch.zeros(3, 3)))
    assert recorder.snapshots[0].layers[0].distance == 0

    class Empty:
        ended = False

        def layers(self):
            return iter([])

    recorder(0, Empty())
    assert recorder.snapshots == ()
    assert recorder.summary().empty
    assert list(recorder.table().columns) == ["step", "layer", "quantity", "value"]
    assert Snapshot(0, ()).together() is None


def test_together_is_the_root_mean_square():
    one = LayerState("a", (3.0, 1.0), 10.0, 0.4, {"A": 1.0}, {"A": 2.0}, 2)
    two = LayerState("b", (4.0, 1.0), 20.0, 0.1, {"A": 7.0, "m": 5.0}, {}, None)
    both = Snapshot(7, (one, two)).together()
    assert both.sigma == pytest.approx((math.sqrt(12.5), 1.0))
    assert both.distance == pytest.approx(math.sqrt(16 + 4) / math.sqrt(500))
    assert both.norms == pytest.approx({"A": 5.0, "m": 5.0})
    assert both.gradients == {"A": 2.0}
    assert both.intruders == 2
    assert Snapshot(7, (one, two)).of("b") is two
    assert Snapshot(7, (one, two)).of("c") is None


@pytest.mark.parametrize("bad", [{"every": 0}, {"every": 1.5}, {"top": 0}, {"top": True}, {"intruder_limit": -1}])
def test_bad_settings_are_named(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        InsideRecorder(**bad)


def test_recorders_that_share_the_weights_vectors_count_the_same(monkeypatch):
    torch.manual_seed(0)
    W, change = torch.randn(12, 20), torch.randn(12, 20)
    before = inside._left_vectors(W)
    asked = []
    monkeypatch.setattr(inside, "_left_vectors", lambda M, real=inside._left_vectors: asked.append(1) or real(M))
    assert inside.count_intruders(W, change, before=before) == inside.count_intruders(W, change)
    assert len(asked) == 3  # W + change twice, W once
