"""What the fine-tuning lab shows as it opens on the shipped runs, made in advance: reading all records takes a second.

``python -m tools.lab_opening`` writes it. It names the records that it was made from, and is not used for others.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlora_lab.core.documents import read_json
from nlora_lab.core.files import shipped_folder
from nlora_lab.methods.table import METHODS
from nlora_lab.pages.recorded import menus, recorded_data
from nlora_lab.runs.index import RecordedRuns

DATA, PICTURE = "recorded.json", "lab.png"


@dataclass(frozen=True)
class Opening:
    """The recorded runs in compact form, and the picture of the lab as it opens.

    Attributes:
        data: the recorded runs, and
        curves: their loss curves, as ``recorded_data`` returns them.
        settings: the settings of the controls in the picture.
        figure: the digest of the figure in the picture.
        picture: the picture, a PNG.
    """

    data: dict[str, Any]
    curves: bytes
    settings: dict[str, Any]
    figure: str
    picture: bytes


def shipped_opening() -> Opening | None:
    """Return what was made in advance of the shipped runs, or ``None`` if it is missing or was made from others."""
    results = shipped_folder("data") / "results"
    try:
        stored = read_json(results / "opening" / DATA)
        cells = stored["recorded"]["cells"]
        if stored["records"] != records_digest(results) or not {c["method"] for c in cells} <= METHODS.keys():
            return None
        return Opening(
            {**menus(), **stored["recorded"]}, base64.b64decode(stored["curves"]), stored["settings"],
            stored["figure"], (results / "opening" / PICTURE).read_bytes(),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_opening(recordings: RecordedRuns, settings: dict[str, Any], figure: object, picture: bytes) -> Path:
    """Write what ``shipped_opening`` reads.

    Args:
        recordings: the shipped runs.
        settings: the settings of the lab as it opens.
        figure: the description of its figure.
        picture: the figure as PNG bytes.

    Returns:
        The folder.
    """
    results = shipped_folder("data") / "results"
    data, curves = recorded_data(recordings)
    stored = {
        "records": records_digest(results), "settings": settings, "figure": digest_of(figure),
        "recorded": {k: v for k, v in data.items() if k not in menus()}, "curves": base64.b64encode(curves).decode(),
    }  # fmt: skip
    folder = results / "opening"
    folder.mkdir(exist_ok=True)
    (folder / PICTURE).write_bytes(picture)
    (folder / DATA).write_text(json.dumps(stored, separators=(",", ":")) + "\n", encoding="utf-8", newline="\n")
    return folder


def records_digest(results: Path) -> str:
    """Return a digest of all records in a store."""
    digest = hashlib.sha256()
    for file in sorted([*results.glob("*.json"), *results.glob("**/*.jsonl")]):
        digest.update(f"{file.relative_to(results).as_posix()}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def digest_of(figure: object) -> str:
    """Return a digest of the description of a figure, with its numbers to five digits."""
    text = re.sub(r"\d+\.\d+(e-?\d+)?", lambda number: f"{float(number[0]):.5g}", repr(figure))
    return hashlib.sha256(text.encode()).hexdigest()
