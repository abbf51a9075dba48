"""The command ``sweep``: many runs into one store."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from nlora_lab.cli.parsers import add_command, user_path
from nlora_lab.core.documents import read_json
from nlora_lab.core.errors import InputError

CONNECT = 20  # seconds within which a scheduler must answer
GRID_EXAMPLE = '{"method": ["lora", "nlora"], "lr": [2e-4, 1e-2], "seed": [0, 1]}'


def add_sweep(commands: Any) -> argparse.ArgumentParser:
    """Add ``sweep`` to the subparsers, and return its parser."""
    parser = add_command(
        commands, "sweep", "make all runs of a grid in several processes, and store their records",
        f"echo '{GRID_EXAMPLE}' > grid.json\nnlora-lab sweep grid.json --store runs", _sweep,
        stands="finished runs are in {store}; the same command resumes",
    )  # fmt: skip
    add = parser.add_argument
    add("grid", help="a JSON file: settings of a run with lists of values, or a list of such grids")
    add("--store", type=user_path, metavar="FOLDER", help="write the records into this folder")
    add("--device", help="cuda, mps or cpu (default: that of the grid, or the best device of this machine)")
    add("--workers", type=int, help="number of processes (default: one per core or card), or of Slurm jobs")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--scheduler", metavar="ADDRESS", help="make the runs on a Dask cluster, such as tcp://host:8786"
    )
    where.add_argument("--slurm", action="store_true", help="make the runs in Slurm jobs, as dask-jobqueue is set up")
    add("--together", type=int, help="number of runs that a worker trains in one race (default: 8 on a card, else 1)")
    add("--pack", action="store_true", help="at the end, join the records: one file per task and method")
    add("--retry", action="store_true", help="repeat runs that failed, for example for lack of memory")
    add("--show", action="store_true", help="only say how many runs of the grid are in the store")
    add("--json", action="store_true", help="print the table as JSON")
    return parser


def _sweep(options: argparse.Namespace) -> int:
    from nlora_lab.runs.store import RunStore
    from nlora_lab.sweeps.engine import sweep
    from nlora_lab.sweeps.grid import coverage, expand_grid

    grid = _read_grid(Path(options.grid))
    if options.store is None or options.store == Path():
        raise InputError("--store is missing; name the folder for the records, for example --store runs")
    store = RunStore(options.store)
    if options.show:
        print(coverage(grid, store))
        return 0
    if options.device is not None:
        grid = [replace(cfg, device=options.device) for cfg in expand_grid(grid)]
    try:
        with _executor(options) as executor:
            rows = sweep(grid, store, executor, workers=options.workers, together=options.together, retry=options.retry)
    except RuntimeError as error:
        print(f"nlora-lab: error: {error}", file=sys.stderr)
        return 1
    finally:
        if options.pack:
            print(f"nlora-lab: packed {store.pack()} records", file=sys.stderr)
    print(rows.to_json(orient="records", double_precision=15) if options.json else rows.to_string(index=False))
    return 0


@contextmanager
def _executor(options: argparse.Namespace) -> Iterator[Executor | None]:
    """Connect to the cluster that the options name. ``None`` stands for this machine."""
    if options.scheduler is not None and not options.scheduler.strip():
        raise InputError("--scheduler '' names no address; for example: --scheduler tcp://host:8786")
    if options.scheduler is None and not options.slurm:
        yield None
        return
    try:
        from distributed import Client

        if options.slurm:
            import dask
            from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise InputError(f"a cluster needs more packages ({error}); pip install 'nlora-lab[cluster]'") from error
    if options.slurm and not (dask.config.get("jobqueue.slurm.cores") and dask.config.get("jobqueue.slurm.memory")):
        raise InputError("--slurm: no cores and memory are set for a job; set dask-jobqueue up, see docs/sweeps.md")
    with ExitStack() as closing:
        try:
            cluster = closing.enter_context(SLURMCluster()) if options.slurm else options.scheduler
            client = closing.enter_context(Client(cluster, timeout=CONNECT))
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            name = "--slurm" if options.slurm else f"--scheduler {options.scheduler}"
            reason = " ".join(str(error).split())
            raise InputError(f"{name}: cannot be reached ({reason}); start one, see docs/sweeps.md") from error
        if options.slurm:
            cluster.scale(jobs=options.workers or 1)
        print(f"nlora-lab: progress page {client.dashboard_link}", file=sys.stderr)
        yield client.get_executor()


def _read_grid(path: Path) -> Any:
    example = f"write JSON such as {GRID_EXAMPLE}, or a list of such grids"
    try:
        grid = read_json(path)
    except (OSError, ValueError) as error:
        if path == Path("recorded"):
            example = "for the grid of the recorded runs, use a clone of the repository: python -m tools.record_grid"
        raise InputError(f"{path} is not a grid ({error}); {example}") from error
    if isinstance(grid, dict):
        return grid
    if not isinstance(grid, list) or not grid or not all(isinstance(part, dict) for part in grid):
        raise InputError(f"{path} is not a grid, it holds a {type(grid).__name__}; {example}")
    from nlora_lab.sweeps.grid import expand_grid

    return [cfg for part in grid for cfg in expand_grid(part)]
