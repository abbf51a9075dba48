"""What a page needs of matrices, and what the Nyström lab shows as it opens. This module imports no torch.

Importing torch and drawing the picture take a second each. So the first matrix of the lab is prepared in advance.
``python -m tools.lab_opening`` does it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlora_lab.core.documents import read_json
from nlora_lab.core.files import shipped_folder
from nlora_lab.lowrank.rules import CORES, PIVOTS
from nlora_lab.models.names import EMBEDDED
from nlora_lab.models.weights import list_weights

PAGE_ENTRIES = 128 * 384
"""Entries of the largest matrix that a page computes within a frame."""

TOLERANCES = [("default", 0.0), *((f"{t:g}", t) for t in (1e-6, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3))]

FACTS = {"pivots": list(PIVOTS), "cores": list(CORES), "tolerances": [list(pair) for pair in TOLERANCES]}
"""The choices of the menus in the page."""

DATA, PICTURE = "nystrom.json", "nystrom.png"


def embedded_layers() -> list[tuple[str, str]]:
    """Return a label and the name of every weight matrix in the layers of the embedded model."""
    in_layers = sorted((w for w in list_weights(EMBEDDED) if w.place[0] >= 0), key=lambda w: w.place[0])
    return [(f"layer {w.place[0]} {w.place[1]}", w.name) for w in in_layers]


@dataclass(frozen=True)
class MatrixOpening:
    """The Nyström lab as it opens.

    Attributes:
        settings: the settings of its controls. The matrix is one of the embedded model.
        entry: what the page needs of the matrix (``AnalysedMatrix.entry``).
        text: the lab in a line.
        picture: its figure, a PNG.
    """

    settings: dict[str, Any]
    entry: dict[str, Any]
    text: str
    picture: bytes


def shipped_matrix() -> MatrixOpening | None:
    """Return what was made in advance of a matrix, or ``None`` if it is missing or was made from another model."""
    folder = shipped_folder("data") / "results" / "opening"
    try:
        stored, weights = read_json(folder / DATA), _model_weights()
        if stored["model"] != hashlib.sha256(weights).hexdigest():
            return None
        entry = {**stored["entry"], "W": _entries(weights, stored["settings"]["matrix"])}
        return MatrixOpening(stored["settings"], entry, stored["text"], (folder / PICTURE).read_bytes())
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_matrix(opening: MatrixOpening) -> Path:
    """Write what ``shipped_matrix`` reads, and return the folder."""
    folder = shipped_folder("data") / "results" / "opening"
    folder.mkdir(exist_ok=True)
    entry = {name: value for name, value in opening.entry.items() if name != "W"}
    model = hashlib.sha256(_model_weights()).hexdigest()
    stored = {"model": model, "settings": opening.settings, "text": opening.text, "entry": entry}
    (folder / PICTURE).write_bytes(opening.picture)
    text = json.dumps(stored, separators=(",", ":"), ensure_ascii=False) + "\n"
    (folder / DATA).write_text(text, encoding="utf-8", newline="\n")
    return folder


def _model_weights() -> bytes:
    return (shipped_folder("data") / EMBEDDED / "model.safetensors").read_bytes()


def _entries(weights: bytes, name: str) -> bytes:
    """The entries of a float32 tensor of a safetensors file."""
    from safetensors import deserialize

    tensor = dict(deserialize(weights))[name]  # type: ignore[no-untyped-call]
    if tensor["dtype"] != "F32":
        raise ValueError(f"{name} is stored as {tensor['dtype']}")
    return bytes(tensor["data"])
