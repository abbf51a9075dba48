"""The command ``page``: the labs as one HTML file."""

from __future__ import annotations

import argparse
from typing import Any

from nlora_lab.cli.parsers import add_command
from nlora_lab.core.errors import InputError


def add_page(commands: Any) -> argparse.ArgumentParser:
    """Add ``page`` to the subparsers, and return its parser."""
    parser = add_command(
        commands, "page", "write the labs as one HTML file that needs no installation and no network",
        "nlora-lab page labs.html\nnlora-lab page mine.html --recorded my-runs", _page,
    )  # fmt: skip
    parser.add_argument("out", metavar="OUT", help="the HTML file to write")
    parser.add_argument(
        "--recorded", metavar="FOLDER", help="the fine-tuning lab alone, on the runs of this store (default: all labs)"
    )
    parser.add_argument("--model", help="for --recorded: the model of the runs (default: the embedded model)")
    return parser


def _page(options: argparse.Namespace) -> int:
    from nlora_lab.models.names import EMBEDDED
    from nlora_lab.pages.sections import write_lab, write_labs
    from nlora_lab.runs.shipped import recorded_runs
    from nlora_lab.runs.store import open_store

    if not options.out.strip():
        raise InputError("OUT '' names no file; for example: nlora-lab page labs.html")
    if options.recorded is None:
        if options.model is not None:
            raise InputError(f"--model {options.model!r} needs --recorded, the store with runs of that model")
        print(write_labs(options.out))
        return 0
    recordings = recorded_runs(open_store(options.recorded), options.model or EMBEDDED)
    print(write_lab(options.out, recordings))
    return 0
