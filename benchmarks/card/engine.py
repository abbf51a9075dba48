"""Runs the parts of the command, each in a process of its own, within a time budget, and keeps what they measure.

A part is a file ``PART.json`` with its cases. A case is written as soon as it is done, so that nothing is lost when the
command is stopped. The next call measures what is missing.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlora_lab.core.files import write_atomically

from .sizes import Sizes

MEASURED, FAILED, NOT_MEASURED, RUNNING = "measured", "failed", "not measured", "running"
NO_TIME = "no time left"
Case = Callable[[], dict[str, Any]]


class CannotMeasureError(Exception):
    """A case cannot be measured here. The message says why."""


@dataclass(frozen=True)
class Context:
    """What a part needs to know: the device ("cpu" or "cuda"), the sizes, and the folder of the records."""

    device: str
    sizes: Sizes
    out: Path


@dataclass(frozen=True)
class Part:
    """A part of the command.

    Attributes:
        name: the name of its file.
        title: what it measures.
        cases: makes its cases, by name.
        seconds: the time that a case may take. A case is not started when less is left.
    """

    name: str
    title: str
    cases: Callable[[Context], dict[str, Case]]
    seconds: float


def read_part(out: Path, name: str) -> dict[str, Any]:
    """The cases of a part as they are recorded: ``{case: {"status": …, …}}``. Empty if there are none."""
    file = out / f"{name}.json"
    cases: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["cases"] if file.exists() else {}
    return cases


def write_part(out: Path, part: Part, cases: dict[str, Any]) -> None:
    """Write the cases of a part, completely or not at all."""
    write_atomically(out / f"{part.name}.json", json.dumps({"title": part.title, "cases": cases}, indent=1) + "\n")


def run_part(part: Part, context: Context, deadline: float) -> None:
    """Measure the cases of a part that are not measured yet. A case that fails leaves the others alone."""
    done = read_part(context.out, part.name)
    try:
        cases = part.cases(context)
    except Exception as error:
        write_part(context.out, part, {**done, "all": outcome_of(error)})
        return
    done = {name: done.get(name, {"status": NOT_MEASURED, "why": NO_TIME}) for name in cases}
    for name, case in cases.items():
        if done[name]["status"] == MEASURED:
            continue
        if time.monotonic() + part.seconds > deadline:
            done[name] = {"status": NOT_MEASURED, "why": NO_TIME}
            write_part(context.out, part, done)
            continue
        done[name] = {"status": RUNNING}
        write_part(context.out, part, done)
        started = time.perf_counter()
        try:
            done[name] = {"status": MEASURED, **case(), "wall_seconds": round(time.perf_counter() - started, 2)}
        except Exception as error:
            done[name] = outcome_of(error)
        write_part(context.out, part, done)


def outcome_of(error: Exception) -> dict[str, Any]:
    """The record of a case that raised: what is missing here, or the error with the end of its traceback."""
    if isinstance(error, CannotMeasureError | ImportError):
        return {"status": NOT_MEASURED, "why": str(error)}
    last = traceback.format_exception(error)[-3:]
    return {"status": FAILED, "error": f"{type(error).__name__}: {error}", "traceback": "".join(last)}


def run_parts(parts: list[Part], context: Context, minutes: float, report: Callable[[str], None]) -> None:
    """Run the parts one after the other, each in a process of its own.

    A part that crashes, or spoils the card for its process, cannot harm the next one. The processes are forked where
    that is possible, so that they need not import torch again. So this process must not touch the card.
    """
    deadline = time.monotonic() + 60 * minutes
    processes = multiprocessing.get_context("fork" if can_fork() else "spawn")
    for part in parts:
        started = time.monotonic()
        process: Any = processes.Process(target=run_part, args=(part, context, deadline))
        process.start()
        process.join(max(1.0, deadline - started))
        late = process.is_alive()
        if late:
            process.kill()
            process.join()
        _close(part, context.out, late, process.exitcode)
        report(f"{part.title}: {summary(read_part(context.out, part.name))}, {time.monotonic() - started:.0f} s")


def can_fork() -> bool:
    """Whether a forked process could use CUDA. It cannot once something in this process has asked the driver."""
    if "fork" not in multiprocessing.get_all_start_methods():
        return False
    probe = multiprocessing.get_context("fork").Process(target=_exit_if_barred)
    probe.start()
    probe.join()
    return probe.exitcode == 0


def _exit_if_barred() -> None:
    import torch

    sys.exit(int(torch.cuda._is_in_bad_fork()))


def _close(part: Part, out: Path, late: bool, exitcode: int | None) -> None:
    """Say of the case that was running when its process ended why it has no figures."""
    cases = read_part(out, part.name)
    ended = {"status": FAILED, "error": f"its process ended with exit code {exitcode}"}
    reason = {"status": NOT_MEASURED, "why": NO_TIME} if late else ended
    if exitcode and not cases:
        cases["all"] = reason
    cases = {name: reason if case["status"] == RUNNING else case for name, case in cases.items()}
    write_part(out, part, cases)


def summary(cases: dict[str, Any]) -> str:
    """How many cases have which status, in words."""
    statuses = [case["status"] for case in cases.values()]
    counts = [f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses)]
    return ", ".join(counts) or "no case"
