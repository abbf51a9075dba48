"""Comparisons: best rates by validation, independent samples, and verdicts that say only what the seeds allow."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest
from factories import falling, some_run
from factories import recorded_run as run
from scipy import stats

from nlora_lab.analysis.comparison import METRICS, PLANNED, compare, costs, learning, pareto, seed_pairing, steps_to
from nlora_lab.analysis.fitted_valleys import valleys
from nlora_lab.analysis.fresh_seeds import fresh_groups
from nlora_lab.analysis.selection import at_best, at_each_rate, at_rate, best_rates, describe_left_out, recorded_index
from nlora_lab.core.errors import InputError
from nlora_lab.methods.table import METHODS
from nlora_lab.runs.index import RecordedRuns
from nlora_lab.runs.run import HeldOut
from nlora_lab.runs.store import RunStore

LORA = [0.40, 0.70, 0.95, 0.60, 0.80]


def group(accuracies, method="slora", lr=1e-2, **settings):
    return [run(lr, seed, accuracy=a, method=method, **settings) for seed, a in enumerate(accuracies)]


@pytest.mark.parametrize("ask", [at_best, best_rates, valleys, fresh_groups])
def test_an_index_of_another_model_is_no_answer(ask):
    """An index holds the runs of one model. It was taken for those of any model that was asked for."""
    index = recorded_index(group(LORA, "lora"))
    with pytest.raises(InputError, match=r"model='larger': the index holds runs of 'embedded'; give the store instead"):
        ask(runs=index, model="larger")
    assert at_best(index, methods="lora")


def test_a_declared_comparison_takes_its_own_steps_and_seeds():
    runs = [
        run(lr, seed, validation=lr, model="larger", steps=steps, method=method)
        for method in ("lora", "slora")
        for steps in (250, 500)
        for lr in (1e-3, 1e-2)
        for seed in range(8)
    ]
    groups = fresh_groups(["lora", "slora"], runs, model="larger")
    assert {(r.config.seed, r.config.steps, r.config.lr) for of in groups.values() for r in of} == {
        (seed, 250, 1e-3) for seed in (2, 3, 4, 5, 6)
    }
    with pytest.raises(InputError, match="model='huge' is not known"):
        fresh_groups(runs=runs, model="huge")


def test_the_rate_is_chosen_by_validation_and_an_edge_is_named():
    runs = [run(lr, validation=v, accuracy=a) for lr, v, a in ((1e-3, 0.9, 1.0), (1e-2, 0.2, 0.3), (2e-2, 0.5, 0.9))]
    runs += [run(lr, validation=v, method="nlora") for lr, v in ((1e-4, 0.5), (2e-4, 0.4))]
    rates = best_rates(RecordedRuns(runs))
    assert list(rates.index) == ["lora", "nlora"]
    assert rates.loc["lora", ["rate", "accuracy", "edge", "tried"]].tolist() == [1e-2, 0.3, "", 3]
    assert rates.loc["nlora", ["rate", "edge"]].tolist() == [2e-4, "high"]
    assert {name: r[0].config.lr for name, r in at_best(RecordedRuns(runs)).items()} == {"lora": 1e-2, "nlora": 2e-4}
    assert {name: len(r) for name, r in at_rate(2e-4, RecordedRuns(runs)).items()} == {"nlora": 1}


def test_methods_without_runs_are_left_out_and_none_at_all_is_an_error(tmp_path):
    RunStore(tmp_path).add(run())
    assert list(at_best(tmp_path, methods=["lora", "slora"])) == ["lora"]
    with pytest.raises(InputError, match="no run of slora on word-problems at rank 8"):
        at_best(tmp_path, methods=["slora"])
    with pytest.raises(InputError, match="lorra"):
        at_best(tmp_path, methods=["lorra"])
    with pytest.raises(InputError, match=r"at the rate 0\.1"):
        at_rate(0.1, tmp_path)
    with pytest.raises(InputError, match="task='gsm'"):
        best_rates(tmp_path, "gsm")


def test_groups_are_compared_as_independent_samples():
    ours = group([0.96, 0.99, 0.98, 0.97, 1.0])
    rows = compare({"lora": group(LORA, "lora"), "mine": [*ours, run(1e-2, 9, accuracy=1.0, method="slora")]})
    theirs = stats.ttest_ind([r.accuracy for r in ours] + [1.0], LORA, equal_var=False)
    mine = rows.loc["mine"]
    assert mine["p"] == pytest.approx(theirs.pvalue)
    assert (mine["difference_low"], mine["difference_high"]) == pytest.approx(theirs.confidence_interval(0.95))
    assert (mine["against"], mine["seeds"], mine["tests"]) == (5, 6, 1)
    assert mine["verdict"].startswith("better than LoRA: +29.3 points (+")
    assert mine["verdict"].endswith("6 against 5 seeds)")
    assert rows.loc["lora", "verdict"] == "the baseline"


def test_scatter_is_not_called_a_difference_and_what_could_be_seen_is_said():
    rows = compare({"lora": group(LORA, "lora"), "mine": group([0.9, 0.5, 0.9, 0.9, 0.5])})
    mine = rows.loc["mine"]
    assert mine["verdict"].startswith("not distinguishable from LoRA: +5 points (-")
    assert mine["verdict"].endswith(f"detectable from {100 * mine['detectable']:.3g} points on")
    few = compare({"lora": group(LORA, "lora"), "mine": group([0.1, 0.4, 0.65, 0.3])})
    assert few.loc["mine", "verdict"] == "too few seeds to tell: 4 against 5 seeds"


def test_p_is_multiplied_by_the_number_of_comparisons_that_were_planned():
    near = [0.96, 0.9, 0.98, 0.97, 0.7]
    alone = compare({"lora": group(LORA, "lora"), "mine": group(near)}).loc["mine"]
    assert alone["p_adjusted"] == alone["p"] < 1 / 3
    many = compare({"lora": group(LORA, "lora"), **{f"mine {i}": group(near) for i in range(3)}})
    assert many.loc["mine 0", "p_adjusted"] == pytest.approx(3 * alone["p"])
    assert many.loc["mine 0", "detectable"] > alone["detectable"]


@pytest.mark.parametrize(("name", "tests"), [*((name, len(PLANNED)) for name in PLANNED), ("dora", len(METHODS) - 1)])
def test_a_verdict_against_lora_does_not_depend_on_what_else_is_compared(name, tests):
    far = [0.97, 0.99, 0.98, 1.0, 0.98]
    alone = compare({"lora": group(LORA, "lora"), name: group(far, name)}).loc[name]
    others = {other: group(LORA, other) for other in METHODS if other not in (name, "lora")}
    among = compare({"lora": group(LORA, "lora"), name: group(far, name), **others}).loc[name]
    assert among.to_dict() == alone.to_dict()
    assert alone["tests"] == tests


def test_what_pairing_by_seed_gains_is_measured():
    shifted = {"lora": group(LORA, "lora"), "slora": group([a - 0.1 for a in LORA])}
    assert seed_pairing(shifted) == pytest.approx(0.0, abs=1e-12)
    opposite = {"lora": group(LORA, "lora"), "slora": group([1 - a for a in LORA])}
    assert seed_pairing(opposite) == pytest.approx(2.0)
    assert math.isnan(seed_pairing({"lora": group(LORA, "lora")}))


def test_the_steps_until_most_answers_are_right_are_a_metric():
    def learner(seed, method, right_at):
        on_the_way = tuple(HeldOut(step, 1.0, float(step >= right_at)) for step in (25, 50, 75, 100))
        return replace(run(1e-2, seed, method=method), held_out=on_the_way)

    soon = [learner(seed, "slora", 50) for seed in range(5)]
    late = [learner(seed, "lora", 75 + 25 * (seed == 0)) for seed in range(5)]
    rows = compare({"lora": late, "slora": soon}, metric="steps_to_90")
    assert rows.loc["slora", "median"] == pytest.approx(25 + 0.9 * 25)
    assert rows.loc["slora", "verdict"].startswith("better than LoRA: -30 steps")
    never = [learner(seed, "slora", 1000) for seed in range(5)]
    verdict = compare({"lora": late, "slora": never}, metric="steps_to_90").loc["slora", "verdict"]
    assert verdict == "not judged by means: 5 of 10 values are infinite"
    with pytest.raises(InputError, match="no finished run with steps_to_90"):
        compare({"lora": group(LORA, "lora")}, metric="steps_to_90")


def test_less_loss_is_better_and_the_best_comes_first():
    losses = (0.30, 0.25, 0.33, 0.28, 0.31)
    low = [run(1e-2, s, loss=v - 0.1, method="slora") for s, v in enumerate(losses)]
    high = [run(1e-2, s, loss=v + 0.001 * s) for s, v in enumerate(losses)]
    rows = compare({"lora": high, "slora": low}, metric="final_loss")
    assert list(rows.index) == ["slora", "lora"]
    assert rows.loc["slora", "verdict"].startswith("better than LoRA: -0.102 nats (-0.1")


def test_a_run_that_diverged_counts():
    lost = [run(1e-2, s, diverged=s > 2, accuracy=0.5) for s in range(5)]
    assert compare({"lora": lost}).loc["lora", "median"] == 0.5
    assert compare({"lora": lost}).loc["lora", "low"] == 0.0
    assert compare({"lora": lost}).loc["lora", "diverged"] == 2
    rows = compare({"lora": group(LORA, "lora"), "mine": lost}, metric="final_loss")
    assert math.isinf(rows.loc["mine", "high"])
    mine = rows.loc["mine"]
    assert (mine["seeds"], mine["infinite"], mine["diverged"]) == (5, 2, 2)
    assert mine["verdict"] == "not judged by means: 2 of 10 values are infinite"
    assert math.isnan(mine["difference"])


def test_failed_runs_are_left_out():
    failed = [some_run(config=r.config, steps=(), metrics={}, error="killed") for r in group(LORA, "lora")]
    rows = compare({"lora": [*group(LORA, "lora"), *failed], "mine": group(LORA)})
    assert rows.loc["lora", "median"] == 0.7
    with pytest.raises(InputError, match="group 'mine' has no finished run"):
        costs({"mine": failed})
    index = RecordedRuns([*group(LORA, "lora"), *failed])
    assert (len(index), index.failed) == (5, 5)
    assert best_rates(index).loc["lora", "seeds"] == 5


def test_groups_that_cannot_be_compared_are_named():
    with pytest.raises(InputError, match="group 'mine' mixes runs of different lr"):
        compare({"lora": group(LORA, "lora"), "mine": [*group(LORA), *group(LORA, lr=1e-3)]})
    with pytest.raises(InputError, match="tested on different items"):
        compare({"lora": group(LORA, "lora"), "mine": group(LORA, task="entailment")})
    with pytest.raises(InputError, match="must be runs by name"):
        compare(group(LORA, "lora"))
    assert len(compare({"lora": iter(group(LORA, "lora")), 1: iter(group(LORA))})) == 2


def test_only_the_exact_rank_counts_and_the_default_init_needs_no_name():
    runs = [run(rank=12), run(method="slora"), run(method="slora", init="kaiming", seed=1)]
    assert list(at_rate(1e-3, runs)) == ["slora"]
    assert len(at_each_rate("slora", runs, init="kaiming")["0.001"]) == 2
    with pytest.raises(InputError, match="1 runs to choose from"):
        at_best([run(rank=12)])


def test_the_best_rate_may_lose_a_seed_and_counts_seeds_not_runs():
    low = [run(2e-3, s, validation=0.1) for s in range(4)] + [run(2e-3, 4, diverged=True)]
    high = [run(1e-3, s, validation=0.5) for s in range(5)]
    assert best_rates([*low, *high]).loc["lora", "rate"] == 2e-3
    copies = [run(2e-3, 0, validation=0.1) for _ in range(5)] + [run(2e-3, s, validation=0.9) for s in (1, 2)]
    assert best_rates([*copies, *high]).loc["lora", ["rate", "seeds"]].tolist() == [1e-3, 5]


def test_runs_of_another_shape_are_counted_task_by_task():
    runs = [run(seed=s, task="entailment") for s in range(6)] + [run(seed=s, steps=100) for s in range(5)]
    assert len(at_best(runs)["lora"]) == 5
    assert len(at_best(runs, "entailment")["lora"]) == 6
    same = [run(seed=0), run(seed=1, difficulty="medium"), run(seed=2, alpha=8.0)]
    assert RecordedRuns(same).left_out == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: at_best("no such folder"), "no such folder"),
        (lambda: at_best([1]), "must be a store"),
        (lambda: at_rate("1e-3", [run()]), "lr='1e-3'"),
        (lambda: at_best([run()], methods="l"), "method='l'"),
        (lambda: RecordedRuns([run()]).valley("word-problems", "typo", 8), "typo"),
        (lambda: RecordedRuns([run()]).by_rank_and_rate("word-problems", "typo"), "typo"),
    ],
)
def test_bad_input_of_a_selection_is_named(wrong, message):
    with pytest.raises(InputError, match=message):
        wrong()


def test_several_records_of_one_seed_count_once():
    twice = [*group(LORA, "lora"), *group([a + 0.1 for a in LORA], "lora")]
    rows = compare({"lora": twice})
    assert rows.loc["lora", ["seeds", "median"]].tolist() == [5, pytest.approx(0.75)]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"metric": "bleu"}, "metric='bleu'"), ({"baseline": "lorra"}, "lorra"), ({"confidence": 95}, "confidence=95")],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        compare({"lora": group(LORA, "lora")}, **options)


def test_a_group_without_runs_is_named():
    with pytest.raises(InputError, match="group 'mine' has no finished run with accuracy"):
        compare({"lora": group(LORA, "lora"), "mine": []})


def test_how_soon_a_loss_is_reached():
    line = falling(0, lambda i: 1.0 - i / 100)
    # the mean of ten losses on a line is the loss 4.5 steps before the last one: 1 - (i - 4.5) / 100 <= 0.5
    assert steps_to(line, 0.5) == 55
    assert steps_to(line, 2.0) == 10
    assert steps_to(falling(0, lambda i: 1.0), 0.5) is None
    rows = learning({"a": [line, falling(1, lambda i: 1.0)], "b": [falling(0, lambda i: 1.0)]}, 0.5)
    assert rows.loc["a", ["seeds", "reached", "steps"]].tolist() == [2, 1, 55]
    copies = learning({"a": [line] * 5 + [falling(1, lambda i: 1.0 - i / 90)]}, 0.5)
    assert copies.loc["a", ["seeds", "reached", "steps"]].tolist() == [2, 2, (55 + 50) / 2]
    assert math.isnan(rows.loc["b", "steps"])
    with pytest.raises(InputError, match="target=0"):
        learning({"a": [line]}, 0)


def test_the_front_holds_the_rows_that_no_other_dominates():
    frame = pd.DataFrame(
        {"accuracy": [0.9, 0.9, 0.5, 0.4, math.nan], "trainable": [100, 200, 10, 10, 1]}, index=list("abcde")
    )
    assert pareto(frame, ["accuracy"], ["trainable"]).to_dict() == {
        "a": True, "b": False, "c": True, "d": False, "e": False,
    }  # fmt: skip
    with pytest.raises(InputError, match="column='speed'"):
        pareto(frame, ["speed"], [])


def test_runs_that_raced_are_not_ranked_by_time_and_memory():
    alone = [replace(r, seconds=1.0, trainable=9) for r in group(LORA, "lora")]
    raced = [replace(r, seconds=9.0, trainable=9, together=5) for r in group(LORA, "slora")]
    assert costs({"lora": alone, "slora": raced})["pareto"].tolist() == [True, True]
    assert costs({"lora": alone, "slora": [replace(r, together=1) for r in raced]})["pareto"].tolist() == [True, False]


def test_a_default_may_be_spelt_out_and_other_test_items_are_refused():
    plain = group(LORA, "lora")
    spelt = [replace(r, config=replace(r.config, alpha=8.0, difficulty="medium")) for r in plain[:2]]
    assert compare({"lora": [*spelt, *plain[2:]], "slora": group(LORA, "slora")}).loc["slora", "against"] == 5
    fewer = [replace(r, config=replace(r.config, test_rows=50)) for r in group(LORA, "slora")]
    with pytest.raises(InputError, match=r"tested on different items.*'slora': .* test_rows=50"):
        compare({"lora": plain, "slora": fewer})


def test_runs_on_fewer_rows_are_left_out_of_a_valley():
    runs = [run(seed=s) for s in range(3)] + [run(seed=0, loss=0.1, train_rows=100)]
    index = RecordedRuns(runs)
    assert index.left_out == 1
    assert index.best("word-problems", "lora", 8).loss.middle == 1.0
    assert describe_left_out(index) == "1 of another shape than most"
    with pytest.raises(InputError, match=r"it holds runs of embedded: pass model='embedded'"):
        at_best(runs, model="another/model")


def test_costs_are_medians_with_their_front():
    rows = costs({"lora": group(LORA, "lora"), "mine": group([0.1] * 5)})
    assert rows.loc["lora", "accuracy"] == 0.7
    assert rows["pareto"].tolist() == [True, False]


def test_the_rates_of_one_method_are_groups_too():
    runs = [run(lr, seed) for lr in (1e-3, 2e-4) for seed in range(2)]
    groups = at_each_rate("lora", RecordedRuns(runs))
    assert {name: len(runs) for name, runs in groups.items()} == {"0.0002": 2, "0.001": 2}
    assert compare(groups, "0.0002").loc["0.001", "against"] == 2
    with pytest.raises(InputError, match="no run of slora"):
        at_each_rate("slora", RecordedRuns(runs))
    with pytest.raises(InputError, match="has no choice of init"):
        at_each_rate("lora", RecordedRuns(runs), init="identity")


def test_a_rate_is_chosen_on_other_seeds_than_are_compared():
    """On the first seeds 1e-2 is better. The fresh ones say the opposite, and have no part in the choice."""
    losses = {(1e-2, 0): 0.1, (2e-2, 0): 0.2, (1e-2, 5): 0.9, (2e-2, 5): 0.01, (1e-2, 6): 0.8, (2e-2, 6): 0.01}
    runs = [run(lr=lr, seed=seed, validation=loss) for (lr, seed), loss in losses.items()]
    assert {r.config.lr for r in at_best(runs)["lora"]} == {2e-2}
    fresh = at_best(runs, fresh=range(5, 15))["lora"]
    assert sorted((r.config.lr, r.config.seed) for r in fresh) == [(1e-2, 5), (1e-2, 6)]
    more = [*runs, *(run(lr=2e-2, seed=seed, validation=0.01) for seed in (1, 2, 3))]
    assert {r.config.lr for r in at_best(more, fresh=[5, 6])["lora"]} == {2e-2}
    assert {r.config.lr for r in at_best(more, fresh=[5, 6], chosen_on=[0])["lora"]} == {1e-2}
    with pytest.raises(InputError, match="fresh seeds"):
        at_best(runs, fresh=[7])
    longer = [replace(r, config=replace(r.config, steps=500)) for r in runs if r.config.seed != 6]
    assert {r.config.steps for r in at_best([*runs, *longer], steps=500, fresh=[5])["lora"]} == {500}


def test_the_logarithm_of_the_loss_compares_factors():
    def group(method, losses):
        return [replace(run(seed=i, method=method), metrics={"accuracy": 1.0, "test_loss": x}) for i, x in losses]

    low, high = list(enumerate([1e-3, 2e-3, 4e-3, 1e-3, 2e-3])), list(enumerate([1e-2, 2e-2, 4e-2, 1e-2, 2e-2]))
    row = compare({"lora": group("lora", low), "nlora": group("nlora", high)}, metric="log_test_loss").loc["nlora"]
    assert row["difference"] == pytest.approx(1.0)
    assert row["verdict"].startswith("worse")
    assert "+1 powers of ten" in row["verdict"]
    none = compare({"lora": group("lora", [(0, 0.0), *low[1:]]), "nlora": group("nlora", high)}, metric="log_test_loss")
    assert none.loc["lora", "median"] == pytest.approx(math.log10(2e-3))
    assert none.loc["nlora", "infinite"] == 1


@pytest.mark.parametrize("metric", list(METRICS))
def test_every_measure_knows_which_direction_is_better(metric):
    """LoRA's runs are worse in every measure: fewer right answers, higher losses, 90 % reached later."""

    def group(method, accuracy, loss, soon):
        return [
            replace(
                run(seed=i, method=method, loss=loss + i / 1000),
                metrics={
                    "accuracy": accuracy + i / 1000, "validation_loss": loss + i / 1000, "test_loss": loss + i / 1000,
                },
                held_out=tuple(HeldOut(step, 0.1, 0.95 if step >= soon + i else 0.5) for step in range(1, 41)),
            )
            for i in range(5)
        ]  # fmt: skip

    rows = compare({"lora": group("lora", 0.3, 2.0, 30), "nlora": group("nlora", 0.9, 0.2, 10)}, metric=metric)
    assert list(rows.index) == ["nlora", "lora"]
    assert rows.loc["nlora", "verdict"].startswith("better than LoRA")


