"""Sweeps: what a grid means, and workers that die, resume and never make a run twice."""

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
from nlora_lab.runs.run import run_table
from nlora_lab.runs.store import RunStore, run_key
from nlora_lab.sweeps import engine, worker
from nlora_lab.sweeps.engine import sweep
from nlora_lab.sweeps.grid import expand_grid

TINY = {"method": ["lora", "slora"], "lr": [1e-3, 1e-2], "steps": 2, "batch_size": 2, "task": "entailment"}


def test_a_grid_is_the_product_of_its_lists():
    configs = expand_grid({"method": ["lora", "slora"], "lr": [1e-3, 1e-2], "seed": range(3), "task": "entailment"})
    assert len(configs) == 12
    assert {c.task for c in configs} == {"entailment"}
    assert configs[0] == RunConfig(method="lora", lr=1e-3, seed=0, task="entailment")


def test_inits_apply_to_the_methods_that_have_them():
    configs = expand_grid({"method": ["lora", "slora"], "init": ["kaiming", "identity"]})
    assert [(c.method, c.init) for c in configs] == [("lora", None), ("slora", "kaiming"), ("slora", "identity")]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"speed": [1]}, "grid field='speed'"), ({"lr": []}, "no value for 'lr'"), ({"method": ["lorra"]}, "lorra"),
        ([{"method": "lora"}], "the grid holds {'method': 'lora'}, which is not a RunConfig"),
        ("lora", "the grid holds 'l'"),
        (RunConfig(), r"grid=RunConfig\(.*must be a dict of lists"), (None, "grid=None"), (3, "grid=3"),
        ({"method": [["lora"]]}, r"method=\['lora'\] in the grid is not a single value"),
        ({"lr": np.ones((2, 2))}, "lr=array.* in the grid is not a single value"),
    ],
)  # fmt: skip
def test_a_bad_grid_is_named(grid, message):
    with pytest.raises(InputError, match=message):
        expand_grid(grid)


def test_a_grid_may_hold_numpy_values():
    configs = expand_grid({"seed": np.arange(3), "lr": np.array([1e-3, 1e-2]), "rank": np.int64(4)})
    assert configs == expand_grid({"seed": range(3), "lr": [1e-3, 1e-2], "rank": 4})
    assert expand_grid({"lr": np.float64(1e-3)}) == [RunConfig(lr=1e-3)]


def test_a_sweep_needs_a_folder():
    with pytest.raises(InputError, match="store=None must be a folder"):
        sweep([RunConfig()], None)


@pytest.mark.parametrize("number", [0, -1, 1.5, True])
@pytest.mark.parametrize("name", ["workers", "together"])
def test_a_bad_number_of_workers_or_runs_at_once_is_named(tmp_path, name, number):
    with pytest.raises(InputError, match=f"{name}={number!r} must be a whole number of at least 1"):
        sweep([RunConfig()], tmp_path, **{name: number})


def test_a_finished_run_is_not_made_again(tmp_path):
    store = RunStore(tmp_path)
    store.add(some_run(config=RunConfig()))
    rows = sweep([RunConfig()], store)
    assert list(rows["accuracy"]) == [0.5]
    assert list(rows["seconds"]) == [1.5]


@pytest.mark.parametrize("packed", [False, True])
def test_retry_makes_only_failed_runs_again(tmp_path, monkeypatch, packed):
    good, bad, both = (RunConfig(seed=seed) for seed in range(3))
    store, trained = RunStore(tmp_path), []
    for run in (some_run(config=good), some_run(config=both, seconds=1.0), some_run(config=bad, seconds=4.0)):
        store.add(run if run.config != bad else some_run(config=bad, error="killed"))
    store.add(some_run(config=both, seconds=2.0, error="killed"))
    if packed:
        store.pack()

    class Pool:
        def __init__(self, configs, store, *rest):
            self.configs, self.store = configs, store

        def run(self, too_large):
            assert not too_large
            for cfg in self.configs:
                trained.append(cfg)
                assert cfg not in self.store
                self.store.add(some_run(config=cfg, seconds=9.0))

    monkeypatch.setattr(engine, "_WorkerPool", Pool)
    monkeypatch.setattr("nlora_lab.training.races.check_runs", lambda runs: None)
    grid = [good, bad, both]
    assert list(sweep(grid, store)["error"]) == ["", "killed", ""]
    assert trained == []
    assert list(sweep(grid, store, retry=True)["seconds"]) == [1.5, 9.0, 1.0]
    assert trained == [bad]
    assert len(store) == 4
    assert not list(tmp_path.glob("*.lease"))


