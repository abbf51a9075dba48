"""The engine of a sweep: worker processes write many runs into one store. An interrupted sweep can be resumed."""

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
from nlora_lab.core.validation import check_whole_number
from nlora_lab.estimates.requirements import MEMORY_CHECK
from nlora_lab.methods.table import BUILT_IN
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.leases import Lease
from nlora_lab.runs.run import Run, run_table, versions
from nlora_lab.runs.store import RunStore, read_records, run_key, write_packed
from nlora_lab.sweeps.grid import Grid, expand_grid

if TYPE_CHECKING:
    import pandas as pd

MAX_CRASHES = 2  # a run during which this many workers crashed, or ran out of memory, is recorded as failed
MAX_KILLS = 20  # a run during which this many workers were killed from outside is given up by this sweep
KILLED_CODES = (-signal.SIGTERM, -9)
STDERR_TAIL = 2000  # bytes of a worker's stderr that are quoted when it cannot begin
RACE_SIZE = 8  # runs in one race on a card; on a CPU, a race of large batches saves next to nothing
WORKER_COMMAND = [sys.executable, "-m", "nlora_lab.sweeps.worker"]


def sweep(
    grid: Grid,
    store: RunStore | str | Path,
    workers: int | None = None,
    *,
    together: int | None = None,
    progress: bool = True,
    retry: bool = False,
) -> pd.DataFrame:
    """Make every run of a grid that a store lacks.

    A run that diverges or runs out of memory is a result. An interrupt raises ``KeyboardInterrupt``; call ``sweep``
    again to resume. Several sweeps, here or on other machines, may work on one store at the same time.

    Args:
        grid: fields of ``RunConfig`` with lists of values, or a list of configs (see ``expand_grid``).
        store: a store, or its folder.
        workers: the number of worker processes, each with one thread on a CPU. The default is one per core, or one if
            there is a card. Workers end with this process.
        together: how many runs with the same base model a worker trains in one race (see ``nl.race``). The default is
            8 on a card and 1 on a CPU. On a CPU, 4 is faster if a batch has at most 4 examples.
        progress: show a progress line on stderr.
        retry: make a failed run again if it has no other record. Without it, a run counts as done if it ended with an
            error, ran out of memory, or crashed its process twice. A run whose process was killed from outside is
            always made again.

    Returns:
        One row per run of the grid, in the order of the grid (see ``run_table``).

    Raises:
        InputError: before any training, if the grid is not valid, the store cannot be written, ``workers`` or
            ``together`` is not a whole number of at least 1, or no run of the grid fits into memory by estimate.
        RuntimeError: at the end, if runs failed for a reason other than memory or do not fit, with the message of the
            first one. At once, if the store cannot be written.
    """
    store = store if isinstance(store, RunStore) else RunStore(store)
    configs = expand_grid(grid)
    for name, value in (("workers", workers), ("together", together)):
        if value is not None:
            check_whole_number(name, value)
    finished = store.keys() - (store.failed() if retry else set())
    missing = [cfg for cfg in configs if run_key(cfg) not in finished]
    if missing:
        _make_missing(missing, store, workers, together, progress, retry)
    by_key = {run_key(run.config): run for run in sorted(store, key=lambda run: not run.error)}  # the last one counts
    return run_table(by_key[run_key(cfg)] for cfg in configs if run_key(cfg) in by_key)


def _make_missing(
    missing: Sequence[RunConfig],
    store: RunStore,
    workers: int | None,
    together: int | None,
    progress: bool,
    retry: bool,
) -> None:
    for cfg in missing:
        if cfg.method not in BUILT_IN:
            raise InputError(
                f"method={cfg.method!r} exists only in this process, and workers are other processes; "
                "use nl.race for it"
            )
    too_large = _check_runs(missing)
    store.check_writable()
    if retry:
        _drop_failed(missing, store)
    fitting = [cfg for cfg in missing if run_key(cfg) not in too_large]
    size = min(default_workers(fitting) if workers is None else workers, len(fitting))
    try:
        _WorkerPool(fitting, store, size, together, progress).run(too_large)
    finally:
        store.tidy()


def _check_runs(configs: Sequence[RunConfig]) -> dict[str, str]:
    """Check that the runs can be made here. Return, by key, why some of them do not fit into memory."""
    from nlora_lab.estimates.requirements import check_fit
    from nlora_lab.runs.resolution import resolve
    from nlora_lab.training.races import check_runs

    too_large: dict[str, str] = {}
    for cfg in configs:
        try:
            check_fit(cfg)
        except FitError as error:
            too_large[run_key(cfg)] = str(error)
    if len(too_large) == len(configs):
        raise FitError(next(iter(too_large.values())))
    check_runs([resolve(cfg) for cfg in configs if run_key(cfg) not in too_large])
    return too_large


