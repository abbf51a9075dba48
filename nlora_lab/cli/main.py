"""The command line: the same functions as in Python, results on stdout, progress on stderr."""

from __future__ import annotations

import argparse
import codecs
import json
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nlora_lab.cli.export import add_export, add_page
from nlora_lab.cli.health import add_doctor
from nlora_lab.cli.lab import add_lab, add_notebooks, add_pack, open_lab
from nlora_lab.cli.measure import add_measure
from nlora_lab.cli.parsers import UNTOUCHED, Command, Parser
from nlora_lab.cli.recipes import add_estimate, add_recipes
from nlora_lab.cli.results import add_compare, add_gather, add_reproduce
from nlora_lab.cli.run import add_race, add_run
from nlora_lab.cli.scan import add_scan
from nlora_lab.cli.sweep import add_sweep
from nlora_lab.core.errors import InputError
from nlora_lab.core.interrupts import exit_status, raise_on_signal, signal_number

ESCAPES = "nlora-lab-escapes"
# names in files of strangers must not command a terminal
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}
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
        The exit code: 0, 1 (a PROBLEM of ``doctor``, runs of a sweep that failed, or an output that cannot be written),
        2 (a mistake of the caller), 130 (Ctrl-C), 143 (SIGTERM) or 129 (SIGHUP).
    """
    with raise_on_signal(), _guarded_stdout() as stdout, _plain_warnings():
        return _run(argv, stdout)


def _run(argv: Sequence[str] | None, stdout: GuardedStdout) -> int:
    values: dict[str, Any] = {}
    try:
        parser = _parser()
        options, rest = parser.parse_known_args(argv)
        command: Command = options.command
        values = vars(options)
        if rest and command is not open_lab:
            parser.error(f"unknown arguments: {' '.join(rest)}")
        options.rest = rest
        if sys.flags.optimize > 1:
            raise InputError("python -OO removes docstrings, which transformers needs; use -O, or unset PYTHONOPTIMIZE")
        code = command(options)
        sys.stdout.flush()
        return code
    except SystemExit:  # argparse has printed a help text or a mistake
        if not stdout.fails():
            raise
        _tell("error: the help text cannot be written to stdout; redirect it to another place")
        return 1
    except InputError as error:
        _tell(f"error: {error}")
        return 2
    except KeyboardInterrupt as interrupt:
        number = signal_number(interrupt)
        stands = values.get("stands", UNTOUCHED).format_map(values)
        _tell(f"stopped by {signal.Signals(number).name}; {stands}")
        return exit_status(number)
    except OSError as error:
        if not stdout.fails():
            raise
        if not isinstance(error, BrokenPipeError):  # the reader of a pipe has ended (| head), and wants no more
            reason = error.strerror or str(error)
            _tell(f"error: the output cannot be written to stdout ({reason}); redirect it to another place")
        return 1


def _tell(text: str) -> None:
    """Print a line on stderr, if there is one."""
    with suppress(OSError, ValueError):
        print(f"nlora-lab: {text}", file=sys.stderr, flush=True)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print a warning of ours as a line, without the place in the code. Those of other libraries stay as they are."""
    before, package = warnings.formatwarning, str(Path(__file__).parents[1])

    def in_one_line(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if filename.startswith(package):
            return f"nlora-lab: warning: {message}\n"
        return before(message, category, filename, lineno, line)

    warnings.formatwarning = in_one_line
    try:
        yield
    finally:
        warnings.formatwarning = before


class GuardedStdout:
    """A stdout that takes every text, and remembers that it could not be written.

    Args:
        stream: the stdout itself.
    """

    def __init__(self, stream: Any) -> None:
        self._stream, self._failed = stream, False
        if hasattr(stream, "reconfigure"):
            codecs.register_error(ESCAPES, _as_escapes)
            stream.reconfigure(errors=ESCAPES)

    def write(self, text: str) -> int:
        """Write text."""
        with self._noticed():
            return int(self._stream.write(text.translate(CONTROLS)))

    def flush(self) -> None:
        """Write what is buffered."""
        with self._noticed():
            self._stream.flush()

    def fails(self) -> bool:
        """Whether something could not be written. What is left is thrown away then, or Python would try again."""
        with suppress(OSError):
            self.flush()
        if self._failed:
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        return self._failed

    @contextmanager
    def _noticed(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self._failed = True
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _guarded_stdout() -> Iterator[GuardedStdout]:
    """Guard ``sys.stdout`` in this block. A closed stdout fails instead of losing the output without a word."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - print() would take stdout instead
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")
    stream = sys.stdout
    guarded = GuardedStdout(stream)
    sys.stdout = guarded
    try:
        yield guarded
    finally:
        sys.stdout = stream


def _as_escapes(error: UnicodeError) -> tuple[str, int]:
    """Write what an encoding lacks as JSON writes it, so that JSON stays JSON."""
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def _parser() -> argparse.ArgumentParser:
    from nlora_lab import __version__

    parser = Parser(
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
