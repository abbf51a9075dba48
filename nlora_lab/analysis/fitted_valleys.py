"""The valley of a method: how its validation loss depends on the rate, fitted over all runs near the lowest point.

The rate with the lowest median is the luckiest of those that were tried. The fit uses the neighbours too, so it moves
less when a seed is added, and it says how well the runs know the best rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from nlora_lab.analysis.selection import Methods, Runs, method_names, recorded_index
from nlora_lab.analysis.statistics import check_confidence
from nlora_lab.models.names import EMBEDDED
from nlora_lab.runs.rate_points import RatePoint, by_seed, validation_loss
from nlora_lab.runs.run import Run
from nlora_lab.tasks.registry import check_task

if TYPE_CHECKING:
    import pandas as pd

OCTAVES = 1.0  # rates within this many doublings of the lowest point are fitted
CLIFF = 3.0  # beyond the cliff the median loss is at least this many times the lowest
COLUMNS = ["rate", "low", "high", "width", "cliff", "chosen", "rates", "seeds"]

Losses = Mapping[float, Sequence[float]]  # validation losses by rate
NONE = (math.nan,) * 4


def valleys(
    runs: Runs = None, task: str = "word-problems", methods: Methods = None, rank: int = 8, *, model: str = EMBEDDED,
    steps: int | None = None, confidence: float = 0.95,
) -> pd.DataFrame:  # fmt: skip
    r"""Fit the valley of each method: :math:`\log L = a + b (\log_2 \eta - \log_2 \eta^*)^2` over runs near the bottom.

    Args:
        runs: a store, its folder, an index or runs. Default: the runs that ship with the package.
        task: the name of the task.
        methods: the names of the methods. Default: all.
        rank: the rank of the adapters.
        model: the model whose runs to take.
        steps: the number of optimiser steps. Default: that of most runs.
        confidence: the level of the interval, between 0 and 1.

    Returns:
        One row per method that has runs. Columns: ``rate``, the bottom η* of the fit, with its interval ``low`` to
        ``high`` (least squares, delta method); ``width``, the factor between the two rates at which the fitted loss is
        twice the lowest; ``cliff``, how many times η* the first higher rate is whose median loss is 3 times the lowest
        (infinite if none was tried); ``chosen``, the recorded rate with the lowest median; ``rates`` and ``seeds``, how
        many rates were fitted and the fewest seeds of any of them. NaN where fewer than three rates are near the
        bottom, or where the fit has no bottom among them.

    Raises:
        InputError: a name is unknown, the confidence is out of range, or no run has these steps.
    """
    import pandas as pd

    index, rows = recorded_index(runs, model, steps), {}
    check_task(task, None)
    check_confidence(confidence)
    for name in method_names(methods):
        points = index.valley(task, name, rank)
        if points:
            rows[name] = _row(points, confidence)
    return pd.DataFrame.from_dict(rows, orient="index", columns=COLUMNS).rename_axis("method")


def _row(points: Sequence[RatePoint], confidence: float) -> list[float]:
    medians = {point.lr: validation_loss(point) for point in points}
    chosen = min(medians, key=lambda lr: medians[lr])
    near = [p for p in points if abs(math.log2(p.lr / chosen)) <= OCTAVES + 1e-9]
    losses = {p.lr: [v for v in by_seed(p.runs, _loss).values() if 0 < v < math.inf] for p in near}
    losses = {lr: values for lr, values in losses.items() if values}
    bottom, low, high, curvature = _fit(losses, confidence)
    higher = [lr for lr in medians if lr > chosen and medians[lr] >= CLIFF * medians[chosen]]
    cliff = min(higher, default=math.inf) / bottom
    width = 2 ** (2 * math.sqrt(math.log(2) / curvature))
    seeds = min((len(values) for values in losses.values()), default=0)
    return [bottom, low, high, width, cliff, chosen, len(losses), seeds]


def _loss(run: Run) -> float:
    return math.inf if run.diverged else run.metrics.get("validation_loss", math.nan)


def _fit(losses: Losses, confidence: float) -> tuple[float, float, float, float]:
    """The rate at the bottom of the parabola, its interval, and the curvature. NaN without a bottom among the rates."""
    from scipy import stats

    x = np.array([math.log2(lr) for lr, values in losses.items() for _ in values])
    y = np.array([math.log(v) for values in losses.values() for v in values])
    freedom = len(y) - 3
    if len(losses) < 3 or freedom < 1:
        return NONE
    centre = float(x.mean())
    design = np.vander(x - centre, 3)
    coefficients = np.linalg.lstsq(design, y, rcond=None)[0]
    curvature, slope, _ = coefficients
    if curvature <= 0:
        return NONE
    bottom = -slope / (2 * curvature)
    if not x.min() <= centre + bottom <= x.max():
        return NONE
    variance = float(np.square(y - design @ coefficients).sum()) / freedom
    gradient = np.array([-bottom / curvature, -1 / (2 * curvature), 0.0])  # of the bottom, by the coefficients
    error = math.sqrt(variance * float(gradient @ np.linalg.inv(design.T @ design) @ gradient))
    half = float(stats.t.ppf((1 + confidence) / 2, freedom)) * error
    rate, low, high = (float(2 ** (centre + bottom + shift)) for shift in (0.0, -half, half))
    return rate, low, high, float(curvature)
