"""Sweeps: what a grid means, and workers that die, resume and never make a run twice."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import BrokenExecutor, CancelledError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from factories import ROOT, some_run
from fake_runs import die, die_once, make_at_once, record

from nlora_lab.cli import main as cli
from nlora_lab.core.errors import FitError, InputError, StoreError
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.run import Run, run_table
from nlora_lab.runs.store import RunStore, run_key
from nlora_lab.sweeps import engine, local, worker
from nlora_lab.sweeps.engine import sweep
from nlora_lab.sweeps.grid import expand_grid
from nlora_lab.sweeps.local import CallKilled, LocalExecutor

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

    def make(settings, sources):
        trained.extend(values["seed"] for values in settings)
        assert bad not in store
        return [record(values, seconds=9.0) for values in settings], {}

    monkeypatch.setattr(engine, "make_runs", make)
    grid = [good, bad, both]
    with ThreadPoolExecutor(2) as executor:
        assert list(sweep(grid, store, executor, progress=False)["error"]) == ["", "killed", ""]
        assert trained == []
        assert list(sweep(grid, store, executor, progress=False, retry=True)["seconds"]) == [1.5, 9.0, 1.0]
    assert trained == [bad.seed]
    assert len(store) == 4


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
    assert len(workers) >= 2  # two of them make runs
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
    assert {f.name: f.read_bytes() for f in folder.glob("*.json") if f.name in before} == before


QUICK = """
    import sys
    from types import SimpleNamespace
    sys.path.append({folder!r})
    from fake_runs import make_quickly
    from nlora_lab.sweeps import engine

    engine.make_runs = make_quickly
    engine._too_large = lambda configs: {{}}
    engine.find_device = lambda *name: SimpleNamespace(kind="cpu")
    engine.sweep({grid}, sys.argv[1], workers=2, progress=False)
