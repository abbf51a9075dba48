"""The command line: the same functions as in Python, results on stdout, progress on stderr."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from nlora_lab.cli.export import add_export, add_page
from nlora_lab.cli.health import add_doctor
from nlora_lab.cli.lab import add_lab, add_notebooks, add_pack, open_lab
from nlora_lab.cli.measure import add_measure
from nlora_lab.cli.parsers import Command
from nlora_lab.cli.recipes import add_estimate, add_recipes
from nlora_lab.cli.results import add_compare, add_gather, add_reproduce
from nlora_lab.cli.run import add_race, add_run
from nlora_lab.cli.scan import add_scan
from nlora_lab.cli.sweep import add_sweep
from nlora_lab.core.errors import InputError

GROUPS = {
    "Learn": (add_lab, add_page, add_doctor),
    "Teach": (add_notebooks, add_pack),
    "Train": (add_run, add_race, add_sweep, add_recipes, add_estimate),
    "Look at results": (add_compare, add_reproduce, add_gather, add_measure, add_scan, add_export),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the words after ``nlora-lab`` (default: those of this process).

    Returns:
        The exit code: 0, 1 (a PROBLEM of ``doctor``, or runs of a sweep that failed), 2 (a mistake of the caller), or
        130 (an interrupt).
    """
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    command: Command = options.command
    if rest and command is not open_lab:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    options.rest = rest
    try:
        code = command(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of a pipe has ended (| head)
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

    parser = argparse.ArgumentParser(
        prog="nlora-lab",
        usage="nlora-lab [-h] [--version] COMMAND ...",
        epilog="nlora-lab COMMAND --help shows the options of a command, and an example.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nlora-lab {__version__}")
    # argparse lists commands in one block, without groups: its own list is hidden
    commands = parser.add_subparsers(prog="nlora-lab", required=True, metavar="COMMAND", help=argparse.SUPPRESS)
    lines = ["Understand low-rank fine-tuning by touching it."]
    for title, functions in GROUPS.items():
        lines += ["", f"{title}:"]
        for add in functions:
            command = add(commands)
            lines.append(f"  {command.prog.split()[-1]:<10} {command.description}")
    parser.description = "\n".join(lines)
    return parser


if __name__ == "__main__":
    sys.exit(main())
