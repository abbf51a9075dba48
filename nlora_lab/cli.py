"""The command line: the same functions as in Python, results on stdout, progress on stderr."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlora_lab.cli_export import add_export
from nlora_lab.cli_measure import add_measure
from nlora_lab.cli_recipes import add_recipes
from nlora_lab.cli_results import add_commands
from nlora_lab.cli_run import add_race, add_run
from nlora_lab.errors import InputError
from nlora_lab.files import check_writable, shipped

if TYPE_CHECKING:
    import pandas as pd


START = "00_start_here.ipynb"
COPIES = "nlora-lab-notebooks"
GRID_EXAMPLE = '{"method": ["lora", "nlora"], "lr": [2e-4, 1e-2], "seed": [0, 1]}, or a list of such'


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 (the doctor's no), 2 for a caller's mistake, 130 for an interrupt."""
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    if rest and options.command is not _lab:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    options.rest = rest
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        code = command(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of a pipe has gone (| head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except InputError as error:
        print(f"nlora-lab: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("nlora-lab: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    from nlora_lab import __version__

    parser = argparse.ArgumentParser(prog="nlora-lab", description="Understand low-rank fine-tuning by touching it.")
    parser.add_argument("--version", action="version", version=f"nlora-lab {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    lab = commands.add_parser("lab", help="open JupyterLab at the first notebook; further options go to jupyter lab")
    lab.add_argument("--no-browser", action="store_true", help="start the server and print its address")
    lab.set_defaults(command=_lab)

    doctor = commands.add_parser("doctor", help="check this machine: versions, device, figures, files, disk")
    doctor.set_defaults(command=_doctor)

    scan = commands.add_parser("scan", help="every weight matrix of a model: spectrum and approximation errors")
    scan.add_argument("source", help="embedded, a safetensors file or folder, or a hub id")
    scan.add_argument("--ranks", default="4,8,16,32", help="ranks to measure at, with commas (default: %(default)s)")
    scan.add_argument("--device", help="cuda or cpu (default: the best one here)")
    scan.add_argument("--no-cache", action="store_true", help="compute everything anew and keep nothing")
    scan.add_argument("--revision", help="of a hub id: branch, tag or commit (default: the main branch)")
    scan.add_argument(
        "--no-keep", dest="keep", action="store_false", help="of a hub id: delete each downloaded shard once it is done"
    )
    scan.add_argument("--csv", type=Path, metavar="FILE", help="write the whole table here")
    scan.add_argument("--json", action="store_true", help="the whole table as JSON on stdout")
    scan.set_defaults(command=_scan)

    add_race(commands)

    sweep = commands.add_parser("sweep", help="many runs into one store, by as many processes as there are cores")
    sweep.add_argument(
        "grid", help="recorded (the runs that ship), or a JSON file: fields with lists of values, or a list of such"
    )
    sweep.add_argument("--store", type=Path, metavar="FOLDER", help="where the records go (recorded: data/results)")
    sweep.add_argument("--device", help="make the runs on cuda, mps or cpu (default: as the grid says, else the best)")
    sweep.add_argument("--workers", type=int, help="processes (default: one a core)")
    sweep.add_argument("--together", type=int, help="runs a worker trains in one race (default: 8 on a card, else 1)")
    sweep.add_argument(
        "--pack", action="store_true", help="in the end, one file a task and method instead of one a run"
    )
    sweep.add_argument("--retry", action="store_true", help="make runs again that failed, as for want of memory")
    sweep.add_argument("--show", action="store_true", help="make nothing: say how much of the grid is there")
    sweep.add_argument("--json", action="store_true", help="the table as JSON on stdout")
    sweep.set_defaults(command=_sweep)

    add_commands(commands)

    add_run(commands)

    add_measure(commands)

    add_recipes(commands)
    add_export(commands)
    return parser


def _sweep(options: argparse.Namespace) -> int:
    from nlora_lab.store import RunStore
    from nlora_lab.sweeps import coverage, expand, sweep

    grid: Any
    parts: Iterable[Any]
    if options.grid == "recorded":
        from nlora_lab.recorded import recorded_parts, recorded_store, whole_grid

        store = recorded_store() if options.store is None else RunStore(options.store)
        grid, parts = whole_grid(store), recorded_parts(store)
    else:
        grid = _grid_file(Path(options.grid))
        if options.store is None:
            raise InputError("--store is missing: name the folder the records go to, for example --store runs")
        store, parts = RunStore(options.store), [grid]
    if options.show:
        print(coverage(grid, store))
        return 0
    made = []
    try:
        for part in parts:
            there = part if options.device is None else [replace(cfg, device=options.device) for cfg in expand(part)]
            made.append(sweep(there, store, options.workers, together=options.together, retry=options.retry))
    except RuntimeError as error:
        print(f"nlora-lab: error: {error}", file=sys.stderr)
        return 1
    finally:
        if options.pack:
            print(f"nlora-lab: packed {store.pack()} records", file=sys.stderr)
    rows = _joined(made)
    print(rows.to_json(orient="records", double_precision=15) if options.json else rows.to_string(index=False))
    return 0


def _joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Their rows one below the other, each once: the parts of a grid share runs."""
    import pandas as pd

    return pd.concat(tables, ignore_index=True).drop_duplicates()


def _grid_file(path: Path) -> Any:
    try:
        grid = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is no grid ({error}); write JSON such as {GRID_EXAMPLE}, or say: recorded") from error
    if isinstance(grid, dict):
        return grid
    if not isinstance(grid, list) or not grid or not all(isinstance(part, dict) for part in grid):
        raise InputError(f"{path} is no grid: it holds a {type(grid).__name__}; write JSON such as {GRID_EXAMPLE}")
    from nlora_lab.sweeps import expand

    return [cfg for part in grid for cfg in expand(part)]


def _lab(options: argparse.Namespace) -> int:
    if find_spec("jupyterlab") is None:
        raise InputError("JupyterLab is not installed; run: pip install 'nlora-lab[lab]'")
    folder = notebook_folder(Path.cwd())
    command = [sys.executable, "-m", "jupyterlab", "--ServerApp.root_dir", str(folder.parent)]
    command += [f"--LabApp.default_url=/lab/tree/{folder.name}/{START}"]
    command += ["--no-browser"] if options.no_browser else []
    command += ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # containers
    command += options.rest
    try:
        return subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:
        return 0  # Ctrl-C is how a JupyterLab server is ended


def _doctor(options: argparse.Namespace) -> int:
    from nlora_lab.health import doctor

    return 0 if doctor() else 1


def _scan(options: argparse.Namespace) -> int:
    from nlora_lab.spectra import scan

    try:
        ranks = [int(word) for word in options.ranks.split(",")]
    except ValueError:
        raise InputError(f"--ranks {options.ranks}: write whole numbers with commas, for example 4,8,16") from None
    if options.csv is not None:  # before the scan, not after it
        if options.csv == Path() or options.csv.is_dir():
            raise InputError(f"--csv {str(options.csv)!r} is no file; for example: --csv scan.csv")
        check_writable(options.csv.parent, f"--csv {options.csv}")
    table = scan(
        options.source, ranks, device=options.device, cache=not options.no_cache, progress=True,
        revision=options.revision, keep=options.keep,
    )  # fmt: skip
    if options.csv is not None:
        table.to_csv(options.csv, index=False)
    if options.json:
        print(table.to_json(orient="records"))
    else:
        r = min(ranks, key=lambda rank: abs(rank - 8))
        shown = [f"{kind}_r{r}" for kind in ("nystrom", "optimal", "cross", "svd", "cond")]
        columns = ["layer", "module", "out", "in", "stable_rank", *shown]
        print(table[columns].to_string(index=False, float_format=lambda v: f"{v:.3g}"))
        print("Relative Frobenius errors; 1 is as bad as zero. nystrom: leading block, as NLoRA starts; svd: the best.")
    return 0


def notebook_folder(here: Path) -> Path:
    """Where to open the notebooks: the clone's own, or copies in ``here`` of those in the wheel.

    A copy that is already there is left as it is: it may hold somebody's answers.
    """
    source = shipped("notebooks")
    if "_shipped" not in source.parts:
        return source
    target = here / COPIES
    target.mkdir(exist_ok=True)
    for notebook in sorted(source.glob("*.ipynb")):
        if not (target / notebook.name).exists():
            shutil.copy(notebook, target / notebook.name)
    return target


if __name__ == "__main__":
    sys.exit(main())
