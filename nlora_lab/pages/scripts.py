"""The scripts and the style of the labs. A lab's module is its files one after the other: no import, no build step."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

STATIC = Path(__file__).parent / "static"
FINE_TUNING = ("figure.js", "fine_tuning.js", "fine_tuning_controls.js")
NYSTROM = ("figure.js", "nystrom.js", "nystrom_controls.js")
SPECTRUM = ("figure.js", "spectrum.js")


@cache
def module(names: tuple[str, ...]) -> str:
    """Return the ES module that these files of ``static/`` make together."""
    return "\n".join((STATIC / name).read_text(encoding="utf-8") for name in names)


@cache
def style() -> str:
    """Return the style sheet of the labs."""
    return (STATIC / "lab.css").read_text(encoding="utf-8")


def json_number(value: float) -> float | str | None:
    """Return a number as the scripts read it from JSON: NaN is ``None``, and infinity "inf"."""
    return None if math.isnan(value) else "inf" if math.isinf(value) else value
