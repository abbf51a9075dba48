"""Predictions in files, and the predictions of a class."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlora_lab.core.documents import read_json
from nlora_lab.core.errors import InputError
from nlora_lab.core.files import expand_path, write_atomically
from nlora_lab.core.validation import check_choice, check_text
from nlora_lab.course.predictions.asking import ASKED
from nlora_lab.course.predictions.kinds import KINDS, Kind, kind_name

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
MOST_PREDICTIONS, MOST_CHARACTERS = 1000, 500  # of a file, and of a text in it
POOLED_COLUMNS = ["prediction", "question", "guesses", "the class", "measured"]

Entry = tuple[str, str, Kind]  # key, question and kind: what makes two predictions the same


def save_predictions(path: str | Path) -> Path:
    """Write the committed predictions of this kernel into a JSON file, to hand in.

    Args:
        path: the file. Missing folders are created.

    Returns:
        The path of the file.

    Raises:
        InputError: no prediction is committed, or the file cannot be written.
    """
    rows: list[dict[str, Any]] = []
    for prediction in ASKED.values():
        if prediction.guess is not None:
            prediction.measure()
            kind = {"kind": kind_name(prediction.kind), **asdict(prediction.kind)}
            values = {"guess": prediction.guess, "measured": prediction.measured}
            rows.append({"key": prediction.key, "question": prediction.question, **kind, **values})
    if not rows:
        raise InputError("no prediction is committed in this kernel; answer at least one nl.predict(...) first")
    text = json.dumps({"format": FORMAT, "predictions": rows}, indent=1, ensure_ascii=False)
    return write_atomically(expand_path(path), text + "\n")


def class_predictions(source: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """Pool the predictions of a class.

    Args:
        source: a folder with the files of ``save_predictions``, or a list of such files. A file that cannot be read
            is left out with a warning that names it.

    Returns:
        One row per prediction. Columns: prediction, question, guesses (how many), the class (each choice with its
            count, or the median with the range), measured (the same, over the machines of the class).

    Raises:
        InputError: no file is given, or none of the files can be read.
    """
    import pandas as pd

    files = _files(source)
    pooled: dict[Entry, tuple[list[Any], list[Any]]] = {}
    read = 0
    for path in files:
        try:
            entries = read_predictions(path)
        except InputError as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
            continue
        read += 1
        for entry, guess, measured in entries:
            guesses, measurements = pooled.setdefault(entry, ([], []))
            guesses.append(guess)
            if measured is not None:
                measurements.append(measured)
    if not read:
        raise InputError(f"none of {len(files)} files could be read; they are made by nl.course.save_predictions")
    rows = [_pooled_row(entry, *values) for entry, values in pooled.items()]
    return pd.DataFrame(rows, columns=POOLED_COLUMNS)


def read_predictions(path: Path) -> list[tuple[Entry, Any, Any]]:
    """Read a file of predictions that somebody else may have written.

    Args:
        path: the file.

    Returns:
        For each prediction its key, question and kind, the guess, and the measurement or ``None``.

    Raises:
        InputError: the file cannot be read, or is not one of ``save_predictions``.
    """
    try:
        document = read_json(path)
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError(f"it has no line 'format: {FORMAT}'")
        rows = document.get("predictions")
        if not isinstance(rows, list) or len(rows) > MOST_PREDICTIONS:
            raise ValueError(f"its predictions are not a list of at most {MOST_PREDICTIONS}")
        entries = [_entry(row) for row in rows]
        keys = [entry[0] for entry, _, _ in entries]
        if len(set(keys)) < len(keys):
            raise ValueError("it has a prediction twice")
        return entries
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path.name} is not a file of predictions ({error}); save it again") from error


def _entry(row: Any) -> tuple[Entry, Any, Any]:
    if not isinstance(row, dict):
        raise ValueError("a prediction is not an object")
    name = row.get("kind")
    check_choice("kind", name, KINDS)
    make: Any = KINDS[str(name)]
    settings = {f.name: row[f.name] for f in fields(make) if f.name in row}
    kind: Kind = make(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})
    texts = [check_text(field, row.get(field)) for field in ("key", "question")]
    long = [text for text in (*texts, *getattr(kind, "choices", ()), getattr(kind, "unit", ""))
            if not isinstance(text, str) or len(text) > MOST_CHARACTERS]  # fmt: skip
    if long or not isinstance(getattr(kind, "log", False), bool):
        raise ValueError(f"a text has more than {MOST_CHARACTERS} characters, or is something else")
    measured = row.get("measured")
    measured = None if measured is None else kind.measurement(measured)
    return (texts[0], texts[1], kind), kind.guess(row.get("guess")), measured


def _pooled_row(entry: Entry, guesses: list[Any], measurements: list[Any]) -> dict[str, Any]:
    key, question, kind = entry
    measured = kind.pooled(measurements) if measurements else "not measured"
    values = key, question, len(guesses), kind.pooled(guesses), measured
    return dict(zip(POOLED_COLUMNS, values, strict=True))


def _files(source: str | Path | Iterable[str | Path]) -> list[Path]:
    if isinstance(source, str | Path):
        folder = expand_path(source)
        files = sorted(folder.glob("*.json")) if folder.is_dir() else [folder]
        if not files:
            raise InputError(f"{str(source)!r} has no file that ends in .json; collect those of save_predictions there")
        return files
    files = [expand_path(path) for path in source]
    if not files:
        raise InputError("the list of files is empty; name at least one file of save_predictions")
    return files
