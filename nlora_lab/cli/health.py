"""Is this machine ready for the course? One line a check, with the remedy where something is amiss."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from nlora_lab.core.errors import InputError
from nlora_lab.core.formatting import format_bytes

PACKAGE = "nlora-lab"
START = "00_start_here.ipynb"
MODEL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
SPLITS = ("train", "validation", "test")
MEMORY, DISK = 1 * 2**30, 1 * 2**30  # bytes free: enough for the embedded model, and for a small one from the hub


@dataclass(frozen=True)
class CheckResult:
    """The outcome of a check: "ok", "note" (works, but worth knowing) or "PROBLEM", and what to do."""

    state: Literal["ok", "note", "PROBLEM"]
    words: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.state:<8} {self.words}" + (f"; {self.remedy}" if self.remedy else "")


def doctor() -> bool:
    """Print one line a check; ``True`` if none of them is a PROBLEM.

    Looks at versions, device, figures, shipped files, disk and cache, and never at the network. Never
    raises: a check that fails itself is a PROBLEM that names the exception.
    """
    healthy = True
    for check in CHECKS:
        for finding in _findings(check):
            print(finding)  # noqa: T201  # its lines are what it is for
            healthy = healthy and finding.state != "PROBLEM"
    verdict = "ready" if healthy else "not ready: see the lines marked PROBLEM"
    print(f"nlora-lab {_installed(PACKAGE) or '(not installed)'} is {verdict}")  # noqa: T201
    return healthy


def _findings(check: Callable[[], Iterator[CheckResult]]) -> Iterator[CheckResult]:
    try:
        yield from check()
    except InputError as error:  # says itself what to do
        yield CheckResult("PROBLEM", _home(str(error)))
    except Exception as error:  # a broken library can raise anything when it is imported
        what = check.__name__.strip("_").replace("_", " ")
        said = _home(" ".join(str(error).split())[:200])
        yield CheckResult(
            "PROBLEM", f"the check of {what} failed with {type(error).__name__}: {said}", "install nlora-lab again"
        )


def _home(text: str) -> str:
    """Paths below the home folder as ``~``: a line pasted into a question should not carry a name."""
    try:
        home = str(Path.home())
    except RuntimeError:  # a user without one
        return text
    return text if home == os.sep else text.replace(home, "~")


# --- what is installed ---


def _python() -> Iterator[CheckResult]:
    wanted = SpecifierSet(metadata(PACKAGE)["Requires-Python"] or "")
    here = ".".join(map(str, sys.version_info[:3]))
    if here not in wanted:
        yield CheckResult(
            "PROBLEM", f"Python {here} is too old: {wanted}", "make a new environment with a newer Python"
        )
    else:
        yield CheckResult("ok", f"Python {here} ({wanted})")


def _libraries() -> Iterator[CheckResult]:
    """The libraries the package needs, by its own metadata."""
    for requirement in map(Requirement, requires(PACKAGE) or []):
        if requirement.marker is None:
            yield _library(requirement)


def _library(requirement: Requirement) -> CheckResult:
    name, bounds = requirement.name, requirement.specifier
    found = _installed(name)
    remedy = f"run: pip install -U '{name}{bounds}'"
    if found is None:
        return CheckResult("PROBLEM", f"{name} is not installed", remedy)
    if not bounds.contains(found, prereleases=True):
        return CheckResult("PROBLEM", f"{name} {found} is too old: {bounds}", remedy)
    return CheckResult("ok", f"{name} {found} ({bounds})" if bounds else f"{name} {found}")


def _extras() -> Iterator[CheckResult]:
    """JupyterLab is not needed where a notebook server is there already, as in Colab."""
    for requirement in map(Requirement, requires(PACKAGE) or []):
        if requirement.marker is None or not requirement.marker.evaluate({"extra": "lab"}):
            continue
        found = _library(requirement)
        if found.state == "ok":
            yield found
        else:
            yield CheckResult("note", f"{found.words}, which only `nlora-lab lab` needs", _LAB)


_LAB = "run: pip install 'nlora-lab[lab]'"


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


# --- what it runs on ---


def _device() -> Iterator[CheckResult]:
    import psutil
    import torch

    from nlora_lab.core.devices import OVERRIDE, find_device

    try:
        device = find_device()
    except InputError as error:
        yield CheckResult("PROBLEM", str(error), f"it was asked for by {OVERRIDE}: unset that")
        return
    chosen = f" (by {OVERRIDE})" if os.environ.get(OVERRIDE) else ""
    if device.kind == "cuda":
        free, total = torch.cuda.mem_get_info()
    else:
        memory = psutil.virtual_memory()
        free, total = memory.available, memory.total
    threads = "" if device.kind == "cpu" else f", {torch.get_num_threads()} CPU threads"  # a CPU's words have them
    words = f"runs take place on {device.words}{chosen}{threads}, {format_bytes(free)} of {format_bytes(total)} free"
    if free < MEMORY:
        yield CheckResult("note", words, "close other programs if a run ends for want of memory")
    else:
        yield CheckResult("ok", words)


def _figures() -> Iterator[CheckResult]:
    from nlora_lab.labs.figures import OVERRIDE, in_colab, pick_figures

    try:
        picked = pick_figures()
    except InputError as error:
        yield CheckResult("PROBLEM", str(error), f"it was asked for by {OVERRIDE}: unset that")
        return
    if os.environ.get(OVERRIDE) == picked:
        yield CheckResult("ok", f"figures are {_FIGURES[picked]}, because {OVERRIDE} says so")
    elif picked == "plotly":
        yield CheckResult("ok", f"figures are {_FIGURES[picked]}")
    elif in_colab() or {"VSCODE_PID", "VSCODE_CWD"} & set(os.environ):
        place = "Colab" if in_colab() else "VS Code"
        yield CheckResult(
            "note",
            f"figures are {_FIGURES[picked]}: {place} does not always show live ones",
            f"set {OVERRIDE}=plotly to try",
        )
    else:
        yield CheckResult(
            "note",
            f"figures are {_FIGURES[picked]}: plotly cannot make a widget here",
            "run: pip install -U anywidget plotly",
        )


_FIGURES = {"plotly": "live (plotly)", "image": "images, drawn once a second"}


# --- what came with the package ---


def _embedded_model() -> Iterator[CheckResult]:
    from safetensors import safe_open

    from nlora_lab.core.files import shipped_folder

    folder = shipped_folder("data") / "embedded"
    missing = [name for name in MODEL_FILES if not (folder / name).is_file()]
    if missing:
        yield _incomplete(f"the embedded model lacks {', '.join(missing)}")
        return
    for name in MODEL_FILES:
        if name.endswith(".json") and not _is_json(folder / name):
            yield _incomplete(f"{name} of the embedded model is damaged")
            return
    try:
        with safe_open(folder / "model.safetensors", "pt") as weights:  # compares its table with the file's size
            tensors = len(list(weights.keys()))
    except Exception as error:  # safetensors raises a class of its own
        yield _incomplete(f"the embedded model's weights are damaged ({' '.join(str(error).split())[:100]})")
        return
    yield CheckResult("ok", f"the embedded model is complete: {len(MODEL_FILES)} files, {tensors} tensors")


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
    found = sorted(folder.glob("*.ipynb"))
    damaged = [f.name for f in found if not _is_json(f)]
    if START not in (f.name for f in found):
        yield _incomplete(f"{START} is missing")
    elif damaged:
        yield _incomplete(f"these notebooks are damaged: {', '.join(damaged)}")
    else:
        yield CheckResult("ok", f"the notebooks are there: {len(found)}, in {_home(str(folder))}")


def _incomplete(words: str) -> CheckResult:
    return CheckResult("PROBLEM", words, "install nlora-lab again, or in a clone run: git checkout data notebooks")


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return True


# --- where results are kept ---


def _cache() -> Iterator[CheckResult]:
    from nlora_lab.core.cache import OVERRIDE, cache_folder

    folder = cache_folder()
    name = _home(str(folder))
    try:
        place = _existing(folder)
        with tempfile.TemporaryFile(dir=place):  # leaves nothing behind
            pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        yield CheckResult(
            "note",
            f"the cache {name} cannot be written ({reason}), so every scan is computed anew",
            f"set {OVERRIDE} to a folder that can be",
        )
        return
    free = shutil.disk_usage(place).free
    words = f"the cache {name} can be written, {format_bytes(free)} of disk free"
    if free < DISK:
        yield CheckResult("note", words, "make room before you load a model from the hub")
    else:
        yield CheckResult("ok", words)


def _existing(folder: Path) -> Path:
    """``folder``, or the nearest one above it that exists."""
    absolute = folder.absolute()
    return next(place for place in (absolute, *absolute.parents) if place.exists())


CHECKS: tuple[Callable[[], Iterator[CheckResult]], ...] = (
    _python, _libraries, _extras, _device, _figures, _embedded_model, _tasks, _notebooks, _cache,
)  # fmt: skip
