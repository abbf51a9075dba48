"""The paper's figures are data, what follows from them is computed, and every verdict comes from a rule."""

from __future__ import annotations

import math
import shlex
import subprocess
from dataclasses import replace
from itertools import chain

import numpy as np
import pandas as pd
import pytest
import torch
from factories import falling
from factories import recorded_run as run

from nlora_lab import paper
from nlora_lab.analysis import selection
from nlora_lab.analysis.comparison import compare
from nlora_lab.core.errors import InputError
from nlora_lab.lowrank.cross import nystrom
from nlora_lab.lowrank.factors import relative_error
from nlora_lab.lowrank.svd import truncated_svd
from nlora_lab.methods.table import METHODS
from nlora_lab.paper import measured_claims, reported_claims, reported_figures, verdicts
from nlora_lab.paper.claim_ledger import COLUMNS
from nlora_lab.paper.start_costs import _decaying_matrix
from nlora_lab.paper.verdicts import KINDS
from nlora_lab.runs.config import SHARED_RATE
from nlora_lab.runs.index import RecordedRuns
from nlora_lab.runs.shipped import recorded_runs
from nlora_lab.tasks.generated import TASKS

BASE = [0.500, 0.505, 0.510, 0.502, 0.508]
MORE = [0.05, 0.04, 0.03, 0.05, 0.04]
RANDOM = [0.1, -0.1, 0.02, -0.04, 0.03]


@pytest.fixture(scope="module")
def shipped():
    return recorded_runs(None)


@pytest.fixture(scope="module")
def full_ledger(shipped):
    return paper.ledger(shipped)


def runs_of(method, change=0.0, lr=SHARED_RATE, seeds=5, **options):
    """Runs with the accuracies of LoRA plus a change: one number for all seeds, or one per seed."""
    changes = change if isinstance(change, list) else [change] * 5
    return [run(lr, s, accuracy=BASE[s] + changes[s], method=method, **options) for s in range(seeds)]


def falling_runs(step, method, lr=SHARED_RATE, **options):
    """Five runs whose loss falls below the target at about this step, with a scatter that depends on the method."""
    scatter = len(method)
    return [
        falling(s, lambda i, s=s: 1.0 if i < step + s * scatter % 3 else 0.0, method=method, lr=lr, **options)
        for s in range(5)
    ]


# --- the reported figures ---


def test_every_reported_table_matches_its_columns_and_has_a_source():
    tables = [reported_figures.GSM8K, reported_figures.INTTUNE, *reported_figures.FIGURE_4.values()]
    for table in tables:
        assert table.source
        assert table.table().shape == (len(table.rows), len(table.columns))
    assert reported_figures.FIGURE_4["MATH"].table().loc["slora", "128"] == 10.6


def test_thirty_three_percent_is_fourteen_points():
    table = paper.headline()
    assert table["relative"].round(2).tolist() == table["reported"].tolist() == [33.52, 36.41]
    assert table["points"].round(2).tolist() == [14.18, 15.40]
    assert (table["z"] > 7).all()


def test_sixteen_questions_are_within_chance():
    apart = paper.difference(57.70, 56.48)
    assert (apart.questions, round(apart.z, 2), round(apart.p, 2)) == (16, 0.63, 0.53)
    assert apart.error == pytest.approx(100 * math.sqrt(0.571 * 0.429 / 1319), rel=1e-3)
    for percent in (42.30, 56.48, 57.70, 44.28, 49.51, 37.98):  # each is a whole number of questions
        assert round(100 * round(percent * 13.19) / 1319, 2) == percent
    with pytest.raises(InputError, match="percentage"):
        paper.difference(577, 56)


@pytest.mark.parametrize(("first", "second"), [(57.70, 56.48), (30.0, 20.0)])
def test_the_number_of_questions_needed_gives_the_power(first, second):
    n = paper.questions_needed(first, second)
    rng = np.random.default_rng(0)
    a, b = (rng.binomial(n, share / 100, 20_000) / n for share in (first, second))
    pooled = (a + b) / 2
    detected = (a - b) / np.sqrt(2 * pooled * (1 - pooled) / n) > 1.96
    assert detected.mean() == pytest.approx(0.8, abs=0.015)
    with pytest.raises(InputError, match="different"):
        paper.questions_needed(first, first)


