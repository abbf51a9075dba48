"""Reading the paper: its numbers are data, what follows is computed, and every verdict comes from a rule."""

from __future__ import annotations

import math
import shlex
import subprocess
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from factories import falling
from factories import recorded_run as run

from nlora_lab import paper
from nlora_lab.analysis import selection as choosing
from nlora_lab.core.errors import InputError
from nlora_lab.lowrank.cross import nystrom
from nlora_lab.lowrank.factors import relative_error
from nlora_lab.lowrank.svd import truncated_svd
from nlora_lab.methods.table import METHODS
from nlora_lab.paper import checks, evidence, printed
from nlora_lab.paper.book import COLUMNS, KINDS
from nlora_lab.paper.starts import _decaying
from nlora_lab.runs.config import SHARED_RATE
from nlora_lab.runs.index import RecordedRuns
from nlora_lab.runs.shipped import recorded_runs
from nlora_lab.tasks.generated import TASKS

BASE = [0.40, 0.70, 0.95, 0.60, 0.80]
MORE = [0.05, 0.04, 0.03, 0.05, 0.04]
RANDOM = [0.1, -0.1, 0.02, -0.04, 0.03]


@pytest.fixture(scope="module")
def shipped():
    return recorded_runs(None)


@pytest.fixture(scope="module")
def whole(shipped):
    return paper.ledger(shipped)


def made(method, change=0.0, lr=SHARED_RATE, seeds=5, **asked):
    """Five runs whose accuracies are those of LoRA and a change, one number or one a seed."""
    changes = change if isinstance(change, list) else [change] * 5
    return [run(lr, s, accuracy=BASE[s] + changes[s], method=method, **asked) for s in range(seeds)]


def down(step, method, lr=SHARED_RATE, **asked):
    """Five runs whose loss falls under the target at about this step, with a scatter of each method's own."""
    scatter = len(method)
    return [
        falling(s, lambda i, s=s: 1.0 if i < step + s * scatter % 3 else 0.0, method=method, lr=lr, **asked)
        for s in range(5)
    ]


# --- the printed numbers ---


def test_every_table_is_as_wide_as_its_head_and_has_a_source():
    tables = [printed.GSM8K, printed.INTTUNE, *printed.FIGURE_4.values()]
    for table in tables:
        assert table.source
        assert table.table().shape == (len(table.rows), len(table.columns))
    assert printed.FIGURE_4["MATH"].table().loc["slora", "128"] == 10.6


def test_thirty_three_percent_is_fourteen_points():
    found = paper.headline()
    assert found["relative"].round(2).tolist() == found["said"].tolist() == [33.52, 36.41]
    assert found["points"].round(2).tolist() == [14.18, 15.40]
    assert (found["z"] > 7).all()


def test_sixteen_questions_are_no_difference():
    apart = paper.difference(57.70, 56.48)
    assert (apart.questions, round(apart.z, 2), round(apart.p, 2)) == (16, 0.63, 0.53)
    assert apart.error == pytest.approx(100 * math.sqrt(0.571 * 0.429 / 1319), rel=1e-3)
    for percent in (42.30, 56.48, 57.70, 44.28, 49.51, 37.98):  # each is a whole number of questions
        assert round(100 * round(percent * 13.19) / 1319, 2) == percent
    with pytest.raises(InputError, match="percentage"):
        paper.difference(577, 56)


@pytest.mark.parametrize(("first", "second"), [(57.70, 56.48), (30.0, 20.0)])
def test_so_many_questions_find_it_in_four_of_five_cases(first, second):
    n = paper.questions_needed(first, second)
    rng = np.random.default_rng(0)
    a, b = (rng.binomial(n, share / 100, 20_000) / n for share in (first, second))
    pooled = (a + b) / 2
    found = (a - b) / np.sqrt(2 * pooled * (1 - pooled) / n) > 1.96
    assert found.mean() == pytest.approx(0.8, abs=0.015)
    with pytest.raises(InputError, match="different"):
        paper.questions_needed(first, first)


def test_the_bars_cell_by_cell():
    found = paper.cells()
    assert len(found) == 16
    assert found["at_least"].groupby(level="task").sum().to_dict() == {"GSM8K": 5, "MATH": 8}
    assert (found["at_least"] & found["clear"]).sum() == 10
    assert not found.loc[("MATH", 32), "clear"]  # 0.6 apart, twice what one bar may be off


