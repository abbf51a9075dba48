"""sweeps.grid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from itertools import product
from typing import TYPE_CHECKING, Any

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice
from nlora_lab.methods.table import METHODS
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.store import RunStore, run_key

if TYPE_CHECKING:
    pass
Grid = Mapping[str, Any] | Iterable[RunConfig]


def expand_grid(grid: Grid) -> list[RunConfig]:
    """Every config of a grid, each once: ``{"method": ["lora", "nlora"], "lr": [1e-3, 1e-2], "seed": range(3)}``.

    A value that is no list stands for itself. ``init`` is left out for methods without a choice, so that a grid
    over inits can hold them, and the rank of full fine-tuning, which has none. A list of :class:`RunConfig` is returned
    as it is, without doubles. Raises :class:`nlora_lab.InputError` for a field that :class:`RunConfig` lacks, an empty
    list, and every bad value.
    """
    if not isinstance(grid, Mapping):
        if not isinstance(grid, Iterable):
            raise InputError(f"grid={grid!r} must be a dict of lists, or a list of RunConfigs; for one run: [{grid!r}]")
        unique: dict[str, RunConfig] = {}
        for cfg in grid:
            if not isinstance(cfg, RunConfig):
                raise InputError(f"the grid holds {cfg!r}, no RunConfig; give RunConfigs, or one dict of lists")
            unique[run_key(cfg)] = cfg
        return list(unique.values())
    known = [f.name for f in fields(RunConfig)]
    axes: dict[str, list[Any]] = {}
    for name, values in grid.items():
        check_choice("grid field", name, known)
        if getattr(values, "ndim", 1) == 0 or isinstance(values, str) or not isinstance(values, Iterable):
            axes[name] = [values]  # numpy's and torch's single numbers say that they can be iterated, and cannot
        else:
            axes[name] = list(values)
        if not axes[name]:
            raise InputError(f"the grid has no value for {name!r}; give one at least, or leave it out")
        for value in axes[name]:
            if isinstance(value, Iterable) and not isinstance(value, str):
                raise InputError(f"{name}={value!r} in the grid is no single value; give one flat list of them")
    configs = []
    for values in product(*axes.values()):
        asked = dict(zip(axes, values, strict=True))
        method = METHODS.get(asked.get("method", "lora"))
        if method is not None and not method.inits:
            asked.pop("init", None)
        if method is not None and method.build is None:
            asked.pop("rank", None)
        configs.append(RunConfig(**asked))
    return expand_grid(configs)


def coverage(grid: Grid, store: RunStore) -> str:
    """How much of ``grid`` is in ``store``: a line a task and method, then the sum."""
    there, lines = store.keys(), []
    counts: dict[tuple[str, str], list[bool]] = {}
    for cfg in expand_grid(grid):
        counts.setdefault((cfg.task, cfg.method), []).append(run_key(cfg) in there)
    for (task, method), found in counts.items():
        lines.append(f"{task}  {method:<16} {sum(found):>4} of {len(found)}")
    total = sum(map(len, counts.values()))
    return "\n".join([*lines, f"{sum(map(sum, counts.values()))} of {total} runs are in {store.path}"])
