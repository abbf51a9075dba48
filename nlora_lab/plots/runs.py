"""How a run is named and coloured in a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nlora_lab.core.formatting import format_rate
from nlora_lab.methods.table import METHODS

if TYPE_CHECKING:
    from nlora_lab.runs.config import RunConfig
    from nlora_lab.runs.run import Step


@dataclass(frozen=True)
class Curve:
    """One live run as a figure sees it."""

    name: str
    colour: str
    dash: str
    steps: tuple[Step, ...]
    lr: float = math.nan
    accuracy: float = math.nan  # NaN while there is none
    final_loss: float = math.nan
    note: str = ""  # "diverged", "stopped", "failed" or nothing


def run_names(configs: Sequence[RunConfig]) -> list[str]:
    """A short name for each: the method, and only those settings in which the runs differ."""
    told = {"rank": "r {}", "lr": "{}", "task": "{}", "steps": "{} steps", "seed": "seed {}"}
    varying = [f for f in told if len({getattr(c, f) for c in configs}) > 1]
    names = [" · ".join([c.label, *(told[f].format(_told(getattr(c, f))) for f in varying)]) for c in configs]
    counts = [names[: i + 1].count(name) for i, name in enumerate(names)]
    return [name if n == 1 else f"{name} ({n})" for name, n in zip(names, counts, strict=True)]


def _told(value: object) -> object:
    return format_rate(value) if isinstance(value, float) else value


def curve(
    config: RunConfig, steps: Sequence[Step], name: str, accuracy: float = math.nan, final_loss: float = math.nan,
    note: str = "",
) -> Curve:  # fmt: skip
    """A run in its method's hue and dash."""
    method = METHODS[config.method]
    return Curve(name, method.colour, method.dash, tuple(steps), config.lr, accuracy, final_loss, note)