def test_parameters_are_counted():
    found = paper.parameters()
    assert found["trainable"].tolist() == [319_815_680, 323_485_696, 323_485_696, 3_670_016]
    assert found["beyond"]["slora"] == 32 * 7 * 128**2
    assert found["share"]["inttune"] == pytest.approx(1.1475, abs=1e-4)


def test_two_ways_to_average():
    found = paper.averages().loc["inttune, r = 128"]
    assert found.tolist() == [pytest.approx(7.46, abs=0.005), pytest.approx(4.42, abs=0.005), 3]
    assert paper.mean_of_relative([2, 110], [1, 100]) == pytest.approx(55)
    assert paper.relative_of_means([2, 110], [1, 100]) == pytest.approx(100 * 11 / 101)


def test_the_sizes_of_n_are_those_that_torch_draws():
    N = torch.empty(128, 128)
    torch.manual_seed(0)
    torch.nn.init.kaiming_uniform_(N, a=math.sqrt(5))
    assert float(N.std()) == pytest.approx(paper.scales()["kaiming"], rel=0.02)
    assert paper.scales(128)["gaussian"] == 0.0078125


# --- what a start costs ---


def test_starts_are_timed_in_turn_and_their_errors_are_those_of_the_library():
    state = torch.get_rng_state()
    found = paper.start_times((96, 64), rank=8, rounds=2)
    assert torch.equal(state, torch.get_rng_state())
    assert list(found.index) == ["Nyström", "randomised SVD", "QR", "full SVD"]
    assert list(found.columns) == ["milliseconds", "low", "high", "times", "error"]
    assert (found["low"] <= found["milliseconds"]).all()
    assert found["times"]["Nyström"] == 1
    W = _decaying((96, 64), 0)
    assert torch.linalg.svdvals(W) == pytest.approx(1 / torch.arange(1, 65).sqrt(), rel=1e-4)
    assert found["error"]["full SVD"] == pytest.approx(relative_error(W, truncated_svd(W, 8)), rel=1e-4)
    assert found["error"]["Nyström"] == pytest.approx(relative_error(W, nystrom(W, 8)), rel=1e-3)
    assert found["error"].min() == found["error"]["full SVD"]
    for asked in ({"rank": 65}, {"rank": 0}, {"rounds": 0}):
        with pytest.raises(InputError):
            paper.start_times((96, 64), **{"rank": 8, **asked})


# --- what the runs say ---


@pytest.mark.parametrize(
    ("change", "seeds", "verdict"),
    [
        (MORE, 5, evidence.REPRODUCED),
        ([-m for m in MORE], 5, evidence.OPPOSITE),
        (RANDOM, 5, evidence.SAME),
        (MORE, 4, evidence.FEW),
    ],
)
def test_a_verdict_is_what_the_seeds_allow(change, seeds, verdict):
    runs = RecordedRuns([*made("lora"), *made("slora", change, seeds=seeds)])
    found = paper.beside("slora", rate=SHARED_RATE, runs=runs)
    assert found["verdict"].to_dict() == {"word-problems": verdict}
    assert found["pairs"].tolist() == [seeds]


def test_at_its_own_rate_and_at_the_shared_one_may_differ():
    runs = [*made("lora", [-0.3] * 5, validation=0.9), *made("lora", lr=1e-2, validation=0.1)]
    runs += [*made("lora", lr=5e-2, validation=0.5), *made("nlora", [-m for m in MORE], validation=0.3)]
    runs += [r for lr in (1e-4, 5e-4) for r in made("nlora", lr=lr, validation=0.5)]
    known = RecordedRuns(runs)
    assert paper.beside("nlora", rate=SHARED_RATE, runs=known)["verdict"].tolist() == [evidence.REPRODUCED]
    own = paper.beside("nlora", runs=known).loc["word-problems"]
    assert own[["rate", "their_rate", "verdict"]].tolist() == [SHARED_RATE, 1e-2, evidence.OPPOSITE]