def test_figure_4_is_compared_cell_by_cell():
    table = paper.cells()
    assert len(table) == 16
    assert table["at_least"].groupby(level="task").sum().to_dict() == {"GSM8K": 5, "MATH": 8}
    assert (table["at_least"] & table["clear"]).sum() == 10
    assert not table.loc[("MATH", 32), "clear"]  # they are 0.6 apart, twice the error of one bar


def test_parameters_of_llama_are_counted():
    table = paper.parameters()
    assert table["trainable"].tolist() == [319_815_680, 323_485_696, 323_485_696, 3_670_016]
    assert table["beyond"]["slora"] == 32 * 7 * 128**2
    assert table["share"]["inttune"] == pytest.approx(1.1475, abs=1e-4)


def test_both_averages_of_inttune():
    row = paper.averages().loc["inttune, r = 128"]
    assert row.tolist() == [pytest.approx(7.46, abs=0.005), pytest.approx(4.42, abs=0.005), 3]
    assert paper.mean_of_relative([2, 110], [1, 100]) == pytest.approx(55)
    assert paper.relative_of_means([2, 110], [1, 100]) == pytest.approx(100 * 11 / 101)


def test_the_scales_of_n_are_those_that_torch_draws():
    N = torch.empty(128, 128)
    torch.manual_seed(0)
    torch.nn.init.kaiming_uniform_(N, a=math.sqrt(5))
    assert float(N.std()) == pytest.approx(paper.scales()["kaiming"], rel=0.02)
    assert paper.scales(128)["gaussian"] == 0.0078125


# --- what a start costs ---


def test_start_times_report_the_errors_of_the_library():
    state = torch.get_rng_state()
    table = paper.start_times((96, 64), rank=8, rounds=2)
    assert torch.equal(state, torch.get_rng_state())
    assert list(table.index) == ["Nyström", "randomised SVD", "QR", "full SVD"]
    assert list(table.columns) == ["milliseconds", "low", "high", "times", "error"]
    assert (table["low"] <= table["milliseconds"]).all()
    assert table["times"]["Nyström"] == 1
    W = _decaying_matrix((96, 64), 0)
    assert torch.linalg.svdvals(W) == pytest.approx(1 / torch.arange(1, 65).sqrt(), rel=1e-4)
    assert table["error"]["full SVD"] == pytest.approx(relative_error(W, truncated_svd(W, 8)), rel=1e-4)
    assert table["error"]["Nyström"] == pytest.approx(relative_error(W, nystrom(W, 8)), rel=1e-3)
    assert table["error"].min() == table["error"]["full SVD"]
    for name, value in (("rank", 65), ("rank", 0), ("rounds", 0)):
        with pytest.raises(InputError, match=f"{name}={value} must be a whole number from 1 to"):
            paper.start_times((96, 64), **{"rank": 8, name: value})


# --- what the runs say ---


@pytest.mark.parametrize(
    ("change", "seeds", "verdict"),
    [
        (MORE, 5, verdicts.REPRODUCED),
        ([-m for m in MORE], 5, verdicts.OPPOSITE),
        (RANDOM, 5, verdicts.SAME),
        (MORE, 4, verdicts.FEW),
    ],
)
def test_a_verdict_is_what_the_seeds_allow(change, seeds, verdict):
    runs = RecordedRuns([*runs_of("lora"), *runs_of("slora", change, seeds=seeds)])
    table = paper.compare_methods("slora", rate=SHARED_RATE, runs=runs)
    assert table["verdict"].to_dict() == {"word-problems": verdict}
    assert table["seeds"].tolist() == [seeds]