"""


def test_after_kills_at_random_moments_every_run_is_there_once(tmp_path):
    grid = {"method": ["lora", "slora"], "lr": 1e-3, "steps": 1000, "seed": list(range(60))}
    script = tmp_path / "sweep_it.py"
    script.write_text(textwrap.dedent(QUICK).format(grid=grid, folder=str(ROOT / "tests")))
    chance = random.Random(5)

    def begin(folder):
        return subprocess.Popen([sys.executable, str(script), str(folder)], start_new_session=True)

    folder, finished = tmp_path / "killed", 0
    for _ in range(6):
        parent = begin(folder)
        until(lambda: len(list(folder.glob("*.json"))) > finished)  # noqa: B023
        time.sleep(chance.uniform(0.0, 0.4))
        family = psutil.Process(parent.pid).children(recursive=True)
        victim = chance.choice([parent, *family])  # the sweep, or a process of it
        with suppress(ProcessLookupError):
            os.kill(victim.pid, signal.SIGKILL)
        time.sleep(chance.uniform(0.0, 0.3))
        parent.kill()
        parent.wait()
        for file in folder.glob("*.json"):
            json.loads(file.read_text())
        finished = len(list(folder.glob("*.json")))
    assert finished < 120  # something was left to kill
    assert begin(folder).wait(timeout=180) == 0
    killed = RunStore(folder)
    assert len(killed) == len(killed.keys()) == len(list(folder.glob("*.json"))) == 120
    assert {run.error for run in killed} == {""}

    both = [begin(tmp_path / "both") for _ in range(2)]  # two sweeps at once on one store may do work twice
    assert [sweeping.wait(timeout=180) for sweeping in both] == [0, 0]
    shared = RunStore(tmp_path / "both")
    assert shared.keys() == killed.keys()
    assert {run_key(run.config): run for run in shared} == {run_key(run.config): run for run in killed}


def test_ctrl_c_ends_a_sweep_and_its_processes_within_two_seconds(tmp_path):
    script = tmp_path / "sweep_it.py"
    grid = {"seed": list(range(1000)), "steps": 1}
    script.write_text(textwrap.dedent(QUICK).format(grid=grid, folder=str(ROOT / "tests")))
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path / "runs")], stderr=subprocess.PIPE, text=True)
    until(lambda: len(list((tmp_path / "runs").glob("*.json"))) > 5)
    family = psutil.Process(parent.pid).children(recursive=True)
    parent.send_signal(signal.SIGINT)
    _, stderr = parent.communicate(timeout=30)
    assert stderr.strip().endswith("KeyboardInterrupt")
    _, alive = psutil.wait_procs([p for p in family if "resource_tracker" not in " ".join(command(p))], timeout=2)
    assert not alive
    assert all(json.loads(file.read_text()) for file in (tmp_path / "runs").glob("*.json"))


def command(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_runs_on_one_base_can_train_together_and_are_stored_one_by_one(tmp_path):
    grid = {**TINY, "lr": [1e-3, 2e-3], "steps": 3}
    rows = sweep(grid, tmp_path / "races", workers=1, together=3, progress=False)
    assert sorted(rows["together"]) == [1, 3, 3, 3]
    alone = sweep(grid, tmp_path / "alone", workers=1, progress=False)
    assert rows["final_loss"].tolist() == pytest.approx(alone["final_loss"].tolist(), rel=2e-3)
    assert set(alone["together"]) == {1}


def made(monkeypatch, race, seeds=3):
    """What a worker makes of some runs with ``race`` in place of the real one: the runs and the errors."""
    monkeypatch.setattr("nlora_lab.training.races.race", race)
    records, errors = worker.make_runs([asdict(RunConfig(seed=s)) for s in range(seeds)], worker.source_digest())
    return [Run.from_json(text) for text in records], errors


def test_a_run_that_breaks_a_race_is_named_and_the_others_are_made_alone(monkeypatch):
    trained = []

    def race(configs):
        trained.append([c.seed for c in configs])
        if any(c.seed == 1 for c in configs):
            raise ValueError("a bad day")
        return [some_run(config=cfg) for cfg in configs]

    runs, errors = made(monkeypatch, race)
    assert trained == [[0, 1, 2], [0], [1], [2]]
    assert [run.config.seed for run in runs] == [0, 2]
    assert list(errors) == [run_key(RunConfig(seed=1))]
    assert "ValueError: a bad day" in errors[run_key(RunConfig(seed=1))]


def test_running_out_of_memory_and_divergence_are_results(monkeypatch):
    ends = [{"error": "out of memory"}, {"diverged": True}, {"stopped": True}]
    race = lambda configs: [some_run(config=c, **end) for c, end in zip(configs, ends, strict=True)]  # noqa: E731
    runs, errors = made(monkeypatch, race)
    assert [(run.error, run.diverged) for run in runs] == [("out of memory", False), ("", True)]
    assert errors == {run_key(RunConfig(seed=2)): "it was stopped from outside"}  # no result, and not passed over


def test_a_worker_with_other_code_makes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "source_digest", lambda: "other")
    with ThreadPoolExecutor(1) as executor, pytest.raises(InputError, match="another version of nlora-lab"):
        sweep([RunConfig()], tmp_path, executor, progress=False)
    assert len(RunStore(tmp_path)) == 0


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


def test_a_killed_process_is_replaced_and_its_call_made_again(tmp_path):
    with LocalExecutor([{"WHO": "first"}]) as executor:
        assert executor.submit(die_once, tmp_path / "killed").result(timeout=60) == ("first", os.getpid())


def test_a_call_that_ends_two_processes_has_failed_and_others_go_on():
    with LocalExecutor([{}, {}]) as executor:
        bad, *good = [executor.submit(die, 7), *(executor.submit(abs, -i) for i in range(4))]
        assert [future.result(timeout=60) for future in good] == [0, 1, 2, 3]
        with pytest.raises(CallKilled, match=r"its process ended 2 times \(EXIT\(7\)\)"):
            bad.result(timeout=60)


def test_a_process_that_cannot_begin_ends_the_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr("nlora_lab.sweeps.local._begin", die)
    with pytest.raises(RuntimeError, match=r"the executor ended before the runs did \(TerminatedWorkerError"):
        sweep({**TINY, "lr": 1e-3}, tmp_path, workers=1, progress=False)
    assert len(RunStore(tmp_path)) == 0


def some_sweep(tmp_path, monkeypatch, make, together=1):
    """A sweep of three runs with ``make`` in place of training, in threads."""
    monkeypatch.setattr(engine, "make_runs", make)
    with ThreadPoolExecutor(2) as executor:
        return sweep({"seed": [0, 1, 2], "steps": 1}, tmp_path, executor, together=together, progress=False)


@pytest.mark.parametrize("together", [1, 3])
def test_a_run_that_kills_its_workers_is_recorded_as_failed(tmp_path, monkeypatch, together):
    def make(settings, sources):
        if any(values["seed"] == 1 for values in settings):
            raise CallKilled("its process ended 2 times")
        return make_at_once(settings, sources)

    rows = some_sweep(tmp_path, monkeypatch, make, together)
    assert list(rows["error"]) == ["", "its process ended 2 times", ""]
    assert len(RunStore(tmp_path)) == 3


def test_a_run_that_raises_fails_the_sweep_at_the_end(tmp_path, monkeypatch):
    def make(settings, sources):
        if settings[0]["seed"] == 1:
            return [], {run_key(RunConfig(**settings[0])): "Traceback\nValueError: a bad day"}
        return make_at_once(settings, sources)

    with pytest.raises(RuntimeError, match=r"1 of 3 runs failed, and the other runs are kept; (?s:.*)a bad day"):
        some_sweep(tmp_path, monkeypatch, make)
    assert len(RunStore(tmp_path)) == 2


@pytest.mark.parametrize("error", [CancelledError(), BrokenExecutor("gone")])
def test_an_executor_that_ends_keeps_what_is_finished(tmp_path, monkeypatch, error):
    def make(settings, sources):
        if settings[0]["seed"] == 2:
            raise error
        return make_at_once(settings, sources)

    with pytest.raises(RuntimeError, match=r"the executor ended before the runs did .*sweep again to resume"):
        some_sweep(tmp_path, monkeypatch, make)
    assert len(some_sweep(tmp_path, monkeypatch, make_at_once)) == 3


def test_a_store_that_can_no_longer_be_written_ends_the_sweep(tmp_path, monkeypatch):
    def full(self, run):
        raise StoreError("runs/x.json cannot be written (no space left)")

    monkeypatch.setattr(RunStore, "add", full)
    with pytest.raises(StoreError, match="no space left"):
        some_sweep(tmp_path, monkeypatch, make_at_once)


@pytest.mark.parametrize("bad", [5, "dask", object()])
def test_what_is_not_an_executor_is_named(tmp_path, bad):
    with pytest.raises(InputError, match=r"executor=.* is not a concurrent\.futures\.Executor"):
        sweep([RunConfig()], tmp_path, bad)


def test_a_sweep_shows_the_time_left(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(engine, "make_runs", make_at_once)
    with ThreadPoolExecutor(1) as executor:
        sweep({"seed": [0, 1, 2], "steps": 4}, tmp_path, executor)
    assert capsys.readouterr().err.strip().endswith("100 %  00:00 left")


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
    configs = [RunConfig(seed=seed) for seed in range(100)]
    monkeypatch.setattr("nlora_lab.estimates.requirements.free_memory", lambda place: 2**40)
    assert len(engine.environments(configs)) == len(os.sched_getaffinity(0))
    assert engine.environments(configs[:1], 5)[0]["OMP_NUM_THREADS"] == "1"
    assert len(engine.environments(configs[:1], 5)) == 1
    monkeypatch.setattr("nlora_lab.estimates.requirements.free_memory", lambda place: 2**20)
    assert len(engine.environments(configs)) == 1


@pytest.mark.parametrize(("visible", "cards"), [(None, ["0", "1"]), ("3,5,6", ["3", "5", "6"])])
def test_every_card_gets_one_process_and_runs_on_the_cpu_get_none_of_them(monkeypatch, visible, cards):
    monkeypatch.setattr(engine, "find_device", lambda name=None: SimpleNamespace(kind=name or "cuda"))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [e["CUDA_VISIBLE_DEVICES"] for e in engine.environments([RunConfig()] * 9)] == cards
    assert len(engine.environments([RunConfig()] * 9, workers=1)) == 1
    assert "CUDA_VISIBLE_DEVICES" not in engine.environments([RunConfig(device="cpu")])[0]


def test_full_fine_tuning_has_no_rank_to_sweep():
    configs = expand_grid({"method": ["full", "lora"], "rank": [1, 2, 4]})
    assert [(c.method, c.rank) for c in configs] == [("full", 8), ("lora", 1), ("lora", 2), ("lora", 4)]


@pytest.mark.parametrize(
    "grid",
    [
        {"seed": range(10**9)},
        {"seed": list(range(1000)), "lr": [1e-4 * (i + 1) for i in range(1000)], "steps": list(range(1, 1001))},
        {"seed": (i for i in itertools.count())},
    ],
    ids=["one axis", "a product", "a generator without an end"],
)
def test_a_grid_of_too_many_runs_is_refused_at_once(grid):
    started = time.perf_counter()
    with pytest.raises(InputError, match=r"the grid asks for at least .* runs; give at most 100,000"):
        expand_grid(grid)
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize("named", [False, True])
def test_the_working_directory_comes_last_unless_pythonpath_names_it(monkeypatch, tmp_path, named):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}" if named else "")
    monkeypatch.setattr(sys, "path", before := ["", str(tmp_path), "/one", "/two"])
    with local._SAFE_PATH:
        assert sys.path == (before if named else ["/one", "/two", "", str(tmp_path)])
    assert sys.path == before


SHADOWED = """
    import os, sys
    from pathlib import Path
    sys.path.insert(0, os.getcwd())  # as in a notebook
    from nlora_lab.sweeps.local import LocalExecutor
    import loky, random, torch  # the real ones, before the student writes files of these names
    for name in ("random", "torch", "numpy", "psutil", "loky", "json"):
        text = "import os; open({touched!r}, 'a').write(f'{{__name__}} {{os.getpid()}} ')"
        Path(f"{{name}}.py").write_text(text)
    before = dict(os.environ), list(sys.path)
    with LocalExecutor([{{}}, {{}}]) as executor:
        paths = [executor.submit(eval, "__import__('torch').__file__").result() for _ in range(2)]
    assert (dict(os.environ), sys.path) == before
    print(os.getpid(), *paths)
"""


def test_no_process_imports_from_the_folder_it_starts_in(tmp_path):
    folder, touched = tmp_path / "student", tmp_path / "imported"
    folder.mkdir()
    (tmp_path / "start.py").write_text(textwrap.dedent(SHADOWED).format(touched=str(touched)))
    done = subprocess.run(
        [sys.executable, str(tmp_path / "start.py")], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(folder) not in done.stdout
    assert done.stdout.count("torch") >= 2
    imported = touched.read_text().split() if touched.exists() else []
    own = done.stdout.split()[0]  # the notebook's process, where these files do come first
    assert [word for word in zip(imported[::2], imported[1::2], strict=True) if word[1] != own] == []