@pytest.mark.parametrize(
    ("ours", "theirs", "change", "edge", "verdict"),
    [
        ((5e-3, 2e-2), (5e-3, 2e-2), MORE, "", evidence.REPRODUCED),
        ((), (5e-3, 2e-2), MORE, "ours", evidence.REPRODUCED),  # it could only be better still
        ((5e-3, 2e-2), (5e-3,), MORE, "theirs", evidence.EDGE),
        ((), (5e-3, 2e-2), [-m for m in MORE], "ours", evidence.EDGE),
        ((5e-3, 2e-2), (2e-2,), RANDOM, "theirs", evidence.EDGE),
        ((2e-2,), (2e-2,), [-m for m in MORE], "both", evidence.EDGE),
    ],
)
def test_no_verdict_where_a_better_rate_could_turn_it(ours, theirs, change, edge, verdict):
    runs = [*made("lora", lr=1e-2, validation=0.1), *made("slora", change, lr=1e-2, validation=0.1)]
    runs += [r for lr in theirs for r in made("lora", lr=lr, validation=0.5)]
    runs += [r for lr in ours for r in made("slora", lr=lr, validation=0.5)]
    row = paper.beside("slora", runs=RecordedRuns(runs)).loc["word-problems"]
    assert (row["edge"], row["verdict"]) == (edge, verdict)


def test_several_rivals_raise_the_bar_and_a_pair_does_not():
    near = [0.1, 0.3, 0.05, 0.2, 0.02]
    runs = RecordedRuns([r for m in ("lora", *evidence.RIVALS) for r in made(m, 0.0 if m == "lora" else near)])
    among = paper.beside("slora", rate=SHARED_RATE, runs=runs)["p"]["word-problems"]
    alone = paper.beside("slora", rate=SHARED_RATE, runs=RecordedRuns([*made("lora"), *made("slora", near)]))["p"]
    assert among == pytest.approx(4 * alone["word-problems"])


def test_no_runs_no_rows():
    for frame in (
        paper.beside("slora", runs=RecordedRuns([])),
        paper.sooner(runs=RecordedRuns([])),
        paper.own_rates("nlora", RecordedRuns([])),
        paper.by_rank(RecordedRuns([])),
        paper.step0_changes(RecordedRuns([])),
    ):
        assert isinstance(frame, pd.DataFrame)
        assert frame.empty
    with pytest.raises(InputError, match="kaiming"):
        paper.starts_of_n(runs=RecordedRuns([]))
    with pytest.raises(InputError, match="lorra"):
        paper.beside("lorra", runs=RecordedRuns([]))


def test_how_soon_is_paired_and_never_counts_as_all_steps():
    runs = RecordedRuns([*down(1000, "lora"), *down(40, "nlora"), *down(1000, "slora")])
    found = paper.sooner(rate=SHARED_RATE, runs=runs)
    nlora = found.loc[("word-problems", "nlora")]
    assert nlora["verdict"] == evidence.REPRODUCED
    assert (nlora["missed"], nlora["their_missed"], nlora["their_steps"]) == (0, 5, 250)
    assert 40 <= nlora["steps"] <= 50
    slora = found.loc[("word-problems", "slora")]
    assert (slora["difference"], slora["verdict"]) == (0, evidence.NEITHER)
    turned = paper.sooner(rate=SHARED_RATE, runs=RecordedRuns([*down(40, "lora"), *down(60, "nlora")]))
    assert turned["verdict"].tolist() == [evidence.OPPOSITE]
    few = paper.sooner(rate=SHARED_RATE, runs=RecordedRuns([*down(40, "lora")[:2], *down(60, "nlora")]))
    assert few["verdict"].tolist() == [evidence.FEW]


def test_a_best_rate_is_settled_inside_its_valley_with_five_seeds():
    def valley(losses, rates=(1e-4, SHARED_RATE, 5e-4), seeds=5, scatter=0.01):
        """Losses at rates; those of the first rate scatter most."""
        runs = [
            replace(r, metrics={**r.metrics, "validation_loss": loss + (0.003 * i or scatter) * (-1) ** seed})
            for i, (lr, loss) in enumerate(zip(rates, losses, strict=True))
            for seed, r in enumerate(made("nlora", lr=lr, seeds=seeds))
        ]
        return paper.own_rates("nlora", RecordedRuns(runs))["verdict"].tolist()

    assert valley((0.5, 0.1, 0.4)) == [evidence.REPRODUCED]
    assert valley((0.1, 0.4, 0.5)) == [evidence.EDGE]
    assert valley((0.5, 0.1, 0.4), seeds=3) == [evidence.FEW]
    assert valley((0.5, 0.4, 0.6), scatter=0.2) == [evidence.SAME]
    assert valley((0.9, 0.5, 0.1, 0.4), (1e-4, SHARED_RATE, 5e-4, 1e-3)) == [evidence.OTHERWISE]


