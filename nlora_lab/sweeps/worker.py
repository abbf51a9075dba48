"""A worker process of a sweep: ``python -m nlora_lab.sweeps.worker``. The engine starts it.

The worker reads one line of JSON from stdin, which says what to do. It writes events to stdout, one JSON object per
line. It ends when stdin ends, so no worker outlives its parent, however the parent died.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, TextIO

from nlora_lab.core.errors import StoreError

if TYPE_CHECKING:
    from nlora_lab.runs.config import RunConfig
    from nlora_lab.runs.run import Run, Step
    from nlora_lab.runs.store import RunStore

Emit = Callable[..., None]
EVENT_INTERVAL = 1.0  # seconds between two events about the steps of a race
WAIT = 1.0  # seconds before the worker looks again at runs that other workers are making


def main(stdin: TextIO, stdout: TextIO) -> None:
    """Make runs until none is missing.

    Args:
        stdin: its first line is a JSON object with ``store`` (a folder), ``threads``, ``together`` (runs in one race)
            and ``configs`` (the fields of each config).
        stdout: where events go. Their kinds are "start", "step", "done" and "error" of a run, and "end" of the worker.
    """
    order = json.loads(stdin.readline())
    threading.Thread(target=_end_with_parent, args=(stdin,), daemon=True).start()

    import torch

    from nlora_lab.runs.config import RunConfig
    from nlora_lab.runs.store import RunStore, run_key

    torch.set_num_threads(order["threads"])
    store = RunStore(order["store"])
    configs = [RunConfig(**config) for config in order["configs"]]

    def emit(**event: object) -> None:
        stdout.write(json.dumps(event) + "\n")
        stdout.flush()

    try:
        while True:
            finished = store.keys()  # once per pass; a run that ends meanwhile is noticed when its lease is taken
            waiting = [cfg for cfg in configs if run_key(cfg) not in finished]
            if not waiting:
                break
            if not any(_make_runs(group, store, emit) for group in run_groups(waiting, order["together"])):
                time.sleep(WAIT)  # other workers are making all that is left, and one of them may die
    except StoreError as error:  # every result from now on would be lost
        emit(event="end", text=str(error))
        sys.exit(1)


def run_groups(configs: Sequence[RunConfig], together: int) -> Iterator[list[RunConfig]]:
    """Yield groups of configs that can train on one base model, with at most ``together`` configs each.

    If ``together`` is 1, every config is a group, in the given order.
    """
    if together == 1:
        yield from ([cfg] for cfg in configs)
        return
    from nlora_lab.runs.resolution import resolve
    from nlora_lab.training.races import shareable_groups

    for numbers in shareable_groups([resolve(cfg) for cfg in configs]):
        for start in range(0, len(numbers), together):
            yield [configs[i] for i in numbers[start : start + together]]


def _make_runs(configs: Sequence[RunConfig], store: RunStore, emit: Emit) -> bool:
    """Make those runs that no other worker is making, in one race. Return whether there was one."""
    with ExitStack() as leases:
        free = [cfg for cfg in configs if leases.enter_context(store.lease(cfg))]
        if not free:
            return False
        if len(free) > 1:
            try:
                _train(free, store, emit)
            except StoreError:
                raise
            except Exception:
                pass  # one run ended the race for all; making them one by one shows which
        for cfg in free:
            if cfg not in store:
                _make_one(cfg, store, emit)
    return True


def _make_one(cfg: RunConfig, store: RunStore, emit: Emit) -> None:
    """Make one run. If it raises, report that and end the worker, so that the next worker starts clean."""
    from nlora_lab.runs.store import run_key

    try:
        _train([cfg], store, emit)
    except StoreError:
        raise
    except Exception:
        emit(event="error", key=run_key(cfg), text=traceback.format_exc())
        sys.exit(1)


def _train(configs: Sequence[RunConfig], store: RunStore, emit: Emit) -> None:
    """Train these runs together and store each one when it ends.

    Failed runs are stored after the race, and only if the race itself does not raise.
    """
    from nlora_lab.runs.store import run_key
    from nlora_lab.training.races import race

    last_event = time.monotonic()
    failed: list[Run] = []

    def keep(run: Run) -> None:
        store.add(run)
        emit(event="done", key=run_key(run.config), steps=run.config.steps)

    def on_step(cfg: RunConfig, step: Step) -> None:
        nonlocal last_event
        if time.monotonic() - last_event > EVENT_INTERVAL:
            last_event = time.monotonic()
            for other in configs:  # all of them are at the same step
                emit(event="step", key=run_key(other), step=step.step)

    def on_run(run: Run) -> None:
        if run.stopped:  # an interrupt, which is not a result
            sys.exit(130)
        if run.error:  # out of memory, which is a result; or the error that the race will raise in a moment
            failed.append(run)
        else:
            keep(run)

    for cfg in configs:
        emit(event="start", key=run_key(cfg))
    race(configs, on_step, on_run)
    for run in failed:
        keep(run)


def _end_with_parent(stdin: TextIO) -> None:
    stdin.read()
    os._exit(3)


if __name__ == "__main__":
    main(sys.stdin, sys.stdout)
