"""A process of its own that makes runs of a store: ``python -m nlora_lab.sweeps.worker``, started by :mod:`nlora_lab.sweeps.engine`.

One line of JSON on stdin says what to do; events go to stdout, one a line. When stdin ends, so does the worker: it
outlives no parent, however that one died.
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

Tell = Callable[..., None]
EVERY = 1.0  # seconds between two words about the steps of a race


def main(stdin: TextIO, stdout: TextIO) -> None:
    """Make what the first line asks for: ``store``, ``threads``, ``together`` and ``configs``."""
    order = json.loads(stdin.readline())
    threading.Thread(target=_end_with_parent, args=(stdin,), daemon=True).start()

    import torch

    from nlora_lab.runs.config import RunConfig
    from nlora_lab.runs.store import RunStore, run_key

    torch.set_num_threads(order["threads"])
    store = RunStore(order["store"])
    configs = [RunConfig(**config) for config in order["configs"]]

    def tell(**event: object) -> None:
        stdout.write(json.dumps(event) + "\n")
        stdout.flush()

    try:
        while True:
            there = store.keys()  # once a pass: who finishes one meanwhile is noticed by its claim
            waiting = [cfg for cfg in configs if run_key(cfg) not in there]
            if not waiting:
                break
            if not any(_make(portion, store, tell) for portion in portions(waiting, order["together"])):
                time.sleep(1.0)  # all that is left is being made by somebody else, who may die
    except StoreError as error:  # what is trained from now on would be lost
        tell(event="end", text=str(error))
        sys.exit(1)


def portions(configs: Sequence[RunConfig], together: int) -> Iterator[list[RunConfig]]:
    """What can share a base model, ``together`` of them at most; one by one, in their order, where that is 1."""
    from nlora_lab.training.races import groups

    for numbers in [[i] for i in range(len(configs))] if together == 1 else groups(configs):
        for start in range(0, len(numbers), together):
            yield [configs[i] for i in numbers[start : start + together]]


def _make(configs: Sequence[RunConfig], store: RunStore, tell: Tell) -> bool:
    """Make those of these runs that nobody else makes, in one race; whether there was something to do."""
    with ExitStack() as claims:
        mine = [cfg for cfg in configs if claims.enter_context(store.claim(cfg))]
        if not mine:
            return False
        if len(mine) > 1:
            try:
                _race(mine, store, tell)
            except StoreError:
                raise
            except Exception:
                pass  # one of several spoils it for all; which one shows when each is alone
        for cfg in mine:
            if cfg not in store:
                _alone(cfg, store, tell)
    return True


def _alone(cfg: RunConfig, store: RunStore, tell: Tell) -> None:
    """Make one run; one that raises is told of, and ends the worker: the next one starts clean."""
    from nlora_lab.runs.store import run_key

    try:
        _race([cfg], store, tell)
    except StoreError:
        raise
    except Exception:
        tell(event="error", key=run_key(cfg), text=traceback.format_exc())
        sys.exit(1)


def _race(configs: Sequence[RunConfig], store: RunStore, tell: Tell) -> None:
    """Train these together and keep each as soon as it is done. Raises what ended the race, keeping nothing of it."""
    from nlora_lab.runs.store import run_key
    from nlora_lab.training.races import race

    told = time.monotonic()
    failed: list[Run] = []

    def keep(run: Run) -> None:
        store.add(run)
        tell(event="done", key=run_key(run.config), steps=run.config.steps)

    def on_step(cfg: RunConfig, step: Step) -> None:
        nonlocal told
        if time.monotonic() - told > EVERY:
            told = time.monotonic()
            for other in configs:  # they go in step
                tell(event="step", key=run_key(other), step=step.step)

    def on_run(run: Run) -> None:
        if run.stopped:  # an interrupt: not a result
            sys.exit(130)
        if run.error:  # for want of memory, which is a result; or of something that will be raised in a moment
            failed.append(run)
        else:
            keep(run)

    for cfg in configs:
        tell(event="start", key=run_key(cfg))
    race(configs, on_step, on_run)
    for run in failed:
        keep(run)


def _end_with_parent(stdin: TextIO) -> None:
    stdin.read()
    os._exit(3)


if __name__ == "__main__":
    main(sys.stdin, sys.stdout)
