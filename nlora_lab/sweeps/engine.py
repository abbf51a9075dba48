"""Many runs into one store, by as many processes as there are cores; killed at any moment, it goes on where it was."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from nlora_lab.core.devices import find_device
from nlora_lab.core.errors import FitError, InputError
from nlora_lab.core.progress import ProgressLine
from nlora_lab.estimates.requirements import OVERRIDE
from nlora_lab.methods.table import BUILT_IN
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.leases import Lease
from nlora_lab.runs.run import Run, run_table, versions
from nlora_lab.runs.store import RunStore, read_records, run_key, write_packed
from nlora_lab.sweeps.grid import Grid, expand_grid

if TYPE_CHECKING:
    import pandas as pd

DEATHS = 2  # a run during which this many workers died, of it or for want of memory, is recorded as failed
KILLS = 20  # a run during which this many were killed by somebody is given up for this time
KILLED = (-signal.SIGTERM, -9)
LAST_WORDS = 2000  # bytes of a worker's stderr that are told when it cannot begin
TOGETHER = 8  # runs in one race on a card; on a CPU a race of big batches saves next to nothing
WORKER = [sys.executable, "-m", "nlora_lab.sweeps.worker"]


def sweep(
    grid: Grid,
    store: RunStore | str | Path,
    workers: int | None = None,
    *,
    together: int | None = None,
    progress: bool = True,
    retry: bool = False,
) -> pd.DataFrame:
    """Make every run of ``grid`` that ``store`` lacks, and return all of them, one row a run in the grid's order.

    ``grid``: fields of :class:`RunConfig` with lists of values, or configs (see :func:`expand_grid`). ``store``: a folder.
    ``workers``: processes, each with a single thread on a CPU; by default one a core, or one where there is a card.
    ``together``: how many runs that can share a base model a worker trains in one race (:func:`nlora_lab.race`); by
    default 8 on a card and 1 on a CPU, where 4 is worth it for batches of 4 or fewer. The workers end with this
    process. A run that diverges or runs out of memory is a result; an interrupt ends the sweep with a
    ``KeyboardInterrupt``, and calling it again makes what is missing. Several sweeps, here or on other machines, may
    work on one store at the same time.

    A run that ended with an error, for want of memory or because its process crashed twice, counts as done;
    ``retry=True`` makes it again where it has no other record, which then takes the place of the failed one. One whose
    process somebody killed is tried again.

    Raises :class:`nlora_lab.InputError` before anything is trained for a bad grid, a store that cannot be written, a
    number of workers below 1, and if nothing of the grid fits into the memory by estimate; :class:`RuntimeError` at the
    end if runs failed for another reason than memory or will not fit, with what was said of the first of them, and at
    once where the store can no longer be written.
    """
    store = store if isinstance(store, RunStore) else RunStore(store)
    configs = expand_grid(grid)
    for name, value in (("workers", workers), ("together", together)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InputError(f"{name}={value!r} must be a whole number of at least 1")
    there = store.keys() - (store.failed() if retry else set())
    missing = [cfg for cfg in configs if run_key(cfg) not in there]
    if missing:
        for cfg in missing:
            if cfg.method not in BUILT_IN:
                raise InputError(
                    f"method={cfg.method!r} is of this process alone, and the workers are others; use nl.race for it"
                )
        too_large = _check(missing)
        store.check_writable()
        if retry:
            _drop_failed(missing, store)
        fitting = [cfg for cfg in missing if run_key(cfg) not in too_large]
        size = min(default_workers(fitting) if workers is None else workers, len(fitting))
        try:
            _Crew(fitting, store, size, together, progress).work(too_large)
        finally:
            store.tidy()
    found = {run_key(run.config): run for run in sorted(store, key=lambda run: not run.error)}  # the last counts
    return run_table(found[run_key(cfg)] for cfg in configs if run_key(cfg) in found)


def _check(configs: Sequence[RunConfig]) -> dict[str, str]:
    """Raise :class:`InputError` for what cannot run here; return why some will not fit, by key, if others do."""
    from nlora_lab.estimates.requirements import check_fit
    from nlora_lab.training.races import check

    too_large: dict[str, str] = {}
    for cfg in configs:
        try:
            check_fit(cfg)
        except FitError as error:
            too_large[run_key(cfg)] = str(error)
    if len(too_large) == len(configs):
        raise FitError(next(iter(too_large.values())))
    check([cfg for cfg in configs if run_key(cfg) not in too_large])
    return too_large


def _drop_failed(configs: Iterable[RunConfig], store: RunStore) -> None:
    """Take away the records of those ``configs`` of which there are only failed ones, so that they are made again."""
    if not store.failed():
        return
    while not (claim := Lease(store.path, "pack")).take():
        time.sleep(0.1)  # somebody packs, or sweeps as we do; the claim of the dead is given up
    try:
        doomed = store.failed() & {run_key(cfg) for cfg in configs}  # only now: another sweep may have made some
        for file in [*store.path.glob("*.json"), *store.path.glob("**/*.jsonl")]:
            runs, others = read_records(file) or ([], [])
            kept = [run for run in runs if not (run.error and run_key(run.config) in doomed)]
            if len(kept) == len(runs):
                continue
            if kept or others:
                write_packed(file, kept, others)
            else:
                file.unlink(missing_ok=True)
    finally:
        claim.release()


def default_workers(configs: Sequence[RunConfig] = ()) -> int:
    """One a CPU core, as far as this process may use them and memory suffices; one for a card."""
    from nlora_lab.estimates.requirements import how_many_fit

    if not _on_cpu(configs):
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, how_many_fit(_unlike(configs)) or cores)


def _unlike(configs: Sequence[RunConfig]) -> list[RunConfig]:
    """One of those that take the same memory."""
    return list({replace(cfg, seed=0, lr=1.0, steps=1): cfg for cfg in configs}.values())


def _on_cpu(configs: Iterable[RunConfig]) -> bool:
    """Whether all of them run on the CPU, on a machine that may have a card."""
    return all(find_device(device).kind == "cpu" for device in {cfg.device for cfg in configs} or {None})


def _oom_kills() -> int | None:
    """How many processes the kernel has killed for want of memory since it started; ``None`` where it does not say."""
    try:
        words = Path("/proc/vmstat").read_text().split()
        return int(words[words.index("oom_kill") + 1])
    except (OSError, ValueError):
        return None


@dataclass
class _Worker:
    process: subprocess.Popen[str]
    errors: IO[bytes]  # what it says on stderr
    last_words: str = ""
    at: str = ""  # the run it is making
    oom_kills: int | None = field(default_factory=_oom_kills)  # when it was hired
    listener: threading.Thread = field(default_factory=threading.Thread)

    def close(self) -> int:
        """Wait for its end and close its pipes; the exit code."""
        code = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what was still to be written to the dead
                    pipe.close()
        self.errors.seek(max(0, self.errors.seek(0, os.SEEK_END) - LAST_WORDS))
        self.last_words = self.errors.read().decode(errors="replace").strip()
        self.errors.close()
        return code

    def was_killed(self, code: int) -> bool:
        """Whether somebody killed it, and not the kernel for want of memory."""
        return code in KILLED and _oom_kills() == self.oom_kills


class _Crew:
    """The workers of one sweep, and what they say."""

    def __init__(
        self, configs: Sequence[RunConfig], store: RunStore, size: int, together: int | None, progress: bool
    ) -> None:
        self.configs = {run_key(cfg): cfg for cfg in configs}
        self.store, self.size = store, size
        self.on_cpu = _on_cpu(configs)
        self.together = together or (1 if self.on_cpu else TOGETHER)
        self.news: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()
        self.at_work: list[_Worker] = []
        self.deaths: Counter[str] = Counter()
        self.kills: Counter[str] = Counter()
        self.failed: dict[str, str] = {}
        self.ended = ""  # why there is no point in going on
        self.steps: dict[str, int] = {}
        self.line = ProgressLine(sum(cfg.steps for cfg in configs)) if progress else None
        if self.line is not None:
            where = "the CPU, one thread each" if self.on_cpu else find_device(configs[0].device).words
            self.line.say(f"{len(configs)} runs by {size} worker{'s' * (size > 1)} on {where}")

    def work(self, too_large: Mapping[str, str]) -> None:
        """Until every run is there or has failed; those that are ``too_large`` have, with a reason each."""
        try:
            for _ in range(self.size):
                self._hire()
            while self.at_work and not self.ended:
                worker, event = self.news.get()
                if event is None:
                    self._gone(worker)
                else:
                    self._hear(worker, event)
        finally:
            self._dismiss()
            if self.line is not None:
                self.line.close()
        if self.ended:
            raise RuntimeError(f"the sweep has ended early: {self.ended}")
        there = self.store.keys()  # another worker, or another sweep, may have made what failed here
        failed = {key: why for key, why in {**self.failed, **too_large}.items() if key not in there}
        if failed:
            key, why = next(iter(failed.items()))
            every = len(self.configs) + len(too_large)
            raise RuntimeError(f"{len(failed)} of {every} runs failed, all others are kept; {key}:\n{why}")

    def _hire(self) -> None:
        threads = 1 if self.on_cpu else 0
        # what fits was looked at when nobody had begun; to a worker, the memory of the others is not free
        calm = {**os.environ, "TOKENIZERS_PARALLELISM": "false", OVERRIDE: "off"}
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the worker is there
        try:
            process = subprocess.Popen(
                WORKER,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                env={**calm, **({"OMP_NUM_THREADS": "1"} if threads else {})},
                start_new_session=True,  # the terminal's Ctrl-C is for the parent
            )  # fmt: skip
        except OSError:
            errors.close()
            raise
        worker = _Worker(process, errors)
        self.at_work.append(worker)
        left = [asdict(cfg) for key, cfg in self.configs.items() if key not in self.failed]
        assert process.stdin is not None
        with suppress(OSError):  # it has died already: its listener will say so
            process.stdin.write(
                json.dumps(
                    {
                        "store": str(self.store.path),
                        "threads": threads or os.cpu_count(),
                        "together": self.together,
                        "configs": left,
                    }
                )
                + "\n"
            )
            process.stdin.flush()
        worker.listener = threading.Thread(target=self._listen, args=(worker,), daemon=True, name="nlora-lab-sweep")
        worker.listener.start()

    def _listen(self, worker: _Worker) -> None:
        assert worker.process.stdout is not None
        for line in worker.process.stdout:
            with suppress(ValueError):  # a library's print, which may even be JSON
                event = json.loads(line)
                if isinstance(event, dict) and "event" in event:
                    self.news.put((worker, event))
        self.news.put((worker, None))

    def _hear(self, worker: _Worker, event: dict[str, Any]) -> None:
        if event["event"] == "end":
            self.ended = event["text"]
            return
        key = event["key"]
        if event["event"] == "start":
            worker.at = key
        elif event["event"] == "error":
            self.failed[key] = event["text"]
        else:
            done = self.configs[key].steps if event["event"] == "done" else event["step"]
            worker.at = "" if event["event"] == "done" else key
            gained, self.steps[key] = done - self.steps.get(key, 0), done
            if self.line is not None:
                self.line.advance(f"{sum(k in self.steps for k in self.configs)}/{len(self.configs)} {key}", gained)

    def _gone(self, worker: _Worker) -> None:
        """A worker has ended: because all is done, because a run raised, or because something killed it."""
        self.at_work.remove(worker)
        code, key = worker.close(), worker.at
        if code == 0:
            return
        self.together = 1  # if it was too much at once, it shall not be so again
        if key and key not in self.failed:
            self._interrupted(key, worker, code)
        elif not key:
            counted, most = (self.kills, KILLS) if worker.was_killed(code) else (self.deaths, self.size)
            counted[""] += 1
            if counted[""] > most:
                why = worker.last_words or "it said nothing"
                self.failed["a worker"] = f"ended with code {code} before its first run: {why}"
                return
        if self.configs.keys() - self.failed.keys() - self.store.keys():
            self._hire()

    def _interrupted(self, key: str, worker: _Worker, code: int) -> None:
        """A worker has died during a run, which is tried again, unless that looks like the run's own doing."""
        if worker.was_killed(code):
            self.kills[key] += 1
            if self.kills[key] >= KILLS:
                self.failed[key] = f"its process was killed {KILLS} times from outside; the same sweep tries it again"
            return
        self.deaths[key] += 1
        if self.deaths[key] >= DEATHS:
            self._record_death(self.configs[key], code)

    def _record_death(self, cfg: RunConfig, code: int) -> None:
        if cfg in self.store:
            return
        cause = ", for want of memory: try fewer workers" if code in KILLED else ""
        why = f"its process ended {DEATHS} times (exit code {code}){cause}"
        self.store.add(
            Run(cfg, (), {}, 0, 0.0, 0, device=find_device(cfg.device).words, versions=versions(), error=why)
        )

    def _dismiss(self) -> None:
        for worker in self.at_work:
            worker.process.kill()
        for worker in self.at_work:
            worker.listener.join()
            worker.close()