def test_starts_of_n_are_compared_with_kaiming_at_the_rate_asked_for():
    runs = [*made("slora"), *made("slora", [-m for m in MORE], init="identity"), *made("slora", lr=1e-2, init="xavier")]
    at_shared = paper.starts_of_n(rate=SHARED_RATE, runs=RecordedRuns(runs))
    assert list(at_shared.index) == ["kaiming", "identity"]
    assert set(paper.starts_of_n(runs=RecordedRuns(runs)).index) == {"kaiming", "identity", "xavier"}
    runs += [run for lr in (1e-4, 5e-4) for run in made("slora", lr=lr, validation=9.0)]
    ends = paper.starts_of_n(runs=RecordedRuns(runs))["edge"]
    assert not ends["kaiming"]
    assert ends["identity"]


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ([[-m for m in MORE]] * 2, evidence.REPRODUCED),
        ([[-m for m in MORE], RANDOM], evidence.SAME),
        ([[-m for m in MORE], MORE], f"{evidence.OTHERWISE}: 1 better"),
        ([], evidence.FEW),
    ],
)
def test_the_best_start_is_better_than_every_other(changes, verdict):
    others = zip(changes, ("identity", "xavier"), strict=False)
    runs = [*made("slora"), *(r for change, init in others for r in made("slora", change, init=init))]
    found = checks._kaiming(SHARED_RATE, RecordedRuns(runs))
    assert found.verdict == verdict


def test_what_moves_before_training_is_read_from_the_records():
    def changed(method, change):
        one = run(SHARED_RATE, method=method)
        return type(one)(
            **{**{f: getattr(one, f) for f in one.__dataclass_fields__}, "metrics": {"step0_change": change}}
        )

    found = checks._unchanged(RecordedRuns([changed("nlora", 0.0), changed("nlora-released", 0.04)]))
    assert found.verdict == checks.DIFFER
    assert "up to 4.0%" in found.measured
    same = checks._unchanged(RecordedRuns([changed("nlora", 0.0), changed("nlora-released", 0.0)]))
    assert same.verdict != checks.DIFFER
    assert checks._unchanged(RecordedRuns([changed("nlora", 0.0)])).verdict == evidence.NO_RUNS


def test_our_ranks_are_counted_and_one_seed_settles_nothing():
    def at(seeds):
        runs = [r for rank in (1, 8) for m in ("lora", "slora") for r in made(m, rank=rank, seeds=seeds)]
        runs += [*made("nlora", -0.1, rank=1, seeds=seeds), *made("nlora", 0.1, rank=8, seeds=seeds)]
        return checks._our_ranks(RecordedRuns(runs))

    assert at(1).verdict == evidence.FEW
    assert at(1).measured.startswith("in 1 of 2 ranks")
    assert at(5).verdict == evidence.OTHERWISE


def test_one_verdict_for_several_tasks():
    assert evidence.together({}) == evidence.NO_RUNS
    assert evidence.together({"a": "x", "b": "x"}) == "x"
    assert evidence.together({"a": "x", "b": "y"}) == "a: x; b: y"


# --- the ledger ---


def test_every_claim_has_a_row_with_everything_in_it(whole):
    assert tuple(whole.columns) == COLUMNS
    assert len(whole) == len(paper.claims()) >= 30
    assert whole["claim"].is_unique
    assert (whole.map(len) > 0).all(axis=None)
    assert {claim.kind for claim in paper.claims()} == set(KINDS)


def test_the_claims_of_the_abstract_are_all_there(whole):
    said = " ".join(whole["says"])
    for words in ("33.52%", "36.41%", "3.67M", "7.45%", "1.25%", "slow convergence", "Singular Value Decomposition"):
        assert words in said
    for method in ("SLoRA", "NLoRA", "NLoRA as released", "IntTune"):
        for setting in checks.SETTINGS:
            assert f"{method} above LoRA, {setting}" in set(whole["claim"])


