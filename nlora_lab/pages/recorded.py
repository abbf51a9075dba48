"""The recorded runs in compact form: what the figure of the fine-tuning lab needs of them, and no history.

``static/fine_tuning.js`` reads it. A list that is called like a field of ``RatePoint`` has one entry per recorded rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nlora_lab.lowrank.slora_init import CORE_INITS
from nlora_lab.methods.table import METHODS, Method
from nlora_lab.pages.scripts import json_number
from nlora_lab.runs.index import NEAR_RANK, NEAR_RATE, RecordedRuns
from nlora_lab.runs.rate_points import LossCurve, Spread, validation_loss
from nlora_lab.tasks.generated import TASKS

if TYPE_CHECKING:
    import numpy.typing as npt

CURVE_POINTS = 64  # of a curve as it is sent: one every six pixels
CURVE_RANGE = (1e-4, 1e2)  # losses beyond are sent as the end of this range, and drawn at the edge of the figure
NO_LOSS = 2**16 - 1  # the code of a missing loss


def recorded_data(recordings: RecordedRuns) -> tuple[dict[str, Any], bytes]:
    """Return the recorded runs, of every number of steps, as a page needs them.

    Args:
        recordings: the index.

    Returns:
        The methods, the tasks and the recorded points, ready for JSON: NaN is ``None`` and infinity "inf". And the loss
        curves of all points in their order, as little-endian 16-bit numbers: median, lowest and highest value. A code c
        stands for ``low (high / low)^(c / 65534)`` with the two numbers in "curve_range", so a loss is within 1.1e-4
        of its value, relatively.
    """
    grids: dict[tuple[int, ...], int] = {}
    curves: list[npt.NDArray[np.uint16]] = []
    indices = [recordings.at_steps(steps) for steps in recordings.budgets]
    cells = [_cell(index, place, grids, curves) for index in indices for place in index.places()]
    data = {
        **menus(),
        "usual_steps": recordings.usual_steps,
        "near_rate": NEAR_RATE,
        "near_rank": NEAR_RANK,
        "curve_range": CURVE_RANGE,
        "grids": [list(grid) for grid in grids],
        "cells": cells,
    }
    return data, np.concatenate([np.zeros(0, np.uint16), *curves]).astype("<u2").tobytes()


def menus() -> dict[str, Any]:
    """Return what the lab can be asked for, recorded or not: methods, tasks, and initialisations of N."""
    return {
        "methods": [_method(method) for method in METHODS.values()],
        "tasks": [{"name": name, "metric": metric(name)} for name in TASKS],
        "inits": list(CORE_INITS),
    }


def metric(task: str) -> str:
    """Return what accuracy means for a task: the heading of its panel."""
    return "accuracy on 200 test items" if TASKS[task].labels else "right answers to 200 test problems"


def _method(method: Method) -> dict[str, Any]:
    return {
        "name": method.name,
        "label": method.label,
        "family": _family(method),
        "title": f"trains {method.trains}; starts from {method.start}",
        "colour": method.colour,
        "dash": method.dash,
        "inits": list(method.inits),
        "ranked": method.build is not None,
    }


def _family(method: Method) -> str:
    """The family under which the lab lists a method."""
    if method.build is None:
        return "all weights"
    return "Nyström" if method.name.startswith(("nlora", "inttune")) else "LoRA"  # SLoRA starts from random numbers


def _cell(
    index: RecordedRuns,
    place: tuple[str, str, int, str | None],
    grids: dict[tuple[int, ...], int],
    curves: list[npt.NDArray[np.uint16]],
) -> dict[str, Any]:
    """The valley of one method at one rank, and its curves at the end of ``curves``."""
    points = index.valley(*place)
    config = points[0].runs[0].config
    cell: dict[str, Any] = {
        **dict(zip(("task", "method", "rank", "init"), place, strict=True)),
        "init_label": config.init,
        "steps": config.steps,
        "lr": [p.lr for p in points],
        "loss": [_spread(p.loss) for p in points],
        "accuracy": [_spread(p.accuracy) for p in points],
        "validation": [json_number(validation_loss(p)) for p in points],
        "seeds": [p.seeds for p in points],
        "diverged": [p.diverged for p in points],
        "trainable": [p.runs[0].trainable for p in points],
        "grid": [_add_curve(index.curve(p), grids, curves) for p in points],
    }
    if not all(math.isnan(p.test_loss.middle) for p in points):
        cell["test_loss"] = [_spread(p.test_loss) for p in points]
    return cell


def _add_curve(curve: LossCurve, grids: dict[tuple[int, ...], int], curves: list[npt.NDArray[np.uint16]]) -> int:
    """Add a thinned curve, and return the number of its grid of steps. The last step stays."""
    every = max(1, -(-len(curve.steps) // CURVE_POINTS))
    at = sorted({*range(0, len(curve.steps), every), len(curve.steps) - 1}) if curve.steps else []
    curves.extend(_coded([values[i] for i in at]) for values in (curve.middle, curve.low, curve.high))
    return grids.setdefault(tuple(curve.steps[i] for i in at), len(grids))


def _coded(values: Sequence[float]) -> npt.NDArray[np.uint16]:
    low, high = CURVE_RANGE
    losses = np.asarray(values, dtype=np.float64)
    share = np.log(np.clip(np.nan_to_num(losses, nan=low, posinf=high), low, high) / low) / math.log(high / low)
    return np.where(np.isnan(losses), NO_LOSS, np.rint(share * (NO_LOSS - 1))).astype(np.uint16)


def _spread(spread: Spread) -> list[float | str | None]:
    return [json_number(spread.middle), json_number(spread.low), json_number(spread.high)]
