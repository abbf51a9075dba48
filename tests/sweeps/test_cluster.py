"""Sweeps on a Dask cluster: a real scheduler and real workers on this machine, which are killed, leave and join."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fake_runs import make_slowly

from nlora_lab.cli import main as cli
from nlora_lab.core.errors import InputError
from nlora_lab.runs.store import RunStore
from nlora_lab.sweeps import engine
from nlora_lab.sweeps.engine import sweep

distributed = pytest.importorskip("distributed")

ROOT = Path(__file__).resolve().parents[2]
GRID = {"seed": list(range(30)), "steps": 1}


class Cluster:
    """A scheduler and its workers, each a process of its own."""

    def __init__(self, folder):
        self.folder, self.processes = folder, {}
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
        self.environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        self.port = None

    def start(self, name, module, *arguments):
        self.processes[name] = subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{module}", *arguments],
            env=self.environment, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def scheduler(self):
        file = self.folder / "scheduler.json"
        file.unlink(missing_ok=True)
        port = self.port or 0
        self.start(
            "scheduler", "dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard",
            "--scheduler-file", str(file),
        )  # fmt: skip
        wait_for(file.exists)
        self.address = json.loads(file.read_text())["address"]
        self.port = self.address.rpartition(":")[2]

    def worker(self, name):
        self.start(
            name, "dask_worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--name", name,
            "--death-timeout", "60",
        )  # fmt: skip

    def end(self, name, how=signal.SIGKILL):
        process = self.processes.pop(name)
        process.send_signal(how)
        process.wait(timeout=60)

    def client(self):
        return distributed.Client(self.address, timeout=60)


def wait_for(condition, seconds=120):
    for _ in range(seconds * 20):
        if condition():
            return
        threading.Event().wait(0.05)
    raise AssertionError("it never happened")


@pytest.fixture
def cluster(tmp_path):
    cluster = Cluster(tmp_path)
    cluster.scheduler()
    for name in ("one", "two"):
        cluster.worker(name)
    yield cluster
    for name in list(cluster.processes):
        cluster.end(name)


def sweep_in_background(folder, executor):
    """Start a sweep in a thread. Its list gets the table, or the exception."""
    outcome = []

    def run():
        try:
            outcome.append(sweep(GRID, folder, executor, progress=False))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def records(folder):
    return list(folder.glob("*.json"))


def test_workers_may_die_leave_and_join(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "make_runs", make_slowly)
    with cluster.client() as client:
        thread, outcome = sweep_in_background(tmp_path / "runs", client.get_executor())
        wait_for(lambda: len(records(tmp_path / "runs")) >= 4)
        cluster.end("one")
        cluster.worker("three")
        wait_for(lambda: "three" in {w["name"] for w in client.scheduler_info()["workers"].values()})
        cluster.end("two", signal.SIGTERM)
        thread.join(timeout=120)
    assert len(outcome[0]) == 30
    assert len(records(tmp_path / "runs")) == 30
    assert not any(run.error for run in RunStore(tmp_path / "runs"))


def test_a_scheduler_that_ends_loses_nothing_and_the_same_sweep_resumes(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "make_runs", make_slowly)
    client = cluster.client()
    thread, outcome = sweep_in_background(tmp_path / "runs", client.get_executor())
    wait_for(lambda: len(records(tmp_path / "runs")) >= 4)
    cluster.end("scheduler")
    thread.join(timeout=60)
    client.close(timeout=1)
    assert isinstance(outcome[0], RuntimeError)
    assert "the executor ended before the runs did" in str(outcome[0])
    before = {file.name: file.read_text() for file in records(tmp_path / "runs")}
    assert 4 <= len(before) < 30

    for name in list(cluster.processes):
        cluster.end(name)
    cluster.scheduler()
    cluster.worker("one")
    with cluster.client() as client:
        assert len(sweep(GRID, tmp_path / "runs", client.get_executor(), progress=False)) == 30
    assert len(records(tmp_path / "runs")) == 30
    assert {name: (tmp_path / "runs" / name).read_text() for name in before} == before


def test_the_command_trains_on_a_cluster_and_refuses_workers_with_other_code(cluster, tmp_path, monkeypatch, capsys):
    grid = tmp_path / "grid.json"
    grid.write_text(json.dumps({"steps": 2, "batch_size": 2, "task": "entailment", "lr": [1e-3, 1e-2]}))
    command = ["sweep", str(grid), "--store", str(tmp_path / "runs"), "--scheduler", cluster.address]
    assert cli.main(command) == 0
    runs = list(RunStore(tmp_path / "runs"))
    assert len(runs) == 2
    assert {run.device for run in runs} == {"CPU, 1 thread, float32"}
    monkeypatch.setattr(engine, "source_digest", lambda: "other")
    capsys.readouterr()
    assert cli.main([*command[:3], str(tmp_path / "other"), *command[4:]]) == 2
    assert "a worker has another version of nlora-lab" in capsys.readouterr().err
    assert len(RunStore(tmp_path / "other")) == 0


@pytest.mark.parametrize("where", [["--scheduler", "tcp://127.0.0.1:1"], ["--scheduler", "nonsense://x"], ["--slurm"]])
def test_a_cluster_that_cannot_be_reached_is_one_line(tmp_path, capsys, monkeypatch, where):
    monkeypatch.setattr("nlora_lab.cli.sweep.CONNECT", 1)
    grid = tmp_path / "grid.json"
    grid.write_text("{}")
    assert cli.main(["sweep", str(grid), "--store", str(tmp_path / "runs"), *where]) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith(f"nlora-lab: error: {' '.join(where)}")
    assert "\n" not in message


def test_without_the_extra_the_command_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    from nlora_lab.cli.sweep import _executor

    options = type("Options", (), {"scheduler": "tcp://x", "slurm": False})()
    with pytest.raises(InputError, match=r"pip install 'nlora-lab\[cluster\]'"), _executor(options):
        pass