def _drop_failed(configs: Iterable[RunConfig], store: RunStore) -> None:
    """Remove the records of those ``configs`` that have only failed records, so that the runs are made again."""
    if not store.failed():
        return
    while not (lease := Lease(store.path, "pack")).take():
        time.sleep(0.1)  # another process packs or drops records; the lease of a dead process ends by itself
    try:
        dropped = store.failed() & {run_key(cfg) for cfg in configs}  # read under the lease: another sweep may add runs
        for file in [*store.path.glob("*.json"), *store.path.glob("**/*.jsonl")]:
            runs, other_lines = read_records(file) or ([], [])
            remaining = [run for run in runs if not (run.error and run_key(run.config) in dropped)]
            if len(remaining) == len(runs):
                continue
            if remaining or other_lines:
                write_packed(file, remaining, other_lines)
            else:
                file.unlink(missing_ok=True)
    finally:
        lease.release()


def default_workers(configs: Sequence[RunConfig] = ()) -> int:
    """Return how many workers to start for these runs.

    The number is one per CPU core that this process may use, or fewer if the memory is not enough. For a card it is 1.
    """
    from nlora_lab.estimates.requirements import how_many_fit

    if not _all_on_cpu(configs):
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, how_many_fit(_one_of_each_size(configs)) or cores)


def _one_of_each_size(configs: Sequence[RunConfig]) -> list[RunConfig]:
    """One config for each set of configs that need the same memory."""
    return list({replace(cfg, seed=0, lr=1.0, steps=1): cfg for cfg in configs}.values())


def _all_on_cpu(configs: Iterable[RunConfig]) -> bool:
    """Whether all of them run on the CPU. A machine with a card can have such runs too."""
    return all(find_device(device).kind == "cpu" for device in {cfg.device for cfg in configs} or {None})


def _oom_kills() -> int | None:
    """How many processes the kernel killed since it started because memory ran out, or ``None`` if it does not say."""
    try:
        words = Path("/proc/vmstat").read_text().split()
        return int(words[words.index("oom_kill") + 1])
    except (OSError, ValueError):
        return None


@dataclass
class _Worker:
    process: subprocess.Popen[str]
    stderr: IO[bytes]
    stderr_tail: str = ""
    current: str = ""  # the key of the run that it is making
    oom_kills: int | None = field(default_factory=_oom_kills)  # when it was started
    listener: threading.Thread = field(default_factory=threading.Thread)

    def close(self) -> int:
        """Wait for the end of the process, close its pipes, and return the exit code."""
        code = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):  # text was left to write, and the reader is dead
                    pipe.close()
        self.stderr.seek(max(0, self.stderr.seek(0, os.SEEK_END) - STDERR_TAIL))
        self.stderr_tail = self.stderr.read().decode(errors="replace").strip()
        self.stderr.close()
        return code

    def was_killed(self, code: int) -> bool:
        """Whether it was killed from outside, and not by the kernel because memory ran out."""
        return code in KILLED_CODES and _oom_kills() == self.oom_kills


