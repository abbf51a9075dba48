"""The table of results in the README is the one that the recorded runs give, with the numbers of the lab."""

from __future__ import annotations

import math
from statistics import fmean, median

import pytest
from factories import ROOT, recorded_run

from nlora_lab.methods.table import METHODS
from nlora_lab.runs.config import SHARED_RATE
from nlora_lab.runs.index import RecordedRuns
from nlora_lab.runs.shipped import RANK, recorded_runs
from tools.results_table import (
    BEGIN,
    END,
    ON_FRESH_SEEDS,
    SHOWN,
    TASK,
    block_of,
    fresh_table,
    main,
    marked_files,
    results_table,
    write_table,
)


@pytest.fixture(scope="module")
def recorded():
    return recorded_runs()


def test_every_marked_file_shows_what_the_command_prints(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out.strip("\n")
    files = marked_files(ROOT)
    assert ROOT / "README.md" in files, f"README.md lacks {BEGIN} and {END}"
    for file in files:
        message = f"{file} is out of date; run: python -m tools.results_table --write"
        assert block_of(file.read_text(encoding="utf-8"), file) == printed, message


def test_the_table_has_the_numbers_of_the_lab(recorded):
    rows = results_table(recorded).splitlines()[4:]
    assert len(rows) == len(SHOWN)
    for name, row in zip(SHOWN, rows, strict=True):
        label, parameters, at_shared, rate, at_best, verdict, longer = (
            cell.strip() for cell in row.strip("|").split("|")
        )
        numbers = recorded.numbers(TASK, name, RANK, SHARED_RATE)
        assert label == METHODS[name].label
        assert int(parameters.replace(",", "")) == numbers["parameters"]
        assert at_shared.startswith(f"{100 * numbers['accuracy']:.1f} (")
        assert at_shared.endswith(f", {numbers['seeds']} seeds")
        assert float(rate) == pytest.approx(numbers["own_rate"], rel=0.05)  # two digits
        assert at_best.startswith(f"{100 * numbers['accuracy_there']:.1f} (")
        assert verdict in ("the baseline", "better", "worse") or verdict.startswith(
            ("not distinguishable (", "too few seeds")
        )
        there = recorded.at_steps(500).numbers(TASK, name, RANK, numbers["own_rate"])
        assert (
            longer == "–"
            if there["rate"] != numbers["own_rate"]
            else longer.startswith(f"{100 * there['accuracy']:.1f} (")
        )


@pytest.mark.parametrize(
    ("model", "steps", "choosing", "fresh"),
    [("embedded", 500, range(3), range(5, 25)), ("larger", 250, range(2), range(2, 7))],
)
def test_the_fresh_seeds_are_compared_at_rates_that_other_seeds_chose(model, steps, choosing, fresh):
    recorded = recorded_runs(model=model)
    rows = [row.strip("|").split("|") for row in fresh_table(recorded, model).splitlines()[4:]]
    names = ON_FRESH_SEEDS[model]
    assert [row[0].strip() for row in rows] == [METHODS[name].label for name in names]
    index = recorded.at_steps(steps)
    for name, (_, rate, seeds, loss, times, _) in zip(names, rows, strict=True):
        first = [r for point in index.valley(TASK, name, RANK) for r in point.runs if r.config.seed in choosing]
        by_rate = {
            r.config.lr: [q.metrics["validation_loss"] for q in first if q.config.lr == r.config.lr] for r in first
        }
        chosen = min(by_rate, key=lambda lr: median(by_rate[lr]))
        assert float(rate) == pytest.approx(chosen, rel=0.05)
        runs = [r for r in index.at(TASK, name, RANK, chosen).runs if r.config.seed in fresh]
        assert int(seeds) == len(runs) >= 5
        losses = [r.metrics["test_loss"] for r in runs]
        assert float(loss) == pytest.approx(10 ** median(map(math.log10, losses)), rel=0.06)
        assert len({len(losses) for losses in by_rate.values()}) == 1
        if name == "lora":
            base = fmean(map(math.log10, losses))
        assert float(times.split("(")[0]) == pytest.approx(10 ** (fmean(map(math.log10, losses)) - base), rel=0.06)


def test_the_best_rate_has_the_lowest_validation_loss():
    runs = [
        recorded_run(lr, seed, method="lora", validation=loss, accuracy=accuracy, task=TASK)
        for lr, loss, accuracies in ((SHARED_RATE, 0.5, (0.9, 0.8, 0.7)), (1e-2, 0.1, (0.2, 0.4, 0.3)))
        for seed, accuracy in enumerate(accuracies)
    ]
    (row,) = results_table(RecordedRuns(runs)).splitlines()[4:]
    assert row.endswith("| 80.0 (70.0–90.0), 3 seeds | 1e-2 | 30.0 (20.0–40.0), 3 seeds | the baseline | – |")


def test_only_the_text_between_the_markers_changes(tmp_path):
    (tmp_path / "docs").mkdir()
    readme, page, other = tmp_path / "README.md", tmp_path / "docs" / "page.md", tmp_path / "docs" / "other.md"
    readme.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nThe end.\n")
    page.write_text(f"{BEGIN}{END}")
    other.write_text("no table here\n")
    assert write_table(tmp_path, "new") == [readme, page]
    assert readme.read_text() == f"# Title\n\n{BEGIN}\nnew\n{END}\n\nThe end.\n"
    assert block_of(page.read_text()) == "new"
    assert other.read_text() == "no table here\n"


@pytest.mark.parametrize("text", [BEGIN, END, f"{END}\n{BEGIN}", f"{BEGIN}\n{BEGIN}\n{END}"])
def test_a_missing_or_repeated_marker_is_an_error(text):
    with pytest.raises(ValueError, match="must hold"):
        block_of(text)
