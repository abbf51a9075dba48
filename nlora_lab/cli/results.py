"""The commands for recorded runs: ``compare`` methods, ``reproduce`` records, ``gather`` stores into one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from nlora_lab.cli.parsers import add_command, user_path
from nlora_lab.core.errors import InputError
from nlora_lab.core.tables import WRITERS, save_table
from nlora_lab.core.validation import check_choice, check_number, check_whole_number

METRIC_NAMES = ("accuracy", "final_loss", "validation_loss", "test_loss", "log_test_loss", "steps_to_90")
COLUMNS = ["rate", "seeds", "median", "low", "high", "difference", "verdict"]


def add_compare(commands: Any) -> argparse.ArgumentParser:
    """Add ``compare`` to the subparsers, and return its parser."""
    parser = add_command(
        commands, "compare", "compare methods over seeds, each at its own best learning rate, with a verdict",
        "nlora-lab compare runs --methods lora,nlora --out table.csv", _compare,
    )  # fmt: skip
    add = parser.add_argument
    add(
        "store",
        nargs="?",
        type=user_path,
        metavar="FOLDER",
        help="a store of runs (default: the recorded runs that ship)",
    )
    add("--task", default="word-problems", help="the task of the runs (default: %(default)s)")
    add("--methods", help="methods, separated by commas (default: all that have runs)")
    add("--rank", type=int, default=8, help="the rank of the runs (default: %(default)s)")
    add("--model", default="embedded", help="the model of the runs (default: %(default)s)")
    add("--steps", type=int, metavar="N", help="the number of steps of the runs (default: that of most runs)")
    add("--baseline", default="lora", help="the method to compare the others with (default: %(default)s)")
    add("--metric", default="accuracy", help=f"{', '.join(METRIC_NAMES)} (default: %(default)s)")
    add("--at", type=float, metavar="RATE", help="compare all methods at this rate, not each at its own best")
    add("--out", type=user_path, metavar="FILE", help="write the complete table: .csv, .json, .parquet or .tex")
    add("--json", action="store_true", help="print the complete table as JSON")
    return parser


def add_reproduce(commands: Any) -> argparse.ArgumentParser:
    """Add ``reproduce`` to the subparsers, and return its parser."""
    parser = add_command(
        commands, "reproduce", "make recorded runs again, drawn at random, and compare them with their records",
        "nlora-lab reproduce 5", _reproduce,
    )  # fmt: skip
    add = parser.add_argument
    add("count", type=int, metavar="N", help="how many runs; one takes about a minute on one core")
    add("--seed", type=int, default=0, help="the seed of the draw (default: %(default)s)")
    add("--store", type=user_path, metavar="FOLDER", help="a store of runs (default: the recorded runs that ship)")
    add("--workers", type=int, metavar="N", help="the number of processes (default: one per core)")
    add("--json", action="store_true", help="print the complete table as JSON")
    return parser


def add_gather(commands: Any) -> argparse.ArgumentParser:
    """Add ``gather`` to the subparsers, and return its parser."""
    parser = add_command(
        commands, "gather", "copy the runs of several stores into one store",
        "nlora-lab gather class/*/runs --into class-runs", _gather,
        stands="copied runs are in {into}; the same command copies the others",
    )  # fmt: skip
    parser.add_argument(
        "stores", nargs="+", type=user_path, metavar="FOLDER", help="stores of runs, such as class/*/runs"
    )
    parser.add_argument(
        "--into", type=user_path, required=True, metavar="FOLDER", help="the store to copy the runs into"
    )
    return parser


def _compare(options: argparse.Namespace) -> int:
    from nlora_lab.analysis.comparison import compare
    from nlora_lab.analysis.selection import at_best, at_rate, describe_left_out, recorded_index

    methods = None if options.methods is None else [n.strip() for n in options.methods.split(",") if n.strip()]
    if methods == []:
        raise InputError(f"--methods {options.methods!r} names no method; for example: lora,nlora")
    if options.store == Path():
        raise InputError("FOLDER '' names no store; leave it out for the recorded runs that ship")
    check_whole_number("--rank", options.rank)
    if options.at is not None:
        check_number("--at", options.at, above=0.0, remedy="it is a learning rate, such as 2e-4")
    if options.out is not None:
        check_choice("ending of --out", options.out.suffix.lower(), WRITERS)
    runs = recorded_index(options.store, options.model, options.steps)
    selection: dict[str, Any] = {
        "runs": runs, "task": options.task, "methods": methods, "rank": options.rank, "model": options.model,
    }  # fmt: skip
    groups = at_best(**selection) if options.at is None else at_rate(options.at, **selection)
    table = compare(groups, options.baseline, options.metric)
    if options.json:
        print(table.rename_axis("method").reset_index().to_json(orient="records", double_precision=15))
    else:
        print(table[COLUMNS].to_string(float_format=lambda value: f"{value:.3g}"))
    if describe_left_out(runs):
        print(f"nlora-lab: left out: {describe_left_out(runs)}", file=sys.stderr)
    if options.out is not None:  # last: the table is on stdout if it cannot be written
        print(f"nlora-lab: wrote {save_table(table, options.out)}", file=sys.stderr)
    return 0


def _reproduce(options: argparse.Namespace) -> int:
    from nlora_lab.analysis.reproduction import reproduce
    from nlora_lab.runs.store import open_store

    store = None if options.store is None else open_store(options.store)
    table = reproduce(options.count, seed=options.seed, store=store, workers=options.workers)
    outside = [str(row["run"]) for _, row in table.iterrows() if row["inside"] is not None and not row["inside"]]
    if options.json:
        print(table.to_json(orient="records", double_precision=15))
    else:
        print(table.to_string(index=False, float_format=lambda value: f"{value:.3g}"))
        print(f"{len(outside)} of {len(table)} runs are outside the range of repetitions of their kind")
    return 1 if outside else 0


def _gather(options: argparse.Namespace) -> int:
    from nlora_lab.runs.store import RunStore, gather

    if options.into == Path():
        raise InputError("--into '' names no folder; for example: --into all-runs")
    for folder in options.stores:
        if folder == Path() or not folder.is_dir():
            raise InputError(f"{str(folder)!r} is not a folder of runs; name the folders that --store wrote")
    into = RunStore(options.into)
    into.check_writable()
    copied = 0
    for folder in options.stores:
        if folder.resolve() == into.path.resolve():
            continue
        store = RunStore(folder)
        copied += (new := gather([store], into))
        hint = "" if len(store) else "; is it the folder that --store wrote?"
        print(f"{folder}: {len(store)} runs, {new} of them new{hint}", file=sys.stderr)
    print(f"{copied} runs copied; {into.path} holds {len(into)}")
    return 0
