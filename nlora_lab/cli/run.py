"""The commands that train: ``run`` trains with one method, ``race`` with several on the same batches."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlora_lab.cli.parsers import add_command, user_path
from nlora_lab.cli.settings import add_settings, configs_of
from nlora_lab.core.errors import InputError
from nlora_lab.core.files import check_writable, remove_parts
from nlora_lab.core.formatting import format_bytes
from nlora_lab.core.validation import check_whole_number

if TYPE_CHECKING:
    from nlora_lab.runs.config import RunConfig
    from nlora_lab.runs.run import Run, Step


def add_run(commands: Any) -> argparse.ArgumentParser:
    """Add ``run`` to the subparsers, and return its parser."""
    parser = add_command(
        commands, "run", "fine-tune a model with one method",
        "nlora-lab run --method nlora --rank 8 --lr 2e-4 --task entailment --out runs --adapter my-adapter", _train,
    )  # fmt: skip
    parser.add_argument(
        "--method", dest="methods", default="lora", metavar="METHOD", help="the method (default: %(default)s)"
    )
    add_settings(parser)
    _add_outputs(parser)
    return parser


def add_race(commands: Any) -> argparse.ArgumentParser:
    """Add ``race`` to the subparsers, and return its parser."""
    parser = add_command(
        commands, "race", "fine-tune with several methods on the same batches, and compare them",
        "nlora-lab race --methods lora,slora,nlora --rank 8 --lr lora=1.6e-2,slora=8e-3,nlora=2e-4", _train,
    )  # fmt: skip
    parser.add_argument("--methods", default="lora,slora,nlora", help="separated by commas (default: %(default)s)")
    add_settings(parser)
    _add_outputs(parser)
    return parser


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("results").add_argument
    add("--out", type=user_path, metavar="FOLDER", help="write one JSON record per run into this folder")
    add("--adapter", type=user_path, metavar="FOLDER", help="save the trained adapters into this folder, as PEFT does")
    add(
        "--checkpoints",
        type=user_path,
        metavar="FOLDER",
        help="save checkpoints here; the same command resumes from them",
    )
    add("--every", type=int, help="number of steps between two checkpoints (default: 100)")
    add("--one-by-one", action="store_true", help="train one method after the other; needs less memory")
    add("--json", action="store_true", help="print the results as JSON, and nothing else, to stdout")


def _train(options: argparse.Namespace) -> int:
    configs = configs_of(options)
    _check_outputs(options)
    from nlora_lab.core.interrupts import StopSignal, exit_status, stop_on_signal
    from nlora_lab.core.progress import ProgressLine, StageProgress
    from nlora_lab.evaluation.progress import report_to
    from nlora_lab.runs.resolution import run_device
    from nlora_lab.training.checkpoints import CHECKPOINT_EVERY
    from nlora_lab.training.distributed import is_main
    from nlora_lab.training.races import race

    silent = not is_main()
    progress, measuring = ProgressLine(sum(c.steps for c in configs), silent=silent), StageProgress(silent=silent)
    progress.say(f"{len(configs)} run{'s' * (len(configs) > 1)} on {run_device(configs[0]).words}")
    labels = {id(c): f"{c.method} ({i}/{len(configs)})" for i, c in enumerate(configs, start=1)}
    outputs, stop = _Outputs(options), StopSignal()

    def on_step(config: RunConfig, step: Step) -> None:
        stop.patient = True
        progress.advance(f"{labels[id(config)]}  step {step.step}/{config.steps}  loss {step.loss:.3f}")

    def on_trained(run: Run, tuned: Any) -> None:
        try:
            for line in outputs.write(run, tuned):
                progress.say(line)
        except InputError as error:  # not the end of the run: it is measured, and writing is tried again
            progress.say(f"nlora-lab: not saved yet: {error}")
        progress.close()

    runs: list[Run] = []

    def on_run(run: Run) -> None:
        measuring.close()
        stop.patient = False  # the next run is loaded first
        runs.append(run)
        progress.skip(run.config.steps - len(run.steps))
        for line in outputs.write(run):
            progress.say(line)

    try:
        stop.patient = False  # while models are loaded, a signal ends the command at once
        with stop_on_signal(stop), report_to(measuring):
            race(
                configs, on_step, on_run, stop, together=not options.one_by_one, checkpoints=options.checkpoints,
                every=CHECKPOINT_EVERY if options.every is None else options.every, on_trained=on_trained,
            )  # fmt: skip
    finally:  # finished runs are shown, whatever ends the race
        options.stands = "the files named above were written"
        progress.close()
        measuring.close()
        if runs and is_main():
            print(json.dumps({"runs": [run.summary() for run in runs]}, indent=2) if options.json else report(runs))
    if options.json and not runs and is_main():  # interrupted before the first result: still valid JSON
        print(json.dumps({"runs": []}))
    if len(runs) == len(configs) and not any(run.stopped for run in runs):
        return 0
    number = signal.SIGINT if stop.number is None else stop.number
    if is_main():
        print(f"nlora-lab: {describe_stop(number, runs, len(configs), options)}", file=sys.stderr)
    return exit_status(number)


def _check_outputs(options: argparse.Namespace) -> None:
    """Check the folders to write into before anything is loaded."""
    if options.every is not None:
        check_whole_number("--every", options.every, remedy="the steps between two checkpoints")
        if options.checkpoints is None:
            raise InputError(f"--every={options.every} needs --checkpoints; name a folder for the checkpoints")
    for name in ("out", "adapter", "checkpoints"):
        folder = getattr(options, name)
        if folder == Path():
            raise InputError(f"--{name} '' names no folder; for example: --{name} runs")
        if folder is not None:
            check_writable(folder, f"--{name} {folder}")
            remove_parts(folder)


def describe_stop(number: int, runs: Sequence[Run], count: int, options: argparse.Namespace) -> str:
    """Say in one line what ended a command that trains, what is kept, and how to resume.

    Args:
        number: the number of the signal.
        runs: the runs that have ended.
        count: the number of runs that were asked for.
        options: the options of the command.

    Returns:
        The line.
    """
    last = next((run for run in reversed(runs) if run.stopped), None)
    finished = sum(not run.stopped for run in runs)
    if last is None:
        where = "before the first step" if not runs else f"after {finished} of {count} runs"
    elif len(last.steps) < last.config.steps:
        where = f"after step {len(last.steps)} of {last.config.steps}"
    else:
        where = f"after the last step, before everything was measured ({last.config.method})"
    kept = [f"--{name} {getattr(options, name)}" for name in ("out", "adapter") if getattr(options, name) is not None]
    if not runs:
        stands = "nothing was written"
    elif kept:
        stands = f"what was trained is in {' and '.join(kept)}"
    else:
        stands = "nothing was written, because neither --out nor --adapter was given"
    again = "starts again" if options.checkpoints is None else f"resumes from {options.checkpoints}"
    return f"stopped by {signal.Signals(number).name} {where}; {stands}; the same command {again}"


class _Outputs:
    """Writes what the options ask for: once a run is trained, and its record again once it is measured."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._records: dict[int, Path] = {}  # by the identity of the config
        self._saved: set[int] = set()

    def write(self, run: Run, tuned: Any = None) -> Iterator[str]:
        """Write the files of a run, and yield a line for each new one. Only the main process writes."""
        from nlora_lab.training.distributed import is_main

        if not is_main():
            return
        key, options = id(run.config), self._options
        if options.adapter is not None and key not in self._saved and run.weights is not None and not run.diverged:
            from nlora_lab.training.export import free_folder, write_adapter

            folder = write_adapter(run, free_folder(options.adapter, run.config.method), tuned=tuned)
            self._saved.add(key)
            yield f"saved {folder}"
        if options.out is not None:
            is_new = key not in self._records
            place = run.save(self._records.get(key) or _record_path(options.out, run))
            self._records[key] = place
            if is_new:
                yield f"wrote {place}"


