"""models.names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from nlora_lab.core.errors import ModelError
from nlora_lab.core.files import shipped_folder
from nlora_lab.models.hub import check_reachable as check_reachable

if TYPE_CHECKING:
    pass

EMBEDDED = "embedded"
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def check_model(name: str) -> str | Path:
    """What transformers should load for ``name``, without loading it.

    Raises :class:`ModelError` for a folder that holds no safetensors model and for a name that is
    neither "embedded", nor an existing folder, nor of a hub id's form ``owner/name``.
    """
    if name == EMBEDDED:
        return shipped_folder("data") / EMBEDDED
    try:
        folder = Path(name).expanduser()
        there = bool(name) and folder.is_dir()
    except (OSError, RuntimeError, ValueError):  # too long, no such home, a NUL in it
        folder, there = Path(), False
    if there:
        _check_folder(folder)
        return folder
    if folder.is_absolute() or not HUB_ID.fullmatch(name):
        raise ModelError(
            f"model={name!r} is not known: use 'embedded', an existing folder in the Hugging Face layout, "
            "or a hub id such as 'HuggingFaceTB/SmolLM2-135M'"
        )
    return name


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(f"the folder {folder} holds no model: config.json is missing; save one with save_pretrained")
    if any(next(folder.glob(pattern), None) for pattern in WEIGHT_FILES):
        return
    pickled = next((p for pattern in PICKLES for p in folder.glob(pattern)), None)
    if pickled is not None:
        raise ModelError(
            f"the folder {folder} has its weights in {pickled.name}, a pickle, which can run code when opened; "
            "convert it with save_pretrained, which writes safetensors"
        )
    raise ModelError(f"the folder {folder} holds no weights: no .safetensors file; save the model with save_pretrained")
