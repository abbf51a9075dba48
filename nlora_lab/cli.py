"""The command line: the same functions as in Python, results on stdout, progress on stderr."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlora_lab.cli_export import add_export
from nlora_lab.cli_results import add_commands
from nlora_lab.errors import InputError
from nlora_lab.files import check_writable, shipped

if TYPE_CHECKING:
    import pandas as pd

    from nlora_lab.config import RunConfig
    from nlora_lab.records import Run, Step

START = "00_start_here.ipynb"
COPIES = "nlora-lab-notebooks"
DEFAULT_LR = 2e-4
GRID_EXAMPLE = '{"method": ["lora", "nlora"], "lr": [2e-4, 1e-2], "seed": [0, 1]}'


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
    scan.add_argument("--csv", type=Path, metavar="FILE", help="write the whole table here")
    scan.add_argument("--json", action="store_true", help="the whole table as JSON on stdout")
    scan.set_defaults(command=_scan)

    race = commands.add_parser("race", help="fine-tune with several methods on identical batches and compare")
    race.add_argument("--methods", default="lora,slora,nlora", help="names with commas (default: %(default)s)")
    _run_options(race)
    race.set_defaults(command=_race)

    sweep = commands.add_parser("sweep", help="many runs into one store, by as many processes as there are cores")
    sweep.add_argument("grid", help="recorded (the runs that ship), or a JSON file: fields with lists of values")
    sweep.add_argument("--store", type=Path, metavar="FOLDER", help="where the records go (recorded: data/results)")
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

    run = commands.add_parser("run", help="fine-tune with one method")
    run.add_argument("--method", dest="methods", default="lora", help="its name (default: %(default)s)")
    _run_options(run)
    run.set_defaults(command=_race)

    add_export(commands)
    return parser


def _run_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--rank", type=int, default=8, help="rank of the adapters (default: %(default)s)")
    add("--lr", default=f"{DEFAULT_LR:g}", metavar="RATE", help="one rate, or lora=1.6e-2,nlora=2e-4")
    add("--alpha", type=float, help="scale is alpha / rank (default: alpha = rank)")
    add("--init", help="initialisation of N, for the methods that have a choice")
    add("--steps", type=int, default=250, help="optimiser steps (default: %(default)s)")
    add("--batch-size", type=int, default=16, help="examples a step (default: %(default)s)")
    add("--task", default="word-problems", help="word-problems or entailment (default: %(default)s)")
    add("--difficulty", help="easy, medium or hard (default: medium)")
    add("--model", default="embedded", help="embedded, a folder, or a hub id (default: %(default)s)")
    add("--seed", type=int, default=0, help="of weights, data order and dropout (default: %(default)s)")
    add("--device", help="cuda, mps or cpu (default: the best one here)")
    add(
        "--warmup", type=float, default=0.03, help="share of the steps over which the rate rises (default: %(default)s)"
    )
    add("--weight-decay", type=float, default=0.0, help="AdamW's (default: %(default)s)")
    add("--dropout", type=float, default=0.0, help="of the adapter's input (default: %(default)s)")
    add("--clip-norm", type=float, help="clip the gradient's norm (default: no clipping)")
    add("--out", type=Path, metavar="FOLDER", help="write one JSON record a run into this folder")
    add("--json", action="store_true", help="only JSON on stdout")


def _race(options: argparse.Namespace) -> int:
    configs = _configs(options)
    if options.out is not None:
        if options.out == Path():
            raise InputError("--out '' names no folder; for example: --out runs")
        check_writable(options.out, f"--out {options.out}")
    from nlora_lab.devices import find_device
    from nlora_lab.progress import ProgressLine
    from nlora_lab.racing import race

    progress = ProgressLine(sum(c.steps for c in configs))
    progress.say(f"{len(configs)} run{'s' * (len(configs) > 1)} on {find_device(options.device).words}")
    place = {id(c): f"{c.method} ({i}/{len(configs)})" for i, c in enumerate(configs, start=1)}

    def on_step(config: RunConfig, step: Step) -> None:
        progress.advance(f"{place[id(config)]}  step {step.step}/{config.steps}  loss {step.loss:.3f}")

    runs: list[Run] = []

    def on_run(run: Run) -> None:
        runs.append(run)
        progress.skip(run.config.steps - len(run.steps))
        if options.out is not None:
            progress.say(f"wrote {run.save(_record_path(options.out, run))}")

    try:
        race(configs, on_step, on_run)
    finally:  # whatever ends the race, what was computed is shown
        progress.close()
        if runs:
            print(json.dumps({"runs": [run.summary() for run in runs]}, indent=2) if options.json else report(runs))
    if options.json and not runs:  # interrupted before there was anything: still valid JSON
        print(json.dumps({"runs": []}))
    return 0 if len(runs) == len(configs) and not runs[-1].stopped else 130


def _sweep(options: argparse.Namespace) -> int:
    from nlora_lab.store import RunStore
    from nlora_lab.sweeps import coverage, sweep

    grid: Any
    parts: Iterable[Any]
    if options.grid == "recorded":
        from nlora_lab.recorded import finalists, recorded_grid, recorded_parts, recorded_store, recordings_of

        store = recorded_store() if options.store is None else RunStore(options.store)
        grid = [*recorded_grid(), *finalists(recordings_of(store))]
        parts = recorded_parts(store)
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
            made.append(sweep(part, store, options.workers, together=options.together, retry=options.retry))
    finally:
        if options.pack:
            print(f"nlora-lab: packed {store.pack()} records", file=sys.stderr)
    rows = _joined(made)
    print(rows.to_json(orient="records") if options.json else rows.to_string(index=False))
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
    if not isinstance(grid, dict):
        raise InputError(f"{path} is no grid: it holds a {type(grid).__name__}; write JSON such as {GRID_EXAMPLE}")
    return grid


def _configs(options: argparse.Namespace) -> list[RunConfig]:
    from nlora_lab.config import RunConfig
    from nlora_lab.methods import get_method

    names = [name.strip() for name in options.methods.split(",") if name.strip()]
    if not names:
        raise InputError(f"--methods {options.methods!r} names no method; for example: lora,slora,nlora")
    methods = [get_method(name) for name in names]
    rates = parse_rates(options.lr, names)
    if options.init is not None and not any(m.inits for m in methods):
        raise InputError(f"--init {options.init}: none of {', '.join(names)} has a choice of init; leave it out")
    shared = {
        key: getattr(options, key)
        for key in (
            "rank", "alpha", "steps", "batch_size", "task", "difficulty", "model", "seed", "device", "clip_norm",
            "warmup", "weight_decay", "dropout",
        )
    }  # fmt: skip
    return [
        RunConfig(method=m.name, lr=rates[m.name], init=options.init if m.inits else None, **shared) for m in methods
    ]


def parse_rates(text: str, methods: Sequence[str]) -> dict[str, float]:
    """``"2e-4"`` or ``"lora=1.6e-2,nlora=2e-4"`` as one rate a method.

    A bare number is the rate of every method not named. Raises :class:`InputError` for a word that
    is no number, a method that does not race, or one that is left without a rate.
    """
    rates: dict[str, float] = {}
    default: float | None = None
    for part in text.split(","):
        name, equals, number = part.strip().rpartition("=")
        try:
            rate = float(number)
        except ValueError:
            raise InputError(f"--lr {text}: {part.strip()!r} is not a rate; write 2e-4 or lora=1.6e-2") from None
        if (not equals and default is not None) or name.strip() in rates:
            raise InputError(f"--lr {text} gives {name.strip() or 'all others'} two rates; leave one out")
        if not equals:
            default = rate
        elif name.strip() in methods:
            rates[name.strip()] = rate
        else:
            raise InputError(f"--lr {text}: {name.strip()!r} is not racing; the methods are {', '.join(methods)}")
    missing = [m for m in methods if m not in rates]
    if missing and default is None:
        raise InputError(f"--lr {text} gives {', '.join(missing)} no rate; add one, or a bare number for all others")
    return {m: rates.get(m, default if default is not None else DEFAULT_LR) for m in methods}


def report(runs: Sequence[Run]) -> str:
    """The table, and what it cannot say."""
    from nlora_lab.records import STEP0_NOISE

    lines = [render_table(runs)]
    for run in runs:
        change = run.metrics.get("step0_change", 0.0)
        if change > STEP0_NOISE:
            lines.append(f"{run.config.method} changed the model's logits by {change:.1%} before the first step.")
        if run.error:
            lines.append(f"{run.config.method} ended early: {run.error}.")
    if any(run.device.startswith("CPU") for run in runs):
        lines.append("Peak memory on a CPU is that of the whole process.")
    return "\n".join(lines)


def render_table(runs: Sequence[Run]) -> str:
    """The results as aligned text."""
    head = ["method", "rate", "parameters", "final loss", "accuracy", "seconds", "peak memory", "ended"]
    rows = [head]
    for run in runs:
        row: dict[str, Any] = run.summary()
        rows.append(
            [
                row["method"],
                f"{row['lr']:.1e}",
                f"{row['trainable']:,}",
                "-" if row["final_loss"] is None else f"{row['final_loss']:.4f}",
                "-" if row["accuracy"] is None else f"{row['accuracy']:.1%}",
                f"{row['seconds']:.1f}",
                f"{row['peak_memory'] / 2**20:,.0f} MB",
                "diverged"
                if row["diverged"]
                else "stopped"
                if row["stopped"]
                else "failed"
                if row["error"]
                else "normally",
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(c.ljust(w) if i in (0, 7) else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(line.rstrip() for line in lines)


def _record_path(folder: Path, run: Run) -> Path:
    c = run.config
    stamp = time.strftime("%Y%m%d-%H%M%S")
    stem = f"{stamp}-{c.task}-{c.method}-r{c.rank}-lr{c.lr:g}-seed{c.seed}"
    path, copy = folder / f"{stem}.json", 2
    while path.exists():
        path, copy = folder / f"{stem}-{copy}.json", copy + 1
    return path


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
    table = scan(options.source, ranks, device=options.device, cache=not options.no_cache, progress=True)
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
