"""Sweeps: what a grid means, and workers that die, resume and never do a run twice."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from factories import some_run

from nlora_lab.cli import main as cli
from nlora_lab.core.errors import FitError, InputError, StoreError
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.leases import Lease
from nlora_lab.runs.store import RunStore, run_key
from nlora_lab.sweeps import engine as sweeps
from nlora_lab.sweeps import worker
from nlora_lab.sweeps.engine import sweep
from nlora_lab.sweeps.grid import expand_grid

TINY = {"method": ["lora", "slora"], "lr": [1e-3, 1e-2], "steps": 2, "batch_size": 2, "task": "entailment"}


def test_a_grid_is_the_product_of_its_lists():
    configs = expand_grid({"method": ["lora", "slora"], "lr": [1e-3, 1e-2], "seed": range(3), "task": "entailment"})
    assert len(configs) == 12
    assert {c.task for c in configs} == {"entailment"}
    assert configs[0] == RunConfig(method="lora", lr=1e-3, seed=0, task="entailment")


def test_inits_go_to_the_methods_that_have_them():
    configs = expand_grid({"method": ["lora", "slora"], "init": ["kaiming", "identity"]})
    assert [(c.method, c.init) for c in configs] == [("lora", None), ("slora", "kaiming"), ("slora", "identity")]


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ({"speed": [1]}, "grid field='speed'"), ({"lr": []}, "no value for 'lr'"), ({"method": ["lorra"]}, "lorra"),
        ([{"method": "lora"}], "the grid holds {'method': 'lora'}, no RunConfig"), ("lora", "the grid holds 'l'"),
        (RunConfig(), r"grid=RunConfig\(.*must be a dict of lists"), (None, "grid=None"), (3, "grid=3"),
        ({"method": [["lora"]]}, r"method=\['lora'\] in the grid is no single value"),
        ({"lr": np.ones((2, 2))}, "lr=array.* in the grid is no single value"),
    ],
)  # fmt: skip
def test_a_bad_grid_is_named(grid, said):
    with pytest.raises(InputError, match=said):
        expand_grid(grid)


def test_a_grid_may_be_of_numpy():
    configs = expand_grid({"seed": np.arange(3), "lr": np.array([1e-3, 1e-2]), "rank": np.int64(4)})
    assert configs == expand_grid({"seed": range(3), "lr": [1e-3, 1e-2], "rank": 4})
    assert expand_grid({"lr": np.float64(1e-3)}) == [RunConfig(lr=1e-3)]


def test_a_sweep_needs_a_folder():
    with pytest.raises(InputError, match="store=None must be a folder"):
        sweep([RunConfig()], None)


@pytest.mark.parametrize("number", [0, -1, 1.5, True])
@pytest.mark.parametrize("name", ["workers", "together"])
def test_a_bad_number_of_workers_or_runs_at_once_is_named(tmp_path, name, number):
    with pytest.raises(InputError, match=f"{name}={number!r}"):
        sweep([RunConfig()], tmp_path, **{name: number})


def test_what_is_there_is_not_made_again(tmp_path):
    store = RunStore(tmp_path)
    store.add(some_run(config=RunConfig()))
    rows = sweep([RunConfig()], store)
    assert list(rows["accuracy"]) == [0.5]
    assert list(rows["seconds"]) == [1.5]


@pytest.mark.parametrize("packed", [False, True])
def test_only_what_failed_is_tried_again_if_asked(tmp_path, monkeypatch, packed):
    good, bad, both = (RunConfig(seed=seed) for seed in range(3))
    store, made = RunStore(tmp_path), []
    for run in (some_run(config=good), some_run(config=both, seconds=1.0), some_run(config=bad, seconds=4.0)):
        store.add(run if run.config != bad else some_run(config=bad, error="killed"))
    store.add(some_run(config=both, seconds=2.0, error="killed"))
    if packed:
        store.pack()

    class Crew:
        def __init__(self, configs, store, *rest):
            self.configs, self.store = configs, store

        def work(self, too_large):
            assert not too_large
            for cfg in self.configs:
                made.append(cfg)
                assert cfg not in self.store
                self.store.add(some_run(config=cfg, seconds=9.0))

    monkeypatch.setattr(sweeps, "_Crew", Crew)
    monkeypatch.setattr("nlora_lab.training.races.check", lambda configs: None)
    grid = [good, bad, both]
    assert list(sweep(grid, store)["error"]) == ["", "killed", ""]
    assert made == []
    assert list(sweep(grid, store, retry=True)["seconds"]) == [1.5, 9.0, 1.0]
    assert made == [bad]
    assert len(store) == 4
    assert not list(tmp_path.glob("*.claim"))


def test_a_retry_waits_for_whoever_packs(tmp_path):
    store = RunStore(tmp_path)
    store.add(some_run(error="killed"))
    claim = Lease(tmp_path, "pack")
    assert claim.take()
    waiting = threading.Thread(target=sweeps._drop_failed, args=([some_run().config], store))
    waiting.start()
    waiting.join(timeout=0.5)
    assert len(store) == 1
    claim.release()
    waiting.join()
    assert len(store) == 0
    assert not list(tmp_path.iterdir())


def test_a_worker_looks_into_the_store_once_a_pass(tmp_path, monkeypatch):
    looks, keys = [], RunStore.keys
    monkeypatch.setattr(RunStore, "keys", lambda self: looks.append(1) or keys(self))
    monkeypatch.setattr(worker, "_end_with_parent", lambda stdin: None)
    store, configs = RunStore(tmp_path), [RunConfig(seed=seed) for seed in range(5)]
    for cfg in configs:
        store.add(some_run(config=cfg))
    order = {"store": str(tmp_path), "threads": torch.get_num_threads(), "together": 1}
    worker.main(io.StringIO(json.dumps({**order, "configs": list(map(asdict, configs))}) + "\n"), io.StringIO())
    assert len(looks) == 1


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


WITHOUT_TORCH = """
    import random, sys, time
    from types import SimpleNamespace
    from nlora_lab import sweeps, worker
    from nlora_lab.records import Run, Step

    def race(configs, on_step, on_run):
        for cfg in configs:
            time.sleep(random.uniform(0.0, 0.2))
            steps = tuple(Step(i, 1.0 / (i + cfg.seed), cfg.rate_at(i - 1), 1.0) for i in range(1, 1001))
            on_run(Run(cfg, steps, {{"accuracy": cfg.seed / 100}}, 1, 1.0, 1))

    sys.modules["torch"] = SimpleNamespace(set_num_threads=lambda n: None)
    sys.modules["nlora_lab.training.races"] = SimpleNamespace(race=race, groups=None)
    sweeps._check = lambda configs: {{}}
    sweeps.find_device = lambda *name: SimpleNamespace(kind="cpu", words="")
    sweeps.WORKER = [sys.executable, sys.argv[0], "work"]
    if sys.argv[1] == "work":
        worker.main(sys.stdin, sys.stdout)
    else:
        sweeps.sweep({grid}, sys.argv[1], workers=2, progress=False)