@pytest.mark.parametrize("metric", [name for name, m in METRICS.items() if m.sign < 0 and name != "steps_to_90"])
def test_less_of_a_loss_is_better_and_is_printed_as_it_is(metric):
    def losing(seed, loss, method):
        made = run(1e-2, seed, loss=loss, method=method)
        return replace(made, metrics={**made.metrics, "validation_loss": loss, "test_loss": loss})

    low = [losing(seed, 0.1 + 0.002 * seed, "slora") for seed in range(5)]
    high = [losing(seed, 1.0 + 0.02 * seed, "lora") for seed in range(5)]
    rows = compare({"lora": high, "slora": low}, metric=metric)
    difference, unit = (-1.0, "powers of ten") if metric == "log_test_loss" else (-0.936, "nats")
    assert rows.loc["slora", "difference"] == pytest.approx(difference)
    assert rows.loc["slora", "verdict"].startswith(f"better than LoRA: {difference:+.3g} {unit} (")


def test_one_run_is_a_group_too():
    rows = compare({"lora": group([0.5], "lora"), "mine": group([0.7])})
    assert rows["rate"].tolist() == [1e-2, 1e-2]
    assert rows.loc["mine", "verdict"].startswith("too few seeds to tell")


def test_the_time_to_a_loss_is_the_share_of_the_steps():
    runs = [replace(falling(seed, lambda i: 1 / i), seconds=seconds) for seed, seconds in enumerate((10.0, 30.0, 20.0))]
    row = learning({"lora": runs}, target=0.05).loc["lora"]
    assert row["steps"] == steps_to(runs[0], 0.05)
    assert row["seconds"] == pytest.approx(20.0 * row["steps"] / 100)
