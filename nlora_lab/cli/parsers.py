"""The one form that every command has: its purpose in one line, and an example at the end of its help."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

Command = Callable[[argparse.Namespace], int]
"""What a command runs. It returns the exit code."""


def add_command(commands: Any, name: str, purpose: str, example: str, run: Command) -> argparse.ArgumentParser:
    """Add a command to the command line.

    Args:
        commands: the subparsers of ``nlora-lab``.
        name: the name of the command.
        purpose: one line. It stands in the list of commands, and at the top of the command's own help.
        example: a command line to copy, or several lines.
        run: the function to call with the options.

    Returns:
        The parser of the command, to add its options to.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        description=purpose,
        epilog="example:\n" + "\n".join(f"  {line}" for line in example.splitlines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=run)
    return parser
