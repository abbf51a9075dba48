"""cli.sweep."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlora_lab.core.errors import InputError

if TYPE_CHECKING:
    pass
GRID_EXAMPLE = '{"method": ["lora", "nlora"], "lr": [2e-4, 1e-2], "seed": [0, 1]}, or a list of such'


def _sweep(options: argparse.Namespace) -> int:
    from nlora_lab.runs.store import RunStore
    from nlora_lab.sweeps.engine import sweep
    from nlora_lab.sweeps.grid import coverage, expand_grid

    grid = _grid_file(Path(options.grid))
    if options.store is None:
        raise InputError("--store is missing: name the folder the records go to, for example --store runs")
    store = RunStore(options.store)
    if options.show:
        print(coverage(grid, store))
        return 0
    if options.device is not None:
        grid = [replace(cfg, device=options.device) for cfg in expand_grid(grid)]
    try:
        rows = sweep(grid, store, options.workers, together=options.together, retry=options.retry)
    except RuntimeError as error:
        print(f"nlora-lab: error: {error}", file=sys.stderr)
        return 1
    finally:
        if options.pack:
            print(f"nlora-lab: packed {store.pack()} records", file=sys.stderr)
    print(rows.to_json(orient="records", double_precision=15) if options.json else rows.to_string(index=False))
    return 0


def _grid_file(path: Path) -> Any:
    try:
        grid = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is no grid ({error}); write JSON such as {GRID_EXAMPLE}") from error
    if isinstance(grid, dict):
        return grid
    if not isinstance(grid, list) or not grid or not all(isinstance(part, dict) for part in grid):
        raise InputError(f"{path} is no grid: it holds a {type(grid).__name__}; write JSON such as {GRID_EXAMPLE}")
    from nlora_lab.sweeps.grid import expand_grid

    return [cfg for part in grid for cfg in expand_grid(part)]
