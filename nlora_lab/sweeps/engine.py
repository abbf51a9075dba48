"""The engine of a sweep: an executor makes the runs, and this process writes their records into a store."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nlora_lab.core.devices import Device, find_device
from nlora_lab.core.errors import FitError, InputError
from nlora_lab.core.progress import NotebookProgress, ProgressLine, show_progress
from nlora_lab.core.validation import check_whole_number
from nlora_lab.estimates.requirements import MEMORY_CHECK
from nlora_lab.methods.table import BUILT_IN
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.run import Run, run_table, versions
from nlora_lab.runs.store import RunStore, run_key
from nlora_lab.sweeps.grid import Grid, configs_by_key
from nlora_lab.sweeps.local import CallKilled, LocalExecutor
from nlora_lab.sweeps.worker import Made, make_runs, source_digest

if TYPE_CHECKING:
    import pandas as pd

RACE_SIZE = 8  # runs in one race on a card; on a CPU, a race of large batches saves next to nothing
IN_HAND = 1000  # calls that an executor holds at a time: enough for any cluster, and little to send again
ELSEWHERE = Device("cpu", "no", "")  # a stand-in for the device of a worker that is not known here


def sweep(
    grid: Grid,
    store: RunStore | str | Path,
    executor: Executor | None = None,
    *,
    workers: int | None = None,
    together: int | None = None,
    progress: bool = True,
    retry: bool = False,
) -> pd.DataFrame:
    """Make every run of a grid that a store lacks.

    A run that diverges or runs out of memory is a result. An interrupt raises ``KeyboardInterrupt``. Call ``sweep``
    again to resume: only the runs that were being made are lost.

    Args:
        grid: fields of ``RunConfig`` with lists of values, or a list of configs (see ``expand_grid``).
        store: a store, or its folder. Only this process writes into it.
        executor: makes the runs: any ``concurrent.futures.Executor``, such as ``client.get_executor()`` of Dask. The
            default is ``LocalExecutor``: one process with one thread per core, or one process per card.
        workers: the number of processes of the default executor.
        together: how many runs with the same base model a worker trains in one race (see ``nl.race``). The default is
            8 on cards of this machine and 1 otherwise. On a CPU, 4 is faster if a batch has at most 4 examples.
        progress: show the progress and the time left.
        retry: make a failed run again if it has no other record. Without it, a run counts as done if it ran out of
            memory or ended its process twice.

    Returns:
        One row per run of the grid, in the order of the grid (see ``run_table``).

    Raises:
        InputError: before any training, if the grid is not valid, the store cannot be written, or no run of the grid
            fits into memory by estimate. Later, if the store can no longer be written, or a worker has other code.
        RuntimeError: the executor ended before the runs did, or, at the end, runs raised or do not fit. The message
            has the first reason. All finished runs are in the store.
    """
    store = store if isinstance(store, RunStore) else RunStore(store)
    configs = configs_by_key(grid)
    for name, value in (("workers", workers), ("together", together)):
        if value is not None:
            check_whole_number(name, value)
    if executor is not None and not isinstance(executor, Executor):
        raise InputError(f"executor={executor!r} is not a concurrent.futures.Executor; leave it out for this machine")
    finished = store.keys() - (store.failed() if retry else set())
    missing = {key: cfg for key, cfg in configs.items() if key not in finished}
    if missing:
        for cfg in missing.values():
            if cfg.method not in BUILT_IN:
                raise InputError(
                    f"method={cfg.method!r} exists only in this process, and workers are other processes; "
                    "use nl.race for it"
                )
        failed = {} if executor else _too_large(missing.values())
        store.check_writable()
        if retry:
            store.drop_failed(set(missing))
        _make_missing(missing.values(), failed, store, executor, workers, together, progress)
    by_key = {run_key(run.config): run for run in sorted(store, key=lambda run: not run.error)}  # the last one counts
    return run_table(by_key[key] for key in configs if key in by_key)


def _make_missing(
    missing: Collection[RunConfig],
    failed: dict[str, str],
    store: RunStore,
    executor: Executor | None,
    workers: int | None,
    together: int | None,
    progress: bool,
) -> None:
    """Make the runs that fit into memory. ``failed``: by key, why the others do not."""
    total = len(missing)
    missing = [cfg for cfg in missing if run_key(cfg) not in failed]
    size = together or (1 if executor or _all_on_cpu(missing) else RACE_SIZE)
    line = show_progress(sum(cfg.steps for cfg in missing)) if progress else None
    try:
        with nullcontext(executor) if executor else LocalExecutor(environments(missing, workers)) as used:
            _Making(store, deque(_groups(missing, size)), line, failed).run(used)
    finally:
        store.tidy()
        if line is not None:
            line.close()
    if failed:
        key, reason = next(iter(failed.items()))
        raise RuntimeError(f"{len(failed)} of {total} runs failed, and the other runs are kept; {key}:\n{reason}")


@dataclass
class _Making:
    """The runs of a sweep that are still to be made, and by key why runs have no record."""

    store: RunStore
    waiting: deque[list[RunConfig]]
    line: ProgressLine | NotebookProgress | None
    failed: dict[str, str]
    in_hand: dict[Future[Made], list[RunConfig]] = field(default_factory=dict)

    def run(self, executor: Executor) -> None:
        """Work until every run has a record or has failed."""
        try:
            while self.waiting or self.in_hand:
                while self.waiting and len(self.in_hand) < IN_HAND:
                    group = self.waiting.popleft()
                    self.in_hand[executor.submit(make_runs, list(map(asdict, group)), source_digest())] = group
                for future in wait(self.in_hand, return_when=FIRST_COMPLETED).done:
                    self._take(future, self.in_hand.pop(future))
        except (BrokenExecutor, CancelledError) as error:
            raise RuntimeError(
                f"the executor ended before the runs did ({error!r}); finished runs are kept, sweep again to resume"
            ) from error
        finally:
            for future in self.in_hand:
                future.cancel()

    def _take(self, future: Future[Made], group: list[RunConfig]) -> None:
        try:
            records, errors = future.result()
        except Exception as error:
            if not isinstance(error, CallKilled) and type(error).__name__ != "KilledWorker":  # the latter is Dask's
                raise
            if len(group) > 1:  # in a race that ended its process, one run may be the cause, or their number
                self.waiting.extendleft([cfg] for cfg in reversed(group))
                return
            records, errors = [Run(group[0], (), {}, 0, 0.0, 0, versions=versions(), error=str(error)).to_json()], {}
        for record in records:
            self.store.add(Run.from_json(record))
        self.failed |= errors
        if self.line is not None:
            self.line.advance(run_key(group[-1]), sum(cfg.steps for cfg in group))


def _groups(configs: Sequence[RunConfig], together: int) -> Iterator[list[RunConfig]]:
    """Yield groups of at most ``together`` configs that can train on one base model."""
    if together == 1:
        yield from ([cfg] for cfg in configs)
        return
    from nlora_lab.runs.resolution import resolve
    from nlora_lab.training.races import shareable_groups

    for numbers in shareable_groups([resolve(cfg, ELSEWHERE) for cfg in configs]):
        for start in range(0, len(numbers), together):
            yield [configs[i] for i in numbers[start : start + together]]


def environments(configs: Sequence[RunConfig], workers: int | None = None) -> list[dict[str, str]]:
    """Return the environment variables of each process of this machine that makes these runs.

    Args:
        configs: the runs.
        workers: the largest number of processes. The default is one per CPU core that this process may use, as far as
            the memory is enough, or one per card.

    Returns:
        One mapping per process.
    """
    from nlora_lab.estimates.requirements import how_many_fit

    # memory was checked before the first process started; a process would count the others' memory as used
    shared = {"TOKENIZERS_PARALLELISM": "false", MEMORY_CHECK: "off"}
    if _all_on_cpu(configs):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        size = workers or min(cores, how_many_fit(_one_of_each_size(configs)) or cores)
        return [{**shared, "OMP_NUM_THREADS": "1"}] * min(size, len(configs))
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    cards = visible.split(",") if visible else list(map(str, range(max(1, torch.cuda.device_count()))))
    return [{**shared, "CUDA_VISIBLE_DEVICES": card} for card in cards[:workers]]


def _all_on_cpu(configs: Iterable[RunConfig]) -> bool:
    return all(find_device(device).kind == "cpu" for device in {cfg.device for cfg in configs})


def _one_of_each_size(configs: Sequence[RunConfig]) -> list[RunConfig]:
    """One config for each set of configs that need the same memory."""
    return list({replace(cfg, seed=0, lr=1.0, steps=1): cfg for cfg in configs}.values())


def _too_large(configs: Collection[RunConfig]) -> dict[str, str]:
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
