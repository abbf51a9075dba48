"""The benchmark of the linear algebra runs, and its columns hold what they say. Nothing here tests speed."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from factories import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
bench = import_module("linear_algebra")

TINY_LLAMA = bench.Llama(vocabulary=200, hidden=64, intermediate=96, key_value=32, layers=1)
TINY = bench.Sizes(
    rank=8,
    starts=((48, 48), (48, 80)),
    floors=((48, 48), (64, 64)),
    curve=(48, 12),
    llama_shapes=((64, 64), (32, 64)),
    squares=((64, 64),),
    checkpoints=(TINY_LLAMA, replace(TINY_LLAMA, dtype=torch.bfloat16)),
    rounds=3,
    slow_rounds=2,
    moves=1,
)


@pytest.fixture(scope="module")
def rows():
    return list(bench.measure(TINY, list(bench.MEASUREMENTS)))


@pytest.fixture(scope="module")
def record(rows):
    return json.loads(json.dumps(bench.record(rows, quick=True), allow_nan=False))


def test_the_record_has_every_row(record):
    counts = Counter(row["name"] for row in record["rows"])
    assert counts == {"svd": 2, "svd_lowrank": 2, "floor": 2, "curve": 1, "spectra": 3, "memory": 2, "slider": 1}
    assert record["cpus"] >= 1
    assert record["device"].startswith("CPU")


def test_figures_are_finite_and_positive(record):
    for row in record["rows"]:
        figures = [*row["ours"], *(row["peer"] or []), row["ours_figure"], *row["ours_quartiles"]]
        assert all(math.isfinite(v) and v > 0 for v in figures), row["what"]


def test_the_ratio_is_what_its_row_says(record):
    for row in record["rows"]:
        ours, peer, ratio = row["ours_figure"], row["peer_figure"], row["ratio"]
        if row["kind"] == "faster":
            assert ratio == pytest.approx(peer / ours, rel=1e-4)
            assert row["reached"] == (ratio >= row["reach"])
        elif row["kind"] == "of it":
            assert ratio == pytest.approx(ours / peer, rel=1e-4)
            assert row["reached"] == (ratio <= row["reach"])
        else:
            assert ratio is None
            assert row["reached"] == (ours <= row["reach"])


def test_the_table_has_a_line_for_each_row(rows):
    lines = bench.table(rows).splitlines()
    assert len(lines) == len(rows) + 2
    assert {line.count("|") for line in lines} == {7}


def test_this_package_and_the_peer_take_turns():
    calls = []
    times = bench.alternate(lambda: calls.append("a"), lambda: calls.append("b"), 2)
    assert "".join(calls) == "ababab"
    assert [len(t) for t in times] == [2, 2]


def test_the_stored_record_is_of_a_full_run():
    stored = json.loads(bench.RECORD.read_text(encoding="utf-8"))
    assert not stored["quick"]
    assert {row["name"] for row in stored["rows"]} == set(bench.MEASUREMENTS)


def test_the_readme_of_the_benchmarks_shows_the_record():
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert bench.stored_table(json.loads(bench.RECORD.read_text(encoding="utf-8"))) in text