class _WorkerPool:
    """The workers of one sweep and the events that they send."""

    def __init__(
        self, configs: Sequence[RunConfig], store: RunStore, size: int, together: int | None, progress: bool
    ) -> None:
        self.configs = {run_key(cfg): cfg for cfg in configs}
        self.store, self.size = store, size
        self.on_cpu = _all_on_cpu(configs)
        self.together = together or (1 if self.on_cpu else RACE_SIZE)
        self.events: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()
        self.workers: list[_Worker] = []
        self.crashes: Counter[str] = Counter()
        self.kills: Counter[str] = Counter()
        self.failed: dict[str, str] = {}
        self.fatal = ""  # why the sweep cannot continue
        self.steps: dict[str, int] = {}
        self.progress = ProgressLine(sum(cfg.steps for cfg in configs)) if progress else None
        if self.progress is not None:
            place = "the CPU, one thread each" if self.on_cpu else find_device(configs[0].device).words
            self.progress.say(f"{len(configs)} runs by {size} worker{'s' * (size > 1)} on {place}")

    def run(self, too_large: Mapping[str, str]) -> None:
        """Work until every run is stored or has failed. ``too_large``: by key, why a run was left out."""
        try:
            for _ in range(self.size):
                self._start_worker()
            while self.workers and not self.fatal:
                worker, event = self.events.get()
                if event is None:
                    self._worker_ended(worker)
                else:
                    self._handle(worker, event)
        finally:
            self._stop_workers()
            if self.progress is not None:
                self.progress.close()
        if self.fatal:
            raise RuntimeError(f"the sweep has ended early: {self.fatal}")
        finished = self.store.keys()  # another worker, or another sweep, may have made a run that failed here
        failed = {key: reason for key, reason in {**self.failed, **too_large}.items() if key not in finished}
        if failed:
            key, reason = next(iter(failed.items()))
            total = len(self.configs) + len(too_large)
            raise RuntimeError(f"{len(failed)} of {total} runs failed, and the other runs are kept; {key}:\n{reason}")

    def _start_worker(self) -> None:
        threads = 1 if self.on_cpu else 0
        # memory was checked before the first worker started; a worker would count the others' memory as used
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", MEMORY_CHECK: "off"}
        if threads:
            environment["OMP_NUM_THREADS"] = "1"
        stderr = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the worker runs
        try:
            process = subprocess.Popen(
                WORKER_COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True,
                env=environment,
                start_new_session=True,  # the terminal's Ctrl-C is for the parent
            )  # fmt: skip
        except OSError:
            stderr.close()
            raise
        worker = _Worker(process, stderr)
        self.workers.append(worker)
        order = {
            "store": str(self.store.path),
            "threads": threads or os.cpu_count(),
            "together": self.together,
            "configs": [asdict(cfg) for key, cfg in self.configs.items() if key not in self.failed],
        }
        assert process.stdin is not None
        with suppress(OSError):  # the worker is already dead, and its listener will report that
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
        worker.listener = threading.Thread(target=self._listen, args=(worker,), daemon=True, name="nlora-lab-sweep")
        worker.listener.start()

    def _listen(self, worker: _Worker) -> None:
        assert worker.process.stdout is not None
        for line in worker.process.stdout:
            with suppress(ValueError):  # a library's print, which may even be JSON
                event = json.loads(line)
                if isinstance(event, dict) and "event" in event:
                    self.events.put((worker, event))
        self.events.put((worker, None))

    def _handle(self, worker: _Worker, event: dict[str, Any]) -> None:
        if event["event"] == "end":
            self.fatal = event["text"]
            return
        key = event["key"]
        if event["event"] == "start":
            worker.current = key
        elif event["event"] == "error":
            self.failed[key] = event["text"]
        else:
            done = self.configs[key].steps if event["event"] == "done" else event["step"]
            worker.current = "" if event["event"] == "done" else key
            gained, self.steps[key] = done - self.steps.get(key, 0), done
            if self.progress is not None:
                number = sum(k in self.steps for k in self.configs)
                self.progress.advance(f"{number}/{len(self.configs)} {key}", gained)

    def _worker_ended(self, worker: _Worker) -> None:
        """Find out why a worker ended, and start another one if runs are left.

        A worker ends when all runs are done, after a run that raised, or because something killed it.
        """
        self.workers.remove(worker)
        code, key = worker.close(), worker.current
        if code == 0:
            return
        self.together = 1  # if a race took too much memory, the next workers make single runs
        if key and key not in self.failed:
            self._count_death(key, worker, code)
        elif not key:
            counter, limit = (self.kills, MAX_KILLS) if worker.was_killed(code) else (self.crashes, self.size)
            counter[""] += 1
            if counter[""] > limit:
                reason = worker.stderr_tail or "it wrote nothing to stderr"
                self.failed["a worker"] = f"ended with code {code} before its first run: {reason}"
                return
        if self.configs.keys() - self.failed.keys() - self.store.keys():
            self._start_worker()

    def _count_death(self, key: str, worker: _Worker, code: int) -> None:
        """Count a worker that died during a run. The run is made again, unless the run itself seems to be the cause."""
        if worker.was_killed(code):
            self.kills[key] += 1
            if self.kills[key] >= MAX_KILLS:
                self.failed[key] = f"its process was killed {MAX_KILLS} times from outside; sweep again to retry it"
            return
        self.crashes[key] += 1
        if self.crashes[key] >= MAX_CRASHES:
            self._record_crash(self.configs[key], code)

    def _record_crash(self, cfg: RunConfig, code: int) -> None:
        if cfg in self.store:
            return
        cause = ", out of memory: try fewer workers" if code in KILLED_CODES else ""
        reason = f"its process ended {MAX_CRASHES} times (exit code {code}){cause}"
        self.store.add(
            Run(cfg, (), {}, 0, 0.0, 0, device=find_device(cfg.device).words, versions=versions(), error=reason)
        )

    def _stop_workers(self) -> None:
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            worker.listener.join()
            worker.close()
