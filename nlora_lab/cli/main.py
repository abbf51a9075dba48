"""The command line: the same functions as in Python, results on stdout, progress on stderr."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nlora_lab.cli.export import add_export
from nlora_lab.cli.lab import _lab
from nlora_lab.cli.measure import add_measure
from nlora_lab.cli.recipes import add_recipes
from nlora_lab.cli.results import add_commands
from nlora_lab.cli.run import add_race, add_run
from nlora_lab.cli.scan import _scan
from nlora_lab.cli.sweep import _sweep
from nlora_lab.core.errors import InputError

if TYPE_CHECKING:
    pass


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


def _doctor(options: argparse.Namespace) -> int:
    from nlora_lab.cli.health import doctor

    return 0 if doctor() else 1


if __name__ == "__main__":
    sys.exit(main())
