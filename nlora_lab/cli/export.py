"""The command ``export``: a saved adapter for programs that do not know this package."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nlora_lab.cli.parsers import add_command
from nlora_lab.core.errors import InputError


def add_export(commands: Any) -> argparse.ArgumentParser:
    """Add ``export`` to the subparsers, and return its parser."""
    parser = add_command(
        commands, "export", "write a saved adapter in a form that needs no nlora-lab",
        "nlora-lab export my-adapter --as lora --out my-adapter-as-lora", _export,
    )  # fmt: skip
    add = parser.add_argument
    add("folder", type=Path, help="the saved adapter, as save_pretrained or run --adapter wrote it")
    add(
        "--as", dest="form", choices=["lora", "merged"], default="lora",
        help="lora: an exact plain LoRA adapter, for stock PEFT; merged: the model with the adapter in its weights "
        "(default: %(default)s)",
    )  # fmt: skip
    add("--model", help="for merged: the base model (default: the one that the adapter names)")
    add("--dtype", help="for merged: float32 or bfloat16 (default: that of the base model's checkpoint)")
    add("--out", type=Path, required=True, metavar="FOLDER", help="write into this folder")
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