def test_the_verdict_at_the_shared_rate_may_differ_from_that_at_the_best_rates():
    runs = [*runs_of("lora", [-0.3] * 5, validation=0.9), *runs_of("lora", lr=1e-2, validation=0.1)]
    runs += [*runs_of("lora", lr=5e-2, validation=0.5), *runs_of("nlora", [-m for m in MORE], validation=0.3)]
    runs += [r for lr in (1e-4, 5e-4) for r in runs_of("nlora", lr=lr, validation=0.5)]
    recorded = RecordedRuns(runs)
    assert paper.compare_methods("nlora", rate=SHARED_RATE, runs=recorded)["verdict"].tolist() == [verdicts.REPRODUCED]
    own = paper.compare_methods("nlora", runs=recorded).loc["word-problems"]
    assert own[["rate", "their_rate", "verdict"]].tolist() == [SHARED_RATE, 1e-2, verdicts.OPPOSITE]


@pytest.mark.parametrize(
    ("ours", "theirs", "change", "edge", "verdict"),
    [
        ((5e-3, 2e-2), (5e-3, 2e-2), MORE, "", verdicts.REPRODUCED),
        ((), (5e-3, 2e-2), MORE, "ours", verdicts.REPRODUCED),  # a better rate could only raise it further
        ((5e-3, 2e-2), (5e-3,), MORE, "theirs", verdicts.EDGE),
        ((), (5e-3, 2e-2), [-m for m in MORE], "ours", verdicts.EDGE),
        ((5e-3, 2e-2), (2e-2,), RANDOM, "theirs", verdicts.EDGE),
        ((2e-2,), (2e-2,), [-m for m in MORE], "both", verdicts.EDGE),
    ],
)
def test_no_verdict_where_a_better_rate_could_reverse_it(ours, theirs, change, edge, verdict):
    runs = [*runs_of("lora", lr=1e-2, validation=0.1), *runs_of("slora", change, lr=1e-2, validation=0.1)]
    runs += [r for lr in theirs for r in runs_of("lora", lr=lr, validation=0.5)]
    runs += [r for lr in ours for r in runs_of("slora", lr=lr, validation=0.5)]
    row = paper.compare_methods("slora", runs=RecordedRuns(runs)).loc["word-problems"]
    assert (row["edge"], row["verdict"]) == (edge, verdict)


def test_p_is_that_of_the_comparison_of_all_methods():
    near = [0.1, 0.3, 0.05, 0.2, 0.02]
    groups = {"lora": runs_of("lora"), "slora": runs_of("slora", near), "inttune": runs_of("inttune", near)}
    recorded = RecordedRuns(chain.from_iterable(groups.values()))
    for method, tests in (("slora", 5), ("inttune", 13)):
        rows = compare(groups)
        ours = paper.compare_methods(method, rate=SHARED_RATE, runs=recorded).loc["word-problems"]
        assert ours["p"] == rows.loc[method, "p_adjusted"] == min(1, tests * rows.loc[method, "p"])
        assert ours["detectable"] == rows.loc[method, "detectable"]


def test_without_runs_the_tables_are_empty():
    for frame in (
        paper.compare_methods("slora", runs=RecordedRuns([])),
        paper.compare_convergence(runs=RecordedRuns([])),
        paper.best_rate_by_task("nlora", RecordedRuns([])),
        paper.by_rank(RecordedRuns([])),
        paper.step0_changes(RecordedRuns([])),
    ):
        assert isinstance(frame, pd.DataFrame)
        assert frame.empty
    with pytest.raises(InputError, match="kaiming"):
        paper.starts_of_n(runs=RecordedRuns([]))
    with pytest.raises(InputError, match="lorra"):
        paper.compare_methods("lorra", runs=RecordedRuns([]))