def _record_path(folder: Path, run: Run) -> Path:
    c = run.config
    stamp = time.strftime("%Y%m%d-%H%M%S")
    stem = f"{stamp}-{c.task}-{c.method}-r{c.rank}-lr{c.lr:g}-seed{c.seed}"
    path, copy = folder / f"{stem}.json", 2
    while path.exists():
        path, copy = folder / f"{stem}-{copy}.json", copy + 1
    return path


def report(runs: Sequence[Run]) -> str:
    """Return the table of results, with notes below it."""
    from nlora_lab.runs.run import ALWAYS_MEASURED, STEP0_NOISE

    lines = [render_table(runs)]
    for run in runs:
        method = run.config.method
        change = run.metrics.get("step0_change", 0.0)
        if change > STEP0_NOISE:
            lines.append(f"{method} changed the model's logits by {change:.1%} before the first step.")
        measures = {k: v for k, v in run.metrics.items() if k not in (*ALWAYS_MEASURED, "cut")}
        if measures:
            lines.append(f"{method}: {', '.join(f'{k} {v:.3f}' for k, v in measures.items())}.")
        if run.metrics.get("cut"):
            lines.append(f"{method}: {run.metrics['cut']:.0f} training rows were longer than max-length, and were cut.")
        if run.error:
            lines.append(f"{method} ended early: {run.error}.")
    if any(run.device.startswith("CPU") for run in runs):
        lines.append("Peak memory on a CPU is that of the complete process.")
    return "\n".join(lines)


def render_table(runs: Sequence[Run]) -> str:
    """Return the results as aligned text, one line per run."""
    head = ["method", "rate", "parameters", "final loss", "accuracy", "seconds", "peak memory", "ended"]
    rows = [head, *(_table_row(run.summary()) for run in runs)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(c.ljust(w) if i in (0, 7) else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(line.rstrip() for line in lines)


def _table_row(summary: dict[str, Any]) -> list[str]:
    endings = {"diverged": "diverged", "stopped": "stopped", "error": "failed"}
    return [
        summary["method"],
        f"{summary['lr']:.1e}",
        f"{summary['trainable']:,}",
        "-" if summary["final_loss"] is None else f"{summary['final_loss']:.4f}",
        "-" if summary["accuracy"] is None else f"{summary['accuracy']:.1%}",
        f"{summary['seconds']:.1f}",
        format_bytes(summary["peak_memory"]),
        next((ending for key, ending in endings.items() if summary[key]), "normally"),
    ]
