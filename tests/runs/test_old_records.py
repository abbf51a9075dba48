"""Stores that the code wrote before it was divided into packages still load: single files, and a packed one."""

from __future__ import annotations

import json
import math
import shutil

import pytest
from factories import ROOT

from nlora_lab.runs.run import Run
from nlora_lab.runs.shipped import recorded_runs
from nlora_lab.runs.store import RunStore, run_key

FOLDER = ROOT / "tests" / "data" / "before_packages" / "store"
LINES = [
    line
    for file in [*FOLDER.glob("*.json"), *FOLDER.glob("*/*.jsonl")]
    for line in file.read_text(encoding="utf-8").splitlines()
]


def test_an_old_store_has_all_its_runs():
    store = RunStore(FOLDER)
    assert {(r.config.method, r.config.lr, r.config.task, r.ended) for r in store} == {
        ("lora", 1e-3, "word-problems", ""),
        ("slora", 2e-4, "word-problems", ""),
        ("inttune", 2e-4, "entailment", ""),
        ("nlora", 2e-4, "word-problems", ""),
        ("nlora", 1e-3, "word-problems", "failed"),
        ("nlora", 3e4, "word-problems", "diverged"),
    }
    assert len(store) == len(store.table()) == 6
    assert store.failed() == {"word-problems-nlora-r8-lr0.001-seed0-17a588b5"}
    assert {f"{run_key(r.config)}.json" for r in store if r.config.method != "nlora"} == {
        file.name for file in FOLDER.glob("*.json")
    }


@pytest.mark.parametrize("line", LINES, ids=lambda line: json.loads(line)["config"]["method"])
def test_an_old_record_is_read_completely_and_written_unchanged(line):
    run, record = Run.from_json(line), json.loads(line)
    again = json.loads(run.to_json())
    final_losses = [math.nan if loss is None else loss for loss in (again.pop("final_loss"), record.pop("final_loss"))]
    assert final_losses[0] == pytest.approx(final_losses[1], rel=1e-4, nan_ok=True)  # the history may be rounded
    assert again == record
    assert list(again) == list(record)
    assert run.config.to_dict() == record["config"]
    assert [s.step for s in run.steps] == list(range(1, len(record["history"]["loss"]) + 1))
    assert [s.lr for s in run.steps] == [run.config.rate_at(i) for i in range(len(run.steps))]
    for name in ("loss", "grad_norm"):
        values = [getattr(s, name) for s in run.steps]
        assert [v if math.isfinite(v) else None for v in values] == record["history"][name]


def test_an_old_store_is_indexed_and_packed(tmp_path):
    index = recorded_runs(FOLDER)
    assert (len(index), index.failed, index.left_out) == (4, 1, 1)  # one run has another scale
    assert [p.diverged for p in index.valley("word-problems", "nlora", 8)] == [0, 1]
    store = RunStore(shutil.copytree(FOLDER, tmp_path / "store"))
    keys = store.keys()
    assert store.pack() == 3
    assert RunStore(store.path).keys() == keys
