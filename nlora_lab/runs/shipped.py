"""The recorded runs that ship with the package, and the answers of the models that ship before any tuning.

``tools/record_grid.py`` makes both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from nlora_lab.core.documents import read_json
from nlora_lab.core.files import shipped_folder
from nlora_lab.models.names import EMBEDDED, SHIPPED
from nlora_lab.runs.index import RecordedRuns
from nlora_lab.runs.run import Run
from nlora_lab.runs.store import RunStore

RANK, STEPS, BATCH = 8, 250, 16
"""The settings of most recorded runs. Where a comparison names no rank, it is this one."""

BEFORE = "before"
"""The folder of the answers before tuning, in the folder of the shipped runs: one file per model that ships."""


@dataclass(frozen=True)
class BaseAnswers:
    """An untouched model that ships, on a task.

    Attributes:
        accuracy: its test accuracy, 0 to 1.
        answers: its answers to the first test items.
    """

    accuracy: float
    answers: tuple[str, ...]


def shipped_store() -> RunStore:
    """Return the store of the recorded runs that ship with the package.

    It is opened once, because it keeps what it has read: reading all of its files takes about a second.
    """
    return _opened(shipped_folder("data") / "results")


@cache
def _opened(folder: Path) -> RunStore:
    return RunStore(folder)


def recorded_runs(store: RunStore | str | Path | None = None, model: str = EMBEDDED) -> RecordedRuns:
    """Index the recorded runs of one model.

    Args:
        store: a store or its folder. ``None`` means the runs that ship with the package.
        model: the model. The runs of other models are left out.

    Returns:
        The index.
    """
    if store is None:
        store = shipped_store()
    return runs_of_model(store if isinstance(store, RunStore) else RunStore(store), model)


def runs_of_model(runs: Iterable[Run], model: str) -> RecordedRuns:
    """Index the runs of one model.

    Args:
        runs: runs of any models.
        model: the model.

    Returns:
        The index. Its ``other_models`` names the other models.
    """
    listed = list(runs)
    others = sorted({run.config.model for run in listed} - {model})
    return RecordedRuns((run for run in listed if run.config.model == model), others)


def base_answers(task: str, model: str = EMBEDDED) -> BaseAnswers | None:
    """Return what was recorded of a model that ships before any tuning.

    Args:
        task: the name of the task.
        model: the model.

    Returns:
        Its accuracy and answers, or ``None`` if nothing was recorded.
    """
    if model not in SHIPPED:
        return None
    try:
        record = read_json(shipped_store().path / BEFORE / f"{model}.json")[task]
        return BaseAnswers(record["accuracy"], tuple(record["answers"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
