"""The command ``doctor``: is this machine ready for the course? One line per check, with a remedy for each problem."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from nlora_lab.cli.lab import START
from nlora_lab.cli.parsers import add_command
from nlora_lab.core.documents import read_json
from nlora_lab.core.errors import InputError
from nlora_lab.core.formatting import format_bytes

PACKAGE = "nlora-lab"
MODEL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
SPLITS = ("train", "validation", "test")
MEMORY, DISK = 1 * 2**30, 1 * 2**30  # free bytes: enough for the embedded model, and for a small one from the hub
INSTALL_AGAIN = "install nlora-lab again"
FIGURE_NAMES = {"plotly": "live (plotly)", "image": "images, drawn once a second"}


@dataclass(frozen=True)
class CheckResult:
    """The result of a check.

    Attributes:
        state: "ok", "note" (works, but worth knowing) or "PROBLEM".
        message: one line that says what the check saw.
        remedy: what to do, or nothing.
    """

    state: Literal["ok", "note", "PROBLEM"]
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.state:<8} {self.message}" + (f"; {self.remedy}" if self.remedy else "")


def add_doctor(commands: Any) -> argparse.ArgumentParser:
    """Add ``doctor`` to the subparsers, and return its parser."""
    purpose = "check this machine: versions, device, figures, files, disk and cache"
    return add_command(commands, "doctor", purpose, "nlora-lab doctor", lambda options: 0 if doctor() else 1)


def doctor() -> bool:
    """Check this machine, and print one line per check.

    The checks look at versions, the device, figures, the files that ship, disk and cache. They never use the network.
    A check never ends the doctor: if it fails itself, its line is a PROBLEM that names the exception.

    Returns:
        ``True`` if no line is a PROBLEM.
    """
    healthy = True
    for check in CHECKS:
        for result in _results(check):
            print(result)
            healthy = healthy and result.state != "PROBLEM"
    verdict = "ready" if healthy else "not ready: see the lines marked PROBLEM"
    print(f"nlora-lab {_installed(PACKAGE) or '(not installed)'} is {verdict}")
    return healthy


def _results(check: Callable[[], Iterator[CheckResult]]) -> Iterator[CheckResult]:
    try:
        yield from check()
    except InputError as error:  # its message names the remedy
        yield CheckResult("PROBLEM", _shorten_home(str(error)))
    except Exception as error:  # a broken library can raise anything when it is imported
        name = check.__name__.strip("_").replace("_", " ")
        reason = _shorten_home(" ".join(str(error).split())[:200])
        message = f"the check of {name} failed with {type(error).__name__}: {reason}"
        yield CheckResult("PROBLEM", message, INSTALL_AGAIN)


def _shorten_home(text: str) -> str:
    """Replace the home folder by ``~``, so that a line pasted into a question does not show a user's name."""
    try:
        home = str(Path.home())
    except RuntimeError:  # a user without a home folder
        return text
    return text if home == os.sep else text.replace(home, "~")


# --- what is installed ---


def _python() -> Iterator[CheckResult]:
    bounds = SpecifierSet(metadata(PACKAGE)["Requires-Python"] or "")
    current = ".".join(map(str, sys.version_info[:3]))
    if current not in bounds:
        message = f"Python {current} is too old: {bounds}"
        yield CheckResult("PROBLEM", message, "make a new environment with a newer Python")
    else:
        yield CheckResult("ok", f"Python {current} ({bounds})")


def _libraries() -> Iterator[CheckResult]:
    """The libraries that the package needs, by its own metadata."""
    for requirement in map(Requirement, requires(PACKAGE) or []):
        if requirement.marker is None:
            yield _library(requirement)


def _library(requirement: Requirement) -> CheckResult:
    name, bounds = requirement.name, requirement.specifier
    current = _installed(name)
    remedy = f"run: pip install -U '{name}{bounds}'"
    if current is None:
        return CheckResult("PROBLEM", f"{name} is not installed", remedy)
    if not bounds.contains(current, prereleases=True):
        return CheckResult("PROBLEM", f"{name} {current} is too old: {bounds}", remedy)
    return CheckResult("ok", f"{name} {current} ({bounds})" if bounds else f"{name} {current}")


def _extras() -> Iterator[CheckResult]:
    """JupyterLab. It is not needed where a notebook server already runs, as in Colab."""
    for requirement in map(Requirement, requires(PACKAGE) or []):
        if requirement.marker is None or not requirement.marker.evaluate({"extra": "lab"}):
            continue
        result = _library(requirement)
        if result.state == "ok":
            yield result
        else:
            message = f"{result.message}; only `nlora-lab lab` needs it"
            yield CheckResult("note", message, "run: pip install 'nlora-lab[lab]'")


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


# --- what a run uses ---


def _device() -> Iterator[CheckResult]:
    import psutil
    import torch

    from nlora_lab.core.devices import OVERRIDE, find_device

    try:
        device = find_device()
    except InputError as error:
        yield CheckResult("PROBLEM", str(error), f"{OVERRIDE} sets it: unset {OVERRIDE}")
        return
    source = f" (by {OVERRIDE})" if os.environ.get(OVERRIDE) else ""
    if device.kind == "cuda":
        free, total = torch.cuda.mem_get_info()
    else:
        memory = psutil.virtual_memory()
        free, total = memory.available, memory.total
    threads = "" if device.kind == "cpu" else f", {torch.get_num_threads()} CPU threads"  # a CPU's words have them
    message = f"training runs on {device.words}{source}{threads}, {format_bytes(free)} of {format_bytes(total)} free"
    if free < MEMORY:
        yield CheckResult("note", message, "close other programs if a run ends for lack of memory")
    else:
        yield CheckResult("ok", message)