def test_in_convergence_a_run_that_misses_the_loss_counts_with_all_its_steps():
    runs = RecordedRuns([*falling_runs(1000, "lora"), *falling_runs(40, "nlora"), *falling_runs(1000, "slora")])
    table = paper.compare_convergence(rate=SHARED_RATE, runs=runs)
    nlora = table.loc[("word-problems", "nlora")]
    assert nlora["verdict"] == verdicts.REPRODUCED
    assert (nlora["missed"], nlora["their_missed"], nlora["their_steps"]) == (0, 5, 250)
    assert 40 <= nlora["steps"] <= 50
    slora = table.loc[("word-problems", "slora")]
    assert (slora["difference"], slora["verdict"]) == (0, verdicts.NEITHER)
    turned = paper.compare_convergence(
        rate=SHARED_RATE, runs=RecordedRuns([*falling_runs(40, "lora"), *falling_runs(60, "nlora")])
    )
    assert turned["verdict"].tolist() == [verdicts.OPPOSITE]
    few = paper.compare_convergence(
        rate=SHARED_RATE, runs=RecordedRuns([*falling_runs(40, "lora")[:2], *falling_runs(60, "nlora")])
    )
    assert few["verdict"].tolist() == [verdicts.FEW]


def test_a_best_rate_is_settled_inside_the_rates_tried_with_five_seeds():
    def valley(losses, rates=(1e-4, SHARED_RATE, 5e-4), seeds=5, scatter=0.01):
        """The verdict for these losses at these rates. The losses of the first rate scatter most."""
        runs = [
            replace(r, metrics={**r.metrics, "validation_loss": loss + (0.003 * i or scatter) * (-1) ** seed})
            for i, (lr, loss) in enumerate(zip(rates, losses, strict=True))
            for seed, r in enumerate(runs_of("nlora", lr=lr, seeds=seeds))
        ]
        return paper.best_rate_by_task("nlora", RecordedRuns(runs))["verdict"].tolist()

    assert valley((0.5, 0.1, 0.4)) == [verdicts.REPRODUCED]
    assert valley((0.1, 0.4, 0.5)) == [verdicts.EDGE]
    assert valley((0.5, 0.1, 0.4), seeds=3) == [verdicts.FEW]
    assert valley((0.5, 0.4, 0.6), scatter=0.2) == [verdicts.SAME]
    assert valley((0.9, 0.5, 0.1, 0.4), (1e-4, SHARED_RATE, 5e-4, 1e-3)) == [verdicts.OTHERWISE]


def test_starts_of_n_are_compared_with_kaiming_at_the_given_rate():
    runs = [
        *runs_of("slora"),
        *runs_of("slora", [-m for m in MORE], init="identity"),
        *runs_of("slora", lr=1e-2, init="xavier"),
    ]
    at_shared = paper.starts_of_n(rate=SHARED_RATE, runs=RecordedRuns(runs))
    assert list(at_shared.index) == ["kaiming", "identity"]
    assert set(paper.starts_of_n(runs=RecordedRuns(runs)).index) == {"kaiming", "identity", "xavier"}
    runs += [run for lr in (1e-4, 5e-4) for run in runs_of("slora", lr=lr, validation=9.0)]
    ends = paper.starts_of_n(runs=RecordedRuns(runs))["edge"]
    assert not ends["kaiming"]
    assert ends["identity"]


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ([[-m for m in MORE]] * 2, verdicts.REPRODUCED),
        ([[-m for m in MORE], RANDOM], verdicts.SAME),
        ([[-m for m in MORE], MORE], f"{verdicts.OTHERWISE}: 1 better"),
        ([], verdicts.FEW),
    ],
)
def test_the_best_start_is_better_than_every_other(changes, verdict):
    others = zip(changes, ("identity", "xavier"), strict=False)
    runs = [*runs_of("slora"), *(r for change, init in others for r in runs_of("slora", change, init=init))]
    finding = measured_claims._check_kaiming(SHARED_RATE, RecordedRuns(runs))
    assert finding.verdict == verdict


