"""The recorded runs that ship with the package, and what the embedded model answered before any tuning.

``tools/record_grid.py`` makes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nlora_lab.core.files import shipped_folder
from nlora_lab.models.names import EMBEDDED
from nlora_lab.runs.index import RecordedRuns
from nlora_lab.runs.run import Run
from nlora_lab.runs.store import RunStore

RANK, STEPS, BATCH = 8, 250, 16
"""The settings of most recorded runs. Where a comparison names no rank, it is this one."""

BEFORE = "before/embedded.json"


@dataclass(frozen=True)
class BaseAnswers:
    """The untouched model on a task: accuracy (0 to 1) and what it says to the first test items."""

    accuracy: float
    answers: tuple[str, ...]


def shipped_store() -> RunStore:
    """The recorded runs that ship with the package."""
    return RunStore(shipped_folder("data") / "results")


def recorded_runs(store: RunStore | str | Path | None = None, model: str = EMBEDDED) -> RecordedRuns:
    """The recorded runs of ``model`` in a store or its folder; by default among those that ship."""
    if store is None:
        store = shipped_store()
    return runs_of_model(store if isinstance(store, RunStore) else RunStore(store), model)


def runs_of_model(runs: Iterable[Run], model: str) -> RecordedRuns:
    """Those of one model."""
    listed = list(runs)
    others = sorted({run.config.model for run in listed} - {model})
    return RecordedRuns((run for run in listed if run.config.model == model), others)


def base_answers(task: str) -> BaseAnswers | None:
    """What the embedded model made of a task before any tuning, as it was recorded."""
    try:
        known = json.loads((shipped_store().path / BEFORE).read_text(encoding="utf-8"))[task]
        return BaseAnswers(known["accuracy"], tuple(known["answers"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
