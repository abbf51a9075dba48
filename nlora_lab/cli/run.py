"""The commands that train: ``run`` trains with one method, ``race`` with several on the same batches."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlora_lab.cli.parsers import add_command
from nlora_lab.cli.settings import add_settings, configs_of
from nlora_lab.core.errors import InputError
from nlora_lab.core.files import check_writable
from nlora_lab.core.formatting import format_bytes

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
    add("--out", type=Path, metavar="FOLDER", help="write one JSON record per run into this folder")
    add("--adapter", type=Path, metavar="FOLDER", help="save the trained adapters into this folder, as PEFT does")
    add("--checkpoints", type=Path, metavar="FOLDER", help="save checkpoints here; the same command resumes from them")
    add("--every", type=int, help="number of steps between two checkpoints (default: 100)")
    add("--one-by-one", action="store_true", help="train one method after the other; needs less memory")
    add("--json", action="store_true", help="print the results as JSON, and nothing else, to stdout")


def _train(options: argparse.Namespace) -> int:
    configs = configs_of(options)
    for name in ("out", "adapter", "checkpoints"):
        folder = getattr(options, name)
        if folder == Path():
            raise InputError(f"--{name} '' names no folder; for example: --{name} runs")
        if folder is not None:
            check_writable(folder, f"--{name} {folder}")
    from nlora_lab.core.interrupts import stop_on_signal
    from nlora_lab.core.progress import ProgressLine
    from nlora_lab.runs.resolution import run_device
    from nlora_lab.training.checkpoints import CHECKPOINT_EVERY
    from nlora_lab.training.distributed import is_main
    from nlora_lab.training.races import race

    progress = ProgressLine(sum(c.steps for c in configs), silent=not is_main())
    progress.say(f"{len(configs)} run{'s' * (len(configs) > 1)} on {run_device(configs[0]).words}")
    labels = {id(c): f"{c.method} ({i}/{len(configs)})" for i, c in enumerate(configs, start=1)}

    def on_step(config: RunConfig, step: Step) -> None:
        progress.advance(f"{labels[id(config)]}  step {step.step}/{config.steps}  loss {step.loss:.3f}")

    runs: list[Run] = []

    def on_run(run: Run) -> None:
        runs.append(run)
        progress.skip(run.config.steps - len(run.steps))
        if is_main():
            for line in _save(run, options):
                progress.say(line)

    try:
        with stop_on_signal(options.checkpoints is not None) as should_stop:
            race(
                configs, on_step, on_run, should_stop, together=not options.one_by_one, checkpoints=options.checkpoints,
                every=options.every or CHECKPOINT_EVERY,
            )  # fmt: skip
    finally:  # finished runs are shown, whatever ends the race
        progress.close()
        if runs and is_main():
            print(json.dumps({"runs": [run.summary() for run in runs]}, indent=2) if options.json else report(runs))
    if options.json and not runs and is_main():  # interrupted before the first result: still valid JSON
        print(json.dumps({"runs": []}))
    return 0 if len(runs) == len(configs) and not runs[-1].stopped else 130


def _save(run: Run, options: argparse.Namespace) -> Iterator[str]:
    """Write what the options ask for, and yield a line for each file."""
    if options.out is not None:
        yield f"wrote {run.save(_record_path(options.out, run))}"
    if options.adapter is not None and run.weights is not None and not run.diverged:
        from nlora_lab.training.export import free_folder, save_adapter

        yield f"saved {save_adapter(run, free_folder(options.adapter, run.config.method))}"


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
