"""The command that takes an adapter to where this package is not installed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nlora_lab.core.errors import InputError


def add_export(commands: Any) -> None:
    """Enter ``export`` among the subparsers ``commands``."""
    export = commands.add_parser("export", help="a saved adapter of this package, for those who have not installed it")
    export.add_argument("folder", type=Path, help="what save_pretrained wrote")
    export.add_argument(
        "--as",
        dest="form",
        choices=["lora", "merged"],
        default="lora",
        help="lora: plain LoRA, exactly, which stock PEFT loads; merged: the model with the adapter in its weights",
    )
    export.add_argument("--model", help="for merged: the base model (default: the one the adapter names)")
    export.add_argument("--dtype", help="for merged: float32 or bfloat16 (default: that of the base's checkpoint)")
    export.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where it goes")
    export.set_defaults(command=_export)


def _export(options: argparse.Namespace) -> int:
    from nlora_lab.adapters import save_as_lora
    from nlora_lab.training.export import save_merged

    if options.out == Path():
        raise InputError("--out '' names no folder; for example: --out my-adapter-as-lora")
    for name in ("adapter_config.json", "config.json"):
        if (options.out / name).exists():
            kind = "an adapter" if name.startswith("adapter") else "a model"
            raise InputError(f"--out {str(options.out)!r} holds {kind} already; choose another folder")
    if options.form == "lora":
        print(save_as_lora(options.folder, options.out))
    else:
        print(save_merged(options.folder, options.out, options.model, options.dtype))
    return 0
