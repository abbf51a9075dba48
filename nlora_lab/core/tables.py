"""A table of results for others: CSV, JSON, Parquet, LaTeX."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlora_lab.core.errors import InputError
from nlora_lab.core.files import atomic_file, expand_path
from nlora_lab.core.validation import check_choice

if TYPE_CHECKING:
    import pandas as pd


def save_table(frame: pd.DataFrame, path: str | Path, digits: int | None = None) -> Path:
    """Write ``frame`` as the ending of ``path`` says: .csv, .json (a list of rows), .parquet, or .tex (booktabs).

    The row names become the first column where they say something: a method or a group; those of several levels
    become a column each. ``digits``: round numbers to so many significant ones; by default they are exact, and in
    LaTeX three. Whole or not at all; returns the file.

    Raises :class:`nlora_lab.InputError` for what is no table or has two columns of one name, for another ending,
    and where ``path`` cannot be written.
    """
    import pandas as pd

    target = expand_path(path)
    check_choice("ending", target.suffix.lower(), WRITERS)
    if not isinstance(frame, pd.DataFrame):
        raise InputError(f"frame is a {type(frame).__name__}, no table; give a pandas DataFrame")
    if not isinstance(frame.index, pd.RangeIndex):
        plain = ["group"] if frame.index.nlevels == 1 else [f"group {i + 1}" for i in range(frame.index.nlevels)]
        names = [str(name or other) for name, other in zip(frame.index.names, plain, strict=True)]
        frame = frame.rename_axis(names).reset_index(allow_duplicates=True)
    if not frame.columns.is_unique:
        double = frame.columns[frame.columns.duplicated()][0]
        raise InputError(f"the table has two columns called {double!r}, row names included; rename one")
    if digits is not None:
        frame = _rounded(frame, digits)
    with atomic_file(target) as part:
        WRITERS[target.suffix.lower()](frame, part)
    return target


def _csv(frame: pd.DataFrame, path: Path) -> None:
    frame.to_csv(path, index=False)


def _json(frame: pd.DataFrame, path: Path) -> None:
    """Without pandas' own, whose precision counts the places after the point: it writes 1e-20 as 0."""
    columns = {str(name): map(_plain, frame[name].tolist()) for name in frame.columns}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    text = json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False, default=str)
    path.write_text(text + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    """As JSON knows it: no numbers of numpy's, and null for one that is missing or infinite."""
    import pandas as pd

    if hasattr(value, "tolist"):  # numpy's arrays and single numbers
        value = value.tolist()
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value


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
