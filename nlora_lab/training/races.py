"""A race: several configs are trained, those that can share a base model together, and returned one by one."""

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
from nlora_lab.models.loading import meta_body
from nlora_lab.models.names import check_model
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.resolution import ResolvedRun, resolve
from nlora_lab.runs.run import Run
from nlora_lab.tasks.generated import DEFAULT_DIFFICULTY, TASKS
from nlora_lab.training import loop
from nlora_lab.training.batched.reporter import OnStep, RunReporter, Watch
from nlora_lab.training.batched.trainer import BatchedTrainer
from nlora_lab.training.checkpoints import CHECKPOINT_EVERY
from nlora_lab.training.session import OnTrained
from nlora_lab.training.setup import load_base

SMALL_MODEL = 2**29  # bytes of weights that are loaded only to see whether they can be


def race(
    configs: Iterable[RunConfig],
    on_step: OnStep | None = None,
    on_run: Callable[[Run], None] | None = None,
    should_stop: StopCheck = never_stop,
    watch: Watch | None = None,
    together: bool = True,
    checkpoints: str | Path | None = None,
    every: int = CHECKPOINT_EVERY,
    on_trained: OnTrained | None = None,
) -> list[Run]:
    """Train several configs and return their runs. Equal seeds see identical batches.

    Configs that agree in model, task, data, steps, batch size and device train together on one base model. Each run
    equals the run of ``fine_tune``, to rounding. These configs run alone, one after the other: full fine-tuning,
    classifiers, dropout, and settings that save memory or time (accumulation, checkpointing, compile, batching,
    target modules).

    A stop or an interrupt such as Ctrl-C ends the race. What is in training is kept as ``stopped``, and what has not
    started is left out. If memory is not enough for all runs at once, those runs get an ``error`` and the race
    continues with the others. Any other exception ends the race. It is raised after ``on_run`` has received what was
    trained so far, with an ``error``.

    Args:
        configs: the configs. All of them are checked against model and device before the first one starts. Of large
            models and models on the hub only the architecture is checked.
        on_step: called with the config and the ``Step`` after every step. Returning True stops the race.
        on_run: called with every ``Run`` as soon as it is finished. A diverged run is finished while the others train.
        should_stop: a function that returns True once the race should stop. It is asked often.
        watch: called with the config, the number of updates and the model while the gradients exist.
        together: False trains every config alone.
        checkpoints: a folder for checkpoints, see ``fine_tune``. Every config then runs alone.
        every: the number of steps between two checkpoints.
        on_trained: called with every run that is trained and not measured yet, see ``fine_tune``.

    Returns:
        The runs, in the order of ``configs``.

    Raises:
        InputError: ``configs`` is not a list of configs, or one of them cannot run here.
    """
    runs = _check_list(configs)
    reporter = RunReporter(on_step, on_run, should_stop, watch, on_trained)
    try:
        check_runs(runs, should_stop)
    except Interrupted:
        return []
    options: dict[str, Any] = {} if checkpoints is None else {"checkpoints": checkpoints, "every": every}
    options |= {} if on_trained is None else {"on_trained": on_trained}
    share = together and checkpoints is None
    waiting = deque(shareable_groups(runs) if share else [[i] for i in range(len(runs))])
    while waiting and not reporter.is_over():
        numbers = waiting.popleft()
        try:
            if len(numbers) == 1:
                _train_alone(numbers[0], runs[numbers[0]].config, reporter, options)
            else:
                alone = BatchedTrainer({i: runs[i] for i in numbers}, reporter).train()
                waiting.extendleft([i] for i in reversed(alone))
        except KeyboardInterrupt:  # while loading, when there is nothing of these runs to keep
            break
    return [reporter.runs[i] for i in sorted(reporter.runs)]


def _check_list(configs: Iterable[RunConfig]) -> list[ResolvedRun]:
    example = "for example: race([RunConfig(method='lora'), RunConfig(method='nlora')])"
    if isinstance(configs, RunConfig):
        raise InputError(f"a race takes a list, not one {configs!r}; {example}")
    if not isinstance(configs, Iterable):
        raise InputError(f"configs={configs!r} is not a list of RunConfigs; {example}")
    listed = list(configs)
    for config in listed:
        if not isinstance(config, RunConfig):
            raise InputError(f"configs holds {config!r}, which is not a RunConfig; {example}")
    return [resolve(config) for config in listed]


def shareable_groups(runs: Sequence[ResolvedRun]) -> list[list[int]]:
    """Group runs that can train together on one base model.

    Args:
        runs: the resolved runs.

    Returns:
        Lists of positions in ``runs``. A group stands where its first run stands. A run that has to train alone is a
        group of its own.
    """
    groups: dict[Any, list[int]] = {}
    for i, run in enumerate(runs):
        c = run.config
        data = (c.task, c.difficulty or DEFAULT_DIFFICULTY, c.data, c.columns, c.train_rows, c.test_rows, c.max_length)
        base = (c.model, c.revision, c.attention, run.device, run.dtype)
        groups.setdefault((*data, *base, c.steps, c.batch_size) if _can_share(run) else i, []).append(i)
    return list(groups.values())


def _can_share(run: ResolvedRun) -> bool:
    """Whether batched training can do what the config asks for. It is for adapters of language models."""
    c = run.config
    special = c.accumulation > 1 or c.checkpointing or c.compile or c.batching != "shuffled" or c.target_modules
    is_text = c.task in TASKS or c.task in ("gsm8k", "metamath")
    return run.method.build is not None and c.dropout == 0 and not special and is_text


def _train_alone(number: int, cfg: RunConfig, reporter: RunReporter, options: dict[str, Any]) -> None:
    watch = None if reporter.watch is None else partial(reporter.watch, cfg)
    try:
        run = loop.fine_tune(cfg, partial(reporter.step, cfg), watch, reporter.should_stop, **options)
    except Exception as error:
        unfinished = getattr(error, "run", None)
        if isinstance(unfinished, Run):
            reporter.finish(number, unfinished)
        raise
    reporter.stopped = reporter.stopped or run.stopped
    if run.steps or not run.stopped:
        reporter.finish(number, run)


def check_runs(runs: Sequence[ResolvedRun], should_stop: StopCheck = never_stop) -> None:
    """Check that every run can train here: device, model, memory, and rank for the model.

    Args:
        runs: the resolved runs.
        should_stop: asked between two models.

    Raises:
        InputError: one of them cannot.
        Interrupted: ``should_stop`` returned True.
    """
    for device in {run.config.device for run in runs}:
        find_device(device)
    alike: dict[Any, list[ResolvedRun]] = {}  # in model and task, because the head is the task's
    for run in runs:
        c = run.config
        alike.setdefault((c.model, c.revision, c.task, c.data, c.columns), []).append(run)
    for group in alike.values():
        raise_if_stopped(should_stop)
        for run in group:
            check_fit(run.config, run.device)
        if not _loads_quickly(group[0].config.model):
            meta_body(group[0].config.model)  # raises without the shapes; check_fit has looked at the ranks
            continue
        model = load_base(group[0], group[0].head)[0]
        for run in group:
            if run.method.build is not None:
                check_rank(model, run.config.rank, run.targets)


def _loads_quickly(name: str) -> bool:
    source = check_model(name)
    return isinstance(source, Path) and sum(f.stat().st_size for f in source.glob("*.safetensors")) < SMALL_MODEL
