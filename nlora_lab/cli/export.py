"""The commands for people without nlora-lab: ``export`` writes a saved adapter for them, ``page`` the labs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nlora_lab.cli.parsers import add_command, user_path
from nlora_lab.core.errors import InputError


def add_export(commands: Any) -> argparse.ArgumentParser:
    """Add ``export`` to the subparsers, and return its parser."""
    parser = add_command(
        commands, "export", "write a saved adapter in a form that needs no nlora-lab",
        "nlora-lab export my-adapter --as lora --out my-adapter-as-lora", _export,
    )  # fmt: skip
    add = parser.add_argument
    add("folder", type=user_path, help="the saved adapter, as save_pretrained or run --adapter wrote it")
    add(
        "--as", dest="form", choices=["lora", "merged"], default="lora",
        help="lora: an exact plain LoRA adapter, for stock PEFT; merged: the model with the adapter in its weights "
        "(default: %(default)s)",
    )  # fmt: skip
    add("--model", help="for merged: the base model (default: the one that the adapter names)")
    add("--dtype", help="for merged: float32 or bfloat16 (default: that of the base model's checkpoint)")
    add("--out", type=user_path, required=True, metavar="FOLDER", help="write into this folder")
    return parser


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
    parser.add_argument(
        "--model", help="the fine-tuning lab alone, on the runs of this model: embedded, larger, or any with --recorded"
    )
    return parser


def _export(options: argparse.Namespace) -> int:
    from nlora_lab.adapters import save_as_lora
    from nlora_lab.training.export import save_merged

    if options.out == Path():
        raise InputError("--out '' names no folder; for example: --out my-adapter-as-lora")
    for name in ("adapter_config.json", "config.json"):
        if (options.out / name).exists():
            content = "an adapter" if name.startswith("adapter") else "a model"
            raise InputError(f"--out {str(options.out)!r} holds {content} already; choose another folder")
    if options.form == "lora":
        print(save_as_lora(options.folder, options.out))
    else:
        print(save_merged(options.folder, options.out, options.model, options.dtype))
    return 0


def _page(options: argparse.Namespace) -> int:
    from nlora_lab.models.names import EMBEDDED, SHIPPED
    from nlora_lab.pages.sections import write_lab, write_labs
    from nlora_lab.runs.shipped import recorded_runs
    from nlora_lab.runs.store import open_store

    if not options.out.strip():
        raise InputError("OUT '' names no file; for example: nlora-lab page labs.html")
    if options.recorded is None and options.model is None:
        print(write_labs(options.out))
        return 0
    if options.recorded is None and options.model not in SHIPPED:
        raise InputError(f"--model {options.model!r} needs --recorded, the store with runs of that model")
    recordings = recorded_runs(open_store(options.recorded), options.model or EMBEDDED)
    print(write_lab(options.out, recordings))
    return 0
