"""The commands about runs that are there: bring stores together, and compare methods."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from nlora_lab.core.errors import InputError

SHOWN = ["rate", "seeds", "median", "low", "high", "difference", "verdict"]


def add_commands(commands: Any) -> None:
    """Enter ``compare`` and ``gather`` among the subparsers ``commands``."""
    compare = commands.add_parser("compare", help="methods at their own best rates, over seeds, with a verdict")
    compare.add_argument(
        "store", nargs="?", type=Path, metavar="FOLDER", help="a store of runs (default: the recorded ones that ship)"
    )
    compare.add_argument("--task", default="word-problems", help="(default: %(default)s)")
    compare.add_argument("--methods", help="their names, with commas (default: all that have runs)")
    compare.add_argument("--rank", type=int, default=8, help="(default: %(default)s)")
    compare.add_argument("--model", default="embedded", help="whose runs (default: %(default)s)")
    compare.add_argument("--baseline", default="lora", help="what the others are compared with (default: %(default)s)")
    compare.add_argument("--metric", default="accuracy", help="or final_loss, validation_loss (default: %(default)s)")
    compare.add_argument("--at", type=float, metavar="RATE", help="all at this rate instead of each at its own best")
    compare.add_argument("--out", type=Path, metavar="FILE", help="write the whole table: .csv, .json, .parquet, .tex")
    compare.add_argument("--json", action="store_true", help="the whole table as JSON on stdout")
    compare.set_defaults(command=_compare)

    gather = commands.add_parser("gather", help="copy the runs of several stores into one")
    gather.add_argument("stores", nargs="+", type=Path, metavar="FOLDER", help="stores, such as class/*/runs")
    gather.add_argument("--into", type=Path, required=True, metavar="FOLDER", help="the store they are copied into")
    gather.set_defaults(command=_gather)


def _compare(options: argparse.Namespace) -> int:
    from nlora_lab.analysis.comparison import compare
    from nlora_lab.analysis.selection import at_best, at_rate, known, left_out

    names = None if options.methods is None else [n.strip() for n in options.methods.split(",") if n.strip()]
    recordings = known(options.store, options.model)
    if left_out(recordings):
        print(f"nlora-lab: left out: {left_out(recordings)}", file=sys.stderr)
    asked: dict[str, Any] = {
        "runs": recordings, "task": options.task, "methods": names, "rank": options.rank,
        "model": options.model,
    }  # fmt: skip
    groups = at_best(**asked) if options.at is None else at_rate(options.at, **asked)
    rows = compare(groups, options.baseline, options.metric)
    if options.out is not None:
        from nlora_lab.core.tables import save_table

        print(f"nlora-lab: wrote {save_table(rows, options.out)}", file=sys.stderr)
    if options.json:
        print(rows.rename_axis("method").reset_index().to_json(orient="records", double_precision=15))
    else:
        print(rows[SHOWN].to_string(float_format=lambda value: f"{value:.3g}"))
    return 0


def _gather(options: argparse.Namespace) -> int:
    from nlora_lab.runs.store import RunStore, gather

    for folder in options.stores:
        if not folder.is_dir():
            raise InputError(f"{str(folder)!r} is no folder of runs; name the folders that --store wrote")
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
