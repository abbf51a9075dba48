"""The command that takes an adapter to where this package is not installed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nlora_lab.errors import InputError


def add_export(commands: Any) -> None:
    """Enter ``export`` among the subparsers ``commands``."""
    export = commands.add_parser("export", help="a saved adapter of this package, for those who have not installed it")
    export.add_argument("folder", type=Path, help="what save_pretrained wrote")
    export.add_argument("--as", choices=["lora"], default="lora", help="plain LoRA, exactly: stock PEFT loads it")
    export.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where it goes")
    export.set_defaults(command=_export)


def _export(options: argparse.Namespace) -> int:
    from nlora_lab.adapters import save_as_lora

    if options.out == Path():
        raise InputError("--out '' names no folder; for example: --out my-adapter-as-lora")
    if (options.out / "adapter_config.json").exists():
        raise InputError(f"--out {str(options.out)!r} holds an adapter already; choose another folder")
    print(save_as_lora(options.folder, options.out))
    return 0
