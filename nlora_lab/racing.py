"""A race: several configs run together, as far as they can share a base model, and are handed in one by one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from nlora_lab import training
from nlora_lab.devices import find_device
from nlora_lab.heat import Desk, Heat, OnStep, Watch
from nlora_lab.methods import check_rank, get_method
from nlora_lab.models import load_model
from nlora_lab.records import Run, RunConfig
from nlora_lab.tasks import DEFAULT_DIFFICULTY


def race(
    configs: Iterable[RunConfig],
    on_step: OnStep | None = None,
    on_run: Callable[[Run], None] | None = None,
    halted: Callable[[], bool] = lambda: False,
    watch: Watch | None = None,
    together: bool = True,
) -> list[Run]:
    """Run every config and return the runs in the order of ``configs``; equal seeds see identical batches.

    Configs that agree in model, task, difficulty, steps, batch size and device train together, each as it would
    alone, to rounding. Full fine-tuning, anything with dropout, and with ``together=False`` everything, runs
    alone, one after the other. All of them are checked against model and device before the first one starts
    (:class:`nlora_lab.InputError`).

    ``on_run`` gets each run as soon as it is finished: a diverged one at once, while the others go on. ``on_step``
    returning True, an interrupt (Ctrl-C, the kernel's stop button), or ``halted`` returning True ends the
    race: what is in training is kept as ``stopped``, and what has not started is left out. Too little memory for all
    at once ends those with an ``error``, and the race goes on with the rest.
    """
    configs = list(configs)
    check(configs)
    desk = Desk(on_step, on_run, halted, watch)
    waiting = deque(_groups(configs) if together else [[i] for i in range(len(configs))])
    while waiting and not desk.over():
        numbers = waiting.popleft()
        try:
            if len(numbers) == 1:
                _alone(numbers[0], configs[numbers[0]], desk)
            else:
                rest = Heat({i: configs[i] for i in numbers}, desk).run()
                waiting.extendleft([i] for i in reversed(rest))
        except KeyboardInterrupt:  # while loading, where there is nothing of these to keep
            break
    return [desk.runs[i] for i in sorted(desk.runs)]


def _groups(configs: Sequence[RunConfig]) -> list[list[int]]:
    """Numbers of the configs that can train together; a group comes where its first one stands."""
    groups: dict[Any, list[int]] = {}
    for i, c in enumerate(configs):
        shared = (c.model, c.task, c.difficulty or DEFAULT_DIFFICULTY, c.steps, c.batch_size, find_device(c.device))
        alone = get_method(c.method).build is None or c.dropout > 0
        groups.setdefault(i if alone else shared, []).append(i)
    return list(groups.values())


def _alone(number: int, cfg: RunConfig, desk: Desk) -> None:
    watch = None if desk.watch is None else partial(desk.watch, cfg)
    run = training.fine_tune(cfg, partial(desk.step, cfg), watch)
    desk.stopped = desk.stopped or run.stopped
    desk.take(number, run)


def check(configs: Sequence[RunConfig]) -> None:
    """Raise :class:`nlora_lab.InputError` if one cannot run here: device, model, or rank for the model."""
    for device in {cfg.device for cfg in configs}:
        find_device(device)
    for name in {cfg.model for cfg in configs}:
        model, _ = load_model(name)
        for cfg in configs:
            if cfg.model == name and get_method(cfg.method).build is not None:
                check_rank(model, cfg.rank)