def test_what_needs_no_run_has_the_verdict_it_has(shipped):
    found = paper.ledger(shipped, kind="printed").set_index("claim")["verdict"]
    assert found["the gain over LoRA"] == "correct as printed: relative"
    assert found["NLoRA above LoRA on GSM8K"] == checks.APART
    assert found["NLoRA above SLoRA on GSM8K"] == checks.CHANCE
    assert found["what N adds"] == checks.CORRECT
    assert found["IntTune's share"] == checks.ROUNDED
    assert found["IntTune's average"] == "correct as printed: mean of relative changes"
    assert found["Kaiming against Gaussian"] == checks.CONFOUNDED
    elsewhere = paper.ledger(shipped, kind="elsewhere")
    assert set(elsewhere["verdict"]) == {checks.UNTESTABLE}
    with pytest.raises(InputError, match="kind='all'"):
        paper.ledger(shipped, kind="all")


def test_verdicts_follow_the_printed_numbers(monkeypatch):
    monkeypatch.setattr(printed, "ADDED", 4e6)
    monkeypatch.setattr(printed, "INTTUNE_SHARE", 1.15)
    monkeypatch.setattr(printed, "INTTUNE_GAIN", 4.42)
    none = RecordedRuns([])
    assert checks._added(none).verdict == checks.NOT_SO
    assert checks._share(none).verdict == checks.CORRECT
    assert checks._average(none).verdict == "correct as printed: relative change of means"


def test_without_runs_nothing_is_settled():
    found = paper.ledger(RecordedRuns([]), kind="runs").set_index("claim")["verdict"]
    assert set(found.drop("Nyström's start is cheap")) == {evidence.NO_RUNS}


def test_a_ledger_of_other_runs_says_other_things():
    runs = [r for task in TASKS for r in [*made("lora", task=task), *made("slora", MORE, task=task)]]
    found = paper.ledger(RecordedRuns(runs), kind="runs").set_index("claim")
    row = found.loc["SLoRA above LoRA, at the shared 2e-4"]
    assert row["verdict"] == evidence.REPRODUCED
    assert row["found"].startswith("word-problems +4.2 points (+3.2 to +5.2; 5 seeds; p = 0.00036); entailment")
    turned = [r for task in TASKS for r in [*made("slora", task=task), *made("lora", MORE, task=task)]]
    found = paper.ledger(RecordedRuns(turned[:5] + turned[5:10]), kind="runs").set_index("claim")
    row = found.loc["SLoRA above LoRA, at the shared 2e-4"]
    assert row["verdict"] == f"word-problems: {evidence.OPPOSITE}; entailment: {evidence.NO_RUNS}"


def test_every_command_runs_and_shows_something(whole, shipped, monkeypatch, capsys):
    monkeypatch.setattr(choosing, "recordings_of", lambda wanted, model: shipped)  # read once
    commands = sorted(set(whole["command"]))
    assert len(commands) >= 15
    for command in commands:
        words = shlex.split(command)
        assert words[:2] == ["python", "-c"]
        exec(compile(words[2], command, "exec"), {})
        assert len(capsys.readouterr().out) > 20, command


def test_a_sheet_is_markdown_whatever_stands_in_it():
    frame = pd.DataFrame({"claim": ["a|b", "<i>"], "command": ["x | y", "z"]})
    text = paper.sheet(frame, ["claim", "command"])
    assert text.splitlines() == [
        "| claim | command |", "|---|---|", "| a\\|b | `x \\| y` |", "| &lt;i&gt; | `z` |",
    ]  # fmt: skip
    assert repr(text) == text._repr_markdown_() == text
    with pytest.raises(InputError, match="column='verdict'"):
        paper.sheet(frame, ["verdict"])


def test_the_plan_is_a_script_and_says_that_it_is_a_plan(tmp_path):
    text = paper.plan(rates=(1e-4, 2e-4), seeds=3)
    assert text.startswith("# A plan, not a result")
    assert "12 runs" in text  # 3 starts at 2 rates, and 2 more seeds of each
    (tmp_path / "plan.sh").write_text(text)
    subprocess.run(["bash", "-n", tmp_path / "plan.sh"], check=True)


def test_differences_are_drawn_with_and_without_seeds_enough():
    runs = [r for task in TASKS for r in [*made("lora", task=task), *made("slora", MORE, task=task)]]
    known = RecordedRuns([*runs, *made("nlora", seeds=1)])
    frames = {
        s: {m: paper.beside(m, rate=SHARED_RATE, runs=known) for m in ("slora", "nlora")} for s in ("shared", "own")
    }
    drawn = paper.differences(frames)
    assert drawn._repr_png_().startswith(b"\x89PNG")
    assert repr(drawn) == "points more than LoRA, shared and own: SLoRA, NLoRA"
    assert METHODS["slora"].label in repr(drawn)