def test_the_change_before_training_is_read_from_the_records():
    def changed(method, change):
        return replace(run(SHARED_RATE, method=method), metrics={"step0_change": change})

    finding = measured_claims._check_unchanged(RecordedRuns([changed("nlora", 0.0), changed("nlora-released", 0.04)]))
    assert finding.verdict == verdicts.DIFFER
    assert "up to 4.0%" in finding.evidence
    same = measured_claims._check_unchanged(RecordedRuns([changed("nlora", 0.0), changed("nlora-released", 0.0)]))
    assert same.verdict != verdicts.DIFFER
    assert measured_claims._check_unchanged(RecordedRuns([changed("nlora", 0.0)])).verdict == verdicts.NO_RUNS


def test_ranks_are_counted_and_one_seed_settles_nothing():
    def at(seeds):
        runs = [r for rank in (1, 8) for m in ("lora", "slora") for r in runs_of(m, rank=rank, seeds=seeds)]
        runs += [*runs_of("nlora", -0.1, rank=1, seeds=seeds), *runs_of("nlora", 0.1, rank=8, seeds=seeds)]
        return measured_claims._check_rank_by_rank(RecordedRuns(runs))

    assert at(1).verdict == verdicts.FEW
    assert at(1).evidence.startswith("in 1 of 2 ranks")
    assert at(5).verdict == verdicts.OTHERWISE


def test_one_verdict_for_several_tasks():
    assert verdicts.combine_verdicts({}) == verdicts.NO_RUNS
    assert verdicts.combine_verdicts({"a": "x", "b": "x"}) == "x"
    assert verdicts.combine_verdicts({"a": "x", "b": "y"}) == "a: x; b: y"


# --- the ledger ---


def test_every_claim_has_a_complete_row(full_ledger):
    assert tuple(full_ledger.columns) == COLUMNS
    assert len(full_ledger) == len(paper.claims()) >= 30
    assert full_ledger["claim"].is_unique
    assert (full_ledger.map(len) > 0).all(axis=None)
    assert {claim.kind for claim in paper.claims()} == set(KINDS)


def test_the_ledger_has_every_claim_of_the_abstract(full_ledger):
    statements = " ".join(full_ledger["says"])
    for words in ("33.52%", "36.41%", "3.67M", "7.45%", "1.25%", "slow convergence", "Singular Value Decomposition"):
        assert words in statements
    for method in ("SLoRA", "NLoRA", "NLoRA as released", "IntTune"):
        for setting in measured_claims.SETTINGS:
            assert f"{method} above LoRA, {setting}" in set(full_ledger["claim"])


def test_verdicts_on_reported_figures(shipped):
    table = paper.ledger(shipped, kind="printed").set_index("claim")["verdict"]
    assert table["the gain over LoRA"] == "correct as printed: relative"
    assert table["NLoRA above LoRA on GSM8K"] == verdicts.APART
    assert table["NLoRA above SLoRA on GSM8K"] == verdicts.CHANCE
    assert table["what N adds"] == verdicts.CORRECT
    assert table["IntTune's share"] == verdicts.ROUNDED
    assert table["IntTune's average"] == "correct as printed: mean of relative changes"
    assert table["Kaiming against Gaussian"] == verdicts.CONFOUNDED
    elsewhere = paper.ledger(shipped, kind="elsewhere")
    assert set(elsewhere["verdict"]) == {verdicts.UNTESTABLE}
    with pytest.raises(InputError, match="kind='all'"):
        paper.ledger(shipped, kind="all")


def test_verdicts_follow_the_printed_numbers(monkeypatch):
    monkeypatch.setattr(reported_figures, "ADDED_PARAMETERS", 4e6)
    monkeypatch.setattr(reported_figures, "INTTUNE_SHARE", 1.15)
    monkeypatch.setattr(reported_figures, "INTTUNE_GAIN", 4.42)
    none = RecordedRuns([])
    assert reported_claims._check_added(none).verdict == verdicts.NOT_SO
    assert reported_claims._check_share(none).verdict == verdicts.CORRECT
    assert reported_claims._check_average(none).verdict == "correct as printed: relative change of means"


