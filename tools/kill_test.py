"""Kill commands at random moments, and check that nothing is lost that docs/errors.md promises.

    python -m tools.kill_test                      # ten kills of every command
    python -m tools.kill_test run export --kills 40 --seed 3

Each kill is SIGKILL or SIGTERM. It comes while the command works, at a moment drawn evenly from the time that an
undisturbed command takes. Then every file is checked, the same command is repeated undisturbed, and its files are
compared with those of a command that was never killed. The commands run in copies of this process (``os.fork``), which
has imported the libraries already, so it needs Linux or macOS.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from nlora_lab.adapters.saved import read_adapter
from nlora_lab.cli.main import main as nlora_lab
from nlora_lab.core.cache import OVERRIDE
from nlora_lab.models.safetensors import read_header
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.run import Run
from nlora_lab.runs.store import RunStore, run_key
from nlora_lab.spectra import scanning  # noqa: F401 - once here, and not again in each copy of this process
from nlora_lab.sweeps import engine  # noqa: F401
from nlora_lab.training import export, loop  # noqa: F401
from nlora_lab.training.checkpoints import CheckpointFolder

STEPS, ROWS = 8, 4
CFG = RunConfig(method="nlora", steps=STEPS, batch_size=2, task="entailment", test_rows=ROWS, dropout=0.1)
WORDS = f"--method nlora --steps {STEPS} --batch-size 2 --task entailment --test-rows {ROWS} --dropout 0.1".split()
GRID = {"seed": list(range(6)), "steps": 5, "batch_size": 2, "task": "entailment", "test_rows": ROWS}
LONGEST = 1200  # seconds that a command may take on a busy machine


class Lost(Exception):
    """A promise was broken."""


@dataclass(frozen=True)
class Scene:
    """A command with what it promises.

    Attributes:
        command: the command for a folder.
        prepare: makes what the command needs in the folder.
        check: checks the folder after a kill.
        result: what the command makes in the end, in a form that can be compared.
    """

    command: Callable[[Path], list[str]]
    prepare: Callable[[Path], object]
    check: Callable[[Path], object]
    result: Callable[[Path], Any]


def nothing(home: Path) -> None:
    """Prepare nothing."""


def require(holds: bool, what: str) -> None:
    """Raise ``Lost`` with ``what`` unless it ``holds``."""
    if not holds:
        raise Lost(what)


def history(run: Run) -> tuple[list[float], list[float]]:
    """Return losses and gradient norms."""
    return run.history["loss"].tolist(), run.history["grad_norm"].tolist()


# --- run --checkpoints --every 1 --out --adapter ---


def _run_command(home: Path) -> list[str]:
    places = ["--checkpoints", str(home / "kept"), "--every", "1"]
    return ["run", *WORDS, *places, "--out", str(home / "runs"), "--adapter", str(home / "adapters")]


def _records(home: Path) -> list[Run]:
    return [Run.load(file) for file in sorted((home / "runs").glob("*.json"))]


def _check_run(home: Path) -> None:
    steps = [len(run.steps) for run in _records(home)]  # each can be read
    for adapter in (home / "adapters").glob("[!.]*"):
        read_adapter(adapter)
    folder = CheckpointFolder(home / "kept", CFG)
    names = [int(path.name[5:]) for path in folder.folder.glob("step-*")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a kill leaves no checkpoint that cannot be used
        newest = folder.newest()
    require(not names or newest is not None, "the checkpoints are there, and none can be used")
    if newest is not None:
        require(len(newest.run.steps) == max(names), "the newest checkpoint is not the one that is used")
    require(not steps or max(steps) <= max(names), "the record is ahead of the checkpoints")


def _run_result(home: Path) -> Any:
    full = {json.dumps([history(run), run.metrics], sort_keys=True) for run in _records(home) if not run.stopped}
    return full  # a set: killed after the record was written, the command is finished, and a second one writes its own


# --- sweep ---


def _sweep_command(home: Path) -> list[str]:
    return ["sweep", str(home / "grid.json"), "--store", str(home / "runs"), "--workers", "2"]


def _write_grid(home: Path) -> None:
    (home / "grid.json").write_text(json.dumps(GRID), encoding="utf-8")


def _check_store(home: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        count = len(RunStore(home / "runs"))
    require(count == len(list((home / "runs").glob("*.json"))), "a record cannot be read, or is there twice")


def _sweep_result(home: Path) -> Any:
    return sorted((run_key(run.config), history(run)) for run in RunStore(home / "runs"))


# --- scan --csv ---


def _scan_command(home: Path) -> list[str]:
    return ["scan", "embedded", "--csv", str(home / "scan.csv")]


def _check_scan(home: Path) -> None:
    for file in (home / "cache").rglob("*.json"):
        json.loads(file.read_text(encoding="utf-8"))
    table = home / "scan.csv"
    if table.exists():
        text = table.read_text(encoding="utf-8")
        require(text.count("\n") == 29 and text.endswith("\n"), "scan.csv is half a table")


def _scan_result(home: Path) -> Any:
    return (home / "scan.csv").read_text(encoding="utf-8")


# --- export ---


def _save_adapter(home: Path) -> None:
    command = ["run", "--method", "nlora", "--steps", "2", "--batch-size", "2", "--test-rows", str(ROWS)]
    require(wait_for(start([*command, "--adapter", str(home / "made")], home)) == 0, f"no adapter: {_log(home)}")
    (home / "made" / "nlora").rename(home / "adapter")


def _export_command(form: str) -> Callable[[Path], list[str]]:
    def command(home: Path) -> list[str]:
        return ["export", str(home / "adapter"), "--as", form, "--out", str(home / "out")]

    return command


def _check_export(home: Path) -> None:
    out = home / "out"
    require(not out.exists() or (_is_complete(out)), "half an export has the name of a whole one")


def _is_complete(out: Path) -> bool:
    if (out / "adapter_config.json").exists():
        read_adapter(out)
        return True
    return bool(read_header(out / "model.safetensors")) and (out / "tokenizer.json").exists()


def _export_result(home: Path) -> Any:
    return {file.name: file.read_bytes() for file in sorted((home / "out").iterdir())}


SCENES = {
    "run": Scene(_run_command, nothing, _check_run, _run_result),
    "sweep": Scene(_sweep_command, _write_grid, _check_store, _sweep_result),
    "scan": Scene(_scan_command, nothing, _check_scan, _scan_result),
    "export-lora": Scene(_export_command("lora"), _save_adapter, _check_export, _export_result),
    "export-merged": Scene(_export_command("merged"), _save_adapter, _check_export, _export_result),
}


def start(command: list[str], home: Path) -> int:
    """Start a command in a copy of this process, and return its number."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.environ[OVERRIDE] = str(home / "cache")
        log = os.open(home / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = nlora_lab(command)
        sys.stdout.flush()
    finally:
        os._exit(code)


def wait_for(child: int, seconds: float = LONGEST) -> int | None:
    """Wait until a process has ended, and return its status as ``subprocess`` does. ``None``: it still works."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def finish(scene: Scene, home: Path) -> None:
    """Let the command run to its end."""
    status = wait_for(start(scene.command(home), home))
    require(status == 0, f"the undisturbed command ended with {status}: {_log(home)}")


def litter(home: Path) -> list[str]:
    """Return the half-written files and folders below ``home``."""
    return [str(path.relative_to(home)) for path in home.rglob("*.part")]


def kill_once(scene: Scene, home: Path, delay: float, number: signal.Signals) -> int | None:
    """Kill the command after ``delay`` seconds, and check what it left. ``None``: it had ended before."""
    child = start(scene.command(home), home)
    if wait_for(child, delay) is not None:
        return None
    workers = psutil.Process(child).children(recursive=True)
    os.kill(child, number)
    status = wait_for(child, 60)
    require(status is not None, f"it still works a minute after {number.name}")
    expected = (-9, 0) if number == signal.SIGKILL else (143, 0, -15)  # 0: it had just ended; -15: not yet begun
    require(status in expected, f"{number.name} ended it with {status}: {_log(home)}")
    _, alive = psutil.wait_procs(workers, timeout=20)
    require(not alive, f"its processes still work: {alive}")
    scene.check(home)
    return status


def _log(home: Path) -> str:
    return " | ".join((home / "log").read_text(encoding="utf-8").splitlines()[-3:])


@contextmanager
def prepared(scene: Scene) -> Iterator[Path]:
    """Yield a new folder with what a scene needs, and remove it at the end."""
    with tempfile.TemporaryDirectory(prefix="nlora-kill-test-") as name:
        scene.prepare(Path(name))
        yield Path(name)


def kill(name: str, kills: int, draw: random.Random) -> list[str]:
    """Kill a command many times, each time in a new folder, and return what was lost."""
    scene = SCENES[name]
    for _ in range(2):  # the first one takes longer
        with prepared(scene) as home:
            began = time.monotonic()
            finish(scene, home)
            length, whole = time.monotonic() - began, scene.result(home)
    found, early = [], 0
    for count in range(kills):
        number, delay = draw.choice([signal.SIGKILL, signal.SIGTERM]), draw.uniform(0.0, length)
        with prepared(scene) as home:
            try:
                early += kill_once(scene, home, delay, number) is not None
                if number == signal.SIGTERM:
                    require(not litter(home), f"SIGTERM left {litter(home)}")
                if not (home / "out").exists():  # an export that is complete is refused a second time
                    finish(scene, home)
                require(scene.result(home) == whole, "the result is not that of an undisturbed command")
                require(not litter(home), f"left for ever: {litter(home)}")
            except Exception as lost:
                found.append(f"{name}, kill {count}, {number.name} after {delay:.3f} s: {type(lost).__name__}: {lost}")
                print(found[-1], flush=True)
    print(f"{name}: {kills} kills in {length:.1f} s of work, {early} before its end, {len(found)} lost something")
    return found


def main() -> int:
    """Kill the commands that were named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="*", help=f"of {', '.join(SCENES)}; default: all")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    found = [kill(name, options.kills, draw) for name in options.scenes or SCENES]
    return int(any(found))


if __name__ == "__main__":
    sys.exit(main())
