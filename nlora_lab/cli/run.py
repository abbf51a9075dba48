"""The commands that train: ``run`` one method, ``race`` several on the same batches."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlora_lab.core.errors import InputError
from nlora_lab.core.files import check_writable
from nlora_lab.core.formatting import format_bytes
from nlora_lab.runs.config import SHARED_RATE

if TYPE_CHECKING:
    from nlora_lab.runs.config import RunConfig
    from nlora_lab.runs.run import Run, Step


def add_race(commands: Any) -> None:
    """Enter ``race`` among the subparsers ``commands``."""
    race = commands.add_parser("race", help="fine-tune with several methods on identical batches and compare")
    race.add_argument("--methods", default="lora,slora,nlora", help="names with commas (default: %(default)s)")
    run_options(race)
    _outcome_options(race)
    race.set_defaults(command=_race)


def add_run(commands: Any) -> None:
    """Enter ``run``."""
    run = commands.add_parser("run", help="fine-tune with one method")
    run.add_argument("--method", dest="methods", default="lora", help="its name (default: %(default)s)")
    run_options(run)
    _outcome_options(run)
    run.set_defaults(command=_race)


SETTINGS: dict[str, dict[str, Any]] = {
    "rank": {"type": int, "help": "rank of the adapters"},
    "alpha": {"type": float, "help": "scale is alpha / rank (default: alpha = rank)"},
    "init": {"help": "initialisation of N, for the methods that have a choice"},
    "steps": {"type": int, "help": "optimiser steps"},
    "batch_size": {"type": int, "help": "examples a step, over all processes"},
    "task": {"help": "word-problems, entailment, gsm8k, metamath, a GLUE task such as sst2, or own"},
    "difficulty": {"help": "easy, medium or hard, of the first two tasks (default: medium)"},
    "model": {"help": "embedded, a folder, or a hub id"},
    "seed": {"type": int, "help": "of weights, data order and dropout"},
    "device": {"help": "cuda, mps or cpu (default: the best one here)"},
    "warmup": {"type": float, "help": "share of the steps over which the rate rises"},
    "weight_decay": {"type": float, "help": "AdamW's"},
    "dropout": {"type": float, "help": "of the adapter's input"},
    "clip_norm": {"type": float, "help": "clip the gradient's norm (default: no clipping)"},
}
SCALE: dict[str, dict[str, Any]] = {
    "data": {"metavar": "PLACE", "help": "the task's rows: a folder, a JSONL, CSV or Parquet file, or a hub id"},
    "columns": {"metavar": "A,B", "help": "the two columns of such data (default: found by their usual names)"},
    "train_rows": {"type": int, "help": "train on the first so many (default: all)"},
    "test_rows": {"type": int, "help": "measure on the first so many (default: all)"},
    "revision": {"help": "branch, tag or commit of the model on the hub"},
    "precision": {"help": "float32, or bf16: frozen weights in bfloat16, under autocast (default: by the device)"},
    "attention": {"help": "sdpa, eager or flash_attention_2 (default: transformers' choice)"},
    "accumulation": {"type": int, "help": "make each step of so many smaller batches: less memory"},
    "checkpointing": {"action": "store_true", "help": "compute activations again for the gradients: less memory"},
    "compile": {"action": "store_true", "help": "torch.compile the model for training"},
    "batching": {"help": "shuffled, length (of similar length), or packed (one behind another to max-length)"},
    "max_length": {"type": int, "help": "tokens; longer examples are cut (default: the model's own limit)"},
    "target_modules": {"metavar": "A,B", "help": "names of layers (default: every linear layer but the head)"},
}


def run_options(parser: argparse.ArgumentParser) -> None:
    """Enter the settings of a run; what is not given stays out of the options (see :func:`configs_of`)."""
    from nlora_lab.runs.config import RunConfig

    usual = {f.name: f.default for f in fields(RunConfig)}
    parser.add_argument("--recipe", metavar="NAME", help="start from a named recipe: nlora-lab recipes")
    parser.add_argument(
        "--lr", default=argparse.SUPPRESS, metavar="RATE",
        help=f"one rate, or lora=1.6e-2,nlora=2e-4 (default: {SHARED_RATE:g}, or the recipe's)",
    )  # fmt: skip
    for title, settings in ((None, SETTINGS), ("real models and data", SCALE)):
        group = parser if title is None else parser.add_argument_group(title)
        for name, options in settings.items():
            known = "" if usual[name] in (None, False) else f" (default: {usual[name]})"
            spelt = {**options, "help": options["help"] + known}
            group.add_argument(f"--{name.replace('_', '-')}", default=argparse.SUPPRESS, **spelt)


def _outcome_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, metavar="FOLDER", help="write one JSON record a run into this folder")
    add("--adapter", type=Path, metavar="FOLDER", help="save what was trained here, as PEFT does")
    add("--checkpoints", type=Path, metavar="FOLDER", help="keep here what it takes to go on, and go on from there")
    add("--every", type=int, help="steps between two checkpoints (default: 100)")
    add("--one-by-one", action="store_true", help="never several in one loop: less memory")
    add("--json", action="store_true", help="only JSON on stdout")


def _race(options: argparse.Namespace) -> int:
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
    place = {id(c): f"{c.method} ({i}/{len(configs)})" for i, c in enumerate(configs, start=1)}

    def on_step(config: RunConfig, step: Step) -> None:
        progress.advance(f"{place[id(config)]}  step {step.step}/{config.steps}  loss {step.loss:.3f}")

    runs: list[Run] = []

    def on_run(run: Run) -> None:
        runs.append(run)
        progress.skip(run.config.steps - len(run.steps))
        if is_main():
            for said in _keep(run, options):
                progress.say(said)

    try:
        with stop_on_signal(options.checkpoints is not None) as should_stop:
            race(
                configs, on_step, on_run, should_stop, together=not options.one_by_one, checkpoints=options.checkpoints,
                every=options.every or CHECKPOINT_EVERY,
            )  # fmt: skip
    finally:  # whatever ends the race, what was computed is shown
        progress.close()
        if runs and is_main():
            print(json.dumps({"runs": [run.summary() for run in runs]}, indent=2) if options.json else report(runs))
    if options.json and not runs and is_main():  # interrupted before there was anything: still valid JSON
        print(json.dumps({"runs": []}))
    return 0 if len(runs) == len(configs) and not runs[-1].stopped else 130


def _keep(run: Run, options: argparse.Namespace) -> Iterator[str]:
    """Write what was asked for, and say where it is."""
    if options.out is not None:
        yield f"wrote {run.save(_record_path(options.out, run))}"
    if options.adapter is not None and run.weights is not None and not run.diverged:
        from nlora_lab.training.export import free_folder, save_adapter

        yield f"saved {save_adapter(run, free_folder(options.adapter, run.config.method))}"


def configs_of(options: argparse.Namespace) -> list[RunConfig]:
    """The runs that the options of :func:`run_options` and ``methods`` (names with commas) describe."""
    from nlora_lab.estimates.recipes import RECIPES
    from nlora_lab.methods.table import get_method
    from nlora_lab.runs.config import RunConfig

    names = [name.strip() for name in options.methods.split(",") if name.strip()]
    if not names:
        raise InputError(f"--methods {options.methods!r} names no method; for example: lora,slora,nlora")
    methods = [get_method(name) for name in names]
    given = {name: getattr(options, name) for name in (*SETTINGS, *SCALE) if hasattr(options, name)}
    init = given.pop("init", None)
    if init is not None and not any(m.inits for m in methods):
        raise InputError(f"--init {init}: none of {', '.join(names)} has a choice of init; leave it out")
    rates = parse_rates(options.lr, names) if hasattr(options, "lr") else {}
    made = []
    for method in methods:
        own = {**given, "init": init if method.inits else None, **({"lr": rates[method.name]} if rates else {})}
        recipe = None if options.recipe is None else RECIPES[options.recipe]
        made.append(RunConfig(method=method.name, **own) if recipe is None else recipe.config(method.name, **own))
    return made


def parse_rates(text: str, methods: Sequence[str]) -> dict[str, float]:
    """``"2e-4"`` or ``"lora=1.6e-2,nlora=2e-4"`` as one rate a method.

    A bare number is the rate of every method not named. Raises :class:`InputError` for a word that
    is no number, a method that does not race, or one that is left without a rate.
    """
    rates: dict[str, float] = {}
    default: float | None = None
    for part in text.split(","):
        name, equals, number = part.strip().rpartition("=")
        try:
            rate = float(number)
        except ValueError:
            raise InputError(f"--lr {text}: {part.strip()!r} is not a rate; write 2e-4 or lora=1.6e-2") from None
        if (not equals and default is not None) or name.strip() in rates:
            raise InputError(f"--lr {text} gives {name.strip() or 'all others'} two rates; leave one out")
        if not equals:
            default = rate
        elif name.strip() in methods:
            rates[name.strip()] = rate
        else:
            raise InputError(f"--lr {text}: {name.strip()!r} is not racing; the methods are {', '.join(methods)}")
    missing = [m for m in methods if m not in rates]
    if missing and default is None:
        raise InputError(f"--lr {text} gives {', '.join(missing)} no rate; add one, or a bare number for all others")
    return {m: rates.get(m, default if default is not None else SHARED_RATE) for m in methods}


def report(runs: Sequence[Run]) -> str:
    """The table, and what it cannot say."""
    from nlora_lab.runs.run import ALWAYS_MEASURED, STEP0_NOISE

    lines = [render_table(runs)]
    for run in runs:
        change = run.metrics.get("step0_change", 0.0)
        if change > STEP0_NOISE:
            lines.append(f"{run.config.method} changed the model's logits by {change:.1%} before the first step.")
        told = {k: v for k, v in run.metrics.items() if k not in (*ALWAYS_MEASURED, "cut")}
        if told:
            lines.append(f"{run.config.method}: {', '.join(f'{k} {v:.3f}' for k, v in told.items())}.")
        if run.metrics.get("cut"):
            lines.append(
                f"{run.config.method}: {run.metrics['cut']:.0f} training rows were longer than max-length, and cut."
            )
        if run.error:
            lines.append(f"{run.config.method} ended early: {run.error}.")
    if any(run.device.startswith("CPU") for run in runs):
        lines.append("Peak memory on a CPU is that of the whole process.")
    return "\n".join(lines)


def render_table(runs: Sequence[Run]) -> str:
    """The results as aligned text."""
    head = ["method", "rate", "parameters", "final loss", "accuracy", "seconds", "peak memory", "ended"]
    rows = [head]
    for run in runs:
        row: dict[str, Any] = run.summary()
        rows.append(
            [
                row["method"],
                f"{row['lr']:.1e}",
                f"{row['trainable']:,}",
                "-" if row["final_loss"] is None else f"{row['final_loss']:.4f}",
                "-" if row["accuracy"] is None else f"{row['accuracy']:.1%}",
                f"{row['seconds']:.1f}",
                format_bytes(row["peak_memory"]),
                "diverged"
                if row["diverged"]
                else "stopped"
                if row["stopped"]
                else "failed"
                if row["error"]
                else "normally",
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(c.ljust(w) if i in (0, 7) else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(line.rstrip() for line in lines)


def _record_path(folder: Path, run: Run) -> Path:
    c = run.config
    stamp = time.strftime("%Y%m%d-%H%M%S")
    stem = f"{stamp}-{c.task}-{c.method}-r{c.rank}-lr{c.lr:g}-seed{c.seed}"
    path, copy = folder / f"{stem}.json", 2
    while path.exists():
        path, copy = folder / f"{stem}-{copy}.json", copy + 1
    return path