def test_without_runs_nothing_is_settled():
    table = paper.ledger(RecordedRuns([]), kind="runs").set_index("claim")["verdict"]
    assert set(table.drop("Nyström's start is cheap")) == {verdicts.NO_RUNS}


def test_the_ledger_of_other_runs_has_other_verdicts():
    runs = [r for task in TASKS for r in [*runs_of("lora", task=task), *runs_of("slora", MORE, task=task)]]
    table = paper.ledger(RecordedRuns(runs), kind="runs").set_index("claim")
    row = table.loc["SLoRA above LoRA, at the shared 2e-4"]
    assert row["verdict"] == verdicts.REPRODUCED
    assert row["evidence"].startswith(
        "word-problems +4.2 points (+3.6 to +4.8; 5 seeds; p = 2.2e-06; detectable 1.2); entailment"
    )
    turned = [r for task in TASKS for r in [*runs_of("slora", task=task), *runs_of("lora", MORE, task=task)]]
    table = paper.ledger(RecordedRuns(turned[:5] + turned[5:10]), kind="runs").set_index("claim")
    row = table.loc["SLoRA above LoRA, at the shared 2e-4"]
    assert row["verdict"] == f"word-problems: {verdicts.OPPOSITE}; entailment: {verdicts.NO_RUNS}"


def test_a_ledger_of_another_paper_has_the_same_rules():
    runs = RecordedRuns([*falling_runs(200, "lora"), *falling_runs(40, "pissa")])
    better = [*runs_of("lora"), *runs_of("pissa", MORE)]
    entries = [
        paper.accuracy_claim("more right", "outperforms", "a paper", "pissa", rate=SHARED_RATE),
        paper.convergence_claim("sooner", "faster convergence", "a paper", "pissa", rate=SHARED_RATE),
    ]
    table = paper.ledger(RecordedRuns(better), entries=entries[:1])
    assert table[["claim", "says", "source"]].to_numpy().tolist() == [["more right", "outperforms", "a paper"]]
    assert f"word-problems: {verdicts.REPRODUCED}" in table["verdict"].item()
    assert "p = " in table["evidence"].item()
    sooner = paper.ledger(runs, kind="runs", entries=entries).set_index("claim").loc["sooner"]
    assert f"word-problems: {verdicts.REPRODUCED}" in sooner["verdict"]
    assert "paper.compare_convergence(['pissa'], rate=0.0002, tests=5).T" in sooner["command"]
    assert paper.ledger(runs, entries=[]).empty
    with pytest.raises(InputError, match="'lora' is not known"):
        paper.convergence_claim("sooner", "", "", "lora")
    with pytest.raises(InputError, match="'lorra' is not known"):
        paper.compare_convergence(["lorra"], runs=runs)


def test_more_comparisons_make_p_of_the_steps_larger():
    runs = RecordedRuns([*falling_runs(60, "lora"), *falling_runs(58, "pissa")])
    p = [paper.compare_convergence(["pissa"], rate=SHARED_RATE, runs=runs, tests=n)["p"].item() for n in (1, 3)]
    assert p[1] == pytest.approx(min(1, 3 * p[0]))


def test_every_command_of_the_ledger_prints_something(full_ledger, shipped, monkeypatch, capsys):
    monkeypatch.setattr(selection, "recorded_runs", lambda store, model: shipped)  # reading the store takes long
    commands = sorted(set(full_ledger["command"]))
    assert len(commands) >= 15
    for command in commands:
        words = shlex.split(command)
        assert words[:2] == ["python", "-c"]
        exec(compile(words[2], command, "exec"), {})
        assert len(capsys.readouterr().out) > 20, command


def test_cells_of_a_markdown_table_are_escaped():
    frame = pd.DataFrame({"claim": ["a|b", "<i>"], "command": ["x | y", "z"]})
    text = paper.to_markdown(frame, ["claim", "command"])
    assert text.splitlines() == [
        "| claim | command |", "|---|---|", "| a\\|b | `x \\| y` |", "| &lt;i&gt; | `z` |",
    ]  # fmt: skip
    assert repr(text) == text._repr_markdown_() == text
    with pytest.raises(InputError, match="column='verdict'"):
        paper.to_markdown(frame, ["verdict"])