def _figures() -> Iterator[CheckResult]:
    from nlora_lab.labs.figures import OVERRIDE, in_colab, pick_figures

    try:
        kind = pick_figures()
    except InputError as error:
        yield CheckResult("PROBLEM", str(error), f"{OVERRIDE} sets it: unset {OVERRIDE}")
        return
    message = f"figures are {FIGURE_NAMES[kind]}"
    if os.environ.get(OVERRIDE) == kind:
        yield CheckResult("ok", f"{message}, because {OVERRIDE} says so")
    elif kind == "plotly":
        yield CheckResult("ok", message)
    elif in_colab() or {"VSCODE_PID", "VSCODE_CWD"} & set(os.environ):
        editor = "Colab" if in_colab() else "VS Code"
        message += f": {editor} does not always show live ones"
        yield CheckResult("note", message, f"set {OVERRIDE}=plotly to try")
    else:
        message += ": plotly cannot make a widget in this environment"
        yield CheckResult("note", message, "run: pip install -U anywidget plotly")


# --- what ships with the package ---


def _embedded_model() -> Iterator[CheckResult]:
    return _model("embedded")


def _larger_model() -> Iterator[CheckResult]:
    return _model("larger")


def _model(name: str) -> Iterator[CheckResult]:
    from safetensors import safe_open

    from nlora_lab.core.files import shipped_folder

    folder = shipped_folder("data") / name
    missing = [file for file in MODEL_FILES if not (folder / file).is_file()]
    if missing:
        yield _incomplete(f"the {name} model lacks {', '.join(missing)}")
        return
    for file in MODEL_FILES:
        if file.endswith(".json") and not _is_json(folder / file):
            yield _incomplete(f"{file} of the {name} model is damaged")
            return
    try:
        with safe_open(folder / "model.safetensors", "pt") as weights:  # compares its table with the file's size
            tensors = len(list(weights.keys()))
    except Exception as error:  # safetensors raises a class of its own
        yield _incomplete(f"the {name} model's weights are damaged ({' '.join(str(error).split())[:100]})")
        return
    yield CheckResult("ok", f"the {name} model is complete: {len(MODEL_FILES)} files, {tensors} tensors")


def _tasks() -> Iterator[CheckResult]:
    from nlora_lab.core.files import shipped_folder
    from nlora_lab.tasks.generated import TASKS

    folder = shipped_folder("data") / "tasks"
    files = [folder / task / f"{split}.jsonl" for task in TASKS for split in SPLITS]
    missing = [str(f.relative_to(folder)) for f in files if not f.is_file() or f.stat().st_size == 0]
    if missing:
        yield _incomplete(f"the tasks lack {', '.join(missing)}")
    else:
        yield CheckResult("ok", f"the tasks are complete: {', '.join(TASKS)}")


def _notebooks() -> Iterator[CheckResult]:
    from nlora_lab.core.files import shipped_folder

    folder = shipped_folder("notebooks")
    notebooks = sorted(folder.glob("*.ipynb"))
    damaged = [f.name for f in notebooks if not _is_json(f)]
    if START not in (f.name for f in notebooks):
        yield _incomplete(f"{START} is missing")
    elif damaged:
        yield _incomplete(f"these notebooks are damaged: {', '.join(damaged)}")
    else:
        yield CheckResult("ok", f"the notebooks are complete: {len(notebooks)}, in {_shorten_home(str(folder))}")


def _incomplete(message: str) -> CheckResult:
    return CheckResult("PROBLEM", message, f"{INSTALL_AGAIN}, or in a clone run: git checkout data notebooks")


def _is_json(path: Path) -> bool:
    try:
        read_json(path)
    except (OSError, ValueError):
        return False
    return True


# --- where results are stored ---


def _cache() -> Iterator[CheckResult]:
    from nlora_lab.core.cache import OVERRIDE, cache_folder

    folder = cache_folder()
    name = _shorten_home(str(folder))
    try:
        place = _existing(folder)
        with tempfile.TemporaryFile(dir=place):  # leaves nothing behind
            pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        message = f"the cache {name} cannot be written ({reason}), so every scan is computed anew"
        yield CheckResult("note", message, f"set {OVERRIDE} to a folder that can be written")
        return
    free = shutil.disk_usage(place).free
    message = f"the cache {name} can be written, {format_bytes(free)} of disk free"
    if free < DISK:
        yield CheckResult("note", message, "make room before you load a model from the hub")
    else:
        yield CheckResult("ok", message)


def _existing(folder: Path) -> Path:
    """The folder itself, or the nearest folder above it that exists."""
    absolute = folder.absolute()
    return next(place for place in (absolute, *absolute.parents) if place.exists())


CHECKS: tuple[Callable[[], Iterator[CheckResult]], ...] = (
    _python, _libraries, _extras, _device, _figures, _embedded_model, _larger_model, _tasks, _notebooks, _cache,
)  # fmt: skip
