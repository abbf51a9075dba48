"""Grids: which runs a sweep asks for, and how many of them a store already holds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from itertools import islice, product
from typing import Any

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice
from nlora_lab.methods.table import METHODS
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.store import RunStore, run_key

MOST_RUNS = 100_000  # of one grid

Grid = Mapping[str, Any] | Iterable[RunConfig]


def expand_grid(grid: Grid) -> list[RunConfig]:
    """Return every config of a grid, each one once.

    A field that a method does not use is left out for that method: ``init`` for methods without a choice of N, and
    ``rank`` for full fine-tuning. One grid can therefore mix such methods.

    Args:
        grid: fields of ``RunConfig`` with a list of values each, for example ``{"method": ["lora", "nlora"],
            "lr": [1e-3, 1e-2], "seed": range(3)}``. A value that is not a list is used for all runs. A list of
            ``RunConfig`` objects is a grid too.

    Returns:
        The configs, without duplicates. The last field of the grid changes fastest.

    Raises:
        InputError: a field is unknown, a list is empty, a value is not allowed, or there are more than 100,000 runs.
    """
    return list(configs_by_key(grid).values())


def configs_by_key(grid: Grid) -> dict[str, RunConfig]:
    """Return every config of a grid by its ``run_key``.

    Args:
        grid: as for ``expand_grid``.

    Returns:
        The configs, in the same order.

    Raises:
        InputError: as for ``expand_grid``.
    """
    if isinstance(grid, Mapping):
        axes = _axes(grid)
        size = math.prod(map(len, axes.values()))
        if size > MOST_RUNS:
            raise InputError(
                f"the grid asks for at least {size:,} runs; give at most {MOST_RUNS:,}, or divide it into several grids"
            )
        return _unique(_config(dict(zip(axes, values, strict=True))) for values in product(*axes.values()))
    if not isinstance(grid, Iterable):
        raise InputError(f"grid={grid!r} must be a dict of lists, or a list of RunConfigs; for one run: [{grid!r}]")
    return _unique(grid)


def _unique(configs: Iterable[RunConfig]) -> dict[str, RunConfig]:
    unique: dict[str, RunConfig] = {}
    for cfg in configs:
        if not isinstance(cfg, RunConfig):
            raise InputError(f"the grid holds {cfg!r}, which is not a RunConfig; give RunConfigs, or one dict of lists")
        unique[run_key(cfg)] = cfg
    return unique


def _axes(grid: Mapping[str, Any]) -> dict[str, list[Any]]:
    """By field, the list of its values."""
    names = [f.name for f in fields(RunConfig)]
    axes: dict[str, list[Any]] = {}
    for name, values in grid.items():
        check_choice("grid field", name, names)
        # single numbers of numpy and torch claim to be iterable and are not: they have no dimension
        if getattr(values, "ndim", 1) == 0 or isinstance(values, str) or not isinstance(values, Iterable):
            axes[name] = [values]
        else:
            axes[name] = list(islice(values, MOST_RUNS + 1))  # enough to see that there are too many
        if not axes[name]:
            raise InputError(f"the grid has no value for {name!r}; give at least one, or leave the field out")
        for value in axes[name]:
            if isinstance(value, Iterable) and not isinstance(value, str):
                raise InputError(f"{name}={value!r} in the grid is not a single value; give one flat list of values")
    return axes


def _config(values: dict[str, Any]) -> RunConfig:
    method = METHODS.get(values.get("method", "lora"))
    if method is not None and not method.inits:
        values.pop("init", None)
    if method is not None and method.build is None:
        values.pop("rank", None)
    return RunConfig(**values)


def coverage(grid: Grid, store: RunStore) -> str:
    """Report how much of a grid is in a store.

    Args:
        grid: as for ``expand_grid``.
        store: the store.

    Returns:
        One line per task and method with the number of finished runs, then the total.

    Raises:
        InputError: the grid is not valid, as for ``expand_grid``.
    """
    finished = store.keys()
    is_finished: dict[tuple[str, str], list[bool]] = {}
    for key, cfg in configs_by_key(grid).items():
        is_finished.setdefault((cfg.task, cfg.method), []).append(key in finished)
    lines = [f"{task}  {method:<16} {sum(flags):>4} of {len(flags)}" for (task, method), flags in is_finished.items()]
    flags = [flag for of_method in is_finished.values() for flag in of_method]
    return "\n".join([*lines, f"{sum(flags)} of {len(flags)} runs are in {store.path}"])
