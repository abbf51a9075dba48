"""Runs that differ from the usual ones in a few settings, such as the warm-up, the rate of B, or averaged weights."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.rate_points import RatePoint, rate_point, validation_loss
from nlora_lab.runs.run import Run
from nlora_lab.runs.shipped import shipped_store

if TYPE_CHECKING:
    import pandas as pd

FREE = ("method", "lr", "seed", "device", "measure_every")  # they say which run it is, and not how it was made
CHANGEABLE = tuple(f.name for f in fields(RunConfig) if f.name not in (*FREE, "task", "steps"))


def by_settings(
    *settings: str,
    method: str = "lora",
    task: str = "word-problems",
    steps: int = 250,
    seeds: Container[int] | None = None,
    runs: Iterable[Run] | None = None,
) -> pd.DataFrame:
    """List how a method does when some settings of its runs change, and all others keep their defaults.

    Args:
        *settings: names of fields of ``RunConfig``, such as "warmup" and "clip_norm". "lr_ratio" gives LoRA+.
        method: the method.
        task: the task.
        steps: the number of steps.
        seeds: the seeds to use, so that rows have the same ones. ``None`` means all.
        runs: recorded runs. ``None`` means those that ship with the package.

    Returns:
        One row per combination of the settings and rate, in this order: the settings, ``rate``, ``rate_of_b`` (the
        rate times ``lr_ratio``), ``seeds``, and the medians ``accuracy``, 0 to 1, and ``validation_loss``, nats per
        target token. The loss of a run that diverged is infinite.

    Raises:
        InputError: a setting is unknown or stays free anyway, or no run has these settings.
    """
    import pandas as pd

    for name in settings:
        check_choice("settings", name, CHANGEABLE)
    groups: dict[tuple[Any, ...], list[Run]] = {}
    usual = _rest(RunConfig(method=method, task=task, steps=steps), settings)
    for run in shipped_store() if runs is None else runs:
        if run.error or run.config.method != method or not (seeds is None or run.config.seed in seeds):
            continue
        if _rest(run.config, settings) == usual:
            rate_of_b = float(f"{run.config.lr * run.config.lr_ratio:.6g}")  # a product has rounding digits
            key = (*(getattr(run.config, name) for name in settings), run.config.lr, rate_of_b)
            groups.setdefault(key, []).append(run)
    if not groups:
        raise InputError(f"no run of method={method!r} on task={task!r} has steps={steps}; record some, or change one")
    columns = [*settings, "rate", "rate_of_b"]
    rows = [dict(zip(columns, key, strict=True)) | _summary(rate_point(key[-2], of)) for key, of in groups.items()]
    return pd.DataFrame(rows).sort_values(columns, ignore_index=True)


def averaged_weights() -> pd.DataFrame:
    """Read what averaging the weights over the last steps changed in recorded runs.

    ``python -m tools.weight_averaging`` makes the runs, with 250 steps on word problems at rank 8. Every run was
    measured several times, so its rows share its course.

    Returns:
        One row per run and ``share``, the share of the steps, at the end, over which the weights were averaged (0 is
        the last step alone). Columns: ``method``, ``rate``, ``seed``, ``share``, ``accuracy``, 0 to 1, and
        ``validation_loss`` and ``test_loss``, nats per target token.
    """
    import pandas as pd

    return pd.read_csv(shipped_store().path / "averaging.csv")


def _rest(config: RunConfig, settings: Iterable[str]) -> dict[str, Any]:
    return {name: value for name, value in config.identity().items() if name not in (*settings, *FREE)}


def _summary(point: RatePoint) -> dict[str, float]:
    return {
        "seeds": point.seeds,
        "accuracy": point.accuracy.middle,
        "validation_loss": validation_loss(point),
    }
