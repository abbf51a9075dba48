"""The command ``scan``: spectra and approximation errors of a model's weight matrices."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from nlora_lab.cli.parsers import add_command, user_path
from nlora_lab.core.devices import DEVICES
from nlora_lab.core.errors import InputError
from nlora_lab.core.files import atomic_file, check_writable
from nlora_lab.core.validation import check_choice


def add_scan(commands: Any) -> argparse.ArgumentParser:
    """Add ``scan`` to the subparsers, and return its parser."""
    parser = add_command(
        commands, "scan", "show the spectrum and the approximation errors of each weight matrix of a model",
        "nlora-lab scan embedded --ranks 4,8,16 --csv scan.csv", _scan,
        stands="matrices that were measured are in the cache; the same command resumes",
    )  # fmt: skip
    add = parser.add_argument
    add("source", help="embedded, a safetensors file or folder, or a hub id")
    add("--ranks", default="4,8,16,32", help="ranks to measure at, separated by commas (default: %(default)s)")
    add("--device", help="cuda or cpu (default: the best device of this machine)")
    add("--no-cache", action="store_true", help="compute everything anew, and store nothing in the cache")
    add("--revision", help="branch, tag or commit of a hub id (default: the main branch)")
    add("--no-keep", dest="keep", action="store_false", help="delete each downloaded shard of a hub id after use")
    add("--csv", type=user_path, metavar="FILE", help="write the complete table into this file")
    add("--json", action="store_true", help="print the complete table as JSON")
    return parser


def _scan(options: argparse.Namespace) -> int:
    from nlora_lab.spectra.scanning import scan

    try:
        ranks = [int(word) for word in options.ranks.split(",")]
    except ValueError:
        raise InputError(f"--ranks {options.ranks}: write whole numbers with commas, for example 4,8,16") from None
    if options.device is not None:
        check_choice("--device", options.device, DEVICES)
    if options.csv is not None:  # before the scan, which takes long
        _check_file(options.csv)
    table = scan(
        options.source, ranks, device=options.device, cache=not options.no_cache, progress=True,
        revision=options.revision, keep=options.keep,
    )  # fmt: skip
    failure = None if options.csv is None else _write_csv(table, options.csv)
    if options.json:
        print(table.to_json(orient="records"))
    else:
        r = min(ranks, key=lambda rank: abs(rank - 8))
        errors = [f"{kind}_r{r}" for kind in ("nystrom", "optimal", "cross", "svd", "cond")]
        columns = ["layer", "module", "out", "in", "stable_rank", *errors]
        print(table[columns].to_string(index=False, float_format=lambda v: f"{v:.3g}"))
        print("Relative Frobenius errors; 1 is as bad as zero. nystrom: leading block, as NLoRA starts; svd: the best.")
    if failure is not None:  # only now: the table that took so long has been printed
        raise failure
    return 0


def _check_file(path: Path) -> None:
    if path == Path() or path.is_dir():
        raise InputError(f"--csv {str(path)!r} is not a file; for example: --csv scan.csv")
    if not path.exists():
        check_writable(path.parent, f"--csv {path}")
    elif not os.access(path, os.W_OK):
        raise InputError(f"--csv {str(path)!r} may not be written; choose another file")


def _write_csv(table: Any, path: Path) -> InputError | None:
    """Write the table, completely or not at all. Return the error if that fails."""
    try:
        if path.exists() and not path.is_file():  # /dev/stdout or a pipe: nothing can be renamed to it
            table.to_csv(path, index=False)
        else:
            with atomic_file(path) as part:
                table.to_csv(part, index=False)
    except (OSError, InputError) as error:
        reason = error.__cause__ or error
        remedy = "the table is on stdout; make room, or choose another file"
        return InputError(f"--csv {str(path)!r} cannot be written ({reason}); {remedy}")
    return None