"""


def test_ten_kills_at_random_moments_lose_double_and_halve_nothing(tmp_path):
    """The whole of a sweep but the training itself, whose place a short sleep takes: so the kills fall on the rest."""
    grid = {"method": ["lora", "slora"], "lr": 1e-3, "steps": 1000, "seed": list(range(100))}
    script = tmp_path / "sweep_it.py"
    script.write_text(textwrap.dedent(WITHOUT_TORCH).format(grid=grid))
    chance = random.Random(5)

    def begin(folder):
        return subprocess.Popen([sys.executable, str(script), str(folder)], start_new_session=True)

    folder, seen = tmp_path / "killed", 0
    for _ in range(10):
        parent = begin(folder)
        until(lambda: len(list(folder.glob("*.json"))) > seen)  # noqa: B023
        time.sleep(chance.uniform(0.0, 0.4))
        victims = [parent, *psutil.Process(parent.pid).children(recursive=True)]
        victim = chance.choice(victims)  # the parent, or a worker of it
        victim.send_signal(signal.SIGKILL)
        if victim is not parent:
            time.sleep(chance.uniform(0.0, 0.3))
            parent.send_signal(signal.SIGKILL)
        parent.wait()
        for file in folder.glob("*.json"):
            json.loads(file.read_text())
        seen = len(list(folder.glob("*.json")))
    assert seen < 200  # there was something left to kill
    both = [begin(folder), begin(folder)]  # two sweeps on one store
    assert [sweeping.wait(timeout=180) for sweeping in both] == [0, 0]
    assert begin(tmp_path / "undisturbed").wait(timeout=180) == 0

    killed, undisturbed = (RunStore(tmp_path / name) for name in ("killed", "undisturbed"))
    for store in (killed, undisturbed):
        assert len(store) == len(store.keys()) == len(list(store.path.glob("*.json"))) == 200
    assert {run_key(r.config): r for r in killed} == {run_key(r.config): r for r in undisturbed}
    assert {f.suffix for f in folder.iterdir()} == {".json"}


def test_runs_of_one_base_train_together_if_asked_and_each_is_kept_apart(tmp_path):
    grid = {**TINY, "lr": [1e-3, 2e-3], "steps": 3}
    rows = sweep(grid, tmp_path / "races", workers=1, together=3, progress=False)
    assert sorted(rows["together"]) == [1, 3, 3, 3]
    alone = sweep(grid, tmp_path / "alone", workers=1, progress=False)
    assert rows["final_loss"].tolist() == pytest.approx(alone["final_loss"].tolist(), rel=2e-3)
    assert set(alone["together"]) == {1}


def test_what_spoils_a_race_is_found_alone_and_the_others_are_kept(tmp_path, monkeypatch):
    made, events = [], []

    def race(configs, on_step, on_run):
        made.append([c.seed for c in configs])
        if any(c.seed == 1 for c in configs):
            on_run(some_run(config=configs[0], error="ValueError"))
            raise ValueError("a bad day")
        for cfg in configs:
            on_run(some_run(config=cfg))

    monkeypatch.setattr("nlora_lab.training.races.race", race)
    store, configs = RunStore(tmp_path), [RunConfig(seed=s) for s in range(3)]
    with pytest.raises(SystemExit):
        worker._make(configs, store, lambda **event: events.append(event))
    assert made == [[0, 1, 2], [0], [1]]
    assert [run.config.seed for run in store] == [0]
    assert [e["key"] for e in events if e["event"] == "error"] == [run_key(configs[1])]
    assert "a bad day" in events[-1]["text"]


def test_out_of_memory_is_kept_as_a_result(tmp_path, monkeypatch):
    def race(configs, on_step, on_run):
        on_run(some_run(config=configs[0], error="out of memory"))

    monkeypatch.setattr("nlora_lab.training.races.race", race)
    assert worker._make([RunConfig()], RunStore(tmp_path), lambda **event: None)
    assert [run.error for run in RunStore(tmp_path)] == ["out of memory"]


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


def test_a_file_may_hold_several_grids_and_the_device_may_be_said_beside_it(tmp_path, monkeypatch):
    path, asked = tmp_path / "grid.json", []
    path.write_text(json.dumps([{"method": "lora", "lr": [1e-2, 2e-2]}, {"method": "nlora", "lr": 2e-4}]))
    monkeypatch.setattr(
        "nlora_lab.sweeps.engine.sweep", lambda grid, *rest, **more: asked.extend(grid) or sweeps.table([])
    )
    assert cli.main(["sweep", str(path), "--store", str(tmp_path / "s"), "--device", "cpu"]) == 0
    assert [(c.method, c.lr, c.device) for c in asked] == [
        ("lora", 1e-2, "cpu"), ("lora", 2e-2, "cpu"), ("nlora", 2e-4, "cpu"),
    ]  # fmt: skip


def test_what_failed_is_said_in_a_line_and_not_as_a_traceback(tmp_path, monkeypatch, capsys):
    def failing(*_, **__):
        raise RuntimeError("1 of 2 runs failed")

    path = tmp_path / "grid.json"
    path.write_text('{"lr": [1e-3]}')
    monkeypatch.setattr("nlora_lab.sweeps.engine.sweep", failing)
    assert cli.main(["sweep", str(path), "--store", str(tmp_path / "s")]) == 1
    assert capsys.readouterr().err == "nlora-lab: error: 1 of 2 runs failed\n"


@pytest.mark.parametrize("rate", [2e-4, 1e-2, 0.00046415888336127773, 1 / 3])
def test_the_command_of_a_run_names_that_run(rate):
    words = RunConfig(lr=rate).command.split()
    assert float(words[words.index("--lr") + 1]) == rate


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
    monkeypatch.setattr("nlora_lab.sweeps.engine.WORKER", [os.devnull])
    with pytest.raises((RuntimeError, OSError)):
        sweep({**TINY, "lr": 1e-3}, tmp_path, workers=1, progress=False)


FAKE = """
    import json, os, signal, sys
    from types import SimpleNamespace
    from nlora_lab import sweeps, worker
    from nlora_lab.errors import StoreError
    from nlora_lab.records import Run, Step

    def times(what):  # how often it has happened, over all workers
        with open(sys.argv[2], "a") as file:
            file.write(what)
        return open(sys.argv[2]).read().count(what)

    def race(configs, on_step, on_run):
        (cfg,) = configs
        {body}
        on_run(Run(cfg, (Step(1, 1.0, 1.0, 1.0),) * cfg.steps, {{"accuracy": 0.5}}, 1, 1.0, 1))

    sys.modules["torch"] = SimpleNamespace(set_num_threads=lambda n: None)
    sys.modules["nlora_lab.training.races"] = SimpleNamespace(race=race, groups=None)
    sweeps._check = lambda configs: {{}}
    sweeps.find_device = lambda *name: SimpleNamespace(kind="cpu", words="")
    sweeps.WORKER = [sys.executable, sys.argv[0], "work", sys.argv[2]]
    if sys.argv[1] == "work":
        {begin}
        worker.main(sys.stdin, sys.stdout)
    else:
        sweeps.sweep({{"seed": [0, 1, 2], "steps": 1}}, sys.argv[1], workers=2, progress=False)