def test_a_retry_waits_while_another_process_packs(tmp_path):
    store = RunStore(tmp_path)
    store.add(some_run(error="killed"))
    lease = Lease(tmp_path, "pack")
    assert lease.take()
    waiting = threading.Thread(target=engine._drop_failed, args=([some_run().config], store))
    waiting.start()
    waiting.join(timeout=0.5)
    assert len(store) == 1
    lease.release()
    waiting.join()
    assert len(store) == 0
    assert not list(tmp_path.iterdir())


def test_a_worker_reads_the_store_once_per_pass(tmp_path, monkeypatch):
    reads, keys = [], RunStore.keys
    monkeypatch.setattr(RunStore, "keys", lambda self: reads.append(1) or keys(self))
    monkeypatch.setattr(worker, "_end_with_parent", lambda stdin: None)
    store, configs = RunStore(tmp_path), [RunConfig(seed=seed) for seed in range(5)]
    for cfg in configs:
        store.add(some_run(config=cfg))
    order = {"store": str(tmp_path), "threads": torch.get_num_threads(), "together": 1}
    worker.main(io.StringIO(json.dumps({**order, "configs": list(map(asdict, configs))}) + "\n"), io.StringIO())
    assert len(reads) == 1


def test_a_bad_config_is_reported_before_any_training(tmp_path):
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


def test_a_killed_sweep_leaves_no_worker_and_resumes(tmp_path):
    folder = tmp_path / "runs"
    grid = TINY
    parent = start(folder, grid)
    until(lambda: len(list(folder.glob("*.json"))) >= 1)
    workers = psutil.Process(parent.pid).children(recursive=True)
    assert len(workers) == 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until(lambda: not any(w.is_running() and w.status() != psutil.STATUS_ZOMBIE for w in workers))
    before = {f.name: f.read_bytes() for f in folder.glob("*.json")}
    for text in before.values():
        json.loads(text)

    rows = sweep(grid, folder, workers=1, progress=False)
    assert len(rows) == 4
    assert rows["accuracy"].notna().all()
    assert len(list(folder.glob("*.json"))) == 4
    assert not list(folder.glob("*.lease"))
    assert {f.name: f.read_bytes() for f in folder.glob("*.json") if f.name in before} == before


WITHOUT_TORCH = """
    import random, sys, time
    from types import SimpleNamespace
    from nlora_lab.runs.run import Run, Step
    from nlora_lab.sweeps import engine, worker

    def race(configs, on_step, on_run):
        for cfg in configs:
            time.sleep(random.uniform(0.0, 0.2))
            steps = tuple(Step(i, 1.0 / (i + cfg.seed), cfg.rate_at(i - 1), 1.0) for i in range(1, 1001))
            on_run(Run(cfg, steps, {{"accuracy": cfg.seed / 100}}, 1, 1.0, 1))

    sys.modules["torch"] = SimpleNamespace(set_num_threads=lambda n: None)
    sys.modules["nlora_lab.training.races"] = SimpleNamespace(race=race)
    engine._check_runs = lambda configs: {{}}
    engine.find_device = lambda *name: SimpleNamespace(kind="cpu", words="")
    engine.WORKER_COMMAND = [sys.executable, sys.argv[0], "work"]
    if sys.argv[1] == "work":
        worker.main(sys.stdin, sys.stdout)
    else:
        engine.sweep({grid}, sys.argv[1], workers=2, progress=False)
"""


