"""Runs into an experiment tracker: trackio or wandb, whichever is installed."""

from __future__ import annotations



import math
from collections.abc import Iterable
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice
from nlora_lab.runs.run import Run
from nlora_lab.runs.store import run_key

TRACKERS = ("trackio", "wandb")  # the first one that is installed; both are spoken to alike


def track(runs: Run | Iterable[Run], project: str, to: str | None = None, **options: Any) -> int:
    """Log finished runs, as recorded, into ``project`` of a tracker; how many were logged.

    Each becomes a run named by its key, with its config, ``loss``, ``lr`` and ``grad_norm`` of every step, and in the
    end its metrics. ``to``: "trackio" or "wandb"; by default the first that is installed. ``options`` go to its
    ``init`` (``mode="offline"`` for wandb without a network). Logging twice makes two runs there.

    Raises :class:`nlora_lab.InputError` where none is installed, with what to install.
    """
    if not isinstance(project, str) or not project.strip():
        raise InputError(f"project={project!r} must be a name")
    tracker = import_module(_choose(to))
    listed = [runs] if isinstance(runs, Run) else list(runs)
    for run in listed:
        tracker.init(project=project, name=run_key(run.config), config=_config(run), **options)
        try:
            for step in run.steps:
                tracker.log(_finite({"loss": step.loss, "lr": step.lr, "grad_norm": step.grad_norm}), step=step.step)
            # a step of their own: trackers do not take numbers for a step that is over
            tracker.log(_finite({"final_loss": run.final_loss, **run.metrics}), step=len(run.steps) + 1)
        finally:
            tracker.finish()
    return len(listed)


def _choose(to: str | None) -> str:
    if to is not None:
        check_choice("to", to, TRACKERS)
    wanted = TRACKERS if to is None else (to,)
    for name in wanted:
        if find_spec(name) is not None:
            return name
    raise InputError(f"{' and '.join(wanted)} {'is' if to else 'are'} not installed; try: pip install {wanted[0]}")


def _config(run: Run) -> dict[str, Any]:
    about = {"trainable": run.trainable, "seconds": run.seconds, "peak_memory": run.peak_memory, "device": run.device}
    return {**asdict(run.config), **about, "versions": dict(run.versions), "ended": run.ended or "finished"}


def _finite(numbers: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in numbers.items() if math.isfinite(value)}