"""


def swept(tmp_path, body="", begin=""):
    """A sweep of three runs whose workers do ``body`` where they would train; its exit, what it said, its store."""
    script = tmp_path / "sweep_it.py"
    script.write_text(textwrap.dedent(FAKE).format(body=body or "pass", begin=begin or "pass"))
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "runs"), str(tmp_path / "log")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return done.returncode, done.stderr.strip().splitlines()[-1:], RunStore(tmp_path / "runs")


def test_a_run_under_which_workers_are_killed_again_and_again_is_made_all_the_same(tmp_path):
    kill = 'if cfg.seed == 1 and times("k") <= 5: os.kill(os.getpid(), signal.SIGKILL)'
    code, _, store = swept(tmp_path, kill)
    assert code == 0
    assert sorted((r.config.seed, r.error) for r in store) == [(0, ""), (1, ""), (2, "")]


def test_a_run_that_brings_its_worker_down_is_recorded_as_failed(tmp_path):
    code, _, store = swept(tmp_path, "if cfg.seed == 1: os.abort()")
    assert code == 0
    failed = {r.config.seed: r.error for r in store if r.error}
    assert failed == {1: "its process ended 2 times (exit code -6)"}
    assert len(store) == 3


def test_what_the_kernel_kills_for_want_of_memory_is_told_from_what_somebody_kills(tmp_path, monkeypatch):
    with tempfile.TemporaryFile() as errors:
        hired = sweeps._Worker(None, errors, oom_kills=3)
        for now, killed in ((3, True), (4, False)):
            monkeypatch.setattr(sweeps, "_oom_kills", lambda now=now: now)
            assert hired.was_killed(-9) is hired.was_killed(-15) is killed
            assert not hired.was_killed(-11)


def test_what_failed_in_one_worker_and_was_made_by_another_has_not_failed(tmp_path):
    code, _, store = swept(tmp_path, 'if cfg.seed == 1 and times("k") == 1: raise ValueError("a bad day")')
    assert code == 0
    assert len(store) == 3


def test_a_run_that_raises_fails_the_sweep_in_the_end(tmp_path):
    code, said, store = swept(tmp_path, 'if cfg.seed == 1: raise ValueError("a bad day")')
    assert code == 1
    assert said == ["ValueError: a bad day"]
    assert len(store) == 2


def test_a_store_that_cannot_be_written_any_more_ends_the_sweep_and_says_so(tmp_path):
    code, said, store = swept(tmp_path, 'raise StoreError("runs/x.json cannot be written (no space left)")')
    assert code == 1
    assert "the sweep has ended early: runs/x.json cannot be written (no space left)" in said[0]
    assert len(store) == 0


def test_a_race_whose_store_cannot_be_written_is_not_run_again_one_by_one(tmp_path, monkeypatch):
    made = []

    def race(configs, on_step, on_run):
        made.append(len(configs))
        raise StoreError("no space left")

    monkeypatch.setattr("nlora_lab.training.races.race", race)
    with pytest.raises(StoreError):
        worker._make([RunConfig(seed=s) for s in range(3)], RunStore(tmp_path), lambda **event: None)
    assert made == [3]


def test_workers_that_are_killed_before_they_begin_end_the_sweep(tmp_path):
    code, said, store = swept(tmp_path, begin="os.kill(os.getpid(), signal.SIGKILL)")
    assert code == 1
    assert said == ["ended with code -9 before its first run: it said nothing"]
    assert len(store) == 0


def test_a_worker_that_cannot_begin_is_quoted(tmp_path):
    code, said, _ = swept(tmp_path, begin='sys.exit("no module named so")')
    assert code == 1
    assert said == ["ended with code 1 before its first run: no module named so"]


def test_what_will_not_fit_is_left_out_and_named_and_the_rest_is_made(tmp_path, monkeypatch):
    def fits(cfg, device=None):
        if cfg.rank > 8:
            raise FitError(f"It will not fit: rank {cfg.rank}")

    monkeypatch.setattr("nlora_lab.estimates.requirements.check_fit", fits)
    monkeypatch.setattr("nlora_lab.training.races.check_fit", fits)
    grid = {**TINY, "method": "lora", "lr": 1e-3, "rank": [8, 16]}
    with pytest.raises(
        RuntimeError, match=r"1 of 2 runs failed, all others are kept; .*-r16-.*:\nIt will not fit: rank 16"
    ):
        sweep(grid, tmp_path / "a", workers=1, progress=False)
    assert [r.config.rank for r in RunStore(tmp_path / "a")] == [8]
    with pytest.raises(InputError, match="It will not fit: rank 16"):
        sweep({**grid, "rank": 16}, tmp_path / "b", progress=False)
    assert not (tmp_path / "b").exists()


def test_there_are_no_more_workers_than_fit_side_by_side(monkeypatch):
    monkeypatch.setattr("nlora_lab.estimates.requirements.free_memory", lambda place: 2**40)
    cores = sweeps.default_workers([RunConfig()])
    assert cores == len(os.sched_getaffinity(0))
    monkeypatch.setattr("nlora_lab.estimates.requirements.free_memory", lambda place: 2**20)
    assert sweeps.default_workers([RunConfig()]) == 1


def test_runs_on_the_cpu_are_swept_as_such_where_there_is_a_card(tmp_path, monkeypatch):
    def found(name=None):
        return SimpleNamespace(kind=name or "cuda", words=name or "cuda")

    monkeypatch.setattr(sweeps, "find_device", found)
    on_cpu = sweeps._Crew([RunConfig(device="cpu")], RunStore(tmp_path), 1, None, progress=False)
    on_card = sweeps._Crew([RunConfig()], RunStore(tmp_path), 1, None, progress=False)
    assert (on_cpu.on_cpu, on_cpu.together) == (True, 1)
    assert (on_card.on_cpu, on_card.together) == (False, 8)


def test_full_fine_tuning_has_no_rank_to_sweep():
    configs = expand_grid({"method": ["full", "lora"], "rank": [1, 2, 4]})
    assert [(c.method, c.rank) for c in configs] == [("full", 8), ("lora", 1), ("lora", 2), ("lora", 4)]
