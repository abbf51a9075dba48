"""The one form that every command has: its purpose in one line, and an example at the end of its help."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from nlora_lab.core.errors import InputError
from nlora_lab.core.files import expand_path

UNTOUCHED = "nothing new was written; run the same command again"

Command = Callable[[argparse.Namespace], int]
"""What a command runs. It returns the exit code."""


class Parser(argparse.ArgumentParser):
    """A parser that says in one line what is wrong with a command line."""

    def error(self, message: str) -> NoReturn:
        """Print the mistake and where help is, and exit with 2."""
        self.exit(2, f"nlora-lab: error: {InputError(message)}; {self.prog} --help shows what is allowed\n")


def user_path(text: str) -> Path:
    """Read a path of the command line. A shell leaves the ``~`` of ``--out=~/runs`` as it is."""
    try:
        return expand_path(text) if text.startswith("~") or text.isspace() else Path(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_command(
    commands: Any, name: str, purpose: str, example: str, run: Command, *, stands: str = UNTOUCHED
) -> argparse.ArgumentParser:
    """Add a command to the command line.

    Args:
        commands: the subparsers of ``nlora-lab``.
        name: the name of the command.
        purpose: one line. It stands in the list of commands, and at the top of the command's own help.
        example: a command line to copy, or several lines.
        run: the function to call with the options.
        stands: what is kept if a signal ends the command, and how to resume, with options in braces.

    Returns:
        The parser of the command, to add its options to.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        description=purpose,
        epilog="example:\n" + "\n".join(f"  {line}" for line in example.splitlines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=run, stands=stands)
    return parser