def test_after_ten_kills_at_random_moments_every_run_is_there_once(tmp_path):
    """A short sleep takes the place of training, so that the kills hit everything else that a sweep does."""
    grid = {"method": ["lora", "slora"], "lr": 1e-3, "steps": 1000, "seed": list(range(100))}
    script = tmp_path / "sweep_it.py"
    script.write_text(textwrap.dedent(WITHOUT_TORCH).format(grid=grid))
    chance = random.Random(5)

    def begin(folder):
        return subprocess.Popen([sys.executable, str(script), str(folder)], start_new_session=True)

    folder, finished = tmp_path / "killed", 0
    for _ in range(10):
        parent = begin(folder)
        until(lambda: len(list(folder.glob("*.json"))) > finished)  # noqa: B023
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
        finished = len(list(folder.glob("*.json")))
    assert finished < 200  # something was left to kill
    both = [begin(folder), begin(folder)]  # two sweeps on one store
    assert [sweeping.wait(timeout=180) for sweeping in both] == [0, 0]
    assert begin(tmp_path / "undisturbed").wait(timeout=180) == 0

    killed, undisturbed = (RunStore(tmp_path / name) for name in ("killed", "undisturbed"))
    for store in (killed, undisturbed):
        assert len(store) == len(store.keys()) == len(list(store.path.glob("*.json"))) == 200
    assert {run_key(r.config): r for r in killed} == {run_key(r.config): r for r in undisturbed}
    assert {f.suffix for f in folder.iterdir()} == {".json"}


def test_runs_on_one_base_can_train_together_and_are_stored_one_by_one(tmp_path):
    grid = {**TINY, "lr": [1e-3, 2e-3], "steps": 3}
    rows = sweep(grid, tmp_path / "races", workers=1, together=3, progress=False)
    assert sorted(rows["together"]) == [1, 3, 3, 3]
    alone = sweep(grid, tmp_path / "alone", workers=1, progress=False)
    assert rows["final_loss"].tolist() == pytest.approx(alone["final_loss"].tolist(), rel=2e-3)
    assert set(alone["together"]) == {1}


def test_a_run_that_breaks_a_race_is_made_alone_and_the_others_are_kept(tmp_path, monkeypatch):
    trained, events = [], []

    def race(configs, on_step, on_run):
        trained.append([c.seed for c in configs])
        if any(c.seed == 1 for c in configs):
            on_run(some_run(config=configs[0], error="ValueError"))
            raise ValueError("a bad day")
        for cfg in configs:
            on_run(some_run(config=cfg))

    monkeypatch.setattr("nlora_lab.training.races.race", race)
    store, configs = RunStore(tmp_path), [RunConfig(seed=s) for s in range(3)]
    with pytest.raises(SystemExit):
        worker._make_runs(configs, store, lambda **event: events.append(event))
    assert trained == [[0, 1, 2], [0], [1]]
    assert [run.config.seed for run in store] == [0]
    assert [e["key"] for e in events if e["event"] == "error"] == [run_key(configs[1])]
    assert "a bad day" in events[-1]["text"]


def test_running_out_of_memory_is_a_result(tmp_path, monkeypatch):
    def race(configs, on_step, on_run):
        on_run(some_run(config=configs[0], error="out of memory"))

    monkeypatch.setattr("nlora_lab.training.races.race", race)
    assert worker._make_runs([RunConfig()], RunStore(tmp_path), lambda **event: None)
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


@pytest.mark.parametrize(
    ("text", "message"), [("[1]", "holds a list"), ("{", "is not a grid"), (None, "is not a grid")]
)
def test_a_file_that_is_no_grid_is_named(tmp_path, capsys, text, message):
    path = tmp_path / "grid.json"
    if text is not None:
        path.write_text(text)
    assert cli.main(["sweep", str(path), "--store", str(tmp_path / "s")]) == 2
    assert message in capsys.readouterr().err


def test_a_file_may_hold_several_grids_and_an_option_sets_the_device(tmp_path, monkeypatch):
    path, configs = tmp_path / "grid.json", []
    path.write_text(json.dumps([{"method": "lora", "lr": [1e-2, 2e-2]}, {"method": "nlora", "lr": 2e-4}]))
    monkeypatch.setattr(
        "nlora_lab.sweeps.engine.sweep", lambda grid, *rest, **more: configs.extend(grid) or run_table([])
    )
    assert cli.main(["sweep", str(path), "--store", str(tmp_path / "s"), "--device", "cpu"]) == 0
    assert [(c.method, c.lr, c.device) for c in configs] == [
        ("lora", 1e-2, "cpu"), ("lora", 2e-2, "cpu"), ("nlora", 2e-4, "cpu"),
    ]  # fmt: skip


def test_a_failed_sweep_prints_one_line_and_no_traceback(tmp_path, monkeypatch, capsys):
    def failing(*_, **__):
        raise RuntimeError("1 of 2 runs failed")

    path = tmp_path / "grid.json"
    path.write_text('{"lr": [1e-3]}')
    monkeypatch.setattr("nlora_lab.sweeps.engine.sweep", failing)
    assert cli.main(["sweep", str(path), "--store", str(tmp_path / "s")]) == 1
    assert capsys.readouterr().err == "nlora-lab: error: 1 of 2 runs failed\n"


