"""nlora_lab: understand low-rank fine-tuning by touching it.

``import nlora_lab as nl`` is quick: torch, transformers, plotly and the rest load when a name that
needs them is first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from nlora_lab.errors import InputError, ModelError

if TYPE_CHECKING:
    from nlora_lab.adapters import save_as_lora
    from nlora_lab.evaluation import Answer, answers
    from nlora_lab.labs import FineTuneLab
    from nlora_lab.lowrank import LowRank, nystrom, relative_error
    from nlora_lab.methods import METHODS, attach, parameter_table
    from nlora_lab.models import load_model
    from nlora_lab.records import Run, RunConfig, table
    from nlora_lab.tasks import Task, load_task
    from nlora_lab.training import fine_tune, race

__version__ = version("nlora-lab")

_HOME = {
    "Answer": "evaluation",
    "FineTuneLab": "labs",
    "LowRank": "lowrank",
    "METHODS": "methods",
    "Run": "records",
    "RunConfig": "records",
    "Task": "tasks",
    "answers": "evaluation",
    "attach": "methods",
    "fine_tune": "training",
    "load_model": "models",
    "load_task": "tasks",
    "nystrom": "lowrank",
    "parameter_table": "methods",
    "race": "training",
    "relative_error": "lowrank",
    "save_as_lora": "adapters",
    "table": "records",
}

__all__ = [
    "METHODS",
    "Answer",
    "FineTuneLab",
    "InputError",
    "LowRank",
    "ModelError",
    "Run",
    "RunConfig",
    "Task",
    "answers",
    "attach",
    "fine_tune",
    "load_model",
    "load_task",
    "nystrom",
    "parameter_table",
    "race",
    "relative_error",
    "save_as_lora",
    "table",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'nlora_lab' has no attribute {name!r}")
    value = getattr(import_module(f"nlora_lab.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
