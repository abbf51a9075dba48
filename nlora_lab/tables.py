"""A table of results for others: CSV, JSON, Parquet, LaTeX."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nlora_lab.errors import InputError, one_of

if TYPE_CHECKING:
    import pandas as pd


def save_table(frame: pd.DataFrame, path: str | Path, digits: int | None = None) -> Path:
    """Write ``frame`` as the ending of ``path`` says: .csv, .json (a list of rows), .parquet, or .tex (booktabs).

    The row names become the first column where they say something: a method or a group. ``digits``: round numbers to
    so many significant ones; by default they are exact, and in LaTeX three. Whole or not at all; returns the file.

    Raises :class:`nlora_lab.InputError` for another ending, and where ``path`` cannot be written.
    """
    target = Path(path).expanduser()
    one_of("ending", target.suffix.lower(), WRITERS)
    if not isinstance(frame.index, _range_index()):
        frame = frame.rename_axis(str(frame.index.name or "group")).reset_index()
    if digits is not None:
        frame = _rounded(frame, digits)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        WRITERS[target.suffix.lower()](frame, part)
        os.replace(part, target)
    except (OSError, ValueError) as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise InputError(f"{str(path)!r} cannot be written ({error}); choose another place") from error
    return target


def _csv(frame: pd.DataFrame, path: Path) -> None:
    frame.to_csv(path, index=False)


def _json(frame: pd.DataFrame, path: Path) -> None:
    frame.to_json(path, orient="records", indent=1, double_precision=15)


def _parquet(frame: pd.DataFrame, path: Path) -> None:
    frame.to_parquet(path, index=False)


def _tex(frame: pd.DataFrame, path: Path) -> None:
    """Without pandas' Styler, whose own dependency need not be there; a booktabs table is a few lines."""
    numeric = [c for c in frame.columns if frame[c].dtype.kind in "if"]
    rows = [list(map(_escaped, map(str, frame.columns)))]
    rows += [[_cell(value) for value in row] for row in frame.itertuples(index=False)]
    lines = [" & ".join(row) + r" \\" for row in rows]
    align = "".join("r" if c in numeric else "l" for c in frame.columns)
    body = "\n".join([lines[0], r"\midrule", *lines[1:]])
    text = f"% needs \\usepackage{{booktabs}}\n\\begin{{tabular}}{{{align}}}\n\\toprule\n{body}\n\\bottomrule\n"
    path.write_text(text + "\\end{tabular}\n", encoding="utf-8")


WRITERS: dict[str, Callable[[pd.DataFrame, Path], None]] = {
    ".csv": _csv, ".json": _json, ".parquet": _parquet, ".tex": _tex,
}  # fmt: skip
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def _escaped(text: str) -> str:
    return "".join(LATEX.get(sign, sign) for sign in text)


def _cell(value: object) -> str:
    if value is None or value != value:
        return "--"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) != float("inf") else (r"$\infty$" if value > 0 else r"$-\infty$")
    return _escaped(str(value))


def _rounded(frame: pd.DataFrame, digits: int) -> pd.DataFrame:
    if isinstance(digits, bool) or not isinstance(digits, int) or digits < 1:
        raise InputError(f"digits={digits!r} must be a whole number of at least 1")
    done = frame.copy()
    for name in done.columns:
        if done[name].dtype.kind == "f":
            done[name] = [float(f"{value:.{digits}g}") for value in done[name]]
    return done


def _range_index() -> type:
    import pandas as pd

    return pd.RangeIndex