@pytest.mark.parametrize("rate", [2e-4, 1e-2, 0.00046415888336127773, 1 / 3])
def test_the_command_of_a_run_has_its_exact_rate(rate):
    words = RunConfig(lr=rate).command.split()
    assert float(words[words.index("--lr") + 1]) == rate


def test_the_command_needs_a_store(tmp_path, capsys):
    path = tmp_path / "grid.json"
    path.write_text('{"lr": [1e-3]}')
    assert cli.main(["sweep", str(path)]) == 2
    assert "--store is missing" in capsys.readouterr().err


def until(condition, seconds=180.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


def test_a_worker_that_cannot_start_ends_the_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr("nlora_lab.sweeps.engine.WORKER_COMMAND", [os.devnull])
    with pytest.raises((RuntimeError, OSError)):
        sweep({**TINY, "lr": 1e-3}, tmp_path, workers=1, progress=False)


FAKE = """
    import json, os, signal, sys
    from types import SimpleNamespace
    from nlora_lab.core.errors import StoreError
    from nlora_lab.runs.run import Run, Step
    from nlora_lab.sweeps import engine, worker

    def times(what):  # how many times this was called, over all workers
        with open(sys.argv[2], "a") as file:
            file.write(what)
        return open(sys.argv[2]).read().count(what)

    def race(configs, on_step, on_run):
        (cfg,) = configs
        {body}
        on_run(Run(cfg, (Step(1, 1.0, 1.0, 1.0),) * cfg.steps, {{"accuracy": 0.5}}, 1, 1.0, 1))

    sys.modules["torch"] = SimpleNamespace(set_num_threads=lambda n: None)
    sys.modules["nlora_lab.training.races"] = SimpleNamespace(race=race)
    engine._check_runs = lambda configs: {{}}
    engine.find_device = lambda *name: SimpleNamespace(kind="cpu", words="")
    engine.WORKER_COMMAND = [sys.executable, sys.argv[0], "work", sys.argv[2]]
    if sys.argv[1] == "work":
        {begin}
        worker.main(sys.stdin, sys.stdout)
    else:
        engine.sweep({{"seed": [0, 1, 2], "steps": 1}}, sys.argv[1], workers=2, progress=False)
"""


def sweep_with(tmp_path, body="", begin=""):
    """A sweep of three runs whose workers run ``body`` in place of training: exit code, last line of stderr, store."""
    script = tmp_path / "sweep_it.py"
    script.write_text(textwrap.dedent(FAKE).format(body=body or "pass", begin=begin or "pass"))
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "runs"), str(tmp_path / "log")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return done.returncode, done.stderr.strip().splitlines()[-1:], RunStore(tmp_path / "runs")


def test_a_run_whose_workers_are_killed_several_times_is_made_in_the_end(tmp_path):
    kill = 'if cfg.seed == 1 and times("k") <= 5: os.kill(os.getpid(), signal.SIGKILL)'
    code, _, store = sweep_with(tmp_path, kill)
    assert code == 0
    assert sorted((r.config.seed, r.error) for r in store) == [(0, ""), (1, ""), (2, "")]


def test_a_run_that_crashes_its_worker_is_recorded_as_failed(tmp_path):
    code, _, store = sweep_with(tmp_path, "if cfg.seed == 1: os.abort()")
    assert code == 0
    failed = {r.config.seed: r.error for r in store if r.error}
    assert failed == {1: "its process ended 2 times (exit code -6)"}
    assert len(store) == 3


def test_kills_by_the_kernel_are_told_from_kills_from_outside(tmp_path, monkeypatch):
    with tempfile.TemporaryFile() as errors:
        started = engine._Worker(None, errors, oom_kills=3)
        for now, killed in ((3, True), (4, False)):
            monkeypatch.setattr(engine, "_oom_kills", lambda now=now: now)
            assert started.was_killed(-9) is started.was_killed(-15) is killed
            assert not started.was_killed(-11)


def test_a_run_that_failed_in_one_worker_and_ended_in_another_has_not_failed(tmp_path):
    code, _, store = sweep_with(tmp_path, 'if cfg.seed == 1 and times("k") == 1: raise ValueError("a bad day")')
    assert code == 0
    assert len(store) == 3