def test_the_plan_is_a_script_and_says_that_it_is_a_plan(tmp_path):
    text = paper.plan(rates=(1e-4, 2e-4), seeds=3)
    assert text.startswith("# A plan, not a result")
    assert "12 runs" in text  # 3 starts at 2 rates, and 2 more seeds of each
    (tmp_path / "plan.sh").write_text(text)
    subprocess.run(["bash", "-n", tmp_path / "plan.sh"], check=True)


def test_differences_are_drawn_with_enough_and_with_too_few_seeds():
    runs = [r for task in TASKS for r in [*runs_of("lora", task=task), *runs_of("slora", MORE, task=task)]]
    recorded = RecordedRuns([*runs, *runs_of("nlora", seeds=1)])
    frames = {
        s: {m: paper.compare_methods(m, rate=SHARED_RATE, runs=recorded) for m in ("slora", "nlora")}
        for s in ("shared", "own")
    }
    drawn = paper.plot_differences(frames)
    assert drawn._repr_png_().startswith(b"\x89PNG")
    assert repr(drawn) == "points more than LoRA, shared and own: SLoRA, NLoRA"
    assert METHODS["slora"].label in repr(drawn)


def test_every_claim_says_how_it_is_tested_and_what_it_could_have_seen(full_ledger):
    how = full_ledger.set_index("claim")["tested"]
    assert how["NLoRA above SLoRA on GSM8K"] == verdicts.SHARES
    assert how["NLoRA above LoRA, each at its own best rate"] == verdicts.WELCH
    assert how["SLoRA at least NLoRA, rank by rank"] == verdicts.COUNTED
    assert set(full_ledger["verdict"][how.to_numpy() == verdicts.NOT_TESTED]) == {verdicts.UNTESTABLE}
    same = full_ledger[full_ledger["verdict"].isin([verdicts.SAME, verdicts.CHANCE])]
    starts = same["claim"].str.contains("Kaiming")
    assert same[~starts]["evidence"].str.contains("detectable|no scatter").all()


def test_a_printed_difference_at_the_detectable_one_is_found_in_eight_of_ten_cases():
    apart = paper.difference(45.0, 50.0)
    rng, items = np.random.default_rng(0), reported_figures.GSM8K_ITEMS
    middle = 0.475
    shares = (middle + apart.detectable / 200, middle - apart.detectable / 200)
    first, second = (rng.binomial(items, share, 4000) for share in shares)
    pooled = (first + second) / (2 * items)
    z = (first - second) / items / np.sqrt(2 * pooled * (1 - pooled) / items)
    assert (np.abs(z) > 1.959964).mean() == pytest.approx(0.8, abs=0.03)


def test_the_comparison_on_fresh_seeds_is_that_of_nl_compare(shipped):
    table = paper.on_fresh_seeds(["slora", "nlora"], shipped)
    groups = selection.at_best(
        shipped, methods=["lora", "slora", "nlora"], steps=500, fresh=range(5, 25), chosen_on=range(3)
    )
    rows = compare(groups, metric="log_test_loss")
    for name in ("slora", "nlora"):
        row = table.loc[name]
        assert row["ratio"] == pytest.approx(10 ** rows.loc[name, "difference"])
        assert row["low"] < row["ratio"] < row["high"]
        assert (row["p"], row["seeds"]) == (rows.loc[name, "p_adjusted"], rows.loc[name, "seeds"])
    assert paper.on_fresh_seeds(["slora"], RecordedRuns([])).empty
    with pytest.raises(InputError, match="the index holds runs of 'embedded'"):
        paper.on_fresh_seeds(["slora"], shipped, model="larger")
    with pytest.raises(InputError, match="'lorra' is not known"):
        paper.on_fresh_seeds(["lorra"], shipped)
