"""Sweeps: what a grid means, and workers that die, resume and never do a run twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest
from test_records import some_run

from nlora_lab import cli
from nlora_lab.errors import InputError
from nlora_lab.records import RunConfig
from nlora_lab.store import RunStore
from nlora_lab.sweeps import expand, sweep

TINY = {"method": ["lora", "slora"], "lr": [1e-3, 1e-2], "steps": 2, "batch_size": 2, "task": "entailment"}


def test_a_grid_is_the_product_of_its_lists():
    configs = expand({"method": ["lora", "slora"], "lr": [1e-3, 1e-2], "seed": range(3), "task": "entailment"})
    assert len(configs) == 12
    assert {c.task for c in configs} == {"entailment"}
    assert configs[0] == RunConfig(method="lora", lr=1e-3, seed=0, task="entailment")


def test_inits_go_to_the_methods_that_have_them():
    configs = expand({"method": ["lora", "slora"], "init": ["kaiming", "identity"]})
    assert [(c.method, c.init) for c in configs] == [("lora", None), ("slora", "kaiming"), ("slora", "identity")]


@pytest.mark.parametrize(
    ("grid", "said"),
    [({"speed": [1]}, "grid field='speed'"), ({"lr": []}, "no value for 'lr'"), ({"method": ["lorra"]}, "lorra")],
)
def test_a_bad_grid_is_named(grid, said):
    with pytest.raises(InputError, match=said):
        expand(grid)


@pytest.mark.parametrize("workers", [0, -1, 1.5, True])
def test_a_bad_number_of_workers_is_named(tmp_path, workers):
    with pytest.raises(InputError, match=f"workers={workers!r}"):
        sweep([RunConfig()], tmp_path, workers)


def test_what_is_there_is_not_made_again(tmp_path):
    store = RunStore(tmp_path)
    store.add(some_run(config=RunConfig()))
    rows = sweep([RunConfig()], store)
    assert list(rows["accuracy"]) == [0.5]
    assert list(rows["seconds"]) == [1.5]


def test_a_bad_config_is_found_before_anything_is_trained(tmp_path):
    with pytest.raises(InputError, match="rank=129 is above 128"):
        sweep([RunConfig(), RunConfig(rank=129)], tmp_path)
    assert not list(tmp_path.iterdir())


SCRIPT = """
    import sys, nlora_lab as nl
    nl.sweep({grid}, sys.argv[1], workers=2, progress=False)
"""


def start(folder, grid):
    script = folder.parent / "sweep_it.py"  # without a __main__ guard
    script.write_text(textwrap.dedent(SCRIPT).format(grid=grid))
    return subprocess.Popen([sys.executable, str(script), str(folder)], start_new_session=True)


def test_killed_at_any_moment_it_leaves_no_worker_and_goes_on_where_it_was(tmp_path):
    folder = tmp_path / "runs"
    grid = TINY
    parent = start(folder, grid)
    until(lambda: len(list(folder.glob("*.json"))) >= 1)
    workers = psutil.Process(parent.pid).children(recursive=True)
    assert len(workers) == 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until(lambda: not any(w.is_running() and w.status() != psutil.STATUS_ZOMBIE for w in workers))
    kept = {f.name: f.read_bytes() for f in folder.glob("*.json")}
    for text in kept.values():
        json.loads(text)

    rows = sweep(grid, folder, workers=1, progress=False)
    assert len(rows) == 4
    assert rows["accuracy"].notna().all()
    assert len(list(folder.glob("*.json"))) == 4
    assert not list(folder.glob("*.claim"))
    assert {f.name: f.read_bytes() for f in folder.glob("*.json") if f.name in kept} == kept


def test_the_command_sweeps_a_file_and_packs(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    grid = tmp_path / "grid.json"
    grid.write_text(json.dumps({**TINY, "lr": 1e-3}))
    assert cli.main(["sweep", str(grid), "--store", str(tmp_path / "s"), "--workers", "1", "--pack", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [r["method"] for r in rows] == ["lora", "slora"]
    assert sorted(p.name for p in (tmp_path / "s").rglob("*.jsonl")) == ["lora.jsonl", "slora.jsonl"]
    assert all(r.device == "CPU, 1 thread, float32" for r in RunStore(tmp_path / "s"))


@pytest.mark.parametrize(("text", "said"), [("[1]", "holds a list"), ("{", "is no grid"), (None, "is no grid")])
def test_a_file_that_is_no_grid_is_named(tmp_path, capsys, text, said):
    path = tmp_path / "grid.json"
    if text is not None:
        path.write_text(text)
    assert cli.main(["sweep", str(path), "--store", str(tmp_path / "s")]) == 2
    assert said in capsys.readouterr().err


def test_a_sweep_of_ones_own_needs_a_store(tmp_path, capsys):
    path = tmp_path / "grid.json"
    path.write_text('{"lr": [1e-3]}')
    assert cli.main(["sweep", str(path)]) == 2
    assert "--store is missing" in capsys.readouterr().err


def until(condition, seconds=180.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


def test_a_worker_that_cannot_start_ends_the_sweep_with_a_word(tmp_path, monkeypatch):
    monkeypatch.setattr("nlora_lab.sweeps.sys.executable", os.devnull)
    with pytest.raises((RuntimeError, OSError)):
        sweep({**TINY, "lr": 1e-3}, tmp_path, workers=1, progress=False)