def test_a_run_that_raises_fails_the_sweep_at_the_end(tmp_path):
    code, stderr, store = sweep_with(tmp_path, 'if cfg.seed == 1: raise ValueError("a bad day")')
    assert code == 1
    assert stderr == ["ValueError: a bad day"]
    assert len(store) == 2


def test_a_store_that_can_no_longer_be_written_ends_the_sweep(tmp_path):
    code, stderr, store = sweep_with(tmp_path, 'raise StoreError("runs/x.json cannot be written (no space left)")')
    assert code == 1
    assert "the sweep has ended early: runs/x.json cannot be written (no space left)" in stderr[0]
    assert len(store) == 0


def test_a_race_whose_store_cannot_be_written_is_not_repeated_one_by_one(tmp_path, monkeypatch):
    trained = []

    def race(configs, on_step, on_run):
        trained.append(len(configs))
        raise StoreError("no space left")

    monkeypatch.setattr("nlora_lab.training.races.race", race)
    with pytest.raises(StoreError):
        worker._make_runs([RunConfig(seed=s) for s in range(3)], RunStore(tmp_path), lambda **event: None)
    assert trained == [3]


def test_workers_that_are_killed_before_their_first_run_end_the_sweep(tmp_path):
    code, stderr, store = sweep_with(tmp_path, begin="os.kill(os.getpid(), signal.SIGKILL)")
    assert code == 1
    assert stderr == ["ended with code -9 before its first run: it wrote nothing to stderr"]
    assert len(store) == 0


def test_the_stderr_of_a_worker_that_cannot_begin_is_quoted(tmp_path):
    code, stderr, _ = sweep_with(tmp_path, begin='sys.exit("no module named so")')
    assert code == 1
    assert stderr == ["ended with code 1 before its first run: no module named so"]


def test_runs_that_do_not_fit_are_named_and_the_other_runs_are_made(tmp_path, monkeypatch):
    def fits(cfg, device=None):
        if cfg.rank > 8:
            raise FitError(f"It will not fit: rank {cfg.rank}")

    monkeypatch.setattr("nlora_lab.estimates.requirements.check_fit", fits)
    monkeypatch.setattr("nlora_lab.training.races.check_fit", fits)
    grid = {**TINY, "method": "lora", "lr": 1e-3, "rank": [8, 16]}
    with pytest.raises(
        RuntimeError, match=r"1 of 2 runs failed, and the other runs are kept; .*-r16-.*:\nIt will not fit: rank 16"
    ):
        sweep(grid, tmp_path / "a", workers=1, progress=False)
    assert [r.config.rank for r in RunStore(tmp_path / "a")] == [8]
    with pytest.raises(InputError, match="It will not fit: rank 16"):
        sweep({**grid, "rank": 16}, tmp_path / "b", progress=False)
    assert not (tmp_path / "b").exists()


def test_there_are_at_most_as_many_workers_as_fit_into_memory(monkeypatch):
    monkeypatch.setattr("nlora_lab.estimates.requirements.free_memory", lambda place: 2**40)
    cores = engine.default_workers([RunConfig()])
    assert cores == len(os.sched_getaffinity(0))
    monkeypatch.setattr("nlora_lab.estimates.requirements.free_memory", lambda place: 2**20)
    assert engine.default_workers([RunConfig()]) == 1


def test_runs_on_the_cpu_are_recognised_on_a_machine_with_a_card(tmp_path, monkeypatch):
    def device(name=None):
        return SimpleNamespace(kind=name or "cuda", words=name or "cuda")

    monkeypatch.setattr(engine, "find_device", device)
    on_cpu = engine._WorkerPool([RunConfig(device="cpu")], RunStore(tmp_path), 1, None, progress=False)
    on_card = engine._WorkerPool([RunConfig()], RunStore(tmp_path), 1, None, progress=False)
    assert (on_cpu.on_cpu, on_cpu.together) == (True, 1)
    assert (on_card.on_cpu, on_card.together) == (False, 8)


def test_full_fine_tuning_has_no_rank_to_sweep():
    configs = expand_grid({"method": ["full", "lora"], "rank": [1, 2, 4]})
    assert [(c.method, c.rank) for c in configs] == [("full", 8), ("lora", 1), ("lora", 2), ("lora", 4)]
