"""The command ``measure``: a model on a task, without training."""

from __future__ import annotations

import argparse
import json
from typing import Any

from nlora_lab.cli.parsers import add_command
from nlora_lab.core.devices import DEVICES
from nlora_lab.core.validation import check_choice, check_text, check_whole_number


def add_measure(commands: Any) -> argparse.ArgumentParser:
    """Add ``measure`` to the subparsers, and return its parser."""
    parser = add_command(
        commands, "measure", "measure a model, or a saved adapter, on a task without training",
        "nlora-lab measure --model HuggingFaceTB/SmolLM2-135M --task gsm8k --adapter my-adapter --test-rows 200",
        _measure,
    )  # fmt: skip
    add = parser.add_argument
    add("--model", default="embedded", help="embedded, larger, a folder, or a hub id (default: %(default)s)")
    add("--adapter", metavar="FOLDER", help="a saved adapter for the model")
    add("--task", default="word-problems", help="a task, as for run (default: %(default)s)")
    add("--data", metavar="PLACE", help="the rows of the task, as for run")
    add("--columns", metavar="A,B", help="the two columns of these rows, as for run")
    add("--test-rows", type=int, help="number of test rows to use (default: all)")
    add("--shots", type=int, default=0, help="number of worked examples before each question (default: %(default)s)")
    add("--revision", help="branch, tag or commit of the model on the hub")
    add("--device", help="cuda, mps or cpu (default: the best device of this machine)")
    add("--engine", default="auto", help="transformers, vllm, or auto: vLLM if it is installed and there is a card")
    add("--json", action="store_true", help="print the measures and all answers as JSON")
    return parser


def _measure(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from nlora_lab.core.progress import StageProgress
    from nlora_lab.evaluation.progress import report_to
    from nlora_lab.evaluation.saved import measure_saved
    from nlora_lab.models.names import check_model
    from nlora_lab.tasks.registry import load_task

    check_model(options.model)
    if options.revision is not None:
        check_text("--revision", options.revision, "leave it out for the main branch")
    check_whole_number("--shots", options.shots, low=0)
    if options.device is not None:
        check_choice("--device", options.device, DEVICES)
    task = load_task(options.task, options.data, columns=options.columns, test_rows=options.test_rows)
    measuring = StageProgress()
    try:
        with report_to(measuring):
            answers, measures = measure_saved(
                options.model, task, options.adapter, shots=options.shots, revision=options.revision,
                device=options.device, engine=options.engine,
            )  # fmt: skip
    finally:
        measuring.close()
    if options.json:
        print(json.dumps({"measures": measures, "answers": [asdict(answer) for answer in answers]}, indent=1))
    else:
        lines = [f"{name}: {value:.3f}" for name, value in measures.items()]
        print("\n".join([*lines, f"of {len(answers)} test items"]))
    return 0
