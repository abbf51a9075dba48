"""Tables of results in files: CSV, JSON, Parquet, LaTeX."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlora_lab.core.errors import InputError
from nlora_lab.core.files import atomic_file, expand_path
from nlora_lab.core.validation import check_choice, check_whole_number

if TYPE_CHECKING:
    import pandas as pd


def save_table(frame: pd.DataFrame, path: str | Path, digits: int | None = None) -> Path:
    """Write a table into a file, in the format that the file's ending names.

    The row names become the first column, unless they are only 0, 1, 2, … Row names of several levels become one
    column per level. The file is written completely or not at all.

    Args:
        frame: the table. The names of its columns must differ.
        path: a file that ends in .csv, .json (a list of rows), .parquet or .tex (a booktabs table). Missing folders
            are created.
        digits: round numbers to this many significant digits. By default they are exact. In LaTeX they have three.

    Returns:
        The path of the file.

    Raises:
        InputError: ``frame`` is not a table, two columns have one name, the ending is not known, ``digits`` is not a
            whole number of at least 1, or ``path`` cannot be written.
    """
    import pandas as pd

    target = expand_path(path)
    check_choice("ending", target.suffix.lower(), WRITERS)
    if not isinstance(frame, pd.DataFrame):
        raise InputError(f"frame is a {type(frame).__name__}, not a table; give a pandas DataFrame")
    if not isinstance(frame.index, pd.RangeIndex):
        frame = _with_row_names(frame)
    if not frame.columns.is_unique:
        name = frame.columns[frame.columns.duplicated()][0]
        raise InputError(f"the table has two columns called {name!r}, row names included; rename one")
    if digits is not None:
        frame = _rounded(frame, check_whole_number("digits", digits))
    with atomic_file(target) as part:
        WRITERS[target.suffix.lower()](frame, part)
    return target


def _with_row_names(frame: pd.DataFrame) -> pd.DataFrame:
    levels = frame.index.nlevels
    defaults = ["group"] if levels == 1 else [f"group {i + 1}" for i in range(levels)]
    names = [str(name or default) for name, default in zip(frame.index.names, defaults, strict=True)]
    return frame.rename_axis(names).reset_index(allow_duplicates=True)


def _rounded(frame: pd.DataFrame, digits: int) -> pd.DataFrame:
    rounded = frame.copy()
    for name in rounded.columns:
        if rounded[name].dtype.kind == "f":
            rounded[name] = [float(f"{value:.{digits}g}") for value in rounded[name]]
    return rounded


def _write_csv(frame: pd.DataFrame, path: Path) -> None:
    frame.to_csv(path, index=False)


def _write_json(frame: pd.DataFrame, path: Path) -> None:
    """Without ``DataFrame.to_json``, whose precision counts digits after the point: it writes 1e-20 as 0."""
    columns = {str(name): map(_json_value, frame[name].tolist()) for name in frame.columns}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    text = json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False, default=str)
    path.write_text(text + "\n", encoding="utf-8")


def _json_value(value: Any) -> Any:
    """Plain Python values for numpy's numbers and arrays, and ``None`` for a missing or infinite number."""
    import pandas as pd

    if hasattr(value, "tolist"):  # numpy's arrays and single numbers
        value = value.tolist()
    if isinstance(value, dict):
        return {str(name): _json_value(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(inner) for inner in value]
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value


def _write_parquet(frame: pd.DataFrame, path: Path) -> None:
    frame.to_parquet(path, index=False)


def _write_latex(frame: pd.DataFrame, path: Path) -> None:
    """By pandas and its jinja2, which torch requires."""
    table = frame.to_latex(index=False, escape=True, na_rep="--", float_format=_latex_number)
    path.write_text(f"% needs \\usepackage{{booktabs}}\n{table}", encoding="utf-8")


def _latex_number(value: float) -> str:
    if math.isfinite(value):
        return f"{value:.3g}"
    return r"$\infty$" if value > 0 else r"$-\infty$"


WRITERS: dict[str, Callable[[pd.DataFrame, Path], None]] = {
    ".csv": _write_csv, ".json": _write_json, ".parquet": _write_parquet, ".tex": _write_latex,
}  # fmt: skip
