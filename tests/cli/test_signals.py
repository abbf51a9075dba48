"""Whatever signal ends a command, and whenever: one line says what is kept and how to resume, and all of it is kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nlora_lab.adapters.saved import read_adapter
from nlora_lab.cli import main as cli
from nlora_lab.core.interrupts import SIGNALS, exit_status
from nlora_lab.core.progress import ProgressLine
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.run import Run
from nlora_lab.runs.store import RunStore
from nlora_lab.training.checkpoints import CheckpointFolder

QUICK = ["--steps", "6", "--batch-size", "2", "--task", "entailment", "--test-rows", "4"]
CFG = RunConfig(steps=6, batch_size=2, task="entailment", test_rows=4)


RACE = ["race", "--methods", "lora,slora"]
every_way = pytest.mark.parametrize(("command", "number"), [*((["run"], n) for n in SIGNALS), (RACE, signal.SIGTERM)])


def raising(function, number, when=lambda *_, **__: True):
    """A function that receives a signal before it does its work, if ``when`` says so, once."""
    sent = []

    def wrapped(*args, **kwargs):
        if not sent and when(*args, **kwargs):
            sent.append(number)
            signal.raise_signal(number)
        return function(*args, **kwargs)

    return wrapped


def stop(monkeypatch, place, number, when=lambda *_, **__: True):
    module, _, name = place.rpartition(".")
    import importlib

    try:
        owner = importlib.import_module(module)
    except ModuleNotFoundError:
        owner = getattr(importlib.import_module(module.rpartition(".")[0]), module.rpartition(".")[2])
    monkeypatch.setattr(owner, name, raising(getattr(owner, name), number, when))


def last_line(capsys):
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert sum("stopped by" in line for line in lines) == 1
    assert lines[-1].startswith("nlora-lab: stopped by SIG")
    return out, lines[-1]


@every_way
def test_before_the_first_step_nothing_is_lost_because_nothing_is_there(monkeypatch, capsys, tmp_path, command, number):
    stop(monkeypatch, "nlora_lab.training.setup.build", number)
    status = cli.main([*command, *QUICK, "--out", str(tmp_path / "runs"), "--json"])
    out, line = last_line(capsys)
    assert status == exit_status(number)
    assert json.loads(out) == {"runs": []}
    assert f"{signal.Signals(number).name} before the first step; nothing was written; the same command starts" in line
    assert not list((tmp_path / "runs").iterdir())


@every_way
def test_while_training_record_and_adapter_are_kept_without_checkpoints(monkeypatch, capsys, tmp_path, command, number):
    stop(monkeypatch, "nlora_lab.core.progress.ProgressLine.advance", number, lambda _, text, *__: "step 3/6" in text)
    folders = ["--out", str(tmp_path / "runs"), "--adapter", str(tmp_path / "adapters")]
    status = cli.main([*command, *QUICK, *folders])
    out, line = last_line(capsys)
    assert status == exit_status(number)
    assert "after step 3 of 6; what was trained is in --out" in line
    assert line.endswith("the same command starts again")
    records = [Run.load(file) for file in (tmp_path / "runs").iterdir()]
    assert {(len(run.steps), run.stopped) for run in records} == {(3, True)}
    assert len(records) == len(list((tmp_path / "adapters").iterdir())) == len(command[1:]) // 2 + 1
    for adapter in (tmp_path / "adapters").iterdir():
        read_adapter(adapter)
    assert "stopped" in out


@every_way
def test_while_measuring_everything_is_on_the_disk_already(monkeypatch, capsys, tmp_path, command, number):
    seen = []

    def look(*_, **__):
        seen.append(sorted(path.name for path in tmp_path.glob("*/*")))
        return True

    stop(monkeypatch, "nlora_lab.evaluation.scoring.choose_labels", number, look)
    folders = ["--out", str(tmp_path / "runs"), "--adapter", str(tmp_path / "adapters")]
    status = cli.main([*command, *QUICK, *folders])
    _, line = last_line(capsys)
    assert status == exit_status(number)
    assert "after the last step, before everything was measured" in line
    count = len(command[1:]) // 2 + 1
    assert len(seen[0]) == 2 * count
    records = [Run.load(file) for file in (tmp_path / "runs").iterdir()]
    assert [(len(run.steps), run.stopped) for run in records] == [(6, True)] * count
    assert len(RunStore(tmp_path / "runs")) == 0  # a store does not count them
    for adapter in (tmp_path / "adapters").iterdir():
        read_adapter(adapter)


def test_a_signal_after_the_end_changes_nothing(monkeypatch, capsys, tmp_path):
    stop(
        monkeypatch, "nlora_lab.cli.run._record_path", signal.SIGTERM
    )  # once it is trained: it is still measured or not
    status = cli.main(["run", *QUICK, "--out", str(tmp_path)])
    (record,) = (Run.load(file) for file in tmp_path.iterdir())
    assert status == (143 if record.stopped else 0)
    assert len(record.steps) == 6


def test_with_checkpoints_the_same_command_resumes(monkeypatch, capsys, tmp_path):
    number = signal.SIGTERM
    command = ["run", *QUICK, "--checkpoints", str(tmp_path / "kept"), "--json"]
    with monkeypatch.context() as patch:
        stop(patch, "nlora_lab.core.progress.ProgressLine.advance", number, lambda _, text, *__: "step 2/6" in text)
        assert cli.main(command) == exit_status(number)
    _, line = last_line(capsys)
    assert line.endswith(f"the same command resumes from {tmp_path / 'kept'}")
    assert len(CheckpointFolder(tmp_path / "kept", CFG).newest().run.steps) == 2
    steps = []
    monkeypatch.setattr(ProgressLine, "advance", lambda self, text, by=1: steps.append(text))
    assert cli.main(command) == 0
    assert len([text for text in steps if "step" in text]) == 4


@pytest.mark.parametrize("number", SIGNALS)
def test_a_scan_resumes(monkeypatch, capsys, tmp_path, number):
    monkeypatch.setenv("NLORA_LAB_CACHE", str(tmp_path))
    with monkeypatch.context() as patch:
        stop(
            patch, "nlora_lab.spectra.scanning.measure", number, lambda *_: len(list(tmp_path.glob("spectra/*/*"))) == 3
        )
        assert cli.main(["scan", "embedded"]) == exit_status(number)
    out, line = last_line(capsys)
    assert out == ""
    assert "matrices that were measured are in the cache; the same command resumes" in line
    assert len(list(tmp_path.glob("spectra/*/*.json"))) == 3
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("number", SIGNALS)
def test_a_sweep_keeps_the_finished_runs(monkeypatch, capsys, tmp_path, number):
    from fake_runs import make_at_once

    from nlora_lab.sweeps import engine

    (tmp_path / "grid.json").write_text(json.dumps({"seed": list(range(40)), "steps": 1}))
    monkeypatch.setattr(engine, "make_runs", make_at_once)
    monkeypatch.setattr(engine, "_too_large", lambda configs: {})
    stop(monkeypatch, "nlora_lab.runs.store.RunStore.add", number, lambda store, _: len(store) == 5)
    status = cli.main(["sweep", str(tmp_path / "grid.json"), "--store", str(tmp_path / "runs"), "--workers", "1"])
    _, line = last_line(capsys)
    assert status == exit_status(number)
    assert line.endswith(f"finished runs are in {tmp_path / 'runs'}; the same command resumes")
    assert len(RunStore(tmp_path / "runs")) == 5


@pytest.mark.parametrize("number", SIGNALS)
def test_a_measurement_says_that_nothing_was_written(monkeypatch, capsys, number):
    stop(monkeypatch, "nlora_lab.evaluation.scoring.choose_labels", number)
    assert cli.main(["measure", "--task", "entailment", "--test-rows", "4"]) == exit_status(number)
    out, line = last_line(capsys)
    assert out == ""
    assert (
        line
        == f"nlora-lab: stopped by {signal.Signals(number).name}; nothing new was written; run the same command again"
    )


def begin(*command):
    return subprocess.Popen(
        [sys.executable, "-m", "nlora_lab", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL])
def test_a_process_that_ends_while_it_measures_has_lost_nothing(tmp_path, number):
    folders = ["--out", str(tmp_path / "runs"), "--adapter", str(tmp_path / "adapters")]
    child = begin("run", "--steps", "5", "--batch-size", "2", *folders)  # 200 answers take longer than the steps
    for line in child.stderr:
        if line.startswith("wrote"):
            break
    child.send_signal(number)
    _, err = child.communicate(timeout=60)
    assert child.returncode == (-9 if number == signal.SIGKILL else 129)
    assert ("stopped by SIGHUP" in err) == (number == signal.SIGHUP)
    (record,) = (Run.load(file) for file in (tmp_path / "runs").iterdir())
    assert (len(record.steps), record.stopped) == (5, True)
    (adapter,) = (tmp_path / "adapters").iterdir()
    read_adapter(adapter)


def test_a_signal_while_the_libraries_are_imported_is_one_line(tmp_path):
    child = begin("measure", "--task", "entailment")
    status = Path(f"/proc/{child.pid}/status")
    while status.exists() and not int(status.read_text().partition("SigCgt:")[2].split()[0], 16) & 1 << 14:
        time.sleep(0.01)  # until it has a handler of SIGTERM, the 15th signal: on a busy machine that takes seconds
    time.sleep(1.0)
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 143
    assert out == ""
    assert err.splitlines()[-1].startswith("nlora-lab: stopped by SIGTERM; nothing new was written")
