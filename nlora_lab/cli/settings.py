"""The settings of a run as command line options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from nlora_lab.core.errors import InputError
from nlora_lab.runs.config import SHARED_RATE

if TYPE_CHECKING:
    from nlora_lab.runs.config import RunConfig

USUAL: dict[str, dict[str, Any]] = {
    "rank": {"type": int, "help": "rank of the adapters"},
    "alpha": {"type": float, "help": "the scale is alpha / rank (default: alpha = rank)"},
    "init": {"help": "initialisation of N, for methods that have a choice"},
    "steps": {"type": int, "help": "number of optimiser steps"},
    "batch_size": {"type": int, "help": "number of examples per step, over all processes"},
    "task": {"help": "word-problems, entailment, gsm8k, metamath, a GLUE task such as sst2, or own"},
    "difficulty": {"help": "easy, medium or hard, for word-problems and entailment (default: medium)"},
    "model": {"help": "embedded, larger, a folder, or a hub id"},
    "seed": {"type": int, "help": "seed of the adapter's weights, the order of the data and dropout"},
    "device": {"help": "cuda, mps or cpu (default: the best device of this machine)"},
    "warmup": {"type": float, "help": "share of the steps over which the learning rate rises"},
    "weight_decay": {"type": float, "help": "weight decay of AdamW"},
    "lr_ratio": {"type": float, "help": "learning rate of the factors B as a multiple of --lr (LoRA+)"},
    "dropout": {"type": float, "help": "dropout of the adapter's input"},
    "clip_norm": {"type": float, "help": "largest norm of the gradient (default: no clipping)"},
}
REAL_MODELS: dict[str, dict[str, Any]] = {
    "data": {"metavar": "PLACE", "help": "rows of the task: a folder, a JSONL, CSV or Parquet file, or a hub id"},
    "columns": {"metavar": "A,B", "help": "the two columns of these rows (default: columns with the usual names)"},
    "train_rows": {"type": int, "help": "number of training rows to use (default: all)"},
    "test_rows": {"type": int, "help": "number of test rows to use (default: all)"},
    "revision": {"help": "branch, tag or commit of the model on the hub"},
    "precision": {"help": "float32, or bf16: frozen weights in bfloat16, with autocast (default: by device)"},
    "attention": {"help": "sdpa, eager or flash_attention_2 (default: transformers' choice)"},
    "accumulation": {"type": int, "help": "number of micro-batches per optimiser step; more need less memory"},
    "checkpointing": {"action": "store_true", "help": "recompute activations for the gradients; needs less memory"},
    "compile": {"action": "store_true", "help": "compile the model for training with torch.compile"},
    "batching": {"help": "shuffled; length: examples of similar length; packed: filled up to max-length"},
    "max_length": {"type": int, "help": "tokens per example, longer ones are cut (default: the model's limit)"},
    "target_modules": {"metavar": "A,B", "help": "layers to adapt (default: every linear layer but the head)"},
    "replicate": {"type": int, "help": "N above 0 repeats a run from a start that is one rounding step away"},
    "measure_every": {"type": int, "help": "measure on validation rows every N steps too (default: only at the end)"},
}


def add_settings(parser: argparse.ArgumentParser, *, device: str = "") -> None:
    """Add the settings of a run as options. An option that is not used stays out of the namespace.

    Args:
        parser: the parser of a command.
        device: another help text for ``--device``.
    """
    from nlora_lab.runs.config import RunConfig

    defaults = {f.name: f.default for f in fields(RunConfig)}
    parser.add_argument("--recipe", metavar="NAME", help="start from a named recipe: nlora-lab recipes")
    parser.add_argument(
        "--lr", default=argparse.SUPPRESS, metavar="RATE",
        help=f"one learning rate, or lora=1.6e-2,nlora=2e-4 (default: {SHARED_RATE:g}, or that of the recipe)",
    )  # fmt: skip
    for title, settings in ((None, USUAL), ("real models and data", REAL_MODELS)):
        group = parser if title is None else parser.add_argument_group(title)
        for name, details in settings.items():
            words = device if name == "device" and device else details["help"]
            default = "" if defaults[name] is None or defaults[name] is False else f" (default: {defaults[name]})"
            option = f"--{name.replace('_', '-')}"
            group.add_argument(option, default=argparse.SUPPRESS, **{**details, "help": words + default})


def configs_of(options: argparse.Namespace) -> list[RunConfig]:
    """Make the configs of the runs that the options describe.

    Args:
        options: the options of ``add_settings``, and ``methods`` (names separated by commas).

    Returns:
        One config per method.

    Raises:
        InputError: a method or a recipe is not known, or a setting is not allowed.
    """
    from nlora_lab.estimates.recipes import RECIPES
    from nlora_lab.methods.table import get_method
    from nlora_lab.runs.config import RunConfig

    names = [name.strip() for name in options.methods.split(",") if name.strip()]
    if not names:
        raise InputError(f"--methods {options.methods!r} names no method; for example: lora,slora,nlora")
    methods = [get_method(name) for name in names]
    settings = {name: getattr(options, name) for name in (*USUAL, *REAL_MODELS) if hasattr(options, name)}
    init = settings.pop("init", None)
    if init is not None and not any(m.inits for m in methods):
        raise InputError(f"--init {init}: none of {', '.join(names)} has a choice of init; leave it out")
    rates = parse_rates(options.lr, names) if hasattr(options, "lr") else {}
    configs = []
    for method in methods:
        changes = {**settings, "init": init if method.inits else None}
        if rates:
            changes["lr"] = rates[method.name]
        recipe = None if options.recipe is None else RECIPES[options.recipe]
        make = RunConfig if recipe is None else recipe.config
        configs.append(make(method=method.name, **changes))
    return configs


def parse_rates(text: str, methods: Sequence[str]) -> dict[str, float]:
    """Read the learning rates of several methods.

    Args:
        text: one rate for all methods ("2e-4"), or rates by method ("lora=1.6e-2,nlora=2e-4"). A number without a
            name is the rate of every method that is not named.
        methods: the methods of the race.

    Returns:
        One rate per method.

    Raises:
        InputError: a rate is not a number, a named method is not in the race, or a method has no rate or two.
    """
    rates: dict[str, float] = {}
    default: float | None = None
    for part in text.split(","):
        name, equals, number = part.strip().rpartition("=")
        name = name.strip()
        try:
            rate = float(number)
        except ValueError:
            raise InputError(f"--lr {text}: {part.strip()!r} is not a rate; write 2e-4 or lora=1.6e-2") from None
        if (not equals and default is not None) or name in rates:
            raise InputError(f"--lr {text} gives {name or 'all other methods'} two rates; leave one out")
        if not equals:
            default = rate
        elif name in methods:
            rates[name] = rate
        else:
            raise InputError(f"--lr {text}: {name!r} is not in the race; the methods are {', '.join(methods)}")
    missing = [m for m in methods if m not in rates]
    if missing and default is None:
        raise InputError(
            f"--lr {text} gives {', '.join(missing)} no rate; add one, or a number without a name for all other methods"
        )
    return {m: rates.get(m, default if default is not None else SHARED_RATE) for m in methods}
