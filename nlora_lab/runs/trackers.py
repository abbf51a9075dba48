"""Experiment trackers: logging runs into trackio or wandb, whichever is installed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice, check_text
from nlora_lab.runs.run import Run
from nlora_lab.runs.store import run_key

TRACKERS = ("trackio", "wandb")  # the first one that is installed is used; both have the same interface


def track(runs: Run | Iterable[Run], project: str, to: str | None = None, **options: Any) -> int:
    """Log finished runs into a project of an experiment tracker.

    Each run is named by its key, and logged with its config, with ``loss``, ``lr`` and ``grad_norm`` of every step, and
    with its metrics at the end. If you log a run twice, the tracker has two runs.

    Args:
        runs: a run, or several.
        project: the name of the project.
        to: "trackio" or "wandb". ``None`` means the first that is installed.
        **options: passed to the tracker's ``init``, for example ``mode="offline"`` for wandb without a network.

    Returns:
        How many runs were logged.

    Raises:
        InputError: no tracker is installed, or the project has no name.
    """
    check_text("project", project, "give it a name")
    tracker = import_module(_choose(to))
    listed = [runs] if isinstance(runs, Run) else list(runs)
    for run in listed:
        tracker.init(project=project, name=run_key(run.config), config=_config(run), **options)
        try:
            for step in run.steps:
                tracker.log(_finite({"loss": step.loss, "lr": step.lr, "grad_norm": step.grad_norm}), step=step.step)
            # a further step, because trackers do not take numbers for a step that is over
            tracker.log(_finite({"final_loss": run.final_loss, **run.metrics}), step=len(run.steps) + 1)
        finally:
            tracker.finish()
    return len(listed)


def _choose(to: str | None) -> str:
    if to is not None:
        check_choice("to", to, TRACKERS)
    names = TRACKERS if to is None else (to,)
    for name in names:
        if find_spec(name) is not None:
            return name
    raise InputError(f"{' and '.join(names)} {'is' if to else 'are'} not installed; try: pip install {names[0]}")


def _config(run: Run) -> dict[str, Any]:
    about = {"trainable": run.trainable, "seconds": run.seconds, "peak_memory": run.peak_memory, "device": run.device}
    return {**asdict(run.config), **about, "versions": dict(run.versions), "ended": run.ended or "finished"}


def _finite(numbers: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in numbers.items() if math.isfinite(value)}
