"""The command that measures a model as it stands."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_measure(commands: Any) -> None:
    """Enter ``measure`` among the subparsers ``commands``."""
    parser = commands.add_parser("measure", help="what a model, or a saved adapter on it, gets right; no training")
    add = parser.add_argument
    add("--model", default="embedded", help="embedded, a folder, or a hub id (default: %(default)s)")
    add("--adapter", metavar="FOLDER", help="a saved adapter to put on it")
    add("--task", default="word-problems", help="as for run (default: %(default)s)")
    add("--data", metavar="PLACE", help="the task's rows, as for run")
    add("--columns", metavar="A,B", help="the two columns of such data")
    add("--test-rows", type=int, help="measure on the first so many (default: all)")
    add("--shots", type=int, default=0, help="worked examples before each question (default: %(default)s)")
    add("--revision", help="branch, tag or commit of the model on the hub")
    add("--device", help="cuda, mps or cpu (default: the best one here)")
    add("--engine", default="auto", help="auto (vLLM where it is installed and there is a card), transformers or vllm")
    add("--json", action="store_true", help="the measures and all answers as JSON")
    parser.set_defaults(command=_measure)


def _measure(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from nlora_lab.evaluation.saved import measure_saved
    from nlora_lab.tasks.registry import load_task

    task = load_task(options.task, options.data, columns=options.columns, test_rows=options.test_rows)
    given, measured = measure_saved(
        options.model, task, options.adapter, shots=options.shots, revision=options.revision, device=options.device,
        engine=options.engine,
    )  # fmt: skip
    if options.json:
        print(json.dumps({"measures": measured, "answers": [asdict(answer) for answer in given]}, indent=1))
    else:
        print("\n".join([*(f"{name}: {value:.3f}" for name, value in measured.items()), f"of {len(given)} test items"]))
    return 0
