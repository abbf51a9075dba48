"""A race: several configs run together, as far as they can share a base model, and are handed in one by one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nlora_lab.core.devices import find_device
from nlora_lab.core.errors import InputError
from nlora_lab.core.interrupts import Interrupted, StopCheck, never_stop, raise_if_stopped
from nlora_lab.estimates.requirements import check_fit
from nlora_lab.methods.attachment import check_rank
from nlora_lab.methods.table import get_method
from nlora_lab.models.loading import meta_body
from nlora_lab.models.names import check_model
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.resolution import resolve, run_device, target_names
from nlora_lab.runs.run import Run
from nlora_lab.tasks.generated import DEFAULT_DIFFICULTY, TASKS
from nlora_lab.training import loop as training
from nlora_lab.training.batched_trainer import BatchedTrainer, OnStep, RunReporter, Watch
from nlora_lab.training.checkpoints import CHECKPOINT_EVERY
from nlora_lab.training.setup import load_base

SMALL = 2**29  # bytes of weights


def race(
    configs: Iterable[RunConfig],
    on_step: OnStep | None = None,
    on_run: Callable[[Run], None] | None = None,
    should_stop: StopCheck = never_stop,
    watch: Watch | None = None,
    together: bool = True,
    checkpoints: str | Path | None = None,
    every: int = CHECKPOINT_EVERY,
) -> list[Run]:
    """Run every config and return the runs in the order of ``configs``; equal seeds see identical batches.

    Configs that agree in model, task and its data, steps, batch size and device train together, each as it would
    alone, to rounding. Full fine-tuning, classifiers, anything with dropout or with one of the settings that save
    memory or time (accumulation, checkpointing, compile, batching, target modules) runs alone, one after the other;
    with ``together=False`` or ``checkpoints`` (see :func:`nlora_lab.fine_tune`) everything does. All of them are
    checked against model and device before the first one starts (:class:`nlora_lab.InputError`); of large models and
    those on the hub only the architecture is looked at.

    ``on_run`` gets each run as soon as it is finished: a diverged one at once, while the others go on. ``on_step``
    returning True, an interrupt (Ctrl-C, the kernel's stop button), or ``should_stop`` returning True, which is asked while
    loading and measuring too, ends the race: what is in training is kept as ``stopped``, and what has not started is
    left out. Too little memory for all at once ends those with an ``error``, and the race goes on with the rest. Any
    other exception ends the race and is raised, after ``on_run`` has got what was trained up to there, with an
    ``error``.
    """
    configs = _listed(configs)
    desk = RunReporter(on_step, on_run, should_stop, watch)
    try:
        check(configs, should_stop)
    except Interrupted:
        return []
    kept = None if checkpoints is None else (checkpoints, every)
    shared = together and kept is None
    waiting = deque(groups(configs) if shared else [[i] for i in range(len(configs))])
    while waiting and not desk.over():
        numbers = waiting.popleft()
        try:
            if len(numbers) == 1:
                _alone(numbers[0], configs[numbers[0]], desk, kept)
            else:
                rest = BatchedTrainer({i: configs[i] for i in numbers}, desk).run()
                waiting.extendleft([i] for i in reversed(rest))
        except KeyboardInterrupt:  # while loading, where there is nothing of these to keep
            break
    return [desk.runs[i] for i in sorted(desk.runs)]


def _listed(configs: Iterable[RunConfig]) -> list[RunConfig]:
    example = "for example: race([RunConfig(method='lora'), RunConfig(method='nlora')])"
    if isinstance(configs, RunConfig):
        raise InputError(f"a race takes a list, not one {configs!r}; {example}")
    if not isinstance(configs, Iterable):
        raise InputError(f"configs={configs!r} is no list of RunConfigs; {example}")
    listed = list(configs)
    for config in listed:
        if not isinstance(config, RunConfig):
            raise InputError(f"configs holds {config!r}, which is no RunConfig; {example}")
    return listed


def groups(configs: Sequence[RunConfig]) -> list[list[int]]:
    """The numbers of the configs that can train together; a group comes where its first one stands."""
    found: dict[Any, list[int]] = {}
    for i, c in enumerate(configs):
        data = (c.task, c.difficulty or DEFAULT_DIFFICULTY, c.data, c.columns, c.train_rows, c.test_rows, c.max_length)
        base = (c.model, c.revision, c.attention, run_device(c), resolve(c).dtype)
        shared = (*data, *base, c.steps, c.batch_size)
        alone = get_method(c.method).build is None or c.dropout > 0 or not _plain(c)
        found.setdefault(i if alone else shared, []).append(i)
    return list(found.values())


def _loads_quickly(name: str) -> bool:
    """Whether a model is small enough to be loaded only to see whether it can be."""
    source = check_model(name)
    return isinstance(source, Path) and sum(f.stat().st_size for f in source.glob("*.safetensors")) < SMALL


def _plain(c: RunConfig) -> bool:
    """Whether the loop that trains several at once can do what ``c`` asks for: it is for language models."""
    special = c.accumulation > 1 or c.checkpointing or c.compile or c.batching != "shuffled" or c.target_modules
    return not special and (c.task in TASKS or c.task in ("gsm8k", "metamath"))


def _alone(number: int, cfg: RunConfig, desk: RunReporter, kept: tuple[str | Path, int] | None) -> None:
    watch = None if desk.watch is None else partial(desk.watch, cfg)
    options: dict[str, Any] = {} if kept is None else {"checkpoints": kept[0], "every": kept[1]}
    try:
        run = training.fine_tune(cfg, partial(desk.step, cfg), watch, desk.should_stop, **options)
    except Exception as error:
        partial_run = getattr(error, "run", None)
        if isinstance(partial_run, Run):
            desk.take(number, partial_run)
        raise
    desk.stopped = desk.stopped or run.stopped
    if run.steps or not run.stopped:
        desk.take(number, run)


def check(configs: Sequence[RunConfig], should_stop: StopCheck = never_stop) -> None:
    """Raise :class:`nlora_lab.InputError` if one cannot run here: device, model, or rank for the model.

    Raises :class:`nlora_lab.core.interrupts.Interrupted` if ``should_stop`` says yes between two models.
    """
    for device in {cfg.device for cfg in configs}:
        find_device(device)
    alike: dict[Any, list[RunConfig]] = {}  # in model and task: the head is the task's
    for cfg in configs:
        alike.setdefault((cfg.model, cfg.revision, cfg.task, cfg.data, cfg.columns), []).append(cfg)
    for own in alike.values():
        raise_if_stopped(should_stop)
        for cfg in own:
            check_fit(cfg, run_device(cfg))
        if not _loads_quickly(own[0].model):
            meta_body(own[0].model)  # for its shapes, the ranks have been looked at with the memory
            continue
        model = load_base(resolve(own[0]), resolve(own[0]).head)[0]
        for cfg in own:
            if get_method(cfg.method).build is not None:
                check_rank(model, cfg.rank, target_names(cfg))
